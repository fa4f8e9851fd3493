# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Symbolic links of an archived tree: where they lead here, and where they meant to lead on the machine they are from.

An archive keeps links as they were. Followed as they are, an absolute one leads out of the copy to whatever the host
has there: on the machine that was backed up, to production's own files.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .._errors import RecoveryError
from .._host.files import is_directory
from .._host.links import MOST_LINKS, is_within, leading, resolve

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = ["Link", "archived_places", "directory_within", "find_links", "place_within", "places_of", "resolve_within"]


@dataclass(frozen=True)
class Link:
    """A symbolic link and its text."""

    path: str
    target: str


def find_links(directory: str) -> Iterator[Link]:
    """All symbolic links below directory, following none. Only directories are read, no file is opened.

    Raises RecoveryError for a device node: it would be one of this host.
    """
    ahead = [directory]
    while ahead:
        with os.scandir(ahead.pop()) as entries:
            found = sorted(entries, key=lambda entry: entry.name)
        for entry in found:
            if entry.is_symlink():
                yield Link(entry.path, os.readlink(entry.path))
            elif not entry.is_dir(follow_symlinks=False):
                _refuse_device(entry)
        ahead += [entry.path for entry in reversed(found) if entry.is_dir(follow_symlinks=False)]


def _refuse_device(entry: os.DirEntry[str]) -> None:
    # What it is was told with its name: of files nothing has to be asked.
    if entry.is_file(follow_symlinks=False):
        return
    mode = entry.stat(follow_symlinks=False).st_mode
    if stat.S_ISBLK(mode) or stat.S_ISCHR(mode):
        raise RecoveryError(
            f"{entry.path} is a device node, and no database has one: use another archive, and find out who made this."
        )


def place_within(path: str, tree: str) -> str | None:
    """Where a path of the tree leads, followed as the server would follow it, while that stays inside the tree.

    Nothing outside of it is looked at: a host's own links, automatic mounts and file systems that hang lie there. What
    it leads to need not be there.
    """
    place, links = tree, 0
    ahead = os.path.relpath(path, tree).split("/")[::-1]
    while ahead:
        part = ahead.pop()
        if part in ("", "."):
            continue
        place = os.path.dirname(place) if part == ".." else os.path.join(place, part)
        if not is_within(place, tree) or links > MOST_LINKS:
            return None
        if os.path.islink(place):
            links += 1
            target, place = os.readlink(place), os.path.dirname(place)
            if os.path.isabs(target):
                if not is_within(target, tree):
                    return None
                place, target = tree, target[len(tree) :]
            ahead.extend(reversed(target.split("/")))
    return place


def directory_within(path: str, tree: str) -> str | None:
    """The directory that a path of the tree leads to, as place_within() follows it; None for anything else."""
    place = place_within(path, tree)
    return place if place is not None and is_directory(place) else None


def resolve_within(root: str, path: str) -> str | None:
    """What path (absolute, or relative to root) would be if root were /; None when there is nothing.

    The result is below root and no part of it is a link.
    """

    def target_of(place: str) -> str | None:
        place = os.path.join(root, place)
        return os.readlink(place) if stat.S_ISLNK(os.lstat(place).st_mode) else None

    try:
        found = resolve(path, target_of)
    except (OSError, ValueError):  # a NUL in it
        return None
    return os.path.join(root, found) if found else None if found is None else root


def archived_places(tree: str, data_directory: str, link: Link, *, known: Mapping[str, str] | None = None) -> list[str]:
    """The directories in tree that link may mean, the likeliest first: the one that known names for its path, if any.

    In most archives paths start at /. A snapshot is archived from where it was mounted, such as `mnt/snap/srv/data`,
    and its links still speak of `/srv`: so the target is looked for below every leading part of data_directory's path
    in the tree. The longest comes first, because the rest of that snapshot is what belongs to the data directory.
    """
    place = (known or {}).get(os.path.relpath(link.path, tree))
    if place is None and os.path.isabs(link.target):
        return [place for place in places_of(tree, data_directory, link.target) if is_directory(place)]
    inside = os.path.join(os.path.relpath(os.path.dirname(link.path), tree), link.target) if place is None else place
    place = resolve_within(tree.rstrip("/"), os.path.join("/", inside))
    return [place] if place is not None and is_directory(place) else []


def places_of(tree: str, data_directory: str, path: str) -> list[str]:
    """Everything in tree that an absolute path of the archive's host may mean, the likeliest first."""
    inside = os.path.relpath(data_directory, tree)
    roots = [os.path.join(tree, part) for part in ("" if inside == "." else inside, *leading(inside))]
    places = (resolve_within(root.rstrip("/"), path) for root in roots)
    return list(dict.fromkeys(place for place in places if place is not None))
