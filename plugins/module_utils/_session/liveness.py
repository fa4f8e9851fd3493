# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether what a session's record says is still true: held against its processes, mounts and port."""

from __future__ import annotations

import os
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from .._host.clock import now
from .._host.mounts import is_mounted_for, is_responding, mount_at, reached_through
from .directory import RECORD, SessionError
from .record import KEEPER, LOGS, PORT, SERVER
from .session import Session

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .._host.processes import Process
    from .record import Claim, Record

__all__ = ["Findings", "examine", "is_abandoned", "keeper_elsewhere", "unattended"]

LISTENING = "0A"  # the state's number in /proc/net/tcp
# Between two tasks of a start, and while a play waits for its other hosts, nobody holds the lock.
IDLE = 300  # seconds without a change after which a start or stop that nobody works on was cut off
RECONNECTS = 30.0  # seconds that a play without a connection may take to come through another one
PAUSE = 10  # seconds without a change that are worth telling
OVERDUE = 60  # seconds after its end at which a session should have stopped by itself


@dataclass(frozen=True)
class Findings:
    """checks is what was looked at, wrong why the recorded status is not true any more, notes what works less well."""

    checks: dict[str, Any]
    wrong: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def examine(session: Session) -> Findings:
    """Look at everything that the session's record claims."""
    findings = _look(session)
    if findings.wrong:
        with suppress(SessionError):
            now = Session.open(session.directory)
            if now.record.claims != session.record.claims:  # a process was replaced in the meantime
                session.record = now.record
                return _look(session)
    return findings


def _look(session: Session) -> Findings:
    record = session.record
    keeper = _keeper_of(session)
    checks: dict[str, Any] = {
        "mounts": [_check_mount(claim, keeper) for claim in record.mounts],
        "processes": [_check_process(claim.name, claim.process) for claim in record.claims if claim.process],
        "port": _is_listening(record.port) if record.port else None,
    }
    if record.status in ("starting", "stopping") and session.is_locked():
        return Findings(checks)  # at work: things come and go rightly
    if record.status == "stopping":
        return Findings(checks, [] if record.error_message else ["Stopping was cut off"])
    if record.status == "starting":
        wrong = [*_gone(record, checks, ()), *_silent(checks, _spare(record, checks)), *_cut_off(session)]
        return Findings(checks, wrong, _pause(session))
    lost, logs = _spare(record, checks), _lost_logs(record, checks)
    spare = [*lost, *logs]
    wrong = [*_gone(record, checks, spare), *_silent(checks, spare)]
    if record.status == "active":
        wrong += [
            f"Nothing is mounted at {one['mountpoint']}"
            for one in checks["mounts"]
            if not one["mounted"] and not one["suspended"] and one["name"] not in spare
        ]
        if checks["port"] is False:
            wrong.append(f"Nothing listens on port {record.port}")
    lonely = _keeper_note(session, checks)
    if lonely and any(one["suspended"] for one in checks["mounts"]):
        wrong.append("Its archive is not mounted while nobody reads it, and its keeper, which could mount it, is gone")
    if lonely and record.expires and now() > record.expires + OVERDUE:
        wrong.append(f"It should have ended at {record.expires_at}, but its keeper is gone")
    notes = [f"The mount {name} is gone, the others are read instead" for name in lost]
    notes += [f"The mount {name} is gone, so the session cannot be reset" for name in logs]
    return Findings(checks, wrong, [*notes, *lonely])


def unattended(session: Session) -> float:
    """Seconds for which nobody has worked on the session; 0 while its lock is held."""
    return 0.0 if session.is_locked() else time.time() - os.path.getmtime(session.path(RECORD))


def is_abandoned(session: Session) -> bool:
    """Whether the play that starts the session is gone, as far as it can be seen from here.

    One that comes through ssh is seen by its connection, and may come through another one in a moment.
    """
    starter = session.record.starter
    if starter is None or starter.process.alive():
        return False
    return not starter.is_connection or unattended(session) > RECONNECTS


def _gone(record: Record, checks: dict[str, Any], spare: Sequence[str]) -> list[str]:
    others = [claim.name for claim in record.parts(KEEPER, PORT)]  # the session goes on without them
    # A mount that answers is served by another process, which is not recorded yet.
    served = [one["name"] for one in checks["mounts"] if one["responding"]]
    return [
        f"The process {one['name']} ({one['pid']}) is gone"
        for one in checks["processes"]
        if not one["alive"] and one["name"] not in (*spare, *served, *others)
    ]


def _silent(checks: dict[str, Any], spare: Sequence[str]) -> list[str]:
    dead = [one for one in checks["mounts"] if one["mounted"] and not one["responding"]]
    return [f"The mount {one['mountpoint']} does not answer" for one in dead if one["name"] not in spare]


def _spare(record: Record, checks: dict[str, Any]) -> list[str]:
    """The names of mounts that are dead, while another one of the same part works."""
    works = {one["name"]: one["suspended"] or (one["mounted"] and one["responding"]) for one in checks["mounts"]}
    alive = {claim.part for claim in record.mounts if works[claim.name]}
    return [claim.name for claim in record.mounts if not works[claim.name] and claim.part in alive]


def _lost_logs(record: Record, checks: dict[str, Any]) -> list[str]:
    """The names of mounts of archived logs, which only a start reads, that are gone or dead."""
    logs = [claim.name for claim in record.parts(LOGS)]
    working = [one["name"] for one in checks["mounts"] if one["mounted"] and one["responding"]]
    return [name for name in logs if name not in working]


def _cut_off(session: Session) -> list[str]:
    """Whether nobody goes on with a start, and how far it came."""
    if not is_abandoned(session) and unattended(session) <= IDLE:
        return []
    if session.record.error_message:
        return [f"The start failed: {session.record.error_message}"]
    if SERVER in session.record.options:  # it had started
        return ["The reset was cut off, when its changes may have been dropped"]
    steps = _steps(session)
    return [f"The start was cut off after {steps[-1]}" if steps else "The start was cut off"]


def _pause(session: Session) -> list[str]:
    """Say that perhaps nobody goes on with a start. A play that comes through ssh cannot be seen from its host."""
    seconds, steps = unattended(session), _steps(session)
    if seconds < PAUSE:
        return []
    return [f"Nobody has worked on it for {seconds:.0f} s, {f'after {steps[-1]}' if steps else 'since it was made'}"]


def _steps(session: Session) -> list[str]:
    return list(session.record.steps())


def _keeper_of(session: Session) -> Process | None:
    return next((claim.process for claim in session.record.parts(KEEPER)), None)


def keeper_elsewhere(session: Session) -> Process | None:
    """The session's keeper where it lives in another namespace of mounts than we do; else None."""
    keeper = _keeper_of(session)
    return keeper if keeper is not None and is_mounted_for(keeper, "/") is not None else None


def _keeper_note(session: Session, checks: dict[str, Any]) -> list[str]:
    """Say that nobody is left to end the session by itself."""
    keepers = [claim.name for claim in session.record.parts(KEEPER)]
    if any(one["name"] in keepers and not one["alive"] for one in checks["processes"]):
        return ["Its keeper is gone, so it does not end by itself: extend it (which starts another one), or stop it"]
    return []


def _check_mount(claim: Claim, keeper: Process | None) -> dict[str, Any]:
    """Look at a mount as the keeper sees it, perhaps in another namespace of mounts (a job runner's, PrivateTmp)."""
    mountpoint = place = claim.mountpoint
    mounted = None if keeper is None else is_mounted_for(keeper, mountpoint)
    if keeper is not None and mounted is not None:
        place = reached_through(keeper, mountpoint)
    else:
        mounted = mount_at(mountpoint) is not None
    return {
        "name": claim.name,
        "mountpoint": mountpoint,
        "mounted": mounted,
        "responding": mounted and is_responding(place),
        "suspended": claim.suspended,
    }


def _check_process(name: str, process: Process) -> dict[str, Any]:
    return {"name": name, "pid": process.pid, "alive": process.alive()}


def _is_listening(port: int) -> bool:
    """Whether a server listens on this port of 127.0.0.1. Asking the kernel leaves no trace in the server's log."""
    with open("/proc/net/tcp", encoding="ascii", newline="\n") as table:
        sockets = [line.split() for line in table.readlines()[1:]]
    hosts = [int.from_bytes(bytes(address), sys.byteorder) for address in ((127, 0, 0, 1), (0, 0, 0, 0))]
    wanted = [f"{host:08X}:{port:04X}" for host in hosts]
    return any(socket[1] in wanted and socket[3] == LISTENING for socket in sockets)
