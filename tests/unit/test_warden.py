# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The warden of a confined program: what passes through its doors. Walls and ends are tests/integration's."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import threading
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

import pytest
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._host.confined.warden import Warden, _Client

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
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


class Registered:
    """What a connection asks its warden to wait for."""

    def __init__(self) -> None:
        self.wanted: dict[int, tuple[int, Callable[[int], None]]] = {}

    def on(self, descriptor: int, events: int, handler: Callable[[int], None] | None) -> None:
        self.wanted.pop(descriptor, None)
        if handler is not None:
            self.wanted[descriptor] = events, handler

    def poll(self, *only: int) -> list[tuple[Callable[[int], None], int]]:
        """What would be called now, in this order, as one look of the warden has it."""
        poller = select.poll()
        for descriptor, (events, _handler) in self.wanted.items():
            poller.register(descriptor, events)
        found = dict(poller.poll(0))
        return [(self.wanted[one][1], found[one]) for one in only or found if one in found]


def test_a_hang_up_that_is_seen_together_with_room_for_what_came_before_it() -> None:
    """By the time that it is told of the hang-up what came before has been passed on, and more can be read."""
    client, outside = socket.socketpair()
    server, inside = socket.socketpair()
    warden, ends = Registered(), (outside.fileno(), inside.fileno())
    for end in (server, inside):
        end.setblocking(False)
    forgotten: list[_Client] = []
    _Client(cast("Warden", warden), memoryview(bytearray(1 << 16)), outside, inside, forgotten.append).begin()
    sent = said = 0
    while warden.wanted[ends[1]][0] & select.POLLIN:  # until the client has no room for more
        sent += server.send(bytes(1 << 16))
        for handler, events in warden.poll():
            handler(events)
    with contextlib.suppress(BlockingIOError):  # and the warden has not read all
        while True:
            sent += server.send(bytes(1 << 12))
    server.close()
    client.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while True:
            said += len(client.recv(1 << 20))
    both = warden.poll(*ends)
    assert len(both) == 2
    for handler, events in both:
        handler(events)
    while not forgotten and (more := warden.poll()):
        for handler, events in more:
            handler(events)
        with contextlib.suppress(BlockingIOError):
            said += len(client.recv(1 << 20))
        client.shutdown(socket.SHUT_WR)
    while chunk := client.recv(1 << 20):
        said += len(chunk)
    assert said == sent
    client.close()
