# Copyright (c) 2026, phpBorg contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The lower directory: windows of its files, fetched by several readers, and ahead of those who read in sequence."""

from __future__ import annotations

import ctypes
import errno
import itertools
from typing import Any

from .blocks import Bits
from .failures import LowerError
from .fuse import in_thread, trio
from .mounts import ATTEMPTS, Mounts, Reader, Request
from .windows import WINDOW, Window, Windows

__all__ = ["Lower", "LowerFile"]

#: Windows fetched ahead of a sequential reader, at most. They are dealt out to the readers in runs, one run to each, so
#: that few chunks are decoded by two of them: with two readers 32 MiB, about 12 chunks of an average file.
READ_AHEAD = 64
#: How far from the last window, in windows, a read still belongs to the same sequence: the processes of a parallel scan
#: take pieces of a table by turns.
NEAR = 64
#: Planned windows that a reader fetches before one that is waited for. Taken out of their order, windows have Borg
#: decode a chunk again: it forgets one that has been read to its end.
PATIENCE = 16
#: Seconds without a fetch after which memory that only serves fetching is given back.
IDLE = 30


class LowerFile:
    """One file of the lower, and how it is being read."""

    __slots__ = ("ino", "path", "last_window", "streak", "served")

    def __init__(self, ino: int, path: bytes) -> None:
        self.ino, self.path = ino, path
        self.last_window = -2 * NEAR
        self.streak = 0
        self.served: Bits | None = None  # windows that the kernel has had wholly; None: no window yet

    def was_served(self, window: int) -> bool:
        return self.served is not None and window in self.served

    def note_served(self, window: int) -> None:
        self.served = self.served or Bits()
        self.served.add(window)


class Lower:
    """The lower directory, seen through its mounts."""

    def __init__(self, mounts: Mounts, windows: Windows) -> None:
        self.mounts = mounts
        self.windows = windows
        self.run = READ_AHEAD // len(mounts.readers)

    async def read(self, file: LowerFile, start: int, stop: int, limit: int) -> list[Any]:
        """Bytes start to stop of a file, as pieces. Reading ahead goes up to limit."""
        pieces = []
        while start < stop:
            index = start // WINDOW
            upto = min(stop, (index + 1) * WINDOW)
            self._notice(file, index, limit)
            pieces.append(await self._piece(file, index, start - index * WINDOW, upto - index * WINDOW))
            start = upto
        return pieces

    async def _piece(self, file: LowerFile, index: int, start: int, stop: int) -> Any:
        key = (file.ino, index)
        window = self.windows.hot.get(key)
        if window is None:
            cached = self.windows.cache.read(key, start, stop)
            if cached is not None:
                return cached
            if file.was_served(index):  # The kernel has dropped what it had: read-ahead begins anew.
                file.served = None
            self.mounts.check((file.path, index))
            fetch = self.windows.awaited.get(key) or self._queue(file, index)
            window = await fetch.result()
        piece = window.cut(start, stop)
        if len(piece) != stop - start:
            raise LowerError(errno.EIO, "the archive's file is shorter than its recorded size")
        if window.used_up:  # The kernel has all of it in its page cache.
            self.windows.drop(key)
            file.note_served(index)
        return piece

    def _notice(self, file: LowerFile, window: int, limit: int) -> None:
        """Have the windows to come fetched while a file is read in sequence."""
        step = window - file.last_window
        if step == 0 or (-NEAR < step < 0 and self.knows(file, window)):
            return
        file.streak = file.streak + 1 if 0 < step <= NEAR else 0
        file.last_window = window
        if file.streak > 1:  # Two reads near to each other may be chance.
            ahead = min(1 << min(file.streak, 8), READ_AHEAD)
            self._prefetch(file, window + 1, min(window + ahead, (limit - 1) // WINDOW))

    def _prefetch(self, file: LowerFile, first: int, last: int) -> None:
        for index in range(first, last + 1):
            piece = (file.path, index)
            is_doubtful = piece in self.mounts.suspects or piece in self.mounts.lost
            # What several scans plan together has to find room, too; and ahead of what somebody asks for no mount dies.
            if len(self.windows.awaited) >= READ_AHEAD or is_doubtful:
                break
            if not self.knows(file, index):
                self._queue(file, index, demand=False)

    def knows(self, file: LowerFile, index: int) -> bool:
        """Whether a window is here or on its way, or the kernel has had it."""
        return (file.ino, index) in self.windows or file.was_served(index)

    def _queue(self, file: LowerFile, index: int, demand: bool = True) -> Fetch:
        fetch = Fetch(self.windows, file, index)
        self.windows.awaited[fetch.key] = fetch
        self._assign(fetch, demand)
        return fetch

    def _assign(self, fetch: Fetch, demand: bool) -> None:
        if fetch.piece in self.mounts.suspects:
            fetch.reader = None
            self.mounts.on_trial.send_nowait(fetch)
            return
        alive = self.mounts.alive() or self.mounts.readers  # When none lives, the dead one's error is the answer.
        ino, index = fetch.key
        fetch.reader = alive[(ino + index // self.run) % len(alive)]
        if demand:
            fetch.reader = min(alive, key=lambda one: (one.load, one is not fetch.reader))
        (fetch.reader.demands if demand else fetch.reader.plans).append(fetch)
        fetch.reader.wake.set()

    async def serve(self, reader: Reader) -> None:
        """The loop of one reader: what somebody waits for first, then what is planned."""
        while True:
            while reader.reserved or not (reader.demands or reader.plans):
                reader.wake = trio.Event()
                await reader.wake.wait()
            fetch = reader.next()
            born, reader.busy = reader.born, True
            try:
                fetch.value = await in_thread(fetch.make, reader)
            except OSError as error:
                fetch.error = error
            finally:
                reader.busy = False
            if fetch.error is None or not await self._is_made_anew(fetch, reader, born, fetch.error):
                fetch.settle()

    async def _is_made_anew(self, fetch: Fetch, reader: Reader, born: float, error: OSError) -> bool:
        """What becomes of a fetch that has failed; its error is what to tell where this is the end of it."""
        fetch.error = LowerError(errno.EIO, "no lower mount is left")
        fetch.attempts += 1
        try:
            self.mounts.judge(reader, born, error, fetch.piece)
        except OSError as final:
            fetch.error = final
            return False
        if fetch.piece in self.mounts.suspects:
            is_to_be = fetch.is_awaited
        else:
            is_to_be = fetch.attempts < ATTEMPTS and await self.mounts.some_alive()
        if is_to_be:
            fetch.error = None
            self._assign(fetch, demand=True)
        return is_to_be

    async def trim(self) -> None:
        """Give memory back after a while without fetches: a session is idle most of its life."""
        before, trim = -1, getattr(ctypes.CDLL(None), "malloc_trim", None)  # musl has none
        while True:
            await trio.sleep(IDLE)
            fetched = self.windows.counters.get("fetched_bytes")
            if fetched == before and self.windows.hot:
                self.windows.cool()
                if trim:
                    trim(0)
            before = fetched


class Fetch(Request):
    """A window on its way."""

    __slots__ = ("windows", "key", "reader", "is_awaited", "attempts")

    def __init__(self, windows: Windows, file: LowerFile, index: int) -> None:
        path = file.path
        super().__init__((path, index), lambda reader: reader.fetch(path, index))
        self.windows = windows
        self.key = (file.ino, index)
        self.reader: Any = None
        self.is_awaited = False
        self.attempts = 0

    async def result(self) -> Window:
        self.is_awaited = True
        if self.reader is not None and self in itertools.islice(self.reader.plans, PATIENCE, None):
            self.reader.plans.remove(self)
            self.reader.demands.append(self)
        window: Window = await super().result()
        return window

    def settle(self) -> None:
        if self.error is None:
            self.value = self.windows.arrived(self.key, self.value)
        del self.windows.awaited[self.key]
        super().settle()

    def give_up(self) -> None:
        """Nobody waits for it, and nobody is going to fetch it."""
        del self.windows.awaited[self.key]
