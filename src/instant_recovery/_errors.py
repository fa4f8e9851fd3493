# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the API raises. Everything is an `InstantRecoveryError`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = [
    "CancelledError",
    "ConnectError",
    "Failure",
    "InstantRecoveryError",
    "PlaybookError",
    "RunTimeoutError",
    "SessionNotFoundError",
    "TaskError",
    "UnreachableError",
    "UsageError",
]


class InstantRecoveryError(Exception):
    """Base of everything this package raises."""


class UsageError(InstantRecoveryError, ValueError):
    """An argument is wrong, or the installation incomplete; nothing was run."""


class ConnectError(InstantRecoveryError):
    """The session runs, but this process has no way to its server; the message names one."""


@dataclass(frozen=True, kw_only=True)
class Failure:
    """What one host had to say: the play's final message, and the task that caused it.

    `details` holds the other results of that task, as the collection documents them: command, rc, stderr, log_tail…
    """

    host: str
    task: str
    message: str
    details: Mapping[str, Any] = field(default_factory=dict)


class PlaybookError(InstantRecoveryError):
    """A playbook did not succeed.

    `failures` has one entry per host that failed; `host`, `task`, `message` and `details` are the first one's. It is
    empty when Ansible itself gave up: `message` is then the end of its output. `stats` is what the play had left by
    set_stats nevertheless.
    """

    def __init__(
        self, message: str, *, failures: Sequence[Failure] = (), stats: Mapping[str, Any] | None = None
    ) -> None:
        first = failures[0] if failures else None
        super().__init__("\n".join(f"{failure.host}: {failure.message}" for failure in failures) or message)
        self.failures = tuple(failures)
        self.stats = dict(stats or {})
        self.message = first.message if first else message
        self.host = first.host if first else None
        self.task = first.task if first else None
        self.details = dict(first.details) if first else {}


class TaskError(PlaybookError):
    """A task failed on a host. A start has then undone what it did: nothing is left to stop."""


class UnreachableError(PlaybookError):
    """The run failed, and Ansible could not reach one of the hosts."""


class SessionNotFoundError(PlaybookError):
    """No host of the inventory knows a session of that id."""


class CancelledError(InstantRecoveryError):
    """The caller's cancel event was set; a session that was being started has been stopped."""


class RunTimeoutError(InstantRecoveryError, TimeoutError):
    """The run took longer than `timeout`; a session that was being started has been stopped."""
