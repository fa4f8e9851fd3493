# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What an export means by names and patterns, and how the rows of CSV are counted, without a server."""

from __future__ import annotations

import csv
import io
from typing import Any

import pytest
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._export.interface import ExportError, Relation
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._export.rows import Rows
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._export.selection import (
    Asked,
    choose_database,
    select,
)
from ansible_collections.phpborg.instant_recovery.plugins.plugin_utils.options import check_options
from ansible_collections.phpborg.instant_recovery.plugins.plugin_utils.table import read_table
from hypothesis import given, strategies

RELATIONS = [
    Relation("public", "orders"),
    Relation("public", "order?"),
    Relation("sales", "orders"),
    Relation("sales", "a.b"),
    Relation("sales", "seen", "a view", has_rows=False),
]


@pytest.mark.parametrize(
    ("asked", "meant"),
    [
        ({"tables": ["orders"]}, ["public.orders", "sales.orders"]),
        ({"tables": ["public.orders"]}, ["public.orders"]),
        ({"tables": ["order?"]}, ["public.order?"]),  # its name, and no pattern
        ({"tables": ["ord*"], "schemas": ["pub*"]}, ["public.orders", "public.order?"]),
        ({"tables": ["sales.*"]}, ["sales.orders", "sales.a.b"]),
        ({"tables": ["a.b", "*.b"]}, ["sales.a.b"]),
        ({"schemas": ["sales"]}, ["sales.orders", "sales.a.b"]),
        ({}, ["public.orders", "public.order?", "sales.orders", "sales.a.b"]),
    ],
)
def test_what_is_meant(asked: dict[str, Any], meant: list[str]) -> None:
    chosen = select(Asked(**asked), "shop", "sql", RELATIONS)
    assert [str(one) for one in chosen.tables] == meant
    assert chosen.is_whole == (not asked)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"tables": ["Orders"]}, "No table of database shop is meant by Orders: name one of"),
        ({"tables": ["seen"]}, "sales.seen is a view, and no table"),
        ({"tables": ["orders"], "schemas": ["x"]}, "No schema of database shop that has tables is meant by x"),
        ({"tables": ["\x1b[2J"]}, r"is meant by \\x1b\[2J"),
    ],
)
def test_what_means_nothing(asked: dict[str, Any], said: str) -> None:
    with pytest.raises(ExportError, match=said):
        select(Asked(**asked), "shop", "sql", RELATIONS)


def test_the_only_database_need_not_be_named() -> None:
    assert choose_database(None, ["own", "shop"], frozenset({"own"})) == "shop"
    assert choose_database(None, ["own"], frozenset({"own"})) == "own"
    with pytest.raises(ExportError, match="several: name one of a, b"):
        choose_database(None, ["a", "b"], frozenset())


@given(strategies.lists(strategies.text(alphabet='a",\n', max_size=6)), strategies.integers(1, 9))
def test_rows_are_counted_whatever_the_values_and_the_pieces_are(values: list[str], size: int) -> None:
    text = io.StringIO()
    csv.writer(text, quoting=csv.QUOTE_ALL, lineterminator="\n").writerows([["name"], *([value] for value in values)])
    data, rows = text.getvalue().encode(), Rows()
    for begin in range(0, len(data), size):
        rows.take(data[begin : begin + size])
    assert rows.number == len(values)


def test_an_export_needs_a_source_and_one_place() -> None:
    table = read_table("export")
    checked = check_options(table, {"session_id": "a", "to": "/x", "tables": "a, b"})["options"]
    assert (checked["tables"], checked["export_timeout"]) == (["a", "b"], 86400)
    for given_options, said in (
        ({"to": "/x"}, "There is nothing to export from"),
        ({"session_id": "all", "to": "/x"}, "There is nothing to export from"),
        ({"session_id": "a"}, "An export goes to one place"),
        ({"session_id": "a", "to": "/x", "fetch_to": "y"}, "An export goes to one place"),
    ):
        with pytest.raises(Exception, match=said):
            check_options(table, given_options)
