# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What an engine adds so that its data can be exported: what there is, and which program writes it out.

The server answers for the archive, and so does whatever talks to it: its programs run as the server's user in a sandbox
that reaches the server's socket alone. What comes out of them is data.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from .._errors import RecoveryError, shown, text_shown
from .._host.command import CommandError
from .._host.sandbox import Sandbox

if TYPE_CHECKING:
    from .._session.session import Session

__all__ = ["CSV", "Dump", "ExportError", "Exporter", "Relation", "Selection", "Source"]

CSV = "csv"  # the format of one table, or of a query's rows, which is the same for all engines
MOST_ANSWERED = 16 << 20  # bytes of a list of tables: some 200,000 of them


class ExportError(RecoveryError):
    """Something cannot be exported, or was not exported to its end."""


@dataclass(frozen=True)
class Relation:
    """A table, or what is listed like one: schema (empty where an engine has none) and name.

    kind: what it is, such as C(a view), for a sentence. has_rows: whether its rows lie in the copy, as a table's do.
    size: bytes that they take there, of its parts as well. parts: schema and name of tables that it consists of.
    """

    schema: str
    name: str
    kind: str = "a table"
    has_rows: bool = True
    size: int = 0
    parts: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        return f"{self.schema}.{self.name}" if self.schema else self.name


@dataclass(frozen=True)
class Selection:
    """What is to be exported of a database: tables, whole schemas, the rows of a query, or all of it.

    tables: those that are meant, also where schemas or the whole database are. schemas: names, where no tables were
    named. is_whole: neither tables nor schemas were.
    """

    database: str
    format: str
    tables: tuple[Relation, ...] = ()
    schemas: tuple[str, ...] = ()
    is_whole: bool = True
    query: str | None = None


@dataclass(frozen=True)
class Dump:
    """A program whose standard output is the file."""

    argv: Sequence[str]
    env: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Source:
    """A session's server, as its record tells of it."""

    session: Session
    timeout: float  # seconds that one question may take

    @property
    def bindir(self) -> str:
        """The directory of the server's program."""
        return str((self.session.record.server or {})["bindir"])

    @property
    def version(self) -> str:
        """The server's version."""
        return str((self.session.record.server or {})["version"])

    @property
    def databases(self) -> Sequence[str]:
        """The databases that clients can enter."""
        return [str(name) for name in (self.session.record.server or {})["databases"]]

    @property
    def room(self) -> Sandbox:
        """Where clients of the server run."""
        return Sandbox.from_dict((self.session.record.probe or {})["sandbox"])

    def ask(self, argv: Sequence[str], env: Mapping[str, str]) -> bytes:
        """What a client prints. Raises ExportError with what the server says against it."""
        try:
            return self.room.run(argv, env=env, timeout=self.timeout, limit=MOST_ANSWERED).stdout
        except CommandError as error:
            if error.returncode is None:
                raise ExportError(
                    f"The server of session {self.session.id} did not finish within {self.timeout:g} s what the export "
                    "has to know: give it more time (timeout)."
                ) from error
            said = shown(error.stderr.strip()[-1000:] or str(error))
            raise ExportError(
                f"The server of session {self.session.id} refuses what the export has to know: {said}",
                **text_shown(error.details),
            ) from error


class Exporter(Protocol):
    """How an engine's data are exported. All methods raise RecoveryError.

    formats: of files, the usual one first, CSV among them. own_databases: those that are not meant where none is named.
    has_schemas: whether a database has schemas, with tables in them.
    """

    @property
    def formats(self) -> Sequence[str]: ...
    @property
    def own_databases(self) -> frozenset[str]: ...
    @property
    def has_schemas(self) -> bool: ...

    def relations(self, source: Source, database: str) -> Sequence[Relation]:
        """All that a database lists like tables, but what is the server's own."""

    def dump(self, source: Source, selection: Selection) -> Dump:
        """The program that writes the selection out; with CSV, one table or the query, with the names of columns first.

        Of CSV a value that is NULL is nothing between its commas, and texts that could be taken for it are in quotes.
        """
