# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where a session's server listens: a TCP port of its own on the loopback address, and a Unix socket.

A port that is reserved here can be bound by this user a second time (SO_REUSEPORT, socket(7)), if that is asked for: so
one process can keep it for the next. Nobody else can.
"""

from __future__ import annotations

import errno
import os
import socket
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING

from .._errors import RecoveryError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "ADDRESS",
    "PortChoice",
    "allow_another_bind",
    "check_port",
    "check_socket_path",
    "kept_port",
    "reserve_port",
]

ADDRESS = "127.0.0.1"
LOWEST_PORT = 1024  # that an ordinary user's server can have
LAST_PORT = 65535
LONGEST_SOCKET_PATH = 107  # bytes, without the final zero: sun_path of Linux


def check_port(port: int) -> None:
    """Raises RecoveryError for a port that a server of an ordinary user cannot have."""
    if not LOWEST_PORT <= port <= LAST_PORT:
        raise RecoveryError(
            f"port {port} is out of range: choose one from {LOWEST_PORT} to {LAST_PORT}, or none for the first "
            "free one."
        )


def check_socket_path(directory: str, name: str) -> None:
    """Raises RecoveryError when the system allows no socket called name in directory."""
    length = len(os.fsencode(os.path.join(directory, name)))
    if length > LONGEST_SOCKET_PATH:
        raise RecoveryError(
            f"socket_directory {directory} is too long: the path of a socket in it would have {length} bytes, and the "
            f"system allows {LONGEST_SOCKET_PATH}. Choose a shorter one (session_root of the start playbook)."
        )


@dataclass(frozen=True)
class PortChoice:
    """Which port a server is to have.

    asked: it must be this one. before: the one that it had, which it has again where that can be; is_kept: a process
    of this user keeps it for that. avoid: those that are passed over otherwise.
    """

    asked: int | None = None
    before: int | None = None
    is_kept: bool = False
    avoid: frozenset[int] = frozenset()


@contextmanager
def reserve_port(
    choice: PortChoice, *, first: int = LOWEST_PORT, backlog: int = 0
) -> Iterator[tuple[int, socket.socket]]:
    """A port of 127.0.0.1 and the socket that has it: the one that choice names, else the first free one from first on.

    With a backlog it listens, for whoever it is handed to. Otherwise it is held until somebody else binds the port,
    for whom allow_another_bind() is called just before: from then on anybody can. Starts at the same time come to
    different ports without knowing of each other.
    """
    named = [port for port in (choice.asked or choice.before,) if port is not None]
    if choice.asked is not None:
        check_port(choice.asked)
    others = [] if choice.asked else (port for port in range(first, LAST_PORT + 1) if port not in choice.avoid)
    for port in chain(named, others):
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as holder:
            is_kept = choice.is_kept and port == choice.before
            if _bind(holder, port, backlog, is_named=port in named, is_kept=is_kept):
                yield port, holder
                return
    if choice.asked is None:
        raise RecoveryError(f"No port from {first} on is free on {ADDRESS}: stop some sessions.")
    raise RecoveryError(
        f"port {choice.asked} is taken on {ADDRESS}: choose another one, or none for the first free one."
    )


@contextmanager
def kept_port(port: int) -> Iterator[socket.socket | None]:
    """A socket that keeps a port for another reserve_port() of this user, who has reserved it; None if he has not."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as holder:
        yield holder if _bind(holder, port, 0, is_named=True, is_kept=True) else None


def allow_another_bind(holder: socket.socket) -> None:
    """Let a server bind the port that holder has, which sets SO_REUSEADDR itself, as servers do."""
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)


def _bind(holder: socket.socket, port: int, backlog: int, *, is_named: bool, is_kept: bool) -> bool:
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, int(is_kept))
    for reuse in (0, 1) if is_named else (0,):
        # With it, connections that linger after the port's last user do not count; a listening server does.
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, reuse)
        try:
            holder.bind((ADDRESS, port))
            if backlog:
                holder.listen(backlog)
            # Connections inherit it: those that linger then do not count for the next. Nobody binds while it listens.
            holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, int(backlog > 0))
            holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            return True
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
    return False
