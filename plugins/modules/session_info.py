#!/usr/bin/python
# Copyright (c) 2026, phpBorg contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: session_info
short_description: Tell the instant recovery sessions of a host and their true state
version_added: 1.0.0
author: phpBorg contributors (@phpborg)
description:
  - Reads the records of the sessions and holds them against what is really there, their processes, mounts and ports.
options:
  session_root:
    description:
      - Directory that holds the sessions. It need not exist.
      - The default is C(/var/lib/instant_recovery) for root and C(instant_recovery) in the user's state directory
        otherwise.
    type: path
  session_id:
    description:
      - Tell this session alone, even when it has ended. An unknown one is no failure, RV(sessions) is then empty.
    type: str
  ended:
    description: Tell the sessions that have ended, too. The newest 100 are remembered.
    type: bool
    default: false
extends_documentation_fragment:
  - phpborg.instant_recovery.attributes
attributes:
  check_mode:
    support: full
    details: Nothing is ever changed.
  diff_mode:
    support: none
    details: Nothing is ever changed.
  idempotent:
    support: full
  platform:
    support: full
    platforms: linux
seealso:
  - module: phpborg.instant_recovery.session
"""

EXAMPLES = r"""
- name: See the sessions of this host
  phpborg.instant_recovery.session_info:
  register: found

- name: Tell what is wrong with them
  ansible.builtin.debug:
    msg: "{{ found.sessions | selectattr('status', 'eq', 'orphaned') | map(attribute='error_message') | list }}"

- name: See one session
  phpborg.instant_recovery.session_info:
    session_id: 20261122-130501-9c1e
"""

RETURN = r"""
sessions:
  description: The sessions, oldest first. What is not known yet is null.
  type: list
  elements: dict
  returned: success
  contains:
    id:
      description: Name of the session.
      type: str
    status:
      description:
        - C(starting), C(active), C(stopping), C(stopped) or C(failed) as recorded.
        - C(orphaned) where that is not true any more, because a process, a mount or the port is gone, or because a
          start or stop was cut off. Stopping the session removes what is left of it.
      type: str
    engine:
      description: Database engine.
      type: str
    engine_version:
      description: Version of the server.
      type: str
    host:
      description: Name of the host in the inventory.
      type: str
    deployment_location:
      description: C(local) or C(remote).
      type: str
    archive:
      description: The archive, with C(repository), C(name), C(id) and C(time).
      type: dict
    driver:
      description: Copy-on-write driver, C(block) or C(overlayfs).
      type: str
    port:
      description: Port of the server on 127.0.0.1.
      type: int
    socket_directory:
      description: Directory of the server's socket.
      type: str
    user:
      description: Superuser of the database.
      type: str
    connection_string:
      description: URL to connect to.
      type: str
    service_file:
      description: PostgreSQL service file to connect with.
      type: str
    pid:
      description: Process id of the server.
      type: int
    borg_mount_point:
      description: Where the archive is mounted.
      type: str
    overlay_upper_dir:
      description: Where changes are kept.
      type: str
    overlay_merged_dir:
      description: Where archive and changes are seen together.
      type: str
    upper_bytes:
      description: Disk space that the changes take now.
      type: int
    created_at:
      description: When the session was made.
      type: str
    started_at:
      description: When it was ready.
      type: str
    stopped_at:
      description: When it ended.
      type: str
    expires_at:
      description: When it is to end by itself.
      type: str
    error_message:
      description: Why it failed, is orphaned or could not be removed.
      type: str
    timings:
      description: Seconds per step of the start, their C(total), and the C(overhead) that no step accounts for.
      type: dict
    recovered_to:
      description:
        - The point in time that the data are of. The engine's module says what is in it, for PostgreSQL
          M(phpborg.instant_recovery.pg_ephemeral).
      type: dict
    checks:
      description: What was found. All empty or null for a session that has ended.
      type: dict
      contains:
        mounts:
          description: Each recorded mount.
          type: list
          elements: dict
          contains:
            name:
              description: What the session calls it.
              type: str
            mountpoint:
              description: Where it should be.
              type: str
            mounted:
              description: Whether something is mounted there.
              type: bool
            responding:
              description: Whether it answers.
              type: bool
        processes:
          description: Each recorded process.
          type: list
          elements: dict
          contains:
            name:
              description: What the session calls it.
              type: str
            pid:
              description: Its process id.
              type: int
            alive:
              description: Whether this very process still runs.
              type: bool
        port:
          description: Whether something listens on RV(sessions[].port). Null where no port is recorded.
          type: bool
  sample:
    - id: 20261122-130501-9c1e
      status: active
      engine: postgresql
      engine_version: "15.14"
      host: localhost
      deployment_location: local
      archive:
        repository: /srv/borg
        name: db-2026-11-22
        id: 1a0f2a6c7b3f0f9f9dd8a2f8bd4a9f6ab1b6dbb3f3e6e0f3a6a3d3c2d7f5b111
        time: "2026-11-22T02:00:04.000000"
      driver: block
      port: 15432
      socket_directory: /var/lib/instant_recovery/20261122-130501-9c1e/run
      user: postgres
      connection_string: postgresql://127.0.0.1:15432/postgres
      service_file: null
      pid: 4711
      borg_mount_point: /var/lib/instant_recovery/20261122-130501-9c1e/archive
      overlay_upper_dir: /var/lib/instant_recovery/20261122-130501-9c1e/upper
      overlay_merged_dir: /var/lib/instant_recovery/20261122-130501-9c1e/merged
      upper_bytes: 1130496
      created_at: "2026-11-22T13:05:01.120+00:00"
      started_at: "2026-11-22T13:05:04.581+00:00"
      stopped_at: null
      expires_at: "2026-11-22T15:05:04.581+00:00"
      error_message: null
      timings: {borg_mount: 0.81, overlay_mount: 0.21, pg_ephemeral: 0.62, total: 4.1, overhead: 2.46}
      recovered_to:
        time: "2026-11-22T01:59:58.918273+00:00"
        lsn: 1A/2B3C4D5E
        timeline: 2
        reason: end of the WAL
      checks:
        mounts:
          - name: archive
            mountpoint: /var/lib/instant_recovery/20261122-130501-9c1e/archive
            mounted: true
            responding: true
        processes:
          - {name: archive, pid: 4650, alive: true}
          - {name: server, pid: 4711, alive: true}
        port: true
elapsed:
  description: Seconds this took.
  type: float
  returned: success
  sample: 0.04
"""

import os
import sys
import time
from contextlib import suppress
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._errors import run_module
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._mounts import is_responding, mount_at
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._processes import Process
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._session import (
    RECORD,
    Session,
    default_root,
    public,
)

LISTENING = "0A"  # the state's number in /proc/net/tcp
# Between two tasks of a start, and while a play waits for its other hosts, nobody holds the lock.
IDLE = 300  # seconds without a change after which a start or stop that nobody works on was cut off


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "session_root": {"type": "path"},
            "session_id": {"type": "str"},
            "ended": {"type": "bool", "default": False},
        },
        supports_check_mode=True,
    )
    run_module(module, lambda: {"changed": False, "sessions": _sessions(**module.params)})


def _sessions(*, session_root: str | None, session_id: str | None, ended: bool) -> list[dict[str, Any]]:
    root = session_root or default_root()
    looked = [_live(session) for session in Session.all(root) if session_id in (None, session.id)]
    found = [session for session in looked if session is not None]
    if session_id:
        record = None if found else Session.ended(root, session_id)
        past = [record] if record else []
    else:
        past = Session.all_ended(root) if ended else []
    return [{**public(record), "checks": _nothing_checked()} for record in past] + found


def _live(session: Session) -> dict[str, Any] | None:
    """What the world is told of a session, with its true status; None when it ends just now."""
    try:
        return _examined(session)
    except FileNotFoundError:
        if os.path.lexists(session.directory):
            raise
        return None


def _examined(session: Session) -> dict[str, Any]:
    record = session.record
    if session.problem:
        return {**public(record), "checks": _nothing_checked()}
    checks = {
        "mounts": [_check_mount(claim) for claim in record["claims"] if claim["kind"] == "mount"],
        "processes": [_check_process(claim) for claim in record["claims"] if claim["process"]],
        "port": _is_listening(record["port"]) if record["port"] else None,
    }
    live = public(record, upper_bytes=_disk_usage(session.path("upper")))
    wrong = _wrong(session, checks)
    if wrong:
        live.update(status="orphaned", error_message=f"{'; '.join(wrong)}. Stop the session to remove what is left.")
    return {**live, "checks": checks}


def _wrong(session: Session, checks: dict[str, Any]) -> list[str]:
    """Why the recorded status is not true; empty when it is."""
    status = session.record["status"]
    if status in ("starting", "stopping") and session.is_locked():
        return []  # at work: things come and go rightly
    if status == "stopping":
        return [] if session.record["error_message"] else ["Stopping was cut off"]
    wrong = [f"The process {one['name']} ({one['pid']}) is gone" for one in checks["processes"] if not one["alive"]]
    if status == "active":
        wrong += [f"Nothing is mounted at {one['mountpoint']}" for one in checks["mounts"] if not one["mounted"]]
        if checks["port"] is False:
            wrong.append(f"Nothing listens on port {session.record['port']}")
    elif status == "starting" and not wrong and time.time() - os.path.getmtime(session.path(RECORD)) > IDLE:
        wrong.append("The start was cut off")
    dead = [one["mountpoint"] for one in checks["mounts"] if one["mounted"] and not one["responding"]]
    return wrong + [f"The mount {mountpoint} does not answer" for mountpoint in dead]


def _check_mount(claim: dict[str, Any]) -> dict[str, Any]:
    mountpoint = claim["mountpoint"]
    mounted = mount_at(mountpoint) is not None
    responding = mounted and is_responding(mountpoint)
    return {"name": claim["name"], "mountpoint": mountpoint, "mounted": mounted, "responding": responding}


def _check_process(claim: dict[str, Any]) -> dict[str, Any]:
    process = Process.from_dict(claim["process"])
    return {"name": claim["name"], "pid": process.pid, "alive": process.alive()}


def _is_listening(port: int) -> bool:
    """Whether a server listens on this port of 127.0.0.1. Asking the kernel leaves no trace in the server's log."""
    with open("/proc/net/tcp", encoding="ascii") as table:
        sockets = [line.split() for line in table.readlines()[1:]]
    hosts = [int.from_bytes(bytes(address), sys.byteorder) for address in ((127, 0, 0, 1), (0, 0, 0, 0))]
    wanted = [f"{host:08X}:{port:04X}" for host in hosts]
    return any(socket[1] in wanted and socket[3] == LISTENING for socket in sockets)


def _disk_usage(directory: str) -> int:
    """Bytes that directory and all below it take on its file system; a file with several names counts once."""
    sizes: dict[int, int] = {}
    device = os.lstat(directory).st_dev
    for parent, directories, files in os.walk(directory):
        for name in [*directories, *files]:
            with suppress(FileNotFoundError):  # the session goes on meanwhile
                status = os.lstat(os.path.join(parent, name))
                if status.st_dev == device:
                    sizes[status.st_ino] = status.st_blocks * 512
    return sum(sizes.values())


def _nothing_checked() -> dict[str, Any]:
    return {"mounts": [], "processes": [], "port": None}


if __name__ == "__main__":
    main()
