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
        - C(failed) while it still runs, where the archive could not be read any more. Where the repository has lost the
          content of some files it stays C(active), and C(error_message) names them.
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
    client_file:
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
      description: Why it failed, is orphaned or could not be removed, or which files of the archive cannot be read.
      type: str
    timings:
      description: Seconds per step of the start, their C(total), and the C(overhead) that no step accounts for.
      type: dict
    stop_reason:
      description: Why it ended by itself, such as C(idle for 30 min). Null where somebody stopped it.
      type: str
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
            suspended:
              description: Whether it is not mounted because nobody has read it for long. The next read mounts it.
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
    metrics:
      description: What the session uses and does just now. What cannot be known is null.
      type: dict
      contains:
        uptime:
          description: Seconds since it was ready.
          type: float
        time_left:
          description: Seconds until it ends by itself; null for never.
          type: float
        idle:
          description: Seconds since a client's query was last seen, to the interval of its keeper's samples.
          type: float
        clients:
          description: Connected clients.
          type: int
        active_clients:
          description: Clients whose query is running.
          type: int
        queries:
          description:
            - Queries since the server started, as it counts them; PostgreSQL counts transactions.
            - Null up to PostgreSQL 14, unless the server may open connections (C(network=host)).
          type: int
        queries_per_second:
          description: How fast RV(sessions[].metrics.queries) has grown since the keeper's last sample.
          type: float
        cpu_seconds:
          description: CPU time of all of the session's processes.
          type: float
        memory_bytes:
          description: Memory of all of the session's processes, with shared pages divided among those that share them.
          type: int
        archive_bytes_read:
          description: Bytes that driver C(block) has fetched from the archive.
          type: int
        repository_bytes_read:
          description: Bytes that Borg has read, from the repository and its own cache.
          type: int
        upper_bytes:
          description: Disk space that the changes take.
          type: int
        cache_bytes:
          description: Disk space that the cache of what was fetched takes.
          type: int
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
      socket_directory: /var/lib/instant_recovery/20261122-130501-9c1e/client
      user: instant_recovery
      connection_string: >-
        postgresql://instant_recovery@127.0.0.1:15432/postgres?passfile=/var/lib/instant_recovery/20261122-130501-9c1e/client/pgpass
      client_file: /var/lib/instant_recovery/20261122-130501-9c1e/client/pg_service.conf
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
      timings: {borg_mount: 0.81, overlay_mount: 0.21, server: 0.62, total: 4.1, overhead: 2.46}
      recovered_to:
        time: "2026-11-22T01:59:58.918273+00:00"
        lsn: 1A/2B3C4D5E
        timeline: 2
        reason: end of the WAL
      stop_reason: null
      checks:
        mounts:
          - name: archive
            mountpoint: /var/lib/instant_recovery/20261122-130501-9c1e/archive
            mounted: true
            responding: true
            suspended: false
        processes:
          - {name: archive, pid: 4650, alive: true}
          - {name: server, pid: 4711, alive: true}
        port: true
      metrics:
        uptime: 605.2
        time_left: 6594.8
        idle: 12.0
        clients: 1
        active_clients: 0
        queries: 318
        queries_per_second: 0.5
        cpu_seconds: 6.21
        memory_bytes: 214958080
        archive_bytes_read: 48234496
        repository_bytes_read: 21364736
        upper_bytes: 1130496
        cache_bytes: 0
elapsed:
  description: Seconds this took.
  type: float
  returned: success
  sample: 0.04
"""

import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ..module_utils._errors import run_module
from ..module_utils._session.directory import default_root
from ..module_utils._session.liveness import examine
from ..module_utils._session.metrics import METRICS, measure, no_metrics, read_sample
from ..module_utils._session.session import Session

AT_ONCE = 8  # sessions that are looked at


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
    sessions = [session for session in Session.all(root) if session_id in (None, session.id)]
    with ThreadPoolExecutor(AT_ONCE) as pool:  # a mount or a server that hangs takes seconds to be told
        looked = list(pool.map(_live, sessions))
    found = [session for session in looked if session is not None]
    if session_id:
        record = None if found else Session.ended(root, session_id)
        past = [record] if record else []
    else:
        past = Session.all_ended(root) if ended else []
    return [{**record.public(), **_nothing_known()} for record in past] + found


def _live(session: Session) -> dict[str, Any] | None:
    """What the world is told of a session, with its true status; None when it ends just now."""
    try:
        return _examined(session)
    except FileNotFoundError:
        if os.path.lexists(session.directory):
            raise
        return None
    except Exception as error:  # what its server says must not keep the others from being told
        problem = f"It could not be looked at: {type(error).__name__}: {error}."
        return {**session.record.public(), "error_message": problem, **_nothing_known()}


def _examined(session: Session) -> dict[str, Any]:
    record = session.record
    if session.problem:
        return {**record.public(), **_nothing_known()}
    findings, metrics = examine(session), measure(session, earlier=read_sample(session))
    live = record.public(upper_bytes=metrics["upper_bytes"])
    if findings.wrong and record.status != "failed":  # which says more
        live.update(
            status="orphaned", error_message=f"{'; '.join(findings.wrong)}. Stop the session to remove what is left."
        )
    elif findings.notes and not live["error_message"]:
        live.update(error_message=f"{'; '.join(findings.notes)}.")
    return {**live, "checks": findings.checks, "metrics": {name: metrics[name] for name in METRICS}}


def _nothing_known() -> dict[str, Any]:
    return {"checks": {"mounts": [], "processes": [], "port": None}, "metrics": no_metrics()}


if __name__ == "__main__":
    main()
