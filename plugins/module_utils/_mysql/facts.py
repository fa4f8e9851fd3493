# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What can be said about the data of a session: which databases there are, and which tables cannot be read.

The server answers for the archive: what it says is bounded, and shown to people with nothing in it that acts on a
terminal.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from .._errors import listed, shown
from .._host.command import CommandError

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["DATABASES", "Facts", "find_tables", "named"]

PATIENCE = 5.0  # seconds for all tables to be opened, and for all checks together
MOST_TABLES = 100  # that are named
MOST_CHECKED = 50  # tables without a log of changes
OWN = "('information_schema', 'performance_schema', 'mysql', 'sys')"
DATABASES = (
    f"select hex(schema_name) from information_schema.schemata where schema_name not in {OWN} "
    "and schema_name not like '#mysql50#%' order by schema_name limit 10000"
)
# To tell a length a server opens the table. One that it cannot open has none, and its comment says why.
BROKEN = (
    "select hex(concat(table_schema, '.', table_name)), hex(left(table_comment, 300)) "
    "from information_schema.tables where table_type = 'BASE TABLE' and data_length is null "
    f"and table_schema not in {OWN} limit {MOST_TABLES}"
)
UNSPEAKABLE = re.compile(r"[\\\0-\x1f]")  # in a statement for the client program, which has commands of its own
UNLOGGED = (
    "select hex(table_schema), hex(table_name) from information_schema.tables "
    f"where engine in ('MyISAM', 'CSV', 'Aria') and table_schema not in {OWN} limit {MOST_CHECKED}"
)


@dataclass
class Facts:
    """What is known of the data. tables: those that cannot be read, and why; was_examined: they were looked for.

    libraries: those of plugins and functions that the session's server has not loaded.
    """

    databases: list[str]
    is_clean: bool
    was_examined: bool = False
    tables: dict[str, str] = field(default_factory=dict)
    not_examined: str | None = None
    prepared_transactions: int = 0
    prepared_were: str = "committed"
    libraries: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """Plain data for the module's result."""
        return {
            "recovered": not self.is_clean,
            "prepared_transactions": self.prepared_transactions,
            "examined": self.was_examined and self.not_examined is None,
            "unreadable_tables": [{"table": name, "why": why} for name, why in self.tables.items()],
            "libraries_not_loaded": self.libraries,
        }

    def warnings(self) -> list[str]:
        """What a user should know before believing what is read."""
        found = []
        if self.prepared_transactions:
            found.append(
                f"{self.prepared_transactions} transactions were prepared when the server was killed, and the copy "
                f"lacks the binary logs that tell whether they were committed: here they were {self.prepared_were}."
            )
        if self.tables:
            first = next(iter(self.tables.values()))
            found.append(f"These tables cannot be read: {listed(list(self.tables))} (of the first: {shown(first)}).")
        if self.not_examined is not None:
            found.append(f"The tables were not all looked at: {shown(self.not_examined)}")
        return found


def find_tables(facts: Facts, ask: Callable[[str, float], str]) -> None:
    """Look for tables that cannot be read: ask gives what the server answers to a statement within some seconds."""
    facts.was_examined = True
    try:
        for line in ask(BROKEN, PATIENCE).splitlines():
            table, why = line.split("\t")
            facts.tables[_text(table)] = _text(why)
        tables = [".".join(map(_quoted, line.split("\t"))) for line in ask(UNLOGGED, PATIENCE).splitlines()]
        checks = [f"check table {table} quick" for table in tables if not UNSPEAKABLE.search(table)]
        if checks:
            _note_checks(facts, ask("; ".join(checks[:MOST_CHECKED]), PATIENCE))
    except (CommandError, ValueError) as error:
        facts.not_examined = str(error)


def _note_checks(facts: Facts, answer: str) -> None:
    """The rows of CHECK TABLE: table, what was done, kind of message, and its text."""
    for line in answer.splitlines():
        table, _what, kind, text = (line.split("\t") + [""] * 4)[:4]
        if kind in ("error", "warning") and len(facts.tables) < MOST_TABLES:
            facts.tables.setdefault(table, text)


def named(answer: str) -> list[str]:
    """The names in an answer to DATABASES. Raises ValueError where it is something else."""
    return [_text(line) for line in answer.splitlines()]


def _quoted(encoded: str) -> str:
    return f"`{_text(encoded).replace('`', '``')}`"


def _text(encoded: str) -> str:
    return bytes.fromhex(encoded).decode("utf-8", "replace")
