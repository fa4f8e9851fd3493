# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is made once for all of pytest's workers, by the first that needs it, while the others wait."""

from __future__ import annotations

import fcntl
import os
import pickle
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["COMMON", "TESTS", "are_tests", "made_once", "shared"]

COMMON = "INSTANT_RECOVERY_COMMON"  # names the directory, which tests/conftest.py removes at the end of the run
TESTS = "INSTANT_RECOVERY_TESTS"  # set by tests/conftest.py

T = TypeVar("T")


def are_tests() -> bool:
    """Whether what is made may cost less than users pay: in tests, and not in benchmarks or the demo."""
    return TESTS in os.environ and COMMON in os.environ


def shared(name: str) -> Path:
    """A directory that all workers of this run use, and other users can enter."""
    place = Path(os.environ[COMMON], name)
    for directory in (place.parent, place):
        directory.mkdir(exist_ok=True)
        directory.chmod(0o755)
    return place


def made_once(name: str, make: Callable[[Path], T]) -> T:
    """What make returned to the first caller of this run; it is given a directory.

    A caller whose make fails leaves it to the next one.
    """
    place = shared(name)
    result = place / "made.pickle"
    with (place / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not result.exists():
            value = make(place)
            # Under another name first: whoever makes it may be killed.
            result.with_suffix(".new").write_bytes(pickle.dumps(value))
            result.with_suffix(".new").rename(result)
        made: T = pickle.loads(result.read_bytes())
        return made
