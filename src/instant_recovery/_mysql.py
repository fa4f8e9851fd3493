# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""How PyMySQL connects to a session's server, and to no other."""

from __future__ import annotations

import configparser
import os
from typing import TYPE_CHECKING, Any, Protocol

from ._errors import ConnectError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["connect", "socket_of"]


class _Session(Protocol):
    """What of a session tells where its server is."""

    @property
    def id(self) -> str: ...
    @property
    def socket_directory(self) -> str | None: ...
    @property
    def client_file(self) -> str | None: ...
    @property
    def user(self) -> str | None: ...
    @property
    def is_here(self) -> bool: ...


def socket_of(session: _Session) -> str:
    """The server's socket on its host."""
    return f"{session.socket_directory}/mysql.sock"


def connect(session: _Session, database: str | None, options: Mapping[str, Any]) -> Any:
    """Connect; see Session.connect."""
    try:
        import pymysql  # an extra: who has PostgreSQL alone need not have it
    except ImportError:
        raise ConnectError(
            "PyMySQL is not installed, by which this connects to MariaDB and MySQL: "
            "pip install 'phpborg-instant-recovery[mysql]'"
        ) from None
    # Through the socket, as the client line does: its port may be another's when the server has died.
    parameters: dict[str, Any] = {"user": session.user, "database": database, "charset": "utf8mb4"}
    if "host" not in options:
        parameters["unix_socket"] = socket_of(session)
    if "password" not in options:
        parameters["password"] = _password(session)
    return pymysql.connect(**{**parameters, **options})


def _password(session: _Session) -> str:
    """The session's password, which is in a file on its host that only the session's owner can read."""
    if not session.is_here or os.path.dirname(session.client_file or "") != session.socket_directory:
        raise ConnectError(
            f"the password of session {session.id} is in {session.client_file} on its host: give it as password"
        )
    parser = configparser.RawConfigParser()
    try:
        with open(session.client_file or "", encoding="utf-8") as file:
            parser.read_file(file)
        return parser["client"]["password"].strip('"')
    except (OSError, KeyError, configparser.Error) as error:
        raise ConnectError(
            f"the password of session {session.id} cannot be read in {session.client_file} ({error}): give it as "
            "password, from that file on the session's host"
        ) from None
