# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What every part of the PostgreSQL engine needs: its exception, a look at a data directory, and quoting.

The parts: `programs` (of a major version), `links` and `detach` (what ties a copied data directory to production),
`settings` (the configuration that the copy runs with), `plan`, and `server` (starting, stopping).
"""

from __future__ import annotations

import errno
import locale
import os
import re
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .._errors import RecoveryError
from .._host.files import open_inside
from .control import PgControl, parse_pg_control

if TYPE_CHECKING:
    from .._host.command import Account

__all__ = [
    "MAJOR",
    "OLDEST_MAJOR",
    "DataDirectory",
    "PostgresError",
    "check_account",
    "has_locale",
    "quote_literal",
    "quote_setting",
    "read_data_directory",
    "read_regular_file",
    "shown",
]

MAJOR = re.compile("[0-9]{1,4}")
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
        state = os.lstat(path)
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
    """The start (1 MiB) of a file; None when there is none, or a link is on the way, which might lead anywhere."""
    try:
        with open(open_inside(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
            return file.read(SMALL_FILE) if stat.S_ISREG(os.fstat(file.fileno()).st_mode) else None
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            return None
        raise PostgresError(f"{path} cannot be read: {error.strerror}.") from error


def check_account(data: DataDirectory, account: Account, *, is_presented: bool = True) -> None:
    """Raise PostgresError where a server of this data directory cannot run as account.

    is_presented: whether the directory is seen as the server will see it, with its owner.
    """
    if account.uid == 0:
        raise PostgresError(
            "PostgreSQL refuses to run as root: name another user for the server (server_user), or none."
        )
    if os.geteuid() not in (0, account.uid):
        raise PostgresError(f"The server must run as {account.name}, which only root can arrange: use become.")
    if is_presented and account.uid != data.uid:
        raise PostgresError(
            f"data_directory {data.path} belongs to user id {data.uid}, and PostgreSQL runs only as the owner: "
            f"present it as owned by {account.name} (owner of overlay_mount)."
        )


def has_locale(name: str) -> bool:
    """Whether this host has the locale: neither a server nor a database starts with one that is missing."""
    before = locale.setlocale(locale.LC_TIME)
    try:
        locale.setlocale(locale.LC_TIME, name)
    except (locale.Error, ValueError):  # the latter for a NUL in it
        return False
    finally:
        locale.setlocale(locale.LC_TIME, before)
    return True


def shown(value: Any) -> Any:
    """A value for people and as JSON: bytes that are no UTF-8, which were surrogates, as in C strings."""
    if isinstance(value, str):
        return value.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    if isinstance(value, dict):
        return {shown(name): shown(one) for name, one in value.items()}
    return [shown(one) for one in value] if isinstance(value, (list, tuple)) else value


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
    if MAJOR.fullmatch(text) and int(text) >= OLDEST_MAJOR:
        return int(text)
    if MAJOR.fullmatch(text.partition(".")[0]):
        raise PostgresError(
            f"data_directory {path} is of PostgreSQL {text[:40]}; sessions can be started from {OLDEST_MAJOR} and "
            "newer."
        )
    raise PostgresError(
        f"data_directory {path}: PG_VERSION holds {text[:40]!r} instead of a version. Use another archive."
    )
