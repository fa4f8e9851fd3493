# Copyright (c) 2026, phpBorg contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Windows of lower files that were fetched and not yet read: in memory, and the older ones on disk."""

from __future__ import annotations

import array
import collections
import logging
import os
import tempfile
from collections.abc import Iterator
from typing import Any

from ..._session.counters import Counters
from .blocks import BLOCK

__all__ = ["PIECE", "WINDOW", "Cache", "Key", "Window", "Windows"]

#: Unit of fetching from the lower, bytes. Borg decodes whole chunks of about 2 MiB for any read in them: half a chunk
#: wastes little, and is fetched about as fast as 8 KiB of it. Less than 1 MiB, the most that the kernel asks of a FUSE
#: file system at once: 256 pages, of which the buffer, which does not begin with a page, touches one more. Less by the
#: largest usual page of a database: then each page lies in one window.
WINDOW = (1 << 20) - 4 * BLOCK
#: Bytes of fetched windows kept in memory until they have been read, and how many windows at most: those of small files
#: cost more than their bytes. Beyond these, the oldest go to the cache file.
HOT_BYTES = 72 * WINDOW
MOST_HOT = 1000
#: Unit of the cache file, bytes, and how many windows it keeps at most: what is known of them is in memory.
PIECE = 4 * BLOCK
MOST_CACHED = 20_000

#: Inode number of a file, and which window of it.
Key = tuple[int, int]

log = logging.getLogger("cowfs")


class Window:
    """A fetched window in memory. ``served`` has a bit for each block that the kernel has had."""

    __slots__ = ("data", "served")

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.served = 0

    def cut(self, start: int, stop: int) -> memoryview:
        first, last = start // BLOCK, (stop + BLOCK - 1) // BLOCK
        self.served |= ((1 << (last - first)) - 1) << first
        return memoryview(self.data)[start:stop]

    @property
    def used_up(self) -> bool:
        return self.served == (1 << ((len(self.data) + BLOCK - 1) // BLOCK)) - 1


class Windows:
    """All windows that are here or on their way. Beyond HOT_BYTES the oldest go from memory to the cache on disk."""

    def __init__(self, cache: Cache) -> None:
        self.cache = cache
        self.counters = cache.counters
        self.awaited: dict[Key, Any] = {}  # the fetch of each window that is on its way
        self.hot: collections.OrderedDict[Key, Window] = collections.OrderedDict()
        self.hot_bytes = 0

    def __contains__(self, key: Key) -> bool:
        return key in self.hot or key in self.awaited or key in self.cache

    def arrived(self, key: Key, data: bytes) -> Window:
        """Keep what was fetched."""
        window = self.hot[key] = Window(data)
        self.counters.add(fetched_bytes=len(data))
        self.hot_bytes += len(window.data)
        while self.hot_bytes > HOT_BYTES or len(self.hot) > MOST_HOT:
            self._cool(next(iter(self.hot)))
        return window

    def drop(self, key: Key) -> None:
        """Take a window out of memory, if it is there."""
        window = self.hot.pop(key, None)
        if window is not None:
            self.hot_bytes -= len(window.data)

    def forget(self, ino: int) -> None:
        """A file is gone: its windows in memory are of no use (those on disk age out)."""
        for key in [key for key in self.hot if key[0] == ino]:
            self.drop(key)

    def cool(self) -> None:
        """Have all of them on disk."""
        for key in list(self.hot):
            self._cool(key)

    def _cool(self, key: Key) -> None:
        window = self.hot[key]
        self.drop(key)
        self.cache.write(key, window.data)


class Cache:
    """Windows on disk, in one file without a name (it is gone when the program is), least recently used out first.

    The file is handed out in pieces: most windows are much smaller than the largest, where most files are small.
    """

    def __init__(self, directory: str, size: int, counters: Counters) -> None:
        self.counters = counters
        self.pieces = size // PIECE
        self.file, path = tempfile.mkstemp(dir=directory)
        os.unlink(path)
        self.used: collections.OrderedDict[Key, array.array[int]] = collections.OrderedDict()
        self.free: list[int] = []  # pieces that were used before, the next one last
        self.begun = 0  # pieces that were ever used: the first ones

    def __contains__(self, key: Key) -> bool:
        return key in self.used

    def read(self, key: Key, start: int, stop: int) -> bytes | None:
        pieces = self.used.get(key)
        if pieces is None:
            return None
        self.used.move_to_end(key)
        return b"".join(os.pread(self.file, upto - at, place) for at, upto, place in _extents(pieces, start, stop))

    def write(self, key: Key, data: bytes) -> None:
        needed = -(-len(data) // PIECE)
        if not 0 < needed <= self.pieces:
            return
        while len(self.free) + self.pieces - self.begun < needed or len(self.used) >= MOST_CACHED:
            self.free += reversed(self.used.popitem(last=False)[1])
        pieces = array.array("I", [self._piece() for _number in range(needed)])
        try:
            for at, upto, place in _extents(pieces, 0, len(data)):
                os.pwrite(self.file, memoryview(data)[at:upto], place)
        except OSError as error:
            self.give_up(str(error.strerror))
            return
        self.used[key] = pieces
        self.counters.set(cache_bytes=self.begun * PIECE)

    def _piece(self) -> int:
        if self.free:
            return self.free.pop()
        self.begun += 1
        return self.begun - 1

    def give_up(self, reason: str) -> None:
        """Free its space: the cache is a convenience, changes need the space more."""
        if self.pieces:
            log.warning("cache given up: %s", reason)
            self.pieces = 0
            self.used.clear()
            self.counters.set(cache_bytes=0)
            os.ftruncate(self.file, 0)


def _extents(pieces: array.array[int], start: int, stop: int) -> Iterator[tuple[int, int, int]]:
    """Where bytes start to stop of a window lie in the cache's file: start and stop of each run, and its place."""
    while start < stop:
        number = last = start // PIECE
        while (last + 1) * PIECE < stop and pieces[last + 1] == pieces[last] + 1:
            last += 1
        upto = min(stop, (last + 1) * PIECE)
        yield start, upto, pieces[number] * PIECE + start % PIECE
        start = upto
