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

    @classmethod
    def of(cls, bindir: str, directory: Path, settings: dict[str, str]) -> Unpacked:
        above = Path(bindir).parent
        places = {"plugin_dir": str(above / "lib/mysql/plugin"), "lc_messages_dir": str(above / "share/mysql")}
        server = cls(directory=directory, settings={**places, **settings})
        server.bindir = bindir
        return server

    @property
    def program(self) -> str:
        return f"{self.bindir}/mariadbd"


@pytest.fixture(scope="module", name="production")
def _production(shared_place: Path, bindir: str) -> Iterator[MariaDb]:
    outside = shared_place / "outside"
    outside.mkdir()
    own(outside)
    port = free_port()
    settings = {
        "skip_networking": "OFF",
        "bind_address": "127.0.0.1",
        "port": str(port),
        "plugin_maturity": "unknown",
    }
    server = Unpacked.of(bindir, shared_place / "production", settings)
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


def test_encrypted_data_are_opened_with_their_keys(
    bindir: str, copy_of: Callable[..., Copy], shared_place: Path, place: Path
) -> None:
    keys, secret = shared_place / "keys.txt", os.urandom(32).hex()
    keys.write_text(f"# of production\n1;{secret}\n")
    settings = {
        "plugin_load_add": "file_key_management",
        "file_key_management_filename": str(keys),
        "file_key_management_encryption_algorithm": "AES_CTR",
        **dict.fromkeys(("innodb_encrypt_tables", "innodb_encrypt_log", "encrypt_binlog"), "ON"),
        **dict.fromkeys(("aria_encrypt_tables", "encrypt_tmp_files"), "ON"),
    }
    with Unpacked.of(bindir, shared_place / "encrypted", settings) as server:
        server.populate(rows=200)
        acknowledged = server.killed_while_writing()
        copy = copy_of(server, main=mysql_ephemeral.main)
    (copy.tree / "etc" / "mysql").mkdir(parents=True)
    (copy.tree / "etc/mysql/my.cnf").write_text("[mariadb]\nfile_key_management_encryption_algorithm=aes_ctr\n")
    options: dict[str, Any] = {"bindir": bindir, "configuration_directory": "etc/mysql"}
    refused = copy.start(**options)
    assert refused["failed"]
    assert "encryption_key_file" in refused["msg"]
    for wrong, said in (("1;zz\n", "is no list of keys"), (None, "cannot be read")):
        other = place / "other"
        other.unlink(missing_ok=True)
        if wrong:
            other.write_text(wrong)
        assert said in copy.start(encryption_key_file=str(other), **options)["msg"]
    keys.chmod(0o600)
    result = copy.start(encryption_key_file=str(keys), **options)
    assert not result.get("failed"), "\n".join([result["msg"], *result.get("log_tail", [])])
    known = ask(result["client_file"], f"select id from `{DATABASE}`.acknowledged")
    assert acknowledged <= set(map(int, known.split()))
    assert result["data"]["unreadable_tables"] == []
    assert ask(result["client_file"], f"select count(*) from `{DATABASE}`.aria") == "500"
    told = repr(result) + copy.log() + (copy.directory / "session.json").read_text()
    assert secret not in told
    copy.stop()
    assert copy.left() == []
