# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the events of a run come to: what the play left for programs, or why it failed."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ._errors import Failure, PlaybookError, TaskError, UnreachableError
from ._plain import plain

__all__ = ["Event", "Outcome"]

Event = Mapping[str, Any]

# Of what a play leaves, that which is a session's record or a list of them.
OF_SESSIONS = ("instant_recovery_session", "instant_recovery_sessions", "instant_recovery_stopped")
# What Ansible itself adds to the results of a module.
ADDITIONS = {"changed", "censored", "deprecations", "exception", "failed", "invocation", "msg", "unreachable"} | {
    "stderr_lines",
    "stdout_lines",
    "warnings",
}

logger = logging.getLogger("instant_recovery")


class Outcome:
    """Takes ansible-runner's events one by one. Ansible's warnings go to the log as they come."""

    def __init__(self) -> None:
        self._stats: dict[str, Any] = {}
        self._hosts: dict[tuple[Any, Any], str] = {}  # the host that has told of a session, by what that has told
        self._failures: dict[str, Failure] = {}
        self._unreachable = False
        self._ended_in_order = False
        self._output: deque[str] = deque(maxlen=20)

    def take(self, event: Event) -> None:
        """Remember what matters of one event. Hosts may answer with anything."""
        data = plain(event.get("event_data", {}))
        text = plain(str(event.get("stdout", "")).strip())
        match event.get("event"):
            case "playbook_on_stats":
                self._stats = data.get("artifact_data", {})
                self._ended_in_order = True
            case "runner_on_ok":
                self._note_sessions(str(data.get("host", "")), data.get("res") or {})
            case "runner_on_failed" if not data.get("ignore_errors"):
                self._failed(data)
            case "runner_on_unreachable":
                # Although the play may go on without this host.
                self._unreachable = True
                self._failed(data)
                self._tell_of_lost_words(str(data.get("host", "")))
            case "warning" | "system_warning":
                logger.warning("%s", " ".join(text.split()))
            case "error" | "verbose":
                # Ansible's own last words, for when it gives up before any task.
                self._output.append(text)
            case _:
                logger.debug("%s", text)

    def result(self, *, successful: bool) -> dict[str, Any]:
        """What was left by set_stats. Raises PlaybookError when the run failed."""
        if successful:
            return {key: self._placed(value) if key in OF_SESSIONS else value for key, value in self._stats.items()}
        kind = PlaybookError
        if self._failures and self._ended_in_order:
            kind = UnreachableError if self._unreachable else TaskError
        words = "\n".join(line for line in self._output if line) or "ansible-playbook ended without a word"
        raise kind(words, failures=list(self._failures.values()), stats=self._stats)

    def _note_sessions(self, host: str, result: Mapping[str, Any]) -> None:
        """Remember by the inventory where a session is: what a host says of itself may be meant to lead elsewhere.

        Another host may name the same id, which all hosts are asked for, but not when the session was made.
        """
        several = result.get("sessions")
        for one in [*(several if isinstance(several, list) else []), result.get("session")]:
            if isinstance(one, Mapping):
                self._hosts.setdefault(_identity(one), host)

    def _placed(self, told: Any) -> Any:
        """A session's record, or a list of them, with the inventory's names of their hosts."""
        if isinstance(told, list):
            return [self._placed(one) for one in told]
        if isinstance(told, Mapping):
            return {**told, "host": self._hosts.get(_identity(told), told.get("host"))}
        return told

    def _tell_of_lost_words(self, host: str) -> None:
        """Say how to see ssh's own reason. Ansible loses it where ssh ends while it is still being written to."""
        failure = self._failures[host]
        if "Data could not be sent" in failure.message:
            remedy = f"what ssh said is lost: `ansible {host} -m ansible.builtin.raw -a true` shows it"
            self._failures[host] = replace(failure, message=f"{failure.message} ({remedy})")

    def _failed(self, data: Mapping[str, Any]) -> None:
        """The first failure of a host is the cause; the last has the final message, composed by the play's rescue."""
        host, result = str(data.get("host", "")), data.get("res", {})
        cause = self._failures.get(host)
        self._failures[host] = Failure(
            host=host,
            task=cause.task if cause else str(data.get("task", "")),
            message=str(result.get("msg") or result.get("censored") or "failed without a message").strip(),
            details=cause.details if cause else _details(result),
        )


def _identity(record: Mapping[str, Any]) -> tuple[Any, Any]:
    return str(record.get("id")), str(record.get("created_at"))


def _details(result: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: value for key, value in result.items() if key not in ADDITIONS and not key.startswith(("_", "ansible_"))
    }
