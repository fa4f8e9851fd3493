# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A bound on the time of work that is all our own: of what waits for others, the waits have bounds."""

from __future__ import annotations

import signal
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["deadline"]


AGAIN = 60.0  # seconds, in which whatever is to be undone has been


class _OverError(BaseException):
    """Nobody in the block takes it for a failure that can be gone on after."""


@contextmanager
def deadline(seconds: float, error: Exception) -> Iterator[None]:
    """Raise error in the block, wherever that is, once so many seconds have passed.

    By SIGALRM, which Python takes in the main thread alone: modules run there. In another thread it does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    over = _OverError()

    def end(_number: int, _frame: object) -> None:
        raise over

    before = signal.signal(signal.SIGALRM, end)
    # Again and again: where Python cannot raise it, as in a finalizer, it would be lost.
    signal.setitimer(signal.ITIMER_REAL, seconds, AGAIN)
    try:
        yield
    except _OverError as caught:
        if caught is not over:  # somebody else's, around this block
            raise
        raise error from None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
