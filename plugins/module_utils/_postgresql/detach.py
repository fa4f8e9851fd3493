# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Cutting the files of a copied data directory loose from the production server they were copied from.

First everything is looked at and nothing is opened that a link could lead elsewhere; the outcome is a list of steps,
or one error that names every obstacle. Then the steps are done. They change the merged tree alone: links are replaced,
never followed, not even on the way to what is changed, and the archive is never written. The settings that complete
this are in `_postgresql/settings.py`.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from .._engine.links import Link, archived_places, directory_within, find_links, place_within
from .._engine.steps import Step
from .._host.files import is_directory, is_file, names_in
from .._host.links import is_within
from .backup import Backup, as_utf8, read_backup
from .cluster import DataDirectory, PostgresError, read_regular_file
from .recovery import CURE, missing_wal
from .wal import TablespaceRecord, format_position, tablespace_records, wal_segments

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from .wal import WalDump
    from .wal_archive import WalArchive

__all__ = [
    "AUTO_CONF",
    "OPTIONS",
    "OPTIONS_ASIDE",
    "SET_ASIDE",
    "Clone",
    "parse_tablespace_map",
    "plan_clone",
    "silenced",
]

AUTO_CONF = "postgresql.auto.conf"
SET_ASIDE = "postgresql.auto.conf.archived"  # kept beside it: a later start carries settings over from it
OPTIONS, OPTIONS_ASIDE = "postmaster.opts", "postmaster.opts.archived"  # likewise; a server writes its own
MOST_TOLD = 50  # sentences about what stands in the way
LEFT_OUT = "instant_recovery_left_out"  # directory of the data directory; in it one for each tablespace that is missing

# Files that must not be there when the server starts.
REMOVED_FILES = (
    ("postmaster.pid", "it names a process of the machine that was backed up; here that number is something else"),
    ("standby.signal", "as a standby the server would connect to production and never accept a write"),
    ("recovery.signal", "it would fetch WAL by production's restore_command"),
    ("recovery.conf", "it holds production's restore_command and primary_conninfo"),
)

# Looked at one by one, also where they are links.
REPLACED = (AUTO_CONF, *(file for file, _why in REMOVED_FILES))

# Directories that the server wants and that hold nothing worth having in a copy: often left out of backups.
DISPOSABLE = ("pg_dynshmem", "pg_notify", "pg_replslot", "pg_serial", "pg_snapshots", "pg_stat_tmp", "pg_subtrans")
# Directories that the server wants, too; backup programs that skip empty directories lose them.
NEEDED = (
    *DISPOSABLE,
    "pg_commit_ts",
    "pg_logical",
    "pg_logical/mappings",
    "pg_logical/snapshots",
    "pg_stat",
    "pg_tblspc",
    "pg_twophase",
)

# A line of tablespace_map, and one in a table of psql's.
MAP_LINE = re.compile(r"([0-9]{1,10}) (/[\s\S]*)")
FRAMED_LINE = re.compile(r"(?:[^|]*\|)?[ \t]*([0-9]{1,10}) (/[\s\S]*)")

# Links that lead out of the tree and are in nobody's way: a session has its own configuration and log.
UNUSED_LINKS = (
    *("*.conf", "conf.d", "*.crt", "*.key", "*.pem", "*.crl", "*.history", "*.done", "*.pid", "*.opts"),
    *("log", "pg_log", "serverlog", "current_logfiles", "core"),
)


@dataclass(frozen=True)
class Clone:
    """What has to be changed in the tree, where the WAL is, and what the copy says about its recovery.

    left_out: by their oids, the directories that stand for tablespaces which the archive does not have. made: oids of
    those that the WAL makes.
    """

    steps: list[Step]
    wal: str
    backup: Backup
    left_out: dict[str, str] = field(default_factory=dict)
    made: frozenset[str] = frozenset()


def plan_clone(
    data: DataDirectory,
    tree: str,
    *,
    known: Mapping[str, str] | None = None,
    archive: WalArchive | None = None,
    waldump: WalDump | None = None,
    timeout: float = 600,
    recovering: bool = False,
    is_recovered: bool = False,
    leave_out: bool = False,
) -> Clone:
    """What has to be changed in data, whose copies of other directories are in tree, before a server may open it.

    known: where in tree directories are that links lead to, as far as this is known, by the links' paths below tree.
    archive: WAL that recovery has beside the copy's own.
    waldump: runs pg_waldump of this version, where it is installed. timeout: seconds to go through the WAL without it.
    recovering: whether archive recovery is wanted, to which the end of the copy's own WAL is not the end.
    is_recovered: whether an earlier start recovered this very copy.
    leave_out: whether to go on without tablespaces that are not in the tree.
    Raises PostgresError that names everything which stands in the way (also as the list `problems`).
    """
    planner = _Planner(data, tree, known or {}, archive)
    planner.leave_out, planner.is_recovered = leave_out, is_recovered
    steps = list(planner.steps())
    if planner.problems or planner.wal is None:
        first = planner.problems[:MOST_TOLD]
        rest = f"; and {len(planner.problems) - MOST_TOLD} more" if len(planner.problems) > MOST_TOLD else ""
        raise PostgresError(f"The copy in {data.path} cannot be started: {'; '.join(first)}{rest}.", problems=first)
    backup = planner.backup
    made: set[str] = set()
    if data.control.state != "shut down" or backup.is_labelled or recovering:
        records = tablespace_records(planner.wal, backup.start, waldump=waldump, timeout=timeout)
        made = {str(record.oid) for record in records}
        told = [(silenced(record), record.patches) for record in records]
        steps += [Step("patch", planner.wal, one["what"], one["why"], patches=patches) for one, patches in told]
    return Clone(steps, planner.wal, backup, planner.left_out, frozenset(made))


def parse_tablespace_map(content: bytes) -> dict[str, str]:
    """Directory of each tablespace (by its oid) in a file tablespace_map, as pg_backup_stop() returns it.

    Scripts write it with line breaks of Windows, in UTF-16, or as the table that psql prints.
    """
    # A line break within a path is written as backslash and line break, a backslash as two.
    lines = re.findall(r"(?:[^\\\n\r]|\\[\s\S])+", os.fsdecode(as_utf8(content)))
    found = [MAP_LINE.fullmatch(line) for line in lines]
    if None in found:
        found = [FRAMED_LINE.fullmatch(line.rstrip("+|").rstrip(" \t")) for line in lines]
    return {match[1]: re.sub(r"\\([\s\S])", r"\1", match[2]) for match in found if match is not None}


class _Planner:
    """Looks at one data directory. problems collects what stands in the way; the methods yield the steps."""

    def __init__(self, data: DataDirectory, tree: str, known: Mapping[str, str], archive: WalArchive | None) -> None:
        self.data = data
        self.tree = tree
        self.known = known
        self.problems: list[str] = []
        self.links = {os.path.relpath(link.path, data.path): link for link in find_links(data.path)}
        self.leave_out = self.is_recovered = False
        self.tablespaces: dict[str, str] = {}
        self.left_out: dict[str, str] = {}
        self.moved: set[str] = set()  # paths of links that have their steps
        self.wal: str | None = self._path("pg_wal")
        self.archive = archive
        self.backup = read_backup(data, self._history)

    def steps(self) -> Iterator[Step]:
        """Everything, in an order that can be done as it stands: directories before what is in them."""
        yield from self._mode()
        yield from self._wal()
        yield from self._tablespaces()
        yield from self._other_links()
        yield from self._removed_files()
        yield from self._label()
        yield from self._archived_alter_system()
        yield from self._options()
        yield from self._slots()
        yield from self._missing_directories()
        self._check_wal()
        if self.backup.is_incremental:
            self.problems.append(
                "it is an incremental backup, which has only what changed since an earlier one: put the chain together "
                "with pg_combinebackup and archive that, or use the archive of a full backup"
            )

    def _path(self, name: str) -> str:
        return os.path.join(self.data.path, name)

    def _directory(self, name: str) -> str | None:
        """Where a directory of the data directory is, or will be when its link is re-pointed; None: not in the tree."""
        path = self._path(name)
        if not os.path.islink(path):
            return path
        if place_within(path, self.tree) is not None:
            return directory_within(path, self.tree)
        places = archived_places(self.tree, self.data.path, Link(path, os.readlink(path)), known=self.known)
        return places[0] if places else None

    def _history(self, name: str) -> bytes | None:
        """A backup's history file, of the copy or the archive; through a link it is not looked for."""
        own = None if os.path.islink(self._path("pg_wal")) else read_regular_file(self._path(f"pg_wal/{name}"))
        return self.archive.read(name) if own is None and self.archive is not None else own

    def _mode(self) -> Iterator[Step]:
        if self.data.mode & 0o027:
            yield Step(
                "private",
                self.data.path,
                f"mode of the data directory changed from {self.data.mode:04o} to 0700",
                "PostgreSQL refuses a data directory that others can enter",
            )

    def _wal(self) -> Iterator[Step]:
        link = self.links.pop("pg_wal", None)
        if link is None:
            return
        if (place := directory_within(link.path, self.tree)) is not None:
            self.wal = place
            return
        places = archived_places(self.tree, self.data.path, link, known=self.known)
        self.wal = next((place for place in places if wal_segments(place)), None)
        if self.wal is None:
            self.problems.append(
                f"pg_wal is a link to {link.target}, which is not in the archive, and without its write-ahead log the "
                "copy is not consistent: use an archive that has this directory as well, taken at the same moment, or "
                "say where in the archive it is (relocated)"
            )
            return
        why = f"the link led to {link.target}, where the server would have written production's own WAL"
        yield Step("link", link.path, f"pg_wal re-pointed to {self.wal}", why, self.wal)

    def _tablespaces(self) -> Iterator[Step]:
        mapped = parse_tablespace_map(read_regular_file(self._path("tablespace_map")) or b"")
        links = {}
        if directory := self._directory("pg_tblspc"):  # None: _other_links tells
            found = find_links(directory) if is_directory(directory) else ()
            links = {os.path.basename(link.path): link for link in found if os.path.dirname(link.path) == directory}
            for oid, target in mapped.items():
                links.setdefault(oid, Link(os.path.join(directory, oid), target))
        for name, link in sorted(links.items()):
            self.links.pop(f"pg_tblspc/{name}", None)
            self.moved.add(link.path)
            yield from self._tablespace(f"pg_tblspc/{name}", link)
        if os.path.lexists(self._path("tablespace_map")):
            why = "from it the server would make the tablespaces' links anew, leading to production's files"
            yield Step("remove", self._path("tablespace_map"), "tablespace_map removed", why)

    def _tablespace(self, name: str, link: Link) -> Iterator[Step]:
        version = f"PG_{self.data.major}_{self.data.control.catalog_version}"
        oid = os.path.basename(name)
        instead = self._path(f"{LEFT_OUT}/{oid}")
        found = directory_within(link.path, self.tree) if os.path.islink(link.path) else None
        if found is not None:
            self.tablespaces[name] = found
            if self.tablespaces[name] == instead:
                self.left_out[oid] = os.path.join(instead, version)
            # Unless recovery has come to its end, parts of the tablespace may be there, taken from the WAL.
            if self.tablespaces[name] != instead or self.is_recovered:
                return
        places = archived_places(self.tree, self.data.path, link, known=self.known)
        place = next((place for place in places if directory_within(os.path.join(place, version), self.tree)), None)
        if place is None and self.leave_out:
            yield from self._without(link, oid, os.path.join(instead, version))
            return
        if place is None:
            self.problems.append(
                f"tablespace {oid} is a link to {link.target}, and the archive has no such directory with {version} in "
                "it: use an archive that has this directory as well, say where in the archive it is (relocated), or go "
                "on without what lies there (missing_tablespaces=leave_out)"
            )
            return
        self.tablespaces[name] = place
        why = f"the link led to {link.target}, where the server would have written production's own files"
        yield Step("link", link.path, f"{name} re-pointed to {place}", why, place)

    def _without(self, link: Link, oid: str, directory: str) -> Iterator[Step]:
        """An empty tablespace: to whatever lies in it the server says that there is no such file."""
        instead = os.path.dirname(directory)
        self.tablespaces[os.path.relpath(link.path, self.data.path)] = instead
        self.left_out[oid] = directory
        above = self._path(LEFT_OUT)
        if not is_directory(above):
            if len(self.left_out) == 1:
                if os.path.lexists(above):
                    yield Step("remove", above, f"{LEFT_OUT} of the archive removed", "its name is needed")
                yield Step("directory", above, "", "")
        elif os.path.lexists(instead):
            yield Step("remove", instead, "", "")
        yield Step("directory", instead, "", "")
        yield Step("directory", directory, "", "")
        what = f"tablespace {oid} ({link.target}) left out: its link leads to the empty directory {instead}"
        why = "the archive does not have it, and the link led to production's own files"
        yield Step("link", link.path, what, why, instead)

    def _other_links(self) -> Iterator[Step]:
        beside = {*self.tablespaces.values(), *([self.wal] if self.wal else [])}
        for name, link in self.links.items():
            if name == LEFT_OUT and self.left_out:
                continue  # replaced by a directory of ours
            if (place := place_within(link.path, self.tree)) is not None:
                beside.add(place)
            elif name in REPLACED:
                continue
            elif "/" not in name and any(fnmatchcase(name, pattern) for pattern in UNUSED_LINKS):
                why = "it leads out of the copy, and a session has its own"
                yield Step("remove", link.path, f"link {name} to {link.target} removed", why)
            elif name in DISPOSABLE:
                why = "the link leads out of the copy, and what it leads to is of no use in a copy"
                yield Step("directory", link.path, f"link {name} to {link.target} replaced by an empty directory", why)
            else:
                yield from self._moved_link(name, link, beside)
        # What lies inside the data directory has been looked at already; what is beside it may lead further.
        seen: set[str] = set()
        while ahead := sorted(path for path in beside - seen if self._is_beside(path)):
            seen.update(ahead)
            for link in (link for directory in ahead for link in find_links(directory)):
                if (place := place_within(link.path, self.tree)) is not None:
                    beside.add(place)
                elif link.path not in self.moved:
                    yield from self._moved_link(link.path, link, beside)

    def _is_beside(self, path: str) -> bool:
        return is_within(path, self.tree) and not is_within(path, self.data.path) and is_directory(path)

    def _moved_link(self, name: str, link: Link, beside: set[str]) -> Iterator[Step]:
        """Have it lead to what the archive has of its target, which is then beside the data directory."""
        places = archived_places(self.tree, self.data.path, link, known=self.known)
        if not places:
            self.problems.append(_leads_out(name, link))
            return
        beside.add(places[0])
        why = f"the link led to {link.target}, outside of the copy"
        yield Step("link", link.path, f"{name} re-pointed to {places[0]}", why, places[0])

    def _removed_files(self) -> Iterator[Step]:
        for name, why in REMOVED_FILES:
            if os.path.lexists(self._path(name)):
                yield Step("remove", self._path(name), f"{name} removed", why)

    def _label(self) -> Iterator[Step]:
        if self.backup.problem is not None:
            self.problems.append(self.backup.problem)
        if self.backup.label is not None:
            what = "backup_label brought into the form that pg_backup_stop() returned it in"
            why = "the server reads no other, such as psql's table or one with line breaks of Windows"
            yield Step("write", self._path("backup_label"), what, why, content=self.backup.label)

    def _archived_alter_system(self) -> Iterator[Step]:
        path = self._path(AUTO_CONF)
        why = "the server reads it after its configuration, whatever that is"
        if os.path.islink(path):
            yield Step("remove", path, f"link {AUTO_CONF} to {os.readlink(path)} removed", why)
            return
        # In a copy that a start of this session has recovered it is the session's own; the archive can hold any name.
        content = None if self.is_recovered else read_regular_file(path)
        names = sorted({name.decode() for name in re.findall(rb"(?m)^[ \t]*([A-Za-z_][\w.]*)", content or b"")})
        if names:
            if is_directory(self._path(SET_ASIDE)):
                yield Step("remove", self._path(SET_ASIDE), f"directory {SET_ASIDE} removed", "its name is needed")
            yield Step("set_aside", path, f"{AUTO_CONF} emptied ({', '.join(names)})", why, SET_ASIDE)

    def _options(self) -> Iterator[Step]:
        """What the server was started with makes room for what ours is started with, and is not reported."""
        path, aside = self._path(OPTIONS), self._path(OPTIONS_ASIDE)
        if self.is_recovered or not is_file(path):
            return
        if is_directory(aside):
            yield Step("remove", aside, "", "")
        yield Step("rename", path, "", "", aside)

    def _slots(self) -> Iterator[Step]:
        directory = self._path("pg_replslot")
        for name in names_in(directory):
            why = "it would keep WAL for a receiver that belongs to production"
            yield Step("remove", os.path.join(directory, name), f"replication slot {name} removed", why)

    def _missing_directories(self) -> Iterator[Step]:
        for name in NEEDED:
            above, last = os.path.split(name)
            directory = self._directory(above) if above else self.data.path
            if directory is not None and not os.path.lexists(os.path.join(directory, last)):
                why = "the server does not start without it, and the archive does not have it"
                yield Step("directory", os.path.join(directory, last), f"empty directory {name} made", why)

    def _check_wal(self) -> None:
        if self.wal is None or self.backup.problem is not None:
            return
        first = self.backup.start.segment
        source = "backup_label" if self.backup.is_labelled else "pg_control"
        # The timeline is the first third of the name: after a promotion the segment may carry the next one's.
        missing = missing_wal(self.backup, self.wal, self.archive)
        where = "neither the archived pg_wal nor log_source has"
        if self.archive is None:
            where = "the archived pg_wal does not have"
        if missing == first:
            self.problems.append(f"recovery has to begin in WAL segment {first} ({source}), which {where}: {CURE}")
        elif missing is not None:
            self.problems.append(
                f"recovery needs the WAL from segment {first} ({source}) on, up to "
                f"{format_position(self.backup.end or 0)}, and segment {missing} is missing, which {where}: {CURE}"
            )


def _leads_out(name: str, link: Link) -> str:
    return (
        f"{name} is a link to {link.target}, which leads out of the copy to files that belong to this host, and the "
        "archive has no such directory (no link to a single file is followed): use one that has it, or say where in "
        "the archive it is (relocated)"
    )


def silenced(record: TablespaceRecord) -> dict[str, str]:
    """What was done to a record, and why."""
    return {
        "what": f"creation of tablespace {record.oid} in {record.location} taken out of the WAL",
        "why": "replayed, it would link the copy to that directory, and production's files in it would be written",
    }
