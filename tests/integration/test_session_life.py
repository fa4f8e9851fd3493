# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A session's life after its start: it ends by itself, is extended, reset and watched."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg2
import pytest
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._processes import identify
from ansible_collections.phpborg.instant_recovery.plugins.modules import pg_ephemeral
from prometheus_client.parser import text_string_to_metric_families

from tests.integration.conftest import needs_root
from tests.support.cluster import DATABASE, fingerprint
from tests.support.host import free_port, remains
from tests.support.modules import call
from tests.support.stack import Stack

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.integration.conftest import Sample
    from tests.support.playbook import Playbooks

SLACK = 30.0  # seconds that a keeper on a busy machine may be late
MEGABYTE = 1 << 20


@pytest.fixture(name="begin")
def _begin(place: Path, sample: Sample) -> Iterator[Callable[..., Stack]]:
    """Starts sessions; the test fails when anything of one is left at its end."""
    root = place / "sessions"

    made: list[Stack] = []

    def begin(*, root: Path = root, **options: Any) -> Stack:
        made.append(Stack(root, sample, options))
        # A reset lets go of the port for a moment: sessions of another worker's root would take the first free one.
        made[-1].server = {**made[-1].server, "port": free_port()}
        return made[-1].start()

    yield begin
    left = remains(root)
    for stack in made:
        if stack.begun and stack.directory.exists():
            stack.change("absent")
    assert left == []


def await_end(stack: Stack, *, within: float) -> dict[str, Any]:
    """The last record of a session that ends by itself in so many seconds."""
    deadline = time.monotonic() + within + SLACK
    while stack.directory.exists():
        assert time.monotonic() < deadline, f"still there: {stack.info()}"
        time.sleep(0.1)
    return stack.info()


def audit_log(root: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (root / "audit.log").read_text().splitlines()]


def test_ttl_ends_it_and_extending_gives_more_time(begin: Callable[..., Stack]) -> None:
    stack = begin(ttl="8s", requested_by="alice@controller")
    assert stack.change("extended", ttl="20s")["changed"]
    extended = time.monotonic()
    time.sleep(10)
    assert stack.info()["status"] == "active"
    assert 0 < stack.info()["metrics"]["time_left"] <= 10
    last = await_end(stack, within=10)
    assert time.monotonic() - extended >= 19.9
    assert (last["status"], last["stop_reason"]) == ("stopped", "its time is over (ttl 20 s)")
    told = [(line["event"], line["claimed_by"], line["reason"]) for line in audit_log(stack.root)]
    assert told == [
        ("start", "alice@controller", None),
        ("extend", None, "ttl 20 s"),
        ("automatic stop", "keeper", "its time is over (ttl 20 s)"),
    ]


def test_idle_ends_it_and_queries_do_not(begin: Callable[..., Stack]) -> None:
    stack = begin(idle_timeout="8s")
    server = stack.connection()
    for _second in range(12):  # short connections, of which a sample sees none
        server.sql("select 1")
        time.sleep(1)
    assert stack.info()["status"] == "active"
    quiet = time.monotonic()
    last = await_end(stack, within=12)
    assert time.monotonic() - quiet >= 4
    assert last["stop_reason"] == "idle for 8 s"


def test_a_query_that_runs_on_is_not_idle(begin: Callable[..., Stack]) -> None:
    stack = begin(idle_timeout="4s")
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(stack.connection().sql, "select pg_sleep(14) is not null")
        time.sleep(9)
        assert stack.info()["status"] == "active"
        assert asked.result() == "t"
    await_end(stack, within=6)


def test_too_many_changes_end_it(begin: Callable[..., Stack]) -> None:
    stack = begin(max_upper_size="24M")
    write(stack, megabytes=8)
    time.sleep(5)
    assert stack.info()["status"] == "active"
    write_until_it_ends(stack)
    last = await_end(stack, within=4)
    assert last["status"] == "stopped"
    assert last["stop_reason"].endswith("and max_upper_size is 24 MiB")


def test_what_the_server_writes_beside_its_changes_ends_it_too(begin: Callable[..., Stack]) -> None:
    stack = begin(max_upper_size="32M")
    with contextlib.suppress(RuntimeError):  # it may end before this has
        write_beside(stack, megabytes=64)
    last = await_end(stack, within=6)
    assert last["status"] == "stopped"
    assert last["stop_reason"].startswith("its changes, logs and other files take ")


def test_a_pipe_in_the_place_of_a_log_keeps_no_session_alive(begin: Callable[..., Stack]) -> None:
    """As the server's user can put it there where that is also the keeper's."""
    stack = begin(ttl="20s")
    for log in (stack.directory / "log").iterdir():
        log.unlink()
        os.mkfifo(log)
    for name in stack.processes():
        if name.startswith("archive"):
            stack.kill(name)
    last = await_end(stack, within=20)
    assert last["stop_reason"] == "its time is over (ttl 20 s)"


@needs_root
def test_a_full_disk_ends_the_largest_session_first(place: Path, sample: Sample, begin: Callable[..., Stack]) -> None:
    root = place / "small"
    root.mkdir(mode=0o711)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400M,mode=711", "tmpfs", root], check=True)
    try:
        limits = {"root": root, "minimum_free": "1M", "free_space_floor": "100M"}
        small, large = begin(**limits), begin(**limits)
        write(small, megabytes=10)
        write_beside(large, megabytes=60)  # whatever it has written
        free = shutil.disk_usage(root).free
        (root / "filler").write_bytes(bytes(free - 90 * MEGABYTE))
        last = await_end(large, within=4)
        assert last["stop_reason"].startswith(f"{root} has ")
        assert last["stop_reason"].endswith("and free_space_floor is 100 MiB")
        time.sleep(5)
        assert small.info()["status"] == "active"
        assert fingerprint(small.connection()).items() > sample.tables.items()
        refused = Stack(root, sample, {"minimum_free": "1M", "free_space_floor": "300M"})
        with pytest.raises(AssertionError, match=r"and 300 MiB are needed.*lower free_space_floor"):
            refused.start()
        small.change("absent")
        (root / "filler").unlink()
        assert remains(root) == []
    finally:
        subprocess.run(["umount", root], check=True)


def test_reset_takes_it_back_in_place(begin: Callable[..., Stack], sample: Sample) -> None:
    stack = begin(ttl="1h")
    before, password = stack.info(), (stack.directory / "client/pgpass").read_text()
    server = stack.connection()
    server.sql("drop table notes; update pgbench_accounts set abalance = 4711", database=DATABASE)
    server.sql("checkpoint")
    archive = {name: pid for name, pid in stack.processes().items() if name.startswith("archive")}
    stack.reset()
    after = stack.info()
    same = ("id", "status", "port", "connection_string", "expires_at", "created_at")
    assert {key: after[key] for key in same} == {key: before[key] for key in same}
    assert (stack.directory / "client/pgpass").read_text() != password
    assert archive.items() <= stack.processes().items()
    assert fingerprint(stack.connection()) == sample.tables
    with psycopg2.connect(after["connection_string"]) as connection, connection.cursor() as cursor:
        cursor.execute("select 1")
    connection.close()
    assert [line["event"] for line in audit_log(stack.root)] == ["start", "reset"]
    stack.change("absent")


def test_an_archive_that_nobody_reads_is_let_go_until_somebody_does(
    begin: Callable[..., Stack], sample: Sample
) -> None:
    stack = begin(rest_after="3s")
    before = stack.info()["metrics"]
    borgs = [pid for name, pid in stack.processes().items() if name.startswith("archive")]
    assert len(borgs) == 2
    await_rest(stack)
    assert [pid for pid in borgs if identify(pid)] == []
    resting = stack.info()
    assert (resting["status"], resting["error_message"]) == ("active", None)
    assert not any(name.startswith("archive") for name in stack.processes())
    for name in ("cpu_seconds", "repository_bytes_read"):  # what has ended is counted still
        assert resting["metrics"][name] >= before[name] > 0
    assert resting["metrics"]["memory_bytes"] < before["memory_bytes"] - 40 * MEGABYTE
    assert proportional_set_size(stack, "keeper", "merged") < 60 * MEGABYTE
    assert fingerprint(stack.connection()) == sample.tables
    await_rest(stack)
    restarted = call(pg_ephemeral.main, state="restarted", session_directory=str(stack.directory))
    assert not restarted.get("failed"), restarted["msg"]
    await_rest(stack)
    stack.reset()
    assert fingerprint(stack.connection()) == sample.tables
    await_rest(stack)
    began = time.monotonic()
    assert stack.change("absent")["session"]["status"] == "stopped"
    assert time.monotonic() - began < 15  # 20 s are what readers wait for an archive to come back


def test_while_an_archive_comes_back_all_is_well(begin: Callable[..., Stack], sample: Sample) -> None:
    stack = begin(rest_after="3s")
    await_rest(stack)
    told: set[tuple[str, str | None]] = set()
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(fingerprint, stack.connection())
        while not asked.done():
            one = stack.info()
            told.add((one["status"], one["error_message"]))
    assert asked.result() == sample.tables
    assert told == {("active", None)}
    await_rest(stack)
    stack.kill("keeper")
    assert "its keeper, which could mount it, is gone" in stack.info()["error_message"]
    stack.change("extended", ttl="1h")  # the new one does not know the passphrase
    orphaned = stack.info()
    assert orphaned["status"] == "orphaned"
    assert orphaned["error_message"].startswith("Nothing is mounted at ")
    assert "has lost its archive" in stack.change("reset")["msg"]
    stack.change("absent")


def test_an_archive_whose_lock_is_held_is_not_let_go(place: Path, sample: Sample, begin: Callable[..., Stack]) -> None:
    held = Stack(place / "sessions", sample, {"rest_after": "3s"}, lock="hold").start()
    try:
        borgs = held.processes()
        await_rest(begin(rest_after="3s"))  # one that is younger
        assert held.processes() == borgs
    finally:
        held.change("absent", session_id="all")


def test_what_is_measured_is_what_happened(begin: Callable[..., Stack], sample: Sample) -> None:
    stack = begin()
    server = stack.connection()
    first = stack.info()["metrics"]
    server.sql("select sum(length(t::text)) from pgbench_accounts t", database=DATABASE)
    for _number in range(20):
        server.sql("select 1", database=DATABASE)
    write(stack, megabytes=16)
    holding = psycopg2.connect(stack.info()["connection_string"])
    try:
        second = stack.info()["metrics"]
    finally:
        holding.close()
    assert second["clients"] == 1
    assert second["active_clients"] == 0
    assert second["queries"] - first["queries"] >= 21
    assert second["queries_per_second"] > 0
    assert second["uptime"] > first["uptime"] > 0
    assert second["time_left"] is None
    assert second["cpu_seconds"] > first["cpu_seconds"] > 0
    assert second["upper_bytes"] - first["upper_bytes"] >= 15 * MEGABYTE
    table = int(server.sql("select pg_relation_size('pgbench_accounts')", database=DATABASE))
    assert second["archive_bytes_read"] >= table
    assert second["repository_bytes_read"] >= first["repository_bytes_read"] > 0
    assert 20 * MEGABYTE < second["memory_bytes"] < 1024 * MEGABYTE
    stack.change("absent")


def test_the_text_file_for_prometheus(begin: Callable[..., Stack], place: Path) -> None:
    textfile = place / "instant_recovery.prom"
    stack = begin(metrics_textfile=str(textfile), idle_timeout="30s", ttl="1h")
    stack.connection().sql("select 1")
    families = await_queries(textfile)
    (info,) = families["instant_recovery_session_info"].samples
    assert info.labels["session"] == stack.id
    assert (info.labels["status"], info.labels["port"]) == ("active", str(stack.info()["port"]))
    (left,) = families["instant_recovery_session_time_left_seconds"].samples
    assert 3500 < left.value <= 3600
    assert os.stat(textfile).st_mode & 0o777 == 0o644
    stack.change("absent")
    counts = [line for line in textfile.read_text().splitlines() if line.startswith("instant_recovery_sessions{")]
    assert counts
    assert all(line.endswith(" 0") for line in counts)


def test_the_playbooks(playbooks: Playbooks, sample: Sample) -> None:
    playbooks = dataclasses.replace(playbooks, environment={**playbooks.environment, "SUDO_USER": "alice"})
    session = playbooks.start(archive=sample.name, ttl="1h", port=free_port()).session
    extended = playbooks.run("extend", session_id=session["id"], ttl="4h")
    assert extended.returncode == 0, extended.output
    assert extended.stats["instant_recovery_session"]["expires_at"] > session["expires_at"]
    reset = playbooks.run("reset", session_id=session["id"])
    assert reset.returncode == 0, reset.output
    again = reset.stats["instant_recovery_session"]
    assert (again["status"], again["port"]) == ("active", session["port"])
    assert again["started_at"] > session["started_at"]
    playbooks.stop(session["id"])
    ended = playbooks.sessions(ended=True).stats["instant_recovery_sessions"]
    assert [(one["id"], one["status"], one["stop_reason"]) for one in ended] == [(session["id"], "stopped", None)]
    told = [(line["event"], line["claimed_by"]) for line in audit_log(Path(str(playbooks.session_root)))]
    assert told == [(event, f"alice@{os.uname().nodename}") for event in ("start", "extend", "reset", "stop")]
    for missing in (playbooks.run("extend", session_id="none", ttl="1h"), playbooks.run("reset", session_id="none")):
        assert missing.returncode != 0
        assert missing.message.startswith("No session none is known on localhost")


def proportional_set_size(stack: Stack, *names: str) -> int:
    """Memory of these processes in bytes, as the kernel divides it among those that share it."""
    pids = stack.processes()
    lines = [line for name in names for line in Path(f"/proc/{pids[name]}/smaps_rollup").read_text().splitlines()]
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))


def await_queries(textfile: Path) -> dict[str, Any]:
    """The metrics by name, as soon as they tell of queries: samples are taken every few seconds."""
    deadline = time.monotonic() + 4 + SLACK
    while True:
        text = textfile.read_text() if textfile.exists() else ""
        families = {family.name: family for family in text_string_to_metric_families(text)}
        told = families.get("instant_recovery_session_queries")
        if told and told.samples[0].value > 0:
            return families
        assert time.monotonic() < deadline, families
        time.sleep(0.2)


def await_rest(stack: Stack) -> None:
    """Until the archive is not mounted any more, and no Borg runs."""
    deadline = time.monotonic() + 10 + SLACK
    while True:
        checks = stack.info()["checks"]
        archives = [
            one for kind in ("mounts", "processes") for one in checks[kind] if one["name"].startswith("archive")
        ]
        if all(one.get("resting") and not one["mounted"] for one in archives):
            return
        assert time.monotonic() < deadline, f"still there: {archives}"
        time.sleep(0.1)


def write(stack: Stack, *, megabytes: int) -> None:
    stack.connection().sql(
        "create table if not exists filler (t text); alter table filler alter t set storage plain;"
        f"insert into filler select repeat('x', 8000) from generate_series(1, {megabytes * 128})"
    )
    stack.connection().sql("checkpoint")


def write_beside(stack: Stack, *, megabytes: int) -> None:
    """What a client makes the server write into the directory of its socket."""
    place = stack.info()["socket_directory"]
    stack.connection().sql(f"copy (select 1) to program 'head -c {megabytes * MEGABYTE} /dev/zero > {place}/large'")


def write_until_it_ends(stack: Stack) -> None:
    for _round in range(30):
        try:
            write(stack, megabytes=8)
        except (RuntimeError, FileNotFoundError, AssertionError, ValueError):
            return
    pytest.fail("240 MB were written")
