# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Calls into the kernel that Python has no name for; part of the program that `_host/sandbox.py` runs."""

from __future__ import annotations

import ctypes
import os

__all__ = ["checked", "libc"]

libc = ctypes.CDLL(None, use_errno=True)


def checked(result: int, what: str) -> int:
    """The result of a call into libc. Raises OSError where it is -1."""
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return int(result)
