# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is planned for a copied data directory. No server is needed: a skeleton with a recorded pg_control will do."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._engine.links import (
    Link,
    archived_places,
    find_links,
    place_within,
    resolve_within,
)
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._engine.steps import Step, apply_steps
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._host.command import Account
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._postgresql.backup import readable_label
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._postgresql.cluster import (
    PostgresError,
    read_data_directory,
)
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._postgresql.detach import (
    NEEDED,
    SET_ASIDE,
    parse_tablespace_map,
    plan_clone,
)
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._postgresql.wal import Start

CONTROL = Path(__file__).parent / "recorded" / "pg_control-15-shut-down.bin"
VERSION_DIRECTORY = "PG_15_202209061"


@pytest.fixture(name="data")
def _data(tmp_path: Path) -> Path:
    """A data directory at srv/pg/data of the tree, as an archive of a cleanly closed cluster has it."""
    data = tmp_path / "tree" / "srv" / "pg" / "data"
    for name in ("base/1", "global", "pg_wal", *NEEDED):
        (data / name).mkdir(parents=True, exist_ok=True)
    data.chmod(0o700)
    (data / "PG_VERSION").write_text("15\n")
    shutil.copy(CONTROL, data / "global" / "pg_control")
    (data / "pg_wal" / first_segment(data)).touch()
    return data


def first_segment(data: Path) -> str:
    control = read_data_directory(str(data)).control
    high, _slash, low = control.redo_lsn.partition("/")
    return Start(int(high, 16) << 32 | int(low, 16), control.timeline, control.wal_segment_size).segment


def plan(data: Path, known: dict[str, str] | None = None, *, is_recovered: bool = False) -> list[Step]:
    found = plan_clone(read_data_directory(str(data)), str(tree_of(data)), known=known, is_recovered=is_recovered)
    return found.steps


def whats(data: Path, known: dict[str, str] | None = None) -> list[str]:
    return [step.what for step in plan(data, known)]


def problems(data: Path) -> list[str]:
    with pytest.raises(PostgresError) as error:
        plan(data)
    found: list[str] = error.value.details["problems"]
    return found


def tree_of(data: Path) -> Path:
    return data.parents[2]


def apply(data: Path) -> None:
    apply_steps(plan(data), Account("me", os.geteuid(), os.getegid()))


def test_a_slot_deeper_than_any_stack_is_removed(data: Path) -> None:
    (data / "pg_replslot" / "deep").mkdir(parents=True)
    place = os.open(data / "pg_replslot" / "deep", os.O_RDONLY)
    for _step in range(1500):
        os.mkdir("d", dir_fd=place)
        below = os.open("d", os.O_RDONLY, dir_fd=place)
        os.close(place)
        place = below
    os.close(place)
    apply(data)
    assert os.listdir(data / "pg_replslot") == []


def test_a_clean_copy_needs_nothing(data: Path) -> None:
    assert plan(data) == []


def test_a_tablespace_is_found_at_its_path_and_below_prefixes(data: Path) -> None:
    link = data / "pg_tblspc" / "16400"
    link.symlink_to("/mnt/fast")
    (expected,) = problems(data)
    assert expected.startswith(
        f"tablespace 16400 is a link to /mnt/fast, and the archive has no such directory with {VERSION_DIRECTORY}"
    )
    for inside in ("mnt/fast", "srv/mnt/fast", "srv/pg/mnt/fast"):  # each is likelier than the one before
        (tree_of(data) / inside).mkdir(parents=True)
        if inside == "mnt/fast":
            assert "has no such directory" in problems(data)[0]
        (tree_of(data) / inside / VERSION_DIRECTORY).mkdir()
        assert whats(data) == [f"pg_tblspc/16400 re-pointed to {tree_of(data)}/{inside}"]
    elsewhere = tree_of(data) / "snapshots" / "7" / "fast"
    (elsewhere / VERSION_DIRECTORY).mkdir(parents=True)
    assert whats(data, {"srv/pg/data/pg_tblspc/16400": "snapshots/7/fast"}) == [
        f"pg_tblspc/16400 re-pointed to {elsewhere}"
    ]
    apply(data)
    assert os.readlink(link) == f"{tree_of(data)}/srv/pg/mnt/fast"
    assert plan(data) == []


def test_links_within_the_tree_are_left_alone(data: Path) -> None:
    place = tree_of(data) / "srv" / "space"
    (place / VERSION_DIRECTORY).mkdir(parents=True)
    (data / "pg_tblspc" / "1").symlink_to("../../../space")
    (data / "base" / "2").symlink_to("1")
    assert plan(data) == []


def test_pg_wal_is_taken_from_the_archive_only_if_it_holds_wal(data: Path) -> None:
    segment = first_segment(data)
    shutil.rmtree(data / "pg_wal")
    (data / "pg_wal").symlink_to("/wal/15")
    assert "pg_wal is a link to /wal/15, which is not in the archive" in problems(data)[0]
    there = tree_of(data) / "wal" / "15"
    there.mkdir(parents=True)
    assert "pg_wal is a link to /wal/15" in problems(data)[0]
    (there / "000000010000000000000099").touch()
    assert f"begin in WAL segment {segment} (pg_control), which the archived pg_wal does not have" in problems(data)[0]
    (there / segment).touch()
    assert whats(data) == [f"pg_wal re-pointed to {there}"]


def test_the_wal_of_a_backup_is_looked_for_where_its_label_says(data: Path) -> None:
    (data / "backup_label").write_text(
        "START WAL LOCATION: 0/9000028 (file 000000020000000000000009)\nCHECKPOINT LOCATION: 0/9000060\n"
        "BACKUP METHOD: streamed\nBACKUP FROM: primary\n"
    )
    assert "WAL segment 000000020000000000000009 (backup_label)" in problems(data)[0]
    (data / "pg_wal" / "000000020000000000000009").touch()
    assert plan(data) == []


def test_what_leads_out_is_refused_all_at_once(data: Path) -> None:
    (data / "base" / "5").symlink_to("/var/lib/postgresql/15/main/base/5")
    (data / "base" / "1" / "1259").symlink_to("/etc/passwd")
    (data / "pg_xact").symlink_to("../../../../../../../../../../../../../var/lib/postgresql/15/main/pg_xact")
    found = problems(data)
    assert len(found) == 3
    assert all("leads out of the copy" in problem for problem in found)


def test_other_directories_are_taken_from_the_archive(data: Path) -> None:
    (data / "base" / "5").symlink_to("/big/5")
    there = tree_of(data) / "big" / "5"
    there.mkdir(parents=True)
    assert whats(data) == [f"base/5 re-pointed to {there}"]
    (there / "1259").symlink_to("/etc/passwd")
    (found,) = problems(data)
    assert found.startswith(
        f"{there}/1259 is a link to /etc/passwd, which leads out of the copy to files that belong to"
    )
    (there / "1259").unlink()
    # What it leads to may lead further.
    (tree_of(data) / "bigger").mkdir()
    (there / "sub").symlink_to("/bigger")
    (tree_of(data) / "bigger" / "out").symlink_to("/etc")
    assert problems(data)[0].startswith(f"{tree_of(data)}/bigger/out is a link to /etc, which leads out")
    (tree_of(data) / "bigger" / "out").unlink()
    assert whats(data) == [
        f"base/5 re-pointed to {there}",
        f"{there}/sub re-pointed to {tree_of(data)}/bigger",
    ]
    apply(data)
    assert plan(data) == []


def test_links_that_a_session_has_no_use_for_are_dropped(data: Path) -> None:
    for name in ("postgresql.conf", "server.key", "log", "postmaster.pid", "postgresql.auto.conf"):
        (data / name).symlink_to(f"/nowhere/{name}")
    (data / "pg_stat_tmp").rmdir()
    (data / "pg_stat_tmp").symlink_to("/run/postgresql/15-main.pg_stat_tmp")
    assert set(whats(data)) == {
        *(f"link {name} to /nowhere/{name} removed" for name in ("postgresql.conf", "server.key", "log")),
        "link pg_stat_tmp to /run/postgresql/15-main.pg_stat_tmp replaced by an empty directory",
        "postmaster.pid removed",
        "link postgresql.auto.conf to /nowhere/postgresql.auto.conf removed",
    }
    apply(data)
    assert list(find_links(str(data))) == []
    assert (data / "pg_stat_tmp").is_dir()


def test_what_is_in_a_directory_behind_a_link_is_looked_for_there(data: Path) -> None:
    there = tree_of(data) / "disk" / "pg_logical"
    there.parent.mkdir()
    (data / "pg_logical").rename(there)
    (data / "pg_logical").symlink_to("/disk/pg_logical")
    (there / "snapshots").rmdir()
    assert whats(data) == [f"pg_logical re-pointed to {there}", "empty directory pg_logical/snapshots made"]
    apply(data)
    assert (there / "snapshots").is_dir()
    assert plan(data) == []


def test_a_tablespace_map_is_done_and_removed(data: Path) -> None:
    (tree_of(data) / "new" / VERSION_DIRECTORY).mkdir(parents=True)
    (data / "tablespace_map").write_text("16400 /new\n")
    assert whats(data) == [f"pg_tblspc/16400 re-pointed to {tree_of(data)}/new", "tablespace_map removed"]
    apply(data)
    assert plan(data) == []


def test_the_lines_of_a_tablespace_map() -> None:
    content = b"16400 /srv/fast disk\n16401 /odd\\\nname\\\\x\n\n"
    expected = {"16400": "/srv/fast disk", "16401": "/odd\nname\\x"}
    assert parse_tablespace_map(content) == expected
    # As scripts write it: with line breaks of Windows, in UTF-16, and as psql's tables.
    plain = {"16400": "/srv/fast disk", "16401": "/slow+"}
    lines = [f"{oid} {path}" for oid, path in plain.items()]
    assert parse_tablespace_map("\r\n".join([*lines, ""]).encode()) == plain
    assert parse_tablespace_map("\n".join([*lines, ""]).encode("utf-16")) == plain
    del plain["16401"]
    for table in (
        b"      spcmapfile      \n----------------------\n 16400 /srv/fast disk+\n \n(1 row)\n\n",
        b"-[ RECORD 1 ]--------------------\nspcmapfile | 16400 /srv/fast disk+\n           | \n\n",
        b"0/30001A8|START WAL LOCATION: 0/3000028 (file 000000010000000000000003)\nLABEL: x\n|16400 /srv/fast disk\n",
    ):
        assert parse_tablespace_map(table) == plain
    assert parse_tablespace_map(b" spcmapfile \n------------\n \n(1 row)\n\n") == {}


def test_blanks_without_end_take_no_time_without_end() -> None:
    """Of a megabyte. What an expression has to try at each of them took hours."""
    blanks = b" " * (1 << 20)
    assert parse_tablespace_map(b"16384 /a" + blanks + b"x\nno line\n") == {"16384": f"/a{blanks.decode()}x"}
    needed = (
        b"\rSTART WAL LOCATION: 0/2000028 (file 000000010000000000000002)\nCHECKPOINT LOCATION: 0/2000060\n"
        b"BACKUP METHOD: streamed\nBACKUP FROM: primary\n"
    )
    label = readable_label(needed + b"LABEL: " + blanks + b"x" + blanks + b"+|\r\n")
    assert label == needed[1:] + b"LABEL: " + blanks + b"x\n"


def test_a_label_that_was_cut_off_is_none() -> None:
    """Without the method recovery would not wait for the backup's end, and the copy be one of no moment."""
    lines = [
        b"START WAL LOCATION: 0/2000028 (file 000000010000000000000002)\n",
        b"CHECKPOINT LOCATION: 0/2000060\n",
        b"BACKUP METHOD: streamed\n",
        b"BACKUP FROM: primary\n",
    ]
    for number in range(4):
        assert readable_label(b"".join(lines[:number])) is None
    assert readable_label(b"".join(lines)) == b"".join(lines)


def test_alter_system_is_set_aside_once(data: Path) -> None:
    (data / "postgresql.auto.conf").write_text("# comment\narchive_command = 'x'\nport=5433\n")
    assert whats(data) == ["postgresql.auto.conf emptied (archive_command, port)"]
    apply(data)
    assert (data / "postgresql.auto.conf").read_text() == ""
    assert "archive_command" in (data / SET_ASIDE).read_text()
    (data / "postgresql.auto.conf").write_text("work_mem = '1MB'\n")
    assert plan(data, is_recovered=True) == []
    # In a copy that no start has recovered it is the archive's, whatever lies beside it.
    assert whats(data) == ["postgresql.auto.conf emptied (work_mem)"]


@pytest.mark.parametrize("mode", [0o755, 0o777, 0o710 | 0o007])
def test_a_mode_that_postgresql_refuses_is_corrected(data: Path, mode: int) -> None:
    data.chmod(mode)
    assert whats(data) == [f"mode of the data directory changed from {mode:04o} to 0700"]
    apply(data)
    assert data.stat().st_mode & 0o777 == 0o700
    data.chmod(0o750)
    assert plan(data) == []


def test_resolving_as_if_the_tree_were_the_root(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "absolute").symlink_to("/a")
    (tmp_path / "a" / "up").symlink_to("../../../a/b")
    (tmp_path / "round").symlink_to("round")
    for path, found in (
        ("/a/b", "a/b"),
        ("/absolute/b", "a/b"),
        ("/a/up", "a/b"),
        ("../../a//./b/", "a/b"),
        ("/a/none", None),
        ("/round", None),
    ):
        assert resolve_within(str(tmp_path), path) == (None if found is None else str(tmp_path / found)), path


def test_relative_links_are_looked_for_where_they_would_lead(tmp_path: Path) -> None:
    data = tmp_path / "x" / "data"
    data.mkdir(parents=True)
    (tmp_path / "wal").mkdir()
    link = Link(str(data / "pg_wal"), "../../wal")
    assert archived_places(str(tmp_path), str(data), link) == [str(tmp_path / "wal")]
    # One step too far: on the machine it is from, / was the end.
    assert archived_places(str(tmp_path), str(data), Link(link.path, "../../../../../wal")) == [str(tmp_path / "wal")]
    assert place_within(str(data), str(tmp_path)) == str(data)
    assert place_within(str(tmp_path), str(data)) is None


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda data: (data / "PG_VERSION").unlink(), "it has no file PG_VERSION"),
        (
            lambda data: (data / "PG_VERSION").write_text("9.6\n"),
            "is of PostgreSQL 9.6; sessions can be started from 12",
        ),
        (lambda data: (data / "PG_VERSION").write_text("x\n"), "PG_VERSION holds 'x' instead of a version"),
        (lambda data: (data / "PG_VERSION").write_text("1" * 5000), "PG_VERSION holds '1111"),
        (lambda data: (data / "PG_VERSION").write_text("14\n"), "mixes two clusters"),
        (lambda data: (data / "global" / "pg_control").unlink(), "has no file global/pg_control"),
        (shutil.rmtree, "cannot be read: No such file or directory"),
    ],
)
def test_what_is_no_data_directory(data: Path, change: object, said: str) -> None:
    assert callable(change)
    change(data)
    with pytest.raises(PostgresError) as error:
        read_data_directory(str(data))
    assert said in str(error.value)
