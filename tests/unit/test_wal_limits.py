# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""WAL that was made to exhaust whoever reads it: its memory, its time, or its patience with a pipe.

What reads it does so in a process that cannot have more than some hundred MiB.
"""

from __future__ import annotations

import bz2
import functools
import gzip
import lzma
import os
import resource
import struct
import subprocess
import time
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import pytest
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._errors import RecoveryError
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._host.command import Completed, run
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._postgresql import wal as _pg_wal
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._postgresql.cluster import PostgresError
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._postgresql.control import crc32c
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._postgresql.wal import (
    Scan,
    Start,
    last_commit,
    tablespace_records,
)
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._postgresql.wal_archive import (
    WalArchive,
    open_archive,
)

from tests.support.forked import forked

T = TypeVar("T")

SIZE = 16 << 20
SYSTEM = 7_000_000_000_000_000_001
NAME = "000000010000000000000001"
START = Start(SIZE + 40, 1, SIZE)
ROOM = 400 << 20  # bytes of memory beside what the tests have already: what is to be read would take gigabytes
PAGE = 8192


def in_little_memory(function: Callable[[], T]) -> T:
    """What function returns, or the error that it raises, in a process that has not much memory."""

    def confined() -> T | RecoveryError:
        with open("/proc/self/status", encoding="ascii") as status:
            now = next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmSize:"))
        resource.setrlimit(resource.RLIMIT_AS, (now + ROOM, now + ROOM))
        try:
            return function()
        except RecoveryError as error:
            return RecoveryError(str(error))

    answer = forked(confined)
    if isinstance(answer, RecoveryError):
        raise answer
    return answer


def segment(number: int = 1, content: bytes = b"", *, size: int = SIZE) -> bytes:
    """A segment of valid pages, with content on them."""
    data = bytearray(size)
    place = 0
    for offset in range(0, size, PAGE):
        struct.pack_into("<HHIQI4x", data, offset, 0xD110, 2 if offset == 0 else 0, 1, number * size + offset, 0)
        begin = offset + 24
        if offset == 0:
            struct.pack_into("<QII", data, 24, SYSTEM, size, PAGE)
            begin += 16
        piece = content[place : place + offset + PAGE - begin]
        data[begin : begin + len(piece)] = piece
        place += len(piece)
    return bytes(data)


def archive(directory: Path) -> WalArchive:
    return open_archive(str(directory), segment_size=SIZE, system_identifier=SYSTEM)


def fast_xz(data: bytes) -> bytes:
    return lzma.compress(data, preset=0)


def compress(name: str) -> Callable[[bytes], bytes]:
    if name in ("zst", "lz4"):
        program = {"zst": "zstd", "lz4": "lz4"}[name]
        return lambda data: subprocess.run([program, "-c", "-q"], input=data, capture_output=True, check=True).stdout
    libraries: dict[str, Callable[[bytes], bytes]] = {"gz": gzip.compress, "bz2": bz2.compress, "xz": fast_xz}
    return libraries[name]


@functools.cache
def grown(kind: str) -> bytes:
    """64 MiB, compressed."""
    return compress(kind)(bytes(64 << 20))


KINDS = ["gz", "bz2", "xz", "zst", "lz4"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_compressed_segment_is_read_as_it_was(tmp_path: Path, kind: str) -> None:
    content = segment() if kind != "gz" else segment(content=os.urandom(SIZE))  # which no program makes smaller
    (tmp_path / f"{NAME}.{kind}").write_bytes(compress(kind)(content))
    assert in_little_memory(lambda: archive(tmp_path).read(NAME)) == content


@pytest.mark.parametrize("kind", ["gz", "bz2", "xz"])
def test_files_that_were_put_together_are_one(tmp_path: Path, kind: str) -> None:
    content = segment()
    half = SIZE // 2
    pieces = [compress(kind)(content[:half]), compress(kind)(content[half:])]
    (tmp_path / f"{NAME}.{kind}").write_bytes(b"".join(pieces))
    assert archive(tmp_path).read(NAME) == content


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", [NAME, "00000002.history", f"{NAME}.00000028.backup"])
def test_little_that_would_become_gigabytes(tmp_path: Path, kind: str, name: str) -> None:
    bomb = grown(kind) * 40
    (tmp_path / NAME).touch()
    (tmp_path / f"{name}.{kind}").write_bytes(bomb[: len(bomb) if name == NAME else 1 << 20])
    most = SIZE if name == NAME else 1 << 20
    with pytest.raises(RecoveryError, match=rf"{name}.{kind} has, decompressed, more than {most} bytes: name a log_s"):
        in_little_memory(lambda: archive(tmp_path).read(name))


@pytest.mark.parametrize(
    "magic", [b"", b"\x1f\x8b\x08", b"BZh9", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd", b"\x04\x22\x4d\x18"]
)
@pytest.mark.parametrize("name", [NAME, "00000002.history"])
def test_a_file_that_is_mostly_a_hole(tmp_path: Path, magic: bytes, name: str) -> None:
    (tmp_path / NAME).touch()
    (tmp_path / name).write_bytes(magic or segment()[:PAGE])
    os.truncate(tmp_path / name, 1 << 40)
    with pytest.raises(RecoveryError, match=rf"{name} has 1099511627776 bytes instead of (16777216|1048576): name a "):
        in_little_memory(lambda: archive(tmp_path).read(name))


def test_an_xz_file_that_asks_for_four_gigabytes_of_memory(tmp_path: Path) -> None:
    content = bytearray(lzma.compress(segment()))
    content[16] = 40  # the dictionary's size, in the first block's header
    end = 12 + content[12] * 4
    content[end : end + 4] = zlib.crc32(content[12:end]).to_bytes(4, "little")
    (tmp_path / f"{NAME}.xz").write_bytes(content)
    with pytest.raises(RecoveryError, match=r"cannot be read .*emory usage limit"):
        in_little_memory(lambda: archive(tmp_path).read(NAME))


def test_thousands_of_empty_files_put_together(tmp_path: Path) -> None:
    (tmp_path / f"{NAME}.xz").write_bytes(lzma.compress(b"") * 100_000)
    begun = time.process_time()
    with pytest.raises(PostgresError, match="it has more than 100 parts"):
        archive(tmp_path).read(NAME)
    assert time.process_time() - begun < 5


@pytest.mark.parametrize("kind", ["gz", "bz2", "xz"])
def test_a_file_that_was_cut_off(tmp_path: Path, kind: str) -> None:
    (tmp_path / f"{NAME}.{kind}").write_bytes(compress(kind)(segment())[:-9])
    with pytest.raises(PostgresError, match=r"cannot be read \(Compressed .* ended before"):
        archive(tmp_path).read(NAME)


def test_a_pipe_among_archived_wal_is_not_waited_for(tmp_path: Path) -> None:
    (tmp_path / "000000010000000000000002").write_bytes(segment(2))
    listed = archive(tmp_path)
    assert listed.segments == ["000000010000000000000002"]
    os.unlink(tmp_path / "000000010000000000000002")
    os.mkfifo(tmp_path / "000000010000000000000002")
    with pytest.raises(PostgresError, match="not a regular file"):
        listed.read("000000010000000000000002")


# -- the copy's own


def silent(_directory: str, _arguments: Sequence[str]) -> Completed:
    """A pg_waldump that could not tell anything."""
    return Completed(("pg_waldump",), 1, "", "")


def test_a_segment_that_is_mostly_a_hole_is_read_up_to_its_size(tmp_path: Path) -> None:
    (tmp_path / NAME).write_bytes(segment())
    os.truncate(tmp_path / NAME, 1 << 40)

    def look() -> tuple[object, int]:
        before = _characters_read()
        found = tablespace_records(str(tmp_path), START, waldump=silent, timeout=60)
        return (found, last_commit(str(tmp_path), START)), _characters_read() - before

    found, read = in_little_memory(look)
    assert found == ([], None)
    assert read < 5 * SIZE


def test_a_pipe_in_the_place_of_a_segment_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / NAME)
    with pytest.raises(OSError, match="not a regular file"):
        tablespace_records(str(tmp_path), START, waldump=silent, timeout=60)
    with pytest.raises(OSError, match="not a regular file"):
        last_commit(str(tmp_path), START)


def test_a_program_that_says_too_much_is_not_believed(tmp_path: Path) -> None:
    (tmp_path / NAME).write_bytes(segment(content=creation()))
    waldump = tmp_path / "waldump"
    waldump.write_text("#!/bin/sh\nwhile :; do echo rmgr: Tablespace; done\n")
    waldump.chmod(0o755)

    def talkative(_directory: str, arguments: Sequence[str]) -> Completed:
        return run([str(waldump), *arguments], timeout=60, limit=_pg_wal.WALDUMP_OUTPUT, check=False)

    found = in_little_memory(lambda: tablespace_records(str(tmp_path), START, waldump=talkative, timeout=60))
    assert [(record.oid, record.location) for record in found] == [(16400, "/fast")]


def creation(*, intact: bool = True) -> bytes:
    """A CREATE TABLESPACE record, or what is one but for its checksum; aligned."""
    data = (16400).to_bytes(4, "little") + b"/fast\0"
    body = bytes([0xFF, len(data)]) + data
    header = struct.pack("<IIQBB2x", 24 + len(body), 0, 0, 0x00, 5)
    checksum = crc32c(body + header) if intact else 0
    record = header + checksum.to_bytes(4, "little") + body
    return record + bytes(-len(record) % 8)


def test_almost_records_everywhere_cost_little(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_pg_wal, "EFFORT", 1 << 20)  # the same in a fraction of the time
    content = segment(content=creation(intact=False) * (SIZE // len(creation())))
    with pytest.raises(RecoveryError, match=r"^The WAL is full of what is almost a record: use another archive\.$"):
        Scan().segment(NAME, content, before=None, after=None)


def test_more_tablespaces_than_any_server_has(monkeypatch: pytest.MonkeyPatch) -> None:
    content = segment(content=creation() * 30)
    assert len(Scan().segment(NAME, content, before=None, after=None)) == 30
    monkeypatch.setattr(_pg_wal, "MOST_RECORDS", 20)
    with pytest.raises(RecoveryError, match="The WAL creates more than 20 tablespaces, which no server has done"):
        Scan().segment(NAME, content, before=None, after=None)


def test_of_many_segments_the_sum_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_pg_wal, "MOST_RECORDS", 20)
    scan, content = Scan(), segment(content=creation() * 15)
    assert len(scan.segment(NAME, content, before=None, after=None)) == 15
    with pytest.raises(RecoveryError, match="The WAL creates more than 20 tablespaces"):
        scan.segment(NAME, content, before=None, after=None)
    monkeypatch.setattr(_pg_wal, "EFFORT", 1 << 20)
    scan, content = Scan(), segment(content=creation(intact=False) * ((600 << 10) // len(creation())))
    assert scan.segment(NAME, content, before=None, after=None) == []
    with pytest.raises(RecoveryError, match="The WAL is full of what is almost a record"):
        scan.segment(NAME, content, before=None, after=None)


def test_wal_without_end_ends_at_the_time_limit(tmp_path: Path) -> None:
    for number in range(1, 4):
        (tmp_path / Start(number * SIZE, 1, SIZE).segment).write_bytes(segment(number))
    with pytest.raises(RecoveryError, match=r"within 0.001 s: give it more time \(start_timeout"):
        tablespace_records(str(tmp_path), START, waldump=None, timeout=0.001)


def commit(moment: int) -> bytes:
    data = moment.to_bytes(8, "little", signed=True)
    body = bytes([0xFF, len(data)]) + data
    header = struct.pack("<IIQBB2x", 24 + len(body), 3, 0, 0x00, 1)
    record = header + crc32c(body + header).to_bytes(4, "little") + body
    return record + bytes(-len(record) % 8)


def test_a_commit_at_an_impossible_time_is_none(tmp_path: Path) -> None:
    (tmp_path / NAME).write_bytes(segment(content=commit(1_000_000) + commit(2**63 - 1) + commit(-(2**63))))
    assert last_commit(str(tmp_path), START) == 946684801.0


def test_segments_that_memory_cannot_hold_are_refused(tmp_path: Path) -> None:
    _pg_wal.check_memory(1 << 20)
    with pytest.raises(RecoveryError, match=r"takes 1048576 MiB of memory, and this host has \d+ MiB to spare: start"):
        _pg_wal.check_memory(1 << 40)
    (tmp_path / NAME).touch()
    with pytest.raises(RecoveryError, match="To read WAL segments of this size takes 8388608 MiB of memory"):
        open_archive(str(tmp_path), segment_size=1 << 40, system_identifier=SYSTEM)


def _characters_read() -> int:
    with open("/proc/self/io", encoding="ascii") as table:
        return next(int(line.split()[1]) for line in table if line.startswith("rchar:"))


def test_what_may_be_a_commit_at_every_place_costs_little(tmp_path: Path) -> None:
    """Each such record says that it is a megabyte long, and the next one's first bytes are what data begin with."""
    record = struct.pack("<IIQBB2xI", 0x000FFFFF, 1, 2, 0, 1, 0)
    (tmp_path / NAME).write_bytes(segment(content=record * (SIZE // 8 // len(record))))
    assert last_commit(str(tmp_path), START) is None
