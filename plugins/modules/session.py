#!/usr/bin/python
# Copyright (c) 2026, phpBorg contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: session
short_description: Begin and end an instant recovery session
version_added: 1.0.0
author: phpBorg contributors (@phpborg)
description:
  - Keeps the directory and the record of a session on the host, and removes everything the session consists of.
  - The other modules of this collection take the directory as their option C(session_directory), and record in it what
    they do. The playbooks of this collection put them together in the right order.
options:
  state:
    description:
      - V(present) makes a session that is about to be started, on a host that has what it takes. What
        M(phpborg.instant_recovery.host_preflight) finds missing is an error here.
        It becomes C(active) when the engine's module has started the server.
      - V(absent) stops its server, unmounts what it mounted, removes its directory and keeps its last record. It undoes
        what the session has recorded, in reverse order, and works after a crash or a reboot, too.
    type: str
    choices: [present, absent]
    default: present
  session_id:
    description:
      - Name of the session. Required unless O(state=present), which otherwise makes one up from the time.
      - With O(state=absent), V(all) stands for every session below O(session_root).
    type: str
  session_root:
    description:
      - Directory that holds the sessions.
      - The default is C(/var/lib/instant_recovery) for root and C(instant_recovery) in the user's state directory
        otherwise.
    type: path
  driver:
    description: The copy-on-write driver that the session is to use, for O(state=present).
    type: str
    choices: [auto, block, overlayfs]
    default: auto
  minimum_free:
    description: Room that must be free for the session's changes, in bytes or with a unit such as V(500M).
    type: str
    default: 1G
  server_user:
    description:
      - User who will run the database server, for O(state=present). Only root can name another than itself.
      - The default is the user whom the module runs as, and for root the first of O(server_user_choices).
    type: str
  server_user_choices:
    description:
      - Users of whom the first that this host has is to run the server, if the module runs as root. Root itself is
        passed over. Where the host has none of them, it is the last one, and an error.
    type: list
    elements: str
    default: []
  host:
    description: Name of this host for the record, as the inventory has it.
    type: str
  deployment_location:
    description: Whether this host is the controller itself, for the record.
    type: str
    choices: [local, remote]
  engine:
    description: Database engine, for the record.
    type: str
  engine_version:
    description: Version of the engine, for the record.
    type: str
  archive:
    description: The archive that the session is of, for the record.
    type: dict
    suboptions:
      repository:
        description: Repository, as Borg is told.
        type: str
      name:
        description: Name of the archive.
        type: str
      id:
        description: Id of the archive.
        type: str
      time:
        description: When the archive was made.
        type: str
  data_directory:
    description: Path of the data directory in the archive, for the record.
    type: str
  timings:
    description: Seconds that steps have taken before there was a session, by the name of the step.
    type: dict
    default: {}
  began:
    description:
      - When the start began, in seconds since the epoch. The total time counts from then.
      - The default is the time when the session is made.
    type: float
  ttl:
    description: How long the session is to live once its server runs, such as V(2h). V(0) is for ever.
    type: str
    default: "0"
  error_message:
    description: Why the start has failed, for O(state=absent). The session ends as C(failed) and not as C(stopped).
    type: str
  lock_timeout:
    description: Seconds to wait while another module is at work on the session.
    type: int
    default: 60
extends_documentation_fragment:
  - phpborg.instant_recovery.attributes
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
  idempotent:
    support: partial
    details: With O(state=present) and no O(session_id) every run makes a session.
  platform:
    support: full
    platforms: linux
seealso:
  - module: phpborg.instant_recovery.session_info
"""

EXAMPLES = r"""
- name: Make a session
  phpborg.instant_recovery.session:
    server_user: postgres
    engine: postgresql
    ttl: 2h
  register: begun

- name: Stop it
  phpborg.instant_recovery.session:
    state: absent
    session_id: "{{ begun.session.id }}"

- name: Stop all sessions of this host
  phpborg.instant_recovery.session:
    state: absent
    session_id: all
"""

RETURN = r"""
session:
  description:
    - The session's record. Null with O(session_id=all).
    - Its keys are those that M(phpborg.instant_recovery.session_info) explains.
  type: dict
  returned: success
  sample:
    id: 20261122-130501-9c1e
    status: starting
    engine: postgresql
    created_at: "2026-11-22T13:05:01.120+00:00"
    timings: {}
sessions:
  description: The records of all sessions that this was about, one unless O(session_id=all).
  type: list
  elements: dict
  returned: success
  sample: []
session_directory:
  description: The session's directory, for the option C(session_directory) of the other modules. Null with
    O(session_id=all), and in check mode for a session whose name is not known yet.
  type: str
  returned: success
  sample: /var/lib/instant_recovery/20261122-130501-9c1e
directories:
  description: Paths of the parts of the session's directory, C(archive), C(upper), C(merged), C(run) and C(log). Empty
    where RV(session_directory) is null.
  type: dict
  returned: success
  sample:
    archive: /var/lib/instant_recovery/20261122-130501-9c1e/archive
    upper: /var/lib/instant_recovery/20261122-130501-9c1e/upper
    merged: /var/lib/instant_recovery/20261122-130501-9c1e/merged
    run: /var/lib/instant_recovery/20261122-130501-9c1e/run
    log: /var/lib/instant_recovery/20261122-130501-9c1e/log
driver:
  description: The driver that the session can use, V(block) or V(overlayfs). Null unless a session was made.
  type: str
  returned: success
  sample: block
python:
  description: A Python that has pyfuse3, for the driver V(block). Null unless one was found and a session made.
  type: str
  returned: success
  sample: /usr/bin/python3
cpus:
  description: How many CPUs the session may use.
  type: int
  returned: success
  sample: 2
server_user:
  description: User who will run the server. Null unless a session was made.
  type: str
  returned: success
  sample: postgres
remains:
  description: What could not be removed. The session stays until it is stopped again.
  type: list
  elements: str
  returned: failure, when O(state=absent)
  sample: ["process 4711 (postgres)"]
elapsed:
  description: Seconds this took.
  type: float
  returned: success
  sample: 0.02
"""

import os
import pwd
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._errors import RecoveryError, run_module
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._preflight import (
    DRIVERS,
    Host,
    Report,
    examine,
    parse_size,
)
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._session import (
    DIRECTORIES,
    Session,
    SessionError,
    SessionGoneError,
    default_root,
    parse_duration,
    public,
)
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._teardown import tear_down

FIELDS = ("host", "deployment_location", "engine", "engine_version", "archive", "data_directory", "timings", "began")


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
            "session_id": {"type": "str"},
            "session_root": {"type": "path"},
            "driver": {"type": "str", "choices": list(DRIVERS), "default": "auto"},
            "minimum_free": {"type": "str", "default": "1G"},
            "server_user": {"type": "str"},
            "server_user_choices": {"type": "list", "elements": "str", "default": []},
            "host": {"type": "str"},
            "deployment_location": {"type": "str", "choices": ["local", "remote"]},
            "engine": {"type": "str"},
            "engine_version": {"type": "str"},
            "archive": {
                "type": "dict",
                "options": {name: {"type": "str"} for name in ("repository", "name", "id", "time")},
            },
            "data_directory": {"type": "str"},
            "timings": {"type": "dict", "default": {}},
            "began": {"type": "float"},
            "ttl": {"type": "str", "default": "0"},
            "error_message": {"type": "str"},
            "lock_timeout": {"type": "int", "default": 60},
        },
        required_if=[("state", "absent", ["session_id"])],
        supports_check_mode=True,
    )
    actions = {"present": _present, "absent": _absent}
    root = module.params["session_root"] or default_root()
    run_module(module, lambda: actions[module.params["state"]](root, module.params, module.check_mode))


def _present(root: str, params: dict[str, Any], check_mode: bool) -> dict[str, Any]:
    session_id = params["session_id"]
    session = Session.find(root, session_id) if session_id else None
    if session is not None:
        return _result(session.directory, public(session.record), public(session.record))
    if session_id and Session.ended(root, session_id) is not None:
        raise SessionError(f"Session {session_id} has ended and keeps its id: choose another one.")
    fields = {**{name: params[name] for name in FIELDS}, "ttl": parse_duration(params["ttl"])}
    report = _ready_host(root, params)
    user = params["server_user"] or _server_user(params["server_user_choices"])
    if check_mode:
        planned = {**fields, "id": session_id, "status": "starting"}
        made = _result(os.path.join(root, session_id) if session_id else None, {}, public(planned))
    else:
        session = Session.create(root, session_id=session_id, user=user, fields=fields)
        made = _result(session.directory, {}, public(session.record))
    warnings = {"warnings": list(report.warnings)} if report.warnings else {}  # Ansible shows them
    return {**made, **warnings, "driver": report.driver, "python": report.python, "server_user": user}


def _ready_host(root: str, params: dict[str, Any]) -> Report:
    """What the host has for a session. Raises SessionError where something is missing."""
    free = parse_size(params["minimum_free"], option="minimum_free")
    report = examine(Host.look(), driver=params["driver"], session_root=root, minimum_free=free)
    if report.problems:
        sentences = " ".join(f"{problem.what}: {problem.remedy}." for problem in report.problems)
        raise SessionError(f"This host cannot run sessions. {sentences}", problems=report.as_result()["problems"])
    return report


def _server_user(choices: list[str]) -> str:
    """Who runs the server: whoever we are, unless root, who leaves it to the first of choices that exists."""
    me = pwd.getpwuid(os.geteuid()).pw_name
    if os.geteuid() != 0:
        return me
    accounts = {entry.pw_name for entry in pwd.getpwall() if entry.pw_uid != 0}
    return next((name for name in choices if name in accounts), (me, *choices)[-1])


def _absent(root: str, params: dict[str, Any], check_mode: bool) -> dict[str, Any]:
    if params["session_id"] == "all":
        results, failures = [], []
        for session in Session.all(root):
            try:
                results.append(_end(root, session, params, check_mode))
            except RecoveryError as error:
                failures.append(error)
        if failures:
            remains = [what for error in failures for what in error.details.get("remains", [])]
            raise SessionError(" ".join(str(error) for error in failures), remains=remains)
        return {
            **_result(None, None, None),
            "changed": any(result["changed"] for result in results),
            "diff": [result["diff"] for result in results],
            "sessions": [result["session"] for result in results],
        }
    found = Session.find(root, params["session_id"])
    if found is None:
        return _already_ended(root, params["session_id"])
    return _end(root, found, params, check_mode)


def _end(root: str, session: Session, params: dict[str, Any], check_mode: bool) -> dict[str, Any]:
    if session.problem:
        raise SessionError(session.problem)
    before = public(session.record)
    status = "failed" if params["error_message"] else "stopped"
    if check_mode:
        return _result(session.directory, before, public({**before, "status": status}), ended=True)
    try:
        remains = tear_down(
            session, status=status, error_message=params["error_message"], timeout=params["lock_timeout"]
        )
    except SessionGoneError:  # somebody else was quicker
        return _already_ended(root, session.id)
    if remains:
        raise SessionError(str(session.record["error_message"]), remains=remains)
    return _result(session.directory, before, public(session.record), ended=True)


def _already_ended(root: str, session_id: str) -> dict[str, Any]:
    record = Session.ended(root, session_id)
    if record is None:
        raise _unknown(root, session_id)
    return _result(os.path.join(os.path.realpath(root), session_id), public(record), public(record))


def _unknown(root: str, session_id: str) -> SessionError:
    known = ", ".join(session.id for session in Session.all(root)) or "none"
    return SessionError(
        f"There is no session {session_id} in {root}. Sessions there: {known}. Name one of them, or its session_root."
    )


def _result(
    directory: str | None, before: dict[str, Any] | None, after: dict[str, Any] | None, *, ended: bool = False
) -> dict[str, Any]:
    """The module's result. before and after: the record, {} where there is none; ended: no session is left after it."""
    return {
        "changed": before != after,
        "diff": {"before": before or {}, "after": {} if ended else after or {}},
        "session": after,
        "sessions": [after] if after else [],
        **dict.fromkeys(("driver", "python", "server_user")),
        "cpus": len(os.sched_getaffinity(0)),
        "session_directory": directory,
        "directories": {name: os.path.join(directory, name) for name in DIRECTORIES} if directory else {},
    }


if __name__ == "__main__":
    main()
