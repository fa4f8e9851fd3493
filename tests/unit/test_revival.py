# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""For how long an archive that nobody reads stays mounted, and how often it is mounted again."""

from __future__ import annotations

import pytest
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._keeper.archive import Pace, suspend_after
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._session.record import Record


@pytest.mark.parametrize(
    ("chosen", "mounting", "seconds"),
    [
        (None, 1.3, 60),
        (None, 12.0, 120),  # slow to come back, and held for longer
        (None, 31.0, 0),
        (3, 12.0, 3),
        (3, 31.0, 0),
        (0, 1.3, 0),
    ],
)
def test_what_is_slow_to_come_back_is_held_for_longer(chosen: float | None, mounting: float, seconds: float) -> None:
    assert suspend_after(Record("x", suspend_after=chosen, timings={"borg_mount": mounting})) == seconds


def test_what_was_never_mounted_is_not_let_go() -> None:
    assert suspend_after(Record("x")) == 0


def test_some_at_once_and_then_one_after_so_many_seconds() -> None:
    pace, now = Pace(3, 10.0), 1000.0
    assert [pace.take(now) for _turn in range(3)] == [0, 0, 10]
    done = 0
    for _turn in range(50):
        now += pace.take(now + 10)
        now += 10
        done += 1
    assert done / (now - 1000) <= 1 / 10 + 0.01


def test_after_a_while_there_are_some_at_once_again() -> None:
    pace = Pace(3, 10.0)
    assert [pace.take(0.0) for _turn in range(3)][-1] == 10
    assert [pace.take(25.0) for _turn in range(2)] == [0, 5]
    assert [pace.take(1000.0) for _turn in range(3)] == [0, 0, 10]
