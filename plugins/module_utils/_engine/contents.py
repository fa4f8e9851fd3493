# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which databases an archive holds, found from its item list and the content of a few small files.

Nothing is concluded from how a path is spelled: a data directory is known by the files that only a data directory has,
its version and state by what they say. Each engine has a class of Contents for its own. Everything here is pure;
reading is done by the functions the caller gives. Whoever made the archive may wish this host ill: what is kept and
read of it is bounded, see also _borg/suspects.py.
"""

from __future__ import annotations

import posixpath
from abc import ABC, abstractmethod
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .._borg.suspects import limit
from .._errors import listed, shown
from .database import Database
from .listing import MOST_FILES, Beginnings, Listing, Reader
from .other_backups import BEGINNING, Dump, OtherBackup, dump_header, of_no_engine, tar_members, unseen

if TYPE_CHECKING:
    from .._borg.items import Item
    from .._host.compressed import Beginning

__all__ = ["Content", "Contents", "find_databases", "look_at", "lost_content"]

READ_LIMIT = 64 << 20  # bytes of all small files together
MOST_DATABASES = 1000
MOST_TOLD = 32 << 20  # characters of what is told of all databases: of one with 100 tablespaces, some 50,000


class Contents(ABC):
    """What a listing has of one engine: noted while the items stream by, and told when all have.

    names are those of the engines. mark is what a data directory is known by, for people. readable and present are
    names of markers: of small files that tell something by their content, and of those that tell something by being
    there. data_files are names by which a tar file of a data directory is known. needed are small files without which
    nobody knows how to start a server.
    """

    names: tuple[str, ...]
    mark: str
    readable: frozenset[str] = frozenset()
    present: frozenset[str] = frozenset()
    data_files: frozenset[str] = frozenset()
    needed: tuple[str, ...] = ()

    def __init__(self, listing: Listing) -> None:
        self.listing = listing

    def is_marker(self, directory: str, name: str) -> bool:
        """Whether a file tells something of a data directory."""
        return self.is_readable(name) or name in self.present

    def is_readable(self, name: str) -> bool:
        """Whether the content of a marker called so tells something, if it is small."""
        return name in self.readable

    def note_directory(self, path: str) -> None:
        """Note a directory, if any is of interest."""
        return

    def note_file(self, path: str, directory: str, name: str) -> None:
        """Note the path of a file that is a marker, or of nobody else's kind, if its name is of interest."""
        return

    def takes(self, item: Item, directory: str, name: str) -> bool:
        """Note a file that is no marker, and whether it is the engine's, such as one of archived logs."""
        return False

    @property
    def has_tool(self) -> bool:
        """Whether it has another tool's repository, whose files say no more than its name."""
        return False

    @abstractmethod
    def directories(self) -> Sequence[str]:
        """The data directories; `` is the archive's root."""

    def wanted(self) -> Iterable[str]:
        """Paths of small files to be read."""
        return (posixpath.join(directory, name) for directory in self.directories() for name in self.readable)

    @abstractmethod
    def databases(self, content: Content, relocated: Mapping[str, str], begin: Beginnings) -> Iterator[Database]:
        """What is told of them. relocated: where in the archive directories are that links lead to, says the user."""

    def is_opened(self, path: str, database: Database) -> bool:
        """Whether the server of the database, if it is this engine's, opens what is at the path."""
        return False

    def log_archives(self, databases: Sequence[Database]) -> list[dict[str, Any]]:
        """Directories with archived logs: `path`, number of `segments`, `first` and `last` of them by name."""
        return []

    def others(self) -> list[OtherBackup]:
        """Backups of other tools, by their names; asked where there is no data directory."""
        return []

    def remains(self) -> list[OtherBackup]:
        """Parts of what would be a database, such as archived logs alone; asked where there is nothing else."""
        return []

    def dump_in(self, header: bytes, members: Sequence[str]) -> Dump | None:
        """The logical dump that begins like this, or is a tar file with these members."""
        return None

    def backup_in(self, path: str, content: bytes, members: Sequence[str]) -> OtherBackup | None:
        """The backup of another kind that begins like this, or is a tar file with these members."""
        return None


def find_databases(
    items: Iterable[Item],
    kinds: Sequence[type[Contents]],
    *,
    read: Reader,
    begin: Beginnings,
    relocated: Mapping[str, str] | None = None,
) -> tuple[list[Database], Listing]:
    """The databases among `items`, which are passed over once, and what was kept of the list.

    `kinds` has the class of each engine's. `relocated`: where in the archive directories are that links lead to, as far
    as the user says so.

    Logical dumps, and the listing's `others`, are looked for only where there is no data directory. Raises
    ArchiveRefusedError for an archive that has more of something than can be looked through.
    """
    listing = Listing()
    contents = [kind(listing) for kind in kinds]
    listing.watchers = contents
    for item in items:
        listing.add(item)
    limit(sum(len(one.directories()) for one in contents), MOST_DATABASES, "databases")
    content = Content(listing, read, {path for one in contents for path in one.wanted()})
    found, told = [], 0
    for one in contents:
        for database in one.databases(content, relocated or {}, begin):
            found.append(database)
            told += _characters(database.as_dict())
            limit(told >> 20, MOST_TOLD >> 20, "MiB of links and other places of databases")
    if not found:
        found, listing.others = _without_data_directory(listing, contents, begin)
    return sorted(found, key=lambda database: database.data_directory), listing


def _characters(told: Any) -> int:
    """How much what is told is, roughly."""
    if isinstance(told, dict):
        return sum(map(_characters, (*told, *told.values())))
    if isinstance(told, (list, tuple)):
        return sum(map(_characters, told))
    return len(told) if isinstance(told, str) else 1


class Content:
    """Content of the small files, read in one go."""

    def __init__(self, listing: Listing, read: Reader, paths: Container[str]) -> None:
        # A hard link's content is stored with the name it was first archived under.
        self._sources = {
            path: item.target if item.type == "h" else path for path, item in listing.markers.items() if path in paths
        }
        wanted = set(self._sources.values())
        items = [item for item in listing.readable if item.path in wanted]
        limit(sum(item.size for item in items) >> 20, READ_LIMIT >> 20, "MiB of small files that tell of databases")
        self._content = read(items) if items else {}

    def get(self, directory: str, name: str) -> bytes:
        """Content of a file of the directory; nothing when it is missing or could not be read."""
        path = posixpath.join(directory, name)
        return self._content.get(self._sources.get(path, path), b"")

    def text(self, directory: str, name: str) -> str:
        """Content of a file as text."""
        return self.get(directory, name).decode("utf-8", "replace")


def lost_content(damaged: Sequence[str]) -> list[str]:
    """What to say of a database's files that have lost content."""
    if not damaged:
        return []
    return [
        f"Borg has lost content of {len(damaged)} of its files, as borg check --repair has found, and they cannot "
        f"be read: {listed(damaged)}."
    ]


def _without_data_directory(
    listing: Listing, contents: Sequence[Contents], begin: Beginnings
) -> tuple[list[Database], list[OtherBackup]]:
    """The logical dumps of an archive that has no data directory, and what else it has that is a backup."""
    dumps, others = [], {other.path: other for one in contents for other in one.others()}
    items = listing.to_be_looked_at()
    beginnings = begin(items, BEGINNING)
    for item in items:
        found = look_at(item.path, item.size, beginnings[item.path], contents) if item.path in beginnings else None
        if isinstance(found, Dump):
            dumps.append(_dump(item, found))
        elif found is not None:
            others.setdefault(item.path, found)
    if not listing.files:  # borg create of a directory that was a link
        others |= {path: _link_alone(path, target) for path, target in sorted(listing.links.items())[:MOST_FILES]}
    if dumps or others:
        return dumps, list(others.values())
    return [], [other for one in contents for other in one.remains()][:MOST_FILES]


def _link_alone(path: str, target: str) -> OtherBackup:
    what = f"a symbolic link to {shown(target)}, without what is there"
    return OtherBackup(path, what, "archive the directory that it leads to (borg create follows no links)")


def look_at(path: str, size: int, beginning: Beginning, contents: Sequence[Contents]) -> Dump | OtherBackup | None:
    """What a file with that path, size in the archive, and beginning is, if it may be a backup."""
    content, members = beginning.content, tar_members(beginning.content)
    header = dump_header(content)
    dumps = (one.dump_in(header, members) for one in contents)
    if dump := next(filter(None, dumps), None):
        return dump
    if hidden := unseen(path, beginning):
        return hidden
    known = (one.backup_in(path, content, members) for one in contents)
    data_files = frozenset[str]().union(*(one.data_files for one in contents))
    return next(filter(None, known), None) or of_no_engine(path, size, beginning, members, data_files)


def _dump(item: Item, dump: Dump) -> Database:
    return Database(
        engine=dump.engine,
        data_directory=item.path,
        kind="logical_dump",
        version=dump.version,
        owner=item.user,
        size=item.size,
    )
