# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The copy-on-write layer in particular situations; test_cowfs_model.py has operations at random.

What is read back is read cold: after the kernel has dropped what it held, so that the layer itself answers.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import faulthandler
import fcntl
import hashlib
import mmap
import multiprocessing
import os
import random
import signal
import stat
import struct
import subprocess
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._borg.names import write_names
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._borg.repository import (
    Repository as BorgRepository,
)

from tests.integration.conftest import needs_root
from tests.support.clock import PATIENCE, Clock, wait_until
from tests.support.cluster import DATABASE, Cluster
from tests.support.forked import forked
from tests.support.layer import Layer, drop_names, forget, is_mounted, wait_for_mounts
from tests.support.repository import Repository
from tests.support.user import ordinary_user

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from multiprocessing.synchronize import Event

pytestmark = pytest.mark.on_disk  # holes, rooms and what is written back are matters of a file system

BLOCK, WINDOW = 4096, 1 << 20
DATA = random.Random(1).randbytes(4 * WINDOW)
MEMORY_LIMIT = 150 << 20


@pytest.fixture
def lower(place: Path) -> Path:
    directory = place / "lower"
    directory.mkdir()
    return directory


@pytest.fixture
def layer(place: Path, lower: Path) -> Iterator[Layer]:
    """The layer over `lower`, which the test fills before it looks: nothing is known of a name until then."""
    with Layer(lower=[lower], directory=place / "layer") as mounted:
        yield mounted


@pytest.fixture
def memory() -> Iterator[Path]:
    """A directory of a memory file system, where it does not matter how much is written."""
    with tempfile.TemporaryDirectory(prefix="ir-", dir="/dev/shm") as directory:
        yield Path(directory)


def cold(path: Path) -> bytes:
    """Content of a file as the layer has it."""
    forget([path])
    return path.read_bytes()


# -- names


def test_names_below_a_renamed_directory_are_still_found(layer: Layer, lower: Path) -> None:
    (lower / "a" / "b" / "c").mkdir(parents=True)
    (lower / "a" / "b" / "c" / "deep").write_bytes(DATA)
    (lower / "a" / "plain").write_text("plain")
    (layer.root / "a").rename(layer.root / "moved")
    (layer.root / "moved" / "b").rename(layer.root / "b")
    drop_names()
    assert sorted(os.listdir(layer.root)) == ["b", "moved"]
    assert os.listdir(layer.root / "moved") == ["plain"]
    assert cold(layer.root / "b" / "c" / "deep") == DATA
    assert not (layer.root / "a").exists()


def test_a_directory_made_again_is_empty(layer: Layer, lower: Path) -> None:
    (lower / "d").mkdir()
    (lower / "d" / "old").write_text("old")
    for _turn in range(2):
        with pytest.raises(OSError, match="not empty"):
            (layer.root / "d").rmdir()
        for name in os.listdir(layer.root / "d"):
            (layer.root / "d" / name).unlink()
        (layer.root / "d").rmdir()
        drop_names()
        assert os.listdir(layer.root) == []
        (layer.root / "d").mkdir()
        drop_names()
        assert os.listdir(layer.root / "d") == []
        assert not (layer.root / "d" / "old").exists()
        (layer.root / "d" / "new").touch()


def test_a_file_may_take_the_place_of_a_directory_and_back(layer: Layer, lower: Path) -> None:
    (lower / "name").mkdir()
    (layer.root / "name").rmdir()
    (layer.root / "name").write_text("a file")
    assert cold(layer.root / "name") == b"a file"
    (layer.root / "name").unlink()
    (layer.root / "name").mkdir()
    (layer.root / "name" / "below").write_text("below")
    assert cold(layer.root / "name" / "below") == b"below"


def test_a_file_made_again_has_nothing_of_the_old_one(layer: Layer, lower: Path) -> None:
    (lower / "f").write_bytes(DATA)
    (lower / "f").chmod(0o604)
    (layer.root / "f").unlink()
    assert not (layer.root / "f").exists()
    with (layer.root / "f").open("wb") as file:
        file.truncate(len(DATA))
        os.pwrite(file.fileno(), b"new", 2 * BLOCK + 5)
    content = cold(layer.root / "f")
    assert content[2 * BLOCK + 5 : 2 * BLOCK + 8] == b"new"
    assert content.strip(b"\0") == b"new"
    assert len(content) == len(DATA)


def test_what_was_cut_off_never_comes_back(layer: Layer, lower: Path) -> None:
    for size in (0, 1, BLOCK - 1, BLOCK, BLOCK + 1, WINDOW + 3):
        (lower / f"{size}").write_bytes(DATA)
        with (layer.root / f"{size}").open("r+b") as file:
            file.truncate(size)
            file.truncate(len(DATA))
            os.pwrite(file.fileno(), b"end", len(DATA) - 3)
        assert cold(layer.root / f"{size}") == DATA[:size] + bytes(len(DATA) - size - 3) + b"end"


def test_long_and_odd_names(layer: Layer, lower: Path) -> None:
    longest = os.fsencode(layer.root) + b"/" + b"n" * 255
    odd = os.fsencode(layer.root) + b"/\xff\xfe line\nbreak \\ \xe4"
    (lower / os.fsdecode(os.path.basename(odd))).write_text("odd")
    with open(longest, "w") as file:
        file.write("long")
    with pytest.raises(OSError, match="too long"):
        os.mkdir(longest + b"n")
    with pytest.raises(OSError, match="too long"):
        os.rename(longest, longest + b"n")
    os.rename(odd, odd + b"\x80")
    drop_names()
    assert sorted(os.listdir(os.fsencode(layer.root))) == sorted(
        [os.path.basename(longest), os.path.basename(odd) + b"\x80"]
    )
    assert cold(Path(os.fsdecode(odd + b"\x80"))) == b"odd"
    assert not layer.complaints()


def test_archived_hard_links_are_one_file(layer: Layer, lower: Path) -> None:
    (lower / "one").write_bytes(DATA[:5000])
    (lower / "d").mkdir()
    os.link(lower / "one", lower / "d" / "two")
    os.link(lower / "one", lower / "three")
    with (layer.root / "d" / "two").open("r+b") as file:
        file.write(b"changed")
    assert cold(layer.root / "one") == b"changed" + DATA[7:5000]
    assert (layer.root / "three").stat().st_ino == (layer.root / "one").stat().st_ino
    (layer.root / "one").unlink()
    drop_names()
    assert (layer.root / "three").stat().st_nlink == 2
    (layer.root / "three").unlink()
    assert cold(layer.root / "d" / "two") == b"changed" + DATA[7:5000]
    (layer.root / "d" / "two").unlink()
    drop_names()
    assert os.listdir(layer.root) == ["d"]
    assert layer.changes() == []


def test_files_that_are_linked_and_removed_at_once_leave_nothing(layer: Layer, lower: Path) -> None:
    (lower / "archived").write_bytes(DATA)
    for number in range(200):
        name, other = layer.root / f"t{number}", layer.root / f"u{number}"
        name.write_bytes(DATA[: 3 * BLOCK])
        os.link(name, other)
        name.unlink()
        assert other.read_bytes() == DATA[: 3 * BLOCK]
        other.unlink()
    with (layer.root / "archived").open("r+b") as file:
        os.pwrite(file.fileno(), b"x" * 10, 0)
        os.fsync(file.fileno())
        (layer.root / "archived").unlink()
        assert len(layer.changes()) == 1
        forget([file.fileno()])
        file.seek(0)
        assert file.read() == b"x" * 10 + DATA[10:]  # for as long as it is open
    wait_for_mounts(lambda: layer.changes() == [])


def test_renaming_over_an_open_file_leaves_its_readers_the_old_content(layer: Layer, lower: Path) -> None:
    (lower / "f").write_bytes(DATA)
    with (layer.root / "f").open("r+b") as old:
        os.pwrite(old.fileno(), b"old", 0)
        (layer.root / "new").write_bytes(b"new")
        (layer.root / "new").rename(layer.root / "f")
        forget([old.fileno()])
        assert os.pread(old.fileno(), 2 * WINDOW, 0) == b"old" + DATA[3 : 2 * WINDOW]
        assert cold(layer.root / "f") == b"new"


def test_listing_a_large_directory_that_changes(layer: Layer, lower: Path) -> None:
    count = 10_500
    (lower / "d").mkdir()
    for number in range(count):
        (lower / "d" / f"{number:05}").touch()
    directory = layer.root / "d"
    (directory / "subdirectory").mkdir()
    with os.scandir(directory) as entries:
        seen = [next(entries).name for _turn in range(10)]
        removed = {f"{number:05}" for number in range(0, count, 3)}
        for name in removed:
            (directory / name).unlink()
        (directory / "00001").rename(directory / "renamed")
        (directory / "00002").rename(layer.root / "replacing")
        (directory / "subdirectory").rename(layer.root / "subdirectory")
        os.link(directory / "00004", layer.root / "linked")
        (directory / "00004").unlink()
        (layer.root / "replacing").rename(directory / "00005")
        assert len(os.listdir(directory)) == count - len(removed) - 2  # Another listing does not disturb this one.
        for position, entry in enumerate(entries):
            seen.append(entry.name)
            if position % 200 == 0:
                drop_names()
    assert len(seen) == len(set(seen))
    gone = removed | {"00001", "00002", "00004", "subdirectory"}
    stayed = {f"{number:05}" for number in range(count)} - gone
    assert stayed <= set(seen)
    assert [name for name in gone if (directory / name).exists()] == []
    assert set(os.listdir(directory)) == stayed | {"renamed"}
    assert (layer.root / "subdirectory").is_dir()
    assert not layer.complaints()


def test_a_directory_lists_itself_and_its_parent(layer: Layer, lower: Path) -> None:
    (lower / "d" / "e").mkdir(parents=True)
    for number in range(300):
        (lower / "d" / f"{number}").touch()
    (layer.root / "made").mkdir()
    for _turn in range(2):
        assert {".", ".."} < set(listed(layer.root / "d"))
        assert listed(layer.root / "d")[:2] == [".", ".."]
        assert len(listed(layer.root / "d")) == 303
        assert listed(layer.root / "made") == [".", ".."]
        drop_names()
    inode = (layer.root / "d").stat().st_ino
    assert os.stat(layer.root / "d" / "e" / "..").st_ino == os.stat(layer.root / "d" / ".").st_ino == inode
    (layer.root / "made").rmdir()


def listed(directory: Path) -> list[str]:
    """Names in the order in which the kernel gives them; Python leaves two of them out."""
    done = subprocess.run(["ls", "-f", directory], stdout=subprocess.PIPE, text=True, check=True, timeout=60)
    return done.stdout.split()


# -- content


def test_zeros_are_holes_where_there_is_nothing_else(layer: Layer, lower: Path) -> None:
    """As servers write their logs ahead."""
    (lower / "f").write_bytes(DATA)
    expected = bytearray(DATA + bytes(4 * WINDOW))
    with (layer.root / "f").open("r+b", buffering=0) as file, (layer.root / "log").open("wb", buffering=0) as log:
        for start in range(0, 4 * WINDOW, 128 << 10):
            os.pwrite(file.fileno(), bytes(128 << 10), len(DATA) + start)
            os.pwrite(log.fileno(), bytes(128 << 10), start)
        os.pwrite(file.fileno(), bytes(3 * BLOCK), 5 * BLOCK + 100)
        expected[5 * BLOCK + 100 : 8 * BLOCK + 100] = bytes(3 * BLOCK)
        os.pwrite(log.fileno(), b"record" + bytes(2 * BLOCK) + b"end", 3 * BLOCK - 6)
        os.fsync(file.fileno())
        os.fsync(log.fileno())
        taken = sum(path.stat().st_blocks for path in layer.changes()) * 512
        assert taken <= 8 * BLOCK, taken
        os.pwrite(log.fileno(), bytes(BLOCK), 2 * BLOCK)  # over something else
    assert cold(layer.root / "f") == bytes(expected)
    assert cold(layer.root / "log") == (bytes(5 * BLOCK) + b"end").ljust(4 * WINDOW, b"\0")


def test_a_sparse_file_of_a_petabyte_takes_no_memory(memory: Path) -> None:
    end = 1 << 50
    (memory / "lower").mkdir()
    with (memory / "lower" / "f").open("wb") as file:
        file.truncate(end)
        os.pwrite(file.fileno(), DATA[: 2 * WINDOW], end - 2 * WINDOW)
    with Layer(lower=[memory / "lower"], directory=memory / "layer") as layer:
        with (layer.root / "f").open("r+b", buffering=0) as file:
            for start in (0, end // 2, end - 2 * WINDOW):
                assert len(os.pread(file.fileno(), 2 * WINDOW, start)) == 2 * WINDOW
                os.pwrite(file.fileno(), b"changed", start + BLOCK)
            forget([file.fileno()])
            for start, data in ((0, bytes(2 * WINDOW)), (end // 2, bytes(2 * WINDOW)), (end - 2 * WINDOW, DATA)):
                found = os.pread(file.fileno(), 2 * WINDOW, start)
                assert found == data[:BLOCK] + b"changed" + data[BLOCK + 7 : 2 * WINDOW]
        assert layer.peak_memory() < MEMORY_LIMIT // 2
        assert not layer.complaints()


def test_a_write_far_beyond_the_end_of_a_small_file(layer: Layer, lower: Path) -> None:
    (lower / "f").write_bytes(DATA[:100])
    far = 5 << 30
    with (layer.root / "f").open("r+b") as file:
        os.pwrite(file.fileno(), b"far", far)
        forget([file.fileno()])
        assert os.fstat(file.fileno()).st_size == far + 3
        assert os.pread(file.fileno(), BLOCK, 0) == DATA[:100] + bytes(BLOCK - 100)
        assert os.pread(file.fileno(), BLOCK, far // 2) == bytes(BLOCK)
        assert os.pread(file.fileno(), BLOCK, far - 5) == bytes(5) + b"far"
    assert layer.changes()[0].stat().st_blocks * 512 < WINDOW


def test_what_is_not_supported_says_so_and_what_is_works(layer: Layer, lower: Path) -> None:
    (lower / "f").write_bytes(DATA)
    libc = ctypes.CDLL(None, use_errno=True)
    with (layer.root / "f").open("r+b") as file:
        number = file.fileno()
        for mode in (0, 1, 1 | 2, 8, 16, 16 | 1, 32):  # allocate, keep size, punch, collapse, zero range, insert
            assert libc.fallocate(number, mode, ctypes.c_long(0), ctypes.c_long(BLOCK)) == -1
            assert ctypes.get_errno() == errno.EOPNOTSUPP
        os.posix_fallocate(number, len(DATA), 3 * BLOCK)  # by writing, as libc does then
        assert os.fstat(number).st_size == len(DATA) + 3 * BLOCK
        assert os.lseek(number, 5, os.SEEK_DATA) == 5
        assert os.lseek(number, 5, os.SEEK_HOLE) == len(DATA) + 3 * BLOCK
        fcntl.flock(number, fcntl.LOCK_EX)
        assert not forked(lambda: _can_lock(layer.root / "f", fcntl.flock))
        fcntl.flock(number, fcntl.LOCK_UN)
        fcntl.lockf(number, fcntl.LOCK_EX, BLOCK, BLOCK)
        assert not forked(lambda: _can_lock(layer.root / "f", fcntl.lockf))
    assert forked(lambda: _can_lock(layer.root / "f", fcntl.lockf))
    with tempfile.TemporaryFile(dir=layer.root) as unnamed:  # falls back from O_TMPFILE
        unnamed.write(DATA)
    assert cold(layer.root / "f") == DATA + bytes(3 * BLOCK)
    assert os.listdir(layer.root) == ["f"]


def _can_lock(path: Path, lock: Callable[[int, int], object]) -> bool:
    with path.open("r+b") as file:
        try:
            lock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


def test_a_shared_mapping_shows_and_makes_changes(layer: Layer, lower: Path) -> None:
    (lower / "f").write_bytes(DATA)
    with (layer.root / "f").open("r+b") as file, mmap.mmap(file.fileno(), len(DATA)) as view:
        os.pwrite(file.fileno(), b"written", WINDOW - 3)
        assert view[WINDOW - 3 : WINDOW + 4] == b"written"
        view[5:11] = b"mapped"
        assert os.pread(file.fileno(), 6, 5) == b"mapped"
        forked(lambda: _map_and_write(layer.root / "f", 2 * WINDOW, b"by another"))
        assert view[2 * WINDOW : 2 * WINDOW + 10] == b"by another"
    expected = bytearray(DATA)
    expected[WINDOW - 3 : WINDOW + 4] = b"written"
    expected[5:11] = b"mapped"
    expected[2 * WINDOW : 2 * WINDOW + 10] = b"by another"
    assert cold(layer.root / "f") == bytes(expected)


def _map_and_write(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as view:
        view[offset : offset + len(data)] = data


def _map_and_write_to_its_end(path: Path, data: bytes) -> None:
    faulthandler.disable()  # it may be a bus error
    _map_and_write(path, 0, data)


RECORD = 2 * BLOCK
RECORDS = 600
TURNS = 1500  # of each process


def test_writers_and_readers_of_the_same_blocks_at_once(layer: Layer, lower: Path, place: Path) -> None:
    """Each record is locked while it is written or read. A ledger outside the layer says what it must contain."""
    (lower / "f").write_bytes(b"".join(_record(number, 0) for number in range(RECORDS)))
    (place / "ledger").write_bytes(bytes(8 * RECORDS))
    context = multiprocessing.get_context("fork")
    done = context.Event()
    with ProcessPoolExecutor(4, mp_context=context) as workers:
        dropping = context.Process(target=_keep_dropping, args=(layer.root / "f", done))
        dropping.start()
        runs = [workers.submit(_write_and_read, layer.root / "f", place / "ledger", seed) for seed in range(4)]
        try:
            for run in runs:
                run.result()
        finally:
            done.set()
            dropping.join()
    assert dropping.exitcode == 0
    with (place / "ledger").open("rb") as ledger:
        states = [int.from_bytes(ledger.read(8), "little") for _turn in range(RECORDS)]
    assert cold(layer.root / "f") == b"".join(_record(number, state) for number, state in enumerate(states))
    assert not layer.complaints()


def _record(number: int, state: int) -> bytes:
    start = (number * 104_729 + state * 7919) % (len(DATA) - RECORD)
    return DATA[start : start + RECORD]


def _write_and_read(path: Path, ledger: Path, seed: int) -> None:
    choose = random.Random(seed)
    with (
        path.open("r+b") as file,
        ledger.open("r+b", buffering=0) as states,
        mmap.mmap(file.fileno(), 0) as view,
        mmap.mmap(-1, RECORD) as aligned,
    ):
        direct = os.open(path, os.O_RDWR | os.O_DIRECT)
        for _turn in range(TURNS):
            number, way = choose.randrange(RECORDS), choose.randrange(6)
            start = number * RECORD
            fcntl.lockf(file, fcntl.LOCK_EX if way < 4 else fcntl.LOCK_SH, RECORD, start)
            state = int.from_bytes(os.pread(states.fileno(), 8, number * 8), "little")
            assert os.pread(file.fileno(), RECORD, start) == _record(number, state), (number, state, way)
            new = _record(number, state + 1)
            if way == 0:
                os.pwrite(file.fileno(), new, start)
            elif way == 1:
                cut = choose.randrange(1, RECORD)
                os.pwrite(file.fileno(), new[cut:], start + cut)
                os.pwrite(file.fileno(), new[:cut], start)
            elif way == 2:
                aligned[:] = new
                os.pwritev(direct, [aligned], start)
            elif way == 3:
                view[start : start + RECORD] = new
            elif way == 4:
                os.preadv(direct, [aligned], start)
                assert aligned[:] == _record(number, state), (number, state, "read directly")
            if way < 4:
                os.pwrite(states.fileno(), (state + 1).to_bytes(8, "little"), number * 8)
            fcntl.lockf(file, fcntl.LOCK_UN, RECORD, start)
        os.close(direct)


def _keep_dropping(path: Path, done: Event) -> None:
    while not done.wait(0.05):
        forget([path])


@needs_root
def test_the_lower_is_never_written(place: Path, lower: Path) -> None:
    for number in range(20):
        (lower / f"d{number}").mkdir()
        (lower / f"d{number}" / "f").write_bytes(DATA[number * 1000 :])
    before = _digest(lower)
    with _read_only(lower, place / "read-only") as archive, Layer(lower=[archive], directory=place / "layer") as layer:
        for number in range(20):
            directory = layer.root / f"d{number}"
            with (directory / "f").open("r+b") as file:
                os.pwrite(file.fileno(), DATA[:30_000], number * 5000)
                file.truncate(WINDOW)
            os.utime(directory / "f")
            os.chown(directory / "f", 1234, 1234)
            (directory / "f").rename(directory / "g")
            directory.rename(layer.root / f"e{number}")
        forget(list(layer.root.glob("*/g")))
        assert len(list(layer.root.glob("*/g"))) == 20
    assert _digest(lower) == before


def _digest(directory: Path) -> str:
    total = hashlib.sha256()
    for path in sorted(directory.rglob("*")):
        state = path.stat()
        total.update(repr((str(path), state.st_mode, state.st_uid, state.st_size, state.st_mtime_ns)).encode())
        total.update(path.read_bytes() if path.is_file() else b"")
    return total.hexdigest()


@contextlib.contextmanager
def _read_only(source: Path, mountpoint: Path) -> Iterator[Path]:
    mountpoint.mkdir()
    subprocess.run(["mount", "--bind", str(source), str(mountpoint)], check=True, timeout=30)
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", str(mountpoint)], check=True, timeout=30)
        yield mountpoint
    finally:
        subprocess.run(["umount", str(mountpoint)], check=True, timeout=30)


# -- owners


@needs_root
def test_an_ordinary_user_needs_nobody(place: Path) -> None:
    with ordinary_user("ir-cowfs") as user:
        home = Path(user.pw_dir)

        def prepare() -> None:
            (home / "lower" / "d").mkdir(parents=True)
            (home / "lower" / "d" / "f").write_bytes(DATA)
            (home / "layer").mkdir()

        def use() -> str:
            changed = home / "layer" / "merged" / "d" / "f"
            with changed.open("r+b") as file:
                os.pwrite(file.fileno(), b"changed", WINDOW)
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
                assert os.pread(file.fileno(), len(DATA), 0) == DATA[:WINDOW] + b"changed" + DATA[WINDOW + 7 :]
            (changed.parent / "mine").write_text("mine")
            return changed.owner()

        forked(prepare, user=user)
        with Layer(lower=[home / "lower"], directory=home / "layer", user=user) as layer:
            assert forked(use, user=user) == user.pw_name
            with pytest.raises(PermissionError):
                os.listdir(layer.root)  # Not even root, without allow_other.


@needs_root
def test_everything_can_be_presented_as_one_owner(place: Path, lower: Path) -> None:
    with ordinary_user("ir-cowfs") as user:
        (lower / "secret").write_text("secret")
        (lower / "secret").chmod(0o600)
        os.chown(lower / "secret", 4321, 4321)
        (lower / "d").mkdir(mode=0o700)
        options = ["--owner", f"{user.pw_uid}:{user.pw_gid}", "--allow-other"]
        with Layer(lower=[lower], directory=place / "layer", options=options) as layer:
            secret = layer.root / "secret"
            for path in (layer.root, secret, layer.root / "d"):
                assert (path.stat().st_uid, path.stat().st_gid) == (user.pw_uid, user.pw_gid)

            def use() -> bytes:
                (layer.root / "d" / "mine").write_bytes(secret.read_bytes())
                (layer.root / "d" / "mine").chmod(0o640)
                with pytest.raises(PermissionError):
                    os.chown(secret, 0, 0)
                return (layer.root / "d" / "mine").read_bytes()

            assert forked(use, user=user) == b"secret"
            assert stat.S_IMODE((layer.root / "d" / "mine").stat().st_mode) == 0o640
            os.chown(secret, 0, 0)
            drop_names()
            assert (secret.stat().st_uid, secret.stat().st_gid) == (0, 0)
            with pytest.raises(RuntimeError, match="PermissionError"):
                forked(secret.read_bytes, user=user)


# -- resources


def test_memory_stays_small_with_a_hundred_thousand_files(place: Path, memory: Path) -> None:
    lower = memory / "lower"
    lower.mkdir()
    for number in range(100):
        (lower / f"d{number}").mkdir()
        for name in range(1000):
            os.close(os.open(lower / f"d{number}" / f"{name}.relation", os.O_CREAT, 0o600))
    with Layer(lower=[lower], directory=place / "layer") as layer:
        assert sum(len(names) for _directory, _names, names in os.walk(layer.root)) == 100_000
        for number in range(0, 100, 10):
            (layer.root / f"d{number}" / "7.relation").write_text("changed")
        assert layer.peak_memory() < MEMORY_LIMIT
        assert layer.descriptors() < 600


def test_temporary_files_leave_nothing_in_memory(layer: Layer, lower: Path) -> None:
    """A server makes and removes them for weeks, under ever new names, in a directory that the archive has."""
    (lower / "base").mkdir()

    def make_and_remove(count: int, prefix: str) -> int:
        for number in range(count):
            path = layer.root / "base" / f"{prefix}{number}".ljust(250, "-")
            path.touch()
            path.unlink()
        return layer.memory()

    before = make_and_remove(1000, "a")
    assert make_and_remove(6000, "b") - before < 1 << 20
    assert os.listdir(layer.root / "base") == []


def test_names_that_are_made_have_a_bound(place: Path, lower: Path) -> None:
    """What is known of them is in memory."""
    (lower / "archived").touch()
    (lower / "removed").touch()
    few = {"operations.MOST_NAMES": 100}
    with Layer(lower=[lower], directory=place / "layer", constants=few) as layer:
        (layer.root / "removed").unlink()
        (layer.root / "archived").rename(layer.root / "renamed")
        (layer.root / "0").mkdir()
        for number in range(1, 99):
            (layer.root / "0" / f"{number}").touch()
        for attempt in (lambda path: path.touch(), lambda path: path.mkdir(), lambda path: path.symlink_to("x")):
            with pytest.raises(OSError, match="No space left"):
                attempt(layer.root / "more")
        with pytest.raises(OSError, match="No space left"):
            (layer.root / "more").hardlink_to(layer.root / "renamed")
        (layer.root / "0" / "1").unlink()
        (layer.root / "more").touch()
        assert layer.complaints() == [one for one in layer.complaints() if "100 files have been made" in one]
        assert len(layer.complaints()) == 1


def test_sizes_alone_take_no_file_of_the_upper(layer: Layer, lower: Path) -> None:
    """Nobody asks whether there is room for one when a size is changed."""
    (lower / "file").write_bytes(DATA)
    (layer.root / "made").touch()
    for name in ("file", "made"):
        with (layer.root / name).open("r+b") as file:
            for size in (2 * len(DATA), 3, 1, WINDOW):
                file.truncate(size)
                os.fsync(file)
    assert layer.changes() == []
    assert cold(layer.root / "file") == DATA[:1] + bytes(WINDOW - 1)
    assert cold(layer.root / "made") == bytes(WINDOW)
    with (layer.root / "file").open("r+b") as file:
        file.seek(BLOCK)
        file.write(b"x")
        file.truncate(BLOCK + 2)
    assert cold(layer.root / "file") == DATA[:1] + bytes(BLOCK - 1) + b"x\0"


def test_names_make_no_lines_of_the_log_and_no_long_ones(layer: Layer) -> None:
    """Whoever writes chooses them, and how deep they are."""
    place = layer.root
    for number in range(12):
        place /= f"{number}".ljust(250, "-")
        place.mkdir()
    forged = place / "x\n2026-11-27 cowfs ERROR the disk fails\x1b[2J\u202e"
    forged.touch()
    with pytest.raises(OSError, match="File too large"):
        write_beyond_any_file(forged)
    (line,) = layer.complaints()
    said = r"x\n2026-11-27 cowfs ERROR the disk fails\x1b[2J\u202e"
    assert line.endswith(f"{said} at offset {1 << 60}: File too large")
    assert len(line) < 1500


def write_beyond_any_file(path: Path) -> None:
    with path.open("wb", buffering=0) as file:
        file.seek(1 << 60)
        file.write(b"x")
        os.fsync(file)


def test_what_is_logged_has_a_bound(place: Path, lower: Path) -> None:
    with Layer(lower=[lower], directory=place / "layer", constants={"program.MOST_LOGGED": 4000}) as layer:
        for number in range(100):
            with contextlib.suppress(OSError):
                write_beyond_any_file(layer.root / f"{number}")
        assert "nothing more is logged" in layer.said().splitlines()[-1]
        assert len(layer.said()) < 2 * 4000  # times and levels come on top


@needs_root
def test_it_leaves_others_the_room_that_it_is_told_to(place: Path, lower: Path) -> None:
    with (
        _small_disk(place / "disk") as disk,
        Layer(
            lower=[lower], directory=place / "layer", upper=disk / "upper", options=["--reserve", str(100 << 20)]
        ) as layer,
    ):
        with (layer.root / "log").open("wb", buffering=0) as file:
            assert _write_until_full(file.fileno()) > 10
        os.sync()
        assert 100 << 20 <= _shown_as_free(disk) < 600 << 20


@needs_root
def test_who_does_not_ask_cannot_take_the_last_of_the_disk(place: Path, lower: Path) -> None:
    """Pages of a mapping, and one write of any length, are nothing that the kernel asks about."""
    reserve = 200 << 20
    with (
        _small_disk(place / "disk") as disk,
        Layer(
            lower=[lower], directory=place / "layer", upper=disk / "upper", options=["--reserve", str(reserve)]
        ) as layer,
    ):
        size = _shown_as_free(disk)
        (layer.root / "grown").touch()
        os.truncate(layer.root / "grown", 2 * size)
        writer = multiprocessing.get_context("fork").Process(
            target=_map_and_write_to_its_end, args=(layer.root / "grown", DATA * (size // len(DATA) + 1))
        )
        writer.start()
        wait_for_mounts(lambda: "wait for space" in layer.said())
        assert writer.is_alive()
        assert _shown_as_free(disk) > reserve // 2 - (16 << 20)
        layer.stop()
        writer.join(30)
        assert not writer.is_alive()


def test_memory_and_cache_stay_bounded_with_large_files(memory: Path) -> None:
    size, cache = 3 << 30, 64 << 20
    (memory / "lower").mkdir()
    with (memory / "lower" / "f").open("wb") as file:
        file.truncate(size)
        for start in range(0, size, 100 << 20):
            os.pwrite(file.fileno(), DATA[:WINDOW], start)
    options = ["--cache-size", str(cache)]
    with Layer(lower=[memory / "lower"], directory=memory / "layer", options=options) as layer:
        with (layer.root / "f").open("r+b") as file:
            for start in range(0, size, 2 * WINDOW):
                expected = DATA[:BLOCK] if start % (100 << 20) == 0 else bytes(BLOCK)
                assert os.pread(file.fileno(), BLOCK, start) == expected
            for start in range(0, size, 4 * WINDOW):
                os.pwrite(file.fileno(), b"changed", start + 5 * BLOCK + 5)
            forget([file.fileno()])
            for start in range(0, size, 4 * WINDOW):
                assert os.pread(file.fileno(), 9, start + 5 * BLOCK + 5)[:7] == b"changed"
        assert layer.peak_memory() < MEMORY_LIMIT
        files = [path.stat() for path in Path(f"/proc/{layer.process.pid}/fd").iterdir() if path.exists()]
        caches = [found.st_blocks * 512 for found in files if stat.S_ISREG(found.st_mode) and found.st_nlink == 0]
        assert 0 < sum(caches) <= cache
        assert sum(path.stat().st_blocks for path in layer.changes()) * 512 < 16 << 20


def test_memory_stays_bounded_with_many_readers_and_writers_at_once(memory: Path) -> None:
    """Four scans, four random readers and four writers through four mounts."""
    size = 200 * WINDOW
    (memory / "lower").mkdir()
    for number in range(4):
        with (memory / "lower" / f"{number}").open("wb") as file:
            for _turn in range(size // WINDOW):
                file.write(DATA[:WINDOW])
    lowers = [memory / "lower"] * 4
    with Layer(lower=lowers, directory=memory / "layer", options=["--cache-size", str(256 << 20)]) as layer:
        paths = [layer.root / f"{number}" for number in range(4)]
        with ProcessPoolExecutor(12, mp_context=multiprocessing.get_context("fork")) as pool:
            end = time.monotonic() + 5
            runs = [pool.submit(_scan_once, path) for path in paths]
            runs += [pool.submit(_read_for, path, number, end) for number, path in enumerate(paths)]
            runs += [pool.submit(_write_for, path, number, end) for number, path in enumerate(paths)]
            for run in runs:
                run.result()
        assert layer.peak_memory() < MEMORY_LIMIT
        assert not layer.complaints()


def test_no_link_of_any_mount_leads_out_of_it(place: Path) -> None:
    """Mounts of one archive are alike, unless the repository's server gave one of them another archive."""
    outside, lowers = place / "outside", [place / "first", place / "second"]
    for directory in (outside, *lowers):
        directory.mkdir()
    for directory, content in ((outside, b"secret"), (lowers[0] / "names", b"public")):
        directory.mkdir(exist_ok=True)
        for number in range(20):
            (directory / f"{number}").write_bytes(content * 200_000)
    (lowers[1] / "names").symlink_to(outside)
    with Layer(lower=lowers, directory=place / "layer") as layer:
        paths = [layer.root / "names" / f"{number}" for number in range(20)]
        with ProcessPoolExecutor(4, mp_context=multiprocessing.get_context("fork")) as pool:
            read = list(pool.map(_beginning, paths))
    assert set(read) == {b"public", b"EIO"}  # by either mount


def _beginning(path: Path) -> bytes:
    try:
        return path.read_bytes()[:6]
    except OSError as error:
        return errno.errorcode[error.errno].encode()


@needs_root
def test_what_was_the_servers_is_told_by_number(place: Path, lower: Path) -> None:
    """The data directory is of user 70 and group 71; by that group its server entered what is root's."""
    for name, uid, gid in (("data", 70, 71), ("data/own", 70, 0), ("group", 0, 71), ("closed", 0, 0), ("other", 5, 5)):
        (lower / name).mkdir()
        os.chown(lower / name, uid, gid)
    options = ["--owner", "60999:60998", "--owned", "70", "--always", "data"]
    with Layer(lower=[lower], directory=place / "layer", options=options) as layer:
        states = {path.relative_to(layer.root): path.stat() for path in sorted(layer.root.rglob("*"))}
        seen = {str(path): (state.st_uid, state.st_gid) for path, state in states.items()}
    server, root = (60999, 60998), (0, 0)
    assert seen == {"data": server, "data/own": server, "group": (0, 60998), "closed": root, "other": root}


def test_what_small_writes_take_is_counted(place: Path, lower: Path) -> None:
    """By the counter the keeper sees when to add up what the upper takes."""
    counters = place / "counters"
    with Layer(lower=[lower], directory=place / "layer", options=["--counters", str(counters)]) as layer:
        descriptor = os.open(layer.root / "new", os.O_RDWR | os.O_CREAT | os.O_DIRECT)
        for block in range(500):
            os.pwrite(descriptor, b"x", block * BLOCK)
        os.close(descriptor)
        _fetched, written, _cached, _errors = struct.unpack("4Q", counters.read_bytes())
        taken = sum(path.stat().st_blocks * 512 for path in layer.upper.rglob("*") if path.is_file())
    assert 500 * BLOCK <= taken <= written


def _scan_once(path: Path) -> None:
    with path.open("rb", buffering=0) as file:
        while file.read(128 << 10):
            pass


def _read_for(path: Path, seed: int, end: float) -> None:
    choose, descriptor = random.Random(seed), os.open(path, os.O_RDONLY | os.O_DIRECT)
    with mmap.mmap(-1, 2 * BLOCK) as buffer:
        while time.monotonic() < end:
            os.preadv(descriptor, [buffer], choose.randrange(200 * WINDOW // len(buffer)) * len(buffer))


def _write_for(path: Path, seed: int, end: float) -> None:
    choose, descriptor = random.Random(seed), os.open(path, os.O_RDWR)
    while time.monotonic() < end:
        os.pwrite(descriptor, DATA[: choose.choice((2 * BLOCK, WINDOW))], choose.randrange(198 * WINDOW))


def test_many_small_files_fit_where_few_large_ones_do(place: Path, lower: Path) -> None:
    """What is kept of the lower is counted in bytes: half of each file is read, and then the other half."""
    count, size = 400, 8 * BLOCK
    for number in range(count):
        (lower / f"{number}").write_bytes(DATA[number : number + size])
    counters = place / "counters"
    options = ["--cache-size", str(20 << 20), "--counters", str(counters)]
    with Layer(lower=[lower], directory=place / "layer", options=options) as layer, mmap.mmap(-1, size // 2) as buffer:
        # They stay open: of a file that nobody has, the kernel may forget everything.
        opened = [os.open(layer.root / f"{number}", os.O_RDONLY | os.O_DIRECT) for number in range(count)]
        for half in range(2):
            for number, descriptor in enumerate(opened):
                os.preadv(descriptor, [buffer], half * len(buffer))
                assert buffer[:] == DATA[number + half * len(buffer) :][: len(buffer)], number
        for descriptor in opened:
            os.close(descriptor)
        fetched, _written, cached, _errors = struct.unpack("4Q", counters.read_bytes())
        assert fetched == count * size
        assert cached <= 20 << 20


def test_the_cache_gives_back_what_was_put_into_it(memory: Path) -> None:
    """Random direct reads over more than is kept in memory, with a cache that is too small as well."""
    count, cache, choose = 90, 30 << 20, random.Random(7)
    (memory / "lower").mkdir()
    for name in ("a", "b"):
        with (memory / "lower" / name).open("wb") as file:
            for window in range(count):
                file.write(_numbered(name, window))
    options = ["--cache-size", str(cache)]
    with (
        Layer(lower=[memory / "lower"], directory=memory / "layer", options=options) as layer,
        mmap.mmap(-1, 2 * BLOCK) as buffer,
    ):
        files = {name: os.open(layer.root / name, os.O_RDONLY | os.O_DIRECT) for name in ("a", "b")}
        for _turn in range(2500):
            name, window, block = choose.choice("aab"), int(choose.triangular(0, count, 0)), choose.randrange(255)
            os.preadv(files[name], [buffer], window * WINDOW + block * BLOCK)
            assert buffer[:] == _numbered(name, window)[block * BLOCK :][: 2 * BLOCK], (name, window, block)
        for descriptor in files.values():
            os.close(descriptor)


def _numbered(name: str, window: int) -> bytes:
    """A window's worth of bytes, different for each."""
    start = (window * 33_331 + ord(name) * 77) % (3 * WINDOW)
    return DATA[start : start + WINDOW]


def test_syncing_and_opening_many_files_leaves_no_descriptor_open(memory: Path) -> None:
    (memory / "lower").mkdir()
    for number in range(700):
        (memory / "lower" / f"{number}").write_bytes(DATA[:BLOCK])
    with Layer(lower=[memory / "lower"], directory=memory / "layer") as layer:
        for number in range(700):
            with (layer.root / f"{number}").open("r+b") as file:
                file.read()
                os.pwrite(file.fileno(), b"changed", 5)
                os.fsync(file.fileno())
        assert layer.descriptors() < 600
        assert cold(layer.root / "3") == DATA[:5] + b"changed" + DATA[12:BLOCK]


# -- a full disk


@needs_root
def test_a_full_disk_stops_writers_and_loses_nothing(place: Path, lower: Path) -> None:
    (lower / "untouched").write_bytes(DATA)
    with (
        _small_disk(place / "disk") as disk,
        Layer(lower=[lower], directory=place / "layer", upper=disk / "upper") as layer,
    ):
        assert _shown_as_free(disk) > _shown_as_free(layer.root) > 0
        ballast = disk / "ballast"
        with ballast.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, _shown_as_free(layer.root) - (40 << 20))
        with (layer.root / "log").open("wb", buffering=0) as file:
            written = _write_until_full(file.fileno())
            assert 30 <= written < 500
            with pytest.raises(OSError, match="No space left"):
                (layer.root / "another").touch()
            assert _shown_as_free(layer.root) == 0
            assert cold(layer.root / "untouched") == DATA
            (layer.root / "untouched").rename(layer.root / "still works")
            ballast.unlink()
            os.truncate(layer.root / "log", written * WINDOW)
            assert os.write(file.fileno(), _megabyte(0)) == WINDOW
        content = cold(layer.root / "log")
        for number in range(written):
            assert content[number * WINDOW :][:WINDOW] == _megabyte(number), number
        assert content[written * WINDOW :].strip(b"\0") == _megabyte(0)
        assert len(layer.complaints()) == 2, layer.said()
        assert "cache given up" in layer.complaints()[0]
        assert "no space left" in layer.complaints()[1]


def _write_until_full(descriptor: int) -> int:
    """How many megabytes were acknowledged in full."""
    for number in range(1000):
        try:
            done = os.write(descriptor, _megabyte(number))
        except OSError as error:
            if error.errno == errno.ENOSPC:
                return number
            raise
        if done < WINDOW:
            return number
    raise AssertionError("the disk does not get full")


@needs_root
def test_a_disk_that_holds_no_more_files_is_full_too(place: Path, lower: Path) -> None:
    for number in range(600):
        (lower / f"{number}").write_bytes(DATA[:BLOCK])
    with (
        _small_disk(place / "disk", "nr_inodes=500") as disk,
        Layer(lower=[lower], directory=place / "layer", upper=disk / "upper") as layer,
    ):
        changed = _change_until_full(layer.root)
        assert 100 < changed < 500
        for number in range(600):
            expected = DATA[1 : BLOCK + 1] if number < changed else DATA[:BLOCK]
            assert (layer.root / f"{number}").read_bytes() == expected


def _change_until_full(root: Path) -> int:
    """How many files could be changed before no more could be made."""
    for number in range(600):
        try:
            (root / f"new {number}").touch()
        except OSError as error:
            if error.errno == errno.ENOSPC:
                return number
            raise
        (root / f"{number}").write_bytes(DATA[1 : BLOCK + 1])
    raise AssertionError("the disk does not get full")


@needs_root
def test_mapped_pages_wait_for_space_rather_than_getting_lost(place: Path, lower: Path) -> None:
    """Nobody can be told that a page which was changed in a mapping cannot be kept."""
    (lower / "f").write_bytes(DATA)
    (lower / "untouched").write_bytes(DATA)
    with _small_disk(place / "disk") as disk, contextlib.ExitStack() as stack:
        layer = stack.enter_context(Layer(lower=[lower], directory=place / "layer", upper=disk / "upper"))
        ballast = disk / "ballast"
        with ballast.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, _shown_as_free(disk) - WINDOW)
        writer = multiprocessing.get_context("fork").Process(
            target=_map_and_write, args=(layer.root / "f", 0, DATA[::-1])
        )
        writer.start()
        wait_for_mounts(lambda: "wait for space" in layer.said())
        assert writer.is_alive()
        assert cold(layer.root / "untouched") == DATA
        ballast.unlink()
        writer.join(30)
        assert writer.exitcode == 0
        assert cold(layer.root / "f") == DATA[::-1]
        assert len([line for line in layer.complaints() if "wait for space" in line]) == 1


def _megabyte(number: int) -> bytes:
    return DATA[number * 1000 : number * 1000 + WINDOW]


def _shown_as_free(path: Path) -> int:
    answer = os.statvfs(path)
    return answer.f_bavail * answer.f_frsize


@contextlib.contextmanager
def _small_disk(mountpoint: Path, options: str = "size=700m") -> Iterator[Path]:
    mountpoint.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(mountpoint)], check=True, timeout=30)
    try:
        yield mountpoint
    finally:
        subprocess.run(["umount", str(mountpoint)], check=True, timeout=30)


# -- the end


def test_it_ends_in_order_while_in_use(layer: Layer, lower: Path) -> None:
    (lower / "f").write_bytes(DATA)
    context = multiprocessing.get_context("fork")
    users = [context.Process(target=_use_until_it_ends, args=(layer.root,), daemon=True) for _turn in range(3)]
    for user in users:
        user.start()
    wait_for_mounts(lambda: len(list(layer.root.iterdir())) >= 4)
    layer.stop()
    for user in users:
        user.join(30)
        assert user.exitcode == 0
    assert "unmounted" in layer.said()


def _use_until_it_ends(root: Path) -> None:
    os.chdir(root)
    with contextlib.suppress(OSError), open("f", "r+b") as file, open(f"by-{os.getpid()}", "wb") as other:
        while True:
            os.pwrite(file.fileno(), DATA[:BLOCK], random.randrange(len(DATA)))
            os.pread(file.fileno(), BLOCK, random.randrange(len(DATA)))
            os.pwrite(other.fileno(), DATA, 0)


def test_it_ends_in_order_as_soon_as_it_is_mounted(place: Path, lower: Path) -> None:
    for _attempt in range(5):
        with Layer(lower=[lower], directory=place / "layer") as layer:
            layer.stop()


def test_it_ends_although_its_lower_hangs(place: Path, lower: Path) -> None:
    (lower / "f").write_bytes(DATA)
    with (
        Layer(lower=[lower], directory=place / "below") as below,
        Layer(lower=[below.root], directory=place / "layer") as layer,
    ):
        (layer.root / "own").write_bytes(DATA)
        own = os.open(layer.root / "own", os.O_RDONLY | os.O_DIRECT)
        below.process.send_signal(signal.SIGSTOP)
        try:
            reader = subprocess.Popen(["cat", str(layer.root / "f")], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
            assert os.pread(own, len(DATA), 0) == DATA  # needs no lower
            os.close(own)
            layer.process.terminate()
            wait_for_mounts(lambda: not is_mounted(layer.root))
            assert reader.wait(30) != 0
        finally:
            below.process.send_signal(signal.SIGCONT)
        assert layer.process.wait(30) == 0


def test_it_ends_when_it_is_unmounted(layer: Layer) -> None:
    subprocess.run(["fusermount3", "-u", str(layer.root)], check=True, timeout=30)
    assert layer.process.wait(timeout=30) == 0, layer.said()


def test_killed_it_leaves_a_mount_that_can_be_removed(layer: Layer, lower: Path) -> None:
    (lower / "f").write_bytes(DATA)
    descriptor = os.open(layer.root / "f", os.O_RDWR)
    layer.kill()
    with pytest.raises(OSError, match=r"not connected|abort"):
        os.pread(descriptor, BLOCK, 0)
    with contextlib.suppress(OSError):
        os.close(descriptor)
    assert is_mounted(layer.root)
    subprocess.run(["fusermount3", "-u", str(layer.root)], check=True, timeout=30)
    assert not is_mounted(layer.root)


# -- over Borg


@pytest.fixture(scope="module")
def archive(shared_place: Path) -> tuple[Repository, dict[str, bytes]]:
    """An encrypted repository whose archive `a` has the directory `data`; what is in it, by name."""
    place = shared_place / "cowfs-borg"
    repository = Repository(directory=place / "repository", base=place / "base")
    repository.create()
    source = place / "source" / "data"
    (source / "d").mkdir(parents=True)
    content = {"large": random.Random(3).randbytes(64 * WINDOW + 5), "d/small": DATA[:10_000]}
    for name, data in content.items():
        (source / name).write_bytes(data)
    (source / "link").symlink_to("large")
    repository.archive("a", "data", cwd=place / "source")
    return repository, content


@contextlib.contextmanager
def _borg_mounts(
    repository: Repository, place: Path, count: int
) -> Iterator[list[tuple[Path, subprocess.Popen[bytes]]]]:
    found: list[tuple[Path, subprocess.Popen[bytes]]] = []
    environment = {**os.environ, **repository.environment, "BORG_MOUNT_DATA_CACHE_ENTRIES": "8"}
    try:
        for number in range(count):
            mountpoint = place / f"borg-{number}"
            mountpoint.mkdir()
            command = ["borg", "mount", "-f", f"{repository.location}::a", str(mountpoint)]
            found.append((mountpoint, subprocess.Popen(command, env=environment, start_new_session=True)))
        wait_for_mounts(lambda: all(is_mounted(mountpoint) for mountpoint, _process in found))
        yield found
    finally:
        for mountpoint, process in found:
            process.kill()
            process.wait(30)
            subprocess.run(["umount", "--lazy", str(mountpoint)], check=False, timeout=30)


def test_names_of_the_archives_list_are_what_a_mount_shows(place: Path) -> None:
    """With no mount that lives they are there still, of directories that are listed."""
    repository = Repository(directory=place / "repository", base=place / "base")
    repository.create()
    data = place / "source" / "srv" / "data"
    (data / "d" / "odd \u202e\t'\"%").mkdir(parents=True, mode=0o2750)
    (data / "link").symlink_to("d/nowhere")
    for number, mode in enumerate((0o600, 0o4755, 0o2711, 0o1644, 0o000)):
        (data / f"file {number}").write_bytes(DATA[: 1000 * number])
        (data / f"file {number}").chmod(mode)
    for number, path in enumerate(sorted(data.rglob("*"))):
        os.utime(path, ns=(1, (number - 2) * 10**17 + 123_456_000), follow_symlinks=False)
    repository.archive("a", "srv", cwd=place / "source")
    names = str(place / "names")
    opened = BorgRepository(repository.location, passphrase=repository.passphrase)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BORG_BASE_DIR", str(repository.base))
        assert write_names(names, opened.list_names("a", ["srv/data"]), roots=["srv/data"])
    with (
        _borg_mounts(repository, place, 1) as mounts,
        Layer(lower=[mounts[0][0]], directory=place / "asked") as asked,
        Layer(lower=[mounts[0][0]], directory=place / "listed", options=["--names", names]) as listed,
    ):
        expected = _described(asked.root / "srv" / "data")
        assert len(expected) == 8
        assert _described(listed.root / "srv" / "data") == expected
        assert _described(listed.root).keys() == _described(asked.root).keys()
        assert (listed.root / "srv/data/file 4").read_bytes() == DATA[:4000]
        drop_names()
        mounts[0][1].kill()
        assert _described(listed.root / "srv" / "data") == expected
        assert listed.complaints() == []


def _described(root: Path) -> dict[str, tuple[object, ...]]:
    """What there is below a directory; times in microseconds, as Borg lists them."""
    found = {}
    for path in root.rglob("*"):
        state = path.lstat()
        target = os.readlink(path) if path.is_symlink() else ""
        numbers = (state.st_mode, state.st_uid, state.st_gid, state.st_size, state.st_mtime_ns // 1000, state.st_nlink)
        found[str(path.relative_to(root))] = (*numbers, target)
    return found


def test_over_borg_when_its_mounts_die(place: Path, archive: tuple[Repository, dict[str, bytes]], clock: Clock) -> None:
    repository, content = archive
    context = multiprocessing.get_context("fork")
    with _borg_mounts(repository, place, 2) as mounts:
        lowers = [mountpoint / "data" for mountpoint, _process in mounts]
        with Layer(lower=lowers, directory=place / "layer", options=["--cache-size", "0"]) as layer:
            large = layer.root / "large"
            assert large.read_bytes() == content["large"]
            assert (layer.root / "d" / "small").read_bytes() == content["d/small"]
            (layer.root / "made here").mkdir()
            changed = random.Random(5).randbytes(BLOCK)
            with large.open("r+b") as file:
                os.pwrite(file.fileno(), changed, 7 * WINDOW)
            with ProcessPoolExecutor(3, mp_context=context) as readers:
                expected = bytearray(content["large"])
                expected[7 * WINDOW : 7 * WINDOW + BLOCK] = changed
                runs = [readers.submit(_read_at_random, large, bytes(expected), seed) for seed in range(3)]
                await_reads(100)
                mounts[0][1].kill()
                wait_until(layer.complaints)
                await_reads(100)
                assert not any(run.done() for run in runs), [run.result() for run in runs]
                assert len(layer.complaints()) == 1, layer.complaints()
                assert f"{lowers[0]} is gone" in layer.complaints()[0]
                mounts[1][1].kill()
                with clock.rushing():
                    outcomes = [run.result(timeout=PATIENCE) for run in runs]
            assert all(outcome == errno.EIO for outcome in outcomes), outcomes
            assert len(layer.complaints()) == 3, layer.complaints()
            assert f"{lowers[1]} is gone" in layer.complaints()[1]
            assert "large at offset " in layer.complaints()[2]
            check_without_archive(layer, changed)


def check_without_archive(layer: Layer, changed: bytes) -> None:
    """What needs no archive goes on; what does says so."""
    large = layer.root / "large"
    forget([large])
    with large.open("rb") as file:
        assert os.pread(file.fileno(), BLOCK, 7 * WINDOW) == changed
    (layer.root / "made here" / "new").write_bytes(b"new")
    assert cold(layer.root / "made here" / "new") == b"new"
    for call in (os.listdir, os.rmdir):
        with pytest.raises(OSError, match="Input/output error"):
            call(layer.root / "d")
    with pytest.raises(OSError, match="Input/output error"):
        os.readlink(layer.root / "link")


READS = multiprocessing.get_context("fork").Value("L")  # of all processes


def await_reads(number: int) -> None:
    """Until so many more have succeeded."""
    enough = READS.value + number
    wait_until(lambda: READS.value >= enough)


def _read_at_random(path: Path, expected: bytes, seed: int) -> int:
    """Read directly, that is from the layer, until that fails; its error number. 0: it did not fail for long."""
    choose, end = random.Random(seed), time.monotonic() + 2 * PATIENCE
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECT)
    with mmap.mmap(-1, 2 * BLOCK) as buffer:
        while time.monotonic() < end:
            start = choose.randrange(len(expected) // BLOCK - 2) * BLOCK
            try:
                os.preadv(descriptor, [buffer], start)
            except OSError as error:
                return error.errno or 0
            assert buffer[:] == expected[start : start + 2 * BLOCK], start
            with READS:
                READS.value += 1
    return 0


# -- under PostgreSQL


@needs_root
def test_a_database_server_on_it_stays_sound(place: Path) -> None:
    with Cluster(directory=place / "source", initdb_options=["--data-checksums"]) as source:
        source.populate(scale=2)
        before = source.fingerprint()
        source.stop()
        with Layer(lower=[source.data], directory=place / "layer", options=["--allow-other"]) as layer:
            server = Cluster(directory=source.directory, data=layer.root)
            server.start()
            try:
                assert server.fingerprint() == before
                _bench(server)
                server.sql("create index on pgbench_accounts (abalance, filler); checkpoint")
                forget([path for path in layer.root.rglob("*") if path.is_file()])
                _check(server)
                after = server.fingerprint()
                server.stop(mode="immediate")
                server.start()
                assert server.fingerprint() == after
                server.stop()
                forget([path for path in layer.root.rglob("*") if path.is_file()])
                server.start()
                assert server.fingerprint() == after
                _check(server)
            finally:
                server.stop(mode="immediate")
            assert not layer.complaints()
        source.start()
        assert source.fingerprint() == before


def _bench(server: Cluster) -> None:
    server._pgbench("-n", "-T", "3", "-c", "4", "-j", "2")


def _check(server: Cluster) -> None:
    where = ["-h", str(server.run), "-p", "5432", "-U", server.superuser]
    server._as_owner([f"{server.bindir}/pg_amcheck", *where, "--install-missing", "--heapallindexed", "-a", "-j", "2"])
    balances = "select sum(abalance), (select sum(delta) from pgbench_history) from pgbench_accounts"
    accounts, history = server.sql(balances, database=DATABASE).split("|")
    assert accounts == history
