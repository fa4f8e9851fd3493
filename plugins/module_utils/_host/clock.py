# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The clocks by which a session's keeper judges what is due.

The project's tests set them forward, so that nobody has to wait until an hour has passed: they name a file in the
environment that holds how many seconds the clocks are ahead. Nothing else sets it.
"""

from __future__ import annotations

import os
import time

__all__ = ["monotonic", "now"]

AHEAD = "INSTANT_RECOVERY_CLOCK"


def now(moment: float | None = None) -> float:
    """The time of day, in seconds since the epoch; that of a moment of the system's clock."""
    return (time.time() if moment is None else moment) + _ahead()


def monotonic() -> float:
    """The clock that nobody sets back, and that is the same for all processes."""
    return time.monotonic() + _ahead()


def _ahead() -> float:
    path = os.environ.get(AHEAD)
    if not path:
        return 0.0
    with open(path, encoding="ascii") as file:
        return float(file.read(32))
