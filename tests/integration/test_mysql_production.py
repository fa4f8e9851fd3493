# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A copy of a server of MariaDB beside the living server that it was copied from, with ties to it everywhere.

Production runs all the time. It is copied while it stands still, as a file system's snapshot would be; then the copy is
started and put to hard use. Production's files, with their owners and times, are the same afterwards, and nobody has
called it.
"""

from __future__ import annotations

import re
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.phpborg.instant_recovery.plugins.modules import mysql_ephemeral

from tests.integration.conftest import needs_root
from tests.support.clock import wait_until
from tests.support.copies import Copy
from tests.support.mariadb import DATABASE, MariaDb, ask, file_digests, own

pytestmark = needs_root

FAR, MOVED, AWAY = (f"`{DATABASE}`.{name}" for name in ("far", "moved", "away"))


@dataclass
class Listener:
    """Whom a replica would call: a port that counts those who come."""

    calls: list[object] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.socket = socket.socket()
        self.socket.bind(("127.0.0.1", 0))
        self.socket.listen(8)
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def port(self) -> int:
        return int(self.socket.getsockname()[1])

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, address = self.socket.accept()
                self.calls.append(address)
                client.close()


@dataclass
class Production:
    """The living server, where its tables are that lie elsewhere, and whom it would call as a replica."""

    server: MariaDb
    elsewhere: Path
    listener: Listener

    def state(self) -> dict[str, str]:
        """A hash of each of its files, when it has come to rest."""
        deadline, before = time.monotonic() + 30, self._state()
        while time.monotonic() < deadline:
            time.sleep(1.2)  # its page cleaner looks every second
            now = self._state()
            if now == before:
                return now
            before = now
        raise AssertionError("production does not come to rest")

    def _state(self) -> dict[str, str]:
        return {
            **file_digests(self.server.data, self.elsewhere),
            "rows": self.server.sql(f"select count(*) from {FAR}"),
        }


@pytest.fixture(scope="module", name="production")
def _production(shared_place: Path) -> Iterator[Production]:
    data, elsewhere = shared_place / "production" / "data", shared_place / "elsewhere"
    elsewhere.mkdir()
    own(elsewhere)
    listener = Listener()
    # It writes nothing by itself, so that its files stand still between two statements.
    quiet = {"innodb_stats_auto_recalc": "OFF", "innodb_stats_persistent": "OFF", "expire_logs_days": "0"}
    settings = {"log_bin": str(data / "mysql-bin"), **quiet}
    with MariaDb(directory=shared_place / "production", settings=settings) as server:
        server.populate(rows=200)
        server.sql(
            f"create table {FAR} (id int primary key, x text) engine=innodb data directory='{elsewhere}';"
            f"create table {MOVED} (id int primary key, x text) engine=myisam data directory='{elsewhere}'"
            f" index directory='{elsewhere}';"
            f"create table {AWAY} (id int primary key, x text) engine=aria data directory='{elsewhere}'"
            f" index directory='{elsewhere}';"
            f"create table `{DATABASE}`.log (at datetime);"
            f"create event `{DATABASE}`.tick on schedule every 1 second do insert into `{DATABASE}`.log values (now());"
            f"change master to master_host='127.0.0.1', master_port={listener.port}, master_user='x',"
            " master_connect_retry=1;"
            "insert into mysql.plugin values ('federated', 'ha_federatedx.so'), ('handlersocket', 'handlersocket.so');"
            "insert into mysql.func values ('sys_exec', 0, 'lib_mysqludf_sys.so', 'function');"
            "flush logs",
        )
        for table in (MOVED, AWAY):
            server.sql(f"insert into {table} select seq, 'x' from seq_1_to_50; flush tables", database=DATABASE)
        yield Production(server, elsewhere, listener)
        listener.socket.close()


@pytest.fixture(name="copy")
def _copy(production: Production, copy_of: Callable[..., Copy]) -> Copy:
    production.server.sql(
        f"insert into {FAR} select seq + (select coalesce(max(id), 0) from {FAR} as f), md5(seq) from seq_1_to_500",
        database=DATABASE,
    )
    with production.server.frozen():
        copy = copy_of(production.server, main=mysql_ephemeral.main)
        copy.add(production.elsewhere)
    return copy


def assert_cut_loose(told: list[str]) -> None:
    """Whether each tie is told of."""
    for pattern in (
        r"/elsewhere/shop@0020data is \S+/merged/\S+/elsewhere/shop@0020data to the server",
        r"shop@0020data/moved\.MYD re-pointed to \S+/merged/\S+/elsewhere/moved\.MYD",
        r"shop@0020data/away\.MAI re-pointed to \S+/merged/\S+/elsewhere/away\.MAI",
        r"mysql-bin\.index names the copy's own logs",
        r"master\.info removed",
        r"skip_slave_start=ON",
        r"event_scheduler=DISABLED",
        r"plugins and functions from libraries not loaded",
        r"connections from the server to anywhere refused",
    ):
        assert [what for what in told if re.search(pattern, what)], (pattern, told)


def test_hard_use_of_a_copy_leaves_production_as_it_was(copy: Copy, production: Production) -> None:
    before = production.state()
    result = copy.start()
    assert not result.get("failed"), "\n".join([result["msg"], *result.get("log_tail", [])])
    client, elsewhere = result["client_file"], production.elsewhere
    assert_cut_loose([one["what"] for one in result["neutralised"]])
    libraries = ["ha_federatedx.so", "handlersocket.so", "lib_mysqludf_sys.so"]
    assert result["data"]["libraries_not_loaded"] == libraries
    rows = production.server.sql(f"select count(*) from {FAR}")
    counted = ask(client, "; ".join(f"select count(*) from {table}" for table in (FAR, MOVED, AWAY)))
    assert counted == f"{rows}\n50\n50"
    ask(client, f"update {AWAY} set x = 'changed'; optimize table {AWAY}")
    ask(client, f"update {FAR} set x = 'changed'; update {MOVED} set x = 'changed'; optimize table {MOVED}")
    ask(client, f"delete from {FAR} where id < 100; alter table {FAR} add y int; flush tables; flush logs")
    newest = ask(client, "show master status").split("\t")[0]
    ask(client, f"purge binary logs to '{newest}'; reset master")
    for statement, refusal in (
        ("set global event_scheduler = on", "event-scheduler|read only|DISABLED"),
        ("start slave", "not configured|MASTER_HOST"),
        (f"select 1 into outfile '{elsewhere}/planted'", "secure"),
        (
            f"create table `{DATABASE}`.f (id int) engine=federated connection='mysql://x@h/x'",
            "Unknown storage",
        ),
        ("install soname 'ha_federatedx'", "Can't open shared library"),
        ("create function sys_eval returns string soname 'lib_mysqludf_sys.so'", "Can't open shared library"),
    ):
        assert re.search(refusal, ask(client, statement, check=False)), statement
    ask(client, f"create table `{DATABASE}`.p (id int) data directory='{elsewhere}'", check=False)
    assert ask(client, f"select load_file('{production.server.data}/mysql-bin.index') is null") == "1"
    time.sleep(1.5)  # the event, and the replica, would have begun by now
    assert ask(client, f"select count(*) from `{DATABASE}`.log") == "0"
    ask(client, f"drop database `{DATABASE}`")
    assert copy.stop()["changed"]
    assert production.state() == before
    assert production.listener.calls == []


def test_a_table_that_was_not_archived(copy: Copy, production: Production, copy_of: Callable[..., Copy]) -> None:
    """A redo log that changes it cannot be replayed; else it cannot be read, and production has it still."""
    before = production.state()
    shutil.rmtree(copy.tree / str(production.elsewhere).lstrip("/"))
    refused = copy.start()
    assert refused["failed"]
    assert "a table's file that its redo log changes is not in the copy" in refused["msg"]
    production.server.sql("set global innodb_max_dirty_pages_pct_lwm = 0, innodb_max_dirty_pages_pct = 0")
    age = "show global status like 'innodb_checkpoint_age'"
    wait_until(lambda: int(production.server.sql(age).split()[1]) < 1000)
    before = production.state()
    with production.server.frozen():
        without = copy_of(production.server, main=mysql_ephemeral.main)
    result: dict[str, Any] = without.start()
    assert not result.get("failed"), "\n".join([result["msg"], *result.get("log_tail", [])])
    missing = {one["table"] for one in result["data"]["unreadable_tables"]}
    assert missing == {f"{DATABASE}.far", f"{DATABASE}.moved", f"{DATABASE}.away"}
    assert [one for one in map(str, result["warnings"]) if "shop@0020data/far lies in" in one]
    assert "ERROR" in ask(result["client_file"], f"select count(*) from {FAR}", check=False)
    assert ask(result["client_file"], f"select count(*) from `{DATABASE}`.orders") == "200"
    without.stop()
    assert production.state() == before
