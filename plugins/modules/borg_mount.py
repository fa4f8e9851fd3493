#!/usr/bin/python
# Copyright (c) 2026, phpBorg contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: borg_mount
short_description: Mount a Borg archive read-only
version_added: 1.0.0
author: phpBorg contributors (@phpborg)
description:
  - Mounts one archive of a Borg repository, or some of its paths, through FUSE.
  - Can mount the same archive several times at once, so that it can be read in parallel. A single Borg mount decodes
    one chunk after the other.
  - Root is not needed. What an ordinary user mounts belongs to that user.
  - All mounts are made, or none. What a killed Borg left behind is cleaned up first.
extends_documentation_fragment:
  - phpborg.instant_recovery.borg
options:
  archive:
    description:
      - Name of an archive, or C(REPOSITORY::NAME). M(phpborg.instant_recovery.borg_archive_info) finds the newest one,
        or one by a pattern.
      - Required with O(state=mounted).
    type: str
  mountpoint:
    description:
      - Directory to mount on, empty or not existing yet.
      - With more than one of O(readers), directories V(1), V(2) and so on in it are mounted on.
    type: path
    required: true
  paths:
    description:
      - Paths in the archive, as Borg lists them. Only they, and what is below them, are mounted, at their full path.
      - Without it, or with C(.), the whole archive is mounted.
      - Paths that begin with C(./), as C(tar -cf - . | borg import-tar) makes them, have to be given like that, C(./)
        for all of them. They are mounted without it, and paths that do not begin with it are not mounted then.
      - A Borg that has less to mount needs less memory and time.
    type: list
    elements: str
    default: []
  directories:
    description:
      - Directories above O(paths), as Borg lists them. Of each the entry alone is mounted, which says who may enter it.
      - Directories that are not named are open to everybody in the mount, as Borg makes them up.
    type: list
    elements: str
    default: []
  strip_components:
    description:
      - How many leading components to remove from the archive's paths.
    type: int
    default: 0
  readers:
    description:
      - How many identical mounts to make.
    type: int
    default: 1
  owner:
    description:
      - User to whom, and to whose group, everything in the mount is to belong. The user must exist on the host.
      - The default is the user who mounts, or for root the archived owners, by name.
    type: str
  allow_other:
    description:
      - Whether users other than the one who mounts may look into the mount. The archived permissions hold for them.
      - For an ordinary user, C(user_allow_other) must be set in C(/etc/fuse.conf).
    type: bool
    default: false
  names:
    description:
      - Whether to have Borg list O(paths) while it mounts them, and keep names and attributes in the session's
        directory, from which the layer answers in place of the mount.
      - Of archives with many thousands of files, look-ups are most of what a start takes.
    type: bool
    default: false
  state:
    description:
      - V(mounted) leaves a mount of the same archive as it is, whatever its O(paths), and refuses anything else that is
        mounted there.
      - V(unmounted) unmounts all Borg mounts at and below O(mountpoint) and waits for their processes to end.
    type: str
    choices: [mounted, unmounted]
    default: mounted
  session_directory:
    description:
      - Directory of a session to record the mounts in, so that they end with it.
    type: path
  log_directory:
    description:
      - Directory for Borg's logs, C(borg-1.log) and so on, one JSON object a line.
      - The default is C(log) in O(session_directory). Without a session, the log is only kept for an error message.
    type: path
attributes:
  check_mode:
    description: Can run in check mode and return changed status prediction without modifying target.
    support: full
    details: Borg is not run, so a missing archive or a wrong passphrase is not noticed.
  diff_mode:
    description: Will return details on what has changed, or would have to change in check mode.
    support: full
  idempotent:
    description: When run twice in a row outside check mode, with the same arguments, the second run changes nothing.
    support: full
  platform:
    description: Operating systems that the module works on.
    support: full
    platforms: linux
notes:
  - Borg keeps up to 8 decoded chunks, of about 2 MiB, for each mount. The environment variable
    E(BORG_MOUNT_DATA_CACHE_ENTRIES) changes the number.
seealso:
  - module: phpborg.instant_recovery.borg_archive_info
  - module: phpborg.instant_recovery.overlay_mount
"""

EXAMPLES = r"""
- name: Mount an archive
  phpborg.instant_recovery.borg_mount:
    archive: /srv/borg/db1::db1-2026-11-22
    passphrase_file: /root/.borg-passphrase
    mountpoint: /mnt/db1

- name: Mount a data directory of it twice, as the user postgres sees its own files
  phpborg.instant_recovery.borg_mount:
    repository: ssh://borg@backup.example.com/srv/borg/db1
    archive: db1-2026-11-22
    passphrase: "{{ vault_borg_passphrase }}"
    mountpoint: /run/db1
    paths: [var/lib/postgresql/15/main]
    owner: postgres
    readers: 2

- name: Unmount whatever archive is mounted there
  phpborg.instant_recovery.borg_mount:
    mountpoint: /run/db1
    state: unmounted
"""

RETURN = r"""
mountpoint:
  description: The directory that was given.
  type: str
  returned: success
  sample: /run/db1
mountpoints:
  description: Where the archive is mounted, one for each reader; empty with O(state=unmounted).
  type: list
  elements: str
  returned: success
  sample: [/run/db1/1, /run/db1/2]
pids:
  description: The Borg processes that serve RV(mountpoints). Empty with O(state=unmounted), and in check mode.
  type: list
  elements: int
  returned: success
  sample: [4711, 4712]
elapsed:
  description: Seconds it took.
  type: float
  returned: success
  sample: 0.8
"""

import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext, suppress
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ..module_utils._borg.location import parse_archive
from ..module_utils._borg.mount import ArchiveMount, mounted_archives, unmount_archives
from ..module_utils._borg.names import write_names
from ..module_utils._borg.repository import ARGUMENTS, SECRETS, BorgError, Repository, plain_path
from ..module_utils._errors import run_module
from ..module_utils._host.links import is_within
from ..module_utils._host.mounts import mount_at
from ..module_utils._keeper.keeper import ensure_keeper
from ..module_utils._session.directory import NAMES
from ..module_utils._session.session import Session, claiming_if_given

GRACE = 60.0  # seconds beyond its time-outs that mounting may take to give up by itself


def main() -> None:
    """Wire the arguments to mounting or unmounting."""
    module = AnsibleModule(
        argument_spec={
            **ARGUMENTS,
            "archive": {"type": "str"},
            "mountpoint": {"type": "path", "required": True},
            "paths": {"type": "list", "elements": "str", "default": []},
            "directories": {"type": "list", "elements": "str", "default": []},
            "strip_components": {"type": "int", "default": 0},
            "readers": {"type": "int", "default": 1},
            "owner": {"type": "str"},
            "allow_other": {"type": "bool", "default": False},
            "names": {"type": "bool", "default": False},
            "state": {"type": "str", "choices": ["mounted", "unmounted"], "default": "mounted"},
            "session_directory": {"type": "path"},
            "log_directory": {"type": "path"},
        },
        mutually_exclusive=[SECRETS],
        required_if=[("state", "mounted", ["archive"])],
        supports_check_mode=True,
    )
    action = _mount if module.params["state"] == "mounted" else _unmount
    run_module(module, lambda: action(module.params, check_mode=module.check_mode))


def _mount(options: dict[str, Any], *, check_mode: bool) -> dict[str, Any]:
    begun = time.monotonic()
    request = _request(options)
    directory = options["session_directory"]
    if check_mode and directory is not None and not os.path.isdir(directory):
        directory = None  # it would have been made
    with claiming_if_given(directory) as session:
        if check_mode:
            missing = request.missing(session)
        else:
            # It waits for Borg twice: until it has mounted, and until it answers.
            with (
                session.within(2 * request.repository.timeout + GRACE) if session else nullcontext(),
                _listing_names(request, session if options["names"] else None),
            ):
                missing = request.mount(session)
            if session is not None:
                _record(session, request, missing, time.monotonic() - begun)
        pids = request.pids(session)
    before = [mountpoint for mountpoint in request.mountpoints if mountpoint not in missing]
    return _result(request.mountpoint, before=before, after=request.mountpoints, pids=pids)


@contextmanager
def _listing_names(request: ArchiveMount, session: Session | None) -> Iterator[None]:
    """Write the session's file of names meanwhile. Where that cannot be done, the mount answers as it would have."""
    if session is None or os.path.exists(session.path(NAMES)):
        yield
        return
    with ThreadPoolExecutor(1) as pool:
        listed = request.repository.list_names(request.archive, request.paths)
        roots = [plain_path(path) for path in request.paths]
        written = pool.submit(write_names, session.path(NAMES), listed, roots=roots)
        yield
    with suppress(BorgError):
        written.result()


def _record(session: Session, request: ArchiveMount, mounted_now: list[str], seconds: float) -> None:
    """The first archive that is mounted is what the session is of, and is kept mounted; others are beside it."""
    mountpoint = request.mountpoint
    first = session.record.borg_mount_point
    mounted = [claim.mountpoint for claim in session.record.claims if claim.kind == "mount"]
    if mountpoint != first and first and any(is_within(other, first) for other in mounted):
        session.timing(f"borg_mount_{os.path.basename(mountpoint)}", seconds)
        return
    session.update(borg_mount_point=mountpoint)
    if mounted_now:  # else this says nothing of what mounting takes
        ensure_keeper(session, request.remounts(session))
        session.timing("borg_mount", seconds)


def _unmount(options: dict[str, Any], *, check_mode: bool) -> dict[str, Any]:
    mountpoint = _real(options["mountpoint"])
    if check_mode:
        before = mounted_archives(mountpoint)
    else:
        with claiming_if_given(options["session_directory"]) as session:
            before = unmount_archives(mountpoint, session)
    return _result(mountpoint, before=sorted(before), after=[], pids=[])


def _result(mountpoint: str, *, before: list[str], after: list[str], pids: list[int]) -> dict[str, Any]:
    return {
        "changed": before != after,
        "mountpoint": mountpoint,
        "mountpoints": after,
        "pids": pids,
        "diff": {"before": {"mounted": before}, "after": {"mounted": after}},
    }


def _request(options: dict[str, Any]) -> ArchiveMount:
    if options["readers"] < 1:
        raise BorgError(f"readers is {options['readers']}. At least one mount is needed.")
    return ArchiveMount(
        repository=Repository.from_options(options),
        archive=parse_archive(options["archive"])[1],
        mountpoint=_real(options["mountpoint"]),
        paths=tuple(options["paths"]),
        directories=tuple(options["directories"]),
        strip_components=options["strip_components"],
        readers=options["readers"],
        owner=options["owner"],
        allow_other=options["allow_other"],
        log_directory=options["log_directory"],
    )


def _real(path: str) -> str:
    """path as the mount table has it; a mount point is not looked at, for a dead mount would not answer."""
    plain = os.path.join(os.path.realpath(os.path.dirname(os.path.abspath(path))), os.path.basename(path.rstrip("/")))
    return plain if mount_at(plain) is not None else os.path.realpath(plain)


if __name__ == "__main__":
    main()
