# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""One directory in the layer and its twin on an ordinary file system: each operation is done to both and compared.

An operation is plain data (:class:`Op`), so a program of them can be made by hypothesis or by a random generator, be
printed, shrunk and run again. Numbers in it are taken modulo what there is to choose from: every program can be run.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import mmap
import os
import random
import stat
import time
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.support.layer import forget

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

__all__ = ["KINDS", "Op", "Twins", "operation", "populate"]

BLOCK, WINDOW = 4096, 1 << 20

#: Archived files: name, size, whether it is data throughout or in a few places only.
ARCHIVED = (
    ("empty", 0, True),
    ("one", 1, True),
    ("block-1", BLOCK - 1, True),
    ("block", BLOCK, True),
    ("block+1", BLOCK + 1, True),
    ("window+777", WINDOW + 777, False),
    ("large", 3 * WINDOW + 5, False),
    ("holes", WINDOW // 4, False),
    ("linked", 5000, True),
    ("d/x", 6000, True),
    ("d/inner/y", 3 * BLOCK, True),
)
DIRECTORIES = ("", "d/", "d/inner/", "new/", "new/inner/")
LEAVES = ("x", "y", "inner", "z", "d", "new")
NAMES = (
    *3 * tuple(name for name, _size, _full in ARCHIVED),  # so that they are chosen more often
    *("link", "symlink"),
    *(directory + leaf for directory in DIRECTORIES for leaf in LEAVES),
)
FLAGS = (
    os.O_RDWR,
    os.O_RDONLY,
    os.O_WRONLY,
    os.O_RDWR | os.O_APPEND,
    os.O_RDWR | os.O_CREAT,
    os.O_RDWR | os.O_CREAT | os.O_EXCL,
    os.O_RDWR | os.O_TRUNC,
    os.O_RDWR | os.O_CREAT | os.O_TRUNC,
    os.O_WRONLY | os.O_CREAT | os.O_APPEND,
)
MODES = (0o600, 0o644, 0o700, 0o4755, 0o2755, 0o1777, 0o444, 0)
#: Slots for open files; what is open in them at first.
OPEN = ("block+1", "window+777", "large", "d/inner/y")
SLOTS = len(OPEN)
OFFSETS = (
    0,
    512,
    BLOCK,
    2 * BLOCK,
    4 * BLOCK,
    WINDOW,
    WINDOW + 777,
    2 * WINDOW,
    3 * WINDOW,
    3 * WINDOW + 5,
    5 * WINDOW,
)
NUDGES = (0, 0, 0, 1, -1, 7, -777, 2048)
LENGTHS = (1, 7, 512, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK, 5 * BLOCK, 128 << 10, WINDOW + 9)
NOREPLACE, EXCHANGE = 1, 2
#: Random bytes; whatever is written is a piece of it, so that misplaced data shows.
DATA = random.Random(4096).randbytes(8 * WINDOW + 65536)
LIBC = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class Op:
    """One operation: on the file of a slot or of a name, as its kind says. Printed without what is 0."""

    kind: str
    slot: int = 0
    name: int = 0
    other: int = 0
    offset: int = 0
    length: int = 0
    variant: int = 0

    def __repr__(self) -> str:
        said = [repr(self.kind)]
        for field in fields(self)[1:]:
            value = getattr(self, field.name)
            if value:
                said.append(f"{field.name}={value}")
        return f"Op({', '.join(said)})"

    def _repr_pretty_(self, printer: Any, _cycle: bool) -> None:  # hypothesis asks for it
        printer.text(repr(self))


#: Kinds of operations and how often they are chosen. `nothing` is first: it is what shrinking ends with.
KINDS = {
    "nothing": 1,
    "open": 12, "close": 3, "pread": 10, "pwrite": 20, "append": 3, "read_file": 8, "direct_write": 8, "direct_read": 6,
    "mmap_write": 6, "mmap_read": 3, "ftruncate": 8, "truncate": 4, "fsync": 3, "fdatasync": 1, "fstat": 3, "stat": 6,
    "readlink": 1, "listdir": 4, "mkdir": 4, "rmdir": 4, "unlink": 6, "rename": 10, "link": 4, "symlink": 2, "chmod": 3,
    "chown": 2, "utime": 3, "copy_range": 2, "drop": 5, "compare": 1,
}  # fmt: skip
KIND_LIST = tuple(kind for kind, weight in KINDS.items() for _share in range(weight))


def operation(integer: Callable[[int, int], int]) -> Op:
    """An operation made from numbers: `integer(low, high)` gives one, both ends included."""

    def one_of(choices: Sequence[int]) -> int:
        return choices[integer(0, len(choices) - 1)]

    kind = KIND_LIST[integer(0, len(KIND_LIST) - 1)]
    names, numbers = kind in _ON_NAMES, kind in _WITH_NUMBERS
    return Op(
        kind,
        slot=integer(0, SLOTS - 1) if kind in _ON_SLOTS else 0,
        name=integer(0, len(NAMES) - 1) if names else 0,
        other=integer(0, len(NAMES) - 1) if kind in _ON_TWO else 0,
        offset=max(0, one_of(OFFSETS) + one_of(NUDGES)) if numbers else 0,
        length=one_of(LENGTHS) if numbers else 0,
        variant=integer(0, 15),
    )


_WITH_NUMBERS = {"pread", "pwrite", "append", "direct_write", "direct_read", "mmap_write", "mmap_read"}
_WITH_NUMBERS |= {"ftruncate", "truncate", "copy_range"}
_ON_SLOTS = {"open", "close", "pread", "pwrite", "append", "ftruncate", "fsync", "fdatasync", "fstat"}
_ON_SLOTS |= {"mmap_write", "mmap_read", "copy_range"}
_ON_NAMES = KINDS.keys() - _ON_SLOTS - {"nothing", "drop", "compare"} | {"open"}
_ON_TWO = {"rename", "link", "symlink", "copy_range"}


def populate(directory: Path) -> None:
    """Make the archived files. Sizes are odd on purpose, times and modes too; two names are one file."""
    (directory / "d" / "inner").mkdir(parents=True)
    for number, (name, size, full) in enumerate(ARCHIVED):
        with (directory / name).open("wb") as file:
            if full:
                file.write(_data(number, size))
            else:
                file.truncate(size)
                for start in (0, 5 * BLOCK, WINDOW - BLOCK - 3, 2 * WINDOW - 9, size - 100):
                    file.seek(start)
                    file.write(_data(number + start, max(0, min(2 * BLOCK + 10, size - start))))
        (directory / name).chmod(0o600 + number)
        os.utime(directory / name, ns=(10**9 * number, 10**9 * (number + 1) + 7))
    os.link(directory / "linked", directory / "link")
    (directory / "symlink").symlink_to("block+1")
    for name in ("d/inner", "d", "."):
        os.utime(directory / name, ns=(10**15, 10**15))


class Twins:
    """`layer` is a directory of the mounted layer, `plain` its twin. Raises AssertionError where they differ."""

    def __init__(self, layer: Path, plain: Path) -> None:
        self.sides = (_Side(layer, layered=True), _Side(plain, layered=False))
        self.done: list[Op] = []
        self.begun = time.time_ns()

    def __enter__(self) -> Twins:
        return self

    def __exit__(self, *_: object) -> None:
        for side in self.sides:
            side.close_all()

    def run(self, op: Op) -> None:
        """Do it to both."""
        self.done.append(op)
        layered, plain = (self._outcome(side, op) for side in self.sides)
        assert layered == plain, f"{op!r}: {_difference(layered, plain)}"

    def compare(self, *, cold: bool) -> None:
        """Compare everything; cold: after the kernel has forgotten what it held of the layer."""
        self.run(Op("drop", variant=int(not cold)))
        self.run(Op("compare"))

    def _outcome(self, side: _Side, op: Op) -> Any:
        try:
            outcome = getattr(side, op.kind)(op)
        except OSError as error:
            return errno.errorcode.get(error.errno or 0, str(error))
        return self._without_fresh_times(outcome)

    def _without_fresh_times(self, outcome: Any) -> Any:
        """Times of before the test must be equal; what was changed in it has one of the test in both."""
        if isinstance(outcome, _State) and outcome.mtime >= self.begun - 10**9:
            return outcome.at_unknown_time()
        if isinstance(outcome, dict):
            return {key: self._without_fresh_times(value) for key, value in outcome.items()}
        return outcome


@dataclass(frozen=True)
class _State:
    """What must be equal of two files' attributes. Of directories, sizes and link counts may differ."""

    mode: int
    links: int
    uid: int
    gid: int
    size: int
    mtime: int  # nanoseconds, 0 for unknown
    content: Any = None

    @classmethod
    def of(cls, found: os.stat_result, content: Any = None) -> _State:
        directory = stat.S_ISDIR(found.st_mode)
        links, size = (0, 0) if directory else (found.st_nlink, found.st_size)
        return cls(found.st_mode, links, found.st_uid, found.st_gid, size, found.st_mtime_ns, content)

    def at_unknown_time(self) -> _State:
        return _State(self.mode, self.links, self.uid, self.gid, self.size, 0, self.content)


class _Side:
    """One of the twins. The methods named as KINDS do an operation and return what the other must return too."""

    def __init__(self, root: Path, *, layered: bool) -> None:
        self.root = root
        self.layered = layered
        self.slots = {slot: os.open(root / name, os.O_RDWR) for slot, name in enumerate(OPEN)}

    def nothing(self, op: Op) -> None:
        pass

    # -- open files

    def open(self, op: Op) -> None:
        self.close(op)
        self.slots[op.slot] = os.open(self._path(op.name), FLAGS[op.variant % len(FLAGS)] | os.O_NOFOLLOW, 0o640)

    def close(self, op: Op) -> None:
        descriptor = self.slots.pop(op.slot, None)
        if descriptor is not None:
            os.close(descriptor)

    def pread(self, op: Op) -> bytes:
        return os.pread(self._slot(op), op.length, op.offset)

    def pwrite(self, op: Op) -> int:
        return os.pwrite(self._slot(op), _data(op.offset + op.variant, op.length), op.offset)

    def append(self, op: Op) -> int:
        descriptor = self._slot(op)
        os.lseek(descriptor, 0, os.SEEK_END)
        return os.write(descriptor, _data(op.offset + op.variant, op.length))

    def mmap_write(self, op: Op) -> int:
        with self._mapped(op) as (view, start, stop):
            view[start:stop] = _data(op.offset + op.variant, stop - start)
            if op.variant % 2:
                view.flush()
            return stop - start

    def mmap_read(self, op: Op) -> bytes:
        with self._mapped(op) as (view, start, stop):
            return view[start:stop]

    def ftruncate(self, op: Op) -> None:
        _resize(self._slot(op), op.offset)

    def fsync(self, op: Op) -> None:
        os.fsync(self._slot(op))

    def fdatasync(self, op: Op) -> None:
        os.fdatasync(self._slot(op))

    def fstat(self, op: Op) -> _State:
        return _State.of(os.fstat(self._slot(op)))

    def copy_range(self, op: Op) -> int:
        source, target = self._slot(op), self.slots.get(op.other % SLOTS)
        if target is None or target == source:
            return 0
        return os.copy_file_range(source, target, op.length, op.offset, op.variant * 1000)

    # -- names

    def read_file(self, op: Op) -> bytes:
        return self._path(op.name).read_bytes()

    def direct_write(self, op: Op) -> Any:
        """Past the page cache; the twin does the same through it. FUSE lets such requests begin and end anywhere."""
        return self._direct(op, os.pwritev)

    def direct_read(self, op: Op) -> Any:
        return self._direct(op, os.preadv)

    def truncate(self, op: Op) -> None:
        _resize(self._path(op.name), op.offset)

    def stat(self, op: Op) -> _State:
        return _State.of(os.lstat(self._path(op.name)))

    def readlink(self, op: Op) -> str:
        return os.readlink(self._path(op.name))

    def listdir(self, op: Op) -> list[str]:
        return sorted(os.listdir(self._path(op.name)))

    def mkdir(self, op: Op) -> None:
        self._path(op.name).mkdir(0o750)

    def rmdir(self, op: Op) -> None:
        self._path(op.name).rmdir()

    def unlink(self, op: Op) -> None:
        self._path(op.name).unlink()

    def rename(self, op: Op) -> None:
        flags = {1: NOREPLACE, 2: EXCHANGE, 3: EXCHANGE}.get(op.variant, 0)
        old, new = os.fsencode(self._path(op.name)), os.fsencode(self._path(op.other))
        if LIBC.renameat2(-100, old, -100, new, flags):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))

    def link(self, op: Op) -> None:
        os.link(self._path(op.name), self._path(op.other), follow_symlinks=False)

    def symlink(self, op: Op) -> None:
        os.symlink(NAMES[op.name], self._path(op.other))

    def chmod(self, op: Op) -> None:
        self._path(op.name).chmod(MODES[op.variant % len(MODES)])

    def chown(self, op: Op) -> None:
        if os.geteuid() == 0:
            os.chown(self._path(op.name), op.variant - 1, 1000 + op.variant, follow_symlinks=False)

    def utime(self, op: Op) -> None:
        times = (10**9 * (op.variant + 1), 10**12 + op.variant)
        os.utime(self._path(op.name), ns=times, follow_symlinks=False)

    # -- the whole

    def drop(self, op: Op) -> None:
        """The layer's files leave the kernel's caches: all, or those of the slots only."""
        if self.layered:
            paths = [] if op.variant % 2 else [path for path, state in self._walk() if stat.S_ISREG(state.st_mode)]
            forget([*paths, *self.slots.values()])

    def compare(self, op: Op) -> dict[str, _State]:
        tree = {
            str(path.relative_to(self.root)): _State.of(state, _content(path, state)) for path, state in self._walk()
        }
        for slot, descriptor in self.slots.items():
            tree[f"slot {slot}"] = _State.of(os.fstat(descriptor), _read_all(descriptor))
        return tree

    def close_all(self) -> None:
        for slot in list(self.slots):
            self.close(Op("close", slot=slot))

    # -- helpers

    def _path(self, name: int) -> Path:
        return self.root / NAMES[name % len(NAMES)]

    def _slot(self, op: Op) -> int:
        if op.slot not in self.slots:
            raise OSError(errno.EBADF, "nothing in this slot")
        return self.slots[op.slot]

    def _direct(self, op: Op, call: Callable[[int, list[Any], int], int]) -> Any:
        flags = os.O_RDWR | os.O_NOFOLLOW | (os.O_DIRECT if self.layered else 0)
        unit = BLOCK if op.variant % 2 else 1
        length = max(1, op.length // unit) * unit
        with contextlib.ExitStack() as opened, mmap.mmap(-1, length) as buffer:
            descriptor = os.open(self._path(op.name), flags)
            opened.callback(os.close, descriptor)
            buffer[:] = _data(op.offset + op.variant, length)
            done = call(descriptor, [buffer], op.offset // unit * unit)
            return done, buffer[:done]

    @contextlib.contextmanager
    def _mapped(self, op: Op) -> Iterator[tuple[mmap.mmap, int, int]]:
        """A shared mapping of the slot's file, and the part of the operation's range that lies within the file."""
        descriptor = self._slot(op)
        size = os.fstat(descriptor).st_size if stat.S_ISREG(os.fstat(descriptor).st_mode) else 0
        start, stop = min(op.offset, size), min(op.offset + op.length, size)
        if start == stop:
            raise OSError(errno.EINVAL, "nothing to map")
        with mmap.mmap(descriptor, size) as view:
            yield view, start, stop

    def _walk(self) -> Iterator[tuple[Path, os.stat_result]]:
        for directory, names, files in os.walk(self.root):
            for name in (*names, *files):
                path = Path(directory, name)
                yield path, path.lstat()


def _resize(file: int | Path, size: int) -> None:
    state = os.stat(file)
    if stat.S_ISREG(state.st_mode) and state.st_size == size:
        return  # What this does to the file's time differs between file systems.
    os.truncate(file, size)


def _content(path: Path, state: os.stat_result) -> Any:
    if stat.S_ISLNK(state.st_mode):
        return os.readlink(path)
    if stat.S_ISDIR(state.st_mode):
        return sorted(os.listdir(path))
    return path.read_bytes()


def _read_all(descriptor: int) -> bytes | str:
    try:
        return os.pread(descriptor, 1 << 30, 0)
    except OSError as error:  # opened for writing only
        return str(error)


def _data(seed: int, length: int) -> bytes:
    start = seed * 7919 % (len(DATA) - length) if length < len(DATA) else 0
    return DATA[start : start + length]


def _difference(layered: Any, plain: Any) -> str:
    """Where the layer's outcome first differs from its twin's."""
    if isinstance(layered, dict) and isinstance(plain, dict):
        names = [name for name in sorted({*layered, *plain}) if layered.get(name) != plain.get(name)]
        return "; ".join(f"{name}: {_difference(layered.get(name), plain.get(name))}" for name in names[:5])
    if isinstance(layered, _State) and isinstance(plain, _State):
        different = [
            field.name for field in fields(_State) if getattr(layered, field.name) != getattr(plain, field.name)
        ]
        return ", ".join(f"{name} {_difference(getattr(layered, name), getattr(plain, name))}" for name in different)
    if isinstance(layered, bytes) and isinstance(plain, bytes):
        first = next((at for at, pair in enumerate(zip(layered, plain, strict=False)) if len({*pair}) == 2), len(plain))
        return (
            f"byte {first} of {len(layered)} is …{layered[first : first + 8].hex()}…, "
            f"it should be …{plain[first : first + 8].hex()}… of {len(plain)}"
        )
    return f"the layer says {layered!r:.200}, it should be {plain!r:.200}"
