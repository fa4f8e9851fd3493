# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What processes did in the file system, as the kernel was asked for it: strace, and a reader of what it writes."""

from __future__ import annotations

import os
import re
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Change", "Touch", "changes", "touched_outside_rooms", "tracing_interpreter"]

OPENS = ("open", "openat", "openat2", "creat")
CHANGES = (
    *("rename", "renameat", "renameat2", "link", "linkat", "symlink", "symlinkat", "unlink", "unlinkat", "rmdir"),
    *("mkdir", "mkdirat", "mknod", "mknodat", "truncate", "ftruncate", "fallocate"),
    *("chmod", "fchmod", "fchmodat", "chown", "lchown", "fchown", "fchownat"),
    *("utime", "utimes", "utimensat", "futimesat", "setxattr", "lsetxattr", "fsetxattr"),
    *("removexattr", "lremovexattr", "fremovexattr"),
)
# Where a process is, and whom it starts there; a socket is a file, too.
STARTS = ("clone", "clone3", "fork", "vfork")
OTHERS = ("chdir", "fchdir", "bind", "connect", "execve", "mount", *STARTS)
ENTERS = ("pivot_root", "landlock_restrict_self")  # from then on a process is in a room of its own
WRITES = re.compile(r"\bO_(?:WRONLY|RDWR|CREAT|TRUNC|TMPFILE|APPEND)\b")
# The result of clone() in another name space of processes is followed by the number that the process has in this one.
CALL = re.compile(
    r"(?P<time>[0-9.]+) (?P<name>\w+)\((?P<arguments>.*)\)\s+= (?P<result>-?\d+)"
    r"(?:<(?P<opened>(?:[^<>\\]|\\.)*)>)?(?: /\* (?P<here>\d+) in strace)?"
)
# An open directory with its path, or a path in quotes: their order is that of the call.
PATH = re.compile(r'(?:AT_FDCWD|\d+)<(?P<directory>(?:[^<>\\]|\\.)*)>|"(?P<path>(?:[^"\\]|\\.)*)"')
DESCRIPTOR = re.compile(r"(?<=\")/proc/self/fd/(\d+)")


@dataclass(frozen=True)
class Change:
    """A call that succeeded, and a path that it changed, or opened so that it could be; no link is left in it."""

    call: str
    path: str


@dataclass(frozen=True)
class Touch:
    """A path that a process of ours opened, connected to or mounted on while it was in no room, and when (seconds)."""

    time: float
    call: str
    path: str


def tracing_interpreter(directory: Path) -> Path:
    """A program to be Ansible's interpreter: Python, with strace writing to directory what becomes of it.

    strace is no parent of what it follows (-D), and keeps none of its output open: Ansible must not wait for it.
    """
    directory.mkdir()
    program = directory.with_name(f"{directory.name}-python")
    names = ",".join((*OPENS, *CHANGES, *OTHERS, *ENTERS))
    trace = ["strace", "-D", "-ff", "--seccomp-bpf", "-qq", "-ttt", "-y", "-s", "4096", "-e", "signal=none"]
    trace += ["--decode-pids=pidns"]
    trace += ["-e", f"trace={names}"]
    python = shlex.quote(sys.executable)
    # Each run has a prefix of its own: process numbers come round again.
    program.write_text(
        "#!/bin/sh\n"
        f"prefix=$(mktemp -u {shlex.quote(str(directory))}/XXXXXX)\n"
        f'exec {shlex.join(trace)} -o "$prefix" -- {python} "$@" 2>>"$prefix.said"\n'
    )
    program.chmod(0o755)
    return program


def changes(directory: Path) -> Iterator[Change]:
    """All that the traced processes changed, in no particular order. Links on the way are looked at as they are now."""
    for path, first in _first_directories(directory).items():
        yield from _changes_of(path, first)


def touched_outside_rooms(directory: Path) -> tuple[list[Touch], list[Touch]]:
    """What processes touched that were in no room, and the programs that were executed in rooms."""
    traced = {path: list(_calls(path, first)) for path, first in _first_directories(directory).items()}
    starts: dict[int, list[tuple[float, Path]]] = {}
    for path, calls in traced.items():
        for call in calls:
            if call.name in STARTS:
                starts.setdefault(call.result, []).append((call.time, path))

    def entered(path: Path) -> float:
        """When the process of this file entered a room: before its first call, where its parent was in one."""
        began = traced[path][0].time if traced[path] else 0.0
        parents = [start for start in starts.get(int(path.suffix[1:]), []) if start[0] <= began and start[1] != path]
        if parents:
            moment, parent = max(parents)
            if entered(parent) <= moment:
                return 0.0
        return min((call.time for call in traced[path] if call.name in ENTERS), default=float("inf"))

    outside, inside = [], []
    for path, calls in traced.items():
        moment = entered(path)
        for call in calls:
            touches = [Touch(call.time, call.name, touched) for touched in _touched(call)]
            if call.time < moment:
                outside += touches
            elif call.name == "execve":
                inside += touches[:1]
    return outside, inside


def _touched(call: _Call) -> list[str]:
    if call.name in ("connect", "bind"):
        _head, socket, path = call.arguments.partition('sun_path="')  # an abstract one is sun_path=@"…"
        return _paths(f'"{path}', call.directory) if socket else []
    if call.name == "mount":  # what, where, which kind
        return _paths(call.arguments, call.directory)[1:2]
    return _paths(call.arguments, call.directory) if call.name in (*OPENS, *CHANGES, "execve") else []


def _first_directories(directory: Path) -> dict[Path, str]:
    """Where the process of each file began: where the one was that started it, at that moment.

    Numbers come round again, so several may have had its number.
    """
    began: dict[Path, float] = {}
    starts: dict[str, list[tuple[_Call, Path]]] = {}  # by the name of the file of whom they start
    for path in directory.iterdir():
        if path.suffix != ".said":
            calls = list(_calls(path, ""))
            began[path] = calls[0].time if calls else 0.0
            for call in (call for call in calls if call.name in STARTS):
                starts.setdefault(f"{path.stem}.{call.result}", []).append((call, path))

    def first(path: Path) -> str:
        started = [
            (call.time, call.directory or first(parent))
            for call, parent in starts.get(path.name, [])
            if parent != path and call.time <= began[path]
        ]
        return max(started, default=(0.0, "/"))[1]

    return {path: first(path) for path in began}


class _Call(NamedTuple):
    """A call that succeeded: when it began, its name, arguments and result, and where its process was then."""

    time: float
    name: str
    arguments: str
    result: int
    directory: str


def _calls(path: Path, directory: str) -> Iterator[_Call]:
    opened: dict[str, str] = {}  # paths by descriptors: some calls name a file as /proc/self/fd/DESCRIPTOR
    for line in path.read_text(errors="surrogateescape").splitlines():
        match = CALL.match(line)
        if match is None or int(match["result"]) < 0:
            continue
        if match["name"] in ("chdir", "fchdir"):
            directory = os.path.join(directory, *_paths(match["arguments"], directory))
        if match["opened"]:
            opened[match["result"]] = match["opened"]
        arguments = DESCRIPTOR.sub(lambda found: opened.get(found[1], found[0]), match["arguments"])
        result = int(match["here"] or match["result"])
        yield _Call(float(match["time"]), match["name"], arguments, result, directory)


def _changes_of(path: Path, directory: str) -> Iterator[Change]:
    for _time, name, arguments, _result, here in _calls(path, directory):
        if name in CHANGES or (name in OPENS and (name == "creat" or WRITES.search(arguments))):
            # What a symbolic link says is no path that is changed.
            paths = _paths(arguments, here)[-1:] if name.startswith("symlink") else _paths(arguments, here)
        elif name == "bind" and 'sun_path="' in arguments:  # an abstract one is sun_path=@"…"
            paths = _paths(arguments.partition("sun_path=")[2], here)
        else:
            continue
        for changed in paths:
            parent, last = os.path.split(changed)
            yield Change(name, os.path.join(os.path.realpath(parent), last))


def _paths(arguments: str, directory: str) -> list[str]:
    """The paths in a call's arguments, each below the open directory that stands before it."""
    found = []
    base, alone = directory, False
    for match in PATH.finditer(arguments):
        if match["path"] is None:
            if alone:
                found.append(base)
            base, alone = _plain(match["directory"]), True
        else:
            found.append(os.path.normpath(os.path.join(base, _plain(match["path"]))))
            base, alone = directory, False
    return [*found, *([base] if alone else [])]


def _plain(text: str) -> str:
    """A string as it was, without strace's escapes."""
    return os.fsdecode(text.encode("utf-8", "surrogateescape").decode("unicode_escape").encode("latin-1", "replace"))
