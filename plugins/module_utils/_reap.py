# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Finding what sessions left behind that nobody works on: dead sessions, and processes and mounts without a record."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from ansible_collections.phpborg.instant_recovery.plugins.module_utils._liveness import examine
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._mounts import MountError, mounts_below, unmount
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._processes import (
    describe,
    marked,
    marks_below,
    stop_all,
)
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._session import IDENTIFIER, Session
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._teardown import SIGNALS

if TYPE_CHECKING:
    from ansible_collections.phpborg.instant_recovery.plugins.module_utils._mounts import Mount

__all__ = ["dead_sessions", "strays", "sweep"]

# How mounts of sessions look in the mount table: file system type, and source where the type alone does not tell.
OURS = (("fuse.cowfs", None), ("fuse", "borgfs"), ("fuse.borgfs", None), ("overlay", "overlay"))


def dead_sessions(root: str) -> list[tuple[Session, str]]:
    """The sessions below root whose recorded state is not true any more, each with the reason."""
    found = []
    for session in Session.all(root):
        wrong = [] if session.problem else examine(session).wrong
        if session.record["status"] == "orphaned" and not session.problem:
            wrong = [session.record["error_message"]]
        if wrong:
            found.append((session, "; ".join(wrong)))
    return found


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
    known = {session.directory for session in Session.all(root)}
    return sorted(directory for directory in marks_below(root) if directory not in known)


def _lost_mounts(root: str) -> list[Mount]:
    known = {session.directory for session in Session.all(root)}
    top = os.path.realpath(root)
    found = []
    for mount in mounts_below(top):
        name = os.path.relpath(mount.mountpoint, top).split(os.sep)[0]
        is_ours = (mount.fstype, None) in OURS or (mount.fstype, mount.source) in OURS
        if is_ours and IDENTIFIER.fullmatch(name) and os.path.join(top, name) not in known:
            found.append(mount)
    return found
