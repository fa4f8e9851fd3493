# Copyright (c) 2026, phpBorg contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Options of the modules that start a PostgreSQL server or tell what it would do (ARGUMENTS of _postgresql/plan.py)."""

from __future__ import annotations


class ModuleDocFragment:
    """Found by ansible-doc under this name."""

    DOCUMENTATION = r"""
options:
  bindir:
    description:
      - Directory of the PostgreSQL programs. They must be of the major version of the data directory.
      - The default is where distributions put them, then E(PATH).
    type: path
  settings:
    description:
      - Settings of the server, by name. They count more than those of the module's choice.
      - Those that keep the server away from production cannot be given.
    type: dict
    default: {}
  accept_unconfined:
    description:
      - Start also where the host's kernel cannot keep the server away from other files and processes of its user.
      - That takes Landlock of version 6 (Linux 6.12) or namespaces, which root can always make, and filters of calls.
    type: bool
    default: false
  recovery_target_time:
    description:
      - Recover to this time, such as V(2026-11-22T14:05:00+01). Without an offset from UTC it is in the time zone of
        the archived configuration, or UTC where there is none.
      - Of O(recovery_target_time), O(recovery_target_xid), O(recovery_target_name), O(recovery_target_lsn) and
        O(recovery_target) one can be given. Without any of them recovery goes to the end of the WAL.
      - These options are PostgreSQL's settings of the same names.
    type: str
  recovery_target_xid:
    description: Recover up to this transaction.
    type: str
  recovery_target_name:
    description: Recover to the restore point that C(pg_create_restore_point()) gave this name.
    type: str
  recovery_target_lsn:
    description: Recover up to this position in the write-ahead log, such as V(1A/2B3C4D5E).
    type: str
  recovery_target:
    description: V(immediate) is as soon as the copy is consistent, that is, the end of the backup.
    type: str
  recovery_target_inclusive:
    description: Whether the transaction or record at the target still counts. The default is that it does.
    type: bool
  recovery_target_timeline:
    description: V(latest) (the default), V(current), or the number of a timeline.
    type: str
  recovery_target_action:
    description:
      - V(promote), the default. PostgreSQL's other actions leave no server that can be connected to, and are refused.
    type: str
  missing_tablespaces:
    description:
      - What to do about a tablespace that is not in the archive.
      - With V(refuse) nothing is started.
      - With V(leave_out) the server starts without it. Reading whatever lies in it fails, there being no such file, and
        so do queries on a table elsewhere that has an index in it, until that is dropped. Nothing of it is taken from
        the WAL, as this would be only a part. A database whose catalogs lie in it cannot be connected to.
    type: str
    choices: [refuse, leave_out]
    default: refuse
  read_only:
    description:
      - Whether sessions open read-only transactions. It holds whatever the archive sets for its roles and databases.
    type: bool
    default: false
  network:
    description:
      - V(none) keeps the server from opening connections, through the network or a socket, so that no trigger, foreign
        table or library of the copy can reach another server. Clients can connect to it all the same.
      - V(host) lets it.
    type: str
    choices: [none, host]
    default: none
"""
