# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Symbolic links of a tree that is taken for `/`: followed component by component, and never out of the tree.

The tree may be a list of names or a mount: the one who asks tells what the links say, and no path of this host is
followed. Whoever made the tree may wish this host ill: the number of links on one way is bounded, and the length of the
way, as the kernel has them.
"""

from __future__ import annotations

import posixpath
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

__all__ = ["LONGEST_PATH", "MOST_LINKS", "is_within", "leading", "moved", "normal", "resolve"]

MOST_LINKS = 40  # on one way, as the kernel has it
LONGEST_PATH = 4095  # bytes: PATH_MAX without the NUL at its end (linux/limits.h)


def normal(path: str) -> str:
    """A path without dots and doubled slashes: POSIX lets two at the beginning mean something else, Linux does not."""
    path = posixpath.normpath(path)
    return path[1:] if path.startswith("//") else path


def is_within(path: str, directory: str) -> bool:
    """Whether path is directory or below it; both without links, dots and doubled slashes."""
    return path == directory or path.startswith(posixpath.join(directory, ""))


def resolve(
    path: str,
    target_of: Callable[[str], str | None],
    *,
    root: str = "",
    place_of: Callable[[str], str | None] = lambda _path: None,
) -> str | None:
    """Where path leads: a path below the tree without links (`` is the tree itself), or None where it is too far.

    target_of tells what the link at a path says, None where there is no link. root is the directory of the tree that
    absolute paths begin at. place_of may tell that an absolute path is another place of the tree.
    """
    ahead: list[str] = []

    def enter(text: str, above: str) -> str:
        """Go on with text, which is read in the directory above; returns where its first part is looked for."""
        place = place_of(text) if text.startswith("/") else None
        ahead.extend(reversed((text if place is None else place).split("/")))
        if text.startswith("/"):
            return root if place is None else ""
        return above

    done = enter(path, "")
    links = 0
    while ahead:
        part = ahead.pop()
        if part == "..":
            done = done if done == root else done.rpartition("/")[0]
        elif part not in ("", "."):
            place = f"{done}/{part}" if done else part
            if len(place) > LONGEST_PATH:
                return None
            target = target_of(place)
            if target is None:
                done = place
                continue
            links += 1
            if links > MOST_LINKS:
                return None
            done = enter(target, done)
    return done


def leading(path: str) -> Iterator[str]:
    """The directories above path, the longest first and `` last: any may be where another host's `/` was mounted."""
    while True:
        path = path.rpartition("/")[0]
        yield path
        if not path:
            return


def moved(path: str, places: Mapping[str, str]) -> tuple[str, str] | None:
    """Of the directories that were moved (from: to) the longest that path is or is below, and where path is now."""
    path = normal(path)
    above = next((name for name in (path, *leading(path)) if name in places), None)
    return None if above is None else (above, posixpath.join(places[above], path[len(above) :].lstrip("/")))
