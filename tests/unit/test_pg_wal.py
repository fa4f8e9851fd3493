# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""When pg_waldump may be believed; which files are archived WAL."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._borg.items import Item
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._engines.contents import find_databases
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._host.command import Completed
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._postgresql.wal import Start, tablespace_records

FIRST = "000000010000000000000002"


@pytest.mark.parametrize(
    ("others", "is_asked"),
    [
        (["000000010000000000000003"], True),
        (["000000010000000000000001", "000000020000000000000001"], True),  # before the start
        (["000000020000000000000003"], False),
        (["000000010000000000000004"], False),  # recovery may fill the gap
    ],
)
def test_pg_waldump_is_asked_only_about_one_timeline(others: list[str], is_asked: bool, tmp_path: Path) -> None:
    asked: list[Any] = []

    def waldump(directory: str, arguments: Sequence[str]) -> Completed:
        asked.append((directory, arguments))
        return Completed(("pg_waldump",), 1, "", "")

    for name in (FIRST, *others):
        (tmp_path / name).touch()
    start = Start(2 * 2**24, 1, 2**24)
    assert tablespace_records(str(tmp_path), start, waldump=waldump, timeout=10) == []
    assert bool(asked) == is_asked


@pytest.mark.parametrize("suffix", ["", ".gz", f"-{'0f' * 20}.zst", ".partial", ".partial.gz", ".gz.partial"])
def test_what_recovery_can_read_is_listed_as_archived_wal(suffix: str) -> None:
    names = (f"{FIRST}{suffix}", f"{FIRST}.00000028.backup")
    items = [Item(f"wal/{name}", "-", 100, "postgres") for name in names]
    _found, listing = find_databases(items, read=lambda _: {}, begin=lambda *_: {})
    assert [found["segments"] for found in listing.log_archives([])] == [1]
