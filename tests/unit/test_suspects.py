# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Item lists that no honest archive has, and honest ones that look a little like them."""

from __future__ import annotations

import itertools
import json
import resource
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._borg.items import Item
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._borg.repository import parse_item
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._borg.suspects import ArchiveRefusedError
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._engine import contents as contents_module
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._engine import listing as module
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._engine.database import Database
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._engine.listing import Listing
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._engines.contents import find_databases

from tests.support.forked import forked

CONTROL = (Path(__file__).parent / "recorded" / "pg_control-15-crashed.bin").read_bytes()
PG = "srv/pg"
REMEDY = ": borg create makes no such archive: use another one, and find out who made this."


def item(path: str, kind: str = "-", target: str = "", size: int = 0) -> Item:
    return Item(path, kind, size, "postgres", target)


def cluster(directory: str = PG) -> list[Item]:
    """A data directory as Borg lists it, with a tablespace and WAL elsewhere."""
    prefix = f"{directory}/" if directory else ""
    parents = [] if not directory else [item(directory.split("/")[0], "d"), item(directory, "d")]
    return [
        *parents,
        item(f"{prefix}PG_VERSION", size=3),
        item(f"{prefix}global", "d"),
        item(f"{prefix}global/pg_control", size=len(CONTROL)),
        item(f"{prefix}base", "d"),
        item(f"{prefix}base/5", "d"),
        item(f"{prefix}base/5/1259", size=8192),
        item(f"{prefix}pg_tblspc", "d"),
        item(f"{prefix}pg_tblspc/16400", "l", "/fast"),
        item("fast", "d"),
        item("fast/PG_15_202209061", "d"),
        item("fast/PG_15_202209061/16401", "d"),
        item("fast/PG_15_202209061/16401/2619", size=8192),
        item(f"{prefix}pg_wal", "l", "/wal"),
        item("wal", "d"),
        item("wal/000000010000000000000001", size=1 << 24),
    ]


def found(items: Iterable[Item]) -> tuple[Database, Listing]:
    def read(wanted: Iterable[Item]) -> dict[str, bytes]:
        return {one.path: b"15\n" if one.path.endswith("PG_VERSION") else CONTROL for one in wanted}

    databases, catalogue = find_databases(items, read=read, begin=lambda *_: {})
    (database,) = databases
    assert database.kind == "crash_consistent"
    return database, catalogue


def refuse(items: Iterable[Item]) -> None:
    database, catalogue = found(items)
    catalogue.refuse(database)


@pytest.mark.parametrize("directory", [PG, ""])
def test_what_borg_makes_of_a_cluster_is_fine(directory: str) -> None:
    items = cluster(directory)
    refuse(items)
    database, _catalogue = found(items)
    assert database.paths() == [directory or ".", *(["fast", "wal"] if directory else [])]


def test_overlapping_paths_list_things_twice_and_are_fine() -> None:
    """As `borg create … srv/pg srv` makes it: again, or, what has several names, as a link to itself."""
    items = cluster()
    hard = [item(one.path, "h", one.path) if one.type == "-" else one for one in items]
    refuse([*items, *items])
    refuse([*items, *hard])
    # A directory that is listed after what is in it, or not at all.
    refuse(items[::-1])
    refuse(one for one in items if one.type != "d" or one.path.startswith("fast/PG"))


@pytest.mark.parametrize("path", ["../x", "a/../../etc", "srv/pg/base/..", "/etc/passwd", "/", "a\0b", ".."])
@pytest.mark.parametrize("kind", ["-", "d", "l", "h", "p"])
@pytest.mark.parametrize("at", [0, 7, -1])
def test_a_path_that_leads_out(path: str, kind: str, at: int) -> None:
    items = cluster()
    items.insert(at if at >= 0 else len(items), item(path, kind))
    with pytest.raises(ArchiveRefusedError) as caught:
        refuse(items)
    assert str(caught.value) == f"The archive has the item {path!r}, whose path leads out of it{REMEDY}"


@pytest.mark.parametrize("path", ["a..b", "...", "srv/..pg/x", "srv/pg/base/5/x..", "./srv/x", ".hidden"])
def test_dots_in_names_lead_nowhere(path: str) -> None:
    refuse([*cluster(), item(path)])


# What stands in the place of a directory that has entries: those that a server, or a module, would go through.
@pytest.mark.parametrize("path", ["srv", PG, f"{PG}/global", f"{PG}/base", f"{PG}/base/5", "fast", "wal"])
@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("listed", [True, False], ids=["listed", "implied"])
def test_a_link_in_the_place_of_a_directory(path: str, first: bool, listed: bool) -> None:
    items = [one for one in cluster() if listed or one.path != path]
    link = item(path, "l", "/production")
    with pytest.raises(ArchiveRefusedError) as caught:
        refuse([link, *items] if first else [*items, link])
    said = f"The archive lists {path} as a link to /production, and also entries below it{REMEDY}"
    assert str(caught.value) == said


@pytest.mark.parametrize("path", ["srv", PG, f"{PG}/base", "fast", "wal"])
@pytest.mark.parametrize("kind", ["-", "h", "b", "c", "p", "s", "?"])
def test_anything_else_in_the_place_of_a_directory(path: str, kind: str) -> None:
    with pytest.raises(ArchiveRefusedError, match=f"lists {path} as a directory and as something else"):
        refuse([*cluster(), item(path, kind, "PG_VERSION")])


@pytest.mark.parametrize(
    ("items", "said"),
    [
        ([item(f"{PG}/PG_VERSION", "l", "/etc/hostname")], "PG_VERSION as a file and as a symbolic link"),
        (
            [item(f"{PG}/pg_hba.conf", "l", "/a"), item(f"{PG}/pg_hba.conf")],
            "pg_hba.conf as a symbolic link and as something else",
        ),
        ([item(f"{PG}/x", "l", "/a"), item(f"{PG}/x", "l", "/b")], "x as a symbolic link and as something else"),
        ([item(f"{PG}/pg_wal", "l", "/elsewhere")], "pg_wal as a symbolic link and as something else"),
        # Borg's mount shows under the name of a hard link whatever its target is.
        ([item("l", "l", "/p"), item(f"{PG}/base/6", "h", "l")], "base/6 as another name of l, which is no file"),
        ([item("e", "d"), item(f"{PG}/base/6", "h", "e")], "base/6 as another name of e, which is no file"),
        (
            [item("l", "l", "/p"), item("m", "h", "l"), item(f"{PG}/base/6", "h", "m")],
            "base/6 as another name of m, which is no file",
        ),
    ],
)
def test_one_path_as_two_things(items: list[Item], said: str) -> None:
    with pytest.raises(ArchiveRefusedError, match=f"The archive lists {PG}/{said}"):
        refuse([*cluster(), *items])


@pytest.mark.parametrize("kind", ["b", "c", "?"])
@pytest.mark.parametrize("path", [f"{PG}/disk", f"{PG}/base/5/1259", f"{PG}/log/x", "fast/disk", "wal/a/b/disk"])
def test_a_device_among_the_databases_files(kind: str, path: str) -> None:
    with pytest.raises(ArchiveRefusedError, match=f"has the device node {path} among the database's files, and no"):
        refuse([*cluster(), item(path, kind)])


def test_another_name_of_a_device_is_one_as_well() -> None:
    items = [item("dev/null", "c"), item("dev/sda", "b"), item(f"{PG}/disk", "h", "dev/sda")]
    with pytest.raises(ArchiveRefusedError, match=f"has the device node {PG}/disk"):
        refuse([*cluster(), *items])
    with pytest.raises(ArchiveRefusedError, match=f"has the device node {PG}/again"):
        refuse([*cluster(), *items[:2], item("x/sda", "h", "dev/sda"), item(f"{PG}/again", "h", "x/sda")])


def test_devices_pipes_and_links_elsewhere_are_a_hosts_own() -> None:
    host = [
        *(item(f"dev/{name}", "c") for name in ("null", "zero", "full")),
        *(item(f"var/lib/docker/overlay2/{number}/diff/gone", "c") for number in range(50)),
        item("run/initctl", "p"),
        item("etc", "l", "/usr/etc"),
        item("etc/passwd"),
        item("lib", "l", "usr/lib"),
    ]
    refuse([*host, *cluster()])
    refuse([*cluster(), *host])


@pytest.mark.parametrize(("kind", "what"), [("p", "named pipe"), ("s", "socket")])
@pytest.mark.parametrize(
    "path",
    [
        *(f"{PG}/base/5/2610", f"{PG}/pg_xact/0000", f"{PG}/global/1262", f"{PG}/postgresql.conf"),
        *(f"{PG}/conf.d/x.conf", f"{PG}/recovery.signal", "fast/PG_15_202209061/x", "wal/000000010000000000000002"),
    ],
)
def test_a_pipe_where_the_server_opens_a_file(kind: str, what: str, path: str) -> None:
    with pytest.raises(ArchiveRefusedError, match=f"has a {what} where the server opens a file, {path}: borg"):
        refuse([*cluster(), item(path, kind)])


@pytest.mark.parametrize("path", [f"{PG}/.s.PGSQL.5432", f"{PG}/log/pipe", f"{PG}/pg_log/pipe", f"{PG}/mine"])
def test_what_programs_left_behind_is_harmless(path: str) -> None:
    refuse([*cluster(), item(path, "s")])
    refuse([*cluster(), item(path, "p")])


def test_another_name_of_a_pipe_is_one_as_well() -> None:
    with pytest.raises(ArchiveRefusedError, match=f"has a named pipe where the server opens a file, {PG}/base/6"):
        refuse([*cluster(), item("run/initctl", "p"), item(f"{PG}/base/6", "h", "run/initctl")])


def test_a_hard_link_to_a_device_is_told_by_borgs_own_type() -> None:
    entry: dict[str, Any] = {"path": "x", "size": 0, "user": "root", "linktarget": "dev/sda"}
    kinds = {"c": "crw-rw-rw-", "b": "hrw-rw----", "p": "hrw-rw----", "-": "hrw-r--r--", "l": "lrwxrwxrwx"}
    told = [parse_item(json.dumps({**entry, "type": kind, "mode": mode})).type for kind, mode in kinds.items()]
    assert told == ["c", "b", "p", "h", "l"]


def test_of_other_engines_a_pipe_is_their_own_affair() -> None:
    items = [item("my/ibdata1", size=1), item("my/mysql.ibd"), item("my/pipe.conf", "p"), item("my/disk", "b")]
    databases, catalogue = find_databases(items[:3], read=lambda _: {}, begin=lambda *_: {})
    catalogue.refuse(databases[0])
    databases, catalogue = find_databases(items, read=lambda _: {}, begin=lambda *_: {})
    with pytest.raises(ArchiveRefusedError, match="has the device node my/disk"):
        catalogue.refuse(databases[0])


# -- limits


def databases(number: int) -> Iterator[Item]:
    for position in range(number):
        yield item(f"pg{position}/PG_VERSION", size=3)
        yield item(f"pg{position}/global/pg_control", size=100)


def directories() -> Iterator[Item]:
    return (item(f"d/{number}", "d") for number in itertools.count())


def long_links() -> Iterator[Item]:
    return (item(f"l/{number}", "l", "t" * 50_000) for number in itertools.count())


def markers() -> Iterator[Item]:
    return (item(f"{'d' * 1000}/{number}/PG_VERSION", size=3) for number in itertools.count())


@pytest.mark.parametrize(
    ("items", "said"),
    [
        (lambda: databases(1001), "more than 1000 databases"),
        (directories, "more than 512 MiB of names of directories and links"),
        (long_links, "more than 512 MiB of names of directories and links"),
        (markers, "more than 512 MiB of names of directories and links"),
        (
            lambda: [*cluster(), *(item(f"{PG}/pg_tblspc/{number}", "l", "/x") for number in range(1001))],
            f"more than 1000 tablespaces in {PG}",
        ),
        (
            lambda: [*cluster(), *(item(f"{PG}/base/{number}", "l", "/x") for number in range(1001))],
            f"more than 1000 symbolic links in {PG}",
        ),
        (
            lambda: (item(f"wal{number}/{'0' * 24}", size=1) for number in itertools.count()),
            "more than 10000 directories with archived WAL",
        ),
        (
            lambda: [*(item(f"{PG}/PG_VERSION", size=1 << 20) for _again in range(66)), *cluster()[1:]],
            "more than 64 MiB of small files that tell of databases",
        ),
    ],
)
def test_a_list_without_end_ends_at_a_limit(
    items: Callable[[], Iterable[Item]], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if said.startswith("more than 512"):  # the same in a fiftieth of the time
        monkeypatch.setattr(module, "KEPT_LIMIT", 10 << 20)
        said = said.replace("512", "10")
    with pytest.raises(ArchiveRefusedError) as caught:
        refuse(items())
    assert str(caught.value) == (
        f"The archive has {said}, which is more than is looked through: archive the database on its own, or name "
        "another archive."
    )


def test_what_is_told_of_all_databases_has_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contents_module, "MOST_TOLD", 1 << 20)
    links = [item(f"{PG}/pg_tblspc/{number}", "l", f"/{'x' * 4000}/{number}") for number in range(500)]
    with pytest.raises(ArchiveRefusedError, match="has more than 1 MiB of links and other places of databases"):
        refuse([*cluster(), *links])


def test_an_owners_name_is_as_long_as_one_can_be() -> None:
    line = {"path": "a", "linktarget": "", "mode": "-rw-------", "type": "-", "size": 1, "user": "a" * 60_000}
    assert len(parse_item(json.dumps(line)).user) == 256


def test_names_count_as_much_as_they_take(monkeypatch: pytest.MonkeyPatch) -> None:
    """One character of another plane, and each takes four bytes."""
    monkeypatch.setattr(module, "KEPT_LIMIT", 10 << 20)
    few = (item(f"{number}/\U0001f600{'x' * 3000}", "d") for number in range(1000))  # 12 MB
    with pytest.raises(ArchiveRefusedError, match="more than 10 MiB of names of directories and links"):
        find_databases(few, read=lambda _: {}, begin=lambda *_: {})


def test_links_below_those_of_tablespaces_are_not_kept_again() -> None:
    """Each may lead to as many places as there are directories above it."""
    deep = "/".join("d" * 40)
    lost = [one for one in cluster(deep) if not one.path.startswith("fast")]
    links = [item(f"{deep}/pg_tblspc/q/{number}", "l", f"/{number}/{'t' * 2700}") for number in range(800)]
    free = [item(f"elsewhere/{number}/PG_15_202209061", "d") for number in range(2)]

    def look() -> tuple[float, int]:
        before = _peak()
        database, _catalogue = found([*lost, *links, *free])
        return _peak() - before, len(database.links)

    grown, number = forked(look)
    assert number == 1, "that of the WAL"
    assert grown < 40


def test_directories_as_deep_as_a_path_can_say() -> None:
    """300 tablespaces, 2000 directories deep each: their paths are a MB, the list of those above them a GB."""
    deep = "a/" * 2000
    places = [f"{deep}{number}" for number in range(20000, 20300)]
    links = [item(f"{PG}/pg_tblspc/{number}", "l", f"/{place}") for number, place in enumerate(places, 20000)]
    inside = [item(f"{place}/PG_15_202209061", "d") for place in places]

    def look() -> tuple[float, int]:
        before = _peak()
        items = [one for one in cluster() if not one.path.startswith(f"{PG}/pg_tblspc/")]
        database, catalogue = found([*items, *links, *inside])
        catalogue.refuse(database)
        return _peak() - before, len(database.links)

    grown, number = forked(look)
    assert number == 301, "and that of the WAL"
    assert grown < 200


def test_names_that_are_no_numbers_are_no_tablespaces() -> None:
    """Digits of other scripts, and more of them than Python turns into a number."""
    odd = [item(f"{PG}/pg_tblspc/{name}", "l", "/x") for name in ("²", "١٢٣", "9" * 5000, "12345678901")]
    database, _catalogue = found([*cluster(), *odd])
    assert [one["oid"] for one in database.tablespaces] == [16400]


def test_a_million_items_take_a_bounded_amount_of_memory_and_time() -> None:
    """A few entries are kept for each database: files of an archive cost nothing, directories some hundred bytes."""

    def look() -> tuple[float, float]:
        files = (item(f"home/{number // 1000}/{number}_a_file_of_some_user", size=1) for number in range(1_000_000))
        before, begun = _peak(), time.process_time()
        refuse([*cluster()[:4], *cluster()[4:]])
        refuse(itertools.chain(cluster(), files))
        return _peak() - before, time.process_time() - begun

    grown, seconds = forked(look)
    assert grown < 10
    assert seconds < 60


def test_links_of_many_databases_are_not_gone_through_for_each() -> None:
    """300 databases and 100,000 links: were each link looked at for each database, it took minutes."""
    links = [item(f"usr/share/{number}", "l", "/x") for number in range(100_000)]
    begun = time.process_time()
    contents = {"PG_VERSION": b"15\n", "pg_control": CONTROL}
    databases_found, _catalogue = find_databases(
        [*links, *databases(300)],
        read=lambda wanted: {one.path: contents[one.path.rpartition("/")[2]] for one in wanted},
        begin=lambda *_: {},
    )
    assert len(databases_found) == 300
    assert time.process_time() - begun < 15


def _peak() -> float:
    """MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
