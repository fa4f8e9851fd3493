# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What scripts/generate writes from the table of options is fresh, and all of the table is in it."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

from ansible_collections.phpborg.instant_recovery.plugins.plugin_utils.table import ENTRY_POINTS, read_table

from instant_recovery import StartOptions

CHECKOUT = Path(__file__).resolve().parents[2]


def generate() -> Any:
    sys.path.insert(0, str(CHECKOUT / "scripts"))
    specification = importlib.util.spec_from_file_location("generate", CHECKOUT / "scripts" / "generate.py")
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def test_what_is_generated_is_fresh() -> None:
    for path, text in generate().generated().items():
        assert path.read_text(encoding="utf-8") == text, f"{path.name} is not what the table says: run scripts/generate"


def test_the_document_has_every_option() -> None:
    text = (CHECKOUT / "docs" / "variables.md").read_text(encoding="utf-8")
    for entry_point in ENTRY_POINTS:
        rows = text.partition(f"\n### {entry_point}\n")[2].partition("\n### ")[0]
        assert [name for name in read_table(entry_point).options if f"| `{name}` |" not in rows] == []


def test_pythons_start_takes_what_the_playbook_takes() -> None:
    start = read_table("start")
    own = {name for options in start.engines.values() for name in options}
    not_taken = {"archive", "accept_unknown", "session_id", "session_root"}
    assert set(StartOptions.__annotations__) == (start.options.keys() | own) - not_taken


def test_markup_becomes_markdown() -> None:
    marked = generate().marked
    assert marked(["C(a) and V(session_b),", "O(session_ttl)"]) == "`a` and `session_b`, `ttl`"
    assert marked("M(phpborg.instant_recovery.overlay_mount), E(BORG_RSH)") == "`overlay_mount`, `BORG_RSH`"
