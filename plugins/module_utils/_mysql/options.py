# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What only MariaDB and MySQL know of a start's options, as roles/mysql/meta/argument_specs.yml has them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .target import read_target

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["point_in_time"]


def point_in_time(options: Mapping[str, Any]) -> str:
    """The point in time that the options name, in words; empty for the copy itself.

    Raises MysqlError for what they cannot be.
    """
    target = read_target(options)
    return "" if target is None else str(target)
