# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Durations as people write them."""

from __future__ import annotations

import re

from .._errors import RecoveryError

__all__ = ["duration_in_words", "parse_duration"]

PART = re.compile(r"([0-9]+(?:\.[0-9]+)?)([smhd]?)")
DURATION = re.compile(r"([0-9]+(\.[0-9]+)?[smhd])+|[0-9]+(\.[0-9]+)?")
LONGEST = 10 * 365 * 86400  # seconds
UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def duration_in_words(seconds: float) -> str:
    """Such as C(30 min), C(2 h) or C(90 s): in the largest unit of which it is a whole number."""
    for name, unit in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= unit and seconds % unit == 0:
            return f"{seconds // unit:g} {name}"
    return f"{seconds:g} s"


def parse_duration(text: str) -> float:
    """Seconds from C(90), C(30s), C(15m), C(2h), C(1d) or C(1h30m). Raises RecoveryError for anything else."""
    if not DURATION.fullmatch(text):
        raise RecoveryError(f"{text!r} is not a duration: write it as 90s, 15m, 2h, 1h30m or 1d; 0 is never.")
    seconds = sum(float(number) * UNITS[unit or "s"] for number, unit in PART.findall(text))
    if seconds > LONGEST:
        raise RecoveryError(f"{text} is too long: choose ten years at most; 0 is never.")
    return seconds
