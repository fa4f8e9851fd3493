#!/usr/bin/python
# Copyright (c) 2026, phpBorg contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: host_preflight
short_description: Tell what keeps instant recovery sessions from starting on a host
version_added: 1.0.0
author: phpBorg contributors (@phpborg)
description:
  - Looks at everything a session needs except the database server, as the user who would run it, in a fraction of a
    second. C(borg) and its FUSE support, C(fusermount3), C(/dev/fuse), the copy-on-write driver, and the directory that
    holds the sessions.
  - Finding something missing is a result and no failure. The role P(phpborg.instant_recovery.host#role) installs what
    packages can cure and fails for the rest.
options:
  session_root:
    description:
      - Directory that will hold the sessions. It need not exist yet.
      - The default is C(/var/lib/instant_recovery) for root and C(instant_recovery) in the user's state directory
        otherwise.
    type: path
  driver:
    description:
      - The copy-on-write driver that a session is to use.
      - V(auto) is V(block) where a Python with pyfuse3 is found, else V(overlayfs) for root.
    type: str
    choices: [auto, block, overlayfs]
    default: auto
  minimum_free:
    description:
      - How many bytes must be free on the file system of O(session_root); V(500M) or V(2G) are understood, too.
    type: str
    default: 1G
  free_space_floor:
    description: Room that sessions leave to others, a share of the disk such as V(5%), but 1 GiB at least, or a size.
    type: str
    default: 5%
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
  - module: phpborg.instant_recovery.overlay_mount
  - module: phpborg.instant_recovery.server_programs_info
"""

EXAMPLES = r"""
- name: See whether sessions can start here
  phpborg.instant_recovery.host_preflight:
  register: preflight

- name: Tell what is missing
  ansible.builtin.debug:
    msg: "{{ preflight.problems | map(attribute='what') | list }}"

- name: Ask for a certain driver and 20 GiB of room on another file system
  phpborg.instant_recovery.host_preflight:
    session_root: /srv/instant_recovery
    driver: block
    minimum_free: 20G
"""

RETURN = r"""
problems:
  description: What keeps a session from starting, in the order in which it would be met. Empty on a host that is ready.
  type: list
  elements: dict
  returned: success
  contains:
    what:
      description: What is wrong, with the value that is wrong.
      type: str
    remedy:
      description: What to do about it.
      type: str
    packages:
      description: Packages that cure it, by their names in Debian, Ubuntu and Fedora. Empty when packages do not help.
      type: list
      elements: str
  sample:
    - what: borg is not installed
      remedy: install the package borgbackup
      packages: [borgbackup]
packages:
  description: All packages named in RV(problems), and those without which a session works less well.
  type: list
  elements: str
  returned: success
  sample: [borgbackup]
driver:
  description: The driver that a session will use, V(block) or V(overlayfs); null when there is none.
  type: str
  returned: success
  sample: block
python:
  description: A Python that has pyfuse3, for the driver V(block); null when there is none.
  type: str
  returned: success
  sample: /usr/bin/python3
user:
  description: The user who was looked at.
  type: str
  returned: success
  sample: root
session_root:
  description: The directory that will hold the sessions.
  type: str
  returned: success
  sample: /var/lib/instant_recovery
elapsed:
  description: Seconds it took to find out.
  type: float
  returned: success
  sample: 0.05
"""

from ansible.module_utils.basic import AnsibleModule

from ..module_utils._errors import run_module
from ..module_utils._host.preflight import DRIVERS, Host, examine
from ..module_utils._host.sizes import parse_floor, parse_size
from ..module_utils._session.directory import default_root


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "session_root": {"type": "path"},
            "driver": {"type": "str", "choices": list(DRIVERS), "default": "auto"},
            "minimum_free": {"type": "str", "default": "1G"},
            "free_space_floor": {"type": "str", "default": "5%"},
        },
        supports_check_mode=True,
    )
    run_module(module, lambda: _result(module, **module.params))


def _result(
    module: AnsibleModule, *, session_root: str | None, driver: str, minimum_free: str, free_space_floor: str
) -> dict[str, object]:
    root = session_root or default_root()
    host = Host.look()
    free = parse_size(minimum_free, option="minimum_free")
    report = examine(host, driver=driver, session_root=root, minimum_free=free, floor=parse_floor(free_space_floor))
    for warning in report.warnings:
        module.warn(warning)
    return {"changed": False, **report.as_result(), "user": host.user, "session_root": root}


if __name__ == "__main__":
    main()
