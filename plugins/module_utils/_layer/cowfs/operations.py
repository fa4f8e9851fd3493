# Copyright (c) 2026, phpBorg contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The FUSE operations: names, attributes, open files."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import stat
import time
from collections.abc import Callable
from typing import Any

from ..._borg.names import Attributes
from ..._host.files import open_below
from .content import Content, Upper
from .failures import Failures, LostError, LowerError
from .fuse import pyfuse3
from .lower import Lower
from .names import LowerNames
from .node import KEEP, Node
from .space import Space

__all__ = ["CowFs"]

#: Names of a directory that are looked up in the lower at once while it is listed.
BATCH = 64
#: The longest name, bytes: what the lower's system calls and all programs expect.
NAME_MAX = 255
#: Files, links and directories that can be made: what is known of them is in memory, and a link has up to 4 KB.
MOST_NAMES = 300_000

#: Whose everything is that was not the server's: with its modes it is as closed to it as it was in production.
ROOT = 0

log = logging.getLogger("cowfs")
Base: Any = pyfuse3.Operations if pyfuse3 else object  # an object where this is only packed


class CowFs(Base):  # type: ignore[misc]
    """The file system: pyfuse3's operations over a tree of :class:`Node`."""

    # Without the write-back cache each 8 KiB page that a server writes is a request of its own, and drops what the
    # kernel holds of the file: read-write pgbench falls from 100 % to 35 % of native. Its price is paid by `Space`.
    enable_writeback_cache = True

    def __init__(
        self,
        lower: Lower,
        names: LowerNames,
        upper: Upper,
        space: Space,
        failures: Failures,
        owner: tuple[int, int] | None = None,
        owned: int | None = None,
        always: bytes = b"",
    ) -> None:
        super().__init__()
        self.lower, self.below = lower, names
        self.upper = upper
        self.space = space
        self.failures = failures
        self.owner, self.owned, self.always = owner, owned, always
        self.names_made = self.nodes_made = 0
        self.was_told = False
        self.hard_links: dict[int, Node] = {}
        self.listings: dict[int, tuple[Node, list[bytes]]] = {}
        self.next_listing = 0
        self.next_ino = pyfuse3.ROOT_INODE
        self.nodes: dict[int, Node] = {}
        self.owned_group = self._archived_group()
        root = self._enter_lower(os.stat(lower.mounts.readers[0].mount), b"")
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
            node.target = await self._ask(self.below.target, node.lower or b"")
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
        here, answer = os.statvfs(self.upper.directory), pyfuse3.StatvfsData()
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
            await self.space.leave_the_last()
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

    def _enter(self, mode: int, owner: tuple[int, int], lower: bytes | None = None, size: int = 0) -> Node:
        node = Node(self.next_ino, mode, lower)
        self.next_ino += 1
        node.uid, node.gid = owner
        if stat.S_ISREG(mode):
            node.content = Content(self.upper, self.lower, node.ino, lower, size)
        else:
            node.length = size
        self.nodes[node.ino] = node
        return node

    def _archived_group(self) -> int | None:
        """The group by which the server entered what was not its own: its data directory's, unless that is root's."""
        if self.owned is None:
            return None
        with contextlib.suppress(OSError):
            directory = open_below(self.lower.mounts.readers[0].root, os.fsdecode(self.always), os.O_PATH)
            try:
                return os.fstat(directory).st_gid or None
            finally:
                os.close(directory)
        return None

    def _presented(self, found: os.stat_result | Attributes, path: bytes) -> tuple[int, int]:
        """Whose a file of the lower is to be. What was not the server's in production must not become so here."""
        if self.owner is None:
            return found.st_uid, found.st_gid
        # What Borg has no entry for, as the archive's root, it gives to whoever mounts.
        if self.owned in (None, found.st_uid) or path == self.always:
            return self.owner
        return ROOT, self.owner[1] if found.st_gid == self.owned_group else ROOT

    def _enter_lower(self, found: os.stat_result | Attributes, path: bytes) -> Node:
        node = self._enter(found.st_mode, self._presented(found, path), path, found.st_size)
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
            for name, found in await self._ask(self.below.attributes, parent.lower, names):
                self._adopt(parent, name, found)

    def _adopt(self, parent: Node, name: bytes, found: os.stat_result | Attributes) -> None:
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
        node = self._enter(mode, self.owner or (ctx.uid, ctx.gid), size=len(target or b""))
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
        archived = [] if directory.lower is None else await self._ask(self.below.names, directory.lower)
        known = directory.children
        return [name for name in archived if name not in known] + [name for name in known if known[name] is not None]

    async def _check_empty(self, directory: Node) -> None:
        if not directory.is_directory:
            raise pyfuse3.FUSEError(errno.ENOTDIR)
        if await self._names(directory):
            raise pyfuse3.FUSEError(errno.ENOTEMPTY)

    async def _ask(self, question: Callable[..., Any], path: bytes, *names: list[bytes]) -> Any:
        """What the lower says of a path, or of names in that directory."""
        try:
            return await question(path, *names)
        except OSError as error:
            found = error if isinstance(error, LowerError) else LowerError(*error.args)
            whole = os.path.join(path, *names[0]) if names and len(names[0]) == 1 else path
            raise pyfuse3.FUSEError(self.failures.errno_of(found, whole)) from None

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
        return Reporting(self.failures, node, offset)


class Reporting:
    """Turns an OSError of the upper or lower into the caller's error, logged once with file and offset."""

    __slots__ = ("failures", "node", "offset")

    def __init__(self, failures: Failures, node: Node, offset: int | None) -> None:
        self.failures, self.node, self.offset = failures, node, offset

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if isinstance(error, OSError):
            raise pyfuse3.FUSEError(self.failures.errno_of(error, self._path(error), self.offset)) from None

    def _path(self, error: OSError) -> bytes:
        """The name that a file has; of what is lost, where the archive has it."""
        content = self.node.content
        return content.below.path if isinstance(error, LostError) and content else self.node.path()
