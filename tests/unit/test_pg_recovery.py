# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What an older server says of a recovery that it takes for a success. `scripts/test versions` runs such servers."""

from __future__ import annotations

import pytest
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._postgresql.recovery import (
    Recovery,
    check_outcome,
)
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._postgresql.target import Target

# Printed by PostgreSQL 12.22, and the warning by 13.23.
DONE = "2026-11-22 23:26:42.485 GMT [7] 00000 LOG:  redo done at 0/7342CF8"
LAST = "2026-11-22 23:26:42.485 GMT [7] 00000 LOG:  last completed transaction was at log time 2026-11-22 23:26:18.1+00"
STOP = "2026-11-22 23:26:42.4 GMT [7] 00000 LOG:  recovery stopping before commit of transaction 517, time 2026-11-22"
MINIMAL = "2026-11-22 23:26:42.4 GMT [7] 01000 WARNING:  WAL was generated with wal_level=minimal, data may be missing"
NAMED = Target("recovery_target_name", "before")


@pytest.mark.parametrize(
    ("target", "log", "said"),
    [
        (NAMED, [STOP, DONE, LAST], None),
        (
            NAMED,
            [DONE, LAST],
            "recovery_target_name before was not reached: the WAL ends at 0/7342CF8, its last commit was at 2026-11-22",
        ),
        (NAMED, [STOP, MINIMAL, DONE], "The WAL was partly written with wal_level=minimal"),
        (Target(), [DONE, LAST], None),
        (Target(), [MINIMAL, DONE], "The WAL was partly written with wal_level=minimal"),
        (None, [DONE], None),
        (None, [], None),
    ],
)
def test_success_that_is_none_is_noticed(target: Target | None, log: list[str], said: str | None) -> None:
    problem = check_outcome(None if target is None else Recovery(target, None, "UTC"), log)
    assert (problem or "").startswith(said or "")
    assert (problem is None) == (said is None)
