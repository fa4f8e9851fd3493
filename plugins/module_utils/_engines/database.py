# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which databases an archive holds, found from its item list and the content of a few small files.

Nothing is concluded from how a path is spelled: a data directory is known by the files that only a data directory has,
its version and state by what they say. Everything here is pure; reading is done by the functions the caller gives.
Whoever made the archive may wish this host ill: what is kept and read of it is bounded, see also _borg/suspects.py.
"""

from __future__ import annotations

import itertools
import posixpath
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from .._borg.items import Item
from .._borg.suspects import limit
from .._errors import RecoveryError, listed, shown
from .._postgresql.control import PgControl, PgControlError, parse_pg_control
from .catalogue import CONFIGURATION, CONTENTS, MOST_FILES, POSTGRESQL_MARKERS, Beginnings, Catalogue, Reader
from .locate import Locator, Names, stated_directory
from .model import Database, outside
from .other_backups import BEGINNING, Dump, OtherBackup, dump_in, other_backup_in

__all__ = [
    "DatabaseChoiceError",
    "choose_database",
    "find_databases",
]


READ_LIMIT = 64 << 20  # bytes of all small files together
MOST_DATABASES = 1000
MOST_NAMED = 20  # databases in a message
MOST_TOLD = 32 << 20  # characters of what is told of all databases: of one with 100 tablespaces, some 50,000
NEEDS_DATA = "start a session from an archive of the data directory, with this as log_source"
NEEDS_ALL = "use an archive that has all of its files, and none of them behind a link"
OID = re.compile(r"[0-9]{1,10}")


class DatabaseChoiceError(RecoveryError):
    """The archive has no database that fits the request, or several."""


def find_databases(
    items: Iterable[Item], *, read: Reader, begin: Beginnings, relocated: Mapping[str, str] | None = None
) -> tuple[list[Database], Catalogue]:
    """The databases among `items`, which are passed over once, and what was kept of the list.

    `relocated`: where in the archive directories are that links lead to, as far as the user says so.

    Logical dumps, and the catalogue's `others`, are looked for only where there is no data directory. Raises
    ArchiveRefusedError for an archive that has more of something than can be looked through.
    """
    catalogue = Catalogue()
    for item in items:
        catalogue.add(item)
    postgresql = catalogue.postgresql_directories()
    innodb = catalogue.directories_with("ibdata1")
    mongodb = catalogue.directories_with("WiredTiger")
    limit(len(postgresql) + len(innodb) + len(mongodb), MOST_DATABASES, "databases")
    content = _Content(catalogue, read, [*postgresql, *innodb, *mongodb])
    stated = {
        path: stated_directory(content.get(path, CONFIGURATION)) for path in catalogue.configurations([*postgresql])
    }
    found, told = [], 0
    for database in itertools.chain(
        (_postgresql(catalogue, content, path, stated, relocated or {}, begin) for path in postgresql),
        (_innodb(catalogue, content, directory) for directory in innodb),
        (_mongodb(catalogue, content, directory) for directory in mongodb),
    ):
        found.append(database)
        told += _characters(database.as_dict())
        limit(told >> 20, MOST_TOLD >> 20, "MiB of links and other places of databases")
    if not found:
        found, catalogue.others = _without_data_directory(catalogue, begin)
    return sorted(found, key=lambda database: database.data_directory), catalogue


def choose_database(
    databases: Sequence[Database],
    *,
    archive: str,
    engine: str = "auto",
    data_directory: str | None = None,
    others: Sequence[OtherBackup] = (),
    places: Callable[[str], Iterable[str]] = lambda path: [path],
) -> Database:
    """The one database that fits. `archive` is its name for messages. Raises DatabaseChoiceError, which lists all.

    `others` are backups of other kinds that the archive holds. `places` tells where a path leads to in it.
    """
    fitting = [database for database in databases if engine in ("auto", database.engine)]
    if data_directory is not None:
        fitting = _named(fitting, data_directory, places)
    startable = [database for database in fitting if database.kind != "logical_dump"]
    if len(startable) == 1:
        return startable[0]
    more = f"; and {len(databases) - MOST_NAMED} more" if len(databases) > MOST_NAMED else ""
    choice = "; ".join(map(_in_words, databases[:MOST_NAMED])) + more
    request = " ".join(filter(None, ["" if engine == "auto" else engine, "data directory", data_directory]))
    if startable:
        message = f"Archive {archive} holds {len(startable)} databases: {choice}. Choose one with data_directory."
    elif fitting:
        message = (
            f"Archive {archive} holds only logical dumps, no data directory to start a server on: {choice}. "
            "Load the dump into a server of your own."
        )
    elif databases:
        message = f"Archive {archive} has no {request}. It holds: {choice}."
    elif others:
        message = f"Archive {archive} holds no data directory to start a server on."
    else:
        message = (
            f"Archive {archive} holds no database: nothing in it marks a data directory (PG_VERSION and "
            "global/pg_control, ibdata1, WiredTiger), and none of its largest files begins as a logical dump, a base "
            "backup in tar format or an image of a disk does. Name another archive."
        )
    raise DatabaseChoiceError(
        " ".join([message, *map(str, others)]),
        databases=[database.as_dict() for database in databases],
        other_backups=[other.as_dict() for other in others],
    )


def _named(databases: Sequence[Database], name: str, places: Callable[[str], Iterable[str]]) -> list[Database]:
    """The databases with that data directory: its path, one that leads there, or what its own server called it."""
    path = posixpath.normpath(name.lstrip("/") or ".")
    for known in ({path}, {place or "." for place in places(path)}):
        if found := [database for database in databases if database.data_directory in known]:
            return found
    return [database for database in databases if database.original_directory == f"/{path}"]


def _in_words(database: Database) -> str:
    name = " ".join(filter(None, [database.engine, database.version]))
    return f"{shown(database.data_directory)} ({name}, {database.kind.replace('_', ' ')})"


LONGEST_VERSION = 40  # characters


def _characters(told: Any) -> int:
    """How much what is told is, roughly."""
    if isinstance(told, dict):
        return sum(map(_characters, (*told, *told.values())))
    if isinstance(told, (list, tuple)):
        return sum(map(_characters, told))
    return len(told) if isinstance(told, str) else 1


class _Content:
    """Content of the small files, read in one go."""

    def __init__(self, catalogue: Catalogue, read: Reader, directories: Iterable[str]) -> None:
        directories = list(directories)
        names = (*(CONTENTS - {CONFIGURATION}), "global/pg_control")
        paths = {posixpath.join(directory, name) for directory in directories for name in names}
        paths |= {posixpath.join(path, CONFIGURATION) for path in catalogue.configurations(directories)}
        # A hard link's content is stored with the name it was first archived under.
        self._sources = {
            path: item.target if item.type == "h" else path for path, item in catalogue.markers.items() if path in paths
        }
        wanted = set(self._sources.values())
        items = [item for item in catalogue.readable if item.path in wanted]
        limit(sum(item.size for item in items) >> 20, READ_LIMIT >> 20, "MiB of small files that tell of databases")
        self._content = read(items) if items else {}

    def get(self, directory: str, name: str) -> bytes:
        """Content of a file of the directory; nothing when it is missing or could not be read."""
        path = posixpath.join(directory, name)
        return self._content.get(self._sources.get(path, path), b"")

    def text(self, directory: str, name: str) -> str:
        """The same as text."""
        return self.get(directory, name).decode("utf-8", "replace")


def _postgresql(
    catalogue: Catalogue,
    content: _Content,
    directory: str,
    stated: Mapping[str, str | None],
    relocated: Mapping[str, str],
    begin: Beginnings,
) -> Database:
    markers = tuple(name for name in POSTGRESQL_MARKERS if catalogue.has(directory, name))
    problems = []
    control = None
    try:
        control = parse_pg_control(content.get(directory, "global/pg_control"))
    except PgControlError as error:
        problems.append(str(error))
    options = content.text(directory, "postmaster.opts")
    names = Names(_original_directory(content, directory), _option(options, "config_file"), stated)
    locate = Locator(catalogue, directory, names, control=control, relocated=relocated, begin=begin)
    tablespaces, wal = locate.tablespaces(content.get(directory, "tablespace_map")), locate.wal()
    parts = [directory, *outside(directory, locate.links.values())]
    symlinks = locate.other_links(parts)
    parts = [directory, *outside(directory, locate.links.values())]
    locate.look_at_relocated()
    damaged = [path for part in parts for path in catalogue.damaged_below(part)]
    problems += [*locate.problems, *_lost(damaged)]
    return Database(
        engine="postgresql",
        data_directory=directory or ".",
        kind=_postgresql_kind(control, markers, content.text(directory, "recovery.conf")),
        version=shown(content.text(directory, "PG_VERSION").strip()[:LONGEST_VERSION]) or None,
        state=control.state if control else None,
        owner=catalogue.markers[posixpath.join(directory, "PG_VERSION")].user,
        size=sum(catalogue.size_below(part) for part in parts),
        original_directory=names.original,
        markers=markers,
        tablespaces=tablespaces,
        wal_directory=wal,
        configuration_directory=locate.configuration(content.text(directory, "PG_VERSION").strip()),
        symlinks=symlinks,
        control=control,
        links=locate.links,
        problems=tuple(problems),
        refusals=tuple(locate.refusals),
    )


# Linear in what an archive can make it: blanks are matched in one way only.
STANDBY_MODE = re.compile(r"^[ \t]*standby_mode(?:[ \t]*=)?[ \t]*'?(on|true|yes|1)", re.IGNORECASE | re.MULTILINE)


def _postgresql_kind(control: PgControl | None, markers: tuple[str, ...], recovery_conf: str) -> str:
    if "backup_label" in markers:
        return "backup_label"
    state = control.state if control else ""
    follows = STANDBY_MODE.search(recovery_conf)
    if "standby.signal" in markers or follows or state in ("shut down in recovery", "in archive recovery"):
        return "standby"
    if state == "shut down":
        return "clean_shutdown"
    return "crash_consistent" if control else "unknown"


def _lost(damaged: Sequence[str]) -> list[str]:
    if not damaged:
        return []
    return [
        f"Borg has lost content of {len(damaged)} of its files, as borg check --repair has found, and they cannot "
        f"be read: {listed(damaged)}."
    ]


def _original_directory(content: _Content, directory: str) -> str | None:
    """Where the server had its data directory, as it wrote down itself when it started."""
    lines = content.text(directory, "postmaster.pid").splitlines()
    if len(lines) > 1 and lines[1].startswith("/"):
        return posixpath.normpath(lines[1])
    return _option(content.text(directory, "postmaster.opts"), "-D")


def _option(options: str, name: str) -> str | None:
    """A path that a server was started with, as in: /usr/bin/postgres "-D" "/srv/15" "-c" "config_file=/x"."""
    found = re.search(rf'"{name}(?:" "|=)(/[^"]+)"', options)
    return posixpath.normpath(found[1]) if found else None


def _innodb(catalogue: Catalogue, content: _Content, directory: str) -> Database:
    is_mariadb = catalogue.has(directory, "aria_log_control")
    upgraded = content.text(directory, "mariadb_upgrade_info") or content.text(directory, "mysql_upgrade_info")
    version = re.match(r"\d+(?:\.\d+)+", upgraded)
    return Database(
        engine="mariadb" if is_mariadb or "MariaDB" in upgraded else "mysql",
        data_directory=directory or ".",
        kind="unknown",
        version=version.group() if version else None,
        owner=catalogue.markers[posixpath.join(directory, "ibdata1")].user,
        size=catalogue.size_below(directory),
        markers=tuple(name for name in ("aria_log_control", "mysql.ibd") if catalogue.has(directory, name))
        + (("#innodb_redo",) if catalogue.has_directory(posixpath.join(directory, "#innodb_redo")) else ()),
    )


def _mongodb(catalogue: Catalogue, content: _Content, directory: str) -> Database:
    lock = catalogue.markers.get(posixpath.join(directory, "mongod.lock"))
    kind = "unknown"
    if lock is not None:
        # mongod empties its lock file when it shuts down in order; before that the file holds its pid.
        kind = "crash_consistent" if lock.size else "clean_shutdown"
    engine_version = re.search(r"WiredTiger (\d+(?:\.\d+)+)", content.text(directory, "WiredTiger"))
    return Database(
        engine="mongodb",
        data_directory=directory or ".",
        kind=kind,
        state=f"WiredTiger {engine_version.group(1)}" if engine_version else None,
        owner=catalogue.markers[posixpath.join(directory, "WiredTiger")].user,
        size=catalogue.size_below(directory),
        markers=("WiredTiger",),
    )


def _without_data_directory(catalogue: Catalogue, begin: Beginnings) -> tuple[list[Database], list[OtherBackup]]:
    """The logical dumps of an archive that has no data directory, and what else it has that is a backup."""
    dumps, others = [], {other.path: other for other in catalogue.other_backups()}
    items = catalogue.to_be_looked_at()
    beginnings = begin(items, BEGINNING)
    for item in items:
        if item.path not in beginnings:
            continue
        beginning = beginnings[item.path]
        if dump := dump_in(beginning.content):
            dumps.append(_dump(item, dump))
        elif item.path not in others and (other := other_backup_in(item.path, item.size, beginning)):
            others[item.path] = other
    if dumps or others:
        return dumps, list(others.values())
    return [], list(_incomplete(catalogue))[:MOST_FILES] or [
        OtherBackup(archived["path"] or ".", "archived WAL of PostgreSQL", NEEDS_DATA)
        for archived in catalogue.log_archives([])[:MOST_FILES]
    ]


def _incomplete(catalogue: Catalogue) -> Iterator[OtherBackup]:
    """What would be a data directory if it had all that a server cannot do without."""
    controlled = map(posixpath.dirname, catalogue.directories_with("pg_control"))
    for directory in sorted({*catalogue.directories_with("PG_VERSION"), *controlled}):
        base = posixpath.join(directory, "base")
        if catalogue.has_directory(base) or base in catalogue.links:
            missing = [name for name in ("PG_VERSION", "global/pg_control") if not catalogue.has(directory, name)]
            what = f"a data directory of PostgreSQL that lacks {' and '.join(missing)}"
            yield OtherBackup(directory or ".", what, NEEDS_ALL)


def _dump(item: Item, dump: Dump) -> Database:
    return Database(
        engine=dump.engine,
        data_directory=item.path,
        kind="logical_dump",
        version=dump.version,
        owner=item.user,
        size=item.size,
    )
