# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A copy of a cluster in a plain directory that plays the merged tree, and calls of pg_ephemeral on it."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ansible_collections.phpborg.instant_recovery.plugins.modules import pg_ephemeral

from tests.support.cluster import Connection
from tests.support.modules import call

__all__ = ["Copy"]


@dataclass
class Copy:
    """A copy of a cluster in a tree, and calls of the module on it."""

    tree: Path
    data: Path
    run: Path
    options: dict[str, Any] = field(default_factory=dict)

    def start(self, *, check: bool = False, **options: Any) -> dict[str, Any]:
        return self._call("started", check=check, tree=str(self.tree), **{**self.options, **options})

    def stop(self, *, check: bool = False) -> dict[str, Any]:
        return self._call("stopped", check=check)

    def sql(self, statement: str, *, database: str = "postgres", user: str = "instant_recovery", port: int = 0) -> str:
        return self.connection(user=user, port=port).sql(statement, database=database)

    def connection(self, *, user: str = "instant_recovery", port: int = 0) -> Connection:
        listening = port or int((self.data / "postmaster.pid").read_text().splitlines()[3])
        bindir = str(Path(shutil.which("postgres") or "").resolve().parent)
        return Connection(socket_directory=str(self.run), port=listening, user=user, bindir=bindir)

    def path(self, name: str) -> Path:
        return self.data / name

    def log(self) -> str:
        return (self.run / "postgresql.log").read_text()

    def _call(self, state: str, *, check: bool, **options: Any) -> dict[str, Any]:
        where = {"data_directory": str(self.data), "socket_directory": str(self.run), "state": state}
        return call(pg_ephemeral.main, check=check, **where, **options)
