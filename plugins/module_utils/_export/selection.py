# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is meant by names and patterns, held against what the database has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase

from .._errors import listed, shown
from .interface import CSV, Exporter, ExportError, Relation, Selection

__all__ = ["Asked", "check_asked", "choose_database", "select"]

MOST_TABLES = 2000  # by name, on the command line of a program
LONGEST_QUERY = 100_000  # bytes; one argument of a program has 128 KiB


@dataclass(frozen=True)
class Asked:
    """What somebody wants to have. tables and schemas are names, or patterns in which * and ? stand for others."""

    database: str | None = None
    tables: Sequence[str] = ()
    schemas: Sequence[str] = ()
    query: str | None = None
    format: str | None = None


def check_asked(asked: Asked, exporter: Exporter, engine: str) -> str:
    """The format that is meant. Raises ExportError where what is asked for cannot be had of that engine."""
    form = asked.format or (CSV if asked.query is not None else exporter.formats[0])
    if form not in exporter.formats:
        raise ExportError(
            f"format {form} is none that {engine} can be exported in: choose {' or '.join(exporter.formats)}."
        )
    if asked.query is not None:
        if asked.tables or asked.schemas:
            raise ExportError("query is given together with tables or schemas: name the tables in the query alone.")
        if form != CSV:
            raise ExportError(f"query gives rows, which format {form} cannot hold: choose format {CSV}.")
        if not asked.query.strip() or len(asked.query.encode()) > LONGEST_QUERY:
            raise ExportError(f"query is empty, or longer than {LONGEST_QUERY} bytes: give one query.")
    elif form == CSV and not asked.tables:
        raise ExportError(f"format {CSV} holds one table, or the rows of one query: name it with tables or query.")
    if asked.schemas and not exporter.has_schemas:
        raise ExportError(f"schemas are databases in {engine}: name one with database.")
    return form


def choose_database(asked: str | None, known: Sequence[str], own: frozenset[str]) -> str:
    """The database that is meant. Raises ExportError where it is not there, or several can be meant."""
    if asked is not None:
        if asked not in known:
            raise ExportError(f"The copy has no database {shown(asked)}: {_offer(asked, known)}.")
        return asked
    ordinary = [name for name in known if name not in own] or list(known)
    if len(ordinary) != 1:
        raise ExportError(f"database is not given, and the copy has several: {_offer('', ordinary)}.")
    return ordinary[0]


def select(asked: Asked, database: str, form: str, relations: Sequence[Relation]) -> Selection:
    """What is meant of the relations of a database. Raises ExportError for a name or pattern that means no table."""
    schemas = _schemas(asked.schemas, relations, database)
    within = [one for one in relations if not asked.schemas or one.schema in schemas]
    if not asked.tables:
        tables = tuple(one for one in within if one.has_rows)
        return Selection(database, form, tables, tuple(schemas), is_whole=not asked.schemas)
    found: dict[tuple[str, str], Relation] = {}
    for pattern in asked.tables:
        found.update({(one.schema, one.name): one for one in _matching(pattern, within, database)})
    if form == CSV and len(found) > 1:
        names = listed([str(one) for one in found.values()])
        raise ExportError(
            f"format {CSV} holds one table, and these are meant: {names}. Name one, or use another format."
        )
    if len(found) > MOST_TABLES:
        raise ExportError(
            f"tables means {len(found)} tables, and {MOST_TABLES} can be named at once: name schemas, or leave both "
            "out."
        )
    return Selection(database, form, tuple(found.values()), is_whole=False)


def _schemas(patterns: Sequence[str], relations: Sequence[Relation], database: str) -> list[str]:
    known = sorted({one.schema for one in relations})
    found: dict[str, None] = {}
    for pattern in patterns:
        matching = [name for name in known if name == pattern] or [name for name in known if fnmatchcase(name, pattern)]
        if not matching:
            raise ExportError(
                f"No schema of database {shown(database)} that has tables is meant by {shown(pattern)}: "
                f"{_offer(pattern, known)}."
            )
        found.update(dict.fromkeys(matching))
    return list(found)


def _matching(pattern: str, relations: Sequence[Relation], database: str) -> list[Relation]:
    """The tables that a name or pattern means, with or without the schema before it."""
    named = [one for one in relations if pattern in (one.name, str(one))]
    matching = named or [one for one in relations if fnmatchcase(one.name, pattern) or fnmatchcase(str(one), pattern)]
    tables = [one for one in matching if one.has_rows]
    others = [one for one in matching if not one.has_rows]
    if others and (named or not tables):
        raise ExportError(
            f"{shown(str(others[0]))} is {others[0].kind}, and no table: leave it out; what it shows, "
            "if it can be read in the session, query exports."
        )
    if not tables:
        names = [str(one) for one in relations if one.has_rows]
        raise ExportError(
            f"No table of database {shown(database)} is meant by {shown(pattern)}: {_offer(pattern, names)}."
        )
    return tables


def _offer(given: str, known: Sequence[str]) -> str:
    """What can be named instead, the most similar ones first."""
    if not known:
        return "there is none"
    close = get_close_matches(given, known, n=3, cutoff=0.5) if given else []
    rest = [name for name in known if name not in close]
    return f"name one of {listed([*close, *rest])}"
