# Copyright (c) 2026, phpBorg contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations


class ModuleDocFragment:
    """The option that makes a module part of a session."""

    DOCUMENTATION = r"""
options:
  session_directory:
    description:
      - Directory of the session that this belongs to, as RV(phpborg.instant_recovery.session#module:session_directory)
        names it.
      - The session's lock is held meanwhile. What is about to be started or mounted is recorded in the session before
        it is done, so that stopping the session undoes it whatever happens.
      - Without it the module stands alone, and what it did is undone by the module itself.
    type: path
seealso:
  - module: phpborg.instant_recovery.session
"""
