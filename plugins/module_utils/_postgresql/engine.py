# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""PostgreSQL's face: see Engine in _engine/interface.py, whose methods these are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .._engine.interface import Programs, Request, Started
from .cluster import MAJOR, OLDEST_MAJOR, PostgresError
from .plan import ARGUMENTS, Plan, PostgresqlRequest, make_plan
from .programs import find_programs, installed, package_name
from .role import SESSION_ROLE
from .server import start_server
from .settings import check_settings
from .target import read_target

if TYPE_CHECKING:
    from .._host.ports import PortChoice
    from .._session.session import Session

__all__ = ["Postgresql"]


class Postgresql:
    """PostgreSQL from 12 on."""

    name = "postgresql"
    user = SESSION_ROLE
    arguments: Mapping[str, dict[str, Any]] = ARGUMENTS

    def request(self, asked: Request, options: Mapping[str, Any]) -> PostgresqlRequest:
        """What is asked for with PostgreSQL's own options."""
        own = {"target": read_target(options), "missing_tablespaces": options["missing_tablespaces"]}
        return PostgresqlRequest(**vars(asked), **own)

    def plan(self, request: PostgresqlRequest) -> Plan:
        """Look at everything that the start depends on."""
        return make_plan(request)

    def start(self, plan: Plan, session: Session, port: PortChoice) -> Started:
        """Recover the copy and start its server."""
        return start_server(plan, session=session, choice=port)

    def differences(self, request: PostgresqlRequest, result: Mapping[str, Any]) -> list[str]:
        """Settings, and the point that the data are of."""
        own, is_now = check_settings(request.settings, _major(str(result["version"]))), result["settings"]
        different = [f"{name} {is_now.get(name)}" for name, value in own.items() if is_now.get(name) != value]
        recovered = request.recovered
        if request.target is not None and recovered is not None and recovered["target"] != str(request.target):
            different.append(f"its data recovered to {recovered['target'] or 'the end of the WAL'}")
        return different

    def installed(self) -> list[Programs]:
        """The programs that are on this host."""
        return installed()

    def find_programs(self, version: str, bindir: str | None) -> Programs | None:
        """Find the programs of that major version."""
        return find_programs(_major(version), bindir=bindir)

    def package(self, version: str) -> str:
        """The server's package."""
        return package_name(_major(version))


def _major(version: str) -> int:
    digits = MAJOR.match(version.strip())  # 18beta1 is of 18
    if digits and int(digits[0]) >= OLDEST_MAJOR:
        return int(digits[0])
    raise PostgresError(f"version {version} is not a PostgreSQL version from {OLDEST_MAJOR} on; write for example 15.")
