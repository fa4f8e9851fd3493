# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The engines whose data can be exported."""

from __future__ import annotations

from .._export.interface import Exporter
from .._mysql.export import MysqlExporter
from .._postgresql.export import PostgresqlExporter

__all__ = ["EXPORTERS", "FORMATS"]

EXPORTERS: dict[str, Exporter] = {
    "postgresql": PostgresqlExporter(),
    **dict.fromkeys(("mariadb", "mysql"), MysqlExporter()),
}
FORMATS = tuple(dict.fromkeys(form for exporter in EXPORTERS.values() for form in exporter.formats))
