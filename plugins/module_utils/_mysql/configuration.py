# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The archived option files, read but never given to a server."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING

from .._host.files import HeldDirectory
from .option_file import read_options

if TYPE_CHECKING:
    from collections.abc import Container, Iterable

__all__ = ["read_configuration"]

ETC = "/etc/mysql"
# Debian's my.cnf is a link to one of the others, by way of /etc/alternatives.
FIRST = ("my.cnf", "mariadb.cnf", "mysql.cnf")
LARGEST = 1 << 20  # bytes of one file


def read_configuration(tree: str, directory: str | None, *, groups: Container[str]) -> dict[str, str]:
    """What the archived option files in a directory below tree told the server; nothing where there is none.

    They name one another by the paths that they had on their host.
    """
    if directory is None:
        return {}
    try:
        held = HeldDirectory(os.path.join(tree, directory))
    except OSError:
        return {}

    def inside(name: str) -> str:
        return os.path.relpath(os.path.normpath(name), ETC) if name.startswith("/") else os.path.normpath(name)

    def read(name: str) -> str | None:
        place = inside(name)
        if place.startswith(".."):
            return None
        with suppress(OSError), open(held.open(place), "rb") as file:
            return file.read(LARGEST).decode("utf-8", "surrogateescape")
        return None

    def listed(name: str) -> Iterable[str]:
        place = inside(name)
        with suppress(OSError):
            return [] if place.startswith("..") or "/" in place else held.listed(place)[0]
        return []

    for name in FIRST:
        if read(name) is not None:
            return read_options(name, groups=groups, read=read, listed=listed)
    return {}
