# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a copy's own configuration says: read from files of the archive, and never loaded.

That is a postgresql.conf with all it includes, what ALTER SYSTEM has set, and what the server was started with. What a
session takes over of it is decided in `_postgresql/settings.py`.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from .._engine.links import Link, archived_places, places_of, resolve_within
from .._errors import shown
from .._host.files import is_directory, names_in
from .._host.links import is_within, normal
from .cluster import PostgresError, read_regular_file
from .detach import AUTO_CONF, OPTIONS, OPTIONS_ASIDE, SET_ASIDE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .cluster import DataDirectory

__all__ = ["Archived", "parse_configuration", "read_configuration"]

CONFIGURATION = "postgresql.conf"
INCLUDE, INCLUDE_IF_EXISTS, INCLUDE_DIR = INCLUDES = ("include", "include_if_exists", "include_dir")
DEEPEST, MOST_FILES = 10, 200  # the first as PostgreSQL has it; more files than any server is set up with
MOST_MISSING = 10  # that are told
LINE = re.compile(
    r"^[ \t]*(?P<name>[A-Za-z_][\w.$]*)(?:[ \t]*=|[ \t])[ \t]*"
    r"(?:'(?P<quoted>(?:[^'\\\n]|\\.|'')*)'|(?P<bare>[^\s#']+))",
    re.MULTILINE,
)
# Each argument of the server in postmaster.opts, and those that set something: -c name=value, --name=value.
ARGUMENT = re.compile(r' "([^"\n]*)"')
ASSIGNMENT = re.compile(r"(?:-c ?|--)(?P<name>[A-Za-z_][\w.$-]*)=(?P<value>.*)")
DIRECTORY = re.compile(r' "-D" "(/[^"\n]+)"')


@dataclass(frozen=True)
class Archived:
    """Settings by name in lower case.

    missing: what is included and is not in the tree, as it is written there. unreadable: why files cannot be read.
    """

    settings: dict[str, str] = field(default_factory=dict)
    missing: tuple[str, ...] = ()
    unreadable: tuple[str, ...] = ()

    def warnings(self) -> list[str]:
        """Warnings that settings may be unknown."""
        return [*map(_not_there, self.missing), *map(_not_readable, self.unreadable)]


def _not_there(name: str) -> str:
    return (
        f"The archived configuration includes {shown(name)}, which the archive has neither with the data directory nor "
        "beside its postgresql.conf: what is set there, such as the time zone, does not count in the session. Give it "
        "with settings."
    )


def _not_readable(problem: str) -> str:
    return (
        f"{problem} What the archived configuration sets there, such as the time zone, does not count in the session: "
        "give it with settings."
    )


def read_configuration(
    data: DataDirectory, tree: str, configuration: str | None = None, *, is_recovered: bool = False
) -> Archived:
    """What the archived configuration says, as far as it lies in the tree.

    configuration is its directory below the tree; without it, that of Debian in /etc/postgresql counts.
    """
    debian = Link(data.path, f"/etc/postgresql/{data.major}/{os.path.basename(data.path)}")
    places = archived_places(tree, data.path, debian)[:1]
    if configuration is not None:
        places = [place] if (place := resolve_within(tree, configuration)) is not None else []
    reader = _Reader(data.path, tree)
    # An earlier start may have set it aside, also one that failed.
    names = (OPTIONS_ASIDE, OPTIONS) if is_recovered else (OPTIONS, OPTIONS_ASIDE)
    options = next(filter(None, (reader.text(os.path.join(data.path, name)) for name in names)), "")
    reader.was_started_with(options)
    for directory in (data.path, *places):
        reader.read(os.path.join(directory, CONFIGURATION))
    # An earlier start of the same copy has set it aside, and what is there now is the session's own.
    names = (SET_ASIDE, AUTO_CONF) if is_recovered else (AUTO_CONF, SET_ASIDE)
    altered = (parse_configuration(reader.text(os.path.join(data.path, name)) or "") for name in names)
    given = {**next(filter(None, altered), {}), **_settings_of(options)}
    missing, unreadable = (tuple(dict.fromkeys(told))[:MOST_MISSING] for told in (reader.missing, reader.unreadable))
    return Archived({**reader.settings, **given}, missing, unreadable)


class _Reader:
    """Reads files as the server would: each setting where it stands, and of a repeated one the last counts."""

    def __init__(self, data_directory: str, tree: str) -> None:
        self._data_directory, self._tree = data_directory, tree
        self._original: str | None = None
        self._left = MOST_FILES
        self.settings: dict[str, str] = {}
        self.missing: list[str] = []
        self.unreadable: list[str] = []

    def was_started_with(self, options: str) -> None:
        """Note what the server called its data directory."""
        original = DIRECTORY.search(options)
        self._original = normal(original[1]) if original is not None else None

    def text(self, path: str) -> str | None:
        """What is in a file; nothing of one that cannot be read: the copy does without. None where there is none."""
        if os.path.islink(path):
            path = resolve_within(self._tree, os.path.relpath(path, self._tree)) or path
        try:
            content = read_regular_file(path)
        except PostgresError as error:
            self.unreadable.append(str(error))
            return ""
        return None if content is None else content.decode("utf-8", "replace")

    def read(self, path: str, depth: int = 0) -> bool:
        """Whether there is such a file."""
        text = self.text(path)
        if text is None:
            return False
        for name, value in _entries(text):
            if name not in INCLUDES:
                self.settings[name] = value
            elif not self._include(name, value, path, depth + 1) and name != INCLUDE_IF_EXISTS:
                self.missing.append(value)
        return True

    def _include(self, name: str, value: str, path: str, depth: int) -> bool:
        self._left -= 1
        for place in self._places(value, path) if self._left >= 0 and depth <= DEEPEST else ():
            if name != INCLUDE_DIR and self.read(place, depth):
                return True
            if name == INCLUDE_DIR and is_directory(place):
                names = [name for name in names_in(place) if re.fullmatch(r"(?s)[^.].*\.conf", name)]
                for entry in names[:MOST_FILES]:
                    self._include(INCLUDE, os.path.join(place, entry), place, depth)
                return True
        return False

    def _places(self, value: str, path: str) -> list[str]:
        """Where an included path may be in the tree, without links."""
        if is_within(value, self._tree):
            found = [resolve_within(self._tree, os.path.relpath(value, self._tree))]
        elif not os.path.isabs(value):
            inside = os.path.relpath(os.path.join(os.path.dirname(path), value), self._tree)
            found = [resolve_within(self._tree, inside)]
        elif self._original is not None and is_within(normal(value), self._original):
            below = os.path.relpath(value, self._original)
            found = [resolve_within(self._tree, os.path.relpath(os.path.join(self._data_directory, below), self._tree))]
        else:
            found = [*places_of(self._tree, self._data_directory, value)]
        return [place for place in found if place is not None]


def parse_configuration(text: str) -> dict[str, str]:
    """The settings of a postgresql.conf, names in lower case. As in PostgreSQL, of a repeated one the last counts."""
    return dict(_entries(text))


def _entries(text: str) -> Iterator[tuple[str, str]]:
    for match in LINE.finditer(text):
        quoted = match.group("quoted")
        value = match.group("bare") if quoted is None else re.sub(r"\\(.)|'(')", r"\1\2", quoted)
        yield match.group("name").lower(), value


def _settings_of(options: str) -> dict[str, str]:
    """What the server's own command line set, which counts more than any file."""
    arguments = re.sub(r'"-c" "', '"-c ', options.partition("\n")[0])
    found = (ASSIGNMENT.fullmatch(argument) for argument in ARGUMENT.findall(arguments))
    return {match["name"].replace("-", "_").lower(): match["value"] for match in found if match is not None}
