# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""PostgreSQL's files of an archive, noted while its item list streams by: WAL, archived WAL and tablespaces."""

from __future__ import annotations

import itertools
import posixpath
import re
from collections.abc import Container, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

from .._borg.suspects import is_below, limit
from .._engine.listing import Listing, alike
from .._errors import is_plain
from .other_backups import Signs
from .wal_archive import ARCHIVED_FILE, SEGMENT

if TYPE_CHECKING:
    from .._borg.items import Item
    from .._engine.other_backups import OtherBackup

__all__ = ["CONFIGURATION", "ArchivedFiles"]

CONFIGURATION = "postgresql.conf"
MOST_WAL_ARCHIVES = 10_000
# Configurations outside of data directories that are read: a host has one for each cluster.
MOST_CONFIGURATIONS, LONGEST_CONFIGURATION = 50, 128 << 10
TABLESPACE_VERSION = re.compile(r"PG_\d+(?:\.\d+)?_\d{9}")
WAL_SEGMENT = re.compile(r"[0-9A-F]{24}(?:\.partial)?")
LOG_DIRECTORY = re.compile(r"[0-9A-F]{16}")


class _Segments(NamedTuple):
    """WAL segments of one directory: the first and the last by name, and their number."""

    first: str
    last: str
    number: int


@dataclass
class ArchivedFiles:
    """What a listing has of PostgreSQL. signs: names that only other tools' backups have."""

    listing: Listing
    _segments: dict[str, int] = field(default_factory=dict)
    # Of each directory with WAL the first segment by name, which surely has been written.
    _first_segments: dict[str, Item] = field(default_factory=dict)
    _archived: dict[str, _Segments] = field(default_factory=dict)
    _tablespaces: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.signs = Signs(self.listing.keep)

    def note_directory(self, path: str) -> None:
        """Note a tablespace, by the directory of a version in it."""
        parent, name = posixpath.split(path)
        if TABLESPACE_VERSION.fullmatch(name):
            self.listing.keep(parent)
            self._tablespaces.add(parent)

    def note_wal(self, item: Item, directory: str, name: str) -> bool:
        """Note a file of WAL, in pg_wal or archived; whether it is one."""
        archived = ARCHIVED_FILE.fullmatch(name)
        if archived is not None:
            self._add_archived(item, directory, name, archived["name"])
        return archived is not None

    def _add_archived(self, item: Item, directory: str, name: str, segment: str) -> None:
        if not SEGMENT.fullmatch(segment):
            return  # the history of a timeline or a backup
        if WAL_SEGMENT.fullmatch(name):
            self._segments[directory] = self._segments.get(directory, 0) + 1
            first = self._first_segments.get(directory)
            if first is None or name < posixpath.basename(first.path):
                self.listing.keep(item.path, item.target, item.user)
                self._first_segments[directory] = item
        parent, last = posixpath.split(directory)
        if LOG_DIRECTORY.fullmatch(last):
            directory = parent
        known = self._archived.get(directory, _Segments(segment, segment, 0))
        limit(len(self._archived), MOST_WAL_ARCHIVES, "directories with archived WAL")
        self._archived[directory] = _Segments(min(known.first, segment), max(known.last, segment), known.number + 1)

    def data_directories(self) -> list[str]:
        """Directories that hold PG_VERSION and global/pg_control; `` is the archive's root."""
        return [path for path in self._alike() if path not in self.signs.pages]

    def _alike(self) -> list[str]:
        found = self.listing.directories_with("PG_VERSION")
        return [directory for directory in found if self.listing.has(directory, "global/pg_control")]

    def other_backups(self) -> list[OtherBackup]:
        """Backups of other tools, by the names that only these have, or by what only looks like a data directory."""
        known = self.signs.found()
        pages = [self.signs.pages[path] for path in self._alike() if path in self.signs.pages]
        return [*known, *(other for other in pages[:1] if other.what not in [one.what for one in known])]

    def configurations(self, data_directories: Sequence[str]) -> list[str]:
        """Directories outside of all data directories that hold a postgresql.conf, as many as are read."""
        found = [
            posixpath.dirname(item.path)
            for path, item in sorted(self.listing.markers.items())
            if posixpath.basename(path) == CONFIGURATION and item.healthy and 0 < item.size <= LONGEST_CONFIGURATION
        ]
        outside = [path for path in found if path not in data_directories]
        return outside[:MOST_CONFIGURATIONS] if data_directories else []

    def segments(self, directory: str) -> int | None:
        """How many WAL segments are in the directory; None when there is no such directory."""
        return self._segments.get(directory, 0) if self.listing.has_directory(directory) else None

    def tablespaces_like(self, path: str) -> list[str]:
        """Roots of tablespaces that may be `path`, see alike()."""
        return alike(self._tablespaces, path)

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
        found.sort(key=lambda path: (not self.listing.has_directory(f"{path}/archive_status"), path))
        return [self._first_segments[path] for path in found[:most]]

    def wal_directories_like(self, path: str) -> list[str]:
        """Directories with WAL segments that may be `path`, see alike()."""
        return alike(self._segments, path)

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
        for owner in self.data_directories():
            top = posixpath.join(owner, name)
            for path in itertools.chain((top,), self.listing.links_below(top)):
                for place in itertools.chain((path,), self.listing.each_place(path)):
                    if place in places and len(found.setdefault(place, set())) < 2:
                        found[place].add(owner)
        return found

    def log_archives(self, own: Sequence[str]) -> list[dict[str, Any]]:
        """Directories with archived WAL: `path`, number of `segments`, `first` and `last` of them by name.

        None that is below one of own, and none whose name acts on a terminal: they are printed, to choose from.
        """
        return [
            {
                "path": self.listing.as_mounted([path])[0],
                "segments": segments.number,
                "first": segments.first,
                "last": segments.last,
            }
            for path, segments in sorted(self._archived.items())
            if is_plain(path) and not any(is_below(path, directory) for directory in own)
        ]
