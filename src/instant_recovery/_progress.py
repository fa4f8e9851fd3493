# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""How far a start has come, for the caller's progress bar."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["Progress", "ProgressCallback", "Reporter"]


@dataclass(frozen=True, kw_only=True)
class Progress:
    """One step of a start has begun, or, with `fraction` 1.0, the session is ready.

    `step` is a stable name (see `STEPS`; "ready" at the end), `task` what Ansible calls it, for people. `fraction` only
    grows; it weighs the steps by their usual length. `elapsed` is in seconds since the call of `start`.
    """

    step: str
    task: str
    fraction: float
    elapsed: float


ProgressCallback = Callable[[Progress], None]

# Module -> (step, fraction done when it begins). The engine takes longest: it recovers the copy. The host and the
# engine have steps of their own only where packages may be installed.
STEPS: dict[str, tuple[str, float]] = {
    "host_preflight": ("host", 0.10),
    "borg_archive_info": ("archive", 0.20),
    "server_programs_info": ("engine", 0.35),
    "session": ("session", 0.40),
    "borg_mount": ("mount", 0.45),
    "overlay_mount": ("overlay", 0.60),
}
SERVER = ("server", 0.65)  # of the module of each engine, which is called ENGINE_ephemeral
COLLECTION_PREFIX = "phpborg.instant_recovery."


class Reporter:
    """Turns Ansible's events into calls of `callback`."""

    def __init__(self, callback: ProgressCallback | None) -> None:
        self._callback = callback
        self._begun = time.monotonic()
        self._fraction = 0.0
        self._report("prepare", "Starting Ansible", 0.0)

    def take(self, event: Mapping[str, Any]) -> None:
        """Reports the step when the event is the beginning of one of the collection's tasks."""
        data = event.get("event_data", {})
        action = str(data.get("task_action", ""))
        if event.get("event") != "playbook_on_task_start" or not action.startswith(COLLECTION_PREFIX):
            return
        module = action.removeprefix(COLLECTION_PREFIX)
        # A module that is not listed gets its own name and moves nothing.
        step, fraction = SERVER if module.endswith("_ephemeral") else STEPS.get(module, (module, self._fraction))
        if fraction >= self._fraction:
            self._report(step, str(data.get("task", module)), fraction)

    def has_reached(self, step: str) -> bool:
        """Whether that step, or a later one, has begun."""
        return self._fraction >= next(fraction for name, fraction in (*STEPS.values(), SERVER) if name == step)

    def ready(self) -> None:
        """Reports the end."""
        self._report("ready", "The session is ready", 1.0)

    def _report(self, step: str, task: str, fraction: float) -> None:
        self._fraction = fraction
        if self._callback is not None:
            elapsed = time.monotonic() - self._begun
            self._callback(Progress(step=step, task=task, fraction=fraction, elapsed=elapsed))
