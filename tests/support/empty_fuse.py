# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A real FUSE file system with nothing in it. SIGKILL makes its mount a dead one, SIGSTOP one that hangs.

Each name that anybody looks for in it is a line of its log.

This file is also the program that serves it, run by the system's Python, which has pyfuse3.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from ansible_collections.phpborg.instant_recovery.plugins.module_utils._host.processes import Process

__all__ = ["empty_fuse"]

PYTHON = "/usr/bin/python3"


@contextlib.contextmanager
def empty_fuse(mountpoint: str, *, env: Mapping[str, str] | None = None, log: str = "/dev/null") -> Iterator[Process]:
    """Mount it and give its server; at the end nothing is left of either, in whatever state they are."""
    from ansible_collections.phpborg.instant_recovery.plugins.module_utils._host.mounts import (
        mount_at,
        unmount,
        wait_until,
    )
    from ansible_collections.phpborg.instant_recovery.plugins.module_utils._host.processes import spawn, stop

    server = spawn([PYTHON, __file__, mountpoint], log=log, env=env or {})
    try:
        mounted = wait_until(lambda: mount_at(mountpoint) is not None, timeout=20, processes=[server])
        assert mounted, "pyfuse3 of the system's Python could not mount"
        yield server
    finally:
        stop(server, [("SIGKILL", 10)])
        unmount(mountpoint)


def serve(mountpoint: str) -> None:
    import pyfuse3
    import trio

    class Empty(pyfuse3.Operations):  # type: ignore[misc]
        async def getattr(self, inode: int, ctx: Any = None) -> Any:
            entry = pyfuse3.EntryAttributes()
            entry.st_ino, entry.st_mode, entry.st_nlink = inode, stat.S_IFDIR | 0o755, 2
            entry.st_uid, entry.st_gid = os.getuid(), os.getgid()
            return entry

        async def lookup(self, parent: int, name: bytes, ctx: Any = None) -> Any:
            print(os.fsdecode(name), flush=True)
            raise pyfuse3.FUSEError(errno.ENOENT)

        async def opendir(self, inode: int, ctx: Any) -> int:
            return inode

        async def readdir(self, handle: int, start: int, token: Any) -> None:
            return None

        async def statfs(self, ctx: Any) -> Any:
            return pyfuse3.StatvfsData()

    pyfuse3.init(Empty(), mountpoint, {"fsname=empty", *pyfuse3.default_options})
    trio.run(pyfuse3.main)
    pyfuse3.close()


if __name__ == "__main__":
    serve(sys.argv[1])
