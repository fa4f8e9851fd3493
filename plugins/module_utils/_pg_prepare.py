# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Recovery of a copied cluster, and what has to be changed in its catalogs, before a server listens.

Both are done by one run of `postgres --single`. It needs no role to log in as (the bootstrap superuser may have any
name, or be barred from logging in), starts no workers, and lets nobody else in. Measured: 40 ms beside recovery
itself, which is as fast there as in a server and then need not be done by the server.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import os
import re
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ansible_collections.phpborg.instant_recovery.plugins.module_utils._command import CommandError, OutputError
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._pg_build import in_our_words
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._postgresql import (
    PostgresError,
    has_locale,
    quote_literal,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from ansible_collections.phpborg.instant_recovery.plugins.module_utils._processes import Process
    from ansible_collections.phpborg.instant_recovery.plugins.module_utils._sandbox import Sandbox

__all__ = [
    "SESSION_ROLE",
    "Catalogs",
    "catalog_script",
    "log_tail",
    "parse_catalogs",
    "prepare",
    "reason",
    "scram_verifier",
]

SESSION_ROLE = "instant_recovery"
NO_SLOT = "instant_recovery_none"
SCRAM_ITERATIONS = 4096  # PostgreSQL's own number; the password is random, so more would only slow logins
# To run in: the first that exists, beginning with the one that can least be done without.
DATABASES = ("template1", "postgres", "template0")
INVALID_CATALOG_NAME = "3D000"  # SQLSTATE: the database does not exist
ABOUT_RECOVERY = re.compile(
    rb"LOG:  (?:recovery stopping |redo done at |last completed transaction was at log time )"
    rb"|WARNING:  (?:page \d+ of relation |WAL was generated with )"
)
TAIL = 30  # lines of the server's log in an error
MOST_SAID = 64 << 20  # bytes that the catalogs may tell, of names of databases mostly
ISO_8601 = 'YYYY-MM-DD"T"HH24:MI:SS.US+00:00'  # as to_char() wants it

# Settings of roles and databases beat the command line, so these are taken out of the catalog.
LIBRARY_SETTINGS = ("session_preload_libraries", "local_preload_libraries", "dynamic_library_path")
READ_ONLY_SETTINGS = ("default_transaction_read_only", "transaction_read_only")


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

    neutralised: what was changed, as {what, why}. warnings: sentences about what may be wrong with the data here.
    reached: time (of the last commit replayed), lsn and timeline; time and lsn are None where nothing was replayed.
    collations: {database, collation (None), recorded, actual} of databases whose collation has another version here.
    unlogged: how many unlogged relations each database has, by its name, where recovery emptied them. prepared: names
    of prepared transactions. probed: a database to ask in, none of whose users counts. log: what the server said about
    recovery.
    """

    superuser: str
    databases: list[str]
    neutralised: list[dict[str, str]]
    warnings: list[str]
    collations: list[dict[str, str | None]]
    reached: dict[str, Any]
    unlogged: dict[str, int]
    prepared: list[str]
    probed: str | None
    log: list[str]


def prepare(
    argv: Sequence[str],
    *,
    room: Sandbox,
    log: str,
    timeout: float,
    major: int,
    verifier: str,
    read_only: bool,
    claim: Callable[[Process], None] = lambda _process: None,
    explain: Callable[[list[str]], str | None] = lambda _log: None,
) -> Catalogs:
    """Recover the cluster and change its catalogs: see catalog_script. The session role gets this SCRAM verifier.

    argv is the server's, without --single and the database's name, and is run in room. The log gets what the server
    says. claim gets the process of each server that is run for it, before it runs. Raises PostgresError with the
    server's reason, or what explain makes of its last lines; also when it takes more than timeout seconds.
    """
    deadline = time.monotonic() + timeout
    earlier = _size(log)
    script = catalog_script(major=major, verifier=verifier, read_only=read_only)
    for database in DATABASES:
        begin = _size(log)
        single = [argv[0], "--single", "-j", *argv[1:], *_OPTIONS, database]
        left = max(0.0, deadline - time.monotonic())
        code, output = _run(single, script, room=room, log=log, timeout=left, claim=claim)
        said = log_tail(log, begin=begin)
        if code != 0 and any(f" {INVALID_CATALOG_NAME} " in line for line in said):
            continue  # after recovery: what it reached is in the log alone
        if code != 0:
            problem = explain(said) or f"PostgreSQL {major} cannot be started on the copy: {reason(said)}"
            raise PostgresError(problem, log_tail=said)
        return replace(parse_catalogs(output, said), log=_about_recovery(log, begin=earlier))
    raise PostgresError(f"The cluster has none of the databases {', '.join(DATABASES)}: it cannot be entered.")


def catalog_script(*, major: int, verifier: str, read_only: bool) -> str:
    """SQL for `postgres --single -j`, where an empty line ends a statement. It prints a line of JSON twice."""
    names = (*LIBRARY_SETTINGS, *(READ_ONLY_SETTINGS if read_only else ()))
    unwanted = f"split_part(entry, '=', 1) = any (array[{', '.join(map(quote_literal, names))}])"
    role = (
        f"{SESSION_ROLE} superuser login connection limit -1 valid until 'infinity' password {quote_literal(verifier)}"
    )
    no_slot = "null" if major >= 13 else quote_literal(NO_SLOT)  # 12's column may not be null
    tied = "subenabled or subslotname is not null" if major >= 13 else f"subenabled or subslotname <> {no_slot}"
    versions = "datcollversion, pg_database_collation_actual_version(oid)" if major >= 15 else "null, null"
    statements = (
        _copy(f"""json_build_object(
            'settings', (select json_agg(entry) from pg_db_role_setting, unnest(setconfig) entry where {unwanted}),
            'subscriptions', (select json_agg(subname) from pg_subscription where {tied}))"""),
        f"""update pg_db_role_setting
            set setconfig = array(select entry from unnest(setconfig) entry where not {unwanted})
            where exists (select from unnest(setconfig) entry where {unwanted})""",
        "delete from pg_db_role_setting where setconfig = '{}'",
        # Without its slot's name a subscription can be dropped, or its database, without a word to the publisher.
        f"update pg_subscription set subenabled = false, subslotname = {no_slot} where {tied}",
        # The first fails when the archive holds the role already: it is of a session. The second then counts.
        f"create role {role}",
        f"alter role {role}",
        _copy(f"""json_build_object(
            'superuser', (select rolname from pg_roles where oid = 10),
            'role', exists (select from pg_authid where rolname = '{SESSION_ROLE}' and rolsuper and rolcanlogin
                            and rolpassword = {quote_literal(verifier)}),
            'settings_left', (select count(*) from pg_db_role_setting, unnest(setconfig) entry where {unwanted}),
            'subscriptions_left', (select count(*) from pg_subscription where {tied}),
            'databases', (select json_agg(datname order by datname) from pg_database
                          where datallowconn and not datistemplate and datconnlimit <> -2),
            'unlogged', case when pg_last_wal_replay_lsn() is null then null else ({UNLOGGED}) end,
            'template1', (select datallowconn from pg_database where datname = 'template1'),
            'prepared', (select json_agg(gid order by gid) from pg_prepared_xacts),
            'reached', json_build_object(
                'time', to_char(pg_last_xact_replay_timestamp() at time zone 'UTC', {quote_literal(ISO_8601)}),
                'lsn', pg_last_wal_replay_lsn(),
                'timeline', (select timeline_id from pg_control_checkpoint())),
            'locales', (select json_agg(json_build_array(datname, datcollate, datctype, {versions}) order by datname)
                        from pg_database where datallowconn))"""),
    )
    return "".join(f"{_one_line(statement)};\n\n" for statement in statements)


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
    before, after = (found[0], found[-1]) if len(found) == 2 else ({}, {})
    if not after.get("role") or after["settings_left"] or after["subscriptions_left"]:
        raise PostgresError(f"The catalogs of the copy could not be changed: {reason(log)}", log_tail=list(log))
    return Catalogs(
        superuser=after["superuser"],
        databases=after["databases"] or [],
        neutralised=list(_neutralised(before)),
        warnings=[warning for row in after["locales"] or [] for warning in _locale_warnings(*row)],
        collations=[
            {"database": name, "collation": None, "recorded": recorded, "actual": actual}
            for name, _collate, _ctype, recorded, actual in after["locales"] or []
            if recorded and recorded != actual
        ],
        reached=after["reached"],
        unlogged=after["unlogged"] or {},
        prepared=after["prepared"] or [],
        probed="template1" if after["template1"] else next(iter(after["databases"] or []), None),
        log=list(log),
    )


def scram_verifier(password: str, *, salt: bytes) -> str:
    """What PostgreSQL stores for a password of ASCII letters (RFC 5803): from it, nobody can log in."""
    salted = hashlib.pbkdf2_hmac("sha256", password.encode("ascii"), salt, SCRAM_ITERATIONS)
    client_key = hmac.digest(salted, b"Client Key", "sha256")
    keys = (hashlib.sha256(client_key).digest(), hmac.digest(salted, b"Server Key", "sha256"))
    stored, server = (base64.b64encode(key).decode() for key in keys)
    return f"SCRAM-SHA-256${SCRAM_ITERATIONS}:{base64.b64encode(salt).decode()}${stored}:{server}"


def log_tail(log: str, *, begin: int = 0) -> list[str]:
    """The last lines of the server's log from the byte begin on."""
    with suppress(OSError), open(log, "rb") as file:
        file.seek(max(begin, os.fstat(file.fileno()).st_size - TAIL * 1000))
        return file.read().decode("utf-8", "replace").splitlines()[-TAIL:]
    return []


def _about_recovery(log: str, *, begin: int) -> list[str]:
    """What the whole log from the byte begin on says about recovery."""
    with suppress(OSError), open(log, "rb") as file:
        file.seek(begin)
        return [line.decode("utf-8", "replace").rstrip("\n") for line in file if ABOUT_RECOVERY.search(line)]
    return []


def _size(path: str) -> int:
    return os.path.getsize(path) if os.path.exists(path) else 0


def reason(log: Sequence[str]) -> str:
    """Why the server ended, in its own words: its last FATAL or PANIC with what belongs to it, else its last line."""
    severe = [number for number, line in enumerate(log) if re.search(r"\b(?:FATAL|PANIC):  ", line)]
    if not severe:
        return log[-1].strip() if log else "it said nothing."
    last = log[severe[-1]]
    # What is wrong with a configuration file is said before "… contains errors", and before anything else.
    lines = [*(log[: severe[-1]] if re.search(r'"[^"]*\.conf"', last) else []), last]
    for line in log[severe[-1] + 1 :]:
        if re.search(r"\b(?:DETAIL|HINT):  ", line) is None:
            break
        lines.append(line)
    sentences = in_our_words([re.split(r"\b[A-Z]+:  ", line, maxsplit=1)[-1].strip() for line in lines])
    return " ".join(sentence if sentence.endswith(".") else f"{sentence}." for sentence in sentences)


# Beside the server's own settings. A path for functions that the archive cannot change, and writes whatever the session
# may do later; the SQLSTATE in the log tells one failure from another.
_OPTIONS = (
    *("-c", "search_path=pg_catalog"),
    *("-c", "default_transaction_read_only=off"),
    *("-c", "log_line_prefix=%m [%p] %e "),
    *("-c", "TimeZone=UTC"),
    *("-c", "log_min_error_statement=panic"),
)


def _run(
    argv: Sequence[str], script: str, *, room: Sandbox, log: str, timeout: float, claim: Callable[[Process], None]
) -> tuple[int, str]:
    """Return code and output. The log is written to while it runs: a long recovery can be followed there."""
    try:
        # The memory is the server's own affair; what it prints is the archive's, and has a bound.
        done = room.run(
            argv, timeout=timeout, check=False, stdin=script.encode(), log=log, memory=0, limit=MOST_SAID, claim=claim
        )
    except OutputError:
        raise
    except CommandError:
        problem = f"Recovery of the copy did not finish within {timeout:g} s: give it more time (timeout)."
        raise PostgresError(problem, log_tail=log_tail(log)) from None
    return done.returncode, done.stdout.decode("utf-8", "replace")


def _copy(expression: str) -> str:
    """A statement that prints one value as it is: quoting by characters that JSON never holds unescaped."""
    return rf"copy (select {expression}) to stdout (format csv, encoding 'UTF8', quote E'\x01', delimiter E'\x02')"


def _one_line(statement: str) -> str:
    return " ".join(statement.split())


def _neutralised(before: Mapping[str, Any]) -> list[dict[str, str]]:
    found = []
    for entry in sorted(set(before["settings"] or [])):
        why = "set for a role or database, it would have counted more than the session's own setting"
        found.append({"what": f"{entry.partition('=')[0]} of roles and databases reset ({entry})", "why": why})
    for name in before["subscriptions"] or []:
        why = "enabled, or when dropped, it would have taken production's slot from the publisher"
        found.append({"what": f"subscription {name} disabled and parted from its slot", "why": why})
    return found


def _locale_warnings(
    database: str, collate: str | None, ctype: str | None, recorded: str | None, actual: str | None
) -> Iterator[str]:
    for name in sorted({name for name in (collate, ctype) if name}):
        if not has_locale(name):
            yield (
                f"Database {database} needs the locale {name}, which this host does not have: nobody can connect to it "
                "until that is installed and the session started again."
            )
    if recorded and recorded != actual:
        yield (
            f"Database {database} was written with collation version {recorded}, and this host has {actual or 'none'}: "
            "indexes on text may miss rows here, and sorting may differ."
        )
