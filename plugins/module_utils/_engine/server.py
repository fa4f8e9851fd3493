# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The server of a session, of any engine: started behind its doors, found again, stopped.

From the first run of the server's program on, the copy and the directory of its socket are the archive's, and may
change at any time. Nothing here reads or writes them from then on: what the server is told lies in the session's
directory `config`, and which process it is stands in the session's record.
"""

from __future__ import annotations

import os
import re
import socket
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .._errors import RecoveryError
from .._host.ports import allow_another_bind
from .._host.processes import Process, descendants, end_family, wait_for_any_end
from .._host.shared_memory import release, shared_memory_of
from .._host.trees import empty_directory
from .._session.record import SERVER, SIGNALS, Claim

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from .._host.sandbox import Sandbox
    from .._session.session import Session
    from .interface import Request

__all__ = ["BACKLOG", "NotReadyError", "Server", "make_file", "most_by_tcp", "running_server", "stop_server"]

BACKLOG = 128  # connections that wait to be accepted
MOST_CLIENTS = 1000  # through the socket, of the session's owner
LOOKS = 0.02  # seconds between two attempts to reach a server that is starting; nothing tells of its socket


class NotReadyError(RecoveryError):
    """A server that has ended, or was ended because it took too long. begin: where in the log its words begin."""

    def __init__(self, *, is_late: bool, begin: int) -> None:
        super().__init__("The server did not become ready.")
        self.is_late, self.begin = is_late, begin


@dataclass(frozen=True)
class Server:
    """A server's program and where it runs.

    signals end it. socket_name: that of its Unix socket. most_by_tcp: clients at a time that may come by the port,
    where everybody on the host can come. accepts: whether it accepts connections at the socket with that path.
    """

    argv: Sequence[str]
    environment: Mapping[str, str]
    room: Sandbox
    signals: tuple[tuple[str, float], ...]
    socket_name: str
    most_by_tcp: int
    accepts: Callable[[str], bool]

    def start(
        self, request: Request, session: Session, port: int, reserved: socket.socket | None, *, deadline: float
    ) -> Process:
        """Start it and wait until it accepts connections; when this raises, as NotReadyError, it has ended.

        reserved is the socket that has the port; without one nobody comes by TCP.
        """
        begin = os.path.getsize(request.log) if os.path.exists(request.log) else 0
        session.claim(Claim(SERVER, "process", SERVER, signals=self.signals))
        process = self._start(request, session, port, reserved)
        warden = running_server(session)
        is_ready = False
        try:
            is_ready = warden is not None and self._wait(request.client(self.socket_name), warden, deadline)
            if is_ready:
                session.amend_claim(SERVER, shared_memory=tuple(shared_memory_of(process.pid)))
                return process
            is_late = warden is not None and warden.alive()
        finally:
            if warden is not None and not is_ready:
                _end(warden, self.signals)
        raise NotReadyError(is_late=is_late, begin=begin)

    def _start(self, request: Request, session: Session, port: int, reserved: socket.socket | None) -> Process:
        with self._socket_for_clients(request) as clients:
            own = os.path.join(request.socket_directory, self.socket_name)
            doors: list[tuple[int, str | int, int]] = [(clients.fileno(), own, MOST_CLIENTS)]
            if reserved is not None and self.room.has_network():
                doors.append((reserved.fileno(), port, self.most_by_tcp))
            elif reserved is not None:
                allow_another_bind(reserved)
            return self.room.start(
                self.argv,
                log=request.log,
                env=self.environment,
                claim=lambda process: session.amend_claim(SERVER, process=process),
                doors=doors,
            )

    def _wait(self, path: str, process: Process, deadline: float) -> bool:
        """Whether process accepts connections before the deadline; otherwise it has ended or takes too long."""
        while process.alive() and time.monotonic() < deadline:
            if self.accepts(path):
                return True
            wait_for_any_end([process], timeout=LOOKS)
        return False

    def _socket_for_clients(self, request: Request) -> socket.socket:
        """A socket that listens, in the directory for clients. Our own programs come to it as the server's user.

        The server's own socket lies where it could put another in its place, or a link to production's.
        """
        path = request.client(self.socket_name)
        _unlink(path)
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            listening.bind(path)
            os.chmod(path, 0o600)
            if request.account.uid != os.geteuid():
                os.chown(path, request.account.uid, request.account.gid)
            listening.listen(BACKLOG)
        except BaseException:
            listening.close()
            raise
        return listening


def running_server(session: Session) -> Process | None:
    """The session's server, as its record claims it, or None where that does not run."""
    claim = session.record.claimed(SERVER)
    process = None if claim is None else claim.process
    return process if process is not None and process.alive() else None


def stop_server(session: Session) -> bool:
    """Stop the session's server and remove what its start wrote. Returns whether there was anything to do.

    Raises RecoveryError when the server does not end.
    """
    process, claim = running_server(session), session.record.claimed(SERVER)
    if process is not None and not _end(process, claim.signals if claim else SIGNALS):
        raise RecoveryError(
            f"The server of session {session.id}, process {process.pid}, did not end: the kernel holds it, probably "
            "because the file system below does not answer. Stop it again when that has been mended."
        )
    empty_directory(session.path("run"))
    written = [session.path(name) for name in ("config", "client")]
    had_any = any(os.listdir(directory) for directory in written)
    for directory in written:
        empty_directory(directory)
    return process is not None or had_any


def most_by_tcp(told: str | None, usual: int) -> int:
    """How many clients may come by TCP: everybody on the host can come there, and the socket is to stay free for us.

    told: how many the server is told to take at all; usual: how many it takes where it is told none.
    """
    return max(1, (int(told) if told and re.fullmatch("[0-9]{1,6}", told) else usual) * 3 // 4)


def make_file(path: str, text: str, *, reader: int | None = None) -> None:
    """Make a file anew in a directory of ours, for us alone, or also for a group."""
    _unlink(path)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with open(descriptor, "w", encoding="utf-8", errors="surrogateescape") as file:
        if reader is not None and reader != os.getegid():
            os.fchown(descriptor, -1, reader)
            os.fchmod(descriptor, 0o640)
        file.write(text)


def _end(process: Process, signals: Sequence[tuple[str, float]]) -> bool:
    """Stop process and whatever it has started, and remove what they would leave; whether all ended."""
    family = descendants(process)
    shared_memory = [name for one in family for name in shared_memory_of(one.pid)]
    ended = not end_family(process, signals)
    if ended:
        release(shared_memory)
    return ended


def _unlink(path: str) -> None:
    with suppress(FileNotFoundError, NotADirectoryError):
        os.unlink(path)
