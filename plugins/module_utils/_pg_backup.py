# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a copied data directory says about its own recovery: where it begins, and how far it has to go at least.

Sources: src/backend/access/transam/xlogbackup.c (backup_label, the history file that pg_backup_stop() archives) and
backup/backup_manifest.c of PostgreSQL 15; up to 14 xlog.c, and in 17 backup/basebackup_incremental.c, too.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ansible_collections.phpborg.instant_recovery.plugins.module_utils._files import read_end
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._pg_wal import Start, parse_position
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._postgresql import read_regular_file

if TYPE_CHECKING:
    from collections.abc import Callable

    from ansible_collections.phpborg.instant_recovery.plugins.module_utils._postgresql import DataDirectory

__all__ = ["Backup", "read_backup"]

LABEL_START = re.compile(rb"^START WAL LOCATION: ([0-9A-F]+/[0-9A-F]+) \(file ([0-9A-F]{8})", re.MULTILINE)
HISTORY_STOP = re.compile(rb"^STOP WAL LOCATION: ([0-9A-F]+/[0-9A-F]+) ", re.MULTILINE)
EXCLUSIVE = b"\nBACKUP METHOD: pg_start_backup\n"
INCREMENTAL = b"\nINCREMENTAL FROM LSN: "  # from PostgreSQL 17 on
MANIFEST_END = re.compile(rb'"End-LSN": "([0-9A-F]+/[0-9A-F]+)"')
MANIFEST_TAIL = 16 * 1024  # bytes; the ranges of WAL, one for each timeline, are the last but one of its entries


@dataclass(frozen=True)
class Backup:
    """start: where recovery begins. end: the position it must reach to be consistent, where that is known.

    is_labelled: files were copied one after the other while the server ran; backup_label says from where.
    is_exclusive: the label lay in production's own data directory, so a server that finds it may be production after a
    crash, and does without the backup's end (up to PostgreSQL 14).
    is_incremental: of most files there are only changes.
    """

    start: Start
    end: int | None
    is_labelled: bool
    is_exclusive: bool = False
    is_incremental: bool = False


def read_backup(data: DataDirectory, find_history: Callable[[str], bytes | None] = lambda _name: None) -> Backup:
    """backup_label counts where there is one, else pg_control.

    find_history gives the content of a backup's history file, which is archived with the WAL.
    """
    size = data.control.wal_segment_size
    label = read_regular_file(os.path.join(data.path, "backup_label")) or b""
    named = LABEL_START.search(label)
    if named is None:
        start = Start(parse_position(data.control.redo_lsn), data.control.timeline, size)
        # Only a standby's is set: pages may have been written up to there.
        return Backup(start, parse_position(data.control.min_recovery_point) or None, is_labelled=False)
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
    )


def _manifest_tail(data_directory: str) -> bytes:
    path = os.path.join(data_directory, "backup_manifest")
    try:
        return read_end(path, MANIFEST_TAIL)
    except OSError:
        return b""
