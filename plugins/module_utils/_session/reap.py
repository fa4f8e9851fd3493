# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Finding what sessions left behind that nobody works on: dead sessions, and processes and mounts without a record."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

from .._host.links import is_within
from .._host.mounts import MountError, mounts_below, unmount
from .._host.processes import describe, marked, marks_below, stop_all
from .directory import GENERATED_IDENTIFIER, IDENTIFIER
from .liveness import examine
from .record import ARCHIVE, LOGS, SIGNALS
from .session import Session

if TYPE_CHECKING:
    from .._host.mounts import Mount

__all__ = ["dead_sessions", "is_dead", "strays", "sweep"]

# Where sessions mount, below their directory.
POINTS = re.compile(r"merged|(archive|log_archive)(/[0-9]+)?")


def dead_sessions(root: str) -> list[tuple[Session, str]]:
    """The sessions below root that nobody looks after any more, each with what is wrong with it."""
    found = [(session, is_dead(session)) for session in Session.all(root)]
    return [(session, why) for session, why in found if why]


def is_dead(session: Session) -> str | None:
    """What is wrong with a session that is to be reaped; None for any other.

    One whose keeper, layer and server all live is left to its keeper, who may just be mounting the archive again.
    """
    if session.problem:
        return None
    if session.record.status == "orphaned":
        return str(session.record.error_message)
    findings = examine(session)
    lost = [one["name"] for one in findings.checks["processes"] if not one["alive"]]
    replaced = [claim.name for claim in session.record.parts(ARCHIVE, LOGS)]
    is_kept = session.record.status == "active" and all(name in replaced for name in lost)
    return None if is_kept else "; ".join(findings.wrong) or None


def strays(root: str) -> list[str]:
    """Processes with the mark of, and mounts of ours in, a session directory that is none any more."""
    processes = [describe(process) for directory in _lost(root) for process in marked(directory)]
    return processes + [f"the mount {mount.mountpoint}" for mount in _lost_mounts(root)]


def sweep(root: str) -> list[str]:
    """End and unmount them; what is left of them then."""
    for directory in _lost(root):
        stop_all(marked(directory), SIGNALS)
    for mount in _lost_mounts(root):
        try:
            unmount(mount.mountpoint)
        except MountError:
            continue  # told below
    for directory in _lost(root):
        stop_all(marked(directory), SIGNALS)
    return strays(root)


def _lost(root: str) -> list[str]:
    """Directories below root that processes call their session's, and which are none."""
    directories = marks_below(os.path.realpath(root))
    # Looked up after the processes: a session that has just begun is known by now.
    known = {session.directory for session in Session.all(root)}
    return sorted(directories - known)


def _lost_mounts(root: str) -> list[Mount]:
    known = {session.directory for session in Session.all(root)}
    top = os.path.realpath(root)
    return [mount for mount in mounts_below(top) if _is_ours(mount, top) and not _belongs(mount, known)]


def _is_ours(mount: Mount, top: str) -> bool:
    """Whether a mount below the session root top is one of a session's, by its place and by what it is made of."""
    name, _slash, point = os.path.relpath(mount.mountpoint, top).partition(os.sep)
    directory = os.path.join(top, name)
    if not POINTS.fullmatch(point) or not IDENTIFIER.fullmatch(name):
        return False
    if mount.fstype == "overlay":
        return f"upperdir={directory}/upper/" in mount.options
    if mount.fstype == "fuse.cowfs":
        return is_within(mount.source, directory)
    return mount.source == "borgfs" and GENERATED_IDENTIFIER.fullmatch(name) is not None


def _belongs(mount: Mount, sessions: set[str]) -> bool:
    return any(is_within(mount.mountpoint, directory) for directory in sessions)
