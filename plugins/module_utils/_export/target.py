# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A file that appears under its name when it is whole, and not before.

Until then it has no name at all, where the file system can do that: of whoever is killed in the middle nothing is left.
Where it cannot, as on NFS, it lies aside as C(.NAME.XXXXXXXX.partial), which a kill leaves there.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from contextlib import suppress

from .._errors import shown
from .._host.disk import free_space, in_words
from .interface import ExportError

__all__ = ["Target"]

# What open(2) and the file systems answer that know no files without a name.
WITHOUT = (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL, errno.ENOENT)


class Target:
    """The file at path, which is written anew; option: what it is called by who names it, for sentences.

    is_named: another program is to write it, and needs a name for that, as where there are none without. size and
    digest() are of what was written. A context manager: at its end what was not published is gone.
    """

    def __init__(self, path: str, *, force: bool, option: str, is_named: bool = False) -> None:
        self._is_named = is_named
        self._given = path
        self.path, self._force, self._option = os.path.abspath(path), force, option
        self._directory, self._name = os.path.split(self.path)
        self._aside: str | None = None
        self._file = -1
        self.size, self._hash = 0, hashlib.sha256()

    def check(self, expected: int = 0) -> None:
        """Raise ExportError where it cannot be written, or so many bytes are more than the disk has free."""
        if not os.path.isabs(self._given):
            raise ExportError(f"{self._option} {shown(self._given)} is no absolute path: begin it with a slash.")
        if not os.path.isdir(self._directory):
            raise ExportError(f"{self._option} {shown(self.path)} is in no directory that there is: make it first.")
        with suppress(FileNotFoundError):
            if not stat.S_ISREG(os.lstat(self.path).st_mode):
                raise ExportError(f"{self._option} {shown(self.path)} is no file: name one, with its directory.")
            if not self._force:
                raise self._taken()
        free = free_space(self._directory)[0]
        if expected > free:
            raise ExportError(
                f"The disk of {self._option} {shown(self.path)} has {in_words(free)} free, and what is to be exported "
                f"takes {in_words(expected)} at least: name another place, or less."
            )

    def __enter__(self) -> Target:
        try:
            if not self._is_named:
                self._file = os.open(self._directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
                return self
        except OSError as error:
            if error.errno not in WITHOUT:
                raise
        aside = os.path.join(self._directory, self._other_name())
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        self._file, self._aside = os.open(aside, flags, 0o600), aside
        return self

    def __exit__(self, *_: object) -> None:
        if self._aside is not None:
            with suppress(OSError):
                os.unlink(self._aside)
        os.close(self._file)

    @property
    def place(self) -> str:
        """The path by which others can write it, of one that is_named."""
        if self._aside is None:
            raise AssertionError("it has no name")
        return self._aside

    def write(self, data: bytes) -> None:
        """Append. Raises OSError, as for a disk that is full."""
        self._hash.update(data)
        self.size += len(data)
        ahead = memoryview(data)
        try:
            while ahead:
                ahead = ahead[os.write(self._file, ahead) :]
        except OSError as error:
            raise OSError(error.errno, error.strerror, self.path) from error

    def read(self) -> None:
        """Take for written what another process has put into it."""
        os.lseek(self._file, 0, os.SEEK_SET)
        while data := os.read(self._file, 1 << 20):
            self._hash.update(data)
            self.size += len(data)

    def digest(self) -> str:
        """The SHA-256 of what was written."""
        return self._hash.hexdigest()

    def publish(self) -> None:
        """Give it its name, with all of it on the disk. Raises ExportError where another has that by now."""
        os.fsync(self._file)
        directory = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            self._give_name(directory)
            os.fsync(directory)
        finally:
            os.close(directory)

    def _give_name(self, directory: int) -> None:
        if self._aside is None:
            # Under another name first where one is to be replaced: a link replaces nothing.
            name = self._other_name() if self._force else self._name
            try:
                os.link(f"/proc/self/fd/{self._file}", name, dst_dir_fd=directory, follow_symlinks=True)
            except FileExistsError:
                raise self._taken() from None
            if self._force:
                os.rename(name, self._name, src_dir_fd=directory, dst_dir_fd=directory)
            return
        # Such file systems may have no links either, which replace nothing.
        if not self._force and os.path.lexists(self.path):
            raise self._taken()
        os.rename(self._aside, self._name, dst_dir_fd=directory)
        self._aside = None

    def _other_name(self) -> str:
        return f".{self._name[:200]}.{os.urandom(4).hex()}.partial"

    def _taken(self) -> ExportError:
        return ExportError(
            f"{self._option} {shown(self.path)} is there already: name another file, or have it replaced (force=true)."
        )
