# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Backups of PostgreSQL that no server can be started on: dumps, base backups in tar files, other tools' repositories.

They are known by the first bytes of their files, and the repositories by names that only these have. What is kept is
bounded: whoever made the archive may wish this host ill.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from .._engine.other_backups import Dump, OtherBackup, dump_of

__all__ = ["Signs", "dump_in", "tar_of_postgresql"]

DUMP = re.compile(rb"\APGDMP|^-- PostgreSQL database (?:cluster )?dump", re.MULTILINE)
# As pg_basebackup -Ft calls the data directory and its WAL.
TAR_NAME = re.compile(r"(?P<part>base|pg_wal)\.tar(?:\.(?:gz|bz2|xz|zst|lz4))?")
WAL_MEMBER = re.compile(r"[0-9A-F]{24}")
TABLESPACE_MEMBER = re.compile(r"PG_[0-9]+_[0-9]{9}(?:/|\Z)")
MOST_TAR_SETS = 100  # directories with what may be a base backup in tar format
BASE_BACKUP = "a base backup of PostgreSQL in tar format"
UNPACK_BASE = (
    "unpack it into an empty directory, pg_wal.tar into its pg_wal, and archive that directory with borg create; a "
    "base.tar that has its WAL in it can be taken as it is (borg import-tar)"
)


def dump_in(header: bytes, members: Sequence[str]) -> Dump | None:
    """The dump that begins like this, or is a tar file with these members."""
    return dump_of("postgresql", DUMP, header) or (Dump("postgresql", None) if "toc.dat" in members else None)


def tar_of_postgresql(path: str, members: Sequence[str]) -> OtherBackup | None:
    """What of PostgreSQL is in a tar file with these members."""
    if "backup_label" in members:
        return OtherBackup(path, BASE_BACKUP, UNPACK_BASE)
    if members and all(WAL_MEMBER.fullmatch(name) or name.startswith("archive_status") for name in members):
        return OtherBackup(path, "WAL of PostgreSQL in tar format", "archive it unpacked, to name it as log_source")
    if members and all(TABLESPACE_MEMBER.match(name) for name in members):
        return OtherBackup(path, "a tablespace of PostgreSQL in tar format", "unpack it where the base backup has it")
    return None


class _Tool(NamedTuple):
    name: str
    sign: re.Pattern[str]  # of a path; what fits two is the first's
    remedy: str


RESTORE = (
    "have it restore that to a directory ({how}), and archive the directory; the archived WAL can be its log_source"
)
DAY, TIME = "[0-9]{8}", "[0-9]{6}"
TOOLS = (
    _Tool(
        "Barman",
        re.compile(rf"(?:\A|/)(?:base/{DAY}T{TIME}/backup\.info|meta/{DAY}T{TIME}-backup\.info)\Z"),
        RESTORE.format(how="barman recover SERVER latest DIRECTORY"),
    ),
    _Tool(
        "pgmoneta",
        re.compile(rf"(?:\A|/)backup/{DAY}{TIME}/backup\.info\Z"),
        RESTORE.format(how="pgmoneta-cli restore SERVER newest current DIRECTORY"),
    ),
    _Tool(
        "pgBackRest",
        re.compile(
            rf"(?:\A|/)(?:backup/[^/]+/backup\.info|{DAY}-{TIME}F(?:_{DAY}-{TIME}[DI])?/backup\.manifest)(?:\.copy)?\Z"
        ),
        RESTORE.format(how="pgbackrest --stanza=NAME --pg1-path=DIRECTORY restore"),
    ),
    _Tool(
        "WAL-G or WAL-E",
        re.compile(r"(?:\A|/)basebackups_[0-9]{3}/[^/]+_backup_stop_sentinel\.json\Z"),
        RESTORE.format(how="wal-g backup-fetch DIRECTORY LATEST"),
    ),
    _Tool(
        "pg_probackup",
        re.compile(r"(?:\A|/)backup_content\.control\Z"),
        RESTORE.format(how="pg_probackup restore -B CATALOG --instance NAME -D DIRECTORY"),
    ),
)
# Whatever one of the signs is the name of ends with one of these, which is soon seen.
SIGN_ENDINGS = (
    "backup.info",
    "backup.info.copy",
    "backup.manifest",
    "backup.manifest.copy",
    "_sentinel.json",
    "_content.control",
)


# A full backup of pg_probackup has the names of a data directory, in `database` beside this file, also without
# compression; what is in the files, pages with headers of its own, no server can read.
PAGES = "backup.control"
PAGES_DIRECTORY = "database"


@dataclass
class Signs:
    """Names of an archive that only other tools' backups have, noted while its item list streams by.

    keep is told of each path that is kept: one of each tool, and some of base backups in tar format. pages: by the
    directories that would pass for data directories, what tells that they are none.
    """

    keep: Callable[[str], None]
    tools: dict[str, OtherBackup] = field(default_factory=dict)
    pages: dict[str, OtherBackup] = field(default_factory=dict)
    _tars: dict[str, dict[str, str]] = field(default_factory=dict)

    def note(self, path: str, directory: str, name: str) -> None:
        """Look at the path of one file."""
        if name == PAGES:
            self.keep(path)
            what = OtherBackup(path, f"of a repository of {TOOLS[-1].name}", TOOLS[-1].remedy)
            self.pages[posixpath.join(directory, PAGES_DIRECTORY)] = what
        elif name.endswith(SIGN_ENDINGS):
            tool = next((tool for tool in TOOLS if tool.sign.search(path)), None)
            if tool is not None and tool.name not in self.tools:
                self.keep(path)
                self.tools[tool.name] = OtherBackup(path, f"of a repository of {tool.name}", tool.remedy)
        elif name == "backup_manifest":
            self._note_tar(directory, "manifest", path)
        elif ".tar" in name and (match := TAR_NAME.fullmatch(name)):
            self._note_tar(directory, match["part"], path)

    def _note_tar(self, directory: str, part: str, path: str) -> None:
        if directory not in self._tars:
            if len(self._tars) >= MOST_TAR_SETS:
                return
            self.keep(directory)
            self._tars[directory] = {}
        if part not in self._tars[directory]:
            self.keep(path)
            self._tars[directory][part] = path

    def found(self) -> list[OtherBackup]:
        """What the names tell. A base.tar alone may be anything: its content tells."""
        sets = [parts["base"] for parts in self._tars.values() if "base" in parts and len(parts) > 1]
        return [*self.tools.values(), *(OtherBackup(path, BASE_BACKUP, UNPACK_BASE) for path in sorted(sets))]
