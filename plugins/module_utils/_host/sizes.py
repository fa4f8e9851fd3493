# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Sizes of disks and memory as people write them."""

from __future__ import annotations

import os
import re
from contextlib import suppress

from ansible.module_utils.common.text.formatters import human_to_bytes

from .._errors import RecoveryError

__all__ = ["parse_floor", "parse_memory", "parse_size"]

PERCENT = re.compile(r"([0-9]{1,3}(?:\.[0-9]+)?)%")


def parse_floor(floor: str) -> str:
    """The option free_space_floor as floor_of() takes it. Raises RecoveryError for what is neither share nor size."""
    if re.fullmatch(r"[0-9]{1,2}(\.[0-9]+)?%", floor):
        return floor
    try:
        return str(parse_size(floor, option="free_space_floor"))
    except RecoveryError as error:
        raise RecoveryError(f"{error}, or a share of the disk such as 5%") from None


def parse_size(size: str, *, option: str) -> int:
    """Bytes from 1000, 500M or 2G (powers of 1024). Raises RecoveryError that names the option for anything else."""
    with suppress(ValueError):
        number = int(human_to_bytes(size))
        if number >= 0:
            return number
    raise RecoveryError(f"{option} {size} is not a size; write for example 500M or 2G")


def parse_memory(size: str, *, option: str) -> int:
    """Bytes from a size, or from a part of the host's memory such as 50%. Raises RecoveryError as parse_size."""
    part = PERCENT.fullmatch(size.strip())
    if part is None:
        return parse_size(size, option=option)
    if not 0 < float(part[1]) <= 100:
        raise RecoveryError(f"{option} {size} is no part of the host's memory; write for example 50%")
    return int(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") * float(part[1]) / 100)
