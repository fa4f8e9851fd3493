# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The audit log: what a line says, and that lines are neither lost nor written elsewhere."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from datetime import datetime
from typing import TYPE_CHECKING, Any

from ansible_collections.phpborg.instant_recovery.plugins.module_utils._session import audit as _audit
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._session.audit import audit, requester
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._session.record import Record

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

RECORD = Record(
    "20261122-130501-9c1e",
    host="db1",
    engine="postgresql",
    archive={"repository": "/srv/borg", "name": "db-2026-11-22", "id": "1a0f", "time": "2026-11-22T02:00:04"},
)
WHO = {"claimed_by": "alice@controller", "user": "dba", "from": "192.0.2.7"}


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_line_says_who_did_what_to_which_archive(tmp_path: Path) -> None:
    audit(str(tmp_path), "extend", RECORD, who=WHO, reason="ttl 4 h")
    (line,) = lines(tmp_path / "audit.log")
    assert datetime.fromisoformat(line.pop("time")).utcoffset() is not None
    assert line == {
        "event": "extend",
        "session": "20261122-130501-9c1e",
        "host": "db1",
        **WHO,
        "engine": "postgresql",
        "archive": {"repository": "/srv/borg", "name": "db-2026-11-22"},
        "reason": "ttl 4 h",
    }
    assert (tmp_path / "audit.log").stat().st_mode & 0o777 == 0o600


def test_a_full_log_makes_room_and_the_newest_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_audit, "LIMIT", 1000)
    for number in range(40):
        audit(str(tmp_path), "start", RECORD, who=WHO, reason=str(number))
    logs = [tmp_path / "audit.log", *(tmp_path / f"audit.log.{number}" for number in range(1, _audit.KEPT + 1))]
    assert sorted(tmp_path.iterdir()) == sorted(logs)
    assert all(log.stat().st_size <= 1000 for log in logs)
    told = [int(line["reason"]) for log in reversed(logs) for line in lines(log)]
    assert told == list(range(told[0], 40))


def test_what_a_caller_claims_does_not_push_the_others_out(tmp_path: Path) -> None:
    audit(str(tmp_path), "start", RECORD, who=WHO)
    claims = {**WHO, "claimed_by": "x" * (_audit.LIMIT + 1)}
    archive = {"repository": "/" * _audit.LIMIT, "name": "\n" * _audit.LIMIT}
    audit(str(tmp_path), "start", replace(RECORD, archive=archive), who=claims, reason="y" * _audit.LIMIT)
    first, second = lines(tmp_path / "audit.log")
    assert first["claimed_by"] == WHO["claimed_by"]
    assert second["claimed_by"].startswith("xxx")
    assert len(json.dumps(second)) < 10_000


def test_what_somebody_planted_is_not_written_to(tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("mine\n")
    (tmp_path / "audit.log").symlink_to(tmp_path / "victim")
    audit(str(tmp_path), "start", RECORD, who=WHO)
    assert (tmp_path / "victim").read_text() == "mine\n"
    (tmp_path / "audit.log").unlink()
    os.mkfifo(tmp_path / "audit.log")
    audit(str(tmp_path), "start", RECORD, who=WHO)  # and waits for nobody to read it


def test_an_ssh_client_is_named_by_its_address() -> None:
    """In a process of its own: the kernel shows the environment that a process was begun with."""
    code = f"from {requester.__module__} import requester; print(requester('a')['from'])"
    environment = {**os.environ, "PYTHONPATH": ":".join(sys.path), "SSH_CONNECTION": "192.0.2.7 5022 192.0.2.8 22"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, check=True, capture_output=True, text=True)
    assert done.stdout == "192.0.2.7\n"
