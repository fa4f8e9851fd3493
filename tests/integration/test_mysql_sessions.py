# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Sessions of MariaDB from encrypted archives, through the playbooks: Debian's layout, killed while it commits."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from instant_recovery._session import Session
from tests.integration.conftest import needs_root
from tests.support.host import remains
from tests.support.mariadb import DATABASE, MariaDb, ask, checksums
from tests.support.playbook import Playbooks
from tests.support.repository import Repository

pytestmark = needs_root

CONFIGURATION = "[mysqld]\nsql_mode = ANSI_QUOTES\n!includedir /etc/mysql/mariadb.conf.d/\n"


@dataclass(frozen=True)
class Archived:
    """An archive `killed`, and another, `logs`, with the binary logs of what came afterwards.

    acknowledged are ids of commits, tables what the source held after its own recovery, later at the end of these logs.
    """

    repository: Repository
    acknowledged: frozenset[int]
    tables: dict[str, str]
    later: dict[str, str]


@pytest.fixture(scope="module", name="archived")
def _archived(shared_place: Path) -> Iterator[Archived]:
    top = shared_place / "mariadb-host"
    repository = Repository(directory=shared_place / "maria-repository", base=shared_place / "maria-borg")
    repository.create()
    for directory in (top / "var" / "lib", top / "etc" / "mysql" / "mariadb.conf.d"):
        directory.mkdir(parents=True)
    (top / "etc" / "mysql" / "my.cnf").write_text(CONFIGURATION)
    (top / "etc" / "mysql" / "mariadb.conf.d" / "50-server.cnf").write_text("[mariadbd]\ngroup_concat_max_len = 4321\n")
    with MariaDb(directory=shared_place / "maria-run", data=top / "var" / "lib" / "mysql") as server:
        server.populate()
        acknowledged = server.killed_while_writing()
        repository.archive("killed", "var", "etc", cwd=top)
        server.start()
        tables = server.checksums()
        server.sql(f"insert into `{DATABASE}`.orders (item) values ('later'); delete from `{DATABASE}`.old; flush logs")
        kept = top / "srv" / "binlogs"
        kept.mkdir(parents=True)
        for path in server.data.glob("mysql-bin.0*"):
            shutil.copy(path, kept)
        repository.archive("logs", "srv", cwd=top)
        yield Archived(repository, frozenset(acknowledged), tables, server.checksums())


@pytest.fixture(name="plays")
def _plays(place: Path, copies: Path, archived: Archived) -> Iterator[Playbooks]:
    root = copies / "sessions"
    environment = archived.repository.environment
    yield Playbooks(directory=place / "ansible", session_root=root, environment=environment, extra_vars={"readers": 1})
    assert remains(root) == []


def test_a_killed_server_is_served_from_its_archive(plays: Playbooks, archived: Archived) -> None:
    run = plays.start(archive=f"{archived.repository.location}::killed")
    assert run.returncode == 0, run.output
    record = run.session
    assert (record["engine"], record["status"], record["port"] >= 13306) == ("mariadb", "active", True)
    assert record["engine_version"].startswith("10.11.")
    assert record["recovered_to"]["position"].startswith("the end of mysql-bin.0")
    assert f"mariadb --defaults-file={record['client_file']}" in run.output
    client = record["client_file"]
    assert ask(client, "select @@sql_mode, @@group_concat_max_len") == "ANSI_QUOTES\t4321"
    assert checksums(lambda statement: ask(client, statement)) == archived.tables
    assert archived.acknowledged
    known = set(map(int, ask(client, f"select id from `{DATABASE}`.acknowledged").split()))
    assert archived.acknowledged <= known
    with Session.from_record(record).connect(DATABASE) as connection, connection.cursor() as cursor:
        cursor.execute("select count(*) from orders")
        assert cursor.fetchone() == (2000,)
    reset = plays.run("reset", session_id=record["id"])
    assert reset.returncode == 0, reset.output
    assert checksums(lambda statement: ask(client, statement)) == archived.tables
    assert plays.stop(record["id"]).returncode == 0
    assert not os.path.exists(client)


def test_logs_of_another_archive_lead_on(plays: Playbooks, archived: Archived) -> None:
    repository = archived.repository.location
    run = plays.start(archive=f"{repository}::killed", log_source=f"{repository}::logs", recovery_target="end")
    assert run.returncode == 0, run.output
    client = run.session["client_file"]
    assert checksums(lambda statement: ask(client, statement)) == archived.later
    assert run.session["recovered_to"]["reason"] == "end of the archived logs"
    plays.end(run.session["id"])
