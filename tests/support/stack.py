# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A session made step by step by the modules themselves, without the time that plays take, to be broken at any step."""

from __future__ import annotations

import json
import os
import signal
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ansible_collections.phpborg.instant_recovery.plugins.module_utils._host.processes import identify, wait_for_end
from ansible_collections.phpborg.instant_recovery.plugins.modules import (
    borg_archive_info,
    borg_mount,
    overlay_mount,
    pg_ephemeral,
    session,
    session_info,
    session_reap,
)

from tests.integration.conftest import Sample
from tests.support.cluster import SUPERUSER, Connection, server_directory
from tests.support.host import free_port, remains
from tests.support.modules import call

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.repository import Repository

__all__ = ["PHASES", "Stack", "ended"]

PHASES = ("recorded", "mounted", "layered", "active")


@dataclass
class Stack:
    """One session below `root`; `options` are those of the module session, `server` those of pg_ephemeral.

    `secret` is the option of borg_mount that opens the repository, if not its passphrase itself. `shown` are options of
    borg_mount on what is mounted, if not the data directory alone. `found` is what borg_archive_info returned, where it
    was asked, `served` what pg_ephemeral did.
    """

    root: Path
    sample: Sample
    options: dict[str, Any] = field(default_factory=dict)
    driver: str = "block"
    readers: int = 1
    names: bool = False
    lock: str = "auto"
    secret: dict[str, str] | None = None
    begun: dict[str, Any] = field(default_factory=dict)
    server: dict[str, Any] = field(default_factory=dict)
    shown: dict[str, Any] = field(default_factory=dict)
    found: dict[str, Any] = field(default_factory=dict)
    served: dict[str, Any] = field(default_factory=dict)
    port: int | None = field(default_factory=free_port)  # while its server is down, nobody else takes it

    @classmethod
    def of(
        cls, root: Path, repository: Repository, archive: str, *, look: dict[str, Any] | None = None, **options: Any
    ) -> Stack:
        """A session of what is found in an archive, handed on as the play does it; look are options of that look."""
        os.environ["BORG_BASE_DIR"] = str(repository.base)
        where = {"repository": repository.location, "archive": archive, "passphrase": repository.passphrase}
        found = _done(call(borg_archive_info.main, **where, **(look or {})))
        database, identifier = found["database"], found["archive"]["id"]
        major = int(database["version"].partition(".")[0])
        place = database["data_directory"]
        sample = Sample(repository, archive, identifier, place, major, SUPERUSER, server_directory(), {})
        stack = cls(root, sample, found=found, **options)
        stack.shown = {name: found[name] for name in ("paths", "directories")}
        stack.options = {"data_directory": place, "owner_id": database["owner_id"], **stack.options}
        links, configuration = database["links"], database["configuration_directory"]
        stack.server = {"links": links, "configuration_directory": configuration, **stack.server}
        return stack

    def start(self, phase: str = "active") -> Stack:
        """Do the steps up to this phase; fails where one of them does."""
        steps = (self._record, self._mount, self._layer, self._serve)
        for step in steps[: PHASES.index(phase) + 1]:
            step()
        return self

    @property
    def id(self) -> str:
        return str(self.begun["session"]["id"])

    @property
    def directory(self) -> Path:
        return Path(self.begun["session_directory"])

    @property
    def record(self) -> dict[str, Any]:
        """What the session has written down, at no cost: whether it is true nobody has looked."""
        found: dict[str, Any] = json.loads((self.directory / "session.json").read_text())
        return found

    def info(self) -> dict[str, Any]:
        """What session_info tells, also when the session has ended."""
        (found,) = call(session_info.main, session_root=str(self.root), session_id=self.id)["sessions"]
        known: dict[str, Any] = found
        return known

    def mount_logs(self, repository: Repository, archive: str, path: str) -> str:
        """Mount archived logs of another archive beside its own; the directory in which they are then."""
        mounted = _done(
            call(
                borg_mount.main,
                repository=repository.location,
                archive=archive,
                mountpoint=str(self.directory / "log_archive"),
                paths=[path],
                passphrase=repository.passphrase,
                session_directory=str(self.directory),
            )
        )
        return os.path.join(mounted["mountpoint"], path)

    def change(self, state: str, **options: Any) -> dict[str, Any]:
        """The result of the module session with this state."""
        return call(session.main, session_root=str(self.root), state=state, **{"session_id": self.id, **options})

    def reap(self) -> list[str]:
        """What the module session_reap has found dead."""
        found: list[str] = _done(call(session_reap.main, session_root=str(self.root)))["reaped"]
        return found

    def reset(self) -> None:
        """The three modules of a reset."""
        _done(self.change("reset"))
        where = {"session_directory": str(self.directory)}
        _done(call(overlay_mount.main, state="remounted", **where))
        _done(call(pg_ephemeral.main, state="restarted", **where))

    def processes(self) -> dict[str, int]:
        """The pids of the session's processes by the names of their claims."""
        return {claim["name"]: claim["process"]["pid"] for claim in self.record["claims"] if claim["process"]}

    def kill(self, name: str) -> None:
        """Kill a process of the session, as the kernel does when memory is short."""
        process = identify(self.processes()[name])
        assert process is not None, name
        os.kill(process.pid, signal.SIGKILL)
        assert wait_for_end([process], timeout=10) == []

    def connection(self) -> Connection:
        """To the session's server, through its socket."""
        record = self.record
        return Connection(
            socket_directory=record["socket_directory"],
            port=record["port"],
            user=self.sample.superuser,
            bindir=self.sample.bindir,
        )

    def _record(self) -> None:
        sample = self.sample
        archive = {"repository": sample.repository.location, "name": sample.archive, "id": sample.archive_id}
        self.begun = _done(
            call(
                session.main,
                session_root=str(self.root),
                engine="postgresql",
                driver=self.driver,
                archive=archive,
                **self.options,
            )
        )

    def _mount(self) -> None:
        # As the play does; the environment is the test's own.
        os.environ["BORG_BASE_DIR"] = str(self.sample.repository.base)
        self.mounted = _done(
            call(
                borg_mount.main,
                repository=self.sample.repository.location,
                archive=self.sample.archive,
                mountpoint=self.begun["directories"]["archive"],
                **(self.shown or {"paths": [self.sample.data_directory]}),
                readers=self.readers if self.driver == "block" else 1,
                owner=self.begun["server_user"],
                lock=self.lock,
                names=self.names,
                **(self.secret or {"passphrase": self.sample.repository.passphrase}),
                session_directory=str(self.directory),
            )
        )

    def _layer(self) -> None:
        _done(
            call(
                overlay_mount.main,
                lower=self.mounted["mountpoints"],
                upper=self.begun["directories"]["upper"],
                mountpoint=self.begun["directories"]["merged"],
                driver=self.driver,
                owner=self.begun["server_user"],
                session_directory=str(self.directory),
            )
        )

    def _serve(self) -> None:
        merged = self.begun["directories"]["merged"]
        self.served = _done(
            call(
                pg_ephemeral.main,
                data_directory=os.path.join(merged, self.sample.data_directory),
                session_directory=str(self.directory),
                **{"examine": False, "port": self.port, **self.server},
            )
        )


@contextmanager
def ended(root: Path) -> Iterator[Path]:
    """A root for sessions, which end with the context and leave nothing."""
    yield root
    call(session.main, session_root=str(root), state="absent", session_id="all")
    assert remains(root) == []


def _done(result: dict[str, Any]) -> dict[str, Any]:
    assert not result.get("failed"), result["msg"]
    return result
