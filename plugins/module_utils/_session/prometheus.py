# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The sessions of a host as a text file for Prometheus, as node_exporter's textfile collector reads it.

Source of the format: Prometheus's documentation, "Exposition formats", text-based format.
"""

from __future__ import annotations

import os
import stat
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from .._errors import RecoveryError
from .._host.ownership import open_directory
from .directory import SessionError
from .metrics import read_sample
from .record import ARCHIVE
from .session import Session

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from .record import Record

__all__ = ["check_textfile", "render", "write_textfile"]

PREFIX = "instant_recovery"
SUFFIX = ".prom"  # the collector takes names that end so
OURS = f"# HELP {PREFIX}_".encode()  # what each of our files begins with
STATUSES = ("starting", "active", "stopping", "failed", "orphaned")
# Key of the sample, name, type, and what it is. Base units and suffixes are those that Prometheus asks for.
SERIES = (
    ("uptime", "session_uptime_seconds", "gauge", "Time since the session's server was ready."),
    ("time_left", "session_time_left_seconds", "gauge", "Time until the session ends by itself."),
    ("idle", "session_idle_seconds", "gauge", "Time since a client's query was last seen."),
    ("clients", "session_clients", "gauge", "Connected clients."),
    ("active_clients", "session_active_clients", "gauge", "Clients whose query is running."),
    ("queries", "session_queries_total", "counter", "Queries, as the database server counts them."),
    ("cpu_seconds", "session_cpu_seconds_total", "counter", "CPU time of all of the session's processes."),
    ("memory_bytes", "session_memory_bytes", "gauge", "Memory of all of the session's processes."),
    ("archive_bytes_read", "session_archive_read_bytes_total", "counter", "Bytes fetched from the archive."),
    ("repository_bytes_read", "session_repository_read_bytes_total", "counter", "Bytes that Borg has read."),
    ("upper_bytes", "session_upper_bytes", "gauge", "Disk space that the session's changes take."),
    ("cache_bytes", "session_cache_bytes", "gauge", "Disk space that the session's cache takes."),
)


def check_textfile(path: str) -> None:
    """Raise SessionError where write_textfile() would."""
    with _directory_of(path):
        pass


def write_textfile(path: str, root: str) -> None:
    """Replace the file by what the sessions below root have last told of themselves.

    Everybody may read it. It appears as a whole, whoever reads it when. Raises OSError, and SessionError for a path
    that is not meant for this: whoever names it may be somebody whom the host would not let write there.
    """
    sessions = [(replace(one.record, status=_status(one)), read_sample(one) or {}) for one in Session.all(root)]
    name = os.path.basename(path)
    temporary = f"{name}.{os.urandom(4).hex()}"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with _directory_of(path) as directory:
        try:
            made = os.open(temporary, flags, 0o644, dir_fd=directory)
            with os.fdopen(made, "w", encoding="utf-8", errors="backslashreplace") as file:
                os.fchmod(file.fileno(), 0o644)
                file.write(render(sessions))
            os.replace(temporary, name, src_dir_fd=directory, dst_dir_fd=directory)
        except BaseException:
            with suppress(FileNotFoundError):
                os.unlink(temporary, dir_fd=directory)
            raise


@contextmanager
def _directory_of(path: str) -> Iterator[int]:
    """A descriptor of the directory in which path may be written. Raises SessionError."""
    directory, name = os.path.split(path)
    try:
        if not os.path.isabs(path) or not name.endswith(SUFFIX) or name == SUFFIX or not path.isprintable():
            raise RecoveryError(f"it is no absolute path of a file {SUFFIX}")
        place = open_directory(directory)
    except (OSError, RecoveryError) as error:
        raise _refused(path, f"{directory}: {error.strerror}" if isinstance(error, OSError) else str(error)) from error
    try:
        if not os.access(f"/proc/self/fd/{place}", os.W_OK | os.X_OK):
            raise _refused(path, f"{directory} cannot be written by this user")
        problem = _problem_of(name, place)
        if problem is not None:
            raise _refused(path, problem)
        yield place
    finally:
        os.close(place)


def _problem_of(name: str, directory: int) -> str | None:
    """Why what has this name now is not to be replaced; None where it is nothing, or ours."""
    try:
        if not stat.S_ISREG(os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode):
            return "what is there is no file"
        # Nonblocking: it may have become a pipe.
        file = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)
    except FileNotFoundError:
        return None
    except OSError as error:
        return f"the file that is there cannot be read ({error.strerror})"
    try:
        is_ours = os.read(file, len(OURS)) == OURS
        return None if is_ours else f"the file that is there does not begin with {OURS.decode()}"
    finally:
        os.close(file)


def _refused(path: str, why: str) -> SessionError:
    return SessionError(
        f"metrics_textfile {path!r} cannot be used: {why}. Name a file that ends in {SUFFIX}, and is not there yet or "
        "was made by sessions, in a directory that no other users can write to."
    )


def render(sessions: Iterable[tuple[Record, Mapping[str, Any]]]) -> str:
    """The text for these records, each with its sample."""
    sessions = list(sessions)
    statuses = [record.status for record, _sample in sessions]
    lines = _series(
        "sessions", "gauge", "Sessions on this host.", [({"status": s}, statuses.count(s)) for s in STATUSES]
    )
    told = [(_labels(record), 1) for record, _sample in sessions]
    lines += _series("session_info", "gauge", "What a session is of.", told)
    for key, name, kind, text in SERIES:
        values = [({"session": record.id}, sample.get(key)) for record, sample in sessions]
        lines += _series(name, kind, text, [(labels, value) for labels, value in values if value is not None])
    return "".join(f"{line}\n" for line in lines)


def _status(session: Session) -> str:
    """The recorded status, unless a process has ended that the session needs and nothing replaces; see _liveness."""
    status = session.record.status
    needed = [one.process for one in session.record.claims if one.process and one.required and one.part != ARCHIVE]
    is_whole = all(process.alive() for process in needed)
    return status if is_whole or status != "active" else "orphaned"


def _labels(record: Record) -> dict[str, str]:
    archive = record.archive or {}
    named = {"session": record.id, "archive": archive.get("name"), "repository": archive.get("repository")}
    others = {key: getattr(record, key) for key in ("status", "engine", "engine_version", "driver", "port")}
    return {key: "" if value is None else str(value) for key, value in {**named, **others}.items()}


def _series(name: str, kind: str, text: str, values: Iterable[tuple[Mapping[str, str], Any]]) -> list[str]:
    lines = [f"# HELP {PREFIX}_{name} {text}", f"# TYPE {PREFIX}_{name} {kind}"]
    for labels, value in values:
        listed = ",".join(f'{label}="{_escaped(content)}"' for label, content in labels.items())
        lines.append(f"{PREFIX}_{name}{{{listed}}} {value}")
    return lines


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
