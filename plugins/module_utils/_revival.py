# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Mounting a session's archive again when a Borg that served it has died.

A mounted Borg knows the repository as it was. When C(borg compact) moves chunks of the archive, which it also does
after other archives were deleted, that Borg ends at the next read of them. A new one finds them where they are now.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from ansible_collections.phpborg.instant_recovery.plugins.module_utils._command import CommandError, run
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._mounts import mount_at, unmount, wait_until
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._processes import (
    Process,
    secret_pipe,
    spawn,
    stop_all,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ansible_collections.phpborg.instant_recovery.plugins.module_utils._session import Session

__all__ = ["Remount", "packed", "unpacked"]

TIMEOUT = 30.0  # seconds for a Borg to open its repository
SIGNALS = (("SIGTERM", 2.0), ("SIGKILL", 5.0))
PIPE_SIZE = 60_000  # bytes that a pipe takes without a reader, with something to spare


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

    def is_same(self, session: Session) -> bool:
        """Whether the archive of this name is still the session's: it may have been deleted, and made anew."""
        secret = {} if self.passphrase is None else {"BORG_PASSPHRASE_FD": "0"}
        stdin = (self.passphrase or "").encode()
        try:
            listed = run(self.listing, timeout=TIMEOUT, env={**self.env, **secret}, stdin=stdin).stdout
            known = {archive["name"]: archive["id"] for archive in json.loads(listed)["archives"]}
        except (CommandError, ValueError, LookupError, TypeError):
            return False
        own = (session.record["archive"] or {}).get("id")
        return own is not None and known.get(self.archive) == own

    def start(self, session: Session) -> Process:
        """Start a Borg in place of the process in the claim, which has ended. To be called under the lock."""
        unmount(self.mountpoint)
        with secret_pipe("BORG_PASSPHRASE_FD", self.passphrase) as (secret, descriptors):
            process = spawn(self.argv, log=self.log, env={**self.env, **secret}, pass_fds=descriptors)
        session.amend_claim(self.name, process=process)
        with suppress(OSError):  # it does not inherit the keeper's low priority, where we may say so
            os.setpriority(os.PRIO_PROCESS, process.pid, 0)
        return process

    def finish(self, process: Process) -> bool:
        """Wait until it has mounted; whether it did."""
        wait_until(lambda: mount_at(self.mountpoint) is not None, timeout=TIMEOUT, processes=[process])
        if mount_at(self.mountpoint) is not None and process.alive():
            return True
        stop_all([process], SIGNALS)
        unmount(self.mountpoint)
        return False

    def is_dead(self, session: Session) -> bool:
        """Whether the process that serves it has ended. False where the session does not have this mount any more."""
        for claim in session.record["claims"]:
            if claim["name"] == self.name and claim["process"]:
                return not Process.from_dict(claim["process"]).alive()
        return False


def packed(remounts: Sequence[Remount]) -> bytes:
    """For the pipe to the process that keeps them; nothing where they are too much for a pipe."""
    data = json.dumps([asdict(remount) for remount in remounts]).encode()
    return data if len(data) <= PIPE_SIZE else b"[]"


def unpacked(descriptor: int) -> list[Remount]:
    """What packed() gave, from the reading end of the pipe."""
    with os.fdopen(descriptor, "rb") as pipe:
        return [Remount(**fields) for fields in json.loads(pipe.read())]
