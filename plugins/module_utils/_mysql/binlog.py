# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Binary logs: their names, their index, and what they begin with.

Format, from both servers' sources (log_event.h): a magic number, then events with a header of 19 bytes (time, type,
server id, length, end, flags), of which the first describes the format and has the server's version.
"""

from __future__ import annotations

import posixpath
import re
import struct
import uuid
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import IO

from .option_file import MysqlError

__all__ = [
    *("HEAD", "NAME", "BinlogHead", "Transaction", "description", "is_binlog_name", "parse_head", "parse_index"),
    *("sorted_logs", "transactions"),
]

HEAD = 4 + 19 + 2 + 50  # bytes up to the end of the server's version
MAGIC = b"\xfebin"
NAME = re.compile(r"(?P<base>.+)\.(?P<number>[0-9]{6,18})")
VERSION = re.compile(rb"\d{1,3}\.\d{1,3}\.\d{1,3}")
EVENT = struct.Struct("<IBIIIH")  # time, type, server id, length, end, flags
LARGEST_DESCRIPTION = 4096  # bytes
# Types of events. Those that begin a transaction: of MariaDB, and of MySQL with and without a GTID.
OF_MARIADB, OF_MYSQL, ANONYMOUS, ENCRYPTED = 162, 33, 34, 164
BEGINNINGS = (OF_MARIADB, OF_MYSQL, ANONYMOUS)
# Those between transactions: STOP, ROTATE, the description, lists of GTIDs, and MariaDB's checkpoint.
BETWEEN = (3, 4, 15, 35, 161, 163)
DESCRIPTION = 15  # type of the first event, from MySQL 5.0 on
IN_USE, RELAYED = 1, 0x40  # flags: not closed in order; of a replica's relay log
MOST_NAMES = 100_000  # of one index


@dataclass(frozen=True)
class BinlogHead:
    """What the first event says. is_open: the server was killed while it was the newest."""

    version: str | None
    is_open: bool
    is_relayed: bool
    time: int


def parse_head(head: bytes) -> BinlogHead | None:
    """What a file begins with; None where it is no binary log."""
    if len(head) < HEAD or not head.startswith(MAGIC) or head[8] != DESCRIPTION:
        return None
    flags = int.from_bytes(head[21:23], "little")
    version = VERSION.match(head[25:75])
    return BinlogHead(
        version=version.group().decode() if version else None,
        is_open=bool(flags & IN_USE),
        is_relayed=bool(flags & RELAYED),
        time=int.from_bytes(head[4:8], "little"),
    )


def parse_index(text: str) -> list[str]:
    """The paths in an index; nothing where the text is something else."""
    lines = text.splitlines()[:MOST_NAMES]
    return lines if lines and all(NAME.fullmatch(posixpath.basename(line)) for line in lines) else []


def is_binlog_name(name: str) -> bool:
    """Whether a file may be a binary log, by its name."""
    return NAME.fullmatch(name) is not None


def sorted_logs(names: Iterable[str], base: str) -> Sequence[str]:
    """Of names those of logs with that base name, in the order in which they were written."""
    found = [
        (int(match["number"]), name) for name in names if (match := NAME.fullmatch(name)) and match["base"] == base
    ]
    return [name for _number, name in sorted(found)]


@dataclass(frozen=True)
class Transaction:
    """One transaction in a log: its place, the time of its last event, and its global id, if it has one."""

    begin: int
    end: int
    time: int
    gtid: str | None = None


def description(file: IO[bytes]) -> bytes:
    """What a log begins with: the magic number, and the event that describes its format. Raises MysqlError."""
    file.seek(0)
    head = file.read(len(MAGIC) + EVENT.size)
    length = EVENT.unpack_from(head, len(MAGIC))[3] if len(head) == len(MAGIC) + EVENT.size else 0
    if not head.startswith(MAGIC) or not EVENT.size <= length <= LARGEST_DESCRIPTION:
        raise MysqlError("A binary log does not begin as one: use another archive of it.")
    return head + file.read(length - EVENT.size)


def transactions(file: IO[bytes], begin: int, size: int) -> Iterator[Transaction]:
    """The whole transactions of a log from one event on; what is cut off at its end is none. Raises MysqlError."""
    place, first, is_open, moment, gtid = begin, begin, False, 0, None
    while place + EVENT.size <= size:
        file.seek(place)
        head = file.read(EVENT.size + 25)
        if len(head) < EVENT.size:
            break
        time, kind, server, length, _end, _flags = EVENT.unpack_from(head)
        if length < EVENT.size or place + length > size:
            break
        if kind == ENCRYPTED:
            raise MysqlError("The binary logs are encrypted, and only servers read these: archive them decrypted.")
        if kind in BEGINNINGS or kind in BETWEEN:
            if is_open:
                yield Transaction(first, place, moment, gtid)
            first, is_open = place, kind in BEGINNINGS
            gtid = _gtid(kind, server, head[EVENT.size :]) if is_open else None
        moment = time if is_open else moment
        place += length
    if is_open:
        yield Transaction(first, place, moment, gtid)


def _gtid(kind: int, server: int, body: bytes) -> str | None:
    if kind == OF_MARIADB and len(body) >= 12:
        number, domain = struct.unpack_from("<QI", body)
        return f"{domain}-{server}-{number}"
    if kind == OF_MYSQL and len(body) >= 25:
        return f"{uuid.UUID(bytes=body[1:17])}:{struct.unpack_from('<Q', body, 17)[0]}"
    return None
