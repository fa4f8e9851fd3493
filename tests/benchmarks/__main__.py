# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Measures every way from an archive to a database server that answers, side by side: see README.md."""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import signal
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from tests.benchmarks.benchmark import Benchmark
from tests.benchmarks.measure import dropped_by_others
from tests.benchmarks.report import HEADINGS, table, targets
from tests.benchmarks.sources import Sources
from tests.benchmarks.ways import end_all
from tests.support.host import remains

if TYPE_CHECKING:
    from collections.abc import Iterator

PREFIX = "ir-benchmark-"
MINIMUM_FREE = 5  # times the large cluster's size: source, archives, native directory, a copy on overlayfs, reserve


def main() -> None:
    options = _options()
    signal.signal(signal.SIGTERM, _interrupt)
    if os.geteuid() != 0:
        sys.exit("benchmark: only root can use overlayfs and drop the kernel's caches")
    with _directory(options) as directory:
        if options.archives:
            sources = Sources.load(options.archives)
        else:
            sources = Sources.build(directory, megabytes=tuple(options.sizes), wal=options.wal, say=say)
        os.environ.update(sources.repository.environment)
        load = os.getloadavg()[0]
        bench = Benchmark(
            sources=sources,
            session_root=directory / "sessions",
            ways=options.ways,
            readers=options.readers,
            rounds=options.rounds,
            seconds=options.seconds,
            play=not options.no_play,
            say=say,
        )
        bench.run()
    print(table(sources, bench.figures), end="\n\n")
    print(targets(sources, bench.figures), end="\n\n")
    print(f"{os.cpu_count()} CPUs, Linux {os.uname().release}, {options.readers} readers; load average when it began")
    print(f"{load:.1f}; others dropped the kernel's caches {dropped_by_others()} times meanwhile.")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmark", description=__doc__)
    add = parser.add_argument
    add("--sizes", type=int, nargs=2, default=[1000, 4000], metavar="MB", help="of the two clusters: %(default)s")
    add("--wal", type=int, default=390, metavar="MB", help="to be replayed after the crash: %(default)s")
    add("--ways", nargs="+", choices=HEADINGS, default=list(HEADINGS), help="only these")
    add("--readers", type=int, default=min(4, os.cpu_count() or 1), help="Borg mounts of the block way: %(default)s")
    add("--seconds", type=int, default=8, help="of each run of pgbench: %(default)s")
    add("--rounds", type=int, default=3, help="of pgbench, the median counts: %(default)s")
    add("--quick", action="store_true", help="tiny clusters and short runs: shows that it works, measures nothing")
    add("--no-play", action="store_true", help="leave out the start playbook")
    add(
        "--directory",
        type=Path,
        default=Path("/var/tmp"),
        help="where to make the directory for everything: %(default)s",
    )
    add("--keep", action="store_true", help="leave that directory, with the archives in it")
    add("--archives", type=Path, metavar="DIRECTORY", help="use the archives that an earlier run has kept there")
    options = parser.parse_args()
    if options.quick:
        options.sizes, options.wal, options.seconds, options.rounds = [32, 64], 4, 1, 1
    return options


@contextlib.contextmanager
def _directory(options: argparse.Namespace) -> Iterator[Path]:
    """The directory for everything; at its end nothing runs or is mounted there, and it is removed."""
    directory = Path(tempfile.mkdtemp(prefix=PREFIX, dir=options.directory))
    directory.chmod(0o755)  # servers run as another user
    try:
        free = shutil.disk_usage(directory).free
        if free < MINIMUM_FREE * options.sizes[1] * 1_000_000:
            raise SystemExit(
                f"benchmark: {directory} has {free // 10**9} GB free, too few for these sizes: use --directory"
            )
        yield directory
    finally:
        # A second Ctrl-C must not leave half of it.
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
        end_all(directory / "sessions")
        if left := [line for line in remains(directory) if not line.startswith("path ")]:
            say(f"could not undo {', '.join(left)}: that done, remove {directory}")
        elif options.keep:
            say(f"kept {directory}")
        else:
            shutil.rmtree(directory)
        signal.signal(signal.SIGINT, before)


def say(text: str) -> None:
    print(f"benchmark: {text}", file=sys.stderr, flush=True)


def _interrupt(*_: object) -> NoReturn:
    raise KeyboardInterrupt


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("benchmark: interrupted; everything it had made is removed")
