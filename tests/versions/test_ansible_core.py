# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The playbooks on each ansible-core that is said to do: what AWX sends for what nobody answered, and YAML's own types.

How a value gets through templates and to a module differs between them; what it is then taken for is tested in
tests/unit/test_options.py.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from ansible_collections.phpborg.instant_recovery.plugins.plugin_utils.table import read_table

from tests.integration.conftest import copies, sample
from tests.support.cluster import Connection
from tests.support.playbook import CHECKOUT, Playbooks

if TYPE_CHECKING:
    from tests.integration.conftest import Sample
    from tests.support.playbook import Run

__all__ = ["copies", "sample"]

CORES = ("2.16", "2.18", "2.19")  # the tests' own environment has the newest


@pytest.fixture(scope="module", params=CORES)
def scripts(request: pytest.FixtureRequest) -> Path:
    """The programs of an ansible-core, which is installed once for all runs."""
    environment: Path = CHECKOUT / ".cache" / "ansible-core" / request.param
    program = environment / "bin" / "ansible-playbook"
    if not program.exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(environment)], check=True)
        wanted = [f"ansible-core=={request.param}.*", "jmespath"]
        subprocess.run([f"{environment}/bin/pip", "install", "--quiet", *wanted], check=True, timeout=600)
    said = subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout
    assert f"[core {request.param}." in said
    return program.parent


@pytest.fixture
def playbooks(place: Path, copies: Path, scripts: Path, sample: Sample) -> Playbooks:
    root = copies / "sessions"
    environment = dict(sample.repository.environment)
    return Playbooks(directory=place / "ansible", session_root=root, environment=environment, scripts=scripts)


def unanswered(entry_point: str, empty: str | None, **given: Any) -> dict[str, Any]:
    """Every variable of a playbook, but for those that are given, and what the tests' playbooks give."""
    table = read_table(entry_point)
    names = {name for options in (table.options, *table.engines.values()) for name in options} - {"session_root"}
    return {**dict.fromkeys(names, empty), **given}


def done(run: Run) -> Run:
    assert run.returncode == 0, run.output
    return run


@pytest.mark.parametrize("empty", ["", None])
def test_empty_is_not_given(empty: str | None, playbooks: Playbooks, sample: Sample) -> None:
    started = done(playbooks.start(**unanswered("start", empty, archive=sample.name)))
    name = started.session["id"]
    try:
        sql = Connection.of_session(started.session, bindir=sample.bindir).sql
        sql("create table mine as select 1 as one")
        assert name in done(playbooks.run("list", **unanswered("list", empty))).output
        done(playbooks.run("extend", **unanswered("extend", empty, session_id=name, ttl="3h")))
        again = done(playbooks.run("reset", **unanswered("reset", empty, session_id=name)))
        assert f"Session {name} shows archive" in again.output
        done(playbooks.run("logs", **unanswered("logs", empty, session_id=name)))
        done(playbooks.run("reap", **unanswered("reap", empty)))
    finally:
        done(playbooks.run("stop", **unanswered("stop", empty, session_id=name)))
    assert not list(Path(str(playbooks.session_root)).glob(f"{name}*"))


def test_values_of_yaml_are_taken_for_what_they_say(playbooks: Playbooks, sample: Sample, place: Path) -> None:
    """An unquoted date is none of JSON's types, and a number no text."""
    answers = place / "answers.yml"
    answers.write_text(
        "ttl: 5400\nread_only: 'yes'\nport: '15999'\nrecovery_target_time: 2001-02-03 04:05:06\n"
        'settings: \'{"work_mem": "8MB"}\'\n'
    )
    refused = playbooks.start("--check", "-e", f"@{answers}", archive=sample.name)
    assert refused.returncode != 0
    assert "2001-02-03 04:05:06" in refused.message
    answers.write_text(answers.read_text() + "recovery_target_time: null\n")  # of two the last counts
    started = done(playbooks.start("-e", f"@{answers}", archive=sample.name))
    try:
        assert started.session["port"] == 15999
        sql = Connection.of_session(started.session, bindir=sample.bindir).sql
        assert sql("show work_mem") == "8MB"
        assert sql("show default_transaction_read_only") == "on"
    finally:
        done(playbooks.stop(started.session["id"]))
