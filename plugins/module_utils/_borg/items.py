# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What an archive lists."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["Item"]


class Item(NamedTuple):
    """One entry of an archive. `path` as borg lists it; `type` as in `ls -l`; `user` a name, or a number without one.
    `uid` is that user's on the archive's host.

    `target` is a symbolic link's target, or the path in the archive whose content a hard link shares (`type` is then
    `h`, and `size`, in bytes, is 0). `healthy` is False when borg check replaced lost content by zeros. `is_dotted`:
    borg has it with `./` before the path, as `tar -cf - . | borg import-tar` makes it.
    """

    path: str
    type: str
    size: int
    user: str
    target: str = ""
    healthy: bool = True
    is_dotted: bool = False
    uid: int | None = None
