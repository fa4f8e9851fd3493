# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Kinds of copies that the other tests do not make: each shows its source as it was at the right moment."""

from __future__ import annotations

import os
import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.support.cluster import Cluster, Connection, Fingerprint, fingerprint
from tests.support.host import remains
from tests.support.repository import Repository
from tests.support.stack import Stack

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.support.copies import Copy
    from tests.support.playbook import Playbooks

OWNER = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"] if os.geteuid() == 0 else []


@pytest.fixture
def production(place: Path) -> Iterator[Cluster]:
    """A small loaded cluster that runs, with a tablespace and its WAL on other file systems, so to say."""
    space, wal = place / "fast disk", place / "wal disk"
    space.mkdir()
    for path in (place, space):
        shutil.chown(path, "postgres")
    with Cluster(directory=place / "production", initdb_options=[f"--waldir={wal}"]) as cluster:
        cluster.populate()
        cluster.sql(f"create tablespace fast location '{space}'")
        cluster.sql("alter table notes set tablespace fast")
        yield cluster


def beside(copy: Copy, *paths: Path) -> None:
    """What an archive of everything would hold, too."""
    for path in paths:
        there = copy.tree / str(path).lstrip("/")
        there.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run(["cp", "-a", str(path), str(there)], check=True)
    copy.own()


def tables(copy: Copy) -> Fingerprint:
    return fingerprint(copy.connection(user="instant_recovery"))


def test_a_low_level_backup_shows_the_moment_of_its_end(
    production: Cluster, place: Path, copy_of: Callable[..., Copy]
) -> None:
    backup = place / "backup"
    more = 'update "Order Lines" set price = price + 1 where id % 3 = 0; update notes set body = body || id;'
    script = rf"""
        select pg_backup_start('by hand', true) \g /dev/null
        \! cp -a '{production.data}' '{backup}'
        \! rm -r '{backup}/postmaster.pid' '{backup}/pg_wal' && mkdir '{backup}/pg_wal'
        \! cp -a '{place}/fast disk' '{place}/fast copy'
        {more}
        checkpoint;
        {more}
        select labelfile, spcmapfile from pg_backup_stop(false) \gset
        \o '{backup}/backup_label'
        \qecho :labelfile
        \o '{backup}/tablespace_map'
        \qecho :spcmapfile
        \o
        \! cp -a '{production.data}'/pg_wal/. '{backup}/pg_wal'
    """
    psql = [f"{production.bindir}/psql", "-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1"]
    where = ["-h", str(production.run), "-p", "5432", "-U", production.superuser, "-d", "shop data"]
    subprocess.run([*OWNER, *psql, *where], input=script, text=True, check=True, cwd="/", timeout=120)
    expected = production.fingerprint()
    production.sql("truncate notes")
    copy = copy_of(Cluster(directory=production.directory, data=backup))
    beside(copy, place / "fast copy")
    (copy.tree / str(place)[1:] / "fast copy").rename(copy.tree / str(place)[1:] / "fast disk")
    before = production.fingerprint()
    result = copy.start()
    assert "failed" not in result, result
    assert tables(copy) == expected
    assert "tablespace_map removed" in [entry["what"] for entry in result["neutralised"]]
    assert production.fingerprint() == before


@pytest.mark.parametrize(("mode", "state"), [("fast", "shut down in recovery"), ("immediate", "in archive recovery")])
def test_a_standbys_data_directory_shows_what_it_had_replayed(
    mode: str, state: str, production: Cluster, place: Path, copy_of: Callable[..., Copy]
) -> None:
    standby = Cluster(directory=place / "standby")
    standby.run.mkdir(parents=True)
    for path in (standby.directory, standby.run):
        shutil.chown(path, "postgres")
    where = ["-h", str(production.run), "-p", "5432", "-U", production.superuser]
    base = [f"{production.bindir}/pg_basebackup", *where, "-D", str(standby.data), "-R", "-c", "fast", "--no-sync"]
    mapping = f"--tablespace-mapping={place}/fast disk={place}/standby space"
    subprocess.run([*OWNER, *base, "-C", "-S", "for_standby", mapping], check=True, cwd="/", capture_output=True)
    with (standby.data / "postgresql.auto.conf").open("a") as file:
        file.write(f"unix_socket_directories = '{standby.run}'\nhot_standby = on\n")
    standby.start()
    try:
        production.sql('update "Order Lines" set price = price + 1; create table late as select 1 as one')
        position = production.sql("select pg_current_wal_lsn()")
        for _attempt in range(600):
            if standby.sql(f"select pg_last_wal_replay_lsn() >= '{position}', pg_sleep(0.05)")[0] == "t":
                break
        expected = standby.fingerprint()
        standby.stop(mode=mode)
        assert standby.control_state() == state
        production.sql("drop table late")
        slot = production.sql("select active, restart_lsn from pg_replication_slots")
        copy = copy_of(standby)
        beside(copy, place / "standby space")
        result = copy.start()
        assert "failed" not in result, result
        assert tables(copy) == expected
        assert any(name.endswith(".late") for name in expected)
        assert copy.sql("select pg_is_in_recovery(), (select count(*) from pg_replication_slots)") == "f|0"
        assert production.sql("select count(*) from pg_stat_replication") == "0"
        assert production.sql("select active, restart_lsn from pg_replication_slots") == slot
    finally:
        standby.close()


def test_relative_paths_of_a_cluster_that_lies_in_several_places(
    production: Cluster, place: Path, copies: Path
) -> None:
    """`cd … && borg create … data "fast disk" "wal disk"`: what links say and what the archive says differ."""
    production.stop(mode="immediate")
    repository = Repository(directory=place / "repository", base=place / "borg")
    repository.create()
    own = production.data.relative_to(place)
    repository.archive("relative", str(own), "fast disk", "wal disk", cwd=place)
    production.start()
    expected = production.fingerprint()
    production.sql("truncate notes")
    stack = Stack.of(copies / "sessions", repository, "relative").start()
    assert fingerprint(stack.connection()) == expected
    stack.change("absent")
    assert remains(stack.root) == []


def test_a_snapshot_of_several_file_systems_in_debians_layout_from_borg(
    production: Cluster, place: Path, playbooks: Playbooks
) -> None:
    """Relative to where the snapshots are mounted, under a name that asks for quoting everywhere."""
    production.sql("checkpoint")
    production.sql("update \"Order Lines\" set price = price + 1; insert into notes select -1, 'late'")
    production.stop(mode="immediate")
    root = place / "mnt"
    data = root / 'sn ap\'s, 1%/var/lib/postgresql/15/mäin "x" $(y)'
    data.parent.mkdir(parents=True)
    subprocess.run(["cp", "-a", str(production.data), str(data)], check=True)
    for path in (place / "fast disk", place / "wal disk"):
        there = root / f"sn ap's, 1%{path}"
        there.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run(["cp", "-a", str(path), str(there)], check=True)
    settings = root / "sn ap's, 1%/etc/postgresql/15" / data.name
    settings.mkdir(parents=True)
    (data / "postgresql.conf").unlink()
    (settings / "postgresql.conf").write_text("data_directory = '/live'\nTimeZone = 'Asia/Kathmandu'\nport = 5433\n")
    repository = Repository(directory=place / "repository", base=place / "borg")
    repository.create()
    repository.archive("odd", "sn ap's, 1%", cwd=root)
    production.start()
    expected = production.fingerprint()
    production.sql("truncate notes")
    before = production.fingerprint()

    started = playbooks.start(archive=f"{repository.location}::odd", examine=True)
    assert started.returncode == 0, started.output
    session = started.session
    connection = Connection.of_session(session, bindir=production.bindir)
    assert fingerprint(connection) == expected
    assert session["recovered_to"]["reason"] == "end of the WAL"
    zone = "select setting from pg_file_settings where name = 'TimeZone'"
    assert connection.sql(zone) == "Asia/Kathmandu"
    connection.sql("checkpoint")
    playbooks.end(session["id"])
    assert production.fingerprint() == before
