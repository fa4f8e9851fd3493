# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Exports from a session: what is asked for, checked, and streamed from the engine's program into a file.

The program runs as the server's user and hands its output over in a pipe. The file is the session's owner's, who reads
nothing of what passes but, of CSV, where its rows end.
"""

from __future__ import annotations

import os
import re
import time
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .._engine.server import running_server
from .._errors import shown, text_shown
from .._host.command import CommandError
from .._host.disk import in_words
from .._host.files import read_beginning
from .._host.processes import open_log
from .._session.audit import audit, requester
from .._session.directory import TEMPORARY
from .encryption import Encryption, recipient_program
from .interface import CSV, Dump, Exporter, ExportError, Selection, Source
from .rows import Rows
from .selection import Asked, check_asked, choose_database, select
from .target import Target

if TYPE_CHECKING:
    from collections.abc import Callable

    from .._session.session import Session

__all__ = ["Export", "plan_export"]

LOG = "export.log"  # in the session's directory of logs: what the program says, and how far it is
PAUSE = 2.0  # seconds between two lines that tell how far it is
# What is read may be far less than it takes in the copy, where rows have heads and room is left between them.
LEAST_SHARE = 3
TAIL = 4000  # bytes of what a program said last
ANSWER = 600.0  # seconds that the server may take to tell what there is
MOST_NAMED = 2000  # tables, in the result
ERROR = re.compile(r"\berror\b", re.IGNORECASE)


@dataclass(frozen=True)
class Export:
    """An export that can be made: all that can be known before is checked."""

    session: Session
    selection: Selection
    dump: Dump
    target: Target
    recipient: str | None
    timeout: float

    def result(self, **measured: Any) -> dict[str, Any]:
        """What the module tells, with what was measured."""
        chosen = self.selection
        return {
            "session_id": self.session.id,
            "path": self.target.path,
            "format": chosen.format,
            "database": shown(chosen.database),
            "tables": [] if chosen.query is not None else [shown(str(one)) for one in chosen.tables[:MOST_NAMED]],
            "encrypted_by": None if self.recipient is None else recipient_program(self.recipient),
            **dict.fromkeys(("size", "rows", "sha256", "seconds")),
            **measured,
        }

    def run(self, requested_by: str | None) -> dict[str, Any]:
        """Make it; the result. Raises ExportError, with nothing left, where it does not come to its end."""
        begun = time.monotonic()
        rows = Rows() if self.selection.format == CSV else None
        with ExitStack() as opened:
            target = opened.enter_context(self.target)
            store: Callable[[bytes], object] = target.write
            encryption = None
            if self.recipient is not None:
                aside = self.session.path(TEMPORARY)
                encryption = opened.enter_context(Encryption(self.recipient, target.write, directory=aside))
                store = encryption.write
            progress = opened.enter_context(_Progress(self.session.path(f"log/{LOG}"), self._expected()))
            self._stream(_Sink(store, rows, progress), progress)
            if encryption is not None:
                encryption.finish()
            target.publish()
        root = os.path.dirname(self.session.directory)
        what = f"{self.selection.format} of {self.selection.database} to {target.path}"
        audit(root, "export", self.session.record, who=requester(requested_by), reason=shown(what))
        measured = {"size": target.size, "sha256": target.digest(), "rows": None if rows is None else rows.number}
        return self.result(**measured, seconds=round(time.monotonic() - begun, 3))

    def _expected(self) -> int:
        return sum(one.size for one in self.selection.tables)

    def _stream(self, sink: _Sink, progress: _Progress) -> None:
        """Run the program. Raises ExportError where it does not say that it has come to its end."""
        name = os.path.basename(self.dump.argv[0])
        try:
            done = Source(self.session, ANSWER).room.run(
                self.dump.argv,
                env=self.dump.env,
                timeout=self.timeout,
                check=False,
                log=progress.path,
                take=sink.take,
            )
        except CommandError as error:
            if error.returncode is None:
                raise ExportError(
                    f"{name} did not finish within {self.timeout:g} s, and nothing was written: give it more time "
                    "(timeout)."
                ) from error
            raise
        if done.returncode:
            said = progress.said()
            reason = next(
                (line for line in reversed(said) if ERROR.search(line)), said[-1] if said else "it said nothing"
            )
            raise ExportError(
                f"{name} did not come to its end, and nothing was written: {shown(reason.strip())}",
                log_tail=text_shown(said),
            )


class _Sink:
    """Takes what the program writes."""

    def __init__(self, store: Callable[[bytes], object], rows: Rows | None, progress: _Progress) -> None:
        self._store, self._rows, self._progress = store, rows, progress

    def take(self, data: bytes) -> None:
        if self._rows is not None:
            self._rows.take(data)
        self._store(data)
        self._progress.note(len(data))


class _Progress:
    """The log of exports, for whoever follows the session's logs: the program's own words, and how far it is."""

    def __init__(self, path: str, expected: int) -> None:
        self.path, self._about = path, in_words(expected)
        self._size, self._next = 0, 0.0

    def __enter__(self) -> _Progress:
        self._log = open_log(self.path, ["export"])
        self._begin = os.fstat(self._log).st_size
        self._tell()
        return self

    def __exit__(self, *_: object) -> None:
        self._tell()
        os.close(self._log)

    def note(self, size: int) -> None:
        self._size += size
        if time.monotonic() >= self._next:
            self._tell()

    def said(self) -> list[str]:
        """The last lines of what the program said, without our own."""
        begin = max(self._begin, os.fstat(self._log).st_size - TAIL)
        lines = read_beginning(self.path, TAIL, offset=begin).decode("utf-8", "replace").splitlines()
        return [line for line in lines if line.strip() and not line.startswith("export: ")]

    def _tell(self) -> None:
        self._next = time.monotonic() + PAUSE
        os.write(self._log, f"export: {self._size} bytes, of tables that take {self._about} in the copy\n".encode())


def plan_export(
    session: Session,
    exporter: Exporter,
    asked: Asked,
    *,
    target: Target,
    recipient: str | None,
    timeout: float,
) -> Export:
    """Check everything that can be known before a byte is written. Raises ExportError for what is wrong."""
    record = session.record
    if record.status != "active" or running_server(session) is None:
        raise ExportError(
            f"Session {session.id} has no server that runs ({record.status}): name a session that is active, or an "
            "archive."
        )
    form = check_asked(asked, exporter, record.engine or "")
    if recipient is not None:
        recipient_program(recipient)
    source = Source(session, min(timeout, ANSWER))
    database = choose_database(asked.database, source.databases, exporter.own_databases)
    if asked.query is not None:
        chosen = Selection(database, form, query=asked.query)
    else:
        chosen = select(asked, database, form, exporter.relations(source, database))
    target.check(sum(one.size for one in chosen.tables) // LEAST_SHARE)
    return Export(session, chosen, exporter.dump(source, chosen), target, recipient, timeout)
