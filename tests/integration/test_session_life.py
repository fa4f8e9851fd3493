# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A session's life after its start: it ends by itself, is extended, reset and watched."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import socket
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg2
import pytest
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._host.processes import identify
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._session import directory
from ansible_collections.phpborg.instant_recovery.plugins.modules import overlay_mount, pg_ephemeral
from prometheus_client.parser import text_string_to_metric_families

from tests.integration.conftest import needs_root
from tests.support.clock import MINUTE, Clock, wait_until
from tests.support.cluster import DATABASE, fingerprint
from tests.support.host import processes_below, remains
from tests.support.modules import call
from tests.support.stack import Stack

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.integration.conftest import Sample
    from tests.support.playbook import Playbooks

MEGABYTE = 1 << 20
SAMPLES = 61.0  # seconds after which a keeper takes another sample, if not before


@pytest.fixture(name="begin")
def _begin(place: Path, sample: Sample, clock: Clock) -> Iterator[Callable[..., Stack]]:
    """Starts sessions; the test fails when anything of one is left at its end."""
    root = place / "sessions"

    made: list[Stack] = []

    def begin(*, root: Path = root, readers: int = 1, names: bool = False, **options: Any) -> Stack:
        # An archive that comes and goes, or is mounted twice, would only take time.
        made.append(Stack(root, sample, {"suspend_after": "0", **options}, readers=readers, names=names))
        return made[-1].start()

    yield begin
    try:  # one that has ended by itself is set aside first, and then removed
        wait_until(lambda: remains(root) == [], seconds=20)
    finally:
        for stack in made:
            if stack.begun and stack.directory.exists():
                stack.change("absent")
    assert remains(root) == []


def await_end(stack: Stack) -> dict[str, Any]:
    """The last record of a session that ends by itself."""
    wake(stack)
    wait_until(lambda: not stack.directory.exists())
    return stack.info()


def wake(stack: Stack) -> None:
    """Have the keeper look now, not at its next turn."""
    with contextlib.suppress(OSError):  # it is looking, or has ended
        pipe = os.open(stack.directory / "resume", os.O_WRONLY | os.O_NONBLOCK)
        os.write(pipe, b"!")
        os.close(pipe)


def await_looks(stack: Stack, clock: Clock) -> None:
    """Until the keeper has looked at everything by the clock as it is now: two samples are after that.

    The first may belong to a look that had begun before.
    """
    for _sample in range(2):
        clock.forward(SAMPLES)
        now = clock.now()
        wake(stack)
        wait_until(lambda now=now: not stack.directory.exists() or sampled(stack) >= now)


def sampled(stack: Stack) -> float:
    """When the keeper's last sample was taken; 0: there is none."""
    with contextlib.suppress(FileNotFoundError):
        return float(json.loads((stack.directory / "sample.json").read_text())["time"])
    return 0.0


def audit_log(root: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (root / "audit.log").read_text().splitlines()]


def test_ttl_ends_it_and_extending_gives_more_time(begin: Callable[..., Stack], clock: Clock) -> None:
    stack = begin(ttl="2h", requested_by="alice@controller")
    clock.forward(100 * MINUTE)
    await_looks(stack, clock)
    assert stack.change("extended", ttl="3h")["changed"]
    clock.forward(160 * MINUTE)
    await_looks(stack, clock)
    told = stack.info()
    assert told["status"] == "active"
    assert 0 < told["metrics"]["time_left"] <= 20 * MINUTE
    clock.forward(20 * MINUTE)
    last = await_end(stack)
    assert (last["status"], last["stop_reason"]) == ("stopped", "its time is over (ttl 3 h)")
    told = [(line["event"], line["claimed_by"], line["reason"]) for line in audit_log(stack.root)]
    assert told == [
        ("start", "alice@controller", None),
        ("extend", None, "ttl 3 h"),
        ("automatic stop", "keeper", "its time is over (ttl 3 h)"),
    ]


def test_idle_ends_it_and_queries_do_not(begin: Callable[..., Stack], clock: Clock) -> None:
    stack = begin(idle_timeout="1h")
    server = stack.connection()
    for _time in range(3):  # a short connection, of which no sample sees more than that it has been
        clock.forward(40 * MINUTE)
        server.sql("select 1")
        await_looks(stack, clock)
    assert stack.info()["status"] == "active"
    clock.forward(50 * MINUTE)
    await_looks(stack, clock)
    assert stack.info()["status"] == "active"
    clock.forward(20 * MINUTE)
    assert await_end(stack)["stop_reason"] == "idle for 1 h"


def test_a_query_that_runs_on_is_not_idle(begin: Callable[..., Stack], clock: Clock) -> None:
    stack = begin(idle_timeout="1h")
    server = stack.connection()
    long = "select pg_sleep(600)"
    running = f"select count(*), sum(pg_cancel_backend(pid)::int) from pg_stat_activity where query = '{long}'"
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(server.sql, long)
        wait_until(lambda: stack.info()["metrics"]["active_clients"])
        for _time in range(2):
            clock.forward(40 * MINUTE)
            await_looks(stack, clock)
        assert stack.info()["status"] == "active"
        assert server.sql(running) == "1|1"
        with pytest.raises(RuntimeError, match="canceling statement"):
            asked.result()
    await_looks(stack, clock)  # and that the query has been
    clock.forward(70 * MINUTE)
    assert await_end(stack)["stop_reason"] == "idle for 1 h"


def test_too_many_changes_end_it(begin: Callable[..., Stack], clock: Clock) -> None:
    stack = begin(max_upper_size="24M")
    write(stack, megabytes=8)
    await_looks(stack, clock)
    assert stack.info()["status"] == "active"
    write_until_it_ends(stack)
    last = await_end(stack)
    assert last["status"] == "stopped"
    assert last["stop_reason"].endswith("and max_upper_size is 24 MiB")


def test_what_the_server_writes_beside_its_changes_ends_it_too(begin: Callable[..., Stack]) -> None:
    stack = begin(max_upper_size="32M")
    with contextlib.suppress(RuntimeError):  # it may end before this has
        write_beside(stack, megabytes=64)
    last = await_end(stack)
    assert last["status"] == "stopped"
    assert last["stop_reason"].startswith("its changes, logs and other files take ")


def test_a_pipe_in_the_place_of_a_log_keeps_no_session_alive(begin: Callable[..., Stack], clock: Clock) -> None:
    """As the server's user can put it there where that is also the keeper's."""
    stack = begin(ttl="1h")
    for log in (stack.directory / "log").iterdir():
        log.unlink()
        os.mkfifo(log)
    for name in stack.processes():
        if name.startswith("archive"):
            stack.kill(name)
    clock.forward(61 * MINUTE)
    assert await_end(stack)["stop_reason"] == "its time is over (ttl 1 h)"


@needs_root
def test_a_full_disk_ends_the_largest_session_first(
    place: Path, sample: Sample, begin: Callable[..., Stack], clock: Clock
) -> None:
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
        last = await_end(large)
        assert last["stop_reason"].startswith(f"{root} has ")
        assert last["stop_reason"].endswith("and free_space_floor is 100 MiB")
        await_looks(small, clock)
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
    stack = begin(ttl="1h", names=True)
    assert (stack.directory / "names").is_file()
    known = {*directory.DIRECTORIES, *directory.OTHERS, directory.RECORD, directory.LOCK}
    assert known >= set(os.listdir(stack.directory))  # by them a reap knows what is the rest of a session
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
    assert b"--names" in Path(f"/proc/{stack.processes()['merged']}/cmdline").read_bytes().split(b"\0")
    assert fingerprint(stack.connection()) == sample.tables
    with psycopg2.connect(after["connection_string"]) as connection, connection.cursor() as cursor:
        cursor.execute("select 1")
    connection.close()
    assert [line["event"] for line in audit_log(stack.root)] == ["start", "reset"]
    stack.change("absent")


def test_while_a_reset_is_under_way_nobody_else_gets_the_port(begin: Callable[..., Stack], sample: Sample) -> None:
    stack = begin()
    port = stack.info()["port"]
    assert not stack.change("reset").get("failed")
    assert "merged" not in stack.processes()
    assert not can_bind(port)
    again = stack.change("reset")  # the one before was cut off
    assert not again.get("failed"), again["msg"]
    assert not can_bind(port)
    where = {"session_directory": str(stack.directory)}
    for module, state in ((overlay_mount.main, "remounted"), (pg_ephemeral.main, "restarted")):
        done = call(module, state=state, **where)
        assert not done.get("failed"), done["msg"]
    assert done["port"] == stack.info()["port"] == port
    assert fingerprint(stack.connection()) == sample.tables
    stack.change("reset")
    stack.change("absent")
    assert can_bind(port)


def test_a_port_that_somebody_has_taken_does_not_cost_the_session(begin: Callable[..., Stack], sample: Sample) -> None:
    stack = begin()
    port = stack.info()["port"]
    stack.kill("server")
    assert not can_bind(port)
    stack.kill("port")
    with socket.create_server(("127.0.0.1", port)):
        stack.change("reset")
        where = {"session_directory": str(stack.directory)}
        call(overlay_mount.main, state="remounted", **where)
        done = call(pg_ephemeral.main, state="restarted", **where)
    assert not done.get("failed"), done["msg"]
    assert done["port"] != port
    said = f"Port {port}, which the server had before, is somebody else's by now: it has {done['port']}."
    assert said in " ".join(map(str, done["warnings"]))
    assert f":{done['port']}/" in stack.info()["connection_string"]
    assert fingerprint(stack.connection()) == sample.tables
    stack.change("absent")


def can_bind(port: int) -> bool:
    """Whether a server that comes now gets the port."""
    with socket.socket() as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            server.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def test_an_archive_that_nobody_reads_is_let_go_until_somebody_does(
    begin: Callable[..., Stack], sample: Sample, clock: Clock
) -> None:
    stack = begin(readers=2, suspend_after="1h")
    before, archives = stack.info()["metrics"], memory_of(stack, "archive-1", "archive-2")
    borgs = [pid for name, pid in stack.processes().items() if name.startswith("archive")]
    assert len(borgs) == 2
    await_looks(stack, clock)  # it may just have been read
    clock.forward(50 * MINUTE)
    await_looks(stack, clock)
    assert all(identify(pid) for pid in borgs)
    await_suspended(stack, clock)
    assert [pid for pid in borgs if identify(pid)] == []
    suspended = stack.info()
    assert (suspended["status"], suspended["error_message"]) == ("active", None)
    assert not any(name.startswith("archive") for name in stack.processes())
    for name in ("cpu_seconds", "repository_bytes_read"):  # what has ended is counted still
        assert suspended["metrics"][name] >= before[name] > 0
    assert suspended["metrics"]["memory_bytes"] < before["memory_bytes"] - archives / 2
    assert memory_of(stack, "keeper", "merged") < archives
    assert fingerprint(stack.connection()) == sample.tables
    await_suspended(stack, clock)
    restarted = call(pg_ephemeral.main, state="restarted", session_directory=str(stack.directory))
    assert not restarted.get("failed"), restarted["msg"]
    await_suspended(stack, clock)
    stack.reset()
    assert fingerprint(stack.connection()) == sample.tables
    await_suspended(stack, clock)
    assert stack.change("absent")["session"]["status"] == "stopped"


def test_while_an_archive_comes_back_all_is_well(begin: Callable[..., Stack], sample: Sample, clock: Clock) -> None:
    stack = begin(suspend_after="1h")
    await_suspended(stack, clock)
    told: set[tuple[str, str | None]] = set()
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(fingerprint, stack.connection())
        while not asked.done():
            one = stack.info()
            told.add((one["status"], one["error_message"]))
    assert asked.result() == sample.tables
    assert told == {("active", None)}
    await_suspended(stack, clock)
    stack.kill("keeper")
    assert "its keeper, which could mount it, is gone" in stack.info()["error_message"]
    stack.change("extended", ttl="24h")  # the new one does not know the passphrase
    orphaned = stack.info()
    assert orphaned["status"] == "orphaned"
    assert orphaned["error_message"].startswith("Nothing is mounted at ")
    assert "has lost its archive" in stack.change("reset")["msg"]
    stack.change("absent")


def test_an_archive_whose_lock_is_held_is_not_let_go(
    place: Path, sample: Sample, begin: Callable[..., Stack], clock: Clock
) -> None:
    held = Stack(place / "sessions", sample, {"suspend_after": "1h"}, lock="hold").start()
    try:
        borgs = held.processes()
        await_suspended(begin(suspend_after="1h"), clock)  # one that is younger
        await_looks(held, clock)
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
        measured = sum(memory(pid) for pid, _command in processes_below(stack.directory))
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
    assert measured / 2 < second["memory_bytes"] < measured * 2
    stack.change("absent")


def test_the_text_file_for_prometheus(begin: Callable[..., Stack], place: Path, clock: Clock) -> None:
    textfile = place / "instant_recovery.prom"
    stack = begin(metrics_textfile=str(textfile), idle_timeout="2h", ttl="1h")
    stack.connection().sql("select 1")
    families = await_queries(stack, textfile, clock)
    (info,) = families["instant_recovery_session_info"].samples
    assert info.labels["session"] == stack.id
    assert (info.labels["status"], info.labels["port"]) == ("active", str(stack.info()["port"]))
    (left,) = families["instant_recovery_session_time_left_seconds"].samples
    assert 0 < left.value <= 3600
    assert os.stat(textfile).st_mode & 0o777 == 0o644
    stack.change("absent")
    counts = [line for line in textfile.read_text().splitlines() if line.startswith("instant_recovery_sessions{")]
    assert counts
    assert all(line.endswith(" 0") for line in counts)


def test_the_playbooks(playbooks: Playbooks, sample: Sample) -> None:
    """Of a session that modules have made: its start is in test_playbooks.py."""
    playbooks = dataclasses.replace(playbooks, environment={**playbooks.environment, "SUDO_USER": "alice"})
    alice = f"alice@{os.uname().nodename}"
    session = Stack(Path(str(playbooks.session_root)), sample, {"ttl": "1h", "requested_by": alice}).start().info()
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
    assert told == [(event, alice) for event in ("start", "extend", "reset", "stop")]
    for missing in (playbooks.run("extend", session_id="none", ttl="1h"), playbooks.run("reset", session_id="none")):
        assert missing.returncode != 0
        assert missing.message.startswith("No session none is known on localhost")


def test_of_two_hosts_that_claim_a_session_neither_is_believed(
    playbooks: Playbooks, sample: Sample, place: Path
) -> None:
    """All hosts are asked for its id, and one of them may answer that it is its own."""
    roots = {host: place / host for host in ("first", "second")}
    stacks = [Stack(root, sample, {"session_id": "claimed", "suspend_after": "0"}) for root in roots.values()]
    hosts = {
        host: {
            "ansible_connection": "local",
            "ansible_python_interpreter": "{{ ansible_playbook_python }}",
            "session_root": str(root),
        }
        for host, root in roots.items()
    }
    (place / "hosts.yml").write_text(json.dumps({"all": {"hosts": hosts}}))
    plays = dataclasses.replace(playbooks, inventory=place / "hosts.yml", session_root=None)
    try:
        for stack in stacks:
            stack.start("recorded")
        listed = plays.sessions().stats["instant_recovery_sessions"]
        assert sorted(Path(one["overlay_merged_dir"]).parts[-3] for one in listed if one["id"] == "claimed") == list(
            roots
        )
        for refused in (plays.run("extend", session_id="claimed", ttl="9h"), plays.run("stop", session_id="claimed")):
            assert refused.returncode != 0
            assert refused.message.startswith("Several hosts say that session claimed is theirs: first, second.")
        assert not any(stack.directory.exists() for stack in stacks)
    finally:
        for stack in stacks:
            stack.change("absent", session_id="claimed")
    assert [left for root in roots.values() for left in remains(root)] == []


def memory_of(stack: Stack, *names: str) -> int:
    """Memory of these processes of the session in bytes."""
    pids = stack.processes()
    return sum(memory(pids[name]) for name in names)


def memory(pid: int) -> int:
    """Bytes of memory, as the kernel divides it among the processes that share it."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))


def await_queries(stack: Stack, textfile: Path, clock: Clock) -> dict[str, Any]:
    """The metrics by name, as soon as they tell of queries: servers count a little late."""
    for _sample in range(10):
        await_looks(stack, clock)
        families = {family.name: family for family in text_string_to_metric_families(textfile.read_text())}
        told = families["instant_recovery_session_queries"]
        if told.samples[0].value > 0:
            return families
    pytest.fail(f"no query is told: {families}")


def await_suspended(stack: Stack, clock: Clock) -> None:
    """Let time pass until the archive is not mounted any more, and no Borg runs."""

    def is_suspended() -> bool:
        checks = stack.info()["checks"]
        archives = [
            one for kind in ("mounts", "processes") for one in checks[kind] if one["name"].startswith("archive")
        ]
        return all(one.get("suspended") and not one["mounted"] for one in archives)

    with clock.rushing(seconds=10 * MINUTE):
        wait_until(is_suspended)


def write(stack: Stack, *, megabytes: int) -> None:
    stack.connection().sql(
        "create table if not exists filler (t text); alter table filler alter t set storage plain;"
        f"insert into filler select repeat('x', 8000) from generate_series(1, {megabytes * 128})"
    )
    stack.connection().sql("checkpoint")


def write_beside(stack: Stack, *, megabytes: int) -> None:
    """What a client makes the server write that is not in the copy: its log."""
    stack.connection().sql(f"copy (select 1) to program 'head -c {megabytes * MEGABYTE} /dev/zero >&2'")


def write_until_it_ends(stack: Stack) -> None:
    for _round in range(30):
        try:
            write(stack, megabytes=8)
        except (RuntimeError, FileNotFoundError, AssertionError, ValueError):
            return
    pytest.fail("240 MB were written")
