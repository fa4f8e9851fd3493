# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""PostgreSQL's databases in an archive: recognised by PG_VERSION and global/pg_control, told by what they say."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .._borg.suspects import is_below
from .._engine.contents import Content, Contents, lost_content
from .._engine.database import Database, outside
from .._engine.listing import Beginnings, Listing
from .._engine.other_backups import Dump, OtherBackup
from .._errors import shown
from .archived_files import CONFIGURATION, ArchivedFiles
from .control import PgControl, PgControlError, parse_pg_control
from .locate import Locator, Names, stated_directory
from .other_backups import dump_in, tar_of_postgresql

if TYPE_CHECKING:
    from .._borg.items import Item

__all__ = ["PostgresqlContents", "PostgresqlDatabase"]

CONTROL = "global/pg_control"
DATABASES = "1262"  # the catalogue pg_database in global, unless it was rewritten
MARKERS = ("backup_label", "tablespace_map", "standby.signal", "recovery.signal", "recovery.conf")
LONGEST_VERSION = 40  # characters
NEEDS_DATA = "start a session from an archive of the data directory, with this as log_source"
NEEDS_ALL = "use an archive that has all of its files, and none of them behind a link"
# What a server opens: all below these directories of its data directory, and these files.
OPENED_BELOW = ("base", "global", "pg_")
NEVER_OPENED = "pg_log"  # where the log was once
OPENED = (
    *("PG_VERSION", "backup_label", "tablespace_map", "current_logfiles", "postmaster.pid", "postmaster.opts"),
    *(".conf", ".signal"),
)


@dataclass(frozen=True)
class PostgresqlDatabase(Database):
    """`state` is pg_control's, which `control` has whole.

    `tablespaces` have `oid` (int), `target` (None: a plain directory) and `archived_path`; `wal_directory` has
    `target`, `archived_path` and the number of `segments`.
    """

    tablespaces: tuple[dict[str, Any], ...] = ()
    wal_directory: dict[str, Any] | None = None
    control: PgControl | None = None


class PostgresqlContents(Contents):
    """What a listing has of PostgreSQL."""

    names = ("postgresql",)
    mark = f"PG_VERSION and {CONTROL}"
    readable = frozenset(
        (
            *("PG_VERSION", "pg_control", "backup_label", "tablespace_map", "recovery.conf", "postmaster.pid"),
            *("postmaster.opts", CONFIGURATION),
        )
    )
    present = frozenset(("standby.signal", "recovery.signal", "backup_manifest"))
    data_files = frozenset(("PG_VERSION", "pg_control"))
    needed = ("PG_VERSION", CONTROL, "backup_label", "tablespace_map")

    def __init__(self, listing: Listing) -> None:
        super().__init__(listing)
        self._files = ArchivedFiles(listing)

    def note_directory(self, path: str) -> None:
        """See Contents."""
        self._files.note_directory(path)

    def note_file(self, path: str, directory: str, name: str) -> None:
        """See Contents."""
        self._files.signs.note(path, directory, name)

    def takes(self, item: Item, directory: str, name: str) -> bool:
        """See Contents."""
        return self._files.note_wal(item, directory, name)

    def is_marker(self, directory: str, name: str) -> bool:
        is_catalogue = name == DATABASES and directory.endswith("global")
        return is_catalogue or super().is_marker(directory, name)

    @property
    def has_tool(self) -> bool:
        return bool(self._files.signs.tools)

    def directories(self) -> Sequence[str]:
        return self._files.data_directories()

    def wanted(self) -> Iterable[str]:
        directories = self.directories()
        names = (*(self.readable - {CONFIGURATION}), CONTROL)
        yield from (posixpath.join(directory, name) for directory in directories for name in names)
        for directory in self._files.configurations(directories):
            yield posixpath.join(directory, CONFIGURATION)

    def databases(
        self, content: Content, relocated: Mapping[str, str], begin: Beginnings
    ) -> Iterator[PostgresqlDatabase]:
        directories = self.directories()
        stated = {
            path: stated_directory(content.get(path, CONFIGURATION)) for path in self._files.configurations(directories)
        }
        for directory in directories:
            yield self._database(content, directory, stated, relocated, begin)

    def _database(
        self,
        content: Content,
        directory: str,
        stated: Mapping[str, str | None],
        relocated: Mapping[str, str],
        begin: Beginnings,
    ) -> PostgresqlDatabase:
        listing = self.listing
        markers = tuple(name for name in MARKERS if listing.has(directory, name))
        control, problems = _control(content, directory)
        options = content.text(directory, "postmaster.opts")
        names = Names(_original_directory(content, directory), _option(options, "config_file"), stated)
        locate = Locator(self._files, directory, names, control=control, relocated=relocated, begin=begin)
        tablespaces, wal = locate.tablespaces(content.get(directory, "tablespace_map")), locate.wal()
        symlinks = locate.other_links([directory, *outside(directory, locate.links.values())])
        parts = [directory, *outside(directory, locate.links.values())]
        locate.look_at_relocated()
        damaged = [path for part in parts for path in listing.damaged_below(part)]
        version = content.text(directory, "PG_VERSION").strip()
        return PostgresqlDatabase(
            engine="postgresql",
            data_directory=directory or ".",
            kind=_kind(control, markers, content.text(directory, "recovery.conf")),
            version=shown(version[:LONGEST_VERSION]) or None,
            state=control.state if control else None,
            owner=listing.markers[posixpath.join(directory, "PG_VERSION")].user,
            owner_id=listing.markers[posixpath.join(directory, "PG_VERSION")].uid,
            size=sum(listing.size_below(part) for part in parts),
            original_directory=names.original,
            markers=markers,
            tablespaces=tablespaces,
            wal_directory=wal,
            configuration_directory=locate.configuration(version),
            symlinks=symlinks,
            control=control,
            links=locate.links,
            needs_logs=not wal["segments"],
            problems=(*problems, *locate.problems, *lost_content(damaged)),
            refusals=tuple(locate.refusals),
        )

    def is_opened(self, path: str, database: Database) -> bool:
        if database.engine != "postgresql":
            return False
        top = database.data_directory
        if not is_below(path, top):
            return True  # in a tablespace, the WAL, the configuration
        inside = path if top == "." else path[len(top) + 1 :]
        first = inside.split("/")[0]
        return (first.startswith(OPENED_BELOW) and first != NEVER_OPENED) or inside.endswith(OPENED)

    def log_archives(self, databases: Sequence[Database]) -> list[dict[str, Any]]:
        own = [
            (one.wal_directory or {}).get("archived_path") for one in databases if isinstance(one, PostgresqlDatabase)
        ]
        return self._files.log_archives([directory for directory in own if directory is not None])

    def others(self) -> list[OtherBackup]:
        return self._files.other_backups()

    def remains(self) -> list[OtherBackup]:
        return list(self._incomplete()) or [
            OtherBackup(archived["path"] or ".", "archived WAL of PostgreSQL", NEEDS_DATA)
            for archived in self._files.log_archives([])
        ]

    def _incomplete(self) -> Iterator[OtherBackup]:
        """What would be a data directory if it had all that a server cannot do without."""
        listing = self.listing
        controlled = map(posixpath.dirname, listing.directories_with("pg_control"))
        for directory in sorted({*listing.directories_with("PG_VERSION"), *controlled}):
            base = posixpath.join(directory, "base")
            if listing.has_directory(base) or base in listing.links:
                missing = [name for name in ("PG_VERSION", CONTROL) if not listing.has(directory, name)]
                what = f"a data directory of PostgreSQL that lacks {' and '.join(missing)}"
                yield OtherBackup(directory or ".", what, NEEDS_ALL)

    def dump_in(self, header: bytes, members: Sequence[str]) -> Dump | None:
        return dump_in(header, members)

    def backup_in(self, path: str, content: bytes, members: Sequence[str]) -> OtherBackup | None:
        return tar_of_postgresql(path, members)


def _control(content: Content, directory: str) -> tuple[PgControl | None, list[str]]:
    """What pg_control says, and what is wrong with it."""
    try:
        return parse_pg_control(content.get(directory, CONTROL)), []
    except PgControlError as error:
        return None, [str(error)]


# Linear in what an archive can make it: blanks are matched in one way only.
STANDBY_MODE = re.compile(r"^[ \t]*standby_mode(?:[ \t]*=)?[ \t]*'?(on|true|yes|1)", re.IGNORECASE | re.MULTILINE)


def _kind(control: PgControl | None, markers: tuple[str, ...], recovery_conf: str) -> str:
    if "backup_label" in markers:
        return "backup_label"
    state = control.state if control else ""
    follows = STANDBY_MODE.search(recovery_conf)
    if "standby.signal" in markers or follows or state in ("shut down in recovery", "in archive recovery"):
        return "standby"
    if state == "shut down":
        return "clean_shutdown"
    return "crash_consistent" if control else "unknown"


def _original_directory(content: Content, directory: str) -> str | None:
    """Where the server had its data directory, as it wrote down itself when it started."""
    lines = content.text(directory, "postmaster.pid").splitlines()
    if len(lines) > 1 and lines[1].startswith("/"):
        return posixpath.normpath(lines[1])
    return _option(content.text(directory, "postmaster.opts"), "-D")


def _option(options: str, name: str) -> str | None:
    """A path that a server was started with, as in: /usr/bin/postgres "-D" "/srv/15" "-c" "config_file=/x"."""
    found = re.search(rf'"{name}(?:" "|=)(/[^"]+)"', options)
    return posixpath.normpath(found[1]) if found else None
