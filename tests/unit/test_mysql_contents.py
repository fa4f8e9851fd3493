# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Data directories of MariaDB and MySQL in item lists, told by headers such as servers write them."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._engine.database import Link
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._mysql.contents import MysqlDatabase
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._mysql.option_file import (
    MysqlError,
    groups_of,
    parse_options,
    read_options,
    render_options,
)
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._mysql.redo import parse_redo
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._mysql.settings import carried, check_settings

from tests.unit.test_databases import directory, file, find, find_all, link

DATA = "var/lib/mysql"


def redo(creator: str, *, checkpoint: int = 44728, end: int = 44728, magic: bytes = b"Phys") -> bytes:
    """The head of ib_logfile0 as MariaDB 10.8 and newer write it; the second checkpoint is the newer one."""
    head = bytearray(12 << 10)
    head[:4], head[16 : 16 + len(creator)] = magic, creator.encode()
    for place, numbers in ((4096, (100, 90)), (8192, (checkpoint, end))):
        head[place : place + 16] = b"".join(number.to_bytes(8, "big") for number in numbers)
    return bytes(head)


def told(contents: dict[str, bytes], *others: Any, **options: Any) -> MysqlDatabase:
    """What is told of a data directory with these files, and ibdata1 and the directory mysql beside them."""
    items = [
        file(path if "/" in path and path.startswith("/") else f"{DATA}/{path}", len(content) or 1)
        for path, content in contents.items()
    ]
    items += [file(f"{DATA}/ibdata1"), file(f"{DATA}/mysql/db.frm"), *others]
    (found,) = find(items, {f"{DATA}/{path}": content for path, content in contents.items()}, **options)
    assert isinstance(found, MysqlDatabase)
    return found


@pytest.mark.parametrize(
    ("contents", "known"),
    [
        ({"ib_logfile0": redo("MariaDB 10.11.19")}, ("mariadb", "10.11.19", "clean_shutdown")),
        ({"ib_logfile0": redo("MariaDB 10.11.19", end=50000)}, ("mariadb", "10.11.19", "crash_consistent")),
        ({"ib_logfile0": redo("MariaDB 11.8.9"), "ibtmp1": b"x"}, ("mariadb", "11.8.9", "crash_consistent")),
        ({"ib_logfile0": redo("MariaDB 10.5.23", magic=b"PHYS")}, ("mariadb", "10.5.23", "clean_shutdown")),
        ({"#innodb_redo/#ib_redo9": redo("MySQL 9.7.4", magic=b"\0\0\0\6")}, ("mysql", "9.7.4", "clean_shutdown")),
        ({"ib_logfile0": redo("MySQL 5.7.44", magic=b"\0\0\0\1")}, ("mysql", "5.7.44", "clean_shutdown")),
        ({"ib_logfile0": bytes(9000), "mysql_upgrade_info": b"5.6.24"}, ("mysql", "5.6.24", "unknown")),
        ({"aria_log_control": b"x"}, ("mariadb", None, "unknown")),
        ({}, ("mysql", None, "unknown")),
    ],
)
def test_version_and_kind_come_from_the_redo_log(
    contents: dict[str, bytes], known: tuple[str, str | None, str]
) -> None:
    found = told(contents)
    assert (found.engine, found.version, found.kind) == known
    assert found.refusals == ()
    assert any("is not known" in problem for problem in found.problems) == (known[1] is None)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("full-backuped", "backup_unprepared"), ("log-applied", "backup_prepared"), ("full-prepared", "backup_prepared")],
)
def test_a_backup_is_known_by_what_its_program_notes(kind: str, expected: str) -> None:
    found = told(
        {
            "xtrabackup_checkpoints": f"backup_type = {kind}\nfrom_lsn = 0\nto_lsn = 44728\n".encode(),
            "xtrabackup_info": b"tool_name = mariadb-backup\nserver_version = 10.11.19-MariaDB-0+deb12u1\n",
            "xtrabackup_binlog_info": b"mysql-bin.000004\t4672531\t0-1-12\n",
            "ib_logfile0": redo("Backup 10.11.19"),
        }
    )
    assert (found.kind, found.version, found.engine) == (expected, "10.11.19", "mariadb")
    assert found.backup is not None
    assert (found.backup["file"], found.backup["position"], found.backup["gtid"]) == (
        "mysql-bin.000004",
        4672531,
        "0-1-12",
    )


def test_backups_that_cannot_be_started_are_refused_with_the_command() -> None:
    information = {"mariadb_backup_info": b"tool_name = mariadb-backup\n"}
    incremental = told({**information, "mariadb_backup_checkpoints": b"backup_type = incremental\n"})
    assert "is an incremental backup of mariadb-backup: apply it" in incremental.refusals[0]
    pending = told({**information, "mariadb_backup_checkpoints": b"backup_type = full-backuped\n", "shop/t.ren": b"x"})
    assert "during which tables were renamed or dropped (var/lib/mysql/shop/t.ren): prepare it" in pending.refusals[0]


def test_what_is_missing_or_of_others_is_told() -> None:
    (found,) = find([file(f"{DATA}/ibdata1")], {})
    assert "lacks the directory mysql" in found.refusals[0]
    found = told(
        {"grastate.dat": b"x"}, directory(f"{DATA}/#rocksdb"), directory("etc/mysql"), file("etc/mysql/my.cnf")
    )
    assert found.markers == ("grastate.dat", "#rocksdb")
    assert [text for text in found.problems if "Galera" in text]
    assert [text for text in found.problems if "MyRocks" in text]
    assert found.configuration_directory == "etc/mysql"


def test_tables_elsewhere_are_mounted_with_their_directory() -> None:
    contents = {"shop/t.isl": b"/srv/fast/shop/t.ibd", "shop/gone.isl": b"/srv/gone/shop/gone.ibd\n"}
    others = [
        file("srv/fast/shop/t.ibd"),
        link(f"{DATA}/shop/m.MYD", "/srv/slow/shop/m.MYD"),
        file("srv/slow/shop/m.MYD"),
        link(f"{DATA}/other", "/srv/db/other"),
        file("srv/db/other/x.ibd"),
    ]
    found = told(contents, *others)
    assert found.links == {
        f"{DATA}/shop/m.MYD": "srv/slow/shop",
        f"{DATA}/other": "srv/db/other",
        f"{DATA}/shop/t.isl": "srv/fast/shop",
    }
    assert found.paths() == [DATA, "srv/db/other", "srv/fast/shop", "srv/slow/shop"]
    assert [one["archived_path"] for one in found.external] == [None, "srv/fast/shop/t.ibd"]
    assert found.symlinks[1] == Link(f"{DATA}/shop/m.MYD", "/srv/slow/shop/m.MYD", "srv/slow/shop/m.MYD")
    assert ["shop/gone.isl leads to /srv/gone" in text for text in found.problems if "leads to" in text] == [True]


def test_relocated_says_where_a_table_is() -> None:
    found = told({"shop/t.isl": b"/srv/fast/shop/t.ibd"}, file("vol/shop/t.ibd"), relocated={"/srv/fast": "vol"})
    assert found.links == {f"{DATA}/shop/t.isl": "vol/shop"}


@pytest.mark.parametrize("head", [b"", b"Phys", bytes(4096), b"\x7fELF" + bytes(9000), redo("Nobody 1.2.3")])
def test_what_is_no_redo_log(head: bytes) -> None:
    assert parse_redo(head) is None


def test_an_encrypted_redo_log() -> None:
    found = parse_redo(redo("MariaDB 10.11.19", magic=bytes([ord("P") | 0x80]) + b"hys"))
    assert found is not None
    assert found.is_encrypted


def test_option_files_are_read_as_servers_do() -> None:
    texts = {
        "/etc/my.cnf": '[client]\nport=1\n[mysqld] # server\nsql-mode = "ANSI # no"  # yes\n'
        "!includedir /etc/d/\nskip-log-bin\n",
        "/etc/d/b.cnf": "[mariadb-10.11]\nloose-innodb_page_size=8k\nskip-name-resolve\n",
        "/etc/d/a.cnf": "[mysqld]\ninnodb-page-size=4k\ntmpdir='/a b'\n",
    }
    names = {"/etc/d": ["b.cnf", "a.cnf", "c.txt"]}
    read = partial(read_options, read=texts.get, listed=lambda name: names.get(name, []))
    found = read("/etc/my.cnf", groups=groups_of("mariadb", (10, 11)))
    assert found == {
        "sql_mode": "ANSI # no",
        "log_bin": "OFF",
        "innodb_page_size": "8k",
        "skip_name_resolve": "ON",
        "tmpdir": "/a b",
    }
    for product, series in (("mariadb", (10, 5)), ("mysql", (10, 11))):  # another's group
        assert "skip_name_resolve" not in read("/etc/my.cnf", groups=groups_of(product, series))


def test_what_is_kept_of_production_is_what_it_had() -> None:
    archived = {"sql_mode": "", "default_storage_engine": "rocksdb", "lc_time_names": "x" * 5000, "tmpdir": "/a"}
    assert carried(archived) == {"sql_mode": ""}
    assert carried({"default_storage_engine": "MyISAM"}) == {"default_storage_engine": "MyISAM"}


@pytest.mark.parametrize(
    "name",
    [
        *(
            "skip-grant-tables",
            "skip-grant-tab",
            "SKIP_GRANT",
            "loose-skip-grant-tables",
            "plugin-di",
            "secure-file-pri",
        ),
        *("autoset-plugin-dir", "init-fil", "maximum-port", "wsrep_provider", "event-sched", "bind_addres", "extra-p"),
        *("persisted-globals-l", "enable-local-infile", "skip_slave", "loose_group_replication_start", "tc-heur"),
    ],
)
def test_settings_that_undo_the_isolation_are_refused_however_they_are_written(name: str) -> None:
    of = ("mysql", (9, 7)) if "persisted" in name or "group" in name else ("mariadb", (10, 11))
    with pytest.raises(MysqlError, match=f"settings: {name} cannot be set"):
        check_settings({name: "x"}, *of)


@pytest.mark.parametrize("value", ["plain", "a # b", "it's", r"C:\new", 'a"b', " blank "])
def test_what_is_written_is_read_again(value: str) -> None:
    groups = groups_of("mysql", (9, 7))
    assert parse_options(render_options({"x": {"tmpdir": value}}), groups=groups) == [("tmpdir", value)]


@pytest.mark.parametrize("value", ["a\nb", 'ends with "', "a\0b", f"{'x' * 4080}skip_grant_tables", "\\" * 2001])
def test_what_no_option_file_can_hold(value: str) -> None:
    with pytest.raises(MysqlError, match="tmpdir has a value that no option file can hold"):
        render_options({"x": {"tmpdir": value}})


@pytest.mark.parametrize(
    ("logs", "undo"),
    [("srv/redo/ib_logfile0", "srv/undo/undo001"), ("srv/redo/#innodb_redo/#ib_redo7", "srv/redo/undo_001")],
)
def test_redo_and_undo_logs_elsewhere_are_known_where_there_is_one_of_each(logs: str, undo: str) -> None:
    items = [file(f"{DATA}/ibdata1"), file(f"{DATA}/mysql/db.frm"), file(logs), file(undo)]
    items += [directory(path) for path in ("srv/redo", "srv/redo/#innodb_redo") if logs.startswith(path)]
    (found,), _listing = find_all(items, {})
    of_undo = undo.rpartition("/")[0]
    assert found.links == {"srv/redo/ib_logfile0": "srv/redo", f"{of_undo}/undo001": of_undo}
    assert found.paths() == sorted({DATA, "srv/redo", of_undo}, key=lambda path: (path != DATA, path))
    (found,), _listing = find_all([*items, file("old/ib_logfile0")], {})
    assert [one for one in found.problems if "which of these is its own: old, srv/redo" in one]
    assert set(found.links) == {f"{of_undo}/undo001"}


def test_binary_logs_elsewhere_are_known_by_their_index() -> None:
    """Debian's configuration proposes /var/log/mysql; what is archived beside it is no server's."""
    logs = {
        "var/log/mysql/mysql-bin.index": b"/var/log/mysql/mysql-bin.000007\n",
        "srv/old.index": b"/else/old.000001\n",
    }
    items = [file(f"{DATA}/ibdata1"), file(f"{DATA}/mysql/db.frm"), file("var/log/mysql/mysql-bin.000007")]
    items += [file("dumps/shop.20261127"), *(file(path, len(content)) for path, content in logs.items())]
    (found,), listing = find_all(items, logs)
    assert found.links == {"var/log/mysql/mysql-bin.index": "var/log/mysql"}
    assert found.paths() == [DATA, "var/log/mysql"]
    known = {"path": "var/log/mysql", "segments": 1, "first": "mysql-bin.000007", "last": "mysql-bin.000007"}
    assert listing.log_archives([found]) == [known]
