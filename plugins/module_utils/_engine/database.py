# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A database that an archive holds: what is told of it, and which is meant."""

from __future__ import annotations

import posixpath
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from .._borg.suspects import is_below, limit
from .._errors import RecoveryError, shown

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from .other_backups import OtherBackup

__all__ = ["Database", "DatabaseChoiceError", "Link", "choose_database", "outside"]

MOST_NAMED = 20  # databases in a message
MOST_ABOVE = 5000  # directories; each has a path of 4 KB at most


@dataclass(frozen=True)
class Link:
    """A symbolic link of a data directory. `archived_path`: where its target's content is in the archive, or None."""

    path: str
    target: str
    archived_path: str | None


@dataclass(frozen=True)
class Database:
    """One data directory, or one logical dump, of an archive.

    `data_directory` is its path in the archive (`.`: the archive's root); of a logical dump, the file. `kind` is
    clean_shutdown, crash_consistent, backup_label, standby, backup_unprepared, backup_prepared, logical_dump or
    unknown. `version` is as the files spell it. `state` is the server's own word. `owner` and `owner_id` are whose it
    was. `original_directory` is where the server that wrote it had it. `size` is bytes. `markers` are the files found
    that change how it has to be started.
    `configuration_directory` is where its configuration is in the archive, if it is outside of the data directory.
    `links`: where the archive has what symbolic links lead to, by the links' paths. `needs_logs`: it has no logs of its
    own to recover with. `problems` are sentences for people; `refusals` those on what only the user can settle. An
    engine's own class may have more.
    """

    engine: str
    data_directory: str
    kind: str
    version: str | None = None
    state: str | None = None
    owner: str | None = None
    owner_id: int | None = None
    size: int = 0
    original_directory: str | None = None
    markers: tuple[str, ...] = ()
    configuration_directory: str | None = None
    symlinks: tuple[Link, ...] = ()
    links: dict[str, str] = field(default_factory=dict)
    needs_logs: bool = False
    problems: tuple[str, ...] = ()
    refusals: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Plain data for a module's result."""
        plain = asdict(self)
        return {key: list(value) if isinstance(value, tuple) else value for key, value in plain.items()}

    def paths(self) -> list[str]:
        """What to mount to start it: the data directory, and whatever of it is elsewhere in the archive."""
        elsewhere = outside(self.data_directory, self.links.values())
        return [self.data_directory, *elsewhere, *filter(None, [self.configuration_directory])]

    def directories(self) -> list[str]:
        """What to mount besides, of each the entry alone: directories above what links of no known kind lead to.

        Without it they would be open to all in the mount, whoever could enter them on the archive's host. Not those
        that are also on the way to something that every server of this kind reaches: a container has it elsewhere.
        Raises ArchiveRefusedError for more of them than any honest archive has.
        """
        unknown = {link.path: link.archived_path for link in self.symlinks if link.archived_path is not None}
        known = [self.data_directory, self.configuration_directory or self.data_directory]
        known += [place for path, place in self.links.items() if path not in unknown]
        return sorted(_above(unknown.values()) - _above(known) - set(known))


def _above(paths: Iterable[str]) -> set[str]:
    """The directories above paths of an archive, without its root."""
    found: set[str] = set()
    for path in paths:
        while (path := posixpath.dirname(path)) and path not in found:
            found.add(path)
            limit(len(found), MOST_ABOVE, "directories above what links lead to")
    return found


def outside(directory: str, places: Iterable[str]) -> list[str]:
    """Of places what is not in the directory, nor in another of them."""
    found: list[str] = []
    for place in sorted(places):
        if not any(is_below(place, other) for other in (directory, *found)):
            found.append(place)
    return found


class DatabaseChoiceError(RecoveryError):
    """The archive has no database that fits the request, or several."""


def choose_database(
    databases: Sequence[Database],
    *,
    archive: str,
    engine: str = "auto",
    data_directory: str | None = None,
    others: Sequence[OtherBackup] = (),
    marks: Sequence[str] = (),
    places: Callable[[str], Iterable[str]] = lambda path: [path],
) -> Database:
    """The one database that fits. `archive` is its name for messages. Raises DatabaseChoiceError, which lists all.

    `others` are backups of other kinds that the archive holds. `marks` is what data directories are known by. `places`
    tells where a path leads to in the archive.
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
            f"Archive {archive} holds no database: nothing in it marks a data directory "
            f"({', '.join(marks)}), and none of its largest files begins as a logical dump, a base "
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
