# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The keeper of a session: a process of its own on the session's host, which ends it when its time has come.

It needs no Ansible and no controller. It looks at the clock, the disk, the layer's counters and, less often, at the
clients, and ends the session in the one way in which sessions end. It also looks after the archive's mounts. Killed, it
can be started anew, but what a Borg needs to open the repository it then lacks: that is in its memory alone.
"""

from __future__ import annotations

import ctypes
import logging
import os
import resource
import sys
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from .._borg.remount import packed, unpacked
from .._host.clock import monotonic, now
from .._host.disk import disk_usage, floor_of, free_files, free_space, in_words, session_usage, unnamed_usage
from .._host.processes import MARKER, describe, memory_file, spawn, stop_all
from .._host.programs import packed as packed_program
from .._layer.lost import failure
from .._session.audit import requester
from .._session.counters import layer_counters
from .._session.directory import SessionError, SessionGoneError
from .._session.duration import duration_in_words
from .._session.liveness import examine, is_abandoned, unattended
from .._session.metrics import measure, read_sample, write_sample
from .._session.prometheus import write_textfile
from .._session.record import ARCHIVE, KEEPER, LOGS, SIGNALS, Claim
from .._session.session import Session
from .._session.teardown import cut_off, tear_down
from .archive import Archive

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence
    from typing import NoReturn

    from .._borg.remount import Remount

__all__ = ["ensure_keeper", "main"]

TICK = 2.0  # seconds between two looks, which cost some system calls; a session is that late at most
GIVES_UP = 30.0  # seconds that a module has to notice that its start was cut off
LATER = 30.0  # seconds until the next attempt, after one to end the session that did not succeed
# Seconds between two samples, which cost a connection to the server. To see an idle_timeout pass, a tenth of it.
SAMPLES, LEAST_SAMPLES = 60.0, 1.0
# Seconds after which a start or stop that was cut off is cleared away. Until then it can be looked at.
ABANDONED = 900
# Without counters of the layer, what the session wrote is added up anew each so many seconds.
UNCOUNTED = 10.0
# Beside the changes there are some files, which are counted at each look. Should somebody make a million of them, each
# count is followed by a rest that is so many times as long.
REST_PER_COUNT = 20.0
UPPER = "upper"  # the directory of changes
LOOKED_AT = 1 << 20  # bytes of the layer's log, from its end
PROGRAM = "keeper.pyz"
LONGEST_LOG = 64 << 20  # bytes of what one Borg logs
ROOMS = ("_errors", "_host", "_session", "_borg/remount", "_layer/lost", "_keeper")  # that it consists of
REMOUNTS = "INSTANT_RECOVERY_REMOUNTS"  # the environment variable that names the descriptor they come through

log = logging.getLogger("keeper")


def ensure_keeper(session: Session, remounts: Sequence[Remount] = ()) -> None:
    """Start a keeper for the session, unless it has one; with remounts, one that can do these.

    To be called under the lock.
    """
    claim = session.record.claimed(KEEPER)
    if claim is not None and claim.process is not None and claim.process.alive():
        if not remounts:
            return
        stop_all([claim.process], SIGNALS)
    for claim in [claim for claim in session.record.claims if claim.suspended and not remounts]:
        session.amend_claim(claim.name, suspended=False)  # the new one does not know how to mount it
    program = session.path(PROGRAM)
    with suppress(FileNotFoundError):
        os.unlink(program)
    with open(program, "xb") as file:
        file.write(_packed())
    session.keep_claim(Claim(KEEPER, "process", KEEPER, required=False))
    # That of the layer, where there is one: several processes of the same program share its memory.
    argv = [session.record.python or sys.executable, "-I", program, session.directory]
    secret = memory_file("remounts", packed(remounts))
    try:
        env = {MARKER: session.directory, REMOUNTS: str(secret)}
        process = spawn(argv, log=session.path("log/keeper.log"), env=env, pass_fds=[secret])
    finally:
        os.close(secret)
    session.amend_claim(KEEPER, process=process)


def main() -> NoReturn:
    """The program: C(keeper.pyz SESSION_DIRECTORY)."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s keeper %(levelname)s %(message)s", stream=sys.stderr)
    with suppress(OSError), open("/proc/self/comm", "w", encoding="ascii") as comm:
        comm.write("ir-keeper")
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # musl has none
    if trim:
        trim(0)  # what compiling this program took
    # A passphrase may be in its memory. 1 and not 0: then no program that takes core dumps gets one, either (core(5)).
    with suppress(ValueError):  # somebody has set 0 before
        resource.setrlimit(resource.RLIMIT_CORE, (1, 1))
    remounts = unpacked(int(os.environ[REMOUNTS]))
    raise SystemExit(_Keeper(Session.open(sys.argv[1]), remounts).watch())


class _Keeper:
    """Times are of the monotonic clock, which nobody sets; only a session's end is a time of day."""

    def __init__(self, session: Session, remounts: Sequence[Remount]) -> None:
        self.session = session
        self.archive = Archive(session, remounts)
        self.sample = read_sample(session)
        self.next_sample = 0.0
        self.patience = 0.0  # until when no attempt to end the session is made
        self.errors = 0  # of the layer, that were looked into
        self.usage = _Usage()
        self.cut_since: float | None = None  # when a start that goes on was told to give up
        self.told: dict[str, str] = {}  # what went wrong last, by what was done

    def watch(self) -> int:
        """Look now and then until the session has ended."""
        while True:
            try:
                self.session = Session.open(self.session.directory)
                self._look()
                left = self.session.record.expires - now()
                self.archive.wait(self.session, timeout=min(TICK, left) if left > 0 else TICK)
            except SessionGoneError:
                return 0
            except Exception as error:  # nobody else would end the session
                self._tell("the look at the session", error)
                time.sleep(TICK)

    def _look(self) -> None:
        status = self.session.record.status
        if status == "starting":
            self._look_at_start()
            for chore in (self._revive, self._shorten_logs):
                self._try(chore)
            return
        if status == "stopping":
            if unattended(self.session) > LATER:  # it was cut off, or something was in its way
                self._end()
            return
        if self._reason() is not None:
            self._end()
        for chore in (self._note_failure, self._revive, self._take_sample, self._suspend, self._shorten_logs):
            self._try(chore)

    def _look_at_start(self) -> None:
        self.usage, self.errors = _Usage(), 0  # a reset begins with an empty upper and another layer
        stuck = self._is_stuck()
        full = self._too_large() or self._disk_is_full()
        reason = full or self._is_abandoned() or stuck
        if not reason or not self.session.is_locked():
            self.cut_since = None
        if reason and self.session.is_locked():
            # A module is at work, most likely waiting for its server to recover. What fills the disk may be a Borg.
            self._tell("the start", SessionError(f"cut off: {reason}"))
            self.cut_since = self.cut_since or time.monotonic()
            is_late = time.monotonic() > self.cut_since + GIVES_UP / 2
            with_mounts = full is not None or stuck is not None or is_late
            cut_off(self.session, f"{reason[0].upper()}{reason[1:]}.", with_mounts=with_mounts)
            if time.monotonic() > self.cut_since + GIVES_UP:
                self._end_module()
        elif reason or (unattended(self.session) > ABANDONED and examine(self.session).wrong):
            self._end()

    def _end_module(self) -> None:
        """End a module that has not given up, though nothing is left that it can wait for: it is at work by itself."""
        holder = self.session.holder()
        is_start = Session.open(self.session.directory).record.status == "starting"  # not who stops it by now
        if holder is not None and is_start and holder.pid != os.getpid():
            log.error("%s is ended: it has not given up within %g s", describe(holder), GIVES_UP)
            stop_all([holder], SIGNALS)

    def _is_stuck(self) -> str | None:
        due = self.session.record.due
        if due is None or time.monotonic() < due:
            return None
        return "the start did not end in its time: the repository, or what lies between, does not answer"

    def _is_abandoned(self) -> str | None:
        return "the play that started it has ended" if is_abandoned(self.session) else None

    def _try(self, chore: Callable[[], None]) -> None:
        """None of them may keep a session from ending."""
        try:
            chore()
        except SessionGoneError:
            raise
        except Exception as error:
            self._tell(chore.__name__, error)

    def _tell(self, what: str, error: Exception) -> None:
        """Log what failed, but not the same every two seconds for days."""
        if self.told.get(what) != str(error):
            self.told[what] = str(error)
            log.error("%s failed: %s", what, error, exc_info=None if isinstance(error, SessionError) else error)

    def _revive(self) -> None:
        self.archive.revive(self.session, give_up=lambda: bool(self._too_large() or self._disk_is_full()))

    def _suspend(self) -> None:
        self.archive.suspend(self.session)

    def _shorten_logs(self) -> None:
        """Begin anew the logs of Borgs: what the server of a repository says stands there, and anybody may be one."""
        for name in os.listdir(self.session.path("log")):
            path = self.session.path(f"log/{name}")
            if name.startswith("borg-") and os.path.getsize(path) > LONGEST_LOG:
                os.truncate(path, 0)  # its writers append
                log.warning("%s had more than %d bytes, and was begun anew", name, LONGEST_LOG)

    def _end(self) -> None:
        """End the session, if that is still due when nobody else is at work on it."""
        if time.monotonic() < self.patience:
            return
        self.patience = time.monotonic() + LATER
        try:
            with self.session.locked(timeout=1):
                ending = self._ending()
                if ending is None:
                    return
                log.info("ending the session: %s", ending)
                who = {**requester(KEEPER), "from": "local"}
                remains = tear_down(self.session, event="automatic stop", who=who, **ending)
        except SessionGoneError:
            raise
        except SessionError as error:
            log.info("not now: %s", error)
            self.patience = 0.0  # somebody is at work, for a moment
            return
        if remains:
            log.error("still there: %s", "; ".join(remains))
            return
        raise SessionGoneError("it has ended")

    def _ending(self) -> dict[str, Any] | None:
        """Under the lock: how the session has to end, or None where it goes on after all."""
        if self.session.record.status == "stopping":
            return {}  # as it was said before
        if self.session.record.status == "starting":
            wrong = [*examine(self.session).wrong, *filter(None, [self._too_large() or self._disk_is_full()])]
            return {"status": "failed", "error_message": wrong[-1]} if wrong else None
        reason = self._overdue() or self._too_large() or self._disk_is_full()  # it may have been extended
        if reason is None and self.session.record.idle_timeout:
            self._try(self._measure)  # a client may have come since the last sample
            reason = self._reason()
        return {"reason": reason} if reason else None

    def _reason(self) -> str | None:
        """Why the session has to end now; None: it has not."""
        idle_timeout = self.session.record.idle_timeout
        idle = (self.sample or {}).get("idle") or 0
        is_idle = f"idle for {duration_in_words(idle_timeout)}" if 0 < idle_timeout <= idle else None
        return self._overdue() or is_idle or self._too_large() or self._disk_is_full()

    def _overdue(self) -> str | None:
        end, ttl = self.session.record.expires, self.session.record.ttl
        return f"its time is over (ttl {duration_in_words(ttl)})" if end and now() >= end else None

    def _too_large(self) -> str | None:
        limit = self.session.record.max_upper_size
        taken = self.usage.of(self.session, limit) if limit else 0
        if taken > limit:
            return f"its changes, logs and other files take {in_words(taken)}, and max_upper_size is {in_words(limit)}"
        return None

    def _disk_is_full(self) -> str | None:
        """Of several sessions, the one that has written most goes first: that may do for the others."""
        root = os.path.dirname(self.session.directory)
        free, total = free_space(root)
        floor = floor_of(self.session.record.free_space_floor, total)
        files, most_files = free_files(root)
        room = min(free, total * files // most_files) if most_files else free  # the smaller share of the two
        if room >= floor:
            return None
        others = [one for one in Session.all(root) if one.id != self.session.id]
        if any(one.record.status == "stopping" and one.is_locked() for one in others):
            return None  # room is being made
        sizes = [(_taken(one), one.id) for one in others if _will_make_room(one, room, total)]
        if max(sizes, default=(0, "")) > (_taken(self.session), self.session.id):
            return None
        if free >= floor:
            return f"{root} has room for {files} more files of {most_files}, which is less than free_space_floor"
        return f"{root} has {in_words(free)} free, and free_space_floor is {in_words(floor)}"

    def _note_failure(self) -> None:
        """A read that failed may have been any page of any table: the session is not whole any more.

        It goes on where the archive has lost some of its content, for the rest is right.
        """
        errors = layer_counters(self.session).get("io_errors", 0)
        if errors == self.errors or self.session.record.status != "active":
            return
        with self.session.locked():
            found = failure(self.session) if errors else None
            if found and self.session.record.status == "active":
                status = "active" if found.is_partial else "failed"
                if (status, found.reason) != ("active", self.session.record.error_message):
                    self.session.update(status=status, error_message=found.reason)
                    log.error("%s", found.reason)
        self.errors = errors

    def _take_sample(self) -> None:
        if monotonic() < self.next_sample:
            return
        record = self.session.record
        wanted = record.idle_timeout / 10 if record.idle_timeout else SAMPLES
        self.next_sample = monotonic() + min(SAMPLES, max(LEAST_SAMPLES, wanted))
        self._measure()
        if record.metrics_textfile:
            write_textfile(record.metrics_textfile, os.path.dirname(self.session.directory))

    def _measure(self) -> None:
        self.sample = measure(self.session, earlier=self.sample)
        with suppress(OSError):  # a full disk
            write_sample(self.session, self.sample)


class _Usage:
    """What a session takes of its disk, added up no oftener than is needed."""

    def __init__(self) -> None:
        self._upper = (0.0, 0, 0)  # when it was added up, bytes, and bytes written until then
        self._others, self._due = 0, 0.0

    def of(self, session: Session, limit: int) -> int:
        """Bytes, exact from limit on: changes, and what the server can write besides them: sockets' directory, logs."""
        if time.monotonic() >= self._due:
            begun = time.monotonic()
            self._others = _taken(session, besides=(UPPER,))
            took = time.monotonic() - begun
            self._due = begun + took * (1 + REST_PER_COUNT)
        return self._others + self._upper_bytes(session, limit - self._others)

    def _upper_bytes(self, session: Session, limit: int) -> int:
        """What the upper takes, added up only when it can have come to limit since the last time."""
        when, size, written_then = self._upper
        written = layer_counters(session).get("written_bytes")
        grown = limit if written is None else written - written_then
        is_due = written is not None or time.monotonic() > when + UNCOUNTED
        if not when or grown < 0 or (size + grown >= limit and is_due):
            self._upper = (time.monotonic(), disk_usage(session.path(UPPER)), written or 0)
        return self._upper[1]


def _taken(session: Session, *, besides: Collection[str] = ()) -> int:
    """Bytes that a session takes of its disk, with what its Borgs put aside in files without a name."""
    borgs = [claim.process for claim in session.record.parts(ARCHIVE, LOGS) if claim.process]
    return session_usage(session.directory, besides=besides) + unnamed_usage(borgs, session.directory)


def _will_make_room(session: Session, free: int, total: int) -> bool:
    """Whether another session is going to end because of the same lack of space."""
    claim = session.record.claimed(KEEPER)
    is_kept = claim is not None and claim.process is not None and claim.process.alive()
    is_watched = is_kept and session.record.status in ("starting", "active")
    return is_watched and free < floor_of(session.record.free_space_floor, total)


def _packed() -> bytes:
    # Beside a start that is under way it takes its time. Only root can give that back to a Borg that it starts.
    nice = "import os\nif os.geteuid() == 0: os.nice(10)\n"
    return packed_program(*ROOMS, main=f"{nice}from {__name__} import main\nmain()\n")


if __name__ == "__main__":
    main()
