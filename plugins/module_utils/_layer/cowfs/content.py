# Copyright (c) 2026, phpBorg contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The bytes of one regular file: blocks of the upper over blocks of the lower.

Changed blocks lie in sparse files in the upper directory, one for each changed file, named by inode number.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

from ..._session.counters import Counters
from .blocks import BLOCK, Bits, is_hole, runs_of_zeros
from .files import FileTable
from .fuse import trio
from .lower import Lower, LowerFile

__all__ = ["Content", "Upper"]


class Upper:
    """The directory of changed blocks."""

    def __init__(self, directory: str, counters: Counters) -> None:
        self.directory = directory
        self.counters = counters
        self.files = FileTable()

    def file(self, ino: int) -> int:
        """The descriptor of a file's changes, made where there are none yet."""
        return self.files.get(ino, lambda: os.open(self._path(ino), os.O_RDWR | os.O_CREAT, 0o600))

    def remove(self, ino: int) -> None:
        self.files.close(ino)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path(ino))

    def _path(self, ino: int) -> str:
        return os.path.join(self.directory, f"{ino:x}")


class Content:
    """The bytes of one regular file.

    A block is taken from the upper file if its bit in ``copied`` is set, or if it lies wholly beyond ``limit``: the end
    of what is still valid of the lower file. Truncation lowers ``limit`` for good, so that bytes of the lower never
    come back when the file grows again: beyond it there are zeros, which is what a hole in the upper file reads as.
    """

    __slots__ = ("upper", "lower", "ino", "below", "limit", "size", "copied", "differs", "has_file")

    def __init__(self, upper: Upper, lower: Lower, ino: int, path: bytes | None, size: int) -> None:
        self.upper, self.lower, self.ino = upper, lower, ino
        self.below = LowerFile(ino, path or b"")  # of a file that was made here nothing is read: its limit is 0
        self.limit = self.size = size
        self.copied: Bits | None = None  # blocks of the lower file; None: no block yet
        self.differs = False
        self.has_file = False  # in the upper: one is made for bytes alone, for which there has to be room

    async def read(self, offset: int, size: int) -> Any:
        end = min(offset + size, self.size)
        if end <= offset:
            return b""
        if offset >= self.limit:
            return self._upper_bytes(offset, end)
        if self.copied is None and end <= self.limit:
            return await self._lower_bytes(offset, end)
        pieces = []
        for start, stop, from_upper in list(self._runs(offset, end)):
            # An awaited lower read may be overtaken by a write; the older bytes are then still a right answer.
            pieces.append(self._upper_bytes(start, stop) if from_upper else await self._lower_bytes(start, stop))
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    async def write(self, offset: int, data: bytes) -> int:
        end = offset + len(data)
        # A block written in part only needs the rest of its bytes first.
        for edge in sorted({offset // BLOCK, (end - 1) // BLOCK}):
            covered = offset <= edge * BLOCK and min((edge + 1) * BLOCK, self.limit) <= end
            if not covered and not self._is_copied(edge):
                await self._copy_block(edge)
        self._store(offset, data)
        return len(data)

    def truncate(self, size: int) -> None:
        if size < self.size and self.has_file:
            os.ftruncate(self._file(), size)
        self.limit = min(self.limit, size)
        self.size = size
        self.differs = True

    async def sync(self) -> None:
        if self.has_file:
            # A duplicate: the table may close its own in the meantime.
            with open(os.dup(self._file()), "rb") as file:
                await trio.to_thread.run_sync(os.fsync, file)

    def discard(self) -> None:
        """Remove the upper data; the file has no name any more."""
        self.lower.windows.forget(self.ino)
        if self.has_file:
            self.upper.remove(self.ino)

    def _file(self) -> int:
        return self.upper.file(self.ino)

    def _is_copied(self, block: int) -> bool:
        if block * BLOCK >= self.limit:
            return True
        return self.copied is not None and block in self.copied

    def _runs(self, offset: int, end: int) -> Iterator[tuple[int, int, bool]]:
        """Split a range where upper and lower alternate: (start, stop, from upper)."""
        start = offset
        while start < end:
            block = start // BLOCK
            copied = self._is_copied(block)
            while block * BLOCK < end and self._is_copied(block) == copied:
                block += 1
            stop = min(block * BLOCK, end)
            yield start, stop, copied
            start = stop

    def _upper_bytes(self, start: int, stop: int) -> bytes:
        data = os.pread(self._file(), stop - start, start) if self.has_file else b""
        return data if len(data) == stop - start else data + bytes(stop - start - len(data))

    async def _copy_block(self, block: int) -> None:
        start = block * BLOCK
        data = await self._lower_bytes(start, start + BLOCK)
        if not self._is_copied(block):  # Another writer may have been quicker.
            self._store_upper(start, bytes(data[: self.limit - start]))  # or a truncation: what it cut off stays off
            self._mark(start, start + BLOCK)

    def _store(self, offset: int, data: bytes) -> None:
        written = self._store_upper(offset, data)
        self._mark(offset, offset + written)
        self.size = max(self.size, offset + written)

    def _store_upper(self, offset: int, data: bytes) -> int:
        """Write to the upper file, all of it or ENOSPC: what a full disk kept is not marked, so it does not show.

        Zeros are left out where the upper file has a hole, which reads as zeros: servers write logs full of them ahead.
        """
        self.differs = self.has_file = True
        view = memoryview(data)
        for start, stop, is_zero in runs_of_zeros(data, offset):
            if is_zero and is_hole(self._file(), offset + start, offset + stop):
                continue
            done = start
            while done < stop:
                done += os.pwrite(self._file(), view[done:stop], offset + done)
            # A disk takes no less than whole ones.
            blocks = (offset + stop - 1) // BLOCK - (offset + start) // BLOCK + 1
            self.upper.counters.add(written_bytes=blocks * BLOCK)
        return len(data)

    def _mark(self, start: int, stop: int) -> None:
        stop = min(stop, self.limit)
        if start >= stop:
            return
        self.copied = self.copied or Bits()
        for block in range(start // BLOCK, (stop + BLOCK - 1) // BLOCK):
            self.copied.add(block)

    async def _lower_bytes(self, start: int, stop: int) -> Any:
        """Bytes of the lower file; zeros beyond ``limit``, which lies in the last block if not at the end."""
        last = min(stop, self.limit)
        pieces = await self.lower.read(self.below, start, last, self.limit)
        if stop > last:
            pieces.append(bytes(stop - last))
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)
