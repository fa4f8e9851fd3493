# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Starting, recognising and stopping real processes."""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._host.command import CommandError
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._host.processes import (
    MARKER,
    Process,
    descendants,
    describe,
    identify,
    marked,
    spawn,
    stop,
    stop_all,
    wait_for_end,
)
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._host.shared_memory import shared_memory_of
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._host.users import processes_of

from tests.support.playbook import CHECKOUT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    Start = Callable[..., Process]

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
KILL = [("SIGKILL", 5.0)]


@pytest.fixture(name="start")
def _start(tmp_path: Path) -> Iterator[Start]:
    """Starts daemons that do not outlive the test; their log is tmp_path/log/out."""
    (tmp_path / "log").mkdir()
    started: list[Process] = []

    def start(argv: Sequence[str] = ("sleep", "60"), **options: object) -> Process:
        arguments: dict[str, object] = {"log": str(tmp_path / "log" / "out"), "env": {}, **options}
        started.append(spawn(argv, **arguments))  # type: ignore[arg-type]
        return started[-1]

    yield start
    stop_all(started, KILL)


def until(predicate: Callable[[], object]) -> None:
    deadline = time.monotonic() + 120
    while not predicate():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_process_is_known_by_more_than_its_pid(start: Start) -> None:
    process = start()
    assert process.alive()
    assert identify(process.pid) == process
    assert Process.from_dict(process.as_dict()) == process
    assert not dataclasses.replace(process, start_time=process.start_time - 1).alive()
    assert not dataclasses.replace(process, boot_id="another boot").alive()
    assert describe(process) == f"process {process.pid} (sleep)"


def test_a_zombie_has_ended() -> None:
    child = subprocess.Popen(["true"])
    until(lambda: identify(child.pid) is None)
    assert os.path.exists(f"/proc/{child.pid}")
    child.wait()


def test_stopping_is_asked_first_and_forced_then(start: Start, tmp_path: Path) -> None:
    script = f"trap 'echo asked' TERM; echo ready; while :; do read line <> {tmp_path}/fifo; done"
    os.mkfifo(tmp_path / "fifo")
    process = start(["sh", "-c", script])
    log = tmp_path / "log" / "out"
    until(lambda: "ready" in log.read_text())
    assert not stop(process, [("SIGTERM", 0.2)])
    assert process.alive()
    assert stop(process, [("SIGTERM", 0.2), ("SIGKILL", 5)])
    assert not process.alive()
    assert "asked" in log.read_text()


def test_stopping_returns_as_soon_as_it_has_ended(start: Start) -> None:
    process = start()
    begun = time.monotonic()
    assert stop(process, [("SIGTERM", 600)])
    assert time.monotonic() - begun < 300
    assert stop(process, [("SIGTERM", 30)])


def test_a_process_that_took_over_the_pid_is_not_stopped(start: Start) -> None:
    innocent = start()
    earlier = dataclasses.replace(innocent, start_time=innocent.start_time - 1)
    assert stop(earlier, KILL)
    assert innocent.alive()


def test_several_are_stopped_at_once(start: Start) -> None:
    stubborn = [start(["sh", "-c", "trap '' TERM; sleep 60; :"]) for _number in range(10)]
    until(lambda: all(descendants(process) for process in stubborn))
    begun = time.monotonic()
    assert stop_all(stubborn, [("SIGTERM", 2)]) == stubborn
    assert time.monotonic() - begun < 15  # one after the other takes 20
    assert stop_all(stubborn, KILL) == []


def test_waiting_for_an_end(start: Start) -> None:
    short, long = start(["sleep", "0.2"]), start()
    assert wait_for_end([short, long], timeout=0.5) == [long]
    assert wait_for_end([short], timeout=5) == []


def test_kernels_without_pidfd(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "pidfd_open")
    process = start()
    assert wait_for_end([process], timeout=0.1) == [process]
    assert stop(process, [("SIGTERM", 5)])


def test_the_mark_finds_what_was_never_recorded(start: Start, tmp_path: Path) -> None:
    session = str(tmp_path / "session")
    process = start(env={MARKER: session})
    start(env={MARKER: session + "-2"}), start(env={"OTHER": session})
    # exec closes the pipe that tells of it a moment before the kernel shows the new environment.
    until(Path(f"/proc/{process.pid}/environ").read_bytes)
    assert marked(session) == [process]
    stop(process, KILL)
    assert marked(session) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root lends rights")
def test_a_mark_that_somebody_else_gave_counts_for_nothing(tmp_path: Path) -> None:
    """A setuid program is root's and has its caller's environment: so anybody could keep a session from ending."""
    nobody, borrowed = 65534, tmp_path / "sleep"
    shutil.copy("/usr/bin/sleep", borrowed)
    for mode in (0o4755, 0o755):
        os.chmod(borrowed, mode)
        for path in (tmp_path, *tmp_path.parents[:-2]):
            os.chmod(path, path.stat().st_mode | 0o011)
        user = {"user": nobody, "group": nobody, "extra_groups": []} if mode == 0o4755 else {}
        with subprocess.Popen([borrowed, "60"], env={MARKER: str(tmp_path)}, **user) as process:
            until(Path(f"/proc/{process.pid}/environ").read_bytes)
            is_found = process.pid in [found.pid for found in marked(str(tmp_path))]
            process.kill()
        assert is_found == (mode == 0o755)


def test_who_reads_a_log_or_works_in_the_directory_is_not_of_the_session(start: Start, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").touch()
    elsewhere = str(tmp_path / "elsewhere")
    start(["tail", "-f", str(tmp_path / "log" / "out")], log=elsewhere)
    start(cwd=str(tmp_path), log=elsewhere)
    assert marked(str(tmp_path)) == []


def test_the_caller_and_its_ancestors_are_never_found(tmp_path: Path) -> None:
    """A tear-down that runs inside the session must not stop itself."""
    look = f"""import sys; sys.path[:0] = {sys.path!r}
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._host.processes import marked
print([process.pid for process in marked({str(tmp_path)!r})])"""
    script = 'sleep 60 & echo $!; "$@"; kill $!'
    done = subprocess.run(
        ["sh", "-c", script, "sh", sys.executable, "-c", look],
        env={**os.environ, MARKER: str(tmp_path)},
        stdout=subprocess.PIPE,
        text=True,
        timeout=20,
        check=True,
    )
    sleeping, found = done.stdout.split()
    assert found == f"[{sleeping}]"


def test_descendants_reach_through_several_generations(start: Start) -> None:
    process = start(["sh", "-c", "sh -c 'sleep 60; :'; :"])
    until(lambda: len(descendants(process)) == 2)
    below = descendants(process)
    stop_all([process, *below], KILL)
    assert descendants(process) == []


def test_a_daemon_is_detached_and_keeps_no_secret(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BORG_PASSPHRASE", "canary")
    process = start(["sh", "-c", "echo out; echo error >&2; exec sleep 60"], env={"GIVEN": "yes"})
    log = tmp_path / "log" / "out"
    until(lambda: log.read_text() == "out\nerror\n")
    assert log.stat().st_mode & 0o777 == 0o600
    assert os.getsid(process.pid) == process.pid
    assert os.readlink(f"/proc/{process.pid}/fd/0") == "/dev/null"
    assert os.readlink(f"/proc/{process.pid}/cwd") == "/"
    assert set(os.listdir(f"/proc/{process.pid}/fd")) == {"0", "1", "2"}
    environ = Path(f"/proc/{process.pid}/environ").read_bytes().split(b"\0")
    assert {b"GIVEN=yes", b"LC_ALL=C"} <= set(environ)
    assert not any(b"canary" in entry for entry in environ)


def test_a_daemon_can_report_on_a_descriptor(start: Start) -> None:
    reading, writing = os.pipe()
    start([sys.executable, "-c", f"import os; os.write({writing}, b'ready\\n')"], pass_fds=[writing])
    os.close(writing)
    assert os.read(reading, 100) == b"ready\n"
    os.close(reading)


def test_a_daemon_outlives_the_one_who_started_it(tmp_path: Path) -> None:
    script = f"""import os, signal, sys; sys.path[:0] = {sys.path!r}
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._host.processes import spawn
print(spawn(["sleep", "60"], log={str(tmp_path / "log")!r}, env={{}}).pid, flush=True)
os.killpg(0, signal.SIGKILL)"""
    argv = [sys.executable, "-c", script]
    done = subprocess.run(argv, stdout=subprocess.PIPE, text=True, start_new_session=True, timeout=20, check=False)
    assert done.returncode == -signal.SIGKILL
    process = identify(int(done.stdout))
    assert process is not None
    assert stop(process, KILL)


def test_a_daemon_that_cannot_start(start: Start, tmp_path: Path) -> None:
    with pytest.raises(CommandError, match="/no/such/program cannot be started"):
        start(["/no/such/program"])
    os.symlink("/etc/passwd", tmp_path / "link")
    os.mkfifo(tmp_path / "pipe")  # nobody will ever read it
    for log in ("link", "pipe"):
        with pytest.raises(CommandError, match=rf"its log .*/{log} cannot be written \(not a regular file\)"):
            start(log=str(tmp_path / log))


def test_one_that_fails_at_once_is_told_from_others(start: Start) -> None:
    process = start(["false"])
    assert wait_for_end([process], timeout=5) == []
    assert process.start_time > 0


@needs_root
def test_a_daemon_of_another_user(start: Start) -> None:
    process = start(user="nobody")
    assert os.stat(f"/proc/{process.pid}").st_uid != 0
    groups = Path(f"/proc/{process.pid}/status").read_text().split("Groups:")[1].splitlines()[0].split()
    assert "0" not in groups


@needs_root
def test_nobody_passes_for_another_user_by_the_name_of_a_process() -> None:
    """The kernel prints a carriage return in it as it is."""
    code = "import ctypes, time; ctypes.CDLL(None).prctl(15, b'a\\rUid:\\t4711\\t0'); print(flush=True); time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", code], user=65534, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        process.stdout.readline()
        assert b"\rUid:\t4711" in Path(f"/proc/{process.pid}/status").read_bytes()
        assert process.pid in processes_of(65534)
        assert process.pid not in processes_of(4711)
    finally:
        process.kill()
        process.wait()


def test_lines_of_what_the_kernel_tells_end_where_the_kernel_ends_them() -> None:
    """Names of files and processes may hold what else Python takes for the end of a line."""
    for path in (CHECKOUT / "plugins").rglob("*.py"):
        for call in re.findall(r"(?<!os\.)open\(f?\"/proc/[^)]*\)", path.read_text()):
            assert '"rb"' in call or '"w"' in call or 'newline="\\n"' in call, (path, call)


def test_shared_memory_is_that_of_the_file_and_not_of_a_name(tmp_path: Path) -> None:
    """What a process has mapped is told by path: one with a line break of Python's passed for another's segment."""
    other = Path("/dev/shm") / f"instant-recovery-{os.getpid()}"
    posing = tmp_path / "x\r0-0 rw-s 0 00:00 1 " / str(other).lstrip("/")
    posing.parent.mkdir(parents=True)
    code = "import mmap, sys; file = open(sys.argv[1], 'r+b'); mapped = mmap.mmap(file.fileno(), 0); print(flush=True)"
    code += "; sys.stdin.read()"
    try:
        for path in (other, posing):
            path.write_bytes(bytes(4096))
        found = []
        for path in (other, posing):
            with subprocess.Popen(
                [sys.executable, "-c", code, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
            ) as process:
                assert process.stdout is not None
                process.stdout.readline()
                found.append(shared_memory_of(process.pid))
        assert found == [[f"posix:{other.name}"], []]
    finally:
        other.unlink()
