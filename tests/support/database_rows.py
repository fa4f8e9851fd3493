# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is read of a cluster's databases without a server, and what a server says of them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from ansible_collections.phpborg.instant_recovery.plugins.module_utils._postgresql.database_rows import (
    MAP,
    DatabaseRow,
    databases_in,
    file_of_databases,
)

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.cluster import Connection

VERSIONS = """coalesce(datlocprovider = 'c' and upper(split_part(datcollate, '.', 1)) not in ('C', 'POSIX'), false),
    case when datlocprovider = 'c' then datcollversion end"""


def asked(connection: Connection, major: int) -> list[DatabaseRow]:
    """By the server's word."""
    versions = VERSIONS if major >= 15 else "false, null"
    said = connection.sql(
        f"select json_agg(json_build_array(datname, datcollate, datctype, {versions})) from pg_database "
        "where datallowconn and datname <> 'template0'"
    )
    return sorted(
        DatabaseRow(name, tuple(sorted({collate, ctype})), is_versioned, recorded if is_versioned else None)
        for name, collate, ctype, is_versioned, recorded in json.loads(said)
    )


def read(data: Path, major: int) -> list[DatabaseRow]:
    """By its files, which a checkpoint has written."""
    return sorted(databases_in((data / file_of_databases((data / MAP).read_bytes())).read_bytes(), 8192, major))
