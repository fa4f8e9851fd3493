# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A session whose merged directory is a plain one with a copy of a cluster, and calls of pg_ephemeral on it."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ansible_collections.phpborg.instant_recovery.plugins.module_utils._host.command import account
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._session.session import Session
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._session.teardown import tear_down
from ansible_collections.phpborg.instant_recovery.plugins.modules import pg_ephemeral

from tests.support.cluster import Connection
from tests.support.forked import forked
from tests.support.host import free_port
from tests.support.modules import call

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.cluster import Cluster
    from tests.support.mariadb import MariaDb

__all__ = ["Copy"]


@dataclass
class Copy:
    """A session in `directory`, whose copy of a cluster is in `data`, and calls of the module on it by `caller`."""

    directory: Path
    data: Path
    options: dict[str, Any] = field(default_factory=dict)
    caller: pwd.struct_passwd | None = None
    main: Callable[[], None] = pg_ephemeral.main
    port: int | None = field(default_factory=free_port)  # while it is stopped, nobody else takes it

    @classmethod
    def of(
        cls,
        cluster: Cluster | MariaDb,
        root: Path,
        *,
        user: str | None = None,
        caller: str | None = None,
        main: Callable[[], None] = pg_ephemeral.main,
    ) -> Copy:
        """A copy of a cluster's files in a new session, below merged where the cluster has it below the root.

        caller is who makes the session and everything in it: this process's user, unless it is named. main: that of the
        engine's module.
        """
        entry = pwd.getpwnam(caller) if caller else None
        if entry is None:
            return cls._made(cluster, root, user, main)
        if not root.exists():
            root.mkdir(mode=0o700)
            os.chown(root, entry.pw_uid, entry.pw_gid)
        copy = forked(lambda: cls._made(cluster, root, user, main), user=entry)
        copy.caller, copy.port = entry, free_port()
        return copy

    @classmethod
    def _made(cls, cluster: Cluster | MariaDb, root: Path, user: str | None, main: Callable[[], None]) -> Copy:
        session = Session.create(str(root), user=user, fields={"engine": "postgresql"})
        merged = Path(session.path("merged"))
        copy = cls(Path(session.directory), merged / str(cluster.data).lstrip("/"), main=main)
        copy.data.parent.mkdir(parents=True)
        subprocess.run(["cp", "-a", str(cluster.data), str(copy.data)], check=True)
        copy.own()
        return copy

    @property
    def tree(self) -> Path:
        return self.directory / "merged"

    @property
    def run(self) -> Path:
        return self.directory / "run"

    @property
    def client(self) -> Path:
        return self.directory / "client"

    @property
    def record(self) -> dict[str, Any]:
        """The session's record, whoever it belongs to."""
        found: dict[str, Any] = json.loads((self.directory / "session.json").read_text())
        return found

    @property
    def user(self) -> str:
        """Whom the server runs as: a name, or the number of a user of the session's own."""
        return str(self.record["server_user"])

    @property
    def uid(self) -> int:
        return account(self.user).uid

    def own(self, *paths: Path) -> None:
        """Give everything in the copy, or these paths, to the server's user, as the layer would present it."""
        if os.geteuid() == 0 and self.caller is None:
            owner = f"{account(self.user).uid}:{account(self.user).gid}"
            subprocess.run(["chown", "-hR", owner, *(map(str, paths) if paths else [str(self.tree)])], check=True)

    def add(self, path: Path) -> Path:
        """Copy what is at path on the host to where the copy has it; that place."""
        there = self.tree / str(path).lstrip("/")
        there.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run(["cp", "-a", str(path), str(there)], check=True)
        self.own()
        return there

    def start(self, *, check: bool = False, **options: Any) -> dict[str, Any]:
        data = {"data_directory": str(self.data), "port": self.port}
        return self._call("started", check=check, **{**data, **self.options, **options})

    def stop(self, *, check: bool = False) -> dict[str, Any]:
        return self._call("stopped", check=check)

    def end(self) -> list[str]:
        """End the session; what is left of it."""
        return self.as_caller(lambda: tear_down(Session.open(str(self.directory))))

    def as_caller(self, function: Callable[[], Any]) -> Any:
        """What function returns when the session's owner calls it."""
        return function() if self.caller is None else forked(function, user=self.caller)

    def sql(self, statement: str, *, database: str = "postgres", user: str = "instant_recovery", port: int = 0) -> str:
        return self.connection(user=user, port=port).sql(statement, database=database)

    def connection(self, *, user: str = "instant_recovery", port: int = 0) -> Connection:
        bindir = str(Path(shutil.which("postgres") or "").resolve().parent)
        listening = port or self.record["port"]
        return Connection(socket_directory=str(self.client), port=listening, user=user, bindir=bindir)

    def path(self, name: str) -> Path:
        return self.data / name

    def log(self) -> str:
        return (self.directory / "log" / "server.log").read_text()

    def left(self) -> list[str]:
        """Files that a server's start makes and its end should have removed."""
        return [str(path) for name in ("run", "client", "config") for path in (self.directory / name).iterdir()]

    def _call(self, state: str, *, check: bool, **options: Any) -> dict[str, Any]:
        where = {"session_directory": str(self.directory), "state": state}
        return self.as_caller(lambda: call(self.main, check=check, **where, **options))
