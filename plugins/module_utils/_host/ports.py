# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where a session's server listens: a TCP port of its own on the loopback address, and a Unix socket."""

from __future__ import annotations

import errno
import os
import socket
from contextlib import contextmanager
from typing import TYPE_CHECKING

from .._errors import RecoveryError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["ADDRESS", "allow_another_bind", "check_port", "check_socket_path", "reserve_port"]

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


@contextmanager
def reserve_port(
    port: int | None, *, first: int = LOWEST_PORT, avoid: frozenset[int] = frozenset(), backlog: int = 0
) -> Iterator[tuple[int, socket.socket]]:
    """A free port of 127.0.0.1, and the socket that has it: the one asked for, else the free one from first on.

    With a backlog it listens, for whoever it is handed to. Otherwise it is held until somebody else binds the port,
    for whom allow_another_bind() is called just before: from then on anybody can. Starts at the same time come to
    different ports without knowing of each other. Ports in avoid are passed over unless asked for.
    """
    if port is not None:
        check_port(port)
    for candidate in range(first, LAST_PORT + 1) if port is None else (port,):
        if port is None and candidate in avoid:
            continue
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as holder:
            if _bind(holder, candidate, backlog, asked_for=port is not None):
                yield candidate, holder
                return
    if port is None:
        raise RecoveryError(f"No port from {first} on is free on {ADDRESS}: stop some sessions.")
    raise RecoveryError(f"port {port} is taken on {ADDRESS}: choose another one, or none for the first free one.")


def allow_another_bind(holder: socket.socket) -> None:
    """Let a server bind the port that holder has, which sets SO_REUSEADDR itself, as servers do."""
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)


def _bind(holder: socket.socket, port: int, backlog: int, *, asked_for: bool) -> bool:
    for reuse in (0, 1) if asked_for else (0,):
        # With it, connections that linger after the port's last user do not count; a listening server does.
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, reuse)
        try:
            holder.bind((ADDRESS, port))
            if backlog:
                holder.listen(backlog)
            holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
            return True
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
    return False
