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
import re
import stat
import subprocess
import time
from contextlib import contextmanager, suppress
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from .._errors import RecoveryError
from .._host.clock import now
from .._host.command import account, find_program, identity
from .._host.files import open_regular, read_beginning, replace_file
from .._host.limits import UNLIMITED, confine
from .._host.ownership import exposure, user_name
from .._host.processes import Process, connection, controller
from .._host.users import give_back, take
from .audit import LOG, audit, requester

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

__all__ = [
    "KEEPER",
    "PUBLIC_KEYS",
    "SCHEMA_VERSION",
    "TEMPORARY",
    "Session",
    "SessionError",
    "SessionGoneError",
    "claiming",
    "claiming_if_given",
    "default_root",
    "duration_in_words",
    "parse_duration",
    "public",
    "started",
    "timestamp",
]

SCHEMA_VERSION = 1
# What a session tells the world, in this order; the record holds these and what tear-down needs.
PUBLIC_KEYS = (
    "id", "status", "engine", "engine_version", "host", "deployment_location", "archive", "driver", "port",
    "socket_directory", "user", "connection_string", "client_file", "pid", "borg_mount_point", "overlay_upper_dir",
    "overlay_merged_dir", "upper_bytes", "created_at", "started_at", "stopped_at", "expires_at", "error_message",
    "timings", "recovered_to", "stop_reason",
)  # fmt: skip
# What a session is to keep to: seconds, seconds, bytes or C(5%), bytes, and seconds or None, which is by what
# mounting the archive costs; 0 is no limit. And _host/limits.py.
LIMITS = {"ttl": 0, "idle_timeout": 0, "free_space_floor": "0", "max_upper_size": 0, "suspend_after": None, **UNLIMITED}
# What else the record holds that is nobody's business but the session's own.
PRIVATE: dict[str, Any] = {
    "data_directory": None,
    "server_user": None,
    "server": None,
    "recovered": None,
    "starter": None,
    "due": None,
    "options": {},
    "probe": None,
    "metrics_textfile": None,
    "requested_by": None,
    "python": None,
}
TEMPORARY = "tmp"  # the directory for what Borgs put aside
# Two sides. `merged` and `run`, where its socket is made, are the server's: nothing that decides anything is read from
# there. `config` is what it is told, `client` is for those who speak to it, and both are written by us alone.
DIRECTORIES = ("archive", "upper", "merged", "run", "log", "config", "client", TEMPORARY)
SUMS = ("total", "overhead")  # in timings, beside those of the steps
FOR_THE_SERVER = ("merged", "run")
RECORD, LOCK, ENDED = "session.json", "lock", "ended"
KEEPER = "keeper"  # the claim of the process that ends a session by itself
RESUME = "resume"  # a named pipe, into which whoever needs a suspended archive writes a byte
REFUSAL = "refused"  # why the keeper cuts off what a module is doing
LONGEST_REFUSAL, LARGEST_RECORD = 1 << 16, 1 << 24  # bytes; a record has some thousands
# What else can be in a session's directory.
OTHERS = (
    RESUME,
    REFUSAL,
    f"{REFUSAL}.tmp",
    "wal",
    "upper.cowfs",
    "upper.counters",
    "upper.failures",
    "upper.failures.tmp",
    "keeper.pyz",
    "sample.json",
    "sample.json.tmp",
)
ENDED_KEPT = 100
ROOT_PATIENCE = 60  # seconds that a session waits for others that are being made
SOCKET_NAME_ROOM = 20  # characters, for /mongodb-27017.sock; a socket's whole path has at most 107
# A session directory that is being made or removed has such a name, so that none is ever seen half done.
UNFINISHED = re.compile(r"\.unfinished-[0-9a-f]{8}")
UNFINISHED_AGE = 600  # seconds after which nobody is still at work on it
IDENTIFIER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
GENERATED_IDENTIFIER = re.compile(r"[0-9]{8}-[0-9]{6}-[0-9a-f]{4}")
DURATION_PART = re.compile(r"([0-9]+(?:\.[0-9]+)?)([smhd]?)")
DURATION = re.compile(r"([0-9]+(\.[0-9]+)?[smhd])+|[0-9]+(\.[0-9]+)?")
LONGEST = 10 * 365 * 86400  # seconds
UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


class SessionError(RecoveryError):
    """A session that cannot be made, read or locked."""


class SessionGoneError(SessionError):
    """The session has ended, perhaps while its lock was being waited for."""


def default_root() -> str:
    """Where sessions live unless told otherwise: for root below /var/lib, else in the user's state directory."""
    if os.geteuid() == 0:
        return "/var/lib/instant_recovery"
    state = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
    return os.path.join(state, "instant_recovery")


@contextmanager
def claiming_if_given(session_directory: str | None, *, timeout: float = 30) -> Iterator[Session | None]:
    """As claiming; None where the module stands alone."""
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
        record = Session.ended(os.path.dirname(os.path.abspath(directory)), os.path.basename(directory)) or {}
        raise SessionGoneError(" ".join(filter(None, [str(error), record.get("error_message")]))) from None


class Session:
    """One session on this host. record is its contents as last read or written."""

    def __init__(self, directory: str, record: dict[str, Any], *, problem: str | None = None) -> None:
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
        _make_root(root)
        with _root_locked(root):  # what is counted here is true until the new one can be counted
            _check_number(root, max_sessions)
            directory = _make_named(root, session_id, user, fields or {})
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
            return cls.open(os.path.join(os.path.abspath(root), _checked(session_id)))
        except SessionGoneError:
            return None

    @classmethod
    def all(cls, root: str) -> list[Session]:
        """Every session below root, oldest first by name.

        One whose record cannot be used is there too, with the reason in problem and in its record's error_message.
        """
        found = []
        for name in _listed(root):
            if not _looks_like_session(os.path.join(root, name)):
                continue
            try:
                session = cls.find(root, name)
            except SessionError as error:
                directory = os.path.join(os.path.realpath(root), name)
                session = cls(directory, _blank(name, str(error)), problem=str(error))
            if session is not None:
                found.append(session)
        return found

    @staticmethod
    def ended(root: str, session_id: str) -> dict[str, Any] | None:
        """The last record of a session that has ended, or None where none is known (the newest 100 are kept)."""
        path = os.path.join(root, ENDED, f"{_checked(session_id)}.json")
        try:
            _check_owner(path, stat.S_ISREG)
            record = _read(path)
        except FileNotFoundError:
            return None
        if record["status"] not in ("stopped", "failed"):  # kept as it was: the disk was full
            record["status"] = "stopped"
        return record

    @staticmethod
    def all_ended(root: str) -> list[dict[str, Any]]:
        """The last records of the sessions that have ended, oldest first by name."""
        names = [name[: -len(".json")] for name in _listed(os.path.join(root, ENDED)) if name.endswith(".json")]
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

    def processes(self) -> list[Process]:
        """The processes that the record claims, whether they still run or not."""
        return [Process.from_dict(claim["process"]) for claim in self.record["claims"] if claim["process"]]

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

    def update(self, **fields: Any) -> None:
        """Put fields into the record, on disk when this returns."""
        with self.locked():
            _write(self.path(RECORD), {**self.record, **fields})
            self.record.update(fields)

    def claim(self, *, name: str, kind: str, **fields: Any) -> None:
        """Record, before doing it, that the session is about to have a process or a mount.

        kind C(process): process (a Process, or None before it is known), signals [[name, seconds], …].
        kind C(mount): mountpoint, process (its server, as above), and signals if it needs other than SIGTERM, SIGKILL.
        A claim of the same name is replaced, where it stands. Tear-down goes through the claims from the newest to the
        oldest. Raises SessionError for a session that is being torn down.
        """
        if kind not in ("process", "mount") or (kind == "mount" and not os.path.isabs(fields.get("mountpoint", ""))):
            raise ValueError(f"not a claim: {name} {kind} {fields}")
        with self.locked():
            self._check_open()
            new = {"name": name, "kind": kind, "process": None, **_plain(fields)}
            claims = [new if claim["name"] == name else claim for claim in self.record["claims"]]
            self.update(claims=claims if new in claims else [*claims, new])

    def keep_claim(self, name: str) -> None:
        """As claim, for a process that goes through all of the session's states, and ends after all others."""
        with self.locked():
            others = [claim for claim in self.record["claims"] if claim["name"] != name]
            self.update(claims=[{"name": name, "kind": "process", "process": None}, *others])

    def amend_claim(self, name: str, **fields: Any) -> None:
        """Complete a claim with what is known now. A process comes under the session's limits by that."""
        with self.locked():
            amended = [claim for claim in self.record["claims"] if claim["name"] == name]
            for claim in amended:
                claim.update(_plain(fields))
            self.update()
            for claim in amended if fields.get("process") else ():
                kind = "mount" if claim["kind"] == "mount" else "keeper" if name == KEEPER else "server"
                confine(self.directory, self.record, name, fields["process"], kind=kind)

    def release_claim(self, name: str) -> None:
        """Forget a claim after what it stands for has been undone."""
        with self.locked():
            self.update(claims=[claim for claim in self.record["claims"] if claim["name"] != name])

    def remember(self, module: str, options: Mapping[str, Any]) -> None:
        """Record the options that a module was called with, to be used again when the session is reset. No secrets."""
        own = ("state", "session_directory")
        kept = {name: value for name, value in options.items() if value is not None and name not in own}
        with self.locked():
            self.update(options={**self.record["options"], module: kept})

    def remembered(self, module: str) -> dict[str, Any]:
        """They. Raises SessionError where the module has not worked for the session before."""
        if module not in self.record["options"]:
            raise SessionError(f"Session {self.id} has not come as far as {module}: there is nothing to repeat.")
        return dict(self.record["options"][module])

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
            self.update(timings={**self.record["timings"], step: round(seconds, 3)})

    def activate(self, **fields: Any) -> None:
        """Mark a session whose server answers as active, with fields; its time to live begins.

        To be called by an engine's module, after timing(). Where it was active already only fields change. Raises
        SessionError for a session that is being torn down.
        """
        with self.locked():
            self._check_open()
            if self.record["status"] == "starting":
                moment, ttl = time.time(), self.record["ttl"]
                fields["started_at"] = timestamp(moment)
                if self.record["expires_at"] is None and ttl:  # a reset gives no more time
                    fields["expires_at"] = timestamp(now(moment) + ttl)
                fields["timings"] = _summed(self.record, moment)
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
        starter = self.record["starter"]
        if self.record["status"] != "starting" or starter is None or Process.from_dict(starter).alive():
            return
        other = _starter()
        if other is not None:
            self.update(starter=other)

    def rewind(self) -> None:
        """Mark a session whose changes are being dropped as one that starts again, in the time that it has left."""
        with self.locked():
            kept = {step: seconds for step, seconds in self.record["timings"].items() if step.startswith("borg_mount")}
            self.update(
                status="starting",
                starter=_starter(),
                began=time.time(),
                timings=kept,
                **dict.fromkeys(("started_at", "pid", "error_message", "server", "recovered")),
            )

    def extend(self, *, ttl: float | None = None, idle_timeout: float | None = None) -> None:
        """Let the session live for ttl seconds from now, or end after so many idle ones; 0 is never, None as it was.

        Raises SessionError for a session that does not run.
        """
        with self.locked():
            if self.record["status"] not in ("active", "failed"):
                raise SessionError(
                    f"Session {self.id} is {self.record['status']}, and only one that runs can be extended."
                )
            changes: dict[str, Any] = {}
            if ttl is not None:
                changes.update(ttl=ttl, expires_at=timestamp(now() + ttl) if ttl else None)
            if idle_timeout is not None:
                changes.update(idle_timeout=idle_timeout)
            self.update(**changes)

    def _check_open(self) -> None:
        if self.record["status"] not in ("starting", "active"):
            raise SessionError(f"Session {self.id} is {self.record['status']}: nothing can be added to it.")

    def finish(self, **ending: Any) -> dict[str, Any]:
        """Keep the last record, changed by ending, among the ended ones and remove what is left: record and lock.

        To be called under the lock, when nothing else is left in it; raises OSError where something is.
        """
        root = os.path.dirname(self.directory)
        kept = os.path.join(root, ENDED, f"{self.id}.json")
        final = public(self.record, stopped_at=timestamp(), **ending)
        os.makedirs(os.path.join(root, ENDED), mode=0o700, exist_ok=True)
        _check_owner(os.path.join(root, ENDED), stat.S_ISDIR)
        try:
            _write(kept, {"schema_version": SCHEMA_VERSION, **final})
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            os.rename(self.path(RECORD), kept)  # needs no space
        aside = _unfinished(root)
        os.rename(self.directory, aside)
        if not {RECORD, f"{RECORD}.tmp", LOCK}.issuperset(os.listdir(aside)):
            os.rename(aside, self.directory)
            raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY), self.directory)
        _discard(aside)
        _give_back(self.record["server_user"], self.directory)
        _prune(os.path.join(root, ENDED))
        return final


def public(record: Mapping[str, Any], **changes: Any) -> dict[str, Any]:
    """The keys of the public contract, all of them and in order, with changes."""
    return {key: changes.get(key, record.get(key)) for key in PUBLIC_KEYS}


def timestamp(epoch: float | None = None) -> str:
    """A point in time (default: now) as records have it: ISO 8601, UTC, milliseconds."""
    moment = datetime.fromtimestamp(time.time() if epoch is None else epoch, timezone.utc)
    return moment.isoformat(timespec="milliseconds")


def started(record: Mapping[str, Any]) -> float:
    """When the session's server was ready, in seconds since the epoch; 0: not yet."""
    return datetime.fromisoformat(record["started_at"]).timestamp() if record["started_at"] else 0.0


def duration_in_words(seconds: float) -> str:
    """Such as C(30 min), C(2 h) or C(90 s): in the largest unit of which it is a whole number."""
    for name, unit in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= unit and seconds % unit == 0:
            return f"{seconds // unit:g} {name}"
    return f"{seconds:g} s"


def parse_duration(text: str) -> float:
    """Seconds from C(90), C(30s), C(15m), C(2h), C(1d) or C(1h30m). Raises SessionError for anything else."""
    if not DURATION.fullmatch(text):
        raise SessionError(f"{text!r} is not a duration: write it as 90s, 15m, 2h, 1h30m or 1d; 0 is never.")
    seconds = sum(float(number) * UNITS[unit or "s"] for number, unit in DURATION_PART.findall(text))
    if seconds > LONGEST:
        raise SessionError(f"{text} is too long: choose ten years at most; 0 is never.")
    return seconds


def _summed(record: Mapping[str, Any], now: float) -> dict[str, float]:
    """The timings with their total, from the start's beginning till now, and what of it no step accounts for."""
    steps = {step: float(seconds) for step, seconds in record["timings"].items() if step not in SUMS}
    total = now - record["began"]
    return {**steps, "total": round(total, 3), "overhead": round(total - sum(steps.values()), 3)}


def _checked(session_id: str) -> str:
    if not IDENTIFIER.fullmatch(session_id) or session_id in ("all", ENDED) or session_id.startswith(LOG):
        raise SessionError(
            f"{session_id!r} is not a session id: use letters, digits, dots, dashes and underscores, at most 64, "
            f"beginning with a letter or digit; all, ended and what begins with {LOG} are taken."
        )
    return session_id


def _name(directory: str) -> str:
    return _checked(os.path.basename(os.path.abspath(directory)))


def _new_identifier() -> str:
    return f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{os.urandom(2).hex()}"


def _new_record(directory: str, user: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    layout = {
        "socket_directory": os.path.join(directory, "client"),
        "borg_mount_point": os.path.join(directory, "archive"),
        "overlay_upper_dir": os.path.join(directory, "upper"),
        "overlay_merged_dir": os.path.join(directory, "merged"),
    }
    now = time.time()
    own: dict[str, Any] = {
        "id": os.path.basename(directory),
        "status": "starting",
        "created_at": timestamp(now),
        "began": fields.get("began") or now,  # when the start began, which looks at the host and the archive first
        "server_user": user,
        "starter": _starter(),
    }
    record = {**_blank(own["id"], None), **layout}
    record.update({**fields, **own, "timings": dict(fields.get("timings") or {}), "claims": []})
    return record


def _starter() -> dict[str, Any] | None:
    """Who goes on with a start between two modules, as far as that can be seen from here: a play, or its connection."""
    play = controller()
    process = play or connection()
    return None if process is None else {**process.as_dict(), "is_connection": play is None}


def _blank(session_id: str, error_message: str | None) -> dict[str, Any]:
    """A record of a session about which nothing is known."""
    known: dict[str, Any] = {"id": session_id, "status": "orphaned", "error_message": error_message, "timings": {}}
    return {"schema_version": SCHEMA_VERSION, **dict.fromkeys(PUBLIC_KEYS), **LIMITS, **PRIVATE, **known, "claims": []}


def _make_root(root: str) -> None:
    """Make the session root where it is missing; refuse one in which others could plant or exchange sessions."""
    remedy = "choose another session_root"
    _refuse_exposed(root)  # before anything is made on a way that somebody else can turn
    try:
        if not os.path.isdir(root):
            os.makedirs(root, mode=0o700, exist_ok=True)
            # Whoever a server runs as passes through, but cannot list; whatever the umask is.
            os.chmod(root, 0o711 if os.geteuid() == 0 else 0o700)
    except OSError as error:
        raise SessionError(f"The session root {root} cannot be made: {error.strerror}; {remedy}.") from error
    _refuse_exposed(root)
    if not os.access(root, os.W_OK | os.X_OK):
        raise SessionError(f"The session root {root} cannot be written by {user_name(os.geteuid())}: {remedy}.")
    for name in filter(UNFINISHED.fullmatch, _listed(root)):
        with suppress(OSError):
            if time.time() - os.lstat(os.path.join(root, name)).st_mtime > UNFINISHED_AGE:
                _discard(os.path.join(root, name))


def _refuse_exposed(root: str) -> None:
    problem = exposure(root)
    if problem is not None:
        raise SessionError(f"The session root {root} cannot be used: {problem}. Close it, or choose another one.")


def _check_length(directory: str) -> None:
    length = len(os.fsencode(directory)) + SOCKET_NAME_ROOM
    if length > 107:
        raise SessionError(
            f"The session root is too deep: the path of a server's socket below {directory} would have about "
            f"{length} characters, and the system allows 107; choose a shorter session_root."
        )


def _check_number(root: str, max_sessions: int) -> None:
    there = [name for name in _listed(root) if _looks_like_session(os.path.join(root, name))] if max_sessions else []
    if len(there) >= max_sessions > 0:
        raise SessionError(
            f"There are {len(there)} sessions in {root}, and max_sessions is {max_sessions}: stop one "
            "(instant_recovery_list shows them), or raise max_sessions."
        )


def _make_named(root: str, session_id: str | None, user: str | None, fields: Mapping[str, Any]) -> str:
    """Make a session's directory under the name asked for, or a new one; its path."""
    for _attempt in range(20):  # a generated name may have been taken within the same second
        directory = os.path.join(root, _checked(session_id) if session_id else _new_identifier())
        _check_length(os.path.join(directory, "client"))
        try:
            _make(directory, user, fields)
            return directory
        except FileExistsError:
            if session_id:
                break
    raise SessionError(f"There is already a session {session_id or directory}: choose another id, or stop it.")


def _make(directory: str, user: str | None, fields: Mapping[str, Any]) -> None:
    """Make a session's directory aside and give it its name. Raises FileExistsError where that is taken."""
    root, name = os.path.split(directory)
    unfinished = _unfinished(root)
    server_user = user or _own_user(directory)
    is_made = False
    try:
        _populate(unfinished, server_user, _new_record(directory, server_user, fields))
        if os.path.lexists(directory):
            raise FileExistsError(errno.EEXIST, "taken", directory)
        with _held(root) as top:
            os.rename(os.path.basename(unfinished), name, src_dir_fd=top, dst_dir_fd=top)
        is_made = True
    except OSError as error:
        if error.errno in (errno.EEXIST, errno.ENOTEMPTY):
            raise FileExistsError(errno.EEXIST, "taken", directory) from error
        raise SessionError(
            f"The directory of session {name} cannot be made in {root}: {error.strerror}. Choose another session_root."
        ) from error
    finally:
        if not is_made:
            _give_back(server_user, directory)
        with suppress(FileNotFoundError):
            _discard(unfinished)


def _own_user(directory: str) -> str:
    """Who runs the server of the session in directory, unless somebody is named: us, or for root nobody else's user."""
    return str(take(directory)) if os.geteuid() == 0 else user_name(os.geteuid())


def _give_back(user: str | None, directory: str) -> None:
    if os.geteuid() == 0 and user is not None and user.isdigit():
        give_back(int(user), directory)


def _unfinished(root: str) -> str:
    return os.path.join(root, f".unfinished-{os.urandom(4).hex()}")


def _discard(directory: str) -> None:
    """Remove a session's directory in which nothing is left but what _populate made. Raises OSError otherwise."""
    root, name = os.path.split(directory)
    with _held(root) as top:
        with _held(name, dir_fd=top) as place:
            for file in (RECORD, f"{RECORD}.tmp", LOCK):
                with suppress(FileNotFoundError):
                    os.unlink(file, dir_fd=place)
            for part in DIRECTORIES:
                with suppress(FileNotFoundError):
                    os.rmdir(part, dir_fd=place)
        os.rmdir(name, dir_fd=top)


def _populate(directory: str, user: str, record: Mapping[str, Any]) -> None:
    """Make the session's directory with all that belongs into it.

    Nobody else enters it: what the server is to see of it is put into the server's own root directory.
    """
    identity(user)  # refused where only root could arrange it
    owner = account(user)
    root, name = os.path.split(directory)
    with _held(root) as top:
        os.mkdir(name, 0o700, dir_fd=top)
        with _held(name, dir_fd=top) as place:
            for part in DIRECTORIES:
                os.mkdir(part, 0o700, dir_fd=place)
            if owner.uid != os.geteuid():
                for part in FOR_THE_SERVER:
                    os.chown(part, owner.uid, owner.gid, dir_fd=place, follow_symlinks=False)
                with _held("config", dir_fd=place) as config:  # which the server reads, and cannot write
                    os.fchown(config, -1, owner.gid)
                    os.fchmod(config, 0o750)
            os.close(os.open(LOCK, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600, dir_fd=place))
            _write(RECORD, record, dir_fd=place)


@contextmanager
def _held(directory: str, *, dir_fd: int | None = None) -> Iterator[int]:
    """A descriptor of a directory, and of no link: what is done through it is done there, by whatever name it goes."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=dir_fd)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _load(directory: str) -> dict[str, Any]:
    """The record of the session in directory; see Session.open for the errors."""
    name = os.path.basename(directory)
    try:
        _check_owner(directory, stat.S_ISDIR)
    except FileNotFoundError:
        raise SessionGoneError(f"There is no session {name} in {os.path.dirname(directory)}.") from None
    path = os.path.join(directory, RECORD)
    try:
        _check_owner(path, stat.S_ISREG)
        record = _read(path)
    except FileNotFoundError:
        if not _is_leftover(directory):
            raise SessionGoneError(f"{directory} is not a session: it has no {RECORD}.") from None
        return _blank(name, "Its record is gone: stop it to remove what is left of it.")
    if record["id"] != name:
        raise SessionError(f"{path} is the record of session {record['id']}: its directory has been renamed.")
    return record


def _looks_like_session(directory: str) -> bool:
    """Whether an entry of the session root is worth opening: the user may keep other things there."""
    if not IDENTIFIER.fullmatch(os.path.basename(directory)):
        return False
    return os.path.lexists(os.path.join(directory, RECORD)) or _is_leftover(directory)


def _is_leftover(directory: str) -> bool:
    """Whether a directory without a record is the rest of a session and not something of the user's."""
    if not GENERATED_IDENTIFIER.fullmatch(os.path.basename(directory)):
        return False
    if os.path.lexists(os.path.join(directory, LOCK)):
        return True
    names = _listed(directory) if os.path.isdir(directory) else []
    return bool(names) and {*DIRECTORIES, f"{RECORD}.tmp", *OTHERS}.issuperset(names)


def _check_owner(path: str, is_kind: Callable[[int], bool]) -> None:
    """Refuse a path that another user made, even when we are root: what its record claims is that user's word.

    Raises FileNotFoundError where there is nothing, or nothing of this kind.
    """
    try:
        status = os.lstat(path)
    except PermissionError as error:
        raise SessionError(f"{path} is closed to {user_name(os.geteuid())}: act as its owner (become).") from error
    if not is_kind(status.st_mode):
        raise FileNotFoundError(errno.ENOENT, "something else is there", path)
    if status.st_uid != os.geteuid():
        owner = user_name(status.st_uid)
        raise SessionError(f"{path} belongs to {owner}, not to {user_name(os.geteuid())}: act as {owner} (become).")


def _read(path: str) -> dict[str, Any]:
    """A record from its file. Raises SessionError where it is damaged or of a newer version."""
    content = read_beginning(path, LARGEST_RECORD)
    try:
        record = json.loads(content)
        version = record["schema_version"]
        if version <= SCHEMA_VERSION:
            return _complete(record)
    except (ValueError, LookupError, TypeError) as error:
        raise SessionError(
            f"The record {path} is damaged ({type(error).__name__}: {error}). Move it away and stop the session: "
            "its processes and mounts are then found by their marks.",
        ) from error
    raise SessionError(
        f"The record {path} has schema version {version}, and this version of phpborg.instant_recovery knows "
        f"{SCHEMA_VERSION} at most: use the version that made the session.",
    )


def _complete(record: dict[str, Any]) -> dict[str, Any]:
    """The record with every key. Raises ValueError, LookupError or TypeError for what tear-down could not work with."""
    complete = {**_blank(str(record["id"]), None), **record}
    for claim in complete["claims"]:
        if claim["kind"] == "mount" and not os.path.isabs(claim["mountpoint"]):
            raise ValueError(f"claim {claim['name']} has no absolute mount point")
        if claim["process"] is not None:
            Process.from_dict(claim["process"])
    return complete


def _write(path: str, record: Mapping[str, Any], *, dir_fd: int | None = None) -> None:
    """Replace a record as a whole: whoever reads it, even after a power cut, sees the old one or the new one."""
    # By its descriptor a directory is the same, whatever goes by its name.
    place = path if dir_fd is None else f"/proc/self/fd/{dir_fd}/{path}"
    content = f"{json.dumps(record, indent=1)}\n".encode()
    if len(content) > LARGEST_RECORD:  # nobody could read it, and so nobody could end the session
        raise SessionError(
            f"What is to be recorded of session {record['id']} has {len(content)} bytes, and {LARGEST_RECORD} is the "
            "most: the archive's settings or names are too long. Use another one, and find out who made this."
        )
    replace_file(place, content, durable=True)


def _acquire(directory: str, timeout: float) -> int:
    """The descriptor of the locked lock file, within timeout seconds."""
    name = os.path.basename(directory)
    try:
        lock = open_regular(os.path.join(directory, LOCK), os.O_RDWR | os.O_CREAT)
    except (FileNotFoundError, NotADirectoryError):
        raise SessionGoneError(f"There is no session {name} in {os.path.dirname(directory)}.") from None
    try:
        if not _flock(lock, timeout):
            holder = os.pread(lock, 100, 0).decode("ascii", "replace").strip() or "unknown"
            raise SessionError(
                f"Session {name} is being worked on by process {holder}: try again when that has finished.",
                lock_holder=holder,
            )
        if not _is_same(lock, os.path.join(directory, LOCK)):
            raise SessionGoneError(f"Session {name} has ended meanwhile.")
        os.ftruncate(lock, 0)
        os.pwrite(lock, f"{os.getpid()}\n".encode("ascii"), 0)
    except BaseException:
        os.close(lock)
        raise
    return lock


@contextmanager
def _root_locked(root: str) -> Iterator[None]:
    """Hold what makes sessions one after the other: a directory that nobody else can open, as they can the root."""
    with suppress(FileExistsError):
        os.mkdir(os.path.join(root, ENDED), 0o700)
    with _held(os.path.join(root, ENDED)) as lock:
        if not _flock(lock, ROOT_PATIENCE):
            raise SessionError(f"Others have been making sessions in {root} for {ROOT_PATIENCE} s: try again.")
        yield


def _flock(lock: int, timeout: float) -> bool:
    """Lock within timeout seconds. The waiting is done by flock(1) on the same descriptor: it can be timed."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except BlockingIOError:
        if timeout <= 0:
            return False
    argv = [find_program("flock") or "flock", "--exclusive", "--timeout", f"{timeout:g}", str(lock)]
    # pylint: disable-next=ansible-bad-function  # run_command hands no descriptors on
    return subprocess.run(argv, pass_fds=[lock], timeout=timeout + 10, check=False).returncode == 0


def _is_same(descriptor: int, path: str) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.lstat(path))
    except FileNotFoundError:
        return False


def _listed(directory: str) -> list[str]:
    try:
        return sorted(os.listdir(directory))
    except FileNotFoundError:
        return []
    except PermissionError as error:
        raise SessionError(
            f"{directory} cannot be listed by {user_name(os.geteuid())}: act as the sessions' owner (become)."
        ) from error


def _prune(directory: str) -> None:
    """Keep the newest of the ended records."""
    with suppress(FileNotFoundError):  # another session ends at the same time and does the same
        paths = [os.path.join(directory, name) for name in os.listdir(directory)]
        for path in sorted(paths, key=os.path.getmtime)[:-ENDED_KEPT]:
            os.unlink(path)


def _plain(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value.as_dict() if isinstance(value, Process) else value for key, value in fields.items()}
