# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Option files of MariaDB and MySQL: what an archived one says to a server, and ours written.

See "Option files" in both manuals: groups in brackets, `name = value` or a mere name, names with hyphens or
underscores, values in quotes or not, `!include` and `!includedir`.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from .._errors import RecoveryError, shown

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterable, Mapping

__all__ = ["MysqlError", "fits_line", "groups_of", "parse_options", "read_options", "render_options"]

GROUP = re.compile(r"\[\s*([^\]]*?)\s*\]")
# Groups that a server of a product reads; of each there is one with its series as well, such as mysqld-10.11.
GROUPS = {
    "mariadb": ("mysqld", "server", "mariadb", "mariadbd", "galera"),
    "mysql": ("mysqld", "server"),
}
LONGEST_LINE = 4000  # bytes; servers read 4095 at a time, and take what follows for another line
INCLUDE = re.compile(r"!(include|includedir)\s+(\S.*)")
OPTION = re.compile(r"([A-Za-z][\w-]{0,79})\s*(?:=\s*(.*))?$", re.ASCII)
PREFIX = re.compile(r"(?:loose|maximum|enable)_(?=\w)")
NEGATION = re.compile(r"(?:skip|disable)_(?=\w)")
# What begins with skip_ and is no other option's negation.
ALONE = frozenset(
    (
        *("skip_name_resolve", "skip_networking", "skip_grant_tables", "skip_slave_start", "skip_replica_start"),
        *("skip_show_database", "skip_external_locking"),
    )
)
ESCAPES = {"b": "\b", "t": "\t", "n": "\n", "r": "\r", "\\": "\\", "s": " "}
MOST_FILES = 200  # of one configuration


class MysqlError(RecoveryError):
    """A copy of MariaDB or MySQL cannot be used, or its server cannot be started or stopped."""


def groups_of(product: str, series: tuple[int, int]) -> frozenset[str]:
    """The groups that a server of that product and series reads."""
    names = GROUPS[product]
    return frozenset([*names, *(f"{name}-{series[0]}.{series[1]}" for name in names)])


def fits_line(name: str, value: str) -> bool:
    """Whether an option and its value can be written to an option file."""
    line = f'{name} = "{value}"'.replace("\\", "\\\\").encode("utf-8", "surrogateescape")
    return len(line) <= LONGEST_LINE and not set("\n\r\0") & set(value) and not value.endswith('"')


def read_options(
    name: str,
    *,
    groups: Container[str],
    read: Callable[[str], str | None],
    listed: Callable[[str], Iterable[str]],
) -> dict[str, str]:
    """What a server is told by an option file and those that it includes, in its groups; later ones count more.

    read gives the text of a file by the name that is in use there, listed the names of files in a directory.
    """
    found: dict[str, str] = {}
    ahead, done = [name], 0
    while ahead and done < MOST_FILES:
        text = read(ahead.pop())
        done += 1
        included: list[str] = []
        for word, value in parse_options(text or "", groups=groups):
            if word == "!include":
                included.append(value)
            elif word == "!includedir":
                included += [f"{value}/{one}" for one in sorted(listed(value)) if one.endswith((".cnf", ".ini"))]
            else:
                found[word] = value
        ahead += reversed(included)
    return found


def parse_options(text: str, *, groups: Container[str]) -> list[tuple[str, str]]:
    """Options for a server and their values, in order; and `!include` and `!includedir` with the path."""
    found: list[tuple[str, str]] = []
    is_server = False
    for line in map(str.strip, text.split("\n")):
        if line.startswith("["):
            group = GROUP.match(line)
            is_server = group is not None and group[1] in groups
        elif include := INCLUDE.match(line):
            found.append((f"!{include[1]}", include[2].strip().rstrip("/")))
        elif is_server and (option := OPTION.match(_uncommented(line))):
            found.append(_normal(option[1], option[2]))
    return found


def render_options(sections: Mapping[str, Mapping[str, str]], *, group: str = "mysqld") -> str:
    """An option file for one program, with a comment over each section."""
    lines = ["# Written for one session; changes are lost."]
    for heading, options in sections.items():
        if options:
            lines += [f"\n# {heading}"] if heading else [""]
            lines += [f"[{group}]", *(f"{name} = {_quoted(name, value)}" for name, value in options.items())]
    return "\n".join(lines) + "\n"


def _quoted(name: str, value: str) -> str:
    """A value as both servers read it: in quotes nothing begins a comment, and a backslash has to be doubled."""
    if not fits_line(name, value):
        raise MysqlError(
            f"{shown(name)} has a value that no option file can hold: leave out line breaks, and a quote at its end, "
            f"and write less than {LONGEST_LINE} bytes."
        )
    escaped = value.replace("\\", "\\\\")
    return f'"{escaped}"'


def _normal(name: str, value: str | None) -> tuple[str, str]:
    word = PREFIX.sub("", name.replace("-", "_").lower(), count=1)
    if value is None and (without := NEGATION.sub("", word, count=1)) != word and word not in ALONE:
        return without, "OFF"
    return word, "ON" if value is None else _unquoted(value)


def _uncommented(line: str) -> str:
    """A line without the comment at its end: a # outside of quotes."""
    quote = ""
    for place, letter in enumerate(line):
        if quote:
            quote = "" if letter == quote and line[place - 1] != "\\" else quote
        elif letter in "\"'":
            quote = letter
        elif letter == "#" or (letter == ";" and place == 0):
            return line[:place].rstrip()
    return line


def _unquoted(value: str) -> str:
    value = value.strip()
    if len(value) > 1 and value[0] == value[-1] and value[0] in "\"'":
        value = value[1:-1]
    return re.sub(r"\\(.)", lambda found: ESCAPES.get(found[1], found[0]), value)
