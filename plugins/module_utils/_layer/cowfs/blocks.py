# Copyright (c) 2026, phpBorg contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Blocks, the unit of copying: which of a file were copied, and which hold nothing but zeros."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator

__all__ = ["BLOCK", "Bits", "is_hole", "runs_of_zeros"]

#: Unit of copying, bytes: a page of the kernel's cache, which sends whole pages; a PostgreSQL page is two of it.
BLOCK = 4096
ZEROS = bytes(BLOCK)


class Bits:
    """Numbers, a bit for each, in pages that are made when the first of theirs is added.

    The end of a sparse file may be petabytes away: what is touched there must not take memory for all that is before.
    """

    __slots__ = ("pages",)

    def __init__(self) -> None:
        self.pages: dict[int, bytearray] = {}

    def __contains__(self, number: int) -> bool:
        page = self.pages.get(number >> 12)
        return page is not None and bool(page[number >> 3 & 511] & 1 << (number & 7))

    def add(self, number: int) -> None:
        page = self.pages.get(number >> 12)
        if page is None:
            page = self.pages[number >> 12] = bytearray(512)
        page[number >> 3 & 511] |= 1 << (number & 7)


def runs_of_zeros(data: bytes, offset: int) -> Iterator[tuple[int, int, bool]]:
    """Split what is to be written at offset where blocks of zeros and others alternate: start, stop, whether zeros."""
    start, position, was_zero = 0, 0, False
    while position < len(data):
        upto = min(len(data), position + BLOCK - (offset + position) % BLOCK)
        is_zero = upto - position == BLOCK and data.startswith(ZEROS, position)
        if is_zero != was_zero and position > start:
            yield start, position, was_zero
            start = position
        position, was_zero = upto, is_zero
    yield start, position, was_zero


def is_hole(file: int, start: int, stop: int) -> bool:
    try:
        return os.lseek(file, start, os.SEEK_DATA) >= stop
    except OSError as error:
        return error.errno == errno.ENXIO  # nothing but a hole to the end; others: it cannot be told
