# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""MariaDB's and MySQL's face: see Engine in _engine/interface.py, whose methods these are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .._engine.interface import Programs, Request, Started
from .account import ACCOUNT
from .plan import ARGUMENTS, MysqlRequest, Plan, make_plan
from .programs import installed, package_name, search, series_of
from .redo import product_of
from .server import start_server
from .settings import check_settings
from .target import read_target

if TYPE_CHECKING:
    from .._host.ports import PortChoice
    from .._session.session import Session

__all__ = ["Mysql"]


class Mysql:
    """MariaDB, and MySQL from 5.6 on: one engine, since they are told apart by their data alone."""

    name = "mysql"
    user = ACCOUNT
    arguments: Mapping[str, dict[str, Any]] = ARGUMENTS

    def request(self, asked: Request, options: Mapping[str, Any]) -> MysqlRequest:
        """What is asked for with MariaDB's and MySQL's own options."""
        return MysqlRequest(**vars(asked), target=read_target(options), key_file=options["encryption_key_file"])

    def plan(self, request: MysqlRequest) -> Plan:
        """Look at everything that the start depends on."""
        return make_plan(request)

    def start(self, plan: Plan, session: Session, port: PortChoice) -> Started:
        """Recover the copy and start its server."""
        return start_server(plan, session=session, choice=port)

    def differences(self, request: MysqlRequest, result: Mapping[str, Any]) -> list[str]:
        """Settings, and the point that the data are of."""
        version, is_now = str(result["version"]), result["settings"]
        own = check_settings(request.settings, product_of(version), series_of(version))
        different = [f"{name} {is_now.get(name)}" for name, value in own.items() if is_now.get(name) != value]
        recovered = request.recovered
        if request.target is not None and recovered is not None and recovered["target"] != str(request.target):
            different.append(f"its data recovered to {recovered['target'] or 'the end of its own logs'}")
        return different

    def installed(self) -> list[Programs]:
        """The programs that are on this host."""
        return installed()

    def find_programs(self, version: str, bindir: str | None) -> Programs | None:
        """Find programs that can open data of that version."""
        return search(version, bindir=bindir)

    def package(self, version: str) -> str:
        """The server's package."""
        return package_name(version)
