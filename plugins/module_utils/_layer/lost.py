# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a session's layer could not read or write, as it tells in a file of its own beside the session's changes.

That file is its word and nobody else's: the server's user can neither write it nor put another one in its place.
"""

from __future__ import annotations

import json
import os
import posixpath
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from .._errors import listed, shown

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .._session.session import Session

__all__ = ["Failure", "failure", "failures_of", "lost_content", "lost_files"]

LIMIT = 1 << 20  # bytes; the layer writes far less


@dataclass(frozen=True)
class Failure:
    """Why a reader or writer got an error, in a sentence; is_partial: all else can still be read and written."""

    reason: str
    is_partial: bool


def failures_of(upper: str) -> str:
    """Where the layer with this upper directory tells its failures, see Failures in cowfs/failures.py."""
    return f"{upper}.failures"


def lost_files(session: Session) -> list[str]:
    """The files of which the repository has lost content, as far as somebody has asked for that; 100 at most.

    Paths are below the data directory, or in the archive for what is not there. Whoever got an input/output error may
    find the reason here, and whoever takes one for the end of a log, that it was none.
    """
    return [entry.path for entry in _told(session).lost]


def lost_content(session: Session) -> str | None:
    """A sentence that names them, and the cure; None where there are none."""
    told = _told(session)
    if not told.lost:
        return None
    number = max(told.number, len(told.lost))
    named = listed([entry.path for entry in told.lost], number=number, what="more files")
    repository = (session.record.archive or {}).get("repository") or "REPOSITORY"
    return (
        f"The repository has lost content of {named}, and reading it gives an input/output error. See what is "
        f"damaged with borg check {repository}, and start a session from an archive that is whole."
    )


def failure(session: Session) -> Failure:
    """Why the layer gave a reader or writer an error. What is worst comes first."""
    told, lost = _told(session), lost_content(session)
    if told.upper:
        return Failure(
            f"The session's changes cannot be read or written any more{told.upper}: its disk fails. Start another "
            "session",
            is_partial=False,
        )
    if lost and not told.lower:
        return Failure(lost, is_partial=True)
    return Failure(
        f"The archive's data cannot be read any more{told.lower or ''}: the repository is out of reach or damaged, or "
        "the archive was deleted, renamed or compacted away. What can be read is right, for the rest start another "
        "session",
        is_partial=False,
    )


@dataclass(frozen=True)
class _Entry:
    path: str
    offset: int | None
    reason: str

    def __str__(self) -> str:
        """To be put behind a word."""
        at = "" if self.offset is None else f" at offset {self.offset}"
        return f" ({self.path or '/'}{at}: {self.reason})"


@dataclass(frozen=True)
class _Told:
    """What the layer has told; number: files with content that is lost, of which it names the first."""

    lost: list[_Entry] = field(default_factory=list)
    lower: _Entry | None = None
    upper: _Entry | None = None
    number: int = 0


def _told(session: Session) -> _Told:
    """Nothing where there was no failure, or where it cannot be understood."""
    try:
        name = failures_of(session.path("upper"))
        descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(descriptor, "rb") as file:
            content = json.loads(file.read(LIMIT))
        entries = {
            side: [_entry(entry, session.record.data_directory) for entry in content.get(side, ())]
            for side in ("lost", "lower", "upper")
        }
        first = {side: next(iter(entries[side]), None) for side in ("lower", "upper")}
        return _Told(entries["lost"], first["lower"], first["upper"], int(content.get("lost_files", 0)))
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return _Told()


def _entry(told: Mapping[str, Any], data_directory: str | None) -> _Entry:
    offset = told["offset"]
    return _Entry(_within(told["path"], data_directory), None if offset is None else int(offset), shown(told["reason"]))


def _within(path: str, data_directory: str | None) -> str:
    """A path of the archive as the database's documentation has it: below the data directory, if it is there."""
    directory = posixpath.normpath(data_directory or ".")
    return shown(path[len(directory) + 1 :] if path.startswith(f"{directory}/") else path)
