# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Files of tables outside of their data directory, and where an archive has them.

InnoDB of MariaDB notes the path of a table made with DATA DIRECTORY in a file `NAME.isl`; MyISAM and Aria have symbolic
links in the files' places. A whole database's directory may be a link as well.
"""

from __future__ import annotations

import posixpath
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .._engine.database import Link
from .._errors import shown
from .._host.links import leading, moved

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from .._engine.listing import Listing

__all__ = ["External", "external_files"]

FILES = (".MYD", ".MYI", ".MAD", ".MAI", ".ibd")


@dataclass(frozen=True)
class External:
    """What lies elsewhere: links by path with the directory that the archive has for them, and what it lacks."""

    links: dict[str, str]
    symlinks: tuple[Link, ...]
    files: tuple[dict[str, Any], ...]
    problems: tuple[str, ...]


def external_files(
    listing: Listing, directory: str, pointers: Mapping[str, str], relocated: Mapping[str, str]
) -> External:
    """What of a data directory lies elsewhere. pointers: what the `.isl` files say, by their paths.

    relocated: where in the archive directories are, says the user.
    """
    links: dict[str, str] = {}
    symlinks, files, problems = [], [], []
    for path in listing.links_below(directory):
        target = listing.links[path]
        place = _place(listing, directory, path, target, relocated, is_file=path.endswith(FILES))
        symlinks.append(Link(path, target, place))
        if place is None:
            problems.append(_missing(f"link {shown(path)}", target))
        else:
            links[path] = posixpath.dirname(place) if path.endswith(FILES) else place
    for path, text in sorted(pointers.items()):
        target = text.strip()
        place = _place(listing, directory, path, target, relocated, is_file=True)
        files.append({"path": path, "target": target, "archived_path": place})
        if place is None:
            problems.append(_missing(shown(path), target))
        else:
            links[path] = posixpath.dirname(place)
    return External(links, tuple(symlinks), tuple(files), tuple(problems))


def _missing(what: str, target: str) -> str:
    return (
        f"{what} leads to {shown(target)}, which is not in the archive: what is there cannot be read. If the "
        "archive has it elsewhere, say so with relocated."
    )


def _place(
    listing: Listing, directory: str, path: str, target: str, relocated: Mapping[str, str], *, is_file: bool
) -> str | None:
    """Where the archive has what a path means on its host, the nearest to the data directory first."""
    if not target or "\0" in target:
        return None
    for place in _places(listing, directory, path, target, relocated):
        holder = posixpath.dirname(place) if is_file else place
        if listing.has_directory(holder):
            return place
    return None


def _places(listing: Listing, directory: str, path: str, target: str, relocated: Mapping[str, str]) -> Iterator[str]:
    said = moved(target, {name: place or "" for name, place in relocated.items()}) if target.startswith("/") else None
    if said is not None:
        yield posixpath.normpath(said[1].lstrip("/"))
        return
    start = target if target.startswith("/") else posixpath.join(posixpath.dirname(path), target)
    for root in leading(directory) if target.startswith("/") else ("",):
        place = listing.resolve(start, root=root)
        if place is not None:
            yield place
