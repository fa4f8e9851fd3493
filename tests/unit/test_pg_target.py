# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Points in time as people write them."""

from __future__ import annotations

import pytest
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._engine.moment import parse_moment
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._errors import RecoveryError
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._postgresql.target import (
    Target,
    read_target,
)


@pytest.mark.parametrize(
    ("text", "in_utc"),
    [
        ("2026-11-22 14:05:00+01", "2026-11-22 13:05:00+00:00"),
        ("2026-11-22T14:05:00.5-0330", "2026-11-22 17:35:00.500000+00:00"),
        ("2026-11-22 14:05Z", "2026-11-22 14:05:00+00:00"),
        ("2026-11-22 14:05:00 UTC", "2026-11-22 14:05:00+00:00"),
        ("2026-11-22 14:05:00.123456", "2026-11-22 19:05:00.123456+00:00"),  # New York's
    ],
)
def test_times(text: str, in_utc: str) -> None:
    target = Target("recovery_target_time", text)
    assert target.settings("America/New_York")["recovery_target_time"] == in_utc


@pytest.mark.parametrize(
    "text",
    [
        *("", "now", "14:05", "2026-02-30 14:05", "2026-11-22", "2026-11-22 25:00", "2026-11-22 14:05 CET", "epoch"),
        *("9999-12-31T23:59:59-12:00", "0001-01-01T00:00:00+14:00"),
    ],
)
def test_what_is_no_time(text: str) -> None:
    with pytest.raises(RecoveryError, match="write it as 2026-11-22T14:05:00"):
        parse_moment(text, "UTC", zone_is="UTC")


def test_a_time_zone_that_is_not_known_here() -> None:
    with pytest.raises(
        RecoveryError, match="no offset from UTC, and the archive's time zone Mars/Olympus is not known"
    ):
        parse_moment("2026-11-22 14:05", "Mars/Olympus", zone_is="Mars")
    assert parse_moment("2026-11-22 14:05+00", "Mars/Olympus", zone_is="Mars").minute == 5


def test_no_target_and_a_timeline_alone() -> None:
    assert read_target({}) is None
    assert read_target({"recovery_target_action": "promote", "recovery_target_inclusive": True}) is None
    target = read_target({"recovery_target_timeline": "3"})
    assert target == Target(timeline="3")
    assert target.settings("UTC") == {
        "recovery_target_inclusive": "on",
        "recovery_target_timeline": "3",
        "recovery_target_action": "promote",
    }


def test_targets_that_differ_are_spelled_differently() -> None:
    xid = {"recovery_target_xid": "7"}
    given = [{**xid, **more} for more in ({}, {"recovery_target_inclusive": False}, {"recovery_target_timeline": "2"})]
    assert [str(read_target(options)) for options in given] == [
        "recovery_target_xid 7",
        "recovery_target_xid 7, exclusive",
        "recovery_target_xid 7, on timeline 2",
    ]
