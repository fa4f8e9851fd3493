# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A session on the production host itself, next to the live server, started from an archive full of traps.

Production runs all the time. Its archive is taken while it is frozen, as a file system's snapshot would be: so each tie
in it leads to a living thing. The session is started by the playbook, put to hard use and stopped, all under strace.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import signal
import stat
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.integration.conftest import needs_root
from tests.support.clock import MINUTE, Clock, wait_until
from tests.support.cluster import Cluster, Connection
from tests.support.host import free_port, remains
from tests.support.playbook import Playbooks
from tests.support.repository import Repository
from tests.support.trace import Touch, changes, touched_outside_rooms, tracing_interpreter

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = needs_root  # servers run as postgres, and FUSE is traced

SUPERUSER = "chief dba"


@dataclass(frozen=True)
class Hazard:
    """A row of the table of hazards: what the session must say of it, and what of production it would have changed."""

    what: str
    said: tuple[str, ...]  # patterns, each found in one entry of `neutralised`
    unchanged: tuple[str, ...]  # keys of Production.state()


HAZARDS = (
    Hazard(
        "links of tablespaces lead to production's files",
        (r"pg_tblspc/\d+ re-pointed to \S+/merged/\S+/space",),
        ("space", "late space"),
    ),
    Hazard("pg_wal is a link to production's WAL", (r"pg_wal re-pointed to \S+/merged/\S+/wal",), ("wal",)),
    Hazard(
        "WAL that is replayed makes a tablespace's link anew",
        (r"creation of tablespace \d+ in \S+/late space taken out of the WAL",),
        ("late space",),
    ),
    Hazard("a link leads to production's log", (r"link log to \S+/logs removed",), ("logs",)),
    Hazard(
        "the archived configuration names production's files, sockets and addresses",
        (r"postgresql\.auto\.conf emptied \(.*external_pid_file.*\)", r"listen_addresses=127\.0\.0\.1"),
        ("data", "sockets", "logs", "evidence", "pid"),
    ),
    Hazard(
        "WAL is pushed into production's archive, or removed from it",
        (r"archive_mode=off, archive_command emptied", r"restore_command emptied.*archive_cleanup_command emptied"),
        ("WAL archive", "evidence"),
    ),
    Hazard(
        "the copy follows production as its standby, and holds its slot",
        (r"standby\.signal removed", r"recovery\.signal removed", r"primary_conninfo emptied", r"slot for_standby rem"),
        ("slots", "connections", "logs"),
    ),
    Hazard(
        "a subscription takes production's slot at the publisher",
        (r"subscription s disabled and parted", r"max_logical_replication_workers=0", r"slot s removed"),
        ("slots", "connections", "logs", "rows"),
    ),
    Hazard(
        "production's memory and limits do not fit on the host beside it",
        (r"production's shared_buffers=100GB, huge_pages=on, max_connections=210, .* not taken over",),
        ("data",),
    ),
    Hazard("a preloaded library starts its workers", (r"library pg_prewarm not preloaded",), ("data", "logs")),
    Hazard("postmaster.pid names the living production", (r"postmaster\.pid removed",), ("pid", "data")),
    Hazard(
        "a trigger, a foreign table or a function of the copy calls production",
        (r"connections from the server to anywhere refused",),
        ("connections", "rows", "logs"),
    ),
    Hazard(
        "a program or CREATE TABLESPACE changes modes and times of production's files",
        (r"changes of modes, owners and times of files refused",),
        ("data", "space"),
    ),
    Hazard(
        "a program changes limits and priorities of production's processes",
        (r"limits and priorities of other processes refused",),
        ("limits",),
    ),
    Hazard(
        "a function, COPY or a link opens production's files",
        (r"files outside of the session closed to the server",),
        ("data", "space", "wal", "evidence"),
    ),
)

# What may be written outside of the session's directory by all that start, run and stop it, and why.
ELSEWHERE = {
    r"/dev/null": "keeps nothing",
    r"/dev/fuse": "how a FUSE mount is served",
    r"/proc/\d+/comm": "the layer's own name for ps",
    r"/proc/\d+/(oom_score_adj|coredump_filter)": "who goes first when memory is short, and nothing to be dumped",
    r"/sys/(class|devices/virtual)/bdi/[0-9:]+/read_ahead_kb": "of the layer's own mount",
    r"{place}/temporary(/.*)?": "TMPDIR, where Ansible unpacks modules, and Borg and Python keep temporary files",
    r"/run/instant_recovery(/uids(/\d+)?)?": "which session has which user id",
    r"{place}/borg(/.*)?": "Borg's own cache, and what it notes of repositories it has seen",
}


class Production:
    """The live cluster with all that belongs to it, each in a directory of its own below place."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.parts = {name: place / name for name in ("space", "late space", "wal", "WAL archive", "evidence", "logs")}
        for name, path in self.parts.items():
            if name != "wal":  # initdb makes it
                path.mkdir(parents=True)
                shutil.chown(path, "postgres")
        shutil.chown(place, "postgres")
        self.cluster = Cluster(
            directory=place / "production",
            superuser=SUPERUSER,
            initdb_options=[f"--waldir={self.parts['wal']}"],
            settings=self._settings(),
        )

    def _settings(self) -> dict[str, str]:
        archive, evidence = self.parts["WAL archive"], self.parts["evidence"]
        run = self.place / "production" / "run"
        return {
            "wal_level": "logical",
            "max_connections": "210",
            "max_prepared_transactions": "3",
            "archive_mode": "on",
            "archive_command": f'cp %p "{archive}/%f"',
            "archive_cleanup_command": f'rm "{archive}"/*; touch "{evidence}/cleaned"',
            "recovery_end_command": f'rm "{archive}"/*; touch "{evidence}/ended"',
            "restore_command": f'touch "{evidence}/restored"; cp "{archive}/%f" %p',
            "primary_conninfo": f"host={run} port=5432 user=''{SUPERUSER}''",
            "primary_slot_name": "for_standby",
            "external_pid_file": str(self.parts["logs"] / "external.pid"),
            "shared_preload_libraries": "pg_prewarm",
            "pg_prewarm.autoprewarm_interval": "0",
            "logging_collector": "on",
            "log_directory": "log",
            "log_filename": "production.log",
            "log_connections": "on",
            "log_statement": "all",
            # So that what is written at rest was not written by production itself.
            "autovacuum": "off",
        }

    def populate(self) -> None:
        """One of everything that leads back to production from a copy."""
        ask, quoted = self.cluster.connection.sql, str(self.cluster.run)
        for database in ("mirror", "shop"):
            ask(f"create database {database}")
        ask(f"create tablespace fast location '{self.parts['space']}'")
        ask("select pg_create_physical_replication_slot('for_standby', true)")
        ask("select pg_create_logical_replication_slot('s', 'pgoutput')", database="shop")
        ask(
            f"""
            create table goods tablespace fast as select generate_series(1, 1000) id;
            create table published (id int); create publication p for table published;
            create table called (at timestamptz default now());
            create extension dblink; create extension postgres_fdw;
            create function call() returns trigger language plpgsql as $$ begin
                perform dblink_exec('host={quoted} port=5432 dbname=shop user=''{SUPERUSER}''',
                                    'insert into called default values');
                return new; end $$;
            create server production foreign data wrapper postgres_fdw
                options (host '{quoted}', port '5432', dbname 'shop');
            create user mapping for public server production options (user '{SUPERUSER}', password_required 'false');
            create foreign table called_there (at timestamptz) server production options (table_name 'called');
            checkpoint
            """,
            database="shop",
        )
        ask("select pg_switch_wal()")  # recovery goes on in the next segment, from the middle of this one
        ask(f"create tablespace late location '{self.parts['late space']}'")
        ask(
            "create table lately tablespace late as select generate_series(1, 10) id;"
            # Not before: the trigger works in production.
            "create trigger call before insert on goods for each row execute function call()",
            database="shop",
        )
        conninfo = f"host={quoted} port=5432 dbname=shop user=''{SUPERUSER}''"
        options = "create_slot = false, slot_name = s, copy_data = false"
        ask(
            "create table published (id int);"
            f"create subscription s connection '{conninfo}' publication p with ({options})",
            database="mirror",
        )
        ask("insert into published values (1); insert into called default values", database="shop")

    def sort_otherwise(self) -> None:
        """A database as if it had been made where ICU was another one."""
        ask = self.cluster.connection.sql
        ask("create database sorted template template0 locale_provider icu icu_locale 'de'")
        ask(
            "create collation german (provider = icu, locale = 'de-DE'); create collation unused from german;"
            "create table names (name text collate german unique); insert into names values ('a'), ('ä');"
            "update pg_collation set collversion = '1.0' where collname in ('german', 'unused', 'fr-x-icu');"
            "update pg_database set datcollversion = '2.0' where datname = 'sorted'",
            database="sorted",
        )

    def snapshot(self, repository: Repository) -> None:
        """Archive it as it is at one moment, with more traps than a server could run with."""
        data = self.cluster.data
        traps = [data / "standby.signal", data / "recovery.signal"]
        for path in traps:
            path.touch()
        (data / "log").rename(self.parts["logs"] / "before")
        (data / "log").symlink_to(self.parts["logs"])
        with (data / "postgresql.auto.conf").open("a") as file:
            file.write("listen_addresses = '*'\nport = 5432\nshared_buffers = '100GB'\nhuge_pages = on\nssl = on\n")
            file.write(f"hba_file = '{data}/pg_hba.conf'\ndata_directory = '{data}'\n")
            file.write("synchronous_standby_names = 'somebody'\n")
        with frozen(self.processes()):
            repository.archive("frozen", data, *(self.parts[name] for name in ("wal", "space", "late space")))
        for path in traps:
            path.unlink()

    def rest(self) -> None:
        """Its slots are free for whoever wants them, and what it does by itself is done."""
        ask = self.cluster.connection.sql
        ask("alter subscription s disable", database="mirror")
        deadline = time.monotonic() + 60
        while ask("select count(*) from pg_replication_slots where active") != "0" and time.monotonic() < deadline:
            time.sleep(0.05)
        self.of_server()

    def processes(self, title: str = "") -> list[int]:
        """The server's process and then its children, or those with this title."""
        pid = self.cluster.pid
        assert pid is not None
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return [one for one in (pid, *map(int, children)) if title in command_line(one)]

    def state(self) -> dict[str, Any]:
        """Of each part, what may not change. The server is asked before its files are looked at."""
        return {**self.of_server(), **self.of_files()}

    def of_server(self) -> dict[str, Any]:
        ask = self.cluster.connection.sql
        return {
            "slots": ask("select slot_name, active, restart_lsn, confirmed_flush_lsn, xmin from pg_replication_slots"),
            "connections": ask(
                "select backend_type, usename from pg_stat_activity where pid <> pg_backend_pid() order by 1, 2"
            )
            + ask("select * from pg_stat_replication"),
            "rows": ask("select (select count(*) from called), (select count(*) from published)", database="shop"),
            "limits": (Path(f"/proc/{self.cluster.pid}/limits").read_text(), os.getpriority(0, self.cluster.pid)),
        }

    def of_files(self) -> dict[str, Any]:
        parts = {**self.parts, "data": self.cluster.data, "sockets": self.cluster.run}
        return {**{name: tree(path) for name, path in parts.items()}, "pid": self.cluster.pid}


@dataclass
class Story:
    """What was before the session, after it, and what was said and written in between."""

    before: dict[str, Any]
    after: dict[str, Any]
    neutralised: list[str]
    data: dict[str, Any]
    warnings: str
    trace: Path
    root: Path
    place: Path
    reset_at: float


@contextlib.contextmanager
def frozen(pids: list[int]) -> Iterator[None]:
    """Processes that do nothing while the with block lasts."""
    try:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):  # the last client's, on its way out
                os.kill(pid, signal.SIGSTOP)
        yield
    finally:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


def command_line(pid: int) -> str:
    """What ps shows of a process; nothing when it has ended."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_text()
    return ""


def tree(directory: Path) -> dict[str, tuple[Any, ...]]:
    """Of everything in directory: inode, owner, mode, size, the times of its last changes, and its content."""
    found = {}
    for path in (directory, *sorted(directory.rglob("*"))):
        state = path.lstat()
        content = os.readlink(path) if stat.S_ISLNK(state.st_mode) else None
        if stat.S_ISREG(state.st_mode):
            content = hashlib.sha256(path.read_bytes()).hexdigest()
        attributes = (state.st_ino, state.st_uid, state.st_mode, state.st_size, state.st_mtime_ns, state.st_ctime_ns)
        found[str(path)] = (*attributes, content)
    return found


def use(session: dict[str, Any], production: Production) -> Iterator[str]:
    """Put the session to hard use; yields what should have been refused and was not."""
    connection = Connection.of_session(session, bindir=production.cluster.bindir, os_user=None)
    data, parts = production.cluster.data, production.parts
    assert connection.sql("select count(*), (select sum(id) from lately) from goods", database="shop") == "1000|55"
    for database, statement in (
        ("shop", "alter table goods disable trigger call; insert into goods values (0)"),
        ("shop", "alter table goods enable trigger call"),
        ("shop", "create table more tablespace late as select * from goods; truncate goods"),
        ("shop", "vacuum full lately"),
        ("shop", "drop table more; checkpoint; select pg_switch_wal(); checkpoint"),
        ("postgres", f"alter system set archive_command = 'touch \"{parts['evidence']}/altered\"'"),
        ("postgres", f"alter system set archive_cleanup_command = 'touch \"{parts['evidence']}/altered\"'"),
        ("postgres", "select pg_reload_conf(), pg_switch_wal()"),
        ("mirror", "drop subscription s; drop table published"),
        ("postgres", "drop database mirror"),
    ):
        connection.sql(statement, database=database)
    workers = connection.sql("select string_agg(backend_type, ',') from pg_stat_activity")
    assert not re.search("prewarm|logical|walreceiver|archiver", workers), workers
    conninfo = f"host={production.cluster.run} port=5432 dbname=shop user=''{SUPERUSER}''"
    refused = [
        "insert into goods values (1)",
        "select count(*) from called_there",
        f"create subscription again connection '{conninfo}' publication p",
    ]
    refused += [
        f"copy goods to '{parts['evidence']}/copied'",
        f"copy goods from program 'cat \"{data}/PG_VERSION\"'",
        f"copy goods to program 'cat >\"{data}/PG_VERSION\"'",
        f"select pg_read_file('{data}/PG_VERSION')",
        f"create tablespace again location '{parts['space']}'",
        f'copy goods to program \'chmod 0711 "{parts["space"]}"; touch "{parts["space"]}"; false\'',
        f"copy goods to program 'chown postgres \"{parts['space']}\"'",
        f"copy goods to program 'prlimit --pid {production.cluster.pid} --nofile=99:99'",
        f"copy goods to program 'renice -n 19 -p {production.cluster.pid}'",
    ]
    for statement in refused:
        with contextlib.suppress(RuntimeError):
            connection.sql(statement, database="shop")
            yield statement


@pytest.fixture(scope="module")
def story(shared_place_on_disk: Path) -> Iterator[Story]:
    """Everything, once: the tests look at what came of it."""
    place = shared_place_on_disk / "u"
    (place / "temporary").mkdir(parents=True)
    production = Production(place)
    repository = Repository(directory=place / "repository", base=place / "borg")
    repository.create()
    trace, clock = place / "trace", Clock(place / "clock")
    ours = {"TMPDIR": str(place / "temporary"), "INSTANT_RECOVERY_CLOCK": str(clock.path)}
    playbooks = Playbooks(
        directory=place / "ansible",
        session_root=place / "sessions",
        environment={**repository.environment, **ours},
        extra_vars={"ansible_python_interpreter": str(tracing_interpreter(trace))},
    )
    with production.cluster:
        shutil.chown(place, "root")  # the session root's parents may be nobody else's
        production.populate()
        production.sort_otherwise()
        production.snapshot(repository)
        production.rest()
        # It notes in the WAL now and then which transactions run, whether anything happens or not.
        with frozen(production.processes("background writer")):
            before = production.state()
            started = playbooks.start(archive=f"{repository.location}::frozen", examine=True, port=free_port())
            assert started.returncode == 0, started.output
            try:
                not_refused = list(use(started.session, production))
                reset_at = look_and_reset(playbooks, started.session["id"], clock)
            finally:
                stopped = playbooks.stop("all")
            assert stopped.returncode == 0, stopped.output
            assert not_refused == []
            assert remains(str(playbooks.session_root)) == []
            files = production.of_files()
            after = {**production.of_server(), **files}
            (result,) = (task.result for task in started.tasks if task.action.endswith(".pg_ephemeral"))
            whats = [entry["what"] for entry in result["neutralised"]]
            yield Story(
                before, after, whats, result["data"], started.output, trace, place / "sessions", place, reset_at
            )


def look_and_reset(playbooks: Playbooks, session_id: str, clock: Clock) -> float:
    """Have the keeper and the list ask the server for its clients, and then the session reset; when that began."""
    assert playbooks.session_root is not None
    sample = playbooks.session_root / session_id / "sample.json"
    sample.unlink(missing_ok=True)
    clock.forward(5 * MINUTE)
    wait_until(sample.exists)
    listed = playbooks.run("list")
    assert listed.returncode == 0, listed.output
    moment = time.time()
    reset = playbooks.run("reset", session_id=session_id)
    assert reset.returncode == 0, reset.output
    return moment


def test_production_does_not_notice_any_hazard(story: Story) -> None:
    missed = []
    for hazard in HAZARDS:
        unsaid = [said for said in hazard.said if not any(re.search(said, what) for what in story.neutralised)]
        changed = [part for part in hazard.unchanged if story.before[part] != story.after[part]]
        if unsaid or changed:
            missed.append(
                f"{hazard.what}: not said: {unsaid}, changed: {[difference(story, part) for part in changed]}"
            )
    assert missed == [], story.neutralised
    assert {part for hazard in HAZARDS for part in hazard.unchanged} == story.before.keys()


def test_collations_of_another_version_are_told(story: Story) -> None:
    """Production's own are what they were: its files have not changed."""
    told = [(one["database"], one["collation"], one["recorded"]) for one in story.data["collations"]]
    assert told == [("sorted", None, "2.0"), ("sorted", "public.german", "1.0")]
    assert all(one["actual"] not in (None, "1.0", "2.0") for one in story.data["collations"])
    said = " ".join(story.warnings.split())
    assert "Database sorted was written with collation version 2.0, and this host has" in said
    assert "Database sorted uses the collation public.german as of version 1.0, and this host has" in said
    assert story.before["data"] == story.after["data"]


def difference(story: Story, part: str) -> str:
    before, after = story.before[part], story.after[part]
    if isinstance(before, dict):
        names = sorted(name for name in {*before, *after} if before.get(name) != after.get(name))
        return f"{part}: " + "; ".join(f"{name}: {before.get(name)} -> {after.get(name)}" for name in names)
    return f"{part}: {before} -> {after}"


def said_by_strace(trace: Path) -> list[str]:
    """For whoever has to find out why nothing was traced."""
    files = [path for path in trace.iterdir() if path.suffix != ".said"]
    return [f"{len(files)} files", *(path.read_text() for path in trace.glob("*.said"))]


def test_every_write_of_a_session_lies_in_its_directory(story: Story) -> None:
    """Of the start, of the server for as long as it ran, and of the stop: every module and all that it started."""
    allowed = [re.compile(pattern.replace("{place}", re.escape(str(story.place)))) for pattern in ELSEWHERE]
    inside, outside = set(), set()
    for change in changes(story.trace):
        if change.path == str(story.root) or change.path.startswith(f"{story.root}/"):
            inside.add(change.path.removeprefix(f"{story.root}/").partition("/")[2])
        elif not any(pattern.fullmatch(change.path) for pattern in allowed):
            outside.add((change.call, change.path))
    assert outside == set(), "\n".join(map(str, sorted(outside)))
    # The module's, the server's as it sees them, and the layer's for the same.
    for part in ("session.json", "client/pgpass", "run/.s.PGSQL.", "merged/.*/base/", "merged/.*/wal/", "upper/"):
        assert any(re.match(part, path) for path in inside), (part, said_by_strace(story.trace))
    assert list((story.place / "temporary").iterdir()) == []


def test_nobody_outside_a_room_touches_what_the_server_can_write(story: Story) -> None:
    """From the server's first program on, whatever of ours starts, watches, lists, resets or stops the session.

    What can be written is the merged tree and the directory of the socket.
    """
    outside, programs = touched_outside_rooms(story.trace)
    (session,) = {path.removeprefix(f"{story.root}/").partition("/")[0] for path in inside_paths(story, outside)}
    writable = re.compile(f"{re.escape(str(story.root / session))}/(merged|run)/.+")
    servers = sorted(touch.time for touch in programs if touch.path.endswith("/bin/postgres"))
    first, again = servers[0], next(time for time in servers if time > story.reset_at)
    mounted = [
        touch.time for touch in outside if touch.call == "mount" and touch.path == str(story.root / session / "merged")
    ]
    assert len(mounted) == 2, mounted
    touched = [touch for touch in outside if writable.fullmatch(touch.path)]
    assert [touch for touch in touched if touch.time < first], "the copy is cut loose before its server is started"
    late = {(touch.call, touch.path) for touch in touched if first < touch.time < mounted[1] or touch.time > again}
    # Clients are passed on to the server's socket by the warden, whose root directory is the server's.
    sockets = {(call, path) for call, path in late if re.search(r"/run/\.s\.PGSQL\.\d+$", path)}
    assert {call for call, _path in sockets} == {"connect"}
    assert late == sockets


def inside_paths(story: Story, touches: list[Touch]) -> set[str]:
    return {touch.path for touch in touches if re.match(rf"{re.escape(str(story.root))}/\d{{8}}-", touch.path)}
