# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What many small files cost a start, with names from Borg's list and through its mount alone. See README.md."""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from pathlib import Path

from ansible_collections.phpborg.instant_recovery.plugins.modules import session as session_module

from tests.benchmarks.measure import drop_caches, peak_memory
from tests.integration.conftest import Sample
from tests.support.cluster import Cluster, server_directory
from tests.support.modules import call
from tests.support.repository import Repository
from tests.support.stack import PHASES, Stack

BATCH = 500  # tables that one transaction makes: each takes four locks
TABLE = "execute format('create table t%s (id int primary key, x text)', i)"
MAKE = f"do $$ begin for i in {{}}..{{}} loop {TABLE}; end loop; end $$"


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmark tables", description=__doc__)
    parser.add_argument("--tables", type=int, default=25_000, help="of four files each: %(default)s")
    options = parser.parse_args()
    place = Path(tempfile.mkdtemp(prefix="ir-tables-", dir="/var/tmp"))
    place.chmod(0o711)
    try:
        sample = _sample(place, options.tables)
        ways = {"through the mount": False, "from the list": True}
        rows = [(name, *_measured(place, sample, names=names)) for name, names in ways.items()]
    finally:
        call(session_module.main, session_root=str(place / "sessions"), state="absent", session_id="all")
        shutil.rmtree(place)
    print(f"{options.tables} tables; seconds of each module:\n\n| names | {' | '.join(PHASES)} | all | layer, MB |")
    print(f"|---|{'---:|' * (len(PHASES) + 2)}")
    for name, memory, *seconds in rows:
        print(f"| {name} | {' | '.join(f'{one:.1f}' for one in seconds)} | {sum(seconds):.1f} | {memory:.0f} |")


def _sample(place: Path, tables: int) -> Sample:
    repository = Repository(directory=place / "repository", base=place / "borg")
    repository.create()
    with Cluster(directory=place / "production") as cluster:
        cluster.populate()
        for first in range(0, tables, BATCH):
            cluster.sql(MAKE.format(first, min(tables, first + BATCH) - 1))
        cluster.stop()
        identifier = repository.archive("sample", cluster.data)
        path, superuser, bindir = str(cluster.data).lstrip("/"), cluster.superuser, server_directory()
        return Sample(repository, "sample", identifier, path, 0, superuser, bindir, {})


def _measured(place: Path, sample: Sample, *, names: bool) -> tuple[float, ...]:
    """The layer's memory in MB, and seconds of each step of a start."""
    stack = Stack(place / "sessions", sample, {"free_space_floor": "0", "suspend_after": "0"}, readers=2, names=names)
    drop_caches()
    seconds = []
    for step in (stack._record, stack._mount, stack._layer, stack._serve):
        began = time.monotonic()
        step()
        seconds.append(time.monotonic() - began)
    memory = peak_memory(stack.processes()["merged"]) / 1e6
    stack.change("absent")
    return memory, *seconds


if __name__ == "__main__":
    main()
