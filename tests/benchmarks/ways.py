# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The ways from an archive to a server that answers, each through the collection's own modules.

The modules run in this process, with Ansible's argument handling and without Ansible's own cost of a task.
"""

from __future__ import annotations

import resource
import time
from abc import ABC, abstractmethod
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg2
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._host.processes import MARKER, spawn, stop
from ansible_collections.phpborg.instant_recovery.plugins.modules import (
    borg_mount,
    overlay_mount,
    pg_ephemeral,
    session,
)

from tests.benchmarks.measure import (
    Server,
    allocated,
    cpu_seconds,
    peak_memory,
    unnamed_files,
    write_back,
)
from tests.support.cluster import server_directory
from tests.support.modules import call

if TYPE_CHECKING:
    from collections.abc import Callable

    from ansible_collections.phpborg.instant_recovery.plugins.module_utils._host.processes import Process

    from tests.benchmarks.sources import Source
    from tests.support.repository import Repository

__all__ = ["Extracted", "Mounted", "Recovery", "UsualMounted", "Way", "done", "end_all", "ephemeral"]

OWNER = "postgres"
SERVER_STARTS = 900.0  # seconds


@dataclass(kw_only=True)
class Recovery:
    """A server that runs from an archive, and where its files and processes are.

    `ready` is how many seconds passed between the first run of borg and the first answer. `changes` is the directory
    on whose disk everything is that this way has written. `borg_before` are CPU seconds of processes that have ended.
    """

    session_id: str
    session_root: Path
    data: Path
    changes: Path
    server: Server
    ready: float
    mounted: bool
    borg: list[int] = field(default_factory=list)
    layer: int | None = None
    borg_before: float = 0.0
    stop_server: Callable[[], object] = lambda: None

    def written(self) -> int:
        """Bytes on disk."""
        if self.mounted:
            write_back(self.data)
        unnamed = unnamed_files(self.layer, self.changes) if self.layer is not None else 0
        return allocated(self.changes) + unnamed

    def borg_seconds(self) -> float:
        """CPU time of borg so far."""
        return self.borg_before + cpu_seconds(self.borg)

    def layer_seconds(self) -> float:
        """CPU time of the copy-on-write layer's process so far."""
        return 0.0 if self.layer is None else cpu_seconds([self.layer])

    def layer_peak(self) -> int:
        """The most memory that the layer's process has had."""
        return 0 if self.layer is None else peak_memory(self.layer)

    def end(self) -> None:
        """Stop the server and remove everything."""
        self.stop_server()
        done(session.main, state="absent", session_root=str(self.session_root), session_id=self.session_id)


@dataclass(kw_only=True)
class Way(ABC):
    """One way to recover. Sessions are made below `session_root`, and servers run as `owner`.

    `serve` starts the server of a session that has been begun, by the engine's module.
    """

    repository: Repository
    session_root: Path
    owner: str = OWNER
    serve: Callable[[dict[str, Any], Source], Server] = field(default_factory=lambda: ephemeral)

    @abstractmethod
    def start(self, source: Source) -> Recovery:
        """Recover one archive. Whatever fails, `end_all` removes what was made."""

    def _begin(self) -> dict[str, Any]:
        return done(session.main, state="present", session_root=str(self.session_root), server_user=self.owner)

    def _recovery(
        self, begun: dict[str, Any], source: Source, *, changes: str, server: Server, began: float, **more: Any
    ) -> Recovery:
        with closing(server.connect()) as connection, connection.cursor() as cursor:
            cursor.execute("select 1")
        return Recovery(
            ready=time.monotonic() - began,
            session_id=begun["session"]["id"],
            session_root=self.session_root,
            data=Path(begun["directories"]["merged"], source.data_directory),
            changes=Path(begun["directories"][changes]),
            server=server,
            **more,
        )


@dataclass(kw_only=True)
class Extracted(Way):
    """`borg extract` of everything, then a server with a session's settings: the native directory, too."""

    def start(self, source: Source) -> Recovery:
        begun = self._begin()
        began, used = time.monotonic(), _children_seconds()
        tree = begun["directories"]["merged"]
        self.repository.borg("extract", f"{self.repository.location}::{source.archive}", cwd=tree)
        used = _children_seconds() - used
        _open_way(Path(tree), source)
        server = self.serve(begun, source)
        return self._recovery(
            begun, source, changes="merged", server=server, began=began, mounted=False, borg_before=used
        )


@dataclass(kw_only=True)
class Mounted(Way):
    """A Borg mount, a copy-on-write layer of `driver` over it, and a server with a session's settings."""

    driver: str
    readers: int

    def start(self, source: Source) -> Recovery:
        begun = self._begin()
        began = time.monotonic()
        mount, layer = self._mount(begun, source)
        server, stop_server = self._serve(begun, source)
        return self._recovery(
            begun,
            source,
            changes="upper",
            server=server,
            began=began,
            mounted=True,
            borg=mount["pids"],
            layer=layer["pid"],
            stop_server=stop_server,
        )

    def _mount(self, begun: dict[str, Any], source: Source) -> tuple[dict[str, Any], dict[str, Any]]:
        common = {"session_directory": begun["session_directory"], "owner": self.owner}
        mount = done(
            borg_mount.main,
            repository=self.repository.location,
            archive=source.archive,
            mountpoint=begun["directories"]["archive"],
            paths=[source.data_directory],
            readers=self.readers,
            **common,
        )
        layer = done(
            overlay_mount.main,
            lower=mount["mountpoints"],
            upper=begun["directories"]["upper"],
            mountpoint=begun["directories"]["merged"],
            driver=self.driver,
            **({"python": begun["python"]} if self.driver == "block" else {}),
            **common,
        )
        return mount, layer

    def _serve(self, begun: dict[str, Any], source: Source) -> tuple[Server, Callable[[], object]]:
        """The server, and what has to be done to stop it before the session's end."""
        return self.serve(begun, source), lambda: None


@dataclass(kw_only=True)
class UsualMounted(Mounted):
    """The same, with a server as people start it who know nothing of the layer below: by its defaults."""

    port: int = 15431

    def _serve(self, begun: dict[str, Any], source: Source) -> tuple[Server, Callable[[], object]]:
        directories = begun["directories"]
        Path(begun["session_directory"]).chmod(0o711)  # a server that nobody confines goes there by itself
        settings = {
            "port": str(self.port),
            "listen_addresses": "",
            "unix_socket_directories": directories["run"],
            # What the sample's own configuration has changed is put back.
            "fsync": "on",
            "max_wal_size": "1GB",
            "checkpoint_timeout": "5min",
        }
        argv = [f"{server_directory()}/postgres", "-D", f"{directories['merged']}/{source.data_directory}"]
        process = spawn(
            [*argv, *(word for name, value in settings.items() for word in ("-c", f"{name}={value}"))],
            log=f"{directories['log']}/server.log",
            env={MARKER: begun["session_directory"]},
            user=OWNER,
        )
        server = Server(directories["run"], self.port)
        _await(server, process)
        return server, lambda: stop(process, [("SIGQUIT", 30), ("SIGKILL", 5)])


def done(main: Callable[[], None], **arguments: Any) -> dict[str, Any]:
    """What the module returns. Raises RuntimeError where it fails."""
    result = call(main, **arguments)
    if result.get("failed"):
        raise RuntimeError(f"{main.__module__.rpartition('.')[2]}: {result['msg']}")
    return result


def end_all(session_root: Path) -> None:
    """End every session, after a failure, too."""
    if session_root.is_dir():
        done(session.main, state="absent", session_root=str(session_root), session_id="all")


def ephemeral(begun: dict[str, Any], source: Source) -> Server:
    """A session's server of PostgreSQL."""
    tree = begun["directories"]["merged"]
    started = done(
        pg_ephemeral.main,
        data_directory=f"{tree}/{source.data_directory}",
        session_directory=begun["session_directory"],
        examine=False,  # as in the playbook
    )
    return Server(started["socket_directory"], started["port"])


def _open_way(tree: Path, source: Source) -> None:
    """Let the server's user pass through the directories above the data, which Borg has made for itself alone."""
    for directory in Path(tree, source.data_directory).parents:
        if directory.is_relative_to(tree):
            directory.chmod(0o711)


def _await(server: Server, process: Process) -> None:
    """Wait until the server answers; it tells nobody when it does."""
    deadline = time.monotonic() + SERVER_STARTS
    while True:
        try:
            server.connect().close()
        except psycopg2.OperationalError as error:
            if not process.alive() or time.monotonic() > deadline:
                raise RuntimeError(f"the server did not start: {error}") from error
            time.sleep(0.01)
        else:
            return


def _children_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime
