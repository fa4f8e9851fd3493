# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""How what a module's action does becomes the module's result."""

from __future__ import annotations

import json
import os
from typing import Any

import pytest
from ansible.module_utils.basic import AnsibleModule
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._errors import RecoveryError, run_module

from tests.support.modules import call


def result_of(action: Any) -> dict[str, Any]:
    return call(lambda: run_module(AnsibleModule(argument_spec={}), action))


def test_a_result_gets_the_time_it_took() -> None:
    result = result_of(lambda: {"changed": True, "answer": 42})
    assert (result["changed"], result["answer"]) == (True, 42)
    assert 0 <= result["elapsed"] < 60


def test_a_time_that_the_action_measured_stays() -> None:
    assert result_of(lambda: {"elapsed": 3.5})["elapsed"] == 3.5


def test_an_error_brings_its_details() -> None:
    def fail() -> dict[str, Any]:
        raise RecoveryError("The value 7 is too large: use 6.", rc=2, stderr="boom")

    result = result_of(fail)
    assert result["failed"]
    assert (result["msg"], result["rc"], result["stderr"]) == ("The value 7 is too large: use 6.", 2, "boom")


def test_no_message_is_longer_than_anybody_reads() -> None:
    def fail() -> dict[str, Any]:
        raise RecoveryError("x" * 100_000, details="y" * 100_000)

    assert result_of(fail)["msg"] == "x" * 20_000 + " … (and 80000 characters more)"


def test_nothing_that_was_said_acts_on_a_terminal() -> None:
    def fail() -> dict[str, Any]:
        raise RecoveryError("a\x1b]0;x\x07\n\tb\x9b31m\u202ec", log_tail=["\x1b[31m", {"\x00": "\r"}], rc=3)

    result = result_of(fail)
    assert result["msg"] == "a\\x1b]0;x\\x07\n\tb\\x9b31m\\u202ec"
    assert result["log_tail"] == ["\\x1b[31m", {"\\x00": "\\x0d"}]
    assert result["rc"] == 3


def test_no_more_do_warnings() -> None:
    result = result_of(lambda: {"changed": True, "warnings": ["database \x1b[31mred is odd"]})
    said = json.dumps(result["warnings"])  # objects since ansible-core 2.19
    assert r"database \\x1b[31mred is odd" in said
    assert r"\u001b" not in said


def test_an_error_of_the_system_names_the_path() -> None:
    result = result_of(lambda: {"content": os.listdir("/nowhere/at/all")})
    assert result["failed"]
    assert result["msg"] == "/nowhere/at/all: No such file or directory"


def test_a_defect_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        result_of(lambda: {"answer": 1 // 0})


@pytest.mark.parametrize("value", ["a\0b", ["a", {"b": "\0"}], {"\0": 1}])
def test_a_nul_is_refused_wherever_it_is(value: object) -> None:
    module = {"argument_spec": {"given": {"type": "raw"}}}
    result = call(lambda: run_module(AnsibleModule(**module), lambda: {"changed": True}), given=value)
    assert result["msg"] == "given has a NUL character in it, which nothing can have: leave it out."
