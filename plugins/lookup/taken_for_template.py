# Copyright (c) 2026, phpBorg contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Secrets with braces in them, which Ansible would take for templates."""

from __future__ import annotations

DOCUMENTATION = r"""
name: taken_for_template
short_description: Finds variables whose text Ansible would change, or stumble over, as a template
version_added: 1.0.0
author: phpBorg contributors (@phpborg)
description:
  - Ansible takes what begins with C({{), C({%) or C({#) in a variable for a template. In a passphrase it is a part of
    it, and what comes out is an error of syntax, or another passphrase without a word.
  - This looks at variables as they were given, before that. A value that is one whole expression, such as another
    variable in double braces, is meant as a template. So are values marked C(!unsafe), which are taken as they are.
  - What is found is never told, only the variable's name.
options:
  _terms:
    description: Names of variables.
    type: list
    elements: str
    required: true
"""

EXAMPLES = r"""
- name: Refuse a passphrase that would be another one
  ansible.builtin.fail:
    msg: "{{ query('phpborg.instant_recovery.taken_for_template', 'borg_passphrase') | first }}"
  when: query('phpborg.instant_recovery.taken_for_template', 'borg_passphrase') | length > 0
"""

RETURN = r"""
_raw:
  description: One sentence for each, with the cure.
  type: list
  elements: str
  sample: ["borg_passphrase has braces in it that Ansible takes for a template: mark it in its file with !unsafe."]
"""

import re
from typing import Any

from ansible.plugins.lookup import LookupBase
from ansible.utils.unsafe_proxy import AnsibleUnsafe

try:
    from ansible.template import is_trusted_as_template
except ImportError:  # before ansible-core 2.19, where all is a template that is not unsafe

    def is_trusted_as_template(value: object) -> bool:
        """Whether Ansible takes the value for a template."""
        return not isinstance(value, AnsibleUnsafe)


BRACES = re.compile(r"\{[{%#]")
WHOLE = re.compile(r"\s*\{\{(?:(?!\}\}|\{[{%#]).)*\}\}\s*", re.DOTALL)


class LookupModule(LookupBase):  # type: ignore[misc]  # Ansible has no types
    """The lookup."""

    def run(self, terms: list[str], variables: dict[str, Any] | None = None, **kwargs: Any) -> list[str]:
        """Sentences, in the order of the names."""
        self.set_options(var_options=variables, direct=kwargs)
        return [_refusal(name) for name in terms if _is_mistaken((variables or {}).get(name))]


def _refusal(name: str) -> str:
    return (
        f"{name} has braces in it that Ansible takes for a template: mark it in its file with !unsafe ({name}: !unsafe "
        "'the text'), give it in the environment (BORG_PASSPHRASE), or name a file that holds it "
        "(borg_passphrase_file)."
    )


def _is_mistaken(value: object) -> bool:
    text = str(value) if isinstance(value, str) else ""
    return bool(BRACES.search(text)) and is_trusted_as_template(value) and not WHOLE.fullmatch(text)
