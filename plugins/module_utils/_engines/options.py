# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The engines whose own options are checked on the controller, before any host is asked."""

from __future__ import annotations

from .._mysql import options as mysql
from .._postgresql import options as postgresql

__all__ = ["MISNAMED", "POINTS", "ROLES"]

# What an engine's own words suggest for an option that all have, and what it is called.
MISNAMED = {"wal_source": "log_source", "binlog_source": "log_source"}
# The role of each engine: two products may be so alike that they have one.
ROLES = {"postgresql": "postgresql", "mariadb": "mysql", "mysql": "mysql"}
# By engine: tells the point in time that its own options name, in words, and refuses what they cannot be.
POINTS = {"postgresql": postgresql.point_in_time, **dict.fromkeys(("mariadb", "mysql"), mysql.point_in_time)}
