# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""One session, as the host's record describes it."""

from __future__ import annotations

import logging
import os
import shlex
import stat
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Literal, Self

from ._drivers import DRIVERS
from ._errors import ConnectError, InstantRecoveryError

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Mapping, Sequence
    from types import TracebackType

    from ._logs import LogLine

__all__ = ["Archive", "Session", "Status"]

Status = Literal["starting", "active", "stopping", "stopped", "failed", "orphaned"]

logger = logging.getLogger("instant_recovery")


@dataclass(frozen=True, kw_only=True)
class Archive:
    """Where a session's data come from."""

    repository: str
    name: str
    id: str | None = None
    time: str | None = None


@dataclass(frozen=True, kw_only=True)
class Session:
    """A session at the time it was started, stopped or listed. A context manager that stops it at the end.

    The fields are the keys of the record that the playbooks leave (times in ISO 8601, sizes in bytes, `timings` in
    seconds by step, `metrics` as session_info explains them). None: not known yet, or no longer. `record` is the whole
    record, later versions' keys included.
    """

    id: str
    status: Status
    engine: str | None = None
    engine_version: str | None = None
    host: str | None = None
    deployment_location: str | None = None
    archive: Archive | None = None
    driver: str | None = None
    port: int | None = None
    socket_directory: str | None = None
    user: str | None = None
    connection_string: str | None = None
    client_file: str | None = None
    pid: int | None = None
    recovered_to: Mapping[str, Any] | None = None
    borg_mount_point: str | None = None
    overlay_upper_dir: str | None = None
    overlay_merged_dir: str | None = None
    upper_bytes: int | None = None
    created_at: str | None = None
    started_at: str | None = None
    stopped_at: str | None = None
    expires_at: str | None = None
    error_message: str | None = None
    stop_reason: str | None = None
    metrics: Mapping[str, Any] = field(default_factory=dict)
    timings: Mapping[str, float] = field(default_factory=dict)
    record: Mapping[str, Any] = field(default_factory=dict, repr=False)
    _stop: Callable[[str], Session] | None = field(default=None, repr=False, compare=False)
    _logs: Callable[..., Generator[LogLine, None, None]] | None = field(default=None, repr=False, compare=False)

    @classmethod
    def from_record(
        cls,
        record: Mapping[str, Any],
        *,
        stop: Callable[[str], Session] | None = None,
        logs: Callable[..., Generator[LogLine, None, None]] | None = None,
    ) -> Session:
        """The session of a record; `stop` and `logs` are what the methods of these names call with the id."""
        known = {item.name for item in fields(cls)} - {"archive", "record", "_stop", "_logs"}
        values = {key: value for key, value in record.items() if key in known and value is not None}
        return cls(**values, archive=_archive(record.get("archive")), record=record, _stop=stop, _logs=logs)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            self.stop()
        except InstantRecoveryError as failure:
            if kind is None:
                raise
            # What went wrong inside comes first.
            logger.error("session %s could not be stopped: %s", self.id, failure)

    def stop(self) -> Session:
        """Stop the session; returns its final record. Fine when it has been stopped already. Raises PlaybookError."""
        if self._stop is None:
            raise InstantRecoveryError(f"session {self.id} was not made by an InstantRecovery: stop it there")
        return self._stop(self.id)

    def logs(
        self,
        *,
        lines: int = 100,
        sources: Sequence[str] | None = None,
        follow: bool = False,
        timeout: float | None = None,
    ) -> Generator[LogLine, None, None]:
        """The session's logs, with `follow` live until it ends: see InstantRecovery.logs."""
        if self._logs is None:
            raise InstantRecoveryError(f"session {self.id} was not made by an InstantRecovery: ask there for its logs")
        return self._logs(self.id, lines=lines, sources=sources, follow=follow, timeout=timeout)

    def connect(self, database: str | None = None, **options: Any) -> Any:
        """A connection to the session's server, as a superuser: of psycopg2 or, with the extra `mysql`, of PyMySQL.

        `database` and `options` go to the driver's connect() and win over the session's own, and those over variables
        of the environment (a service that PGSERVICE names has to exist, though: libpq asks for it first). A session on
        this host is reached through its socket, by whoever started it. The server of a session elsewhere can only be
        reached through a tunnel: give its end as `host` and `port`. Raises ConnectError, and the driver's errors.
        """
        driver = DRIVERS.get(self.engine or "")
        if driver is None or self.connection_string is None:
            raise ConnectError(
                f"session {self.id} ({self.status}, engine {self.engine}) has no server of {' or '.join(DRIVERS)}"
            )
        if "host" not in options and not self.is_here:
            # How to log in there (jump hosts, keys, agents) is in Ansible's inventory, and would only be guessed here.
            tunnel = shlex.join(["ssh", "-N", "-L", f"{self.port}:{driver.socket_of(self)}", str(self.host)])
            raise ConnectError(
                f"the server of session {self.id} listens on {self.host} only, and no directory of that session is on"
                f" this host. Run beside this program, as a user who may enter {self.socket_directory} there: {tunnel}"
                f" and then: connect(host='127.0.0.1', port={self.port})"
            )
        return driver.connect(self, database, options)

    @property
    def is_here(self) -> bool:
        """Whether the session is on this host: its record says so, and its directory is here, root's or this user's.

        The record may be another host's, and servers and files of this one are none of that host's to choose.
        """
        directory = os.path.dirname(self.socket_directory or "")
        if self.deployment_location == "remote" or os.path.basename(directory) != self.id:
            return False
        try:
            states = [os.lstat(path) for path in (directory, os.path.join(directory, "session.json"))]
        except PermissionError:
            return True  # nor does anybody without the right to enter it come to its server
        except OSError:
            return False
        is_there = stat.S_ISDIR(states[0].st_mode) and stat.S_ISREG(states[1].st_mode)
        return is_there and all(one.st_uid in (0, os.geteuid()) and not one.st_mode & 0o022 for one in states)


def _archive(value: Mapping[str, Any] | None) -> Archive | None:
    if not value:
        return None
    return Archive(**{item.name: value.get(item.name) for item in fields(Archive)})  # type: ignore[arg-type]
