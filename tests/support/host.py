# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a session left on the host: looked up here without the collection's own code, so that it can judge it."""

from __future__ import annotations

import contextlib
import os
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Snapshot", "is_listening", "processes_below", "remains"]

MARKER = "INSTANT_RECOVERY_SESSION"


def remains(root: str | Path) -> list[str]:
    """Everything of sessions below the session root `root` that is still there, one sentence each; [] is a clean host.

    Mounts, processes, listening sockets of these processes, Unix sockets, and files and directories, except `root`
    itself and `root`/ended with the final records.
    """
    top = str(root)
    found = [f"mount {mountpoint}" for mountpoint in _mountpoints() if _is_below(mountpoint, top)]
    found += [f"process {pid}: {command}" for pid, command in processes_below(top)]
    found += [f"socket {path}" for path in _unix_sockets() if _is_below(path, top)]
    found += [f"path {path}" for path in _leftover_paths(Path(top))]
    return found


def processes_below(root: str | Path) -> list[tuple[int, str]]:
    """(pid, command line) of processes that name, use or were marked with a path below `root`, not the caller's."""
    top = str(root)
    found = []
    for directory in Path("/proc").iterdir():
        if not directory.name.isdigit() or int(directory.name) in _own_family():
            continue
        with contextlib.suppress(OSError):
            command = (directory / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
            if command and _uses(directory, command, top):
                found.append((int(directory.name), command))
    return found


def is_listening(port: int) -> bool:
    """Whether anything accepts connections on 127.0.0.1:`port`."""
    with socket.socket() as probe:
        probe.settimeout(5)
        return probe.connect_ex(("127.0.0.1", port)) == 0


@dataclass(frozen=True)
class Snapshot:
    """The whole host's mounts and long-lived processes of the kinds a session makes; for a quiet machine only."""

    mounts: frozenset[str]
    processes: frozenset[tuple[int, str]]

    @classmethod
    def take(cls) -> Snapshot:
        """State now."""
        kinds = ("borg", "postgres", "fusermount", "instant-recovery", "cowfs")
        processes = []
        for directory in Path("/proc").iterdir():
            if directory.name.isdigit():
                with contextlib.suppress(OSError):
                    command = (directory / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                    if any(kind in command for kind in kinds):
                        processes.append((int(directory.name), command))
        return cls(mounts=frozenset(_mountpoints()), processes=frozenset(processes))

    def since(self, earlier: Snapshot) -> list[str]:
        """What is there now and was not then."""
        found = [f"mount {mountpoint}" for mountpoint in sorted(self.mounts - earlier.mounts)]
        return found + [f"process {pid}: {command}" for pid, command in sorted(self.processes - earlier.processes)]


def _mountpoints() -> list[str]:
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return [line.split()[4].encode().decode("unicode_escape") for line in lines]


def _unix_sockets() -> Iterator[str]:
    for line in Path("/proc/net/unix").read_text().splitlines()[1:]:
        fields = line.split(maxsplit=7)
        if len(fields) == 8:
            yield fields[7]


def _leftover_paths(root: Path) -> list[str]:
    if not root.exists():
        return []
    return sorted(str(path) for path in root.iterdir() if path.name != "ended")


def _uses(process: Path, command: str, root: str) -> bool:
    if f"{root}/" in command:
        return True
    if f"{MARKER}={root}/".encode() in (process / "environ").read_bytes():
        return True
    links = [process / "cwd", *(process / "fd").iterdir()]
    return any(_is_below(_target(link), root) for link in links)


def _target(link: Path) -> str:
    try:
        return os.readlink(link)
    except OSError:
        return ""


def _is_below(path: str, root: str) -> bool:
    return path.startswith(f"{root}/")


def _own_family() -> set[int]:
    """The caller and its ancestors: their command lines may well name the directory of a test."""
    family, pid = set(), os.getpid()
    while pid:
        family.add(pid)
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return family
