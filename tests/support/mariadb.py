# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A throw-away MariaDB server that plays production: made, loaded, killed in the middle of writes, compared.

Names are odd on purpose: a database with a space, a table with a quote.
"""

from __future__ import annotations

import hashlib
import os
import pwd
import shutil
import signal
import subprocess
import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import pymysql

from tests.support.clock import wait_until
from tests.support.once import made_once

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = ["DATABASE", "MariaDb", "ask", "checksums", "file_digests"]

DATABASE = "shop data"
OS_USER = "daemon" if os.geteuid() == 0 else None
TIMEOUT = 120
COMMITS = 100  # before a server is killed
# What keeps a production of tests small and quick.
SMALL = {
    "innodb_log_file_size": "8M",
    "innodb_buffer_pool_size": "32M",
    "innodb_flush_log_at_trx_commit": "2",
    "skip_networking": "ON",
    "skip_name_resolve": "ON",
    "log_bin": "mysql-bin",
    "server_id": "1",
}


def ask(client_file: str | Path, statement: str, *, check: bool = True) -> str:
    """What a session's server answers to statements, by the command line that is printed for people."""
    argv = ["mariadb", f"--defaults-file={client_file}", "-N", "-B", "-e", statement]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=TIMEOUT, check=False)
    if done.returncode and check:
        raise RuntimeError(done.stderr)
    return (done.stdout if not done.returncode else done.stderr).strip()


def checksums(answer: Any) -> dict[str, str]:
    """CHECKSUM TABLE of all tables but the server's own; answer gives what the server says to a statement."""
    tables = answer(
        "select concat('`', table_schema, '`.`', table_name, '`') from information_schema.tables where table_type = "
        "'BASE TABLE' and table_schema not in ('mysql', 'sys', 'performance_schema', 'information_schema') order by 1"
    )
    names = tables.splitlines()
    told = answer(f"checksum table {', '.join(names)}") if names else ""
    return dict(line.split("\t") for line in told.splitlines())


def file_digests(*directories: Path) -> dict[str, str]:
    """A hash of each file below the directories, with its mode, owner and time of change."""
    found = {}
    for directory in directories:
        for path in sorted(one for one in directory.rglob("*") if one.is_file() and not one.is_symlink()):
            state = path.stat()
            content = hashlib.sha256(path.read_bytes()).hexdigest()
            found[str(path)] = f"{content} {state.st_mode:o} {state.st_uid} {state.st_mtime_ns}"
    return found


@dataclass(kw_only=True)
class MariaDb:
    """One server below `directory` (its data in `directory`/data). Runs as another user when the caller is root.

    A context manager that makes, starts and removes it. `settings` go to its option file.
    """

    directory: Path
    settings: Mapping[str, str] = field(default_factory=dict)
    data: Path = field(default=Path())
    tables: dict[str, str] = field(default_factory=dict)  # what a test has noted of checksums()

    def __post_init__(self) -> None:
        self.run = self.directory / "run"
        self.data = self.directory / "data" if self.data == Path() else self.data
        self.process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.create()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        shutil.rmtree(self.data, ignore_errors=True)
        shutil.rmtree(self.directory, ignore_errors=True)

    @property
    def program(self) -> str:
        return "mariadbd"

    @property
    def socket(self) -> str:
        return str(self.run / "s")

    @property
    def option_file(self) -> Path:
        return self.directory / "my.cnf"

    def create(self) -> None:
        """Copy an empty data directory, and start."""
        for path in (self.directory, self.run):
            path.mkdir(mode=0o755, parents=True, exist_ok=True)
            own(path)
        self.initialise()
        self.start()

    def initialise(self) -> None:
        """Make the data directory, without starting."""
        subprocess.run(["cp", "-a", str(made_once("mariadb", _installed)), str(self.data)], check=True)

    def start(self) -> None:
        """Start the server; recovers after a crash."""
        options = {**SMALL, "datadir": str(self.data), "socket": self.socket, **self.settings}
        options |= {"pid_file": str(self.run / "pid"), "log_error": str(self.run / "log")}
        lines = (f"{name} = {value}\n" for name, value in options.items())
        self.option_file.write_text(f"[mariadbd]\n{''.join(lines)}")
        self.process = subprocess.Popen(
            [self.program, f"--defaults-file={self.option_file}"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            **_identity(),
        )
        deadline = time.monotonic() + TIMEOUT
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                break
            with suppress(pymysql.err.OperationalError):
                self.connect().close()
                return
            time.sleep(0.02)
        raise RuntimeError((self.run / "log").read_text()[-3000:])

    def stop(self) -> None:
        """Shut it down in order."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """Kill it, as a power cut does."""
        self._end(signal.SIGKILL)

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Stand still meanwhile, as for a file system's snapshot."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.process.send_signal(signal.SIGCONT)

    def connect(self, database: str | None = None) -> Any:
        return pymysql.connect(unix_socket=self.socket, user="root", database=database, autocommit=True)

    def sql(self, statements: str, *, database: str | None = None) -> str:
        """What it answers to statements: fields separated by tabs."""
        argv = ["mariadb", "--no-defaults", "-S", self.socket, "-u", "root", "-N", "-B", "-e", statements]
        argv += [] if database is None else [database]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=TIMEOUT, check=False)
        if done.returncode:
            raise RuntimeError(done.stderr)
        return done.stdout.strip()

    def populate(self, *, rows: int = 2000) -> None:
        """A few tables of all engines that keep files."""
        self.sql(
            f"create database `{DATABASE}`; use `{DATABASE}`; create table orders (id int auto_increment primary key,"
            " item varchar(200), at datetime) engine=innodb; insert into orders (item, at) select md5(seq),"
            f" '2026-01-01' + interval seq second from seq_1_to_{rows};"
            " create table `it's` (id int primary key, body longtext) engine=innodb;"
            " insert into `it's` select seq, repeat(md5(seq), 1000) from seq_1_to_20;"
            " create table old (id int primary key, x varchar(40)) engine=myisam;"
            " insert into old select seq, md5(seq) from seq_1_to_500;"
            " create table aria (id int primary key, x varchar(40)) engine=aria transactional=1;"
            " insert into aria select seq, md5(seq) from seq_1_to_500",
            database="mysql",
        )

    def back_up(self, target: Path, *, prepare: bool = False) -> MariaDb:
        """What mariadb-backup makes of it while it runs, as a server that is not started."""
        argv = ["mariadb-backup", f"--defaults-file={self.option_file}", f"--target-dir={target}"]
        access = ["--user=root", f"--socket={self.socket}"]
        for action in (["--backup", *access], *([["--prepare"]] if prepare else [])):
            done = subprocess.run([*argv, *action], capture_output=True, text=True, timeout=TIMEOUT, check=False)
            if done.returncode:
                raise RuntimeError(done.stderr[-3000:])
        return MariaDb(directory=self.directory, data=target)

    def checksums(self) -> dict[str, str]:
        """State of all tables; see checksums()."""
        return checksums(self.sql)

    def killed_while_writing(self, *, clients: int = 4, halfway: bool = False) -> set[int]:
        """Kill it while clients commit; the ids whose commits it had acknowledged.

        halfway: wait until a commit is prepared and in the binary log, and InnoDB has not committed it.
        """
        with self.connect(DATABASE) as connection, connection.cursor() as cursor:
            cursor.execute("create table if not exists acknowledged (id int auto_increment primary key, x text)")
        known: set[int] = set()

        def write() -> None:
            with suppress(pymysql.err.Error, OSError):
                connection = self.connect(DATABASE)
                cursor = connection.cursor()
                while True:
                    cursor.execute("insert into acknowledged (x) values (repeat(md5(rand()), 20))")
                    known.add(cursor.lastrowid)

        writers = [threading.Thread(target=write, daemon=True) for _ in range(clients)]
        for writer in writers:
            writer.start()
        wait_until(lambda: len(known) >= COMMITS, seconds=TIMEOUT)
        if halfway:
            self._hold_commits()
        self.kill()
        for writer in writers:
            writer.join(timeout=10)
        return known

    def pause(self) -> None:
        """Hold its threads where they are."""
        self._signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """Let a paused server go on."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def _hold_commits(self) -> None:
        """Hold each commit between its two flushes: it waits for a replica that does not exist."""
        for setting in ("timeout = 3600000", "wait_point = 'AFTER_SYNC'", "wait_no_slave = 1", "enabled = 1"):
            self.sql(f"set global rpl_semi_sync_master_{setting}")
        waits = "select count(*) from information_schema.processlist where state like 'Waiting for semi-sync ACK%'"
        wait_until(lambda: int(self.sql(waits)) > 0, seconds=TIMEOUT)

    def _end(self, number: signal.Signals) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(number)
            self.process.wait(timeout=TIMEOUT)
        self.process = None


def own(*paths: Path) -> None:
    """Give paths to the user who runs the servers."""
    if OS_USER is not None:
        user = pwd.getpwnam(OS_USER)
        for path in paths:
            os.chown(path, user.pw_uid, user.pw_gid, follow_symlinks=False)


def _installed(place: Path) -> Path:
    """An empty data directory, made once for all workers: it takes seconds."""
    if OS_USER is not None:
        own(place)
    return install(place / "data")


def install(data: Path, **settings: str) -> Path:
    """Make an empty data directory."""
    argv = ["mariadb-install-db", "--no-defaults", f"--datadir={data}", "--skip-test-db"]
    argv += ["--auth-root-authentication-method=normal", "--innodb-log-file-size=8M"]
    argv += [f"--{name}={value}" for name, value in settings.items()]
    argv += [] if OS_USER is None else [f"--user={OS_USER}"]
    subprocess.run(argv, check=True, capture_output=True, timeout=TIMEOUT)
    return data


def _identity() -> dict[str, Any]:
    if OS_USER is None:
        return {}
    user = pwd.getpwnam(OS_USER)
    return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
