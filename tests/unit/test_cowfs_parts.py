# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Parts of the copy-on-write layer that need no mount."""

from __future__ import annotations

import os
import random
from typing import TYPE_CHECKING

import pytest
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._layer.cowfs import windows
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._layer.cowfs.blocks import (
    BLOCK,
    Bits,
    runs_of_zeros,
)
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._layer.cowfs.windows import PIECE, WINDOW, Cache
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._session.counters import Counters

if TYPE_CHECKING:
    from pathlib import Path

DATA = random.Random(1).randbytes(2 * WINDOW)


def test_bits_hold_what_was_added() -> None:
    bits, choose = Bits(), random.Random(2)
    added = {choose.randrange(1 << choose.choice((4, 14, 40))) for _turn in range(2000)}
    for number in added:
        bits.add(number)
    near = {number + step for number in added for step in (-1, 0, 1) if number + step >= 0}
    assert {number for number in near if number in bits} == added


@pytest.mark.parametrize("offset", [0, 100, BLOCK, 5 * BLOCK + 17])
@pytest.mark.parametrize("blocks", [[], [0], [1], [0, 0], [1, 0, 0, 1], [0, 1, 0], [1, 1, 1]])
def test_zeros_are_found_by_whole_blocks(offset: int, blocks: list[int]) -> None:
    data = b"".join(DATA[:BLOCK] if one else bytes(BLOCK) for one in blocks) + bytes(10)
    runs = list(runs_of_zeros(data, offset))
    assert [start for start, _stop, _zero in runs] == [0, *(stop for _start, stop, _zero in runs[:-1])]
    assert runs[-1][1] == len(data)
    for start, stop, is_zero in runs:
        assert not is_zero or (stop > start and not any(data[start:stop]))
        assert not is_zero or (offset + start) % BLOCK == (offset + stop) % BLOCK == 0
    if offset % BLOCK == 0:
        assert sum(stop - start for start, stop, is_zero in runs if is_zero) == blocks.count(0) * BLOCK


def test_the_cache_keeps_to_its_bytes_whatever_the_sizes(tmp_path: Path) -> None:
    budget, choose = 8 << 20, random.Random(3)
    cache = Cache(str(tmp_path), budget, Counters(None))
    sizes: dict[tuple[int, int], int] = {}
    found = 0
    for turn in range(1500):
        key = (choose.randrange(12), choose.randrange(12))
        if key in cache and choose.random() < 0.9:
            found += 1
            size = sizes[key]
            start = choose.randrange(size)
            stop = min(size, start + choose.choice((1, BLOCK, PIECE, WINDOW)))
            assert cache.read(key, start, stop) == DATA[sum(key) + start : sum(key) + stop], (turn, key)
        elif key not in cache:
            sizes[key] = choose.choice((1, 100, BLOCK, PIECE, PIECE + 1, 10 * PIECE, WINDOW))
            cache.write(key, DATA[sum(key) : sum(key) + sizes[key]])
        assert os.fstat(cache.file).st_blocks * 512 <= budget
    assert found > 100
    assert cache.counters.get("cache_bytes") <= budget
    os.close(cache.file)


def test_the_cache_knows_no_more_windows_than_fit_into_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(windows, "MOST_CACHED", 10)
    cache = Cache(str(tmp_path), 1 << 30, Counters(None))
    for number in range(100):
        cache.write((1, number), DATA[:BLOCK])
    assert list(cache.used) == [(1, number) for number in range(90, 100)]
    assert cache.counters.get("cache_bytes") == 10 * PIECE
    cache.give_up("a test")
    cache.write((1, 1), DATA[:BLOCK])
    assert (1, 1) not in cache
    assert os.fstat(cache.file).st_blocks == 0
    os.close(cache.file)


def test_nothing_is_kept_that_is_larger_than_the_budget(tmp_path: Path) -> None:
    for budget in (0, PIECE - 1, 3 * PIECE):
        cache = Cache(str(tmp_path), budget, Counters(None))
        cache.write((1, 1), DATA[: 3 * PIECE + 1])
        assert (1, 1) not in cache
        os.close(cache.file)
