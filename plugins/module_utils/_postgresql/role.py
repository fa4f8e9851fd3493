# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The session's role, and what of the settings that the archive's databases have made counts for it.

PostgreSQL applies what `alter database` and `alter role all` have set to whoever logs in, before the command line and
every file. To production's users that is meant: another role, time-outs, read-only transactions. For the session's role
each of these is overruled by a setting of its own, which counts more. What cannot be overruled is taken out of the
copy's catalogs. What decides how results look stays in force, as what the archived configuration says does.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from .settings import CARRIED

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

__all__ = ["SESSION_ROLE", "RoleSettings", "neutralised", "staying"]

SESSION_ROLE = "instant_recovery"
# Code of the archive would run with each login, whoever's it is.
LIBRARY_SETTINGS = (
    *("session_preload_libraries", "local_preload_libraries", "dynamic_library_path"),
    "event_triggers",
)
READ_ONLY_SETTINGS = ("default_transaction_read_only", "transaction_read_only")
# Nothing of a role's own is sure to win against these.
SWITCHING_SETTINGS = (
    "role",
    "session_authorization",
    "transaction_read_only",
    "transaction_isolation",
    "transaction_deferrable",
)
# Results look as in production; a client's encoding is agreed on at login.
STAYING = (*(name for name in CARRIED if name != "search_path"), "client_encoding")
# What a server has by itself where the run that changes the catalogs has something else (_OPTIONS of _pg_prepare).
RUN_HAS_OTHERS = {
    "search_path": '"$user", public',
    "default_transaction_read_only": "off",
    "timezone": "GMT",
    "log_min_error_statement": "error",
}
MOST_TOLD = 200  # settings, and characters of each

# Of `entry`. The server takes names in any case, and with hyphens for underscores.
NAME = "lower(translate(split_part(entry, '=', 1), '-', '_'))"
OF_EVERYBODY = "pg_db_role_setting, unnest(setconfig) as entry where setrole = 0"
OF_SESSION_ROLE = f"(select oid from pg_authid where rolname = '{SESSION_ROLE}')"


class RoleSettings:
    """SQL that settles what counts for the session's role, and what is said about it.

    settings: those of the session's configuration file. given: names of those that a user has asked for, which count
    whatever databases set. read_only: whether nobody's transactions may write.
    """

    def __init__(self, *, settings: Mapping[str, str], given: Iterable[str], read_only: bool) -> None:
        session = {name.lower(): value for name, value in settings.items()}
        configured = (f"({_text(name)}, {_text(session.get(name, value))})" for name, value in RUN_HAS_OTHERS.items())
        stays = {name.lower() for name in STAYING} - {name.lower() for name in given}
        everywhere = (*LIBRARY_SETTINGS, *(READ_ONLY_SETTINGS if read_only else ()))
        self._unwanted = (
            f"({NAME} = any ({_array(everywhere)}) or setrole = 0 and {NAME} = any ({_array(SWITCHING_SETTINGS)}))"
        )
        # In the run that asks, no setting of a database counts: reset_val is what the configuration says.
        self._own = f"""(select lower(name) as name, coalesce(configured, reset_val, '') as value
            from pg_settings left join (values {", ".join(configured)}) as session (known, configured)
            on known = lower(name) where context in ('user', 'superuser', 'backend', 'superuser-backend')
            and lower(name) <> all ({_array(sorted(stays))}))"""

    def before(self) -> str:
        """An expression for what is there, before anything is changed: see `neutralised` and `staying`."""
        return f"""json_build_object(
            'reset', (select json_agg(left(entry, {MOST_TOLD})) from (
                select entry from pg_db_role_setting, unnest(setconfig) as entry
                where {self._unwanted} limit {MOST_TOLD}) as one),
            'counting', (select json_agg(json_build_array(datname, left(entry, {MOST_TOLD}), own.name, own.value))
                from (select setdatabase, entry from {OF_EVERYBODY} and not {self._unwanted} limit {MOST_TOLD}) as one
                left join pg_database on pg_database.oid = setdatabase
                left join {self._own} as own on own.name = {NAME}))"""

    def statements(self) -> tuple[str, ...]:
        """What takes settings away. They come before the role is made."""
        return (
            f"""update pg_db_role_setting
                set setconfig = array(select entry from unnest(setconfig) entry where not {self._unwanted})
                where exists (select from unnest(setconfig) entry where {self._unwanted})""",
            f"delete from pg_db_role_setting where setconfig = '{{}}' or setrole = {OF_SESSION_ROLE}",
        )

    def overruling(self) -> str:
        """A statement that gives the role settings of its own, once it is there."""
        return f"""insert into pg_db_role_setting (setdatabase, setrole, setconfig)
            select 0, {OF_SESSION_ROLE}, array_agg(name || '=' || value) from {self._own} as own
            where name in (select {NAME} from {OF_EVERYBODY}) having count(*) > 0"""

    def left(self) -> str:
        """An expression for the number of settings that still count and should not."""
        return f"""(select count(*) from pg_db_role_setting, unnest(setconfig) entry where {self._unwanted})
            + (select count(*) from {self._own} as own where name in (select {NAME} from {OF_EVERYBODY})
               and not exists (select from pg_db_role_setting where setdatabase = 0 and setrole = {OF_SESSION_ROLE}
                               and name || '=' || value = any (setconfig)))"""


def neutralised(before: Mapping[str, Any]) -> Iterator[dict[str, str]]:
    """What was taken away or overruled, as {what, why}."""
    for entry in sorted(set(before["reset"] or [])):
        why = "set for a role or database, it would have counted more than the session's own setting"
        yield {"what": f"{entry.partition('=')[0]} of roles and databases reset ({entry})", "why": why}
    for database, entry, name, value in _counting(before):
        if name is not None:
            why = "it was set for production's users, and would have cut off or misled the session's"
            yield {"what": f"{entry}, set for {database}, overruled for {SESSION_ROLE} ({name}={value})", "why": why}


def staying(before: Mapping[str, Any]) -> list[dict[str, str]]:
    """What counts for the session's role as for everybody, as {what, why}."""
    return [
        {"what": f"{entry}, set for {database}", "why": "it counts for whoever logs in, as in production"}
        for database, entry, name, _value in _counting(before)
        if name is None
    ]


def _counting(before: Mapping[str, Any]) -> Iterator[Sequence[str | None]]:
    for database, entry, name, value in before["counting"] or []:
        yield ("all roles" if database is None else f"database {database}"), entry, name, value


def _array(texts: Iterable[str]) -> str:
    return f"array[{', '.join(map(_text, texts))}]::text[]"


def _text(value: str) -> str:
    """A string constant without a blank in it: the script has one statement a line."""
    escaped = value.replace("\\", "\\\\").replace("'", "''")
    return "E'" + re.sub(r"\s", lambda blank: f"\\x{ord(blank.group()):02x}", escaped, flags=re.ASCII) + "'"
