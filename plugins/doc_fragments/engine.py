# Copyright (c) 2026, phpBorg contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Options of the modules that start a server or tell what it would do, of any engine (see _engine/interface.py)."""

from __future__ import annotations


class ModuleDocFragment:
    """Found by ansible-doc under this name."""

    DOCUMENTATION = r"""
options:
  bindir:
    description:
      - Directory of the server's programs. They must be of the data directory's version.
      - The default is where distributions put them, then E(PATH).
    type: path
  settings:
    description:
      - Settings of the server, by name. They count more than those of the module's choice.
      - Those that keep the server away from production cannot be given.
    type: dict
    default: {}
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
  accept_unconfined:
    description:
      - Start also where the host's kernel cannot keep the server away from other files and processes of its user.
      - That takes namespaces, which root can always make, and filters of calls.
    type: bool
    default: false
"""
