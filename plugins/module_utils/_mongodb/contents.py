# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""MongoDB's databases in an archive: recognised by the file WiredTiger."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from .._engine.contents import Content, Contents
from .._engine.database import Database
from .._engine.other_backups import Dump, dump_of

if TYPE_CHECKING:
    from .._engine.listing import Beginnings

__all__ = ["MongodbContents"]

DUMP = re.compile(rb"\A\x6d\xe2\x99\x81")  # the magic number of mongodump's archive format


class MongodbContents(Contents):
    """What a listing has of MongoDB."""

    names = ("mongodb",)
    mark = "WiredTiger"
    readable = frozenset(("WiredTiger",))
    present = frozenset(("mongod.lock",))
    data_files = frozenset(("WiredTiger",))

    def directories(self) -> Sequence[str]:
        return self.listing.directories_with("WiredTiger")

    def databases(
        self,
        content: Content,
        relocated: Mapping[str, str],
        begin: Beginnings,
    ) -> Iterator[Database]:
        return (self._database(content, directory) for directory in self.directories())

    def _database(self, content: Content, directory: str) -> Database:
        lock = self.listing.markers.get(posixpath.join(directory, "mongod.lock"))
        kind = "unknown"
        if lock is not None:
            # mongod empties its lock file when it shuts down in order; before that the file holds its pid.
            kind = "crash_consistent" if lock.size else "clean_shutdown"
        version = re.search(r"WiredTiger (\d+(?:\.\d+)+)", content.text(directory, "WiredTiger"))
        return Database(
            engine="mongodb",
            data_directory=directory or ".",
            kind=kind,
            state=f"WiredTiger {version.group(1)}" if version else None,
            owner=self.listing.markers[posixpath.join(directory, "WiredTiger")].user,
            size=self.listing.size_below(directory),
            markers=("WiredTiger",),
        )

    def dump_in(self, header: bytes, members: Sequence[str]) -> Dump | None:
        return dump_of("mongodb", DUMP, header)
