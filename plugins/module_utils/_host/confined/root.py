# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Namespaces and a root directory of its own, for the program that `_host/sandbox.py` runs.

Sources of the numbers: linux/sched.h, linux/mount.h.
"""

from __future__ import annotations

import _socket  # not socket, whose import takes longer than all that is done here
import ctypes
import fcntl
import os
import stat
import struct
from contextlib import suppress

from .kernel import checked, libc
from .specification import CONFIGURATION, DEVICES, RESOLVER, SYSTEM, Specification

__all__ = ["enter_namespaces", "make_root"]

_SMALL = "size=16m,mode=0755"  # the new root holds mount points and small files
_DIRECTORY = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_LARGEST = 1 << 20  # bytes of one of these
_PRIVATE = "size=1m,nr_inodes=64,mode=0700"  # a server has a socket and a file beside it there

_CLONE_NEWNS, _CLONE_NEWIPC, _CLONE_NEWUSER = 0x00020000, 0x08000000, 0x10000000
_CLONE_NEWPID, _CLONE_NEWNET = 0x20000000, 0x40000000
_MS_RDONLY, _MS_NOSUID, _MS_NODEV, _MS_NOEXEC, _MS_REMOUNT = 1, 2, 4, 8, 32
_MS_NOATIME, _MS_NODIRATIME, _MS_BIND, _MS_REC, _MS_PRIVATE, _MS_RELATIME = 1024, 2048, 4096, 16384, 1 << 18, 1 << 21
_MNT_DETACH = 2
_OPTIONS = {
    "ro": _MS_RDONLY,
    "nosuid": _MS_NOSUID,
    "nodev": _MS_NODEV,
    "noexec": _MS_NOEXEC,
    "noatime": _MS_NOATIME,
    "nodiratime": _MS_NODIRATIME,
    "relatime": _MS_RELATIME,
}
# linux/sockios.h, linux/if.h
_SIOCSIFFLAGS, _IFF_UP = 0x8914, 1


def enter_namespaces(spec: Specification) -> None:
    """Mounts, System V objects, processes and a network of its own, unless it is to call others.

    An ordinary user gets them through a namespace of users, in which there is that user and nobody else.
    """
    flags = _CLONE_NEWNS | _CLONE_NEWIPC | _CLONE_NEWPID | (0 if spec.network == "host" else _CLONE_NEWNET)
    uid, gid = os.geteuid(), os.getegid()
    if uid == 0:
        checked(libc.unshare(flags), "namespaces")
    else:
        checked(libc.unshare(flags | _CLONE_NEWUSER), "namespaces")
        for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
            with open(f"/proc/self/{name}", "w", encoding="ascii") as file:
                file.write(text)
    if spec.network == "serve":
        _raise_loopback()


def _raise_loopback() -> None:
    """Switch on the loopback interface of a new network, the only one in it (netdevice(7), struct ifreq)."""
    channel = _socket.socket(_socket.AF_INET, _socket.SOCK_DGRAM)
    try:
        fcntl.ioctl(channel.fileno(), _SIOCSIFFLAGS, struct.pack("=16sh14x", b"lo", _IFF_UP))
    finally:
        channel.close()


class _Source:
    """Something of the host's, to be seen at the same path unless it has another source.

    It is held open, since the new root will hide it.
    """

    def __init__(self, path: str, *, is_writable: bool, is_device: bool = False, source: str = "") -> None:
        self.path, self.is_writable, self.is_device = path, is_writable, is_device
        self.descriptor = _open_directory(source) if source else os.open(path, os.O_PATH | os.O_CLOEXEC)
        self.is_directory = stat.S_ISDIR(os.fstat(self.descriptor).st_mode)


def _open_directory(path: str) -> int:
    """A directory on whose path nothing is a link: what is below a writable tree may have been put there since."""
    held = os.open("/", _DIRECTORY)
    for part in filter(None, path.split("/")):
        below = os.open(part, _DIRECTORY, dir_fd=held)
        os.close(held)
        held = below
    return held


class _Copy:
    """A small file of /etc. Bound it would be the host's own, but cannot be while somebody replaces that (ENOENT)."""

    def __init__(self, content: bytes, mode: int = 0o644, uid: int = 0, gid: int = 0) -> None:
        self.content, self.mode, self.uid, self.gid = content, mode, uid, gid

    @classmethod
    def of(cls, path: str) -> _Copy:
        with open(path, "rb") as file:
            state = os.fstat(file.fileno())
            return cls(file.read(_LARGEST), stat.S_IMODE(state.st_mode), state.st_uid, state.st_gid)


class _Root:
    """The new root directory while it is made: a small file system in memory, on which other trees are bound.

    In those nothing is made, and no link of theirs is followed: they may be the archive's.
    """

    def __init__(self, top: str) -> None:
        _mount("tmpfs", top, "tmpfs", _MS_NOSUID | _MS_NODEV, _SMALL)
        self._top = os.open(top, _DIRECTORY)
        self._device = os.fstat(self._top).st_dev

    def directory(self, path: str) -> int:
        """A descriptor of a directory, which is made where it is missing."""
        held = os.dup(self._top)
        for part in filter(None, path.split("/")):
            try:
                below = os.open(part, _DIRECTORY, dir_fd=held)
            except FileNotFoundError:
                os.mkdir(part, 0o755, dir_fd=self._own(held))
                below = os.open(part, _DIRECTORY, dir_fd=held)
            os.close(held)
            held = below
        return held

    def bind(self, source: _Source) -> None:
        """Show something of the host's."""
        if source.is_directory:
            place = self.directory(source.path)
        else:
            above, name = os.path.split(source.path)
            directory, flags = self.directory(above), os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
            try:
                place = os.open(name, flags, dir_fd=directory)
            except FileNotFoundError:
                self.write(source.path, _Copy(b"", 0o600))
                place = os.open(name, flags, dir_fd=directory)
        _mount(f"/proc/self/fd/{source.descriptor}", f"/proc/self/fd/{place}", None, _MS_BIND | _MS_REC)
        os.close(place)

    def mount(self, path: str, kind: str, flags: int, data: str | None = None) -> None:
        """Mount a file system of its own."""
        place = self.directory(path)
        _mount(kind, f"/proc/self/fd/{place}", kind, _MS_NOSUID | _MS_NODEV | _MS_NOEXEC | flags, data)
        os.close(place)

    def write(self, path: str, copy: _Copy) -> None:
        """Make a file."""
        above, name = os.path.split(path)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with open(os.open(name, flags, 0o600, dir_fd=self._own(self.directory(above))), "wb") as file:
            file.write(copy.content)
            with suppress(OSError):  # only root may, and not to an owner whom the namespace does not know
                os.fchown(file.fileno(), copy.uid, copy.gid)
            os.fchmod(file.fileno(), copy.mode)

    def link(self, path: str, target: str) -> None:
        """Make a link, unless something of that name is there already."""
        above, name = os.path.split(path)
        with suppress(FileExistsError):
            os.symlink(target, name, dir_fd=self._own(self.directory(above)))

    def _own(self, directory: int) -> int:
        """The descriptor, unless it is of a tree that was bound. Raises OSError."""
        if os.fstat(directory).st_dev != self._device:
            raise PermissionError(f"nothing is made in {os.readlink(f'/proc/self/fd/{directory}')}")
        return directory


def make_root(spec: Specification) -> None:
    """Put a root directory that holds what the specification names, and nothing else, in place of the host's."""
    _mount(None, "/", None, _MS_REC | _MS_PRIVATE)
    links, files, sources = _collect(spec)
    files.update(_account_files(spec))
    top = spec.staging
    root = _Root(top)
    for source in sources:
        root.bind(source)
    for path, target in {**links, **{f"/dev/{name}": f"/proc/self/fd{at}" for name, at in _STANDARD.items()}}.items():
        root.link(path, target)
    for path, copy in files.items():
        root.write(path, copy)
    for path in spec.private:
        root.mount(path, "tmpfs", 0, f"{_PRIVATE},uid={spec.uid},gid={spec.gid}")
    _harden(top, sources, spec.private)
    with suppress(OSError):  # a container's /proc may be covered in part: then there is none, which servers can do with
        # Read-only: what is set for a process there, such as whom the kernel ends first, is not its own to take back.
        root.mount("/proc", "proc", _MS_RDONLY)
    os.chdir(top)
    checked(libc.pivot_root(b".", b"."), "pivot_root")
    checked(libc.umount2(b".", _MNT_DETACH), "umount")
    os.chdir("/")
    for source in sources:
        os.close(source.descriptor)
    _mount(None, "/", None, _MS_BIND | _MS_REMOUNT | _MS_RDONLY | _MS_NOSUID | _MS_NODEV)


_STANDARD = {"fd": "", "stdin": "/0", "stdout": "/1", "stderr": "/2"}


def _collect(spec: Specification) -> tuple[dict[str, str], dict[str, _Copy], list[_Source]]:
    """Links and copies to be made, by their path, and what is to be bound, outer trees first.

    What is not there is left out, and what of /etc cannot be read.
    """
    links: dict[str, str] = {}
    files: dict[str, _Copy] = {}
    sources: list[_Source] = []
    configuration = (*CONFIGURATION, *(RESOLVER if spec.network == "host" else ()))
    own = ("/etc/passwd", "/etc/group") if spec.account else ()
    readable = [path for path in (*SYSTEM, *configuration, *spec.readable) if path not in own]
    for path in readable:
        target = os.path.realpath(path)
        if os.path.islink(path) and any(_is_below(target, tree) for tree in SYSTEM):
            links[path] = os.readlink(path)
        elif path in configuration and os.path.isfile(path):
            with suppress(OSError):
                files[path] = _Copy.of(path)
        elif os.path.exists(path) and not any(_is_below(path, done.path) for done in sources):
            sources.append(_Source(path, is_writable=False))
    sources += [_Source(path, is_writable=True, is_device=True) for path in DEVICES if os.path.exists(path)]
    sources += [_Source(path, is_writable=True) for path in spec.writable if os.path.lexists(path)]
    sources += [_Source(path, is_writable=True, source=source) for path, source in spec.aliases]
    return links, files, sorted(sources, key=lambda source: source.path.count("/"))


def _is_below(path: str, directory: str) -> bool:
    return path == directory or path.startswith(directory.rstrip("/") + "/")


def _account_files(spec: Specification) -> dict[str, _Copy]:
    """/etc/passwd and /etc/group with an entry for a user whom the host does not know; some programs insist on one."""
    if not spec.account:
        return {}
    files = {}
    entries = {
        "/etc/passwd": f"{spec.account}:x:{spec.uid}:{spec.gid}::/:/usr/sbin/nologin\n",
        "/etc/group": f"{spec.account}:x:{spec.gid}:\n",
    }
    for path, entry in entries.items():
        try:
            with open(path, "rb") as file:
                files[path] = _Copy(file.read(_LARGEST).rstrip(b"\n") + b"\n" + entry.encode())
        except OSError:
            files[path] = _Copy(entry.encode())
    return files


def _harden(top: str, sources: list[_Source], private: list[str]) -> None:
    """Make every mount below the new root nosuid, nodev but for devices, and read-only unless it is to be written.

    Mount by mount: the kernel has a call that does it for a whole tree since 5.12 only.
    """
    devices = {top + source.path for source in sources if source.is_device}
    writable = [top + path for path in (*private, *(source.path for source in sources if source.is_writable))]
    for place, options in _mounts_of_root(top):
        flags = _MS_BIND | _MS_REMOUNT | _MS_NOSUID
        for option in options.split(","):
            flags |= _OPTIONS.get(option, 0)
        flags |= 0 if place in devices else _MS_NODEV
        flags |= 0 if any(_is_below(place, tree) for tree in writable) else _MS_RDONLY
        _mount(None, place, None, flags)


def _mounts_of_root(top: str) -> list[tuple[str, str]]:
    """Mount points below the new root and their options. The host's own mounts may hide behind it (proc(5))."""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape", newline="\n") as file:
        mounts = [line.split(" ") for line in file]
    inside = {[fields[0] for fields in mounts if _unescaped(fields[4]) == top][-1]}
    found = []
    for fields in mounts:  # parents come first
        if fields[1] in inside:
            inside.add(fields[0])
            found.append((_unescaped(fields[4]), fields[5]))
    return found


def _unescaped(text: str) -> str:
    """A path of mountinfo, which has blanks and the like in octal (proc(5))."""
    for code in ("040", "011", "012", "134"):
        text = text.replace(f"\\{code}", chr(int(code, 8)))
    return text


def _mount(source: str | None, target: str, kind: str | None, flags: int, data: str | None = None) -> None:
    given = [None if value is None else os.fsencode(value) for value in (source, target, kind, data)]
    result = libc.mount(given[0], given[1], given[2], ctypes.c_ulong(flags), given[3])
    checked(result, f"mount {target}")
