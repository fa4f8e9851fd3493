# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the playbooks refuse before they look at anything: one clear sentence, which names the value and the remedy.

That plays do refuse it is tested once for each stage, in tests/integration/test_bad_input.py.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.forked import forked

PLAYBOOKS = Path(__file__).resolve().parents[2] / "playbooks"
ARCHIVE = {"archive": "/srv/repository::name"}

#: A variable, a value that it cannot have, and what is found in the refusal: plain text, or a regular expression.
VALUES: list[tuple[str, Any, str]] = [
    ("driver", "btrfs", "auto, block or overlayfs"),
    ("engine", "oracle", "auto or one of: postgresql"),
    ("deployment_location", "cloud", "local .* or remote"),
    ("ttl", "soon", "90s, 15m, 2h"),
    ("idle_timeout", "soon", "90s, 15m, 2h"),
    ("suspend_after", "soon", "90s, 15m, 2h.* auto"),
    ("read_only", "maybe", "true nor false"),
    ("examine", "maybe", "true nor false"),
    ("install_packages", "maybe", "true nor false"),
    ("recovery_target_inclusive", "maybe", "true nor false"),
    ("network", "internet", "choose none, .*, or host"),
    ("lock", "steal", "choose bypass, .* hold, .* or auto"),
    ("settings", "work_mem", "JSON"),
    ("readers", "many", "1 to 16"),
    ("readers", 17, "1 to 16"),
    ("readers", 1.5, "1 to 16"),
    ("missing_tablespaces", "empty", "choose refuse, or leave_out"),
    ("log_source", "archive:/", "names no directory: write it as archive:PATH"),
    ("recovery_target_time", "yesterday", "no time: write it as 2026-11-22T14:05"),
    ("recovery_target_time", "2026-11-22", "as a space ends a value on the command line"),
    ("recovery_target_lsn", "zz", "no position .* write it as 1A/2B3C4D5E"),
    ("recovery_target_xid", 0, "no transaction: give its number"),
    ("recovery_target_name", "n" * 64, "longer than the 63 bytes"),
    ("recovery_target", "now", "choose immediate"),
    ("recovery_target_timeline", "newest", "choose latest, current or a number"),
    ("recovery_target_action", "pause", "would leave no server to connect to"),
    ("cpu_weight", "0", "1 to 10000"),
    ("io_weight", "10001", "1 to 10000"),
    ("memory_max", "lots", "512M or 4G"),
    ("max_sessions", "many", "is no number"),
    ("start_timeout", "1h", "write seconds, such as 3600"),
    *(("port", port, "is no port: .* 1024 to 65535") for port in ("65536", "-1", "80", "http")),
]
#: What else cannot be meant, and the beginning of what is said of it.
CASES: list[tuple[dict[str, Any], str]] = [
    ({}, "archive is not given: name it as REPOSITORY::NAME"),
    ({"archive": "sample"}, "archive sample names no repository: write it as REPOSITORY::NAME"),
    (
        {**ARCHIVE, "repository": "/elsewhere"},
        "archive /srv/repository::name and repository /elsewhere name different repositories: leave one of the two out",
    ),
    (
        {**ARCHIVE, "borg_passphrase": "x", "borg_passcommand": "echo y"},
        "More than one of borg_passphrase, borg_passcommand and borg_passphrase_file is given: leave all but one out",
    ),
    (
        {**ARCHIVE, "recovery_target_xid": 7, "recovery_target_lsn": "0/1"},
        "recovery_target_xid 7 and recovery_target_lsn 0/1 are given together, and recovery can stop at one point only",
    ),
    (
        {**ARCHIVE, "recovery_target_tiem": "2026-11-22 09:30", "session_recovery_target_time": "", "note": "x"},
        "recovery_target_tiem is unknown: did you mean recovery_target_time? Mend it, or add accept_unknown=true",
    ),
    ({**ARCHIVE, "deployment_location": "remote"}, "deployment_location is remote, and source_host is not given"),
    (
        {**ARCHIVE, "deployment_location": "remote", "source_host": "db7"},
        "source_host db7 is not in the inventory: name one of its hosts (localhost), or choose the inventory with -i",
    ),
    (
        {**ARCHIVE, "source_host": "db7"},
        "source_host db7 is given without deployment_location: add deployment_location=remote",
    ),
]
#: What nothing is to be said of, although some of it is unknown: it resembles nothing, or is a role's own name.
# Surveys send an empty answer for what nobody has answered.
SPECS = yaml.safe_load((PLAYBOOKS.parent / "roles/session/meta/argument_specs.yml").read_text())["argument_specs"]
EMPTY = [name.removeprefix("session_") for name in SPECS["start"]["options"] if name[8:] not in ("id", "root")]
TAKEN = [
    *({**dict.fromkeys([*EMPTY, "source_host"], empty), **ARCHIVE} for empty in ("", None)),
    {**ARCHIVE, "host_driver": "auto", "note": "x", "roots": "x", "awx_job_id": 7, "port": "15433"},
    {**ARCHIVE, "port": 15433.0, "readers": 2.0, "cpu_weight": 50.0, "max_sessions": "3.0", "start_timeout": 600.0},
    {**ARCHIVE, "ports": [1], "accept_unknown": True, "memory_max": "1.5%", "recovery_target_time": "2026-11-22 14:05"},
]


def together() -> list[dict[str, Any]]:
    """The wrong values in as few cases as can hold them: each is refused by itself."""
    cases: list[dict[str, Any]] = []
    for name, value, _said in VALUES:
        case = next((case for case in cases if name not in case), None)
        if case is None:
            case = dict(ARCHIVE)
            cases.append(case)
        case[name] = value
    return cases


@pytest.fixture(scope="module")
def said() -> list[list[str]]:
    """Of TAKEN, CASES and together(), in this order."""
    return forked(lambda: _refusals("start", [*TAKEN, *(variables for variables, _said in CASES), *together()]))


def _refusals(name: str, cases: list[dict[str, Any]]) -> list[list[str]]:
    from tests.support.refusals import refusals

    return refusals(PLAYBOOKS / f"instant_recovery_{name}.yml", cases)


def test_what_can_be_meant_is_not_refused(said: list[list[str]]) -> None:
    assert said[: len(TAKEN)] == [[]] * len(TAKEN)


@pytest.mark.parametrize("number", range(len(CASES)), ids=[text[:40] for _variables, text in CASES])
def test_a_start_is_refused(number: int, said: list[list[str]]) -> None:
    sentences = said[len(TAKEN) + number]
    assert sentences[0].startswith(CASES[number][1]), sentences
    assert "\n" not in sentences[0]


@pytest.mark.parametrize(
    ("name", "value", "text"), VALUES, ids=[f"{name}={value}"[:40] for name, value, _text in VALUES]
)
def test_a_value_is_refused(name: str, value: Any, text: str, said: list[list[str]]) -> None:
    sentences = [one for case in said[len(TAKEN) + len(CASES) :] for one in case]
    alone = (one for one in sentences if "given together" not in one)
    (sentence,) = (one for one in alone if one.startswith(f"{name} {value} "))
    assert re.search(text, sentence)
    assert "\n" not in sentence


def test_a_session_must_be_named() -> None:
    names = ("stop", "extend", "reset")
    for name, ((sentence,),) in zip(names, forked(lambda: [_refusals(one, [{}]) for one in names]), strict=True):
        assert sentence.startswith("session_id is not given: name a session (instant_recovery_list shows them)")
        assert sentence.endswith(", or all." if name == "stop" else ").")
