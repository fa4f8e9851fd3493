# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is recorded of a session: what the world is told of it, and what tear-down needs. Nobody else knows the JSON."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from datetime import datetime, timezone
from typing import Any

from .._errors import text_shown
from .._host.limits import Limits
from .._host.processes import Process

__all__ = [
    "ARCHIVE",
    "KEEPER",
    "LAYER",
    "LOGS",
    "PORT",
    "PUBLIC_KEYS",
    "SCHEMA_VERSION",
    "SERVER",
    "SIGNALS",
    "Claim",
    "NewerRecordError",
    "Record",
    "Starter",
    "brief",
    "timestamp",
]

SCHEMA_VERSION = 1
# What a session tells the world, in this order.
PUBLIC_KEYS = (
    "id", "status", "engine", "engine_version", "host", "deployment_location", "archive", "driver", "port",
    "socket_directory", "user", "connection_string", "client_file", "pid", "borg_mount_point", "overlay_upper_dir",
    "overlay_merged_dir", "upper_bytes", "created_at", "started_at", "stopped_at", "expires_at", "error_message",
    "timings", "recovered_to", "stop_reason",
)  # fmt: skip
# What claims are parts of.
KEEPER, ARCHIVE, LOGS, LAYER, SERVER, PORT = "keeper", "archive", "log_archive", "layer", "server", "port"
LONGEST_MESSAGE = 16 << 10  # characters: a record is read whole, and often
SUMS = ("total", "overhead")  # in timings, beside those of the steps
SIGNALS = (("SIGTERM", 10.0), ("SIGKILL", 5.0))  # each with the seconds that a process has to end by it


class NewerRecordError(ValueError):
    """The record was written by a later release; its message is the version of what records hold."""


@dataclass(frozen=True)
class Claim:
    """What the session is about to have, or has: a process, or a mount with the process that serves it.

    part is what it is of: KEEPER, ARCHIVE, LOGS (archived logs), LAYER, SERVER or PORT (which is kept for the server);
    mounts of one part can stand in for one another. Without what is not required the session goes on. process is None
    before it is known. signals end it;
    notice is a signal that tells it beforehand that the session ends, so that it keeps nobody waiting.
    suspended: its Borg was ended on purpose, until somebody reads. spent: what the processes before this one have used.
    shared_memory: ids of System V segments that it made.
    """

    name: str
    kind: str  # process or mount
    part: str
    required: bool = True
    process: Process | None = None
    mountpoint: str = ""  # of a mount: an absolute path
    signals: tuple[tuple[str, float], ...] = SIGNALS
    notice: str | None = None
    suspended: bool = False
    spent: Mapping[str, float] = field(default_factory=dict)
    shared_memory: tuple[Any, ...] = ()

    def __post_init__(self) -> None:
        if self.kind not in ("process", "mount") or (self.kind == "mount" and not os.path.isabs(self.mountpoint)):
            raise ValueError(f"not a claim: {self.name} {self.kind} {self.mountpoint}")

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Claim:
        """From the record's file. Raises ValueError, LookupError or TypeError for what is no claim."""
        known = _known(cls, data)
        if known.get("process") is not None:
            known["process"] = Process.from_dict(known["process"])
        if "signals" in known:
            known["signals"] = tuple((str(name), float(seconds)) for name, seconds in known["signals"])
        known["shared_memory"] = tuple(known.get("shared_memory", ()))
        return cls(**known)


@dataclass(frozen=True)
class Starter:
    """Who goes on with a start between two modules: a play, or the connection through which it comes."""

    process: Process
    is_connection: bool

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Starter:
        """From the record's file. Raises as Claim.from_json."""
        return cls(Process.from_dict(data["process"]), bool(data["is_connection"]))


@dataclass(frozen=True)
class Record:
    """Everything that is known of a session. Times are ISO 8601 in UTC, but for began and due.

    archive has repository, name, id and time. timings are seconds by step. ttl and idle_timeout are seconds,
    max_upper_size bytes, free_space_floor bytes or such as C(5%): 0 is no limit. suspend_after is seconds, 0 never and
    None by what mounting took. began is when the start began, in seconds since the epoch. due is when a step is cut
    off, by the clock that nobody sets. owner_id is the user id of the data directory's owner on the archive's host, by
    which the layer tells what is the server's. options are those that modules were called with, by module. probe asks
    the server for its clients. server is what the engine's module told, recovered how far its recovery had come. ending
    is what the last record will say.
    """

    id: str
    status: str = "orphaned"
    engine: str | None = None
    engine_version: str | None = None
    host: str | None = None
    deployment_location: str | None = None
    archive: Mapping[str, Any] | None = None
    driver: str | None = None
    port: int | None = None
    socket_directory: str | None = None
    user: str | None = None
    connection_string: str | None = None
    client_file: str | None = None
    pid: int | None = None
    borg_mount_point: str | None = None
    overlay_upper_dir: str | None = None
    overlay_merged_dir: str | None = None
    upper_bytes: int | None = None
    created_at: str | None = None
    started_at: str | None = None
    stopped_at: str | None = None
    expires_at: str | None = None
    error_message: str | None = None
    timings: Mapping[str, float] = field(default_factory=dict)
    recovered_to: Mapping[str, Any] | None = None
    stop_reason: str | None = None

    ttl: float = 0
    idle_timeout: float = 0
    free_space_floor: str = "0"
    max_upper_size: int = 0
    suspend_after: float | None = None
    memory_max: int = Limits.memory_max
    cpu_weight: int = Limits.cpu_weight
    io_weight: int = Limits.io_weight

    began: float = 0
    data_directory: str | None = None
    owner_id: int | None = None
    server_user: str | None = None
    server: Mapping[str, Any] | None = None
    recovered: Mapping[str, Any] | None = None
    starter: Starter | None = None
    due: float | None = None
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    probe: Mapping[str, Any] | None = None
    metrics_textfile: str | None = None
    requested_by: str | None = None
    python: str | None = None
    ending: Mapping[str, Any] | None = None
    claims: tuple[Claim, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "error_message", text_shown(brief(self.error_message)))

    @classmethod
    def from_json(cls, content: bytes) -> Record:
        """From its file. Raises NewerRecordError, or another ValueError, LookupError or TypeError for what is none."""
        data = dict(json.loads(content))
        version = data.pop("schema_version")
        if version > SCHEMA_VERSION:
            raise NewerRecordError(version)
        known = _known(cls, data)
        known["claims"] = tuple(map(Claim.from_json, known.get("claims", ())))
        if known.get("starter") is not None:
            known["starter"] = Starter.from_json(known["starter"])
        return cls(**{**known, "id": str(known["id"])})

    def to_json(self) -> bytes:
        """For its file."""
        return f"{json.dumps({'schema_version': SCHEMA_VERSION, **asdict(self)}, indent=1)}\n".encode()

    def public(self, **changes: Any) -> dict[str, Any]:
        """The keys of the public contract, all of them and in order, with changes."""
        return {key: changes.get(key, getattr(self, key)) for key in PUBLIC_KEYS}

    def ended(self, **ending: Any) -> Record:
        """What is kept of the session when nothing else is left of it."""
        return Record(**self.public(stopped_at=timestamp(), **ending))

    def claimed(self, name: str) -> Claim | None:
        """The claim of that name."""
        return next((claim for claim in self.claims if claim.name == name), None)

    def with_claim(self, new: Claim) -> tuple[Claim, ...]:
        """The claims with this one, in the place of one of the same name, else as the newest."""
        if self.claimed(new.name) is None:
            return (*self.claims, new)
        return tuple(new if claim.name == new.name else claim for claim in self.claims)

    @property
    def processes(self) -> list[Process]:
        """The processes that are claimed, whether they still run or not."""
        return [claim.process for claim in self.claims if claim.process is not None]

    @property
    def mounts(self) -> list[Claim]:
        """The claims of mounts."""
        return [claim for claim in self.claims if claim.kind == "mount"]

    def parts(self, *parts: str) -> list[Claim]:
        """The claims that are of these parts."""
        return [claim for claim in self.claims if claim.part in parts]

    @property
    def limits(self) -> Limits:
        """What each of its processes is limited to."""
        return Limits(self.memory_max, self.cpu_weight, self.io_weight)

    @property
    def started(self) -> float:
        """When its server was ready, in seconds since the epoch; 0: not yet."""
        return _epoch(self.started_at)

    @property
    def expires(self) -> float:
        """When it is to end, in seconds since the epoch; 0: never."""
        return _epoch(self.expires_at)

    def steps(self) -> dict[str, float]:
        """The timings of the start's steps."""
        return {step: float(seconds) for step, seconds in self.timings.items() if step not in SUMS}

    def summed(self, moment: float) -> dict[str, float]:
        """The timings with their total, from the start's beginning till then, and what of it no step accounts for."""
        steps, total = self.steps(), moment - self.began
        return {**steps, "total": round(total, 3), "overhead": round(total - sum(steps.values()), 3)}


def brief(message: str | None) -> str | None:
    """A message that fits into a record: a roll-back must not fail of what it is for."""
    if message is None or len(message) <= LONGEST_MESSAGE:
        return message
    rest = f"… ({len(message)} characters in all)"
    return message[: LONGEST_MESSAGE - len(rest)] + rest


def timestamp(epoch: float | None = None) -> str:
    """A point in time (default: now) as records have it: ISO 8601, UTC, milliseconds."""
    moment = datetime.fromtimestamp(time.time() if epoch is None else epoch, timezone.utc)
    return moment.isoformat(timespec="milliseconds")


def _epoch(text: str | None) -> float:
    return datetime.fromisoformat(text).timestamp() if text else 0.0


def _known(kind: type[Claim] | type[Record], data: Mapping[str, Any]) -> dict[str, Any]:
    """What of data are fields: a record of the same version may have been written with more."""
    names: Sequence[str] = [one.name for one in fields(kind)]
    return {name: data[name] for name in names if name in data}
