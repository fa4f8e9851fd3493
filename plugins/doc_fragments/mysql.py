# Copyright (c) 2026, phpBorg contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""MariaDB's and MySQL's own options of these modules (ARGUMENTS of _mysql/plan.py)."""

from __future__ import annotations


class ModuleDocFragment:
    """Found by ansible-doc under this name."""

    DOCUMENTATION = r"""
options:
  recovery_target_position:
    description:
      - Replay archived binary logs up to this position, such as V(mysql-bin.000004:4672531), which is where the first
        event begins that does not count.
    type: str
  recovery_target_gtid:
    description:
      - Replay archived binary logs up to this global transaction id, such as V(0-1-4711), which still counts.
    type: str
  recovery_target_time:
    description:
      - Replay archived binary logs up to this time, such as V(2026-11-22T14:05:00+01), in whole seconds. Without an
        offset from UTC it is in UTC.
      - Of O(recovery_target_time), O(recovery_target_gtid), O(recovery_target_position) and O(recovery_target) one can
        be given. Without any of them the copy is shown as it is.
    type: str
  recovery_target:
    description: V(end) is the end of the archived binary logs.
    type: str
  encryption_key_file:
    description:
      - File with the keys of data that MariaDB has encrypted, as its plugin file_key_management reads it, on the host
        that the module runs on. The session keeps a copy of it, which its server can read, as long as that runs.
      - It is read again when the server is started again.
    type: path
"""
