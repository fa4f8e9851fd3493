# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Serving WAL through pipes in a directory that belongs to somebody who may plant links there."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._errors import RecoveryError
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._host.command import Account
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._postgresql.wal_server import WalServer

SEGMENTS = [f"{number:024X}" for number in (2**64 + 1, 2**64 + 2)]


class Archive:
    """Two segments without any records; reading one of those in faults raises instead."""

    def __init__(self, **faults: Exception) -> None:
        self.faults = faults

    def read(self, name: str) -> bytes | None:
        if name in self.faults:
            raise self.faults[name]
        return bytes(2**20) if name in SEGMENTS else None

    def neighbour(self, name: str, distance: int) -> str | None:
        number = SEGMENTS.index(name) + distance
        return SEGMENTS[number] if number in (0, 1) else None


def serve(archive: Any, directory: Path) -> WalServer:
    return WalServer(archive, str(directory), Account("me", os.geteuid(), os.getegid()))


def ask(server: WalServer, name: str, target: Path) -> int:
    """Do what PostgreSQL does, with its end of the command line."""
    command = server.command.replace("%f", name).replace("%p", str(target)).replace("%%", "%")
    return subprocess.run(["sh", "-c", command], timeout=10, check=False).returncode


def test_a_file_is_served_and_what_is_missing_is_not(tmp_path: Path) -> None:
    with serve(Archive(), tmp_path) as server:
        assert ask(server, SEGMENTS[0], tmp_path / "got") == 0
        assert (tmp_path / "got").read_bytes() == bytes(2**20)
        assert ask(server, "F" * 24, tmp_path / "not") != 0
    assert (server.problem, server.missing) == (None, "F" * 24)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["got", "not"]


def test_a_pipe_that_cannot_be_made_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "wal.answer").mkdir()
    with pytest.raises(RecoveryError, match="cannot be made in"), serve(Archive(), tmp_path):
        pass
    assert not (tmp_path / "wal.ask").exists()


def test_no_exception_leaves_the_server_waiting(tmp_path: Path) -> None:
    archive = Archive(**{SEGMENTS[0]: KeyError("unforeseen")})
    with serve(archive, tmp_path) as server:
        assert ask(server, SEGMENTS[0], tmp_path / "got") != 0
    assert "cannot be used: 'unforeseen'" in str(server.problem)


def test_the_end_does_not_hide_the_error(tmp_path: Path) -> None:
    def fail() -> None:
        with serve(Archive(), tmp_path):
            for name in ("wal.ask", "wal.answer"):
                (tmp_path / name).unlink()
                (tmp_path / name).mkdir()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()


def test_a_damaged_neighbour_matters_only_when_it_is_asked_for(tmp_path: Path) -> None:
    archive = Archive(**{SEGMENTS[1]: RecoveryError("damaged")})
    with serve(archive, tmp_path) as server:
        assert ask(server, SEGMENTS[0], tmp_path / "got") == 0
        assert server.problem is None
        assert ask(server, SEGMENTS[1], tmp_path / "not") != 0
    assert str(server.problem) == "damaged"
