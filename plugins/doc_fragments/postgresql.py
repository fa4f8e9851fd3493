# Copyright (c) 2026, phpBorg contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""PostgreSQL's own options of these modules (ARGUMENTS of _postgresql/plan.py)."""

from __future__ import annotations


class ModuleDocFragment:
    """Found by ansible-doc under this name."""

    DOCUMENTATION = r"""
options:
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
"""
