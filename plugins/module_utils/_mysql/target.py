# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The point in time that a session is asked for, checked."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from .._engine.moment import parse_moment
from .option_file import MysqlError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["POINTS", "Target", "read_target"]

# The options that name a point, of which there can be one: what each must look like, and how to say so.
POINTS = {
    "recovery_target": (re.compile(r"end"), "end, which is the end of the archived binary logs"),
    "recovery_target_time": (re.compile(r".+"), ""),  # see _engine/moment.py
    "recovery_target_position": (
        re.compile(r"[^\s:/]{1,200}\.\d{6,18}:\d{1,18}"),
        "a binary log's name and the position in it at which to stop, such as mysql-bin.000004:4672531",
    ),
    "recovery_target_gtid": (
        re.compile(r"\d{1,10}-\d{1,10}-\d{1,20}|[0-9a-fA-F-]{36}:\d{1,20}"),
        "the global transaction id of the last transaction that counts, such as 0-1-4711 (MariaDB) or "
        "3e11fa47-71ca-11e1-9e33-c80aa9429562:23 (MySQL)",
    ),
}


@dataclass(frozen=True)
class Target:
    """Where replay of binary logs is to stop: setting is one of POINTS."""

    setting: str
    value: str

    def __str__(self) -> str:
        return f"{self.setting} {self.value}"

    @property
    def place(self) -> tuple[str, int] | None:
        """A binary log's name and a position in it, if it is one."""
        if self.setting != "recovery_target_position":
            return None
        name, _colon, position = self.value.rpartition(":")
        return name, int(position)

    @property
    def gtid(self) -> str | None:
        """The global transaction id, if it is one."""
        return self.value.lower() if self.setting == "recovery_target_gtid" else None

    @property
    def time(self) -> datetime | None:
        """The point in time, if it is one."""
        return parse_moment(self.value, "UTC", zone_is="UTC") if self.setting == "recovery_target_time" else None


def read_target(options: Mapping[str, Any]) -> Target | None:
    """The target in a module's options; None where there is none.

    Raises MysqlError for more than one, and for values that cannot be meant.
    """
    given = {name: str(options[name]) for name in POINTS if options.get(name) is not None}
    if len(given) > 1:
        raise MysqlError(
            f"{' and '.join(given)} are given together, and recovery can stop at one point only: leave all but one out."
        )
    for name, value in given.items():
        pattern, meaning = POINTS[name]
        if not pattern.fullmatch(value):
            raise MysqlError(f"{name} is {value!r}: give {meaning}.")
        target = Target(name, value)
        if target.setting == "recovery_target_time":
            parse_moment(value, "UTC", zone_is="UTC")
        return target
    return None
