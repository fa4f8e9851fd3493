# Copyright (c) 2026, phpBorg contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The engines whose own options can be checked on the controller."""

from __future__ import annotations

from ..module_utils._postgresql.options import point_in_time

__all__ = ["POINTS"]

# By engine: tells the point in time that its own options name, in words, and refuses what they cannot be.
POINTS = {"postgresql": point_in_time}
