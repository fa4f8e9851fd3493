# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the start of a server on a copied data directory will do, decided before anything is changed."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from .._engine.interface import Programs, Request
from .._engine.links import resolve_within
from .._errors import MORE_TIME
from .._host.command import find_program
from .._host.deadline import deadline
from .._host.files import open_inside
from .._host.limits import own_memory
from .._host.links import is_within
from .._host.ports import check_port, check_socket_path
from .._host.sandbox import Sandbox
from .build import check_build
from .cluster import DataDirectory, PostgresError, check_account, read_data_directory, read_regular_file, shown
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

    from .._host.command import Account, Completed

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
class Plan:
    """What will be done. sections: the session's configuration file; guards: settings for the command line.

    neutralised: without what is cut loose in the catalogs, which nobody can read yet. sandbox: what the server can
    reach. recovery: archive recovery, if that is wanted. recovered: what an earlier start of the copy recovered to.
    """

    request: PostgresqlRequest
    data: DataDirectory
    programs: Programs
    account: Account
    sections: dict[str, dict[str, str]]
    guards: dict[str, str]
    neutralised: tuple[dict[str, str], ...]
    carried_over: tuple[dict[str, str], ...]
    sandbox: Sandbox
    warnings: tuple[str, ...]
    clone: Clone
    recovery: Recovery | None
    recovered: Mapping[str, Any] | None

    @property
    def settings(self) -> dict[str, str]:
        """The configuration file's settings as they count."""
        return {name: value for section in self.sections.values() for name, value in section.items()}

    @property
    def version(self) -> str:
        """The server's, in full."""
        return self.programs.version

    @property
    def bindir(self) -> str:
        """Directory of its programs."""
        return self.programs.bindir

    @property
    def target(self) -> str | None:
        """The point that is recovered to, in words."""
        return str(self.recovery.target) if self.recovery else None

    def serving(self, port: int) -> Sandbox:
        """The sandbox of the server itself, which may listen on this port."""
        return replace(self.sandbox, network="host" if self.request.network == "host" else "serve", port=port)


def make_plan(request: PostgresqlRequest) -> Plan:
    """Look at everything a start depends on. Raises RecoveryError for what stands in its way; changes nothing.

    It may take the request's timeout, and half of the host's memory.
    """
    late = PostgresError(f"The copy was not looked through within {request.timeout:g} s: {MORE_TIME}.")
    large = PostgresError("To look through the copy takes more than half of this host's memory: use another archive.")
    with deadline(request.timeout, late), own_memory(large):
        plan = _planned(request)
        _check_length(plan)
    return plan


def _planned(request: PostgresqlRequest) -> Plan:
    _check_place(request)
    data = read_data_directory(request.data_directory)
    own = check_settings(request.settings, data.major)
    programs = require(data.major, bindir=request.bindir)
    check_build(data, programs, is_named=request.bindir is not None)
    check_account(data, request.account, is_presented=not request.as_archived)
    if request.port is not None:
        check_port(request.port)
    check_socket_path(request.client(), ".s.PGSQL.65535")
    sandbox = _sandbox(request, programs)
    confined, warnings = replace(sandbox, network="host" if request.network == "host" else "serve").report()
    _check_recovered(request)
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


def _check_length(plan: Plan) -> None:
    """Raise PostgresError where there is more to tell of what is done to the copy than anybody reads."""
    told = sum(len(text) for entry in (*plan.neutralised, *plan.carried_over) for text in entry.values())
    if told > MOST_TOLD:
        raise PostgresError(
            f"What has to be changed in the copy takes {told >> 20} MiB to tell: no server makes so many slots, or "
            "names so many libraries. Use another archive, and find out who made this."
        )


def _check_place(request: PostgresqlRequest) -> None:
    """Raise PostgresError for a data directory that is not the copy's own: a link could lead to production's."""
    path, tree = request.data_directory, request.tree
    if is_within(path, tree) and ".." not in path.split("/"):
        try:
            os.close(open_inside(path, os.O_PATH | os.O_DIRECTORY))
            return
        except OSError as error:
            if error.errno not in (errno.ELOOP, errno.ENOTDIR):
                raise PostgresError(f"data_directory {path} cannot be read: {error.strerror}.") from error
    raise PostgresError(
        f"data_directory {path} is not a directory of the copy in {tree}, or a link is on the way to it: name a "
        "directory of the copy itself."
    )


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


def _sandbox(request: PostgresqlRequest, programs: Programs) -> Sandbox:
    """The server needs its own programs, what it is told, the copy, and a directory for its socket."""
    return Sandbox(
        account=request.account,
        readable=(*programs.trees(), request.config()),
        writable=(request.tree, request.socket_directory),
        private=(request.socket_directory,),
        session_directory=request.directory,
        accept_unconfined=request.accept_unconfined,
    )


def _check_recovered(request: PostgresqlRequest) -> None:
    """Raise PostgresError where an earlier start recovered the copy to something else than is asked for now."""
    recovered = request.recovered
    if recovered is not None and recovered.get("problem"):
        raise PostgresError(f"{recovered['problem']} This copy went past it: start from the archive again.")
    wanted = str(request.target) if request.target else None
    if recovered is not None and wanted is not None and wanted != recovered["target"]:
        raise PostgresError(
            f"The copy in {request.data_directory} was recovered already, to "
            f"{recovered['target'] or 'the end of its WAL'}: start from the archive again to see it at {wanted}."
        )


def _wal_archive(request: PostgresqlRequest, data: DataDirectory, sandbox: Sandbox) -> WalArchive | None:
    """The WAL of log_source. In an archive, links mean what they meant on the host that it is from."""
    source = request.log_source
    if source is None:
        return None
    return open_archive(
        _archived(request, source) if is_within(source, request.directory) else os.path.realpath(source),
        segment_size=data.control.wal_segment_size,
        system_identifier=data.control.system_identifier,
        room=sandbox.for_tool(),
    )


def _archived(request: PostgresqlRequest, source: str) -> str:
    """Where a log_source in the session's directory leads: only archives are there, each mounted at a place of its own.

    Followed as it stands, a link might lead to a directory of this host.
    """
    place, _slash, path = os.path.relpath(source, request.directory).partition("/")
    within = resolve_within(os.path.join(request.directory, place), path or ".")
    if within is None:
        raise PostgresError(f"log_source {source} is not in the archive: name a directory that it has.")
    return within


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
