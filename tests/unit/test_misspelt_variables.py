# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which extra variables are taken for misspelt ones."""

from __future__ import annotations

import pytest
from ansible_collections.phpborg.instant_recovery.plugins.lookup import misspelt_variables

KNOWN = ["archive", "borg_rsh", "driver", "port", "recovery_target_time", "repository", "start_timeout", "ttl"]


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("recovery_target_tiem", "recovery_target_time"),
        ("recovery-target-time", "recovery_target_time"),
        ("drvier", "driver"),
        ("Archive", "archive"),
        ("timeout", "start_timeout"),
        ("rsh", "borg_rsh"),
        ("passphrase", None),
        ("PORT", "port"),
        ("archive", None),
        ("my_archive", None),
        ("borg_repository", None),
        ("awx_job_id", None),
        ("ansible_port", None),
    ],
)
def test_resemblance(monkeypatch: pytest.MonkeyPatch, given: str, meant: str | None) -> None:
    monkeypatch.setattr(misspelt_variables, "load_extra_vars", lambda _loader: {given: "any", "ttl": "2h"})
    said = misspelt_variables.LookupModule().run(KNOWN)
    assert said == ([f"{given} is unknown: did you mean {meant}?"] if meant else [])
