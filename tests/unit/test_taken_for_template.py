# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which secrets Ansible would take for templates."""

from __future__ import annotations

import pytest
from ansible.utils.unsafe_proxy import AnsibleUnsafeText
from ansible_collections.phpborg.instant_recovery.plugins.lookup import taken_for_template


def given(text: str) -> str:
    """As a file of variables gives it."""
    try:
        from ansible.template import trust_as_template
    except ImportError:  # before ansible-core 2.19
        return text
    trusted: str = trust_as_template(text)
    return trusted


@pytest.mark.parametrize("text", ["a{{ b }}", "{{ a }}{{ b }}", "x{% if", "{# x #}", "{{", "{{ a {% }}", "{{ a }} b"])
def test_braces(text: str) -> None:
    def said(value: object) -> list[str]:
        return list(taken_for_template.LookupModule().run(["borg_passphrase", "other"], {"borg_passphrase": value}))

    (refusal,) = said(given(text))
    assert refusal.startswith("borg_passphrase has braces in it that Ansible takes for a template")
    assert text not in refusal
    assert said(AnsibleUnsafeText(text)) == []


@pytest.mark.parametrize("value", ["{{ vault_passphrase }}", " {{ lookup('x', '{a}') }}\n", "a{b}", "{ {", "", None, 5])
def test_what_is_meant_or_none(value: object) -> None:
    variables = {"borg_passphrase": given(value) if isinstance(value, str) else value}
    assert taken_for_template.LookupModule().run(["borg_passphrase"], variables) == []
