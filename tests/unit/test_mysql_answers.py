# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a server of the archive's answers, or writes into its log, is never a defect of ours."""

from __future__ import annotations

import pytest
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._mysql.facts import Facts, find_tables
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._mysql.log import (
    explain,
    prepared_transactions,
    rolled_back,
)


@pytest.mark.parametrize(
    "answer",
    ["[" * 100_000, "1", "null", '"text"', "{}", '{"table": 1, "why": 2}', '{"table": "zz", "why": ""}', "9" * 5000],
)
def test_tables_that_no_server_tells_of(answer: str) -> None:
    facts = Facts(databases=[], is_clean=True)
    find_tables(facts, lambda _statement, _timeout: answer)
    assert facts.not_examined is not None
    assert facts.tables == {}
    assert any("The tables were not all looked at" in one for one in facts.warnings())


def test_numbers_in_a_log_have_an_end() -> None:
    digits = "9" * 5000
    assert prepared_transactions([f"Found {digits} prepared transactions!"]) is None
    assert prepared_transactions(["[ERROR] Found 18 prepared transactions! It means"]) == 18
    assert rolled_back([f"Found {digits} prepared transaction(s) in InnoDB"]) == 0
    assert rolled_back(["Found 2 prepared transaction(s) in InnoDB"]) == 2


def test_the_first_error_that_matters_is_told() -> None:
    said = ["2026 0 [ERROR] Can't copy ownership", "2026 0 [ERROR] InnoDB: Upgrade after a crash is not supported"]
    assert explain(said).startswith("its redo log is of another version, and only that version replays it (Upgrade")
    assert explain([]) == "it said nothing."
