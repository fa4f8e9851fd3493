# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The rooms of module_utils: imports go down only, and without a circle, as docs/architecture.md draws them."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]
UTILS = CHECKOUT / "plugins" / "module_utils"
ROW = re.compile(r"\| (\d+) \| `(\w+)` \|")
FLOORS = {room: int(floor) for floor, room in ROW.findall((CHECKOUT / "docs" / "architecture.md").read_text())}
ENGINES = {"_postgresql", "_mysql", "_mongodb"}
# Modules that mount, print a log or end a session, and the rooms that Ansible has to ship for them at the most.
WITHOUT_ENGINE = ("borg_mount", "overlay_mount", "session_log", "session_follow", "host_preflight")


@cache
def imported(path: Path) -> set[Path]:
    """The files of module_utils that a file of plugins imports, for type checks as well."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.ImportFrom):
            assert "ansible_collections" not in ast.unparse(node) or not isinstance(node, ast.Import), path
            continue
        if not node.level:
            assert not (node.module or "").startswith("ansible_collections.phpborg"), f"{path}: imports are relative"
            continue
        start = path.parents[node.level - 1].joinpath(*(node.module or "").split("."))
        places = [start.with_suffix(".py")] if start.with_suffix(".py").exists() else []
        found |= set(places or [start / f"{name.name}.py" for name in node.names])
    return {one for one in found if UTILS in one.parents}


def room_of(path: Path) -> str:
    return path.relative_to(UTILS).parts[0].removesuffix(".py")


def reached(path: Path) -> set[Path]:
    """All that a file needs of module_utils."""
    found: set[Path] = set()
    ahead = {path}
    while ahead:
        new = imported(ahead.pop()) - found
        found |= new
        ahead |= new
    return found


FILES = sorted(UTILS.rglob("*.py"))


def test_every_room_has_its_floor() -> None:
    assert len(set(FLOORS.values())) == len(FLOORS)
    assert {room_of(path) for path in FILES} == set(FLOORS)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(UTILS)))
def test_imports_go_down_and_there_is_no_circle(path: Path) -> None:
    for one in imported(path):
        assert one.exists(), one
        assert FLOORS[room_of(one)] <= FLOORS[room_of(path)], f"{path} imports {one} of a higher floor"
    assert path not in reached(path), f"{path} imports itself in the end"


@pytest.mark.parametrize("module", WITHOUT_ENGINE)
def test_what_knows_no_engine_ships_none(module: str) -> None:
    rooms = {room_of(path) for path in reached(UTILS.parent / "modules" / f"{module}.py")}
    assert rooms.isdisjoint({"_engine", "_engines", *ENGINES})


@pytest.mark.parametrize("engine", sorted(ENGINES))
def test_an_engine_knows_no_other(engine: str) -> None:
    rooms = {room_of(found) for path in FILES if room_of(path) == engine for found in reached(path)}
    assert rooms & ENGINES <= {engine}
