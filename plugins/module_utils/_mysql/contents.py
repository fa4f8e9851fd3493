# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Databases of MariaDB and MySQL in an archive: recognised by InnoDB's files, told by small files and headers."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .._borg.suspects import is_below
from .._engine.contents import Content, Contents, lost_content
from .._engine.database import Database, outside
from .._engine.listing import Beginnings, Listing
from .._engine.other_backups import Dump, OtherBackup, dump_of
from .._errors import listed, shown
from .backup import INFORMATION, Backup, parse_backup
from .binlog import parse_index
from .external import External, external_files
from .redo import HEAD, TABLE, Redo, parse_redo, product_of, version_of_table

__all__ = ["MysqlContents", "MysqlDatabase"]

DUMPS = (
    ("mariadb", re.compile(rb"^-- MariaDB dump", re.MULTILINE)),
    ("mysql", re.compile(rb"^-- (?:MySQL dump|Dump created by MySQL pump)", re.MULTILINE)),
)
STREAMS = (b"XBSTCK01", b"xbstck")
SYSTEM = "ibdata1"
REDO, REDO_DIRECTORY, REDO_NAME = "ib_logfile0", "#innodb_redo", re.compile(r"#ib_redo([0-9]{1,18})")
REDO_NAMES = (REDO, REDO_DIRECTORY)
UNDO = ("undo001", "undo_001")  # the first of MariaDB's undo tablespaces, and of MySQL's
UPGRADED = ("mariadb_upgrade_info", "mysql_upgrade_info", "mysql_upgrade_history")
POINTERS = (".isl", ".index")  # where files of a table, or binary logs, are
BINARY_LOG = re.compile(r"(.{1,200})\.(?:[0-9]{6}|[1-9][0-9]{6})")  # eight digits are a date
VERSION = re.compile(r"\d{1,3}(?:\.\d{1,3}){1,2}")
OPENED = re.compile(
    r"/(?:ibdata|ib_logfile|ibtmp|undo|aria_log|#ib_|[^/]+\.(?:ibd|ibu|frm|isl|cfg|MY[DI]|MA[DI]|opt|par|index|info|cnf)$)"
)
MOST_INDEXES = 20  # of binary logs beside data directories
MOST_POINTERS = 5000  # tables of one data directory that lie elsewhere
# Others' storage in a data directory, by the name of a directory in it.
OTHER_ENGINES = {
    "#rocksdb": "MyRocks",
    ".rocksdb": "MyRocks",
    "columnstore": "ColumnStore",
    "tokudb.directory": "TokuDB",
}
TOLD = ("aria_log_control", "mysql.ibd", "ibtmp1", "grastate.dat", "auto.cnf", "mysqld-auto.cnf", *INFORMATION)


@dataclass(frozen=True)
class MysqlDatabase(Database):
    """`state` is what wrote the redo log, such as `MariaDB 10.11.19`; `backup` what a backup program has noted.

    `external` are tables' files elsewhere: `path` of what names them, `target` and `archived_path`.
    """

    backup: dict[str, Any] | None = None
    external: tuple[dict[str, Any], ...] = ()


class MysqlContents(Contents):
    """What a listing has of MariaDB and MySQL."""

    names = ("mariadb", "mysql")
    mark = SYSTEM
    readable = frozenset((*UPGRADED, *INFORMATION))
    present = frozenset((SYSTEM, REDO, *UNDO, *TOLD))
    data_files = frozenset((SYSTEM,))

    def __init__(self, listing: Listing) -> None:
        super().__init__(listing)
        self._unapplied: dict[str, str] = {}  # directories with files that only a preparation applies, one of each
        self._logs: dict[tuple[str, str], list[str]] = {}  # by directory and base name: the first and the last
        self._numbers: dict[tuple[str, str], int] = {}  # and how many

    def is_marker(self, directory: str, name: str) -> bool:
        return super().is_marker(directory, name) or REDO_NAME.fullmatch(name) is not None or name == "my.cnf"

    def is_readable(self, name: str) -> bool:
        return super().is_readable(name) or name.endswith(POINTERS) or name == posixpath.basename(TABLE)

    def note_file(self, path: str, directory: str, name: str) -> None:
        """See Contents."""
        # Not .new: of a table that was made meanwhile, the redo log has all.
        if name.endswith((".delta", ".ren", ".del")) and directory not in self._unapplied:
            self.listing.keep(directory, path)
            self._unapplied[directory] = path
        elif (match := BINARY_LOG.fullmatch(name)) is not None:
            key = (directory, match[1])
            if key not in self._logs:
                self.listing.keep(directory, name)
            first, last = self._logs.get(key, (name, name))
            self._logs[key] = [min(first, name), max(last, name)]
            self._numbers[key] = self._numbers.get(key, 0) + 1

    def directories(self) -> Sequence[str]:
        return self.listing.directories_with(SYSTEM)

    def _indexes(self, directories: Sequence[str]) -> list[str]:
        """Indexes of binary logs that are in no data directory."""
        found = (path for path in self.listing.markers if path.endswith(".index"))
        return [path for path in found if posixpath.dirname(path) not in directories][:MOST_INDEXES]

    def wanted(self) -> Iterable[str]:
        directories = self.directories()
        yield from self._indexes(directories)
        names = (*self.readable, TABLE)
        yield from (posixpath.join(directory, name) for directory in directories for name in names)
        yield from (path for paths in self._pointers(directories).values() for path in paths)

    def databases(self, content: Content, relocated: Mapping[str, str], begin: Beginnings) -> Iterator[MysqlDatabase]:
        pointers = self._pointers(self.directories())
        for directory, paths in pointers.items():
            yield self._database(content, directory, paths, relocated, begin)

    def _pointers(self, directories: Sequence[str]) -> dict[str, list[str]]:
        """Files that say where a table's file or binary logs are, by data directory."""
        known = set(directories)
        found: dict[str, list[str]] = {directory: [] for directory in directories}
        for path in self.listing.markers:
            if path.endswith(POINTERS):
                above = posixpath.dirname(path)
                owner = next((one for one in (above, posixpath.dirname(above)) if one in known), None)
                if owner is not None and len(found[owner]) < MOST_POINTERS:
                    found[owner].append(path)
        return found

    def _database(
        self,
        content: Content,
        directory: str,
        pointers: Sequence[str],
        relocated: Mapping[str, str],
        begin: Beginnings,
    ) -> MysqlDatabase:
        listing = self.listing
        innodb = self._innodb_elsewhere(directory)
        redo, backup = self._redo(innodb.get(REDO, directory), begin), parse_backup(content.text, directory)
        version = self._version(content, directory, redo, backup)
        tables = {path: content.text(*posixpath.split(path)) for path in pointers if path.endswith(".isl")}
        external = external_files(listing, directory, tables, relocated)
        external.links.update(self._logs_elsewhere(content, directory))
        external.links.update((posixpath.join(place, name), place) for name, place in innodb.items())
        parts = [directory, *outside(directory, external.links.values())]
        item = listing.markers[posixpath.join(directory, SYSTEM)]
        return MysqlDatabase(
            engine=self._product(directory, version, redo),
            data_directory=directory or ".",
            kind=self._kind(directory, redo, backup),
            version=version,
            state=shown(redo.creator) if redo else None,
            owner=item.user,
            owner_id=item.uid,
            size=sum(listing.size_below(part) for part in parts),
            markers=self._markers(directory),
            configuration_directory=self._configuration(directory),
            symlinks=external.symlinks,
            links=external.links,
            problems=tuple(self._problems(directory, version, external, parts)),
            refusals=tuple(self._refusals(directory, backup)),
            backup=None if backup is None else backup.as_dict(),
            external=external.files,
        )

    def _logs_elsewhere(self, content: Content, directory: str) -> dict[str, str]:
        """The directory of the server's binary logs by the path of their index, where it is not the data directory.

        The index has the paths that they had on their host. Of several that may be meant none is taken.
        """
        directories = self.directories()
        if len(directories) > 1 or any(one == directory for one, _base in self._logs):
            return {}
        found = {}
        for path in self._indexes(directories):
            above, name = posixpath.split(path)
            first = next(iter(parse_index(content.text(above, name))), "")
            is_meant = first.startswith("/") and f"/{above}".endswith(posixpath.dirname(first))
            if is_meant and first.startswith(posixpath.join(posixpath.dirname(first), name.removesuffix("index"))):
                found[path] = above
        return found if len(found) == 1 else {}

    def _innodb_elsewhere(self, directory: str) -> dict[str, str]:
        """Where the redo log and undo tablespaces are if not in the data directory, by MariaDB's name of a file.

        Production's configuration names these directories. Here it counts that the archive has one of each.
        """
        if len(self.directories()) > 1:
            return {}
        found = {name: self._others_with(directory, names) for name, names in ((REDO, REDO_NAMES), (UNDO[0], UNDO))}
        return {name: places[0] for name, places in found.items() if len(places) == 1}

    def _others_with(self, directory: str, names: Sequence[str]) -> list[str]:
        """Directories that have one of names, where the data directory has none of them."""
        listing = self.listing
        inside = [posixpath.join(directory, name) for name in names]
        if any(path in listing.markers or path in listing.links or listing.has_directory(path) for path in inside):
            return []
        found = {place for name in names for place in listing.directories_with(name)}
        if REDO_DIRECTORY in names:
            above = (posixpath.split(posixpath.dirname(path)) for path in listing.markers if "/#ib_redo" in path)
            found.update(place for place, name in above if name == REDO_DIRECTORY)
        return sorted(found)

    def _redo(self, directory: str, begin: Beginnings) -> Redo | None:
        """What the first file of the redo log says, which may have gigabytes."""
        markers = self.listing.markers
        below = posixpath.join(directory, REDO_DIRECTORY)
        numbers = {
            int(found[1]): path
            for path in markers
            if posixpath.dirname(path) == below and (found := REDO_NAME.fullmatch(posixpath.basename(path)))
        }
        path = numbers[min(numbers)] if numbers else posixpath.join(directory, REDO)
        item = markers.get(path)
        if item is None or item.type != "-":
            return None
        beginning = begin([item], HEAD).get(path)
        return None if beginning is None else parse_redo(beginning.content)

    def _version(self, content: Content, directory: str, redo: Redo | None, backup: Backup | None) -> str | None:
        if redo is not None and redo.version is not None:
            return redo.version
        said = [backup.version] if backup is not None and backup.version else []
        said += [content.text(directory, name) for name in UPGRADED]
        found = (VERSION.search(text[:200]) for text in said)
        return next((one.group() for one in found if one), version_of_table(content.get(directory, TABLE)))

    def _product(self, directory: str, version: str | None, redo: Redo | None) -> str:
        if version is not None:
            return product_of(version)
        is_mariadb = self.listing.has(directory, "aria_log_control") or (redo and "MariaDB" in redo.creator)
        return "mariadb" if is_mariadb else "mysql"

    def _kind(self, directory: str, redo: Redo | None, backup: Backup | None) -> str:
        if backup is not None:
            return "backup_prepared" if backup.is_prepared else "backup_unprepared"
        if self.listing.has(directory, "ibtmp1"):  # a server removes it when it ends in order
            return "crash_consistent"
        if redo is None:
            return "unknown"
        return "crash_consistent" if redo.is_clean is False else "clean_shutdown"

    def _markers(self, directory: str) -> tuple[str, ...]:
        listing = self.listing
        others = (REDO_DIRECTORY, *OTHER_ENGINES)
        found = [name for name in others if listing.has_directory(posixpath.join(directory, name))]
        return (*(name for name in TOLD if listing.has(directory, name)), *found)

    def _configuration(self, directory: str) -> str | None:
        """Debian's /etc/mysql of the same host: below any directory that may have been its root."""
        for place in self.listing.each_place("/etc/mysql"):
            if self.listing.has(place, "my.cnf") or f"{place}/my.cnf" in self.listing.links:
                return place
        above = directory
        while above:
            above = posixpath.dirname(above)
            if self.listing.has(posixpath.join(above, "etc/mysql"), "my.cnf"):
                return posixpath.join(above, "etc/mysql")
        return None

    def _problems(self, directory: str, version: str | None, external: External, parts: Sequence[str]) -> Iterator[str]:
        listing = self.listing
        if version is None:
            yield f"The version of what wrote {shown(directory or '.')} is not known: its redo log does not tell it."
        if listing.has(directory, "grastate.dat"):
            yield (
                f"{shown(directory or '.')} is of a node of a Galera cluster: the copy is started alone, and shows "
                "what this node had committed."
            )
        found = [name for name in OTHER_ENGINES if listing.has_directory(posixpath.join(directory, name))]
        for name in found:
            yield (
                f"{shown(directory or '.')} has tables of {OTHER_ENGINES[name]} ({name}), which sessions do not start: "
                "these cannot be read."
            )
        several = self._others_with(directory, REDO_NAMES)
        if len(several) > 1 or (several and len(self.directories()) > 1):
            yield (
                f"{shown(directory or '.')} has no redo log, and it is not known which of these is its own: "
                f"{listed(several)}. Archive them apart."
            )
        yield from external.problems
        yield from lost_content([path for part in parts for path in listing.damaged_below(part)])

    def _refusals(self, directory: str, backup: Backup | None) -> Iterator[str]:
        name = shown(directory or ".")
        if backup is not None and backup.is_incremental:
            yield (
                f"{name} is an incremental backup of {backup.program}: apply it to the full one it belongs to "
                f"({backup.program} --prepare --target-dir=FULL --incremental-dir=DIRECTORY), and archive that."
            )
        if not self.listing.has_directory(posixpath.join(directory, "mysql")):
            yield f"{name} lacks the directory mysql, without which no server starts: use another archive."
        if backup is not None and not backup.is_prepared:
            pending = sorted(path for one, path in self._unapplied.items() if is_below(one, directory))
            if pending and not backup.is_incremental:
                yield (
                    f"{name} is a backup of {backup.program} during which tables were renamed or dropped "
                    f"({listed(pending)}): prepare it ({backup.program} --prepare --target-dir=DIRECTORY), and "
                    "archive it then."
                )

    def is_opened(self, path: str, database: Database) -> bool:
        # Its socket and its pid file may be beside them.
        return database.engine in self.names and OPENED.search(path) is not None

    def log_archives(self, databases: Sequence[Database]) -> list[dict[str, Any]]:
        """Directories of binary logs, but for the data directories with their own."""
        own = {"" if one.data_directory == "." else one.data_directory for one in databases}
        return [
            {"path": directory or ".", "segments": self._numbers[directory, base], "first": first, "last": last}
            for (directory, base), (first, last) in sorted(self._logs.items())
            if directory not in own and "relay" not in base
        ]

    def dump_in(self, header: bytes, members: Sequence[str]) -> Dump | None:
        return next(filter(None, (dump_of(engine, pattern, header) for engine, pattern in DUMPS)), None)

    def backup_in(self, path: str, content: bytes, members: Sequence[str]) -> OtherBackup | None:
        if not content.startswith(STREAMS):
            return None
        remedy = "unpack and prepare it (mbstream -x or xbstream -x, then --prepare), and archive the directory"
        return OtherBackup(path, "a backup stream of Mariabackup or XtraBackup", remedy)
