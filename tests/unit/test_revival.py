# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""For how long an archive that nobody reads stays mounted."""

from __future__ import annotations

import pytest
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._revival import rest_after


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
    assert rest_after({"rest_after": chosen, "timings": {"borg_mount": mounting}}) == seconds


def test_what_was_never_mounted_is_not_let_go() -> None:
    assert rest_after({"rest_after": None, "timings": {}}) == 0
