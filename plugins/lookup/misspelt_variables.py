# Copyright (c) 2026, phpBorg contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Extra variables that are almost, but not quite, those that a playbook knows."""

from __future__ import annotations

DOCUMENTATION = r"""
name: misspelt_variables
short_description: Finds extra variables whose names were probably misspelt
version_added: 1.0.0
author: phpBorg contributors (@phpborg)
description:
  - Ansible passes over variables that nobody reads. Who writes C(-e recovery_target_tiem=...) gets the archive's last
    state, and takes it for the one that was asked for.
  - This looks for extra variables that are unknown and resemble a known one. Others may be there for any reason, and
    are none of its business.
options:
  _terms:
    description: The names that are known.
    type: list
    elements: str
    required: true
"""

EXAMPLES = r"""
- name: Refuse what was misspelt
  ansible.builtin.fail:
    msg: "{{ misspelt | join(' ') }}"
  when: misspelt | length > 0
  vars:
    misspelt: "{{ query('phpborg.instant_recovery.misspelt_variables', 'archive', 'recovery_target_time') }}"
"""

RETURN = r"""
_raw:
  description: One sentence for each, with the name that was probably meant.
  type: list
  elements: str
  sample: ["recovery_target_tiem is unknown: did you mean recovery_target_time?"]
"""

from difflib import get_close_matches
from typing import Any

from ansible.plugins.lookup import LookupBase
from ansible.utils.vars import load_extra_vars

# As difflib measures it, twice the letters in common by the letters of both: with one letter wrong, names of six or
# more are recognised, and my_archive is not taken for archive. Shorter names resemble too many others.
RESEMBLANCE = 0.83
# What modules call options that have other names in the playbooks.
MODULES_OWN = {
    "timeout": "start_timeout",
    "wal_source": "log_source",
    **{name: f"borg_{name}" for name in ("passphrase", "passcommand", "passphrase_file", "rsh", "remote_path")},
}


class LookupModule(LookupBase):  # type: ignore[misc]  # Ansible has no types
    """The lookup."""

    def run(self, terms: list[str], variables: dict[str, Any] | None = None, **kwargs: Any) -> list[str]:
        """Sentences, in the order in which the variables were given."""
        self.set_options(var_options=variables, direct=kwargs)
        unknown = [name for name in load_extra_vars(self._loader) if name not in terms]
        meant = [(name, _resembling(name, terms)) for name in unknown]
        return [f"{name} is unknown: did you mean {close[0]}?" for name, close in meant if close]


def _resembling(name: str, known: list[str]) -> list[str]:
    """The name that was probably meant, if there is one."""
    called = MODULES_OWN.get(name.lower())
    return [called] if called in known else get_close_matches(name.lower(), known, n=1, cutoff=RESEMBLANCE)
