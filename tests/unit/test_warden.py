# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The warden of a confined program: what passes through its doors. Walls and ends are tests/integration's."""

from __future__ import annotations

import os
import signal
import socket
import threading
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

import pytest
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._host.confined.warden import Warden

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from ansible_collections.phpborg.instant_recovery.plugins.module_utils._host.confined.specification import (
        Specification,
    )

ANSWER = os.urandom(1 << 18)  # more than is passed on at once, less than the sockets on the way have room for


def listening(path: Path) -> socket.socket:
    door = socket.socket(socket.AF_UNIX)
    door.bind(str(path))
    door.listen()
    return door


@pytest.fixture
def way(tmp_path: Path) -> Iterator[tuple[Path, socket.socket]]:
    """Where clients connect, and the socket behind a warden to which they come."""
    door, behind = listening(tmp_path / "door"), listening(tmp_path / "behind")
    reading, writing = os.pipe()
    warden = os.fork()
    if not warden:
        os.close(writing)
        spec = cast("Specification", SimpleNamespace(logged=(), namespaces=True))  # what of it a warden looks at
        child = os.fork()
        if not child:
            signal.pause()
        try:
            Warden(spec, child, reading, [(door, str(tmp_path / "behind"), 10)]).watch()
        finally:
            os._exit(0)
    os.close(reading)
    yield tmp_path / "door", behind
    os.kill(warden, signal.SIGTERM)  # handed on to its child
    os.waitpid(warden, 0)
    os.close(writing)
    door.close()
    behind.close()


@pytest.mark.timeout(60)
def test_a_client_that_has_said_everything_gets_the_whole_answer(way: tuple[Path, socket.socket]) -> None:
    """The server hangs up at once, while most of its answer waits for a client that reads late."""
    path, behind = way
    heard: list[bytes] = []

    def serve() -> None:
        server, _address = behind.accept()
        with server, server.makefile("rb") as file:
            heard.append(file.read())
            server.sendall(ANSWER)

    thread = threading.Thread(target=serve)
    thread.start()
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
        client.sendall(b"question")
        client.shutdown(socket.SHUT_WR)
        thread.join(30)
        assert heard == [b"question"]
        assert not thread.is_alive()
        with client.makefile("rb") as file:
            assert file.read() == ANSWER


@pytest.mark.timeout(60)
def test_a_client_that_hangs_up_is_gone_at_the_server(way: tuple[Path, socket.socket]) -> None:
    path, behind = way
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
        server, _address = behind.accept()
        server.settimeout(30)
        client.sendall(b"x" * 10)
    with server:
        assert server.recv(100) == b"x" * 10
        assert server.recv(100) == b""
