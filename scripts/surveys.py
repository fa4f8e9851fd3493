# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""AWX's surveys, from the table of options: which options are asked for, and as which kind of question.

What is not named here is never asked for. docs/variables.md tells why of those that must not be, and a test holds the
two together.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["ASKED", "Question", "survey"]

KINDS = {"str": "text", "int": "integer", "bool": "multiplechoice"}
BOOLEANS = ("true", "false")


@dataclass(frozen=True)
class Question:
    """How one option is asked for.

    `label` is its short name for people. `choices` are the few values that are offered of what could be any text.
    `required` is as the table has it, unless an answer can come from elsewhere, or has to be given here alone.
    """

    label: str
    choices: tuple[str, ...] = ()
    required: bool | None = None


SESSION = Question("Session")
LIVES = ("1h", "2h", "4h", "8h", "24h")
IDLE = ("0", "15m", "30m", "1h", "2h")
START = {
    "source_host": Question("Host of the session", required=True),
    "archive": Question("Archive"),
    "data_directory": Question("Data directory in the archive"),
    "recovery_target_time": Question("Point in time"),
    "read_only": Question("Read-only"),
    "examine": Question("Look for what a user should know"),
}
# By the entry point of the role session. `workflow` is a start that a stop follows: it has no end of its own to choose.
ASKED: dict[str, dict[str, Question]] = {
    "start": {**START, "ttl": Question("Life", LIVES), "idle_timeout": Question("Life without queries", IDLE)},
    "workflow": START,
    # In a workflow the session comes from the start.
    "stop": {"session_id": Question("Session", required=False)},
    "list": {"ended": Question("Those that have ended, too")},
    "extend": {
        "session_id": SESSION,
        "ttl": Question("Life from now on", LIVES),
        "idle_timeout": Question("Life without queries", IDLE),
    },
    "reset": {"session_id": SESSION},
    "logs": {
        "session_id": SESSION,
        "lines": Question("Lines of each log"),
        "follow": Question("Follow until the session ends"),
        "follow_for": Question("Follow at most", ("0", "10m", "1h")),
    },
}


def survey(asked: Mapping[str, Question], options: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """A survey_spec of AWX. `options` are those of the table, with their descriptions as plain text."""
    return {"name": "", "description": "", "spec": [_asked(name, asked[name], options[name]) for name in asked]}


def _asked(name: str, question: Question, spec: Mapping[str, Any]) -> dict[str, Any]:
    if spec.get("no_log"):
        raise ValueError(f"{name} is a secret: those are for credentials, and not for surveys.")
    choices = question.choices or spec.get("choices") or (BOOLEANS if spec["type"] == "bool" else ())
    default = _default(spec)
    if choices and default not in (None, *choices):
        raise ValueError(f"{name}: the default {default} is none of {choices}.")
    required = bool(spec.get("required")) if question.required is None else question.required
    asked = {
        "question_name": question.label,
        "question_description": spec["description"],
        "variable": name,
        "type": "multiplechoice" if choices else KINDS[spec["type"]],
        "required": required,
    }
    if choices:
        asked["choices"] = list(choices)
    # AWX refuses whoever leaves out a required answer, with a default or without; and sends an empty default as a text.
    if default not in (None, "") and not required:
        asked["default"] = default
    return asked


def _default(spec: Mapping[str, Any]) -> Any:
    default = spec.get("default")
    return str(default).lower() if isinstance(default, bool) else default
