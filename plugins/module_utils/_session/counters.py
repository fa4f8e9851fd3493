# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Numbers that the copy-on-write layer counts, in a file mapped into memory.

To tell them costs the layer no system call and no wait; whoever watches reads the file.
"""

from __future__ import annotations

import mmap
import os
import struct
from typing import TYPE_CHECKING

from .._host.files import read_beginning

if TYPE_CHECKING:
    from .session import Session

__all__ = ["COUNTERS", "Counters", "counters_of", "layer_counters"]

# What the file holds, in this order, 64 bits each in the machine's byte order: bytes fetched from the lower, bytes
# of blocks written to the upper (again and again, if so), bytes of windows on disk, and failed requests (EIO).
COUNTERS = ("fetched_bytes", "written_bytes", "cache_bytes", "io_errors")


def counters_of(upper: str) -> str:
    """Where the layer with this upper directory keeps its counters: beside it."""
    return f"{upper}.counters"


def layer_counters(session: Session) -> dict[str, int]:
    """The counters of a session's layer by their names; none where its driver counts nothing."""
    try:
        counted = read_beginning(counters_of(session.path("upper")), 8 * len(COUNTERS))
        return dict(zip(COUNTERS, struct.unpack(f"{len(COUNTERS)}Q", counted)))
    except (OSError, struct.error):
        return {}


class Counters:
    """The layer's own side of them; path None: in memory alone."""

    def __init__(self, path: str | None) -> None:
        size = 8 * len(COUNTERS)
        if path is None:
            memory = mmap.mmap(-1, size)
        else:
            file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            os.write(file, bytes(size))  # allocated now: there may be no room later
            memory = mmap.mmap(file, size)
            os.close(file)
        self.values = memoryview(memory).cast("Q")

    def get(self, name: str) -> int:
        return self.values[COUNTERS.index(name)]

    def set(self, **values: int) -> None:
        for name, value in values.items():
            self.values[COUNTERS.index(name)] = value

    def add(self, **amounts: int) -> None:
        for name, amount in amounts.items():
            self.values[COUNTERS.index(name)] += amount
