# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a session left on the host: looked up here without the collection's own code, so that it can judge it.

And a host that lacks things, made of this one by a mount name space in which they are hidden.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "bare_system",
    "closed_fuse",
    "detach_mounts",
    "free_port",
    "is_listening",
    "mountinfo",
    "processes_below",
    "remains",
    "without",
]

MARKER = "INSTANT_RECOVERY_SESSION"
KEEPER_ENDS = 10.0  # seconds
PORTS = range(21000, 29000)  # above those that sessions choose, below those that the kernel gives
_claims: list[socket.socket] = []  # of ports
_HISTORY = re.compile(r"ended|audit\.log(\.[0-9])?")  # what tells of sessions that have been


def remains(root: str | Path) -> list[str]:
    """Everything of sessions below the session root `root` that is still there, one sentence each; [] is a clean host.

    Mounts, processes, listening sockets of these processes, Unix sockets, and files and directories, except `root`
    itself, `root`/ended with the final records and `root`/audit.log. A keeper that has ended its session is still there
    for a moment, and is waited for.
    """
    deadline = time.monotonic() + KEEPER_ENDS
    found = _remains(str(root))
    while found and all("keeper.pyz" in line for line in found) and time.monotonic() < deadline:
        time.sleep(0.05)
        found = _remains(str(root))
    return found


def _remains(top: str) -> list[str]:
    found = [f"mount {mountpoint}" for mountpoint in _mountpoints() if _is_below(mountpoint, top)]
    found += [f"process {pid}: {command}" for pid, command in processes_below(top)]
    found += [f"socket {path}" for path in _unix_sockets() if _is_below(path, top)]
    found += [f"path {path}" for path in _leftover_paths(Path(top))]
    return found


def processes_below(root: str | Path) -> list[tuple[int, str]]:
    """(pid, command line) of processes that name, use or were marked with a path below `root`, not the caller's."""
    top, family = str(root), _own_family()
    found = []
    for directory in Path("/proc").iterdir():
        if not directory.name.isdigit() or int(directory.name) in family:
            continue
        with contextlib.suppress(OSError):
            command = (directory / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
            if command and _uses(directory, command, top):
                found.append((int(directory.name), command))
    return found


def without(*paths: str) -> list[str]:
    """The beginning of a command line that runs the rest of it where these files and directories are not to be used.

    A file becomes one that cannot be executed, a directory an empty one. /dev/fuse can only be hidden together with the
    rest of /dev, of which the usual devices remain. Needs root.
    """
    commands = []
    for path in paths:
        if path == "/dev/fuse":
            commands.append(_SMALL_DEV)
        elif os.path.isdir(path):
            commands.append(f"mount -t tmpfs none '{path}'")
        elif os.path.exists(path):
            commands.append(f"mount --bind /dev/null '{path}'")
    return _in_name_space(" && ".join(commands) or "true")


def closed_fuse(directory: Path) -> list[str]:
    """A host like without(), with a /dev/fuse that only root may open. `directory` is where the device node is made."""
    node = directory / "fuse"
    return _in_name_space(f"mknod -m 0600 '{node}' c 10 229 && mount --bind '{node}' /dev/fuse")


def bare_system(place: Path, *packages: str) -> list[str]:
    """The beginning of a command line that runs the rest of it on a copy of this system without these Debian packages.

    The copy is an overlay of the root file system in memory. What is installed there is gone afterwards, and so are its
    processes. `place` is the one directory that it shares with this system. Needs root.
    """
    script = """
        set -e
        place=$1; packages=$2; shift 2
        mkdir "$place/bare"; mount -t tmpfs none "$place/bare"; cd "$place/bare"; mkdir upper work root
        mount -t overlay -o lowerdir=/,upperdir=upper,workdir=work none root
        mount -t proc none root/proc; mount --rbind /dev root/dev; mount --bind "$place" "root$place"
        chroot root apt-get -qq --yes purge $packages >apt.log 2>&1 || { cat apt.log; exit 1; }
        exec chroot root "$@"
    """
    name_space = ["unshare", "--mount", "--pid", "--fork", "--propagation", "private"]
    return [*name_space, "sh", "-c", script, "sh", str(place), " ".join(packages)]


def detach_mounts(directory: str | Path) -> list[str]:
    """Unmount what is mounted below directory, at once and whoever uses it; what there was.

    For the end of a test, also of one that was interrupted: what it leaves mounted would outlive its directory.
    """
    found = [mountpoint for mountpoint in _mountpoints() if _is_below(mountpoint, str(directory))]
    for mountpoint in reversed(found):
        subprocess.run(["umount", "--lazy", mountpoint], check=False, capture_output=True)
    return found


def is_listening(port: int) -> bool:
    """Whether anything accepts connections on 127.0.0.1:`port`."""
    with socket.socket() as probe:
        probe.settimeout(5)
        return probe.connect_ex(("127.0.0.1", port)) == 0


_SMALL_DEV = (
    "mount -t tmpfs none /dev && mkdir -m 1777 /dev/shm && ln -s /proc/self/fd /dev/fd"
    " && mknod -m 666 /dev/null c 1 3 && mknod -m 666 /dev/zero c 1 5 && mknod -m 666 /dev/full c 1 7"
    " && mknod -m 666 /dev/random c 1 8 && mknod -m 666 /dev/urandom c 1 9 && mknod -m 666 /dev/tty c 5 0"
)


def _in_name_space(commands: str) -> list[str]:
    return ["unshare", "--mount", "--propagation", "private", "sh", "-c", f'{commands} && exec "$@"', "sh"]


def mountinfo() -> list[str]:
    """The lines of this process's table of mounts, which end where the kernel ends them."""
    return os.fsdecode(Path("/proc/self/mountinfo").read_bytes()).split("\n")[:-1]


def _mountpoints() -> list[str]:
    lines = mountinfo()
    return [line.split()[4].encode().decode("unicode_escape") for line in lines]


def _unix_sockets() -> Iterator[str]:
    for line in Path("/proc/net/unix").read_text().splitlines()[1:]:
        fields = line.split(maxsplit=7)
        if len(fields) == 8:
            yield fields[7]


def _leftover_paths(root: Path) -> list[str]:
    if not root.exists():
        return []
    return sorted(str(path) for path in root.iterdir() if not _HISTORY.fullmatch(path.name))


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


def free_port() -> int:
    """A port of 127.0.0.1 that nobody has, and that is this process's own from now on.

    No session chooses it by itself, the kernel gives it to nobody, and no other test gets it from here.
    """
    for port in PORTS:
        # A name that nobody else can have while a process has it, and that ends with the process.
        claim = socket.socket(socket.AF_UNIX)
        try:
            claim.bind(f"\0instant-recovery-tests/{port}")
        except OSError:
            claim.close()
            continue
        _claims.append(claim)
        # A session may have it that another process has made, also when its server does not listen.
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise RuntimeError(f"all ports from {PORTS.start} to {PORTS.stop} are taken")
