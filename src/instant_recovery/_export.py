# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What an export has come to, and how far it is while it runs."""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Self

from ._errors import InstantRecoveryError
from ._logs import log_lines
from ._outcome import Event

__all__ = ["Export", "ExportProgress", "Follower"]

TASK = "phpborg.instant_recovery.session_export"
BYTES = re.compile(r"export: ([0-9]+) bytes\b")


@dataclass(frozen=True, kw_only=True)
class Export:
    """A file that was exported.

    `path` is on the session's host, or here where it was fetched. `size` is in bytes, `sha256` of the file as it is on
    the disk. `rows` are those of CSV, None for a dump. `tables` are their names. `encrypted_by` is "age" or "gpg".
    """

    path: str
    format: str
    database: str
    tables: tuple[str, ...]
    size: int
    rows: int | None
    sha256: str
    seconds: float
    encrypted_by: str | None
    session_id: str

    @classmethod
    def from_result(cls, result: Mapping[str, Any]) -> Self:
        """The export that the playbook tells of."""
        known = {item.name: result[item.name] for item in fields(cls)}
        return cls(**{**known, "tables": tuple(known["tables"])})


@dataclass(frozen=True, kw_only=True)
class ExportProgress:
    """How far an export is: `bytes` of the program's output, and what it said last, such as which table it is at."""

    bytes: int
    said: str


class Follower:
    """Calls `callback` in a thread of its own while an export runs. A context manager, at whose end that has ended.

    `follow` gives the events of the session's log of exports, until the event that it is given is set.
    """

    def __init__(
        self,
        callback: Callable[[ExportProgress], None] | None,
        follow: Callable[[threading.Event], Iterable[Event]],
    ) -> None:
        self._callback, self._follow = callback, follow
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="instant_recovery-export", daemon=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        if self._thread.ident is not None:
            self._thread.join()

    def take(self, event: Event) -> None:
        """Begin when the export does, which a task may announce more than once."""
        is_task = event.get("event") == "playbook_on_task_start"
        is_begun = is_task and event.get("event_data", {}).get("task_action") == TASK
        if is_begun and self._callback is not None and self._thread.ident is None:
            self._thread.start()

    def _run(self) -> None:
        size, said = 0, ""
        # What becomes of the export is told by its own run.
        with contextlib.suppress(InstantRecoveryError):
            for event in self._follow(self._ended):
                for line in log_lines(event):
                    told = BYTES.match(line.text)
                    size, said = (int(told[1]), said) if told else (size, line.text)
                    if self._callback is not None:
                        self._callback(ExportProgress(bytes=size, said=said))
