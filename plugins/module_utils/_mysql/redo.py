# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""InnoDB's redo log: which server wrote it, and whether that had ended in order, as its first blocks tell.

Formats, from the sources of both servers: MariaDB's from 10.8 on begins with `Phys`, from 10.5 on with `PHYS`, older
ones and MySQL's with a small number. All but those of MySQL up to 5.6 have the name and version of what wrote them at
byte 16.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

__all__ = ["HEAD", "TABLE", "Redo", "parse_redo", "product_of", "version_of_table"]

TABLE = "mysql/user.frm"  # a table's definition, in which every server before MySQL 8.0 notes its version
HEAD = 12 << 10  # bytes of the first file that are looked at; a prepared backup's has no more
PHYSICAL = 0x50687973  # MariaDB's from 10.8 on; `PHYS` differs by the case of its letters
ENCRYPTED = 1 << 31  # of the format
CHECKPOINTS = (4096, 8192)  # of PHYSICAL: numbers of the log at the checkpoint, and at its end
CREATOR = slice(16, 48)
WRITER = re.compile(r"(MariaDB|MySQL|Backup|xtrabkup|Percona)\D{0,40}(\d{1,3}\.\d{1,3}\.\d{1,3})?")
LARGEST_SMALL_FORMAT = 200


@dataclass(frozen=True)
class Redo:
    """What a redo log says: the words and version of what wrote it, and whether it needs no recovery.

    is_clean is None where that cannot be told. is_backup: a backup program wrote it.
    """

    creator: str
    version: str | None
    is_clean: bool | None
    is_backup: bool = False
    is_encrypted: bool = False


def version_of_table(head: bytes) -> str | None:
    """The version of the server that made a table, by the beginning of its definition (`.frm`, bytes 51 to 54)."""
    number = int.from_bytes(head[51:55], "little") if head[:2] == b"\xfe\x01" else 0
    return f"{number // 10000}.{number // 100 % 100}.{number % 100}" if 50000 <= number < 200000 else None


def parse_redo(head: bytes) -> Redo | None:
    """What the beginning of a redo log's first file says; None where it is no redo log, or one before MySQL 5.7."""
    if len(head) < CREATOR.stop:
        return None
    number = int.from_bytes(head[:4], "big")
    form = number & ~ENCRYPTED
    if form | 0x20202020 != PHYSICAL | 0x20202020 and form > LARGEST_SMALL_FORMAT:
        return None
    creator = head[CREATOR].split(b"\0")[0].decode("ascii", "replace").strip()
    writer = WRITER.match(creator)
    if writer is None:
        return None
    return Redo(
        creator=creator,
        version=writer[2],
        is_clean=_is_clean(head) if form == PHYSICAL else None,
        is_backup=writer[1] in ("Backup", "xtrabkup"),
        is_encrypted=bool(number & ENCRYPTED),
    )


def product_of(version: str) -> str:
    """Whose version it is: since they have parted, MariaDB counts from 10 on, and MySQL up to 9."""
    return "mariadb" if int(version.partition(".")[0]) >= 10 else "mysql"


def _is_clean(head: bytes) -> bool | None:
    """Whether the newer checkpoint is at the log's end: after a shutdown it is, and seldom while a server runs."""
    blocks = [head[place : place + 16] for place in CHECKPOINTS]
    numbers = [
        (int.from_bytes(block[:8], "big"), int.from_bytes(block[8:], "big")) for block in blocks if len(block) == 16
    ]
    if not numbers:
        return None
    checkpoint, end = max(numbers)
    return checkpoint == end
