# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A session's directory, its record and its lock.

The record (session.json) is the truth about a session. Whatever a step is about to do is claimed in it first, so that
tear-down finds it after a crash, and one lock per session keeps two steps, or a step and a tear-down, apart.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import stat
import time
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from .._errors import RecoveryError
from .._host.clock import now
from .._host.files import open_regular, read_beginning, replace_file
from .._host.limits import confine
from .._host.processes import Process, connection, controller, identify
from .audit import audit, requester
from .directory import (
    ENDED,
    IDENTIFIER,
    LOCK,
    RECORD,
    REFUSAL,
    SessionError,
    SessionGoneError,
    check_name,
    check_owner,
    discard,
    free_user,
    is_leftover,
    is_session,
    listed,
    lock_within,
    make_session,
    read_record,
    set_aside,
    write_record,
)
from .record import Claim, Record, Starter, timestamp

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = ["Session", "claiming", "claiming_if_given"]

LONGEST_REFUSAL, LONGEST_HOLDER = 1 << 16, 1000  # bytes
ENDED_KEPT = 100


@contextmanager
def claiming_if_given(session_directory: str | None, *, timeout: float = 30) -> Iterator[Session | None]:
    """Open a session as claiming() does; None where the module stands alone."""
    if session_directory is None:
        yield None
        return
    with claiming(session_directory, timeout=timeout) as session:
        yield session


@contextmanager
def claiming(session_directory: str, *, timeout: float = 30) -> Iterator[Session]:
    """The session of a module's option session_directory, locked.

    Where the keeper has cut the module's work off, its reason is the error.
    """
    with _opened(session_directory).locked(timeout=timeout) as session:
        session.refusal()  # of somebody else's work
        session.attend()
        try:
            yield session
        except RecoveryError as error:
            reason = session.refusal()
            if reason is None:
                raise
            raise SessionError(reason, **error.details) from error


def _opened(directory: str) -> Session:
    """The session in directory. Where it has failed meanwhile, the error says why."""
    try:
        return Session.open(directory)
    except SessionGoneError as error:
        record = Session.ended(os.path.dirname(os.path.abspath(directory)), os.path.basename(directory))
        raise SessionGoneError(" ".join(filter(None, [str(error), record.error_message if record else None]))) from None


class Session:
    """One session on this host. record is what is recorded, as last read or written."""

    def __init__(self, directory: str, record: Record, *, problem: str | None = None) -> None:
        self.directory = directory
        self.record = record
        self.problem = problem  # why the record cannot be used; only all() gives such a session
        self._lock = -1
        self._depth = 0

    @property
    def id(self) -> str:
        """The session's name, which is its directory's."""
        return os.path.basename(self.directory)

    @classmethod
    def create(
        cls,
        root: str,
        *,
        session_id: str | None = None,
        user: str | None,
        fields: Mapping[str, Any] | None = None,
        max_sessions: int = 0,
        who: Mapping[str, str | None] | None = None,
    ) -> Session:
        """Make a session whose server will run as user, with fields in its record; status C(starting).

        Without a user it runs as whoever this is, and for root as a user of the session's own.

        It appears under its name with its record in it, or not at all. Raises SessionError where the root or the name
        cannot be used, the name is taken, or the root holds max_sessions (0: any number) already.
        """
        root = os.path.realpath(os.path.abspath(root))

        def record_of(directory: str, server_user: str) -> Record:
            return _new_record(directory, server_user, fields or {})

        directory = make_session(root, session_id=session_id, user=user, max_sessions=max_sessions, record_of=record_of)
        session = cls.open(directory)
        audit(root, "start", session.record, who=who or requester())
        return session

    @classmethod
    def open(cls, directory: str) -> Session:
        """The session in directory.

        Raises SessionGoneError where there is none and SessionError where it is another user's or its record cannot be
        used. Where the record is missing from what is clearly a session, it opens as C(orphaned), without claims.
        """
        directory = os.path.join(os.path.realpath(os.path.dirname(os.path.abspath(directory))), _name(directory))
        return cls(directory, _load(directory))

    @classmethod
    def find(cls, root: str, session_id: str) -> Session | None:
        """The session called session_id below root, or None. Raises SessionError as open does."""
        try:
            return cls.open(os.path.join(os.path.abspath(root), check_name(session_id)))
        except SessionGoneError:
            return None

    @classmethod
    def all(cls, root: str) -> list[Session]:
        """Every session below root, oldest first by name.

        One whose record cannot be used is there too, with the reason in problem and in its record's error_message.
        """
        found = []
        for name in listed(root):
            if not is_session(os.path.join(root, name)):
                continue
            try:
                session = cls.find(root, name)
            except SessionError as error:
                directory = os.path.join(os.path.realpath(root), name)
                session = cls(directory, Record(name, error_message=str(error)), problem=str(error))
            if session is not None:
                found.append(session)
        return found

    @staticmethod
    def ended(root: str, session_id: str) -> Record | None:
        """The last record of a session that has ended, or None where none is known (the newest 100 are kept)."""
        path = os.path.join(root, ENDED, f"{check_name(session_id)}.json")
        try:
            check_owner(path, stat.S_ISREG)
            record = read_record(path)
        except FileNotFoundError:
            return None
        # One that is something else was kept as it was: the disk was full.
        return record if record.status in ("stopped", "failed") else replace(record, status="stopped")

    @staticmethod
    def all_ended(root: str) -> list[Record]:
        """The last records of the sessions that have ended, oldest first by name."""
        names = [name[: -len(".json")] for name in listed(os.path.join(root, ENDED)) if name.endswith(".json")]
        records = (Session.ended(root, name) for name in names if IDENTIFIER.fullmatch(name))
        return [record for record in records if record is not None]

    def path(self, name: str) -> str:
        """The path of one of the session's parts: archive, upper, merged, run, log, or a file of its own."""
        return os.path.join(self.directory, name)

    @contextmanager
    def locked(self, *, timeout: float = 30) -> Iterator[Session]:
        """Hold the session's lock, with record read afresh. May be nested.

        Raises SessionError when another step holds it for longer than timeout seconds, SessionGoneError when the
        session has ended meanwhile.
        """
        if self._depth == 0:
            self._lock = _acquire(self.directory, timeout)
        self._depth += 1
        try:
            if self._depth == 1:
                self.record = _load(self.directory)
            yield self
        finally:
            self._depth -= 1
            if self._depth == 0:
                os.close(self._lock)

    def is_locked(self) -> bool:
        """Whether somebody else is at work on the session just now."""
        if self._depth > 0:
            return False
        try:
            with open(open_regular(self.path(LOCK), os.O_RDONLY), "rb") as lock:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except FileNotFoundError:
            return False
        return False

    def holder(self) -> Process | None:
        """Who is at work on the session just now: who has its lock, and lives."""
        if not self.is_locked():
            return None
        with suppress(FileNotFoundError), open(open_regular(self.path(LOCK), os.O_RDONLY), "rb") as lock:
            process = _holder(lock.fileno())
            return process if process is not None and process.alive() else None
        return None

    def update(self, **fields: Any) -> None:
        """Put fields into the record, on disk when this returns."""
        with self.locked():
            record = replace(self.record, **fields)
            write_record(self.path(RECORD), record)
            self.record = record

    def claim(self, new: Claim) -> None:
        """Record, before doing it, that the session is about to have a process or a mount.

        A claim of the same name is replaced, where it stands. Tear-down goes through the claims from the newest to the
        oldest. Raises SessionError for a session that is being torn down.
        """
        with self.locked():
            self._check_open()
            self.update(claims=self.record.with_claim(new))

    def keep_claim(self, new: Claim) -> None:
        """Claim, for a process that goes through all of the session's states, and ends after all others."""
        with self.locked():
            others = [claim for claim in self.record.claims if claim.name != new.name]
            self.update(claims=(new, *others))

    def amend_claim(self, name: str, **fields: Any) -> None:
        """Complete a claim, if there is one, with what is known now: fields of a Claim.

        A process comes under the session's limits by that.
        """
        with self.locked():
            claim = self.record.claimed(name)
            if claim is None:
                return
            self.update(claims=self.record.with_claim(replace(claim, **fields)))
            process: Process | None = fields.get("process")
            if process is not None:
                kind = "mount" if claim.kind == "mount" else claim.part
                confine(self.directory, self.record.limits, name, process, kind=kind)

    def release_claim(self, name: str) -> None:
        """Forget a claim after what it stands for has been undone."""
        with self.locked():
            self.update(claims=tuple(claim for claim in self.record.claims if claim.name != name))

    def remember(self, module: str, options: Mapping[str, Any]) -> None:
        """Record the options that a module was called with, to be used again when the session is reset. No secrets."""
        own = ("state", "session_directory")
        kept = {name: value for name, value in options.items() if value is not None and name not in own}
        with self.locked():
            self.update(options={**self.record.options, module: kept})

    def remembered(self, module: str) -> dict[str, Any]:
        """Options that a module was last called with. Raises SessionError where it has not worked for the session."""
        if module not in self.record.options:
            raise SessionError(f"Session {self.id} has not come as far as {module}: there is nothing to repeat.")
        return dict(self.record.options[module])

    def refuse(self, reason: str) -> None:
        """Say why the work of whoever holds the lock is being cut off, in one sentence."""
        replace_file(self.path(REFUSAL), reason.encode())

    def refusal(self) -> str | None:
        """What refuse() said since this was asked last."""
        try:
            reason = read_beginning(self.path(REFUSAL), LONGEST_REFUSAL)
            os.unlink(self.path(REFUSAL))
        except FileNotFoundError:
            return None
        return reason.decode("utf-8", "replace")

    def timing(self, step: str, seconds: float) -> None:
        """Record how long a step took."""
        with self.locked():
            self.update(timings={**self.record.timings, step: round(seconds, 3)})

    def activate(self, **fields: Any) -> None:
        """Mark a session whose server answers as active, with fields; its time to live begins.

        To be called by an engine's module, after timing(). Where it was active already only fields change. Raises
        SessionError for a session that is being torn down.
        """
        with self.locked():
            self._check_open()
            if self.record.status == "starting":
                moment, ttl = time.time(), self.record.ttl
                fields["started_at"] = timestamp(moment)
                if self.record.expires_at is None and ttl:  # a reset gives no more time
                    fields["expires_at"] = timestamp(now(moment) + ttl)
                fields["timings"] = self.record.summed(moment)
            self.update(status="active", **fields)

    @contextmanager
    def within(self, seconds: float) -> Iterator[None]:
        """Have the keeper cut a step off that takes longer than so many seconds.

        Nobody can end by himself what waits in the kernel for a file system that does not answer.
        """
        self.update(due=time.monotonic() + seconds)
        try:
            yield
        finally:
            self.update(due=None)

    def attend(self) -> None:
        """Note that the play which starts the session comes through another connection now."""
        starter = self.record.starter
        if self.record.status != "starting" or starter is None or starter.process.alive():
            return
        other = _starter()
        if other is not None:
            self.update(starter=other)

    def rewind(self) -> None:
        """Mark a session whose changes are being dropped as one that starts again, in the time that it has left."""
        with self.locked():
            kept = {step: seconds for step, seconds in self.record.timings.items() if step.startswith("borg_mount")}
            self.update(
                status="starting",
                starter=_starter(),
                began=time.time(),
                timings=kept,
                **dict.fromkeys(("started_at", "pid", "error_message", "server", "recovered", "due")),
            )

    def extend(self, *, ttl: float | None = None, idle_timeout: float | None = None) -> None:
        """Let the session live for ttl seconds from now, or end after so many idle ones; 0 is never, None as it was.

        Raises SessionError for a session that does not run.
        """
        with self.locked():
            if self.record.status not in ("active", "failed"):
                raise SessionError(
                    f"Session {self.id} is {self.record.status}, and only one that runs can be extended."
                )
            changes: dict[str, Any] = {}
            if ttl is not None:
                changes.update(ttl=ttl, expires_at=timestamp(now() + ttl) if ttl else None)
            if idle_timeout is not None:
                changes.update(idle_timeout=idle_timeout)
            self.update(**changes)

    def _check_open(self) -> None:
        if self.record.status not in ("starting", "active"):
            raise SessionError(f"Session {self.id} is {self.record.status}: nothing can be added to it.")

    def finish(self, **ending: Any) -> Record:
        """Keep the last record, changed by ending, among the ended ones and remove what is left: record and lock.

        To be called under the lock, when nothing else is left in it; raises OSError where something is.
        """
        root = os.path.dirname(self.directory)
        kept = os.path.join(root, ENDED, f"{self.id}.json")
        final = self.record.ended(**ending)
        os.makedirs(os.path.join(root, ENDED), mode=0o700, exist_ok=True)
        check_owner(os.path.join(root, ENDED), stat.S_ISDIR)
        try:
            write_record(kept, final)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            os.rename(self.path(RECORD), kept)  # needs no space
        aside = set_aside(root)
        os.rename(self.directory, aside)
        if not {RECORD, f"{RECORD}.tmp", LOCK}.issuperset(os.listdir(aside)):
            os.rename(aside, self.directory)
            raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY), self.directory)
        discard(aside)
        free_user(self.record.server_user, self.directory)
        _prune(os.path.join(root, ENDED))
        return final


def _name(directory: str) -> str:
    return check_name(os.path.basename(os.path.abspath(directory)))


def _new_record(directory: str, user: str, fields: Mapping[str, Any]) -> Record:
    moment = time.time()
    return Record(
        **{
            "socket_directory": os.path.join(directory, "client"),
            "borg_mount_point": os.path.join(directory, "archive"),
            "overlay_upper_dir": os.path.join(directory, "upper"),
            "overlay_merged_dir": os.path.join(directory, "merged"),
            **fields,
            "id": os.path.basename(directory),
            "status": "starting",
            "created_at": timestamp(moment),
            "began": fields.get("began") or moment,  # the start looks at the host and the archive first
            "server_user": user,
            "starter": _starter(),
            "timings": dict(fields.get("timings") or {}),
        }
    )


def _starter() -> Starter | None:
    """Who goes on with a start, as far as that can be seen from here."""
    play = controller()
    process = play or connection()
    return None if process is None else Starter(process, is_connection=play is None)


def _load(directory: str) -> Record:
    """The record of the session in directory; see Session.open for the errors."""
    name = os.path.basename(directory)
    try:
        check_owner(directory, stat.S_ISDIR)
    except FileNotFoundError:
        raise SessionGoneError(f"There is no session {name} in {os.path.dirname(directory)}.") from None
    path = os.path.join(directory, RECORD)
    try:
        check_owner(path, stat.S_ISREG)
        record = read_record(path)
    except FileNotFoundError:
        if not is_leftover(directory):
            raise SessionGoneError(f"{directory} is not a session: it has no {RECORD}.") from None
        return Record(name, error_message="Its record is gone: stop it to remove what is left of it.")
    if record.id != name:
        raise SessionError(f"{path} is the record of session {record.id}: its directory has been renamed.")
    return record


def _acquire(directory: str, timeout: float) -> int:
    """The descriptor of the locked lock file, within timeout seconds."""
    name = os.path.basename(directory)
    try:
        lock = open_regular(os.path.join(directory, LOCK), os.O_RDWR | os.O_CREAT)
    except (FileNotFoundError, NotADirectoryError):
        raise SessionGoneError(f"There is no session {name} in {os.path.dirname(directory)}.") from None
    try:
        if not lock_within(lock, timeout):
            process = _holder(lock)
            holder = "unknown" if process is None else str(process.pid)
            raise SessionError(
                f"Session {name} is being worked on by process {holder}: try again when that has finished.",
                lock_holder=holder,
            )
        if not _is_same(lock, os.path.join(directory, LOCK)):
            raise SessionGoneError(f"Session {name} has ended meanwhile.")
        own = identify(os.getpid())
        os.ftruncate(lock, 0)
        os.pwrite(lock, json.dumps(own.as_dict() if own else {}).encode(), 0)
    except BaseException:
        os.close(lock)
        raise
    return lock


def _holder(lock: int) -> Process | None:
    """Who wrote into a lock file that it is his."""
    with suppress(ValueError, LookupError, TypeError):
        return Process.from_dict(json.loads(os.pread(lock, LONGEST_HOLDER, 0)))
    return None


def _is_same(descriptor: int, path: str) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.lstat(path))
    except FileNotFoundError:
        return False


def _prune(directory: str) -> None:
    """Keep the newest of the ended records."""
    with suppress(FileNotFoundError):  # another session ends at the same time and does the same
        paths = [os.path.join(directory, name) for name in os.listdir(directory)]
        for path in sorted(paths, key=os.path.getmtime)[:-ENDED_KEPT]:
            os.unlink(path)
