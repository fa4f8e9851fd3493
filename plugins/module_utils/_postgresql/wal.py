# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The one kind of WAL record that leads a copy back to production: CREATE TABLESPACE, with its absolute path.

Replaying it makes the tablespace's link anew, to the directory on the machine it was written on, after every link of
the copy had been re-pointed. Such records are found, and turned into ones that do nothing.

Sources of the layout, the same from PostgreSQL 12 to 18: src/include/access/xlog_internal.h (pages), xlogrecord.h
(records), commands/tablespace.h, catalog/pg_control.h (XLOG_NOOP). Checked against pg_waldump in tests/.
"""

from __future__ import annotations

import math
import os
import re
import struct
import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .._engine.steps import Patch
from .._errors import MORE_TIME, RecoveryError
from .._host.command import OutputError
from .._host.files import names_in, open_regular, read_beginning
from .control import crc32c

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from .._host.command import Completed

    # Runs pg_waldump with these arguments, and lets it read this directory; how it ended is for the caller to judge.
    WalDump = Callable[[str, Sequence[str]], Completed]

__all__ = [
    "WALDUMP_OUTPUT",
    "Start",
    "TablespaceRecord",
    "check_memory",
    "format_position",
    "last_commit",
    "parse_position",
    "scan",
    "segment_number",
    "tablespace_records",
    "wal_segments",
]

SEGMENT_NAME = re.compile(r"[0-9A-F]{24}")
PAGE = struct.Struct("<HHIQI4x")  # XLogPageHeaderData: magic, info, timeline, address, rest of a record
LONG_PAGE = struct.Struct("<QII")  # follows it on a segment's first page: system identifier, segment size, page size
PAGE_SIZES = [2**power for power in range(10, 17)]  # bytes; as it was built, mostly 8192
RECORD = struct.Struct("<IIQBB2xI")  # XLogRecord: total length, xid, previous, info, resource manager, checksum
CHECKSUM = 20  # offset in RECORD; it covers what follows the header, and then the header before it
TABLESPACE_MANAGER, CREATE, KIND = 5, 0x00, 0xF0  # RM_TBLSPC_ID, XLOG_TBLSPC_CREATE, ~XLR_INFO_MASK
COMMITS = (0x00, 0x30)  # XLOG_XACT_COMMIT and …_COMMIT_PREPARED
TRANSACTION_MANAGER, TRANSACTION_KIND = 1, 0x70  # RM_XACT_ID, XLOG_XACT_OPMASK
LATEST = 253402300800  # seconds of Unix time: the end of the year 9999, beyond which nothing here can tell a time
EPOCH = 946684800  # PostgreSQL's, 2000-01-01, in seconds of Unix time
XLOG_MANAGER, NOOP = 0, 0x20  # RM_XLOG_ID, XLOG_NOOP
LONGEST = 2048  # bytes; a path has at most 1024
MOST_RECORDS = 10_000  # that create tablespaces, in all of the WAL
# Bytes whose checksum is looked at, some 10 s of work: in WAL that was not made to be hard to read it is some hundreds.
EFFORT = 64 << 20
WALDUMP_OUTPUT = 1 << 20  # bytes
COPIES = 3  # of a segment that are in memory while WAL is gone through
AT_ONCE = 4  # segments read ahead: as many as an archive has mounts at most

# From the resource manager's byte on: manager, padding, checksum, and the number of what is in the record: its data
# (255, or 254 with a longer length), before which the origin (253) and the transaction (252) may be named.
CANDIDATE = re.compile(rb"\x05\0\0[\s\S]{4}[\xfc-\xff]")
COMMIT_CANDIDATE = re.compile(rb"\x01\0\0[\s\S]{4}[\xfc-\xff]")
LONGEST_COMMIT = 2**20  # bytes; it names each subtransaction and each file that was dropped
PIECE = 2**20  # bytes that are read at once to look for a commit, from the end; most often it is in the last few


@dataclass(frozen=True)
class TablespaceRecord:
    """A CREATE TABLESPACE in the WAL, and what to write to make it do nothing."""

    oid: int
    location: str
    patches: tuple[Patch, ...]


@dataclass(frozen=True)
class Start:
    """Where recovery begins: position in bytes, timeline, and the size of a segment."""

    position: int
    timeline: int
    segment_size: int

    @property
    def segment(self) -> str:
        """Name of the segment that the position is in: XLogFileName in xlog_internal.h."""
        return f"{self.timeline:08X}{self.position >> 32:08X}{(self.position & 0xFFFFFFFF) // self.segment_size:08X}"

    @property
    def lsn(self) -> str:
        """The position as PostgreSQL writes it."""
        return format_position(self.position)


def format_position(position: int) -> str:
    """A position in bytes as PostgreSQL writes it, such as C(1A/2B3C4D5E)."""
    return f"{position >> 32:X}/{position & 0xFFFFFFFF:X}"


def parse_position(lsn: str) -> int:
    """Parse a position that format_position() wrote."""
    high, _slash, low = lsn.partition("/")
    return int(high, 16) << 32 | int(low, 16)


def wal_segments(directory: str) -> list[str]:
    """Names of the WAL segments in directory, in order; none when it cannot be read."""
    try:
        return [name for name in names_in(directory) if SEGMENT_NAME.fullmatch(name)]
    except OSError:
        return []


def tablespace_records(
    directory: str, start: Start, *, waldump: WalDump | None, timeout: float
) -> list[TablespaceRecord]:
    """Every CREATE TABLESPACE in directory that recovery from start can come to.

    waldump runs pg_waldump on a directory, which says within a fraction of a second (400 MB: 0.2 s) that there is none,
    the usual case. Where it is missing, or finds one, or leaves a doubt, the WAL is gone through here (2 s), within
    timeout seconds. Raises RecoveryError where that takes longer.
    """
    size = start.segment_size
    names = [name for name in wal_segments(directory) if segment_number(name, size) >= start.position // size]
    # It looks at one timeline, up to the first gap, where recovery may go on with WAL from elsewhere.
    if waldump is not None and names == _following(start, len(names)):
        arguments = ["--path", directory, "--timeline", str(start.timeline), "--start", start.lsn]
        paths = [os.path.join(directory, name) for name in names]
        with _read_ahead(paths, size), suppress(OutputError):
            done = waldump(directory, [*arguments, "--rmgr", "Tablespace"])
            # It goes on until there is no more valid record, as recovery does, and calls this an error.
            if "error in WAL record at" in done.stderr and "desc: CREATE" not in done.stdout:
                return []
    return list(_not_too_many(scan(directory, start, timeout=timeout)))


def _following(start: Start, number: int) -> list[str]:
    """The names of so many segments of one timeline from start on."""
    places = (start.position + place * start.segment_size for place in range(number))
    return [Start(place, start.timeline, start.segment_size).segment for place in places]


def scan(directory: str, start: Start, *, timeout: float = math.inf) -> Iterator[TablespaceRecord]:
    """Find tablespaces' records without pg_waldump, on all timelines."""
    size, effort = start.segment_size, Effort(timeout)
    check_memory(COPIES * size)
    by_timeline: dict[str, list[str]] = {}
    for name in wal_segments(directory):
        if segment_number(name, size) >= start.position // size:
            by_timeline.setdefault(name[:8], []).append(os.path.join(directory, name))
    for paths in by_timeline.values():
        before: _Segment | None = None
        for path in paths:
            segment = _read(path, segment_number(os.path.basename(path), size) * size, size)
            if before is not None:
                yield from _records(before, segment, start.position, effort)
            # One that is not full need not be the end of the WAL: after a switch the rest of a segment is empty. Those
            # behind the end are used ones, waiting for their turn, which say that they begin elsewhere.
            before = segment
        if before is not None:
            yield from _records(before, None, start.position, effort)


@contextmanager
def _read_ahead(paths: list[str], size: int) -> Iterator[None]:
    """Have the kernel read so many bytes of the files while the with block lasts, some at once, in their order.

    Whoever reads WAL reads one segment after the other, and a layer over several Borg mounts could serve more than one
    at a time. Recovery will find them in the kernel's page cache.
    """
    waiting = iter(paths)
    over = threading.Event()

    def read() -> None:
        buffer = bytearray(1 << 20)
        for path in waiting:
            with suppress(OSError), open(open_regular(path, os.O_RDONLY), "rb", buffering=0) as file:
                while not over.is_set() and file.tell() < size and file.readinto(buffer):
                    pass

    for _thread in range(AT_ONCE):
        # Not waited for: where the lower hangs, the time-out of whoever reads counts.
        threading.Thread(target=read, daemon=True).start()
    try:
        yield
    finally:
        over.set()


class Scan:
    """A look at one segment of WAL after the other, by their contents, for what creates tablespaces."""

    def __init__(self) -> None:
        self._effort, self._known = Effort(math.inf), 0

    def segment(
        self, name: str, content: bytes, *, before: bytes | None, after: bytes | None
    ) -> list[TablespaceRecord]:
        """Every CREATE TABLESPACE of which something is in a segment, given its neighbours' contents.

        Only patches with name as their path are for this segment. Raises RecoveryError where all of the WAL together
        has more of them than any server has made, or is too hard to read.
        """
        found = _scanned(name, content, before, after, self._effort)
        self._known += len(found)
        _limit(self._known)
        return found


def _scanned(
    name: str, content: bytes, before: bytes | None, after: bytes | None, effort: Effort
) -> list[TablespaceRecord]:
    start = segment_number(name, len(content)) * len(content)
    segment = _parse(name, start, memoryview(content))
    following = None if after is None else _parse("", start + len(content), memoryview(after))
    found = list(_not_too_many(_records(segment, following, 0, effort)))
    if before is not None:
        preceding = _parse("", start - len(content), memoryview(before))
        found += _not_too_many(_records(preceding, segment, 0, effort))
    return [record for record in found if any(patch.path == name for patch in record.patches)]


def last_commit(directory: str, start: Start) -> float | None:
    """When the last transaction committed of those in the last segment of the valid WAL from start on.

    In seconds of Unix time; None where that segment has no commit. Of the others only the first bytes are read.
    """
    size = start.segment_size
    paths = {segment_number(name, size): os.path.join(directory, name) for name in wal_segments(directory)}
    number = start.position // size
    # Segments behind the end are used ones, waiting for their turn: they say that they begin elsewhere.
    while number + 1 in paths and _begins(_head(paths[number + 1]), (number + 1) * size):
        number += 1
    if number not in paths:
        return None
    descriptor = open_regular(paths[number], os.O_RDONLY)
    try:
        # Of a cluster that was shut down in order the WAL ends there, and what is behind need not be read.
        known = start.position % size if number == start.position // size else 0
        return _commit_before_end(descriptor, number * size, known, size)
    finally:
        os.close(descriptor)


def _commit_before_end(descriptor: int, start: int, known: int, size: int) -> float | None:
    """The last commit in a segment of size bytes that begins at start, and is valid up to the offset known at least."""
    head = os.pread(descriptor, PAGE.size + LONG_PAGE.size, 0)
    if not _begins(head, start):
        return None
    page_size = LONG_PAGE.unpack_from(head, PAGE.size)[2]
    # However long the file is.
    end = min(_valid_pages(descriptor, start, page_size, known // page_size), size // page_size)
    content, effort = b"", Effort(math.inf)
    while end > 0:
        first = max(0, end - PIECE // page_size)
        data = os.pread(descriptor, (end - first) * page_size, first * page_size)
        pages = [data[place + PAGE.size : place + page_size] for place in range(0, len(data), page_size)]
        if first == 0:
            pages[0] = pages[0][LONG_PAGE.size :]
        piece = b"".join(pages)
        content = piece + content[:LONGEST_COMMIT]  # a record may be parted by the pieces
        try:
            moment = _last_commit(content, len(piece), effort)
        except RecoveryError:
            return None
        if moment is not None:
            return moment
        end = first
    return None


def _valid_pages(descriptor: int, start: int, page_size: int, known: int) -> int:
    """The number of pages that say that they belong where they are; it is looked for from page number known on."""

    def is_valid(page: int) -> bool:
        head = os.pread(descriptor, PAGE.size, page * page_size)
        return len(head) == PAGE.size and bool(PAGE.unpack(head)[3] == start + page * page_size)

    valid = known if is_valid(known) else 0
    step = 1
    while is_valid(valid + step):
        valid, step = valid + step, 2 * step
    beyond = valid + step
    while beyond - valid > 1:
        middle = (valid + beyond) // 2
        valid, beyond = (middle, beyond) if is_valid(middle) else (valid, middle)
    return beyond


def _last_commit(content: bytes, limit: int, effort: Effort) -> float | None:
    """Time of the last commit in content that begins before limit."""
    view = memoryview(content)
    for match in reversed(list(COMMIT_CANDIDATE.finditer(content, 0, limit + RECORD.size))):
        begin = match.start() - 17
        if begin < 0 or begin % 8 or begin >= limit:
            continue
        length, _xid, _previous, info, manager, _checksum = RECORD.unpack_from(content, begin)
        if manager != TRANSACTION_MANAGER or info & TRANSACTION_KIND not in COMMITS or length > LONGEST_COMMIT:
            continue
        data = _data(view[begin : begin + length], effort)
        moment = EPOCH + int.from_bytes(data[:8], "little", signed=True) / 1e6 if data else 0
        if 0 < moment < LATEST:
            return moment
    return None


def segment_number(name: str, segment_size: int) -> int:
    """A segment's number: its first byte is at this times segment_size."""
    return int(name[8:16], 16) * (2**32 // segment_size) + int(name[16:24], 16)


@dataclass(frozen=True)
class _Segment:
    """The content of one segment without its page headers; start is its position in the WAL."""

    path: str
    start: int
    page_size: int
    content: bytes

    def offset(self, position: int) -> int:
        """Where in the file the byte at that position of content is."""
        first = self.page_size - PAGE.size - LONG_PAGE.size
        if position < first:
            return PAGE.size + LONG_PAGE.size + position
        pages, rest = divmod(position - first, self.page_size - PAGE.size)
        return (1 + pages) * self.page_size + PAGE.size + rest


def _read(path: str, start: int, size: int) -> _Segment:
    """A segment as far as it is valid and within size; where its first page is not, the rest is not read."""
    if not _begins(_head(path), start):
        return _Segment(path, start, 8192, b"")
    return _parse(path, start, memoryview(read_beginning(path, size)))


def _head(path: str) -> bytes:
    """A segment's first page header."""
    return read_beginning(path, PAGE.size + LONG_PAGE.size)


def check_memory(size: int) -> None:
    """Raise RecoveryError where so many bytes are more than half of the memory that this host has to spare."""
    with open("/proc/meminfo", encoding="ascii", newline="\n") as table:
        spare = next((int(line.split()[1]) * 1024 for line in table if line.startswith("MemAvailable:")), size * 2)
    if size > spare // 2:
        raise RecoveryError(
            f"To read WAL segments of this size takes {size >> 20} MiB of memory, and this host has {spare >> 20} MiB "
            "to spare: start the session on a larger one."
        )


def _not_too_many(records: Iterator[TablespaceRecord]) -> Iterator[TablespaceRecord]:
    """The records. Raises RecoveryError where there are more than any cluster has ever had tablespaces."""
    for number, record in enumerate(records, 1):
        _limit(number)
        yield record


def _limit(number: int) -> None:
    if number > MOST_RECORDS:
        raise RecoveryError(
            f"The WAL creates more than {MOST_RECORDS} tablespaces, which no server has done: use another archive."
        )


def _begins(head: bytes | memoryview, start: int) -> bool:
    """Whether a segment's first bytes say that it begins at that position."""
    if len(head) < PAGE.size + LONG_PAGE.size or PAGE.unpack_from(head)[3] != start:
        return False
    return LONG_PAGE.unpack_from(head, PAGE.size)[2] in PAGE_SIZES


def _parse(path: str, start: int, data: memoryview) -> _Segment:
    """A segment as far as it is valid: each page says where in the WAL it belongs."""
    if not _begins(data, start):
        return _Segment(path, start, 8192, b"")
    page_size = LONG_PAGE.unpack_from(data, PAGE.size)[2]
    pages = [data[PAGE.size + LONG_PAGE.size : page_size]]
    for offset in range(page_size, len(data), page_size):
        if offset + PAGE.size > len(data) or PAGE.unpack_from(data, offset)[3] != start + offset:
            break
        pages.append(data[offset + PAGE.size : offset + page_size])
    return _Segment(path, start, page_size, b"".join(pages))


class Effort:
    """What is done at most to read WAL: whoever made the archive could have it look like records everywhere."""

    def __init__(self, timeout: float) -> None:
        self._timeout, self._deadline = timeout, time.monotonic() + timeout
        self._left = EFFORT

    def spend(self, size: int) -> None:
        """Account for a look at so many bytes. Raises RecoveryError."""
        self._left -= size
        if self._left < 0:
            raise RecoveryError("The WAL is full of what is almost a record: use another archive.")
        self.check_time()

    def check_time(self) -> None:
        """Raise RecoveryError when the time is over."""
        if time.monotonic() > self._deadline:
            raise RecoveryError(
                f"The WAL was not gone through for tablespaces within {self._timeout:g} s: {MORE_TIME}."
            )


def _records(segment: _Segment, following: _Segment | None, redo: int, effort: Effort) -> Iterator[TablespaceRecord]:
    """The records that begin in segment; the last may end in the one that follows."""
    effort.check_time()
    content = segment.content + (following.content[:LONGEST] if following else b"")
    for match in CANDIDATE.finditer(content):
        begin = match.start() - 17
        # Records are aligned. One before redo is not replayed.
        if begin >= 0 and begin % 8 == 0 and begin < len(segment.content):
            decoded = _decode(memoryview(content)[begin : begin + LONGEST], effort)
            if decoded is not None and segment.start + segment.offset(begin) >= redo:
                oid, location, header = decoded
                yield TablespaceRecord(oid, location, tuple(_patches(segment, following, begin, header)))


def _decode(data: memoryview, effort: Effort) -> tuple[int, str, bytes] | None:
    """Oid, path, and the header that makes the record do nothing, if data begins with a CREATE TABLESPACE."""
    content = _data(data, effort)
    if content is None:
        return None
    length, xid, previous, info, manager, _checksum = RECORD.unpack_from(data)
    if manager != TABLESPACE_MANAGER or info & KIND != CREATE:
        return None
    body = bytes(data[RECORD.size : length])
    oid = int.from_bytes(content[:4], "little")
    header = RECORD.pack(length, xid, previous, NOOP, XLOG_MANAGER, 0)
    header = header[:CHECKSUM] + crc32c(body + header[:CHECKSUM]).to_bytes(4, "little")
    return oid, os.fsdecode(content[4:].partition(b"\0")[0]), header


def _data(data: memoryview, effort: Effort) -> bytes | None:
    """The record's own data, if data begins with a whole and valid record that has nothing else.

    Nothing is copied before it is accounted for: what only looks like a record may be at every 24th byte.
    """
    if len(data) < RECORD.size:
        return None
    length, checksum = RECORD.unpack_from(data)[0], RECORD.unpack_from(data)[-1]
    begin = _own_data(data[:length]) if RECORD.size < length <= len(data) else None
    if begin is None:  # which is known sooner than what follows
        return None
    effort.spend(length)
    is_valid = crc32c(bytes(data[RECORD.size : length]) + bytes(data[:CHECKSUM])) == checksum
    return bytes(data[begin:length]) if is_valid else None


def _own_data(record: memoryview) -> int | None:
    """Where a record's data begin, after its header, origin and transaction, each with its number before it.

    None where more or less follows than is announced.
    """
    position = RECORD.size
    while position < len(record) and record[position] in (0xFC, 0xFD):
        position += 5 if record[position] == 0xFC else 3
    width = {0xFF: 1, 0xFE: 4}.get(record[position], 0) if position < len(record) else 0
    begin = position + 1 + width
    announced = int.from_bytes(record[position + 1 : begin], "little")
    return begin if width and len(record) - begin == announced else None


def _patches(segment: _Segment, following: _Segment | None, begin: int, header: bytes) -> Iterator[Patch]:
    """header, byte by byte where it goes: it may be parted by a page's or a segment's end."""
    for number, byte in enumerate(header):
        position = begin + number
        place, position = (
            (segment, position)
            if position < len(segment.content) or following is None
            else (following, position - len(segment.content))
        )
        yield Patch(place.path, place.offset(position), bytes([byte]))
