# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The copy-on-write layer against a model: an ordinary directory to which the same operations are done.

Two ways of choosing operations: hypothesis, which shrinks what fails to a few lines, and long random runs by several
processes at once, which reach states that short programs do not. INSTANT_RECOVERY_MODEL_SECONDS (default 10) is shared
by both: `scripts/test full` takes ten minutes; take an hour after changes to the layer.
"""

from __future__ import annotations

import itertools
import os
import random
import shutil
import time
from concurrent.futures import ProcessPoolExecutor
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.layer import Layer
from tests.support.twins import Op, Twins, operation, populate

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

SECONDS = float(os.environ.get("INSTANT_RECOVERY_MODEL_SECONDS", "10"))
SEED = os.environ.get("INSTANT_RECOVERY_MODEL_SEED")
WORKERS = 3


@st.composite
def operations(draw: Callable[[st.SearchStrategy[int]], int]) -> Op:
    return operation(lambda low, high: draw(st.integers(low, high)))


@pytest.fixture(scope="module")
def layer(shared_place_on_disk: Path) -> Iterator[Layer]:
    """One layer for all programs, with two readers: each program has a fresh directory in the lower, made just before
    it is first looked up.
    """
    directory = shared_place_on_disk / "model"
    (directory / "lower").mkdir(parents=True)
    (directory / "plain").mkdir()
    lowers = [directory / "lower"] * 2
    with Layer(lower=lowers, directory=directory, options=["--cache-size", str(8 << 20)]) as mounted:
        yield mounted
    shutil.rmtree(directory)


def test_any_program_of_operations_does_what_it_does_to_an_ordinary_directory(layer: Layer) -> None:
    cases = itertools.count()

    @settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck), print_blob=True)
    @given(program=st.lists(operations(), min_size=30, max_size=120))
    def some(program: list[Op]) -> None:
        run_on_twins(layer, f"case-{next(cases)}", program)

    end = time.monotonic() + SECONDS / 2
    while time.monotonic() < end:
        some()
    print("programs:", next(cases))


def run_on_twins(layer: Layer, case: str, program: list[Op]) -> None:
    lower, plain = layer.lower[0] / case, layer.directory / "plain" / case
    populate(lower)
    populate(plain)
    with Twins(layer.root / case, plain) as twins:
        for op in program:
            twins.run(op)
        twins.compare(cold=True)
    shutil.rmtree(layer.root / case)
    shutil.rmtree(plain)
    assert not layer.complaints(), layer.complaints()


def test_long_random_runs_of_several_processes_at_once(layer: Layer) -> None:
    seeds = [int(SEED)] if SEED else [random.randrange(10**9) for _worker in range(WORKERS)]
    paths = [(layer.lower[0] / f"run-{seed}", layer.root, layer.directory / "plain" / f"run-{seed}") for seed in seeds]
    with ProcessPoolExecutor(len(seeds)) as workers:
        runs = [workers.submit(long_run, seed, *places) for seed, places in zip(seeds, paths, strict=True)]
        print("operations:", sum(run.result() for run in runs))
    assert not layer.complaints(), layer.complaints()
    # Whatever was removed takes no space any more.
    assert layer.changes() == []


def long_run(seed: int, lower: Path, root: Path, plain: Path) -> int:
    """Random operations for half of SECONDS, all of them given by the seed; their number."""
    source, end = random.Random(seed), time.monotonic() + SECONDS / 2
    populate(lower)
    populate(plain)
    layered = root / lower.name
    with Twins(layered, plain) as twins:
        try:
            while time.monotonic() < end:
                for _operation in range(500):
                    twins.run(operation(source.randint))
                twins.compare(cold=True)
        except AssertionError as error:
            last = "\n".join(map(repr, twins.done[-60:]))
            raise AssertionError(
                f"INSTANT_RECOVERY_MODEL_SEED={seed}, operation {len(twins.done)}: {error}\n{last}"
            ) from None
    shutil.rmtree(layered)
    return len(twins.done)
