# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Opening and replacing files where somebody else may have put something in their place.

A pipe would make whoever opens it wait for its other end, a link would lead to another file. So neither is opened.
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "HeldDirectory",
    "is_directory",
    "is_file",
    "names_in",
    "open_below",
    "open_inside",
    "open_regular",
    "place_inside",
    "read_beginning",
    "read_end",
    "replace_file",
]

TEMPORARY = ".tmp"  # appended to the name of a file that is being replaced


def open_regular(path: str, flags: int, mode: int = 0o600, *, dir_fd: int | None = None) -> int:
    """A descriptor of the regular file at path, as os.open gives it; it never waits and follows no link.

    Raises OSError, also for anything that is no regular file. Directories above may be links.
    """
    try:
        descriptor = os.open(path, flags | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC, mode, dir_fd=dir_fd)
    except OSError as error:
        # A link; a pipe without a reader, or a socket.
        if error.errno in (errno.ELOOP, errno.ENXIO):
            raise _not_regular(path) from None
        raise
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return descriptor
    os.close(descriptor)
    raise _not_regular(path)


def open_inside(path: str, flags: int) -> int:
    """A descriptor of an absolute path on which no part is a link. Raises OSError, ELOOP or ENOTDIR for a link.

    So nothing that the archive has put there can lead to a file of this host.
    """
    top = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return open_below(top, path, flags)
    finally:
        os.close(top)


def open_below(directory: int, path: str, flags: int) -> int:
    """A descriptor of a path below an open directory, on which no part is a link; empty, the directory itself.

    Raises OSError, ELOOP or ENOTDIR for a link.
    """
    *parents, name = [part for part in path.split("/") if part] or ["."]
    held = directory
    try:
        for part in parents:
            below = os.open(part, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=held)
            if held != directory:
                os.close(held)
            held = below
        return os.open(name, flags | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=held)
    finally:
        if held != directory:
            os.close(held)


def is_directory(path: str) -> bool:
    """Whether there is a directory at an absolute path on which no part is a link. Nothing is opened."""
    return stat.S_ISDIR(_mode(path))


def is_file(path: str) -> bool:
    """Whether there is a regular file at an absolute path on which no part is a link. Nothing is opened."""
    return stat.S_ISREG(_mode(path))


def names_in(path: str) -> list[str]:
    """What is in the directory at such a path, in order; nothing where there is none."""
    try:
        directory = open_inside(path, os.O_RDONLY | os.O_DIRECTORY)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        if error.errno == errno.ELOOP:
            return []
        raise
    try:
        return sorted(os.listdir(directory))
    finally:
        os.close(directory)


def _mode(path: str) -> int:
    try:
        descriptor = open_inside(path, os.O_PATH)
    except OSError:
        return 0
    try:
        return os.fstat(descriptor).st_mode
    finally:
        os.close(descriptor)


@contextmanager
def place_inside(path: str) -> Iterator[str]:
    """Another name of an absolute path, by whose directory no link leads: as open_inside, for calls that take a path.

    The last part may be a link, which calls that follow none see as what it is. Raises OSError.
    """
    directory, name = os.path.split(path)
    held = open_inside(directory, os.O_PATH | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{held}/{name}"
    finally:
        os.close(held)


class HeldDirectory:
    """A directory that is held open: whoever puts another one or a link in its place later changes nothing.

    What is asked for in it is found without following a link, and is in it.

    Raises OSError for one that is not there, or on whose path (absolute) there is a link.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._descriptor = open_inside(path, os.O_RDONLY | os.O_DIRECTORY)

    def __del__(self) -> None:
        with suppress(AttributeError, OSError):
            os.close(self._descriptor)

    def listed(self, name: str = ".") -> tuple[list[str], list[str]]:
        """Names of files and of directories in it, or in a directory of it; no links. Raises OSError."""
        directory = self._below(name)
        try:
            with os.scandir(directory) as entries:
                found = [
                    (entry.name, entry.is_dir(follow_symlinks=False), entry.is_file(follow_symlinks=False))
                    for entry in entries
                ]
        finally:
            os.close(directory)
        return (
            [name for name, _is_directory, is_file in found if is_file],
            [name for name, is_directory, _is_file in found if is_directory],
        )

    def open(self, name: str) -> int:
        """A descriptor, for reading, of a regular file in it, or in a directory of it. Raises OSError."""
        above, name = os.path.split(name)
        directory = self._below(above or ".")
        try:
            return open_regular(name, os.O_RDONLY, dir_fd=directory)
        finally:
            os.close(directory)

    def _below(self, name: str) -> int:
        if ".." in name.split("/"):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name)
        return open_below(self._descriptor, name, os.O_RDONLY | os.O_DIRECTORY)


def read_beginning(path: str, limit: int, *, offset: int = 0) -> bytes:
    """The first limit bytes of a regular file, or those from offset on. Raises OSError."""
    with open(open_regular(path, os.O_RDONLY), "rb") as file:
        file.seek(offset)
        return file.read(limit)


def read_end(path: str, limit: int) -> bytes:
    """The last limit bytes of a regular file, such as a log that goes on growing. Raises OSError."""
    with open(open_regular(path, os.O_RDONLY), "rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - limit))
        return file.read(limit)


def replace_file(path: str, data: bytes, mode: int = 0o600, *, durable: bool = False, unique: bool = False) -> None:
    """Replace a file as a whole: whoever reads it sees the old one or the new one. Raises OSError.

    durable: also after a power cut. unique: several processes may do so at once; without it what one that was killed
    has left is always called path.tmp, and goes with the next call.
    """
    temporary = f"{path}.{os.urandom(4).hex()}{TEMPORARY}" if unique else f"{path}{TEMPORARY}"
    with suppress(FileNotFoundError):
        os.unlink(temporary)
    # A new file: one that is there already may have another name, and be somebody else's.
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
    try:
        with open(descriptor, "wb") as file:
            os.fchmod(file.fileno(), mode)  # whatever the umask is
            file.write(data)
            file.flush()
            if durable:
                os.fsync(file.fileno())
        os.rename(temporary, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise
    if durable:
        _sync_directory(os.path.dirname(path) or ".")


def _sync_directory(path: str) -> None:
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _not_regular(path: str) -> OSError:
    return OSError(errno.EINVAL, "not a regular file", path)
