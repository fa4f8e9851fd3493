# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What no honest archive of a database has, noted while its item list streams by: a few entries, not all paths.

`borg create` lists what a file system has: a path leads nowhere but below the archive's root, and it is one thing. Of a
list that was made up, Borg's mount shows what came last. So it could have a link, to production, in the place of the
directory whose files it lists, or give the server a device of this host.
"""

from __future__ import annotations

import itertools
import posixpath
from bisect import bisect_left
from collections.abc import Callable, Collection, Container, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from .._errors import RecoveryError

if TYPE_CHECKING:
    from .items import Item

__all__ = ["TOO_MUCH", "ArchiveRefusedError", "Suspects", "is_below", "is_odd", "limit"]

TOO_MUCH = "archive the database on its own, or name another archive."
REMEDY = "borg create makes no such archive: use another one, and find out who made this."
NO_SUCH_THING = "no database has one: use another archive, and find out who made this."
PIPES = {"p": "named pipe", "s": "socket"}  # left by programs that run no more; opened, a pipe is waited for


class ArchiveRefusedError(RecoveryError):
    """The archive holds, or claims to hold, what no honest one has."""

    def __init__(self, problem: str) -> None:
        super().__init__(f"The archive {problem}")


@dataclass
class Suspects:
    """What was noted so far; keep is told of each path that is kept.

    odd: the first path that leads out of the archive. twice: paths that are listed as two things, and as which.
    nodes: by directory, the first device node in it. pipes: named pipes and sockets, and which of these.
    """

    keep: Callable[..., None]
    odd: str | None = None
    twice: dict[str, str] = field(default_factory=dict)
    nodes: dict[str, str] = field(default_factory=dict)
    pipes: dict[str, str] = field(default_factory=dict)

    def note(self, item: Item, links: Mapping[str, str], directories: Container[str], files: Container[str]) -> None:
        """Look at one item, given what was listed before it: links, directories, and some of the files."""
        path, kind = item.path, item.type
        if self.odd is None and (".." in path or "\0" in path or path.startswith("/")) and is_odd(path):
            self.odd = path
        if path in directories:
            if kind != "d":
                self._note_second(path, "as a directory and as something else")
        elif path in links:
            if kind != "l" or item.target != links[path]:
                self._note_second(path, "as a symbolic link and as something else")
        elif kind == "l" and path in files:
            self._note_second(path, "as a file and as a symbolic link")
        if kind == "h":
            self._note_hard_link(item, links, directories)
        elif kind not in "-dl":
            self._note_special(path, kind)

    def _note_second(self, path: str, kinds: str) -> None:
        if path not in self.twice:
            self.keep(path, kinds)
            self.twice[path] = kinds

    def _note_hard_link(self, item: Item, links: Mapping[str, str], directories: Container[str]) -> None:
        """Of a hard link, Borg's mount shows whatever its target is listed as."""
        target = item.target
        if target in self.pipes:
            self._note_special(item.path, self.pipes[target])
        elif target in links or target in directories or (target in self.twice and target != item.path):
            self._note_second(item.path, f"as another name of {target}, which is no file")
        elif posixpath.dirname(target) in self.nodes and target != item.path:
            self._note_special(item.path, "c")  # of several nodes in a directory one is known

    def _note_special(self, path: str, kind: str) -> None:
        directory = posixpath.dirname(path)
        if kind in PIPES:
            self.keep(path)
            self.pipes[path] = kind
        elif directory not in self.nodes:  # a device node, or what nobody knows
            self.keep(path)
            self.nodes[directory] = path

    def refuse(
        self,
        parts: Collection[str],
        links: Mapping[str, str],
        has_entries: Iterable[str],
        is_opened: Callable[[str], bool],
    ) -> None:
        """Raise ArchiveRefusedError where the archive cannot be trusted with regard to parts, which are its paths.

        links: those of the archive. has_entries: paths in parts that are links and yet have entries below.
        is_opened: whether the server opens what is at a path in one of the parts.
        """
        if self.odd is not None:
            raise ArchiveRefusedError(f"has the item {self.odd!r}, whose path leads out of it: {REMEDY}")
        above = (path for part in parts for path in _and_above(part) if path in links)
        for path in itertools.chain(above, has_entries):
            raise ArchiveRefusedError(f"lists {path} as a link to {links[path]}, and also entries below it: {REMEDY}")
        tree = _Parts(parts)
        for path, kinds in self.twice.items():
            if tree.has(path) or tree.is_led_to_by(path):
                raise ArchiveRefusedError(f"lists {path} {kinds}: {REMEDY}")
        for directory, path in self.nodes.items():
            if tree.has(directory):
                raise ArchiveRefusedError(f"has the device node {path} among the database's files, and {NO_SUCH_THING}")
        for path, kind in self.pipes.items():
            if tree.has(path) and is_opened(path):
                raise ArchiveRefusedError(f"has a {PIPES[kind]} where the server opens a file, {path}: {REMEDY}")


class _Parts:
    """Parts of an archive, asked about very many paths: what is asked takes as long for many parts as for one."""

    def __init__(self, parts: Collection[str]) -> None:
        self._known = frozenset("" if part == "." else part for part in parts)
        self._sorted = sorted(self._known)

    def has(self, path: str) -> bool:
        """Whether the path is one of the parts, or below one."""
        return "" in self._known or any(one in self._known for one in _and_above(path))

    def is_led_to_by(self, path: str) -> bool:
        """Whether one of the parts is below the path."""
        place = bisect_left(self._sorted, f"{path}/")
        return place < len(self._sorted) and self._sorted[place].startswith(f"{path}/")


def _and_above(path: str) -> Iterator[str]:
    """The path and all directories above it, but not the archive's root."""
    while path not in ("", "."):
        yield path
        path = path.rpartition("/")[0]


def is_odd(path: str) -> bool:
    """Whether a path leads out of the archive, or is none."""
    return path.startswith("/") or "\0" in path or ".." in path.split("/")


def is_below(path: str, directory: str) -> bool:
    """Whether path is the directory or in it. `` and `.` are the archive's root."""
    return directory in ("", ".") or path == directory or path.startswith(f"{directory}/")


def limit(number: int, most: int, what: str) -> None:
    """Raise ArchiveRefusedError where there is more of something than is looked through."""
    if number > most:
        raise ArchiveRefusedError(f"has more than {most} {what}, which is more than is looked through: {TOO_MUCH}")
