# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a copied data directory says about its own recovery: where it begins, and how far it has to go at least.

Sources: src/backend/access/transam/xlogbackup.c (backup_label, the history file that pg_backup_stop() archives) and
backup/backup_manifest.c of PostgreSQL 15; up to 14 xlog.c, and in 17 backup/basebackup_incremental.c, too.
"""

from __future__ import annotations

import codecs
import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .._host.files import read_end
from .cluster import read_regular_file
from .wal import Start, parse_position

if TYPE_CHECKING:
    from collections.abc import Callable

    from .cluster import DataDirectory

__all__ = ["Backup", "as_utf8", "read_backup", "readable_label"]

NUMBER = rb"[0-9A-Fa-f]+"
# The lines of a backup_label in their order, and those of them that recovery cannot do without: on the method depends
# whether it waits for the backup's end.
LABEL_LINES = (
    rb"START WAL LOCATION: %b/%b \(file [0-9A-Fa-f]{24}\)" % (NUMBER, NUMBER),
    rb"CHECKPOINT LOCATION: %b/%b" % (NUMBER, NUMBER),
    rb"BACKUP METHOD: \w+",
    rb"BACKUP FROM: \w+",
    rb"START TIME: [0-9-]+ [0-9:]+ [+-]?\w+",
    rb"LABEL: .*",
    rb"START TIMELINE: [0-9]+",
    rb"INCREMENTAL FROM LSN: %b/%b" % (NUMBER, NUMBER),
    rb"INCREMENTAL FROM TLI: [0-9]+",
)
NEEDED_LINES = 4
FRAME, BLANKS = b"+|", b" \t"  # what psql's table has at a line's end, and before that
# The server would do without the last two of these, and then not wait for the backup's end.
READABLE = re.compile(rb"\n".join(LABEL_LINES[:NEEDED_LINES]) + rb"(?:\n|\Z)")
LABEL_START = re.compile(rb"^START WAL LOCATION: ([0-9A-F]{1,8}/[0-9A-F]{1,8}) \(file ([0-9A-F]{8})", re.MULTILINE)
HISTORY_STOP = re.compile(rb"^STOP WAL LOCATION: ([0-9A-F]{1,8}/[0-9A-F]{1,8}) ", re.MULTILINE)
EXCLUSIVE = b"\nBACKUP METHOD: pg_start_backup\n"
INCREMENTAL = b"\nINCREMENTAL FROM LSN: "  # from PostgreSQL 17 on
MANIFEST_END = re.compile(rb'"End-LSN": "([0-9A-F]{1,8}/[0-9A-F]{1,8})"')
MANIFEST_TAIL = 16 * 1024  # bytes; the ranges of WAL, one for each timeline, are the last but one of its entries


@dataclass(frozen=True)
class Backup:
    """start: where recovery begins. end: the position it must reach to be consistent, where that is known.

    is_labelled: files were copied one after the other while the server ran; backup_label says from where.
    is_exclusive: the label lay in production's own data directory, so a server that finds it may be production after a
    crash, and does without the backup's end (up to PostgreSQL 14).
    is_incremental: of most files there are only changes.
    label: what backup_label has to hold instead, where the server cannot read it as it is.
    problem: what is wrong with it where that cannot be mended.
    """

    start: Start
    end: int | None
    is_labelled: bool
    is_exclusive: bool = False
    is_incremental: bool = False
    label: bytes | None = None
    problem: str | None = None


def read_backup(data: DataDirectory, find_history: Callable[[str], bytes | None] = lambda _name: None) -> Backup:
    """backup_label counts where there is one, else pg_control.

    find_history gives the content of a backup's history file, which is archived with the WAL.
    """
    size = data.control.wal_segment_size
    archived = read_regular_file(os.path.join(data.path, "backup_label"))
    label = b"" if archived is None else readable_label(archived)
    named = LABEL_START.search(label or b"")
    if label is None or named is None:
        start = Start(parse_position(data.control.redo_lsn), data.control.timeline, size)
        # Only a standby's is set: pages may have been written up to there.
        end = parse_position(data.control.min_recovery_point) or None
        return Backup(start, end, is_labelled=False, problem=None if archived is None else _wrong_label(archived))
    start = Start(parse_position(named.group(1).decode()), int(named.group(2), 16), size)
    history = find_history(f"{start.segment}.{start.position % size:08X}.backup")
    ends = [*HISTORY_STOP.findall(history or b""), *MANIFEST_END.findall(_manifest_tail(data.path))]
    known = [*map(bytes.decode, ends), data.control.backup_end_point]
    return Backup(
        start,
        max(map(parse_position, known)) or None,
        is_labelled=True,
        is_exclusive=EXCLUSIVE in label,
        is_incremental=INCREMENTAL in label,
        label=None if label == archived else label,
    )


def readable_label(content: bytes) -> bytes | None:
    """A backup_label as the server reads it; None where needed lines are missing.

    Scripts write it with line breaks of Windows, in UTF-16, or as the table that psql prints.
    """
    content = as_utf8(content)
    if READABLE.match(content) and b"\r" not in content:
        return content
    found = [re.search(rb"(?m)%b" % line, content) for line in LABEL_LINES]
    if None in found[:NEEDED_LINES]:
        return None
    lines = [line.group() for line in found if line is not None]
    # What a label ends with may be its frame's. It is cut off here: an expression for both would take for ever.
    return b"".join(line.rstrip(b"\r").rstrip(FRAME).rstrip(BLANKS) + b"\n" for line in lines)


def as_utf8(content: bytes) -> bytes:
    """The content in UTF-8 where a script's shell wrote it in UTF-16."""
    is_utf16 = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    return content.decode("utf-16", "replace").encode() if is_utf16 else content


def _wrong_label(content: bytes) -> str:
    names = [line.partition(b":")[0].decode() for line in LABEL_LINES[:NEEDED_LINES]]
    missing = [name for name, line in zip(names, LABEL_LINES) if not re.search(line, content)]
    what = f"backup_label has no line {', '.join(missing)}, and begins with {content[:40]!r}"
    return (
        f"{what if content.strip() else 'backup_label is empty'}, so nobody knows where recovery has to begin: use an "
        "archive whose backup_label holds the text that pg_backup_stop() returned as labelfile (psql -X -A -t prints "
        "it as it is, and pg_basebackup writes it by itself)"
    )


def _manifest_tail(data_directory: str) -> bytes:
    path = os.path.join(data_directory, "backup_manifest")
    try:
        return read_end(path, MANIFEST_TAIL)
    except OSError:
        return b""
