# Copyright (c) 2026, phpBorg contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Writes what a playbook run did as JSON lines, for the tests: one line per task result, one with the statistics."""

from __future__ import annotations

import json
import os
import time
from typing import Any

from ansible.plugins.callback import CallbackBase

DOCUMENTATION = """
name: recorder
type: notification
short_description: Records a run for the tests
description:
  - Appends one JSON object per task result and one with the custom statistics to the file that the environment
    variable E(INSTANT_RECOVERY_RECORDER) names.
author: phpBorg contributors (@phpborg)
"""


class CallbackModule(CallbackBase):  # type: ignore[misc]
    """Lines are {"task", "action", "host", "status", "seconds", "result"} and finally {"stats"}."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "notification"
    CALLBACK_NAME = "recorder"
    CALLBACK_NEEDS_ENABLED = True

    def __init__(self) -> None:
        super().__init__()
        self._path = os.environ["INSTANT_RECOVERY_RECORDER"]
        self._began: dict[tuple[str, str], float] = {}

    def v2_runner_on_start(self, host: Any, task: Any) -> None:
        self._began[host.get_name(), task._uuid] = time.monotonic()

    def v2_runner_on_ok(self, result: Any) -> None:
        self._record(result, "ok")

    def v2_runner_on_failed(self, result: Any, ignore_errors: bool = False) -> None:
        self._record(result, "ignored" if ignore_errors else "failed")

    def v2_runner_on_unreachable(self, result: Any) -> None:
        self._record(result, "unreachable")

    def v2_runner_on_skipped(self, result: Any) -> None:
        self._record(result, "skipped")

    def v2_playbook_on_stats(self, stats: Any) -> None:
        hosts = {host: stats.summarize(host) for host in stats.processed}
        self._write({"stats": stats.custom.get("_run", {}), "hosts": hosts})

    def _record(self, result: Any, status: str) -> None:
        host = result._host.get_name()
        began = self._began.get((host, result._task._uuid))
        self._write(
            {
                "task": result._task.get_name(),
                "action": result._task.action,
                "host": host,
                "status": status,
                "seconds": None if began is None else round(time.monotonic() - began, 3),
                # As every callback must: no_log options and tasks are censored before anything is kept.
                "result": json.loads(self._dump_results(result._result)),
            }
        )

    def _write(self, line: dict[str, Any]) -> None:
        with open(self._path, "a", encoding="utf-8") as file:
            file.write(json.dumps(line, default=str) + "\n")
