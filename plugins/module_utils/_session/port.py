# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A session's port while its server is away: whoever took it meanwhile would be told what is meant for the server."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .._host.command import find_program
from .._host.ports import kept_port
from .._host.processes import KILL, MARKER, spawn, stop_all
from .record import PORT, SERVER, Claim

if TYPE_CHECKING:
    from .session import Session

__all__ = ["is_kept", "keep_port", "release_port"]

LONGEST = 86400  # seconds; a server that is not back by then has another port


def keep_port(session: Session) -> None:
    """Have a process keep the port of the session's server, which is about to end, if nobody else has it.

    To be called under the lock.
    """
    sleep, port, server = find_program("sleep"), session.record.port, session.record.claimed(SERVER)
    if sleep is None or port is None or is_kept(session):
        return
    is_listening = server is not None and server.process is not None and server.process.alive()
    with kept_port(port, is_listening=is_listening) as holder:
        if holder is None:
            return
        session.claim(Claim(PORT, "process", PORT, required=False, signals=KILL))
        environment, log = {MARKER: session.directory}, session.path("log/keeper.log")
        process = spawn([sleep, str(LONGEST)], log=log, env=environment, pass_fds=[holder.fileno()])
    session.amend_claim(PORT, process=process)


def is_kept(session: Session) -> bool:
    """Whether a process keeps the session's port."""
    claim = session.record.claimed(PORT)
    return claim is not None and claim.process is not None and claim.process.alive()


def release_port(session: Session) -> None:
    """End the process that keeps the port: the server has it, or has ended for good."""
    claim = session.record.claimed(PORT)
    if claim is not None:
        stop_all([claim.process] if claim.process else [], claim.signals)
        session.release_claim(PORT)
