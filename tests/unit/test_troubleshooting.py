# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""docs/troubleshooting.md against the code: each message that refuses or fails has a row, and each row a message.

A row begins with a part of the message, in which `…` stands for anything. Whoever writes a new message adds one line.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import yaml

TOP = Path(__file__).parents[2]
DOCUMENT = TOP / "docs" / "troubleshooting.md"
ROW = re.compile(r"^\| `(?P<message>[^`]+)` \| (?P<cause>[^|]+) \| (?P<cure>[^|]+) \|$", re.MULTILINE)
# Lists of sentences that one error puts together, names of sentences that are raised afterwards, what the errors of
# Borg mean, and what a host lacks.
LISTS, NAMES, TABLE, LACK = ("problems", "refusals"), ("message", "problem"), "EXPLANATIONS", "Problem"
SENTENCE = 45  # characters of a text that a function returns: either it ends with a stop, or it says what to do
FIXED = 15  # characters beside what is filled in, of a message that can be recognised
LITERALS = re.compile(r"'((?:[^'\n]|'')*)'(?:\s*'((?:[^'\n]|'')*)')?(?:\s*'((?:[^'\n]|'')*)')?")
REFUSING = re.compile(r"(refusals?|not_found|failure|outcome|silent)(_of_host)?$")


def fixed(text: str) -> bool:
    return sum(map(len, text.split("…"))) >= FIXED


@cache
def rows() -> list[tuple[str, str, str]]:
    return [(found[1], found[2], found[3]) for found in ROW.finditer(DOCUMENT.read_text())]


def covers(row: str, message: str) -> bool:
    """Whether a row's message is a part of this one, in which `…` is what is filled in."""
    return re.search(".*".join(map(re.escape, row.split("…"))), message, re.DOTALL) is not None


def templates(node: ast.expr) -> Iterator[str]:
    """The texts that an expression may be, or have among others."""
    several = {ast.BoolOp: "values", ast.Tuple: "elts"}.get(type(node))
    for one in getattr(node, several) if several else [node]:
        yield from (template(one.body), template(one.orelse)) if isinstance(one, ast.IfExp) else (template(one),)


def template(node: ast.expr) -> str:
    """A text as it stands in the source, with … for what is filled in."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(map(template, node.values))
    if isinstance(node, ast.BinOp):
        return template(node.left) + template(node.right)
    return "…"


@cache
def trees() -> dict[str, ast.Module]:
    paths = [*(TOP / "plugins").rglob("*.py")]
    return {str(path.relative_to(TOP)): ast.parse(path.read_text()) for path in sorted(paths)}


@cache
def errors() -> frozenset[str]:
    """Names of RecoveryError and of what is derived from it."""
    classes = [node for tree in trees().values() for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    bases = {node.name: {base.id for base in node.bases if isinstance(base, ast.Name)} for node in classes}
    known = {"RecoveryError"}
    while more := {name for name, of in bases.items() if of & known} - known:
        known |= more
    return frozenset(known)


def in_python(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Line and text of what is raised, what is put onto a list of problems, and what is raised under a name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and node.args:
            function = node.func
            is_error = isinstance(function, ast.Name) and function.id in errors()
            is_listed = (
                isinstance(function, ast.Attribute) and function.attr == "append" and names(function.value) in LISTS
            )
            if is_error or is_listed or names(function) == LACK:
                yield from ((node.lineno, text) for text in templates(node.args[0]))
        elif isinstance(node, ast.Assign) and any(names(target) in NAMES for target in node.targets):
            yield from ((node.lineno, text) for text in templates(node.value))
        elif isinstance(node, ast.Return) and node.value is not None:
            yield from ((node.lineno, text) for text in templates(node.value) if is_sentence(text))
    yield from explanations(tree)


def explanations(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """What a table of a module explains, some of it by names of texts."""
    assigned = [node for node in tree.body if isinstance(node, ast.Assign)]
    texts = {names(target): node.value for node in assigned for target in node.targets}
    table = texts.get(TABLE)
    for value in table.values if isinstance(table, ast.Dict) else ():
        text = template(texts.get(names(value), value))
        yield value.lineno, re.sub(r"\{\w+\}", "…", text)


def is_sentence(text: str) -> bool:
    return len(text) > SENTENCE and " " in text and (text.endswith(".") or ": " in text)


def names(node: ast.expr) -> str:
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def in_roles() -> Iterator[tuple[str, str]]:
    """File and text of what a role or playbook fails with: literals of a refusal, one by one."""
    for path in sorted([*TOP.glob("roles/*/*/*.yml"), *TOP.glob("playbooks/*.yml")]):
        for text in refusing(yaml.safe_load(path.read_text())):
            for literal in LITERALS.finditer(text):
                yield path.name, "".join(filter(None, literal.groups())).replace("''", "'")
            if not text.lstrip().startswith("{{ '"):
                yield path.name, re.sub(r"\{[{%].*?[%}]\}", "…", text, flags=re.DOTALL)


def refusing(value: object, *, name: str = "") -> Iterator[str]:
    if isinstance(value, str) and (REFUSING.search(name) or name == "fail.msg"):
        yield value
    elif isinstance(value, list):
        for one in value:
            yield from refusing(one, name=name)
    elif isinstance(value, dict):
        for key, one in value.items():
            yield from refusing(one, name=f"fail.{key}" if name.endswith(".fail") else str(key))


@cache
def messages() -> list[tuple[str, str]]:
    """Where, and which."""
    found = [(f"{name}:{line}", text) for name, tree in trees().items() for line, text in in_python(tree)]
    found += [
        (name, text) for name, text in in_roles() if " " in text.strip() and not re.search(r"[\\^]|\{\{|%\}", text)
    ]
    return [(place, text) for place, text in ((place, " ".join(text.split())) for place, text in found) if fixed(text)]


def test_messages_are_found() -> None:
    assert len(messages()) > 150
    texts = [text for _place, text in messages()]
    assert any(covers("Repository … holds no archive yet.", text) for text in texts)  # raised
    assert any(covers("it is an incremental backup", text) for text in texts)  # one of several problems
    assert any(covers("Archive … holds only logical dumps", text) for text in texts)  # raised under a name
    assert any(covers("archive is not given", text) for text in texts)  # of a role
    assert any(covers("is given without deployment_location", text) for text in texts)  # of a playbook


def test_each_message_has_a_row() -> None:
    missing = [f"{place}: {text}" for place, text in messages() if not any(covers(row[0], text) for row in rows())]
    assert not missing, f"rows are missing in {DOCUMENT.name}, | `a part of it` | cause | cure |:\n" + "\n".join(
        missing
    )


@pytest.mark.parametrize("row", rows(), ids=lambda row: row[0])
def test_each_row_has_a_message(row: tuple[str, str, str]) -> None:
    assert fixed(row[0]), f"no part of {row[0]} has {FIXED} characters"
    assert any(covers(row[0], text) for _place, text in messages()), f"no message has {row[0]} in it any more"


def test_all_lines_of_tables_are_rows() -> None:
    lines = [line for line in DOCUMENT.read_text().splitlines() if line.startswith("| `")]
    assert [line for line in lines if not ROW.fullmatch(line)] == []
    assert len(lines) == len(rows()) == len({row[0] for row in rows()})
