# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the start of a server on a copied data directory will do, decided before anything is changed."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from .._engine.interface import Programs, Request
from .._engine.links import resolve_within
from .._errors import MORE_TIME
from .._host.deadline import deadline
from .._host.limits import own_memory
from .._host.links import is_within
from .._host.ports import check_port, check_socket_path
from .._host.sandbox import Sandbox, missing_walls
from .configuration import read_configuration
from .detach import SCRATCH, Detached, plan_detach, refuse_reachable
from .directory import DataDirectory, check_account, read_data_directory
from .option_file import MysqlError
from .plugins import allowed_libraries, plugin_directory
from .programs import NAMES, client_of, require, series_of
from .replay import Replay, plan_replay
from .settings import carried, check_settings, guards, report_carried, report_guards, tuning
from .target import POINTS, Target

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .._host.command import Account

__all__ = ["ARGUMENTS", "SOCKET", "MysqlRequest", "Plan", "make_plan"]

ARGUMENTS: dict[str, dict[str, Any]] = {name: {"type": "str"} for name in POINTS}
SOCKET = "mysql.sock"
POOL_SHARE, LARGEST_POOL, LEAST_POOL = 4, 1 << 30, 64 << 20  # of memory; bytes
MOST_TOLD = 1 << 20  # characters
TUNED = "What keeps the session quick and its changes small"


@dataclass(frozen=True)
class MysqlRequest(Request):
    """target is where replay of archived binary logs is to stop."""

    target: Target | None = None


@dataclass(frozen=True)
class Plan:
    """What will be done. sections: the session's option file, by heading. client: the program that asks the server.

    neutralised, carried_over, warnings: as in _engine/interface.py. detached: what is changed in the copy. replay: what
    is replayed of archived logs, if that is wanted.
    """

    request: MysqlRequest
    data: DataDirectory
    programs: Programs
    client: str
    account: Account
    sections: dict[str, dict[str, str]]
    neutralised: tuple[dict[str, str], ...]
    carried_over: tuple[dict[str, str], ...]
    sandbox: Sandbox
    warnings: tuple[str, ...]
    detached: Detached
    replay: Replay | None = None

    @property
    def settings(self) -> dict[str, str]:
        """The option file's options as they count."""
        return {name: value for section in self.sections.values() for name, value in section.items()}

    @property
    def version(self) -> str:
        """The server's, in full."""
        return self.programs.version

    @property
    def bindir(self) -> str:
        """Directory of its program."""
        return self.programs.bindir

    @property
    def target(self) -> str | None:
        """The point that is recovered to, in words."""
        return None if self.replay is None else str(self.request.target or "the end of the archived logs")

    @property
    def series(self) -> tuple[int, int]:
        """The first two numbers of the server's version."""
        return series_of(self.programs.version)

    def within(self, memory_max: int) -> Plan:
        """A plan for a session whose processes may have so much memory of their own, in bytes (0: any)."""
        bounded = replace(self, sandbox=replace(self.sandbox, memory_max=memory_max))
        if not memory_max:
            return bounded
        # Unless it is given, half of it: connections, dictionaries and temporary tables need the rest.
        sections = {heading: dict(options) for heading, options in self.sections.items()}
        pool = int(sections[TUNED]["innodb_buffer_pool_size"])
        sections[TUNED]["innodb_buffer_pool_size"] = str(min(pool, max(LEAST_POOL, memory_max // 2 >> 20 << 20)))
        return replace(bounded, sections=sections)

    def serving(self, port: int) -> Sandbox:
        """The sandbox of the server itself, which may listen on this port."""
        return replace(self.sandbox, network="host" if self.request.network == "host" else "serve", port=port)


def make_plan(request: MysqlRequest) -> Plan:
    """Look at everything a start depends on. Raises RecoveryError for what stands in its way; changes nothing.

    It may take the request's timeout, and half of the host's memory.
    """
    late = MysqlError(f"The copy was not looked through within {request.timeout:g} s: {MORE_TIME}.")
    large = MysqlError("To look through the copy takes more than half of this host's memory: use another archive.")
    with deadline(request.timeout, late), own_memory(large):
        plan = _planned(request)
        told = sum(len(text) for entry in (*plan.neutralised, *plan.carried_over) for text in entry.values())
        if told > MOST_TOLD:
            raise MysqlError(
                f"What has to be changed in the copy takes {told >> 20} MiB to tell: no server has so many tables "
                "elsewhere. Use another archive, and find out who made this."
            )
    return plan


def _planned(request: MysqlRequest) -> Plan:
    _check_place(request)
    _check_recovered(request)
    data = read_data_directory(request.data_directory, _binlog_directory(request))
    programs = require(data.version, bindir=request.bindir)
    series = series_of(programs.version)
    own = check_settings(request.settings, data.product, series)
    check_account(data, request.account, is_presented=not request.as_archived)
    if request.port is not None:
        check_port(request.port)
    check_socket_path(request.client(), SOCKET)
    sandbox = _sandbox(request, programs)
    confined, warnings = replace(sandbox, network="host" if request.network == "host" else "serve").report()
    is_recovered = request.recovered is not None
    detached = plan_detach(data, request.tree, known=request.links, sandbox=sandbox, is_recovered=is_recovered)
    refuse_reachable(detached, is_confined=missing_walls(request.account) is None)
    archived = read_configuration(request.tree, request.configuration)
    return Plan(
        request=request,
        data=data,
        programs=programs,
        client=_client(programs),
        account=request.account,
        sections=_sections(request, data, series, archived, own, detached),
        neutralised=(
            *(step.as_dict() for step in detached.steps if step.what),
            *confined,
            *report_guards(data.product, series),
            *_report_plugins(programs),
        ),
        carried_over=tuple(report_carried(archived)),
        sandbox=replace(sandbox, aliases=tuple(detached.aliases.items())),
        warnings=(*warnings, *detached.warnings, *_of_version(data, programs)),
        detached=detached,
        replay=None if is_recovered else _replay(request, data),
    )


def _replay(request: MysqlRequest, data: DataDirectory) -> Replay | None:
    """What of log_source leads to the target. In an archive, links mean what they meant on the host that it is from."""
    source = request.log_source
    if source is None:
        if request.target is not None:
            raise MysqlError(
                f"{request.target} needs archived binary logs, which lead there from the copy: name their directory "
                "(log_source)."
            )
        return None
    if not is_within(source, request.directory):
        return plan_replay(data, os.path.realpath(source), request.target)
    place, _slash, path = os.path.relpath(source, request.directory).partition("/")
    within = resolve_within(os.path.join(request.directory, place), path or ".")
    if within is None:
        raise MysqlError(f"log_source {source} is not in the archive: name a directory that it has.")
    return plan_replay(data, within, request.target)


def _check_recovered(request: MysqlRequest) -> None:
    """Raise MysqlError where an earlier start brought the copy to something else than is asked for now."""
    recovered = request.recovered
    if recovered is None:
        return
    if recovered.get("problem"):
        raise MysqlError(f"{recovered['problem']} This copy went past it: start from the archive again.")
    if request.target is not None and str(request.target) != recovered["target"]:
        raise MysqlError(
            f"The copy in {request.data_directory} was recovered already, to "
            f"{recovered['target'] or 'the end of its own logs'}: start from the archive again to see it at "
            f"{request.target}."
        )


def _binlog_directory(request: MysqlRequest) -> str | None:
    """Where the copy has its binary logs, if they are not in its data directory: by their index."""
    places = [place for path, place in request.links.items() if path.endswith(".index")]
    return resolve_within(request.tree, places[0]) if places else None


def _check_place(request: MysqlRequest) -> None:
    """Raise MysqlError for a data directory that is not the copy's own: a link could lead to production's."""
    path, tree = request.data_directory, request.tree
    if not is_within(path, tree) or ".." in path.split("/"):
        raise MysqlError(
            f"data_directory {path} is not a directory of the copy in {tree}: name a directory of the copy itself."
        )


def _client(programs: Programs) -> str:
    found = client_of(programs)
    if found is None:
        raise MysqlError(
            f"There is no client program for the server of version {programs.version} in {programs.bindir}, by which a "
            "session asks it: install one (the package mariadb-client-core, mysql-client-core or the like)."
        )
    return found


def _of_version(data: DataDirectory, programs: Programs) -> list[str]:
    if data.series == series_of(programs.version):
        return []
    return [
        f"The data are of {NAMES[data.product]} {data.version}, and {programs.version} is what opens them here: it may "
        "plan queries otherwise, and system tables keep their old form (mariadb-upgrade was not run)."
    ]


def _report_plugins(programs: Programs) -> list[dict[str, str]]:
    why = "libraries of production's would open ports, write logs, call other servers or keep accounts out"
    kept = ", ".join(allowed_libraries(plugin_directory(programs)))
    return [{"what": f"plugins and functions from libraries not loaded (of those here: {kept or 'none'})", "why": why}]


def _sandbox(request: MysqlRequest, programs: Programs) -> Sandbox:
    """The server needs its own programs, what it is told, the copy, and a directory for its socket."""
    return Sandbox(
        account=request.account,
        readable=(*programs.trees(), request.config()),
        writable=(request.tree, request.socket_directory),
        private=(request.socket_directory,),
        session_directory=request.directory,
        accept_unconfined=request.accept_unconfined,
    )


def _sections(
    request: MysqlRequest,
    data: DataDirectory,
    series: tuple[int, int],
    archived: Mapping[str, str],
    own: dict[str, str],
    detached: Detached,
) -> dict[str, dict[str, str]]:
    """The option file, by heading. What is unknown to this server of what production had is passed over."""
    return {
        "Where everything is": _places(request, data, detached),
        TUNED: {
            "innodb_buffer_pool_size": str(_pool()),
            **tuning(data, series),
        },
        "Kept from the archived configuration, because results of queries depend on it": {
            f"loose_{name}": value for name, value in carried(archived).items()
        },
        "Given for this session": own,
        "What keeps it away from production": {
            **guards(data.product, series),
            **_read_only(request, data),
        },
    }


def _read_only(request: MysqlRequest, data: DataDirectory) -> dict[str, str]:
    if not request.read_only:
        return {}
    return {"read_only": "ON"} if data.is_mariadb else {"read_only": "ON", "super_read_only": "ON"}


def _places(request: MysqlRequest, data: DataDirectory, detached: Detached) -> dict[str, str]:
    scratch = os.path.join(data.path, SCRATCH)
    # Twice the size that is made at once, which the layer does not store: a smaller one grows to 64 MB.
    temporary = f"{SCRATCH}/ibtmp1:{'5M' if data.is_mariadb else '12M'}:autoextend"
    found = {
        "datadir": data.path,
        "plugin_dir": request.config("plugins"),
        "socket": os.path.join(request.socket_directory, SOCKET),
        "pid_file": os.path.join(request.socket_directory, "mysqld.pid"),
        "tmpdir": scratch,
        "secure_file_priv": scratch,
        "init_file": request.config("init.sql"),
        "innodb_data_file_path": _system_files(data),
        "innodb_page_size": str(data.page_size),
        "innodb_temp_data_file_path": temporary,
    }
    if data.is_mariadb:
        found["ignore_db_dirs"] = SCRATCH
        undo = [name for name in data.files if name.startswith("undo") and name[4:].isdigit()]
        found["innodb_undo_tablespaces"] = str(len(undo))
    elif detached.directories:
        found["innodb_directories"] = ";".join(detached.directories)
    if detached.binlog is not None:
        found["log_bin"] = detached.binlog
    elif not data.is_mariadb:
        found["disable_log_bin"] = "ON"
    return found


def _system_files(data: DataDirectory) -> str:
    files = [f"{name}:{size >> 20}M" for name, size in data.system]
    return ";".join(files) + ":autoextend"


def _pool() -> int:
    """Bytes of InnoDB's buffer pool: with room for all pages of a recovery nothing is written back meanwhile."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return max(LEAST_POOL, min(LARGEST_POOL, memory // POOL_SHARE >> 20 << 20))
