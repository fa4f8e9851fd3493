# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Copies of servers of MariaDB that were killed: what they had acknowledged is there, however they were copied."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.phpborg.instant_recovery.plugins.modules import mysql_ephemeral

from tests.integration.conftest import needs_root
from tests.support.clock import wait_until
from tests.support.copies import Copy
from tests.support.mariadb import DATABASE, MariaDb, ask, own

pytestmark = needs_root

ACKNOWLEDGED = f"`{DATABASE}`.acknowledged"
# A real production: between the two flushes of a commit it is prepared.
DURABLE = {"innodb_flush_log_at_trx_commit": "1", "sync_binlog": "1"}


@dataclass(frozen=True)
class Killed:
    """A server that was killed while it committed what is acknowledged."""

    server: MariaDb
    acknowledged: frozenset[int]


@pytest.fixture(scope="module", name="killed")
def _killed(shared_place: Path) -> Iterator[Killed]:
    with MariaDb(directory=shared_place / "killed", settings=DURABLE) as server:
        server.populate(rows=200)
        yield Killed(server, frozenset(server.killed_while_writing(loops=16)))


@pytest.fixture(name="copy")
def _copy(killed: Killed, copy_of: Callable[..., Copy]) -> Copy:
    return copy_of(killed.server, main=mysql_ephemeral.main)


def started(copy: Copy, **options: Any) -> dict[str, Any]:
    result = copy.start(**options)
    assert not result.get("failed"), result
    return result


def ids(result: dict[str, Any]) -> set[int]:
    return set(map(int, ask(result["client_file"], f"select id from {ACKNOWLEDGED}").split()))


def test_every_acknowledged_commit_is_there(copy: Copy, killed: Killed) -> None:
    result = started(copy)
    assert result["data"]["recovered"]
    assert killed.acknowledged
    assert killed.acknowledged <= ids(result)
    assert "InnoDB: Starting crash recovery" in copy.log()
    assert ask(result["client_file"], f"check table {ACKNOWLEDGED}").endswith("\tOK")


def test_without_binary_logs_what_was_prepared_is_committed_and_told(copy: Copy, killed: Killed) -> None:
    for path in copy.data.glob("mysql-bin.*"):
        path.unlink()
    result = started(copy)
    assert killed.acknowledged <= ids(result)
    number = result["data"]["prepared_transactions"]
    assert number > 0  # measured: 2 to 18
    sentence = f"{number} transactions were prepared when the server was killed"
    assert [one for one in map(str, result["warnings"]) if sentence in one]


def test_binary_logs_elsewhere_decide_as_well(place: Path, copy_of: Callable[..., Copy]) -> None:
    """As Debian's configuration proposes it: /var/log/mysql."""
    logs = place / "log"
    logs.mkdir()
    own(logs)
    with MariaDb(directory=place / "maria", settings={**DURABLE, "log_bin": str(logs / "mysql-bin")}) as server:
        server.populate(rows=100)
        acknowledged = server.killed_while_writing(loops=8)
        copy = copy_of(server, main=mysql_ephemeral.main)
        copy.add(logs)
    inside = str(logs).lstrip("/")
    result = started(copy, links={f"{inside}/mysql-bin.index": inside})
    assert acknowledged <= ids(result)
    assert result["data"]["prepared_transactions"] == 0
    assert ask(result["client_file"], "show binary logs").splitlines()
    assert [one for one in result["neutralised"] if "mysql-bin.index names the copy's own logs" in one["what"]]


def test_a_page_that_a_power_cut_has_torn_is_whole_again(place: Path, copy_of: Callable[..., Copy]) -> None:
    """It was being written when the power went: its image in the doublewrite area counts."""
    flushed = {"innodb_max_dirty_pages_pct": "0", "innodb_max_dirty_pages_pct_lwm": "0"}
    with MariaDb(directory=place / "maria", settings={**DURABLE, **flushed}) as server:
        server.populate(rows=100)
        written = "show global status like 'Innodb_dblwr_writes'"
        before = int(server.sql(written).split()[1])
        change = "update orders set item = uuid()"
        wait_until(lambda: server.sql(f"{change}; {written}", database=DATABASE).split()[1] != str(before))
        acknowledged = server.killed_while_writing()
        copy = copy_of(server, main=mysql_ephemeral.main)
    assert tear_pages(copy.data) > 0
    result = started(copy)
    assert acknowledged <= ids(result)
    assert result["data"]["unreadable_tables"] == []
    for table in (ACKNOWLEDGED, f"`{DATABASE}`.orders"):
        assert ask(result["client_file"], f"check table {table} extended").endswith("\tOK")


def tear_pages(data: Path) -> int:
    """Undo the second half of each page that is in the doublewrite area as well; how many.

    The area's two parts of 64 pages are named in page 5 (InnoDB's trx0sys.h: TRX_SYS_DOUBLEWRITE).
    """
    size, torn = 16 << 10, 0
    files = {page_field(path, 34): path for path in [data / "ibdata1", *data.glob("*/*.ibd")]}
    with (data / "ibdata1").open("rb") as system:
        system.seek(5 * size + size - 200 + 14)
        blocks = struct.unpack(">2I", system.read(8))
        images = []
        for block in blocks:
            system.seek(block * size)
            images += [system.read(size) for _number in range(64)]
    for image in images:
        number, space = int.from_bytes(image[4:8], "big"), int.from_bytes(image[34:38], "big")
        if space not in files or not number:
            continue
        with files[space].open("r+b") as file:
            file.seek(number * size)
            if file.read(size) == image:
                file.seek(number * size + size // 2)
                file.write(os.urandom(size // 2))
                torn += 1
    return torn


def page_field(path: Path, offset: int) -> int:
    """A number of four bytes in a file's first page."""
    return int.from_bytes(path.read_bytes()[offset : offset + 4], "big")
