# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Exports from a session's server of PostgreSQL, by pg_dump and psql of its own major version."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

from .._export.interface import CSV, Dump, ExportError, Relation, Selection, Source
from .client import client_environment, connection_words, psql
from .cluster import MAJOR, OLDEST_MAJOR

__all__ = ["PostgresqlExporter"]

KINDS = {
    "r": "a table",
    "p": "a partitioned table",
    "v": "a view",
    "m": "a materialized view",
    "f": "a foreign table, whose rows are on another server",
    "S": "a sequence",
}
# Own sizes are of the data and what lies in TOAST; indexes are made anew from them.
RELATIONS = """
select coalesce(pg_catalog.json_agg(pg_catalog.json_build_array(
    c.oid::pg_catalog.int8, n.nspname, c.relname, c.relkind,
    case when c.relkind = 'r' then pg_catalog.pg_table_size(c.oid) else 0 end,
    array(select i.inhparent::pg_catalog.int8 from pg_catalog.pg_inherits i where i.inhrelid = c.oid)
) order by n.nspname, c.relname), '[]'::pg_catalog.json)
from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace
where c.relkind in ('r', 'p', 'v', 'm', 'f', 'S') and n.nspname <> 'information_schema' and n.nspname !~ '^pg_'
"""
# Whatever the copy's databases say: these lose nothing, and mean the same everywhere.
FAITHFUL = {
    "datestyle": "ISO",
    "intervalstyle": "postgres",
    "bytea_output": "hex",
    "extra_float_digits": "3",
    "row_security": "off",
}
# The server has a look whether the one who asked is still there, as long as it works for him, since that version.
LOOKS, KNOWS_LOOKS = {"client_connection_check_interval": "2s"}, 14
# Roles and rights are production's. A subscription would call production from wherever the dump is loaded.
PLAIN = ("--format=plain", "--no-owner", "--no-privileges")
ALWAYS = ("--no-password", "--verbose", "--no-subscriptions")


class PostgresqlExporter:
    """PostgreSQL's; see Exporter in _export/interface.py, whose methods these are."""

    formats = ("sql", "custom", CSV)
    own_databases = frozenset({"postgres"})
    has_schemas = True

    def relations(self, source: Source, database: str) -> list[Relation]:
        """Tables, views and the like, with their partitions and children."""
        argv = psql(_program(source, "psql"), _target(source, database), RELATIONS)
        told = source.ask(argv, client_environment(_major(source)))
        try:
            return _relations(json.loads(told))
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise ExportError("The session's server gives a list of tables that cannot be read.") from error

    def dump(self, source: Source, selection: Selection) -> Dump:
        """pg_dump, or for CSV psql."""
        target = _target(source, selection.database)
        if selection.format == CSV:
            return _csv(source, selection, target)
        form = PLAIN if selection.format == "sql" else ("--format=custom",)
        names = [f"--table={_quoted(*one)}" for one in _named(selection)]
        names += [f"--schema={_quoted(name)}" for name in selection.schemas]
        chosen = ["--strict-names", *names] if names else []
        env = _environment(source)
        del env["PGCLIENTENCODING"]  # as it is in the database, which the dump says
        argv = [_program(source, "pg_dump"), *ALWAYS, *form, *chosen, f"--dbname={target}"]
        return Dump(argv, env)


def _csv(source: Source, selection: Selection, target: str) -> Dump:
    if selection.query is not None:
        query = selection.query.strip().rstrip(";")
        # What a query calls is found as its author expects it.
        settings: dict[str, str | None] = {**FAITHFUL, "search_path": None}
    else:
        (table,) = selection.tables
        query, settings = f"select * from {_quoted(table.schema, table.name)}", dict(FAITHFUL)
    statement = f"copy (\n{query}\n) to stdout (format csv, header)"
    argv = [*psql(_program(source, "psql"), target, statement), "-v", "ON_ERROR_STOP=1"]
    return Dump(argv, _environment(source, settings))


def _environment(source: Source, settings: Mapping[str, str | None] | None = None) -> dict[str, str]:
    major = _major(source)
    looks = LOOKS if major >= KNOWS_LOOKS else {}
    return client_environment(major, settings={**looks, **(settings or {})})


def _named(selection: Selection) -> list[tuple[str, str]]:
    """The tables to name, with all that belongs to them; none, where schemas or the whole database are meant."""
    if selection.is_whole or selection.schemas:
        return []
    return list(dict.fromkeys(name for one in selection.tables for name in ((one.schema, one.name), *one.parts)))


def _relations(told: list[list[Any]]) -> list[Relation]:
    """What the server has told. Raises ValueError, TypeError or KeyError where it is something else."""
    known = {
        int(oid): (str(schema), str(name), str(kind), int(size)) for oid, schema, name, kind, size, _parents in told
    }
    below: dict[int, list[int]] = {}
    for oid, _schema, _name, _kind, _size, parents in told:
        for parent in parents:
            below.setdefault(int(parent), []).append(int(oid))
    found = []
    for oid, (schema, name, kind, size) in known.items():
        parts = [known[part] for part in _descendants(oid, below) if known[part][2] in "rp"]
        found.append(
            Relation(
                schema,
                name,
                KINDS[kind],
                has_rows=kind in "rp",
                size=max(0, size) + sum(max(0, part[3]) for part in parts),
                parts=tuple(part[:2] for part in parts),
            )
        )
    return found


def _descendants(oid: int, below: dict[int, list[int]]) -> list[int]:
    found: dict[int, None] = {}
    ahead = list(below.get(oid, ()))
    while ahead:
        one = ahead.pop()
        if one not in found:
            found[one] = None
            ahead += below.get(one, ())
    return list(found)


def _target(source: Source, database: str) -> str:
    record = source.session.record
    return connection_words(str(record.socket_directory), int(record.port or 0), database)


def _program(source: Source, name: str) -> str:
    path = os.path.join(source.bindir, name)
    if not os.access(path, os.X_OK):
        raise ExportError(
            f"There is no {name} in {source.bindir}, where the programs of PostgreSQL {source.version} are: install "
            "the package of its client."
        )
    return path


def _major(source: Source) -> int:
    digits = MAJOR.match(source.version)
    return int(digits[0]) if digits else OLDEST_MAJOR


def _quoted(*names: str) -> str:
    return ".".join('"{}"'.format(name.replace('"', '""')) for name in names)
