# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The accounts of a session in the copy: one for clients, one that counts them, and one that replays logs.

No account of the archive is known, and none is to be used: they are locked, for some have no password. So the server
makes these itself, by a file of statements that it executes before it listens. Neither the file nor its statements end
up in a binary log.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["ACCOUNT", "LOGINS", "PROBE", "REPLAYER", "account_script", "clients_query", "unlocked_query"]

ACCOUNT = "instant_recovery"
# MySQL before 5.7.8 has names of 16 characters at most.
PROBE = "ir_probe"  # its own statements must not count as use of the session
REPLAYER = "ir_replay"  # has all rights, in a run of its own to which nobody else can come
# Option files for our own programs, in the directory that the server can read.
LOGINS = {ACCOUNT: "login.cnf", PROBE: "probe.cnf", REPLAYER: "replay.cnf"}
# What of all rights lets an account switch off that it can only read. Routines have the rights of whoever made them, so
# that nobody may have these: SUPER and READ_ONLY ADMIN are bits of MariaDB's (sql/privilege.h).
MARIADB_WRITERS, MARIADB_BITS = "SUPER, READ_ONLY ADMIN", (1 << 15) | (1 << 33)
MYSQL_WRITERS = ("SYSTEM_VARIABLES_ADMIN", "CONNECTION_ADMIN")
SINCE_GLOBAL_PRIV, SINCE_READ_ONLY_ADMIN = (10, 4), (10, 5)
# Of MySQL: accounts can be locked; rights other than those in the columns of tables, and passwords with salt.
SINCE_LOCK, SINCE_DYNAMIC_RIGHTS = (5, 7), (8, 0)


def account_script(*, is_mariadb: bool, series: tuple[int, int], passwords: Mapping[str, str], read_only: bool) -> str:
    """The statements. passwords: of ACCOUNT and PROBE, or of REPLAYER.

    Accounts of these names in the copy, as those of a session in a session would be, are replaced.
    """
    clients, probe, replay = [_at(ACCOUNT), f"'{ACCOUNT}'@'127.0.0.1'"], _at(PROBE), _at(REPLAYER)
    known = ", ".join([*clients, probe, replay])
    lines = ["SET SESSION sql_log_bin=0", "SET SESSION sql_mode=''"]
    lines += [*_locked(is_mariadb=is_mariadb, series=series, read_only=read_only), "FLUSH PRIVILEGES"]
    if is_mariadb or series >= SINCE_LOCK:
        lines += [f"DROP USER IF EXISTS {known}"]
    else:  # whom it grants something it makes, if need be
        lines += [f"GRANT USAGE ON *.* TO {known}", f"DROP USER {known}"]
    for user, name in ((clients[0], ACCOUNT), (clients[1], ACCOUNT), (probe, PROBE), (replay, REPLAYER)):
        if name in passwords:
            lines += [f"CREATE USER {user} {_identified(passwords[name], is_mariadb=is_mariadb, series=series)}"]
    if REPLAYER in passwords:
        lines += [f"GRANT ALL PRIVILEGES ON *.* TO {replay} WITH GRANT OPTION"]
    if ACCOUNT in passwords:
        lines += [f"GRANT ALL PRIVILEGES ON *.* TO {user} WITH GRANT OPTION" for user in clients]
        lines += [f"GRANT PROCESS ON *.* TO {probe}"]
        lines += [] if is_mariadb else [f"GRANT SELECT ON performance_schema.* TO {probe}"]
    if ACCOUNT in passwords and read_only and series >= (SINCE_READ_ONLY_ADMIN if is_mariadb else (0, 0)):
        lines += [f"REVOKE {_writers(is_mariadb=is_mariadb, series=series)} ON *.* FROM {user}" for user in clients]
    return "".join(f"{line};\n" for line in lines)


def unlocked_query(*, is_mariadb: bool, series: tuple[int, int]) -> str | None:
    """A query for the number of the copy's accounts that are not locked; None where a server knows no such thing."""
    others = f"user not in ('{ACCOUNT}', '{PROBE}')"
    if is_mariadb and series >= SINCE_GLOBAL_PRIV:
        is_locked = "coalesce(json_value(priv, '$.account_locked'), '0') in ('1', 'true')"
        is_role = "coalesce(json_value(priv, '$.is_role'), '0') in ('1', 'true')"
        return f"select count(*) from mysql.global_priv where {others} and not {is_locked} and not {is_role}"
    if is_mariadb or series < SINCE_LOCK:
        return None
    return f"select count(*) from mysql.user where {others} and account_locked <> 'Y'"


def _at(name: str) -> str:
    return f"'{name}'@'localhost'"


def _locked(*, is_mariadb: bool, series: tuple[int, int], read_only: bool) -> list[str]:
    """Statements after which no account of the copy can log in, nor with read_only write, by a routine of its own."""
    if is_mariadb and series >= SINCE_GLOBAL_PRIV:
        # Root may have all bits, known or not, and then none if one were missing. Which are known, the version says.
        every = (1 << 39) - 1 if series >= SINCE_READ_ONLY_ADMIN else (1 << 31) - 1
        access = "CAST(COALESCE(JSON_VALUE(Priv, '$.access'), 0) AS UNSIGNED)"
        access = f"IF({access} > {1 << 60}, {every}, {access}) & ~{MARIADB_BITS}"
        rights = f", '$.access', {access}, '$.version_id', {10000 * series[0] + 100 * series[1] + 99}"
        rights = rights if read_only else ""
        return [f"UPDATE mysql.global_priv SET Priv=JSON_SET(Priv, '$.account_locked', true{rights})"]
    rights = ", Super_priv='N'" if read_only else ""
    if is_mariadb or series < SINCE_LOCK:  # a password that nobody knows
        password = "Password=CONCAT('*', UPPER(SHA1(UUID()))), authentication_string=''"
        return [f"UPDATE mysql.user SET plugin='', {password}{rights}"]
    lines = [f"UPDATE mysql.user SET account_locked='Y'{rights}"]
    if read_only and series >= SINCE_DYNAMIC_RIGHTS:
        lines += [f"DELETE FROM mysql.global_grants WHERE PRIV IN {MYSQL_WRITERS}"]
    return lines


def _writers(*, is_mariadb: bool, series: tuple[int, int]) -> str:
    if is_mariadb:
        return MARIADB_WRITERS
    return ", ".join(["SUPER", *(MYSQL_WRITERS if series >= SINCE_DYNAMIC_RIGHTS else ())])


def clients_query(*, is_mariadb: bool) -> str:
    """A query for what the session's record wants to know of clients, as JSON: see Started in _engine/interface.py."""
    if is_mariadb:
        counted = (
            "select coalesce(sum(select_commands + update_commands + other_commands), 0) as queries, "
            "coalesce(sum(total_connections), 0) as connections "
            f"from information_schema.user_statistics where user <> '{PROBE}'"
        )
    else:
        counted = (
            "select coalesce(sum(count_star), 0) as queries, 0 as connections "
            "from performance_schema.events_statements_summary_by_user_by_event_name "
            f"where user <> '{PROBE}'"
        )
    return (
        # MySQL has functions for JSON only since 5.7.8. All of these are numbers.
        "select concat('{\"clients\":', clients, ',\"active_clients\":', active, ',\"queries\":', queries, "
        "',\"traces\":\"', queries, ' ', connections, '\"}') from (select count(*) as clients, "
        "coalesce(sum(command not in ('Sleep', 'Daemon')), 0) as active from information_schema.processlist "
        f"where user <> '{PROBE}' and user not in ('system user', 'event_scheduler') and command <> 'Daemon') as one, "
        f"({counted}) as other"
    )


def _identified(password: str, *, is_mariadb: bool, series: tuple[int, int]) -> str:
    """How a password is given: as its hash. MySQL from 8.0 on makes its own with salt, and writes no other anywhere."""
    if not is_mariadb and series >= SINCE_DYNAMIC_RIGHTS:
        return f"IDENTIFIED WITH caching_sha2_password BY '{password}'"
    stage = hashlib.sha1(password.encode("ascii"), usedforsecurity=False).digest()
    digest = hashlib.sha1(stage, usedforsecurity=False).hexdigest().upper()
    return (
        f"IDENTIFIED VIA mysql_native_password USING '*{digest}'"
        if is_mariadb
        else f"IDENTIFIED BY PASSWORD '*{digest}'"
    )
