# Copyright (c) 2026, phpBorg contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The lower's identical mounts: which of them live, and what they are not asked for any more."""

from __future__ import annotations

import collections
import contextlib
import errno
import fcntl
import logging
import math
import os
from collections.abc import Callable, Iterator
from typing import Any

from ..._host.clock import monotonic
from ..._host.files import open_below
from .failures import LostError, LowerError
from .files import FileTable
from .fuse import in_thread, trio
from .windows import WINDOW

__all__ = ["ATTEMPTS", "Mounts", "Piece", "Reader", "Request"]

#: Pieces of the lower of which each is known to end a mount that is asked for it: after that many nothing is asked for.
MOST_LOST = 10_000
#: How often a request is made anew after the mount that it was made of had ended before it came there.
ATTEMPTS = 10
#: Seconds that requests wait for a lower mount to come back when none is left: the session's keeper mounts it again.
#: While it is at that it holds a lock on that pipe, and requests wait longer. Without the pipe the session is ending.
REVIVAL = 20
#: Seconds between two looks whether a dead one is back.
REVIVAL_LOOK = 0.25
#: What a lower mount answers when its server has died: to requests after that, and to those that it died over.
DEAD = (errno.ENOTCONN, errno.ECONNABORTED)
#: Seconds between two looks whether others are done with a mount that one request needs alone.
TURN_LOOK = 0.01

#: What of the lower a request is for: a path, and either a window or the name of a system call and its other arguments.
Piece = tuple[Any, ...]

log = logging.getLogger("cowfs")


class Mounts:
    """One or several mounts of the same archive, by a Borg of its own each.

    Borg ends when content is missing, damaged, or not where it was (after C(borg compact), where a new Borg finds it).
    So a piece of the lower over which a mount has died is asked for once more, of a mount that was made after that, and
    alone. Should that die as well, the piece is lost: it gives an error from then on, and the rest is served.
    """

    def __init__(self, mounts: list[str], resume: str | None = None) -> None:
        self.readers = [Reader(mount) for mount in mounts]
        self.resume = resume
        self.died = trio.Event()
        self.died_at = -math.inf
        self.none_since = math.inf  # when the last of the mounts has died
        self.suspects: dict[Piece, float] = {}  # what mounts died over, perhaps, and when
        self.lost: set[Piece] = set()
        self.on_trial, self.trials = trio.open_memory_channel(math.inf)

    async def call(self, function: Callable[..., Any], path: bytes, *names: bytes) -> Any:
        """function of a mount's root and a path below it, in a worker thread; a mount that lives answers."""
        piece = (path, function.__name__, names)
        self.check(piece)
        for _attempt in range(ATTEMPTS):
            if piece in self.suspects:
                trial = Request(piece, lambda reader: reader.call(function, path, *names))
                self.on_trial.send_nowait(trial)
                return await trial.result()
            reader = await self._free_one()
            if reader is None:
                break
            born = reader.born
            reader.calls += 1
            try:
                return await in_thread(reader.call, function, path, *names)
            except OSError as error:
                self.judge(reader, born, error, piece)
            finally:
                reader.calls -= 1
        raise LowerError(errno.EIO, "no lower mount is left")

    async def _free_one(self) -> Reader | None:
        """A mount that no request needs alone, or None when none lives any more."""
        while await self.some_alive():
            free = [reader for reader in self.alive() if not reader.reserved]
            if free:
                return free[0]
            await trio.sleep(TURN_LOOK)
        return None

    def check(self, piece: Piece) -> None:
        """Refuse what is lost."""
        if piece in self.lost or len(self.lost) >= MOST_LOST:
            raise LostError

    def judge(self, reader: Reader, born: float, error: OSError, piece: Piece, alone: bool = False) -> None:
        """What an error of a mount means. Returns where the request is to be made anew, and raises where not."""
        if not reader.died(error, born):
            self.suspects.pop(piece, None)
            raise LostError if error.errno == errno.EIO else LowerError(error.errno, error.strerror)
        self.died.set()
        self.died_at = monotonic()
        if error.errno != errno.ECONNABORTED:  # it had died before
            return
        for one in self.readers:
            one.forget_plans(piece[0])
        if alone:
            self.suspects.pop(piece, None)
            self.lost.add(piece)
            raise LostError
        if len(self.suspects) < MOST_LOST:
            self.suspects.setdefault(piece, self.died_at)

    async def try_suspects(self) -> None:
        """One after the other, each alone with a mount."""
        async for request in self.trials:
            try:
                self.check(request.piece)
                request.value = await self._try(request)
            except OSError as error:
                request.error = error
            request.settle()

    async def _try(self, request: Request) -> Any:
        for _attempt in range(ATTEMPTS):
            reader = await self._reserve(self.suspects.get(request.piece, -math.inf))
            if reader is None:
                break
            born = reader.born
            try:
                value = await in_thread(request.make, reader)
                self.suspects.pop(request.piece, None)
                return value
            except OSError as error:
                self.judge(reader, born, error, request.piece, alone=True)
            finally:
                self._release(reader)
        raise LowerError(errno.EIO, "its mount has ended, and none has come in its place")

    async def _reserve(self, since: float) -> Reader | None:
        """A mount that was made after that time, for one request alone; None where none comes.

        Where nobody makes new ones, one that is left.
        """
        while await self.some_alive():
            fresh = [reader for reader in self.alive() if reader.born > since or not self._is_attended()]
            if fresh:
                reader = min(fresh, key=lambda one: one.load)
                reader.reserved = True
                while reader.busy or reader.calls:
                    await trio.sleep(TURN_LOOK)
                if not reader.dead:
                    return reader
                self._release(reader)
            elif monotonic() > max(since, self.died_at) + REVIVAL and not self._is_being_mounted():
                break
            await trio.sleep(REVIVAL_LOOK)
        return None

    def _release(self, reader: Reader) -> None:
        reader.reserved = False
        reader.wake.set()

    async def some_alive(self) -> bool:
        """Whether a mount lives, or has come back in time."""
        while not self.alive():
            if self.none_since == math.inf:
                self.none_since = monotonic()
                self._ask_for_one()
            is_over = monotonic() > self.none_since + REVIVAL and not self._is_being_mounted()
            if is_over or (self.resume is not None and not os.path.lexists(self.resume)):
                return False
            await trio.sleep(REVIVAL_LOOK)
        return True

    def _is_attended(self) -> bool:
        """Whether somebody makes a new mount when one has ended."""
        try:
            self._resume_pipe().close()
        except OSError:
            return False
        return True

    def _ask_for_one(self) -> None:
        """Tell the session's keeper, who ends mounts that are not read for long, that one is needed."""
        with contextlib.suppress(OSError), self._resume_pipe() as pipe:  # where nobody listens, nobody comes
            pipe.write(b"!")

    def _is_being_mounted(self) -> bool:
        try:
            with self._resume_pipe() as pipe:
                fcntl.flock(pipe, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:
            pass
        return False

    def _resume_pipe(self) -> Any:
        flags = os.O_WRONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC
        return os.fdopen(os.open(self.resume or "", flags), "wb", buffering=0)

    async def revive(self) -> None:
        """Take dead mounts into use again when they are back."""
        while True:
            await self.died.wait()
            self.died = trio.Event()
            while any(reader.dead for reader in self.readers):
                for reader in self.readers:
                    found = await in_thread(reader.successor) if reader.dead else None
                    if found is not None:
                        reader.revive(*found)
                        self.none_since = math.inf
                await trio.sleep(REVIVAL_LOOK)

    def alive(self) -> list[Reader]:
        return [reader for reader in self.readers if not reader.dead]


class Reader:
    """One lower mount: serves one request at a time, because Borg would decode a chunk again for each of several.

    No link of it is followed, and no pipe waited for. Mounts need not be as alike as they are said to be: whoever can
    write to the repository may give each of them another archive, in which a directory of the first is a link.
    """

    def __init__(self, mount: str) -> None:
        self.mount = mount
        self.files = FileTable()
        self.demands: collections.deque[Any] = collections.deque()
        self.plans: collections.deque[Any] = collections.deque()
        self.wake = trio.Event()
        self.busy = self.dead = self.reserved = False
        self.calls = 0  # requests for names and attributes under way
        self.born = -math.inf  # when this mount came in the place of another one
        self.owes_plan = False
        # The mount's root is held: by its path a mount that is gone would look like an empty directory.
        self.root = os.open(mount, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        self.device = os.fstat(self.root).st_dev
        self.retired: tuple[FileTable, int] | None = None

    def next(self) -> Any:
        """What is not planned first; but where somebody waits for a plan, plans have every second turn."""
        is_awaited = self.owes_plan and any(plan.is_awaited for plan in self.plans)
        fetch = self.plans.popleft() if is_awaited or not self.demands else self.demands.popleft()
        self.owes_plan = not is_awaited
        return fetch

    @property
    def load(self) -> int:
        return len(self.demands) + self.busy

    def died(self, error: OSError, born: float) -> bool:
        """Whether the error says that the server of this mount, or its predecessor, has died, which is remembered."""
        if error.errno not in DEAD:
            return False
        if not self.dead and self.born == born:
            self.dead = True
            log.warning("the lower mount %s is gone: %s", self.mount, error.strerror)
        return True

    def successor(self) -> tuple[int, int] | None:
        """Root and device of what is mounted now where the dead mount was, or None. Runs in a worker thread."""
        try:
            root = os.open(self.mount, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            device = os.fstat(root).st_dev
            if device not in (self.device, os.stat(os.path.dirname(self.mount)).st_dev):
                return root, device
        except OSError:
            pass
        os.close(root)
        return None

    def revive(self, root: int, device: int) -> None:
        """Go on with a successor. What the dead mount was read through stays open until there is another one: a worker
        thread may be using it, and its descriptors' numbers must not come to mean other files."""
        if self.retired is not None:
            self.retired[0].clear()
            os.close(self.retired[1])
        self.retired = self.files, self.root
        self.files, self.root, self.device = FileTable(), root, device
        self.dead, self.born = False, monotonic()
        log.info("the lower mount %s is back", self.mount)

    def call(self, function: Callable[..., Any], path: bytes, *names: bytes) -> Any:
        """Return what function says of path. Runs in a worker thread, beside others."""
        with self._told_apart():
            return function(self.root, os.fsdecode(path), *names)

    def fetch(self, path: bytes, index: int) -> bytes:
        """Runs in a worker thread, one at a time."""
        with self._told_apart():
            return self._fetched(path, index)

    @contextlib.contextmanager
    def _told_apart(self) -> Iterator[None]:
        """Of a mount that is dead all errors are those of a dead one."""
        try:
            yield
        except OSError as error:
            if error.errno == errno.EIO:
                os.statvfs(self.root)
            raise

    def _fetched(self, path: bytes, index: int) -> bytes:
        try:
            # Direct: what is fetched is kept here, so a second copy in the page cache of the lower mount is waste.
            return self._fetch(path, index, os.O_DIRECT)
        except OSError as error:
            if error.errno != errno.EINVAL:  # FUSE reads directly into any buffer; others want it aligned, or cannot.
                raise
        self.files.close(path)
        return self._fetch(path, index, 0)

    def _fetch(self, path: bytes, index: int, flags: int) -> bytes:
        files, root = self.files, self.root  # taken together: they change when the mount is replaced

        def opened() -> int:
            return open_below(root, os.fsdecode(path), os.O_RDONLY | os.O_NONBLOCK | flags)

        return os.pread(files.get(path, opened), WINDOW, index * WINDOW)

    def forget_plans(self, path: bytes) -> None:
        """Do not read ahead in a file over which a mount may have died: the next windows may be of the same chunk."""
        for plan in [plan for plan in self.plans if plan.piece[0] == path and not plan.is_awaited]:
            self.plans.remove(plan)
            plan.give_up()


class Request:
    """Something to be asked of a lower mount: by make(), which runs in a worker thread."""

    __slots__ = ("piece", "make", "done", "value", "error")

    def __init__(self, piece: Piece, make: Callable[[Reader], Any]) -> None:
        self.piece, self.make = piece, make
        self.done = trio.Event()
        self.value: Any = None
        self.error: OSError | None = None

    async def result(self) -> Any:
        await self.done.wait()
        if self.error is not None:
            raise self.error.with_traceback(None)  # there may be several who wait
        return self.value

    def settle(self) -> None:
        """Let those who wait have the value or the error."""
        self.done.set()
