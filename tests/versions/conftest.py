# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The same production for each major version of PostgreSQL, and archives of every kind of copy of it."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import psycopg2
import pytest
from ansible_collections.phpborg.instant_recovery.plugins.modules import borg_archive_info

from tests.integration.conftest import Sample, _open_fuse, place, shared_place
from tests.support.cluster import Cluster, Fingerprint
from tests.support.host import remains
from tests.support.modules import call
from tests.support.playbook import CHECKOUT
from tests.support.repository import Repository
from tests.support.server_versions import UnobtainableError, programs
from tests.support.stack import Stack

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

__all__ = ["_open_fuse", "place", "shared_place"]

MAJORS = range(12, 19)
EXCLUSIVE_UNTIL = 14  # the last with backups whose label lies in production's own data directory
# What a session has to undo in the catalogs.
TIES = """
    create subscription s connection 'dbname=nowhere' publication p with (connect = false, slot_name = 'of_production');
    alter database template1 set dynamic_library_path = '/nowhere'
"""


@dataclass(frozen=True)
class Programs:
    """The programs of one major version."""

    major: int
    bindir: str


@dataclass
class History:
    """What happened in one production, archived on the way; `wal` is its own archive of WAL.

    `samples` has by the name of each archive what a session of it must show: with the tables as they were when the copy
    was complete. `times` are those after the steps 1 to 3 of the table ledger, all after the backups; the third comes
    with a table in a tablespace at `space`, which is removed again.
    """

    cluster: Cluster
    major: int
    wal: Path
    space: Path
    repository: Repository
    samples: dict[str, Sample] = field(default_factory=dict)
    times: list[str] = field(default_factory=list)

    def archive(self, name: str, data: Path, tables: Fingerprint | None = None) -> None:
        """Put a copy into the repository."""
        self.samples[name] = Sample(
            repository=self.repository,
            archive=name,
            archive_id=self.repository.archive(name, data),
            data_directory=str(data).lstrip("/"),
            major=self.major,
            superuser=self.cluster.superuser,
            bindir=self.cluster.bindir,
            tables=tables or {},
        )

    def lose_data_from_wal(self) -> None:
        """For a while the WAL has not everything that happens."""
        configuration = self.cluster.data / "postgresql.auto.conf"
        before = configuration.read_text()
        configuration.write_text(f"{before}wal_level = minimal\narchive_mode = off\nmax_wal_senders = 0\n")
        self.cluster.start()
        self.cluster.connection.sql("create table lost as select generate_series(1, 1000) i")
        self.cluster.stop()
        configuration.write_text(before)
        self.cluster.start()
        self.cluster.connection.sql("insert into lost values (0)")
        self.archive_wal()

    def back_up(self, name: str, *, exclusive: bool) -> None:
        """Copy the files while the server runs and writes; without the WAL of the meantime it is NAME, cut off."""
        data, copy = self.cluster.data, self.cluster.directory / name
        database = f"host='{self.cluster.run}' port=5432 user='{self.cluster.superuser}' dbname=postgres"
        connection = psycopg2.connect(database)
        connection.autocommit = True
        begin, end = low_level_functions(self.major, exclusive=exclusive)
        with connection.cursor() as cursor:
            cursor.execute(begin)
            subprocess.run(["cp", "-a", str(data), str(copy)], check=True)
            (copy / "postmaster.pid").unlink()
            self.cluster.sql('update "Order Lines" set price = price + 1 where id % 3 = 0; checkpoint')
            self.cluster.sql('update "Order Lines" set price = price * 2 where id % 2 = 0')
            cursor.execute(end)
            label = None if exclusive else (cursor.fetchone() or ("",))[0]
        connection.close()
        if label is not None:
            (copy / "backup_label").write_text(label)
        tables = self.cluster.fingerprint()
        self.archive(f"{name}, cut off", copy, tables)
        shutil.copytree(data / "pg_wal", copy / "pg_wal", dirs_exist_ok=True)
        self.archive(name, copy, tables)

    def keep_a_ledger(self) -> None:
        """Three steps, and the WAL archived that has them."""
        ask = self.cluster.connection.sql
        ask("create table ledger (step int)")
        for step in (1, 2, 3):
            if step == 3:
                ask(f"create tablespace later location '{self.space}'")
                ask("create table there tablespace later as select generate_series(1, 1000) i")
            ask(f"insert into ledger values ({step})")
            self.times.append(ask("select pg_sleep(0.05), clock_timestamp(), pg_sleep(0.05)").split("|")[1])
        ask("drop table there")
        ask("drop tablespace later")
        self.archive_wal()

    def archive_wal(self) -> None:
        """Wait until all of the WAL is archived."""
        ask = self.cluster.connection.sql
        last = ask("select pg_walfile_name(pg_current_wal_lsn())")
        ask("select pg_switch_wal()")
        for _attempt in range(600):
            if ask("select last_archived_wal, pg_sleep(0.05) from pg_stat_archiver").split("|")[0][:24] >= last:
                return
        raise AssertionError(f"{last} was not archived")


def low_level_functions(major: int, *, exclusive: bool) -> tuple[str, str]:
    """What begins and ends a backup by hand; the end returns the label unless it lies in the data directory."""
    if exclusive:
        return "select pg_start_backup('by hand', true)", "select pg_stop_backup()"
    if major >= 15:
        return "select pg_backup_start('by hand', true)", "select labelfile from pg_backup_stop()"
    return "select pg_start_backup('by hand', true, false)", "select labelfile from pg_stop_backup(false)"


@pytest.fixture(scope="session", params=MAJORS)
def major(request: pytest.FixtureRequest) -> int:
    found: int = request.param
    return found


@pytest.fixture(scope="session")
def server(major: int, shared_place: Path) -> Programs:
    """The server of a version; a test is skipped where it cannot be had."""
    return obtain(major, shared_place)


@pytest.fixture(scope="session")
def older_server(shared_place: Path) -> Programs:
    """One that no session can be started with."""
    return obtain(MAJORS[0] - 1, shared_place)


def obtain(major: int, place: Path) -> Programs:
    try:
        bindir = programs(major, cache=CHECKOUT / ".cache" / "postgresql", directory=place / "programs")
    except UnobtainableError as error:
        pytest.skip(f"PostgreSQL {major}: {error}")
    return Programs(major, bindir)


@pytest.fixture(scope="session")
def history(server: Programs, shared_place: Path) -> Iterator[History]:
    """Everything that happened, once for each version."""
    directory = shared_place / f"history {server.major}"
    wal, space = directory / "wal archive", directory / "space"
    for path in (wal, space):
        path.mkdir(parents=True)
        if os.geteuid() == 0:
            shutil.chown(path, "postgres")
    settings = {
        "archive_mode": "on",
        "archive_command": f'cp %p "{wal}/%f"',
        "autovacuum": "off",
        "max_connections": "210",
        "max_worker_processes": "20",
        "TimeZone": "Asia/Kathmandu",
    }
    repository = Repository(directory=directory / "repository", base=directory / "borg")
    repository.create()
    cluster = Cluster(directory=directory / "production", bindir=server.bindir, settings=settings)
    try:
        cluster.create()
        yield tell(History(cluster, server.major, wal, space, repository))
    finally:
        cluster.close()


def tell(history: History) -> History:
    cluster = history.cluster
    cluster.populate()
    cluster.connection.sql(TIES)
    history.back_up("backup", exclusive=False)
    if history.major <= EXCLUSIVE_UNTIL:
        history.back_up("exclusive backup", exclusive=True)
    history.keep_a_ledger()
    cluster.crash()
    copy = cluster.directory / "crashed"
    subprocess.run(["cp", "-a", str(cluster.data), str(copy)], check=True)
    cluster.start()
    tables = cluster.fingerprint()
    history.archive("crashed", copy, tables)
    cluster.stop()
    history.archive("closed", cluster.data, tables)
    history.lose_data_from_wal()
    return history


@pytest.fixture
def recover(place: Path, history: History) -> Iterator[Callable[..., Stack]]:
    """Starts a session from an archive, with options of the module session and of pg_ephemeral, and leaves nothing."""
    made: list[Stack] = []

    def start(archive: str, session: dict[str, Any] | None = None, **options: Any) -> Stack:
        sample = history.samples[archive]
        os.environ["BORG_BASE_DIR"] = str(sample.repository.base)
        told = call(
            borg_archive_info.main,
            repository=sample.repository.location,
            archive=archive,
            passphrase=sample.repository.passphrase,
        )
        database = told["database"]
        assert (database["version"], database["data_directory"]) == (str(history.major), sample.data_directory), told
        root = place / f"sessions {len(made)}"
        stack = Stack(root, sample, options=session or {}, server={"bindir": sample.bindir, **options})
        made.append(stack)
        return stack.start()

    yield start
    for stack in made:
        stack.change("absent")
        assert remains(stack.root) == []
