# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""One run: all the ways, one after the other."""

from __future__ import annotations

import os
import statistics
import subprocess
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tests.benchmarks.measure import drop_caches, random_reads, read_rate
from tests.benchmarks.sources import KEY, TABLE, Source, Sources
from tests.benchmarks.ways import Extracted, Mounted, Recovery, UsualMounted, Way
from tests.support.playbook import Playbooks

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from tests.benchmarks.report import Figures

__all__ = ["Benchmark"]

# A short start is repeated and the median counts: how often, and seconds that all of them together may take.
STARTS, STARTS_MAY_TAKE = 3, 15.0
# Of a table's megabytes, the share that a cold series of random reads may touch: each makes about one of them warm.
COLD_SHARE = 0.15
MEGABYTE = 1 << 20


@dataclass(kw_only=True)
class Benchmark:
    """Goes all the ways, one after the other; `figures` fills."""

    sources: Sources
    session_root: Path
    ways: Sequence[str]
    readers: int
    rounds: int
    seconds: int
    play: bool
    say: Callable[[str], None]
    figures: Figures = field(default_factory=dict)
    native: Recovery | None = None

    def run(self) -> None:
        """Everything that was asked for."""
        for name, way in self._ways().items():
            if name in self.ways:
                figures = self.figures[name] = {}
                self._starts(name, way, figures)
                self._life(name, way, figures)
                self._work(name, way, figures)
        if self.native is not None:
            self.native.end()
        if "block" in self.ways and self.play:
            self._play(self.figures["block"])

    def _ways(self) -> dict[str, Way]:
        common = {"repository": self.sources.repository, "session_root": self.session_root}
        return {
            "extract": Extracted(**common),
            "overlayfs": UsualMounted(**common, driver="overlayfs", readers=1),
            "tuned": Mounted(**common, driver="overlayfs", readers=1),
            "block": Mounted(**common, driver="block", readers=self.readers),
        }

    def _starts(self, name: str, way: Way, figures: dict[str, float]) -> None:
        """How long it takes until a server answers, and what is on disk then."""
        for kind in ("small", "large", "crashed"):
            source: Source = getattr(self.sources, kind)
            seconds: list[float] = []
            while len(seconds) < STARTS and sum(seconds) < STARTS_MAY_TAKE:
                self.say(f"{name}: starting {kind}")
                recovery = _started(way, source)
                seconds.append(recovery.ready)
                figures[f"borg {kind}"] = recovery.borg_seconds()
                figures[f"layer {kind}"] = recovery.layer_seconds()
                figures[f"disk {kind}"] = recovery.written()
                _note_peak(figures, recovery)
                recovery.end()
            figures[f"ready {kind}"] = statistics.median(seconds)

    def _life(self, name: str, way: Way, figures: dict[str, float]) -> None:
        """The first query of a session, then a scan of everything."""
        source = self.sources.large
        recovery = _started(way, source)
        self.say(f"{name}: first row")
        figures["first row"] = recovery.server.seconds(f"select * from {TABLE} where {KEY} = {source.rows * 5 // 8}")
        figures["disk row"] = recovery.written()
        scan = f"select sum(abalance) from {TABLE}"
        drop_caches()
        self.say(f"{name}: cold scan")
        figures["scan cold"] = source.table_size / recovery.server.seconds(scan)
        figures["borg scan"], figures["layer scan"] = recovery.borg_seconds(), recovery.layer_seconds()
        figures["disk scan"] = recovery.written()
        figures["scan warm"] = source.table_size / min(recovery.server.seconds(scan) for _round in range(2))
        _note_peak(figures, recovery)
        if name == "block":
            self.say("borg extract --stdout of the same files")
            figures["stream"] = source.table_size / self._stream(source)
        recovery.end()

    def _work(self, name: str, way: Way, figures: dict[str, float]) -> None:
        """Reads that a scan would have made warm, and pgbench."""
        recovery = _started(way, self.sources.large)
        files = [recovery.data / path for path in self.sources.large.files]
        # One of full size is kept for reading in sequence, the others are for random reads; a small table has but one.
        kept = files[-2:][0]
        others = [path for path in files if path != kept] or files
        most = int(COLD_SHARE * sum(path.stat().st_size for path in others) / MEGABYTE)
        for readers in (1, 4):
            drop_caches()
            self.say(f"{name}: random reads, {readers} at once")
            figures[f"random cold {readers}"] = random_reads(others, readers=readers, most=most, seconds=10)
        drop_caches()
        self.say(f"{name}: sequential reads")
        figures["read cold"] = read_rate(kept)
        figures["read warm"] = read_rate(kept)
        figures["random warm"] = random_reads([kept], readers=1, most=1_000_000, seconds=self.seconds / 4)
        _note_peak(figures, recovery)
        if name == "extract":
            self.native = recovery
            self._pgbench({"": recovery}, figures)
        else:
            self.native = self.native or self._ways()["extract"].start(self.sources.large)
            self._pgbench({" native": self.native, "": recovery}, figures)
            _note_peak(figures, recovery)
            recovery.end()

    def _pgbench(self, both: dict[str, Recovery], figures: dict[str, float]) -> None:
        """By turns with the native directory, so that whatever else the machine does falls on both."""
        self.say("pgbench, beside the native directory")
        for kind, select_only in (("select", True), ("write", False)):
            rates: dict[str, list[float]] = {which: [] for which in both}
            for _turn in range(self.rounds):
                for which, one in both.items():
                    one.server.prewarm()
                    rates[which].append(one.server.pgbench(select_only=select_only, seconds=self.seconds))
            for which, found in rates.items():
                figures[f"{kind}{which}"] = statistics.median(found)

    def _stream(self, source: Source) -> float:
        """Seconds of `borg extract --stdout`."""
        repository = self.sources.repository
        paths = [f"{source.data_directory}/{path}" for path in source.files]
        argv = ["borg", "extract", "--stdout", f"{repository.location}::{source.archive}", *paths]
        drop_caches()
        began = time.monotonic()
        subprocess.run(argv, stdout=subprocess.DEVNULL, env={**os.environ, **repository.environment}, check=True)
        return time.monotonic() - began

    def _play(self, figures: dict[str, float]) -> None:
        """A start as a user types it."""
        self.say("the start playbook")
        playbooks = Playbooks(
            directory=self.session_root.parent / "ansible",
            session_root=self.session_root,
            environment=self.sources.repository.environment,
        )
        drop_caches()
        repository = self.sources.repository.location
        run = playbooks.start(archive=f"{repository}::{self.sources.large.archive}", driver="block")
        if run.returncode:
            raise RuntimeError(f"the start playbook failed: {run.message or run.output}")
        figures["play"] = run.seconds
        figures["play overhead"] = run.session["timings"]["overhead"]
        stopped = playbooks.stop(run.session["id"])
        if stopped.returncode:
            raise RuntimeError(f"the stop playbook failed: {stopped.message or stopped.output}")


def _started(way: Way, source: Source) -> Recovery:
    drop_caches()
    return way.start(source)


def _note_peak(figures: dict[str, float], recovery: Recovery) -> None:
    if recovery.layer is not None:
        figures["layer peak"] = max(figures.get("layer peak", 0), recovery.layer_peak())
