# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The engines whose servers can be started. Only modules that a start does not need import all of them."""

from __future__ import annotations

from typing import Any

from .._engine.interface import Engine
from .._mysql.engine import Mysql
from .._postgresql.engine import Postgresql

__all__ = ["ENGINES"]

ENGINES: dict[str, Engine[Any, Any]] = {engine.name: engine for engine in (Postgresql(), Mysql())}
