# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A session's mounts of its archive, as its keeper looks after them.

A Borg that died is replaced. A mounted Borg knows the repository as it was. When C(borg compact) moves chunks of the
archive, which it also does after other archives were deleted, that Borg ends at the next read of them. A new one finds
them where they are now.

An archive that nobody reads is suspended, which ends its Borgs: each takes about 40 MiB of memory, and most sessions
are idle most of their life. When the copy-on-write layer misses them it writes into a named pipe, and waits until the
archive is resumed.
"""

from __future__ import annotations

import fcntl
import logging
import os
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from .._borg.remount import LISTING
from .._host.clock import monotonic
from .._host.command import CommandError
from .._host.mounts import wait_until
from .._host.processes import Process, wait_for_any_end
from .._session.counters import layer_counters
from .._session.directory import RESUME
from .._session.session import Session

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from .._borg.remount import Remount
    from .._session.record import Record

__all__ = ["Archive", "Pace", "resume", "suspend_after"]

TIMEOUT = 60.0  # seconds for Borgs to mount
QUICK = 30.0  # seconds that mounting may take of an archive that is suspended
# For how long nobody reads an archive that is suspended: seconds at least, and so many times what mounting took.
LEAST_IDLENESS, IDLENESS_PER_MOUNTING = 60.0, 10.0
ASKED_AGAIN = 600.0  # seconds until it is looked again whether an archive that is mounted could be mounted again
# How often it is mounted again: so many times at once, and one more after so many seconds. A lost piece takes two, and
# the layer, which waits for 20 s, must not wait in vain.
REMOUNTS = (20, 10.0)

MOST_TOLD = 2000  # characters of why it cannot be mounted: a Borg may say a megabyte, again and again

log = logging.getLogger("keeper")


class Pace:
    """How often something may be done: some times at once, and over a long time once in so many seconds."""

    def __init__(self, at_once: int, seconds: float) -> None:
        self.at_once, self.seconds = at_once, seconds
        self.left = float(at_once)
        self.counted = 0.0

    def take(self, now: float) -> float:
        """Do it once; seconds until it may be done again."""
        self.left = min(self.at_once, self.left + (now - self.counted) / self.seconds) - 1
        self.counted = now
        return max(0.0, (1 - self.left) * self.seconds)


class Archive:
    """The mounts of a session's archive. Times are of the monotonic clock."""

    def __init__(self, session: Session, remounts: Sequence[Remount]) -> None:
        self.remounts = remounts
        self.is_wanted = False  # whether somebody has asked for mounts since all were there
        self.failures = 0
        self.next_attempt = 0.0
        self.pace = Pace(*REMOUNTS)
        self.is_held_back = False
        self.fetched: int | None = None
        self.quiet_since = monotonic()
        self.unrecorded: dict[str, Process] = {}  # Borgs that serve already
        with suppress(FileExistsError):
            os.mkfifo(session.path(RESUME), 0o600)
        self.resume = os.open(session.path(RESUME), os.O_RDWR | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)

    def wait(self, session: Session, *, timeout: float) -> None:
        """Wait up to timeout seconds, or until a Borg ends or one is wanted."""
        processes = [process for remount in self.remounts if (process := self._process(remount, session))]
        wait_for_any_end([one for one in processes if one.alive()], timeout=timeout, readable=[self.resume])
        with suppress(BlockingIOError):
            self.is_wanted = bool(os.read(self.resume, 4096)) or self.is_wanted

    def revive(self, session: Session, *, give_up: Callable[[], bool]) -> None:
        """Mount again what has died, or is wanted. The layer waits some seconds for that before it gives an error.

        Meanwhile nobody looks after the session: give_up, which is asked now and then, tells whether it has to end.

        Not under the session's lock: whoever has it may be waiting for a server that waits for the archive. Should the
        session be torn down meanwhile, the keeper is ended before what bears the session's mark is looked for.
        """
        self._record(session)
        missing = [remount for remount in self.remounts if self._is_missing(remount, session)]
        if not missing:
            self.is_wanted = False
            return
        if time.monotonic() < self.next_attempt or session.record.driver != "block":
            return
        fcntl.flock(self.resume, fcntl.LOCK_EX)  # as long as this tries, the layer waits
        try:
            problem = missing[0].problem(session) or self._mount(missing, session, give_up)
        finally:
            fcntl.flock(self.resume, fcntl.LOCK_UN)
        if problem:
            log.error("the archive cannot be mounted again: %s", problem[-MOST_TOLD:])
        self.quiet_since = monotonic()
        self.failures = self.failures + 1 if problem else 0
        pause = self.pace.take(time.monotonic())
        if pause and not self.is_held_back:
            log.warning(
                "the archive had to be mounted again %d times in a short time, from now on it is once in %g s: each "
                "read of content that the repository has lost, or moved, ends a Borg",
                *REMOUNTS,
            )
        self.is_held_back = pause > 0
        self.next_attempt = time.monotonic() + max(pause, min(60.0, 2.0 ** min(self.failures, 6) - 1))

    def suspend(self, session: Session) -> None:
        """Suspend an archive that nobody has read for long, if it can be resumed."""
        fetched, now = layer_counters(session).get("fetched_bytes"), monotonic()
        if fetched != self.fetched:
            self.fetched, self.quiet_since = fetched, now
        idle = suspend_after(session.record)
        if fetched is None or self.is_wanted or not 0 < idle <= now - self.quiet_since:
            return
        self.quiet_since = now
        mounted = [remount for remount in self.remounts if remount.process(session)]
        if not mounted:
            return
        if not self._can_resume(session):
            self.quiet_since = now + ASKED_AGAIN  # asking a repository that is out of reach takes its time
            return
        with session.locked(timeout=1):
            if session.record.status == "active" and layer_counters(session).get("fetched_bytes") == fetched:
                for remount in mounted:
                    remount.suspend(session)
                log.info("nobody has read the archive for %g s: it is suspended until somebody does", idle)

    def _can_resume(self, session: Session) -> bool:
        """Whether mounting is allowed without asking, and the repository has the archive still."""
        return all(one.may_suspend for one in self.remounts) and self.remounts[0].problem(session) is None

    def _mount(self, missing: Sequence[Remount], session: Session, give_up: Callable[[], bool]) -> str | None:
        """All of them at once; what went wrong."""
        deadline = time.monotonic() + TIMEOUT
        started, failed = [], []
        for remount in missing:
            try:
                started.append((remount, remount.start(session)))
            except CommandError as error:
                failed.append(str(error))
        for remount, process in started:
            if remount.finish(process, deadline=deadline, give_up=give_up):
                self.unrecorded[remount.name] = process
                log.info("%s is mounted again", remount.mountpoint)
            else:
                failed.append(f"borg has not mounted it, see {remount.log}")
        self._record(session)
        return failed[0] if failed else None

    def _record(self, session: Session) -> None:
        """Claim what serves already, as soon as nobody else is at work on the session."""
        if self.unrecorded and not session.is_locked():
            with session.locked(timeout=1):
                for name, process in list(self.unrecorded.items()):
                    session.amend_claim(name, process=process, suspended=False)
                    del self.unrecorded[name]

    def _process(self, remount: Remount, session: Session) -> Process | None:
        return self.unrecorded.get(remount.name) or remount.process(session)

    def _is_missing(self, remount: Remount, session: Session) -> bool:
        if remount.name not in self.unrecorded and remount.is_suspended(session):
            return self.is_wanted
        process = self._process(remount, session)
        return process is not None and not process.alive()


def suspend_after(record: Record) -> float:
    """Seconds without a read after which a session's archive is suspended; 0: never.

    What is slow to come back is held for longer: whoever reads again waits for a tenth of the time, at most, in which
    nobody did.
    """
    mounting = record.timings.get("borg_mount", QUICK)
    if mounting >= QUICK:
        return 0.0
    chosen = record.suspend_after
    return max(LEAST_IDLENESS, IDLENESS_PER_MOUNTING * mounting) if chosen is None else chosen


def resume(session: Session) -> bool:
    """Have a suspended archive mounted; whether it is. Not to be called under the lock, which the keeper needs."""
    if not _is_suspended(session):
        return True
    try:
        descriptor = os.open(session.path(RESUME), os.O_WRONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return False  # there is no keeper
    with os.fdopen(descriptor, "wb", buffering=0) as pipe:
        pipe.write(b"!")
    return wait_until(lambda: not _is_suspended(session), timeout=LISTING + TIMEOUT)


def _is_suspended(session: Session) -> bool:
    """Whether a mount is still missing, by the record as it is now."""
    session.record = Session.open(session.directory).record
    return any(claim.suspended for claim in session.record.claims)
