# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which distribution of Linux this is, by os-release(5): packages are called otherwise in each."""

from __future__ import annotations

import re

__all__ = ["family"]


def family(os_release: str | None = None) -> set[str]:
    """What the distribution calls itself, and which ones it is like: debian, rhel, suse and so on.

    os_release is the text of /etc/os-release, which is read where it is not given.
    """
    text = _os_release() if os_release is None else os_release
    values = dict(re.findall(r'^(ID|ID_LIKE)="?([^"\n]*)"?$', text, re.MULTILINE))
    return {values.get("ID", ""), *values.get("ID_LIKE", "").split()}


def _os_release() -> str:
    try:
        with open("/etc/os-release", encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""
