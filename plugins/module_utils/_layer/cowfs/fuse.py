# Copyright (c) 2026, phpBorg contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""pyfuse3 and trio, which only the program needs: both are None on a host that has neither and only packs it."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

try:
    import pyfuse3
    import trio
except ImportError:
    pyfuse3 = trio = None

__all__ = ["in_thread", "pyfuse3", "trio"]


async def in_thread(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function in a worker thread, which is left to itself if it hangs when the program ends."""
    return await trio.to_thread.run_sync(functools.partial(function, *arguments), **_abandon())


@functools.lru_cache(maxsize=1)
def _abandon() -> dict[str, bool]:
    parameters = inspect.signature(trio.to_thread.run_sync).parameters
    return {"abandon_on_cancel" if "abandon_on_cancel" in parameters else "cancellable": True}  # the older: trio < 0.23
