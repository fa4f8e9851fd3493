# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which databases an archive holds, found from its item list and the content of a few small files.

Nothing is concluded from how a path is spelled: a data directory is known by the files that only a data directory has,
its version and state by what they say. Everything here is pure; reading is done by the functions the caller gives.
Whoever made the archive may wish this host ill: what is kept and read of it is bounded, see also _suspects.py.
"""

from __future__ import annotations

import heapq
import posixpath
import re
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

from ansible_collections.phpborg.instant_recovery.plugins.module_utils._compressed import Beginning
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._errors import RecoveryError, listed, shown
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._items import Item
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._other_backups import (
    BEGINNING,
    Dump,
    OtherBackup,
    Signs,
    dump_in,
    is_probable,
    other_backup_in,
)
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._pg_control import (
    PgControl,
    PgControlError,
    parse_pg_control,
)
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._pg_locate import (
    CONFIGURATION,
    Link,
    Locator,
    Names,
    stated_directory,
)
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._pg_wal_archive import ARCHIVED_FILE, SEGMENT
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._resolve import leading, resolve
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._suspects import (
    ArchiveRefusedError,
    Suspects,
    is_below,
    limit,
)

__all__ = [
    "ENGINES",
    "KINDS",
    "Catalogue",
    "Database",
    "DatabaseChoiceError",
    "choose_database",
    "find_databases",
]

ENGINES = ("postgresql", "mariadb", "mysql", "mongodb")
KINDS = ("clean_shutdown", "crash_consistent", "backup_label", "standby", "logical_dump", "unknown")

# More than any honest archive has. Memory for names, estimated, is enough for three million directories.
KEPT_LIMIT, KEPT_OVERHEAD = 512 << 20, 150  # bytes, of which so many are what Python needs for an entry
READ_LIMIT = 64 << 20  # bytes of all small files together
MOST_DATABASES, MOST_WAL_ARCHIVES = 1000, 10_000
# Configurations outside of data directories that are read: a host has one for each cluster.
MOST_CONFIGURATIONS, LONGEST_CONFIGURATION = 50, 128 << 10
NEEDS_DATA = "start a session from an archive of the data directory, with this as wal_source"
OID = re.compile(r"[0-9]{1,10}")
# Files whose beginnings are looked at where there is no data directory, mostly with one call of borg each: the largest
# few are enough to name them. Those called like a dump or an image come first.
MOST_FILES, MOST_PROBABLE = 8, 5


class DatabaseChoiceError(RecoveryError):
    """The archive has no database that fits the request, or several."""


# Content by path of items that are given in the archive's order; what cannot be read is left out.
Reader = Callable[[Sequence[Item]], Mapping[str, bytes]]
# The first bytes of what items hold, so many at most, by path; what cannot be read is left out.
Beginnings = Callable[[Sequence[Item], int], Mapping[str, Beginning]]


@dataclass(frozen=True)
class Database:
    """One data directory, or one logical dump, of an archive.

    `data_directory` is its path in the archive (`.`: the archive's root); of a logical dump, the file. `version` is as
    the files spell it. `state` is pg_control's. `original_directory` is where the server that wrote it had it.
    `size` is bytes. `markers` are the files found that change how it has to be started (backup_label, standby.signal…).
    `tablespaces` have `oid` (int), `target` (None: a plain directory) and `archived_path`; `wal_directory` has
    `target`, `archived_path` and the number of `segments`. `configuration_directory` is where postgresql.conf is in the
    archive, if it is outside of the data directory. `links`: where the archive has what symbolic links lead to, by the
    links' paths. `problems` are sentences for people; `refusals` those on what only the user can settle.
    """

    engine: str
    data_directory: str
    kind: str
    version: str | None = None
    state: str | None = None
    owner: str | None = None
    size: int = 0
    original_directory: str | None = None
    markers: tuple[str, ...] = ()
    tablespaces: tuple[dict[str, Any], ...] = ()
    wal_directory: dict[str, Any] | None = None
    configuration_directory: str | None = None
    symlinks: tuple[Link, ...] = ()
    control: PgControl | None = None
    links: dict[str, str] = field(default_factory=dict)
    problems: tuple[str, ...] = ()
    refusals: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Plain data for a module's result."""
        plain = asdict(self)
        return {key: list(value) if isinstance(value, tuple) else value for key, value in plain.items()}

    def paths(self) -> list[str]:
        """What to mount to start it: the data directory, and whatever of it is elsewhere in the archive."""
        outside = _outside(self.data_directory, self.links.values())
        return [self.data_directory, *outside, *filter(None, [self.configuration_directory])]


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
    found = [
        *(_postgresql(catalogue, content, path, stated, relocated or {}, begin) for path in postgresql),
        *(_innodb(catalogue, content, directory) for directory in innodb),
        *(_mongodb(catalogue, content, directory) for directory in mongodb),
    ]
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
    choice = "; ".join(map(_in_words, databases))
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


# Small files that tell something by their content, and files that tell something by being there.
CONTENTS = frozenset(
    (
        *("PG_VERSION", "pg_control", "backup_label", "tablespace_map", "recovery.conf", "postmaster.pid"),
        *("postmaster.opts", CONFIGURATION, "mysql_upgrade_info", "mariadb_upgrade_info", "WiredTiger"),
    )
)
PRESENCES = frozenset(
    (
        *("standby.signal", "recovery.signal", "backup_manifest"),
        *("ibdata1", "aria_log_control", "mysql.ibd", "mongod.lock"),
    )
)
POSTGRESQL_MARKERS = ("backup_label", "tablespace_map", "standby.signal", "recovery.signal", "recovery.conf")
# Larger than any of CONTENTS ever is: something else of that name is not read.
CONTENT_LIMIT = 1024 * 1024

TABLESPACE_VERSION = re.compile(r"PG_\d+(?:\.\d+)?_\d{9}")
WAL_SEGMENT = re.compile(r"[0-9A-F]{24}(?:\.partial)?")
LOG_DIRECTORY = re.compile(r"[0-9A-F]{16}")
LONGEST_VERSION = 40  # characters


class _Segments(NamedTuple):
    """WAL segments of one directory: the first and the last by name, and their number."""

    first: str
    last: str
    number: int


class _Largest:
    """The largest of many items, of which only so many are kept, with their places in the archive."""

    def __init__(self, number: int) -> None:
        self._number = number
        self._heap: list[tuple[int, int, Item]] = []

    def add(self, item: Item, place: int) -> None:
        """Of two that are as large the first counts."""
        if len(self._heap) < self._number:
            heapq.heappush(self._heap, (item.size, -place, item))
        elif item.size > self._heap[0][0]:
            heapq.heapreplace(self._heap, (item.size, -place, item))

    def by_place(self) -> dict[int, Item]:
        """Those that were kept, largest first."""
        return {-place: item for _size, place, item in sorted(self._heap, reverse=True)}


@dataclass
class Catalogue:
    """What is kept of an item list while it streams by: a few entries per database, and one number per directory.

    `files` counts the regular files, `size` is the sum of all bytes. `others` is what it holds instead of a database.
    """

    files: int = 0
    size: int = 0
    markers: dict[str, Item] = field(default_factory=dict)
    links: dict[str, str] = field(default_factory=dict)
    damaged: list[str] = field(default_factory=list)
    others: list[OtherBackup] = field(default_factory=list)
    # Every entry of a file with content of interest, in the archive's order: where the paths given to borg create
    # overlapped, the archive has entries twice.
    readable: list[Item] = field(default_factory=list)
    _sizes: dict[str, int] = field(default_factory=dict)
    _segments: dict[str, int] = field(default_factory=dict)
    # Of each directory with WAL the first segment by name, which surely has been written.
    _first_segments: dict[str, Item] = field(default_factory=dict)
    _archived: dict[str, _Segments] = field(default_factory=dict)
    _tablespaces: set[str] = field(default_factory=set)
    _probable: _Largest = field(default_factory=lambda: _Largest(MOST_PROBABLE))
    _largest: _Largest = field(default_factory=lambda: _Largest(MOST_FILES))
    # First components of paths that begin with `./`, and of all others.
    _dotted: set[str] = field(default_factory=set)
    _plain: set[str] = field(default_factory=set)
    _kept: int = 0

    def __post_init__(self) -> None:
        self._suspects = Suspects(self._keep)
        self.signs = Signs(self._keep)

    def add(self, item: Item) -> None:
        """Note one item; none can follow the first question. Raises ArchiveRefusedError."""
        self._suspects.note(item, self.links, self._sizes, self.markers)
        self.files += item.type == "-"
        self.size += item.size
        directory, name = posixpath.split(item.path)
        if item.type == "d":
            self._add_directory(item.path, directory, name)
            return
        self._note_top(item)
        if directory not in self._sizes:
            self._keep(directory)
        self._sizes[directory] = self._sizes.get(directory, 0) + item.size
        if item.type == "l":
            self._keep(item.path, item.target)
            self.links[item.path] = item.target
        elif name in CONTENTS or name in PRESENCES or (name == "1262" and directory.endswith("global")):
            self._add_marker(item, name)
            self.signs.note(item.path, directory, name)
        elif archived := ARCHIVED_FILE.fullmatch(name):
            self._add_archived(item, directory, name, archived["name"])
        elif item.type == "-" and item.size:
            self._add_file(item, directory, name)
        if not item.healthy:
            self._keep(item.path)
            self.damaged.append(item.path)

    def _keep(self, *names: str) -> None:
        self._kept += sum(map(len, names)) + KEPT_OVERHEAD * len(names)
        limit(self._kept >> 20, KEPT_LIMIT >> 20, "MiB of names of directories and links")

    def _note_top(self, item: Item) -> None:
        """Of no directory: pg_basebackup has ./pg_wal/archive_status beside plain paths in its tar files."""
        top, tops = item.path.partition("/")[0], self._dotted if item.is_dotted else self._plain
        if top not in tops:
            self._keep(top)
            tops.add(top)

    def _add_directory(self, path: str, parent: str, name: str) -> None:
        path = "" if path == "." else path
        if path not in self._sizes:
            self._keep(path)
            self._sizes[path] = 0
        if TABLESPACE_VERSION.fullmatch(name):
            self._keep(parent)
            self._tablespaces.add(parent)

    def _add_marker(self, item: Item, name: str) -> None:
        if item.type == "h" and item.target == item.path:
            return  # the second entry of a file that the archive has twice
        self._keep(item.path, item.target)
        self.markers[item.path] = item
        if name in CONTENTS and 0 < item.size <= CONTENT_LIMIT:
            self.readable.append(item)

    def _add_archived(self, item: Item, directory: str, name: str, segment: str) -> None:
        if not SEGMENT.fullmatch(segment):
            return  # the history of a timeline or a backup
        if WAL_SEGMENT.fullmatch(name):
            self._segments[directory] = self._segments.get(directory, 0) + 1
            first = self._first_segments.get(directory)
            if first is None or name < posixpath.basename(first.path):
                self._keep(*([item.path] if first is None else []))
                self._first_segments[directory] = item
        parent, last = posixpath.split(directory)
        if LOG_DIRECTORY.fullmatch(last):
            directory = parent
        known = self._archived.get(directory, _Segments(segment, segment, 0))
        limit(len(self._archived), MOST_WAL_ARCHIVES, "directories with archived WAL")
        self._archived[directory] = _Segments(min(known.first, segment), max(known.last, segment), known.number + 1)

    def _add_file(self, item: Item, directory: str, name: str) -> None:
        self.signs.note(item.path, directory, name)
        if is_probable(directory, name):
            self._probable.add(item, self.files)
        self._largest.add(item, self.files)

    def to_be_looked_at(self) -> list[Item]:
        """Files that may be backups, some of the largest, in the archive's order."""
        found = self._probable.by_place()
        # A tool's repository has thousands of files that say no more than its name.
        for place, item in self._largest.by_place().items() if not self.signs.tools else ():
            if len(found) < MOST_FILES:
                found[place] = item
        return [found[place] for place in sorted(found)]

    def postgresql_directories(self) -> list[str]:
        """Directories that hold PG_VERSION and global/pg_control; `` is the archive's root."""
        return [path for path in self._like_postgresql() if path not in self.signs.pages]

    def other_backups(self) -> list[OtherBackup]:
        """Backups of other tools, by the names that only these have, or by what only looks like a data directory."""
        known = self.signs.found()
        pages = [self.signs.pages[path] for path in self._like_postgresql() if path in self.signs.pages]
        return [*known, *(other for other in pages[:1] if other.what not in [one.what for one in known])]

    def _like_postgresql(self) -> list[str]:
        found = self.directories_with("PG_VERSION")
        return [directory for directory in found if self.has(directory, "global/pg_control")]

    def directories_with(self, name: str) -> list[str]:
        """Directories that hold a marker file of that name."""
        return sorted(posixpath.dirname(path) for path in self.markers if posixpath.basename(path) == name)

    def has(self, directory: str, name: str) -> bool:
        """Whether that marker file is in the directory."""
        return posixpath.join(directory, name) in self.markers

    def has_directory(self, path: str) -> bool:
        """Whether the archive has such a directory, or anything in it."""
        return path in self._sizes

    def resolve(
        self, path: str, *, root: str = "", place_of: Callable[[str], str | None] = lambda _path: None
    ) -> str | None:
        """Where a path leads by the archive's own links, whether there is something or not; see _resolve.py."""
        return resolve(path, self.links.get, root=root, place_of=place_of)

    def places(self, path: str) -> set[str]:
        """Where a path may lead to, given that each directory above it may have been `/` on the archive's host."""
        found = (self.resolve(path, root=root) for root in leading(path))
        return {place for place in found if place is not None}

    def names_in(self, directory: str) -> set[str]:
        """Names of the directories and links in the directory."""
        start = len(directory) + 1 if directory else 0
        below = (*_below(self._sorted_directories, directory), *self.links_below(directory))
        return {path[start:].partition("/")[0] for path in below if len(path) > start}

    def configurations(self, data_directories: Sequence[str]) -> list[str]:
        """Directories outside of all data directories that hold a postgresql.conf, as many as are read."""
        found = [
            posixpath.dirname(item.path)
            for path, item in sorted(self.markers.items())
            if posixpath.basename(path) == CONFIGURATION and item.healthy and 0 < item.size <= LONGEST_CONFIGURATION
        ]
        outside = [path for path in found if path not in data_directories]
        return outside[:MOST_CONFIGURATIONS] if data_directories else []

    def size_below(self, directory: str) -> int:
        """Bytes of all files below the directory."""
        return sum(self._sizes[path] for path in _below(self._sorted_directories, directory))

    def links_below(self, directory: str) -> Sequence[str]:
        """Paths of the links below the directory, sorted."""
        return _below(self._sorted_links, directory)

    def damaged_below(self, directory: str) -> Sequence[str]:
        """Paths of the files below the directory that have lost content, sorted."""
        return _below(self._sorted_damaged, directory)

    @cached_property
    def _sorted_directories(self) -> list[str]:
        return sorted(self._sizes)

    @cached_property
    def _sorted_links(self) -> list[str]:
        return sorted(self.links)

    @cached_property
    def _sorted_damaged(self) -> list[str]:
        return sorted(self.damaged)

    def refuse(self, database: Database) -> None:
        """Raise ArchiveRefusedError where what the archive lists cannot be what a mount of the database would show.

        That is, or where there is something among its files that no database has. See _suspects.py.
        """
        parts = database.paths()
        links = (link for part in parts for link in self.links_below(part))
        has_entries = (link for link in links if _below(self._sorted_directories, link))
        is_postgresql = database.engine == "postgresql"
        self._suspects.refuse(parts, self.links, has_entries, database.data_directory if is_postgresql else None)

    def as_mounted(self, paths: Sequence[str]) -> list[str]:
        """Paths as a mount has to be asked for them: with `./` in front where the archive has it.

        Raises ArchiveRefusedError where it has that in front of some of what is there, but not of all.
        """
        dotted, plain = (
            [path for path in paths if (tops if path in ("", ".") else path.partition("/")[0] in tops)]
            for tops in (self._dotted, self._plain)
        )
        if dotted and plain:
            raise ArchiveRefusedError(
                f"has paths that begin with ./ (of {shown(dotted[0])}) and paths that do not (of {shown(plain[0])}), "
                "which Borg cannot show in one mount: extract it, and archive its files with borg create."
            )
        return [f"./{'' if path == '.' else path}" for path in paths] if dotted else list(paths)

    def segments(self, directory: str) -> int | None:
        """How many WAL segments are in the directory; None when there is no such directory."""
        return self._segments.get(directory, 0) if self.has_directory(directory) else None

    def wal_archives(self, databases: Sequence[Database]) -> list[dict[str, Any]]:
        """Directories with archived WAL: `path`, number of `segments`, `first` and `last` of them by name."""
        own = [(database.wal_directory or {}).get("archived_path") for database in databases]
        return [
            {
                "path": self.as_mounted([path])[0],
                "segments": segments.number,
                "first": segments.first,
                "last": segments.last,
            }
            for path, segments in sorted(self._archived.items())
            if not any(directory is not None and is_below(path, directory) for directory in own)
        ]

    def tablespace_at(self, path: str) -> bool:
        """Whether the directory is the root of a tablespace."""
        return path in self._tablespaces

    def tablespaces_like(self, path: str) -> list[str]:
        """Roots of tablespaces that may be `path`, see _alike."""
        return _alike(self._tablespaces, path)

    def tablespaces_in(self, directory: str) -> list[str]:
        """Roots of tablespaces that are directories of `directory`."""
        return [path for path in self._tablespaces if posixpath.dirname(path) == directory]

    def tablespaces_of_nobody(self, directory: str) -> list[str]:
        """Roots of tablespaces, but those of other data directories than this."""
        taken = self._taken(directory, "pg_tblspc")
        return sorted(
            path for path in self._tablespaces - taken if posixpath.basename(posixpath.dirname(path)) != "pg_tblspc"
        )

    def wal_of_nobody(self, directory: str, most: int) -> list[Item]:
        """A segment each of directories with WAL, but those of other data directories than this; so many at most."""
        taken = self._taken(directory, "pg_wal")
        found = [
            path
            for path in self._first_segments
            if path not in taken and not LOG_DIRECTORY.fullmatch(posixpath.basename(path))
        ]
        found.sort(key=lambda path: (not self.has_directory(f"{path}/archive_status"), path))
        return [self._first_segments[path] for path in found[:most]]

    def _taken(self, directory: str, name: str) -> set[str]:
        """What other data directories than this have at that name or in that directory, also through links."""
        found = set()
        for other in self.postgresql_directories():
            top = posixpath.join(other, name)
            for path in (top, *self.links_below(top)) if other != directory else ():
                found |= {path, *self.places(path)}
        return found

    def wal_directories_like(self, path: str) -> list[str]:
        """Directories with WAL segments that may be `path`, see _alike."""
        return _alike(self._segments, path)


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
    tablespaces, wal = locate.tablespaces(content.text(directory, "tablespace_map")), locate.wal()
    parts = [directory, *_outside(directory, locate.links.values())]
    symlinks = locate.other_links(parts)
    parts = [directory, *_outside(directory, locate.links.values())]
    locate.look_at_relocated()
    damaged = [path for part in parts for path in catalogue.damaged_below(part)]
    problems += [*locate.problems, *_lost(damaged)]
    return Database(
        engine="postgresql",
        data_directory=directory or ".",
        kind=_postgresql_kind(control, markers, content.text(directory, "recovery.conf")),
        version=content.text(directory, "PG_VERSION").strip()[:LONGEST_VERSION] or None,
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


def _postgresql_kind(control: PgControl | None, markers: tuple[str, ...], recovery_conf: str) -> str:
    if "backup_label" in markers:
        return "backup_label"
    state = control.state if control else ""
    follows = re.search(r"^\s*standby_mode\s*=?\s*'?(on|true|yes|1)", recovery_conf, re.IGNORECASE | re.MULTILINE)
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


def _outside(directory: str, places: Iterable[str]) -> list[str]:
    """Of places what is not in the directory, nor in another of them."""
    found: list[str] = []
    for place in sorted(places):
        if not any(is_below(place, other) for other in (directory, *found)):
            found.append(place)
    return found


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
    if not dumps and not others:
        return [], [
            OtherBackup(archived["path"] or ".", "archived WAL of PostgreSQL", NEEDS_DATA)
            for archived in catalogue.wal_archives([])[:MOST_FILES]
        ]
    return dumps, list(others.values())


def _dump(item: Item, dump: Dump) -> Database:
    return Database(
        engine=dump.engine,
        data_directory=item.path,
        kind="logical_dump",
        version=dump.version,
        owner=item.user,
        size=item.size,
    )


def _below(paths: Sequence[str], directory: str) -> Sequence[str]:
    """Of sorted paths those that are the directory or in it. `` and `.` are the archive's root."""
    if directory in ("", "."):
        return paths
    place = bisect_left(paths, directory)
    own = paths[place : place + 1] if place < len(paths) and paths[place] == directory else []
    # "0" is what follows the slash: all that begins with the directory's name and a slash is between them.
    return [*own, *paths[bisect_left(paths, f"{directory}/") : bisect_left(paths, f"{directory}0")]]


def _alike(places: Iterable[str], path: str) -> list[str]:
    """Of archived places those that end with path, from another mount point; else the longest that path ends with.

    The latter is what `borg create` makes of relative paths: it leaves the working directory's away.
    """
    known = list(places)
    shorter = sorted((place for place in known if place not in ("", ".") and _ends_with(path, place)), key=len)
    return [place for place in known if _ends_with(place, path)] or shorter[-1:]


def _ends_with(path: str, suffix: str) -> bool:
    """Whether path ends with these components."""
    return not suffix or path == suffix or path.endswith(f"/{suffix}")
