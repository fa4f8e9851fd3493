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
      - V(extended) lets a running session live for O(ttl) from now, and gives it a keeper if it has none any more.
      - V(reset) stops its server, unmounts the copy-on-write layer and drops all changes. Archive, port and credentials
        stay. Then O(phpborg.instant_recovery.overlay_mount#module:state=remounted) and, with PostgreSQL,
        O(phpborg.instant_recovery.pg_ephemeral#module:state=restarted) start it again.
    type: str
    choices: [present, absent, extended, reset]
    default: present
  session_id:
    description:
      - Name of the session. With O(state=present) one is made up from the time where it is not given.
      - With O(state=absent), V(all) stands for every session below O(session_root).
    type: str
  session_root:
    description:
      - Directory that holds the sessions. It and every directory above it belong to root or to the user whom the module
        runs as. Nobody else may write there, unless it is above and sticky, as C(/tmp) is.
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
      - The default is the user whom the module runs as, and for root a user id of the session's own, which nothing
        else on the host has. With the driver V(overlayfs) it is C(nobody).
    type: str
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
  owner_id:
    description:
      - User id of the data directory's owner on the archive's host, as M(phpborg.instant_recovery.borg_archive_info)
        tells it.
      - Where root starts the session, the layer presents only this user's files as the server's, with the driver
        C(block). What else the archive has, and a link leads to, the server cannot open then, as in production.
        Without it, everything is presented as the server's.
    type: int
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
    description:
      - How long the session is to live once its server runs, such as V(2h). V(0) is for ever.
      - With O(state=extended), how long from now on. Without it, only O(idle_timeout) is changed.
    type: str
  idle_timeout:
    description: After how long without a client's query the session is to end, such as V(30m). V(0) is never.
    type: str
  free_space_floor:
    description:
      - Room that sessions leave to others, as a share of the disk such as V(5%), but 1 GiB at least, or a size such as
        V(10G). When less is free, the session that takes most ends.
    type: str
    default: 5%
  max_upper_size:
    description:
      - Disk space that the session's changes, logs and other files may take, such as V(20G), before it ends. V(0) is
        any.
    type: str
    default: "0"
  memory_max:
    description:
      - Memory that the session may take, such as V(4G) or V(25%) of the host's, and V(256M) at least. V(0) is any.
      - Where systemd runs the host and the module runs as root, it is for all of the session's processes together, with
        what the kernel keeps of their files. Otherwise for the private data of each process of the server.
    type: str
    default: 50%
  cpu_weight:
    description:
      - Share of the processors when they are short, from 1 to 10000. A service of the host has 100.
      - Without systemd, or as an ordinary user, it is a nice value, and for a user never better than the usual one.
    type: int
    default: 100
  io_weight:
    description:
      - The same for reading from and writing to disks, where their scheduler knows of it. Without systemd, or as an
        ordinary user, it is a priority as ionice(1) sets it.
    type: int
    default: 100
  max_sessions:
    description: How many sessions there may be below O(session_root), this one included. V(0) is any number.
    type: int
    default: 50
  metrics_textfile:
    description:
      - File to tell the host's sessions in to Prometheus, for node_exporter's textfile collector. It is written anew
        about once a minute.
      - The path is absolute and ends in C(.prom). What is there already must be such a file of sessions, and other
        users must not be able to write to the directory.
    type: path
  port:
    description:
      - The port that the server is going to be started with. When it is taken that is said here, before anything is
        mounted. It is not held until then.
    type: int
  suspend_after:
    description:
      - After this time without a read the archive is suspended, which saves about 40 MiB of memory each. The
        next read mounts it again, which takes a second or two. V(0) is never.
      - V(auto) is ten times what mounting the archive took, but a minute at least. So what is slow to come back is held
        for longer.
      - What cannot be resumed so easily stays mounted - an archive whose lock is held (option C(lock) of
        M(phpborg.instant_recovery.borg_mount)), whose repository is reached with an agent of ssh, or that took
        more than 30 seconds to mount.
      - An archive that is deleted or renamed meanwhile cannot be mounted again, whether or not the repository was
        compacted.
    type: str
    default: auto
  requested_by:
    description:
      - Who wants this, for the audit log. It is the caller's word, and stands there as C(claimed_by), beside what the
        host itself knows.
    type: str
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
  - module: phpborg.instant_recovery.session_reap
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

- name: Give it four hours from now
  phpborg.instant_recovery.session:
    state: extended
    session_id: "{{ begun.session.id }}"
    ttl: 4h

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
  description: How many CPUs the session may use, the host's divided among its sessions. At least one.
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

from ..module_utils._errors import RecoveryError, run_module
from ..module_utils._host.command import account
from ..module_utils._host.limits import LEAST_MEMORY, WEIGHTS, Limits
from ..module_utils._host.ports import PortChoice, reserve_port
from ..module_utils._host.preflight import DRIVERS, Host, Report, examine
from ..module_utils._host.sizes import parse_floor, parse_memory, parse_size
from ..module_utils._host.users import RANGE, processes_of
from ..module_utils._keeper.archive import resume
from ..module_utils._keeper.keeper import ensure_keeper
from ..module_utils._session.audit import audit, requester
from ..module_utils._session.directory import DIRECTORIES, SessionError, SessionGoneError, default_root
from ..module_utils._session.duration import duration_in_words, parse_duration
from ..module_utils._session.liveness import examine as look_at
from ..module_utils._session.liveness import keeper_elsewhere
from ..module_utils._session.prometheus import check_textfile
from ..module_utils._session.record import LAYER, Record
from ..module_utils._session.session import Session
from ..module_utils._session.teardown import drop_changes, tear_down

FIELDS = (
    "host",
    "deployment_location",
    "engine",
    "engine_version",
    "archive",
    "data_directory",
    "owner_id",
    "timings",
    "began",
)
KEPT = ("metrics_textfile", "requested_by")  # in the record, without being looked at


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": list(ACTIONS), "default": "present"},
            "session_id": {"type": "str"},
            "session_root": {"type": "path"},
            "driver": {"type": "str", "choices": list(DRIVERS), "default": "auto"},
            "minimum_free": {"type": "str", "default": "1G"},
            "server_user": {"type": "str"},
            "host": {"type": "str"},
            "deployment_location": {"type": "str", "choices": ["local", "remote"]},
            "engine": {"type": "str"},
            "engine_version": {"type": "str"},
            "archive": {
                "type": "dict",
                "options": {name: {"type": "str"} for name in ("repository", "name", "id", "time")},
            },
            "data_directory": {"type": "str"},
            "owner_id": {"type": "int"},
            "timings": {"type": "dict", "default": {}},
            "began": {"type": "float"},
            "ttl": {"type": "str"},
            "idle_timeout": {"type": "str"},
            "free_space_floor": {"type": "str", "default": "5%"},
            "max_upper_size": {"type": "str", "default": "0"},
            "memory_max": {"type": "str", "default": "50%"},
            "cpu_weight": {"type": "int", "default": Limits.cpu_weight},
            "io_weight": {"type": "int", "default": Limits.io_weight},
            "max_sessions": {"type": "int", "default": 50},
            "metrics_textfile": {"type": "path"},
            "port": {"type": "int"},
            "suspend_after": {"type": "str", "default": "auto"},
            "requested_by": {"type": "str"},
            "error_message": {"type": "str"},
            "lock_timeout": {"type": "int", "default": 60},
        },
        required_if=[("state", state, ["session_id"]) for state in ("absent", "extended", "reset")],
        supports_check_mode=True,
    )
    root = module.params["session_root"] or default_root()
    run_module(module, lambda: ACTIONS[module.params["state"]](root, module.params, module.check_mode))


def _present(root: str, params: dict[str, Any], check_mode: bool) -> dict[str, Any]:
    session_id = params["session_id"]
    session = Session.find(root, session_id) if session_id else None
    if session is not None:
        return _result(session.directory, session.record.public(), session.record.public())
    if session_id and Session.ended(root, session_id) is not None:
        raise SessionError(f"Session {session_id} has ended and keeps its id: choose another one.")
    fields = {**{name: params[name] for name in (*FIELDS, *KEPT)}, **_limits(params)}
    if params["metrics_textfile"]:
        check_textfile(params["metrics_textfile"])
    if params["port"]:
        with reserve_port(PortChoice(asked=params["port"])):
            pass  # it is free
    report = _ready_host(root, params)
    fields["python"] = report.python
    if report.driver == "overlayfs":  # which presents everything as one user's
        fields["owner_id"] = None
    user = params["server_user"] or _server_user(report.driver)
    warnings = [*report.warnings, *_warnings_of_user(user)]
    if check_mode:
        user = user or str(RANGE.start if os.geteuid() == 0 else pwd.getpwuid(os.geteuid()).pw_name)
        planned = Record(**{**fields, "id": session_id, "status": "starting"})
        made = _result(os.path.join(root, session_id) if session_id else None, {}, planned.public())
    else:
        session = _create(root, params, fields, user)
        made, user = _result(session.directory, {}, session.record.public()), session.record.server_user
    sessions = len(Session.all(root)) + check_mode
    cpus = max(1, len(os.sched_getaffinity(0)) // max(1, sessions))
    return {
        **made,
        **({"warnings": warnings} if warnings else {}),  # Ansible shows them
        "driver": report.driver,
        "python": report.python,
        "server_user": user,
        "cpus": cpus,
    }


def _create(root: str, params: dict[str, Any], fields: dict[str, Any], user: str | None) -> Session:
    """Make the session, with a keeper that misses the play as soon as it is gone."""
    session = Session.create(
        root,
        session_id=params["session_id"],
        user=user,
        fields=fields,
        max_sessions=params["max_sessions"],
        who=requester(params["requested_by"]),
    )
    if session.record.starter is not None:
        try:
            with session.locked():
                ensure_keeper(session)
        except BaseException:
            tear_down(session)
            raise
    return session


def _limits(params: dict[str, Any]) -> dict[str, Any]:
    """The limits as the record has them. Raises RecoveryError for what cannot be meant."""
    return {
        "ttl": parse_duration(params["ttl"] or "0"),
        "idle_timeout": parse_duration(params["idle_timeout"] or "0"),
        "free_space_floor": parse_floor(params["free_space_floor"]),
        "max_upper_size": parse_size(params["max_upper_size"], option="max_upper_size"),
        "suspend_after": None if params["suspend_after"] == "auto" else parse_duration(params["suspend_after"]),
        **_shares(params),
    }


def _shares(params: dict[str, Any]) -> dict[str, int]:
    """What the session may take of the host's memory, processors and disks."""
    memory = parse_memory(params["memory_max"], option="memory_max")
    if params["memory_max"].endswith("%"):
        memory = max(memory, LEAST_MEMORY)
    if 0 < memory < LEAST_MEMORY:
        raise SessionError(f"memory_max {params['memory_max']} is too little for a session: choose 256M or more.")
    for name in ("cpu_weight", "io_weight"):
        if params[name] not in WEIGHTS:
            raise SessionError(f"{name} {params[name]} is no weight: choose 1 to 10000; a service of the host has 100.")
    return {"memory_max": memory, "cpu_weight": params["cpu_weight"], "io_weight": params["io_weight"]}


def _ready_host(root: str, params: dict[str, Any]) -> Report:
    """What the host has for a session. Raises SessionError where something is missing."""
    free = parse_size(params["minimum_free"], option="minimum_free")
    floor = parse_floor(params["free_space_floor"])
    report = examine(Host.look(), driver=params["driver"], session_root=root, minimum_free=free, floor=floor)
    if report.problems:
        sentences = " ".join(f"{problem.what}: {problem.remedy}." for problem in report.problems)
        raise SessionError(f"This host cannot run sessions. {sentences}", problems=report.as_result()["problems"])
    return report


def _server_user(driver: str | None) -> str | None:
    """Who runs the server where nobody is named; None: whoever Session.create chooses.

    overlayfs shows files as Borg does, which can only show them as somebody's whom the host knows. Nobody is no user of
    production's.
    """
    return "nobody" if driver == "overlayfs" and os.geteuid() == 0 else None


def _warnings_of_user(user: str | None) -> list[str]:
    """Say that a user who was named for the server has other things at work on this host."""
    if user in (None, "nobody") or os.geteuid() != 0 or not processes_of(account(user).uid):
        return []
    return [
        f"The server will run as {user}, who has processes on this host: they are kept from each other by namespaces "
        "and Landlock alone. Without server_user it runs as a user that nobody else has."
    ]


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
    before = session.record.public()
    status = "failed" if params["error_message"] else "stopped"
    if check_mode:
        return _result(session.directory, before, {**before, "status": status}, ended=True)
    try:
        remains = tear_down(
            session,
            status=status,
            error_message=params["error_message"],
            who=requester(params["requested_by"]),
            timeout=params["lock_timeout"],
        )
    except SessionGoneError:  # somebody else was quicker
        return _already_ended(root, session.id)
    if remains:
        raise SessionError(str(session.record.error_message), remains=remains)
    return _result(session.directory, before, session.record.public(), ended=True)


def _extended(root: str, params: dict[str, Any], check_mode: bool) -> dict[str, Any]:
    times = {name: parse_duration(params[name]) for name in ("ttl", "idle_timeout") if params[name] is not None}
    if not times:
        raise SessionError(
            "Neither ttl nor idle_timeout is given: say how long the session is to live, such as ttl 2h."
        )
    session = _existing(root, params["session_id"])
    before = session.record.public()
    if check_mode:
        return {**_result(session.directory, before, before), "changed": True}
    with session.locked(timeout=params["lock_timeout"]):
        session.extend(**times)
        ensure_keeper(session)
        told = ", ".join(f"{name} {duration_in_words(seconds)}" for name, seconds in times.items())
        audit(root, "extend", session.record, who=requester(params["requested_by"]), reason=told)
    return {**_result(session.directory, before, session.record.public()), "changed": True}


def _reset(root: str, params: dict[str, Any], check_mode: bool) -> dict[str, Any]:
    session = _existing(root, params["session_id"])
    before = session.record.public()
    if not check_mode:
        resume(session)
    _check_archive(session, may_suspend=check_mode)
    if not check_mode:
        with session.locked(timeout=params["lock_timeout"]):
            _check_archive(session, may_suspend=False)
            session.rewind()
            remains = drop_changes(session)
            if remains:
                raise SessionError(f"Session {session.id} cannot be reset. Still there: {'; '.join(remains)}.")
            audit(root, "reset", session.record, who=requester(params["requested_by"]))
    done = _result(session.directory, before, session.record.public())
    return {**done, "changed": True}


def _check_archive(session: Session, *, may_suspend: bool) -> None:
    """Refuse a reset of a session of which there is nothing to start again from, or none that can be mounted here."""
    elsewhere = keeper_elsewhere(session)
    if elsewhere is not None:
        raise SessionError(
            f"Session {session.id} was started in another mount namespace, as a job runner or a unit with PrivateTmp "
            f"has it: reset it from there (nsenter --target {elsewhere.pid} --mount), or stop it and start another one."
        )
    layers = [claim.name for claim in session.record.parts(LAYER)]
    mounts = [one for one in look_at(session).checks["mounts"] if one["name"] not in layers]
    lost = [one["mountpoint"] for one in mounts if not (one["responding"] or (may_suspend and one["suspended"]))]
    if session.record.status in ("stopping", "orphaned") or not session.record.options.get("overlay_mount"):
        raise SessionError(f"Session {session.id} is {session.record.status}: stop it and start another one.")
    if lost or session.record.status == "failed":
        why = f"{', '.join(lost)} cannot be read" if lost else str(session.record.error_message)
        raise SessionError(f"Session {session.id} has lost its archive ({why}): stop it and start another one.")


def _existing(root: str, session_id: str) -> Session:
    session = Session.find(root, session_id)
    if session is None:
        raise _unknown(root, session_id)
    return session


def _already_ended(root: str, session_id: str) -> dict[str, Any]:
    record = Session.ended(root, session_id)
    if record is None:
        raise _unknown(root, session_id)
    return _result(os.path.join(os.path.realpath(root), session_id), record.public(), record.public())


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
        **dict.fromkeys(("driver", "python", "server_user", "cpus")),
        "session_directory": directory,
        "directories": {name: os.path.join(directory, name) for name in DIRECTORIES} if directory else {},
    }


ACTIONS = {
    "present": _present,
    "absent": _absent,
    "extended": _extended,
    "reset": _reset,
}


if __name__ == "__main__":
    main()
