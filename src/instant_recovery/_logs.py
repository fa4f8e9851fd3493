# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The lines of a session's logs, out of the events of the logs playbook."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ._plain import plain

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ._outcome import Event

__all__ = ["LogLine", "log_lines"]

KEY = "instant_recovery_log"


@dataclass(frozen=True, kw_only=True)
class LogLine:
    """One line of a session's log.

    `source` is "server" (the database server), "layer" (the copy-on-write layer), "archive" (Borg), or the name of the
    file without ".log". What was no text in `text`, and control characters, are written as \\x1b.
    """

    source: str
    text: str


def log_lines(event: Event) -> Iterator[LogLine]:
    """The lines that an event brings: the playbook prints them as JSON, between other things that Ansible says."""
    if event.get("event") != "verbose":
        return
    for line in str(event.get("stdout", "")).splitlines():
        if line.startswith(f'{{"{KEY}": '):
            for source, text in json.loads(line)[KEY]:
                yield LogLine(source=plain(source), text=plain(text))
