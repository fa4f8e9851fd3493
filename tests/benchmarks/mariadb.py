# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""From an archive of MariaDB to a server that answers: extracted, and as a session, side by side. See README.md."""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import sys
import tempfile
import time
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pymysql
from ansible_collections.phpborg.instant_recovery.plugins.modules import mysql_ephemeral

from tests.benchmarks.benchmark import STARTS, STARTS_MAY_TAKE
from tests.benchmarks.measure import Server, drop_caches
from tests.benchmarks.report import Figures, table, targets_of_mariadb
from tests.benchmarks.sources import Source, Sources
from tests.benchmarks.ways import Extracted, Mounted, Recovery, Way, done, end_all
from tests.support.mariadb import MariaDb
from tests.support.once import COMMON
from tests.support.playbook import Playbooks
from tests.support.repository import Repository

OWNER = "daemon"  # whom the sample's server runs as
DATABASE, TABLE = "bench", "big"
ROW = 300  # bytes, about
MEGABYTE = 1 << 20


@dataclass(frozen=True)
class MariaDbServer(Server):
    """A session's server, by the option file that is printed for people."""

    client_file: str = ""

    def connect(self, *, timeout: float = 30) -> Any:
        return pymysql.connect(
            read_default_file=self.client_file,
            unix_socket=f"{self.socket_directory}/mysql.sock",
            database=DATABASE,
            connect_timeout=int(timeout),
            charset="utf8mb4",
        )


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmark mariadb", description=__doc__)
    add = parser.add_argument
    add("--sizes", type=int, nargs=2, default=[1000, 4000], metavar="MB", help="of clean data: %(default)s")
    add("--redo", type=int, default=80, metavar="MB", help="to be replayed after the crash: %(default)s")
    add("--quick", action="store_true", help="tiny: shows that it works, measures nothing")
    options = parser.parse_args()
    if options.quick:
        options.sizes, options.redo = [30, 60], 8
    place = Path(tempfile.mkdtemp(prefix="ir-benchmark-", dir="/var/tmp"))
    place.chmod(0o711)
    os.environ.setdefault(COMMON, str(place / "common"))
    try:
        sources = _built(place, options.sizes, options.redo)
        os.environ.update(sources.repository.environment)
        figures = _measured(sources, place)
        print(table(sources, figures), end="\n\n")
        print(targets_of_mariadb(sources, figures))
    finally:
        end_all(place / "sessions")
        shutil.rmtree(place)


def _built(place: Path, sizes: list[int], redo: int) -> Sources:
    repository = Repository(directory=place / "repository", base=place / "borg")
    repository.create()
    settings = {"innodb_log_file_size": f"{max(96, 4 * redo)}M", "innodb_buffer_pool_size": "512M"}
    made: dict[str, Source] = {}
    with MariaDb(directory=place / "maria", settings=settings) as server:
        server.sql(
            f"create database {DATABASE}; create table {DATABASE}.{TABLE} (id int auto_increment primary key, "
            "number int not null, body varchar(400) not null)"
        )
        for name, size in zip(("small", "large"), sizes, strict=True):
            _say(f"making data of {size} MB")
            _fill(server, size)
            server.sql("set global innodb_fast_shutdown = 0")
            server.stop()
            made[name] = _archived(repository, name, server)
            server.start()
        _say(f"crashing it with {redo} MB of redo to replay")
        _work(server, redo)
        server.kill()
        made["crashed"] = Source(**{**asdict(_archived(repository, "crashed", server)), "wal": redo << 20})
    return Sources(repository=repository, **made)


def _rows(server: MariaDb) -> int:
    return int(server.sql(f"select coalesce(max(id), 0) from {DATABASE}.{TABLE}"))


def _fill(server: MariaDb, megabytes: int) -> None:
    bodies = ", ".join(f"md5(seq * {factor})" for factor in range(3, 10))
    while _rows(server) < megabytes * MEGABYTE // ROW:
        statement = f"insert into {TABLE} (number, body) select seq, concat({bodies}) from seq_1_to_100000"
        server.sql(statement, database=DATABASE)


def _work(server: MariaDb, redo: int) -> None:
    """Change rows here and there until so many megabytes of the log would have to be replayed."""
    server.sql("set global innodb_max_dirty_pages_pct = 99.9, innodb_adaptive_flushing = off")
    rows = _rows(server)
    while int(server.sql("show global status like 'innodb_checkpoint_age'").split()[1]) < redo << 20:
        server.sql(
            f"update {DATABASE}.{TABLE} set number = number + 1 where id in "
            f"(select * from (select 1 + floor(rand() * {rows}) from seq_1_to_20000) as chosen)",
            database=DATABASE,
        )


def _archived(repository: Repository, name: str, server: MariaDb) -> Source:
    size = sum(path.stat().st_size for path in server.data.rglob("*") if path.is_file())
    repository.archive(name, server.data)
    return Source(name, str(server.data).lstrip("/"), size, rows=0, files=(), table_size=0)


def _measured(sources: Sources, place: Path) -> Figures:
    common = {"repository": sources.repository, "session_root": place / "sessions", "owner": OWNER, "serve": _serve}
    readers = min(4, os.cpu_count() or 1)
    ways: dict[str, Way] = {
        "extract": Extracted(**common),
        "block": Mounted(**common, driver="block", readers=readers),
    }
    figures: Figures = {}
    for name, way in ways.items():
        figures[name] = {}
        for kind in ("small", "large", "crashed"):
            _start(name, way, kind, getattr(sources, kind), figures[name])
    _play(sources, place, figures["block"])
    return figures


def _start(name: str, way: Way, kind: str, source: Source, figures: dict[str, float]) -> None:
    seconds: list[float] = []
    servers: list[float] = []
    while len(seconds) < STARTS and sum(seconds) < STARTS_MAY_TAKE:
        _say(f"{name}: starting {kind}")
        drop_caches()
        recovery: Recovery = way.start(source)
        seconds.append(recovery.ready)
        servers.append(recovery.server.took)
        figures[f"borg {kind}"], figures[f"layer {kind}"] = recovery.borg_seconds(), recovery.layer_seconds()
        figures[f"disk {kind}"] = recovery.written()
        if kind == "large":
            with closing(recovery.server.connect()) as connection, connection.cursor() as cursor:
                cursor.execute(f"select max(id) from {TABLE}")
                (rows,) = cursor.fetchone()
            figures["first row"] = recovery.server.seconds(f"select * from {TABLE} where id = {rows * 5 // 8}")
        if recovery.layer is not None:
            figures["layer peak"] = max(figures.get("layer peak", 0), recovery.layer_peak())
        recovery.end()
    figures[f"ready {kind}"], figures[f"server {kind}"] = statistics.median(seconds), statistics.median(servers)


def _serve(begun: dict[str, Any], source: Source) -> Server:
    tree, began = begun["directories"]["merged"], time.monotonic()
    result = done(
        mysql_ephemeral.main,
        data_directory=f"{tree}/{source.data_directory}",
        session_directory=begun["session_directory"],
        examine=False,  # as in the playbook
    )
    took = time.monotonic() - began
    return MariaDbServer(result["socket_directory"], result["port"], took, result["client_file"])


def _play(sources: Sources, place: Path, figures: dict[str, float]) -> None:
    _say("the start playbook")
    playbooks = Playbooks(
        directory=place / "ansible", session_root=place / "sessions", environment=sources.repository.environment
    )
    drop_caches()
    run = playbooks.start(archive=f"{sources.repository.location}::{sources.small.archive}", driver="block")
    if run.returncode:
        raise RuntimeError(f"the start playbook failed: {run.message or run.output}")
    figures["play"], figures["play overhead"] = run.seconds, run.session["timings"]["overhead"]
    playbooks.stop(run.session["id"])


def _say(text: str) -> None:
    print(f"benchmark: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
