# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where sessions live: their root, and the directory of each, which is there as a whole or not at all."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import subprocess
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from .._errors import RecoveryError
from .._host.command import account, find_program, identity
from .._host.files import read_beginning, replace_file
from .._host.ownership import exposure, user_name
from .._host.users import give_back, take
from .audit import LOG
from .record import SCHEMA_VERSION, NewerRecordError, Record

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = [
    "DIRECTORIES",
    "ENDED",
    "FETCHED",
    "LOCK",
    "NAMES",
    "RECORD",
    "REFUSAL",
    "RESUME",
    "TEMPORARY",
    "SessionError",
    "SessionGoneError",
    "check_name",
    "check_owner",
    "default_root",
    "discard",
    "free_user",
    "is_leftover",
    "is_session",
    "listed",
    "lock_within",
    "make_session",
    "read_record",
    "set_aside",
    "write_record",
]

TEMPORARY = "tmp"  # the directory for what Borgs put aside
# Two sides. `merged` and `run`, where its socket is made, are the server's: nothing that decides anything is read from
# there. `config` is what it is told, `client` is for those who speak to it, and both are written by us alone.
DIRECTORIES = ("archive", "upper", "merged", "run", "log", "config", "client", TEMPORARY)
FOR_THE_SERVER = ("merged", "run")
RECORD, LOCK, ENDED = "session.json", "lock", "ended"
NAMES = "names"  # names and attributes of what the archive has, for the layer
RESUME = "resume"  # a named pipe, into which whoever needs a suspended archive writes a byte
REFUSAL = "refused"  # why the keeper cuts off what a module is doing
LARGEST_RECORD = 1 << 24  # bytes; a record has some thousands
FETCHED = "export"  # a directory of files that wait to be fetched
# What else can be in a session's directory.
OTHERS = (
    NAMES,
    RESUME,
    REFUSAL,
    f"{REFUSAL}.tmp",
    "log_archive",
    "upper.cowfs",
    "upper.counters",
    "upper.failures",
    "upper.failures.tmp",
    "keeper.pyz",
    FETCHED,
    "sample.json",
    "sample.json.tmp",
)
ROOT_PATIENCE = 60  # seconds that a session waits for others that are being made
SOCKET_NAME_ROOM = 20  # characters, for /mongodb-27017.sock; a socket's whole path has at most 107
# A session directory that is being made or removed has such a name, so that none is ever seen half done.
UNFINISHED = re.compile(r"\.unfinished-[0-9a-f]{8}")
UNFINISHED_AGE = 600  # seconds after which nobody is still at work on it
IDENTIFIER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
GENERATED_IDENTIFIER = re.compile(r"[0-9]{8}-[0-9]{6}-[0-9a-f]{4}")


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


def check_name(session_id: str) -> str:
    """A session id that can be one. Raises SessionError for another."""
    if not IDENTIFIER.fullmatch(session_id) or session_id in ("all", ENDED) or session_id.startswith(LOG):
        raise SessionError(
            f"{session_id[:100]!r} is not a session id: use letters, digits, dots, dashes and underscores, at most 64, "
            f"beginning with a letter or digit; all, ended and what begins with {LOG} are taken."
        )
    return session_id


def is_session(directory: str) -> bool:
    """Whether an entry of the session root is worth opening: the user may keep other things there."""
    if not IDENTIFIER.fullmatch(os.path.basename(directory)):
        return False
    return os.path.lexists(os.path.join(directory, RECORD)) or is_leftover(directory)


def is_leftover(directory: str) -> bool:
    """Whether a directory without a record is the rest of a session and not something of the user's."""
    if not GENERATED_IDENTIFIER.fullmatch(os.path.basename(directory)):
        return False
    if os.path.lexists(os.path.join(directory, LOCK)):
        return True
    names = listed(directory) if os.path.isdir(directory) else []
    return bool(names) and {*DIRECTORIES, f"{RECORD}.tmp", *OTHERS}.issuperset(names)


def check_owner(path: str, is_kind: Callable[[int], bool]) -> None:
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


@contextmanager
def _root_locked(root: str) -> Iterator[None]:
    """Hold what makes sessions one after the other: a directory that nobody else can open, as they can the root."""
    with suppress(FileExistsError):
        os.mkdir(os.path.join(root, ENDED), 0o700)
    with _held(os.path.join(root, ENDED)) as lock:
        if not lock_within(lock, ROOT_PATIENCE):
            raise SessionError(f"Others have been making sessions in {root} for {ROOT_PATIENCE} s: try again.")
        yield


def make_session(
    root: str, *, session_id: str | None, user: str | None, max_sessions: int, record_of: Callable[[str, str], Record]
) -> str:
    """Make the directory of a session, whose record is record_of(its path, the user its server runs as); its path.

    It appears under its name with its record in it, or not at all. For what is given, and for errors, see
    Session.create.
    """
    _make_root(root)
    with _root_locked(root):  # what is counted here is true until the new one can be counted
        _check_number(root, max_sessions)
        return _make_named(root, session_id, user, record_of)


def _make_named(root: str, session_id: str | None, user: str | None, record_of: Callable[[str, str], Record]) -> str:
    """Make a session's directory under the name asked for, or a new one; its path."""
    for _attempt in range(20):  # a generated name may have been taken within the same second
        directory = os.path.join(root, check_name(session_id) if session_id else _new_identifier())
        _check_length(os.path.join(directory, "client"))
        try:
            _make(directory, user, record_of)
            return directory
        except FileExistsError:
            if session_id:
                break
    raise SessionError(f"There is already a session {session_id or directory}: choose another id, or stop it.")


def _make(directory: str, user: str | None, record_of: Callable[[str, str], Record]) -> None:
    """Make a session's directory aside and give it its name. Raises FileExistsError where that is taken."""
    root, name = os.path.split(directory)
    unfinished = set_aside(root)
    server_user = user or _own_user(directory)
    is_made = False
    try:
        _populate(unfinished, server_user, record_of(directory, server_user))
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
            free_user(server_user, directory)
        with suppress(FileNotFoundError):
            discard(unfinished)


def _own_user(directory: str) -> str:
    """Who runs the server of the session in directory, unless somebody is named: us, or for root nobody else's user."""
    return str(take(directory)) if os.geteuid() == 0 else user_name(os.geteuid())


def free_user(user: str | None, directory: str) -> None:
    """Let others have the user that a session alone had; of one that the host knows nothing is done."""
    if os.geteuid() == 0 and user is not None and user.isdigit():
        give_back(int(user), directory)


def set_aside(root: str) -> str:
    """A name for a directory of root that is being made or removed."""
    return os.path.join(root, f".unfinished-{os.urandom(4).hex()}")


def discard(directory: str) -> None:
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


def read_record(path: str) -> Record:
    """A record from its file. Raises SessionError where it is damaged or of a newer version."""
    content = read_beginning(path, LARGEST_RECORD)
    try:
        return Record.from_json(content)
    except NewerRecordError as error:
        raise SessionError(
            f"The record {path} has schema version {error}, and this version of phpborg.instant_recovery knows "
            f"{SCHEMA_VERSION} at most: use the version that made the session.",
        ) from error
    except (ValueError, LookupError, TypeError) as error:
        raise SessionError(
            f"The record {path} is damaged ({type(error).__name__}: {error}). Move it away and stop the session: "
            "its processes and mounts are then found by their marks.",
        ) from error


def write_record(path: str, record: Record, *, dir_fd: int | None = None) -> None:
    """Replace a record as a whole: whoever reads it, even after a power cut, sees the old one or the new one."""
    # By its descriptor a directory is the same, whatever goes by its name.
    place = path if dir_fd is None else f"/proc/self/fd/{dir_fd}/{path}"
    content = record.to_json()
    if len(content) > LARGEST_RECORD:  # nobody could read it, and so nobody could end the session
        raise SessionError(
            f"What is to be recorded of session {record.id} has {len(content)} bytes, and {LARGEST_RECORD} is the "
            "most: the archive's settings or names are too long. Use another one, and find out who made this."
        )
    replace_file(place, content, durable=True)


def lock_within(lock: int, timeout: float) -> bool:
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


def listed(directory: str) -> list[str]:
    """The names in a directory, sorted; none where it is not there. Raises SessionError where it is closed."""
    try:
        return sorted(os.listdir(directory))
    except FileNotFoundError:
        return []
    except PermissionError as error:
        raise SessionError(
            f"{directory} cannot be listed by {user_name(os.geteuid())}: act as the sessions' owner (become)."
        ) from error


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
    for name in filter(UNFINISHED.fullmatch, listed(root)):
        with suppress(OSError):
            if time.time() - os.lstat(os.path.join(root, name)).st_mtime > UNFINISHED_AGE:
                discard(os.path.join(root, name))


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
    there = [name for name in listed(root) if is_session(os.path.join(root, name))] if max_sessions else []
    if len(there) >= max_sessions > 0:
        raise SessionError(
            f"There are {len(there)} sessions in {root}, and max_sessions is {max_sessions}: stop one "
            "(instant_recovery_list shows them), or raise max_sessions."
        )


def _new_identifier() -> str:
    return f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{os.urandom(2).hex()}"


def _populate(directory: str, user: str, record: Record) -> None:
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
            write_record(RECORD, record, dir_fd=place)


@contextmanager
def _held(directory: str, *, dir_fd: int | None = None) -> Iterator[int]:
    """A descriptor of a directory, and of no link: what is done through it is done there, by whatever name it goes."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=dir_fd)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
