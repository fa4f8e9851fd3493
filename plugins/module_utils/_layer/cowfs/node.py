# Copyright (c) 2026, phpBorg contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""One inode: a file, directory or link."""

from __future__ import annotations

import stat
import time
from typing import Any

from .blocks import BLOCK
from .fuse import pyfuse3

__all__ = ["Node"]

#: Seconds for which the kernel may keep names and attributes: all changes go through it, so for ever.
KEEP = 365 * 86400

#: Names of a path in a message.
MOST_PARTS = 1024

NO_CHILDREN: dict[bytes, Any] = {}
NO_NAMES: set[bytes] = set()


class Node:
    """One inode. ``lower`` is its path in the lower directory, None for what was made here."""

    __slots__ = (
        "ino", "mode", "uid", "gid", "nlink", "rdev", "atime", "mtime", "ctime", "length", "lower", "target",
        "content", "children", "own", "parent", "name", "lookups", "opens", "changed",
    )  # fmt: skip

    def __init__(self, ino: int, mode: int, lower: bytes | None = None) -> None:
        self.ino, self.mode, self.lower = ino, mode, lower
        self.uid = self.gid = self.rdev = self.length = 0  # length: of links and directories; a file's is its content's
        self.nlink = 1  # of directories too, as file systems do that do not count subdirectories
        self.atime = self.mtime = self.ctime = time.time_ns()
        self.target: bytes | None = None
        self.content: Any = None
        # Names that are known: of nodes in use, of everything made here, and None for names that were removed.
        self.children: dict[bytes, Node | None] = {} if self.is_directory else NO_CHILDREN
        self.own: set[bytes] = set() if self.is_directory else NO_NAMES  # of these, those that the lower has not
        self.parent: Node = self
        self.name = b""
        self.lookups = self.opens = 0
        self.changed = lower is None

    @property
    def is_directory(self) -> bool:
        return stat.S_ISDIR(self.mode)

    def path(self) -> bytes:
        """Path below the mount point, for messages; of a long one, the end."""
        parts: list[bytes] = []
        node = self
        while node.parent is not node and len(parts) < MOST_PARTS:
            parts.append(node.name)
            node = node.parent
        return b"/".join(reversed(parts))

    def touch(self, changed_only: bool = False) -> None:
        self.ctime = time.time_ns()
        if not changed_only:
            self.mtime = self.ctime
        self.changed = True

    def entry(self) -> Any:
        entry = pyfuse3.EntryAttributes()
        entry.st_ino, entry.st_mode, entry.st_nlink = self.ino, self.mode, self.nlink
        entry.st_uid, entry.st_gid, entry.st_rdev = self.uid, self.gid, self.rdev
        entry.st_atime_ns, entry.st_mtime_ns, entry.st_ctime_ns = self.atime, self.mtime, self.ctime
        entry.st_size = self.content.size if self.content else self.length
        entry.st_blocks = (entry.st_size + 511) >> 9
        entry.st_blksize = BLOCK
        entry.entry_timeout = entry.attr_timeout = KEEP
        return entry
