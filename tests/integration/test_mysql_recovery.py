# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Copies of servers of MariaDB that were killed: what they had acknowledged is there, however they were copied."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.phpborg.instant_recovery.plugins.modules import mysql_ephemeral

from tests.integration.conftest import needs_root
from tests.support.clock import wait_until
from tests.support.copies import Copy
from tests.support.mariadb import DATABASE, MariaDb, ask, install, own

pytestmark = needs_root

ACKNOWLEDGED = f"`{DATABASE}`.acknowledged"
PAGE = 16 << 10
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
        yield Killed(server, frozenset(server.killed_while_writing(halfway=True)))


@pytest.fixture(name="copy")
def _copy(killed: Killed, copy_of: Callable[..., Copy]) -> Copy:
    return copy_of(killed.server, main=mysql_ephemeral.main)


class Spread(MariaDb):
    """A server that has its redo log and undo tablespaces where its settings say from the beginning."""

    def initialise(self) -> None:
        install(self.data, **self.settings)


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
    assert number > 0
    sentence = f"{number} transactions were prepared when the server was killed"
    assert [one for one in map(str, result["warnings"]) if sentence in one]


def test_binary_logs_elsewhere_decide_as_well(place: Path, copy_of: Callable[..., Copy]) -> None:
    """As Debian's configuration proposes it: /var/log/mysql."""
    logs = place / "log"
    logs.mkdir()
    own(logs)
    with MariaDb(directory=place / "maria", settings={**DURABLE, "log_bin": str(logs / "mysql-bin")}) as server:
        server.populate(rows=100)
        acknowledged = server.killed_while_writing(halfway=True)
        copy = copy_of(server, main=mysql_ephemeral.main)
        copy.add(logs)
    inside = str(logs).lstrip("/")
    result = started(copy, links={f"{inside}/mysql-bin.index": inside})
    assert acknowledged <= ids(result)
    assert result["data"]["prepared_transactions"] == 0
    assert ask(result["client_file"], "show binary logs").splitlines()
    assert [one for one in result["neutralised"] if "mysql-bin.index names the copy's own logs" in one["what"]]


def test_redo_and_undo_logs_elsewhere(place: Path, copy_of: Callable[..., Copy]) -> None:
    """On quick disks of their own, as production's configuration says and the archive does not."""
    redo, undo = place / "redo", place / "undo"
    settings = {"innodb_log_group_home_dir": str(redo), "innodb_undo_directory": str(undo)}
    for directory in (redo, undo):
        directory.mkdir()
        own(directory)
    with Spread(directory=place / "maria", settings={**settings, "innodb_undo_tablespaces": "3"}) as server:
        server.populate(rows=100)
        acknowledged = server.killed_while_writing()
        copy = copy_of(server, main=mysql_ephemeral.main)
        copy.add(redo)
        copy.add(undo)
    inside = [str(directory).lstrip("/") for directory in (redo, undo)]
    links = {f"{inside[0]}/ib_logfile0": inside[0], f"{inside[1]}/undo001": inside[1]}
    result = started(copy, links=links)
    assert acknowledged <= ids(result)
    assert result["data"]["recovered"]
    assert ask(result["client_file"], "select @@innodb_undo_tablespaces") == "3"
    for name in settings:
        assert ask(result["client_file"], f"select @@{name}").startswith(str(copy.tree))


def test_a_page_that_a_power_cut_has_torn_is_whole_again(place: Path, copy_of: Callable[..., Copy]) -> None:
    """It was being written when the power went: its image in the doublewrite area counts."""
    flushed = {"innodb_max_dirty_pages_pct": "0", "innodb_max_dirty_pages_pct_lwm": "0"}
    with MariaDb(directory=place / "maria", settings={**DURABLE, **flushed}) as server:
        server.populate(rows=100)
        changes = 0

        def caught() -> bool:
            nonlocal changes
            changes += 1
            server.sql(f"update orders set item = '{changes}'", database=DATABASE)
            server.pause()
            if written_twice(server.data):
                return True
            server.go_on()
            return False

        wait_until(caught)
        server.kill()
        copy = copy_of(server, main=mysql_ephemeral.main)
    for file, offset in written_twice(copy.data):
        with file.open("r+b") as table:
            table.seek(offset + PAGE // 2)
            table.write(os.urandom(PAGE // 2))
    result = started(copy)
    assert result["data"]["unreadable_tables"] == []
    orders = f"`{DATABASE}`.orders"
    assert ask(result["client_file"], f"select distinct item from {orders}") == str(changes)
    assert ask(result["client_file"], f"check table {orders} extended").endswith("\tOK")


def written_twice(data: Path) -> list[tuple[Path, int]]:
    """Pages since the checkpoint whose images are in the doublewrite area: file and offset in bytes.

    The area's two parts of 64 pages are named in page 5 (InnoDB's trx0sys.h: TRX_SYS_DOUBLEWRITE), the checkpoint in
    two blocks of the redo log (log0types.h: CHECKPOINT_1 and CHECKPOINT_2).
    """
    redo = (data / "ib_logfile0").read_bytes()[: 12 << 10]
    checkpoint = max(number(redo, 4 << 10, 8), number(redo, 8 << 10, 8))
    files = {number(path.read_bytes()[:PAGE], 34): path for path in data.glob("*/*.ibd")}
    system = (data / "ibdata1").read_bytes()
    area = 5 * PAGE + PAGE - 200 + 14
    found = []
    for block in (number(system, area), number(system, area + 4)):
        for start in range(block * PAGE, (block + 64) * PAGE, PAGE):
            image = system[start : start + PAGE]
            path, offset = files.get(number(image, 34)), number(image, 4) * PAGE
            if path and offset and number(image, 16, 8) >= checkpoint:
                with path.open("rb") as file:
                    file.seek(offset)
                    found += [(path, offset)] if file.read(PAGE) == image else []
    return found


def number(content: bytes, offset: int, size: int = 4) -> int:
    """One of InnoDB's numbers."""
    return int.from_bytes(content[offset : offset + size], "big")
