# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the start of a server on a copied data directory will do, decided before anything is changed."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from .._engine.interface import Programs, Request
from .._engine.plan import ServerPlan, check_recovered, check_request, find_logs, make_bounded, server_sandbox
from .._host.command import find_program
from .._host.sandbox import Sandbox
from .build import check_build
from .cluster import DataDirectory, check_account, read_data_directory, read_regular_file, shown
from .configuration import read_configuration
from .database_rows import MAP, databases_in, file_of_databases
from .detach import Clone, plan_clone
from .facts import other_collation
from .locales import warn_of_locales
from .programs import require
from .recovery import Recovery, plan_recovery
from .settings import (
    carried,
    check_settings,
    guards,
    preload,
    report_carried,
    report_guards,
    report_limits,
    tuning,
    warn_of_carried,
)
from .target import POINTS, Target
from .wal import WALDUMP_OUTPUT
from .wal_archive import WalArchive, open_archive

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from .._host.command import Completed

__all__ = ["ARGUMENTS", "Plan", "PostgresqlRequest", "make_plan"]

MOST_DATABASES = 100  # that --check looks at
MOST_TOLD = 1 << 20  # characters: of a cluster with everything that can be told they are some thousands
# The options of doc_fragments/postgresql.py.
ARGUMENTS: dict[str, dict[str, Any]] = {
    "missing_tablespaces": {"type": "str", "choices": ["refuse", "leave_out"], "default": "refuse"},
    **{name: {"type": "str"} for name in POINTS},
    "recovery_target_inclusive": {"type": "bool"},
    "recovery_target_timeline": {"type": "str"},
    "recovery_target_action": {"type": "str"},
}


@dataclass(frozen=True)
class PostgresqlRequest(Request):
    """target is where recovery is to stop. missing_tablespaces: refuse, or leave_out to start without them.

    recovered has target, recovered_to and problem.
    """

    target: Target | None = None
    missing_tablespaces: str = "refuse"


@dataclass(frozen=True)
class Plan(ServerPlan):
    """What will be done. guards: settings for the command line.

    neutralised: without what is cut loose in the catalogs, which nobody can read yet. recovery: archive recovery, if
    that is wanted. recovered: what an earlier start of the copy recovered to.
    """

    request: PostgresqlRequest
    data: DataDirectory
    guards: dict[str, str]
    clone: Clone
    recovery: Recovery | None
    recovered: Mapping[str, Any] | None

    @property
    def target(self) -> str | None:
        """The point that is recovered to, in words."""
        return str(self.recovery.target) if self.recovery else None


def make_plan(request: PostgresqlRequest) -> Plan:
    """Look at everything a start depends on. Raises RecoveryError for what stands in its way; changes nothing."""
    return make_bounded(request, lambda: _planned(request))


def _planned(request: PostgresqlRequest) -> Plan:
    check_request(request, socket_name=".s.PGSQL.65535")
    check_recovered(request, request.target)
    data = read_data_directory(request.data_directory)
    own = check_settings(request.settings, data.major)
    programs = require(data.major, bindir=request.bindir)
    check_build(data, programs, is_named=request.bindir is not None)
    check_account(data, request.account, is_presented=not request.as_archived)
    sandbox = server_sandbox(request, programs)
    confined, warnings = replace(sandbox, network="host" if request.network == "host" else "serve").report()
    archive = None if request.recovered else _wal_archive(request, data, sandbox)
    clone = _clone(request, data, programs, archive, sandbox)
    found = read_configuration(data, request.tree, request.configuration, is_recovered=request.recovered is not None)
    archived = found.settings
    libraries, left_out = preload(archived, programs.bindir)
    return Plan(
        request=request,
        data=data,
        programs=programs,
        account=request.account,
        sections=_sections(data, archived, libraries, own),
        guards={**guards(data.major), **({"default_transaction_read_only": "on"} if request.read_only else {})},
        neutralised=(
            *(step.as_dict() for step in clone.steps if step.what),
            *confined,
            *report_guards(data.major),
            *report_limits(data, archived),
            *(_left_out(name) for name in left_out if name not in own.get("shared_preload_libraries", "")),
        ),
        carried_over=tuple(report_carried(data, archived, libraries)),
        sandbox=sandbox,
        warnings=(*warnings, *found.warnings(), *_warnings(request, data, clone, archived)),
        clone=clone,
        recovery=None if request.recovered else _recovery(request, data, clone, archive, archived),
        recovered=request.recovered,
    )


def _warnings(
    request: PostgresqlRequest, data: DataDirectory, clone: Clone, archived: Mapping[str, str]
) -> Iterator[str]:
    """What will be otherwise than in production."""
    yield from warn_of_carried(archived)
    yield from map(_cannot_be_read, clone.left_out)
    if request.as_archived:  # else the server itself tells, and more
        yield from _foreign_here(data)


def _foreign_here(data: DataDirectory) -> Iterator[str]:
    """What a start will say of databases that sort text otherwise than this host, or not at all."""
    path = os.path.join(data.path, file_of_databases(read_regular_file(os.path.join(data.path, MAP)) or b""))
    found = databases_in(read_regular_file(path) or b"", data.control.block_size, data.major)[:MOST_DATABASES]
    rows = {shown(row.name): row for row in found}
    yield from warn_of_locales({name: row.locales for name, row in rows.items()})
    here = (os.confstr("CS_GNU_LIBC_VERSION") or "").partition(" ")[2]  # glibc 2.36
    for name, row in rows.items():
        if here and row.is_versioned and row.recorded != here:
            yield other_collation(name, None, shown(row.recorded), here)


def _clone(
    request: PostgresqlRequest, data: DataDirectory, programs: Programs, archive: WalArchive | None, sandbox: Sandbox
) -> Clone:
    program = find_program("pg_waldump", directories=(programs.bindir,))

    def waldump(directory: str, arguments: Sequence[str]) -> Completed:
        """Run pg_waldump. It parses what the archive holds, so it is locked up as the server is."""
        room = sandbox.for_tool(readable=[*programs.trees(), directory])
        return room.text([program or "", *arguments], timeout=request.timeout, check=False, limit=WALDUMP_OUTPUT)

    return plan_clone(
        data,
        request.tree,
        known=request.links,
        archive=archive,
        waldump=None if program is None else waldump,
        timeout=request.timeout,
        recovering=archive is not None or (request.target is not None and request.recovered is None),
        is_recovered=request.recovered is not None,
        leave_out=request.missing_tablespaces == "leave_out",
    )


def _cannot_be_read(oid: str) -> str:
    return (
        f"Tablespace {oid} is not in the archive and was left out: what lies there cannot be read, nor can a table "
        "that has an index there."
    )


def _sections(
    data: DataDirectory, archived: Mapping[str, str], libraries: dict[str, str], own: dict[str, str]
) -> dict[str, dict[str, str]]:
    """The configuration file, by heading."""
    return {
        "What keeps the session quick and its changes small": tuning(data),
        "Kept from the archived configuration, because results of queries depend on it": carried(archived),
        "Libraries of the archived configuration that only look on": libraries,
        "Given for this session": own,
    }


def _wal_archive(request: PostgresqlRequest, data: DataDirectory, sandbox: Sandbox) -> WalArchive | None:
    """The WAL of log_source."""
    place = find_logs(request)
    if place is None:
        return None
    return open_archive(
        place,
        segment_size=data.control.wal_segment_size,
        system_identifier=data.control.system_identifier,
        room=sandbox.for_tool(),
    )


def _recovery(
    request: PostgresqlRequest,
    data: DataDirectory,
    clone: Clone,
    archive: WalArchive | None,
    archived: Mapping[str, str],
) -> Recovery | None:
    return plan_recovery(
        data,
        clone.backup,
        target=request.target,
        archive=archive,
        wal=clone.wal,
        # As it is archived: one that this host does not know must not become another.
        time_zone=archived.get("timezone", "UTC"),
    )


def _left_out(library: str) -> dict[str, str]:
    why = (
        "it is not known to only look on, or is not installed here; it might run production's jobs a second time (to "
        "load it all the same, name it in shared_preload_libraries of settings)"
    )
    return {"what": f"library {library} not preloaded", "why": why}
