# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is kept of an archive's item list: what may be of a database, and one number for each directory."""

from __future__ import annotations

import heapq
import itertools
import posixpath
import re
import sys
from bisect import bisect_left
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

from .._borg.items import Item
from .._borg.suspects import ArchiveRefusedError, Suspects, is_below, limit
from .._errors import is_plain, shown
from .._host.compressed import Beginning
from .._host.links import leading, resolve
from .._postgresql.wal_archive import ARCHIVED_FILE, SEGMENT
from .model import Database
from .other_backups import OtherBackup, Signs, is_probable

__all__ = ["CONFIGURATION", "CONTENTS", "MOST_FILES", "POSTGRESQL_MARKERS", "Beginnings", "Catalogue", "Reader"]

# More than any honest archive has. Memory for names, estimated, is enough for three million directories.
KEPT_LIMIT, KEPT_OVERHEAD = 512 << 20, 100  # bytes, of which so many are what Python needs for an entry beside its name
MOST_WAL_ARCHIVES = 10_000
# Configurations outside of data directories that are read: a host has one for each cluster.
MOST_CONFIGURATIONS, LONGEST_CONFIGURATION = 50, 128 << 10
# Files whose beginnings are looked at where there is no data directory, mostly with one call of borg each: the largest
# few are enough to name them. Those called like a dump or an image come first.
MOST_FILES, MOST_PROBABLE = 8, 5
CONFIGURATION = "postgresql.conf"
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

# Content by path of items that are given in the archive's order; what cannot be read is left out.
Reader = Callable[[Sequence[Item]], Mapping[str, bytes]]
# The first bytes of what items hold, so many at most, by path; what cannot be read is left out.
Beginnings = Callable[[Sequence[Item], int], Mapping[str, Beginning]]


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
        self._kept += sum(map(sys.getsizeof, names)) + KEPT_OVERHEAD * len(names)
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
        self._keep(item.path, item.target, item.user)
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
                self._keep(item.path, item.target, item.user)
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
        """Where a path leads by the archive's own links, whether there is something or not; see _host/links.py."""
        return resolve(path, self.links.get, root=root, place_of=place_of)

    def places(self, path: str) -> set[str]:
        """Where a path may lead to, given that each directory above it may have been `/` on the archive's host."""
        return set(self._places(path))

    def _places(self, path: str) -> Iterator[str]:
        found = (self.resolve(path, root=root) for root in leading(path))
        return (place for place in found if place is not None)

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

        That is, or where there is something among its files that no database has. See _borg/suspects.py.
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

    def log_archives(self, databases: Sequence[Database]) -> list[dict[str, Any]]:
        """Directories with archived WAL: `path`, number of `segments`, `first` and `last` of them by name.

        None whose name acts on a terminal: they are printed, to choose from.
        """
        own = [(database.wal_directory or {}).get("archived_path") for database in databases]
        return [
            {
                "path": self.as_mounted([path])[0],
                "segments": segments.number,
                "first": segments.first,
                "last": segments.last,
            }
            for path, segments in sorted(self._archived.items())
            if is_plain(path) and not any(directory is not None and is_below(path, directory) for directory in own)
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
        taken = self._tablespaces_of
        return sorted(
            path
            for path in self._tablespaces
            if posixpath.basename(posixpath.dirname(path)) != "pg_tblspc" and not taken.get(path, set()) - {directory}
        )

    def wal_of_nobody(self, directory: str, most: int) -> list[Item]:
        """A segment each of directories with WAL, but those of other data directories than this; so many at most."""
        found = [
            path
            for path in self._first_segments
            if not self._wal_of.get(path, set()) - {directory} and not LOG_DIRECTORY.fullmatch(posixpath.basename(path))
        ]
        found.sort(key=lambda path: (not self.has_directory(f"{path}/archive_status"), path))
        return [self._first_segments[path] for path in found[:most]]

    @cached_property
    def _tablespaces_of(self) -> dict[str, set[str]]:
        return self._owners("pg_tblspc", self._tablespaces)

    @cached_property
    def _wal_of(self) -> dict[str, set[str]]:
        return self._owners("pg_wal", self._first_segments)

    def _owners(self, name: str, places: Container[str]) -> dict[str, set[str]]:
        """Of places, the data directories that have them at that name or in that directory, also through links.

        Two of each are enough: whoever asks is one himself, perhaps.
        """
        found: dict[str, set[str]] = {}
        for owner in self.postgresql_directories():
            top = posixpath.join(owner, name)
            for path in itertools.chain((top,), self.links_below(top)):
                for place in itertools.chain((path,), self._places(path)):
                    if place in places and len(found.setdefault(place, set())) < 2:
                        found[place].add(owner)
        return found

    def wal_directories_like(self, path: str) -> list[str]:
        """Directories with WAL segments that may be `path`, see _alike."""
        return _alike(self._segments, path)


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
