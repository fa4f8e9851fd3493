# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ports that are held until a server has them."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys

import pytest
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._errors import RecoveryError
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._host.ports import (
    ADDRESS,
    PortChoice,
    allow_another_bind,
    check_socket_path,
    kept_port,
    reserve_port,
)

FIRST_PORT = 15432


def test_nobody_gets_a_port_twice_and_the_server_gets_it() -> None:
    with contextlib.ExitStack() as stack:
        reserved = [stack.enter_context(reserve_port(PortChoice(), first=FIRST_PORT)) for _number in range(5)]
        ports, holders = [port for port, _holder in reserved], [holder for _port, holder in reserved]
        assert len(set(ports)) == 5
        assert ports[0] >= FIRST_PORT
        with socket.socket() as plain, pytest.raises(OSError, match="Address already in use"):
            plain.bind((ADDRESS, ports[0]))
        with socket.socket() as sharing:
            sharing.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with pytest.raises(OSError, match="Address already in use"):
                sharing.bind((ADDRESS, ports[0]))
        allow_another_bind(holders[0])
        with listening(ports[0]) as server:  # as PostgreSQL does it
            assert server.getsockname()[1] == ports[0]
    with reserve_port(PortChoice(), first=FIRST_PORT, backlog=1) as (port, _holder):  # as the session's warden does it
        socket.create_connection((ADDRESS, port), timeout=5).close()
    with reserve_port(PortChoice(avoid=frozenset(ports)), first=FIRST_PORT) as (other, _socket):
        assert other not in ports


def test_a_port_that_is_taken_or_cannot_be() -> None:
    with listening(0) as server:
        port = server.getsockname()[1]
        with (
            pytest.raises(RecoveryError, match=f"port {port} is taken on 127.0.0.1"),
            reserve_port(PortChoice(asked=port)),
        ):
            pass
    for port in (-1, 0, 80, 65536):
        with pytest.raises(RecoveryError, match=f"port {port} is out of range"), reserve_port(PortChoice(asked=port)):
            pass


def test_connections_that_linger_do_not_keep_a_port_that_is_asked_for() -> None:
    with listening(0) as server:
        port = server.getsockname()[1]
        with socket.create_connection((ADDRESS, port)) as client:
            accepted, _address = server.accept()
            accepted.close()  # the side that closes first keeps the port for a minute
            client.recv(1)
    with reserve_port(PortChoice(asked=port)) as (reserved, holder):
        assert reserved == holder.getsockname()[1] == port


def test_connections_that_a_session_has_ended_do_not_keep_its_port() -> None:
    with reserve_port(PortChoice(), first=FIRST_PORT, backlog=1) as (port, server):
        with socket.create_connection((ADDRESS, port)) as client:
            server.accept()[0].close()
            client.recv(1)
        assert not can_bind_as_another_user(port)
    with reserve_port(PortChoice(asked=port), backlog=1) as (again, _socket):
        assert again == port


def test_a_port_is_kept_from_one_server_to_the_next_and_for_nobody_else() -> None:
    with contextlib.ExitStack() as first:
        port, _server = first.enter_context(reserve_port(PortChoice(), first=FIRST_PORT, backlog=1))
        with kept_port(port) as holder:
            assert holder is not None
            client = first.enter_context(socket.create_connection((ADDRESS, port), timeout=5))  # it does not listen
            accepted, _address = _server.accept()
            first.close()
            accepted.close()
            client.close()
            assert not can_bind_as_another_user(port)
            choice = PortChoice(before=port, is_kept=True)
            with reserve_port(choice, first=FIRST_PORT, backlog=1) as (again, server):
                assert again == port
                holder.close()
                assert not can_bind_as_another_user(port)
                with socket.create_connection((ADDRESS, port), timeout=5):
                    server.accept()[0].close()
    with listening(0) as server:
        taken = server.getsockname()[1]
        with kept_port(taken) as none:
            assert none is None
        with reserve_port(PortChoice(before=taken), first=FIRST_PORT) as (other, _socket):
            assert other != taken


def can_bind_as_another_user(port: int) -> bool:
    """Whether somebody else gets a port who asks for it in every way that there is."""
    code = (
        "import os, socket, sys\nif os.geteuid() == 0: os.setuid(65534)\ns = socket.socket()\n"
        "s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)\n"
        "if os.getuid() == 65534: s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)\n"
        "s.bind(('127.0.0.1', int(sys.argv[1])))\ns.listen()"
    )
    done = subprocess.run([sys.executable, "-I", "-c", code, str(port)], capture_output=True, text=True, check=False)
    assert done.returncode == 0 or "Address already in use" in done.stderr, done.stderr
    return done.returncode == 0


def test_the_longest_path_of_a_socket() -> None:
    check_socket_path("/" + "x" * 95, "123456789a")
    with pytest.raises(RecoveryError, match="would have 108 bytes"):
        check_socket_path("/" + "x" * 96, "123456789a")


def listening(port: int) -> socket.socket:
    server = socket.socket()
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    server.bind((ADDRESS, port))
    server.listen()
    return server
