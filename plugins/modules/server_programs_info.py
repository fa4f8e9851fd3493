#!/usr/bin/python
# Copyright (c) 2026, phpBorg contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: server_programs_info
short_description: Find the programs of a database server that can open a data directory
version_added: 1.0.0
author: phpBorg contributors (@phpborg)
description:
  - A data directory can be opened only by a server of its own version, which of PostgreSQL is the major version, of
    MariaDB and MySQL the first two numbers. This finds the programs of that version where distributions put them, and
    names the package where they are missing.
  - Debian and Ubuntu, the RPM packages of PostgreSQL itself, SUSE and Alpine keep versions side by side. A server in
    E(PATH) is found as well.
  - Not finding them is a result and no failure.
options:
  engine:
    description: Whose server it is. Of MariaDB and MySQL (V(mysql)) the version tells which.
    type: str
    choices: [postgresql, mysql]
    required: true
  version:
    description:
      - Version that is needed, such as V(15) or V(10.11.19). Of V(15.18) of PostgreSQL the first part counts.
      - Without it, RV(found) tells of any version.
    type: str
  bindir:
    description:
      - Look into this directory only. It is an error when it holds no server, or one of another version.
    type: path
extends_documentation_fragment:
  - phpborg.instant_recovery.attributes
attributes:
  check_mode:
    support: full
  diff_mode:
    support: none
    details: Nothing is ever changed.
  idempotent:
    support: full
  platform:
    support: full
    platforms: linux
seealso:
  - module: phpborg.instant_recovery.pg_ephemeral
"""

EXAMPLES = r"""
- name: See whether a copy of PostgreSQL 15 can be started here
  phpborg.instant_recovery.server_programs_info:
    engine: postgresql
    version: "15"
  register: binaries

- name: Install the server where it is missing
  ansible.builtin.package:
    name: "{{ binaries.package }}"
  when: not binaries.found
"""

RETURN = r"""
found:
  description: Whether the programs of O(version) are here.
  type: bool
  returned: success
  sample: true
bindir:
  description: Their directory; null when there is none.
  type: str
  returned: success
  sample: /usr/lib/postgresql/15/bin
version:
  description: Their full version; null when there are none.
  type: str
  returned: success
  sample: "15.18"
package:
  description: Package that brings the server of O(version) on this distribution; null without O(version).
  type: str
  returned: success
  sample: postgresql-15
installed:
  description: All that was found, oldest first.
  type: list
  elements: dict
  returned: success
  contains:
    major:
      description: Major version.
      type: int
    version:
      description: Full version.
      type: str
    bindir:
      description: Directory of the programs.
      type: str
  sample:
    - major: 15
      version: "15.18"
      bindir: /usr/lib/postgresql/15/bin
elapsed:
  description: Seconds it took to find out.
  type: float
  returned: success
  sample: 0.02
"""

from dataclasses import asdict
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ..module_utils._engine.interface import Engine
from ..module_utils._engines.servers import ENGINES
from ..module_utils._errors import run_module


def main() -> None:
    """Wire the arguments to the search."""
    module = AnsibleModule(
        argument_spec={
            "engine": {"type": "str", "choices": list(ENGINES), "required": True},
            "version": {"type": "str"},
            "bindir": {"type": "path"},
        },
        required_by={"bindir": "version"},
        supports_check_mode=True,
    )
    params = module.params
    run_module(module, lambda: _find(ENGINES[params["engine"]], params["version"], params["bindir"]))


def _find(engine: Engine[Any, Any], version: str | None, bindir: str | None) -> dict[str, Any]:
    everything = engine.installed()
    newest = everything[-1] if everything else None
    found = newest if version is None else engine.find_programs(version, bindir)
    return {
        "changed": False,
        "found": found is not None,
        "bindir": found.bindir if found else None,
        "version": found.version if found else None,
        "package": None if version is None else engine.package(version),
        "installed": [asdict(programs) for programs in everything],
    }


if __name__ == "__main__":
    main()
