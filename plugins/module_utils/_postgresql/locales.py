# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Locales that a copy needs and this host does not have: made for the session by localedef, where its sources are here.

A database can only be entered where the C library knows its locales, whose names stand in the catalogs: so nobody knows
them before a server has read those. Made in the session's directory, they are found through LOCPATH (glibc).
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

from .._host.command import CommandError, find_program, run
from .cluster import PostgresError, has_locale

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Iterator, Mapping, Sequence

__all__ = ["DIRECTORY", "Locales", "how_to_install", "missing_locale", "warn_of_locales"]

DIRECTORY = "locale"  # of the session's directory config
INSTALLED = "/usr/lib/locale"
SOURCES = "/usr/share/i18n"  # of Debian's package locales, of Fedora's glibc-locale-source
PATIENCE = 120  # seconds for localedef, which takes one or two
MOST = 20  # locales that are made for one session
# language_TERRITORY.codeset@modifier: what a name may look like before it becomes a part of a path.
NAME = re.compile(r"(?P<place>[A-Za-z]{2,3}_[A-Z]{2})(?:\.(?P<codeset>[A-Za-z0-9_-]+))?(?P<modifier>@[a-z0-9]+)?")
BY_ITSELF = (
    " Where the sources of locales are installed (package locales, or glibc-locale-source) a session makes it by "
    "itself."
)
MISSING = (
    re.compile(r'LC_(?:COLLATE|CTYPE) "([^"]*)", +which is not recognized by setlocale'),
    re.compile(r'could not create locale "([^"]*)"'),  # from PostgreSQL 18 on
)


class Locales:
    """The locales of one session, below directory. Nothing is made until one is missing.

    others: those that the session's server needs beside its databases'. With LOCPATH the C library does not look into
    the archive that locale-gen writes: once a locale is made here, those that are installed there are, too.
    """

    def __init__(self, directory: str, *, others: Iterable[str] = ()) -> None:
        self._directory = directory
        self._others = set(others)
        self._made: set[str] = set()

    @property
    def environment(self) -> dict[str, str]:
        """What the server has to have in its environment."""
        return {"LOCPATH": f"{self._directory}:{INSTALLED}"} if self._made else {}

    def require(self, name: str) -> None:
        """Make a locale that a server missed. Raises PostgresError, with the cure, where that does not help."""
        if name in self._made or name in self.missing([name]):
            raise PostgresError(
                f"The copy needs the locale {name[:100]}, which this host does not have. "
                f"{how_to_install([name])}{BY_ITSELF}"
            )

    def missing(self, names: Iterable[str]) -> list[str]:
        """Make those of these locales that this host does not have; which of them cannot be made."""
        wanted = sorted({name for name in names if not has_locale(name)} - self._made)
        failed = [name for name in wanted if not self._make(name)]
        if self._made:
            again = {*filter(has_locale, {*names, *self._others}), *_of_the_archive()} - self._made
            failed += [name for name in sorted(again)[:MOST] if not self._make(name) and name in names]
        return failed

    def warnings(self, databases: Mapping[str, Sequence[str]]) -> Iterator[str]:
        """Make what databases need, and tell of each that cannot be entered without."""
        return _lacking(databases, set(self.missing(name for names in databases.values() for name in names)))

    def _make(self, name: str) -> bool:
        """Whether the locale is here now. Its name is the archive's: only what is in SOURCES is used of it."""
        if len(self._made) >= MOST or name in ("C", "POSIX") or _is_directory(name):
            return _is_directory(name) or name in ("C", "POSIX")
        sources, localedef = _sources(name), find_program("localedef")
        if sources is None or localedef is None:
            return False
        definition, charmap, directory = sources
        os.makedirs(self._directory, mode=0o755, exist_ok=True)
        path = os.path.join(self._directory, directory)
        argv = [localedef, "--no-archive", "-c", "-i", definition, "-f", charmap, path]
        try:
            run(argv, timeout=PATIENCE, check=False)  # 1 stands for mere warnings, too
        except CommandError:
            return False
        for place, _directories, files in os.walk(self._directory):  # whatever the umask is: it is the server's to read
            os.chmod(place, 0o755)
            for file in files:
                os.chmod(os.path.join(place, file), 0o644)
        if not os.path.exists(os.path.join(path, "LC_CTYPE")):
            return False
        self._made.add(name)
        return True


def warn_of_locales(databases: Mapping[str, Sequence[str]]) -> Iterator[str]:
    """Tell of each database that a session could not enter here, by the locales that databases need."""
    names = {name for names in databases.values() for name in names}
    return _lacking(databases, {name for name in names if not has_locale(name) and not _can_be_made(name)})


def missing_locale(log: Sequence[str]) -> str | None:
    """The locale for whose lack a server ended, as its log tells."""
    found = (match for line in log for pattern in MISSING for match in pattern.finditer(line))
    return next((match.group(1) for match in found), None)


def _lacking(databases: Mapping[str, Sequence[str]], missing: Container[str]) -> Iterator[str]:
    for database, names in databases.items():
        lacking = [name for name in names if name in missing]
        if lacking:
            yield (
                f"Database {database} needs the locale {' and '.join(lacking)}, which this host does not have: "
                f"nobody can connect to it. {how_to_install(lacking)}{BY_ITSELF}"
            )


def _can_be_made(name: str) -> bool:
    return _sources(name) is not None and find_program("localedef") is not None


def _sources(name: str) -> tuple[str, str, str] | None:
    """What localedef makes it from: definition and charmap, and the directory that the C library looks for."""
    match = NAME.fullmatch(name)
    if match is None:
        return None
    place, codeset, modifier = match.group("place"), match.group("codeset"), match.group("modifier") or ""
    definition = place + modifier
    if codeset is None:
        charmap = _usual_charmap(definition)
    else:
        stems = {one.removesuffix(".gz") for one in _listed(f"{SOURCES}/charmaps")}
        charmap = next((stem for stem in sorted(stems) if _plain(stem) == _plain(codeset)), None)
    if charmap is None or definition not in _listed(f"{SOURCES}/locales"):
        return None
    suffix = "" if codeset is None else f".{_plain(codeset)}"
    return definition, charmap, f"{place}{suffix}{modifier}"


def _usual_charmap(name: str) -> str | None:
    """Of a name without one, as the C library's list of locales has it."""
    try:
        with open(f"{SOURCES}/SUPPORTED", encoding="ascii", errors="replace") as file:
            listed = dict(line.split() for line in file if len(line.split()) == 2)
    except OSError:
        return None
    return listed.get(name)


def _plain(codeset: str) -> str:
    """A codeset as glibc compares them (_nl_normalize_codeset)."""
    text = re.sub(r"[^a-z0-9]", "", codeset.lower())
    return f"iso{text}" if text.isdigit() else text


def _is_directory(name: str) -> bool:
    """Whether it is installed beside the archive of locales: there LOCPATH finds it."""
    head, dot, rest = name.partition(".")
    codeset, at, modifier = rest.partition("@")
    places = {name, f"{head}{dot}{_plain(codeset)}{at}{modifier}"} if NAME.fullmatch(name) or head == "C" else set()
    return any("/" not in place and os.path.isdir(os.path.join(INSTALLED, place)) for place in places)


def _of_the_archive() -> Iterator[str]:
    if os.path.exists(f"{INSTALLED}/locale-archive"):
        try:
            yield from run(["localedef", "--list-archive"], timeout=PATIENCE).stdout.split()
        except CommandError:
            return


def _listed(directory: str) -> list[str]:
    try:
        return os.listdir(directory)
    except OSError:
        return []


def how_to_install(names: Sequence[str]) -> str:
    """What to do where this host lacks locales."""
    lines, packages = [], []
    for match in filter(None, map(NAME.fullmatch, names)):
        charmap = "UTF-8" if _plain(match["codeset"] or "") in ("", "utf8") else match["codeset"]
        lines.append(f"{match['place']}.{charmap}{match['modifier'] or ''} {charmap}")
        packages.append(f"glibc-langpack-{match['place'].partition('_')[0]}")
    if not lines:
        return "No glibc has a locale of such a name: start the session on a host of the kind that the copy is from."
    return (
        f"Install it and start the session again: on Debian and Ubuntu apt-get install locales, add the line "
        f"{' and the line '.join(lines)} to /etc/locale.gen, locale-gen; on Fedora and RHEL dnf install "
        f"{' '.join(packages)}."
    )
