#!/usr/bin/python
# Copyright (c) 2026, phpBorg contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: copy_plan_info
short_description: Tell what the start of a server from a Borg archive would do
version_added: 1.0.0
author: phpBorg contributors (@phpborg)
description:
  - Looks at a data directory in an archive as the engine's module does before it starts a server, such as
    M(phpborg.instant_recovery.pg_ephemeral), and tells what that would cut loose from production, what it would carry
    over, and to which point it would recover.
  - Fails with the same words where a start would be refused, for instance because logs or a tablespace are missing.
  - The archive is mounted read-only in a private temporary directory, and only while the module runs. Should it be
    killed, Borg unmounts by itself. Nothing is written, no server is started and no session is recorded.
extends_documentation_fragment:
  - phpborg.instant_recovery.borg
  - phpborg.instant_recovery.engine
  - phpborg.instant_recovery.postgresql
  - phpborg.instant_recovery.mysql
options:
  engine:
    description:
      - Whose data directory it is. Of the options below, those of other engines do not count.
    type: str
    choices: [postgresql, mysql]
    required: true
  archive:
    description:
      - Name of the archive, or C(REPOSITORY::NAME). M(phpborg.instant_recovery.borg_archive_info) finds it.
    type: str
    required: true
  paths:
    description:
      - What to mount of it. The data directory, and what of it is elsewhere in the archive.
    type: list
    elements: str
    required: true
  data_directory:
    description:
      - Path of the data directory in the archive.
    type: str
    required: true
  links:
    description:
      - Where in the archive the directories are that symbolic links lead to, see
        M(phpborg.instant_recovery.pg_ephemeral).
    type: dict
    default: {}
  configuration_directory:
    description:
      - Directory of the configuration in the archive, where that is not in O(data_directory).
    type: str
  log_source:
    description:
      - Directory of archived logs on this host, or with O(log_archive) a path in that archive.
    type: str
  log_archive:
    description:
      - The archive that O(log_source) is in, as C(REPOSITORY::NAME).
    type: str
  user:
    description:
      - User who would run the server. The default is the one who runs the module; it cannot be root.
    type: str
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
  - What is in the catalogs (settings of roles, subscriptions) can only be read by a server, so it is not told.
  - Also the programs of the archived server's version are needed, to read its logs.
seealso:
  - module: phpborg.instant_recovery.pg_ephemeral
  - module: phpborg.instant_recovery.mysql_ephemeral
  - module: phpborg.instant_recovery.borg_archive_info
"""

EXAMPLES = r"""
- name: Find the database
  phpborg.instant_recovery.borg_archive_info:
    archive: /srv/borg/db1::latest
    passphrase_file: /root/.borg-passphrase
  register: found

- name: Look what a session of it would do
  phpborg.instant_recovery.copy_plan_info:
    engine: postgresql
    repository: "{{ found.archive.repository }}"
    archive: "{{ found.archive.name }}"
    paths: "{{ found.paths }}"
    data_directory: "{{ found.database.data_directory }}"
    user: postgres
    passphrase_file: /root/.borg-passphrase
    recovery_target_time: "2026-11-22T14:05:00+01"
    log_source: /srv/wal_archive
  register: plan
"""

RETURN = r"""
version:
  description: Version of the server that would be started.
  type: str
  returned: success
  sample: "15.18"
neutralised:
  description:
    - What would be done to keep the copy away from production. C(SESSION) stands for the session's directory.
  type: list
  elements: dict
  returned: success
  contains:
    what:
      description: What would be changed.
      type: str
    why:
      description: What would happen otherwise.
      type: str
  sample:
    - what: standby.signal removed
      why: as a standby the server would connect to production and never accept a write
carried_over:
  description: What the session would have as production had it, and what of that this host could not give it.
  type: list
  elements: dict
  returned: success
  contains:
    what:
      description: Settings and their values.
      type: str
    why:
      description: Why they would be kept, or would not.
      type: str
  sample:
    - what: TimeZone=Europe/Berlin, DateStyle=iso, dmy
      why: results of queries depend on it
settings:
  description: The settings that the server's configuration file would have.
  type: dict
  returned: success
  sample: {fsync: "off", shared_buffers: 128MB, TimeZone: Europe/Berlin}
recovery:
  description: The point that would be recovered to. Null for the end of the copy's own logs.
  type: str
  returned: success
  sample: recovery_target_time 2026-11-22T14:05:00+01
elapsed:
  description: Seconds it took.
  type: float
  returned: success
  sample: 1.4
"""

import os
import pwd
import shutil
import tempfile
from contextlib import ExitStack, suppress
from dataclasses import replace
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ..module_utils._borg.location import parse_archive
from ..module_utils._borg.mount import ArchiveMount, unmount_archives
from ..module_utils._borg.repository import ARGUMENTS as BORG_ARGUMENTS
from ..module_utils._borg.repository import SECRETS, Repository, plain_path
from ..module_utils._engine.interface import ARGUMENTS, Plan, Request
from ..module_utils._engine.links import resolve_within
from ..module_utils._engines.servers import ENGINES
from ..module_utils._errors import RecoveryError, run_module, text_shown
from ..module_utils._host.command import account
from ..module_utils._host.mounts import unmounted_with_its_users
from ..module_utils._session.directory import TEMPORARY

GRACE = 30  # seconds
ASKED = ("bindir", "settings", "read_only", "network", "accept_unconfined", "timeout", "links")


def main() -> None:
    """Wire the arguments to the look at the copy."""
    module = AnsibleModule(
        argument_spec={
            **BORG_ARGUMENTS,
            **ARGUMENTS,
            **{name: spec for engine in ENGINES.values() for name, spec in engine.arguments.items()},
            "engine": {"type": "str", "choices": list(ENGINES), "required": True},
            "archive": {"type": "str", "required": True},
            "paths": {"type": "list", "elements": "str", "required": True},
            "data_directory": {"type": "str", "required": True},
            "links": {"type": "dict", "default": {}},
            "configuration_directory": {"type": "str"},
            "log_source": {"type": "str"},
            "log_archive": {"type": "str"},
            "user": {"type": "str"},
        },
        mutually_exclusive=[SECRETS],
        required_by={"log_archive": ["log_source"]},
        supports_check_mode=True,
    )
    run_module(module, lambda: _result(module.params))


def _result(options: dict[str, Any]) -> dict[str, Any]:
    engine = ENGINES[options["engine"]]
    with ExitStack() as undo:
        top = os.path.realpath(tempfile.mkdtemp(prefix="instant-recovery-"))
        undo.callback(_remove_directory, top)
        temporary = os.path.join(top, TEMPORARY)
        os.mkdir(temporary, 0o700)
        undo.callback(shutil.rmtree, temporary, ignore_errors=True)
        asked = Request(
            directory=top,
            data_directory="",
            account=account(options["user"] or pwd.getpwuid(os.geteuid()).pw_name),
            as_archived=True,
            configuration=options["configuration_directory"],
            **{name: options[name] for name in ASKED},
        )
        request = engine.request(asked, options)  # before anything is mounted: it need not be, to be refused
        tree = _mounted(options, options["archive"], options["paths"], request.tree, undo)
        request = replace(
            request,
            data_directory=_inside(tree, options["data_directory"]),
            log_source=_log_source(options, os.path.join(top, "log_archive"), undo),
        )
        try:
            told: dict[str, Any] = _named(_told(engine.plan(request)), top)
        except RecoveryError as error:
            failure = RecoveryError(_named(str(error), top), **_named(error.details, top))
        else:
            return told
        raise failure  # without the other's traceback, which holds what is open in the mount


def _inside(tree: str, path: str) -> str:
    """A path of the archive, mounted at tree. Its links mean what they meant where the archive is from, not here."""
    place = resolve_within(tree, plain_path(path))
    if place is None:
        raise RecoveryError(
            f"data_directory {path} is not in what was mounted of the archive (paths), or is a link that leads out of "
            "it: name a directory that the archive has."
        )
    return place


def _told(plan: Plan) -> dict[str, Any]:
    return {
        "changed": False,
        "version": plan.version,
        "neutralised": text_shown(plan.neutralised),
        "carried_over": text_shown(plan.carried_over),
        "settings": plan.settings,
        "recovery": plan.target,
        **({"warnings": list(plan.warnings)} if plan.warnings else {}),
    }


def _mounted(options: dict[str, Any], archive: str, paths: list[str], mountpoint: str, undo: ExitStack) -> str:
    """Mount these paths of an archive at mountpoint, until undo is done."""
    repository, name = parse_archive(archive)
    if repository is not None:
        options = {**options, "repository": repository}
    undo.callback(_remove_directory, mountpoint)
    mount = ArchiveMount(
        repository=Repository.from_options({**options, "archive": name}),
        archive=name,
        mountpoint=mountpoint,
        paths=tuple(paths),
        owner=options["user"],
        # Mounting may take its time, and looking as well.
        tied_to=undo.enter_context(unmounted_with_its_users(mountpoint, within=2 * options["timeout"] + GRACE)),
        temporary=os.path.join(os.path.dirname(mountpoint), TEMPORARY),
    )
    mount.mount(None)
    undo.callback(unmount_archives, mountpoint, None)
    return mountpoint


def _log_source(options: dict[str, Any], mountpoint: str, undo: ExitStack) -> str | None:
    source: str | None = options["log_source"]
    if source is None or options["log_archive"] is None:
        return source
    mounted = _mounted(options, options["log_archive"], [source], mountpoint, undo)
    return os.path.join(mounted, plain_path(source))


def _remove_directory(path: str) -> None:
    """What is not empty stays: it may be a mount that could not be undone."""
    with suppress(OSError):
        os.rmdir(path)


def _named(value: Any, top: str) -> Any:
    """A value with the session's directory in place of ours, which will be gone."""
    if isinstance(value, str):
        return value.replace(top, "SESSION")
    if isinstance(value, dict):
        return {key: _named(one, top) for key, one in value.items()}
    return [_named(one, top) for one in value] if isinstance(value, (list, tuple)) else value


if __name__ == "__main__":
    main()
