# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What databases say of themselves, where the server says something else than it was asked for."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._postgresql.facts import Facts, Found, look_into

WHOLE = {
    "unlogged": ["public.u"],
    "invalid": None,
    "collations": [["de", "1", "2"]],
    "libraries": [["/nowhere/x", "extension"]],
}


def asked(answer: object) -> Found:
    """What is found in a database `a` that answers so, beside a database `b` that answers as it should."""
    answers = {
        "a": answer if isinstance(answer, bytes) else json.dumps(answer).encode(),
        "b": json.dumps(WHOLE).encode(),
    }
    return look_into(["a", "b"], ask=lambda database, _query, _seconds: answers[database], bindir="/nonexistent")


def test_what_is_told() -> None:
    found = asked(WHOLE)
    assert found.unlogged == ["a: public.u", "b: public.u"]
    assert [one["actual"] for one in found.collations] == ["2", "2"]
    assert found.not_looked_into == []


@pytest.mark.parametrize(
    "answer",
    [
        *(b"", b"{", b"[" * 100_000, b"\xff", [], "text", None, 7, {}),
        *({**WHOLE, "unlogged": 7}, {**WHOLE, "unlogged": [{}]}, {**WHOLE, "invalid": 7}),
        *({**WHOLE, "collations": [[]]}, {**WHOLE, "collations": [["a", "b", ["c"]]]}, {**WHOLE, "collations": 7}),
        *({**WHOLE, "libraries": [7]}, {**WHOLE, "libraries": [[7, None]]}, {**WHOLE, "libraries": [["x", {}]]}),
    ],
)
def test_another_answer_tells_nothing_of_that_database(answer: object) -> None:
    found = asked(answer)
    assert found.not_looked_into == ["a"]
    assert found.unlogged == ["b: public.u"]


def test_databases_that_nobody_looked_into_are_told_unless_nobody_was_to() -> None:
    facts = Facts(
        checksums=True,
        last_commit=None,
        prepared_transactions=[],
        unlogged_relations={},
        found=Found(not_looked_into=["tenth"]),
        collations=[],
        was_examined=True,
        was_recovered=False,
    )
    (warning,) = facts.warnings()
    assert warning.startswith("These databases were not examined, because only the first 8 are")
    assert warning.endswith(": tenth.")
    assert list(replace(facts, was_examined=False).warnings()) == []
