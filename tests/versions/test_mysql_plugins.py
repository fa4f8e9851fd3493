# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tables of MariaDB that call other servers or read other files, where the libraries for that are installed.

Debian has them in packages that bring a service, so programs and libraries are unpacked, not installed.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.phpborg.instant_recovery.plugins.modules import mysql_ephemeral

from tests.integration.conftest import copies, copy_of
from tests.support.copies import Copy
from tests.support.host import free_port
from tests.support.mariadb import DATABASE, MariaDb, ask, file_digests, own
from tests.support.playbook import CHECKOUT
from tests.support.server_versions import UnobtainableError
from tests.support.unpacked import unpacked

__all__ = ["copies", "copy_of"]

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="runs servers as another user: needs root")

PACKAGES = ["mariadb-server-core", "mariadb-server", "mariadb-client-core", "mariadb-client"]
PLUGINS = ["mariadb-plugin-connect", "mariadb-plugin-spider"]
LIBRARIES = ("ha_federatedx", "ha_connect", "ha_spider", "server_audit", "handlersocket")
TABLES = ("remote", "file", "sharded")


@pytest.fixture(scope="module", name="bindir")
def _bindir(shared_place: Path) -> str:
    try:
        cache = CHECKOUT / ".cache" / "debian"
        return unpacked("bookworm", [*PACKAGES, *PLUGINS], cache=cache, directory=shared_place)
    except UnobtainableError as error:
        pytest.skip(str(error))


class Unpacked(MariaDb):
    """A server whose programs are unpacked, with all of its libraries."""

    bindir: str

    @property
    def program(self) -> str:
        return f"{self.bindir}/mariadbd"


@pytest.fixture(scope="module", name="production")
def _production(shared_place: Path, bindir: str) -> Iterator[MariaDb]:
    above = Path(bindir).parent
    outside = shared_place / "outside"
    outside.mkdir()
    own(outside)
    port = free_port()
    settings = {
        "skip_networking": "OFF",
        "bind_address": "127.0.0.1",
        "port": str(port),
        "plugin_dir": str(above / "lib/mysql/plugin"),
        "lc_messages_dir": str(above / "share/mysql"),
        "plugin_maturity": "unknown",
    }
    server = Unpacked(directory=shared_place / "production", settings=settings)
    server.bindir = bindir
    with server:
        server.populate(rows=50)
        server.sql("; ".join(f"install soname '{name}'" for name in LIBRARIES if name != "ha_spider"))
        server.sql("install plugin spider soname 'ha_spider'")
        server.sql("create user x@127.0.0.1 identified by 'y'; grant all on *.* to x@127.0.0.1")
        server.sql(
            "create database plain; create table plain.target (id int primary key);"
            "insert into plain.target values (4711);"
            f"create table remote (id int primary key) engine=federated"
            f" connection='mysql://x:y@127.0.0.1:{port}/plain/target';"
            f"create table file (x varchar(20) not null) engine=connect table_type=csv file_name='{outside}/rows.csv';"
            f"insert into file values ('production');"
            "create table sharded (id int primary key) engine=spider"
            f' comment=\'host "127.0.0.1", port "{port}", user "x", password "y", database "plain", table "target"\'',
            database=DATABASE,
        )
        server.sql("set global spider_same_server_link = on")
        assert server.sql("select id from remote; select x from file; select id from sharded", database=DATABASE) == (
            "4711\nproduction\n4711"
        )
        yield server


def test_neither_a_server_nor_a_file_of_production_is_reached(
    production: MariaDb, bindir: str, copy_of: Callable[..., Copy], shared_place: Path
) -> None:
    with production.frozen():
        copy = copy_of(production, main=mysql_ephemeral.main)
    outside = file_digests(shared_place / "outside")
    connections = "show global status like 'Connections'"
    before = int(production.sql(connections).split()[1])
    result: dict[str, Any] = copy.start(bindir=bindir)
    assert not result.get("failed"), "\n".join([result["msg"], *result.get("log_tail", [])])
    client = result["client_file"]
    assert {one["table"] for one in result["data"]["unreadable_tables"]} == {f"{DATABASE}.{name}" for name in TABLES}
    assert {*LIBRARIES} <= {name.removesuffix(".so") for name in result["data"]["libraries_not_loaded"]}
    for name in TABLES:
        assert "Unknown storage engine" in ask(client, f"select * from `{DATABASE}`.{name}", check=False)
    for name in LIBRARIES:
        assert "Can't open shared library" in ask(client, f"install soname '{name}'", check=False)
    assert ask(client, f"select count(*) from `{DATABASE}`.orders") == "50"
    copy.stop()
    assert file_digests(shared_place / "outside") == outside
    assert int(production.sql(connections).split()[1]) == before + 1  # this one
