# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Instant recovery from Python: a throw-away database server straight from a Borg archive.

    from instant_recovery import InstantRecovery

    with InstantRecovery(inventory="inventory/hosts.yml").start(archive="/backup/repo::db-2026-11-22") as session:
        with session.connect() as connection, connection.cursor() as cursor:
            cursor.execute("select count(*) from orders")

The work is done by the playbooks of the Ansible collection `phpborg.instant_recovery`; this package runs them through
ansible-runner. What goes wrong is raised as an `InstantRecoveryError`; what Ansible warns of goes to the logger
`instant_recovery`.
"""

from __future__ import annotations

from ._client import InstantRecovery
from ._errors import (
    CancelledError,
    ConnectError,
    Failure,
    InstantRecoveryError,
    PlaybookError,
    RunTimeoutError,
    SessionNotFoundError,
    TaskError,
    UnreachableError,
    UsageError,
)
from ._export import Export, ExportProgress
from ._logs import LogLine
from ._options import StartOptions
from ._progress import Progress
from ._session import Archive, Session, Status

__all__ = [
    "Archive",
    "CancelledError",
    "ConnectError",
    "Export",
    "ExportProgress",
    "Failure",
    "InstantRecovery",
    "InstantRecoveryError",
    "LogLine",
    "PlaybookError",
    "Progress",
    "RunTimeoutError",
    "Session",
    "SessionNotFoundError",
    "StartOptions",
    "Status",
    "TaskError",
    "UnreachableError",
    "UsageError",
]
