# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The role refuses before anything is mounted what the module would refuse afterwards, and nothing that it takes."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import yaml
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._postgresql.cluster import PostgresError
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._postgresql.target import parse_time

VARIABLES = Path(__file__).resolve().parents[2] / "roles" / "session" / "vars" / "main.yml"


DATES = ("2026-11-22", "2026-13-01", "2026-00-01", "2026-11-32", "26-11-22", "yesterday")
TIMES = ("", " 14:05", "T14:05:07", " 14:05:07.123456", " 24:00", " 14:60", " 14", " 14:05:61")
OFFSETS = ("", "+01", " -0330", "+01:00", "Z", " UTC", " CET", "+1")


def test_times_are_those_of_the_module() -> None:
    pattern = re.compile(yaml.safe_load(VARIABLES.read_text(encoding="utf-8"))["__session_time"])
    texts = ["".join(parts) for parts in itertools.product(DATES, TIMES, OFFSETS)]
    assert [text for text in texts if bool(pattern.search(text)) != is_time(text)] == []
    assert 0 < sum(map(is_time, texts)) < len(texts)


def is_time(text: str) -> bool:
    """Whether the module takes it."""
    try:
        return bool(parse_time(text, "UTC"))
    except PostgresError:
        return False
