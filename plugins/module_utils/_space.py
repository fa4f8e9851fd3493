# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Disk space: what directories take of it, and how much of it sessions leave to others."""

from __future__ import annotations

import os
from contextlib import suppress

__all__ = ["LEAST_FLOOR", "disk_usage", "floor_of", "free_space", "in_words"]

LEAST_FLOOR = 1 << 30  # bytes; on a small disk a share would be too little for a database server beside the sessions


def free_space(place: str) -> tuple[int, int]:
    """Bytes that place's file system has free for this user, and its size in bytes."""
    state = os.statvfs(place)
    return state.f_bavail * state.f_frsize, state.f_blocks * state.f_frsize


def floor_of(limit: str, total: int) -> int:
    """Bytes to leave free of total: a share such as C(5%), but LEAST_FLOOR at least; or so many bytes (0: none)."""
    if limit.endswith("%"):
        return max(int(total * float(limit[:-1]) / 100), LEAST_FLOOR)
    return int(limit)


def disk_usage(directory: str) -> int:
    """Bytes that directory and all below it take on its file system; a file with several names counts once.

    0 where it is gone.
    """
    sizes: dict[int, int] = {}
    try:
        device = os.lstat(directory).st_dev
    except FileNotFoundError:
        return 0
    for parent, directories, files in os.walk(directory):
        for name in [*directories, *files]:
            with suppress(FileNotFoundError):  # the session goes on meanwhile
                status = os.lstat(os.path.join(parent, name))
                if status.st_dev == device:
                    sizes[status.st_ino] = status.st_blocks * 512
    return sum(sizes.values())


def in_words(size: float) -> str:
    """Such as C(1.5 GiB) or C(300 MiB)."""
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"
