# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What weights stand for where there are no control groups, and how the slice of a session is called."""

from __future__ import annotations

import os
import resource

import pytest
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._errors import RecoveryError
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._host import limits as _limits
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._host import sandbox as _sandbox
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._host.limits import (
    io_priority_of,
    nice_of,
    own_memory,
    slice_of,
)
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._host.processes import identify
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._session import metrics as _metrics

from tests.support.forked import forked


@pytest.mark.parametrize(
    ("weight", "nice"), [(100, 0), (80, 1), (50, 3), (20, 7), (10, 10), (1, 19), (125, -1), (1000, -10), (10000, -20)]
)
def test_a_nice_value_for_each_weight(weight: int, nice: int) -> None:
    """The kernel gives each step a fourth more or less: sched(7)."""
    assert nice_of(weight, is_root=True) == nice
    assert nice_of(weight, is_root=False) == max(0, nice)


@pytest.mark.parametrize(("weight", "level"), [(100, 4), (50, 5), (20, 6), (10, 7), (1, 7), (200, 3), (10000, 0)])
def test_an_io_priority_for_each_weight(weight: int, level: int) -> None:
    assert io_priority_of(weight) == level


def test_a_slice_is_a_neighbour_of_the_services() -> None:
    """A hyphen in its name would make it part of another slice; the same name may be in use below two roots."""
    name = slice_of("/var/lib/instant_recovery/20261122-130501-9c1e")
    assert name == r"system-instant_recovery_20261122\x2d130501\x2d9c1e.slice"
    assert slice_of("/srv/a/shop") != slice_of("/srv/b/shop")
    assert slice_of("/srv/a/shop").startswith("system-instant_recovery_shop_")
    hyphens = {slice_of(f"/srv/{root}/{'-' * 64}") for root in "ab"}
    assert max(map(len, hyphens)) <= 255, "systemd takes no longer name (UNIT_NAME_MAX)"
    assert len(hyphens) == 2


def test_a_module_that_needs_too_much_memory_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_limits, "half_of_memory", lambda: 1 << 30)
    error = RecoveryError("too large")

    def look() -> tuple[str, bool]:
        before = resource.getrlimit(resource.RLIMIT_DATA)
        try:
            with own_memory(error):
                bytearray(2 << 30)
        except RecoveryError as caught:
            return str(caught), resource.getrlimit(resource.RLIMIT_DATA) == before
        return "", False

    assert forked(look) == ("too large", True)


@pytest.mark.parametrize(
    ("files", "ids", "given"),
    [
        (1 << 60, 4194304, {"processes": 4096, "files": 1024}),  # as systemd has it
        (2_466_174, 32768, {"processes": 602, "files": 1024}),
        (100_000, 32768, {"processes": 256, "files": 256}),
        (1 << 60, 16384, {"processes": 2048, "files": 1024}),
    ],
)
def test_a_server_gets_a_share_of_what_the_host_has_once(
    files: int, ids: int, given: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_sandbox, "_number_in", {"/proc/sys/fs/file-max": files, "/proc/sys/kernel/pid_max": ids}.get)
    assert _sandbox._numbers() == given


def test_memory_that_is_not_told_in_time_is_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    own = identify(os.getpid())
    assert own is not None
    assert (_metrics._memory([own]) or 0) > 1 << 20
    monkeypatch.setattr(_metrics, "PATIENCE", 0.0)
    assert _metrics._memory([own]) is None
