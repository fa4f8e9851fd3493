# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Landlock, for the program that `_host/sandbox.py` runs: files, listening, and others' sockets and processes.

Source of the numbers: linux/landlock.h. The system calls have the same ones on every architecture.
"""

from __future__ import annotations

import os
import stat
import struct
from contextlib import suppress

from .kernel import checked, libc
from .specification import CONFIGURATION, DEVICES, RESOLVER, SYSTEM, Specification

__all__ = ["landlock_version", "restrict_files"]

# struct landlock_ruleset_attr, landlock_path_beneath_attr, landlock_net_port_attr
_RULESET, _PATH_RULE, _PORT_RULE = struct.Struct("=QQQ"), struct.Struct("=Qi"), struct.Struct("=QQ")
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_PATH_BENEATH, _NET_PORT, _VERSION = 1, 2, 1
_READ = 1 << 0 | 1 << 2 | 1 << 3  # execute, read a file, list a directory
_OF_FILES = 1 << 0 | 1 << 1 | 1 << 2 | 1 << 14  # the rights that a rule for a single file can give
_RIGHTS = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1}  # all that the ABI versions know of
_BIND_TCP, _CONNECT_TCP, _PORTS_SINCE = 1, 2, 4
_SCOPES, _SCOPES_SINCE = 0b11, 6  # abstract sockets of others, and signals to them


def landlock_version() -> int:
    """The version of Landlock's interface; 0 where the kernel has none."""
    return max(0, int(libc.syscall(_CREATE_RULESET, None, 0, _VERSION)))


def restrict_files(spec: Specification) -> None:
    version = landlock_version()
    rights = _RIGHTS[min(version, max(_RIGHTS))]
    ports = _BIND_TCP | (0 if spec.network == "host" else _CONNECT_TCP) if version >= _PORTS_SINCE else 0
    # Older kernels know a shorter structure, and take a longer one when the rest is zero.
    attributes = _RULESET.pack(rights, ports, _SCOPES if version >= _SCOPES_SINCE else 0)
    ruleset = checked(libc.syscall(_CREATE_RULESET, attributes, len(attributes), 0), "landlock_create_ruleset")
    configuration = (*CONFIGURATION, *(RESOLVER if spec.network == "host" else ()))
    for path in (*SYSTEM, *configuration, "/proc", *spec.readable):
        _grant(ruleset, path, rights & _READ)
    for path in (*DEVICES, *spec.writable, *(path for path, _source in spec.aliases)):
        _grant(ruleset, path, rights)
    if ports and spec.port:
        rule = _PORT_RULE.pack(_BIND_TCP, spec.port)
        checked(libc.syscall(_ADD_RULE, ruleset, _NET_PORT, rule, 0), "landlock_add_rule")
    checked(libc.syscall(_RESTRICT_SELF, ruleset, 0), "landlock_restrict_self")
    os.close(ruleset)


def _grant(ruleset: int, path: str, rights: int) -> None:
    try:
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return
    try:
        # A FUSE mount can be closed to all but who made it, down to its attributes: then there is nothing to grant.
        with suppress(PermissionError):
            granted = rights if stat.S_ISDIR(os.fstat(descriptor).st_mode) else rights & _OF_FILES
            rule = _PATH_RULE.pack(granted, descriptor)
            checked(libc.syscall(_ADD_RULE, ruleset, _PATH_BENEATH, rule, 0), f"landlock_add_rule {path}")
    finally:
        os.close(descriptor)
