# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The clocks of sessions, set forward: an hour without a query, or without the archive, costs a test no time."""

from __future__ import annotations

import contextlib
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

__all__ = ["MINUTE", "PATIENCE", "Clock", "wait_until"]

MINUTE = 60.0
PATIENCE = 120.0  # seconds for what is to happen soon, on a machine that is busy with other things


@dataclass
class Clock:
    """The file that INSTANT_RECOVERY_CLOCK names in the environment of keepers and layers."""

    path: Path
    ahead: float = field(default=0.0, init=False)

    def __post_init__(self) -> None:
        self.forward(0)

    def forward(self, seconds: float) -> None:
        """Let so many seconds pass."""
        self.ahead += seconds
        new = self.path.with_suffix(".new")
        new.write_text(f"{self.ahead:.1f}")
        new.rename(self.path)

    def now(self) -> float:
        """The time of day there."""
        return time.time() + self.ahead

    @contextlib.contextmanager
    def rushing(self, *, seconds: float = 10) -> Iterator[None]:
        """Let so many seconds pass in each tenth of one: for waits whose limit is to be reached."""
        done = threading.Event()

        def rush() -> None:
            while not done.wait(0.1):
                self.forward(seconds)

        thread = threading.Thread(target=rush)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()


def wait_until(condition: Callable[[], object], *, seconds: float = PATIENCE, pause: float = 0.05) -> None:
    """Wait for a state, however long it takes on a busy machine; fail when it does not come at all."""
    deadline = time.monotonic() + seconds
    while True:
        began = time.monotonic()
        if condition():
            return
        looked = time.monotonic()
        assert looked < deadline, f"not after {seconds:g} s"
        time.sleep(max(pause, 2 * (looked - began)))  # others need the processor, what is waited for among them
