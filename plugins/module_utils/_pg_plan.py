# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the start of a server on a copied data directory will do, decided before anything is changed."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ansible_collections.phpborg.instant_recovery.plugins.module_utils._command import find_program
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._confinement import Confinement
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._pg_binaries import Binaries, require
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._pg_clone import Clone, plan_clone
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._pg_links import is_within, resolve_within
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._pg_recovery import (
    Recovery,
    plan_recovery,
    read_recovered,
)
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._pg_settings import (
    archived_settings,
    carried,
    check_settings,
    guards,
    preload,
    report_carried,
    report_guards,
    report_limits,
    tuning,
)
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._pg_target import POINTS, Target
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._pg_wal_archive import WalArchive, open_archive
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._ports import check_port, check_socket_path
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._postgresql import (
    DataDirectory,
    PostgresError,
    read_data_directory,
    server_account,
)
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._session import Session

if TYPE_CHECKING:
    import pwd
    from collections.abc import Mapping

__all__ = ["ARGUMENTS", "Plan", "Request", "make_plan"]

# The options of doc_fragments/postgresql.py.
ARGUMENTS: dict[str, dict[str, Any]] = {
    "bindir": {"type": "path"},
    "settings": {"type": "dict", "default": {}},
    "read_only": {"type": "bool", "default": False},
    "network": {"type": "str", "choices": ["none", "host"], "default": "none"},
    "missing_tablespaces": {"type": "str", "choices": ["refuse", "leave_out"], "default": "refuse"},
    **{name: {"type": "str"} for name in POINTS},
    "recovery_target_inclusive": {"type": "bool"},
    "recovery_target_timeline": {"type": "str"},
    "recovery_target_action": {"type": "str"},
}


@dataclass(frozen=True)
class Request:
    """What a start is asked for. Paths are absolute; timeout is in seconds; relocated as in plan_clone.

    missing_tablespaces: refuse, or leave_out to start without them.
    target is where recovery is to stop, wal_source a directory of archived WAL. network: none, or host for a server
    that may open connections.
    """

    data_directory: str
    tree: str
    socket_directory: str
    log_directory: str
    port: int | None = None
    bindir: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    read_only: bool = False
    timeout: float = 600
    user: str | None = None
    relocated: Mapping[str, str] = field(default_factory=dict)
    session_directory: str | None = None
    target: Target | None = None
    wal_source: str | None = None
    network: str = "none"
    missing_tablespaces: str = "refuse"
    examine: bool = True

    @property
    def copy(self) -> str:
        """Identifies the copy among all that were ever at this place: by its session, else by its data directory."""
        if self.session_directory is None:
            return f"{self.data_directory} {os.stat(self.data_directory).st_ino}"
        session = Session.open(self.session_directory)
        return f"{session.directory} {session.record.get('began')}"

    @property
    def log(self) -> str:
        """The server's log file."""
        return os.path.join(self.log_directory, "postgresql.log")


@dataclass(frozen=True)
class Plan:
    """What will be done. sections: the session's configuration file; guards: settings for the command line.

    neutralised: what is cut loose from production and why, except in the catalogs, which nobody can read yet.
    carried_over: what it has in common with production all the same.
    confinement: what the server can reach. warnings: what of it does not hold on this host.
    recovery: archive recovery, if that is wanted. recovered: what an earlier start of the same copy recovered to.
    """

    request: Request
    data: DataDirectory
    binaries: Binaries
    account: pwd.struct_passwd
    sections: dict[str, dict[str, str]]
    guards: dict[str, str]
    neutralised: tuple[dict[str, str], ...]
    carried_over: tuple[dict[str, str], ...]
    confinement: Confinement
    warnings: tuple[str, ...]
    clone: Clone
    recovery: Recovery | None
    recovered: dict[str, Any] | None

    @property
    def settings(self) -> dict[str, str]:
        """The configuration file's settings as they count."""
        return {name: value for section in self.sections.values() for name, value in section.items()}


def make_plan(request: Request) -> Plan:
    """Look at everything a start depends on. Raises RecoveryError for what stands in its way; changes nothing."""
    data = read_data_directory(os.path.realpath(request.data_directory))
    own = check_settings(request.settings, data.major)
    binaries = require(data.major, bindir=request.bindir)
    account = server_account(data, request.user)
    _check_listening(request, account)
    recovered = _recovered(request)
    archive = None if recovered else _wal_archive(request, data)
    clone = _clone(request, data, binaries, archive, is_recovered=recovered is not None)
    archived = archived_settings(data, request.tree)
    libraries, left_out = preload(archived, binaries.bindir)
    confinement = _confinement(request, binaries)
    confined, warnings = confinement.report()
    return Plan(
        request=request,
        data=data,
        binaries=binaries,
        account=account,
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
        confinement=confinement,
        warnings=(*warnings, *map(_cannot_be_read, clone.left_out)),
        clone=clone,
        recovery=None if recovered else _recovery(request, data, clone, archive, archived),
        recovered=recovered,
    )


def _clone(
    request: Request, data: DataDirectory, binaries: Binaries, archive: WalArchive | None, *, is_recovered: bool
) -> Clone:
    return plan_clone(
        data,
        request.tree,
        relocated=request.relocated,
        archive=archive,
        waldump=find_program("pg_waldump", directories=(binaries.bindir,)),
        timeout=request.timeout,
        recovering=archive is not None or (request.target is not None and not is_recovered),
        is_recovered=is_recovered,
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


def _confinement(request: Request, binaries: Binaries) -> Confinement:
    """The server needs its own programs, the copy, and its directories."""
    installation = os.path.dirname(os.path.realpath(binaries.bindir))
    return Confinement(
        readable=[binaries.bindir, *(os.path.join(installation, part) for part in ("bin", "lib", "lib64", "share"))],
        writable=[os.path.realpath(request.tree), request.socket_directory, request.log_directory],
        connections=request.network == "host",
    )


def _recovered(request: Request) -> dict[str, Any] | None:
    """What an earlier start recovered the copy to. Raises PostgresError where that is not what is asked for now."""
    recovered = read_recovered(request.data_directory, copy=request.copy)
    if recovered is not None and recovered.get("problem"):
        raise PostgresError(f"{recovered['problem']} This copy went past it: start from the archive again.")
    wanted = str(request.target) if request.target else None
    if recovered is not None and wanted is not None and wanted != recovered["target"]:
        raise PostgresError(
            f"The copy in {request.data_directory} was recovered already, to "
            f"{recovered['target'] or 'the end of its WAL'}: start from the archive again to see it at {wanted}."
        )
    return recovered


def _wal_archive(request: Request, data: DataDirectory) -> WalArchive | None:
    """The WAL of wal_source. Within the tree, links mean what they meant on the host the archive is from."""
    source = request.wal_source
    if source is None:
        return None
    tree = next((tree for tree in (request.tree, os.path.realpath(request.tree)) if is_within(source, tree)), None)
    if tree is not None:
        within = resolve_within(os.path.realpath(tree), os.path.relpath(source, tree))
        if within is None:  # followed as it stands, a link might lead to a directory of this host
            raise PostgresError(f"wal_source {source} is not in the archive: name a directory that it has.")
        source = within
    return open_archive(
        source, segment_size=data.control.wal_segment_size, system_identifier=data.control.system_identifier
    )


def _recovery(
    request: Request, data: DataDirectory, clone: Clone, archive: WalArchive | None, archived: Mapping[str, str]
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


def _check_listening(request: Request, account: pwd.struct_passwd) -> None:
    directory = request.socket_directory
    if request.port is not None:
        check_port(request.port)
    check_socket_path(directory, ".s.PGSQL.65535")
    try:
        state = os.lstat(directory)
    except FileNotFoundError:
        return
    if not stat.S_ISDIR(state.st_mode):
        raise PostgresError(f"socket_directory {directory} is not a directory.")
    if state.st_uid != account.pw_uid or state.st_mode & 0o077:
        raise PostgresError(
            f"socket_directory {directory} must belong to {account.pw_name} and be closed to everybody else (mode "
            "0700), because its sockets ask for no password: name another directory, or one that does not exist yet."
        )
