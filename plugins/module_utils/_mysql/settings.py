# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The options of a session's server: what keeps it away from production, what makes it quick, what it keeps.

No archived option file is ever read by the server: it has one of the session's own, named by --defaults-file, which
keeps it from looking for any other. What was measured, and how, is in the comments.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .directory import REDO_DIRECTORY
from .option_file import MysqlError, fits_line

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from .directory import DataDirectory

__all__ = [
    "CARRIED",
    "Guard",
    "Option",
    "carried",
    "check_settings",
    "guards",
    "report_carried",
    "report_guards",
    "tuning",
]

BOTH = ("mariadb", "mysql")
NEWEST = (99, 0)


@dataclass(frozen=True)
class Option:
    """One option of a server, for these products and the series from since to until."""

    name: str
    value: str
    why: str = ""
    of: tuple[str, ...] = BOTH
    since: tuple[int, int] = (0, 0)
    until: tuple[int, int] = NEWEST

    def known_to(self, product: str, series: tuple[int, int]) -> bool:
        """Whether that server has it: to others it is an error."""
        return product in self.of and self.since <= series <= self.until


@dataclass(frozen=True)
class Guard:
    """Options that together avert one hazard; `why` completes the report of what was done."""

    why: str
    options: tuple[Option, ...]

    def values(self, product: str, series: tuple[int, int]) -> dict[str, str]:
        """Options of it that this server knows."""
        return {option.name: option.value for option in self.options if option.known_to(product, series)}


MARIADB, MYSQL = ("mariadb",), ("mysql",)
# None of them can be given by a user.
GUARDS = (
    Guard(
        "as a replica the copy would connect to production, and end the stream of the real one",
        (
            Option("skip_slave_start", "ON", of=MARIADB),
            Option("skip_slave_start", "ON", of=MYSQL, until=(8, 0)),
            Option("skip_replica_start", "ON", of=MYSQL, since=(8, 4)),
            Option("loose_group_replication_start_on_boot", "OFF", of=MYSQL),
        ),
    ),
    Guard("production's events would run a second time", (Option("event_scheduler", "DISABLED"),)),
    Guard(
        "what production has set for good would count more than the session's own options",
        (Option("persisted_globals_load", "OFF", of=MYSQL, since=(8, 0)),),
    ),
    Guard(
        "nobody but this host's users may reach the copy",
        (
            Option("bind_address", "127.0.0.1"),
            Option("skip_name_resolve", "ON"),
            Option("mysqlx", "0", of=MYSQL, since=(8, 0)),
            Option("extra_port", "0", of=MARIADB),
            Option("tls_version", "", of=MYSQL, since=(8, 4)),
        ),
    ),
    Guard(
        "binary logs of production would be purged as too old, or take the copy's changes",
        (
            Option("expire_logs_days", "0", of=MARIADB),
            Option("binlog_expire_logs_seconds", "0", of=MYSQL, since=(8, 0)),
            Option("log_slave_updates", "OFF", of=MARIADB),
        ),
    ),
    Guard("files of clients would be loaded by whatever a server asks for", (Option("local_infile", "OFF"),)),
    Guard(
        "logs would be written where production's are", (Option("general_log", "OFF"), Option("slow_query_log", "OFF"))
    ),
)

# What a user cannot give either, because a session decides it or it loads other files.
RESERVED = {
    **dict.fromkeys(("datadir", "basedir", "plugin_dir", "tmpdir", "secure_file_priv"), "a session has its own"),
    **dict.fromkeys(("socket", "pid_file", "log_error", "init_file", "lc_messages_dir"), "a session has its own"),
    **dict.fromkeys(
        ("innodb_data_home_dir", "innodb_undo_directory", "innodb_log_group_home_dir"), "the copy decides it"
    ),
    **dict.fromkeys(("innodb_data_file_path", "innodb_page_size", "innodb_directories"), "the copy decides it"),
    **dict.fromkeys(("innodb_temp_data_file_path", "innodb_temp_tablespaces_dir"), "a session has its own"),
    **dict.fromkeys(("log_bin", "log_bin_index", "relay_log", "relay_log_index", "server_id"), "a session has its own"),
    **dict.fromkeys(
        ("plugin_load", "plugin_load_add", "early_plugin_load"), "a session loads no library of production's"
    ),
    **dict.fromkeys(("user", "chroot", "skip_grant_tables", "userstat", "performance_schema"), "a session decides it"),
    "port": "use the option port",
    **dict.fromkeys(("read_only", "super_read_only"), "use the option read_only"),
    "innodb_force_recovery": "it loses data, and is never needed to read an archive",
    "tc_heuristic_recover": "the session decides it by the copy's binary logs",
}

# What makes the start quick and the copy-on-write layer's upper directory thin. The whole is thrown away in the end, so
# nothing has to survive a crash of the host. Measured on 1.5 GB with 80 MB of redo to replay, MariaDB 10.11.
TUNING = (
    # A torn page is repaired from the archived area all the same; of MySQL see doublewrite().
    Option("innodb_doublewrite", "0", "pages are written once: nothing has to survive", of=MARIADB),
    Option(
        "innodb_flush_method",
        "fsync",
        "reads come from the kernel's cache: a warm scan in half the time",
        until=(10, 11),
    ),
    Option("innodb_data_file_buffering", "ON", "likewise", of=MARIADB, since=(11, 0)),
    Option("innodb_log_file_buffering", "ON", "likewise", of=MARIADB, since=(11, 0)),
    Option("innodb_use_native_aio", "0", "the sandbox refuses it"),
    Option("innodb_flush_log_at_trx_commit", "0", "a commit need not wait for its log"),
    Option("sync_binlog", "0", "likewise"),
    Option("innodb_fast_shutdown", "2", "a stop writes nothing that nobody reads: 328 MB less"),
    Option("innodb_buffer_pool_load_at_startup", "0", "it would read production's hot pages"),
    Option("innodb_buffer_pool_dump_at_shutdown", "0", "nobody reads them"),
    Option("innodb_stats_auto_recalc", "0", "it writes statistics of tables that are only read"),
    Option("innodb_undo_log_truncate", "0", "it rewrites what is archived", since=(5, 7)),
    Option("performance_schema", "0", "memory that a session does not need", of=MARIADB),
    Option("key_buffer_size", "32M", "a small share of a host that has other work"),
    Option("aria_pagecache_buffer_size", "32M", "likewise", of=MARIADB),
    Option("userstat", "1", "by it the session knows what clients do", of=MARIADB),
    Option("log_error_verbosity", "3", "what recovery did is said at this level only", of=MYSQL, since=(5, 7)),
    Option("log_warnings", "2", "likewise", of=MARIADB),
)

# What decides what a query returns, or which tables are found. Kept from the archived configuration where known.
CARRIED = (
    *("character_set_server", "collation_server", "sql_mode", "default_time_zone", "lower_case_table_names"),
    *("group_concat_max_len", "div_precision_increment", "explicit_defaults_for_timestamp", "max_allowed_packet"),
    *("old_mode", "default_storage_engine", "ft_min_word_len", "ft_max_word_len", "innodb_ft_min_token_size"),
    *("innodb_ft_max_token_size", "lc_time_names", "transaction_isolation", "sql_require_primary_key"),
    *(
        "innodb_strict_mode",
        "system_versioning_alter_history",
        "character_set_collations",
        "log_bin_trust_function_creators",
    ),
)
BUILT_IN_ENGINES = ("innodb", "myisam", "aria", "memory", "csv", "mrg_myisam", "merge")
NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,79}")


def guards(product: str, series: tuple[int, int]) -> dict[str, str]:
    """Options that keep the server away from production."""
    return {name: value for guard in GUARDS for name, value in guard.values(product, series).items()}


def report_guards(product: str, series: tuple[int, int]) -> Iterator[dict[str, str]]:
    """Options that keep the server away from production, as {what, why} for people."""
    for guard in GUARDS:
        values = guard.values(product, series)
        if values:
            yield {"what": ", ".join(f"{name}={value}" for name, value in values.items()), "why": guard.why}


def tuning(data: DataDirectory, series: tuple[int, int]) -> dict[str, str]:
    """What keeps the session quick and its changes small, by the copy's own headers."""
    found = {option.name: option.value for option in TUNING if option.known_to(data.product, series)}
    if data.is_mariadb:
        # Of another size, the log is made anew: 288 MB instead of 12 MB in the upper.
        found["innodb_log_file_size"] = (
            str(data.redo_size) if data.redo_size % 4096 == 0 and data.redo_size >= 4 << 20 else "4M"
        )
    elif data.redo_files == (REDO_DIRECTORY,):  # since 8.0.30
        found["innodb_redo_log_capacity"] = "8M"  # spare files are made in full; it can be raised later
    elif data.redo_size:
        found["innodb_log_file_size"] = str(data.redo_size)
        found["innodb_log_files_in_group"] = str(max(2, len(data.redo_files)))
    if not data.is_mariadb:
        found["innodb_doublewrite"] = _doublewrite(data)
    return found


def _doublewrite(data: DataDirectory) -> str:
    """MySQL dies of a torn page when it is off, and after a clean shutdown there is none."""
    return "OFF" if data.is_clean else "ON"


def carried(archived: Mapping[str, str]) -> dict[str, str]:
    """Archived options that a session keeps."""
    kept = {name: archived[name] for name in CARRIED if name in archived}
    engine = kept.get("default_storage_engine")
    if engine is not None and engine.lower() not in BUILT_IN_ENGINES:
        del kept["default_storage_engine"]  # without its library the server would not start
    return {name: value for name, value in kept.items() if fits_line(f"loose_{name}", value)}


def report_carried(archived: Mapping[str, str]) -> list[dict[str, str]]:
    """Archived options that a session keeps, as {what, why} for people."""
    kept = carried(archived)
    what = ", ".join(f"{name}={value}" for name, value in kept.items())
    return [{"what": what, "why": "what queries return depends on it, or which tables are found"}] if kept else []


def check_settings(settings: Mapping[str, Any], product: str, series: tuple[int, int]) -> dict[str, str]:
    """The user's settings as text, by their names with underscores.

    Raises MysqlError for those that would undo the isolation.
    """
    guarded = {name.removeprefix("loose_"): guard.why for guard in GUARDS for name in guard.values(product, series)}
    refused = {**{name: f"without it {why}" for name, why in guarded.items()}, **RESERVED}
    checked = {}
    for given, value in settings.items():
        if not NAME.fullmatch(given):
            raise MysqlError(
                f"settings: {given!r} is not the name of a setting; write for example sort_buffer_size: 4M."
            )
        name = given.lower().replace("-", "_")
        plain = re.sub(r"^(?:(?:loose|skip|enable|disable|maximum|autoset)_)+", "", name)
        reason = _refusal(refused, plain)
        if reason:
            raise MysqlError(f"settings: {given} cannot be set ({reason}). Leave it out.")
        if not isinstance(value, (str, int, float)):
            raise MysqlError(f"settings: {given} has a value that is neither a text, a number nor yes or no.")
        checked[name] = ("ON" if value else "OFF") if isinstance(value, bool) else str(value)
    return checked


def _refusal(refused: Mapping[str, str], name: str) -> str | None:
    """Why a setting is refused, named without prefixes; servers also take the beginning of a name for the whole."""
    meant = (reason for word, reason in refused.items() if word.startswith((name, f"skip_{name}")))
    return next(meant, None) or ("a session is in no cluster" if name.startswith("wsrep_") else None)
