# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The point in time that a session is asked for, checked and put into PostgreSQL's words."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any

from .._engine.moment import parse_moment
from .cluster import PostgresError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["POINTS", "Target", "read_target"]

# The settings that name a point, of which there can be one: what each must look like, and how to say so.
POINTS = {
    "recovery_target": (
        re.compile(r"immediate"),
        "immediate, which is the end of the backup, or one of recovery_target_time, recovery_target_xid, "
        "recovery_target_name and recovery_target_lsn",
    ),
    "recovery_target_time": (re.compile(r".+"), ""),  # see _engine/moment.py
    "recovery_target_xid": (re.compile(r"[1-9][0-9]{0,19}"), "the number of a transaction, such as 4711"),
    "recovery_target_lsn": (
        re.compile(r"[0-9A-Fa-f]{1,8}/[0-9A-Fa-f]{1,8}"),
        "a position in the write-ahead log, such as 1A/2B3C4D5E",
    ),
    "recovery_target_name": (
        re.compile(r"[^\0\n]+"),
        "the name that pg_create_restore_point() got, which has at most 63 bytes",
    ),
}
ZONE = "the time zone of the archived configuration"  # where a time has no offset
LONGEST_NAME = 63  # bytes of a restore point's
TIMELINE = re.compile(r"latest|current|[1-9][0-9]{0,9}")


@dataclass(frozen=True)
class Target:
    """Where recovery is to stop: setting is one of POINTS, or None for the end of the WAL.

    timeline is latest, current or a number. inclusive: whether what is named itself still counts.
    """

    setting: str | None = None
    value: str = ""
    inclusive: bool = True
    timeline: str = "latest"

    def __str__(self) -> str:
        if self.setting is None:
            return f"the end of timeline {self.timeline}"
        exclusive = "" if self.inclusive else ", exclusive"
        timeline = "" if self.timeline == "latest" else f", on timeline {self.timeline}"
        return f"{self.setting} {self.value}{exclusive}{timeline}"

    def time(self, time_zone: str) -> datetime | None:
        """The point in time, if it is one."""
        return parse_moment(self.value, time_zone, zone_is=ZONE) if self.setting == "recovery_target_time" else None

    def settings(self, time_zone: str) -> dict[str, str]:
        """For the server's command line. A time without an offset is in time_zone."""
        time = self.time(time_zone)
        point = {} if self.setting is None else {self.setting: self.value}
        if time is not None:
            point = {"recovery_target_time": time.isoformat(" ")}
        return {
            **point,
            "recovery_target_inclusive": "on" if self.inclusive else "off",
            "recovery_target_timeline": self.timeline,
            "recovery_target_action": "promote",
        }


def read_target(options: Mapping[str, Any]) -> Target | None:
    """The target in a module's options, which have PostgreSQL's names; None where there is none.

    Raises PostgresError for more than one, and for values that cannot be meant.
    """
    given = {name: str(options[name]) for name in POINTS if options.get(name) is not None}
    if len(given) > 1:
        raise PostgresError(
            f"{' and '.join(given)} are given together, and recovery can stop at one point only: leave all but one out."
        )
    for name, value in given.items():
        pattern, meaning = POINTS[name]
        is_long = name == "recovery_target_name" and len(value.encode("utf-8", "surrogateescape")) > LONGEST_NAME
        if is_long or not pattern.fullmatch(value):
            raise PostgresError(f"{name} is {value!r}: give {meaning}.")
    if "recovery_target_time" in given:
        parse_moment(given["recovery_target_time"], "UTC", zone_is=ZONE)
    _refuse_action(options.get("recovery_target_action"))
    timeline = options.get("recovery_target_timeline")
    if timeline is not None and not TIMELINE.fullmatch(timeline):
        raise PostgresError(f"recovery_target_timeline is {timeline!r}: give latest, current or a timeline's number.")
    if not given and timeline is None:
        return None
    inclusive = options.get("recovery_target_inclusive")
    target = Target(inclusive=True if inclusive is None else inclusive, timeline=timeline or "latest")
    return next((replace(target, setting=name, value=value) for name, value in given.items()), target)


def _refuse_action(action: str | None) -> None:
    if action in (None, "promote"):
        return
    if action in ("pause", "shutdown"):
        raise PostgresError(
            f"recovery_target_action is {action}, after which the server would accept no connections: a session "
            "recovers before its server listens. Leave it out (promote), and use read_only to only look at the data."
        )
    raise PostgresError(f"recovery_target_action is {action!r}: leave it out (promote).")
