# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a copied data directory says of itself, from the first blocks of a few files.

No link is followed and nothing is waited for: whoever made the archive may wish this host ill.
"""

from __future__ import annotations

import os
import re
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .._host.files import HeldDirectory, open_inside
from .backup import Backup, parse_backup
from .binlog import HEAD as BINLOG_HEAD
from .binlog import parse_head, parse_index, sorted_logs
from .option_file import MysqlError
from .redo import HEAD, TABLE, Redo, parse_redo, product_of, version_of_table

if TYPE_CHECKING:
    from .._host.command import Account

__all__ = ["REDO", "REDO_DIRECTORY", "BinaryLogs", "DataDirectory", "Elsewhere", "check_account", "read_data_directory"]

SYSTEM, REDO, REDO_DIRECTORY = "ibdata1", "ib_logfile0", "#innodb_redo"
SYSTEM_FILE = re.compile(r"ibdata([1-9][0-9]{0,3})")
UPGRADED = ("mariadb_upgrade_info", "mysql_upgrade_info")
UNDO_FILE = re.compile(r"undo[0-9]{1,4}")
VERSION = re.compile(r"\d{1,3}\.\d{1,3}\.\d{1,3}")
PAGE = 16 << 10
FLAGS = slice(54, 58)  # of a tablespace, in its first page
FULL_CHECKSUM, USUAL_PAGE = 0x10, 16 << 10
CRYPT_MAGIC = b"s\x0e\x0cREt"  # MariaDB's, before what the first page says of encryption; then a byte with its kind
SMALL_FILE = 1 << 20
MOST_INDEXES = 20


@dataclass(frozen=True)
class BinaryLogs:
    """The copy's own binary logs, in a directory. names: those that it has, oldest first; listed: those of its index.

    is_open: the server had not ended the last one.
    """

    directory: str
    base: str
    names: tuple[str, ...]
    listed: tuple[str, ...]
    is_open: bool = False

    @property
    def index(self) -> str:
        """The name of the index."""
        return f"{self.base}.index"


@dataclass(frozen=True)
class Elsewhere:
    """Directories that are not the data directory: of binary logs, of the redo log, of undo tablespaces."""

    binlogs: str | None = None
    redo: str | None = None
    undo: str | None = None


@dataclass(frozen=True)
class DataDirectory:
    """One data directory: path, version of what wrote it, and what a server has to be told about it.

    redo_files: names of the log's files, or of MySQL's directory of them; redo_size: bytes of the first. system: names
    and sizes of the system tablespace's files. undo: how many undo tablespaces MariaDB had. is_clean: the server had
    ended in order. files, directories: names of what is in it.
    """

    path: str
    product: str
    version: str
    uid: int
    redo: Redo | None
    redo_files: tuple[str, ...]
    redo_size: int
    page_size: int
    system: tuple[tuple[str, int], ...]
    undo: int
    is_clean: bool
    backup: Backup | None
    binlogs: BinaryLogs | None
    files: frozenset[str]
    directories: frozenset[str]
    elsewhere: Elsewhere

    @property
    def series(self) -> tuple[int, int]:
        """The first two numbers of the version."""
        return _series_of(self.version)

    @property
    def is_mariadb(self) -> bool:
        """Whether MariaDB wrote it, and not MySQL."""
        return self.product == "mariadb"


def read_data_directory(path: str, elsewhere: Elsewhere, *, has_keys: bool = False) -> DataDirectory:
    """Look at a data directory. Raises MysqlError for anything else.

    has_keys: those of encrypted data are at hand.
    """
    try:
        return _read(path, HeldDirectory(path), elsewhere, has_keys=has_keys)
    except OSError as error:
        raise MysqlError(f"data_directory {path} cannot be read: {error.strerror}.") from error


def check_account(data: DataDirectory, account: Account, *, is_presented: bool = True) -> None:
    """Raise MysqlError where a server of this data directory cannot run as account.

    is_presented: whether the directory is seen as the server will see it, with its owner.
    """
    if account.uid == 0:
        raise MysqlError("A database server does not run as root: name another user for it (server_user), or none.")
    if os.geteuid() not in (0, account.uid):
        raise MysqlError(f"The server must run as {account.name}, which only root can arrange: use become.")
    if is_presented and account.uid != data.uid:
        raise MysqlError(
            f"data_directory {data.path} belongs to user id {data.uid}: present it as owned by {account.name} (owner "
            "of overlay_mount)."
        )


def _read(path: str, held: HeldDirectory, elsewhere: Elsewhere, *, has_keys: bool) -> DataDirectory:
    logs, undo = HeldDirectory(elsewhere.binlogs or path), HeldDirectory(elsewhere.undo or path)
    files, directories = map(frozenset, held.listed())
    _refuse_incomplete(path, files, directories)
    first = _head(held, SYSTEM, PAGE)
    if len(first) < FLAGS.stop:
        raise MysqlError(f"{SYSTEM} of {path} is empty or cut off: use another archive.")
    redo_files, log, size = _redo_log(HeldDirectory(elsewhere.redo or path))
    redo = parse_redo(log)
    backup = parse_backup(lambda _directory, name: _text(held, name) if name in files else "", "")
    binlogs = _binlogs(logs)
    version = _version(held, files, redo, backup, _version_of_logs(logs, binlogs))
    if version is None:
        raise MysqlError(
            f"The version of what wrote {path} is told neither by its redo log nor by its binary logs: use another "
            "archive."
        )
    if not has_keys:
        _refuse_encrypted(path, first, redo)
    return DataDirectory(
        path=path,
        product=product_of(version),
        version=version,
        uid=_owner(path),
        redo=redo,
        redo_files=redo_files,
        redo_size=size,
        page_size=_page_size(path, int.from_bytes(first[FLAGS], "big")),
        system=_system(path, held, files),
        undo=sum(UNDO_FILE.fullmatch(name) is not None for name in undo.listed()[0]),
        is_clean=_is_clean(files, redo, backup, product=product_of(version), version=version),
        backup=backup,
        binlogs=binlogs,
        files=files,
        directories=directories,
        elsewhere=elsewhere,
    )


def _refuse_incomplete(path: str, files: frozenset[str], directories: frozenset[str]) -> None:
    if SYSTEM not in files:
        raise MysqlError(
            f"data_directory {path} has no file {SYSTEM}, which InnoDB cannot do without: name a data directory, or "
            "use an archive that has all of it."
        )
    if "mysql" not in directories:
        raise MysqlError(f"data_directory {path} has no directory mysql: use an archive that has all of it.")


def _series_of(version: str) -> tuple[int, int]:
    first, second = version.split(".")[:2]
    return int(first), int(second)


def _owner(path: str) -> int:
    descriptor = open_inside(os.path.join(path, SYSTEM), os.O_PATH)
    try:
        return os.fstat(descriptor).st_uid
    finally:
        os.close(descriptor)


def _is_clean(files: frozenset[str], redo: Redo | None, backup: Backup | None, *, product: str, version: str) -> bool:
    if backup is not None:
        return backup.is_prepared
    if product == "mysql" and _series_of(version) < (5, 7):
        return False  # nothing tells
    return "ibtmp1" not in files and (redo is None or redo.is_clean is not False)


def _redo_log(held: HeldDirectory) -> tuple[tuple[str, ...], bytes, int]:
    """DataDirectory.redo_files, the beginning of the log's first file, and that file's size."""
    files, directories = held.listed()
    if REDO_DIRECTORY in directories:
        known: tuple[str, ...] = (REDO_DIRECTORY,)
        names = [name for name in held.listed(REDO_DIRECTORY)[0] if re.fullmatch(r"#ib_redo[0-9]{1,18}", name)]
        first = min(names, key=lambda name: int(name[8:]), default=None)
        name = None if first is None else f"{REDO_DIRECTORY}/{first}"
    else:
        known = tuple(sorted(name for name in files if name.startswith(REDO.rstrip("0"))))
        name = REDO if REDO in known else None
    return (known, b"", 0) if name is None else (known, _head(held, name, HEAD), _size(held, name))


def _refuse_encrypted(path: str, first: bytes, redo: Redo | None) -> None:
    place = first.find(CRYPT_MAGIC)
    kind = first[place + len(CRYPT_MAGIC)] if 0 <= place < len(first) - len(CRYPT_MAGIC) else 0
    if kind or (redo is not None and redo.is_encrypted):
        raise MysqlError(
            f"data_directory {path} is encrypted ({'its redo log' if not kind else SYSTEM} says so): give MariaDB's "
            "file of keys (encryption_key_file), or archive it decrypted."
        )


def _page_size(path: str, flags: int) -> int:
    """InnoDB's page size, as the system tablespace's flags tell it (fsp0types.h)."""
    shift = flags & 15 if flags & FULL_CHECKSUM else flags >> 6 & 15  # the former in MariaDB from 10.5 on
    size = 512 << shift if shift else USUAL_PAGE
    if not 4096 <= size <= 65536:
        raise MysqlError(
            f"{SYSTEM} of {path} has pages of {size} bytes, which no server can have: it is damaged, or encrypted. Use "
            "another archive."
        )
    return size


def _system(path: str, held: HeldDirectory, files: frozenset[str]) -> tuple[tuple[str, int], ...]:
    """Files of the system tablespace, which only production's configuration names: by their numbers."""
    numbers = sorted(int(match[1]) for name in files if (match := SYSTEM_FILE.fullmatch(name)))
    if numbers != list(range(1, len(numbers) + 1)):
        has = ", ".join(f"ibdata{number}" for number in numbers)
        raise MysqlError(
            f"data_directory {path} lacks a file of the system tablespace, it has {has}: use an archive that has all."
        )
    return tuple((f"ibdata{number}", _size(held, f"ibdata{number}")) for number in numbers)


def _binlogs(held: HeldDirectory) -> BinaryLogs | None:
    """The server's own binary logs, and not those that it had as a replica."""
    files = frozenset(held.listed()[0])
    for name in sorted(one for one in files if one.endswith(".index"))[:MOST_INDEXES]:
        entries = parse_index(_text(held, name))
        base = name.removesuffix(".index")
        known = sorted_logs(files, base)
        if not entries and not known:
            continue
        head = parse_head(_head(held, known[-1], BINLOG_HEAD)) if known else None
        if head is None and known:
            head = parse_head(_head(held, known[0], BINLOG_HEAD))  # the newest may be cut off
        if head is None or not head.is_relayed:
            listed = tuple(map(os.path.basename, entries))
            return BinaryLogs(held.path, base, tuple(known), listed, is_open=head is not None and head.is_open)
    return None


def _version(
    held: HeldDirectory,
    files: frozenset[str],
    redo: Redo | None,
    backup: Backup | None,
    of_logs: str | None,
) -> str | None:
    said: list[str | None] = [redo.version if redo else None, backup.version if backup else None, of_logs]
    said += [_text(held, name) for name in UPGRADED if name in files]
    found = (VERSION.search(text[:200]) for text in said if text)
    version = next((one.group() for one in found if one), None)
    with suppress(OSError):
        return version or version_of_table(_head(held, TABLE, PAGE))
    return version


def _version_of_logs(held: HeldDirectory, binlogs: BinaryLogs | None) -> str | None:
    if binlogs is None or not binlogs.names:
        return None
    head = parse_head(_head(held, binlogs.names[-1], BINLOG_HEAD))
    return head.version if head else None


def _head(held: HeldDirectory, name: str, size: int) -> bytes:
    with open(held.open(name), "rb") as file:
        return file.read(size)


def _size(held: HeldDirectory, name: str) -> int:
    with open(held.open(name), "rb") as file:
        return os.fstat(file.fileno()).st_size


def _text(held: HeldDirectory, name: str) -> str:
    with suppress(OSError):  # a link, which leads elsewhere
        return _head(held, name, SMALL_FILE).decode("utf-8", "surrogateescape")
    return ""
