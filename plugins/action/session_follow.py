# Copyright (c) 2026, phpBorg contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Prints a session's logs while they grow. See plugins/modules/session_follow.py.

One task that calls a module again and again, and not a loop of tasks: it costs the same memory after an hour as after a
minute, has no number of rounds to end after, and between two lines of a log there is no line of Ansible's.
"""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display

from ..module_utils._errors import RecoveryError, text_shown
from ..module_utils._session.duration import parse_duration

if TYPE_CHECKING:
    from collections.abc import Mapping

MODULE = "phpborg.instant_recovery.session_log"
# Seconds of one call: an idle session costs one a minute. When Ansible is gone, the module notices by itself.
WAIT = 60.0

display = Display()


class ActionModule(ActionBase):  # type: ignore[misc]  # Ansible has no types
    """The action phpborg.instant_recovery.session_follow."""

    _requires_connection = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Print until there is nothing more to print; returns how many lines, or the module's failure."""
        super().run(tmp, task_vars)
        _validated, options = self.validate_argument_spec(
            argument_spec={
                "session_id": {"type": "str", "required": True},
                "session_root": {"type": "path"},
                "sources": {"type": "list", "elements": "str", "default": []},
                "lines": {"type": "int", "default": 100},
                "follow": {"type": "bool", "default": False},
                "follow_for": {"type": "str", "default": "0"},
                "format": {"type": "str", "choices": ["text", "json"], "default": "text"},
            }
        )
        deadline = time.monotonic() + _seconds(options)
        printed, cursor, left = 0, None, 0.0
        while True:
            result = self._read(options, cursor, min(WAIT, max(0.0, left)), task_vars)
            if result.get("failed") or result.get("unreachable"):
                return result
            # The host has made them fit to be seen; but it is the host that says so.
            _print(text_shown(result["lines"]), options["format"])
            printed += len(result["lines"])
            cursor = result["cursor"]
            left = deadline - time.monotonic()
            if result["ended"] or (left <= 0 and not result["more"]):
                return {"changed": False, "lines": printed, "ended": result["ended"]}

    def _read(
        self, options: Mapping[str, Any], cursor: object, wait: float, task_vars: dict[str, Any] | None
    ) -> dict[str, Any]:
        named = ("session_id", "session_root", "sources", "lines")
        arguments = {**{name: options[name] for name in named}, "cursor": cursor, "wait": wait}
        result: dict[str, Any] = self._execute_module(
            module_name=MODULE,
            module_args={name: value for name, value in arguments.items() if value is not None},
            task_vars=task_vars,
        )
        return result


def _seconds(options: Mapping[str, Any]) -> float:
    """How long to follow. Raises AnsibleActionFail for what is no duration."""
    try:
        limit = parse_duration(options["follow_for"])
    except RecoveryError as error:
        raise AnsibleActionFail(f"follow_for: {error}") from error
    return (limit or float("inf")) if options["follow"] else 0.0


def _print(lines: list[dict[str, str]], form: str) -> None:
    if not lines:
        return
    if form == "json":
        display.display(json.dumps({"instant_recovery_log": [[line["source"], line["text"]] for line in lines]}))
    else:
        display.display("\n".join(f"{line['source']} | {line['text']}" for line in lines))
