# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""How a mount of an archive was made, for whoever has to make it again: the session's keeper."""

from __future__ import annotations

import json
import os
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from .._host.command import CommandError, run
from .._host.fuse_server import end_servers
from .._host.limits import bounds_of_borg
from .._host.mounts import mount_at, unmount, wait_until
from .._host.processes import Process, secret_pipe, spawn
from .._session.metrics import spent

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from .._session.session import Session

__all__ = ["LISTING", "Remount", "packed", "unpacked"]

LISTING = 30.0  # seconds for a Borg to list its repository's archives
SLICE = 2.0  # seconds between two looks whether waiting for a mount is worth while
SIGNALS = (("SIGTERM", 2.0), ("SIGKILL", 5.0))


@dataclass(frozen=True)
class Remount:
    """How one mount of the archive was made, secret included: to be held in memory alone."""

    name: str
    mountpoint: str
    archive: str
    argv: Sequence[str]
    listing: Sequence[str]  # a command that lists the repository's archives as JSON
    env: dict[str, str]
    passphrase: str | None
    log: str
    memory: int  # bytes that each Borg may have; 0: any
    may_suspend: bool  # whether it can be made again at any time, and nobody counts on Borg's lock

    def problem(self, session: Session) -> str | None:
        """Why it cannot be made again; None: it can. The archive may have been deleted, and made anew by this name."""
        secret = {} if self.passphrase is None else {"BORG_PASSPHRASE_FD": "0"}
        env = {**self.env, **secret, "BORG_FUSE_IMPL": "none"}  # it mounts nothing
        stdin = (self.passphrase or "").encode()
        try:
            bounds = bounds_of_borg(self.memory)
            listed = run(self.listing, timeout=LISTING, env=env, stdin=stdin, bounds=bounds).stdout
            known = {archive["name"]: archive["id"] for archive in json.loads(listed)["archives"]}
        except CommandError as error:
            return str(error)
        except (ValueError, LookupError, TypeError):
            return "borg list did not say what archives there are"
        own = (session.record.archive or {}).get("id")
        if own is None or known.get(self.archive) != own:
            return f"the repository has no archive {self.archive} any more, or another one by this name"
        return None

    def start(self, session: Session) -> Process:
        """Start a Borg in place of the one that is gone."""
        unmount(self.mountpoint)
        with secret_pipe("BORG_PASSPHRASE_FD", self.passphrase) as (secret, descriptors):
            process = spawn(
                self.argv,
                log=self.log,
                env={**self.env, **secret},
                pass_fds=descriptors,
                bounds=bounds_of_borg(self.memory),
            )
        with suppress(OSError):  # it does not inherit the keeper's low priority, where we may say so
            os.setpriority(os.PRIO_PROCESS, process.pid, 0)
        return process

    def finish(self, process: Process, *, deadline: float, give_up: Callable[[], bool]) -> bool:
        """Wait until it has mounted, or give_up, which is asked every few seconds; whether it has."""

        def is_over() -> bool:
            return mount_at(self.mountpoint) is not None or not process.alive()

        while not is_over() and time.monotonic() < deadline and not give_up():
            wait_until(is_over, timeout=min(SLICE, deadline - time.monotonic()), processes=[process])
        if mount_at(self.mountpoint) is not None and process.alive():
            return True
        end_servers([self.mountpoint], [process], SIGNALS)
        return False

    def suspend(self, session: Session) -> None:
        """End the Borg until the archive is resumed. To be called under the lock."""
        claim = session.record.claimed(self.name)
        if claim is None or claim.process is None:
            return
        used = spent(claim.process, claim.spent)
        session.amend_claim(self.name, suspended=True)  # said first: then nobody takes it for dead
        end_servers([self.mountpoint], [claim.process], SIGNALS)
        session.amend_claim(self.name, process=None, spent=used)

    def process(self, session: Session) -> Process | None:
        """Return the claim's process; None where there is none, or the session does not have this mount any more."""
        claim = session.record.claimed(self.name)
        return None if claim is None else claim.process

    def is_suspended(self, session: Session) -> bool:
        """Whether its Borg was ended on purpose."""
        claim = session.record.claimed(self.name)
        return claim is not None and claim.suspended


def packed(remounts: Sequence[Remount]) -> bytes:
    """For the descriptor that the process which keeps them inherits."""
    return json.dumps([asdict(remount) for remount in remounts]).encode()


def unpacked(descriptor: int) -> list[Remount]:
    """What packed() gave."""
    with os.fdopen(descriptor, "rb") as file:
        return [Remount(**fields) for fields in json.loads(file.read())]
