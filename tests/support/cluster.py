# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A throw-away PostgreSQL cluster that plays production: made, loaded, crashed in the middle of writes, compared.

Used by the integration tests, the benchmarks and the demo, hence the sizes as parameters.
Names are odd on purpose: a database and a table with a space, a superuser not called postgres.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import pwd
import re
import select
import shutil
import signal
import subprocess
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from tests.support.once import are_tests, made_once

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

__all__ = [
    "DATABASE",
    "QUIET",
    "SUPERUSER",
    "UNREADABLE",
    "Cluster",
    "Connection",
    "TableState",
    "fingerprint",
    "server_directory",
]

SUPERUSER = "chief dba"
DATABASE = "shop data"
# Settings of a server that writes nothing by itself, so that its files and its WAL stand still between two statements.
# With a higher wal_level it notes in the WAL every 15 s which transactions run.
QUIET = {
    "autovacuum": "off",
    "bgwriter_lru_maxpages": "0",
    "checkpoint_timeout": "1h",
    "wal_level": "minimal",
    "max_wal_senders": "0",
}
# What a server says when the kernel cannot read: the second at a login, of the file PG_VERSION of a database.
UNREADABLE = "Input/output error|does not contain valid data"

Fingerprint = dict[str, "TableState"]


@dataclass(frozen=True)
class TableState:
    """What must be equal in two copies of a table: the number of rows and an order-independent sum of row hashes."""

    rows: int
    checksum: str


@dataclass(frozen=True, kw_only=True)
class Connection:
    """How psql reaches a server through its socket. `os_user` runs psql (None: the caller)."""

    socket_directory: str
    port: int
    user: str
    bindir: str
    os_user: str | None = None

    @classmethod
    def of_session(cls, record: Mapping[str, Any], *, bindir: str, os_user: str | None = None) -> Connection:
        """Connection to the server of a session, from the record the start play leaves."""
        return cls(
            socket_directory=record["socket_directory"],
            port=record["port"],
            user=record["user"],
            bindir=bindir,
            os_user=os_user,
        )

    def sql(self, statement: str, *, database: str = "postgres", timeout: float = 120) -> str:
        """Output of one or more statements: unaligned, no headers, fields separated by |. Raises RuntimeError."""
        argv = [f"{self.bindir}/psql", "-X", "-A", "-t", "-q", "-v", "ON_ERROR_STOP=1"]
        argv += ["-h", self.socket_directory, "-p", str(self.port), "-U", self.user, "-d", database, "-c", statement]
        return _run(argv, os_user=self.os_user, timeout=timeout).strip()

    def databases(self) -> list[str]:
        """Names of all databases that accept connections."""
        return self.sql("select datname from pg_database where datallowconn order by 1").splitlines()


def server_directory() -> str:
    """Directory of the PostgreSQL programs on this machine, of the newest version."""
    found = {int(path.parent.name): str(path) for path in Path("/usr/lib/postgresql").glob("*/bin")}
    if not found:
        raise RuntimeError("the tests need a PostgreSQL server: apt-get install postgresql")
    return found[max(found)]


def fingerprint(connection: Connection) -> Fingerprint:
    """State of every user table of every database, by `database.schema.table`."""
    states = {}
    for database in connection.databases():
        tables = connection.sql(
            "select format('%I.%I', schemaname, tablename) from pg_tables"
            " where schemaname not in ('pg_catalog', 'information_schema') order by 1",
            database=database,
        )
        for table in tables.splitlines():
            rows, checksum = connection.sql(
                f"select count(*), coalesce(sum(hashtextextended(t::text, 0)), 0) from {table} t", database=database
            ).split("|")
            states[f"{database}.{table}"] = TableState(rows=int(rows), checksum=checksum)
    return states


@dataclass(kw_only=True)
class Cluster:
    """One cluster below `directory` (its data in `directory`/data). Runs as `os_user` when the caller is root.

    `create()` first; `close()` at the end, or use it as a context manager that does both. The directory of the data
    may be given (`data`) to try odd layouts; `initdb_options` and `settings` go to initdb and the configuration file.
    `bindir` is where the programs are, if not where Debian has them.
    """

    directory: Path
    data: Path = field(default=Path())
    os_user: str | None = "postgres" if os.geteuid() == 0 else None
    superuser: str = SUPERUSER
    bindir: str = ""
    initdb_options: Sequence[str] = ()
    settings: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.bindir = self.bindir or server_directory()
        self.run = self.directory / "run"
        if self.data == Path():
            self.data = self.directory / "data"

    def __enter__(self) -> Self:
        self.create()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def connection(self) -> Connection:
        """How to reach the running server."""
        return Connection(
            socket_directory=str(self.run), port=5432, user=self.superuser, bindir=self.bindir, os_user=self.os_user
        )

    def create(self) -> None:
        """initdb, or a copy of what it has made before, configuration, start."""
        for path in (self.directory, self.run, self.data):
            path.mkdir(mode=0o755, parents=True, exist_ok=True)
            self._own(path)
        if are_tests() and not self.initdb_options:
            subprocess.run(["cp", "-a", f"{made_once(self._kind, self._made_once)}/.", str(self.data)], check=True)
        else:
            self._initdb(self.data)
        settings = {
            "listen_addresses": "",
            "unix_socket_directories": str(self.run),
            "fsync": "off",
            "max_wal_size": "4GB",
            "checkpoint_timeout": "1h",
            **self.settings,
        }
        text = "".join(f"{name} = '{value}'\n" for name, value in settings.items())
        with (self.data / "postgresql.auto.conf").open("a") as file:
            file.write(text)
        self.start()

    def populate(self, *, scale: int = 1) -> None:
        """Fill a database: pgbench's tables (about 15 MB for each unit of scale), TOASTed texts and a quoted name."""
        self.connection.sql(f'create database "{DATABASE}"')
        self._pgbench("-i", "-q", "-I", "dtGvp", "-s", str(scale))
        self.sql(
            'create table "Order Lines" (id bigint primary key, item text not null, price numeric, at timestamptz);'
            "insert into \"Order Lines\" select i, md5(i::text), i / 7.0, timestamptz '2026-01-01' + i * interval '1s'"
            f" from generate_series(1, {2000 * scale}) i;"
            "create table notes (id int primary key, body text);"
            "alter table notes alter body set storage external;"
            f"insert into notes select i, repeat(md5(i::text), 500) from generate_series(1, {50 * scale}) i"
        )

    def sql(self, statement: str, *, database: str = DATABASE) -> str:
        """Run statements in the sample database; see Connection.sql."""
        return self.connection.sql(statement, database=database, timeout=600)

    def start(self) -> None:
        """Start the server; replays the WAL after a crash."""
        self._control("start", "-l", str(self.directory / "server.log"), "-t", "600")

    def stop(self, *, mode: str = "fast") -> None:
        """Stop the server when it runs. `fast` leaves a cleanly closed cluster, `immediate` a crashed one."""
        if self.pid is not None:
            self._control("stop", "-m", mode)

    def crash(self, *, wal_megabytes: float = 2, clients: int = 2) -> None:
        """Kill the server (SIGQUIT, as `immediate`) while clients write, once that much WAL needs replaying."""
        self.sql("checkpoint")
        begin = self.sql("select pg_current_wal_lsn()")
        with self._writers(clients=clients) as writers:
            deadline = time.monotonic() + 600
            while float(self.sql(f"select pg_current_wal_lsn() - '{begin}'::pg_lsn")) < wal_megabytes * 2**20:
                if writers.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError("pgbench does not write as it should")
                time.sleep(0.05)
            pid = self.pid
            assert pid is not None
            descriptor = os.pidfd_open(pid)
            signal.pidfd_send_signal(descriptor, signal.SIGQUIT)
            _await_exit(descriptor)
            os.close(descriptor)

    def fingerprint(self) -> Fingerprint:
        """State of all tables; see fingerprint()."""
        return fingerprint(self.connection)

    @property
    def pid(self) -> int | None:
        """Process id of the running postmaster, None when there is none."""
        try:
            pid = int((self.data / "postmaster.pid").read_text().split()[0])
            os.kill(pid, 0)
        except (FileNotFoundError, ProcessLookupError):
            return None
        return pid

    def close(self) -> None:
        """Stop the server and remove the cluster."""
        self.stop(mode="immediate")
        for path in (self.data, self.directory):
            shutil.rmtree(path, ignore_errors=True)

    def control_state(self) -> str:
        """Cluster state as pg_controldata names it, e.g. `shut down` or `in production`."""
        text = self._as_owner([f"{self.bindir}/pg_controldata", str(self.data)])
        match = re.search(r"^Database cluster state:\s+(.*)$", text, re.MULTILINE)
        assert match is not None
        return match.group(1)

    @property
    def _kind(self) -> str:
        """A name for all clusters that initdb makes alike, but for their identifier."""
        kind = repr((self.bindir, self.superuser, self.os_user))
        return f"cluster-{hashlib.sha256(kind.encode()).hexdigest()[:16]}"

    def _made_once(self, place: Path) -> Path:
        self._own(place)
        self._initdb(place / "data")
        return place / "data"

    def _initdb(self, data: Path) -> None:
        argv = [f"{self.bindir}/initdb", "-D", str(data), "-U", self.superuser, "-A", "trust", "-E", "UTF8"]
        self._as_owner([*argv, "--locale=C.UTF-8", "--no-sync", *self.initdb_options])

    @contextlib.contextmanager
    def _writers(self, *, clients: int) -> Iterator[subprocess.Popen[bytes]]:
        writers = subprocess.Popen(
            self._pgbench_argv("-n", "-T", "600", "-c", str(clients)),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=_environment(),
            **_identity(self.os_user),
        )
        try:
            yield writers
        finally:
            writers.kill()
            writers.wait()

    def _pgbench(self, *options: str) -> str:
        return self._as_owner(self._pgbench_argv(*options))

    def _pgbench_argv(self, *options: str) -> list[str]:
        where = ["-h", str(self.run), "-p", "5432", "-U", self.superuser]
        return [f"{self.bindir}/pgbench", *where, *options, DATABASE]

    def _control(self, *arguments: str) -> None:
        self._as_owner([f"{self.bindir}/pg_ctl", "-D", str(self.data), "-w", "-s", *arguments])

    def _as_owner(self, argv: Sequence[str]) -> str:
        return _run(argv, os_user=self.os_user, timeout=1800)

    def _own(self, path: Path) -> None:
        if self.os_user is not None:
            user = pwd.getpwnam(self.os_user)
            os.chown(path, user.pw_uid, user.pw_gid)


def _await_exit(descriptor: int) -> None:
    poller = select.poll()
    poller.register(descriptor, select.POLLIN)
    if not poller.poll(60_000):
        raise TimeoutError("the server outlived SIGQUIT by a minute")


def _run(argv: Sequence[str], *, os_user: str | None, timeout: float) -> str:
    # Output goes to a file, not a pipe: pg_ctl's server would keep a pipe open for ever.
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        done = subprocess.run(
            list(argv),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=errors,
            timeout=timeout,
            check=False,
            cwd="/",
            env=_environment(),
            **_identity(os_user),
        )
        output.seek(0)
        errors.seek(0)
        text, complaint = output.read().decode(), errors.read().decode()
    if done.returncode:
        raise RuntimeError(f"{argv[0]} failed ({done.returncode}): {complaint.strip() or text.strip()}")
    return text


def _environment() -> dict[str, str]:
    return {"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8", "PGOPTIONS": "-c timezone=UTC"}


def _identity(os_user: str | None) -> dict[str, Any]:
    if os_user is None or os.geteuid() != 0:
        return {}
    user = pwd.getpwnam(os_user)
    return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
