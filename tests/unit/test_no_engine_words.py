# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What knows no engine has no engine's words: in its names and strings, and in tasks."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
import yaml

CHECKOUT = Path(__file__).resolve().parents[2]
WORDS = re.compile(
    r"postgres|psql|pgsql|\bpg_|PGSQL|\bwal\b|_wal_|_wal\b|\bwal_|mysql|mariadb|innodb|binlog|mongo|wiredtiger",
    re.IGNORECASE,
)
# Rooms, roles and modules of one engine, and the room that lists engines.
OWN = re.compile(
    r"plugins/module_utils/(_postgresql|_mysql|_mongodb|_engines)/|plugins/modules/\w+_ephemeral\.py|roles/(postgresql|mysql)/"
    r"|plugins/doc_fragments/(postgresql|mysql)\.py|src/instant_recovery/(_postgresql|_mysql|_drivers|_options)\.py"
)
# Variables of other programs that are kept away from ours, whichever engine they are of.
KNOWN = {"plugins/module_utils/_host/command.py"}
DOCUMENTS = ("DOCUMENTATION", "EXAMPLES", "RETURN")


def files(*patterns: str) -> list[str]:
    found = (str(path.relative_to(CHECKOUT)) for pattern in patterns for path in sorted(CHECKOUT.glob(pattern)))
    return [path for path in found if not OWN.search(path)]


def code(tree: ast.Module) -> list[str]:
    """Names and strings of a Python file, without its documentation: that may give examples."""
    documents = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and any(getattr(name, "id", "") in DOCUMENTS for name in node.targets):
            documents |= {id(one) for one in ast.walk(node.value)}
        elif isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            first = node.body[0]
            assert isinstance(first, ast.Expr)
            documents.add(id(first.value))
    found = []
    for node in ast.walk(tree):
        if id(node) in documents:
            continue
        if isinstance(node, ast.Constant) and isinstance(node.value, str | bytes):
            found.append(node.value if isinstance(node.value, str) else node.value.decode("latin-1"))
        for field in ("id", "attr", "arg", "name", "module"):
            value = getattr(node, field, None)
            found += [value] if isinstance(value, str) else []
    return found


@pytest.mark.parametrize("path", files("plugins/**/*.py", "src/**/*.py"))
def test_code_that_knows_no_engine(path: str) -> None:
    found = [text for text in code(ast.parse((CHECKOUT / path).read_text())) if WORDS.search(text)]
    assert bool(found) == (path in KNOWN), found


def strings(value: object) -> list[str]:
    """Keys and values of tasks or variables."""
    if isinstance(value, dict):
        return [text for pair in value.items() for one in pair for text in strings(one)]
    if isinstance(value, list):
        return [text for one in value for text in strings(one)]
    return [value] if isinstance(value, str) else []


@pytest.mark.parametrize("path", files("roles/*/tasks/*.yml", "roles/*/vars/*.yml", "playbooks/*.yml"))
def test_tasks_that_know_no_engine(path: str) -> None:
    found = strings(yaml.safe_load((CHECKOUT / path).read_text()))
    assert [text for text in found if WORDS.search(text)] == []
