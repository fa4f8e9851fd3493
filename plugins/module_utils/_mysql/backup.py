# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What Mariabackup and XtraBackup note of a backup that they have made."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["INFORMATION", "Backup", "parse_backup"]

CHECKPOINTS = ("mariadb_backup_checkpoints", "xtrabackup_checkpoints")  # the former from MariaDB 11 on
INFO = ("mariadb_backup_info", "xtrabackup_info")
POSITION = ("mariadb_backup_binlog_info", "xtrabackup_binlog_info")
INFORMATION = (*CHECKPOINTS, *INFO, *POSITION)
PAIR = re.compile(r"^(\w{1,40}) = (.{0,400})$", re.MULTILINE)
PLACE = re.compile(r"(\S{1,255})\t(\d{1,18})(?:\t(\S{1,4000}))?")


@dataclass(frozen=True)
class Backup:
    """One backup; file, position and gtid are where its binary log stood, as far as it has noted that."""

    program: str
    version: str | None
    is_prepared: bool
    is_incremental: bool
    file: str | None = None
    position: int | None = None
    gtid: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """Plain data for a module's result."""
        return asdict(self)


def parse_backup(text: Callable[[str, str], str], directory: str) -> Backup | None:
    """What is noted in the directory, of which text gives a file's content; None where no backup is."""
    checkpoints = dict(PAIR.findall(_first(text, directory, CHECKPOINTS)))
    kind = checkpoints.get("backup_type", "").strip()
    if not kind:
        return None
    info = dict(PAIR.findall(_first(text, directory, INFO)))
    place = PLACE.match(_first(text, directory, POSITION))
    is_mariadb = "mariadb" in f"{info.get('tool_name', '')} {info.get('server_version', '')}".lower()
    return Backup(
        program="mariadb-backup" if is_mariadb else "xtrabackup",
        version=info.get("server_version"),
        is_prepared=kind in ("full-prepared", "log-applied"),
        is_incremental=kind == "incremental",
        file=place[1] if place else None,
        position=int(place[2]) if place else None,
        gtid=place[3] if place else None,
    )


def _first(text: Callable[[str, str], str], directory: str, names: tuple[str, ...]) -> str:
    """The content of the first of these files that there is."""
    return next((content for name in names if (content := text(directory, name))), "")
