# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The pieces around a run: how variables get to Ansible, the private directory, inventories, progress."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

import pytest

import instant_recovery
from instant_recovery import InstantRecovery, Progress, UsageError
from instant_recovery._playbook import _handed_over, _literal, _private_directory, inventory_sources, with_secret
from instant_recovery._progress import Reporter


def test_strings_are_no_templates() -> None:
    variables = {"archive": "{{ 1 }}", "port": 5, "read_only": True, "settings": {"a": ["b", None]}, "path": Path("/p")}
    assert _literal(variables) == {
        "archive": {"__ansible_unsafe": "{{ 1 }}"},
        "port": 5,
        "read_only": True,
        "settings": {"a": [{"__ansible_unsafe": "b"}, None]},
        "path": {"__ansible_unsafe": "/p"},
    }


def test_variables_are_read_once_from_a_pipe(tmp_path: Path) -> None:
    with _handed_over(tmp_path / "pipe", {"number": 1}) as path:
        mode = path.stat().st_mode
        assert stat.S_ISFIFO(mode)
        assert stat.S_IMODE(mode) == 0o600
        assert json.loads(path.read_text()) == {"number": 1}


@pytest.mark.parametrize("size", [1, 1_000_000])
def test_variables_that_nobody_reads(tmp_path: Path, size: int) -> None:
    # More than a pipe holds, too: it must not wait for a reader for ever.
    with _handed_over(tmp_path / "pipe", {"text": "x" * size}):
        pass


def test_private_directory() -> None:
    with _private_directory() as directory:
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700
        (directory / "tmp").mkdir()
    assert not directory.exists()


def test_secret_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BORG_PASSPHRASE", "p")
    assert with_secret({"archive": "a"}) == {"archive": "a", "borg_passphrase": "p"}
    # Another source than the environment is the caller's choice.
    assert with_secret({"borg_passphrase_file": "/f"}) == {"borg_passphrase_file": "/f"}
    monkeypatch.delenv("BORG_PASSPHRASE")
    assert with_secret({"archive": "a"}) == {"archive": "a"}


def test_inventories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "hosts").touch()
    monkeypatch.chdir(tmp_path)
    hosts = str(tmp_path / "hosts")
    assert inventory_sources(None) is None
    assert inventory_sources("hosts") == [hosts]
    assert inventory_sources(["hosts", "db1,"]) == [hosts, "db1,"]
    assert inventory_sources(Path("hosts")) == [hosts]
    assert inventory_sources({"all": {}}) == {"all": {}}
    with pytest.raises(UsageError, match="no inventory 'absent'"):
        inventory_sources("absent")


def task(module: str) -> dict[str, Any]:
    return {"event": "playbook_on_task_start", "event_data": {"task": f"Do {module}", "task_action": module}}


def test_progress_only_grows() -> None:
    seen: list[Progress] = []
    reporter = Reporter(seen.append)
    for module in ("borg_archive_info", "borg_mount", "mariadb_ephemeral", "session"):
        reporter.take(task(f"phpborg.instant_recovery.{module}"))
        assert reporter.has_reached("mount") == (module != "borg_archive_info")
    reporter.take(task("ansible.builtin.set_stats"))
    reporter.take({"event": "runner_on_ok", "event_data": {"task_action": "phpborg.instant_recovery.pg_ephemeral"}})
    reporter.ready()
    # Each engine has a module of its own; the record of a started session is no step back.
    assert [progress.step for progress in seen] == ["prepare", "archive", "mount", "server", "ready"]
    assert [progress.fraction for progress in seen] == sorted(progress.fraction for progress in seen)
    assert seen[1].task == "Do phpborg.instant_recovery.borg_archive_info"


def test_no_callback() -> None:
    Reporter(None).ready()


def test_unknown_option() -> None:
    with pytest.raises(TypeError, match="start has no read_onlly"):
        InstantRecovery().start("a", read_onlly=True)  # type: ignore[call-arg]


def test_stop_of_all_has_its_own_name() -> None:
    with pytest.raises(UsageError, match="stop_all"):
        InstantRecovery().stop("all")


def test_everything_public_is_documented() -> None:
    for name in instant_recovery.__all__:
        assert name == "Status" or getattr(instant_recovery, name).__doc__
