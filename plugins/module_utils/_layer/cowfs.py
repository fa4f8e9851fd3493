# Copyright (c) 2026, phpBorg contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The copy-on-write layer: a read-only lower directory presented read-write, copied per 4 KiB block.

A stand-alone program (``overlay_mount`` brings this very file to the host): standard library and pyfuse3 only. ::

    cowfs --lower DIR [--lower DIR …] --upper DIR [--cache-size BYTES] [--owner UID:GID] [--allow-other]
          [--counters FILE] [--failures FILE] [--bell FIFO] MOUNTPOINT

Reading top to bottom:

``CowFs``    the FUSE operations: names, attributes, open files
``Node``     one file, directory or link: where it is in the lower, and what differs from it
``Content``  the bytes of one regular file: blocks of the upper over blocks of the lower
``Lower``    the lower directory: windows fetched by several readers, read-ahead, a bounded cache

What is where: changed blocks lie in sparse files in the upper directory, one per changed file, named by inode number.
Names, attributes and the maps of changed blocks are in memory: they live as long as the mount, and so does a session.

All state is touched by the one trio thread only; worker threads do nothing but system calls that may block. Code
between two ``await`` is therefore atomic, and every check that an ``await`` may have outdated is made again after it.
"""

from __future__ import annotations

import argparse
import array
import collections
import contextlib
import ctypes
import errno
import fcntl
import functools
import inspect
import itertools
import json
import logging
import math
import mmap
import os
import resource
import signal
import stat
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

try:
    import pyfuse3
    import trio
except ImportError:  # Where only the text of this file is wanted: in overlay_mount and ansible-test.
    pyfuse3 = trio = None

__all__ = ["BLOCK", "COUNTERS", "WINDOW", "Content", "CowFs", "Lower", "Node", "main"]

#: Unit of copying, bytes: a page of the kernel's cache, which sends whole pages; a PostgreSQL page is two of it.
BLOCK = 4096
ZEROS = bytes(BLOCK)
#: Unit of fetching from the lower, bytes. Borg decodes whole chunks of about 2 MiB for any read in them: half a chunk
#: wastes little, and is fetched about as fast as 8 KiB of it. Less than 1 MiB, the most that the kernel asks of a FUSE
#: file system at once: 256 pages, of which the buffer, which does not begin with a page, touches one more. Less by the
#: largest usual page of a database: then each page lies in one window.
WINDOW = (1 << 20) - 4 * BLOCK
#: Windows fetched ahead of a sequential reader, at most. They are dealt out to the readers in runs, one run to each, so
#: that few chunks are decoded by two of them: with two readers 32 MiB, about 12 chunks of an average file.
READ_AHEAD = 64
#: How far from the last window, in windows, a read still belongs to the same sequence: the processes of a parallel scan
#: take pieces of a table by turns.
NEAR = 64
#: Planned windows that a reader fetches before one that is waited for. Taken out of their order, windows have Borg
#: decode a chunk again: it forgets one that has been read to its end.
PATIENCE = 16
#: Bytes of fetched windows kept in memory until they have been read, and how many windows at most: those of small files
#: cost more than their bytes. Beyond these, the oldest go to the cache file.
HOT_BYTES = 72 * WINDOW
MOST_HOT = 1000
#: Unit of the cache file, bytes, and how many windows it keeps at most: what is known of them is in memory.
PIECE = 4 * BLOCK
MOST_CACHED = 20_000
#: Open lower files of each reader, and open upper files: least recently used are closed.
OPEN_FILES = 256
#: Seconds for which the kernel may keep names and attributes: all changes go through it, so for ever.
KEEP = 365 * 86400
#: Names of a directory that are looked up in the lower at once while it is listed.
BATCH = 64
#: The longest name, bytes: what the lower's system calls and all programs expect.
NAME_MAX = 255
#: Files that can be made in the upper are kept in reserve too: each file that is changed for the first time needs one.
FILES_RESERVE = 256
#: Errors that those who write get as they are; all others are failures, and look like one of the disk (EIO).
USERS_OWN = (errno.ENOSPC, errno.EFBIG)
#: Files with a failure that the log names, and of these the file of failures.
MOST_COMPLAINTS, MOST_TOLD = 1000, 100
#: Pieces of the lower of which each is known to end a mount that is asked for it: after that many nothing is asked for.
MOST_LOST = 10_000
#: How often a request is made anew after the mount that it was made of had ended before it came there.
ATTEMPTS = 10
#: What the file of counters holds, in this order, 64 bits each in the machine's byte order: bytes fetched from the
#: lower, bytes written to the upper (again and again, if so), bytes of windows on disk, and failed requests (EIO).
COUNTERS = ("fetched_bytes", "written_bytes", "cache_bytes", "io_errors")
#: Bytes of memory that the layer may take. It needs some 100 MB, and 2 KB for each file that is made or changed.
MOST_MEMORY = 2 << 30
#: Files, links and directories that can be made: what is known of them is in memory, and a link has up to 4 KB.
MOST_NAMES = 300_000
#: Seconds without a fetch after which memory that only serves fetching is given back.
REST = 30
#: Of mallopt(3).
M_ARENA_MAX, M_MMAP_THRESHOLD, M_TRIM_THRESHOLD = -8, -3, -1
#: What asks the program to end.
END_SIGNALS = (signal.SIGTERM, signal.SIGINT)
#: Seconds that requests under way have when the end has come; a lower mount may hang, its repository being elsewhere.
GRACE = 2
#: Seconds that requests wait for a lower mount to come back when none is left: the session's keeper mounts it again.
#: While it is at that it holds a lock on the bell, and requests wait longer. Without the bell the session is ending.
REVIVAL = 20
#: Seconds between two looks whether a dead one is back.
REVIVAL_LOOK = 0.25
#: What a lower mount answers when its server has died: to requests after that, and to those that it died over.
DEAD = (errno.ENOTCONN, errno.ECONNABORTED)
#: Seconds between two looks whether others are done with a mount that one request needs alone.
TURN_LOOK = 0.01

log = logging.getLogger("cowfs")
Base: Any = pyfuse3.Operations if pyfuse3 else object


# ---------------------------------------------------------------------------------------------------- operations


class CowFs(Base):  # type: ignore[misc]
    """The file system: pyfuse3's operations over a tree of :class:`Node`."""

    # Without the write-back cache each 8 KiB page that a server writes is a request of its own, and drops what the
    # kernel holds of the file: read-write pgbench falls from 100 % to 35 % of native. Its price is paid by `Space`.
    enable_writeback_cache = True

    def __init__(
        self, lower: Lower, upper: str, owner: tuple[int, int] | None, failures: Failures, reserve: int = 0
    ) -> None:
        super().__init__()
        self.lower = lower
        self.upper = upper
        self.owner = owner
        self.space = Space(upper, lower.cache, reserve)
        self.names_made = self.nodes_made = 0
        self.was_told = False
        self.uppers = FileTable(OPEN_FILES)
        self.failures = failures
        self.complaints: set[tuple[int, int, str]] = set()
        self.hard_links: dict[int, Node] = {}
        self.listings: dict[int, tuple[Node, list[bytes]]] = {}
        self.next_listing = 0
        self.next_ino = pyfuse3.ROOT_INODE
        self.nodes: dict[int, Node] = {}
        root = self._enter_lower(os.stat(lower.readers[0].mount), b"")
        root.parent, root.lookups = root, 1

    # -- names

    async def lookup(self, parent_inode: int, name: bytes, ctx: Any = None) -> Any:
        parent = self.nodes[parent_inode]
        if len(name) > NAME_MAX:
            raise pyfuse3.FUSEError(errno.ENAMETOOLONG)
        if name == b".":
            node: Node | None = parent
        elif name == b"..":
            node = parent.parent
        else:
            node = await self._find(parent, name)
        if node is None:
            missing = pyfuse3.EntryAttributes()  # inode 0: the kernel may remember that the name does not exist
            missing.st_ino = 0
            missing.entry_timeout = KEEP
            return missing
        node.lookups += 1
        return node.entry()

    async def forget(self, inode_list: list[tuple[int, int]]) -> None:
        for ino, count in inode_list:
            node = self.nodes.get(ino)
            if node is not None:
                node.lookups -= count
                self._release_node(node)

    async def create(self, parent_inode: int, name: bytes, mode: int, flags: int, ctx: Any) -> tuple[Any, Any]:
        node = self._make(parent_inode, name, stat.S_IFREG | stat.S_IMODE(mode), ctx)
        return self._opened(node), node.entry()

    async def mknod(self, parent_inode: int, name: bytes, mode: int, rdev: int, ctx: Any) -> Any:
        if stat.S_ISCHR(mode) or stat.S_ISBLK(mode):  # No database has one, and an archived one is only to be seen.
            raise pyfuse3.FUSEError(errno.EPERM)
        return self._make(parent_inode, name, mode, ctx, rdev=rdev).entry()

    async def mkdir(self, parent_inode: int, name: bytes, mode: int, ctx: Any) -> Any:
        return self._make(parent_inode, name, stat.S_IFDIR | stat.S_IMODE(mode), ctx).entry()

    async def symlink(self, parent_inode: int, name: bytes, target: bytes, ctx: Any) -> Any:
        return self._make(parent_inode, name, stat.S_IFLNK | 0o777, ctx, target=target).entry()

    async def link(self, inode: int, new_parent_inode: int, new_name: bytes, ctx: Any) -> Any:
        node, parent = self.nodes[inode], self.nodes[new_parent_inode]
        if node.nlink == 0:
            raise pyfuse3.FUSEError(errno.ENOENT)
        if self._has_too_many_names():
            raise pyfuse3.FUSEError(errno.ENOSPC)
        node.nlink += 1
        node.lookups += 1
        self._put(parent, new_name, node)
        node.touch(changed_only=True)
        return node.entry()

    async def unlink(self, parent_inode: int, name: bytes, ctx: Any) -> None:
        parent = self.nodes[parent_inode]
        node = await self._existing(parent, name)
        if node.is_directory:
            raise pyfuse3.FUSEError(errno.EISDIR)
        self._drop(parent, name, node)

    async def rmdir(self, parent_inode: int, name: bytes, ctx: Any) -> None:
        parent = self.nodes[parent_inode]
        node = await self._existing(parent, name)
        await self._check_empty(node)
        self._drop(parent, name, node)

    async def rename(
        self, parent_inode_old: int, name_old: bytes, parent_inode_new: int, name_new: bytes, flags: int, ctx: Any
    ) -> None:
        source, target = self.nodes[parent_inode_old], self.nodes[parent_inode_new]
        node = await self._existing(source, name_old)
        replaced = await self._find(target, name_new)
        if flags == pyfuse3.RENAME_EXCHANGE:
            if replaced is None:
                raise pyfuse3.FUSEError(errno.ENOENT)
            self._put(source, name_old, replaced)
            self._put(target, name_new, node)
            return
        if flags not in (0, pyfuse3.RENAME_NOREPLACE):
            raise pyfuse3.FUSEError(errno.EINVAL)
        if replaced is node:  # Two names of one file: POSIX says that nothing happens.
            return
        if replaced is not None:
            if flags == pyfuse3.RENAME_NOREPLACE:
                raise pyfuse3.FUSEError(errno.EEXIST)
            if replaced.is_directory:
                await self._check_empty(replaced)
            self._drop(target, name_new, replaced)
        self._white_out(source, name_old)
        self._put(target, name_new, node)
        node.touch(changed_only=True)

    async def readlink(self, inode: int, ctx: Any) -> bytes:
        node = self.nodes[inode]
        if node.target is None:
            node.target = await self._ask(os.readlink, node.lower)
        return node.target

    # -- attributes

    async def getattr(self, inode: int, ctx: Any = None) -> Any:
        self.space.admit(inode)
        return self.nodes[inode].entry()

    async def setattr(self, inode: int, attr: Any, fields: Any, fh: int | None, ctx: Any) -> Any:
        node = self.nodes[inode]
        if fields.update_size:
            await self._truncate(node, attr.st_size)
        if fields.update_mode:
            node.mode = stat.S_IFMT(node.mode) | stat.S_IMODE(attr.st_mode)
        if fields.update_uid:
            node.uid = attr.st_uid
        if fields.update_gid:
            node.gid = attr.st_gid
        node.ctime = time.time_ns()
        if fields.update_atime:
            node.atime = attr.st_atime_ns
        if fields.update_mtime:
            node.mtime = attr.st_mtime_ns
        if fields.update_ctime:
            node.ctime = attr.st_ctime_ns
        node.changed = True
        return node.entry()

    async def statfs(self, ctx: Any) -> Any:
        # The space that counts is the one that changes need: the upper's.
        here, answer = os.statvfs(self.upper), pyfuse3.StatvfsData()
        for field in ("f_bsize", "f_frsize", "f_blocks", "f_bfree", "f_files", "f_ffree", "f_favail"):
            setattr(answer, field, getattr(here, field))
        answer.f_bavail = max(0, here.f_bavail - self.space.reserve // here.f_frsize)
        answer.f_namemax = NAME_MAX
        return answer

    # -- content

    async def open(self, inode: int, flags: int, ctx: Any) -> Any:
        node = self.nodes[inode]
        if node.content is None:  # The kernel opens pipes itself, and no devices on this mount: nor does this.
            raise pyfuse3.FUSEError(errno.EACCES)
        if flags & os.O_TRUNC:
            await self._truncate(node, 0)
        return self._opened(node)

    async def read(self, fh: int, off: int, size: int) -> Any:
        node = self.nodes[fh]
        with self._reporting(node, off):
            return await node.content.read(off, size)

    async def write(self, fh: int, off: int, buf: bytes) -> int:
        node = self.nodes[fh]
        with self._reporting(node, off):
            self.space.check(fh)
            while True:
                try:
                    written: int = await node.content.write(off, buf)
                    return written
                except OSError as error:
                    await self.space.wait(error)

    async def flush(self, fh: int) -> None:
        pass  # Nothing is buffered here: each write has reached the upper before it was answered.

    async def fsync(self, fh: int, datasync: bool) -> None:
        node = self.nodes[fh]
        with self._reporting(node, None):
            await node.content.sync()

    async def release(self, fh: int) -> None:
        node = self.nodes[fh]
        node.opens -= 1
        self._release_node(node)

    # -- directories

    async def opendir(self, inode: int, ctx: Any) -> int:
        self.next_listing += 1
        self.listings[self.next_listing] = (self.nodes[inode], [])
        return self.next_listing

    async def readdir(self, fh: int, start_id: int, token: Any) -> None:
        # The names are taken at offset 0 and kept while the directory is open, so that offsets mean the same names
        # from one call to the next whatever is created or removed in between.
        directory, names = self.listings[fh]
        if start_id == 0:
            names[:] = await self._names(directory)
        own = ((b".", directory), (b"..", directory.parent))  # of these the kernel takes no reference
        for position, (name, node) in enumerate(own[start_id:], start_id):
            if not pyfuse3.readdir_reply(token, name, node.entry(), position + 1):
                return
        first = max(0, start_id - len(own))
        for position in range(first, len(names)):
            if (position - first) % BATCH == 0:
                await self._adopt_all(directory, names[position : position + BATCH])
            # The kernel enters what it is told: a name that is gone, or another file's by now, must not come back.
            found = directory.children.get(names[position])
            if found is not None:
                if not pyfuse3.readdir_reply(token, names[position], found.entry(), position + len(own) + 1):
                    return
                found.lookups += 1

    async def releasedir(self, fh: int) -> None:
        directory, names = self.listings.pop(fh)
        for name in names:
            node = directory.children.get(name)
            if node is not None:
                self._release_node(node)

    async def fsyncdir(self, fh: int, datasync: bool) -> None:
        pass  # Names live as long as the mount: there is nothing that could be made durable.

    # -- helpers: nodes

    def _enter(self, mode: int, uid: int, gid: int, lower: bytes | None = None, size: int = 0) -> Node:
        node = Node(self.next_ino, mode, lower)
        self.next_ino += 1
        node.uid, node.gid = self.owner or (uid, gid)
        if stat.S_ISREG(mode):
            node.content = Content(self, node.ino, lower, size)
        else:
            node.length = size
        self.nodes[node.ino] = node
        return node

    def _enter_lower(self, found: os.stat_result, path: bytes) -> Node:
        node = self._enter(found.st_mode, found.st_uid, found.st_gid, path, found.st_size)
        node.rdev = found.st_rdev
        if not node.is_directory:
            node.nlink = found.st_nlink
        node.atime, node.mtime, node.ctime = found.st_atime_ns, found.st_mtime_ns, found.st_ctime_ns
        return node

    async def _find(self, parent: Node, name: bytes) -> Node | None:
        """The node of a name, from memory or from the lower; None when there is none."""
        if name in parent.children:
            return parent.children[name]
        if parent.lower is None:
            return None
        await self._adopt_all(parent, [name])
        return parent.children.get(name)

    async def _adopt_all(self, parent: Node, names: list[bytes]) -> None:
        """Enter these names, as far as the lower has them and the tree has not."""
        if parent.lower is not None and any(name not in parent.children for name in names):
            # Asked for all of them: what is known now may be forgotten while this waits.
            for name, found in await self._ask(_stat_all, parent.lower, *names):
                self._adopt(parent, name, found)

    def _adopt(self, parent: Node, name: bytes, found: os.stat_result) -> None:
        if name in parent.children:  # Entered or removed in the meantime.
            return
        node = self.hard_links.get(found.st_ino) if stat.S_ISREG(found.st_mode) and found.st_nlink > 1 else None
        if node is None or node.nlink == 0:  # 0: removed by as many names as it was said to have, yet here is another.
            node = self._enter_lower(found, os.path.join(parent.lower or b"", name))
            node.parent, node.name = parent, name
            if node.nlink > 1:
                self.hard_links[found.st_ino] = node
                node.changed = True  # Has other names than this one: is never forgotten.
        parent.children[name] = node

    async def _existing(self, parent: Node, name: bytes) -> Node:
        node = await self._find(parent, name)
        if node is None:
            raise pyfuse3.FUSEError(errno.ENOENT)
        return node

    def _make(
        self, parent_inode: int, name: bytes, mode: int, ctx: Any, rdev: int = 0, target: bytes | None = None
    ) -> Node:
        parent = self.nodes[parent_inode]
        if self.space.is_low() or self._has_too_many_names():
            raise pyfuse3.FUSEError(errno.ENOSPC)
        # That the name is free is known: the kernel has just looked it up, and nobody else changes this tree.
        node = self._enter(mode, ctx.uid, ctx.gid, size=len(target or b""))
        self.nodes_made += 1
        node.rdev, node.target = rdev, target
        if parent.mode & stat.S_ISGID:  # What is made in such a directory belongs to its group.
            node.gid = parent.gid
            node.mode |= stat.S_ISGID if node.is_directory else 0
        node.lookups = 1
        self._put(parent, name, node)
        return node

    def _put(self, parent: Node, name: bytes, node: Node) -> None:
        # Whoever puts a name has had it looked up: if nothing is known of it, the lower has none of that name.
        if name not in parent.children:
            parent.own.add(name)
            self.names_made += 1
        parent.children[name] = node
        node.parent, node.name, node.changed = parent, name, True
        parent.touch()

    def _white_out(self, parent: Node, name: bytes) -> None:
        # Only names of the lower need the mark. Temporary files would leave one each, without end.
        if name in parent.own:
            del parent.children[name]
            parent.own.remove(name)
            self.names_made -= 1
        else:
            parent.children[name] = None
        parent.touch()

    def _has_too_many_names(self) -> bool:
        is_full = max(self.names_made, self.nodes_made) >= MOST_NAMES  # an open file can do without a name
        if is_full and not self.was_told:
            self.was_told = True  # once: a log can be filled, too
            log.error("%d files have been made, and no more can be: writers get ENOSPC", MOST_NAMES)
        return is_full

    def _drop(self, parent: Node, name: bytes, node: Node) -> None:
        self._white_out(parent, name)
        node.nlink = 0 if node.is_directory else node.nlink - 1
        node.touch(changed_only=True)
        self._release_node(node)

    def _release_node(self, node: Node) -> None:
        """Free what nobody refers to: a removed file with its data, or the memory of an unchanged one."""
        if node.lookups > 0 or node.opens > 0 or node.ino not in self.nodes:
            return
        if node.nlink > 0:
            if node.changed or node.children or (node.content and node.content.differs):
                return
            del node.parent.children[node.name]
        del self.nodes[node.ino]
        self.nodes_made -= node.lower is None
        if node.content:
            node.content.discard()
        if node.nlink > 0:
            self._release_node(node.parent)

    # -- helpers: directories

    async def _names(self, directory: Node) -> list[bytes]:
        archived = [] if directory.lower is None else await self._ask(os.listdir, directory.lower)
        known = directory.children
        return [name for name in archived if name not in known] + [name for name in known if known[name] is not None]

    async def _check_empty(self, directory: Node) -> None:
        if not directory.is_directory:
            raise pyfuse3.FUSEError(errno.ENOTDIR)
        if await self._names(directory):
            raise pyfuse3.FUSEError(errno.ENOTEMPTY)

    async def _ask(self, function: Callable[..., Any], path: bytes | None, *names: bytes) -> Any:
        """A system call on a path of the lower."""
        try:
            return await self.lower.call(function, path or b"", *names)
        except OSError as error:
            found = error if isinstance(error, LowerError) else LowerError(*error.args)
            whole = os.path.join(path or b"", *names[:1]) if len(names) == 1 else path or b""
            raise pyfuse3.FUSEError(self._complain(whole, None, found)) from None

    # -- helpers: content

    def _opened(self, node: Node) -> Any:
        node.opens += 1
        return pyfuse3.FileInfo(fh=node.ino, keep_cache=True)

    async def _truncate(self, node: Node, size: int) -> None:
        if node.content is None:
            raise pyfuse3.FUSEError(errno.EINVAL)
        with self._reporting(node, size):
            node.content.truncate(size)
        node.touch()

    def _reporting(self, node: Node, offset: int | None) -> Reporting:
        return Reporting(self, node, offset)

    def _complain(self, path: bytes, offset: int | None, error: OSError) -> int:
        """Log a failure once per file and reason; return the error number for the caller."""
        number: int = error.errno if error.errno in USERS_OWN else errno.EIO
        side = error.side if isinstance(error, LowerError) else "upper"
        key = (hash(path), number, side)
        if key not in self.complaints and len(self.complaints) < MOST_COMPLAINTS:
            self.complaints.add(key)
            reason = error.strerror or str(error)
            where = "" if offset is None else f" at offset {offset}"
            log.error("%s: %s%s: %s", side, os.fsdecode(path) or "/", where, reason)
            if number == errno.EIO:
                self.failures.note(side, os.fsdecode(path), offset, reason)
        if number == errno.EIO:
            self.lower.counters.add(io_errors=1)  # last: who sees it finds out why
        return number


class LowerError(OSError):
    """The lower cannot be read, as opposed to all that may be wrong with the upper."""

    side = "lower"


class LostError(LowerError):
    """The lower can be read, but has lost this piece of content."""

    side = "lost"

    def __init__(self) -> None:
        super().__init__(errno.EIO, "the archive has lost content of it: see what borg check says of the repository")


class Reporting:
    """Turns an OSError of the upper or lower into the caller's error, logged once with file and offset."""

    __slots__ = ("fs", "node", "offset")

    def __init__(self, fs: CowFs, node: Node, offset: int | None) -> None:
        self.fs, self.node, self.offset = fs, node, offset

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if isinstance(error, OSError):
            raise pyfuse3.FUSEError(self.fs._complain(self._path(error), self.offset, error)) from None

    def _path(self, error: OSError) -> bytes:
        """What it is called; of what is lost, where the archive has it."""
        content = self.node.content
        return content.lower if isinstance(error, LostError) and content else self.node.path()


def _stat_all(directory: bytes, *names: bytes) -> list[tuple[bytes, os.stat_result]]:
    """The attributes of those names that exist."""
    found = []
    for name in names:
        with contextlib.suppress(FileNotFoundError):
            found.append((name, os.lstat(os.path.join(directory, name))))
    return found


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
        """Path below the mount point, for messages."""
        parts = []
        node = self
        while node.parent is not node:
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


NO_CHILDREN: dict[bytes, Any] = {}
NO_NAMES: set[bytes] = set()


# ------------------------------------------------------------------------------------------------------- content


class Content:
    """The bytes of one regular file.

    A block is taken from the upper file if its bit in ``copied`` is set, or if it lies wholly beyond ``limit``: the end
    of what is still valid of the lower file. Truncation lowers ``limit`` for good, so that bytes of the lower never
    come back when the file grows again: beyond it there are zeros, which is what a hole in the upper file reads as.
    """

    __slots__ = ("fs", "ino", "lower", "limit", "size", "copied", "differs", "last_window", "streak", "served")

    def __init__(self, fs: CowFs, ino: int, lower: bytes | None, size: int) -> None:
        self.fs, self.ino, self.lower = fs, ino, lower
        self.limit = self.size = size
        self.copied: Bits | None = None  # blocks of the lower file; None: no block yet
        self.differs = False
        self.last_window = -2 * NEAR
        self.streak = 0
        self.served: Bits | None = None  # windows that the kernel has had wholly; None: no window yet

    async def read(self, offset: int, size: int) -> Any:
        end = min(offset + size, self.size)
        if end <= offset:
            return b""
        if offset >= self.limit:
            return self._upper_bytes(offset, end)
        if self.copied is None and end <= self.limit:
            return await self._lower_bytes(offset, end)
        pieces = []
        for start, stop, from_upper in list(self._runs(offset, end)):
            # An awaited lower read may be overtaken by a write; the older bytes are then still a right answer.
            pieces.append(self._upper_bytes(start, stop) if from_upper else await self._lower_bytes(start, stop))
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    async def write(self, offset: int, data: bytes) -> int:
        end = offset + len(data)
        # A block written in part only needs the rest of its bytes first.
        for edge in sorted({offset // BLOCK, (end - 1) // BLOCK}):
            covered = offset <= edge * BLOCK and min((edge + 1) * BLOCK, self.limit) <= end
            if not covered and not self._is_copied(edge):
                await self._copy_block(edge)
        self._store(offset, data)
        return len(data)

    def truncate(self, size: int) -> None:
        if size < self.size and self.differs:
            os.ftruncate(self._file(), size)
        self.limit = min(self.limit, size)
        self.size = size
        self.differs = True

    async def sync(self) -> None:
        if self.differs:
            # A duplicate: the table may close its own in the meantime.
            with open(os.dup(self._file()), "rb") as file:
                await trio.to_thread.run_sync(os.fsync, file)

    def discard(self) -> None:
        """Remove the upper data; the file has no name any more."""
        self.fs.uppers.close(self.ino)
        self.fs.lower.forget(self.ino)
        if self.differs:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._path())

    # -- helpers

    def _path(self) -> str:
        return os.path.join(self.fs.upper, f"{self.ino:x}")

    def _file(self) -> int:
        return self.fs.uppers.get(self.ino, lambda: os.open(self._path(), os.O_RDWR | os.O_CREAT, 0o600))

    def _is_copied(self, block: int) -> bool:
        if block * BLOCK >= self.limit:
            return True
        return self.copied is not None and block in self.copied

    def _runs(self, offset: int, end: int) -> Iterator[tuple[int, int, bool]]:
        """Split a range where upper and lower alternate: (start, stop, from upper)."""
        start = offset
        while start < end:
            block = start // BLOCK
            copied = self._is_copied(block)
            while block * BLOCK < end and self._is_copied(block) == copied:
                block += 1
            stop = min(block * BLOCK, end)
            yield start, stop, copied
            start = stop

    def _upper_bytes(self, start: int, stop: int) -> bytes:
        data = os.pread(self._file(), stop - start, start) if self.differs else b""
        return data if len(data) == stop - start else data + bytes(stop - start - len(data))

    async def _lower_bytes(self, start: int, stop: int) -> Any:
        """Bytes of the lower file; zeros beyond ``limit``, which lies in the last block if not at the end."""
        last = min(stop, self.limit)
        pieces = []
        while start < last:
            index = start // WINDOW
            upto = min(last, (index + 1) * WINDOW)
            self._notice(index)
            pieces.append(await self.fs.lower.read(self, index, start - index * WINDOW, upto - index * WINDOW))
            start = upto
        if stop > last:
            pieces.append(bytes(stop - last))
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _notice(self, window: int) -> None:
        """Have the windows to come fetched while a file is read in sequence."""
        step = window - self.last_window
        if step == 0 or (-NEAR < step < 0 and self.fs.lower.knows(self, window)):
            return
        self.streak = self.streak + 1 if 0 < step <= NEAR else 0
        self.last_window = window
        if self.streak > 1:  # Two reads near to each other may be chance.
            ahead = min(1 << min(self.streak, 8), READ_AHEAD)
            self.fs.lower.prefetch(self, window + 1, min(window + ahead, (self.limit - 1) // WINDOW))

    def was_served(self, window: int) -> bool:
        return self.served is not None and window in self.served

    def note_served(self, window: int) -> None:
        self.served = self.served or Bits()
        self.served.add(window)

    async def _copy_block(self, block: int) -> None:
        start = block * BLOCK
        data = await self._lower_bytes(start, start + BLOCK)
        if not self._is_copied(block):  # Another writer may have been quicker.
            self._store_upper(start, bytes(data[: self.limit - start]))  # or a truncation: what it cut off stays off
            self._mark(start, start + BLOCK)

    def _store(self, offset: int, data: bytes) -> None:
        written = self._store_upper(offset, data)
        self._mark(offset, offset + written)
        self.size = max(self.size, offset + written)

    def _store_upper(self, offset: int, data: bytes) -> int:
        """Write to the upper file, all of it or ENOSPC: what a full disk kept is not marked, so it does not show.

        Zeros are left out where the upper file has a hole, which reads as zeros: servers write logs full of them ahead.
        """
        self.differs = True
        view = memoryview(data)
        for start, stop, is_zero in _runs_of_zeros(data, offset):
            if is_zero and _is_hole(self._file(), offset + start, offset + stop):
                continue
            done = start
            while done < stop:
                done += os.pwrite(self._file(), view[done:stop], offset + done)
            self.fs.lower.counters.add(written_bytes=stop - start)
        return len(data)

    def _mark(self, start: int, stop: int) -> None:
        stop = min(stop, self.limit)
        if start >= stop:
            return
        self.copied = self.copied or Bits()
        for block in range(start // BLOCK, (stop + BLOCK - 1) // BLOCK):
            self.copied.add(block)


def _runs_of_zeros(data: bytes, offset: int) -> Iterator[tuple[int, int, bool]]:
    """Split what is to be written at offset where blocks of zeros and others alternate: start, stop, whether zeros."""
    start, position, was_zero = 0, 0, False
    while position < len(data):
        upto = min(len(data), position + BLOCK - (offset + position) % BLOCK)
        is_zero = upto - position == BLOCK and data.startswith(ZEROS, position)
        if is_zero != was_zero and position > start:
            yield start, position, was_zero
            start = position
        position, was_zero = upto, is_zero
    yield start, position, was_zero


def _is_hole(file: int, start: int, stop: int) -> bool:
    try:
        return os.lseek(file, start, os.SEEK_DATA) >= stop
    except OSError as error:
        return error.errno == errno.ENXIO  # nothing but a hole to the end; others: it cannot be told


class Bits:
    """Numbers, a bit for each, in pages that are made when the first of theirs is added.

    The end of a sparse file may be petabytes away: what is touched there must not take memory for all that is before.
    """

    __slots__ = ("pages",)

    def __init__(self) -> None:
        self.pages: dict[int, bytearray] = {}

    def __contains__(self, number: int) -> bool:
        page = self.pages.get(number >> 12)
        return page is not None and bool(page[number >> 3 & 511] & 1 << (number & 7))

    def add(self, number: int) -> None:
        page = self.pages.get(number >> 12)
        if page is None:
            page = self.pages[number >> 12] = bytearray(512)
        page[number >> 3 & 511] |= 1 << (number & 7)


class Space:
    """Room for changes in the upper directory's file system.

    The kernel acknowledges writes before it sends them here (write-back). Nobody can be told of an error then, so
    none may happen: a reserve is kept for what may be under way, which the kernel bounds at 1 % of all dirty memory
    (``fuse_bdi_init`` in its fs/fuse/inode.c sets ``max_ratio``). Once free space has come down to the reserve, writers
    get ENOSPC: before it accepts a write, the kernel asks for the attributes of a file if it has been told that those
    it holds are outdated. Should something else take the reserve as well, writes wait until there is space.
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
        with open(f"/proc/sys/vm/{name}") as file:
            values[name] = int(file.read())
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return values["dirty_bytes"] or memory * values["dirty_ratio"] // 100


class FileTable:
    """Open file descriptors by key; the least recently used is closed beyond ``limit``."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.files: collections.OrderedDict[Any, int] = collections.OrderedDict()

    def get(self, key: Any, opener: Callable[[], int]) -> int:
        if key in self.files:
            self.files.move_to_end(key)
            return self.files[key]
        if len(self.files) >= self.limit:
            os.close(self.files.popitem(last=False)[1])
        self.files[key] = opener()
        return self.files[key]

    def close(self, key: Any) -> None:
        if key in self.files:
            os.close(self.files.pop(key))

    def clear(self) -> None:
        for key in list(self.files):
            with contextlib.suppress(OSError):  # closed it is, but a mount that has died complains
                self.close(key)


# --------------------------------------------------------------------------------------------------------- lower


class Window:
    """A fetched window in memory. ``served`` has a bit for each block that the kernel has had."""

    __slots__ = ("data", "served")

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.served = 0

    def cut(self, start: int, stop: int) -> memoryview:
        first, last = start // BLOCK, (stop + BLOCK - 1) // BLOCK
        self.served |= ((1 << (last - first)) - 1) << first
        return memoryview(self.data)[start:stop]

    @property
    def used_up(self) -> bool:
        return self.served == (1 << ((len(self.data) + BLOCK - 1) // BLOCK)) - 1


class Reader:
    """One lower mount: serves one request at a time, because Borg would decode a chunk again for each of several."""

    def __init__(self, mount: str) -> None:
        self.mount = mount
        self.files = FileTable(OPEN_FILES)
        self.demands: collections.deque[Any] = collections.deque()
        self.plans: collections.deque[Any] = collections.deque()
        self.wake = trio.Event()
        self.busy = self.dead = self.reserved = False
        self.calls = 0  # requests for names and attributes under way
        self.born = -math.inf  # when this mount came in the place of another one
        self.owes_plan = False
        # The mount's root is held: by its path a mount that is gone would look like an empty directory.
        self.root = os.open(mount, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        self.device = os.fstat(self.root).st_dev
        self.retired: tuple[FileTable, int] | None = None

    def path(self, path: bytes) -> bytes:
        """A path of the lower as system calls take it."""
        return b"/proc/self/fd/%d/%s" % (self.root, path)

    def next(self) -> Fetch:
        """What is not planned first; but where somebody waits for a plan, plans have every second turn."""
        is_awaited = self.owes_plan and any(plan.is_awaited for plan in self.plans)
        fetch: Fetch = self.plans.popleft() if is_awaited or not self.demands else self.demands.popleft()
        self.owes_plan = not is_awaited
        return fetch

    @property
    def load(self) -> int:
        return len(self.demands) + self.busy

    def died(self, error: OSError, born: float) -> bool:
        """Whether the error says that the server of this mount, or its predecessor, has died, which is remembered."""
        if error.errno not in DEAD:
            return False
        if not self.dead and self.born == born:
            self.dead = True
            log.warning("the lower mount %s is gone: %s", self.mount, error.strerror)
        return True

    def successor(self) -> tuple[int, int] | None:
        """Root and device of what is mounted now where the dead mount was, or None. Runs in a worker thread."""
        try:
            root = os.open(self.mount, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            device = os.fstat(root).st_dev
            if device not in (self.device, os.stat(os.path.dirname(self.mount)).st_dev):
                return root, device
        except OSError:
            pass
        os.close(root)
        return None

    def revive(self, root: int, device: int) -> None:
        """Go on with a successor. What the dead mount was read through stays open until there is another one: a worker
        thread may be using it, and its descriptors' numbers must not come to mean other files."""
        if self.retired is not None:
            self.retired[0].clear()
            os.close(self.retired[1])
        self.retired = self.files, self.root
        self.files, self.root, self.device = FileTable(OPEN_FILES), root, device
        self.dead, self.born = False, monotonic()
        log.info("the lower mount %s is back", self.mount)

    def call(self, function: Callable[..., Any], path: bytes, *names: bytes) -> Any:
        """Runs in a worker thread, beside others."""
        with self._told_apart():
            return function(self.path(path), *names)

    def fetch(self, path: bytes, index: int) -> bytes:
        """Runs in a worker thread, one at a time."""
        with self._told_apart():
            return self._fetched(path, index)

    @contextlib.contextmanager
    def _told_apart(self) -> Iterator[None]:
        """Of a mount that is dead all errors are those of a dead one."""
        try:
            yield
        except OSError as error:
            if error.errno == errno.EIO:
                os.statvfs(self.path(b""))
            raise

    def _fetched(self, path: bytes, index: int) -> bytes:
        try:
            # Direct: what is fetched is kept here, so a second copy in the page cache of the lower mount is waste.
            return self._fetch(path, index, os.O_DIRECT)
        except OSError as error:
            if error.errno != errno.EINVAL:  # FUSE reads directly into any buffer; others want it aligned, or cannot.
                raise
        self.files.close(path)
        return self._fetch(path, index, 0)

    def _fetch(self, path: bytes, index: int, flags: int) -> bytes:
        files, name = self.files, self.path(path)  # taken together: they change when the mount is replaced

        def opened() -> int:
            return os.open(name, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | flags)

        return os.pread(files.get(path, opened), WINDOW, index * WINDOW)


def monotonic() -> float:
    """The monotonic clock. Tests set it forward as in _host/clock.py, which this program does not have."""
    ahead = 0.0
    if os.environ.get("INSTANT_RECOVERY_CLOCK"):
        with open(os.environ["INSTANT_RECOVERY_CLOCK"]) as file:
            ahead = float(file.read(32))
    return time.monotonic() + ahead


async def _in_thread(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call it in a worker thread, which is left to itself if it hangs when the end has come."""
    return await trio.to_thread.run_sync(functools.partial(function, *arguments), **_abandon())


@functools.lru_cache(maxsize=1)
def _abandon() -> dict[str, bool]:
    parameters = inspect.signature(trio.to_thread.run_sync).parameters
    return {"abandon_on_cancel" if "abandon_on_cancel" in parameters else "cancellable": True}  # the older: trio < 0.23


class Lower:
    """The lower directory, seen through one or several identical mounts.

    Borg ends when content is missing, damaged, or not where it was (after C(borg compact), where a new Borg finds it).
    So a piece of the lower over which a mount has died is asked for once more, of a mount that was made after that, and
    alone. Should that die as well, the piece is lost: it gives an error from then on, and the rest is served.
    """

    def __init__(self, mounts: list[str], cache: Cache, bell: str | None = None) -> None:
        self.readers = [Reader(mount) for mount in mounts]
        self.bell = bell
        self.cache = cache
        self.counters = cache.counters
        self.run = READ_AHEAD // len(mounts)
        self.hot: collections.OrderedDict[tuple[int, int], Window] = collections.OrderedDict()
        self.hot_bytes = 0
        self.awaited: dict[tuple[int, int], Fetch] = {}
        self.died = trio.Event()
        self.died_at = -math.inf
        self.none_since = math.inf  # when the last of the mounts has died
        self.suspects: dict[Piece, float] = {}  # what mounts died over, perhaps, and when
        self.lost: set[Piece] = set()
        self.on_trial, self.trials = trio.open_memory_channel(math.inf)

    async def call(self, function: Callable[..., Any], path: bytes, *names: bytes) -> Any:
        """A system call on a path of the lower, in a worker thread; a mount that lives answers."""
        piece = (path, function.__name__, names)
        self.check(piece)
        for _attempt in range(ATTEMPTS):
            if piece in self.suspects:
                trial = Request(piece, lambda reader: reader.call(function, path, *names))
                self.on_trial.send_nowait(trial)
                return await trial.result()
            reader = await self._free_one()
            if reader is None:
                break
            born = reader.born
            reader.calls += 1
            try:
                return await _in_thread(reader.call, function, path, *names)
            except OSError as error:
                self.judge(reader, born, error, piece)
            finally:
                reader.calls -= 1
        raise LowerError(errno.EIO, "no lower mount is left")

    async def _free_one(self) -> Reader | None:
        """A mount that no request needs alone, or None when none lives any more."""
        while await self.some_alive():
            free = [reader for reader in self.alive() if not reader.reserved]
            if free:
                return free[0]
            await trio.sleep(TURN_LOOK)
        return None

    def check(self, piece: Piece) -> None:
        """Refuse what is lost."""
        if piece in self.lost or len(self.lost) >= MOST_LOST:
            raise LostError

    def judge(self, reader: Reader, born: float, error: OSError, piece: Piece, alone: bool = False) -> None:
        """What an error of a mount means. Returns where the request is to be made anew, and raises where not."""
        if not reader.died(error, born):
            self.suspects.pop(piece, None)
            raise LostError if error.errno == errno.EIO else LowerError(error.errno, error.strerror)
        self.died.set()
        self.died_at = monotonic()
        if error.errno != errno.ECONNABORTED:  # it had died before
            return
        self._forget_plans(piece[0])
        if alone:
            self.suspects.pop(piece, None)
            self.lost.add(piece)
            raise LostError
        if len(self.suspects) < MOST_LOST:
            self.suspects.setdefault(piece, self.died_at)

    def _forget_plans(self, path: bytes) -> None:
        """Do not read ahead in a file over which a mount may have died: the next windows may be of the same chunk."""
        for reader in self.readers:
            dropped = [fetch for fetch in reader.plans if fetch.content.lower == path and not fetch.is_awaited]
            for fetch in dropped:
                reader.plans.remove(fetch)
                del self.awaited[fetch.key]

    async def try_suspects(self) -> None:
        """One after the other, each alone with a mount."""
        async for request in self.trials:
            try:
                self.check(request.piece)
                request.value = await self._try(request)
            except OSError as error:
                request.error = error
            self._settle(request)

    async def _try(self, request: Request) -> Any:
        for _attempt in range(ATTEMPTS):
            reader = await self._reserve(self.suspects.get(request.piece, -math.inf))
            if reader is None:
                break
            born = reader.born
            try:
                value = await _in_thread(request.make, reader)
                self.suspects.pop(request.piece, None)
                return value
            except OSError as error:
                self.judge(reader, born, error, request.piece, alone=True)
            finally:
                self._release(reader)
        raise LowerError(errno.EIO, "its mount has ended, and none has come in its place")

    async def _reserve(self, since: float) -> Reader | None:
        """A mount that was made after that time, for one request alone; None where none comes.

        Where nobody makes new ones, one that is left.
        """
        while await self.some_alive():
            fresh = [reader for reader in self.alive() if reader.born > since or not self._is_attended()]
            if fresh:
                reader = min(fresh, key=lambda one: one.load)
                reader.reserved = True
                while reader.busy or reader.calls:
                    await trio.sleep(TURN_LOOK)
                if not reader.dead:
                    return reader
                self._release(reader)
            elif monotonic() > max(since, self.died_at) + REVIVAL and not self._is_being_mounted():
                break
            await trio.sleep(REVIVAL_LOOK)
        return None

    def _release(self, reader: Reader) -> None:
        reader.reserved = False
        reader.wake.set()

    async def some_alive(self) -> bool:
        """Whether a mount lives, or has come back in time."""
        while not self.alive():
            if self.none_since == math.inf:
                self.none_since = monotonic()
                self._ring()
            is_over = monotonic() > self.none_since + REVIVAL and not self._is_being_mounted()
            if is_over or (self.bell is not None and not os.path.lexists(self.bell)):
                return False
            await trio.sleep(REVIVAL_LOOK)
        return True

    def _is_attended(self) -> bool:
        """Whether somebody makes a new mount when one has ended."""
        try:
            self._bell().close()
        except OSError:
            return False
        return True

    def _ring(self) -> None:
        """Tell the session's keeper, who ends mounts that are not read for long, that one is needed."""
        with contextlib.suppress(OSError), self._bell() as bell:  # where nobody listens, nobody comes
            bell.write(b"!")

    def _is_being_mounted(self) -> bool:
        try:
            with self._bell() as bell:
                fcntl.flock(bell, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:
            pass
        return False

    def _bell(self) -> Any:
        flags = os.O_WRONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC
        return os.fdopen(os.open(self.bell or "", flags), "wb", buffering=0)

    async def revive(self) -> None:
        """Take dead mounts into use again when they are back."""
        while True:
            await self.died.wait()
            self.died = trio.Event()
            while any(reader.dead for reader in self.readers):
                for reader in self.readers:
                    found = await _in_thread(reader.successor) if reader.dead else None
                    if found is not None:
                        reader.revive(*found)
                        self.none_since = math.inf
                await trio.sleep(REVIVAL_LOOK)

    def alive(self) -> list[Reader]:
        return [reader for reader in self.readers if not reader.dead]

    async def read(self, content: Content, index: int, start: int, stop: int) -> Any:
        key = (content.ino, index)
        window = self.hot.get(key)
        if window is None:
            cached = self.cache.read(key, start, stop)
            if cached is not None:
                return cached
            if content.was_served(index):  # The kernel has dropped what it had: read-ahead begins anew.
                content.served = None
            self.check((content.lower, index))
            fetch = self.awaited.get(key) or self._queue(content, index)
            window = await fetch.result()
        piece = window.cut(start, stop)
        if len(piece) != stop - start:
            raise LowerError(errno.EIO, "the archive's file is shorter than its recorded size")
        if window.used_up:  # The kernel has all of it in its page cache.
            if key in self.hot:
                self._cool(key)
            content.note_served(index)
        return piece

    def prefetch(self, content: Content, first: int, last: int) -> None:
        for index in range(first, last + 1):
            piece = (content.lower, index)
            # What several scans plan together has to find room, too; and ahead of what somebody asks for no mount dies.
            if len(self.awaited) >= READ_AHEAD or piece in self.suspects or piece in self.lost:
                break
            if not self.knows(content, index):
                self._queue(content, index, demand=False)

    def knows(self, content: Content, index: int) -> bool:
        """Whether a window is here or on its way, or the kernel has had it."""
        key = (content.ino, index)
        return key in self.hot or key in self.awaited or key in self.cache or content.was_served(index)

    def forget(self, ino: int) -> None:
        """A file is gone: its windows in memory are of no use (those on disk age out)."""
        for key in [key for key in self.hot if key[0] == ino]:
            self._cool(key)

    def _queue(self, content: Content, index: int, demand: bool = True) -> Fetch:
        fetch = Fetch(content, index)
        self.awaited[fetch.key] = fetch
        self._assign(fetch, demand)
        return fetch

    def _assign(self, fetch: Fetch, demand: bool) -> None:
        if fetch.piece in self.suspects:
            fetch.reader = None
            self.on_trial.send_nowait(fetch)
            return
        alive = self.alive() or self.readers  # When none lives, the dead one's error is the answer.
        fetch.reader = alive[(fetch.content.ino + fetch.index // self.run) % len(alive)]
        if demand:
            fetch.reader = min(alive, key=lambda one: (one.load, one is not fetch.reader))
        (fetch.reader.demands if demand else fetch.reader.plans).append(fetch)
        fetch.reader.wake.set()

    async def serve(self, reader: Reader) -> None:
        """The loop of one reader: what somebody waits for first, then what is planned."""
        while True:
            while reader.reserved or not (reader.demands or reader.plans):
                reader.wake = trio.Event()
                await reader.wake.wait()
            fetch = reader.next()
            born, reader.busy = reader.born, True
            try:
                fetch.value = await _in_thread(fetch.make, reader)
            except OSError as error:
                fetch.error = error
            finally:
                reader.busy = False
            if fetch.error is None or not await self._is_made_anew(fetch, reader, born, fetch.error):
                self._settle(fetch)

    async def _is_made_anew(self, fetch: Fetch, reader: Reader, born: float, error: OSError) -> bool:
        """What becomes of a fetch that has failed; its error is what to tell where this is the end of it."""
        fetch.error = LowerError(errno.EIO, "no lower mount is left")
        fetch.attempts += 1
        try:
            self.judge(reader, born, error, fetch.piece)
        except OSError as final:
            fetch.error = final
            return False
        if fetch.piece in self.suspects:
            is_to_be = fetch.is_awaited
        else:
            is_to_be = fetch.attempts < ATTEMPTS and await self.some_alive()
        if is_to_be:
            fetch.error = None
            self._assign(fetch, demand=True)
        return is_to_be

    def _settle(self, request: Request) -> None:
        if isinstance(request, Fetch):
            if request.error is None:
                request.value = Window(request.value)
                self.counters.add(fetched_bytes=len(request.value.data))
                self._keep(request.key, request.value)
            del self.awaited[request.key]
        request.done.set()

    async def rest(self) -> None:
        """Give memory back after a while without fetches: a session is idle most of its life."""
        before, trim = -1, getattr(ctypes.CDLL(None), "malloc_trim", None)  # musl has none
        while True:
            await trio.sleep(REST)
            fetched = self.counters.get("fetched_bytes")
            if fetched == before and self.hot:
                for key in list(self.hot):
                    self.cache.write(key, self._cool(key).data)
                if trim:
                    trim(0)
            before = fetched

    def _keep(self, key: tuple[int, int], window: Window) -> None:
        self.hot[key] = window
        self.hot_bytes += len(window.data)
        while self.hot_bytes > HOT_BYTES or len(self.hot) > MOST_HOT:
            old = next(iter(self.hot))
            self.cache.write(old, self._cool(old).data)

    def _cool(self, key: tuple[int, int]) -> Window:
        """Take a window out of memory."""
        window = self.hot.pop(key)
        self.hot_bytes -= len(window.data)
        return window


#: What of the lower a request is for: a path, and either a window or the name of a system call and its other arguments.
Piece = tuple[Any, ...]


class Request:
    """Something to be asked of a lower mount: by make(), which runs in a worker thread."""

    __slots__ = ("piece", "make", "done", "value", "error")

    def __init__(self, piece: Piece, make: Callable[[Reader], Any]) -> None:
        self.piece, self.make = piece, make
        self.done = trio.Event()
        self.value: Any = None
        self.error: OSError | None = None

    async def result(self) -> Any:
        await self.done.wait()
        if self.error is not None:
            raise self.error.with_traceback(None)  # there may be several who wait
        return self.value


class Fetch(Request):
    """A window on its way."""

    __slots__ = ("content", "index", "key", "reader", "is_awaited", "attempts")

    def __init__(self, content: Content, index: int) -> None:
        path = content.lower or b""
        super().__init__((path, index), lambda reader: reader.fetch(path, index))
        self.content, self.index = content, index
        self.key = (content.ino, index)
        self.reader: Any = None
        self.is_awaited = False
        self.attempts = 0

    async def result(self) -> Window:
        self.is_awaited = True
        if self.reader is not None and self in itertools.islice(self.reader.plans, PATIENCE, None):
            self.reader.plans.remove(self)
            self.reader.demands.append(self)
        window: Window = await super().result()
        return window


class Cache:
    """Windows on disk, in one file without a name (it is gone when the program is), least recently used out first.

    The file is handed out in pieces: most windows are much smaller than the largest, where most files are small.
    """

    def __init__(self, directory: str, size: int, counters: Counters) -> None:
        self.counters = counters
        self.pieces = size // PIECE
        self.file, path = tempfile.mkstemp(dir=directory)
        os.unlink(path)
        self.used: collections.OrderedDict[tuple[int, int], array.array[int]] = collections.OrderedDict()
        self.free: list[int] = []  # pieces that were used before, the next one last
        self.begun = 0  # pieces that were ever used: the first ones

    def __contains__(self, key: tuple[int, int]) -> bool:
        return key in self.used

    def read(self, key: tuple[int, int], start: int, stop: int) -> bytes | None:
        pieces = self.used.get(key)
        if pieces is None:
            return None
        self.used.move_to_end(key)
        return b"".join(os.pread(self.file, upto - at, place) for at, upto, place in _extents(pieces, start, stop))

    def write(self, key: tuple[int, int], data: bytes) -> None:
        needed = -(-len(data) // PIECE)
        if not 0 < needed <= self.pieces:
            return
        while len(self.free) + self.pieces - self.begun < needed or len(self.used) >= MOST_CACHED:
            self.free += reversed(self.used.popitem(last=False)[1])
        pieces = array.array("I", [self._piece() for _number in range(needed)])
        try:
            for at, upto, place in _extents(pieces, 0, len(data)):
                os.pwrite(self.file, memoryview(data)[at:upto], place)
        except OSError as error:
            self.give_up(str(error.strerror))
            return
        self.used[key] = pieces
        self.counters.set(cache_bytes=self.begun * PIECE)

    def _piece(self) -> int:
        if self.free:
            return self.free.pop()
        self.begun += 1
        return self.begun - 1

    def give_up(self, reason: str) -> None:
        """Free its space: the cache is a convenience, changes need the space more."""
        if self.pieces:
            log.warning("cache given up: %s", reason)
            self.pieces = 0
            self.used.clear()
            self.counters.set(cache_bytes=0)
            os.ftruncate(self.file, 0)


def _extents(pieces: array.array[int], start: int, stop: int) -> Iterator[tuple[int, int, int]]:
    """Where bytes start to stop of a window lie in the cache's file: start and stop of each run, and its place."""
    while start < stop:
        number = last = start // PIECE
        while (last + 1) * PIECE < stop and pieces[last + 1] == pieces[last] + 1:
            last += 1
        upto = min(stop, (last + 1) * PIECE)
        yield start, upto, pieces[number] * PIECE + start % PIECE
        start = upto


class Counters:
    """Numbers for whoever watches, in a file mapped into memory: to tell them costs no system call and no wait."""

    def __init__(self, path: str | None) -> None:
        size = 8 * len(COUNTERS)
        if path is None:
            memory = mmap.mmap(-1, size)
        else:
            file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            os.write(file, bytes(size))  # allocated now: there may be no room later
            memory = mmap.mmap(file, size)
            os.close(file)
        self.values = memoryview(memory).cast("Q")

    def get(self, name: str) -> int:
        return self.values[COUNTERS.index(name)]

    def set(self, **values: int) -> None:
        for name, value in values.items():
            self.values[COUNTERS.index(name)] = value

    def add(self, **amounts: int) -> None:
        for name, amount in amounts.items():
            self.values[COUNTERS.index(name)] += amount


class Failures:
    """What could not be read or written, for whoever watches: a JSON file, replaced as a whole, with a key for a side.

    C(lost): the archive has lost content of these files; C(lower), C(upper): one of those that could not be read or
    written for any other reason. Of each its path, the offset (null for names and attributes), and the reason.
    """

    def __init__(self, path: str | None) -> None:
        self.path = path
        if path is not None:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)  # of a layer that was here before a reset
        self.number = 0
        self.told: dict[str, list[dict[str, Any]]] = {}

    def note(self, side: str, path: str, offset: int | None, reason: str) -> None:
        is_lost = side == LostError.side
        self.number += is_lost
        told = self.told.setdefault(side, [])
        if len(told) < (MOST_TOLD if is_lost else 1):
            told.append({"path": path, "offset": offset, "reason": reason})
        elif not is_lost:
            return
        if self.path is None:
            return
        temporary = f"{self.path}.tmp"
        # A full disk, most likely: the counter tells that something has failed.
        with contextlib.suppress(OSError), open(temporary, "w", opener=_private) as file:
            json.dump({**self.told, "lost_files": self.number}, file)
            file.flush()
            os.rename(temporary, self.path)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)


# ------------------------------------------------------------------------------------------------------- program


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s cowfs %(levelname)s %(message)s", stream=sys.stderr)
    with open("/proc/self/comm", "w") as comm:
        comm.write("cowfs")
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    limit_memory()
    save_memory()
    lower = Lower(options.lower, Cache(options.upper, options.cache_size, Counters(options.counters)), options.bell)
    filesystem = CowFs(lower, options.upper, options.owner, Failures(options.failures), options.reserve)
    mount_options = set(pyfuse3.default_options) | {f"fsname={options.lower[0]}", "subtype=cowfs", "nodev", "nosuid"}
    if options.allow_other:
        mount_options.add("allow_other")
    # Held back until somebody listens to them: between mounting and that they would leave a dead mount.
    signal.pthread_sigmask(signal.SIG_BLOCK, END_SIGNALS)
    pyfuse3.init(filesystem, options.mountpoint, mount_options)
    log.info("%s on %s, changes in %s", ", ".join(options.lower), options.mountpoint, options.upper)
    try:
        trio.run(serve, filesystem)
    finally:
        pyfuse3.close(unmount=True)
    log.info("unmounted")
    return 0


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="cowfs", description="Present a read-only directory read-write.")
    add = parser.add_argument
    add("--lower", action="append", required=True, help="read-only directory; again for identical mounts of it")
    add("--upper", required=True, help="existing directory for changed blocks")
    add("--cache-size", type=int, default=1 << 30, help="bytes of fetched windows kept on disk")
    add("--owner", type=lambda text: tuple(map(int, text.split(":"))), help="UID:GID to present everything as")
    add(
        "--reserve",
        type=int,
        default=0,
        help="bytes of the upper's file system to leave free, beyond what safety needs",
    )
    add("--allow-other", action="store_true", help="let other users than this one in")
    add("--counters", help="file to keep counters in")
    add("--failures", help="file to tell in what could not be read or written")
    add("--bell", help="named pipe that gets a byte when all lower mounts are gone and one is needed")
    add("mountpoint")
    return parser.parse_args(arguments)


def limit_memory() -> None:
    """What writers make without end, names above all, ends the layer and with it the session, and nothing else."""
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
        for reader in filesystem.lower.readers:
            nursery.start_soon(filesystem.lower.serve, reader)
        nursery.start_soon(filesystem.lower.rest)
        nursery.start_soon(filesystem.lower.revive)
        nursery.start_soon(filesystem.lower.try_suspects)
        nursery.start_soon(end_on_signal, filesystem.space, nursery.cancel_scope)
        await pyfuse3.main()
        nursery.cancel_scope.cancel()


async def end_on_signal(space: Space, scope: Any) -> None:
    with trio.open_signal_receiver(*END_SIGNALS) as signals:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, END_SIGNALS)
        async for number in signals:
            log.info("%s: ending", signal.Signals(number).name)
            space.ending = True
            pyfuse3.terminate()
            scope.deadline = trio.current_time() + GRACE


if __name__ == "__main__":
    raise SystemExit(main())
