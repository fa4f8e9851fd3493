# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a session uses and does: time, clients, queries, CPU, memory, bytes read and written.

Its keeper takes a sample now and then and leaves it in the session's directory; whoever wants to know takes a fresh one
and has the older to tell how fast things go.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from .._errors import RecoveryError
from .._host.clock import monotonic, now
from .._host.command import CommandError, run
from .._host.disk import disk_usage
from .._host.files import read_beginning, replace_file
from .._host.processes import descendants
from .._host.sandbox import Sandbox
from .counters import layer_counters
from .record import ARCHIVE

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from .._host.processes import Process
    from .record import Record
    from .session import Session

__all__ = ["METRICS", "Sample", "measure", "no_metrics", "read_sample", "spent", "write_sample"]

METRICS = (
    *("uptime", "time_left", "idle", "clients", "active_clients", "queries", "queries_per_second", "cpu_seconds"),
    *("memory_bytes", "archive_bytes_read", "repository_bytes_read", "upper_bytes", "cache_bytes"),
)
SAMPLE = "sample.json"
LARGEST_SAMPLE = 1 << 20  # bytes; traces are a server's word
KEPT = ("counted", "active", "queries_per_second", "traces")  # see _pace
PATIENCE = 2.0  # seconds to be told how much memory all of a session's processes take
PROBE_TIMEOUT = 5  # seconds that a server has to tell about its clients
MOST_SAID = 1 << 16  # bytes that it may tell
LONGEST_TRACES = 1000  # characters; they are a time and a number
LEAST_SPAN = 1.0  # seconds between two samples that can tell a speed: servers count in steps of about this
TICKS = os.sysconf("SC_CLK_TCK")

Sample = dict[str, Any]


def measure(session: Session, *, earlier: Sample | None = None) -> Sample:
    """A fresh sample: METRICS, and when it was taken. What cannot be known now is None.

    earlier is a sample to tell queries_per_second and idle from.
    """
    record, moment = session.record, now()
    processes = {claim.name: claim.process for claim in record.claims if claim.process}
    family = {one for one in (*processes.values(), *descendants(*processes.values())) if one.alive()}
    readers = [claim.process for claim in record.parts(ARCHIVE) if claim.process]
    counters = layer_counters(session)
    sample: Sample = {
        **no_metrics(),
        "time": moment,
        "clock": monotonic(),
        **_clients(record.probe),
        "uptime": round(moment - record.started, 1) if record.started else None,
        "time_left": round(max(0.0, record.expires - moment), 1) if record.expires else None,
        "cpu_seconds": round(sum(map(_cpu_seconds, family)) + _earlier(record, "cpu_seconds"), 2),
        "memory_bytes": _memory(family) if family else 0,
        "archive_bytes_read": counters.get("fetched_bytes"),
        "repository_bytes_read": sum(map(_read_bytes, readers)) + _earlier(record, "repository_bytes_read"),
        "upper_bytes": disk_usage(session.path("upper")),
        "cache_bytes": counters.get("cache_bytes"),
    }
    return {**sample, **_pace(sample, earlier, begin=record.started)}


def no_metrics() -> Sample:
    """METRICS of a session of which nothing can be known."""
    return dict.fromkeys(METRICS)


def read_sample(session: Session) -> Sample | None:
    """The keeper's last sample."""
    try:
        sample: Sample = json.loads(read_beginning(session.path(SAMPLE), LARGEST_SAMPLE))
        return sample
    except (OSError, ValueError):
        return None


def write_sample(session: Session, sample: Sample) -> None:
    """Leave a sample for others."""
    replace_file(session.path(SAMPLE), json.dumps(sample).encode())


def spent(process: Process, before: Mapping[str, float]) -> dict[str, float]:
    """What the process of a claim, which is about to end, and those before it have used."""
    used = {"cpu_seconds": _cpu_seconds(process), "repository_bytes_read": _read_bytes(process)}
    return {name: amount + before.get(name, 0) for name, amount in used.items()}


def _earlier(record: Record, name: str) -> float:
    """What processes of the claims that have been replaced had used."""
    return sum(claim.spent.get(name, 0) for claim in record.claims)


def _clients(probe: Mapping[str, Any] | None) -> Sample:
    """What the engine's probe says: clients, active_clients and queries since the server started (None: not counted).

    And traces, a text that changes with what clients do, for servers that count late or not at all.
    """
    if probe is None:
        return {}
    try:
        # It talks to what the archive's code can be: so it is locked up as the server is.
        room = Sandbox.from_dict(probe["sandbox"])
        answer = json.loads(room.run(probe["argv"], timeout=PROBE_TIMEOUT, env=probe["env"], limit=MOST_SAID).stdout)
        known = {key: _counted(answer[key]) for key in ("clients", "active_clients")}
        queries = answer["queries"]
        traces = str(answer["traces"])[:LONGEST_TRACES]
        return {**known, "queries": None if queries is None else _counted(queries), "traces": traces}
    except (RecoveryError, OSError, ValueError, LookupError, TypeError, OverflowError, RecursionError):
        return {}


def _counted(number: Any) -> int:
    """A number that a server may have counted. Raises ValueError for another, which the archive's code can give."""
    counted = int(number)
    if not 0 <= counted < 1 << 63:
        raise ValueError(f"{str(number)[:40]} is no number of anything")
    return counted


def _pace(sample: Sample, earlier: Sample | None, *, begin: float) -> Sample:
    """queries_per_second since an earlier sample, and idle: seconds without a client's query, as samples tell.

    In the sample for the next one: counted, the clock and the queries at the last answer, its traces, and active, the
    clock when a client was last seen at work.
    """
    clock = sample["clock"]
    if earlier is None or "counted" not in earlier:
        ready = clock - max(0.0, sample["time"] - begin)
        earlier = {"counted": [ready, 0], "active": ready, "queries_per_second": None}
    kept = {"traces": None, **{key: earlier[key] for key in KEPT if key in earlier}}
    if sample["clients"] is None:
        return kept
    has_traces = kept["traces"] not in (None, sample["traces"])
    queries = sample["queries"]
    span, more = clock - kept["counted"][0], 0 if queries is None else queries - kept["counted"][1]
    active = clock if sample["active_clients"] or more or has_traces else kept["active"]
    speed = round(max(0, more) / span, 2) if span >= LEAST_SPAN and queries is not None else kept["queries_per_second"]
    counted = [clock, queries or 0] if span >= LEAST_SPAN or more else kept["counted"]
    return {"queries_per_second": speed, "active": active, "counted": counted, "idle": round(clock - active, 1)}


def _cpu_seconds(process: Process) -> float:
    """Of the process and of those of its children that have ended: user and system time in /proc/PID/stat (proc(5))."""
    with suppress(OSError, ValueError, IndexError), open(f"/proc/{process.pid}/stat", "rb") as stat:
        fields = stat.read().rpartition(b")")[2].split()
        return sum(map(int, fields[11:15])) / TICKS
    return 0.0


def _memory(processes: Iterable[Process]) -> int | None:
    """Bytes of memory, what is shared with other processes divided among them (Pss); None where that is not told soon.

    By a program of its own: the kernel goes through all that a process has mapped, which whoever is logged in to the
    server decides, and waits for those that change it.
    """
    paths = [f"/proc/{process.pid}/smaps_rollup" for process in processes]
    try:
        told = run(["cat", *paths], timeout=PATIENCE, check=False).stdout
    except CommandError:
        return None
    return 1024 * sum(int(line.split()[1]) for line in told.splitlines() if line.startswith("Pss:"))


def _read_bytes(process: Process) -> int:
    """Bytes that a Borg has read, from a disk's cache or through a connection, too."""
    return _number(f"/proc/{process.pid}/io", "rchar:")


def _number(path: str, name: str) -> int:
    with suppress(OSError, ValueError), open(path, encoding="ascii") as file:
        return _first(line for line in file if line.startswith(name))
    return 0


def _first(lines: Iterable[str]) -> int:
    return next((int(line.split()[1]) for line in lines), 0)
