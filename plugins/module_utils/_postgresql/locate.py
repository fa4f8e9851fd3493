# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where an archive has what a data directory's links lead to, and the configuration that lies outside of it.

Links are followed through the archive's own links. What is not where they say, such as the volumes of a container, is
known by its content, or by the word of whoever starts a session. What may be two things is neither.
"""

from __future__ import annotations

import json
import posixpath
import re
from typing import TYPE_CHECKING, Any, NamedTuple

from .._borg.suspects import is_below, limit
from .._engine.database import Link
from .._errors import listed, shown
from .._host.links import leading, moved
from .archived_files import CONFIGURATION
from .database_rows import FILE as DATABASES
from .database_rows import oids_in
from .detach import DISPOSABLE, parse_tablespace_map

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from .._engine.listing import Beginnings
    from .archived_files import ArchivedFiles
    from .control import PgControl

__all__ = ["Locator", "Names", "stated_directory"]

OID = re.compile(r"[0-9]{1,10}")
MOST_TABLESPACES, MOST_LINKS = 1000, 1000
MOST_READ = 8  # directories with WAL, each with a call of borg
DATABASES_SIZE = 128 << 10  # bytes of it that are read
DATA_DIRECTORY = re.compile(rb"^[ \t]*data_directory(?:[ \t]*=)?[ \t]*'(/[^'\n]*)'", re.MULTILINE | re.IGNORECASE)
LONG_HEADER, SYSTEM_IDENTIFIER = 0x0002, slice(24, 32)  # in a segment's first page: XLogLongPageHeaderData


class Names(NamedTuple):
    """What files call a data directory and its configuration, on the host that they are from.

    original and configuration (a file) are what its server was started with. stated: by the directories of all other
    postgresql.conf, which data directory they say they are of, or None.
    """

    original: str | None
    configuration: str | None
    stated: Mapping[str, str | None]


class _Found(NamedTuple):
    """Places that a link may mean: by all that can be known of them, and by little."""

    likely: Sequence[str] = ()
    possible: Sequence[str] = ()


class Locator:
    """Finds what belongs to one data directory; `` is the archive's root.

    relocated: where directories of the other host are, says whoever starts a session (path there: path in the archive,
    or nothing where it is not there). links: what was found, by the links' paths. problems are sentences about what is
    missing; refusals those about what only the user can settle.
    """

    def __init__(
        self,
        files: ArchivedFiles,
        directory: str,
        names: Names,
        *,
        control: PgControl | None,
        relocated: Mapping[str, str],
        begin: Beginnings,
    ) -> None:
        self._files, self._listing, self._directory, self._names = files, files.listing, directory, names
        self._control, self._begin = control, begin
        self._given = {_normal(name): _plain(place) for name, place in relocated.items()}
        # The server may have known its data directory by another name, and so do links to what is below it.
        own = {names.original: directory} if names.original not in (None, "/") else {}
        self._moved = {**own, **{name: place for name, place in self._given.items() if place is not None}}
        self._used: set[str] = set()
        self._roots = _roots(directory, names.original)
        self.links: dict[str, str] = {}
        self.problems: list[str] = []
        self.refusals: list[str] = []

    # -- tablespaces

    def tablespaces(self, tablespace_map: bytes) -> tuple[dict[str, Any], ...]:
        """Tablespaces of pg_tblspc, and those that only tablespace_map names."""
        top = posixpath.join(self._directory, "pg_tblspc")
        targets = self._tablespace_targets(top, tablespace_map)
        limit(len(targets), MOST_TABLESPACES, f"tablespaces in {self._directory or '.'}")
        places = {oid: self._tablespace(f"{top}/{oid}", target) for oid, target in sorted(targets.items())}
        taken = list(places.values())
        # One place that may be two tablespaces is neither.
        places = {oid: place if taken.count(place) == 1 else None for oid, place in places.items()}
        lost = {oid: str(targets[oid]) for oid, place in places.items() if place is None}
        unsaid = [oid for oid, target in lost.items() if self._said_of(target) is None]
        found = self._tablespaces_by_content(targets, places) if unsaid else _Found()
        for oid, target in lost.items():
            guessed = found if oid in unsaid else _Found()
            what, missing = f"Tablespace {oid}", f"Tablespace {oid} ({shown(target)}) is not in the archive"
            places[oid] = self._settled(what, target, guessed, missing=missing, is_only=len(unsaid) == 1)
        self._note({f"{top}/{oid}": place for oid, place in places.items() if targets[oid] is not None})
        return tuple({"oid": oid, "target": targets[oid], "archived_path": place} for oid, place in places.items())

    def _tablespace_targets(self, top: str, tablespace_map: bytes) -> dict[int, str | None]:
        """By oid what the links say, None for plain directories."""
        targets: dict[int, str | None] = {}
        for oid, target in parse_tablespace_map(tablespace_map).items():
            targets[int(oid)] = target
        for path in self._listing.links_below(top):
            if posixpath.dirname(path) == top and OID.fullmatch(posixpath.basename(path)):
                targets[int(posixpath.basename(path))] = self._listing.links[path]
        for path in self._files.tablespaces_in(top):
            if OID.fullmatch(posixpath.basename(path)):
                targets[int(posixpath.basename(path))] = None
        return targets

    def _tablespace(self, link: str, target: str | None) -> str | None:
        if target is None:
            return link
        found = self._follow(link, target, self._is_tablespace, "directory of this version")
        if found is not None or self._said_of(target) is not None:
            return found
        similar = [place for place in self._files.tablespaces_like(target.strip("/")) if self._is_tablespace(place)]
        return similar[0] if len(similar) == 1 else None

    def _is_tablespace(self, place: str) -> bool:
        return self._version_directory(place) is not None

    def _version_directory(self, place: str) -> str | None:
        """A tablespace's directory of this version, or of any where pg_control does not tell."""
        control, inside = self._control, self._listing.names_in(place)
        wanted = "PG_" if control is None or control.major is None else f"PG_{control.major}_{control.catalog_version}"
        name = next((name for name in sorted(inside) if name == wanted or wanted == "PG_" == name[:3]), None)
        return None if name is None else posixpath.join(place, name)

    def _tablespaces_by_content(self, targets: Mapping[int, str | None], places: Mapping[int, str | None]) -> _Found:
        """Tablespaces of this version that no other link means; the likely ones have only this cluster's databases."""
        # Another copy of what is found already, from a snapshot for instance, is not what is missing.
        known = [str(targets[oid]).strip("/") for oid, place in places.items() if place is not None]
        other = {*places.values(), *(place for target in known for place in self._files.tablespaces_like(target))}
        free = [place for place in self._files.tablespaces_of_nobody(self._directory) if place not in other]
        inside = {place: directory for place in free if (directory := self._version_directory(place)) is not None}
        expected = self._databases() if inside else set()
        likely = [place for place, directory in inside.items() if set() < self._oids(directory) <= expected]
        return _Found(likely, list(inside))

    def _oids(self, directory: str) -> set[str]:
        return set(filter(OID.fullmatch, self._listing.names_in(directory)))

    def _databases(self) -> set[str]:
        """Oids of the databases: those with a directory in base, and those in the catalogue of all databases."""
        base = self._listing.resolve(posixpath.join(self._directory, "base"), place_of=self._place_of)
        known = self._oids(base) if base is not None else set()
        item = self._listing.markers.get(posixpath.join(self._directory, DATABASES))
        if item is None or self._control is None:
            return known
        found = self._begin([item], DATABASES_SIZE).get(item.path)
        return known | (oids_in(found.content, self._control.block_size) if found is not None else set())

    # -- WAL

    def wal(self) -> dict[str, Any]:
        """Where pg_wal is."""
        path = posixpath.join(self._directory, "pg_wal")
        target = self._listing.links.get(path)
        archived: str | None = path if self._listing.has_directory(path) else None
        if target is not None:
            archived = self._follow(path, target, self._has_segments, "WAL segment")
            if archived is None:
                missing = f"The archive holds no WAL of it (pg_wal leads to {shown(target)})"
                guessed = _Found() if self._said_of(target) is not None else self._wal_like(target)
                archived = self._settled("pg_wal", target, guessed, missing=missing, is_only=True)
            self._note({path: archived})
        segments = self._files.segments(archived) if archived is not None else None
        if target is None and not segments:
            self._note_lack_of_wal()
        return {"target": target, "archived_path": archived, "segments": segments or 0}

    def _note_lack_of_wal(self) -> None:
        """A start uses the only archived WAL that there is; of several the user has to name one."""
        archives = [shown(one["path"]) for one in self._files.log_archives([])]
        if len(archives) > 1:
            self.problems.append(
                f"The archive holds no WAL of it but in several archives of WAL ({listed(archives)}): name one, such "
                f"as log_source=archive:/{archives[0]}."
            )
        elif not archives:
            self.problems.append("The archive holds no WAL of it.")

    def _has_segments(self, place: str) -> bool:
        return bool(self._files.segments(place))

    def _wal_like(self, target: str) -> _Found:
        """Directories with WAL of this cluster, known by their paths, or else by the WAL.

        Those are likely that have what a server makes in its own: an archive of WAL may end before the data do.
        """
        similar = self._files.wal_directories_like(target.strip("/"))
        if len(similar) == 1:
            return _Found(similar, similar)
        if self._control is None:
            return _Found()
        begun = self._begin(self._files.wal_of_nobody(self._directory, MOST_READ), SYSTEM_IDENTIFIER.stop)
        identifier = self._control.system_identifier
        own = sorted(posixpath.dirname(path) for path, found in begun.items() if _is_of(identifier, found.content))
        return _Found([one for one in own if self._listing.has_directory(f"{one}/archive_status")], own)

    # -- other links

    def other_links(self, parts: Sequence[str]) -> tuple[Link, ...]:
        """Links other than pg_wal and those of tablespaces: in parts, and in what these lead to."""
        wal, tablespaces = (posixpath.join(self._directory, name) for name in ("pg_wal", "pg_tblspc"))
        found: dict[str, Link] = {}
        known = list(parts)
        for part in known:  # which grows
            for path in self._listing.links_below(part):
                if path in found or path == wal or posixpath.dirname(path) == tablespaces:
                    continue
                found[path] = self._other_link(path, known)
                limit(len(found), MOST_LINKS, f"symbolic links in {self._directory or '.'}")
                place = self.links.get(path)
                if place is not None and not any(is_below(place, one) for one in known):
                    known.append(place)
        return tuple(found[path] for path in sorted(found))

    def _other_link(self, path: str, parts: Sequence[str]) -> Link:
        target = self._listing.links[path]
        resolved = posixpath.normpath(posixpath.join(posixpath.dirname(path), target))
        if not target.startswith("/") and any(is_below(resolved, part) for part in parts):
            return Link(path, target, resolved)

        def is_other(place: str) -> bool:
            """Whether it is a directory, and none that has a part in it: that would lead round and round."""
            return self._listing.has_directory(place) and not any(is_below(part, place) for part in parts)

        place = self._follow(path, target, is_other, "directory") if self._is_opened(path) else None
        self._note({path: place})
        return Link(path, target, place)

    def _is_opened(self, path: str) -> bool:
        """Whether the server opens what is there, and a session has nothing of its own in its place."""
        if not is_below(path, self._directory):
            return True  # in a tablespace, or in what a link leads to
        top = path[len(self._directory) :].lstrip("/").partition("/")[0]
        return top in ("base", "global") or (top.startswith("pg_") and top not in ("pg_log", *DISPOSABLE))

    # -- configuration

    def configuration(self, major: str) -> str | None:
        """The directory of its configuration, where that is outside of it, as Debian has it."""
        for found in self._configurations(major):
            is_apart = not is_below(self._directory, found) and not is_below(found, self._directory)
            if is_apart and self._listing.has(found, CONFIGURATION):
                return found
        return None

    def _configurations(self, major: str) -> Iterator[str]:
        """What may be it: by a link or the server's options, by its own word, and by Debian's names."""
        link = posixpath.join(self._directory, CONFIGURATION)
        for start in (self._listing.links.get(link), self._names.configuration):
            for place in self._places(link, start) if start is not None else ():
                if posixpath.basename(place) == CONFIGURATION:
                    yield posixpath.dirname(place)
        meant = {directory: self._meant(directory) for directory in sorted(self._names.stated)}
        yield from (directory for directory, places in meant.items() if self._directory in places)
        others = {
            one for one, places in meant.items() if any(self._listing.has(place, "PG_VERSION") for place in places)
        }
        for name in dict.fromkeys(map(posixpath.basename, (self._directory, self._names.original or ""))):
            found = (posixpath.join(root, "etc/postgresql", major, name) for root in self._roots)
            yield from (directory for directory in found if directory not in others)

    def _meant(self, directory: str) -> list[str]:
        """The places that may be the data directory which the configuration in directory states."""
        stated = self._names.stated[directory]
        roots = leading(directory) if stated is not None else ()
        found = (self._listing.resolve(stated or "", root=root, place_of=self._place_of) for root in roots)
        return [place for place in found if place is not None]

    # -- links in general

    def _follow(self, link: str, target: str, exists: Callable[[str], bool], what: str) -> str | None:
        """Where a link leads to, if exists says that it is there; what `relocated` says has to be there."""
        name = self._said_of(target)
        if name is not None:
            self._used.add(name)
            if self._given[name] is None:
                return None
        found = next(filter(exists, self._places(link, target)), None)
        if found is None and name is not None:
            said = f"relocated says that {shown(name or '/')} is in {shown(self._given[name] or '')}"
            self.refusals.append(
                f"{said}, where the archive has no {what} for the link {shown(link)} to {shown(target)}: name another "
                "directory, as borg list shows it."
            )
        return found

    def _places(self, link: str, target: str) -> Iterator[str]:
        """Where a link may lead to in the archive, the likeliest place first."""
        start = target if target.startswith("/") else posixpath.join(posixpath.dirname(link), target)
        if not target.startswith("/") and (name := self._said_of(target)) is not None:
            start = self._given[name] or ""
        for root in self._roots:
            place = self._listing.resolve(start, root=root, place_of=self._place_of)
            if place is not None:
                yield place

    def _said_of(self, target: str) -> str | None:
        """What of `relocated` is about a link's target: of absolute ones, also about a directory above."""
        if target.startswith("/"):
            found = moved(target, {name: place or "" for name, place in self._given.items()})
            return None if found is None else found[0]
        return _normal(target) if _normal(target) in self._given else None

    def _place_of(self, path: str) -> str | None:
        found = moved(path, self._moved)
        if found is None:
            return None
        self._used.add(found[0])
        return found[1]

    def _settled(self, what: str, target: str, found: _Found, *, missing: str, is_only: bool) -> str | None:
        """The one place that is likely; else what to say."""
        if is_only and len(found.likely) == 1:
            return found.likely[0]
        if found.likely:
            example = json.dumps({"relocated": {target: found.likely[0]}})
            self.refusals.append(
                f"{what} is a link to {shown(target)}, which is not there in the archive, and it may be any of these "
                f"directories: {listed(found.likely)}. Say which with relocated, such as {example}."
            )
        elif found.possible:
            self.problems.append(f"{missing}, unless it is one of {listed(found.possible)}: then say so (relocated).")
        else:
            self.problems.append(f"{missing}.")
        return None

    def _note(self, places: Mapping[str, str | None]) -> None:
        self.links.update({link: place for link, place in places.items() if place is not None})

    def look_at_relocated(self) -> None:
        """Tell what `relocated` says of nothing; after everything has been looked for."""
        for name in sorted(self._given.keys() - self._used):
            directory = shown(self._directory or ".")
            self.problems.append(
                f"relocated names {shown(name or '/')}, and no link of {directory} leads there: name what such a link "
                "says, or a directory above that."
            )


def stated_directory(configuration: bytes) -> str | None:
    """The data directory that a postgresql.conf says it is of."""
    found = DATA_DIRECTORY.findall(configuration)
    return posixpath.normpath(found[-1].decode("utf-8", "surrogateescape")) if found else None


def _roots(directory: str, original: str | None) -> list[str]:
    """Directories of the archive that may have been `/`: nothing, or a snapshot's mount point.

    Its server's name for the data directory tells; else it may be any of those above, of which the longest is nearest.
    """
    name = (original or "").lstrip("/")
    known = [directory[: -len(name)].rstrip("/")] if name and f"/{directory}".endswith(f"/{name}") else []
    return list(dict.fromkeys([*known, *([""] if known else []), *leading(directory)]))


def _normal(name: str) -> str:
    """A path as it is compared: absolute ones without what says nothing."""
    return posixpath.normpath(name).replace("//", "/", 1).rstrip("/")


def _plain(place: str) -> str | None:
    """A path of the archive as it is listed, or None for none."""
    return posixpath.normpath(place.lstrip("/")) if place else None


def _is_of(system_identifier: int, segment: bytes) -> bool:
    """Whether a segment of WAL begins as those of the cluster do."""
    has_long_header = int.from_bytes(segment[2:4], "little") & LONG_HEADER
    return bool(has_long_header) and int.from_bytes(segment[SYSTEM_IDENTIFIER], "little") == system_identifier
