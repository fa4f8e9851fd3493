# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The export playbook: from an archive, with nothing running at the end, from a session, and fetched."""

from __future__ import annotations

import csv
import hashlib
import os
import stat
import threading
from pathlib import Path
from typing import Any

import pytest

import instant_recovery as api
from tests.integration.conftest import Sample, needs_root
from tests.support.clock import wait_until
from tests.support.cluster import DATABASE
from tests.support.host import remains
from tests.support.playbook import Playbooks


def check_file(path: Path, exported: dict[str, Any]) -> None:
    assert exported["path"] == str(path)
    assert (stat.S_IMODE(path.stat().st_mode), path.stat().st_size) == (0o600, exported["size"])
    assert hashlib.sha256(path.read_bytes()).hexdigest() == exported["sha256"]
    assert list(path.parent.iterdir()) == [path]


@pytest.fixture(name="home")
def _home(place: Path) -> Path:
    home = place / "home"
    home.mkdir()
    return home


def test_from_an_archive(playbooks: Playbooks, sample: Sample, home: Path) -> None:
    run = playbooks.run("export", archive=sample.name, tables="Order Lines", to=str(home / "lines.sql"))
    assert run.returncode == 0, run.output
    exported = run.stats["instant_recovery_export"]
    check_file(home / "lines.sql", exported)
    assert (exported["format"], exported["tables"]) == ("sql", ["public.Order Lines"])
    assert (home / "lines.sql").read_text().count("\n2000\t") == 1
    assert remains(playbooks.session_root) == []


def test_what_fails_leaves_no_session(playbooks: Playbooks, sample: Sample, home: Path) -> None:
    run = playbooks.run("export", archive=sample.name, tables="Order Line", fetch_to=str(home / "x"))
    assert run.returncode != 0
    assert "No table of database" in run.message
    assert "name one of public.Order Lines" in run.message
    assert list(home.iterdir()) == []
    assert remains(playbooks.session_root) == []


@needs_root
def test_from_a_session_fetched(playbooks: Playbooks, sample: Sample, home: Path) -> None:
    session = playbooks.start(archive=sample.name).session
    query = 'select id, item from "Order Lines" order by id'
    where = {"session_id": session["id"], "database": DATABASE}
    for variables in ({}, {"ansible_become": True}):  # copied by the connection, and in pieces
        run = playbooks.run("export", query=query, fetch_to=str(home / "lines.csv"), **where, **variables)
        assert run.returncode == 0, run.output
        exported = run.stats["instant_recovery_export"]
        check_file(home / "lines.csv", exported)
        assert exported["rows"] == 2000
        with (home / "lines.csv").open(newline="") as file:
            assert [len(row) for row in csv.reader(file)] == [2] * 2001
        (home / "lines.csv").unlink()
        assert os.listdir(playbooks.session_root / session["id"] / "export") == []
    (home / "lines.csv").write_text("mine")
    run = playbooks.run("export", query=query, fetch_to=str(home / "lines.csv"), **where)
    assert f"fetch_to {home}/lines.csv is there already" in run.message
    assert (home / "lines.csv").read_text() == "mine"
    playbooks.end(session["id"])


@needs_root
def test_from_python_with_progress(playbooks: Playbooks, sample: Sample, home: Path) -> None:
    session = playbooks.start(archive=sample.name).session
    recovery = api.InstantRecovery(session_root=str(playbooks.session_root))
    told: list[api.ExportProgress] = []
    done: list[api.Export] = []
    # Goes on when progress was told.
    query = 'select id, case when id = 1000 then pg_advisory_lock(4711) end from "Order Lines" order by id'

    def export() -> None:
        done.append(
            recovery.export(session["id"], database=DATABASE, query=query, to=str(home / "x"), progress=told.append)
        )

    thread = threading.Thread(target=export)
    with api.Session.from_record(session).connect(DATABASE) as holder, holder.cursor() as cursor:
        cursor.execute("select pg_advisory_lock(4711)")
        thread.start()
        wait_until(lambda: told)
        cursor.execute("select pg_advisory_unlock(4711)")
    thread.join()
    (exported,) = done
    assert (exported.path, exported.size, exported.rows) == (str(home / "x"), (home / "x").stat().st_size, 2000)
    with pytest.raises(api.TaskError, match="is there already"):
        recovery.export(session["id"], database=DATABASE, to=str(home / "x"))
    with pytest.raises(api.SessionNotFoundError):
        recovery.export("nothing", to=str(home / "y"))
    playbooks.end(session["id"])


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"to": "/x"}, "There is nothing to export from: give archive, or session_id"),
        ({"session_id": "x"}, "An export goes to one place: give to"),
        ({"session_id": "x", "to": "/x", "fetch_to": "/y"}, "An export goes to one place: give to"),
        ({"archive": "name", "to": "/x"}, "archive name names no repository"),
    ],
)
def test_what_is_not_said_is_asked_for_before_any_host(
    playbooks: Playbooks, variables: dict[str, Any], said: str
) -> None:
    assert said in playbooks.run("export", **variables).message
