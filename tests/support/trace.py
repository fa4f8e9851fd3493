# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What processes changed in the file system, as the kernel was asked for it: strace, and a reader of what it writes."""

from __future__ import annotations

import os
import re
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Change", "changes", "tracing_interpreter"]

OPENS = ("open", "openat", "openat2", "creat")
CHANGES = (
    *("rename", "renameat", "renameat2", "link", "linkat", "symlink", "symlinkat", "unlink", "unlinkat", "rmdir"),
    *("mkdir", "mkdirat", "mknod", "mknodat", "truncate", "ftruncate", "fallocate"),
    *("chmod", "fchmod", "fchmodat", "chown", "lchown", "fchown", "fchownat"),
    *("utime", "utimes", "utimensat", "futimesat", "setxattr", "lsetxattr", "fsetxattr"),
    *("removexattr", "lremovexattr", "fremovexattr"),
)
# Where a process is, and whom it starts there; a socket is a file, too.
OTHERS = ("chdir", "fchdir", "clone", "clone3", "fork", "vfork", "bind")
WRITES = re.compile(r"\bO_(?:WRONLY|RDWR|CREAT|TRUNC|TMPFILE|APPEND)\b")
CALL = re.compile(r"(?P<name>\w+)\((?P<arguments>.*)\)\s+= (?P<result>-?\d+)")
# An open directory with its path, or a path in quotes: their order is that of the call.
PATH = re.compile(r'(?:AT_FDCWD|\d+)<(?P<directory>(?:[^<>\\]|\\.)*)>|"(?P<path>(?:[^"\\]|\\.)*)"')


@dataclass(frozen=True)
class Change:
    """A call that succeeded, and a path that it changed, or opened so that it could be; no link is left in it."""

    call: str
    path: str


def tracing_interpreter(directory: Path) -> Path:
    """A program to be Ansible's interpreter: Python, with strace writing to directory what becomes of it.

    strace is no parent of what it follows (-D), and keeps none of its output open: Ansible must not wait for it.
    """
    directory.mkdir()
    program = directory.with_name(f"{directory.name}-python")
    names = ",".join((*OPENS, *CHANGES, *OTHERS))
    trace = [
        "strace",
        "-D",
        "-ff",
        "--seccomp-bpf",
        "-qq",
        "-y",
        "-s",
        "4096",
        "-e",
        f"trace={names}",
        "-e",
        "signal=none",
    ]
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
    for path in directory.iterdir():
        if path.suffix != ".said":
            yield from _changes_of(path, _working_directories(path))


def _working_directories(path: Path) -> str:
    """Where the process of this file began: where the one was that started it, at that moment."""
    prefix, pid = path.name.split(".")
    for other in path.parent.glob(f"{prefix}.*"):
        if other != path and other.suffix != ".said":
            for call, _arguments, result, directory in _calls(other, ""):
                if call in ("clone", "clone3", "fork", "vfork") and result == int(pid):
                    return directory or _working_directories(other)
    return "/"


def _calls(path: Path, directory: str) -> Iterator[tuple[str, str, int, str]]:
    """Name, arguments, result and working directory of each call that succeeded."""
    for line in path.read_text(errors="surrogateescape").splitlines():
        match = CALL.search(line)
        if match is None or int(match["result"]) < 0:
            continue
        if match["name"] in ("chdir", "fchdir"):
            directory = os.path.join(directory, *_paths(match["arguments"], directory))
        yield match["name"], match["arguments"], int(match["result"]), directory


def _changes_of(path: Path, directory: str) -> Iterator[Change]:
    for name, arguments, _result, here in _calls(path, directory):
        if name in CHANGES or (name in OPENS and (name == "creat" or WRITES.search(arguments))):
            # What a symbolic link says is no path that is changed.
            paths = _paths(arguments, here)[-1:] if name.startswith("symlink") else _paths(arguments, here)
        elif name == "bind" and "sun_path=" in arguments:
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
