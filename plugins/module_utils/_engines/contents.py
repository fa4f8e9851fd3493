# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The engines whose databases are recognised in an archive."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .._engine import contents as engine
from .._engine import database as engine_database
from .._mongodb.contents import MongodbContents
from .._mysql.contents import MysqlContents
from .._postgresql.contents import PostgresqlContents

if TYPE_CHECKING:
    from .._borg.items import Item
    from .._engine.database import Database
    from .._engine.listing import Beginnings, Listing, Reader

__all__ = ["NAMES", "choose_database", "find_databases", "needed_files"]

CONTENTS = (PostgresqlContents, MysqlContents, MongodbContents)
NAMES = tuple(name for one in CONTENTS for name in one.names)


def find_databases(
    items: Iterable[Item], *, read: Reader, begin: Beginnings, relocated: Mapping[str, str] | None = None
) -> tuple[list[Database], Listing]:
    """Find databases of all engines; see _engine/contents.py."""
    return engine.find_databases(items, CONTENTS, read=read, begin=begin, relocated=relocated)


def choose_database(databases: Sequence[Database], **given: Any) -> Database:
    """Choose one database; see _engine/database.py."""
    return engine_database.choose_database(databases, marks=[one.mark for one in CONTENTS], **given)


def needed_files(name: str) -> Sequence[str]:
    """Small files of a data directory without which nobody knows how to start the engine's server."""
    return next(one.needed for one in CONTENTS if name in one.names)
