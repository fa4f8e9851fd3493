# Copyright (c) 2026, phpBorg contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What could not be read or written: the caller's error, a line of the log, and a file for whoever watches."""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
from typing import Any

from ..._session.counters import Counters

__all__ = ["MOST_TOLD", "Failures", "LostError", "LowerError", "plain"]

#: Errors that those who write get as they are; all others are failures, and look like one of the disk (EIO).
USERS_OWN = (errno.ENOSPC, errno.EFBIG)
#: Bytes of a path that the log has, from its end: names below each other make one as long as whoever makes them likes.
LONGEST_TOLD = 1024
#: Files with a failure that the log names, and of these the file of failures.
MOST_COMPLAINTS, MOST_TOLD = 1000, 100

log = logging.getLogger("cowfs")


class LowerError(OSError):
    """The lower cannot be read, as opposed to all that may be wrong with the upper."""

    side = "lower"


class LostError(LowerError):
    """The lower can be read, but has lost this piece of content."""

    side = "lost"

    def __init__(self) -> None:
        super().__init__(errno.EIO, "the archive has lost content of it: see what borg check says of the repository")


class Failures:
    """Tells of failures, each once per file and reason.

    The file is JSON, replaced as a whole, with a key for each side. C(lost): the archive has lost content of these
    files; C(lower), C(upper): one of those that could not be read or written for any other reason. Of each its path,
    the offset (null for names and attributes), and the reason.
    """

    def __init__(self, path: str | None, counters: Counters) -> None:
        self.path = path
        self.counters = counters
        if path is not None:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)  # of a layer that was here before a reset
        self.complaints: set[tuple[int, int, str]] = set()
        self.number = 0
        self.told: dict[str, list[dict[str, Any]]] = {}

    def errno_of(self, error: OSError, path: bytes, offset: int | None = None) -> int:
        """The error number that the caller gets for an error of the upper or lower, of which all are told."""
        number: int = error.errno if error.errno in USERS_OWN else errno.EIO
        side = error.side if isinstance(error, LowerError) else "upper"
        key = (hash(path), number, side)
        if key not in self.complaints and len(self.complaints) < MOST_COMPLAINTS:
            self.complaints.add(key)
            reason = error.strerror or str(error)
            where = "" if offset is None else f" at offset {offset}"
            log.error("%s: %s%s: %s", side, plain(path), where, reason)
            if number == errno.EIO:
                self.note(side, os.fsdecode(path), offset, reason)
        if number == errno.EIO:
            self.counters.add(io_errors=1)  # last: who sees it finds out why
        return number

    def note(self, side: str, path: str, offset: int | None, reason: str) -> None:
        """Add one to the file, up to MOST_TOLD of what is lost and one of each other side."""
        is_lost = side == LostError.side
        self.number += is_lost
        told = self.told.setdefault(side, [])
        if len(told) < (MOST_TOLD if is_lost else 1):
            told.append({"path": path, "offset": offset, "reason": reason})
        elif not is_lost:
            return
        if self.path is None:
            return
        temporary = f"{self.path}.tmp"
        # A full disk, most likely: the counter tells that something has failed.
        with contextlib.suppress(OSError), open(temporary, "w", opener=_private) as file:
            json.dump({**self.told, "lost_files": self.number}, file)
            file.flush()
            os.rename(temporary, self.path)


def plain(path: bytes) -> str:
    """A path for a line of the log: its end, in which nothing breaks the line or acts on a terminal."""
    text = os.fsdecode(path[-LONGEST_TOLD:]).encode("utf-8", "backslashreplace").decode() or "/"
    said = "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)
    return f"…{said}" if len(path) > LONGEST_TOLD else said


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
