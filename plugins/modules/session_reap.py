#!/usr/bin/python
# Copyright (c) 2026, phpBorg contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: session_reap
short_description: Remove what crashes have left of instant recovery sessions
version_added: 1.0.0
author: phpBorg contributors (@phpborg)
description:
  - Ends every session that is dead or was cut off, and whatever else bears the mark of a session that is none any more.
    What runs is left alone.
options:
  session_root:
    description:
      - Directory that holds the sessions.
      - The default is C(/var/lib/instant_recovery) for root and C(instant_recovery) in the user's state directory
        otherwise.
    type: path
  requested_by:
    description: Who wants it, for the audit log.
    type: str
  lock_timeout:
    description: Seconds to wait while another module is at work on a session.
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
    support: full
  platform:
    support: full
    platforms: linux
seealso:
  - module: phpborg.instant_recovery.session
  - module: phpborg.instant_recovery.session_info
"""

EXAMPLES = r"""
- name: Remove what crashes have left
  phpborg.instant_recovery.session_reap:
"""

RETURN = r"""
reaped:
  description: What was dead, one sentence each.
  type: list
  elements: str
  returned: success
  sample: ["20261122-130501-9c1e: The process server (4711) is gone"]
sessions:
  description: The last records of the sessions among it, with the keys of M(phpborg.instant_recovery.session_info).
  type: list
  elements: dict
  returned: success
  sample: []
remains:
  description: What could not be removed.
  type: list
  elements: str
  returned: failure
  sample: ["process 4711 (postgres)"]
elapsed:
  description: Seconds this took.
  type: float
  returned: success
  sample: 0.02
"""

from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ..module_utils._errors import RecoveryError, run_module
from ..module_utils._session.audit import requester
from ..module_utils._session.directory import SessionError, SessionGoneError, default_root
from ..module_utils._session.reap import dead_sessions, is_dead, strays, sweep
from ..module_utils._session.session import Session
from ..module_utils._session.teardown import tear_down


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "session_root": {"type": "path"},
            "requested_by": {"type": "str"},
            "lock_timeout": {"type": "int", "default": 60},
        },
        supports_check_mode=True,
    )
    root = module.params["session_root"] or default_root()
    run_module(module, lambda: _reap_all(root, module.params, module.check_mode))


def _reap_all(root: str, params: dict[str, Any], check_mode: bool) -> dict[str, Any]:
    dead, lost = dead_sessions(root), strays(root)
    before = [session.record.public() for session, _why in dead]
    ended: list[tuple[Session, str]] = dead if check_mode else []
    remains: list[str] = []
    for session, _why in [] if check_mode else dead:
        try:
            why, left = _reap(session, params)
        except SessionGoneError:
            continue  # somebody else was quicker
        except RecoveryError as error:
            remains.append(str(error))
            continue
        ended += [(session, why)] if why else []
        remains += left
    remains += [] if check_mode else sweep(root)
    damaged = [session.problem for session in Session.all(root) if session.problem]
    if remains or damaged:
        raise SessionError(" ".join(["Not all could be reaped.", *remains, *damaged]), remains=[*remains, *damaged])
    reaped = [f"{session.id}: {why}" for session, why in ended] + lost
    return {
        "changed": bool(reaped),
        "reaped": reaped,
        "diff": {"before": {"dead": reaped}, "after": {"dead": []}},
        "sessions": before if check_mode else [session.record.public() for session, _why in ended],
    }


def _reap(session: Session, params: dict[str, Any]) -> tuple[str | None, list[str]]:
    """End a session if it is dead still, now that nobody else can be at work on it.

    Returns what was wrong with it, None where its keeper has mended that meanwhile; and what could not be removed.
    """
    with session.locked(timeout=params["lock_timeout"]):
        why = is_dead(session)
        if why is None:
            return None, []
        who = requester(params["requested_by"])
        return why, tear_down(session, status="failed", error_message=why, event="reap", who=who)


if __name__ == "__main__":
    main()
