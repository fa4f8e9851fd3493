# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Servers of MariaDB on copies of data directories: started, asked, confined, refused, stopped."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pymysql
import pytest
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._mysql import account
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._session.metrics import measure
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._session.session import (
    Session,
    claiming,
)
from ansible_collections.phpborg.instant_recovery.plugins.modules import mysql_ephemeral

from tests.integration.conftest import needs_root
from tests.support.copies import Copy
from tests.support.mariadb import DATABASE, MariaDb, ask, checksums

pytestmark = needs_root

ORDERS = f"`{DATABASE}`.orders"


@pytest.fixture(scope="module", name="closed")
def _closed(shared_place: Path) -> Iterator[MariaDb]:
    """A server that was shut down in order."""
    with MariaDb(directory=shared_place / "maria2") as server:
        server.populate()
        server.sql(
            "create user app@'%' identified by ''; grant all on *.* to app@'%';"
            "create procedure put() sql security definer insert into orders (item) values ('put');"
            "create procedure allow() sql security definer set global read_only = 0;"
            "create procedure number() sql security definer select count(*) from orders",
            database=DATABASE,
        )
        server.tables = server.checksums()
        server.stop()
        yield server


@pytest.fixture(name="copy")
def _copy(closed: MariaDb, copy_of: Callable[..., Copy]) -> Copy:
    return copy_of(closed, main=mysql_ephemeral.main)


def started(copy: Copy, **options: Any) -> dict[str, Any]:
    result = copy.start(**options)
    assert not result.get("failed"), result
    return result


def test_a_copy_is_served_and_ended(copy: Copy, closed: MariaDb) -> None:
    result = started(copy)
    assert result["changed"]
    assert re.fullmatch(r"10\.11\.\d+", result["version"])
    assert (result["databases"], result["recovered_to"]["reason"]) == ([DATABASE], "the server had been shut down")
    assert result["data"] == {
        "recovered": False,
        "prepared_transactions": 0,
        "examined": True,
        "unreadable_tables": [],
        "libraries_not_loaded": [],
    }
    client = result["client_file"]
    assert checksums(lambda statement: ask(client, statement)) == closed.tables
    assert ask(client, "select current_user(), @@event_scheduler, @@local_infile") == (
        "instant_recovery@localhost\tDISABLED\t0"
    )
    assert not copy.start()["changed"]
    assert ask(client, f"insert into {ORDERS} (item) values ('x'); select row_count()") == "1"
    assert copy.stop()["changed"]
    assert copy.left() == []
    assert not copy.stop()["changed"]


def test_the_password_counts_by_tcp_and_is_told_nowhere(copy: Copy) -> None:
    result = started(copy)
    password = re.search(r'password = "(.*)"', Path(result["client_file"]).read_text())
    assert password is not None
    where = {"host": "127.0.0.1", "port": result["port"], "user": "instant_recovery"}
    with pymysql.connect(**where, password=password[1]) as connection, connection.cursor() as cursor:
        cursor.execute("select current_user()")
        assert cursor.fetchone() == ("instant_recovery@127.0.0.1",)
    with pytest.raises(pymysql.err.OperationalError, match="Access denied"):
        pymysql.connect(**where, password="wrong")
    assert Path(result["client_file"]).stat().st_mode & 0o777 == 0o600
    shown = json.dumps(result) + copy.log() + (copy.directory / "session.json").read_text()
    assert password[1] not in shown
    binlogs = [path.read_bytes() for path in copy.data.glob("mysql-bin.0*")]
    assert not any(password[1].encode() in content for content in binlogs)


def test_what_clients_do_is_seen_and_what_we_ask_is_not(copy: Copy) -> None:
    result = started(copy, examine=False)
    first = measure(Session.open(str(copy.directory)))
    second = measure(Session.open(str(copy.directory)), earlier=first)
    assert (first["queries"], first["clients"]) == (second["queries"], 0)
    ask(result["client_file"], "do 1; do 2")
    assert measure(Session.open(str(copy.directory)), earlier=second)["queries"] > second["queries"]


def test_read_only_holds_against_its_own_account(copy: Copy) -> None:
    client = started(copy, read_only=True)["client_file"]
    assert ask(client, f"select count(*) from {ORDERS}") == "2000"
    for statement in (f"delete from {ORDERS}", "set global read_only=0", "grant super on *.* to current_user()"):
        assert "ERROR" in ask(client, statement, check=False)
    assert ask(client, f"call `{DATABASE}`.number()") == "2000"
    for routine in ("put", "allow"):  # with the rights of root, who made them
        assert "ERROR" in ask(client, f"call `{DATABASE}`.{routine}()", check=False)
    assert ask(client, f"select count(*) from {ORDERS}; select @@read_only") == "2000\n1"


def test_no_account_of_the_archive_lets_anybody_in(copy: Copy) -> None:
    result = started(copy)
    for user in ("root", "app"):
        for way in (
            {"host": "127.0.0.1", "port": result["port"]},
            {"unix_socket": f"{copy.directory}/client/mysql.sock"},
        ):
            with pytest.raises(pymysql.err.OperationalError, match=r"Access denied|account is locked"):
                pymysql.connect(user=user, **way)


def test_a_trigger_on_system_tables_keeps_no_account_open(copy: Copy) -> None:
    """No server makes one there; whoever made the archive can."""
    text = (
        "TYPE=TRIGGERS\ntriggers='CREATE DEFINER=`root`@`localhost` trigger keep before update on global_priv for each"
        " row set new.Priv = old.Priv'\nsql_modes=0\ndefiners='root@localhost'\nclient_cs_names='utf8mb3'\n"
        "connection_cl_names='utf8mb3_general_ci'\ndb_cl_names='utf8mb3_general_ci'\ncreated=0\n"
    )
    for name, content in (("global_priv.TRG", text), ("keep.TRN", "TYPE=TRIGGERNAME\ntrigger_table=global_priv\n")):
        (copy.data / "mysql" / name).write_text(content)
        os.chown(copy.data / "mysql" / name, copy.data.stat().st_uid, copy.data.stat().st_gid)
    result = started(copy)
    assert {"trigger mysql/global_priv.TRG removed", "trigger mysql/keep.TRN removed"} <= {
        one["what"] for one in result["neutralised"]
    }
    with pytest.raises(pymysql.err.OperationalError, match=r"Access denied|account is locked"):
        pymysql.connect(host="127.0.0.1", port=result["port"], user="app")


def test_a_start_is_refused_where_an_account_stays_open(copy: Copy, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever it is in the archive that undoes the locking."""
    monkeypatch.setattr(account, "_locked", lambda **_options: [])
    result = copy.start()
    assert result["failed"]
    assert "Accounts of the copy stay open" in result["msg"]
    assert copy.left() == []


def test_settings_count_unless_they_undo_the_isolation(copy: Copy) -> None:
    client = started(copy, settings={"sort-buffer-size": "4M", "max_connections": 20})["client_file"]
    assert ask(client, "select @@sort_buffer_size, @@max_connections") == "4194304\t20"
    for name in ("plugin-dir", "skip-grant-tables", "event_scheduler", "bind-address", "secure_file_priv", "init-file"):
        refused = copy.start(settings={name: "x"})
        assert refused["failed"]
        assert refused["msg"].startswith(f"settings: {name} cannot be set (")


def test_restart_keeps_what_was_written(copy: Copy) -> None:
    client = started(copy)["client_file"]
    ask(client, f"insert into {ORDERS} (item) values ('mine')")
    first = Path(client).read_text()
    again = copy._call("restarted", check=False)
    assert again["changed"], again
    assert Path(client).read_text() != first
    assert ask(client, f"select count(*) from {ORDERS} where item = 'mine'") == "1"


def test_nothing_is_done_in_check_mode(copy: Copy) -> None:
    before = sorted(path.name for path in copy.data.iterdir())
    result = copy.start(check=True)
    assert result["changed"]
    assert result["neutralised"][0]["what"].startswith("files outside of the session closed")
    assert sorted(path.name for path in copy.data.iterdir()) == before


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda data: (data / "ibdata1").unlink(), "has no file ibdata1"),
        (lambda data: shutil.rmtree(data / "mysql"), "has no directory mysql"),
        (lambda data: (data / "ibdata1").write_bytes(b""), "ibdata1 of .* is empty or cut off"),
        (lambda data: (data / "ibdata3").write_bytes(b"x"), "it has ibdata1, ibdata3"),
        (lambda data: patch(data / "ibdata1", 54, bytes([0, 0, 0, 0x1F])), "has pages of .* bytes"),
        (lambda data: patch(data / "ib_logfile0", 0, b"\xd0"), "is encrypted .its redo log says so"),
        (lambda data: patch(data / "ib_logfile0", 16, b"MariaDB 99.9.9\0"), "MariaDB 99.9 are not installed"),
        (lambda data: patch(data / "ib_logfile0", 16, b"MySQL 8.0.36\0\0"), "MySQL 8.0 are not installed"),
    ],
)
def test_what_cannot_be_started(copy: Copy, spoil: Callable[[Path], object], said: str) -> None:
    spoil(copy.data)
    result = copy.start()
    assert result["failed"]
    assert re.search(said, result["msg"]), result["msg"]
    assert copy.left() == []


def test_a_start_that_fails_is_told_in_the_servers_words(copy: Copy) -> None:
    patch(copy.data / "ibdata1", 16384 * 5, bytes(16384 * 3))
    patch(copy.data / "ib_logfile0", 4096, bytes(8192))
    result = copy.start()
    assert result["failed"]
    assert re.match(r"The server of MariaDB 10\.11\.\d+ did not start: .", result["msg"]), result["msg"]
    assert result["log_tail"]
    assert copy.left() == []


def patch(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def test_the_buffer_pool_fits_into_the_sessions_memory(copy: Copy) -> None:
    with claiming(str(copy.directory)) as session:
        session.update(memory_max=512 << 20)
    assert ask(started(copy)["client_file"], "select @@innodb_buffer_pool_size >> 20") == "256"
