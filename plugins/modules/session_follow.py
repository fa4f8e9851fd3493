#!/usr/bin/python
# Copyright (c) 2026, phpBorg contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: session_follow
short_description: Print the logs of an instant recovery session while they grow
version_added: 1.0.0
author: phpBorg contributors (@phpborg)
description:
  - Prints what the database server, the copy-on-write layer and Borg have logged in one session, one line for each line
    of a log, and with O(follow) goes on for as long as the session lives.
  - This is an action that runs on the controller and calls M(phpborg.instant_recovery.session_log) on the host, as
    often as needed. The lines are printed as soon as they are there, while the task is still running.
options:
  session_id:
    description:
      - Name of the session.
    type: str
    required: true
  session_root:
    description:
      - Directory that holds the sessions, as for M(phpborg.instant_recovery.session_log).
    type: path
  sources:
    description:
      - Print these logs alone, as for M(phpborg.instant_recovery.session_log).
    type: list
    elements: str
    default: []
  lines:
    description:
      - How many lines of each log to begin with, the last ones.
    type: int
    default: 100
  follow:
    description:
      - Whether to go on until the session ends.
    type: bool
    default: false
  follow_for:
    description:
      - How long to follow at most, such as V(90s), V(10m) or V(2h). V(0) is without an end.
    type: str
    default: "0"
  format:
    description:
      - V(text) prints C(source | line).
      - V(json) prints JSON objects for programs, one a line, each with several lines of a log in it, as the one key
        C(instant_recovery_log), a list of C([source, line]).
    type: str
    choices: [text, json]
    default: text
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
  - module: phpborg.instant_recovery.session_log
"""

EXAMPLES = r"""
- name: Print the last lines of all logs of a session
  phpborg.instant_recovery.session_follow:
    session_id: 20261122-130501-9c1e

- name: Print what its server logs within the next ten minutes
  phpborg.instant_recovery.session_follow:
    session_id: 20261122-130501-9c1e
    sources: [server]
    lines: 0
    follow: true
    follow_for: 10m
"""

RETURN = r"""
lines:
  description: How many lines were printed.
  type: int
  returned: success
  sample: 127
ended:
  description: Whether the session has ended.
  type: bool
  returned: success
  sample: true
"""
