# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a start says about the data, on a cluster that has one of everything that is worth a word."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.cluster import Cluster

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.support.copies import Copy


@pytest.fixture(scope="module")
def told(shared_place: Path) -> Iterator[tuple[Cluster, str]]:
    """The cluster, killed, and the time just after its last commit."""
    settings = {"max_prepared_transactions": "3"}
    with Cluster(directory=shared_place / "told", initdb_options=["--data-checksums"], settings=settings) as cluster:
        ask = cluster.connection.sql
        ask('create database "it\'s a \\ shop"')
        ask(
            "create unlogged table caught (i int); create table t (i int); insert into t values (1), (1);"
            # A library that was there when the function was made.
            "set check_function_bodies = off; create extension if not exists plpgsql;"
            "create function f() returns int language c as '$libdir/plpgsql', 'plpgsql_call_handler';"
            "update pg_proc set probin = '$libdir/gone' where proname = 'f'",
            database="it's a \\ shop",
        )
        with pytest.raises(RuntimeError, match="could not create unique index"):
            ask("create unique index concurrently u on t (i)", database="it's a \\ shop")
        ask("begin; create table p (i int); prepare transaction 'left waiting'")
        ask("create table last (i int)")
        # The record of this commit names so many subtransactions that it has 4 kB.
        ask(
            "select pg_sleep(1.1); do $$ begin for n in 1 .. 1000 loop begin insert into last values (n);"
            " exception when others then null; end; end loop; end $$"
        )
        after = ask("select clock_timestamp()")
        cluster.stop(mode="immediate")
        yield cluster, after


def test_everything_worth_a_word_is_said(told: tuple[Cluster, str], copy_of: Callable[..., Copy]) -> None:
    cluster, after = told
    copy = copy_of(cluster)
    result = copy.start()
    assert "failed" not in result, result
    data = result["data"]
    assert data["checksums"] is True
    assert data["prepared_transactions"] == ["left waiting"]
    assert data["emptied_tables"] == ["it's a \\ shop: public.caught"]
    assert data["invalid_indexes"] == ["it's a \\ shop: public.u"]
    assert data["missing_libraries"] == [{"database": "it's a \\ shop", "extension": None, "library": "$libdir/gone"}]
    assert data["not_looked_into"] == []
    assert data["last_commit"] == result["recovered_to"]["time"]
    age = f"select '{after}'::timestamptz - '{data['last_commit']}'::timestamptz between '0' and '1 second'"
    assert copy.sql(age) == "t", (data["last_commit"], after)
    warnings = " ".join(map(str, result["warnings"]))
    for said in ("left waiting", "public.caught", "public.u", "$libdir/gone, which is not installed"):
        assert said in warnings


def test_a_start_need_not_look(told: tuple[Cluster, str], copy_of: Callable[..., Copy]) -> None:
    copy = copy_of(told[0])
    data = copy.start(examine=False)["data"]
    assert data["not_looked_into"] == ["it's a \\ shop", "postgres"]
    assert data["emptied_tables"] == ["it's a \\ shop: 1 (tables, indexes, sequences)"]
    assert data["prepared_transactions"] == ["left waiting"]
    copy.stop()
    again = copy.start()
    assert again["data"]["last_commit"] == data["last_commit"]
    # The shutdown since then does not bring them back.
    assert again["data"]["emptied_tables"] == ["it's a \\ shop: public.caught"]
