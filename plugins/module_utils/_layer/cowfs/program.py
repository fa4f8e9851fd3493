# Copyright (c) 2026, phpBorg contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The copy-on-write layer: a read-only lower directory presented read-write, copied per 4 KiB block.

A program of its own, packed by overlay.py, with the standard library and pyfuse3 only. ::

    cowfs --lower DIR [--lower DIR …] --upper DIR [--cache-size BYTES] [--owner UID:GID] [--owned UID] [--always PATH]
          [--allow-other] [--reserve BYTES] [--counters FILE] [--failures FILE] [--names FILE] [--resume FIFO]
          MOUNTPOINT

Names, attributes and the maps of changed blocks are in memory: they live as long as the mount, and so does a session.

All state is touched by the one trio thread only; worker threads do nothing but system calls that may block. Code
between two ``await`` is therefore atomic, and every check that an ``await`` may have outdated is made again after it.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import logging
import os
import resource
import signal
import sys
from typing import Any

from ..._session.counters import Counters
from .content import Upper
from .failures import Failures
from .fuse import pyfuse3, trio
from .lower import Lower
from .mounts import Mounts
from .names import LowerNames
from .operations import CowFs
from .space import Space
from .windows import Cache, Windows

__all__ = ["NOTICE", "main"]

#: Bytes of memory that the layer may take. It needs some 100 MB, and 2 KB for each file that is made or changed.
MOST_MEMORY = 2 << 30
#: Characters of messages that are logged.
MOST_LOGGED = 16 << 20
#: Of mallopt(3).
M_ARENA_MAX, M_MMAP_THRESHOLD, M_TRIM_THRESHOLD = -8, -3, -1
#: What asks the program to end.
END_SIGNALS = (signal.SIGTERM, signal.SIGINT)
#: What tells it that the end is near: whoever waits for room for a write gets an error from now on.
NOTICE = signal.SIGUSR1
#: Seconds that requests under way have when the end has come; a lower mount may hang, its repository being elsewhere.
GRACE = 2

log = logging.getLogger("cowfs")


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s cowfs %(levelname)s %(message)s", stream=sys.stderr)
    logging.getLogger().handlers[0].addFilter(Limit())
    with open("/proc/self/comm", "w") as comm:
        comm.write("cowfs")
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    limit_memory()
    save_memory()
    filesystem = assemble(options)
    mount_options = set(pyfuse3.default_options) | {f"fsname={options.lower[0]}", "subtype=cowfs", "nodev", "nosuid"}
    if options.allow_other:
        mount_options.add("allow_other")
    # Held back until somebody listens to them: between mounting and that they would leave a dead mount.
    signal.pthread_sigmask(signal.SIG_BLOCK, (*END_SIGNALS, NOTICE))
    pyfuse3.init(filesystem, options.mountpoint, mount_options)
    log.info("%s on %s, changes in %s", ", ".join(options.lower), options.mountpoint, options.upper)
    try:
        trio.run(serve, filesystem)
    finally:
        pyfuse3.close(unmount=True)
    log.info("unmounted")
    return 0


def assemble(options: argparse.Namespace) -> CowFs:
    """The file system that is asked for."""
    counters = Counters(options.counters)
    cache = Cache(options.upper, options.cache_size, counters)
    mounts = Mounts(options.lower, options.resume)
    return CowFs(
        Lower(mounts, Windows(cache)),
        LowerNames(mounts, options.names),
        Upper(options.upper, counters),
        Space(options.upper, cache, options.reserve),
        Failures(options.failures, counters),
        options.owner,
        options.owned,
        os.fsencode(options.always),
    )


class Limit(logging.Filter):
    """Lets MOST_LOGGED characters pass: what those who write do makes lines, and they go on for days."""

    def __init__(self) -> None:
        super().__init__()
        self.left = MOST_LOGGED

    def filter(self, record: logging.LogRecord) -> bool:
        was_over = self.left <= 0
        self.left -= len(record.getMessage())
        if self.left <= 0:
            record.msg, record.args = "nothing more is logged", ()
        return not was_over


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="cowfs", description="Present a read-only directory read-write.")
    add = parser.add_argument
    add("--lower", action="append", required=True, help="read-only directory; again for identical mounts of it")
    add("--upper", required=True, help="existing directory for changed blocks")
    add("--cache-size", type=int, default=1 << 30, help="bytes of fetched windows kept on disk")
    add("--owner", type=ids, help="UID:GID to present everything as")
    add("--always", default="", help="a directory, by its path below, that is to be presented so in any case")
    add("--owned", type=int, help="UID of that which is to be presented so, if not everything")
    add(
        "--reserve",
        type=int,
        default=0,
        help="bytes of the upper's file system to leave free, beyond what safety needs",
    )
    add("--allow-other", action="store_true", help="let other users than this one in")
    add("--counters", help="file to keep counters in")
    add("--names", help="file of names and attributes of the lower, as the archive's list has them")
    add("--failures", help="file to tell in what could not be read or written")
    add("--resume", help="named pipe that gets a byte when all lower mounts are gone and one is needed")
    add("mountpoint")
    return parser.parse_args(arguments)


def ids(text: str) -> tuple[int, int]:
    uid, _colon, gid = text.partition(":")
    return int(uid), int(gid)


def limit_memory() -> None:
    """What writers make without end, names above all, ends the layer and with it the session, and nothing else."""
    with contextlib.suppress(ValueError):  # as the keeper: its memory holds what the archive does
        resource.setrlimit(resource.RLIMIT_CORE, (1, 1))
    most = resource.getrlimit(resource.RLIMIT_DATA)[1]
    limit = MOST_MEMORY if most == resource.RLIM_INFINITY else min(most, MOST_MEMORY)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


def save_memory() -> None:
    """Have all threads share one heap, windows included, and what is free at its end given back.

    Otherwise glibc has a heap for each few threads, in each of which windows leave holes: half as much memory again. In
    none, that is mapped anew each time, a window costs twice the time.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    if mallopt:
        for parameter, value in ((M_ARENA_MAX, 1), (M_MMAP_THRESHOLD, 8 << 20), (M_TRIM_THRESHOLD, 8 << 20)):
            mallopt(parameter, value)


async def serve(filesystem: CowFs) -> None:
    """Run until unmounted or asked to end."""
    async with trio.open_nursery() as nursery:
        lower = filesystem.lower
        for reader in lower.mounts.readers:
            nursery.start_soon(lower.serve, reader)
        nursery.start_soon(lower.trim)
        nursery.start_soon(lower.mounts.revive)
        nursery.start_soon(lower.mounts.try_suspects)
        nursery.start_soon(end_on_signal, filesystem.space, nursery.cancel_scope)
        await pyfuse3.main()
        nursery.cancel_scope.cancel()


async def end_on_signal(space: Space, scope: Any) -> None:
    heard = (*END_SIGNALS, NOTICE)
    with trio.open_signal_receiver(*heard) as signals:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, heard)
        async for number in signals:
            log.info("%s: ending", signal.Signals(number).name)
            space.ending = True
            if number in END_SIGNALS:
                pyfuse3.terminate()
                scope.deadline = trio.current_time() + GRACE
