# Copyright (c) 2026, phpBorg contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Open files by key, as many as a process may have."""

from __future__ import annotations

import collections
import contextlib
import os
from collections.abc import Callable
from typing import Any

__all__ = ["FileTable"]

#: Open files of each table: least recently used are closed.
OPEN_FILES = 256


class FileTable:
    """Open file descriptors by key; the least recently used is closed beyond ``limit``."""

    def __init__(self, limit: int = OPEN_FILES) -> None:
        self.limit = limit
        self.files: collections.OrderedDict[Any, int] = collections.OrderedDict()

    def get(self, key: Any, opener: Callable[[], int]) -> int:
        if key in self.files:
            self.files.move_to_end(key)
            return self.files[key]
        if len(self.files) >= self.limit:
            os.close(self.files.popitem(last=False)[1])
        self.files[key] = opener()
        return self.files[key]

    def close(self, key: Any) -> None:
        if key in self.files:
            os.close(self.files.pop(key))

    def clear(self) -> None:
        for key in list(self.files):
            with contextlib.suppress(OSError):  # closed it is, but a mount that has died complains
                self.close(key)
