# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Sessions on a host that systemd runs: units, their caps, and nothing left of them."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.cluster import Connection, fingerprint
from tests.support.host import processes_below, remains
from tests.support.playbook import CHECKOUT, Playbooks, Run

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.integration.conftest import Sample
    from tests.support.container import Container

UNITS = "*instant_recovery*"
MEMORY = 1 << 30
SHARE = {"memory_max": "1G", "cpu_weight": 20, "io_weight": 10}
USUAL = {"CPUWeight": "100", "IOWeight": "100"}


@pytest.fixture(name="playbooks")
def _playbooks(host: Container, shared_place: Path, sample: Sample) -> Iterator[Playbooks]:
    """Playbooks that run in the host; nothing of a session is left there at the end."""
    runner = Playbooks(
        directory=shared_place / "ansible",
        session_root=shared_place / "sessions",
        environment=sample.repository.environment,
    )
    runner.wrapper = host.command(runner.process_environment(Path("/")))
    yield runner
    succeed(runner.stop("all"))
    assert remains(shared_place / "sessions") == []
    await_units(host, [])


def test_a_session_is_a_slice(host: Container, playbooks: Playbooks, sample: Sample) -> None:
    session = succeed(playbooks.start(archive=sample.name, **SHARE)).session
    assert fingerprint(connection(session, sample)) == sample.tables
    name = check_units(host, session)
    assert host.property(name, "MemoryMax") == str(MEMORY)
    assert host.property(name, "CPUWeight") == "20"
    assert host.property(name, "IOWeight") == "10"
    # A neighbour of services, so that its weight counts against theirs.
    group = host.property(name, "ControlGroup")
    assert group == f"/system.slice/{name}"
    caps = kernel_caps(host, group)
    assert caps.get("memory.max", caps.get("memory.limit_in_bytes")) == str(MEMORY)
    # Shares of the older hierarchy are 1024 where weights are 100.
    assert caps.get("cpu.weight", caps.get("cpu.shares")) in ("20", "204")
    assert caps.get("io.weight", "default 10") == "default 10"

    before = host.units("postgresql@*.service")
    succeed(playbooks.stop(session["id"]))
    await_units(host, [])
    assert host.units("postgresql@*.service") == before


def test_what_takes_too_much_memory_ends_alone(host: Container, playbooks: Playbooks, sample: Sample) -> None:
    session = succeed(playbooks.start(archive=sample.name, **SHARE)).session
    server = connection(session, sample)
    with pytest.raises(RuntimeError, match=r"closed the connection|connection to server was lost"):
        server.sql(GREEDY)
    deadline = time.monotonic() + 30
    while (answer := answers(server)) != "1":
        assert time.monotonic() < deadline, answer
        time.sleep(0.2)
    assert state(playbooks, session) == "active"
    check_units(host, session)


def test_a_reset_and_a_new_keeper_stay_in_the_slice(host: Container, playbooks: Playbooks, sample: Sample) -> None:
    session = succeed(playbooks.start(archive=sample.name, **SHARE)).session
    keeper = next(pid for pid, command in processes_below(directory(session)) if "keeper.pyz" in command)
    host.run("systemctl", "kill", "--signal=KILL", next(name for name in host.units(UNITS) if "-keeper-" in name))
    while Path(f"/proc/{keeper}").exists():
        time.sleep(0.05)
    succeed(playbooks.run("extend", session_id=session["id"], ttl="1h"))
    succeed(playbooks.run("reset", session_id=session["id"]))
    check_units(host, session)
    # The keeper, itself in the slice, can end the session.
    succeed(playbooks.run("extend", session_id=session["id"], ttl="1s"))
    await_units(host, [])
    assert state(playbooks, session) is None


def test_without_limits_the_units_have_none(host: Container, playbooks: Playbooks, sample: Sample) -> None:
    session = succeed(playbooks.start(archive=sample.name)).session
    name = check_units(host, session)
    assert {key: host.property(name, key) for key in USUAL} == USUAL
    assert (
        0.45 < int(host.property(name, "MemoryMax")) / (os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")) < 0.55
    )
    assert host.property(name, "TasksMax") == "5000"
    # Stopping the slice ends all of the session, and only of this one.
    other = succeed(playbooks.start(archive=sample.name)).session
    host.run("systemctl", "stop", name)
    assert processes_below(directory(session)) == []
    check_units(host, other)
    assert connection(other, sample).sql("select 1") == "1"


def test_a_systemd_that_does_not_do_it_fails_no_start(host: Container, playbooks: Playbooks, sample: Sample) -> None:
    # Nothing is moved out of the service that Ansible is run as, so that has to leave it alone, as sshd does.
    playbooks.wrapper = host.command(playbooks.process_environment(Path("/")), "KillMode=process")
    host.run("mount", "--bind", "/bin/false", "/usr/bin/busctl")
    try:
        started = succeed(playbooks.start(archive=sample.name, **SHARE))
    finally:
        host.run("umount", "/usr/bin/busctl")
    assert "systemd did not take server of session" in started.output
    assert fingerprint(connection(started.session, sample)) == sample.tables
    assert host.units(UNITS) == []
    for pid, command in processes_below(directory(started.session)):
        if "keeper.pyz" in command:
            continue
        assert int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[16]) >= 7, command


def test_children_that_were_quicker_are_moved_too(host: Container, shared_place: Path) -> None:
    program = shared_place / "stragglers.py"
    program.write_text(STRAGGLERS)
    assert host.run(sys.executable, "-B", str(program), str(CHECKOUT), str(shared_place)) == "5 of 5"
    await_units(host, [])


#: A process that has started children before it is put into a unit, some of whom have children of their own.
STRAGGLERS = r"""
import os, sys, time
sys.path.insert(0, sys.argv[2])
os.makedirs(sys.argv[2] + "/ansible_collections/phpborg", exist_ok=True)
link = sys.argv[2] + "/ansible_collections/phpborg/instant_recovery"
os.path.islink(link) or os.symlink(sys.argv[1], link)
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._host import processes as _processes
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._host import limits as _resources
directory = sys.argv[2] + "/sessions/20200101-000000-0000"
script = "sleep 60 & sleep 60 & sh -c 'sleep 60 & wait' & wait"
process = _processes.spawn(["sh", "-c", script], log=sys.argv[2] + "/stragglers.log", env={})
while len(_processes.descendants(process)) < 4:
    time.sleep(0.01)
everyone = [process, *_processes.descendants(process)]
_resources.confine(directory, _resources.UNLIMITED, "server", process, kind="server")
name = "/" + _resources.slice_of(directory) + "/"
inside = [one for one in everyone if name in open(f"/proc/{one.pid}/cgroup").read()]
print(len(inside), "of", len(everyone))
_processes.stop_all(everyone, [("SIGKILL", 5)])
"""


#: Takes 1.8 GB, in pieces that are allowed.
GREEDY = """
    do $$ declare parts text[]; begin for i in 1..9 loop parts[i] := repeat(i::text, 200000000); end loop; end $$
"""


def succeed(run: Run) -> Run:
    assert run.returncode == 0, run.output
    return run


def directory(session: dict[str, Any]) -> Path:
    return Path(session["overlay_merged_dir"]).parent


def connection(session: dict[str, Any], sample: Sample) -> Connection:
    return Connection.of_session(session, bindir=sample.bindir)


def answers(server: Connection) -> str:
    with contextlib.suppress(RuntimeError):
        return server.sql("select 1")
    return ""


def state(playbooks: Playbooks, session: dict[str, Any]) -> str | None:
    listed = succeed(playbooks.sessions()).stats["instant_recovery_sessions"]
    return next((str(one["status"]) for one in listed if one["id"] == session["id"]), None)


def check_units(host: Container, session: dict[str, Any]) -> str:
    """Every process of the session is in a scope in its slice, whose name is returned."""
    escaped = session["id"].replace("-", r"\x2d")
    (name,) = [unit for unit in host.units(UNITS) if unit.endswith(".slice") and escaped in unit]
    running = processes_below(directory(session))
    assert len(running) > 5
    for pid, command in running:
        groups = Path(f"/proc/{pid}/cgroup").read_text()
        assert f"/system.slice/{name}/instant_recovery-{session['id']}-" in groups, f"{command}: {groups}"
    scopes = host.units(f"instant_recovery-{session['id']}-*.scope")
    claims = {unit.removeprefix(f"instant_recovery-{session['id']}-").rpartition("-")[0] for unit in scopes}
    assert claims >= {"keeper", "archive-1", "merged", "server"}
    assert [host.property(unit, "ActiveState") for unit in scopes] == ["active"] * len(scopes)
    return name


def kernel_caps(host: Container, group: str) -> dict[str, str]:
    """What the kernel has for a control group, in whichever hierarchy, as far as it has the controller."""
    found = {}
    files = ("memory.max", "cpu.weight", "io.weight", "memory/memory.limit_in_bytes", "cpu/cpu.shares")
    for file in files:
        hierarchy, _slash, name = file.rpartition("/")
        content = host.run("cat", f"/sys/fs/cgroup/{hierarchy}{group}/{name}", check=False)
        if "No such file" not in content:
            found[name] = content
    assert found, "no controller for memory or processors at all"
    return found


def await_units(host: Container, expected: list[str]) -> None:
    """systemd notes the end of processes a moment later."""
    deadline = time.monotonic() + 15
    while (units := host.units(UNITS)) != expected:
        assert time.monotonic() < deadline, units
        time.sleep(0.2)
