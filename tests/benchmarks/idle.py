# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What many idle sessions cost the host: memory and CPU time of each part of their stacks. See README.md."""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ansible_collections.phpborg.instant_recovery.plugins.module_utils._host.processes import (
    Process,
    descendants,
    identify,
)
from ansible_collections.phpborg.instant_recovery.plugins.modules import session as session_module

from tests.integration.conftest import Sample
from tests.support.cluster import Cluster, server_directory
from tests.support.forked import forked
from tests.support.modules import call
from tests.support.repository import Repository
from tests.support.stack import Stack

SETTLED = 75  # seconds after which the layers have given back what only fetching needs
REST = 300  # seconds that the sessions choose for suspend_after: long enough to measure them before it, too
PARTS = {"archive": "borg mounts", "merged": "copy-on-write layer", "keeper": "keeper", "server": "server"}
MEBIBYTE = 1 << 20


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmark idle", description=__doc__)
    parser.add_argument("--sessions", type=int, default=20, help="how many: %(default)s")
    parser.add_argument("--seconds", type=int, default=60, help="of idleness, in which CPU time counts: %(default)s")
    options = parser.parse_args()
    place = Path(tempfile.mkdtemp(prefix="ir-idle-", dir="/var/tmp"))
    place.chmod(0o711)
    try:
        sample = _sample(place)
        began = time.monotonic()
        with ThreadPoolExecutor(options.sessions) as pool:
            records = list(pool.map(lambda _number: forked(lambda: _started(place, sample)), range(options.sessions)))
        print(f"{options.sessions} sessions, started at once in {time.monotonic() - began:.0f} s; each, when idle:\n")
        time.sleep(SETTLED)
        print(f"after {SETTLED} s:\n\n{_table(records, options.seconds)}\n")
        time.sleep(REST)
        print(f"when their archives rest:\n\n{_table(records, options.seconds)}")
    finally:
        call(session_module.main, session_root=str(place / "sessions"), state="absent", session_id="all")
        shutil.rmtree(place)


def _sample(place: Path) -> Sample:
    repository = Repository(directory=place / "repository", base=place / "borg")
    repository.create()
    with Cluster(directory=place / "production") as cluster:
        cluster.populate()
        cluster.stop()
        identifier = repository.archive("sample", cluster.data)
        path, superuser, bindir = str(cluster.data).lstrip("/"), cluster.superuser, server_directory()
        return Sample(repository, "sample", identifier, path, 0, superuser, bindir, {})


def _started(place: Path, sample: Sample) -> dict[str, int]:
    cpus = len(os.sched_getaffinity(0))
    stack = Stack(place / "sessions", sample, {"ttl": "1h", "free_space_floor": "0", "suspend_after": f"{REST}s"})
    stack.start("recorded")
    stack.readers = min(4, int(stack.begun["cpus"] or cpus))  # as the role chooses them
    for step in (stack._mount, stack._layer, stack._serve):
        step()
    return stack.processes()


def _table(records: list[dict[str, int]], seconds: int) -> str:
    before = {part: _spent(_family(records, part)) for part in PARTS}
    time.sleep(seconds)
    lines = ["| part | memory (PSS), MiB | CPU, % of one |", "|---|---|---|"]
    rows: list[tuple[str, float, float]] = []
    for part, name in PARTS.items():
        family = _family(records, part)
        memory = sum(_pss(process) for process in family) / len(records) / MEBIBYTE
        rows.append((name, memory, (_spent(family) - before[part]) / len(records) / seconds * 100))
    lines += [f"| {name} | {memory:.1f} | {cpu:.2f} |" for name, memory, cpu in rows]
    own = [row for row in rows if row[0] != "server"]
    lines.append(f"| all but the server | {sum(row[1] for row in own):.1f} | {sum(row[2] for row in own):.2f} |")
    return "\n".join(lines)


def _family(records: list[dict[str, int]], part: str) -> list[Process]:
    """The living processes of one part of all stacks, with what they have started."""
    pids = [pid for record in records for name, pid in record.items() if name.startswith(part)]
    processes = [process for process in map(identify, pids) if process is not None]
    return [*processes, *descendants(*processes)]


def _pss(process: Process) -> int:
    for line in Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    return 0


def _spent(processes: list[Process]) -> float:
    ticks: list[Any] = []
    for process in processes:
        fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
        ticks.append(sum(map(int, fields[11:15])))
    return sum(ticks) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    main()
