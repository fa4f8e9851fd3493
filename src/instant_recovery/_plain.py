# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What hosts tell, made fit for a terminal."""

from __future__ import annotations

from typing import Any

__all__ = ["plain"]


def plain(told: Any) -> Any:
    """What a host tells, in which nothing acts on a terminal: control characters are written as \\x1b."""
    if isinstance(told, str):
        return "".join(one if one.isprintable() or one in "\n\t" else ascii(one)[1:-1] for one in told)
    if isinstance(told, dict):
        return {plain(key): plain(one) for key, one in told.items()}
    return [plain(one) for one in told] if isinstance(told, list | tuple) else told
