# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""How psycopg2 connects to a session's server, and to no other."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import unquote, urlsplit

import psycopg2
from psycopg2.extensions import libpq_version

if TYPE_CHECKING:
    from collections.abc import Mapping

    from psycopg2.extensions import connection

__all__ = ["connect", "socket_of"]

# What the environment may insist on, or take from the service that PGSERVICE names, and the server does not have: each
# word with what it must say, and the first libpq that knows it.
OWN_WORDS = (
    *(("hostaddr", "", 0), ("sslmode", "disable", 0), ("sslrootcert", "", 0), ("requirepeer", "", 0)),
    *(("options", "", 0), ("target_session_attrs", "any", 0), ("gssencmode", "disable", 12)),
    *(("channel_binding", "disable", 13), ("require_auth", "", 16), ("sslcertmode", "disable", 16)),
    *(("sslnegotiation", "postgres", 17), ("min_protocol_version", "3.0", 18)),
)


class _Session(Protocol):
    """What of a session tells where its server is."""

    @property
    def connection_string(self) -> str | None: ...
    @property
    def socket_directory(self) -> str | None: ...
    @property
    def port(self) -> int | None: ...
    @property
    def user(self) -> str | None: ...
    @property
    def is_here(self) -> bool: ...


def socket_of(session: _Session) -> str:
    """The server's socket on its host."""
    return f"{session.socket_directory}/.s.PGSQL.{session.port}"


def connect(session: _Session, database: str | None, options: Mapping[str, Any]) -> connection:
    """Connect; see Session.connect."""
    told = unquote(urlsplit(session.connection_string or "").path[1:])  # libpq may be too old for words of its query
    # Through the socket, as the client line does: its port may be another's when the server has died.
    parameters = {
        **_own_words(),
        "host": session.socket_directory,
        "port": session.port,
        "user": session.user,
        "dbname": database or told,
        # Whatever asks for one at the socket, PGPASSWORD and ~/.pgpass are not told: they are of other servers.
        "password": "",
        # Of a session elsewhere: through the socket, to which its tunnel leads, none is asked for.
        "passfile": f"{session.socket_directory}/pgpass" if session.is_here else os.devnull,
    }
    connected: connection = psycopg2.connect(**{**parameters, **options})
    return connected


def _own_words() -> dict[str, str]:
    known = libpq_version() // 10000
    return {word: value for word, value, since in OWN_WORDS if since <= known}
