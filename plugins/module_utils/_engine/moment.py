# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A point in time as people and servers write it."""

from __future__ import annotations

import re
import zoneinfo
from datetime import datetime, timedelta, timezone, tzinfo

from .._errors import RecoveryError

__all__ = ["parse_moment"]

TIME = re.compile(
    r"(\d{4}-\d\d-\d\d)(?:[ T](\d\d:\d\d)(:\d\d)?(?:[.,](\d{1,6}))?)?"
    r"\s*(?:(Z|UTC|GMT)|([+-])(\d\d):?([0-5]\d)?)?",
    re.ASCII,
)


def parse_moment(text: str, time_zone: str, *, zone_is: str) -> datetime:
    """The option recovery_target_time, as ISO 8601 and servers write it, in UTC. Raises RecoveryError.

    Without an offset it is in time_zone; zone_is says for people which that is.
    """
    try:
        return _moment(text, time_zone)
    except (zoneinfo.ZoneInfoNotFoundError, OSError):  # OSError: the name of a directory of time zones
        problem = f"it has no offset from UTC, and the archive's time zone {time_zone} is not known on this host"
    except (ValueError, OverflowError) as error:  # the latter for a year before the first or after the last
        problem = str(error)
    raise RecoveryError(
        f"recovery_target_time {text!r} cannot be used ({problem}): write it as 2026-11-22T14:05:00+01, as a space "
        f"ends a value on the command line. Without an offset it is in {zone_is}."
    )


def _moment(text: str, time_zone: str) -> datetime:
    match = TIME.fullmatch(text.strip())
    if match is None:
        raise ValueError("it is no time")
    date, minute, second, fraction, utc, sign, hours, minutes = match.groups()
    if minute is None:  # most likely a command line on which a space has ended the value
        raise ValueError("it has no time of day")
    moment = datetime.fromisoformat(f"{date} {minute}{second or ':00'}.{(fraction or '').ljust(6, '0')}")
    zone: tzinfo = timezone.utc
    if sign is not None:
        zone = timezone(int(f"{sign}1") * timedelta(hours=int(hours), minutes=int(minutes or 0)))
    elif utc is None:
        zone = zoneinfo.ZoneInfo(time_zone)
    return moment.replace(tzinfo=zone).astimezone(timezone.utc)
