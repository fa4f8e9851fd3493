# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a copy's catalogs say, and what is changed in them: SQL for `postgres --single`, and its answers.

Names in the catalogs have whatever bytes the clients of a database sent, in an encoding that nobody noted where it is
SQL_ASCII. They are taken as they are; bytes that are no UTF-8 become surrogates, as in names of files.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .cluster import PostgresError, quote_literal
from .log import reason
from .role import SESSION_ROLE, RoleSettings, neutralised, staying

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

__all__ = ["TEMPLATES", "Catalogs", "catalog_script", "parse_catalogs"]

MOST_NESTED = 10  # lists and objects in one another, in an answer

NO_SLOT = "instant_recovery_none"
ISO_8601 = 'YYYY-MM-DD"T"HH24:MI:SS.US+00:00'  # as to_char() wants it
# The database to ask in, none of whose users counts as a client: a template, even if nobody may connect to it. Without
# any, some other one. One that a failed DROP DATABASE has left (-2) cannot be entered, nor one whose directory is lost;
# of one in a tablespace of its own it is not looked for.
PROBED = """(select datname from pg_database where datconnlimit <> -2
    order by dattablespace = 1663 and (pg_stat_file('base/' || oid || '/PG_VERSION', true)).size is null,
        datname <> 'template1', datname <> 'template0', not datallowconn, datname limit 1)"""
TEMPLATES = ("template1", "template0")
# Each unlogged relation has a file to be emptied from. The server looks for them, which may read its own copy.
UNLOGGED = """
    select json_object_agg(datname, number) from (
        select datname, count(*) as number
        from pg_database, lateral (
            select pg_ls_dir('base/' || oid, true, false) as name
            union all
            select pg_ls_dir(place || '/' || oid, true, false)
            from (select 'pg_tblspc/' || space || '/' || version as place
                  from pg_ls_dir('pg_tblspc', true, false) as space,
                       pg_ls_dir('pg_tblspc/' || space, true, false) as version) as tablespace
        ) as file
        where name like '%\\_init' group by datname) as counted
"""


@dataclass(frozen=True)
class Catalogs:
    """What the catalogs say. databases: names of those that can be connected to, templates left out.

    neutralised: what was changed, as {what, why}. staying: settings of databases that count for the session's role.
    reached: time (of the last commit replayed), lsn and timeline; time and lsn are None where nothing was replayed.
    collations: {database, collation (None), recorded, actual} of databases whose collation has another version here.
    unlogged: how many unlogged relations each database has, by its name, where recovery emptied them. prepared: names
    of prepared transactions. tablespaces: names by oid. probed: a database to ask in, none of whose users counts.
    locales: what each database needs of the host. unconverted: databases whose encoding is none (SQL_ASCII). log: what
    the server said about recovery.
    """

    superuser: str
    databases: list[str]
    neutralised: list[dict[str, str]]
    staying: list[dict[str, str]]
    collations: list[dict[str, str | None]]
    reached: dict[str, Any]
    unlogged: dict[str, int]
    prepared: list[str]
    tablespaces: dict[str, str]
    probed: str
    locales: dict[str, list[str]]
    unconverted: frozenset[str]
    log: list[str]

    def encoding(self, database: str) -> str:
        """What a client has to ask for there: names that nobody can convert come as they are."""
        return "SQL_ASCII" if database in self.unconverted else "UTF8"


def catalog_script(*, major: int, verifier: str, settings: RoleSettings) -> str:
    """SQL for `postgres --single -j`, where an empty line ends a statement. It prints a line of JSON twice."""
    role = (
        f"{SESSION_ROLE} superuser login connection limit -1 valid until 'infinity' password {quote_literal(verifier)}"
    )
    no_slot = "null" if major >= 13 else quote_literal(NO_SLOT)  # 12's column may not be null
    tied = "subenabled or subslotname is not null" if major >= 13 else f"subenabled or subslotname <> {no_slot}"
    statements = (
        "select set_config('client_encoding', case getdatabaseencoding() when 'SQL_ASCII' then 'SQL_ASCII' else 'UTF8' "
        "end, false)",
        _copy(f"""json_build_object(
            'settings', {settings.before()},
            'subscriptions', (select json_agg(subname) from pg_subscription where {tied}),
            'opened', (select datname from pg_database where datname = {PROBED} and not datallowconn))"""),
        *settings.statements(),
        # Without its slot's name a subscription can be dropped, or its database, without a word to the publisher.
        f"update pg_subscription set subenabled = false, subslotname = {no_slot} where {tied}",
        f"update pg_database set datallowconn = true where datname = {PROBED} and not datallowconn",
        # The first fails when the archive holds the role already: it is of a session. The second then counts.
        f"create role {role}",
        f"alter role {role}",
        settings.overruling(),
        _copy(_answer(major, verifier, settings, tied)),
    )
    return "".join(f"{_one_line(statement)};\n\n" for statement in statements)


def _answer(major: int, verifier: str, settings: RoleSettings, tied: str) -> str:
    versions = "datcollversion, pg_database_collation_actual_version(oid)" if major >= 15 else "null, null"
    return f"""json_build_object(
        'superuser', (select rolname from pg_roles where oid = 10),
        'role', exists (select from pg_authid where rolname = '{SESSION_ROLE}' and rolsuper and rolcanlogin
                        and rolpassword = {quote_literal(verifier)}),
        'settings_left', {settings.left()},
        'subscriptions_left', (select count(*) from pg_subscription where {tied}),
        'databases', (select json_agg(datname order by datname) from pg_database
                      where datallowconn and not datistemplate and datconnlimit <> -2),
        'unconverted', (select json_agg(datname) from pg_database where encoding = 0),
        'unlogged', case when pg_last_wal_replay_lsn() is null then null else ({UNLOGGED}) end,
        'probed', (select datname from pg_database where datname = {PROBED} and datallowconn),
        'tablespaces', (select json_object_agg(oid, spcname) from pg_tablespace
                        where spcname not in ('pg_default', 'pg_global')),
        'prepared', (select json_agg(gid order by gid) from pg_prepared_xacts),
        'reached', json_build_object(
            'time', to_char(pg_last_xact_replay_timestamp() at time zone 'UTC', {quote_literal(ISO_8601)}),
            'lsn', pg_last_wal_replay_lsn(),
            'timeline', (select timeline_id from pg_control_checkpoint())),
        'locales', (select json_agg(json_build_array(datname, datcollate, datctype, {versions}) order by datname)
                    from pg_database where datallowconn and datname <> 'template0'))"""


def parse_catalogs(output: str, log: Sequence[str] = ()) -> Catalogs:
    """Read what catalog_script printed. Raises PostgresError when it did not do all of its work."""
    try:
        return _parsed(output, log)
    except (LookupError, TypeError, ValueError, AttributeError, RecursionError):
        raise PostgresError(
            f"The catalogs of the copy answered with what no server says: {reason(log)}", log_tail=list(log)
        ) from None


def _parsed(output: str, log: Sequence[str]) -> Catalogs:
    # The prompt stands before each answer.
    found = [json.loads(text) for text in re.findall(r"^(?:backend> )*(\{.*\})$", output, re.MULTILINE)]
    _check_depth(found)
    before, after = (found[0], found[-1]) if len(found) == 2 else ({}, {})
    if not after.get("role") or after["settings_left"] or after["subscriptions_left"] or not after["probed"]:
        raise PostgresError(f"The catalogs of the copy could not be changed: {reason(log)}", log_tail=list(log))
    locales = after["locales"] or []
    return Catalogs(
        superuser=after["superuser"],
        databases=after["databases"] or [],
        neutralised=list(_neutralised(before)),
        staying=staying(before["settings"]),
        collations=[
            {"database": name, "collation": None, "recorded": recorded, "actual": actual}
            for name, _collate, _ctype, recorded, actual in locales
            if recorded != actual
        ],
        reached=after["reached"],
        unlogged=after["unlogged"] or {},
        prepared=after["prepared"] or [],
        tablespaces={str(int(oid)): name for oid, name in (after["tablespaces"] or {}).items()},
        probed=after["probed"],
        locales={
            name: sorted({one for one in (collate, ctype) if one}) for name, collate, ctype, *_versions in locales
        },
        unconverted=frozenset(after["unconverted"] or []),
        log=list(log),
    )


def _check_depth(value: Any, most: int = MOST_NESTED) -> None:
    """Raise ValueError for what is nested deeper than any answer: others go through it by recursion."""
    if not most:
        raise ValueError("nested too deep")
    for one in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _check_depth(one, most - 1)


def _copy(expression: str) -> str:
    """A statement that prints one value as it is: quoting by characters that JSON never holds unescaped."""
    return rf"copy (select {expression}) to stdout (format csv, quote E'\x01', delimiter E'\x02')"


def _one_line(statement: str) -> str:
    return " ".join(statement.split())


def _neutralised(before: Mapping[str, Any]) -> Iterator[dict[str, str]]:
    yield from neutralised(before["settings"])
    for name in before["subscriptions"] or []:
        why = "enabled, or when dropped, it would have taken production's slot from the publisher"
        yield {"what": f"subscription {name} disabled and parted from its slot", "why": why}
    if before["opened"] is not None:
        why = "the session's keeper asks there for its clients, so that what it does is not counted among theirs"
        yield {"what": f"database {before['opened']} opened to connections", "why": why}
