#!/usr/bin/python
# Copyright (c) 2026, phpBorg contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: borg_archive_info
short_description: List the archives of a Borg repository and the databases in one of them
version_added: 1.0.0
author: phpBorg contributors (@phpborg)
description:
  - Lists a repository's archives, finds the one that is meant by a name, a glob or V(latest), and tells which databases
    it holds, where in it, of which version, and what kind of copy each is.
  - Databases are recognised by their files, and versions and states are read from them (C(PG_VERSION),
    C(global/pg_control), C(backup_label), C(ibdata1), C(WiredTiger) and the like). How a path is spelled does not
    matter.
  - Nothing is mounted or extracted to disk. Borg is run once for the list, once for the archive's items and once for
    the small files to be read.
  - Where there is no data directory, it is told what there is instead and what to do with it. For that the beginnings
    of up to eight files are looked at, the largest, and before them those that are called like a dump or an image. They
    may be compressed, by zstd and lz4 where these are installed. Borg is run once for the small ones of them and once
    for each of the others.
extends_documentation_fragment:
  - phpborg.instant_recovery.borg
options:
  archive:
    description:
      - Name of an archive, or C(REPOSITORY::NAME).
      - V(latest) is the newest archive. With C(*), C(?) or C([), the newest whose name matches. An archive that really
        has such a name is preferred.
      - Without it, archives are listed and nothing else.
    type: str
  details:
    description:
      - Whether to tell the size, number of files and host of each archive, too.
      - Borg needs its cache for this. On a host that never used the repository it is built first, which can take long.
    type: bool
    default: false
  engine:
    description:
      - Look for a database of this engine only.
    type: str
    choices: [auto, postgresql, mariadb, mysql, mongodb]
    default: auto
  data_directory:
    description:
      - Choose the database with this data directory, a path in the archive as Borg lists it. V(.) is its root.
      - A leading slash does not matter. Links of the archive are followed, and where nothing in the archive has that
        path, what the server itself called its data directory counts, too.
    type: str
  relocated:
    description:
      - Where in the archive directories are that symbolic links lead to, and that are not where these say, as with the
        volumes of a container. A dictionary of what links say, or of directories above that, and paths in the archive
        as Borg lists them. An empty path says that the archive does not have it.
      - Where nothing is said, WAL is known by the cluster it is of, and a tablespace by its version and its databases,
        if just one directory of the archive can be meant.
    type: dict
    default: {}
  require_database:
    description:
      - Whether to fail unless there is exactly one database that fits O(engine) and O(data_directory) and could be
        started, that is, a data directory and not a logical dump.
      - Set it to V(false) to get RV(databases) whatever they are.
    type: bool
    default: true
attributes:
  check_mode:
    description: Can run in check mode and return what it would return otherwise.
    support: full
  diff_mode:
    description: Will return details on what has changed, or would have to change in check mode.
    support: none
    details: Nothing is ever changed.
  idempotent:
    description: When run twice in a row outside check mode, with the same arguments, the second run changes nothing.
    support: full
  platform:
    description: Operating systems that the module works on.
    support: full
    platforms: linux
notes:
  - Fails for a database in an archive that somebody must have made up, also with O(require_database=false). Such an
    archive has a path that leads out of it, lists a path as two things, or has a device node among the database's
    files, or a pipe where the server opens a file.
  - Fails, too, for an archive that has more than a thousand databases, more than a thousand tablespaces or symbolic
    links in one of them, or names of directories and links that take more than 512 MiB of memory.
  - Borg remembers, below C(~/.config/borg) and C(~/.cache/borg), which repositories were opened.
seealso:
  - module: phpborg.instant_recovery.borg_mount
"""

EXAMPLES = r"""
- name: List the archives of a repository
  phpborg.instant_recovery.borg_archive_info:
    repository: ssh://borg@backup.example.com/srv/borg/db1
    passphrase: "{{ vault_borg_passphrase }}"
  register: repository

- name: See which databases are in the newest archive of db1
  phpborg.instant_recovery.borg_archive_info:
    repository: /srv/borg/db1
    archive: db1-*
    passphrase_file: /root/.borg-passphrase
    require_database: false
  register: newest

- name: Find a PostgreSQL cluster to start, one of several in the archive
  phpborg.instant_recovery.borg_archive_info:
    archive: /srv/borg/db1::db1-2026-11-22
    engine: postgresql
    data_directory: var/lib/postgresql/15/main
    passcommand: pass show borg/db1
  register: found
"""

RETURN = r"""
archives:
  description: All archives of the repository, oldest first. Checkpoints of unfinished backups are not among them.
  type: list
  elements: dict
  returned: success
  contains: &archive
    repository:
      description: The repository.
      type: str
    name:
      description: Name of the archive.
      type: str
    id:
      description: Borg's identifier of the archive.
      type: str
    time:
      description: When it was begun, ISO 8601 in UTC.
      type: str
    hostname:
      description: Where it was made; null without O(details).
      type: str
    username:
      description: Who made it; null without O(details).
      type: str
    size:
      description: Bytes of its files, before compression; null without O(details), except in RV(archive).
      type: int
    files:
      description: How many files it has; null without O(details), except in RV(archive).
      type: int
  sample: &archives
    - repository: /srv/borg/db1
      name: db1-2026-11-22
      id: 5014c7a4fa3588a7525db1fd7891d97ce61c9b9d791b16b154c88e4dce438b48
      time: "2026-11-22T01:00:03.000+00:00"
      hostname: null
      username: null
      size: 3979871744
      files: 1714
archive:
  description: The archive that O(archive) means; null without O(archive).
  type: dict
  returned: success
  contains: *archive
  sample:
    repository: /srv/borg/db1
    name: db1-2026-11-22
    id: 5014c7a4fa3588a7525db1fd7891d97ce61c9b9d791b16b154c88e4dce438b48
    time: "2026-11-22T01:00:03.000+00:00"
    hostname: null
    username: null
    size: 3979871744
    files: 1714
databases:
  description:
    - The databases in the archive, by path. Logical dumps are looked for only where there is no data directory, and
      known by what they begin with, however they are called and compressed.
    - Empty without O(archive).
  type: list
  elements: dict
  returned: success
  contains: &database
    engine:
      description: V(postgresql), V(mariadb), V(mysql) or V(mongodb).
      type: str
    version:
      description: The version as the files have it, for PostgreSQL the major version. Null when they do not tell.
      type: str
    data_directory:
      description: The data directory's path in the archive, V(.) for its root; of a logical dump, the file.
      type: str
    kind:
      description:
        - V(clean_shutdown) was copied from a stopped server, V(crash_consistent) from a running one, V(backup_label) by
          C(pg_basebackup) or between the functions that begin and end a backup, V(standby) from a standby.
        - V(logical_dump) is no data directory; V(unknown) means that the files do not tell.
      type: str
    state:
      description: The cluster's state as C(pg_controldata) would print it; the storage engine of MongoDB.
      type: str
    owner:
      description: Owner of the data directory, a name, or a number where the archive has no name.
      type: str
    owner_id:
      description: User id of the owner on the archive's host. Null where it is not known.
      type: int
    size:
      description: Bytes of all its files, tablespaces and WAL included.
      type: int
    original_directory:
      description: Where the server had its data directory, as it noted when it started. Null when unknown.
      type: str
    markers:
      description: Files found that decide how it has to be started, such as C(backup_label) and C(standby.signal).
      type: list
      elements: str
    tablespaces:
      description:
        - PostgreSQL's tablespaces. RV(databases[].tablespaces[].target) is what the link says, or null for a plain
          directory; RV(databases[].tablespaces[].archived_path) is where the content is in the archive, or null.
      type: list
      elements: dict
      contains:
        oid:
          description: The tablespace's identifier, which is the link's name.
          type: int
        target:
          description: Where the link leads on the host it comes from.
          type: str
        archived_path:
          description: Path in the archive.
          type: str
    wal_directory:
      description: Where PostgreSQL's C(pg_wal) is. Null for other engines.
      type: dict
      contains:
        target:
          description: Where the link leads, or null for a plain directory.
          type: str
        archived_path:
          description: Path in the archive, or null when it is not there.
          type: str
        segments:
          description: How many WAL segments are there.
          type: int
    configuration_directory:
      description:
        - Where the archive has PostgreSQL's configuration, when that is outside of the data directory. It is known by
          what the server was started with, by the C(data_directory) it sets, and by Debian's names.
      type: str
    symlinks:
      description: Further symbolic links in the data directory, its tablespaces, and what other such links lead to.
      type: list
      elements: dict
      contains:
        path:
          description: Path in the archive.
          type: str
        target:
          description: What the link says.
          type: str
        archived_path:
          description:
            - Path in the archive of what it leads to. Null where the archive does not have it, and where no server
              needs it.
          type: str
    links:
      description: Where in the archive the directories are that links of all kinds lead to, by the paths of the links.
      type: dict
    control:
      description: What C(global/pg_control) says; null for other engines, and when it cannot be understood.
      type: dict
    refusals:
      description:
        - Sentences about what more than one directory of the archive can be, and what O(relocated) says of it.
        - With O(require_database) the module fails with those of the one database that fits.
      type: list
      elements: str
    problems:
      description:
        - Sentences about what is missing or damaged in the archive.
        - Of RV(database), with O(require_database), Ansible shows them as warnings, too.
      type: list
      elements: str
  sample:
    - &sample
      engine: postgresql
      version: "15"
      data_directory: var/lib/postgresql/15/main
      kind: crash_consistent
      state: in production
      owner: postgres
      owner_id: 101
      size: 3979781632
      original_directory: /var/lib/postgresql/15/main
      markers: []
      tablespaces:
        - oid: 16385
          target: /srv/fast
          archived_path: srv/fast
      wal_directory:
        target: null
        archived_path: var/lib/postgresql/15/main/pg_wal
        segments: 68
      configuration_directory: etc/postgresql/15/main
      symlinks: []
      links: {var/lib/postgresql/15/main/pg_tblspc/16385: srv/fast}
      refusals: []
      control:
        system_identifier: 7442017912345678901
        pg_control_version: 1300
        catalog_version: 202209061
        major: 15
        state: in production
        time: 1795352956
        checkpoint_lsn: 1/2A000060
        redo_lsn: 1/2A000028
        timeline: 1
        min_recovery_point: 0/0
        backup_start_point: 0/0
        backup_end_point: 0/0
        backup_end_required: false
        wal_level: replica
        max_connections: 100
        max_worker_processes: 8
        max_wal_senders: 10
        max_prepared_xacts: 0
        max_locks_per_xact: 64
        block_size: 8192
        wal_segment_size: 16777216
        data_checksum_version: 1
      problems: []
other_backups:
  description:
    - What the archive holds that is a backup, and neither a data directory nor a logical dump. That is a base backup in
      tar format or another tar file, an image of a file system or a disk, the repository of another tool (pgBackRest,
      Barman, WAL-G and others), or what cannot be looked into.
    - Looked for only where there is no data directory.
  type: list
  elements: dict
  returned: success
  contains:
    path:
      description: Path in the archive, of one file that tells.
      type: str
    what:
      description: What it is.
      type: str
    remedy:
      description: What to do with it.
      type: str
  sample: []
database:
  description: The one database that fits O(engine) and O(data_directory); null without O(archive), or when none does.
  type: dict
  returned: success
  contains: *database
  sample: *sample
paths:
  description:
    - What to mount to start RV(database). Its data directory, and what of it is elsewhere in the archive, its
      configuration included.
    - They begin with C(./) where Borg has the archive's paths like that, as C(borg import-tar) may make them. In a
      mount, and in RV(database), they do not.
  type: list
  elements: str
  returned: success
  sample: [var/lib/postgresql/15/main, srv/fast]
directories:
  description:
    - Directories above RV(paths) of which the entry is to be mounted as well, so that they are as closed as they were.
      Those above what links of the data directory lead to, other than tablespaces and the like.
  type: list
  elements: str
  returned: success
  sample: [mnt]
began:
  description: When the module began, in seconds since the epoch by this host's clock.
  type: float
  returned: success
  sample: 1795352701.12
log_archives:
  description:
    - Directories of the archive with PostgreSQL's write-ahead log, other than those of the databases themselves. For
      C(log_source) of M(phpborg.instant_recovery.pg_ephemeral).
    - Where segments lie in a directory for each log, as with Barman and pgBackRest, this is the directory above.
  type: list
  elements: dict
  returned: success
  contains:
    path:
      description: The directory.
      type: str
    segments:
      description: Number of segments, compressed ones among them.
      type: int
    first:
      description: Name of the first.
      type: str
    last:
      description: Name of the last.
      type: str
  sample:
    - path: srv/wal
      segments: 2
      first: "00000001000000000000000A"
      last: "00000001000000000000000B"
elapsed:
  description: Seconds it took.
  type: float
  returned: success
  sample: 1.8
"""

import posixpath
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ..module_utils._borg.location import parse_archive
from ..module_utils._borg.repository import ARGUMENTS, SECRETS, Archive, BorgError, Repository, resolve_archive
from ..module_utils._borg.suspects import TOO_MUCH, ArchiveRefusedError
from ..module_utils._engine.database import Database, DatabaseChoiceError
from ..module_utils._engines.contents import NAMES, choose_database, find_databases, needed_files
from ..module_utils._errors import MORE_TIME, is_plain, run_module, shown, warn
from ..module_utils._host.deadline import deadline
from ..module_utils._host.limits import own_memory

NOTHING: dict[str, Any] = {
    "archive": None,
    "databases": [],
    "other_backups": [],
    "database": None,
    "paths": [],
    "directories": [],
    "log_archives": [],
}


def main() -> None:
    """Wire the arguments to the look into the repository."""
    module = AnsibleModule(
        argument_spec={
            **ARGUMENTS,
            "archive": {"type": "str"},
            "details": {"type": "bool", "default": False},
            "engine": {"type": "str", "choices": ["auto", *NAMES], "default": "auto"},
            "data_directory": {"type": "str"},
            "relocated": {"type": "dict", "default": {}},
            "require_database": {"type": "bool", "default": True},
        },
        mutually_exclusive=[SECRETS],
        supports_check_mode=True,
    )
    run_module(module, lambda: _result(module.params))


def _result(options: dict[str, Any]) -> dict[str, Any]:
    began = time.time()
    repository = Repository.from_options(options)
    archives = repository.list_archives(details=options["details"])
    listed = {"changed": False, "began": began, "archives": [archive.as_dict() for archive in archives]}
    if not options["archive"]:
        return {**listed, **NOTHING}
    return {**listed, **_looked_into(options, repository, archives)}


def _looked_into(options: dict[str, Any], repository: Repository, archives: Sequence[Archive]) -> dict[str, Any]:
    archive = resolve_archive(archives, parse_archive(options["archive"])[1], repository=repository.location)
    late = BorgError(f"The look into archive {archive.name} did not end within {options['timeout']:g} s: {MORE_TIME}.")
    large = ArchiveRefusedError(f"{archive.name} has more to tell than half of this host's memory holds: {TOO_MUCH}")
    with deadline(options["timeout"], late), own_memory(large):
        return _contents(options, repository, archive)


def _contents(options: dict[str, Any], repository: Repository, archive: Archive) -> dict[str, Any]:
    lost: dict[str, BorgError] = {}
    databases, catalogue = find_databases(
        repository.list_items(archive.name),
        read=lambda items: repository.read_what_is_left(archive.name, items, lost),
        begin=lambda items, size: repository.read_beginnings(archive.name, items, size),
        relocated=_relocated(options["relocated"]),
    )
    try:
        chosen = choose_database(
            databases,
            archive=archive.name,
            engine=options["engine"],
            data_directory=options["data_directory"],
            others=catalogue.others,
            places=catalogue.places,
        )
    except DatabaseChoiceError:
        if options["require_database"]:
            raise
        chosen = None
    paths = catalogue.as_mounted(chosen.paths()) if chosen else []
    if chosen is not None:
        catalogue.refuse(chosen)
        _refuse_odd_names(chosen, archive.name)
        _refuse_masking(options["passphrase"], [repository.location, archive.name, *paths])
        _tell(chosen, lost, is_to_be_started=options["require_database"])
    return {
        "archive": replace(archive, size=catalogue.size, files=catalogue.files).as_dict(),
        "databases": [database.as_dict() for database in databases],
        "other_backups": [other.as_dict() for other in catalogue.others],
        "database": chosen.as_dict() if chosen else None,
        "paths": paths,
        "directories": catalogue.as_mounted(chosen.directories()) if chosen else [],
        "log_archives": catalogue.log_archives(databases),
    }


def _tell(chosen: Database, lost: dict[str, BorgError], *, is_to_be_started: bool) -> None:
    """Say what is wrong with the database. lost: errors by the files that the repository has lost."""
    directory = "" if chosen.data_directory == "." else chosen.data_directory
    for name in needed_files(chosen.engine):
        if (path := posixpath.join(directory, name)) in lost:
            raise lost[path]
    if not is_to_be_started:
        return
    if chosen.refusals:
        raise DatabaseChoiceError(" ".join(chosen.refusals))
    for problem in (*chosen.problems, *map(str, lost.values())):
        warn(problem)


def _relocated(given: dict[str, Any]) -> dict[str, str]:
    for name, place in given.items():
        if not name or not (place is None or isinstance(place, str)):
            raise DatabaseChoiceError(
                f"relocated has {name!r}: {place!r}, which is no pair of paths: write what a link says, and where in "
                'the archive that is, such as {"/mnt/fast": "var/lib/docker/volumes/fast/_data"}.'
            )
    return {name: place or "" for name, place in given.items()}


def _refuse_odd_names(chosen: Database, archive: str) -> None:
    """What is a directory's name in commands and results is printed as it is, on terminals too."""
    for path in chosen.paths():
        if not is_plain(path):
            raise DatabaseChoiceError(
                f"The database's directory {shown(path)} in archive {archive} has characters in its name that act on a "
                "terminal or break a line: extract it (borg extract), and archive it by another name."
            )


def _refuse_masking(passphrase: str | None, needed: list[str]) -> None:
    """Ansible masks a secret wherever it occurs in a result, and a location with asterisks in it cannot be mounted."""
    if passphrase and any(passphrase in text for text in needed):
        raise BorgError(
            "The passphrase is also a part of the repository's location, the archive's name or a path in it, where "
            "Ansible masks it. Give the passphrase in a file instead (passphrase_file; borg_passphrase_file in the "
            "start playbook)."
        )


if __name__ == "__main__":
    main()
