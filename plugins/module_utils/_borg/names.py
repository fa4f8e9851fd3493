# Copyright (c) 2026, phpBorg contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Names and attributes of an archive's items in a file, from which the layer answers in place of a mount.

Borg serves a mount's look-ups one after the other, each in a tenth of a millisecond: of a cluster of 100,000 files that
is most of a start. SQLite keeps what Borg lists, in little memory however much it is.
"""

from __future__ import annotations

import functools
import os
import posixpath
import stat
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple
from urllib.parse import quote

try:
    import sqlite3
except ImportError:  # a Python that was built without it: mounts answer then
    sqlite3 = None  # type: ignore[assignment]

__all__ = ["Attributes", "Listed", "Names", "permissions_of", "write_names"]

KINDS = {"-": stat.S_IFREG, "d": stat.S_IFDIR, "l": stat.S_IFLNK}
SCHEMA = (
    "create table item (above blob, name blob, mode integer, uid integer, gid integer, size integer, mtime integer, "
    "ctime integer, target blob, primary key (above, name)) without rowid"
)
COLUMNS = "name, mode, uid, gid, size, mtime, ctime"
LOST = "?"  # what Borg lists in place of a byte that is no text
MOST_REMEMBERED = 1000  # directories of which it is known whether they are listed


class Listed(NamedTuple):
    """One item of an archive, as Borg lists it: kind as in `ls -l`, permissions as in st_mode, times in nanoseconds."""

    path: str
    kind: str
    permissions: int
    uid: int
    gid: int
    size: int
    mtime: int
    ctime: int
    target: str = ""


class Attributes(NamedTuple):
    """What stat(2) tells, by the names of os.stat_result."""

    st_mode: int
    st_uid: int
    st_gid: int
    st_size: int
    st_mtime_ns: int
    st_ctime_ns: int
    st_rdev: int = 0
    st_nlink: int = 1
    st_ino: int = 0

    @property
    def st_atime_ns(self) -> int:
        """When it was read last, which most archives do not have."""
        return self.st_mtime_ns


def permissions_of(text: str) -> int:
    """The bits of st_mode that letters such as `rwxr-x--T` mean. Raises KeyError for others."""
    bits = (
        ("r", 0o400),
        ("w", 0o200),
        ("x", 0o100),
        ("r", 0o40),
        ("w", 0o20),
        ("x", 0o10),
        ("r", 4),
        ("w", 2),
        ("x", 1),
    )
    special = {2: ("s", 0o4000), 5: ("s", 0o2000), 8: ("t", 0o1000)}
    found = 0
    for place, (letter, bit) in enumerate(bits):
        small, more = special.get(place, ("", 0))
        known = {"-": 0, letter: bit, small: bit | more, small.upper() or "-": more if small else 0}
        found |= known[text[place]]
    return found


def write_names(path: str, items: Iterable[Listed], *, roots: Sequence[str]) -> bool:
    """Write names of what is at and below roots; whether that was possible, and nothing is there otherwise.

    It is not where items are no files, directories or links, share their content with others, are there twice, have
    names that are no text, or lie in directories that are not listed: what a mount makes of these, it has to tell.
    """
    if sqlite3 is None:
        return False
    directories, above = set(roots), {posixpath.dirname(root) for root in roots}
    with open(path, "xb", opener=_private):
        pass
    database = sqlite3.connect(path, isolation_level=None)
    is_whole = False
    try:
        database.executescript(f"pragma journal_mode=off; pragma synchronous=off; {SCHEMA}; begin;")
        database.executemany("insert into item values (?, ?, ?, ?, ?, ?, ?, ?, ?)", _rows(items, directories, above))
        database.execute("commit")
        is_whole = above <= directories | {posixpath.dirname(root) for root in roots}
    except (sqlite3.IntegrityError, OverflowError, KeyError, ValueError):
        pass
    finally:
        database.close()
        if not is_whole:
            os.unlink(path)
    return is_whole


def _rows(items: Iterable[Listed], directories: set[str], above: set[str]) -> Iterator[tuple[bytes | int, ...]]:
    """Rows of the table; what are directories, and what lies in any, is noted on the way.

    Raises KeyError for a kind that cannot be told, and ValueError for a name that Borg may have changed.
    """
    for item in items:
        if LOST in item.path or LOST in item.target:
            raise ValueError(item.path)
        directory, name = posixpath.split(item.path)
        above.add(directory)
        if item.kind == "d":
            directories.add(item.path)
        target = os.fsencode(item.target)
        size = len(target) if item.kind == "l" else item.size
        mode = KINDS[item.kind] | item.permissions
        times = (item.mtime, item.ctime)
        yield os.fsencode(directory), os.fsencode(name), mode, item.uid, item.gid, size, *times, target


class Names:
    """The names in a file that write_names() made. Paths are below the root of a mount.

    Of a directory that is not listed all answers are None. Raises OSError where the file cannot be read.
    """

    def __init__(self, path: str) -> None:
        if sqlite3 is None:
            raise OSError("this Python has no sqlite3")
        self._database = sqlite3.connect(f"file:{quote(path)}?mode=ro&immutable=1", uri=True)
        self._is_listed = functools.lru_cache(MOST_REMEMBERED)(self._look)

    def attributes(self, directory: bytes, names: Sequence[bytes]) -> list[tuple[bytes, Attributes]] | None:
        """The attributes of those names in a directory that exist."""
        if not self._is_listed(directory):
            return None
        query = f"select {COLUMNS} from item where above = ? and name = ?"
        rows = [self._ask(query, directory, name) for name in names]
        return [(row[0][0], Attributes(*row[0][1:])) for row in rows if row]

    def names(self, directory: bytes) -> list[bytes] | None:
        """The names in a directory."""
        if not self._is_listed(directory):
            return None
        return [name for (name,) in self._ask("select name from item where above = ? and name <> x''", directory)]

    def target(self, path: bytes) -> bytes | None:
        """What a symbolic link says."""
        rows = self._ask("select target from item where above = ? and name = ?", *os.path.split(path))
        return rows[0][0] if rows else None

    def _look(self, directory: bytes) -> bool:
        rows = self._ask("select mode from item where above = ? and name = ?", *os.path.split(directory))
        return bool(rows) and stat.S_ISDIR(rows[0][0])

    def _ask(self, query: str, *values: bytes) -> list[tuple[Any, ...]]:
        try:
            return self._database.execute(query, values).fetchall()
        except sqlite3.Error as error:
            raise OSError(f"the names of the archive cannot be read: {error}") from error


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
