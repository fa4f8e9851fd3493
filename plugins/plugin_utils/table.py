# Copyright (c) 2026, phpBorg contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The table of options: what the roles' argument specs say of them, by the names that people use."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from ansible.module_utils.common.yaml import yaml_load

from ..module_utils._engines.options import ROLES as ROLES_OF_ENGINES

__all__ = [
    "AUTO",
    "ENTRY_POINTS",
    "KEPT",
    "ROLE",
    "ROLES_OF_ENGINES",
    "Table",
    "all_variables",
    "read_table",
    "variables_of",
]

ROLE = "session"
ENTRY_POINTS = ("start", "stop", "list", "extend", "reset", "reap", "logs", "export")
AUTO = "auto"
# In the playbooks, too, they have the prefix: without it they could be anybody's.
KEPT = ("session_id", "session_root")
ROLES = Path(__file__).resolve().parents[2] / "roles"

Options = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Table:
    """The options of an entry point: of any session, and for a start those that only one engine knows, by engine."""

    entry_point: str
    options: Options
    engines: dict[str, Options]


def read_table(entry_point: str, roles: Path = ROLES) -> Table:
    """The table of one of ENTRY_POINTS."""
    options = _options(roles, ROLE, entry_point)
    engines = [one for one in options.get("engine", {}).get("choices", ()) if one != AUTO]
    return Table(
        entry_point, options, {engine: _options(roles, ROLES_OF_ENGINES[engine], entry_point) for engine in engines}
    )


def variables_of(option: str, role: str = ROLE, *, plain: bool) -> list[str]:
    """The variables that may give an option, the first of them that does: also the plain name, or the role's alone."""
    of_role = option if option in KEPT else f"{role}_{option}"
    return [option, of_role] if plain and option != of_role else [of_role]


def all_variables() -> set[str]:
    """What people may give to any of the playbooks."""
    tables = [read_table(entry_point) for entry_point in ENTRY_POINTS]
    own = [(ROLES_OF_ENGINES[engine], known) for table in tables for engine, known in table.engines.items()]
    parts = [*((ROLE, table.options) for table in tables), *own]
    return {name for role, options in parts for option in options for name in variables_of(option, role, plain=True)}


def _options(roles: Path, role: str, entry_point: str) -> Options:
    options: Options = _specs(roles / role)[entry_point]["options"]
    return {name if name in KEPT else name.removeprefix(f"{role}_"): spec for name, spec in options.items()}


@cache
def _specs(role: Path) -> dict[str, Any]:
    specs = yaml_load((role / "meta" / "argument_specs.yml").read_text(encoding="utf-8"))
    entry_points: dict[str, Any] = specs["argument_specs"]
    return entry_points
