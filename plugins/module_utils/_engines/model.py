# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is told of a database that an archive holds."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from .._borg.suspects import is_below

if TYPE_CHECKING:
    from collections.abc import Iterable

    from .._postgresql.control import PgControl

__all__ = ["ENGINES", "KINDS", "Database", "Link", "outside"]

ENGINES = ("postgresql", "mariadb", "mysql", "mongodb")
KINDS = ("clean_shutdown", "crash_consistent", "backup_label", "standby", "logical_dump", "unknown")


@dataclass(frozen=True)
class Link:
    """A symbolic link of a data directory. `archived_path`: where its target's content is in the archive, or None."""

    path: str
    target: str
    archived_path: str | None


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
        elsewhere = outside(self.data_directory, self.links.values())
        return [self.data_directory, *elsewhere, *filter(None, [self.configuration_directory])]


def outside(directory: str, places: Iterable[str]) -> list[str]:
    """Of places what is not in the directory, nor in another of them."""
    found: list[str] = []
    for place in sorted(places):
        if not any(is_below(place, other) for other in (directory, *found)):
            found.append(place)
    return found
