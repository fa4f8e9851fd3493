# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A server of a session beside a live production of the same user: what it cannot reach, whoever asks for it."""

from __future__ import annotations

import hashlib
import os
import re
import socket
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from ansible_collections.phpborg.instant_recovery.plugins.module_utils import _confinement

from tests.support.cluster import Cluster

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.support.copies import Copy

needs_landlock = pytest.mark.skipif(_confinement.landlock_version() == 0, reason="the kernel has no Landlock")


@pytest.fixture
def production(place: Path) -> Iterator[Cluster]:
    """A live server with a table, and its files at rest."""
    # With a higher wal_level it notes in the WAL now and then which transactions run.
    quiet = {"autovacuum": "off", "bgwriter_lru_maxpages": "0", "wal_level": "minimal", "max_wal_senders": "0"}
    with Cluster(directory=place / "production", settings=quiet) as cluster:
        cluster.sql("create table t as select generate_series(1, 1000) id; checkpoint", database="postgres")
        yield cluster


def state(directory: Path) -> dict[str, tuple[int, str]]:
    """Time of the last change and checksum of every file, but for the log, which notes each connection."""
    files = (path for path in directory.rglob("*") if path.is_file())
    return {str(path): (path.stat().st_mtime_ns, hashlib.sha256(path.read_bytes()).hexdigest()) for path in files}


def denied(copy: Copy, statement: str) -> bool:
    """Whether the statement fails, and for want of permission."""
    with pytest.raises(RuntimeError) as error:
        copy.sql(statement)
    return "ermission denied" in str(error.value) or "not permitted" in str(error.value)


def said_by(copy: Copy, program: str) -> str:
    """What a program says that the copy's server starts.

    It may fail, hence "|| true": COPY would drop what a failing program has said, and that is what is looked at.
    """
    copy.sql("create table if not exists said (line text); truncate said")
    copy.sql(f"copy said from program '{program} 2>&1 || true'")
    return copy.sql("select coalesce(string_agg(line, ' '), '') from said")


@needs_landlock
def test_no_file_of_production_can_be_opened(production: Cluster, copy_of: Callable[..., Copy]) -> None:
    copy = copy_of(production)
    result = copy.start()
    assert "files outside of the session closed to the server (Landlock)" in [
        entry["what"] for entry in result["neutralised"]
    ]
    before = state(production.data)
    copy.sql("create table mine (line text)")
    version = production.data / "PG_VERSION"
    assert denied(copy, f"copy t to '{production.data}/new'")
    assert denied(copy, f"copy mine from '{version}'")
    assert denied(copy, f"select pg_read_file('{version}')")
    assert "Permission denied" in said_by(copy, f"cat {version}")
    (production.directory / "tablespace").mkdir()
    os.chown(production.directory / "tablespace", production.data.stat().st_uid, -1)
    assert denied(copy, f"create tablespace elsewhere location '{production.directory}/tablespace'")
    assert state(production.data) == before


@needs_landlock
def test_a_link_that_appears_later_leads_nowhere(production: Cluster, copy_of: Callable[..., Copy]) -> None:
    copy = copy_of(production)
    copy.start()
    path = copy.sql("select pg_relation_filepath('t')")
    before = state(production.data)
    copy.path(path).unlink()
    copy.path(path).symlink_to(production.data / path)
    assert denied(copy, "select count(*) from t")
    assert denied(copy, "update t set id = 0")
    assert state(production.data) == before


@needs_landlock
def test_shared_memory_of_production_cannot_be_opened(production: Cluster, copy_of: Callable[..., Copy]) -> None:
    pid = int((production.data / "postmaster.pid").read_text().split()[0])
    segments = set(re.findall(r"/dev/shm/PostgreSQL\.\d+", Path(f"/proc/{pid}/maps").read_text()))
    assert segments, "production has none"
    before = {segment: os.stat(segment).st_size for segment in segments}
    copy = copy_of(production)
    copy.start()
    for segment in segments:
        assert denied(copy, f"copy (select 1) to '{segment}'")
        assert denied(copy, f"select pg_read_binary_file('{segment}')")
    assert {segment: os.stat(segment).st_size for segment in segments} == before


@pytest.mark.skipif(_confinement.landlock_version() < 6, reason="the kernel's Landlock lets signals through")
def test_processes_of_production_get_no_signals(production: Cluster, copy_of: Callable[..., Copy]) -> None:
    copy = copy_of(production)
    copy.start()
    pid = int((production.data / "postmaster.pid").read_text().split()[0])
    assert "not permitted" in said_by(copy, f"kill -INT {pid}")
    assert production.sql("select count(*) from t", database="postgres") == "1000"


@pytest.mark.parametrize("network", ["none", "host"])
def test_processes_of_production_keep_limits_and_priorities(
    network: str, production: Cluster, copy_of: Callable[..., Copy]
) -> None:
    copy = copy_of(production)
    copy.start(network=network)
    pid = int((production.data / "postmaster.pid").read_text().split()[0])

    def treatment() -> list[object]:
        limits = Path(f"/proc/{pid}/limits").read_text()
        priority = os.getpriority(os.PRIO_PROCESS, pid)
        ioprio = subprocess.run(["ionice", "-p", str(pid)], check=True, capture_output=True).stdout
        return [limits, priority, ioprio, os.sched_getscheduler(pid), sorted(os.sched_getaffinity(pid))]

    before = treatment()
    for program in (
        f"prlimit --pid {pid} --nofile=3:3",
        f"prlimit --pid {pid} --cpu=1:1",
        f"renice -n 19 -p {pid}",
        f"ionice -c 3 -p {pid}",
        f"chrt --idle -p 0 {pid}",
        f"taskset -p 1 {pid}",
    ):
        assert "Permission denied" in said_by(copy, program), program
    assert treatment() == before
    # Its own limits are its own affair: the shell's ulimit is prlimit64(), too.
    assert said_by(copy, "ulimit -n 64 && ulimit -n") == "64"


@pytest.mark.parametrize("network", ["none", "host"])
def test_modes_and_times_of_production_stay(network: str, production: Cluster, copy_of: Callable[..., Copy]) -> None:
    copy = copy_of(production)
    copy.start(network=network)
    directory, file = production.directory, production.data / "PG_VERSION"
    before = [path.stat() for path in (directory, file)]
    for program in (f"chmod 0700 {directory}", f"touch {file}", f"chown postgres {file}", f"cp -p /etc/hosts {file}"):
        said_by(copy, program)
    changes = [(state.st_mode, state.st_mtime_ns, state.st_ctime_ns) for state in before]
    now = [path.stat() for path in (directory, file)]
    assert [(state.st_mode, state.st_mtime_ns, state.st_ctime_ns) for state in now] == changes
    # The socket's mode is right without chmod(): see _confinement.
    (socket_file,) = (path for path in copy.run.iterdir() if path.is_socket())
    assert socket_file.stat().st_mode & 0o077 == 0


def test_nobody_is_called(production: Cluster, copy_of: Callable[..., Copy]) -> None:
    copy = copy_of(production)
    copy.start()
    copy.sql("create extension dblink")
    user = production.superuser.replace("'", "''")
    through_socket = f"host={production.run} port=5432 dbname=postgres user=''{user}''"
    with socket.create_server(("127.0.0.1", 0)) as listening:
        through_tcp = f"host=127.0.0.1 port={listening.getsockname()[1]} dbname=x connect_timeout=5"
        for conninfo in (through_socket, through_tcp):
            assert denied(copy, f"select dblink_connect('{conninfo}')")
        listening.settimeout(0)
        with pytest.raises(BlockingIOError):
            listening.accept()
    assert copy.stop()["changed"]
    copy.start(network="host")
    query = f"select id from dblink('{through_socket}', 'select max(id) from t') as found(id int)"
    assert copy.sql(query) == "1000"


def test_what_a_kernel_lacks_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_confinement, "landlock_version", lambda: 0)
    monkeypatch.setattr(_confinement, "can_filter_calls", lambda: False)
    done, warnings = _confinement.Confinement(connections=False).report()
    assert done == []
    assert ["no Landlock" in warnings[0], "call other servers" in warnings[1]] == [True, True]
    monkeypatch.setattr(_confinement, "landlock_version", lambda: 2)
    done, warnings = _confinement.Confinement().report()
    assert ["Landlock" in entry["what"] for entry in done] == [True]
    assert "could still truncate files and send signals to processes" in warnings[0]
