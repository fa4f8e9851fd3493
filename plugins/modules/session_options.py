#!/usr/bin/python
# Copyright (c) 2026, phpBorg contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: session_options
short_description: Check what an instant recovery session is asked for
version_added: 1.0.0
author: phpBorg contributors (@phpborg)
description:
  - Reads the variables of the role P(phpborg.instant_recovery.session#role) and says what they ask for, or fails with
    the one sentence that is wrong, which names the value and the remedy.
  - This is an action that runs on the controller and asks no host. What can be set is in the roles' argument specs.
  - An empty text, mapping or list, and null, are as if the variable was not there. Numbers, times and switches can be
    written as texts.
options:
  entry_point:
    description:
      - The role's entry point, and so which options there are.
    type: str
    choices: [start, stop, list, extend, reset, reap, logs]
    required: true
  plain_names:
    description:
      - Whether also the names without a role's prefix count, such as C(ttl) for C(session_ttl), and before that. The
        collection's playbooks use them. In a play of somebody's own they may mean anything.
      - Extra variables whose names resemble these and are none of them are then refused, unless C(accept_unknown) is
        true, and so is a C(source_host) that the inventory does not have.
    type: bool
    default: false
attributes:
  check_mode:
    description: It changes nothing.
    support: full
  diff_mode:
    description: It changes nothing.
    support: none
  idempotent:
    description: It changes nothing.
    support: full
  platform:
    description: Where Ansible runs.
    platforms: posix
    support: full
"""

EXAMPLES = r"""
- name: Check what is asked for
  phpborg.instant_recovery.session_options:
    entry_point: start
  register: session_checked
"""

RETURN = r"""
options:
  description:
    - What is asked for, with the defaults, by the names of the options without a role's prefix. What is not given and
      has no default is not there. Secrets are not.
    - For a start C(log_place) is what C(log_source) says, C(archive), C(path) in it or on the host, and whether it is
      the session's own archive (C(is_own)).
  type: dict
  returned: success
  sample: {archive: "/srv/backup/repository::latest", engine: auto, ttl: 2h, start_timeout: 1800}
engine_options:
  description:
    - The same of the options that only one engine knows, by engine. C(point) are words for the point in time that they
      name, empty for the end of the copy's logs. An engine whose options cannot be meant is not there.
  type: dict
  returned: for a start
  sample: {postgresql: {missing_tablespaces: refuse, point: "recovery_target_xid 4711", recovery_target_xid: 4711}}
refusals:
  description: Why a database of each engine cannot be started with what is given; empty where it can.
  type: dict
  returned: for a start
  sample: {postgresql: ""}
roles:
  description: The engines whose databases can be started, with the role of each.
  type: dict
  returned: success
  sample: {postgresql: postgresql, mariadb: mysql, mysql: mysql}
secrets:
  description: Which variable holds each secret that is given. The secrets themselves are told nowhere.
  type: dict
  returned: success
  sample: {borg_passphrase: session_borg_passphrase}
"""
