#!/usr/bin/python
# Copyright (c) 2026, phpBorg contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: session_log
short_description: Read the logs of an instant recovery session
version_added: 1.0.0
author: phpBorg contributors (@phpborg)
description:
  - Reads what the database server, the copy-on-write layer and Borg have logged in one session. The logs lie in the
    directory C(log) of the session, and end with it.
  - Can wait for what comes next, and go on where an earlier call ended. M(phpborg.instant_recovery.session_follow) does
    so until the session ends.
options:
  session_id:
    description:
      - Name of the session.
    type: str
    required: true
  session_root:
    description:
      - Directory that holds the sessions.
      - The default is C(/var/lib/instant_recovery) for root and C(instant_recovery) in the user's state directory
        otherwise.
    type: path
  sources:
    description:
      - Read these logs alone, such as V(server) for the database server, V(layer) for the copy-on-write layer,
        V(archive) for Borg, and any other by the name of its file without C(.log).
      - Without it, all there are.
    type: list
    elements: str
    default: []
  lines:
    description:
      - How many lines of each log to begin with, the last ones. Counts only without O(cursor).
    type: int
    default: 100
  cursor:
    description:
      - RV(cursor) of an earlier call, to read what has been added since. A log that was rotated meanwhile is first read
        to its end, one that was emptied from its beginning.
    type: dict
  wait:
    description:
      - Seconds to wait when there is nothing new. The module returns as soon as there is, or the session has ended.
    type: float
    default: 0
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
    details: Given the same O(cursor), the same lines are read again.
  platform:
    support: full
    platforms: linux
notes:
  - Lines are told when they are complete. One call returns at most about 1 MiB, and a line longer than that comes in
    pieces.
  - What is no UTF-8, and control characters, which a terminal would obey, are shown as C(\x1b).
seealso:
  - module: phpborg.instant_recovery.session_follow
  - module: phpborg.instant_recovery.session_info
"""

EXAMPLES = r"""
- name: See the last words of the server
  phpborg.instant_recovery.session_log:
    session_id: 20261122-130501-9c1e
    sources: [server]
    lines: 20
  register: log

- name: See what has been added since, or is within a minute
  phpborg.instant_recovery.session_log:
    session_id: 20261122-130501-9c1e
    sources: [server]
    cursor: "{{ log.cursor }}"
    wait: 60
"""

RETURN = r"""
lines:
  description: What was read, each log's lines in their order.
  type: list
  elements: dict
  returned: success
  contains:
    source:
      description: Whose log it is from, see O(sources).
      type: str
    text:
      description: The line.
      type: str
  sample:
    - source: server
      text: '2026-11-22 13:07:12.518 UTC [4730] postgres@shop ERROR:  relation "order" does not exist at character 15'
cursor:
  description: How far each log was read, for O(cursor) of the next call.
  type: dict
  returned: success
  sample:
    server.log: {inode: 1318211, offset: 2204}
ended:
  description: Whether the session has ended, so that nothing more will come.
  type: bool
  returned: success
  sample: false
more:
  description: Whether there was more to read than one call returns. The next call has it.
  type: bool
  returned: success
  sample: false
sources:
  description: The logs that there are.
  type: list
  elements: str
  returned: success
  sample: [archive, layer, server]
elapsed:
  description: Seconds this took.
  type: float
  returned: success
  sample: 0.01
"""

from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ..module_utils._errors import RecoveryError, run_module
from ..module_utils._session.directory import default_root
from ..module_utils._session.logs import read_logs
from ..module_utils._session.session import Session


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "session_id": {"type": "str", "required": True},
            "session_root": {"type": "path"},
            "sources": {"type": "list", "elements": "str", "default": []},
            "lines": {"type": "int", "default": 100},
            "cursor": {"type": "dict"},
            "wait": {"type": "float", "default": 0},
        },
        supports_check_mode=True,
    )
    run_module(module, lambda: _read(**module.params))


def _read(*, session_id: str, session_root: str | None, lines: int, wait: float, **options: Any) -> dict[str, Any]:
    if lines < 0 or wait < 0:
        raise RecoveryError(f"lines is {lines} and wait is {wait:g}. Neither can be less than 0.")
    root = session_root or default_root()
    session = Session.find(root, session_id)
    if session is None and options["cursor"] is None:
        past = Session.ended(root, session_id)
        raise RecoveryError(
            f"Session {session_id} has ended ({past.error_message or past.status}), and its logs with it."
            if past
            else f"There is no session {session_id} in {root}. Name one that session_info tells."
        )
    reading = read_logs(session, lines=lines, wait=wait, **options)
    return {
        "changed": False,
        "lines": [{"source": source, "text": text} for source, text in reading.lines],
        "cursor": reading.cursor,
        "ended": reading.ended,
        "more": reading.more,
        "sources": reading.sources,
    }


if __name__ == "__main__":
    main()
