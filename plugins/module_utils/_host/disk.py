# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Disk space: what directories take of it, and how much of it sessions leave to others."""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from .processes import Process

__all__ = [
    "LEAST_FLOOR",
    "disk_usage",
    "floor_of",
    "free_files",
    "free_space",
    "in_words",
    "session_usage",
    "unnamed_usage",
]

LEAST_FLOOR = 1 << 30  # bytes; on a small disk a share would be too little for a database server beside the sessions
DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
MOUNTED = ("archive", "merged", "log_archive")  # in a session's directory


def free_space(place: str) -> tuple[int, int]:
    """Bytes that place's file system has free for this user, and its size in bytes."""
    state = os.statvfs(place)
    return state.f_bavail * state.f_frsize, state.f_blocks * state.f_frsize


def free_files(place: str) -> tuple[int, int]:
    """Files that place's file system has room for, for this user, and how many it can have; 0 where it has no limit."""
    state = os.statvfs(place)
    return state.f_favail, state.f_files


def floor_of(limit: str, total: int) -> int:
    """Bytes to leave free of total: a share such as C(5%), but LEAST_FLOOR at least; or so many bytes (0: none)."""
    if limit.endswith("%"):
        return max(int(total * float(limit[:-1]) / 100), LEAST_FLOOR)
    return int(limit)


def session_usage(directory: str, *, besides: Collection[str] = ()) -> int:
    """Bytes that a session's directory takes, without what is mounted in it and the parts named in besides."""
    return disk_usage(directory, besides=(*MOUNTED, *besides))


def unnamed_usage(processes: Iterable[Process], place: str) -> int:
    """Bytes that files without a name take which processes have open, on place's file system."""
    device = os.stat(place).st_dev
    found: dict[int, int] = {}
    for process in processes:
        with suppress(OSError):  # it has ended
            for name in os.listdir(f"/proc/{process.pid}/fd"):
                path = f"/proc/{process.pid}/fd/{name}"
                with suppress(OSError):
                    # Said by the kernel alone. Others are not looked at: a repository's file system may not answer.
                    if os.readlink(path).endswith(" (deleted)"):
                        state = os.stat(path)
                        if stat.S_ISREG(state.st_mode) and state.st_dev == device:
                            found[state.st_ino] = state.st_blocks * 512
    return sum(found.values())


def disk_usage(directory: str, *, besides: Collection[str] = ()) -> int:
    """Bytes that directory and all below it take on its file system; a file with several names counts once.

    0 where it is gone. Names in besides, directly in it, are not even looked at: a dead mount would hang whoever does.
    However deep its directories are, one descriptor does: whoever is counted may have made them.
    """
    try:
        walk = _Walk(os.open(directory, DIRECTORY))
    except OSError:
        return 0
    try:
        walk.count(besides)
        while walk.go_on():
            pass
        return walk.size
    finally:
        os.close(walk.here)


class _Walk:
    """A walk through the directories of one file system, of which only the one that it is in is open."""

    def __init__(self, top: int) -> None:
        self.here, self.size = top, 0
        self._device = os.fstat(top).st_dev
        self._several_names: set[int] = set()
        self._ahead: list[str] = []  # directories in this one
        self._trail: list[tuple[os.stat_result, list[str]]] = []  # the same of those above

    def go_on(self) -> bool:
        """Count one directory more, or go up; false where there is no further one."""
        if self._ahead:
            with suppress(OSError):  # it is gone by now
                below = os.open(self._ahead.pop(), DIRECTORY, dir_fd=self.here)
                self._trail.append((os.fstat(self.here), self._ahead))
                self._move(below)
                self._ahead = []
                self.count()
            return True
        if not self._trail:
            return False
        above, self._ahead = self._trail.pop()
        try:
            self._move(os.open("..", DIRECTORY, dir_fd=self.here))
        except OSError:
            return False
        # Elsewhere, if this one was moved meanwhile: the next look will tell.
        return os.path.samestat(os.fstat(self.here), above)

    def count(self, besides: Collection[str] = ()) -> None:
        """Add up what is directly in this directory."""
        with os.scandir(self.here) as entries:
            for entry in entries:
                if entry.name in besides:
                    continue
                with suppress(OSError):
                    status = entry.stat(follow_symlinks=False)
                    if status.st_dev != self._device or status.st_ino in self._several_names:
                        continue
                    self.size += status.st_blocks * 512
                    if stat.S_ISDIR(status.st_mode):
                        self._ahead.append(entry.name)
                    elif status.st_nlink > 1:
                        self._several_names.add(status.st_ino)

    def _move(self, directory: int) -> None:
        os.close(self.here)
        self.here = directory


def in_words(size: float) -> str:
    """Such as C(1.5 GiB) or C(300 MiB)."""
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"
