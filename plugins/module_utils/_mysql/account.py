# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The accounts of a session in the copy: one for clients, and one that counts them.

No account of the archive is known, so the server makes these itself, by a file of statements that it executes before it
listens. Neither the file nor its statements end up in a binary log.
"""

from __future__ import annotations

import hashlib

__all__ = ["ACCOUNT", "PROBE", "account_script", "clients_query"]

ACCOUNT = "instant_recovery"
PROBE = "instant_recovery_probe"  # its own statements must not count as use of the session
# What of all rights lets an account switch off that it can only read.
MARIADB_WRITERS = "SUPER, READ_ONLY ADMIN"
MYSQL_WRITERS = "SUPER, SYSTEM_VARIABLES_ADMIN, CONNECTION_ADMIN"
SINCE_READ_ONLY_ADMIN = (10, 5)


def account_script(
    *, is_mariadb: bool, series: tuple[int, int], password: str, probe_password: str, read_only: bool
) -> str:
    """The statements. An account of that name in the copy, as one of a session in a session would be, is replaced."""
    users = [f"'{ACCOUNT}'@'localhost'", f"'{ACCOUNT}'@'127.0.0.1'"]
    probe = f"'{PROBE}'@'localhost'"
    known = ", ".join([*users, probe])
    lines = ["SET SESSION sql_log_bin=0", "SET SESSION sql_mode=''", f"DROP USER IF EXISTS {known}"]
    lines += [f"CREATE USER {user} {_identified(password, is_mariadb=is_mariadb)}" for user in users]
    lines += [f"CREATE USER {probe} {_identified(probe_password, is_mariadb=is_mariadb)}"]
    lines += [f"GRANT ALL PRIVILEGES ON *.* TO {user} WITH GRANT OPTION" for user in users]
    lines += [f"GRANT PROCESS ON *.* TO {probe}"]
    if not is_mariadb:
        lines += [f"GRANT SELECT ON performance_schema.* TO {probe}"]
    if read_only and (not is_mariadb or series >= SINCE_READ_ONLY_ADMIN):
        rights = MARIADB_WRITERS if is_mariadb else MYSQL_WRITERS
        lines += [f"REVOKE {rights} ON *.* FROM {user}" for user in users]
    return "".join(f"{line};\n" for line in lines)


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
        "select json_object('clients', clients, 'active_clients', active, 'queries', queries, "
        "'traces', concat_ws(' ', queries, connections)) from (select count(*) as clients, "
        "coalesce(sum(command not in ('Sleep', 'Daemon')), 0) as active from information_schema.processlist "
        f"where user <> '{PROBE}' and user not in ('system user', 'event_scheduler') and command <> 'Daemon') as one, "
        f"({counted}) as other"
    )


def _identified(password: str, *, is_mariadb: bool) -> str:
    """How a password is given: to MariaDB as its hash. MySQL makes its own with salt, and writes no other anywhere."""
    if not is_mariadb:
        return f"IDENTIFIED WITH caching_sha2_password BY '{password}'"
    stage = hashlib.sha1(password.encode("ascii"), usedforsecurity=False).digest()
    digest = hashlib.sha1(stage, usedforsecurity=False).hexdigest().upper()
    return f"IDENTIFIED VIA mysql_native_password USING '*{digest}'"
