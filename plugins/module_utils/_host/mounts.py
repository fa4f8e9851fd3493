# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The mount table: what is mounted where, whether it answers, waiting for it to change, and unmounting.

Several mounts may lie on one point. Which of them is to be seen, and in which order mounts can be removed, follows from
what each is mounted on: the order of /proc/self/mountinfo is that of their making, and mounts may have been moved.
"""

from __future__ import annotations

import errno
import os
import re
import select
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .._errors import RecoveryError
from .command import CommandError, find_program, last_line, run
from .processes import Process, open_pidfd, spawn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from contextlib import ExitStack

__all__ = [
    "Mount",
    "MountError",
    "is_mounted_for",
    "is_responding",
    "make_mount_point",
    "mount_at",
    "mounts",
    "mounts_below",
    "parse_mountinfo",
    "reached_through",
    "tie",
    "unmount",
    "unmounted_with_its_users",
    "wait_until",
]

TABLE = "/proc/self/mountinfo"
# For a shell: of the lines told, each a pid and when that process started (the 22nd field of its stat; none of ours has
# a blank in its name), whoever is still that process.
KILL_TOLD = (
    'echo "$told" | while read -r pid start; do '
    '[ "$(cut -d" " -f22 "/proc/$pid/stat" 2>/dev/null)" != "$start" ] || kill -KILL "$pid"; done'
)
# A FUSE server that has no statfs of its own says ENOSYS: it is there, and that is the question.
ANSWERS = (0, errno.ENOSYS)
# statfs, because the kernel always asks the server for it; attributes may come from a cache that outlives the server.
ASK = "import os,sys\ntry: os.statvfs(sys.argv[1])\nexcept OSError as e: sys.exit(min(e.errno or 255, 255))"


class MountError(RecoveryError):
    """A mount could not be removed."""


@dataclass(frozen=True)
class Mount:
    """One line of mountinfo. options: those of the mount, then those of the file system, comma-separated."""

    mountpoint: str
    fstype: str
    source: str
    options: str
    device: str  # "major:minor"; the minor of a FUSE mount is its name in /sys/fs/fuse/connections
    mount_id: int
    parent_id: int = 0  # of the mount that it is mounted on

    @property
    def is_fuse(self) -> bool:
        """Whether a process serves this mount."""
        return self.fstype.split(".", 1)[0] in ("fuse", "fuseblk")


def parse_mountinfo(text: str) -> list[Mount]:
    """The mounts of a mountinfo text, in its order; lines that are not in its format are left out."""
    found = []
    for line in text.split("\n"):  # what other characters end a line to Python may be in a path
        left, separator, right = line.partition(" - ")
        fields, tail = left.split(" "), right.split(" ")
        if separator and len(fields) >= 6 and len(tail) >= 2:
            options = ",".join(part for part in (fields[5], _decode(tail[2]) if len(tail) > 2 else "") if part)
            mountpoint, source = _decode(fields[4]), _decode(tail[1])
            numbers = (int(fields[0]), int(fields[1]))
            found.append(Mount(mountpoint, _decode(tail[0]), source, options, fields[2], *numbers))
    return found


def mounts() -> list[Mount]:
    """The mounts of this process's name space."""
    return _table(TABLE)


def is_mounted_for(process: Process, path: str) -> bool | None:
    """Whether something is mounted at path in the other namespace of mounts in which a process is; None: it is in ours.

    What lies at path there can be reached from here at reached_through(process, path).
    """
    with suppress(OSError):
        if os.readlink(f"/proc/{process.pid}/ns/mnt") != os.readlink("/proc/self/ns/mnt"):
            found = _table(f"/proc/{process.pid}/mountinfo")
            return process.alive() and any(mount.mountpoint == path for mount in found)
    return None


def reached_through(process: Process, path: str) -> str:
    """How path as a process sees it can be reached from another namespace of mounts (proc(5), /proc/PID/root)."""
    return f"/proc/{process.pid}/root{path}"


def _table(path: str) -> list[Mount]:
    with open(path, "rb") as table:
        return parse_mountinfo(os.fsdecode(table.read()))


def mount_at(path: str) -> Mount | None:
    """The topmost mount whose mount point is exactly path, or None."""
    table = mounts()
    point = _canonical(path, {mount.mountpoint for mount in table})
    stacked = [mount for mount in table if mount.mountpoint == point]
    covered = {mount.parent_id for mount in stacked}
    return next((mount for mount in reversed(stacked) if mount.mount_id not in covered), None)


def mounts_below(directory: str) -> list[Mount]:
    """The mounts on directory or anywhere below it, in an order in which they can be unmounted."""
    table = mounts()
    top = _canonical(directory, {mount.mountpoint for mount in table})
    inside = top.rstrip("/") + "/"
    found = [mount for mount in table if mount.mountpoint == top or mount.mountpoint.startswith(inside)]
    return _from_the_top(found)


def is_responding(path: str, *, timeout: float = 5.0) -> bool:
    """Whether the file system at path answers within timeout seconds; false for a dead FUSE mount or a missing path.

    A child asks, because a call into a hung FUSE mount cannot be interrupted: the child may have to be left behind,
    which ends by itself together with the mount's server.
    """
    child = subprocess.Popen(  # pylint: disable=ansible-bad-function  # may be left behind
        [sys.executable, "-I", "-S", "-c", ASK, path],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        return child.wait(timeout) in ANSWERS
    except subprocess.TimeoutExpired:
        child.kill()
        return False


def wait_until(predicate: Callable[[], bool], *, timeout: float, processes: Sequence[Process] = ()) -> bool:
    """Wait up to timeout seconds until predicate holds, looking again whenever the mount table changes.

    Gives up early when one of processes (those expected to mount) ends. Returns what predicate said last.
    """
    deadline = time.monotonic() + timeout
    descriptors = []
    waiter = select.poll()
    try:
        # The kernel counts changes from the opening on, so one between a look and the next poll is not missed.
        descriptors.append(os.open(TABLE, os.O_RDONLY | os.O_CLOEXEC))
        waiter.register(descriptors[0], select.POLLERR | select.POLLPRI)
        for process in processes:
            pidfd = open_pidfd(process)
            if pidfd is not None:
                descriptors.append(pidfd)
                waiter.register(pidfd, select.POLLIN)
        while not predicate():
            left = deadline - time.monotonic()
            if left <= 0 or not all(process.alive() for process in processes):
                return predicate()
            # At most a second: a predicate may also look at something that the mount table does not tell.
            waiter.poll(min(left, 1.0) * 1000)
        return True
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


def unmount(mountpoint: str, *, timeout: float = 10.0) -> None:
    """Remove the topmost mount at mountpoint; nothing to do where there is none.

    One that is busy, dead or hung is detached lazily: it leaves the tree at once and ends with its last user. Raises
    MountError where it is still there afterwards. timeout (seconds) holds for each of the two attempts.
    """
    mount = mount_at(mountpoint)
    if mount is None:
        return
    said = ""
    healthy = not mount.is_fuse or is_responding(mount.mountpoint, timeout=min(timeout, 5.0))
    for lazy in (False, True) if healthy else (True,):
        try:
            done = run(_unmount_command(mount.mountpoint, lazy=lazy, fuse=mount.is_fuse), timeout=timeout, check=False)
            said = last_line(done.stderr) or said
        except CommandError as error:
            said = str(error)
        # The kernel gives the number of one that is gone to the next one, wherever that is.
        if all((other.mount_id, other.mountpoint) != (mount.mount_id, mount.mountpoint) for other in mounts()):
            return
    raise MountError(
        f"{mount.mountpoint} ({mount.fstype}) cannot be unmounted: {said or 'it is still mounted'}. "
        "End what uses it (fuser -vm shows it) and try again.",
        mountpoint=mount.mountpoint,
    )


def make_mount_point(path: str, undo: ExitStack) -> None:
    """Make the directory path and what is missing of the way to it, 0700; undo removes what was made.

    Raises MountError for one that is in use: a mount would hide its content.
    """
    if not os.path.isdir(path):
        parent = os.path.dirname(path)
        if not os.path.lexists(parent):
            make_mount_point(parent, undo)
        os.mkdir(path, 0o700)
        undo.callback(_remove_directory, path)
    elif os.listdir(path):
        raise MountError(f"{path} is not empty. Choose an empty directory, or one that does not exist yet.")


def _remove_directory(path: str) -> None:
    with suppress(OSError):
        os.rmdir(path)


@contextmanager
def unmounted_with_its_users(mountpoint: str, *, within: float) -> Iterator[int]:
    """A descriptor for a FUSE server to inherit, which is to mount at mountpoint.

    What is mounted there is unmounted when neither the server nor the caller has the descriptor any more, however they
    end. A program of its own waits for that: it reads the other end of a pipe. After so many seconds it kills those of
    whom tie() has told it: the caller may be waiting in the kernel for a server that does not answer, where no signal
    reaches it, until that has gone.
    """
    reading, writing = os.pipe()
    script = f'told=$(timeout {within:.0f} cat /proc/self/fd/{reading}) || {KILL_TOLD}; exec "$@" 2>/dev/null'
    try:
        argv = ["/bin/sh", "-c", script, "sh", *_unmount_command(mountpoint, lazy=True, fuse=True)]
        spawn(argv, log=os.devnull, env={}, pass_fds=(reading,))
        yield writing
    finally:
        os.close(reading)
        os.close(writing)


def tie(process: Process, descriptor: int) -> None:
    """Tell who waits at that descriptor of unmounted_with_its_users() which process serves the mount."""
    os.write(descriptor, f"{process.pid} {process.start_time}\n".encode())


def _unmount_command(mountpoint: str, *, lazy: bool, fuse: bool) -> list[str]:
    if fuse and os.geteuid() != 0:
        helper = find_program("fusermount3") or find_program("fusermount") or "fusermount3"
        return [helper, "-u", *(["-z"] if lazy else []), mountpoint]
    return [find_program("umount") or "umount", *(["--lazy"] if lazy else []), mountpoint]


def _from_the_top(found: Sequence[Mount]) -> list[Mount]:
    """Mounts in an order in which they can be removed: what is mounted on a mount before it, the newest first."""
    ids = {mount.mount_id for mount in found}
    waiting = [mount for mount in found if mount.parent_id not in ids or mount.parent_id == mount.mount_id]
    ordered: list[Mount] = []
    while waiting:
        # Each mount, the oldest first, with all that is on it: the reverse of what is wanted.
        mount = waiting.pop(0)
        ordered.append(mount)
        waiting[:0] = [child for child in found if child.parent_id == mount.mount_id and child is not mount]
    return ordered[::-1]


def _canonical(path: str, points: set[str]) -> str:
    """path without symbolic links; the last component is not looked at when it is a mount point, which may hang."""
    parent, name = os.path.split(os.path.abspath(path))
    plain = os.path.join(os.path.realpath(parent), name)
    return plain if plain in points else os.path.realpath(plain)


def _decode(field: str) -> str:
    """Undo the kernel's octal escapes of blank, tab, newline, backslash and number sign."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match.group(1), 8)), field)
