# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Users of the sessions' own: numbers that no account, process or other session of this host has.

A server that root starts runs as one of them. The copy-on-write layer presents the copy's files as that user's, so the
number need not be known to the host. What belongs to production's users is out of its reach by the oldest rule of Unix.

Which session has which number is noted in files below /run, which a reboot empties: it ends all sessions, too.
"""

from __future__ import annotations

import fcntl
import grp
import os
import pwd
import random
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from .._errors import RecoveryError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["RANGE", "give_back", "processes_of", "take", "taken_by"]

# Numbers that neither distributions nor systemd give to anybody (systemd's documentation, "Users, Groups, UIDs and
# GIDs on systemd systems", has 60706 to 61183 as unused). One for each session.
RANGE = range(60706, 61184)
REGISTRY = "/run/instant_recovery/uids"
BEING_MADE = 600  # seconds after which a session's directory exists, or never will


def take(session_directory: str) -> int:
    """A number for the session in that directory, noted as its own. Raises RecoveryError where all are taken."""
    with _locked() as registry:
        used = set(_owners())
        for uid in random.sample(RANGE, len(RANGE)):  # one that was just given back is not the next again
            if uid not in used and not _is_known(uid) and _holder(registry, uid) is None:
                with open(os.path.join(registry, str(uid)), "w", encoding="utf-8", errors="surrogateescape") as file:
                    file.write(session_directory)
                return uid
    raise RecoveryError(
        f"All user ids from {RANGE.start} to {RANGE.stop - 1} are in use on this host: stop some sessions, or name a "
        "user for the server (server_user)."
    )


def give_back(uid: int, session_directory: str) -> None:
    """Let others have the number, if it is the session's."""
    with _locked() as registry:
        path = os.path.join(registry, str(uid))
        if _read(path) == session_directory:
            os.unlink(path)


def taken_by(session_directory: str) -> list[int]:
    """The numbers noted as that session's: one, or none where somebody was named for it."""
    try:
        names = os.listdir(REGISTRY)
    except OSError:
        return []  # none was ever taken, or we are not root
    return [int(name) for name in names if name.isdigit() and _read(os.path.join(REGISTRY, name)) == session_directory]


def processes_of(uid: int) -> list[int]:
    """The ids of the processes that run as this user, real or effective."""
    found = []
    for pid in _pids():
        with suppress(OSError), open(f"/proc/{pid}/status", encoding="utf-8", errors="replace", newline="\n") as status:
            lines = [line.split()[1:3] for line in status if line.startswith("Uid:")]
            if lines and str(uid) in lines[0]:
                found.append(pid)
    return found


@contextmanager
def _locked() -> Iterator[str]:
    """The registry, to which nobody else writes meanwhile; it belongs to root, and nobody else can."""
    os.makedirs(REGISTRY, mode=0o700, exist_ok=True)
    directory = os.open(REGISTRY, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(directory, fcntl.LOCK_EX)  # held for milliseconds
        yield REGISTRY
    finally:
        os.close(directory)


def _holder(registry: str, uid: int) -> str | None:
    """The session directory that has the number; None where it is free, or that directory is gone."""
    path = os.path.join(registry, str(uid))
    directory = _read(path)
    if directory is None or os.path.lexists(directory):
        return directory
    return directory if time.time() - os.path.getmtime(path) < BEING_MADE else None


def _read(path: str) -> str | None:
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            return file.read()
    except FileNotFoundError:
        return None


def _is_known(uid: int) -> bool:
    """Whether the host has an account or a group of this number."""
    for look_up in (pwd.getpwuid, grp.getgrgid):
        with suppress(KeyError):
            look_up(uid)
            return True
    return False


def _owners() -> Iterator[int]:
    """Effective users of all processes."""
    for pid in _pids():
        with suppress(OSError):
            yield os.stat(f"/proc/{pid}").st_uid


def _pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]
