# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A session's mounts of its archive, as its keeper looks after them.

A Borg that died is replaced. A mounted Borg knows the repository as it was. When C(borg compact) moves chunks of the
archive, which it also does after other archives were deleted, that Borg ends at the next read of them. A new one finds
them where they are now.

Borgs that nobody needs are ended: each takes about 40 MiB of memory, and most sessions are idle most of their life.
When the copy-on-write layer then misses them it rings a bell, a named pipe, and waits for their successors.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from ansible_collections.phpborg.instant_recovery.plugins.module_utils._command import CommandError, run
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._metrics import layer_counters, spent
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._mounts import mount_at, unmount, wait_until
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._processes import (
    Process,
    secret_pipe,
    spawn,
    stop_all,
    wait_for_any_end,
)
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._session import (
    BELL,
    Session,
    SessionError,
    SessionGoneError,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Archive", "Remount", "packed", "unpacked", "wake"]

TIMEOUT = 60.0  # seconds for a Borg to open its repository
QUICK = 30.0  # seconds that mounting may take of an archive that is let go of
SIGNALS = (("SIGTERM", 2.0), ("SIGKILL", 5.0))
PIPE_SIZE = 60_000  # bytes that a pipe takes without a reader, with something to spare

log = logging.getLogger("keeper")


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
    may_rest: bool  # whether it can be made again at any time, and nobody counts on Borg's lock

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
        """Start a Borg in place of the one that is gone."""
        unmount(self.mountpoint)
        with secret_pipe("BORG_PASSPHRASE_FD", self.passphrase) as (secret, descriptors):
            process = spawn(self.argv, log=self.log, env={**self.env, **secret}, pass_fds=descriptors)
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

    def let_go(self, session: Session) -> None:
        """End the Borg until it is needed again. To be called under the lock."""
        process = Process.from_dict(self._claim(session)["process"])
        # Said first: then nobody takes it for dead. What it has used would be forgotten with it.
        session.amend_claim(self.name, resting=True, spent=spent(self._claim(session)))
        unmount(self.mountpoint)
        stop_all([process], SIGNALS)
        session.amend_claim(self.name, process=None)

    def process(self, session: Session) -> Process | None:
        """That of the claim; None where there is none, or the session does not have this mount any more."""
        known = self._claim(session).get("process")
        return Process.from_dict(known) if known else None

    def is_resting(self, session: Session) -> bool:
        """Whether its Borg was let go of."""
        return bool(self._claim(session).get("resting"))

    def _claim(self, session: Session) -> dict[str, Any]:
        claims: list[dict[str, Any]] = session.record["claims"]
        return next((claim for claim in claims if claim["name"] == self.name), {})


class Archive:
    """The mounts of a session's archive. Times are of the monotonic clock."""

    def __init__(self, session: Session, remounts: Sequence[Remount]) -> None:
        self.remounts = remounts
        self.is_wanted = False  # whether the bell was rung since all were mounted
        self.failures = 0
        self.next_attempt = 0.0
        self.fetched: int | None = None
        self.quiet_since = time.monotonic()
        self.unrecorded: dict[str, Process] = {}  # started while somebody else had the lock
        with suppress(FileExistsError):
            os.mkfifo(session.path(BELL), 0o600)
        self.bell = os.open(session.path(BELL), os.O_RDWR | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)

    def wait(self, session: Session, *, timeout: float) -> None:
        """Wait up to timeout seconds, or until a Borg ends or one is wanted."""
        processes = [process for remount in self.remounts if (process := self._process(remount, session))]
        wait_for_any_end([one for one in processes if one.alive()], timeout=timeout, readable=[self.bell])
        with suppress(BlockingIOError):
            self.is_wanted = bool(os.read(self.bell, 4096)) or self.is_wanted

    def revive(self, session: Session) -> None:
        """Mount again what has died, or is wanted. The layer waits some seconds for that before it gives an error."""
        self._record(session)
        missing = [remount for remount in self.remounts if self._is_missing(remount, session)]
        if not missing:
            self.is_wanted = False
            return
        # A start that nobody works on just now finds out by itself.
        is_due = session.record["status"] != "starting" or session.is_locked()
        if not is_due or time.monotonic() < self.next_attempt or session.record["driver"] != "block":
            return
        fcntl.flock(self.bell, fcntl.LOCK_EX)  # as long as this tries, the layer waits
        try:
            # Before the session's lock is taken: a repository that does not answer must not keep anybody from stopping.
            done = missing[0].is_same(session) and all(self._mount(remount, session) for remount in missing)
        finally:
            fcntl.flock(self.bell, fcntl.LOCK_UN)
        self.quiet_since = time.monotonic()
        self.failures = 0 if done else self.failures + 1
        self.next_attempt = time.monotonic() + min(60.0, 2.0 ** min(self.failures, 6) - 1)

    def rest(self, session: Session) -> None:
        """Let go of mounts that have not been read for the session's rest_after, if they can be had back."""
        fetched, now = layer_counters(session).get("fetched_bytes"), time.monotonic()
        if fetched != self.fetched:
            self.fetched, self.quiet_since = fetched, now
        idle = session.record["rest_after"]
        if fetched is None or self.is_wanted or not 0 < idle <= now - self.quiet_since:
            return
        self.quiet_since = now
        mounted = [remount for remount in self.remounts if remount.process(session)]
        if not mounted or not self._can_be_had_back(session):
            return
        with session.locked(timeout=1):
            if session.record["status"] == "active":
                for remount in mounted:
                    remount.let_go(session)
                log.info("nobody has read the archive for %g s: its mounts are gone until somebody does", idle)

    def _can_be_had_back(self, session: Session) -> bool:
        """Whether mounting is allowed without asking, was quick, and the repository answers quickly now."""
        was_quick = session.record["timings"].get("borg_mount", QUICK) < QUICK
        if not was_quick or not all(remount.may_rest for remount in self.remounts):
            return False
        began = time.monotonic()
        return self.remounts[0].is_same(session) and time.monotonic() < began + QUICK

    def _mount(self, remount: Remount, session: Session) -> bool:
        process = self._start(remount, session)
        if process is None:
            return True
        done = remount.finish(process)
        log.info("%s was gone and %s", remount.mountpoint, "is mounted again" if done else "cannot be mounted")
        return done

    def _start(self, remount: Remount, session: Session) -> Process | None:
        """A new Borg; None where none is missing any more, or it is for others to say."""
        try:
            with session.locked(timeout=1):
                if session.record["status"] not in ("active", "failed") or not self._is_missing(remount, session):
                    return None
                process = remount.start(session)
                session.amend_claim(remount.name, process=process, resting=False)
                return process
        except SessionGoneError:
            raise
        except SessionError:
            # A start that waits for its server holds the lock, and its server waits for us. Tear-down finds what bears
            # the session's mark, and ends the keeper before it looks.
            if session.record["status"] != "starting":
                raise
            self.unrecorded[remount.name] = process = remount.start(session)
            return process

    def _record(self, session: Session) -> None:
        """Claim what could not be claimed when it was started."""
        if self.unrecorded and not session.is_locked():
            with session.locked(timeout=1):
                for name, process in list(self.unrecorded.items()):
                    session.amend_claim(name, process=process)
                    del self.unrecorded[name]

    def _process(self, remount: Remount, session: Session) -> Process | None:
        return self.unrecorded.get(remount.name) or remount.process(session)

    def _is_missing(self, remount: Remount, session: Session) -> bool:
        if remount.is_resting(session):
            return self.is_wanted
        process = self._process(remount, session)
        return process is not None and not process.alive()


def wake(session: Session, *, timeout: float = TIMEOUT) -> bool:
    """Have an archive that rests mounted; whether it is. Not to be called under the lock, which the keeper needs."""
    if not _rests(session):
        return True
    with suppress(OSError):  # there is no keeper
        bell = os.open(session.path(BELL), os.O_WRONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
        with os.fdopen(bell, "wb", buffering=0) as pipe:
            pipe.write(b"!")
    return wait_until(lambda: not _rests(session), timeout=timeout)


def _rests(session: Session) -> bool:
    """Whether a mount is still missing, by the record as it is now."""
    session.record = Session.open(session.directory).record
    mounts = [claim for claim in session.record["claims"] if "resting" in claim]
    return any(claim["resting"] or mount_at(claim["mountpoint"]) is None for claim in mounts)


def packed(remounts: Sequence[Remount]) -> bytes:
    """For the pipe to the process that keeps them; nothing where they are too much for a pipe."""
    data = json.dumps([asdict(remount) for remount in remounts]).encode()
    return data if len(data) <= PIPE_SIZE else b"[]"


def unpacked(descriptor: int) -> list[Remount]:
    """What packed() gave, from the reading end of the pipe."""
    with os.fdopen(descriptor, "rb") as pipe:
        return [Remount(**fields) for fields in json.loads(pipe.read())]
