# Copyright (c) 2026, phpBorg contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Room for changes in the upper directory's file system."""

from __future__ import annotations

import errno
import logging
import os

from .fuse import pyfuse3, trio
from .windows import Cache

__all__ = ["Space"]

#: Files that can be made in the upper are kept in reserve too: each file that is changed for the first time needs one.
FILES_RESERVE = 256
#: The share of the reserve that is left to others: writers that heed ENOSPC, and what is under way then, stay above.
LAST_MARK = 2

log = logging.getLogger("cowfs")


class Space:
    """Keeps a reserve of it, and has writers refused or wait where only that is left.

    The kernel acknowledges writes before it sends them here (write-back). Nobody can be told of an error then, so
    none may happen: a reserve is kept for what may be under way, which the kernel bounds at 1 % of all dirty memory
    (``fuse_bdi_init`` in its fs/fuse/inode.c sets ``max_ratio``). Once free space has come down to the reserve, writers
    get ENOSPC: before it accepts a write, the kernel asks for the attributes of a file if it has been told that those
    it holds are outdated. Should something else take the reserve as well, writes wait until there is space.

    Who writes through a map of memory, or very much at once, is not asked. So there is a last mark, below which all
    writes wait: others on this disk come first.
    """

    def __init__(self, upper: str, cache: Cache, reserve: int = 0) -> None:
        self.upper = upper
        self.cache = cache
        self.refused: set[int] = set()
        self.low = self.waiting = self.ending = False
        self.reserve = max(16 << 20, 2 * _dirty_limit() // 100) + reserve
        here = os.statvfs(upper)
        # Of a limited number of files, the same share as of the bytes.
        self.files = FILES_RESERVE + here.f_files * reserve // max(1, here.f_blocks * here.f_frsize)

    def is_low(self) -> bool:
        """Whether only the reserve is left. Logged once when it comes to that, and once when it is over."""
        low = self._free() < self.reserve
        if low:
            self.cache.give_up("space is low")
            low = self._free() < self.reserve
        if low and not self.low:
            what = f"a reserve of {self.reserve} bytes and {self.files} files"
            log.error("no space left in %s but %s: writers get ENOSPC", self.upper, what)
        elif self.low and not low:
            log.info("there is space again in %s", self.upper)
            self.refused.clear()
            self.waiting = False
        self.low = low
        return low

    def check(self, ino: int) -> None:
        """Called for each write that arrives: have the next ones to this file refused when space is low."""
        if self.is_low():
            self.refused.add(ino)
            pyfuse3.invalidate_inode(ino, attr_only=True)

    async def leave_the_last(self) -> None:
        """Wait before a write that would take what others on this disk are to have; raise OSError at the end.

        When the session ends, because the disk is full perhaps, all of the reserve is theirs.
        """
        if self.low and self.ending:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        while self.low and self._free() < self.reserve // LAST_MARK:
            await self.wait(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
            self.is_low()

    def admit(self, ino: int) -> None:
        """Called when the kernel asks for attributes."""
        if ino in self.refused and self.is_low():
            raise pyfuse3.FUSEError(errno.ENOSPC)

    async def wait(self, error: OSError) -> None:
        """Wait for space after a failed write, or raise its error if it is another or the end has come."""
        if error.errno not in (errno.ENOSPC, errno.EDQUOT) or self.ending:
            raise error
        if not self.waiting:
            log.error("the reserve in %s is used up too: acknowledged writes wait for space", self.upper)
        self.waiting = True
        await trio.sleep(1)  # Free space sends no event.

    def _free(self) -> int:
        here = os.statvfs(self.upper)
        if here.f_files and here.f_favail < self.files:  # 0 files: it has no limit of them
            return 0
        return here.f_bavail * here.f_frsize


def _dirty_limit() -> int:
    """Bytes of dirty memory that the kernel allows (its Documentation/admin-guide/sysctl/vm.rst)."""
    values = {}
    for name in ("dirty_bytes", "dirty_ratio"):
        with open(f"/proc/sys/vm/{name}", newline="\n") as file:
            values[name] = int(file.read())
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return values["dirty_bytes"] or memory * values["dirty_ratio"] // 100
