# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Shared memory that outlives the server that made it when that is killed with SIGKILL.

A database server removes its segments when it ends in order. The kernel does not remove them for it: POSIX segments
stay as files in /dev/shm, System V segments until the next boot. They are noted while the server runs.
"""

from __future__ import annotations

import ctypes
import os
import re
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["release", "shared_memory_of"]

POSIX = "/dev/shm/"
IPC_RMID = 0
NAME = re.compile(r"posix:(?P<file>[^/]+)|sysv:(?P<id>\d+):(?P<key>[0-9a-f]{8})")


def shared_memory_of(pid: int) -> list[str]:
    """The segments that process has mapped, such as C(posix:PostgreSQL.1193283150) and C(sysv:360451:0026fed7)."""
    found: list[str] = []
    with suppress(OSError):
        # Those of a namespace of its own end with it, and their numbers are other segments' here.
        if os.readlink(f"/proc/{pid}/ns/ipc") != os.readlink("/proc/self/ns/ipc"):
            return found
    with suppress(OSError), open(f"/proc/{pid}/maps", encoding="utf-8", errors="surrogateescape", newline="\n") as maps:
        for line in maps:
            _addresses, _mode, _offset, device, inode, *name = line.split(maxsplit=5)
            path = name[0].rstrip("\n") if name else ""
            if path.startswith(POSIX) and _is_file(path, device, inode):
                found.append(f"posix:{path[len(POSIX) :]}")
            elif path.startswith("/SYSV"):
                found.append(f"sysv:{inode}:{path[5:13]}")
    return list(dict.fromkeys(found))


def _is_file(path: str, device: str, inode: str) -> bool:
    """Whether the file at path is the one that is mapped, and not another's that the process only names."""
    try:
        state = os.lstat(path)
    except OSError:
        return False
    major, _colon, minor = device.partition(":")
    return (state.st_dev, state.st_ino) == (os.makedev(int(major, 16), int(minor, 16)), int(inode))


def release(names: Iterable[str]) -> None:
    """Remove those segments that are still there and that no process uses; to be called after the server has ended."""
    for name in names:
        match = NAME.fullmatch(name)
        if match is not None and match.group("file"):
            with suppress(OSError):
                os.unlink(POSIX + match.group("file"))
        elif match is not None and (int(match.group("id")), int(match.group("key"), 16)) in _unused():
            ctypes.CDLL(None).shmctl(int(match.group("id")), IPC_RMID, None)


def _unused() -> set[tuple[int, int]]:
    """Id and key of the System V segments that no process is attached to. Ids come round again only after thousands."""
    with open("/proc/sysvipc/shm", encoding="ascii", newline="\n") as table:
        rows = [line.split() for line in table][1:]
    return {(int(row[1]), int(row[0]) & 0xFFFFFFFF) for row in rows if row[6] == "0"}
