# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a session's layer could not read or write, as it tells in a file of its own beside the session's changes.

That file is its word and nobody else's: the server's user can neither write it nor put another one in its place.
"""

from __future__ import annotations

import json
import os
import posixpath
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ansible_collections.phpborg.instant_recovery.plugins.module_utils._session import Session

__all__ = ["Failure", "failure", "failures_of", "lost_content"]

LIMIT = 1 << 20  # bytes; the layer writes far less
NAMED = 5  # files that a sentence names


@dataclass(frozen=True)
class Failure:
    """Why a reader or writer got an error; is_partial: all else can still be read and written."""

    reason: str
    is_partial: bool


def failures_of(upper: str) -> str:
    """Where the layer with this upper directory tells its failures, see Failures in _cowfs.py."""
    return f"{upper}.failures"


def lost_content(session: Session) -> str | None:
    """A sentence that names the files of which the repository has lost content, and the cure; None where none is known.

    Known is what somebody has asked for. For whoever fails because of an input/output error, to say why.
    """
    told = _told(session)
    paths = [_within(entry["path"], session.record) for entry in told.get("lost", ())]
    if not paths:
        return None
    number = max(len(paths), int(told.get("lost_files", 0)))
    named = ", ".join(paths[:NAMED]) + (f" and {number - NAMED} more files" if number > NAMED else "")
    archive = session.record["archive"] or {}
    return (
        f"The repository has lost content of {named}, and reading it gives an input/output error. See what is damaged "
        f"with borg check {archive.get('repository') or 'REPOSITORY'}, and start a session from an archive that is not."
    )


def failure(session: Session) -> Failure:
    """Why the layer gave a reader or writer an error. What is worst comes first."""
    told = _told(session)
    if told.get("upper"):
        return Failure(
            f"The session's changes cannot be read or written any more{_where(told['upper'][0], session)}: its disk "
            "fails. Start another session",
            is_partial=False,
        )
    lost = lost_content(session)
    if lost and not told.get("lower"):
        return Failure(lost, is_partial=True)
    where = _where(told["lower"][0], session) if told.get("lower") else ""
    return Failure(
        f"The archive's data cannot be read any more{where}: the repository is out of reach, or the archive was "
        "deleted, renamed or compacted away. What can be read is right, for the rest start another session",
        is_partial=False,
    )


def _where(entry: Mapping[str, Any], session: Session) -> str:
    at = "" if entry["offset"] is None else f" at offset {entry['offset']}"
    return f" ({_within(entry['path'], session.record)}{at}: {entry['reason']})"


def _within(path: str, record: Mapping[str, Any]) -> str:
    """A path of the archive as the database's documentation has it: below the data directory, if it is there."""
    directory = posixpath.normpath(record.get("data_directory") or ".")
    inside = path[len(directory) + 1 :] if path.startswith(f"{directory}/") else path
    return inside.encode("utf-8", "backslashreplace").decode("utf-8") or "/"


def _told(session: Session) -> dict[str, Any]:
    """What the layer has told; nothing where it had no failure, or is another one than ours."""
    upper = session.record["overlay_upper_dir"]
    try:
        descriptor = os.open(failures_of(upper), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(descriptor, "rb") as file:
            told: dict[str, Any] = json.loads(file.read(LIMIT))
            return told
    except (OSError, ValueError):
        return {}
