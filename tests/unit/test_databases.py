# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Databases in item lists: one as recorded from borg 1.2.4, the others variations on it."""

from __future__ import annotations

import bz2
import gzip
import lzma
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._borg.items import Item
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._borg.repository import parse_item
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._borg.suspects import ArchiveRefusedError
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._engine.database import (
    Database,
    DatabaseChoiceError,
    Link,
)
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._engine.listing import MOST_FILES, MOST_PROBABLE
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._engines.contents import (
    choose_database,
    find_databases,
)
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._host.compressed import Beginning, beginning
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._postgresql.contents import PostgresqlDatabase

RECORDED = Path(__file__).parent / "recorded"
CRASHED = (RECORDED / "pg_control-15-crashed.bin").read_bytes()
CLOSED = (RECORDED / "pg_control-15-shut-down.bin").read_bytes()
DATA = "tmp/borgside/rec/prod/data"  # where the recorded cluster was
# Of the recorded list: the cluster with a tablespace and pg_wal elsewhere, and two further links.
ITEMS = [parse_item(line) for line in (RECORDED / "borg-1.2-items.jsonl").open()]


def find(items: Iterable[Item], contents: Mapping[str, bytes], **options: Any) -> list[PostgresqlDatabase]:
    """The databases of find_all()."""
    found: list[PostgresqlDatabase] = find_all(items, contents, **options)[0]
    return found


def find_all(items: Iterable[Item], contents: Mapping[str, bytes], **options: Any) -> Any:
    """find_databases with contents by path; an item's size need not be that of its content."""

    def read(wanted: Sequence[Item]) -> dict[str, bytes]:
        return {item.path: contents[item.path] for item in wanted if item.path in contents}

    def begin(wanted: Sequence[Item], size: int) -> dict[str, Beginning]:
        return {item.path: beginning(contents[item.path], size) for item in wanted if item.path in contents}

    return find_databases(items, read=read, begin=begin, **options)


def cluster(directory: str, control: bytes = CRASHED, **others: bytes) -> tuple[list[Item], dict[str, bytes]]:
    """A PostgreSQL data directory with further files, as items and contents; `__` in a name stands for a slash."""
    files = {"PG_VERSION": b"15\n", "global/pg_control": control, "pg_wal/000000010000000000000001": b"WAL"}
    files.update({name.replace("__", "/").replace("_dot_", "."): content for name, content in others.items()})
    prefix = f"{directory}/" if directory else ""
    contents = {prefix + name: content for name, content in files.items()}
    return [file(path, len(content)) for path, content in contents.items()], contents


def file(path: str, size: int = 1) -> Item:
    return Item(path, "-", size, "postgres")


def link(path: str, target: str) -> Item:
    return Item(path, "l", len(target), "postgres", target)


def directory(path: str) -> Item:
    return Item(path, "d", 0, "postgres")


def recorded(items: Iterable[Item] = ITEMS) -> PostgresqlDatabase:
    contents = {
        f"{DATA}/PG_VERSION": b"15\n",
        f"{DATA}/global/pg_control": CRASHED,
        f"{DATA}/postmaster.opts": b'/usr/lib/postgresql/15/bin/postgres "-D" "/tmp/borgside/rec/prod/data"\n',
    }
    (found,) = find(items, contents)
    return found


def test_the_recorded_cluster_with_all_its_parts() -> None:
    found = recorded()
    assert (found.engine, found.version, found.kind) == ("postgresql", "15", "crash_consistent")
    assert (found.data_directory, found.owner, found.state) == (DATA, "postgres", "in production")
    assert found.original_directory == "/tmp/borgside/rec/prod/data"
    assert found.tablespaces == (
        {"oid": 16384, "target": "/tmp/borgside/rec/fast disk", "archived_path": "tmp/borgside/rec/fast disk"},
    )
    assert found.wal_directory == {
        "target": "/tmp/borgside/rec/wal",
        "archived_path": "tmp/borgside/rec/wal",
        "segments": 2,
    }
    assert found.symlinks == (
        Link(f"{DATA}/motd", "/etc/hostname", None),
        Link(f"{DATA}/version", "PG_VERSION", f"{DATA}/PG_VERSION"),
    )
    assert found.paths() == [DATA, "tmp/borgside/rec/fast disk", "tmp/borgside/rec/wal"]
    assert found.size == sum(item.size for item in ITEMS if not item.path.startswith("tmp/elsewhere"))
    assert found.problems == ()
    assert found.as_dict()["control"]["system_identifier"] > 0


def test_what_is_not_archived_is_said() -> None:
    kept = [item for item in ITEMS if not item.path.startswith(("tmp/borgside/rec/fast", "tmp/borgside/rec/wal"))]
    found = recorded(kept)
    assert found.tablespaces[0]["archived_path"] is None
    assert found.wal_directory == {"target": "/tmp/borgside/rec/wal", "archived_path": None, "segments": 0}
    assert found.paths() == [DATA]
    assert found.problems == (
        "Tablespace 16384 (/tmp/borgside/rec/fast disk) is not in the archive.",
        "The archive holds no WAL of it (pg_wal leads to /tmp/borgside/rec/wal).",
    )


@pytest.mark.parametrize("prefix", ["snap/zfs@nightly", "borgmatic/lvm/./x"])
def test_a_snapshots_prefix_is_carried_over_to_tablespaces(prefix: str) -> None:
    items, contents = cluster(f"{prefix}/var/pg", postmaster_dot_pid=b"4711\n/var/pg\n1795352956\n5432\n")
    items += [link(f"{prefix}/var/pg/pg_tblspc/16400", "/fast"), link(f"{prefix}/var/pg/pg_tblspc/16401", "/lost")]
    items += [directory(f"{prefix}/fast/PG_15_202209061"), directory("other/fast/PG_15_202209061")]
    (found,) = find(items, contents)
    assert found.original_directory == "/var/pg"
    assert [tablespace["archived_path"] for tablespace in found.tablespaces] == [f"{prefix}/fast", None]


def test_a_tablespace_of_unknown_prefix_is_found_where_only_one_fits() -> None:
    items, contents = cluster("pg")
    items += [link("pg/pg_tblspc/16400", "/mnt/fast"), directory("snapshot/mnt/fast/PG_15_202209061")]
    assert find(items, contents)[0].tablespaces[0]["archived_path"] == "snapshot/mnt/fast"
    items.append(directory("older/mnt/fast/PG_15_202209061"))
    assert find(items, contents)[0].tablespaces[0]["archived_path"] is None


def test_tablespaces_and_wal_of_an_archive_with_relative_paths() -> None:
    """As `cd /srv/pg && borg create … data fast wal` makes it."""
    items, contents = cluster("data")
    items = [item for item in items if not item.path.startswith("data/pg_wal")]
    items += [link("data/pg_tblspc/16400", "/srv/pg/fast"), directory("fast/PG_15_202209061")]
    items += [link("data/pg_wal", "/srv/pg/wal"), file("wal/000000010000000000000001", 16 << 20)]
    (found,) = find(items, contents)
    assert found.tablespaces[0]["archived_path"] == "fast"
    assert found.wal_directory["archived_path"] == "wal"
    assert found.paths() == ["data", "fast", "wal"]
    items += [link("data/pg_tblspc/16401", "/mnt/fast")]  # two that end alike, and one directory
    assert [one["archived_path"] for one in find(items, contents)[0].tablespaces] == [None, None]


def test_tablespaces_that_are_directories_or_only_in_the_map() -> None:
    items, contents = cluster("pg", backup_label=b"START WAL LOCATION", tablespace_map=b"16401 /with\\ blank\n")
    items += [directory("pg/pg_tblspc/16400/PG_15_202209061"), directory("with blank/PG_15_202209061")]
    assert find(items, contents)[0].tablespaces == (
        {"oid": 16400, "target": None, "archived_path": "pg/pg_tblspc/16400"},
        {"oid": 16401, "target": "/with blank", "archived_path": "with blank"},
    )
    assert find(items, contents)[0].paths() == ["pg", "with blank"]


@pytest.mark.parametrize(
    ("control", "others", "kind", "markers"),
    [
        (CLOSED, {}, "clean_shutdown", ()),
        (CRASHED, {}, "crash_consistent", ()),
        (CRASHED, {"backup_label": b"START"}, "backup_label", ("backup_label",)),
        (
            CRASHED,
            {"backup_label": b"S", "standby_dot_signal": b""},
            "backup_label",
            ("backup_label", "standby.signal"),
        ),
        (CLOSED, {"standby_dot_signal": b""}, "standby", ("standby.signal",)),
        (CRASHED, {"recovery_dot_conf": b"restore_command = 'x'\nstandby_mode = on\n"}, "standby", ("recovery.conf",)),
        (CRASHED, {"recovery_dot_conf": b"restore_command = 'x'\n"}, "crash_consistent", ("recovery.conf",)),
        (CLOSED, {"recovery_dot_signal": b""}, "clean_shutdown", ("recovery.signal",)),
    ],
)
def test_kinds(control: bytes, others: dict[str, bytes], kind: str, markers: tuple[str, ...]) -> None:
    items, contents = cluster("pg", control, **others)
    (found,) = find(items, contents)
    assert (found.kind, found.markers) == (kind, markers)


def test_the_archives_root_can_be_a_data_directory() -> None:
    items, contents = cluster("")
    (found,) = find([directory("."), *items], contents)
    assert (found.data_directory, found.paths(), found.problems) == (".", ["."], ())
    assert found.wal_directory == {"target": None, "archived_path": "pg_wal", "segments": 1}
    assert found.size == sum(item.size for item in items)


@pytest.mark.parametrize(
    ("dotted", "asked"),
    [
        ((), ["pg", "fast"]),
        (("pg", "fast"), ["./pg", "./fast"]),
        (("other",), ["pg", "fast"]),
        (("pg",), None),
    ],
)
def test_paths_that_begin_with_a_dot(dotted: Sequence[str], asked: list[str] | None) -> None:
    items, contents = cluster("pg")
    items += [file("fast/PG_15_202209061/x"), file("other/x"), directory("pg/pg_wal/archive_status")]
    items = [item._replace(is_dotted=item.type == "d" or item.path.startswith(tuple(dotted))) for item in items]
    _found, catalogue = find_databases(items, read=lambda _: contents, begin=lambda *_: {})
    if asked is None:
        with pytest.raises(
            ArchiveRefusedError, match=r"that begin with \./ \(of pg\) and paths that do not \(of fast\)"
        ):
            catalogue.as_mounted(["pg", "fast"])
    else:
        assert catalogue.as_mounted(["pg", "fast"]) == asked


def test_neither_names_nor_halves_make_a_data_directory() -> None:
    """A database's directory has a PG_VERSION, too; a path may look as it likes."""
    items, contents = cluster("ordinary/name")
    items += [file("var/lib/postgresql/15/main/PG_VERSION"), file("var/lib/mysql/readme"), file("x/global/pg_control")]
    assert [found.data_directory for found in find(items, contents)] == ["ordinary/name"]


def test_a_damaged_control_file_is_a_problem_and_no_failure() -> None:
    items, contents = cluster("pg", bytes(len(CRASHED)))
    (found,) = find(items, contents)
    assert (found.kind, found.version, found.control) == ("unknown", "15", None)
    assert "pg_control has the layout 0" in found.problems[0]


def test_lost_content_is_a_problem() -> None:
    items, contents = cluster("pg")
    (found,) = find([*items, file("pg/base/5/1259")._replace(healthy=False)], contents)
    assert found.problems == (
        "Borg has lost content of 1 of its files, as borg check --repair has found, and they cannot be read: "
        "pg/base/5/1259.",
    )


def test_of_many_files_with_lost_content_some_are_named_and_no_name_acts_on_a_terminal() -> None:
    items, contents = cluster("pg")
    lost = [file(f"pg/base/5/{number}\x1b[2J")._replace(healthy=False) for number in range(1000, 1100)]
    (problem,) = find([*items, *lost], contents)[0].problems
    assert problem.startswith("Borg has lost content of 100 of its files, as borg check --repair has found, and")
    named = ", ".join(rf"pg/base/5/{number}\x1b[2J" for number in range(1000, 1005))
    assert problem.endswith(f"cannot be read: {named} and 95 more.")


def test_hard_links_and_repeated_entries_are_read_where_their_content_is() -> None:
    """As borg lists what an rsync --link-dest copy and overlapping roots give."""
    first, contents = cluster("monday")
    second = [Item(item.path.replace("monday", "tuesday"), "h", 0, "postgres", item.path) for item in first]
    again = [Item(item.path, "h", 0, "postgres", item.path) for item in first]
    wanted: list[Item] = []

    def read(items: Sequence[Item]) -> dict[str, bytes]:
        wanted.extend(items)
        return {item.path: contents[item.path] for item in items}

    databases, _catalogue = find_databases([*first, *second, *again], read=read, begin=lambda *_: {})
    assert [(found.data_directory, found.version, found.kind) for found in databases] == [
        ("monday", "15", "crash_consistent"),
        ("tuesday", "15", "crash_consistent"),
    ]
    assert [item.path for item in wanted] == ["monday/PG_VERSION", "monday/global/pg_control"]


def test_only_what_decides_is_read() -> None:
    items, contents = cluster("pg", base__5__PG_VERSION=b"15\n")
    items.append(file("pg/backup_label", 2 * 1024 * 1024))
    wanted: list[Item] = []

    def read(given: Sequence[Item]) -> dict[str, bytes]:
        wanted.extend(given)
        return contents

    find_databases(items, read=read, begin=lambda *_: {})
    assert [item.path for item in wanted] == ["pg/PG_VERSION", "pg/global/pg_control"]


def test_mariadb_mysql_and_mongodb() -> None:
    contents = {
        "maria/mysql_upgrade_info": b"10.11.6-MariaDB",
        "my/mysql_upgrade_info": b"8.0.36",
        "mongo/WiredTiger": b"WiredTiger\nWiredTiger 11.2.0: (November 8, 2022)\n",
        "closed/WiredTiger": b"WiredTiger\nWiredTiger 11.2.0: (November 8, 2022)\n",
    }
    items = [file(path, len(content)) for path, content in contents.items()]
    items += [file("maria/ibdata1"), file("maria/aria_log_control"), file("my/ibdata1"), file("my/mysql.ibd")]
    items += [directory("my/#innodb_redo"), file("mongo/mongod.lock", 5), file("closed/mongod.lock", 0)]
    found = {database.data_directory: database for database in find(items, contents)}
    assert {path: (database.engine, database.version, database.kind) for path, database in found.items()} == {
        "closed": ("mongodb", None, "clean_shutdown"),
        "maria": ("mariadb", "10.11.6", "unknown"),
        "mongo": ("mongodb", None, "crash_consistent"),
        "my": ("mysql", "8.0.36", "unknown"),
    }
    assert found["maria"].markers == ("aria_log_control",)
    assert found["my"].markers == ("mysql.ibd", "#innodb_redo")
    assert found["mongo"].state == "WiredTiger 11.2.0"


PG_DUMP = b"--\n-- PostgreSQL database dump\n--\n\n-- Dumped from database version 15.18 (Debian)\n"


@pytest.mark.parametrize(
    ("name", "content", "engine", "version"),
    [
        ("shop.sql", PG_DUMP, "postgresql", "15.18"),
        ("all.sql", b"--\n-- PostgreSQL database cluster dump\n--\n", "postgresql", None),
        ("shop.dump", b"PGDMP\x01\x0e\x00", "postgresql", None),
        ("toc.dat", b"PGDMP\x01\x0e\x00", "postgresql", None),
        ("shop.sql.gz", gzip.compress(PG_DUMP + bytes(100_000), mtime=0), "postgresql", "15.18"),
        ("shop.sql.bz2", bz2.compress(PG_DUMP), "postgresql", "15.18"),
        ("shop.sql.xz", lzma.compress(PG_DUMP), "postgresql", "15.18"),
        ("shop.sql", b"-- MariaDB dump 10.19\n--\n-- Server version\t10.11.6-MariaDB\n", "mariadb", "10.11.6"),
        ("shop.sql", b"-- MySQL dump 10.13\n--\n-- Server version\t8.0.36\n", "mysql", "8.0.36"),
        ("shop.archive", struct.pack("<I", 0x8199E26D), "mongodb", None),
    ],
)
def test_logical_dumps(name: str, content: bytes, engine: str, version: str | None) -> None:
    (found,) = find([file(f"dumps/{name}", len(content))], {f"dumps/{name}": content})
    assert (found.engine, found.version, found.kind) == (engine, version, "logical_dump")
    assert found.data_directory == f"dumps/{name}"


def test_dumps_are_read_only_where_there_is_nothing_better_and_only_the_largest() -> None:
    items, contents = cluster("pg")
    assert [found.kind for found in find([*items, file("a.sql")], contents)] == ["crash_consistent"]
    many = [file(f"{number}.sql", number) for number in range(1, 2000)]
    others = [file(f"{number}", number) for number in range(1, 2000)]
    read: list[str] = []

    def begin(wanted: Sequence[Item], _size: int) -> dict[str, Beginning]:
        read.extend(item.path for item in wanted)
        return {}

    find_databases([*many, *others, directory("x"), file("empty.sql", 0)], read=lambda _: {}, begin=begin)
    number = MOST_FILES - MOST_PROBABLE
    # In the archive's order; of files that are as large the first.
    named = [f"{number}.sql" for number in range(2000 - MOST_PROBABLE, 2000)]
    assert read[:MOST_PROBABLE] == named
    assert sorted(read[MOST_PROBABLE:]) == ["1997", "1998", "1999"][-number:]
    read.clear()
    few = others[:MOST_FILES]
    find_databases(few, read=lambda _: {}, begin=begin)
    assert read == [item.path for item in few]


@pytest.mark.parametrize(
    ("gone", "there"), [("PG_VERSION", []), ("global/pg_control", []), ("global/pg_control", [link("pg/global", "/x")])]
)
def test_a_data_directory_that_lacks_something_is_told_as_such(gone: str, there: list[Item]) -> None:
    items, _contents = cluster("pg", base__5__PG_VERSION=b"15\n")
    items = [
        *(item for item in items if item.path != f"pg/{gone}"),
        directory("pg/base/5"),
        directory("pg/base"),
        *there,
    ]
    found, catalogue = find_databases(items, read=lambda _: {}, begin=lambda _items, _size: {})
    assert found == []
    assert [str(other) for other in catalogue.others] == [
        f"pg is a data directory of PostgreSQL that lacks {gone}: use an archive that has all of its files, and none "
        "of them behind a link."
    ]


def test_archived_wal_alone_is_told_and_not_read() -> None:
    """Whoever names it as log_source does not wait for that."""
    items = [directory("srv/wal"), *(file(f"srv/wal/{number:024X}", 16 << 20) for number in range(1, 100))]
    looked_at: list[Item] = []

    def begin(wanted: Sequence[Item], _limit: int) -> dict[str, Beginning]:
        looked_at.extend(wanted)
        return {}

    found, catalogue = find_databases(items, read=lambda _: {}, begin=begin)
    assert (found, looked_at) == ([], [])
    with pytest.raises(DatabaseChoiceError) as caught:
        choose_database(found, archive="a", others=catalogue.others)
    assert str(caught.value) == (
        "Archive a holds no data directory to start a server on. srv/wal is archived WAL of PostgreSQL: start a "
        "session from an archive of the data directory, with this as log_source."
    )


def test_a_link_without_what_it_leads_to_is_told() -> None:
    """As `borg create` makes it of a data directory that is a link."""
    found, catalogue = find_databases([link("main", "/data/pg")], read=lambda _: {}, begin=lambda *_: {})
    with pytest.raises(DatabaseChoiceError) as caught:
        choose_database(found, archive="a", others=catalogue.others)
    assert str(caught.value) == (
        "Archive a holds no data directory to start a server on. main is a symbolic link to /data/pg, without what is "
        "there: archive the directory that it leads to (borg create follows no links)."
    )


@pytest.mark.parametrize("path", ["stdin", "borgmatic/postgresql_databases/localhost/shop", "x/mysql_databases/h/all"])
def test_dumps_whose_names_say_nothing_are_looked_at_first(path: str) -> None:
    items = [file(path, len(PG_DUMP)), *(file(f"{number}", 1 << 20) for number in range(100))]
    (found,) = find(items, {path: PG_DUMP})
    assert (found.data_directory, found.version) == (path, "15.18")


@pytest.mark.parametrize("content", [b"select 1;", b"\x1f\x8bbroken", b"BZhbroken", b""])
def test_other_files_are_no_dumps(content: bytes) -> None:
    assert find([file("a.sql")], {"a.sql": content}) == []


def database(path: str, engine: str = "postgresql", kind: str = "crash_consistent") -> PostgresqlDatabase:
    return PostgresqlDatabase(engine=engine, data_directory=path, kind=kind, version="15")


def test_the_only_database_needs_no_choice() -> None:
    only = database("var/pg")
    assert choose_database([only, database("a.sql", kind="logical_dump")], archive="a") is only


@pytest.mark.parametrize("given", ["var/pg", "/var/pg/", "./var/pg"])
def test_a_choice_by_directory(given: str) -> None:
    wanted = database("var/pg")
    assert choose_database([database("srv/pg"), wanted], archive="a", data_directory=given) is wanted


def test_a_choice_by_engine() -> None:
    wanted = database("var/pg")
    assert choose_database([database("var/my", "mysql"), wanted], archive="a", engine="postgresql") is wanted


@pytest.mark.parametrize(
    ("databases", "engine", "data_directory", "says"),
    [
        ([], "auto", None, "Archive a holds no database: nothing in it marks a data directory"),
        (
            [database("a.sql", kind="logical_dump")],
            "auto",
            None,
            "Archive a holds only logical dumps, no data directory to start a server on: a.sql (postgresql 15, logical",
        ),
        (
            [database("x"), database("y")],
            "auto",
            None,
            "Archive a holds 2 databases: x (postgresql 15, crash consistent); y (postgresql 15, crash consistent). "
            "Choose one with data_directory.",
        ),
        ([database("x")], "auto", "/z", "Archive a has no data directory /z. It holds: x (postgresql 15, crash"),
        ([database("x")], "mysql", None, "Archive a has no mysql data directory. It holds: x (postgresql 15, crash"),
    ],
)
def test_what_cannot_be_chosen_is_answered_with_what_there_is(
    databases: list[PostgresqlDatabase], engine: str, data_directory: str | None, says: str
) -> None:
    with pytest.raises(DatabaseChoiceError) as caught:
        choose_database(databases, archive="a", engine=engine, data_directory=data_directory)
    assert str(caught.value).startswith(says)
    assert caught.value.details["databases"] == [database.as_dict() for database in databases]


def test_archived_wal_is_found_however_it_is_kept() -> None:
    items, contents = cluster("pg")
    segment = "000000010000000000000001"
    items += [directory("pg/pg_wal"), file(f"pg/pg_wal/{segment}")]
    items += [file(f"srv/wal/{segment}"), file("srv/wal/000000010000000000000002.gz"), file("srv/wal/00000002.history")]
    items += [
        file(f"barman/wals/{segment[:16]}/{segment}"),
        file("barman/wals/0000000100000001/000000010000000100000000"),
    ]
    items += [file(f"rest/15-1/{segment[:16]}/{segment}-{'0f' * 20}.zst")]
    found, catalogue = find_databases(items, read=lambda _items: contents, begin=lambda *_: {})
    assert catalogue.log_archives(found) == [
        {"path": "barman/wals", "segments": 2, "first": segment, "last": "000000010000000100000000"},
        {"path": "rest/15-1", "segments": 1, "first": segment, "last": segment},
        {"path": "srv/wal", "segments": 2, "first": segment, "last": "000000010000000000000002"},
    ]


def test_archived_wal_outside_of_the_archive_is_none() -> None:
    """It would be mounted by its path, which leads into another session."""
    items = [file(f"{place}/000000010000000000000001", 16 << 20) for place in ("../../other/merged/wal", "srv/wal")]
    _found, catalogue = find_databases(items, read=lambda _: {}, begin=lambda *_: {})
    assert [one["path"] for one in catalogue.log_archives([])] == ["srv/wal"]


def test_directories_above_what_links_lead_to() -> None:
    """Each as closed as it was, but for those on the way to what every server of the kind reaches."""
    links = {"srv/pg/pg_wal": "disk/wal", "srv/pg/base/1": "home/bob/db", "srv/pg/base/2": "srv/closed/db"}
    symlinks = tuple(Link(path, f"/{place}", place) for path, place in links.items() if "base" in path)
    database = Database("postgresql", "srv/pg", "unknown", links=links, symlinks=symlinks)
    assert database.directories() == ["home", "home/bob", "srv/closed"]
    deep = tuple(Link(f"srv/pg/base/{one}", "x", f"{one}/" + "d/" * 2000 + "x") for one in range(3))
    with pytest.raises(ArchiveRefusedError, match="more than 5000 directories above what links lead to"):
        replace(database, symlinks=deep).directories()


def test_a_lack_of_wal_is_told_where_a_start_does_not_know_where_it_is() -> None:
    items, contents = cluster("pg")
    items = [item for item in items if not item.path.startswith("pg/pg_wal")]
    assert find(items, contents)[0].problems == ("The archive holds no WAL of it.",)
    items.append(file("a/wal/000000010000000000000001"))
    assert find(items, contents)[0].problems == ()
    items.append(file("b/wal/000000010000000000000001"))
    assert find(items, contents)[0].problems == (
        "The archive holds no WAL of it but in several archives of WAL (a/wal, b/wal): name one, such as "
        "log_source=archive:/a/wal.",
    )


@pytest.mark.parametrize("prefix", ["", "mnt/snap/"])
def test_debians_configuration_is_mounted_with_the_data(prefix: str) -> None:
    items, contents = cluster(f"{prefix}var/lib/postgresql/15/main")
    (without,) = find(items, contents)
    assert without.configuration_directory is None
    items.append(file(f"{prefix}etc/postgresql/15/main/postgresql.conf"))
    (found,) = find(items, contents)
    assert found.paths() == [f"{prefix}var/lib/postgresql/15/main", f"{prefix}etc/postgresql/15/main"]


def segment(identifier: int) -> bytes:
    """How a segment of WAL of that cluster begins."""
    return struct.pack("<HHIQIIQ", 0xD110, 2, 1, 1 << 24, 0, 0, identifier)


FIRST = "000000010000000000000001"
IDENTIFIER = struct.unpack("<Q", CLOSED[:8])[0]


def moved_wal(*places: tuple[str, int, bool]) -> tuple[list[Item], dict[str, bytes]]:
    """A cluster whose pg_wal is elsewhere, and places with WAL of a cluster: as a server has it, or as an archive."""
    items, contents = cluster("pg", CLOSED)
    items = [item for item in items if "pg_wal" not in item.path] + [link("pg/pg_wal", "/wal")]
    for place, identifier, is_servers in places:
        contents[f"{place}/{FIRST}"] = segment(identifier)
        items += [file(f"{place}/{FIRST}", 16 << 20), *([directory(f"{place}/archive_status")] if is_servers else [])]
    return items, contents


def test_wal_that_is_elsewhere_is_known_by_its_cluster() -> None:
    places = [("volumes/a", IDENTIFIER, True), ("volumes/b", IDENTIFIER + 1, True), ("archived", IDENTIFIER, False)]
    (found,) = find(*moved_wal(*places))
    assert found.links == {"pg/pg_wal": "volumes/a"}
    assert (found.paths(), found.problems, found.refusals) == (["pg", "volumes/a"], (), ())


def test_archived_wal_is_not_taken_for_a_servers_own() -> None:
    """It may end before the data do."""
    (found,) = find(*moved_wal(("archived", IDENTIFIER, False)))
    assert found.links == {}
    assert found.problems == (
        "The archive holds no WAL of it (pg_wal leads to /wal), unless it is one of archived: then say so (relocated).",
    )


def test_the_wal_of_another_data_directory_is_not_taken() -> None:
    items, contents = moved_wal()
    others, more = cluster("copy", CLOSED)
    more[f"copy/pg_wal/{FIRST}"] = segment(IDENTIFIER)
    found = find([*items, *others, directory("copy/pg_wal/archive_status")], {**contents, **more})
    assert [one.links for one in found] == [{}, {}]


def moved_tablespaces(links: dict[int, str], places: dict[str, str]) -> tuple[list[Item], dict[str, bytes]]:
    """A cluster with the databases 1 and 5, these tablespaces, and places with files of one database each."""
    items, contents = cluster("pg", CLOSED)
    items += [directory("pg/base/1"), directory("pg/base/5")]
    items += [link(f"pg/pg_tblspc/{oid}", target) for oid, target in links.items()]
    items += [directory(f"{place}/PG_15_202209061") for place in places]
    items += [directory(f"{place}/PG_15_202209061/{oid}") for place, oid in places.items() if oid]
    return items, contents


@pytest.mark.parametrize(
    ("places", "place"),
    [
        ({"volumes/x": "5"}, "volumes/x"),
        ({"volumes/x": "5", "volumes/y": "77"}, "volumes/x"),  # of another cluster, by its database
        ({"volumes/y": "77"}, None),
        ({"volumes/empty": ""}, None),
        ({"other/pg_tblspc/16400": "5"}, None),
    ],
)
def test_a_tablespace_that_is_elsewhere_is_known_by_its_databases(places: dict[str, str], place: str | None) -> None:
    (found,) = find(*moved_tablespaces({16400: "/fast"}, places))
    assert found.tablespaces[0]["archived_path"] == place
    assert found.refusals == ()
    assert len(found.problems) == (place is None)


def test_tablespaces_that_may_be_several_places_are_for_the_user_to_say() -> None:
    made = moved_tablespaces({16400: "/fast", 16401: "/slow"}, {"volumes/x": "5", "volumes/y": "1"})
    (found,) = find(*made)
    assert [one["archived_path"] for one in found.tablespaces] == [None, None]
    assert found.refusals[0].startswith(
        "Tablespace 16400 is a link to /fast, which is not there in the archive, and it may be any of these "
        "directories: volumes/x, volumes/y. Say which with relocated, such as "
    )
    (found,) = find(*made, relocated={"/fast/": "/volumes/y", "/slow": ""})
    assert [one["archived_path"] for one in found.tablespaces] == ["volumes/y", None]
    assert (found.problems, found.refusals) == (("Tablespace 16401 (/slow) is not in the archive.",), ())
    (found,) = find(*made, relocated={"/": "volumes"})
    assert [one.partition(",")[0] for one in found.refusals] == ["relocated says that / is in volumes"] * 2
    (found,) = find(*made, relocated={"/fast": "volumes/x", "/slow": "volumes/y", "/typo": "volumes/y"})
    assert "relocated names /typo, and no link of pg leads there" in found.problems[-1]


def test_oids_of_databases_are_those_of_the_catalogue_too() -> None:
    """One whose own tablespace it is has no directory in base."""
    page = bytearray(8192)
    struct.pack_into("<H", page, 12, 28)
    struct.pack_into("<I", page, 24, 8000 | 1 << 15 | 28 << 17)
    page[8000 + 22] = 24
    struct.pack_into("<I", page, 8024, 77)
    items, contents = moved_tablespaces({16400: "/fast"}, {"volumes/y": "77"})
    items.append(file("pg/global/1262", 8192))
    (found,) = find(items, {**contents, "pg/global/1262": bytes(page)})
    assert found.tablespaces[0]["archived_path"] == "volumes/y"


def test_what_was_below_the_data_directory_is_below_it() -> None:
    items, contents = cluster("volumes/pg/_data", postmaster_dot_opts=b'/bin/postgres "-D" "/var/lib/data"\n')
    items += [link("volumes/pg/_data/pg_tblspc/1", "/var/lib/data/fast")]
    items += [directory(f"{place}/PG_15_202209061/5") for place in ("volumes/pg/_data/fast", "elsewhere")]
    assert find(items, contents)[0].tablespaces[0]["archived_path"] == "volumes/pg/_data/fast"


@pytest.mark.parametrize("target", ["/a", "../../../../../etc/shadow", "/", "/srv", ".", "/nowhere", "x\0y"])
def test_links_that_lead_round_or_out_are_not_followed(target: str) -> None:
    items, contents = cluster("srv/pg")
    items += [directory("srv/pg/base/1"), link("srv/pg/base/5", target), link("a", "/b"), link("b", "a")]
    (found,) = find(items, contents)
    assert found.links == {}
    assert found.paths() == ["srv/pg"]


def test_links_of_what_a_link_leads_to_are_followed() -> None:
    items, contents = cluster("pg")
    items += [link("pg/base", "/ssd/base"), directory("ssd/base/1"), link("ssd/base/5", "/more/5"), directory("more/5")]
    items += [link("pg/log", "/var/log/pg"), directory("var/log/pg")]  # which no session needs
    (found,) = find(items, contents)
    assert found.links == {"pg/base": "ssd/base", "ssd/base/5": "more/5"}
    assert found.paths() == ["pg", "more/5", "ssd/base"]


@pytest.mark.parametrize("name", ["/var/lib/15/main", "var/lib/15/main/", "disk/pg", "/srv/named"])
def test_a_data_directory_has_all_its_names(name: str) -> None:
    items, contents = cluster("disk/pg", postmaster_dot_pid=b"4711\n/srv/named\n1795352956\n5432\n")
    items += [link("var/lib/15", "/mnt/15"), link("mnt/15/main", "../../disk/pg"), *cluster("other")[0]]
    contents.update(cluster("other")[1])
    found, catalogue = find_databases(items, read=lambda _items: contents, begin=lambda *_: {})
    assert choose_database(found, archive="a", data_directory=name, places=catalogue.places).data_directory == "disk/pg"


@pytest.mark.parametrize(
    ("configuration", "options", "is_found"),
    [
        (b"data_directory = '/var/lib/main'\n", b"", True),
        (b"  Data_Directory '/var/lib/main' # here\n", b"", True),
        (b"#data_directory = '/var/lib/main'\n", b"", False),
        (b"data_directory = '/other'\n", b"", False),
        (b"", b'/bin/postgres "-D" "/x" "-c" "config_file=/etc/db/postgresql.conf"\n', True),
    ],
)
def test_a_configuration_says_which_data_directory_it_is_of(
    configuration: bytes, options: bytes, is_found: bool
) -> None:
    items, contents = cluster("disk/pg", postmaster_dot_opts=options)
    items += [link("var/lib/main", "/disk/pg"), file("etc/db/postgresql.conf", len(configuration) or 1)]
    (found,) = find(items, {**contents, "etc/db/postgresql.conf": configuration})
    assert found.configuration_directory == ("etc/db" if is_found else None)


def test_the_configuration_of_another_cluster_of_that_name_is_not_taken() -> None:
    items, contents = cluster("mnt/15/main")
    others, more = cluster("var/lib/postgresql/15/main")
    text = b"data_directory = '/var/lib/postgresql/15/main'\n"
    items += [*others, file("etc/postgresql/15/main/postgresql.conf", len(text))]
    found = find(items, {**contents, **more, "etc/postgresql/15/main/postgresql.conf": text})
    assert [one.configuration_directory for one in found] == [None, "etc/postgresql/15/main"]
