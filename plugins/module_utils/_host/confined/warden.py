# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The warden of a program that `_host/sandbox.py` runs: its parent, and the only way to it.

It hands signals on, passes bytes between clients and the server, whose network and sockets are in namespaces, writes
what the program says to the log, ends whatever it leaves behind, and ends with it. Whatever comes from the program is
bytes to it, never asked for a meaning, and no more of them than it has room for.
"""

from __future__ import annotations

import os
import resource
import select
import signal
import stat
import time
from contextlib import suppress

TYPE_CHECKING = False  # without typing, whose import would take longer than all that is done here
if TYPE_CHECKING:
    import socket
    from typing import Callable

    from .specification import Specification

__all__ = ["FORWARDED", "LOG_LIMIT", "Warden", "open_doors"]

LOG_LIMIT = 256 << 20  # bytes of a log
LEAST_LOGGED = 16 << 20  # bytes that a program may log, however long its log is
MOST_CLIENTS = 1000  # of each door, at a time; two descriptors each
OTHER_DESCRIPTORS = 50
LOCALHOST = "127.0.0.1"
LAST_WORDS = 30.0  # seconds for what a program leaves behind to end, after SIGKILL
ROOM = 1 << 16  # bytes that are passed on at once, and kept for a client whose other end does not read
FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGQUIT, signal.SIGHUP)


def open_doors(spec: Specification) -> list[tuple[socket.socket, int | str, int]]:
    """The doors of a specification, each a socket that listens outside, what is behind it, and how many may come.

    What is behind it is the path of a Unix socket within, or a TCP port of the loopback address within. To be called
    before there is another root directory: Python's module for sockets may lie where it will not be seen.
    """
    if not spec.doors:
        return []
    import socket  # most programs have no doors, and it takes longer than all the others

    found = []
    for descriptor, target, most in spec.doors:
        door = socket.socket(fileno=int(descriptor))
        door.set_inheritable(False)
        door.setblocking(False)
        found.append((door, target, int(most)))
    return found


class Warden:
    """Watches child, which has what it says go into the pipe `said`, on behalf of the specification.

    doors are what open_doors() gave.
    """

    def __init__(
        self, spec: Specification, child: int, said: int, doors: list[tuple[socket.socket, int | str, int]]
    ) -> None:
        self._child, self._is_alone = child, spec.namespaces
        self._poller = select.poll()  # epoll would need something of which all of a user's processes share a number
        self._handlers: dict[int, Callable[[int], None]] = {}
        self._log = _Log(spec.logged[0] if spec.logged else None, said)
        self._code: int | None = None
        self._watch_signals()
        self.on(said, select.POLLIN, self._listen)
        room = _room_for_clients(len(doors)) if doors else 0
        for door, target, most in doors:
            _Door(self, door, target, most=min(most, room), is_alone=self._is_alone)

    def watch(self) -> int:
        """Go on until the program has ended; its exit status (128 + number for a signal)."""
        try:
            self._reap()
            while self._code is None:
                for descriptor, events in self._poller.poll():
                    handler = self._handlers.get(descriptor)
                    if handler is not None:  # one before it in the same round may have closed it
                        handler(events)
        finally:
            if not self._is_alone:  # where it is, all others end with it
                deadline = time.monotonic() + LAST_WORDS
                while time.monotonic() < deadline and _kill_children():
                    time.sleep(0.01)
        self._log.finish()
        return 128 + os.WTERMSIG(self._code) if os.WIFSIGNALED(self._code) else os.WEXITSTATUS(self._code)

    def on(self, descriptor: int, events: int, handler: Callable[[int], None] | None) -> None:
        """Have handler called with events of descriptor, and with a hang-up; no handler: no more."""
        if handler is not None:
            self._poller.register(descriptor, events)
            self._handlers[descriptor] = handler
        elif self._handlers.pop(descriptor, None):
            self._poller.unregister(descriptor)

    def _watch_signals(self) -> None:
        awake, waking = os.pipe()
        for descriptor in (awake, waking):
            os.set_blocking(descriptor, False)
        signal.set_wakeup_fd(waking, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda _number, _frame: None)  # it need only wake
        for number in FORWARDED:
            signal.signal(number, self._forward)

        def wake(_events: int) -> None:
            with suppress(BlockingIOError):
                os.read(awake, 4096)
            self._reap()

        self.on(awake, select.POLLIN, wake)

    def _forward(self, number: int, _frame: object) -> None:
        if self._code is None:
            with suppress(ProcessLookupError):
                os.kill(self._child, number)

    def _reap(self) -> None:
        """Learn who has ended: the program, or what it has left to this process."""
        with suppress(ChildProcessError):
            while True:
                pid, code = os.waitpid(-1, os.WNOHANG)
                if pid == self._child:
                    self._code = code
                if not pid:
                    return

    def _listen(self, _events: int) -> None:
        if not self._log.take():
            self.on(self._log.said, 0, None)


def _room_for_clients(doors: int) -> int:
    """How many clients each door can have, with the descriptors that this process may open."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    wanted = 2 * doors * MOST_CLIENTS + OTHER_DESCRIPTORS
    allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    return max(1, (allowed - OTHER_DESCRIPTORS) // (2 * doors))


def _kill_children() -> bool:
    """Kill this process's children; whether there were any. Theirs become this process's (PR_SET_CHILD_SUBREAPER)."""
    me = str(os.getpid()).encode()
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{name}/stat", "rb") as file:
                parent = file.read().rpartition(b")")[2].split()[1]
            if parent == me:
                os.kill(int(name), signal.SIGKILL)
        except (OSError, IndexError):
            continue
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return False
    return True


class _Log:
    """Writes what comes out of the pipe `said` to a file, up to LOG_LIMIT bytes."""

    def __init__(self, file: int | None, said: int) -> None:
        self.said = said
        self._file, self._left = file, LOG_LIMIT
        if file is not None:
            self._left = max(LOG_LIMIT - os.fstat(file).st_size, LEAST_LOGGED)
        os.set_blocking(said, False)

    def take(self) -> bool:
        """Pass on what was said since; false at its end."""
        try:
            said = os.read(self.said, ROOM)
        except BlockingIOError:
            return True
        if said and self._file is not None and self._left > 0:
            self._write(said[: self._left])
            self._left -= len(said)
            if self._left <= 0:
                self._write(
                    b"\nNothing more is logged: %d MiB are the most. Have it log less (settings of the start "
                    b"playbook), and reset the session.\n" % (LOG_LIMIT >> 20)
                )
        return bool(said)

    def finish(self) -> None:
        """Pass on what is in the pipe still, when everybody has ended who could write to it."""
        for _turn in range(16):
            if not self.take():
                break

    def _write(self, text: bytes) -> None:
        with suppress(OSError):  # a full disk, which is the keeper's to tell
            while text:
                text = text[os.write(self._file or 0, text) :]


class _Door:
    """A socket that listens outside, and what is behind it."""

    def __init__(
        self, warden: Warden, listening: socket.socket, target: int | str, *, most: int, is_alone: bool
    ) -> None:
        self._warden, self._target, self._is_alone = warden, target, is_alone
        self._clients: set[_Client] = set()
        self._most = most
        self._room = memoryview(bytearray(ROOM))
        self._socket = listening
        warden.on(listening.fileno(), select.POLLIN, self._accept)

    def _accept(self, _events: int) -> None:
        try:
            outside, _address = self._socket.accept()
        except OSError:
            return  # it has gone again
        if len(self._clients) >= self._most:
            outside.close()
            return
        try:
            inside = self._connected()
        except OSError:  # nobody listens there yet, or any more
            outside.close()
            return
        client = _Client(self._warden, self._room, outside, inside, self._clients.discard)
        self._clients.add(client)
        client.begin()

    def _connected(self) -> socket.socket:
        """A socket to what is behind the door, perhaps not connected yet. Raises OSError."""
        import socket

        path = str(self._target)
        inside = socket.socket(socket.AF_INET if isinstance(self._target, int) else socket.AF_UNIX)
        try:
            inside.setblocking(False)
            if isinstance(self._target, int):
                inside.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                with suppress(BlockingIOError):  # it is under way
                    inside.connect((LOCALHOST, self._target))
            elif self._is_alone:
                inside.connect(path)  # in this root directory all sockets are the program's
            else:
                _connect_to_own(inside, path)
        except OSError:
            inside.close()
            raise
        return inside


def _connect_to_own(client: socket.socket, path: str) -> None:
    """Connect to a socket of this user's at path; a link there could lead to somebody else's. Raises OSError."""
    found = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        state = os.fstat(found)
        if not stat.S_ISSOCK(state.st_mode) or state.st_uid != os.geteuid():
            raise ConnectionRefusedError(path)
        client.connect(f"/proc/self/fd/{found}")
    finally:
        os.close(found)


class _Flow:
    """One direction of a connection. rest is what was read and found no room at the other end yet."""

    def __init__(self, source: socket.socket, sink: socket.socket) -> None:
        self.source, self.sink = source, sink
        self.rest = b""
        self.is_read = False  # to its end
        self.is_over = False

    def move(self, room: memoryview) -> None:
        """Pass on as much as can be without waiting. Raises OSError where one end is gone."""
        if self.rest:
            self.rest = self.rest[self._send(memoryview(self.rest)) :]
        elif not self.is_read:
            try:
                size = self.source.recv_into(room)
            except BlockingIOError:
                return
            self.is_read = size == 0
            self.rest = bytes(room[self._send(room[:size]) : size])
        if self.is_read and not self.rest and not self.is_over:
            self.is_over = True
            self.sink.shutdown(1)  # SHUT_WR

    def _send(self, data: memoryview) -> int:
        try:
            return self.sink.send(data) if data else 0
        except BlockingIOError:
            return 0


class _Client:
    """A connection through a door: a socket outside, one inside, and a flow in either direction."""

    def __init__(
        self,
        warden: Warden,
        room: memoryview,
        outside: socket.socket,
        inside: socket.socket,
        forget: Callable[[_Client], None],
    ) -> None:
        self._warden, self._room, self._forget = warden, room, forget
        self._sockets = (outside, inside)
        self._flows = (_Flow(outside, inside), _Flow(inside, outside))
        self._wanted = [-1, -1]  # nothing was asked for yet, not even hang-ups
        self._handlers = (lambda events: self._go_on(0, events), lambda events: self._go_on(1, events))
        outside.setblocking(False)
        with suppress(OSError):  # a Unix socket has no such thing
            outside.setsockopt(6, 1, 1)  # IPPROTO_TCP, TCP_NODELAY

    def begin(self) -> None:
        """Have what comes from either end passed on, until both have ended."""
        self._move(*self._flows)

    def _go_on(self, number: int, events: int) -> None:
        """Something has come from one end, or what goes there finds room, or it has hung up."""
        coming, going = self._flows[number], self._flows[1 - number]
        has_hung_up = not events & self._wanted[number]
        if has_hung_up and coming.rest:  # what came before it waits for room at the other end
            self._warden.on(self._sockets[number].fileno(), 0, None)
            self._wanted[number] = -1
        elif has_hung_up and coming.is_read:
            self._close()
        else:  # of what it said before it hung up, some may not have been read
            self._move(coming, *([going] if going.rest else []))

    def _move(self, *flows: _Flow) -> None:
        try:
            for flow in flows:
                flow.move(self._room)
        except OSError:
            self._close()
            return
        if all(flow.is_over for flow in self._flows):
            self._close()
            return
        for number, end in enumerate(self._sockets):
            coming, going = self._flows[number], self._flows[1 - number]
            wanted = select.POLLIN if not coming.rest and not coming.is_read else 0
            wanted |= select.POLLOUT if going.rest else 0
            if wanted != self._wanted[number]:
                self._warden.on(end.fileno(), wanted, self._handlers[number])
                self._wanted[number] = wanted

    def _close(self) -> None:
        for end in self._sockets:
            self._warden.on(end.fileno(), 0, None)
            end.close()
        self._forget(self)
