# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""How Python connects to a session's server, by engine."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from . import _mysql, _postgresql

__all__ = ["DRIVERS", "Driver"]


class Driver(NamedTuple):
    """connect gives a connection to the server of a session, socket_of the path of its socket on its host."""

    connect: Callable[..., Any]
    socket_of: Callable[..., str]


DRIVERS = {
    "postgresql": Driver(_postgresql.connect, _postgresql.socket_of),
    **dict.fromkeys(("mariadb", "mysql"), Driver(_mysql.connect, _mysql.socket_of)),
}
