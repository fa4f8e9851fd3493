# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Removing whole directories that somebody hostile may have made, and may still be making."""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection

__all__ = ["empty_directory"]

DEEPEST = 100  # directories in one another that are gone through; what is deeper is moved up first
MOST_TURNS = (
    100_000  # of that; a path of the kernel's would have 2048 parts, but one that is made step by step any number
)


def empty_directory(directory: str, *, keep: Collection[str] = ()) -> list[str]:
    """Empty directory, except for the names in keep directly in it; return what could not be removed, and why.

    Never enters a mount, not even a bind mount of the same file system, and never follows a symbolic link.
    """
    try:
        top = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return []
    except OSError as error:
        return [f"{directory} ({error.strerror})"]
    try:
        tree = _Tree(top, _mount_id(top))
        remains = tree.empty(top, directory, keep)
        for _turn in range(MOST_TURNS):  # what lay too deep was moved up, and may hold more of the kind
            if remains or set(os.listdir(top)) <= set(keep):
                break
            remains = tree.empty(top, directory, keep)
        return remains
    finally:
        os.close(top)


class _Tree:
    """A directory that is being emptied; a hostile server can have made one that is deeper than any stack."""

    def __init__(self, top: int, mount_id: str) -> None:
        self.top, self.mount_id, self.moved = top, mount_id, 0

    def empty(self, directory: int, path: str, keep: Collection[str], depth: int = 0) -> list[str]:
        """Remove what is in directory; return what could not be removed."""
        remains = []
        if os.fstat(directory).st_mode & 0o700 != 0o700:
            with suppress(PermissionError):  # as overlayfs closes its work directory to everybody
                os.fchmod(directory, 0o700)
        for name in os.listdir(directory):
            if name not in keep:
                inner = os.path.join(path, name)
                try:
                    remains += self._remove(directory, name, inner, depth)
                except FileNotFoundError:
                    pass
                except OSError as error:
                    remains.append(f"{inner} ({error.strerror})")
        return remains

    def _remove(self, parent: int, name: str, path: str, depth: int) -> list[str]:
        if not stat.S_ISDIR(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode):
            os.unlink(name, dir_fd=parent)
            return []
        if depth >= DEEPEST:
            self.moved += 1
            os.rename(name, f".deep-{self.moved}", src_dir_fd=parent, dst_dir_fd=self.top)
            return []
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            directory = os.open(name, flags, dir_fd=parent)
        except PermissionError:
            _open_to_us(name, parent)
            directory = os.open(name, flags, dir_fd=parent)
        try:
            if _mount_id(directory) != self.mount_id:
                return [f"{path} (something is mounted there)"]
            remains = self.empty(directory, path, (), depth + 1)
        finally:
            os.close(directory)
        if not remains:
            os.rmdir(name, dir_fd=parent)
        return remains


def _open_to_us(name: str, parent: int) -> None:
    """Let ourselves into a directory, and into nothing that a link in its place would lead to."""
    held = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
    try:
        os.chmod(f"/proc/self/fd/{held}", 0o700)
    finally:
        os.close(held)


def _mount_id(descriptor: int) -> str:
    """Which mount an open directory is in; the device number would not tell bind mounts apart."""
    with open(f"/proc/self/fdinfo/{descriptor}", encoding="ascii", newline="\n") as info:
        return next(line.split()[1] for line in info if line.startswith("mnt_id:"))
