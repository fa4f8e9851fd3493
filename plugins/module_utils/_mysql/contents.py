# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Databases of MariaDB and MySQL in an archive: recognised by InnoDB's ibdata1."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from .._engine.contents import Content, Contents
from .._engine.database import Database
from .._engine.other_backups import Dump, OtherBackup, dump_of

if TYPE_CHECKING:
    from .._engine.listing import Beginnings

__all__ = ["MysqlContents"]

DUMPS = (
    ("mariadb", re.compile(rb"^-- MariaDB dump", re.MULTILINE)),
    ("mysql", re.compile(rb"^-- (?:MySQL dump|Dump created by MySQL pump)", re.MULTILINE)),
)
STREAMS = (b"XBSTCK01", b"xbstck")


class MysqlContents(Contents):
    """What a listing has of MariaDB and MySQL."""

    names = ("mariadb", "mysql")
    mark = "ibdata1"
    readable = frozenset(("mysql_upgrade_info", "mariadb_upgrade_info"))
    present = frozenset(("ibdata1", "aria_log_control", "mysql.ibd"))
    data_files = frozenset(("ibdata1",))

    def directories(self) -> Sequence[str]:
        return self.listing.directories_with("ibdata1")

    def databases(
        self,
        content: Content,
        relocated: Mapping[str, str],
        begin: Beginnings,
    ) -> Iterator[Database]:
        return (self._database(content, directory) for directory in self.directories())

    def _database(self, content: Content, directory: str) -> Database:
        listing = self.listing
        upgraded = content.text(directory, "mariadb_upgrade_info") or content.text(directory, "mysql_upgrade_info")
        version = re.match(r"\d+(?:\.\d+)+", upgraded)
        is_mariadb = listing.has(directory, "aria_log_control") or "MariaDB" in upgraded
        redo = ("#innodb_redo",) if listing.has_directory(posixpath.join(directory, "#innodb_redo")) else ()
        return Database(
            engine="mariadb" if is_mariadb else "mysql",
            data_directory=directory or ".",
            kind="unknown",
            version=version.group() if version else None,
            owner=listing.markers[posixpath.join(directory, "ibdata1")].user,
            size=listing.size_below(directory),
            markers=(*(name for name in ("aria_log_control", "mysql.ibd") if listing.has(directory, name)), *redo),
        )

    def dump_in(self, header: bytes, members: Sequence[str]) -> Dump | None:
        return next(filter(None, (dump_of(engine, pattern, header) for engine, pattern in DUMPS)), None)

    def backup_in(self, path: str, content: bytes, members: Sequence[str]) -> OtherBackup | None:
        if not content.startswith(STREAMS):
            return None
        remedy = "unpack and prepare it (mbstream -x or xbstream -x, then --prepare), and archive the directory"
        return OtherBackup(path, "a backup stream of Mariabackup or XtraBackup", remedy)
