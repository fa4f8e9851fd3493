# Copyright (c) 2026, phpBorg contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Archives of one source, told by what stays the same in their names: pure, and without a word of Ansible's.

Names are whatever somebody wrote who may write into the repository. What would act on a terminal, or would be a
template to Ansible, is set aside and never part of an inventory.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from ..module_utils._borg.location import LocationError, check_archive_name
from ..module_utils._errors import RecoveryError, is_plain

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from ..module_utils._borg.repository import Archive

__all__ = ["TEMPLATE", "Grouped", "Series", "SeriesError", "compile_pattern", "group", "is_machine", "stem"]

YEAR, MONTH, DAY = r"(?:19|20)[0-9]{2}", r"(?:0[1-9]|1[0-2])", r"(?:0[1-9]|[12][0-9]|3[01])"
DATE = rf"(?:{YEAR}([-._]){MONTH}(?:\1{DAY})?|{YEAR}{MONTH}{DAY}|{DAY}([-._]){MONTH}\2{YEAR})"
TIME = r"(?:[T_ .@-]?(?:[01][0-9]|2[0-3])([:._h-]?)[0-5][0-9](?:\3[0-5][0-9](?:[.,][0-9]{1,6})?)?)"
ZONE = r"(?:Z|UTC|[+-][0-9]{2}:?[0-9]{2})"
EPOCH = r"1[0-9]{9}(?:[0-9]{3})?"
MOMENT = re.compile(rf"(?<![0-9])(?:{DATE}{TIME}?{ZONE}?|{EPOCH})(?![0-9])")
# What counts archives whose names tell no time, such as db-17.
COUNTER = re.compile(r"(?<=[-._#])[0-9]+\Z")
SEPARATORS = "-_.:@+# "
# What Ansible takes for the beginning of a template, in every version and wherever its variables are kept meanwhile.
TEMPLATE = re.compile(r"\{(?=[{%#])")
# Of a machine's name as the system has it; Borg keeps what the archiving host said.
MACHINE = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,252}[A-Za-z0-9_])?")
UNSAFE = re.compile(r"[^A-Za-z0-9_.-]+")
LONGEST = 100  # characters of a series' name, of which caches make the names of files
NAMELESS = "archives"  # the series of archives whose names are times alone, by a machine that nobody knows


class SeriesError(RecoveryError):
    """A regular expression that tells no series."""


@dataclass(frozen=True)
class Series:
    """Archives of one source, oldest first; never empty. `machines` have made them, the newest one's first.

    `name` is unique in the repository, and has letters, digits, dots, dashes and underscores alone.
    """

    name: str
    archives: tuple[Archive, ...]
    machines: tuple[str, ...]

    @property
    def newest(self) -> Archive:
        """The archive that was made last."""
        return self.archives[-1]

    @property
    def glob(self) -> str:
        """A pattern of names like the newest one's: what varies in it is any digit."""
        name, parts, end = self.newest.name, [], 0
        for begin, until in _varying(name):
            parts += [_escaped(name[end:begin]), re.sub("[0-9]", "[0-9]", name[begin:until])]
            end = until
        return "".join([*parts, _escaped(name[end:])])


@dataclass
class Grouped:
    """The series of a repository by name, and what belongs to none of them.

    `unmatched` are names that a declared pattern does not match, `refused` sentences about names that cannot be used.
    """

    series: list[Series] = field(default_factory=list)
    unmatched: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)


def compile_pattern(text: str) -> re.Pattern[str]:
    """The regular expression that tells a series from an archive's name. Raises SeriesError."""
    try:
        return re.compile(text)
    except (re.error, RecursionError) as error:
        raise SeriesError(
            f"series {text!r} is no regular expression ({error}): correct it, or leave it out."
        ) from error


def group(archives: Iterable[Archive], *, pattern: re.Pattern[str] | None, exclude: Sequence[str] = ()) -> Grouped:
    """The series among archives.

    With a `pattern`, a series is what its group C(series), or its first group, or all of it matches. Without one, it is
    what stays the same in names, by machine. `exclude` are globs of names that nobody wants to see.
    """
    found, members = Grouped(), defaultdict(list)
    for archive in archives:
        if any(fnmatchcase(archive.name, one) for one in exclude):
            continue
        if problem := _problem(archive.name):
            found.refused.append(problem)
        elif (key := _key(archive, pattern)) is None:
            found.unmatched.append(archive.name)
        else:
            members[key].append(archive)
    names = _names(list(members))
    found.series = sorted((_series(names[key], some) for key, some in members.items()), key=lambda one: one.name)
    return found


def stem(name: str) -> str:
    """What stays the same in an archive's name: all but its times, or else but the number at its end."""
    parts, end = [], 0
    for begin, until in _varying(name):
        parts.append(name[end:begin])
        end = until
    stripped = (part.strip(SEPARATORS) for part in (*parts, name[end:]))
    return "-".join(part for part in stripped if part)


def is_machine(name: str | None) -> bool:
    """Whether a name can be a host's."""
    return name is not None and MACHINE.fullmatch(name) is not None


def _problem(name: str) -> str | None:
    """Why nothing is made of an archive of this name; None where something is."""
    if TEMPLATE.search(name):
        return f"archive {name!r} has braces in its name that Ansible takes for a template: rename it (borg rename)."
    if not is_plain(name):
        return f"archive {name!r} has characters in its name that act on a terminal: rename it (borg rename)."
    try:
        check_archive_name(name)
    except LocationError as error:
        return str(error)
    return None


def _key(archive: Archive, pattern: re.Pattern[str] | None) -> tuple[str, str] | None:
    """What archives of one series have in common: a name, and the machine unless a pattern alone decides."""
    if pattern is None:
        return stem(archive.name), archive.hostname or "" if is_machine(archive.hostname) else ""
    match = pattern.search(archive.name)
    if match is None:
        return None
    chosen = "series" if "series" in pattern.groupindex else 1 if pattern.groups else 0
    return (match[chosen], "") if match[chosen] else None


def _series(name: str, archives: Sequence[Archive]) -> Series:
    in_time = sorted(archives, key=lambda archive: (archive.time, archive.name))
    machines = (archive.hostname for archive in reversed(in_time) if is_machine(archive.hostname))
    return Series(name, tuple(in_time), tuple(dict.fromkeys(str(machine) for machine in machines)))


def _names(keys: Sequence[tuple[str, str]]) -> dict[tuple[str, str], str]:
    """A name for each series: the machine's is in it where there is no other, or several machines share one."""
    shared = Counter(stem for stem, _machine in keys)
    wanted = {}
    for key in keys:
        said = [key[0]] if key[0] and shared[key[0]] == 1 else [part for part in key if part]
        wanted[key] = UNSAFE.sub("_", "-".join(said)).strip("-.") or NAMELESS
    taken = Counter(wanted.values())
    return {
        key: name if taken[name] == 1 and len(name) <= LONGEST else _told_apart(key, name)
        for key, name in wanted.items()
    }


def _told_apart(key: tuple[str, str], name: str) -> str:
    digest = hashlib.sha256("\0".join(key).encode("utf-8", "surrogateescape")).hexdigest()
    return f"{name[: LONGEST - 9]}-{digest[:8]}"


def _varying(name: str) -> list[tuple[int, int]]:
    """Where in a name its times are, or else the number at its end."""
    return [match.span() for match in MOMENT.finditer(name)] or [match.span() for match in COUNTER.finditer(name)]


def _escaped(text: str) -> str:
    """A text that a glob takes at its word."""
    return re.sub(r"[*?[]", r"[\g<0>]", text)
