# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A session's port, kept for the session's life: who took it while the server is away would pass for that."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .._host.command import find_program
from .._host.ports import kept_port
from .._host.processes import KILL, MARKER, spawn, stop_all
from .record import PORT, Claim

if TYPE_CHECKING:
    from .session import Session

__all__ = ["is_kept", "keep_port", "release_port"]

FOR_EVER = 1 << 30  # seconds; not every sleep(1) knows "infinity"


def keep_port(session: Session, port: int) -> None:
    """Have a process of its own keep the port of the session's server, which listens there by now.

    It does nothing where the server binds the port itself, without leave for another. To be called under the lock.
    """
    sleep = find_program("sleep")
    if sleep is None or is_kept(session):
        return
    with kept_port(port) as holder:
        if holder is None:
            return
        session.claim(Claim(PORT, "process", PORT, required=False, signals=KILL))
        environment, log = {MARKER: session.directory}, session.path("log/keeper.log")
        process = spawn([sleep, str(FOR_EVER)], log=log, env=environment, pass_fds=[holder.fileno()])
    session.amend_claim(PORT, process=process)


def is_kept(session: Session) -> bool:
    """Whether a process keeps the session's port."""
    claim = session.record.claimed(PORT)
    return claim is not None and claim.process is not None and claim.process.alive()


def release_port(session: Session) -> None:
    """End the process that keeps the port."""
    claim = session.record.claimed(PORT)
    if claim is not None:
        stop_all([claim.process] if claim.process else [], claim.signals)
        session.release_claim(PORT)
