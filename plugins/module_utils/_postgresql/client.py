# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Command lines and environments of our own programs that talk to a session's server.

On them nothing is left to service files, environments or defaults: what the one who starts has set for other servers
does not count.
"""

from __future__ import annotations

from collections.abc import Mapping

from .role import SESSION_ROLE

__all__ = ["client_environment", "connection_words", "psql"]

# What our own programs do not want to be subject to, and the first version that knows it: options of a connection count
# more than whatever has been set for roles and databases, also since the start. Names come with their schemas.
OPTIONS = (
    *(("search_path", "", 0), ("role", "none", 0), ("statement_timeout", "0", 0), ("lock_timeout", "0", 0)),
    *(("idle_in_transaction_session_timeout", "0", 0), ("idle_session_timeout", "0", 14)),
    ("transaction_timeout", "0", 17),
)
ENVIRONMENT = {
    "PGCONNECT_TIMEOUT": "3",
    "PGPASSFILE": "/dev/null",
    "PGSERVICEFILE": "/dev/null",
    "PGSYSCONFDIR": "/nonexistent",
}


def connection_words(socket_directory: str, port: int, database: str) -> str:
    """Where to connect, as one argument."""
    parts = {
        "host": socket_directory,
        "port": str(port),
        "user": SESSION_ROLE,
        "dbname": database,
        "sslmode": "disable",
        "gssencmode": "disable",
    }
    quoted = {name: value.replace("\\", "\\\\").replace("'", "\\'") for name, value in parts.items()}
    return " ".join(f"{name}='{value}'" for name, value in quoted.items())


def psql(program: str, target: str, query: str) -> list[str]:
    """A command line that prints what a query gives. target: see connection_words."""
    return [program, "-X", "-w", "-q", "-A", "-t", "-c", query, target]


def client_environment(
    major: int, encoding: str = "UTF8", settings: Mapping[str, str | None] | None = None
) -> dict[str, str]:
    """The environment of a client of a server of that version, with settings of the connection; None leaves one out."""
    known = {name: value for name, value, since in OPTIONS if since <= major}
    counting = {**known, **(settings or {})}
    options = " ".join(f"-c {name}={value}" for name, value in counting.items() if value is not None)
    return {**ENVIRONMENT, "PGOPTIONS": options, "PGCLIENTENCODING": encoding}
