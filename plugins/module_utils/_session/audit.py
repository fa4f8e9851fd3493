# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The host's audit log: one JSON line for whatever begins, ends or changes a session, and who wanted it. Rotated."""

from __future__ import annotations

import fcntl
import json
import os
import time
from contextlib import suppress
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from .._host.files import open_regular
from .._host.ownership import user_name
from .._host.processes import ancestors

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .record import Record

__all__ = ["LOG", "audit", "requester"]

LOG = "audit.log"  # in the session root; older ones are LOG.1 (the newest of them), LOG.2 …
LIMIT = 1 << 20  # bytes after which a new one is begun: some 2000 sessions
KEPT = 5  # older ones
PATIENCE = 5.0  # seconds
NOBODY = 2**32 - 1  # in /proc/self/loginuid: nobody has logged in
LONGEST = 1000  # characters of one text: what callers say is not to push older lines out of the log


def requester(named: str | None = None) -> dict[str, str | None]:
    """Who wants what is about to happen: C(claimed_by), C(user) of this host, and C(from) where.

    claimed_by is what the caller says, who can say anything. The others are what this host sees: user is the one who
    logged in, also behind sudo; from is the address of an SSH client, or C(local), by the calling processes'
    environment.
    """
    user = _login() or os.environ.get("SUDO_USER") or user_name(os.geteuid())
    return {"claimed_by": named, "user": user, "from": _origin()}


def audit(
    root: str,
    event: str,
    record: Record,
    *,
    who: Mapping[str, str | None],
    reason: str | None = None,
) -> None:
    """Append one event about a session's record: C(start), C(extend), C(reset), C(stop), C(automatic stop), C(reap),
    C(export).

    Where it cannot be written the line is lost and not the session: no log is to keep a session from ending.
    """
    archive = record.archive or {}
    line: dict[str, Any] = {
        "time": datetime.fromtimestamp(time.time(), timezone.utc).isoformat(timespec="milliseconds"),
        "event": event,
        "session": record.id,
        "host": record.host,
        **who,
        "engine": record.engine,
        "archive": {key: _short(archive.get(key)) for key in ("repository", "name")},
        "reason": reason,
    }
    line = {key: _short(value) for key, value in line.items()}
    with suppress(OSError):
        _append(os.path.join(root, LOG), f"{json.dumps(line)}\n".encode())


def _short(value: Any) -> Any:
    return f"{value[:LONGEST]}…" if isinstance(value, str) and len(value) > LONGEST else value


def _append(path: str, line: bytes) -> None:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        # In a root that others may write to, somebody may have planted a pipe.
        log = open_regular(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        try:
            state = os.fstat(log)
            if state.st_uid != os.geteuid():
                return  # somebody else's
            if not _locked(log):
                time.sleep(0.01)  # held by others like this one, for as long as a line takes
            elif not _is_still(log, path):
                continue  # rotated meanwhile
            elif state.st_size + len(line) > LIMIT:
                _rotate(path)
            else:
                size = os.fstat(log).st_size
                if os.write(log, line) < len(line):
                    os.ftruncate(log, size)  # the disk is full: no half lines
                return
        finally:
            os.close(log)


def _locked(log: int) -> bool:
    try:
        fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_still(log: int, path: str) -> bool:
    try:
        return os.path.samestat(os.fstat(log), os.lstat(path))
    except FileNotFoundError:
        return False


def _rotate(path: str) -> None:
    for number in range(KEPT, 1, -1):
        with suppress(FileNotFoundError):
            os.replace(f"{path}.{number - 1}", f"{path}.{number}")
    os.replace(path, f"{path}.1")


def _origin() -> str:
    """The address that an SSH client came from. sudo hides it from us, but not from the shell that called sudo."""
    for pid in ancestors():
        with suppress(OSError), open(f"/proc/{pid}/environ", "rb") as environ:
            for entry in environ.read().split(b"\0"):
                if entry.startswith(b"SSH_CONNECTION="):
                    return entry.partition(b"=")[2].split(b" ")[0].decode("ascii", "replace")
    return "local"


def _login() -> str | None:
    """The user who logged in, as the kernel keeps it through everything that follows; None where nobody did."""
    with suppress(OSError, ValueError), open("/proc/self/loginuid", encoding="ascii", newline="\n") as login:
        uid = int(login.read())
        return None if uid == NOBODY else user_name(uid)
    return None
