# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Libraries that a session's server may load: those that only store data, or that tables are compressed with.

The copy's tables of plugins, components and functions name libraries by name alone, and the server looks for them in
one directory. A session's has links to what is allowed; what is missing there is logged and passed over.
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .._engine.interface import Programs

__all__ = ["allowed_libraries", "plugin_directory"]

PLACES = ("lib/mysql/plugin", "lib64/mysql/plugin", "lib/mariadb/plugin", "lib64/mariadb/plugin", "lib/plugin")


# Engines that keep tables in files, providers of compression and types of columns (MariaDB), and a way to log in that
# calls nobody; and what MySQL keeps counts of components by.
ALLOWED = re.compile(
    r"(?:ha_(?:archive|blackhole|mroonga|oqgraph)|component_reference_cache|provider_\w+|auth_ed25519|type_\w+)\.so"
)


def allowed_libraries(directory: str | None) -> list[str]:
    """Names of what may be loaded of a directory of libraries."""
    return [] if directory is None else sorted(name for name in os.listdir(directory) if ALLOWED.fullmatch(name))


def plugin_directory(programs: Programs) -> str | None:
    """Where the installation keeps its libraries, or None where it has none."""
    above = os.path.dirname(os.path.realpath(programs.bindir))
    return next((place for part in PLACES if os.path.isdir(place := os.path.join(above, part))), None)
