# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the keeper makes of the layer's words, and what it counts of a session's disk space."""

from __future__ import annotations

import os
import struct
import time
from typing import TYPE_CHECKING

import pytest
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._keeper import keeper as _keeper
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._session.directory import SessionError
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._session.record import Record
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._session.session import Session

if TYPE_CHECKING:
    from pathlib import Path

MEGABYTE = 1 << 20
PREFIX = "2026-11-22 23:32:55,076 cowfs ERROR "


class Layer:
    """A session as the keeper's count of its disk space sees it: `upper` with the layer's counters, and others."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.session = Session(str(directory), Record("a"))
        for name in ("archive", "upper", "merged", "run", "log"):
            (directory / name).mkdir()
        self.written(0)

    def written(self, size: int) -> None:
        """What the layer says to have written."""
        (self.directory / "upper.counters").write_bytes(struct.pack("4Q", 0, size, 0, 0))

    def fill(self, name: str, megabytes: int) -> None:
        (self.directory / name).write_bytes(os.urandom(1 << 20) * megabytes)


@pytest.fixture
def layer(tmp_path: Path) -> Layer:
    return Layer(tmp_path)


def test_all_that_a_session_writes_counts(layer: Layer) -> None:
    usage, limit = _keeper._Usage(), 16 * MEGABYTE
    assert usage.of(layer.session, limit) < MEGABYTE
    layer.fill("upper/1", 7)
    layer.written(7 * MEGABYTE)
    layer.fill("run/big", 5)
    layer.fill("log/server.log", 5)
    wait(usage)
    assert 17 * MEGABYTE <= usage.of(layer.session, limit) < 18 * MEGABYTE


def test_changes_are_added_up_only_when_they_can_be_too_many(layer: Layer, monkeypatch: pytest.MonkeyPatch) -> None:
    counted: list[str] = []
    count = _keeper.disk_usage
    monkeypatch.setattr(_keeper, "disk_usage", lambda path: counted.append(path) or count(path))
    usage = _keeper._Usage()
    for written, times in ((0, 1), (10, 1), (15, 1), (16, 2)):
        layer.written(written * MEGABYTE)
        usage.of(layer.session, 16 * MEGABYTE)
        assert len(counted) == times
    layer.fill("run/big", 12)  # so less is left for them
    layer.written(21 * MEGABYTE)
    wait(usage)
    usage.of(layer.session, 16 * MEGABYTE)
    assert len(counted) == 3


def test_a_directory_of_very_many_files_takes_little_of_the_keepers_time(layer: Layer) -> None:
    for number in range(20_000):
        (layer.directory / f"run/{number}").touch()
    usage = _keeper._Usage()
    begun = time.process_time()
    usage.of(layer.session, MEGABYTE)
    once = time.process_time() - begun
    begun = time.process_time()
    for _look in range(10):
        usage.of(layer.session, MEGABYTE)
    assert time.process_time() - begun < once


def wait(usage: _keeper._Usage) -> None:
    """Until the files beside the changes are counted again."""
    while time.monotonic() < usage._due:
        time.sleep(0.001)


def test_the_same_failure_is_logged_once(layer: Layer, caplog: pytest.LogCaptureFixture) -> None:
    keeper = _keeper._Keeper.__new__(_keeper._Keeper)
    keeper.told = {}
    reasons = ["no record", "no record", "no record", "another"]

    def chore() -> None:
        raise SessionError(reasons.pop(0))

    for _look in range(4):
        keeper._try(chore)
    assert [record.getMessage() for record in caplog.records] == ["chore failed: no record", "chore failed: another"]
