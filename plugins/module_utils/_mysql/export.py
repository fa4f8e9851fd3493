# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Exports from a session's server of MariaDB or MySQL, by the dump program and the client that came with it.

The client has no output in which NULL and quotes are told apart. So the server makes each line of CSV itself, as the
one column of a query, and the client prints it as it is.
"""

from __future__ import annotations

import os
import re

from .._engine.interface import Programs
from .._export.interface import CSV, Dump, ExportError, Relation, Selection, Source
from .account import ACCOUNT, LOGINS
from .programs import NAMES, client_of, series_of, tool_of
from .redo import product_of

__all__ = ["MysqlExporter"]

DUMPERS = {"mariadb": ("mariadb-dump", "mysqldump"), "mysql": ("mysqldump",)}
LARGEST_ROW = "--max-allowed-packet=1G"
# --single-transaction: all tables as of one moment, though clients may write. Binary values as hexadecimal digits, for
# what a file is opened with may take them for text.
OPTIONS = (
    *("--single-transaction", "--skip-lock-tables", "--quick", "--hex-blob", "--verbose", LARGEST_ROW),
    *("--default-character-set=utf8mb4", "--no-tablespaces"),
)
WHOLE = ("--routines", "--triggers")  # no events: they would run where the dump is loaded, and a session has none
OF_MYSQL = ("--set-gtid-purged=OFF",)
# Where rows are said to be elsewhere by the engine of their table.
ELSEWHERE = ("FEDERATED", "CONNECT", "SPIDER", "S3", "BLACKHOLE")
KINDS = {"VIEW": "a view", "SYSTEM VIEW": "a view", "SEQUENCE": "a sequence"}
BINARY = re.compile(
    r"(?:tiny|medium|long)?blob|(?:var)?binary|bit|geometry|geometrycollection|vector|(?:multi)?(?:point|linestring|polygon)"
)
NUMBER = re.compile(r"(?:tiny|small|medium|big)?int|integer|decimal|numeric|float|double|real|year")
# Since when a query in brackets, with any number of rows, can stand there.
TAKES_LIMIT, ANY_NUMBER = {"mariadb": (10, 4), "mysql": (8, 0, 22)}, (1 << 64) - 1
ESCAPES = {"n": "\n", "t": "\t", "0": "\0", "\\": "\\"}


class MysqlExporter:
    """MariaDB's and MySQL's; see Exporter in _export/interface.py, whose methods these are."""

    formats = ("sql", CSV)
    own_databases: frozenset[str] = frozenset()
    has_schemas = False

    def relations(self, source: Source, database: str) -> list[Relation]:
        """Tables, views and sequences."""
        told = _ask(
            source,
            "select hex(table_name), table_type, coalesce(engine, ''), coalesce(data_length, 0) "
            f"from information_schema.tables where table_schema = {_text(database)} order by table_name",
        )
        try:
            return [_relation(*line.split("\t")) for line in told.split("\n") if line]
        except (ValueError, TypeError) as error:
            raise ExportError("The session's server gives a list of tables that cannot be read.") from error

    def dump(self, source: Source, selection: Selection) -> Dump:
        """The dump program, or for CSV the client."""
        if selection.format == CSV:
            return _csv(source, selection)
        product = product_of(source.version)
        program = tool_of(_programs(source), *DUMPERS[product])
        if program is None:
            raise _missing(DUMPERS[product][0], source)
        names = [] if selection.is_whole else [one.name for one in selection.tables]
        more = [*(WHOLE if selection.is_whole else ("--triggers",)), *(OF_MYSQL if product == "mysql" else ())]
        return Dump([program, _login(source), *OPTIONS, *more, "--", selection.database, *names])


def _relation(name: str, kind: str, engine: str, size: str) -> Relation:
    words = KINDS.get(kind, "a table")
    if engine.upper() in ELSEWHERE:
        words = f"a table of engine {engine}, whose rows are not in the copy"
    return Relation("", bytes.fromhex(name).decode("utf-8"), words, has_rows=words == "a table", size=int(size))


def _csv(source: Source, selection: Selection) -> Dump:
    use = f"use {_quoted(selection.database)}"
    if selection.query is not None:
        # On lines of its own, for it may end with a comment. What it is called is out of the way of its own names.
        rows = f"{_ordered(source, selection.query.strip().rstrip(';'))} as `instant recovery`"
        columns = f"create temporary table `instant recovery` as select * from {rows} limit 0; "
        columns += "show columns from `instant recovery`"
    else:
        rows = _quoted(selection.tables[0].name)
        columns = f"show columns from {rows}"
    try:
        found = [_column(line) for line in _ask(source, f"{use}; {columns}").split("\n") if line]
    except ValueError as error:
        raise ExportError("The session's server gives a list of columns that cannot be read.") from error
    if not found:
        raise ExportError("The session's server names no columns of what is to be exported.")
    names = ",".join('"{}"'.format(name.replace('"', '""')) for name, _kind in found)
    # A line that is larger than what the server sends comes out as NULL.
    values = ", ',', ".join(_value(*one) for one in found)
    line = f"coalesce(concat({values}), char(0))"
    statement = f"set time_zone = '+00:00'; {use}; select {_text(names)}; select {line} from {rows}"
    return Dump(_client(source, "--raw", "--quick", LARGEST_ROW, statement=statement))


def _ordered(source: Source, query: str) -> str:
    """A query for the place of a table. Without a limit its order does not count there."""
    version = tuple(int(number) for number in re.findall(r"[0-9]+", source.version)[:3])
    keeps = version >= TAKES_LIMIT[product_of(source.version)]
    return f"((\n{query}\n) limit {ANY_NUMBER})" if keeps else f"(\n{query}\n)"


def _column(line: str) -> tuple[str, str]:
    """Name and type, as the client prints them."""
    name, kind = (
        re.sub(r"\\(.)", lambda match: ESCAPES.get(match[1], match[1]), part) for part in line.split("\t")[:2]
    )
    return name, kind.partition("(")[0].partition(" ")[0].lower()


def _value(name: str, kind: str) -> str:
    """An expression for a column's value in CSV: nothing for NULL, and in quotes what is no number."""
    column = _quoted(name)
    if BINARY.fullmatch(kind):
        return f"coalesce(concat('0x', hex({column})), '')"
    text = f"convert({column} using utf8mb4)"
    if not NUMBER.fullmatch(kind):
        text = f"concat('\"', replace({text}, '\"', '\"\"'), '\"')"
    return f"coalesce({text}, '')"


def _ask(source: Source, statement: str) -> str:
    return source.ask(_client(source, statement=statement), {}).decode("utf-8", "replace")


def _client(source: Source, *options: str, statement: str) -> list[str]:
    """A command line on which nothing is left to option files, environments or defaults.

    In binary mode the client takes nothing in a statement for a command of its own.
    """
    program = client_of(_programs(source))
    if program is None:
        raise _missing("client program", source)
    always = ["--batch", "--binary-mode", "--skip-column-names", "--skip-auto-rehash", "--skip-reconnect"]
    always += ["--connect-timeout=10", "--default-character-set=utf8mb4"]
    return [program, _login(source), *always, *options, "-e", statement]


def _login(source: Source) -> str:
    return f"--defaults-file={os.path.join(source.session.path('config'), LOGINS[ACCOUNT])}"


def _programs(source: Source) -> Programs:
    return Programs(series_of(source.version)[0], source.version, source.bindir)


def _missing(name: str, source: Source) -> ExportError:
    product = NAMES[product_of(source.version)]
    return ExportError(
        f"There is no {name} of {product} {source.version} on this host: install it (package mariadb-client, "
        "mysql-client or the like)."
    )


def _quoted(name: str) -> str:
    return f"`{name.replace('`', '``')}`"


def _text(text: str) -> str:
    """A text that no mode of the server takes for something else."""
    return f"convert(0x{text.encode().hex()} using utf8mb4)" if text else "''"
