#!/usr/bin/python
# Copyright (c) 2026, phpBorg contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: awx_object
short_description: Apply or remove one object of AWX or Ansible Automation Platform
version_added: 1.0.0
author: phpBorg contributors (@phpborg)
description:
  - Calls the module for this kind of object from the collection C(awx.awx), or from C(ansible.controller) where only
    that is installed. The role P(phpborg.instant_recovery.awx#role) applies its data files with it.
  - This is an action. The collection's module finds AWX and the credentials for it in the environment
    (E(CONTROLLER_HOST), E(CONTROLLER_OAUTH_TOKEN) and the like) or its configuration file.
options:
  kind:
    description: Name of the collection's module, such as V(job_template).
    type: str
    required: true
  object:
    description:
      - Options of that module. Empty ones are not given, and AWX keeps what it has.
      - To remove an object its C(name) and C(organization) are enough; the others are not looked at.
    type: dict
    required: true
  state:
    description: Whether AWX is to have the object.
    type: str
    choices: [present, absent]
    default: present
attributes:
  check_mode:
    description: An object that names another one can be checked only when AWX has that.
    support: partial
  diff_mode:
    description: The collections' modules have no diff.
    support: none
  idempotent:
    description: A workflow with nodes is reported as changed each time, by both collections.
    support: partial
  platform:
    description: The host that reaches AWX, mostly localhost.
    platforms: posix
    support: full
"""

EXAMPLES = r"""
- name: Have a project
  phpborg.instant_recovery.awx_object:
    kind: project
    object:
      name: Instant Recovery
      organization: Default
      scm_type: manual
      local_path: instant_recovery
"""

RETURN = r"""
id:
  description: Number of the object in AWX.
  type: int
  returned: when AWX has or had it
  sample: 42
"""
