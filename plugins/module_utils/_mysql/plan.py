# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the start of a server on a copied data directory will do, decided before anything is changed."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from .._engine.interface import Programs, Request
from .._engine.links import resolve_within
from .._engine.plan import ServerPlan, check_recovered, check_request, find_logs, make_bounded, server_sandbox
from .._host.sandbox import missing_walls
from .configuration import read_configuration
from .detach import SCRATCH, Detached, plan_detach, refuse_reachable
from .directory import DataDirectory, Elsewhere, check_account, read_data_directory
from .encryption import KEYS, encryption_options, read_keys
from .option_file import MysqlError, groups_of
from .plugins import allowed_libraries, plugin_directory
from .programs import NAMES, client_of, require, series_of
from .replay import Replay, plan_replay
from .settings import carried, check_settings, guards, report_carried, report_guards, tuning
from .target import POINTS, Target

if TYPE_CHECKING:
    from collections.abc import Mapping


__all__ = ["ARGUMENTS", "SOCKET", "MysqlRequest", "Plan", "make_plan", "read_only"]

ARGUMENTS: dict[str, dict[str, Any]] = {
    **{name: {"type": "str"} for name in POINTS},
    # Not no_log: it is a path, and what is in the file is never told.
    "encryption_key_file": {"type": "path", "no_log": False},
}
SOCKET = "mysql.sock"
POOL_SHARE, LARGEST_POOL, LEAST_POOL = 4, 1 << 30, 64 << 20  # of memory; bytes
SINCE_SUPER = (5, 7)  # MySQL's super_read_only
SINCE_TEMPORARY = (5, 7)  # MySQL's tablespace for temporary tables
SINCE_LOGGED = (8, 0)  # MySQL logs unless it is told not to, and looks for tablespaces
TUNED = "What keeps the session quick and its changes small"


@dataclass(frozen=True)
class MysqlRequest(Request):
    """target is where replay of archived binary logs is to stop, key_file holds the keys of encrypted data."""

    target: Target | None = None
    key_file: str | None = None


@dataclass(frozen=True)
class Plan(ServerPlan):
    """What will be done. client: the program that asks the server. detached: what is changed in the copy.

    replay: what is replayed of archived logs, if that is wanted. keys: of encrypted data, as their file has them.
    """

    request: MysqlRequest
    data: DataDirectory
    client: str
    detached: Detached
    replay: Replay | None = None
    keys: bytes | None = field(default=None, repr=False)

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


def make_plan(request: MysqlRequest) -> Plan:
    """Look at everything a start depends on. Raises RecoveryError for what stands in its way; changes nothing."""
    return make_bounded(request, lambda: _planned(request))


def _planned(request: MysqlRequest) -> Plan:
    check_request(request, socket_name=SOCKET)
    check_recovered(request, request.target)
    has_keys = request.key_file is not None
    data = read_data_directory(request.data_directory, _elsewhere(request), has_keys=has_keys)
    keys = _keys(request, data)
    programs = require(data.version, bindir=request.bindir)
    series = series_of(programs.version)
    own = check_settings(request.settings, data.product, series)
    check_account(data, request.account, is_presented=not request.as_archived)
    sandbox = server_sandbox(request, programs)
    confined, warnings = replace(sandbox, network="host" if request.network == "host" else "serve").report()
    is_recovered = request.recovered is not None
    detached = plan_detach(data, request.tree, known=request.links, sandbox=sandbox, is_recovered=is_recovered)
    refuse_reachable(detached, is_confined=missing_walls(request.account) is None)
    replay = None if is_recovered else _replay(request, data)
    archived = read_configuration(request.tree, request.configuration, groups=groups_of(data.product, data.series))
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
        warnings=(*warnings, *(replay.warnings if replay else ()), *detached.warnings, *_of_version(data, programs)),
        detached=detached,
        replay=replay,
        keys=keys,
    )


def _keys(request: MysqlRequest, data: DataDirectory) -> bytes | None:
    if request.key_file is None:
        return None
    if not data.is_mariadb:
        raise MysqlError(
            "encryption_key_file is for MariaDB's file_key_management, and these data are of MySQL, whose keyrings "
            "sessions do not know: leave it out, and archive the data decrypted."
        )
    return read_keys(request.key_file)


def _replay(request: MysqlRequest, data: DataDirectory) -> Replay | None:
    """What of log_source leads to the target."""
    place = find_logs(request)
    if place is not None:
        return plan_replay(data, place, request.target)
    if request.target is not None:
        raise MysqlError(
            f"{request.target} needs archived binary logs, which lead there from the copy: name their directory "
            "(log_source)."
        )
    return None


def _elsewhere(request: MysqlRequest) -> Elsewhere:
    """Where the copy has what is not in its data directory, as MysqlContents names it: by a file in each."""

    def place(name: str) -> str | None:
        found = [at for path, at in request.links.items() if path.endswith(name) and os.path.dirname(path) == at]
        return resolve_within(request.tree, found[0]) if found else None

    return Elsewhere(
        binlogs=place(".index"),
        redo=place("/ib_logfile0"),
        undo=place("/undo001"),
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


def _sections(
    request: MysqlRequest,
    data: DataDirectory,
    series: tuple[int, int],
    archived: Mapping[str, str],
    own: dict[str, str],
    detached: Detached,
) -> dict[str, dict[str, str]]:
    """The option file, by heading, of which the last counts most. What this server does not know is passed over."""
    return {
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
            **(read_only(data, "ON") if request.read_only else {}),
        },
        "Where everything is": {
            **_places(request, data, detached),
            **(encryption_options(request.config(KEYS), archived) if request.key_file else {}),
        },
    }


def read_only(data: DataDirectory, value: str) -> dict[str, str]:
    """Options that forbid writing (ON), or allow it (OFF)."""
    names = ["read_only"]
    if not data.is_mariadb and data.series >= SINCE_SUPER:
        names += ["super_read_only"]
    return dict.fromkeys(names, value)


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
    }
    if data.is_mariadb or data.series >= SINCE_TEMPORARY:
        found["innodb_temp_data_file_path"] = temporary
    if data.is_mariadb:
        found["ignore_db_dirs"] = SCRATCH
        found["innodb_undo_tablespaces"] = str(data.undo)
    elif detached.directories and data.series >= SINCE_LOGGED:
        found["innodb_directories"] = ";".join(detached.directories)
    if data.elsewhere.redo is not None:
        found["innodb_log_group_home_dir"] = data.elsewhere.redo
    if data.elsewhere.undo is not None:
        found["innodb_undo_directory"] = data.elsewhere.undo
    if detached.binlog is not None:
        found["log_bin"] = detached.binlog
    elif not data.is_mariadb and data.series >= SINCE_LOGGED:
        found["disable_log_bin"] = "ON"
    return found


def _system_files(data: DataDirectory) -> str:
    files = [f"{name}:{size >> 20}M" for name, size in data.system]
    return ";".join(files) + ":autoextend"


def _pool() -> int:
    """Bytes of InnoDB's buffer pool: with room for all pages of a recovery nothing is written back meanwhile."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return max(LEAST_POOL, min(LARGEST_POOL, memory // POOL_SHARE >> 20 << 20))
