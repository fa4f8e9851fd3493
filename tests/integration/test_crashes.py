# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Every process of a session killed at every step, plays cut off, repositories that vanish, many starts at once.

Each time the list tells the true state, stop or reap leaves a clean host, and the next session starts.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import multiprocessing
import os
import signal
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._engine import lifecycle
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._host.processes import MARKER, identify, spawn
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._session.session import Session
from ansible_collections.phpborg.instant_recovery.plugins.modules import (
    borg_mount,
    session_info,
    session_reap,
)
from ansible_collections.phpborg.instant_recovery.plugins.modules import session as session_module

from tests.integration.conftest import needs_root
from tests.support.clock import MINUTE, Clock, wait_until
from tests.support.cluster import UNREADABLE, fingerprint
from tests.support.forked import forked
from tests.support.host import remains
from tests.support.modules import call
from tests.support.stack import PHASES, Stack

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.integration.conftest import Sample
    from tests.support.playbook import Playbooks

AT_ONCE = int(os.environ.get("INSTANT_RECOVERY_AT_ONCE", "6"))  # sessions
# What each step adds; all that is there by then is killed in turn.
PROCESSES = {
    "recorded": [],
    "mounted": ["keeper", "archive-1", "archive-2"],
    "layered": ["merged"],
    "active": ["server", "port"],
}


@pytest.fixture(name="root")
def _root(place: Path) -> Iterator[Path]:
    root = place / "sessions"
    yield root
    left = remains(root)
    if left:
        call(session_module.main, session_root=str(root), state="absent", session_id="all")
    assert left == []


@pytest.mark.parametrize("phase", PHASES)
def test_any_process_killed_at_any_step(root: Path, sample: Sample, phase: str) -> None:
    there = [name for step in PHASES[: PHASES.index(phase) + 1] for name in PROCESSES[step]]
    for number, name in enumerate(there):
        stack = Stack(root, sample, readers=2).start(phase)
        assert sorted(stack.processes()) == sorted(there)
        stack.kill(name)
        check_told(stack, name, phase)
        reaped = [] if number % 2 or stack.info()["status"] != "orphaned" else stack.reap()
        if not reaped:  # nothing to reap, or the keeper has replaced it just now
            assert stack.change("absent")["changed"]
        else:
            assert [line.partition(": ")[0] for line in reaped] == [stack.id]
        assert remains(root) == [], f"{name} killed when {phase}"


def check_told(stack: Stack, name: str, phase: str) -> None:
    """The state is true at once: what works less well is told, what does not work any more is orphaned."""
    told = stack.info()
    message = told["error_message"] or ""
    if name == "keeper":
        assert told["status"] == ("active" if phase == "active" else "starting")
        assert phase != "active" or "Its keeper is gone" in message
    elif name == "port":  # with it gone, the port may be another's should the server end
        assert (told["status"], told["error_message"]) == ("active", None)
    elif name.startswith("archive") and phase == "active":
        assert told["status"] == "active"
        assert message in ("", f"The mount {name} is gone, the others are read instead.")
        assert fingerprint(stack.connection()) == stack.sample.tables
        await_whole(stack)
    elif name.startswith("archive") and told["status"] == "starting":
        assert all(one["responding"] for one in told["checks"]["mounts"]), "not told, and not replaced either"
    else:
        assert told["status"] == "orphaned"
        assert f"The process {name}" in message


def await_whole(stack: Stack) -> None:
    """Until the keeper has replaced what was killed."""

    def is_whole() -> bool:
        told = stack.info()
        return not told["error_message"] and all(one["alive"] for one in told["checks"]["processes"])

    wait_until(is_whole)


def test_clients_do_not_see_that_all_mounts_were_killed(root: Path, sample: Sample) -> None:
    stack = Stack(root, sample, readers=2).start()
    before = stack.processes()
    for name in ("archive-1", "archive-2"):
        os.kill(before[name], signal.SIGKILL)
    assert fingerprint(stack.connection()) == sample.tables
    await_whole(stack)
    after = stack.processes()
    assert {name for name in before if before[name] != after[name]} == {"archive-1", "archive-2"}
    stack.change("absent")


def test_compaction_that_moves_the_archive_under_a_session(root: Path, sample: Sample, place: Path) -> None:
    """A mounted Borg ends when it misses a segment; clients only wait a little longer."""
    here = sample.repository.copy(place / "repository", owner="root")
    filler = place / "filler"
    filler.write_bytes(os.urandom(8 << 20))
    here.borg("config", here.location, "max_segment_size", "1000000000")
    here.borg("rename", f"{here.location}::{sample.archive}", "kept")
    here.archive("filler", filler)
    (identifier,) = (one["id"] for one in here.archives() if one["archive"] == "kept")
    stack = Stack(root, dataclasses.replace(_at(sample, here), archive="kept", archive_id=identifier)).start()
    segments = {path.name for path in (place / "repository/data").rglob("[0-9]*") if path.is_file()}
    here.borg("delete", f"{here.location}::filler")
    here.borg("compact", "--threshold", "0", here.location)
    left = {path.name for path in (place / "repository/data").rglob("[0-9]*") if path.is_file()}
    assert segments - left, "nothing was moved: the test shows nothing"
    assert fingerprint(stack.connection()) == sample.tables
    assert stack.info()["status"] == "active"
    stack.change("absent")


def test_an_archive_that_is_deleted_and_compacted_away_under_a_session(
    root: Path, sample: Sample, place: Path, clock: Clock
) -> None:
    here = sample.repository.copy(place / "repository", owner="root")
    stack = Stack(root, _at(sample, here)).start()
    here.borg("delete", f"{here.location}::{sample.archive}")
    here.borg("compact", "--threshold", "0", here.location)
    for name, pid in stack.processes().items():
        if name.startswith("archive"):
            os.kill(pid, signal.SIGKILL)  # they have files open that are deleted by now
    with clock.rushing(), pytest.raises(RuntimeError, match=UNREADABLE):
        fingerprint(stack.connection())
    await_failed(stack)
    assert stack.change("absent")["session"]["status"] == "failed"
    assert remains(root) == []


def test_another_archive_of_the_same_name_is_not_taken(root: Path, sample: Sample, place: Path, clock: Clock) -> None:
    """Deleted and made anew between two mounts: its files are others, and must not be seen."""
    here = sample.repository.copy(place / "repository", owner="root")
    stack = Stack(root, _at(sample, here)).start()
    here.borg("delete", f"{here.location}::{sample.archive}")
    (place / "impostor").mkdir()
    here.archive(sample.archive, place / "impostor")
    for name, pid in stack.processes().items():
        if name.startswith("archive"):
            os.kill(pid, signal.SIGKILL)
    with clock.rushing(), pytest.raises(RuntimeError, match=UNREADABLE):
        fingerprint(stack.connection())
    await_failed(stack)
    stack.change("absent")


@pytest.mark.parametrize("phase", ["mounted", "active"])
def test_a_borg_that_logs_without_end(root: Path, sample: Sample, phase: str) -> None:
    """What the server of a repository says stands in its log."""
    stack = Stack(root, sample).start(phase)
    log = stack.directory / "log" / "borg-1.log"
    os.truncate(log, 65 << 20)
    wait_until(lambda: log.stat().st_size < 1 << 20)
    assert "was begun anew" in (stack.directory / "log" / "keeper.log").read_text()
    stack.change("absent")


def test_a_borg_that_fills_the_disk_while_a_session_starts(root: Path, sample: Sample) -> None:
    """It counts as the session's. The Borgs end at once, and the module that is at work fails for that reason."""
    stack = Stack(root, sample, {"max_upper_size": "16M"}).start("mounted")
    borgs = [pid for name, pid in stack.processes().items() if name.startswith("archive")]
    with Session.open(str(stack.directory)).locked(timeout=10):
        (stack.directory / "tmp" / "put-aside").write_bytes(os.urandom(20 << 20))
        wait_until(lambda: not any(map(identify, borgs)))
    refused = (stack.directory / "refused").read_text()
    assert "its changes, logs and other files take 20" in refused.lower(), refused
    wait_until(lambda: remains(root) == [])  # it is set aside first, and then removed
    assert stack.info()["status"] == "failed"


@contextlib.contextmanager
def module_at_work(stack: Stack, **fields: Any) -> Iterator[multiprocessing.process.BaseProcess]:
    """A process that has the session's lock and waits for nothing; fields are changed in the record first."""
    context = multiprocessing.get_context("fork")
    held = context.Event()

    def work() -> None:
        with Session.open(str(stack.directory)).locked() as session:
            session.update(**fields)
            held.set()
            while True:
                pass

    worker = context.Process(target=work)
    worker.start()
    try:
        assert held.wait(timeout=60)
        yield worker
    finally:
        worker.kill()
        worker.join()


def test_a_module_that_goes_on_for_ever_is_ended(root: Path, sample: Sample) -> None:
    """It waits for nothing that could be taken away. The session that it was at work on goes, too."""
    stack = Stack(root, sample).start("mounted")
    with module_at_work(stack, due=time.monotonic()) as worker:
        worker.join(timeout=100)
        assert worker.exitcode == -signal.SIGTERM
    wait_until(lambda: remains(root) == [])
    ended = stack.info()
    assert ended["status"] == "failed"
    assert ended["error_message"]


def test_a_stop_ends_a_module_that_goes_on_for_ever(root: Path, sample: Sample) -> None:
    stack = Stack(root, sample).start("mounted")
    with module_at_work(stack) as worker:
        assert stack.change("absent", lock_timeout=4)["session"]["status"] == "stopped"
        worker.join(timeout=10)
        assert worker.exitcode == -signal.SIGTERM
    assert remains(root) == []


def test_the_mount_of_archived_wal_is_killed(root: Path, sample: Sample) -> None:
    """It served the start alone: the session goes on, but cannot be reset."""
    stack = Stack(root, sample).start("mounted")
    mounted = call(
        borg_mount.main,
        repository=sample.repository.location,
        archive=sample.archive,
        mountpoint=str(stack.directory / "log_archive"),
        passphrase=sample.repository.passphrase,
        session_directory=str(stack.directory),
    )
    assert mounted["changed"], mounted
    for step in (stack._layer, stack._serve):
        step()
    stack.kill("log_archive-1")
    told = stack.info()
    assert (told["status"], told["error_message"]) == (
        "active",
        "The mount log_archive-1 is gone, so the session cannot be reset.",
    )
    assert fingerprint(stack.connection()) == sample.tables
    assert "has lost its archive" in stack.change("reset")["msg"]
    assert stack.reap() == []
    stack.change("absent")


def test_all_at_once(root: Path, sample: Sample) -> None:
    stack = Stack(root, sample).start()
    for pid in stack.processes().values():
        os.kill(pid, signal.SIGKILL)
    assert stack.info()["status"] == "orphaned"
    assert len(stack.reap()) == 1
    assert remains(root) == []


@pytest.mark.parametrize("write", [1, 2, 3])
def test_a_stop_that_is_killed(root: Path, sample: Sample, write: int) -> None:
    """When it has said what it begins, when all is gone but the directory, and when that is going, too."""
    stack = Stack(root, sample).start()
    assert cut_off(lambda: stack.change("absent"), write=write) == write
    check_stop_again(stack)


@pytest.mark.parametrize("name", ["server", "merged", "archive-1"])
def test_a_stop_that_is_killed_in_the_middle(root: Path, sample: Sample, name: str) -> None:
    """As soon as one of the processes has ended."""
    stack = Stack(root, sample).start()
    process = identify(stack.processes()[name])
    assert process is not None
    child = in_child(lambda: stack.change("absent"))
    wait_until(lambda: not process.alive())
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    if stack.directory.exists():
        check_stop_again(stack)
    assert remains(root) == []


def check_stop_again(stack: Stack) -> None:
    if stack.directory.exists():
        assert stack.info()["status"] in ("active", "orphaned", "stopping")
        assert stack.change("absent")["session"]["status"] == "stopped"
    else:  # what is left of it has another name by then
        assert stack.info()["status"] == "stopped"
        stack.reap()
    assert remains(stack.root) == []


@pytest.fixture(scope="module")
def writes_of_a_start(shared_place: Path, sample: Sample) -> int:
    stack = Stack(shared_place / "counted", sample)
    writes = cut_off(stack.start, write=0)
    call(session_module.main, session_root=str(stack.root), state="absent", session_id="all")
    return writes


@pytest.mark.parametrize("eighth", range(1, 9))
def test_a_start_that_is_killed(root: Path, sample: Sample, eighth: int, writes_of_a_start: int) -> None:
    """In the middle of a module, between two things that it writes down."""
    write = writes_of_a_start * eighth // 8
    assert cut_off(lambda: Stack(root, sample).start(), write=write) == write
    for one in call(session_info.main, session_root=str(root))["sessions"]:
        assert one["status"] in ("starting", "active", "orphaned")
    stopped = call(session_module.main, session_root=str(root), state="absent", session_id="all")
    assert not stopped.get("failed"), stopped["msg"]
    assert remains(root) == []


def cut_off(function: Callable[[], Any], *, write: int) -> int:
    """Call function in a process of its own, which is killed when it is about to write down, for the n-th time, what
    has become of a session; 0 is never. How often it was about to.

    By its next time it has done what follows from the one before.
    """
    writes = multiprocessing.get_context("fork").Value("i", 0)
    rename = os.rename

    def counted(old: str, new: str, **where: int) -> None:
        if old.endswith(".json.tmp") or ".unfinished-" in new:
            writes.value += 1
            if writes.value == write:
                os.kill(os.getpid(), signal.SIGKILL)
        rename(old, new, **where)

    def cut() -> None:
        os.rename = counted  # type: ignore[assignment]
        function()

    os.waitpid(in_child(cut), 0)
    return int(writes.value)


def in_child(function: Callable[[], Any]) -> int:
    """Call function in a process of its own; its number."""
    child = os.fork()
    if child == 0:
        with contextlib.suppress(BaseException):
            function()
        os._exit(0)
    return child


@pytest.mark.parametrize("step", ["borg_mount", "overlay_mount"])
def test_a_play_that_is_killed(playbooks: Playbooks, sample: Sample, step: str) -> None:
    """Within seconds everything that it had started is undone, and the record says how far it came."""
    root = playbooks.session_root
    assert root is not None
    record = playbooks.directory / "killed.jsonl"
    playbooks.directory.mkdir(parents=True)
    variables = json.dumps({"archive": sample.name, "session_root": str(root)})
    play = Path(__file__).parents[2] / "playbooks" / "instant_recovery_start.yml"
    ansible = subprocess.Popen(
        [*playbooks.command("ansible-playbook"), str(play), "--extra-vars", variables],
        env=playbooks.process_environment(record),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    wait_until(lambda: any(step in json.loads(path.read_text())["timings"] for path in root.glob("*/session.json")))
    ansible.kill()
    ansible.wait()

    wait_until(lambda: remains(root) == [])
    (told,) = call(session_info.main, session_root=str(root), ended=True)["sessions"]
    assert told["status"] == "failed"
    assert told["error_message"].startswith("The start was cut off after ")
    assert step in told["timings"]


def test_mounts_that_are_killed_while_a_server_recovers(root: Path, sample: Sample) -> None:
    """Nobody but the start has the lock then; the keeper replaces them all the same."""
    stack = Stack(root, sample).start("layered")
    with ThreadPoolExecutor(1) as pool:
        serving = pool.submit(forked, stack._serve)
        server = held_server(stack)
        for name, pid in stack.processes().items():
            if name.startswith("archive"):
                os.kill(pid, signal.SIGKILL)
        await_mounts(stack)
        os.kill(server, signal.SIGCONT)
        serving.result()
    assert fingerprint(stack.connection()) == sample.tables
    await_whole(stack)
    assert stack.info()["error_message"] is None
    stack.change("absent")
    assert remains(root) == []


def test_limits_hold_while_a_server_recovers(root: Path, sample: Sample) -> None:
    stack = Stack(root, sample, {"max_upper_size": "8M"}).start("layered")
    with ThreadPoolExecutor(1) as pool:
        serving = pool.submit(forked, stack._serve)
        server = held_server(stack)
        (stack.directory / "merged/filler").write_bytes(os.urandom(9 << 20))  # zeros would take no room
        with pytest.raises(RuntimeError, match=r"Its changes, .* take [0-9]+ MiB, and max_upper_size is 8 MiB\."):
            serving.result()
    assert identify(server) is None
    # The play rolls back, or the keeper does.
    assert stack.change("absent", error_message="It failed.")["session"]["status"] == "failed"
    assert remains(root) == []


def held_server(stack: Stack) -> int:
    """The pid of the server that recovers, stopped in the middle of that."""
    pids: list[int] = []

    def has_begun() -> bool:
        claims = json.loads((stack.directory / "session.json").read_text())["claims"]
        pids[:] = [claim["process"]["pid"] for claim in claims if claim["name"] == "server" and claim["process"]]
        return bool(pids)

    wait_until(has_begun, pause=0.001)
    os.kill(pids[0], signal.SIGSTOP)
    return pids[0]


def test_a_repository_that_does_not_answer_ends_the_start(
    root: Path, sample: Sample, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lifecycle, "GRACE", 1.0)
    stack = Stack(root, sample).start("layered")
    readers = [pid for name, pid in stack.processes().items() if name.startswith("archive")]
    for pid in readers:
        os.kill(pid, signal.SIGSTOP)
    stack.server["timeout"] = 2
    with pytest.raises(AssertionError, match="The start did not end in its time: the repository"):
        stack._serve()
    for pid in readers:
        os.kill(pid, signal.SIGCONT)
    assert stack.change("absent")["session"]["status"] == "stopped"
    assert remains(root) == []


def await_mounts(stack: Stack) -> None:
    wait_until(lambda: all(one["mounted"] and one["responding"] for one in stack.info()["checks"]["mounts"]))


def test_a_repository_that_vanishes(root: Path, sample: Sample, place: Path, clock: Clock) -> None:
    """What was read stays right, what was not gives an error, and the session says so and why."""
    here = sample.repository.copy(place / "repository", owner="root")
    stack = Stack(root, _at(sample, here)).start()
    (place / "repository").rename(place / "gone")
    for data in (place / "gone/data").rglob("[0-9]*"):
        if data.is_file():
            os.truncate(data, 8)  # what is open is gone, too
    with clock.rushing(), pytest.raises(RuntimeError, match=UNREADABLE):
        fingerprint(stack.connection())
    await_failed(stack)
    assert "failed" in stack.change("reset")
    last = stack.change("absent")["session"]
    assert last["status"] == "failed"
    assert last["error_message"].startswith("The archive's data cannot be read any more (")


def await_failed(stack: Stack) -> None:
    """Until the session says that it could not read the archive."""
    wait_until(lambda: stack.info()["status"] == "failed")
    assert stack.info()["error_message"].startswith("The archive's data cannot be read any more (")


def _at(sample: Sample, repository: Any) -> Sample:
    return dataclasses.replace(sample, repository=repository)


@needs_root
def test_a_disk_that_fills_up(place: Path, sample: Sample) -> None:
    """Not even a floor watched: the server may fall, but nothing else does, and stopping works without any room."""
    root = place / "small"
    root.mkdir(mode=0o711)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200M,mode=711", "tmpfs", root], check=True)
    stack = Stack(root, sample, {"minimum_free": "1M", "free_space_floor": "0"}).start()
    with contextlib.suppress(OSError), (root / "filler").open("wb", buffering=0) as filler:
        while True:
            filler.write(bytes(1 << 20))
    many = "create table t as select repeat('x', 1000) from generate_series(1, 200000)"
    with pytest.raises((RuntimeError, subprocess.TimeoutExpired)):  # refused, or it waits for room
        stack.connection().sql(many, timeout=10)
    assert stack.info()["status"] in ("active", "orphaned")
    begun = time.monotonic()
    assert stack.change("absent")["session"]["status"] == "stopped"
    # A server that waits for room would not end before the layer does, 65 s later.
    assert time.monotonic() - begun < 40
    (root / "filler").unlink()
    assert remains(root) == []
    Stack(root, sample, {"minimum_free": "1M", "free_space_floor": "0"}).start().change("absent")
    subprocess.run(["umount", root], check=True)


def test_many_at_once(root: Path, sample: Sample, place: Path) -> None:
    """Of two archives in two repositories."""
    samples = [sample, _another(sample, place)] * (AT_ONCE // 2)
    with ThreadPoolExecutor(AT_ONCE) as pool:  # each in a process of its own, as modules are
        started = list(pool.map(lambda one: forked(lambda: _started(root, one)), samples))
    assert [one["archive"]["name"] for one in started] == [one.archive for one in samples]
    for key in ("id", "port", "socket_directory", "pid"):
        assert len({one[key] for one in started}) == AT_ONCE, key
    listed = call(session_info.main, session_root=str(root))["sessions"]
    assert [one["status"] for one in listed] == ["active"] * AT_ONCE
    with pytest.raises(AssertionError, match=rf"There are {AT_ONCE} sessions in .*, and max_sessions is {AT_ONCE}:"):
        Stack(root, sample, {"max_sessions": AT_ONCE}).start()
    call(session_module.main, session_root=str(root), state="absent", session_id="all")


def _another(sample: Sample, place: Path) -> Sample:
    """The same cluster in another archive, of another repository and at another path."""
    repository = sample.repository.copy(place / "repository", owner="root")
    (place / "extracted").mkdir()
    repository.borg("extract", f"{repository.location}::{sample.archive}", cwd=place / "extracted")
    data = place / "extracted" / sample.data_directory
    identifier, path = repository.archive("another", data), str(data).lstrip("/")
    return dataclasses.replace(
        sample, repository=repository, archive="another", archive_id=identifier, data_directory=path
    )


def _started(root: Path, sample: Sample) -> dict[str, Any]:
    stack = Stack(root, sample, {"max_sessions": AT_ONCE}, readers=1).start()
    record: dict[str, Any] = stack.info()
    assert fingerprint(stack.connection()) == sample.tables
    return record


def test_start_and_stop_of_one_session_exclude_each_other(root: Path, sample: Sample) -> None:
    """A stop in the middle of a step waits for it; the steps after it are refused."""
    stack = Stack(root, sample).start("layered")
    session, born = Session.open(str(stack.directory)), root.parent / "born"

    def stop() -> dict[str, Any]:
        born.touch()
        wait_until(session.is_locked, pause=0.001)
        return stack.change("absent")

    with ThreadPoolExecutor(1) as pool:
        stopping = pool.submit(forked, stop)
        wait_until(born.exists)  # a child of the step itself would hold its lock
        with contextlib.suppress(AssertionError):
            stack._serve()
        stopped = stopping.result()
        assert "failed" not in stopped, stopped["msg"]
        assert stopped["session"]["status"] == "stopped"
    assert remains(root) == []


def test_what_lost_its_session_is_reaped_and_nothing_else(root: Path, sample: Sample) -> None:
    stack = Stack(root, sample).start()
    lost = str(root / "20200101-000000-0000")
    (root / "notes").mkdir()
    stray = spawn(["sleep", "600"], log=str(root / "notes" / "log"), env={MARKER: lost})
    other = spawn(["sleep", "600"], log=str(root / "notes" / "log"), env={MARKER: "/elsewhere/20200101-000000-0000"})
    try:
        planned = call(session_reap.main, session_root=str(root), check=True)
        reaped = call(session_reap.main, session_root=str(root))
        assert planned["reaped"] == reaped["reaped"] == [f"process {stray.pid} (sleep)"]
        assert not stray.alive()
        assert other.alive()
        assert stack.info()["status"] == "active"
        assert call(session_reap.main, session_root=str(root))["reaped"] == []
    finally:
        for process in (stray, other):
            if process.alive() and identify(process.pid) == process:
                os.kill(process.pid, signal.SIGKILL)
        (root / "notes" / "log").unlink()
        (root / "notes").rmdir()
        stack.change("absent")


def test_a_session_without_its_record_is_reaped(root: Path, sample: Sample) -> None:
    stack = Stack(root, sample).start()
    for name in ("session.json", "lock"):
        (stack.directory / name).unlink()
    assert len(stack.reap()) == 1


def test_a_keeper_that_was_killed_is_started_again(root: Path, sample: Sample, clock: Clock) -> None:
    stack = Stack(root, sample, {"ttl": "1h"}).start()
    before = stack.processes()
    stack.kill("keeper")
    stack.change("extended", ttl="2h")
    assert stack.processes()["keeper"] != before["keeper"]
    clock.forward(121 * MINUTE)
    wait_until(lambda: not stack.directory.exists())
    assert stack.info()["stop_reason"] == "its time is over (ttl 2 h)"
