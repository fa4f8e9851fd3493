# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which options of an object of AWX are given to the collection's module; tests/versions/test_awx.py runs that."""

from __future__ import annotations

from ansible_collections.phpborg.instant_recovery.plugins.action.awx_object import _options

PROJECT = {"name": "p", "organization": "o", "scm_url": "", "scm_type": "manual", "notification_templates_error": []}


def test_what_is_empty_is_left_to_awx() -> None:
    given = {"name": "p", "organization": "o", "scm_type": "manual", "state": "present"}
    assert _options(PROJECT, "present") == given
    assert _options({"name": "t", "survey_enabled": False}, "present")["survey_enabled"] is False


def test_to_remove_an_object_nothing_else_has_to_be_there() -> None:
    assert _options(PROJECT, "absent") == {"name": "p", "organization": "o", "state": "absent"}
    assert _options({"name": "t", "kind": "cloud"}, "absent") == {"name": "t", "state": "absent"}
