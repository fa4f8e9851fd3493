# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a session may take of its host's memory, processors and disks.

Where systemd is process 1 and we are root, every process of a session gets a transient scope, and all of them are in
one slice per session, which has the caps. The slice is a neighbour of the host's services: its weights count against
theirs. Slice and scopes end with their last process, so nothing has to undo them, whoever ends the session and how.
Elsewhere processes get a nice value and an I/O priority. Each process of the server (by its sandbox) and each Borg
(when it is started) is limited in its data, wherever that is.
"""

from __future__ import annotations

import hashlib
import math
import os
import pwd
import re
import resource
import threading
import time
import zlib
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .._errors import RecoveryError, warn
from .command import Bounds, find_program, run
from .processes import Process, descendants

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = [
    "LEAST_MEMORY",
    "WEIGHTS",
    "Limits",
    "bounds_of_borg",
    "confine",
    "half_of_memory",
    "io_priority_of",
    "nice_of",
    "own_memory",
    "slice_of",
]

WEIGHTS = range(1, 10001)
MOST_TASKS = 5000  # processes and threads: those that a server may have (_sandbox.MOST_PROCESSES), and ours
# Bytes of one file that a Borg may write: its log, and what it puts aside of an archive's list. Of a file of a terabyte
# that is about 20 MiB, and of most files nothing.
LARGEST_FILE = 1 << 30
LONGEST_NAME = 200  # characters of a slice's name, of which systemd takes 255
LEAST_MEMORY = 256 << 20  # bytes; with less a session does not start: Borg alone takes most of that

USUAL_ROOT = "/var/lib/instant_recovery"
MANAGER = ("org.freedesktop.systemd1", "/org/freedesktop/systemd1", "org.freedesktop.systemd1.Manager")
PATIENCE = 3.0  # seconds for systemd, and for renice and the like
# A reboot waits for nobody's queries: systemd's own 90 s are too long for what is thrown away.
STOPPING = 10_000_000  # microseconds


@dataclass(frozen=True)
class Limits:
    """What a session may have: bytes (0: any), and weights as control groups have them, of which everybody has 100."""

    memory_max: int = 0
    cpu_weight: int = 100
    io_weight: int = 100


UNLIMITED = Limits()


def confine(directory: str, limits: Limits, claim: str, process: Process, *, kind: str) -> None:
    """Put process, which was started for this claim of the session in directory, under the session's limits.

    To be called soon after its start. kind: C(server), C(keeper), or C(mount) for what
    serves one. It must not make a start fail: what does not succeed is a warning.
    """
    if process.pid == os.getpid():
        return  # whoever runs this is not the session's
    if _has_systemd():
        try:
            _put_into_unit(directory, limits, claim, process)
            return
        except RecoveryError as error:
            if not process.alive():
                return  # which is told elsewhere
            warn(f"systemd did not take {claim} of session {os.path.basename(directory)} into a unit: {error}")
    if kind == "keeper":
        return  # it needs next to nothing, and has a low priority of its own
    try:
        _restrain(limits, process)
    except (OSError, KeyError, RecoveryError) as error:
        if process.alive():
            warn(f"The limits of session {os.path.basename(directory)} do not hold for {claim}: {error}")


def half_of_memory() -> int:
    """Half of the host's memory, bytes: what a session may take unless it is told otherwise, and a Borg before it."""
    return int(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")) // 2


def bounds_of_borg(memory: int | None = None) -> Bounds:
    """What one Borg may have, and so many bytes of memory (0: any; not given: half of the host's).

    A repository decides how much one needs, and its server how much one logs.
    """
    return Bounds(memory=half_of_memory() if memory is None else memory, file=LARGEST_FILE)


@contextmanager
def own_memory(error: Exception) -> Iterator[None]:
    """Raise error where this process needs more than half of the host's memory in the block.

    For what is made of an archive's content: whoever made that decides how much it is. In the main thread only, as
    deadline(): other threads' blocks are not told apart.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    limit = half_of_memory()
    resource.setrlimit(resource.RLIMIT_DATA, (limit if soft == resource.RLIM_INFINITY else min(limit, soft), hard))
    try:
        yield
    except MemoryError:
        raise error from None
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def slice_of(directory: str) -> str:
    """The name of the session's slice. In such a name, a hyphen would part it from the slice that it is in."""
    root, name = os.path.split(directory)
    # The same name may be in use below another root.
    name += "" if root == USUAL_ROOT else f"_{zlib.crc32(os.fsencode(root)):08x}"
    escaped = re.sub(r"[^A-Za-z0-9_.]", lambda match: f"\\x{ord(match.group()):02x}", name)
    if len(escaped) > LONGEST_NAME:  # of many hyphens
        escaped = hashlib.sha256(os.fsencode(directory)).hexdigest()
    return f"system-instant_recovery_{escaped}.slice"


def nice_of(cpu_weight: int, *, is_root: bool) -> int:
    """The nice value that stands for a weight: one step is a factor of 1.25 (sched(7)). Only root can go below 0."""
    return max(-20 if is_root else 0, min(19, -round(math.log(cpu_weight / 100, 1.25))))


def io_priority_of(io_weight: int) -> int:
    """The level within the best-effort class that stands for a weight: 4 for the usual one, 7 for a tenth of it."""
    return max(0, min(7, 4 - round(3 * math.log10(io_weight / 100))))


def _has_systemd() -> bool:
    """Whether systemd runs this host (sd_booted(3)) and does what we ask. An ordinary user's would end at logout."""
    return os.geteuid() == 0 and os.path.isdir("/run/systemd/system")


def _put_into_unit(directory: str, limits: Limits, claim: str, process: Process) -> None:
    slice_name = slice_of(directory)
    asked: set[int] = set()
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        # What has no parent in the slice yet may have been started before the parent was moved.
        outside = [one.pid for one in (process, *descendants(process)) if one.alive() and not _is_in(slice_name, one)]
        new = [pid for pid in outside if pid not in asked]
        if new:
            name = f"instant_recovery-{os.path.basename(directory)}-{claim}-{new[0]}.scope"
            _start_scope(name, new, slice_name, directory, limits)
            asked.update(new)
        elif outside:
            time.sleep(0.002)  # systemd answers first, and the kernel tells nobody when a process changes its group
        else:
            return
    raise RecoveryError(f"processes {', '.join(map(str, outside))} were not in {slice_name} after {PATIENCE:g} s")


def _start_scope(name: str, pids: Sequence[int], slice_name: str, directory: str, limits: Limits) -> None:
    """Have systemd start a scope with these processes, and the slice with its caps where it is missing."""
    scope = [
        *("Description", "s", f"Instant recovery session in {directory}"),
        *("PIDs", "au", str(len(pids)), *map(str, pids)),
        *("Slice", "s", slice_name),
        *("CollectMode", "s", "inactive-or-failed"),
        # Where the memory cap ends one process, the others are the server's to restart and not systemd's to end.
        *("Delegate", "b", "true"),
        *("TimeoutStopUSec", "t", str(STOPPING)),
    ]
    slices = [] if _exists(slice_name) else [slice_name, "6" if limits.memory_max else "5", *_caps(limits)]
    call = ["StartTransientUnit", "ssa(sv)a(sa(sv))", name, "fail", "6", *scope, "1" if slices else "0", *slices]
    _run("busctl", "--system", "call", *MANAGER, *call)


def _caps(limits: Limits) -> list[str]:
    """The slice's properties, for busctl: that it ends with its last scope, and what is limited."""
    memory = ("MemoryMax", "t", str(limits.memory_max)) if limits.memory_max else ()
    weights = ("CPUWeight", "t", str(limits.cpu_weight), "IOWeight", "t", str(limits.io_weight))
    ends = ("StopWhenUnneeded", "b", "true", "CollectMode", "s", "inactive-or-failed")
    return [*ends, *memory, *weights, "TasksMax", "t", str(MOST_TASKS)]


def _exists(slice_name: str) -> bool:
    """Whether the slice has a control group, in the unified hierarchy or in systemd's own beside older ones."""
    hierarchies = ("/sys/fs/cgroup", "/sys/fs/cgroup/systemd")
    return any(os.path.isdir(os.path.join(one, "system.slice", slice_name)) for one in hierarchies)


def _is_in(slice_name: str, process: Process) -> bool:
    with (
        suppress(OSError),
        open(f"/proc/{process.pid}/cgroup", encoding="utf-8", errors="surrogateescape", newline="\n") as groups,
    ):
        return f"/{slice_name}/" in groups.read()
    return False


def _restrain(limits: Limits, process: Process) -> None:
    """Limit process and its children without systemd. What they start later inherits it."""
    if (limits.cpu_weight, limits.io_weight) == (UNLIMITED.cpu_weight, UNLIMITED.io_weight):
        return
    _restrain_one(limits, process)
    for child in descendants(process):
        with suppress(OSError, RecoveryError):  # it may have ended, and by now children are born with the limits
            _restrain_one(limits, child)


def _restrain_one(limits: Limits, process: Process) -> None:
    # Nice and I/O priority are each thread's own; those that are started later take over their parent's.
    threads = sorted(os.listdir(f"/proc/{process.pid}/task"), key=int)
    owner = _owner(process)
    nice = nice_of(limits.cpu_weight, is_root=os.geteuid() == 0)
    if nice > 0:  # whoever started it may have a lower priority still, which only root could raise
        nice = max(nice, os.getpriority(os.PRIO_PROCESS, process.pid))
    if nice:
        # Downwards as the owner, who may always do that: the root of a container lacks the capability for others.
        _run("renice", "-n", str(nice), "-p", *threads, user=owner if nice > 0 else None)
        _renice_group(process, nice)
    if limits.io_weight != UNLIMITED.io_weight:
        level = io_priority_of(limits.io_weight)
        _run("ionice", "--class", "2", "--classdata", str(level), "--pid", *threads, user=owner)


def _owner(process: Process) -> str:
    """The name of the user who runs a process; the number of one whom the host does not know."""
    uid = os.stat(f"/proc/{process.pid}").st_uid
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _run(program: str, *arguments: str, user: str | None = None) -> None:
    run([find_program(program) or program, *arguments], timeout=PATIENCE, user=user)


def _renice_group(process: Process, nice: int) -> None:
    """Where the kernel shares processors between terminal sessions (sched(7), autogroup), nice counts within one only.

    Each of our processes has begun one of its own, so theirs has to be reniced as well. What cannot be is left.
    """
    for _attempt in range(3):
        try:
            with open(f"/proc/{process.pid}/autogroup", "w", encoding="ascii") as group:
                group.write(str(nice))
            return
        except BlockingIOError:
            time.sleep(0.11)  # an ordinary user may do so ten times a second
        except OSError:
            return
