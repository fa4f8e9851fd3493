# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The configuration of a session's server: what keeps it away from production, what makes it quick, what it keeps.

The archived configuration is never loaded; `_postgresql/configuration.py` reads it. GUARDS go onto the server's command
line, where neither a file nor ALTER SYSTEM can undo them. The rest goes into a configuration file of the session's own:
TUNING, what is carried over from the archived configuration because query results depend on it (CARRIED), and the
user's own settings.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .cluster import OLDEST_MAJOR, PostgresError, has_locale, quote_setting, shown
from .locales import how_to_install
from .programs import library_directory

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from .cluster import DataDirectory
    from .control import PgControl

__all__ = [
    "Guard",
    "Setting",
    "carried",
    "check_settings",
    "guards",
    "preload",
    "render_configuration",
    "report_carried",
    "report_guards",
    "report_limits",
    "tuning",
]


@dataclass(frozen=True)
class Setting:
    """One setting, for the major versions from since to until."""

    name: str
    value: str
    why: str = ""
    since: int = OLDEST_MAJOR
    until: int = 99

    def known_to(self, major: int) -> bool:
        """Whether that version has it: to others it is an error."""
        return self.since <= major <= self.until


@dataclass(frozen=True)
class Guard:
    """Settings that together avert one hazard; `why` completes the report of what was done."""

    why: str
    settings: tuple[Setting, ...]

    def values(self, major: int) -> dict[str, str]:
        """The settings that this version knows."""
        return {setting.name: setting.value for setting in self.settings if setting.known_to(major)}

    def as_dict(self, major: int) -> dict[str, str]:
        """Plain data for the module's result."""
        pairs = (f"{name}={value}" if value else f"{name} emptied" for name, value in self.values(major).items())
        return {"what": ", ".join(pairs), "why": self.why}


# Beats every file. The settings named here cannot be changed by the user either.
GUARDS = (
    Guard(
        "WAL of the copy would be pushed into production's archive",
        (
            Setting("archive_mode", "off"),
            Setting("archive_command", ""),
            Setting("archive_library", "", since=15),
        ),
    ),
    Guard(
        "production's commands would run, and may delete files of its WAL archive",
        (
            Setting("restore_command", ""),
            Setting("archive_cleanup_command", ""),
            Setting("recovery_end_command", ""),
        ),
    ),
    Guard(
        "the copy would connect to production as a standby",
        (
            Setting("primary_conninfo", ""),
            Setting("primary_slot_name", ""),
            Setting("promote_trigger_file", "", until=15),
            Setting("sync_replication_slots", "off", since=17),
        ),
    ),
    Guard("every commit would wait for a standby that is not there", (Setting("synchronous_standby_names", ""),)),
    Guard(
        "subscriptions would take over production's replication slots at the publisher",
        (
            Setting("max_logical_replication_workers", "0"),
            Setting("max_sync_workers_per_subscription", "0"),
        ),
    ),
    Guard(
        "libraries preloaded into each session would run production's code, or be missing here",
        (
            Setting("session_preload_libraries", ""),
            Setting("local_preload_libraries", ""),
            Setting("dynamic_library_path", "$libdir"),
        ),
    ),
    Guard(
        "a trigger on login would run production's code in each session, ours included",
        (Setting("event_triggers", "off", since=17),),
    ),
    Guard(
        "nobody but this host's users may reach the copy",
        (
            Setting("listen_addresses", "127.0.0.1"),
            Setting("ssl", "off"),
            Setting("bonjour", "off"),
            # Beside the mode of the directory: entering the socket is for its owner alone.
            Setting("unix_socket_permissions", "0700"),
            Setting("unix_socket_group", ""),
        ),
    ),
    Guard(
        "logs and statistics would be written where production's are",
        (
            Setting("logging_collector", "off"),
            Setting("log_destination", "stderr"),
            Setting("stats_temp_directory", "pg_stat_tmp", until=14),
        ),
    ),
    Guard(
        "production's shared memory lies in /dev/shm, too, which is closed to the copy",
        (Setting("dynamic_shared_memory_type", "mmap"),),
    ),
    Guard("huge pages that production reserved are not for a copy", (Setting("huge_pages", "off"),)),
)

# Settings that a user cannot give either, because the module itself decides them or they load other files.
RESERVED = {
    **dict.fromkeys(("config_file", "hba_file", "ident_file", "data_directory"), "a session has files of its own"),
    **dict.fromkeys(("include", "include_dir", "include_if_exists"), "a session's configuration is one file"),
    "external_pid_file": "a session has none",
    "port": "use the option port",
    "unix_socket_directories": "a session has a directory of its own for it",
    "default_transaction_read_only": "use the option read_only",
    "cluster_name": "it marks the session's processes in ps",
}

# What makes the start quick and the copy-on-write layer's upper directory thin. The whole is thrown away in the end,
# so nothing has to survive a crash of the host.
TUNING = (
    Setting("fsync", "off", "nothing has to survive; and before recovery it would open every file to sync it"),
    Setting("synchronous_commit", "off", "a commit need not wait for its WAL"),
    Setting("full_page_writes", "off", "torn pages come from a crash of the host, which ends the session anyway"),
    Setting("recovery_prefetch", "off", "it reads archived pages that the WAL replaces as a whole", since=15),
    Setting("wal_recycle", "off", "renamed and overwritten, archived segments would land in the upper"),
    Setting("wal_init_zero", "off", "new segments need not be written before they are used"),
    Setting("checkpoint_timeout", "1h", "each checkpoint writes pages once more"),
    Setting("max_wal_size", "4GB", "likewise; the limit of what WAL may take in the upper"),
    Setting("log_checkpoints", "off", "they say nothing about a throw-away server"),
    Setting("autovacuum", "off", "it would read and rewrite whole tables of the archive"),
    # Without these two an old cluster's tables are frozen even though autovacuum is off.
    Setting("autovacuum_freeze_max_age", "2000000000", "no vacuum against wraparound: the session ends long before"),
    Setting("autovacuum_multixact_freeze_max_age", "2000000000", "likewise"),
    Setting("wal_level", "minimal", "filling new tables and building indexes writes no WAL"),
    Setting("max_wal_senders", "0", "required by wal_level=minimal; nobody replicates from a session"),
    Setting("max_replication_slots", "64", "replay notes progress per origin, as many as production subscribed to"),
    Setting("max_active_replication_origins", "64", "likewise", since=18),
    Setting("shared_buffers", "128MB", "a small share of a host that has other work; production's could exceed it"),
    Setting("jit", "off", "compiling costs a short-lived session more than it brings"),
    Setting("lc_messages", "C", "messages in one language, for whoever reads the log"),
    Setting("log_line_prefix", "%m [%p] %q%u@%d ", "when, who, where"),
    Setting("password_encryption", "scram-sha-256", "the only kind the session's access rules accept"),
)

# Settings that decide what a query returns or how a dump looks. Kept from the archived configuration where known.
CARRIED = (
    *("TimeZone", "DateStyle", "IntervalStyle", "lc_monetary", "lc_numeric", "lc_time"),
    *("default_text_search_config", "search_path", "bytea_output", "extra_float_digits", "xmlbinary", "xmloption"),
    *("standard_conforming_strings", "backslash_quote", "array_nulls", "transform_null_equals", "row_security"),
    *("default_transaction_isolation", "track_commit_timestamp", "quote_all_identifiers", "gin_fuzzy_search_limit"),
)
# Of CARRIED, those that name something the host may not have. The server does not start with such a value.
LOCALES = ("lc_monetary", "lc_numeric", "lc_time")
TIME_ZONES, MAGIC = "/usr/share/zoneinfo", b"TZif"  # of each of its files (RFC 9636)
# A zone by its offset, perhaps with a name and rules for summer (POSIX, "TZ"): <+03>-3, or CET-1CEST,M3.5.0,M10.5.0/3.
OFFSET = r"[+-]?\d{1,2}(?::[0-5]\d){0,2}"
ABBREVIATION = r"(?:<[A-Za-z0-9+-]{3,}>|[A-Za-z]{3,})"
RULE = rf",M\d{{1,2}}\.\d\.\d(?:/{OFFSET})?"
POSIX_ZONE = re.compile(rf"{ABBREVIATION}{OFFSET}(?:{ABBREVIATION}(?:{OFFSET})?(?:{RULE}{RULE})?)?")

# Limits where production's are lower; each prepared transaction takes about a kilobyte.
SPARE_PREPARED, SPARE_LOCKS = 64, 64  # the latter is PostgreSQL's own default

# Libraries that only look on: they start no workers, and open no connections. Others are left out and reported.
HARMLESS_LIBRARIES = (
    *("auto_explain", "pg_hint_plan", "pg_qualstats", "pg_stat_kcache", "pg_stat_statements", "pg_trgm"),
    *("pgaudit", "plpgsql", "plpgsql_check", "plprofiler"),
)

# How a name may look; a dot makes it an extension's.
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_$]*(\.[A-Za-z_][A-Za-z0-9_$]*)*")


def guards(major: int) -> dict[str, str]:
    """The settings of all GUARDS, for the server's command line."""
    return {name: value for guard in GUARDS for name, value in guard.values(major).items()}


def report_guards(major: int) -> list[dict[str, str]]:
    """What the guards do and why, for the module's result."""
    return [guard.as_dict(major) for guard in GUARDS if guard.values(major)]


def report_carried(
    data: DataDirectory, archived: Mapping[str, str], libraries: Mapping[str, str]
) -> list[dict[str, str]]:
    """What a session has as production had it, and what of that this host cannot give it, as {what, why}.

    libraries: the setting that preload() made.
    """
    kept, limits = carried(archived), _limits(data.control)
    del limits["min_wal_size"]  # of the session's own choice
    missing = _not_carried(archived)
    checksums = "on" if data.control.data_checksum_version else "off"
    entries = (
        (_assignments(kept), "results of queries depend on it"),
        (_assignments(libraries), "these libraries only look on, and are installed here"),
        (_assignments(limits), "recovery must find room for all prepared transactions and locks (pg_control)"),
        (f"data_checksums={checksums}", "it is a property of the files: a damaged page is noticed as in production"),
        *((f"{name}={value} not carried over", "this host does not know it") for name, value in missing.items()),
    )
    return [{"what": what, "why": why} for what, why in entries if what]


def warn_of_carried(archived: Mapping[str, str]) -> list[str]:
    """What results of queries depend on that this host cannot give a session as production had it."""
    by_value: dict[str, list[str]] = {}
    for name, value in _not_carried(archived).items():
        by_value.setdefault(value, []).append(name)
    return [
        f"Production's time zone {shown(value)} is not known to this host: times are shown in GMT. Install the package "
        'tzdata, or give another one, such as settings={"timezone": "Europe/Berlin"}.'
        if "TimeZone" in names
        else f"Production's locale {shown(value)} ({', '.join(names)}) is not known to this host: numbers, money and "
        f"names of days are formatted as in C. {how_to_install([value])}"
        for value, names in by_value.items()
    ]


def _not_carried(archived: Mapping[str, str]) -> dict[str, str]:
    kept = carried(archived)
    return {name: archived[name.lower()] for name in CARRIED if name.lower() in archived and name not in kept}


def report_limits(data: DataDirectory, archived: Mapping[str, str]) -> list[dict[str, str]]:
    """What of production's size a session does not take over, as {what, why}."""
    control = data.control
    limits = {
        **{name: archived[name] for name in ("shared_buffers", "huge_pages") if name in archived},
        "max_connections": str(control.max_connections),
        "max_worker_processes": str(control.max_worker_processes),
        "max_wal_senders": str(control.max_wal_senders),
    }
    why = "they would take memory of this host; recovery does without, for nobody connects meanwhile (hot_standby=off)"
    return [{"what": f"production's {_assignments(limits)} not taken over", "why": why}]


def tuning(data: DataDirectory) -> dict[str, str]:
    """TUNING for one data directory, with the limits that its pg_control asks for."""
    values = {setting.name: setting.value for setting in TUNING if setting.known_to(data.major)}
    return {**values, **_limits(data.control)}


def check_settings(settings: Mapping[str, Any], major: int) -> dict[str, str]:
    """The user's settings as text. Raises PostgresError for those that would undo the isolation."""
    guarded = {name: guard.why for guard in GUARDS for name in guard.values(major)}
    refused = {**{name: f"without it {why}" for name, why in guarded.items()}, **RESERVED}
    checked = {}
    for name, value in settings.items():
        if not NAME.fullmatch(name):
            raise PostgresError(f"settings: {name!r} is not the name of a setting; write for example work_mem: 64MB.")
        if name.lower() in refused:
            raise PostgresError(f"settings: {name} cannot be set ({refused[name.lower()]}). Leave it out.")
        if not isinstance(value, (str, int, float)):
            raise PostgresError(f"settings: {name} has a value that is neither a text, a number nor yes or no.")
        checked[name] = ("on" if value else "off") if isinstance(value, bool) else str(value)
    return checked


def carried(archived: Mapping[str, str]) -> dict[str, str]:
    """Archived settings that a session keeps."""
    values = {name: archived[name.lower()] for name in CARRIED if name.lower() in archived}
    return {name: value for name, value in values.items() if _is_here(name, value)}


def preload(archived: Mapping[str, str], bindir: str) -> tuple[dict[str, str], list[str]]:
    """The archived shared_preload_libraries: the setting with those to keep, and those that are left out."""
    directory = library_directory(bindir)
    wanted = [name.strip(" \t\"'") for name in archived.get("shared_preload_libraries", "").split(",")]
    names = [os.path.basename(name) for name in wanted if name]
    kept = [
        name
        for name in names
        if name in HARMLESS_LIBRARIES and directory is not None and os.path.exists(f"{directory}/{name}.so")
    ]
    setting = {"shared_preload_libraries": ",".join(kept)} if kept else {}
    return setting, [name for name in names if name not in kept]


def render_configuration(sections: Mapping[str, Mapping[str, str]]) -> str:
    """A postgresql.conf; sections are headings with their settings. In PostgreSQL the last of a name counts."""
    return "\n".join(_lines(sections)) + "\n"


def _lines(sections: Mapping[str, Mapping[str, str]]) -> Iterator[str]:
    reasons = {setting.name: setting.why for setting in TUNING}
    for heading, settings in sections.items():
        if settings:
            yield f"# {heading}"
        for name, value in settings.items():
            reason = f"  # {reasons[name]}" if reasons.get(name) else ""
            yield f"{name} = {quote_setting(value)}{reason}"


def _limits(control: PgControl) -> dict[str, str]:
    """Limits that recovery needs: prepared transactions and their locks must find room, segments set WAL's sizes.

    The other limits of pg_control matter to a hot standby alone, which a session never is. What production allowed may
    grow within the WAL that is replayed, and pg_control does not tell: hence the room for more prepared transactions.
    """
    megabytes = control.wal_segment_size // 2**20
    return {
        "max_prepared_transactions": str(max(SPARE_PREPARED, control.max_prepared_xacts)),
        "max_locks_per_transaction": str(max(SPARE_LOCKS, control.max_locks_per_xact)),
        "min_wal_size": f"{2 * megabytes}MB",
    }


def _assignments(settings: Mapping[str, str]) -> str:
    return ", ".join(f"{name}={value}" for name, value in settings.items())


def _is_here(name: str, value: str) -> bool:
    """Whether this host has the time zone or locale that a carried setting names."""
    if name == "TimeZone":
        return POSIX_ZONE.fullmatch(value) is not None or _has_time_zone(value)
    return name not in LOCALES or has_locale(value)


def _has_time_zone(name: str) -> bool:
    """Whether a server finds the zone, in any case of letters as PostgreSQL does (its src/timezone/pgtz.c).

    None that counts leap seconds: it would refuse that.
    """
    place = TIME_ZONES
    parts = name.split("/")
    if parts[0].lower() == "right":
        return False
    try:
        for part in parts:
            place = os.path.join(place, next(one for one in os.listdir(place) if one.lower() == part.lower()))
        with open(place, "rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except (OSError, StopIteration):
        return False
