# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a session may take of its host, where systemd does not run it. tests/hosts has the other case."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.host import processes_below, remains
from tests.support.stack import Stack

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.integration.conftest import Sample

MEMORY = 256 << 20
LAYER = [str(2 << 30)] * 2  # the layer limits itself
OWN = os.getpriority(os.PRIO_PROCESS, 0)  # whoever runs the tests may be nice, and what they start is that, too
NICE = max(7, OWN)
without_systemd = pytest.mark.skipif(
    os.geteuid() == 0 and Path("/run/systemd/system").is_dir(), reason="systemd runs this host: see tests/hosts"
)


@pytest.fixture(name="stack", scope="module")
def _stack(shared_place: Path, sample: Sample) -> Iterator[Stack]:
    """A session with a small share of everything."""
    options = {"memory_max": "256M", "cpu_weight": 20, "io_weight": 10}
    stack = Stack(shared_place / "limited", sample, options, readers=2)
    try:
        yield stack.start()
    finally:
        stack.change("absent")
    assert remains(stack.root) == []


@without_systemd
def test_all_processes_get_the_share_of_the_session(stack: Stack) -> None:
    claimed = stack.processes()
    assert claimed.keys() >= {"keeper", "archive-1", "archive-2", "merged", "server"}
    stack.connection().sql("select 1")  # what serves clients was started by what was limited
    running = dict(processes_below(stack.directory))
    assert running.keys() > set(claimed.values()), "the server has children"
    del running[claimed.pop("keeper")]  # which has a low priority of its own
    for pid, command in running.items():
        for thread in map(int, os.listdir(f"/proc/{pid}/task")):
            assert os.getpriority(os.PRIO_PROCESS, thread) == NICE, command
            assert io_priority(thread) == "best-effort: prio 7", command
    # Each of our processes began a terminal session, and where those share the processors, it is the share that counts.
    for name, pid in claimed.items():
        group = Path(f"/proc/{pid}/autogroup")
        assert not group.exists() or group.read_text().endswith(f" nice {NICE}\n"), name


@without_systemd
def test_a_query_that_takes_too_much_memory_fails_alone(stack: Stack) -> None:
    connection, before = stack.connection(), stack.processes()["server"]
    assert data_limit(postmaster(stack)) == [str(MEMORY)] * 2
    assert data_limit(stack.processes()["archive-1"]) == [str(MEMORY)] * 2
    assert limit(stack.processes()["archive-1"], "Max file size") == [str(1 << 30)] * 2
    environment = Path(f"/proc/{stack.processes()['archive-1']}/environ").read_bytes().split(b"\0")
    assert os.fsencode(f"TMPDIR={stack.directory}/tmp") in environment  # what it puts aside counts, and goes with it
    assert data_limit(stack.processes()["keeper"]) == data_limit(os.getpid())  # it would not survive it
    assert data_limit(stack.processes()["merged"]) == LAYER
    assert connection.sql(f"select length(repeat('x', {MEMORY // 4}))") == str(MEMORY // 4)
    with pytest.raises(RuntimeError, match="ERROR:  out of memory"):
        connection.sql(f"select length(repeat('x', {MEMORY}))")
    assert connection.sql("select 1") == "1"
    assert stack.info()["status"] == "active"
    assert stack.processes()["server"] == before


@without_systemd
def test_a_new_server_gets_the_same(stack: Stack) -> None:
    stack.reset()
    for name, pid in stack.processes().items():
        if name == "keeper":
            continue
        assert os.getpriority(os.PRIO_PROCESS, pid) == NICE, name
        assert io_priority(pid) == "best-effort: prio 7", name
    assert data_limit(postmaster(stack)) == [str(MEMORY)] * 2


def test_unless_asked_for_memory_alone_is_limited(place: Path, sample: Sample) -> None:
    stack = Stack(place / "sessions", sample).start()
    half = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    try:
        assert data_limit(postmaster(stack)) == [str(half)] * 2
        for pid, command in processes_below(stack.directory):
            nice = min(19, OWN + 10) if "keeper.pyz" in command else OWN
            assert os.getpriority(os.PRIO_PROCESS, pid) == nice, command
            assert io_priority(pid).startswith("none"), command
            if "cowfs" in command:
                assert data_limit(pid) == LAYER
            elif "borg" in command.split()[1]:
                assert data_limit(pid) == [str(half)] * 2
    finally:
        stack.change("absent")


def postmaster(stack: Stack) -> int:
    pid: int = stack.info()["pid"]
    return pid


def io_priority(thread: int) -> str:
    """As ionice(1) tells it."""
    done = subprocess.run(["ionice", "-p", str(thread)], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def data_limit(pid: int) -> list[str]:
    return limit(pid, "Max data size")


def limit(pid: int, name: str) -> list[str]:
    """Soft and hard limit, as the kernel tells them."""
    lines = Path(f"/proc/{pid}/limits").read_text().splitlines()
    return next(line[len(name) :].split()[:2] for line in lines if line.startswith(name))
