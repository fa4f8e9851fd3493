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
from .._host.links import MOST_LINKS, is_within, leading, resolve

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = ["Link", "archived_places", "find_links", "leads_within", "places_of", "resolve_within"]


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


def leads_within(path: str, tree: str) -> bool:
    """Whether path, followed as the server would follow it, stays inside tree.

    Nothing outside of it is looked at: a host's own links, automatic mounts and file systems that hang lie there.
    """
    tree = os.path.realpath(tree)
    place, ahead, links = os.path.realpath(os.path.dirname(path)), [os.path.basename(path)], 0
    while ahead:
        part = ahead.pop()
        if part in ("", "."):
            continue
        place = os.path.dirname(place) if part == ".." else os.path.join(place, part)
        if not is_within(place, tree) or links > MOST_LINKS:
            return False
        if os.path.islink(place):
            links += 1
            target, place = os.readlink(place), os.path.dirname(place)
            if os.path.isabs(target):
                if not is_within(target, tree):
                    return False
                place, target = tree, target[len(tree) :]
            ahead.extend(reversed(target.split("/")))
    return True


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
        return [place for place in places_of(tree, data_directory, link.target) if os.path.isdir(place)]
    inside = os.path.join(os.path.relpath(os.path.dirname(link.path), tree), link.target) if place is None else place
    place = resolve_within(tree.rstrip("/"), os.path.join("/", inside))
    return [place] if place is not None and os.path.isdir(place) else []


def places_of(tree: str, data_directory: str, path: str) -> list[str]:
    """Everything in tree that an absolute path of the archive's host may mean, the likeliest first."""
    inside = os.path.relpath(os.path.realpath(data_directory), os.path.realpath(tree))
    roots = [os.path.join(tree, part) for part in ("" if inside == "." else inside, *leading(inside))]
    places = (resolve_within(root.rstrip("/"), path) for root in roots)
    return list(dict.fromkeys(place for place in places if place is not None))
