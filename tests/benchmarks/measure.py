# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The single measurements: of files, of processes, and of servers."""

from __future__ import annotations

import os
import random
import re
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg2

from tests.support.cluster import DATABASE, SUPERUSER, server_directory

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "Server",
    "allocated",
    "cpu_seconds",
    "drop_caches",
    "dropped_by_others",
    "peak_memory",
    "random_reads",
    "read_rate",
    "unnamed_files",
    "write_back",
]

PAGE = 8192
CLIENTS = 2


@dataclass(frozen=True)
class Server:
    """A server, reached through its socket. took: seconds of the module that started it."""

    socket_directory: str
    port: int
    took: float = 0.0

    def connect(self, *, timeout: float = 30) -> Any:
        """A connection to the sample database. Raises psycopg2.OperationalError."""
        return psycopg2.connect(
            host=self.socket_directory,
            port=self.port,
            user=SUPERUSER,
            dbname=DATABASE,
            connect_timeout=max(2, int(timeout)),
        )

    def seconds(self, statement: str) -> float:
        """How long a new client waits for the statement's result, the connection included."""
        began = time.monotonic()
        with closing(self.connect()) as connection, connection.cursor() as cursor:
            cursor.execute(statement)
            if not cursor.fetchall():
                raise RuntimeError(f"{statement} has no result")
            return time.monotonic() - began

    def prewarm(self) -> None:
        """Have pgbench's tables and indexes read into the kernel's page cache."""
        with closing(self.connect()) as connection:
            connection.autocommit = True
            with connection.cursor() as cursor:
                cursor.execute("create extension if not exists pg_prewarm")
                cursor.execute(
                    "select pg_prewarm(oid, 'read') from pg_class"
                    " where relname like 'pgbench%' and relkind in ('r', 'i') and relpages > 0"
                )

    def pgbench(self, *, select_only: bool, seconds: int) -> float:
        """Transactions per second."""
        argv = [f"{server_directory()}/pgbench", "-h", self.socket_directory, "-p", str(self.port), "-U", SUPERUSER]
        argv += ["-c", str(CLIENTS), "-j", "1", "-T", str(seconds), *(["-S"] if select_only else []), DATABASE]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=seconds + 300, check=False)
        found = re.search(r"^tps = ([0-9.]+)", done.stdout, re.MULTILINE)
        if done.returncode or found is None:
            raise RuntimeError(f"pgbench failed: {done.stderr.strip()}")
        return float(found.group(1))


dropped = 0  # how often this process has done it


def drop_caches() -> None:
    """Make every file of the machine cold."""
    global dropped
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3", encoding="ascii")
    dropped += 1


def dropped_by_others() -> int:
    """How often somebody else has made all files cold since this process was started."""
    return _drops() - _drops_before - dropped


def _drops() -> int:
    found = re.search(r"^drop_pagecache (\d+)$", Path("/proc/vmstat").read_text(encoding="ascii"), re.MULTILINE)
    return int(found.group(1)) if found else 0


_drops_before = _drops()


def write_back(directory: Path) -> None:
    """Have the kernel hand over what was written below the mount `directory`, so that it can be counted."""
    subprocess.run(["sync", "--file-system", str(directory)], check=True, timeout=600)


def allocated(directory: Path) -> int:
    """Bytes on disk of everything in `directory`."""
    total = 0
    for parent, _names, files in os.walk(directory):
        for name in files:
            with suppress(FileNotFoundError):
                total += os.lstat(os.path.join(parent, name)).st_blocks * 512
    return total


def unnamed_files(pid: int, directory: Path) -> int:
    """Bytes on disk of the files in `directory` that have no name and that the process holds open."""
    total = 0
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(OSError):
            target = os.readlink(descriptor)
            if target.startswith(f"{directory}/") and target.endswith(" (deleted)"):
                total += os.stat(descriptor).st_blocks * 512
    return total


def cpu_seconds(pids: Sequence[int]) -> float:
    """CPU time, user and system, of these processes so far."""
    ticks = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def peak_memory(pid: int) -> int:
    """The most memory (bytes) that the process has had: VmHWM."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace")
    found = re.search(r"^VmHWM:\s+(\d+) kB", status, re.MULTILINE)
    return int(found.group(1)) * 1024 if found else 0


def read_rate(path: Path) -> float:
    """Bytes per second of reading a file from its beginning to its end."""
    began, total = time.monotonic(), 0
    buffer = bytearray(1 << 17)
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            total += count
    return total / (time.monotonic() - began)


def random_reads(paths: Sequence[Path], *, readers: int, most: int, seconds: float) -> float:
    """Reads per second of random 8 KiB pages by so many readers at once, until there were `most` or time is up."""
    files = [(os.open(path, os.O_RDONLY), path.stat().st_size // PAGE) for path in paths]
    weights = [pages for _file, pages in files]
    began = time.monotonic()

    def read(reader: int) -> int:
        choice, count = random.Random(reader), 0
        while count < most // readers and time.monotonic() - began < seconds:
            file, pages = choice.choices(files, weights)[0]
            os.pread(file, PAGE, choice.randrange(pages) * PAGE)
            count += 1
        return count

    try:
        with ThreadPoolExecutor(readers) as threads:
            return sum(threads.map(read, range(readers))) / (time.monotonic() - began)
    finally:
        for file, _pages in files:
            os.close(file)
