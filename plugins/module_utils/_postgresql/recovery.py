# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Archive recovery of a copy, as far as it differs from crash recovery: to which point, with whose WAL, how it ended.

It takes place in the run of `postgres --single` before the server listens, which knows recovery.signal as a server
does, except that nobody could look while it is paused. What cannot work is said before anything is changed, as far as
that can be known; the rest is read from what the server says.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from .._host.files import is_file
from .cluster import PostgresError
from .target import Target
from .wal import Start, format_position, parse_position, segment_number, wal_segments

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from .backup import Backup
    from .cluster import DataDirectory
    from .wal_archive import WalArchive

__all__ = [
    "IGNORES_INVALID_PAGES",
    "SHUT_DOWN",
    "Recovery",
    "allows_in_place_tablespaces",
    "check_invalid_pages",
    "check_outcome",
    "explain",
    "missing_wal",
    "next_segment",
    "plan_recovery",
    "recovered_to",
]

SHUT_DOWN = "shut down in order"  # the reason where there was nothing to recover
# From these on a tablespace may be a plain directory, which it becomes where its creation is taken out of the WAL.
IN_PLACE_TABLESPACES = {12: 12, 13: 8, 14: 5}  # minor by major version; all of 15 and newer

IGNORES_INVALID_PAGES = 13  # since that version the setting ignore_invalid_pages is known

GO_FURTHER = "name an earlier point, or a log_source that goes further"
MINIMAL = (
    "The WAL was partly written with wal_level=minimal, so nothing beyond can be recovered from this copy: name an "
    "earlier point, or use an archive that was made later."
)
CURE = "name the directory of the archived WAL that has it (log_source), or use an archive that includes the WAL"


@dataclass(frozen=True)
class Recovery:
    """Archive recovery with WAL from archive (None: only what the copy has) up to target."""

    target: Target
    archive: WalArchive | None
    time_zone: str

    def settings(self, restore_command: str) -> dict[str, str]:
        """For the command line of the run that recovers."""
        return {
            "restore_command": restore_command,
            # With it, limits of production such as max_connections would have to be kept.
            "hot_standby": "off",
            **self.target.settings(self.time_zone),
        }


def plan_recovery(
    data: DataDirectory,
    backup: Backup,
    *,
    target: Target | None,
    archive: WalArchive | None,
    wal: str,
    time_zone: str,
) -> Recovery | None:
    """What is to be done to reach target, or None where crash recovery with the copy's own WAL is enough.

    wal is the copy's directory of WAL. Raises PostgresError for what cannot be reached.
    """
    # Only archive recovery insists on the end of an exclusive backup. Without it a server starts on files that were
    # copied at different moments.
    if target is None and archive is None and not backup.is_exclusive:
        return None
    target = target or Target()
    _check_timeline(target, data, archive, wal)
    _check_time(target, data, time_zone)
    if target.setting == "recovery_target_lsn" and parse_position(target.value) < (backup.end or backup.start.position):
        raise _too_early(target, f", which is at {format_position(backup.end or backup.start.position)}")
    # A copy taken at one moment shows that moment or a later one: the server goes to the end of the copy's own WAL in
    # any case, as after a crash, and takes a target that it meets before as an error.
    is_of_one_moment = not backup.is_labelled and backup.end is None
    if is_of_one_moment and archive is None and target.setting not in (None, "recovery_target"):
        raise PostgresError(
            f"{target} cannot be reached: the copy was taken at one moment, which is the earliest it can show, and "
            "there is no WAL that leads further. Give a log_source, or use an older archive together with one."
        )
    return Recovery(target, archive, time_zone)


def missing_wal(backup: Backup, wal: str, archive: WalArchive | None) -> str | None:
    """The first segment without which the copy cannot become consistent; None where all are here that are known of."""
    size = backup.start.segment_size
    here = {segment_number(name, size) for name in wal_segments(wal)} | (archive.numbers if archive else set())
    # A position on a segment's first byte needs nothing of it.
    last = max(backup.start.position, (backup.end or 0) - 1) // size
    for number in range(backup.start.position // size, last + 1):
        if number not in here:
            return Start(number * size, backup.start.timeline, size).segment
    return None


def next_segment(start: Start, wal: str) -> str:
    """The first segment from start on that the copy's own WAL does not have."""
    here = {segment_number(name, start.segment_size) for name in wal_segments(wal)}
    number = start.position // start.segment_size
    while number in here:
        number += 1
    return Start(number * start.segment_size, start.timeline, start.segment_size).segment


def allows_in_place_tablespaces(version: str) -> bool:
    """Whether that version has the setting allow_in_place_tablespaces."""
    match = re.match(r"(\d+)(?:\.(\d+))?", version)
    major, minor = (int(match[1]), int(match[2] or 0)) if match else (0, 0)
    return major >= 15 or minor >= IN_PLACE_TABLESPACES.get(major, 99)


def recovered_to(reached: dict[str, Any], log: Sequence[str]) -> dict[str, Any]:
    """The point that was reached, from what the server's functions and its log say."""
    said = "\n".join(log)
    stop = re.search(r"LOG:  recovery (stopping .*)", said)
    done = re.search(r"LOG:  redo done at ([0-9A-F]+/[0-9A-F]+)", said)
    if done is not None and not reached["lsn"]:  # an earlier process recovered, so the functions do not know
        last = re.search(r"LOG:  last completed transaction was at log time (\S+ \S+)\+00$", said, re.MULTILINE)
        reached = {**reached, "lsn": done[1], "time": f"{last[1].replace(' ', 'T')}+00:00" if last else None}
    reason = stop[1] if stop else "end of the WAL" if reached["lsn"] else SHUT_DOWN
    return {**reached, "reason": reason}


def explain(log: Sequence[str], recovery: Recovery | None, missing: str | None) -> str | None:
    """One sentence on why recovery failed; None where the server's own words have to do.

    missing is the segment that was asked for and not found, if any.
    """
    said = "\n".join(log)
    target = recovery.target if recovery else Target()
    if unreadable := _unreadable(said):
        return unreadable
    if "recovery ended before configured recovery target was reached" in said:
        return _not_reached(target, said)
    if "requested recovery stop point is before consistent recovery point" in said:
        return str(_too_early(target))
    if match := re.search(
        r"FATAL:  (?:recovery target timeline (\d+) does not exist|requested timeline (\d+) is)", said
    ):
        return (
            f"recovery_target_timeline {match[1] or match[2]} does not lead on from the copy: name another timeline, "
            "or leave it out for the newest."
        )
    if "WAL was generated with" in said and "cannot continue recovering" in said:
        return MINIMAL
    ends = ("WAL ends before", "could not locate required checkpoint record", "could not find redo location")
    if any(words in said for words in ends):
        named = f": segment {missing} is missing" if missing else ""
        return f"The WAL ends before the backup did{named}. To cure it, {CURE}."
    return None


def check_outcome(recovery: Recovery | None, log: Sequence[str]) -> str | None:
    """One sentence on why what was recovered is not what was wanted, although the server takes it for success.

    From PostgreSQL 13 on a target that was not reached is an error to the server, from 14 on WAL that lacks data is.
    """
    said = "\n".join(log)
    if unreadable := _unreadable(said):
        return unreadable
    if "WAL was generated with" in said:
        return MINIMAL
    if recovery is not None and recovery.target.setting is not None and "recovery stopping" not in said:
        return _not_reached(recovery.target, said)
    return None


def check_invalid_pages(log: Sequence[str], left_out: Iterable[str]) -> None:
    """Raise PostgresError where the WAL changes pages that are not there, other than in tablespaces with these oids."""
    found = [match[1] for line in log if (match := re.search(r"WARNING:  page \d+ of relation (\S+)", line))]
    others = sorted({path for path in found if not any(path.startswith(f"pg_tblspc/{oid}/") for oid in left_out)})
    if others:
        raise PostgresError(
            f"The WAL changes pages that are not in the copy, of {', '.join(others[:5])}: the copy is damaged, or was "
            "not taken at one moment. Use another archive."
        )


def _unreadable(said: str) -> str | None:
    """Say so where recovery met WAL that cannot be read: to the server it ends there, as after a crash."""
    match = re.search(r"could not read from (?:log|WAL) segment (\w+),.*: Input/output error", said)
    return f"Segment {match[1]} of the WAL cannot be read: Input/output error. Use another archive." if match else None


def _not_reached(target: Target, said: str) -> str:
    end = re.search(r"redo done at (\S+)", said)
    last = re.search(r"last completed transaction was at log time (.+)", said)
    known = f"ends at {end[1]}" if end else "ends before"
    return f"{target} was not reached: the WAL {known}, its last commit {_at(last)}. To go on, {GO_FURTHER}."


def _at(match: re.Match[str] | None) -> str:
    return f"was at {match[1].strip()}" if match else "is not known"


def _too_early(target: Target, known: str = "") -> PostgresError:
    return PostgresError(f"{target} is before the end of the copy{known}: name a later point, or use an older archive.")


def _check_timeline(target: Target, data: DataDirectory, archive: WalArchive | None, wal: str) -> None:
    if not target.timeline.isdigit() or int(target.timeline) == data.control.timeline:
        return
    name = f"{int(target.timeline):08X}.history"
    if (archive is None or archive.read(name) is None) and not is_file(os.path.join(wal, name)):
        known = sorted({data.control.timeline, *(archive.timelines if archive else ())})
        raise PostgresError(
            f"recovery_target_timeline {target.timeline} is not known: there is no {name} among the WAL. There is "
            f"something of timeline {', '.join(map(str, known))}."
        )


def _check_time(target: Target, data: DataDirectory, time_zone: str) -> None:
    """The server would stop at the first commit after it, however much later that is."""
    time = target.time(time_zone)
    written = datetime.fromtimestamp(data.control.time, timezone.utc)
    if time is not None and time < written:
        raise _too_early(target, f", which was made after {written:%Y-%m-%d %H:%M:%S} UTC")
