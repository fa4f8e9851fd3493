# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What every part of the PostgreSQL engine needs: its exception, a look at a data directory, and quoting.

The parts: `_pg_binaries` (the programs of a major version), `_pg_links` and `_pg_clone` (what ties a copied data
directory to production), `_pg_settings` (the configuration a clone runs with), `_pg_server` (starting, stopping).
"""

from __future__ import annotations

import locale
import os
import pwd
import stat
from dataclasses import dataclass

from ansible_collections.phpborg.instant_recovery.plugins.module_utils._errors import RecoveryError
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._pg_control import PgControl, parse_pg_control

__all__ = [
    "OLDEST_MAJOR",
    "DataDirectory",
    "PostgresError",
    "has_locale",
    "quote_literal",
    "quote_setting",
    "read_data_directory",
    "read_regular_file",
    "server_account",
]

OLDEST_MAJOR = 12  # before, how to recover stood in a file of its own, and pg_control had other layouts
SMALL_FILE = 1 << 20  # bytes; configuration and label files are a few kilobytes


class PostgresError(RecoveryError):
    """A data directory cannot be used, or its server cannot be started or stopped."""


@dataclass(frozen=True)
class DataDirectory:
    """A PostgreSQL data directory: absolute path, major version, pg_control, and the directory's owner and mode."""

    path: str
    major: int
    control: PgControl
    uid: int
    gid: int
    mode: int


def read_data_directory(path: str) -> DataDirectory:
    """Look at a data directory. Raises PostgresError for anything else."""
    try:
        state = os.stat(path)
    except OSError as error:
        raise PostgresError(f"data_directory {path} cannot be read: {error.strerror}.") from error
    if not stat.S_ISDIR(state.st_mode):
        raise PostgresError(f"data_directory {path} is not a directory.")
    content = read_regular_file(os.path.join(path, "PG_VERSION"))
    if content is None:
        raise PostgresError(
            f"data_directory {path} is not a PostgreSQL data directory: it has no file PG_VERSION. "
            "Name the directory that has PG_VERSION, base/ and global/ in it."
        )
    major = _major(path, content)
    control = read_regular_file(os.path.join(path, "global", "pg_control"))
    if control is None:
        raise PostgresError(
            f"data_directory {path} has no file global/pg_control: the copy is incomplete. Use another archive."
        )
    parsed = parse_pg_control(control)
    if parsed.major not in (None, major):
        raise PostgresError(
            f"data_directory {path} mixes two clusters: PG_VERSION says {major}, global/pg_control is of PostgreSQL "
            f"{parsed.major}. Use another archive."
        )
    return DataDirectory(
        path=path,
        major=major,
        control=parsed,
        uid=state.st_uid,
        gid=state.st_gid,
        mode=stat.S_IMODE(state.st_mode),
    )


def read_regular_file(path: str) -> bytes | None:
    """The start (1 MiB) of a file, or None when there is no such file or it is a link, which might lead anywhere."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        if os.path.islink(path):
            return None
        raise PostgresError(f"{path} cannot be read: {error.strerror}.") from error
    with open(descriptor, "rb") as file:
        return file.read(SMALL_FILE) if stat.S_ISREG(os.fstat(descriptor).st_mode) else None


def server_account(data: DataDirectory, user: str | None) -> pwd.struct_passwd:
    """The account a server of this data directory runs as: user, or the directory's owner. Raises PostgresError."""
    account = _account(data, user)
    if account.pw_uid == 0:
        raise PostgresError(
            f"PostgreSQL refuses to run as root, and data_directory {data.path} belongs to root: "
            "present it as owned by another user (owner of overlay_mount), for instance postgres."
        )
    if os.geteuid() not in (0, account.pw_uid):
        me = pwd.getpwuid(os.geteuid()).pw_name
        raise PostgresError(f"The server must run as {account.pw_name}, and {me} cannot become that user: use become.")
    if account.pw_uid != data.uid:
        raise PostgresError(
            f"data_directory {data.path} belongs to user id {data.uid}, and PostgreSQL runs only as the owner: "
            f"present it as owned by {account.pw_name} (owner of overlay_mount), or leave user out."
        )
    return account


def has_locale(name: str) -> bool:
    """Whether this host has the locale: neither a server nor a database starts with one that is missing."""
    before = locale.setlocale(locale.LC_TIME)
    try:
        locale.setlocale(locale.LC_TIME, name)
    except locale.Error:
        return False
    finally:
        locale.setlocale(locale.LC_TIME, before)
    return True


def quote_setting(value: str) -> str:
    """A value as postgresql.conf has it: in quotes, with escapes."""
    escaped = value.replace("\\", "\\\\").replace("'", "''").replace("\n", "\\n").replace("\r", "\\r")
    return f"'{escaped}'"


def quote_literal(value: str) -> str:
    """A string constant for SQL, whatever standard_conforming_strings says."""
    escaped = value.replace("\\", "\\\\").replace("'", "''")
    return f"E'{escaped}'" if "\\" in value else f"'{escaped}'"


def _major(path: str, content: bytes) -> int:
    text = content.decode("ascii", "replace").strip()
    if text.isdigit() and int(text) >= OLDEST_MAJOR:
        return int(text)
    if text.partition(".")[0].isdigit():
        raise PostgresError(
            f"data_directory {path} is of PostgreSQL {text}; sessions can be started from {OLDEST_MAJOR} and newer."
        )
    raise PostgresError(
        f"data_directory {path}: PG_VERSION holds {text[:40]!r} instead of a version. Use another archive."
    )


def _account(data: DataDirectory, user: str | None) -> pwd.struct_passwd:
    try:
        return pwd.getpwuid(data.uid) if user is None else pwd.getpwnam(user)
    except KeyError:
        pass
    if user is not None:
        raise PostgresError(f"There is no user {user} on this host: name one that exists.")
    raise PostgresError(
        f"data_directory {data.path} belongs to user id {data.uid}, which does not exist on this host: "
        "present it as owned by a user that does (owner of overlay_mount)."
    )
