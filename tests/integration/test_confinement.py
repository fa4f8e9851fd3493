# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A server of a session beside a live production: what it cannot reach, whoever asks for it.

Each test is run behind each of the walls by itself: with namespaces and a user of its own, as root has them; with
namespaces alone, as an ordinary user has them; and with Landlock alone, as production's own user, which is the second
wall: what it holds by itself, and no session is started behind it alone unless that is accepted.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._host import sandbox as _sandbox
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._host.command import (
    Account,
    CommandError,
    account,
)
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._host.confined.landlock import landlock_version
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._host.processes import Process, end_family
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._host.sandbox import Sandbox, SandboxError

from tests.integration.conftest import needs_root
from tests.support.clock import wait_until
from tests.support.cluster import QUIET, Cluster
from tests.support.copies import Copy
from tests.support.forked import forked

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = needs_root

WALLS = ("all", "root's namespaces", "a user's namespaces", "Landlock")
UNREACHABLE = re.compile("ermission denied|not permitted|No such (?:file|process)|does not exist|Read-only file system")


@dataclass
class Confined(Copy):
    """A copy whose server stands behind one kind of walls."""

    walls: str = "all"
    network: str = "none"

    def as_caller(self, function: Callable[[], Any]) -> Any:
        """What function returns with a kernel that has only these walls."""

        def behind() -> Any:
            if self.walls in ("root's namespaces", "a user's namespaces"):
                _sandbox.landlock_version = lambda: 0
            if self.walls == "Landlock":
                _sandbox._has_namespaces = lambda: False
                _sandbox.missing_walls = lambda _account: None  # no start is made behind it alone
            return function()

        return forked(behind, user=self.caller)


@pytest.fixture(scope="module")
def live(shared_place: Path) -> Iterator[Cluster]:
    """A live server with a table, and its files at rest."""
    with Cluster(directory=shared_place / "confined-production", settings=QUIET) as cluster:
        for table in ("t", "none", "host"):
            cluster.sql(f'create table "{table}" as select generate_series(1, 1000) id', database="postgres")
        cluster.sql("checkpoint", database="postgres")
        yield cluster


@pytest.fixture(scope="module", params=[pytest.param(one, marks=pytest.mark.xdist_group(one)) for one in WALLS])
def silent(request: pytest.FixtureRequest, live: Cluster, shared_place: Path) -> Iterator[Confined]:
    """A copy behind one kind of walls, whose server calls nobody."""
    walls: str = request.param
    if walls == "Landlock" and landlock_version() < 6:
        pytest.skip("the kernel's Landlock keeps no signals back")
    home = Path(tempfile.mkdtemp(prefix="home-", dir=shared_place))
    home.chmod(0o711)
    made = Copy.of(live, home / "s", caller=None if walls in WALLS[:2] else "postgres")
    confined = Confined(directory=made.directory, data=made.data, caller=made.caller, walls=walls)
    # A port that no other session takes while this one is started anew.
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:])
    confined.options["port"] = 17432 + 10 * worker + WALLS.index(walls)
    result = confined.start()
    assert "failed" not in result, (result["msg"], result.get("log_tail"))
    yield confined
    assert confined.end() == []


@pytest.fixture(scope="module", params=["none", "host"])
def network(request: pytest.FixtureRequest) -> str:
    """Of the module's scope, so that pytest puts those tests together that want the same: one server serves them."""
    chosen: str = request.param
    return chosen


@pytest.fixture
def copy(network: str, silent: Confined) -> Confined:
    """The copy with and without leave to call others."""
    if silent.network != network:
        silent.stop()
        silent.network = network
    result = silent.start(network=silent.network)
    assert "failed" not in result, (result["msg"], result.get("log_tail"))
    return silent


def state(directory: Path) -> dict[str, tuple[int, str]]:
    """Time of the last change and checksum of every file, but for the log, which notes each connection."""
    files = (path for path in directory.rglob("*") if path.is_file())
    return {str(path): (path.stat().st_mtime_ns, hashlib.sha256(path.read_bytes()).hexdigest()) for path in files}


def denied(copy: Copy, statement: str) -> bool:
    """Whether the statement fails, because what it asks for is closed or cannot even be seen."""
    with pytest.raises(RuntimeError) as error:
        copy.sql(statement)
    return UNREACHABLE.search(str(error.value)) is not None


def said_by(copy: Copy, program: str) -> str:
    """What a program says that the copy's server starts.

    It may fail, hence "|| true": COPY would drop what a failing program has said, and that is what is looked at.
    """
    copy.sql("create table if not exists said (line text); truncate said")
    copy.sql(f"copy said from program '{program} 2>&1 || true'")
    return copy.sql("select coalesce(string_agg(line, ' '), '') from said")


def listeners() -> set[str]:
    """Addresses and ports that somebody on this host listens at."""
    said = subprocess.run(["ss", "-Hltn"], check=True, capture_output=True, text=True).stdout
    return {line.split()[3] for line in said.splitlines()}


def test_no_file_of_production_can_be_opened(live: Cluster, copy: Confined) -> None:
    told = " ".join(entry["what"] for entry in copy.record["server"]["neutralised"])
    assert "files outside of the session closed to the server" in told
    before = state(live.data)
    copy.sql("create table if not exists mine (line text)")
    version = live.data / "PG_VERSION"
    assert denied(copy, f"copy t to '{live.data}/new'")
    assert denied(copy, f"copy mine from '{version}'")
    assert denied(copy, f"select pg_read_file('{version}')")
    assert UNREACHABLE.search(said_by(copy, f"cat {version}"))
    (live.directory / "tablespace").mkdir(exist_ok=True)
    os.chown(live.directory / "tablespace", live.data.stat().st_uid, -1)
    assert denied(copy, f"create tablespace elsewhere location '{live.directory}/tablespace'")
    assert state(live.data) == before


def test_a_link_that_appears_later_leads_nowhere(live: Cluster, copy: Confined) -> None:
    path = copy.sql(f"select pg_relation_filepath('{copy.network}')")
    before = state(live.data)
    aside = copy.path(path).with_suffix(".aside")
    copy.path(path).rename(aside)
    copy.path(path).symlink_to(live.data / path)
    try:
        assert denied(copy, f'select count(*) from "{copy.network}"')
        assert denied(copy, f'update "{copy.network}" set id = 0')
    finally:
        aside.replace(copy.path(path))  # with the link another start would be refused
    assert state(live.data) == before


def test_shared_memory_of_production_cannot_be_opened(live: Cluster, copy: Confined) -> None:
    pid = int((live.data / "postmaster.pid").read_text().split()[0])
    segments = set(re.findall(r"/dev/shm/PostgreSQL\.\d+", Path(f"/proc/{pid}/maps").read_text()))
    assert segments, "production has none"
    before = {segment: os.stat(segment).st_size for segment in segments}
    for segment in segments:
        assert denied(copy, f"copy (select 1) to '{segment}'")
        assert denied(copy, f"select pg_read_binary_file('{segment}')")
    assert {segment: os.stat(segment).st_size for segment in segments} == before


def test_processes_of_production_get_no_signals(live: Cluster, copy: Confined) -> None:
    pid = int((live.data / "postmaster.pid").read_text().split()[0])
    assert UNREACHABLE.search(said_by(copy, f"kill -INT {pid}"))
    assert live.sql("select count(*) from t", database="postgres") == "1000"


def test_processes_of_production_keep_limits_and_priorities(live: Cluster, copy: Confined) -> None:
    pid = int((live.data / "postmaster.pid").read_text().split()[0])

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
        assert UNREACHABLE.search(said_by(copy, program)), program
    assert treatment() == before
    # Its own limits are its own affair: the shell's ulimit is prlimit64(), too.
    assert said_by(copy, "ulimit -n 64 && ulimit -n") == "64"


def test_modes_and_times_of_production_stay(live: Cluster, copy: Confined) -> None:
    directory, file = live.directory, live.data / "PG_VERSION"
    before = [path.stat() for path in (directory, file)]
    for program in (f"chmod 0700 {directory}", f"touch {file}", f"chown postgres {file}", f"cp -p /etc/hosts {file}"):
        said_by(copy, program)
    changes = [(state.st_mode, state.st_mtime_ns, state.st_ctime_ns) for state in before]
    now = [path.stat() for path in (directory, file)]
    assert [(state.st_mode, state.st_mtime_ns, state.st_ctime_ns) for state in now] == changes
    # The socket's mode is right without chmod(): see _sandbox_calls. It is to be seen where there are no namespaces.
    mode = said_by(copy, f"stat -c %a {copy.run}/.s.PGSQL.{copy.record['port']}")
    assert int(mode, 8) & 0o077 == 0
    assert copy.walls == "Landlock" or not list(copy.run.iterdir())


def test_nobody_is_called(live: Cluster, copy: Confined) -> None:
    copy.sql("create extension if not exists dblink")
    user = live.superuser.replace("'", "''")
    through_socket = f"host={live.run} port=5432 dbname=postgres user=''{user}''"
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        if copy.network == "host":
            said_by(copy, f'bash -c "exec 3<>/dev/tcp/127.0.0.1/{port}"')
            listening.settimeout(10)
            listening.accept()[0].close()
        else:
            assert denied(copy, f"select dblink_connect('host=127.0.0.1 port={port} dbname=x connect_timeout=5')")
            listening.settimeout(0)
            with pytest.raises(BlockingIOError):
                listening.accept()
    # One that may call is told no way to production's socket, unless it is Landlock alone that keeps it from the rest.
    if copy.network == "none" or copy.walls != "Landlock":
        assert denied(copy, f"select dblink_connect('{through_socket}')")


def test_secrets_in_etc_are_closed(live: Cluster, copy: Confined) -> None:
    secret = Path(f"/etc/ir-secret-{os.getpid()}.conf")
    secret.write_text("repo1-cipher-pass=SECRET\n")
    secret.chmod(0o644)
    try:
        assert denied(copy, f"select pg_read_file('{secret}')")
        assert "SECRET" not in said_by(copy, f"cat {secret}")
        if copy.walls != "Landlock":
            assert secret.name not in said_by(copy, "ls /etc")
        assert said_by(copy, "getent hosts localhost | wc -l") == "1"
    finally:
        secret.unlink()


def test_only_the_sessions_port_can_be_listened_on(live: Cluster, copy: Confined) -> None:
    if landlock_version() < 4:
        pytest.skip("the kernel's Landlock knows no ports")
    listen = 'python3 -c "import socket; s = socket.socket(); s.bind((chr(48), {port})); s.listen(); print(chr(42))"'
    if copy.walls in ("all", "Landlock"):
        assert "Permission denied" in said_by(copy, listen.format(port=31337))


def test_what_listens_in_its_network_is_not_heard_of_outside(live: Cluster, copy: Confined) -> None:
    """Landlock knows bind() alone: listen() without it gets a random port, on all addresses."""
    if copy.walls == "Landlock" or copy.network == "host":
        pytest.skip("without a network of its own: see SECURITY.md")
    name = f"ir-{os.getpid()}"
    script = copy.data / "listens.py"
    script.write_text(f"""
import socket, time
unbound = socket.socket(); unbound.listen()
other = socket.socket(socket.AF_INET6)
try:
    other.bind(("::1", {copy.record["port"]}))
    other.listen()
except OSError:
    pass
abstract = socket.socket(socket.AF_UNIX)
abstract.bind("\\0{name}")
abstract.listen()
print(unbound.getsockname()[1], len(open("/proc/net/tcp").readlines()), flush=True)
time.sleep(3)
""")
    script.chmod(0o644)
    before = listeners()
    said = said_by(copy, f"(exec setsid python3 -I -S {script} 2>&1 &) | head -1")
    port, visible = map(int, said.split())
    assert port > 0
    assert visible < 10  # its own, and none of the host's
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=5)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("::1", copy.record["port"]), timeout=5)
    assert f"@{name}" not in Path("/proc/net/unix").read_text()
    assert not {address for address in listeners() - before if address.endswith(f":{port}")}


def test_no_other_kind_of_socket_is_to_be_had(live: Cluster, copy: Confined) -> None:
    """Landlock knows ports of TCP alone: others could be listened on at production's."""
    attempt = 'python3 -c "import socket; s = socket.socket({family}, {kind}, {protocol}); print(chr(42))"'
    kinds = [(2, 1, 262), (10, 1, 262), (2, 3, 1), (16, 3, 4), (40, 1, 0), (17, 3, 0)]
    for family, kind, protocol in [*kinds, *([(2, 2, 0), (2, 2, 17)] if copy.network == "none" else [])]:
        said = said_by(copy, attempt.format(family=family, kind=kind, protocol=protocol))
        assert UNREACHABLE.search(said), (family, kind, protocol, said)
    for family, kind, protocol in [(1, 1, 0), (2, 1, 0), (10, 1, 6), *([(2, 2, 17)] if copy.network == "host" else [])]:
        assert said_by(copy, attempt.format(family=family, kind=kind, protocol=protocol)) == "*"


def test_parts_of_the_kernel_are_closed(live: Cluster, copy: Confined) -> None:
    """Key rings, objects of System V, queues, namespaces, io_uring, inotify; also where it may open connections."""
    segment = subprocess.run(["ipcmk", "-M", "4096", "-p", "0666"], check=True, capture_output=True, text=True).stdout
    number = segment.split()[-1]
    try:
        if copy.walls != "Landlock":
            assert number not in said_by(copy, "ipcs -m").split()
            said_by(copy, f"ipcrm -m {number}")
            assert number in subprocess.run(["ipcs", "-m"], check=True, capture_output=True, text=True).stdout.split()
        for program in ("unshare -Urn true", "unshare -m true"):
            assert UNREACHABLE.search(said_by(copy, program)), program
        numbers = (250, 248, 425, 321, 298, 323, 272, 165, 240, 294, 300, 206, 162, 306, 179, 443, 447)
        calls = [f"{number}, 0, 0, 0, 0, 0" for number in numbers]
        # Pages that the host has reserved for others (mmap, memfd_create, shmget), and a pair of sockets of TIPC.
        calls += ["9, 0, 2097152, 3, 0x40021, -1, 0", "319, 0, 4", "29, 0, 2097152, 0o5600", "53, 30, 1, 0, 0"]
        # Filters, and limits of core dumps, which may start a program of the host's.
        calls += [
            "157, 22, 2, 0",
            "157, 62, 1, 0, 0, 0",
            "317, 1, 0, 0",
            "54, 1, 1, 26, 0, 0",
            "160, 4, 0",
            "302, 0, 4, 4096, 0",
            "16, 1, 0x9408",
        ]
        for call in calls if os.uname().machine == "x86_64" else ():
            imports, ask = "import ctypes as c; l = c.CDLL(None, use_errno=True)", f"l.syscall({call})"
            assert said_by(copy, f'python3 -c "{imports}; print({ask}, c.get_errno())"') == "-1 13", call
    finally:
        subprocess.run(["ipcrm", "-m", number], check=True)


def test_the_program_is_the_first_to_go_when_memory_is_short(live: Cluster, copy: Confined) -> None:
    """And its memory goes nowhere in a core dump: a socket would get it whatever the limit is."""
    assert said_by(copy, "cat /proc/self/oom_score_adj") == "1000"
    assert int(said_by(copy, "cat /proc/self/coredump_filter"), 16) == 0
    for setting in ("oom_score_adj", "coredump_filter", "autogroup"):
        assert UNREACHABLE.search(said_by(copy, f"(echo 0 > /proc/self/{setting}) 2>&1")), setting


def test_no_lock_of_a_hosts_file_is_to_be_had(live: Cluster, copy: Confined) -> None:
    """Programs and libraries are the host's own files, which its scripts may lock as well."""
    script = copy.data / "locks.py"
    script.write_text("""
import fcntl, sys, time
with open("/usr/bin/true") as program:
    fcntl.flock(program, fcntl.LOCK_EX)
    fcntl.lockf(program, fcntl.LOCK_SH)
    print("locked", flush=True)
    time.sleep(3)
""")
    script.chmod(0o644)
    assert said_by(copy, f"(exec setsid python3 -I -S {script} 2>&1 &) | head -1") == "locked"
    with open("/usr/bin/true", "rb") as program:
        fcntl.flock(program, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_where_there_is_no_network_there_are_no_other_sockets_either(live: Cluster, copy: Confined) -> None:
    """Of a room for tools. Some families have no namespaces, such as a hypervisor's (AF_VSOCK)."""
    attempt = "import socket, sys; socket.socket(*map(int, sys.argv[1:]))"
    room = Sandbox(account(copy.user), network="none", session_directory=str(copy.directory))

    def said(*socket: str) -> str:
        return room.run(["/usr/bin/python3", "-I", "-S", "-c", attempt, *socket], timeout=60, check=False).stderr

    for wanted in ("2 1 0", "2 2 0", "2 1 262", "10 1 0", "16 3 0", "40 1 0"):
        assert UNREACHABLE.search(copy.as_caller(lambda wanted=wanted: said(*wanted.split()))), wanted
    assert copy.as_caller(lambda: said("1", "1", "0")) == ""


def running(command: str) -> bool:
    return subprocess.run(["pgrep", "-fx", command], check=False, capture_output=True).returncode == 0


def test_nothing_survives_a_stop(live: Cluster, copy: Confined) -> None:
    """Neither a process that hides its descent nor one that was started before anybody could connect."""
    mark = f"11{os.getpid()}"
    said_by(copy, f"(exec env -i setsid sleep {mark} </dev/null >/dev/null 2>&1) & sleep 0.1")
    assert running(f"sleep {mark}")
    assert copy.stop()["changed"]
    copy.network = "stopped"
    assert not running(f"sleep {mark}")


def test_nothing_survives_a_killed_server(live: Cluster, copy: Confined) -> None:
    mark = f"12{os.getpid()}"
    said_by(copy, f"(exec env -i setsid sleep {mark} </dev/null >/dev/null 2>&1) & sleep 0.1")
    assert running(f"sleep {mark}")
    os.kill(copy.record["server"]["pid"], signal.SIGKILL)
    wait_until(lambda: not running(f"sleep {mark}"))


def test_nothing_survives_its_warden_whatever_it_makes_of_itself(live: Cluster, copy: Confined) -> None:
    """Code of the archive in the program's own process can unbind it from its parent, and be deaf to signals."""
    mark = f"14{os.getpid()}"
    program = (
        "import ctypes, signal, time; ctypes.CDLL(None).prctl(1, 0, 0, 0, 0); "
        f"signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65)); time.sleep({mark})"
    )
    room = Sandbox(account(copy.user), network="none", session_directory=str(copy.directory))
    wardens: list[Process] = []

    def begin() -> Process:
        argv = ["/usr/bin/python3", "-I", "-S", "-c", program]
        room.start(argv, log=os.devnull, env={}, claim=wardens.append)
        return wardens[0]

    warden = copy.as_caller(begin)
    wait_until(lambda: running(f".*time.sleep.{mark}.*"))
    if copy.walls == "Landlock":  # nothing is above the warden there
        assert end_family(warden, (("SIGKILL", 5.0),)) == []
    else:
        os.kill(warden.pid, signal.SIGKILL)
    wait_until(lambda: not running(f".*time.sleep.{mark}.*"))


def test_what_is_cut_off_ends_with_all_that_it_started(live: Cluster, copy: Confined) -> None:
    """A tool's time-out: neither the program nor its child has to end with the one that we kill."""
    mark = f"13{os.getpid()}"
    room = Sandbox(account(copy.user), network="none", session_directory=str(copy.directory))
    program = f"setsid sleep {mark} & sleep {mark}"

    def cut_off() -> str:
        with pytest.raises(CommandError, match="did not finish within 1 s") as error:
            room.run(["/bin/sh", "-c", program], timeout=1)
        return str(error.value)

    assert copy.as_caller(cut_off)
    assert not running(f"sleep {mark}")


def test_shared_memory_of_its_own_namespace_is_none_of_the_hosts(live: Cluster, copy: Confined) -> None:
    noted = next(claim for claim in copy.record["claims"] if claim["name"] == "server")["shared_memory"]
    assert [name for name in noted if name.startswith("sysv")] == [] or copy.walls == "Landlock"


def test_a_host_without_walls_is_refused(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    room = Sandbox(Account("postgres", 101, 104), network="serve")
    monkeypatch.setattr(_sandbox, "_has_namespaces", lambda: False)
    for version in (0, 6):
        monkeypatch.setattr(_sandbox, "landlock_version", lambda version=version: version)
        with pytest.raises(SandboxError, match=r"user\.max_user_namespaces.*accept_unconfined=true"):
            room.report()
        _done, warnings = replace(room, accept_unconfined=True).report()
        assert "is not confined as it should be, which was accepted" in warnings[0]
    monkeypatch.setattr(_sandbox, "_has_namespaces", lambda: True)
    assert room.report()[1] == []
    monkeypatch.setattr(_sandbox, "can_filter_calls", lambda: False)
    with pytest.raises(SandboxError, match="seccomp"):
        room.report()


def test_a_file_of_etc_may_be_replaced_while_a_program_is_locked_up() -> None:
    """As useradd(8) and ldconfig(8) do: whoever holds the old file open cannot mount it any more."""
    path, over = Path("/etc/host.conf"), threading.Event()
    content, room = path.read_bytes(), Sandbox(account("postgres"))

    def replace_it() -> None:
        while not over.is_set():
            os.replace(shutil.copy2(path, path.with_suffix(".ir-new")), path)

    writer = threading.Thread(target=replace_it)
    writer.start()
    try:
        said = {room.run(["/bin/cat", str(path)], timeout=30).stdout for _turn in range(20)}
    finally:
        over.set()
        writer.join()
    assert said == {content}
