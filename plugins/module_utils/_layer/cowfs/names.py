# Copyright (c) 2026, phpBorg contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Names and attributes of the lower: as the archive's list has them, where there is one, else as a mount does."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from typing import Any

from ..._borg.names import Names
from ..._host.files import open_below
from .mounts import Mounts

__all__ = ["LowerNames"]

log = logging.getLogger("cowfs")


class LowerNames:
    """Answers what is asked of the lower's directories and links. Raises LowerError where a mount cannot answer."""

    def __init__(self, mounts: Mounts, listed: str | None = None) -> None:
        self.mounts = mounts
        self.listed: Names | None = None
        if listed is not None:
            with self._giving_up():
                self.listed = Names(listed)

    async def attributes(self, directory: bytes, names: list[bytes]) -> Any:
        """The attributes of those names in a directory that exist, as pairs."""
        found = None
        with self._giving_up():
            found = self.listed and self.listed.attributes(directory, names)
        return await self.mounts.call(_stat_all, directory, *names) if found is None else found

    async def names(self, directory: bytes) -> Any:
        """The names in a directory."""
        found = None
        with self._giving_up():
            found = self.listed and self.listed.names(directory)
        return await self.mounts.call(_names_in, directory) if found is None else found

    async def target(self, path: bytes) -> Any:
        """What the symbolic link at path says."""
        found = None
        with self._giving_up():
            found = self.listed and self.listed.target(path)
        return await self.mounts.call(_target, path) if found is None else found

    @contextlib.contextmanager
    def _giving_up(self) -> Iterator[None]:
        """Go on with the mounts alone where the list cannot be read."""
        try:
            yield
        except OSError as error:
            log.warning("%s: mounts are asked", error)
            self.listed = None


@contextlib.contextmanager
def _held(root: int, path: str, flags: int) -> Iterator[int]:
    """A directory below the root of a mount of the lower."""
    directory = open_below(root, path, flags | os.O_DIRECTORY)
    try:
        yield directory
    finally:
        os.close(directory)


def _stat_all(root: int, path: str, *names: bytes) -> list[tuple[bytes, os.stat_result]]:
    """The attributes of those names in a directory that exist."""
    found = []
    with _held(root, path, os.O_PATH) as directory:
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                found.append((name, os.stat(name, dir_fd=directory, follow_symlinks=False)))
    return found


def _names_in(root: int, path: str) -> list[bytes]:
    with _held(root, path, os.O_RDONLY) as directory:
        return [os.fsencode(name) for name in os.listdir(directory)]


def _target(root: int, path: str) -> bytes:
    """What the symbolic link at path says."""
    above, name = os.path.split(path)
    with _held(root, above, os.O_PATH) as directory:
        return os.fsencode(os.readlink(name, dir_fd=directory))
