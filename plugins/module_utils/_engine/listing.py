# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is kept of an archive's item list: what may be of a database, and one number for each directory."""

from __future__ import annotations

import heapq
import posixpath
import sys
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

from .._borg.items import Item
from .._borg.suspects import ArchiveRefusedError, Suspects, is_odd, limit
from .._errors import shown
from .._host.compressed import Beginning
from .._host.links import leading, resolve
from .database import Database
from .other_backups import OtherBackup, is_probable

__all__ = ["MOST_FILES", "Beginnings", "Listing", "Reader", "Watcher", "alike"]

# More than any honest archive has. Memory for names, estimated, is enough for three million directories.
KEPT_LIMIT, KEPT_OVERHEAD = 512 << 20, 100  # bytes, of which so many are what Python needs for an entry beside its name
# Files whose beginnings are looked at where there is no data directory, mostly with one call of borg each: the largest
# few are enough to name them. Those called like a dump or an image come first.
MOST_FILES, MOST_PROBABLE = 8, 5
# Larger than a small file that tells something ever is: something else of that name is not read.
CONTENT_LIMIT = 1024 * 1024

# Content by path of items that are given in the archive's order; what cannot be read is left out.
Reader = Callable[[Sequence[Item]], Mapping[str, bytes]]
# The first bytes of what items hold, so many at most, by path; what cannot be read is left out.
Beginnings = Callable[[Sequence[Item], int], Mapping[str, Beginning]]


class Watcher(Protocol):
    """What notes one engine's files while the items stream by; see _engine/contents.py, which all of them are of."""

    @property
    def has_tool(self) -> bool: ...

    def is_marker(self, directory: str, name: str) -> bool: ...

    def is_readable(self, name: str) -> bool: ...

    def note_directory(self, path: str) -> None: ...

    def note_file(self, path: str, directory: str, name: str) -> None: ...

    def takes(self, item: Item, directory: str, name: str) -> bool: ...

    def is_opened(self, path: str, database: Database) -> bool: ...

    def log_archives(self, databases: Sequence[Database]) -> list[dict[str, Any]]: ...


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
        """Items that were kept, largest first."""
        return {-place: item for _size, place, item in sorted(self._heap, reverse=True)}


@dataclass
class Listing:
    """What is kept of an item list while it streams by: a few entries per database, and one number per directory.

    `files` counts the regular files, `size` is the sum of all bytes. `watchers` note what is of one engine. `others` is
    what it holds instead of a database.
    """

    files: int = 0
    size: int = 0
    markers: dict[str, Item] = field(default_factory=dict)
    links: dict[str, str] = field(default_factory=dict)
    damaged: list[str] = field(default_factory=list)
    others: list[OtherBackup] = field(default_factory=list)
    watchers: Sequence[Watcher] = ()
    # Every entry of a file with content of interest, in the archive's order: where the paths given to borg create
    # overlapped, the archive has entries twice.
    readable: list[Item] = field(default_factory=list)
    _sizes: dict[str, int] = field(default_factory=dict)
    _probable: _Largest = field(default_factory=lambda: _Largest(MOST_PROBABLE))
    _largest: _Largest = field(default_factory=lambda: _Largest(MOST_FILES))
    # First components of paths that begin with `./`, and of all others.
    _dotted: set[str] = field(default_factory=set)
    _plain: set[str] = field(default_factory=set)
    _kept: int = 0

    def __post_init__(self) -> None:
        self._suspects = Suspects(self.keep)

    def add(self, item: Item) -> None:
        """Note one item; none can follow the first question. Raises ArchiveRefusedError."""
        self._suspects.note(item, self.links, self._sizes, self.markers)
        self.files += item.type == "-"
        self.size += item.size
        directory, name = posixpath.split(item.path)
        if item.type == "d":
            self._add_directory(item.path)
            return
        self._note_top(item)
        if directory not in self._sizes:
            self.keep(directory)
        self._sizes[directory] = self._sizes.get(directory, 0) + item.size
        if item.type == "l":
            self.keep(item.path, item.target)
            self.links[item.path] = item.target
        elif any(watcher.is_marker(directory, name) for watcher in self.watchers):
            self._add_marker(item, name)
            self._note_file(item, directory, name)
        elif any(watcher.takes(item, directory, name) for watcher in self.watchers):
            pass
        elif item.type == "-" and item.size:
            self._add_file(item, directory, name)
        if not item.healthy:
            self.keep(item.path)
            self.damaged.append(item.path)

    def keep(self, *names: str) -> None:
        """Count names that are kept. Raises ArchiveRefusedError where they are too many."""
        self._kept += sum(map(sys.getsizeof, names)) + KEPT_OVERHEAD * len(names)
        limit(self._kept >> 20, KEPT_LIMIT >> 20, "MiB of names of directories and links")

    def _note_top(self, item: Item) -> None:
        """Of no directory: pg_basebackup has ./pg_wal/archive_status beside plain paths in its tar files."""
        top, tops = item.path.partition("/")[0], self._dotted if item.is_dotted else self._plain
        if top not in tops:
            self.keep(top)
            tops.add(top)

    def _add_directory(self, path: str) -> None:
        path = "" if path == "." else path
        if path not in self._sizes:
            self.keep(path)
            self._sizes[path] = 0
        for watcher in self.watchers:
            watcher.note_directory(path)

    def _add_marker(self, item: Item, name: str) -> None:
        if item.type == "h" and item.target == item.path:
            return  # the second entry of a file that the archive has twice
        self.keep(item.path, item.target, item.user)
        self.markers[item.path] = item
        if 0 < item.size <= CONTENT_LIMIT and any(watcher.is_readable(name) for watcher in self.watchers):
            self.readable.append(item)

    def _note_file(self, item: Item, directory: str, name: str) -> None:
        for watcher in self.watchers:
            watcher.note_file(item.path, directory, name)

    def _add_file(self, item: Item, directory: str, name: str) -> None:
        self._note_file(item, directory, name)
        if is_probable(directory, name):
            self._probable.add(item, self.files)
        self._largest.add(item, self.files)

    def to_be_looked_at(self) -> list[Item]:
        """Files that may be backups, some of the largest, in the archive's order."""
        found = self._probable.by_place()
        # A tool's repository has thousands of files that say no more than its name.
        for place, item in self._largest.by_place().items() if not self._has_tool() else ():
            if len(found) < MOST_FILES:
                found[place] = item
        return [found[place] for place in sorted(found)]

    def _has_tool(self) -> bool:
        return any(watcher.has_tool for watcher in self.watchers)

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
        return set(self.each_place(path))

    def each_place(self, path: str) -> Iterator[str]:
        """Where a path may lead to, one by one; some places come twice."""
        found = (self.resolve(path, root=root) for root in leading(path))
        return (place for place in found if place is not None)

    def names_in(self, directory: str) -> set[str]:
        """Names of the directories and links in the directory."""
        start = len(directory) + 1 if directory else 0
        below = (*_below(self._sorted_directories, directory), *self.links_below(directory))
        return {path[start:].partition("/")[0] for path in below if len(path) > start}

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

        def is_opened(path: str) -> bool:
            return any(watcher.is_opened(path, database) for watcher in self.watchers)

        self._suspects.refuse(parts, self.links, has_entries, is_opened)

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

    def log_archives(self, databases: Sequence[Database]) -> list[dict[str, Any]]:
        """Directories with archived logs of any engine: `path`, number of `segments`, `first` and `last` by name.

        None whose path leads out of the archive: these are mounted without another look.
        """
        found = [one for watcher in self.watchers for one in watcher.log_archives(databases)]
        return [one for one in found if not is_odd(one["path"])]


def _below(paths: Sequence[str], directory: str) -> Sequence[str]:
    """Of sorted paths those that are the directory or in it. `` and `.` are the archive's root."""
    if directory in ("", "."):
        return paths
    place = bisect_left(paths, directory)
    own = paths[place : place + 1] if place < len(paths) and paths[place] == directory else []
    # "0" is what follows the slash: all that begins with the directory's name and a slash is between them.
    return [*own, *paths[bisect_left(paths, f"{directory}/") : bisect_left(paths, f"{directory}0")]]


def alike(places: Iterable[str], path: str) -> list[str]:
    """Of archived places those that end with path, from another mount point; else the longest that path ends with.

    The latter is what `borg create` makes of relative paths: it leaves the working directory's away.
    """
    known = list(places)
    shorter = sorted((place for place in known if place not in ("", ".") and _ends_with(path, place)), key=len)
    return [place for place in known if _ends_with(place, path)] or shorter[-1:]


def _ends_with(path: str, suffix: str) -> bool:
    """Whether path ends with these components."""
    return not suffix or path == suffix or path.endswith(f"/{suffix}")
