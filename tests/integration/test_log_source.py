# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A point in time through the playbooks, with WAL from wherever it may be: host, the same archive, another one."""

from __future__ import annotations

import dataclasses
import shutil
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
from ansible_collections.phpborg.instant_recovery.plugins.modules import copy_plan_info

from tests.integration.conftest import needs_root
from tests.support.cluster import Cluster, Connection
from tests.support.modules import call
from tests.support.repository import Repository
from tests.support.stack import Stack, ended
from tests.support.user import ordinary_user

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.playbook import Playbooks, Run

WAL_ARCHIVE = "wal-2026-11-22T14:05:00"
LINK = "leads-to-this-host"


@dataclass(frozen=True)
class Backups:
    """`both` holds a base backup without WAL and the WAL archive; `base` the backup alone; WAL_ARCHIVE the WAL alone.

    LINK, in either repository, has a link of that name, which leads to the WAL archive on the host. `time` is when the
    ledger had two rows of three, `wal` the WAL archive on the host.
    """

    repository: Repository
    wal_repository: Repository
    wal: Path
    bindir: str
    time: str

    def of(self, name: str) -> str:
        return f"{self.repository.location}::{name}"


@pytest.fixture(scope="module")
def backups(shared_place: Path) -> Iterator[Backups]:
    place = shared_place / "w"
    wal = place / "wal archive"
    wal.mkdir(parents=True)
    for path in (place, wal):
        shutil.chown(path, "postgres")
    settings = {"archive_mode": "on", "archive_command": f'cp %p "{wal}/%f"'}
    repository = Repository(directory=shared_place / "w-repository", base=shared_place / "borg")
    other = Repository(directory=shared_place / "w-other", base=shared_place / "borg")
    for one in (repository, other):
        one.create()
    with Cluster(directory=place / "production", settings=settings) as cluster:
        ask = cluster.connection.sql
        ask("create table ledger (step int); insert into ledger values (1)")
        base = place / "base"
        argv = [f"{cluster.bindir}/pg_basebackup", "-h", str(cluster.run), "-p", "5432", "-U", cluster.superuser]
        argv = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups", *argv]
        argv += ["-D", str(base), "-X", "none", "-c", "fast", "--no-sync"]
        subprocess.run(argv, check=True, capture_output=True)
        ask("insert into ledger values (2)")
        time = ask("select pg_sleep(0.05), clock_timestamp(), pg_sleep(0.05)").split("|")[1]
        ask("insert into ledger values (3)")
        cluster.sql("select pg_switch_wal()", database="postgres")
        cluster.stop()
        repository.archive("both", base, wal)
        repository.archive("base", base)
        other.archive(WAL_ARCHIVE, wal)
        (place / LINK).symlink_to(wal)
        repository.archive(LINK, base, place / LINK)
        other.archive(LINK, place / LINK)
        yield Backups(repository, other, wal, cluster.bindir, time)


@pytest.fixture(name="root")
def _root(copies: Path) -> Iterator[Path]:
    with ended(copies / "sessions") as root:
        yield root


@pytest.fixture
def start(playbooks: Playbooks) -> Any:
    def start(archive: str, *options: str, **variables: Any) -> Run:
        return playbooks.start(*options, archive=archive, **variables)

    return start


def ledger(started: Run, backups: Backups) -> str:
    assert started.returncode == 0, started.output
    connection = Connection.of_session(started.session, bindir=backups.bindir)
    return connection.sql("select array_agg(step order by 1) from ledger")


def test_wal_of_the_archive_itself_is_found(playbooks: Playbooks, backups: Backups, start: Any, root: Path) -> None:
    started = start(backups.of("both"), recovery_target_time=backups.time)
    assert ledger(started, backups) == "{1,2}"
    reached = started.session["recovered_to"]
    assert reached["timeline"] == 2
    assert reached["reason"].startswith("stopping before commit of transaction")
    assert any(f"data as of {reached['time']}" in str(task.result.get("msg")) for task in started.tasks)
    playbooks.end(started.session["id"])
    # To its end, and named. What the play makes of archive:PATH is seen where it is refused, below.
    named = Stack.of(root, backups.repository, "both")
    wal = str(backups.wal).lstrip("/")
    named.shown["paths"] = [*named.shown["paths"], wal]
    named.start("layered")
    named.server["log_source"] = str(named.directory / "merged" / wal)
    named._serve()
    connection = Connection.of_session(named.info(), bindir=backups.bindir)
    assert connection.sql("select array_agg(step order by 1) from ledger") == "{1,2,3}"


def test_wal_of_another_archive_is_mounted_beside_it(playbooks: Playbooks, backups: Backups, start: Any) -> None:
    source = f"{backups.wal_repository.location}::{WAL_ARCHIVE}"
    started = start(backups.of("base"), log_source=source, recovery_target_time=backups.time)
    assert ledger(started, backups) == "{1,2}"
    assert started.session["borg_mount_point"].endswith("/archive")
    assert started.session["timings"].keys() >= {"borg_mount", "borg_mount_log_archive"}
    playbooks.end(started.session["id"])


def test_wal_at_a_path_of_another_archive(backups: Backups, root: Path) -> None:
    """What the play makes of REPOSITORY::NAME:PATH is seen where it is refused: see the tests after this one."""
    stack = Stack.of(root, backups.repository, "base").start("layered")
    wal = stack.mount_logs(backups.wal_repository, WAL_ARCHIVE, str(backups.wal).lstrip("/"))
    stack.server |= {"log_source": wal, "recovery_target_time": backups.time}
    stack._serve()
    connection = Connection.of_session(stack.info(), bindir=backups.bindir)
    assert connection.sql("select array_agg(step order by 1) from ledger") == "{1,2}"


def test_what_is_wrong_with_a_source_is_told_and_undone(backups: Backups, start: Any) -> None:
    """What the server's start has to say of it is in test_pg_point_in_time.py."""
    for variables, said in (
        ({"log_source": f"{backups.of('base')}"}, "holds no archived logs: name another archive"),
        ({"log_source": "archive:/no/where"}, "no/where"),
    ):
        failed = start(backups.of("base"), **variables)
        assert failed.returncode != 0
        assert said in failed.message, failed.message
        assert "nothing of it is left" in failed.message, failed.message


def test_no_link_of_an_archive_leads_to_wal_of_this_host(backups: Backups, start: Any, root: Path) -> None:
    """Its WAL would be replayed: what production has written since, for whoever looks into an old backup."""
    link = str(backups.wal.with_name(LINK))
    said = "is not in the archive: name a directory that it has."
    of_another = f"{backups.wal_repository.location}::{LINK}:{link}"
    refused = start(backups.of("base"), log_source=of_another)
    assert refused.returncode != 0, refused.output
    assert said in refused.message, refused.message
    refused = start(backups.of(LINK), "--check", log_source=f"archive:{link}")
    assert refused.returncode != 0, refused.output
    assert said in refused.message, refused.message

    # The other way round, by the modules.
    own = Stack.of(root, backups.repository, LINK)
    own.shown["paths"] = [*own.shown["paths"], link.lstrip("/")]
    own.start("layered")
    own.server["log_source"] = str(own.directory / "merged" / link.lstrip("/"))
    with pytest.raises(AssertionError, match=said):
        own._serve()
    found = own.found["database"]
    planned = call(
        copy_plan_info.main,
        engine="postgresql",
        archive=backups.of("base"),
        paths=own.found["paths"],
        data_directory=found["data_directory"],
        user="postgres",
        passphrase=backups.repository.passphrase,
        log_archive=f"{backups.wal_repository.location}::{LINK}",
        log_source=link.lstrip("/"),
    )
    assert said in planned["msg"], planned


@needs_root
def test_an_ordinary_user_with_wal_on_the_host(playbooks: Playbooks, backups: Backups, place: Path) -> None:
    with ordinary_user("ir-wal-test") as user:
        repository = backups.repository.copy(place / "mine", owner=user.pw_name)
        shutil.copytree(backups.wal, place / "wal")
        for path in (place / "wal").iterdir():
            shutil.chown(path, user.pw_name)
        mine = dataclasses.replace(
            playbooks, os_user=user.pw_name, session_root=None, environment={"BORG_PASSPHRASE": repository.passphrase}
        )
        started = mine.start(
            archive=f"{repository.location}::base",
            log_source=str(place / "wal"),
            recovery_target_time=backups.time,
        )
        assert started.returncode == 0, started.output
        connection = Connection.of_session(started.session, bindir=backups.bindir, os_user=user.pw_name)
        assert connection.sql("select count(*) from ledger") == "2"
        assert mine.stop(started.session["id"]).returncode == 0
