# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""MySQL 9.7, and MariaDB 11.8 on data of 10.11: killed servers, served from copies by programs that are unpacked."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import pymysql
import pytest
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._session.metrics import measure
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._session.session import Session
from ansible_collections.phpborg.instant_recovery.plugins.modules import mysql_ephemeral

from tests.integration.conftest import copies, copy_of
from tests.support.copies import Copy
from tests.support.mariadb import DATABASE, MariaDb, ask, own
from tests.support.playbook import CHECKOUT
from tests.support.server_versions import UnobtainableError, oldest_mysql
from tests.support.unpacked import unpacked

__all__ = ["copies", "copy_of"]

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="runs servers as another user: needs root")

SUITES = {
    "sid": ["mysql-server-core", "mysql-client-core"],
    "bullseye": ["mariadb-server-core-10.5", "mariadb-client-core-10.5"],
    "trixie": ["mariadb-server-core", "mariadb-client-core"],
}
ORDERS = f"`{DATABASE}`.orders"


@pytest.fixture(scope="module", name="programs_of")
def _programs_of(shared_place: Path) -> Callable[[str], str]:
    @cache
    def programs(suite: str) -> str:
        try:
            return unpacked(suite, SUITES[suite], cache=CHECKOUT / ".cache" / "debian", directory=shared_place)
        except UnobtainableError as error:
            pytest.skip(str(error))

    return programs


class MySql(MariaDb):
    """A server of MySQL whose programs are unpacked."""

    bindir: str

    def create(self) -> None:
        for path in (self.directory, self.run):
            path.mkdir(mode=0o755, parents=True, exist_ok=True)
            own(path)
        self._run("--no-defaults", "--initialize-insecure", f"--datadir={self.data}", *self._installation()).wait(120)
        self.start()

    def start(self) -> None:
        options = ["--no-defaults", f"--datadir={self.data}", f"--socket={self.socket}", "--skip-networking"]
        options += [
            f"--pid-file={self.run}/pid",
            f"--log-error={self.run}/log",
            "--loose-mysqlx=0",
            "--secure-file-priv=",
            *(f"--{name}={value}" for name, value in self.settings.items()),
        ]
        self.process = self._run(*options, self._capacity(), *self._installation())
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            with suppress(pymysql.err.OperationalError):
                self.connect().close()
                return
            time.sleep(0.1)
        raise RuntimeError((self.run / "log").read_text()[-3000:])

    def _capacity(self) -> str:
        return "--innodb-redo-log-capacity=16M"

    def _installation(self) -> list[str]:
        above = Path(self.bindir).parent
        return [f"--basedir={above}", f"--lc-messages-dir={above}/share/mysql"]

    def _run(self, *arguments: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen([f"{self.bindir}/mysqld", *arguments], user="daemon", stderr=subprocess.DEVNULL)


class MariaDb105(MariaDb):
    """The oldest series of MariaDB that is tried; its redo log has another format than from 10.8 on."""

    bindir: str

    def create(self) -> None:
        for path in (self.directory, self.run, self.data / "mysql"):
            path.mkdir(mode=0o755, parents=True, exist_ok=True)
        own(self.directory, self.run, self.data, self.data / "mysql")
        share = Path(self.bindir).parent / "share" / "mysql"
        self.settings = {**self.settings, "lc_messages_dir": str(share)}
        scripts = ("mysql_system_tables", "mysql_performance_tables", "mysql_system_tables_data")
        text = "use mysql;\n" + "".join((share / f"{name}.sql").read_text() for name in scripts)
        argv = [self.program, "--no-defaults", "--bootstrap", f"--datadir={self.data}", f"--lc-messages-dir={share}"]
        argv += ["--innodb-log-file-size=8M", "--log-warnings=0"]
        subprocess.run(argv, input=text, text=True, check=True, user="daemon", capture_output=True, timeout=120)
        self.start()

    @property
    def program(self) -> str:
        return f"{self.bindir}/mariadbd"


class MySql56(MySql):
    """The oldest server of all: npm has it, with an empty data directory and without clients."""

    def create(self) -> None:
        for path in (self.directory, self.run):
            path.mkdir(mode=0o755, parents=True, exist_ok=True)
        subprocess.run(["cp", "-r", str(Path(self.bindir).parent / "data" / "mysql"), str(self.data)], check=True)
        own(self.directory, self.run, *(self.data, *self.data.rglob("*")))
        self.start()

    def _capacity(self) -> str:
        return "--innodb-log-file-size=8M"

    def _installation(self) -> list[str]:
        return [f"--lc-messages-dir={Path(self.bindir).parent}/share"]


@pytest.fixture(scope="module", name="mysql")
def _mysql(shared_place: Path, programs_of: Callable[[str], str]) -> Iterator[MySql]:
    server = MySql(directory=shared_place / "mysql")
    server.bindir = programs_of("sid")
    with server, server.connect() as connection, connection.cursor() as cursor:
        cursor.execute(f"create database `{DATABASE}`")
        cursor.execute(f"create table {ORDERS} (id int auto_increment primary key, item text)")
        cursor.execute("set persist max_connections = 77")
        yield server


def started(copy: Copy, **options: Any) -> dict[str, Any]:
    result = copy.start(**options)
    assert not result.get("failed"), "\n".join([result["msg"], *result.get("log_tail", [])])
    return result


def test_a_killed_mysql(mysql: MySql, copy_of: Callable[..., Copy]) -> None:
    with mysql.connect(DATABASE) as connection, connection.cursor() as cursor:
        for _number in range(300):
            cursor.execute(f"insert into {ORDERS} (item) values (repeat(uuid(), 50))")
        mysql.kill()
    copy = copy_of(mysql, main=mysql_ephemeral.main)
    result = started(copy, bindir=mysql.bindir)
    assert re.fullmatch(r"9\.7\.\d+", result["version"])
    client = result["client_file"]
    assert ask(client, f"select count(*) from {ORDERS}; select @@max_connections") == "300\n151"
    told = [one["what"] for one in result["neutralised"]]
    assert "auto.cnf removed" in told
    assert [what for what in told if "persisted_globals_load=OFF" in what]
    assert ask(client, "select @@event_scheduler, @@mysqlx_port is null", check=False)
    assert copy.stop()["changed"]
    assert copy.left() == []
    mysql.start()


def test_read_only_mysql(mysql: MySql, copy_of: Callable[..., Copy]) -> None:
    mysql.stop()
    client = started(copy_of(mysql, main=mysql_ephemeral.main), bindir=mysql.bindir, read_only=True)["client_file"]
    assert int(ask(client, f"select count(*) from {ORDERS}")) == 300
    for statement in (f"delete from {ORDERS}", "set global super_read_only = 0"):
        assert "ERROR" in ask(client, statement, check=False)
    mysql.start()


def test_point_in_time_of_mysql(
    shared_place: Path, programs_of: Callable[[str], str], copy_of: Callable[..., Copy]
) -> None:
    """Archived binary logs lead on from where the copy ends, to a transaction, a position, a second and their end."""
    server = MySql(directory=shared_place / "later", settings={"gtid-mode": "ON", "enforce-gtid-consistency": "ON"})
    server.bindir, logs = programs_of("sid"), shared_place / "logs"
    with server:
        server.sql("create database shop; create table shop.story (id int primary key)")
        server.stop()
        copies = [copy_of(server, main=mysql_ephemeral.main) for _target in range(4)]
        server.start()
        add(server, 1, 2)
        server.sql("flush binary logs")
        add(server, 3)
        file, position, *_rest = server.sql("show binary log status").split("\t")
        source, _colon, numbers = server.sql("select @@global.gtid_executed").partition(":")
        second = server.sql("select sleep(1.1); select now()").splitlines()[-1]
        server.sql("do sleep(1.1)")
        add(server, 4)
        server.stop()
        shutil.copytree(server.data, logs, ignore=lambda _at, names: [one for one in names if "binlog." not in one])
    targets = {
        "recovery_target_position": f"{file}:{position}",
        "recovery_target_gtid": f"{source}:{numbers.rpartition('-')[2]}",
        "recovery_target_time": second,
        "recovery_target": "end",
    }
    for copy, (name, value) in zip(copies, targets.items(), strict=True):
        result = started(copy, bindir=server.bindir, log_source=str(logs), **{name: value})
        known = "1\n2\n3\n4" if value == "end" else "1\n2\n3"
        assert ask(result["client_file"], "select id from shop.story") == known, name
        assert copy.stop()["changed"]


def add(server: MySql, *numbers: int) -> None:
    for number in numbers:
        server.sql(f"insert into shop.story values ({number})")


def test_data_of_a_killed_mariadb_are_opened_by_a_newer_one_with_a_warning(
    shared_place: Path, programs_of: Callable[[str], str], copy_of: Callable[..., Copy]
) -> None:
    bindir = programs_of("trixie")
    with MariaDb(directory=shared_place / "older") as server:
        server.populate(rows=200)
        acknowledged = server.killed_while_writing()
        result = started(copy_of(server, main=mysql_ephemeral.main), bindir=bindir)
    assert result["version"].startswith("11.8.")
    known = ask(result["client_file"], f"select id from `{DATABASE}`.acknowledged")
    assert acknowledged <= set(map(int, known.split()))
    assert [one for one in map(str, result["warnings"]) if "is what opens them here" in one]


def test_a_killed_mariadb_of_the_oldest_series(
    shared_place: Path, programs_of: Callable[[str], str], copy_of: Callable[..., Copy]
) -> None:
    server = MariaDb105(directory=shared_place / "oldest")
    server.bindir = programs_of("bullseye")
    with server:
        server.populate(rows=200)
        acknowledged = server.killed_while_writing(halfway=True)
        copy = copy_of(server, main=mysql_ephemeral.main)
        refused = copy.start()
        assert refused["failed"]
        assert "10.5" in refused["msg"]
        result = started(copy, bindir=server.bindir, read_only=True)
    assert result["version"].startswith("10.5.")
    client = result["client_file"]
    known = ask(client, f"select id from `{DATABASE}`.acknowledged")
    assert acknowledged <= set(map(int, known.split()))
    assert result["data"]["prepared_transactions"] == 0
    for statement in (f"delete from {ORDERS}", "set global read_only = 0"):
        assert "ERROR" in ask(client, statement, check=False)
    assert copy.stop()["changed"]
    assert copy.left() == []


def test_a_killed_mysql_of_the_oldest_series(shared_place: Path, copy_of: Callable[..., Copy]) -> None:
    server = MySql56(directory=shared_place / "mysql56")
    try:
        root = oldest_mysql(cache=CHECKOUT / ".cache" / "mysql", directory=shared_place / "npm")
    except UnobtainableError as error:
        pytest.skip(str(error))
    server.bindir = str(root / "bin")
    with server:
        with server.connect() as connection, connection.cursor() as cursor:
            cursor.execute(f"create database `{DATABASE}`")
            cursor.execute(f"create table {ORDERS} (id int auto_increment primary key, item text)")
            for _number in range(300):
                cursor.execute(f"insert into {ORDERS} (item) values (repeat(uuid(), 50))")
            server.kill()
        copy = copy_of(server, main=mysql_ephemeral.main)
        result = started(copy, bindir=server.bindir)
    assert result["version"].startswith("5.6.")
    client = result["client_file"]
    assert ask(client, f"select count(*) from {ORDERS}") == "300"
    assert ask(client, "select current_user()") == "instant_recovery@localhost"
    counted = measure(Session.open(str(copy.directory)))
    assert counted["clients"] == 0
    assert copy.stop()["changed"]
    assert copy.left() == []
