# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Binary logs: their names, their index, and what they begin with.

Format, from both servers' sources (log_event.h): a magic number, then events with a header of 19 bytes (time, type,
server id, length, end, flags), of which the first describes the format and has the server's version.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

__all__ = ["HEAD", "BinlogHead", "is_binlog_name", "parse_head", "parse_index", "sorted_logs"]

HEAD = 4 + 19 + 2 + 50  # bytes up to the end of the server's version
MAGIC = b"\xfebin"
NAME = re.compile(r"(?P<base>.+)\.(?P<number>\d{6,19})")
VERSION = re.compile(rb"\d{1,3}\.\d{1,3}\.\d{1,3}")
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
