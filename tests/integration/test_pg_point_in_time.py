# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Copies of one production, made in every usual way, recovered to chosen moments with WAL from elsewhere."""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import pwd
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._postgresql import wal as _pg_wal
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._postgresql.cluster import read_data_directory
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._postgresql.wal import (
    Start,
    last_commit,
    parse_position,
)
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._session.session import Session

from tests.support.cluster import Cluster
from tests.support.host import processes_below

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.support.copies import Copy

OWNER = "postgres" if os.geteuid() == 0 else pwd.getpwuid(os.geteuid()).pw_name


@dataclass
class Story:
    """What happened: each step of the ledger with its end as a time, a transaction and a position.

    In this order: 1, backups `stream` and `none`, 2, snapshot `snapshot`, 3, restore point, 4 (and a tablespace made
    after all of these), 5. `wal` is the archive, which is odd in name only.
    """

    cluster: Cluster
    wal: Path
    space: Path
    times: dict[int, str]
    xids: dict[int, str]
    lsns: dict[int, str]

    def copy(self, name: str) -> Cluster:
        """A copy of that kind, for the fixture copy_of."""
        return Cluster(directory=self.cluster.directory, data=self.cluster.directory / name)

    def step(self, number: int) -> None:
        ask = self.cluster.connection.sql
        self.xids[number] = ask(f"insert into ledger values ({number}) returning pg_current_xact_id()")
        self.lsns[number] = ask("select pg_current_wal_lsn()")
        # The next step's time differs from this one's by more than the clock's grain.
        self.times[number] = ask("select pg_sleep(0.05), clock_timestamp(), pg_sleep(0.05)").split("|")[1]


@pytest.fixture(scope="module")
def story(shared_place: Path) -> Iterator[Story]:
    place = shared_place / "story"
    wal = place / "it's 100% w a l"
    space = place / "later space"
    for directory in (place, wal, space):
        directory.mkdir()
        shutil.chown(directory, OWNER)
    command = f'cp %p "{str(wal).replace("%", "%%")}/%f"'.replace("'", "''")
    settings = {
        "archive_mode": "on",
        "archive_command": command,
        # More than the session's own: they must not be needed for its recovery.
        "max_connections": "300",
        "max_worker_processes": "20",
        "max_prepared_transactions": "7",
        "autovacuum": "off",
        "TimeZone": "America/New_York",
    }
    with Cluster(directory=place / "production", settings=settings) as cluster:
        yield tell(Story(cluster, wal, space, {}, {}, {}))


def tell(story: Story) -> Story:
    cluster = story.cluster
    cluster.connection.sql("create table ledger (step int)")
    story.step(1)
    for name in ("stream", "none"):
        backup(cluster, cluster.directory / name, "-X", name)
    story.step(2)
    cluster.stop(mode="immediate")
    subprocess.run(["cp", "-a", str(cluster.data), str(cluster.directory / "snapshot")], check=True)
    cluster.start()
    story.step(3)
    cluster.connection.sql("select pg_create_restore_point('before it all went wrong')")
    story.step(4)
    cluster.connection.sql(f"create tablespace later location '{story.space}'")
    cluster.connection.sql("create table there tablespace later as select generate_series(1, 1000) i")
    cluster.connection.sql("begin; insert into ledger values (99); prepare transaction 'waiting'")
    story.step(5)
    last = cluster.connection.sql("select pg_walfile_name(pg_current_wal_lsn())")
    cluster.connection.sql("select pg_switch_wal()")
    for _attempt in range(300):
        archived = cluster.connection.sql("select last_archived_wal, pg_sleep(0.05) from pg_stat_archiver").split("|")[
            0
        ]
        if archived[:24] >= last:
            return story
    raise AssertionError(f"{last} was not archived")


def backup(cluster: Cluster, target: Path, *options: str) -> None:
    where = ["-h", str(cluster.run), "-p", "5432", "-U", cluster.superuser, "-D", str(target)]
    run_as_owner(f"{cluster.bindir}/pg_basebackup", *where, "--no-sync", "-c", "fast", *options)


def run_as_owner(*argv: str) -> None:
    user = pwd.getpwnam(OWNER)
    identity = {} if os.geteuid() != 0 else {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
    subprocess.run(argv, check=True, cwd="/", timeout=120, capture_output=True, **identity)


def ledger(copy: Copy) -> list[int]:
    return [int(step) for step in copy.sql("select step from ledger order by 1").splitlines()]


def state_of(directory: Path) -> list[tuple[str, int, int]]:
    return sorted((str(path), path.lstat().st_mtime_ns, path.lstat().st_size) for path in directory.rglob("*"))


TARGETS: list[tuple[str, Callable[[Story], dict[str, Any]], list[int], str]] = [
    ("time", lambda story: {"recovery_target_time": story.times[3]}, [1, 2, 3], "stopping before commit"),
    ("xid", lambda story: {"recovery_target_xid": story.xids[3]}, [1, 2, 3], "stopping after commit"),
    (
        "xid, exclusive",
        lambda story: {"recovery_target_xid": story.xids[3], "recovery_target_inclusive": False},
        [1, 2],
        "stopping before commit",
    ),
    (
        "name",
        lambda _story: {"recovery_target_name": "before it all went wrong"},
        [1, 2, 3],
        'stopping at restore point "before it all went wrong"',
    ),
    (
        "lsn, exclusive",
        lambda story: {"recovery_target_lsn": story.lsns[4], "recovery_target_inclusive": False},
        [1, 2, 3, 4],
        "stopping before WAL location",
    ),
    ("immediate", lambda _story: {"recovery_target": "immediate"}, [1], "stopping after reaching consistency"),
    ("end", lambda _story: {}, [1, 2, 3, 4, 5], "end of the WAL"),
]


@pytest.mark.parametrize(("options", "steps", "reason"), [row[1:] for row in TARGETS], ids=[row[0] for row in TARGETS])
def test_a_base_backup_is_recovered_to_each_kind_of_target(
    options: Callable[[Story], dict[str, Any]],
    steps: list[int],
    reason: str,
    story: Story,
    copy_of: Callable[..., Copy],
) -> None:
    copy = copy_of(story.copy("none"))
    before = [state_of(directory) for directory in (story.wal, story.space)]
    result = copy.start(log_source=str(story.wal), **options(story))
    assert "failed" not in result, result
    assert ledger(copy) == steps
    reached = result["recovered_to"]
    assert reached["reason"].startswith(reason), reached
    assert reached["timeline"] == 2
    if steps != [1]:
        last = copy.sql(f"select '{reached['time']}'::timestamptz <= '{story.times[steps[-1]]}'")
        earlier = copy.sql(f"select '{reached['time']}'::timestamptz > '{story.times[steps[-2]]}'")
        assert (last, earlier) == ("t", "t"), reached
    assert copy.sql("select pg_is_in_recovery(), current_setting('restore_command')") == "f|"
    copy.sql("create table mine as select 1 as one; checkpoint")
    assert [state_of(directory) for directory in (story.wal, story.space)] == before
    assert not [path.name for path in copy.run.iterdir() if path.name.startswith("wal.")]


def test_a_tablespace_made_after_the_backup_stays_in_the_copy(story: Story, copy_of: Callable[..., Copy]) -> None:
    copy = copy_of(story.copy("none"))
    before = state_of(story.space)
    result = copy.start(log_source=str(story.wal))
    assert "failed" not in result, result
    taken_out = [entry["what"] for entry in result["neutralised"] if "taken out of the WAL" in entry["what"]]
    assert [what.split(" in ")[1] for what in taken_out] == [f"{story.space} taken out of the WAL"]
    assert copy.sql("select count(*), sum(i) from there") == "1000|500500"
    assert copy.sql("select gid from pg_prepared_xacts") == "waiting"
    copy.sql("insert into there values (1); checkpoint")
    copy.stop()
    assert state_of(story.space) == before


def test_a_later_start_has_nothing_to_recover(story: Story, copy_of: Callable[..., Copy]) -> None:
    copy = copy_of(story.copy("stream"))
    options = {"log_source": str(story.wal), "recovery_target_time": story.times[4]}
    first = copy.start(**options)
    assert not copy.start(**options)["changed"]
    assert "its data recovered to recovery_target_time" in copy.start(recovery_target="immediate")["msg"]
    copy.sql("insert into ledger values (6)")
    copy.stop()
    again = copy.start(**options)
    assert again["changed"]
    assert again["recovered_to"] == first["recovered_to"]
    assert ledger(copy) == [1, 2, 3, 4, 6]
    copy.stop()
    assert "was recovered already, to recovery_target_time" in copy.start(recovery_target="immediate")["msg"]
    assert "was recovered already" in copy.start(**options, recovery_target_inclusive=False)["msg"]


def test_what_an_archived_copy_was_recovered_to_does_not_count(story: Story, copy_of: Callable[..., Copy]) -> None:
    first = copy_of(story.copy("stream"))
    options = {"log_source": str(story.wal), "recovery_target_time": story.times[4]}
    assert "failed" not in first.start(**options)
    first.sql("insert into ledger values (6)")
    after = first.sql("select clock_timestamp()")
    first.stop()
    production = Cluster(directory=first.tree, data=first.data)
    second = copy_of(production)
    result = second.start()
    assert "failed" not in result, result
    assert result["recovered_to"]["reason"] == "shut down in order"
    assert second.sql(f"select '{after}' - '{result['recovered_to']['time']}'::timestamptz < '1 second'") == "t"
    # Its own counts from now on.
    second.stop()
    again = second.start()
    assert again["recovered_to"] == result["recovered_to"]
    second.stop()


def test_a_copy_that_went_past_its_target_is_not_started_again(story: Story, copy_of: Callable[..., Copy]) -> None:
    """Only with PostgreSQL 12 and 13 it can: here the record is changed."""
    copy = copy_of(story.copy("stream"))
    assert "failed" not in copy.start()
    copy.stop()
    with Session.open(str(copy.directory)).locked() as session:
        session.update(recovered={**session.record.recovered, "problem": "It was not reached."})
    said = "It was not reached. This copy went past it: start from the archive again."
    assert copy.start()["msg"] == said
    assert copy.start(recovery_target="immediate")["msg"] == said


def test_an_incremental_backup_is_refused(story: Story, copy_of: Callable[..., Copy]) -> None:
    copy = copy_of(story.copy("stream"))
    with copy.path("backup_label").open("a") as file:
        file.write("INCREMENTAL FROM LSN: 0/2000028\n")  # as 17 writes it
    assert "it is an incremental backup" in copy.start(check=True)["msg"]


def test_a_damaged_segment_behind_the_last_that_is_needed_does_not_matter(
    story: Story, place: Path, copy_of: Callable[..., Copy]
) -> None:
    wal = place / "damaged"
    shutil.copytree(story.wal, wal)
    last = max(path.name for path in wal.iterdir() if len(path.name) == 24)
    (wal / f"{int(last, 16) + 1:024X}").write_bytes(b"damage" * 1000)
    (wal / f"{int(last, 16) + 2:024X}").write_bytes(b"damage" * 1000)
    copy = copy_of(story.copy("none"))
    result = copy.start(log_source=str(wal), recovery_target_xid=story.xids[4])
    assert "failed" not in result, result
    assert ledger(copy) == [1, 2, 3, 4]
    other = copy_of(story.copy("none")).start(log_source=str(wal))
    assert "has 6000 bytes instead of" in other["msg"]


def test_the_time_zone_of_the_archive_must_be_known(story: Story, copy_of: Callable[..., Copy]) -> None:
    for zone in ("Middle/Earth", "America"):
        copy = copy_of(story.copy("none"))
        with copy.path("postgresql.auto.conf").open("a") as file:
            file.write(f"TimeZone = '{zone}'\n")
        said = copy.start(check=True, log_source=str(story.wal), recovery_target_time="2099-01-01T00:00")["msg"]
        assert f"the archive's time zone {zone} is not known on this host" in said
        assert "failed" not in copy.start(
            check=True, log_source=str(story.wal), recovery_target_time="2099-01-01 00:00:00+00"
        )


def test_log_source_in_the_archive_is_never_the_hosts(story: Story, copy_of: Callable[..., Copy]) -> None:
    copy = copy_of(story.copy("none"))
    (copy.tree / "wal").symlink_to(story.wal)
    said = copy.start(check=True, log_source=str(copy.tree / "wal"))["msg"]
    assert said == f"log_source {copy.tree}/wal is not in the archive: name a directory that it has."


def test_the_backups_end_is_found_in_its_own_wal(story: Story, place: Path, copy_of: Callable[..., Copy]) -> None:
    """Where log_source lacks the history file, and the copy has no manifest."""
    copy = copy_of(story.copy("none"))
    copy.path("backup_manifest").unlink()
    wal = place / "no histories"
    wal.mkdir()
    for path in story.wal.iterdir():
        where = wal if len(path.name) == 24 else copy.path("pg_wal")
        shutil.copy(path, where)
    said = copy.start(check=True, log_source=str(wal), recovery_target_lsn="0/1")["msg"]
    end = max(
        path.read_text().split("STOP WAL LOCATION: ")[1].split()[0] for path in copy.path("pg_wal").glob("*.backup")
    )
    assert f"which is at {end}" in said


def test_the_last_commit_of_a_clean_copy_is_found_by_reading_little(
    story: Story, copy_of: Callable[..., Copy], monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = copy_of(story.copy("stream"))
    assert "failed" not in copy.start()
    before = float(copy.sql("insert into ledger values (6) returning extract(epoch from clock_timestamp())"))
    after = time.time()
    copy.sql("checkpoint")
    copy.stop()
    control = read_data_directory(str(copy.data)).control
    start = Start(parse_position(control.redo_lsn), control.timeline, control.wal_segment_size)
    asked: list[int] = []
    pread = os.pread
    monkeypatch.setattr(_pg_wal.os, "pread", lambda fd, size, place: asked.append(size) or pread(fd, size, place))
    found = last_commit(str(copy.path("pg_wal")), start)
    assert found is not None
    assert before <= found <= after
    assert sum(asked) < 2**20 + 2**16


def test_a_snapshot_goes_on_with_archived_wal(story: Story, copy_of: Callable[..., Copy]) -> None:
    copy = copy_of(story.copy("snapshot"))
    result = copy.start(log_source=str(story.wal), recovery_target_time=story.times[3])
    assert "failed" not in result, result
    assert ledger(copy) == [1, 2, 3]
    without = copy_of(story.copy("snapshot"))
    assert "failed" not in without.start()
    assert ledger(without) == [1, 2]


def test_a_time_without_an_offset_is_the_archives(story: Story, copy_of: Callable[..., Copy]) -> None:
    copy = copy_of(story.copy("none"))
    local = story.cluster.connection.sql(
        f"select to_char('{story.times[2]}'::timestamptz at time zone 'America/New_York', 'YYYY-MM-DD HH24:MI:SS.US')"
    )
    result = copy.start(log_source=str(story.wal), recovery_target_time=local)
    assert "failed" not in result, result
    assert ledger(copy) == [1, 2]
    assert result["settings"]["TimeZone"] == "America/New_York"


def fork(story: Story, place: Path, wal: Path) -> None:
    """A server that was itself recovered to step 3, and went on on timeline 2 with step 100; it archives to wal."""
    other = Cluster(directory=place / "fork")
    other.run.mkdir(parents=True)
    subprocess.run(["cp", "-a", str(story.copy("none").data), str(other.data)], check=True)
    (other.data / "recovery.signal").touch()
    settings = {
        "unix_socket_directories": str(other.run),
        "archive_command": f'cp %p "{wal}/%f"',
        "restore_command": f'cp "{wal}/%f" %p',
        "recovery_target_xid": story.xids[3],
        "recovery_target_action": "promote",
    }
    with (other.data / "postgresql.auto.conf").open("a") as file:
        file.write("".join(f"{name} = '{value}'\n" for name, value in settings.items()))
    for path in (place, other.directory, other.run, other.data / "recovery.signal", wal, *wal.iterdir()):
        shutil.chown(path, OWNER)
    other.start()
    try:
        wait = "select pg_is_in_recovery(), pg_sleep(0.05)"
        assert any(other.connection.sql(wait)[0] == "f" for _attempt in range(300))
        other.connection.sql("insert into ledger values (100)")
        other.connection.sql("select pg_switch_wal()")
        other.stop()
    finally:
        other.close()


def test_the_newest_timeline_is_followed_unless_another_is_named(
    story: Story, place: Path, copy_of: Callable[..., Copy]
) -> None:
    wal = place / "forked wal"
    shutil.copytree(story.wal, wal)
    fork(story, place, wal)
    for options, steps in (({}, [1, 2, 3, 100]), ({"recovery_target_timeline": "1"}, [1, 2, 3, 4, 5])):
        copy = copy_of(story.copy("none"))
        result = copy.start(log_source=str(wal), **options)
        assert "failed" not in result, result
        assert ledger(copy) == steps
        assert result["recovered_to"]["timeline"] == 3
    assert (
        "there is no 00000009.history"
        in copy_of(story.copy("none")).start(log_source=str(wal), recovery_target_timeline="9")["msg"]
    )


def packed(story: Story, place: Path, kind: str) -> Path:
    """The archive as other tools keep it."""
    wal = place / kind
    for path in story.wal.iterdir():
        directory = wal if len(path.name) != 24 else wal / path.name[:16]
        directory.mkdir(parents=True, exist_ok=True)
        content = path.read_bytes()
        if kind == "barman":
            (directory / path.name).write_bytes(gzip.compress(content, 1))
        elif kind == "pgbackrest":
            (directory / f"{path.name}-{'0f' * 20}.lz4").write_bytes(content)
            subprocess.run(["lz4", "-q", "-f", str(path), str(directory / f"{path.name}-{'0f' * 20}.lz4")], check=True)
        else:
            (wal / f"{path.name}.xz").write_bytes(lzma.compress(content, preset=0))
    if kind == "receiving":
        newest = max(path for path in wal.iterdir() if len(path.name) == 27)
        newest.rename(newest.with_suffix("").with_suffix(".partial"))
        (wal / newest.name).with_suffix(".partial").write_bytes((story.wal / newest.stem).read_bytes())
    return wal


@pytest.mark.parametrize("kind", ["barman", "pgbackrest", "receiving"])
def test_wal_as_other_tools_keep_it(kind: str, story: Story, place: Path, copy_of: Callable[..., Copy]) -> None:
    if kind == "pgbackrest" and shutil.which("lz4") is None:
        pytest.skip("needs lz4")
    copy = copy_of(story.copy("none"))
    # Nobody but who runs the module needs to be able to read it.
    wal = packed(story, place, kind)
    wal.chmod(0o700)
    result = copy.start(log_source=str(wal))
    assert "failed" not in result, result
    assert ledger(copy) == [1, 2, 3, 4, 5]


REFUSALS: list[tuple[str, dict[str, str], str]] = [
    (
        "snapshot",
        {"recovery_target_xid": "{before}", "log_source": ""},
        "is the earliest it can show, and there is no WAL",
    ),
    (
        "none",
        {"recovery_target_time": "2020-01-01 00:00:00+00"},
        "is before the end of the copy, which was made after 20",
    ),
    ("none", {"recovery_target_lsn": "0/1"}, "recovery_target_lsn 0/1 is before the end of the copy"),
    ("snapshot", {"recovery_target_xid": "{before}"}, "is before the end of the copy: name a later"),
    (
        "none",
        {"recovery_target_time": "2099-01-01T00:00"},
        "recovery_target_time 2099-01-01T00:00 was not reached: the WAL ends at",
    ),
    ("none", {"recovery_target_xid": "4000000000"}, "was not reached"),
    ("none", {"recovery_target_name": "nothing"}, "recovery_target_name nothing was not reached"),
    ("none", {"recovery_target_lsn": "0/1", "recovery_target_xid": "7"}, "leave all but one out"),
    ("none", {"recovery_target_time": "yesterday"}, "recovery_target_time 'yesterday' cannot be used (it is no time)"),
    ("none", {"recovery_target_time": "2026-13-01 14:05"}, "month must be in 1..12"),
    ("none", {"recovery_target_time": "2026-11-01"}, "it has no time of day"),
    ("none", {"recovery_target_lsn": "17"}, "recovery_target_lsn is '17': give a position"),
    ("none", {"recovery_target_xid": "-1"}, "recovery_target_xid is '-1': give the number"),
    ("none", {"recovery_target": "now"}, "recovery_target is 'now': give immediate"),
    ("none", {"recovery_target_timeline": "7"}, "there is no 00000007.history among the WAL"),
    ("none", {"recovery_target_timeline": "newest"}, "give latest, current or a timeline's number"),
    ("none", {"recovery_target_action": "pause"}, "recovery_target_action is pause, after which"),
    ("none", {"log_source": "/nowhere"}, "log_source /nowhere cannot be read (No such file or directory)"),
    ("none", {"log_source": "/etc"}, "log_source /etc has no WAL segments"),
]


@pytest.mark.parametrize(("kind", "options", "said"), REFUSALS, ids=[f"{kind} {opts}" for kind, opts, _s in REFUSALS])
def test_what_cannot_be_reached_is_said_in_one_sentence(
    kind: str, options: dict[str, str], said: str, story: Story, copy_of: Callable[..., Copy]
) -> None:
    copy = copy_of(story.copy(kind))
    options = {name: value.replace("{before}", story.xids[2]) for name, value in options.items()}
    given = {"log_source": str(story.wal), **options}
    result = copy.start(**{name: value for name, value in given.items() if value})
    assert result["failed"]
    assert said in result["msg"], result["msg"]
    assert "\n" not in result["msg"]
    assert processes_below(copy.tree) == []
    assert not [path for path in copy.run.glob("*") if path.name != "server.log"]


def test_missing_wal_is_named_with_its_cure(story: Story, place: Path, copy_of: Callable[..., Copy]) -> None:
    copy = copy_of(story.copy("none"))
    first = sorted(path.name for path in story.wal.iterdir() if path.suffix == ".backup")[-1].split(".")[0]
    for check in (True, False):
        said = copy.start(check=check)["msg"]
        assert f"recovery has to begin in WAL segment {first} (backup_label)" in said
        assert "(log_source)" in said
    # Its beginning is there, and the manifest says that more is needed.
    manifest = copy.path("backup_manifest")
    text = manifest.read_text()
    end = text.rpartition('"End-LSN": "')[2].partition('"')[0]
    longer = f"0/{int(end[2:], 16) + 2**24:X}"
    manifest.write_text(text.replace(f'"End-LSN": "{end}"', f'"End-LSN": "{longer}"'))
    wal = place / "gaps"
    wal.mkdir()
    shutil.copy(story.wal / first, wal)
    following = f"{int(first, 16) + 1:024X}"
    assert f"segment {following} is missing" in copy.start(log_source=str(wal))["msg"]
    # Nothing says so beforehand: the server does. What is cut off is the record of the backup's end.
    manifest.unlink()
    kept = int(end[2:], 16) % 2**24 - 40
    copy.path(f"pg_wal/{first}").write_bytes((story.wal / first).read_bytes()[:kept].ljust(2**24, b"\0"))
    shutil.chown(copy.path(f"pg_wal/{first}"), OWNER)
    said = copy.start()["msg"]
    assert said.startswith(f"The WAL ends before the backup did: segment {following} is missing. To cure it, "), said


def test_wal_that_cannot_be_used_is_not_taken_for_its_end(
    story: Story, place: Path, copy_of: Callable[..., Copy]
) -> None:
    segments = sorted(path.name for path in story.wal.iterdir() if len(path.name) == 24)
    for number, (change, said) in enumerate(
        [
            (lambda content: content[:5000], "has 5000 bytes instead of 16777216"),
            (lambda content: content[:24] + bytes(8) + content[32:], "belongs to another cluster"),
            (lambda content: gzip.compress(content)[:500], "cannot be read (Compressed file ended"),
            (lambda content: bz2.compress(content)[:-8], "cannot be read (Compressed file ended"),
        ]
    ):
        wal = place / f"damaged{number}"
        shutil.copytree(story.wal, wal)
        (wal / segments[-2]).write_bytes(change((wal / segments[-2]).read_bytes()))
        copy = copy_of(story.copy("none"))
        result = copy.start(log_source=str(wal))
        assert result["failed"]
        assert said in result["msg"], result["msg"]
        assert segments[-2] in result["msg"]


def test_limits_that_grew_after_the_backup(place: Path, copy_of: Callable[..., Copy]) -> None:
    """Production was restarted with more of everything, and pg_control of the backup does not know."""
    wal = place / "wal"
    wal.mkdir()
    for path in (place, wal):
        shutil.chown(path, OWNER)
    settings = {"archive_mode": "on", "archive_command": f"cp %p {wal}/%f"}
    with Cluster(directory=place / "production", settings=settings) as cluster:
        backup(cluster, cluster.directory / "base", "-X", "none")
        cluster.stop()
        with (cluster.data / "postgresql.auto.conf").open("a") as file:
            file.write("max_connections = 200\nmax_prepared_transactions = 9\nmax_worker_processes = 30\n")
        cluster.start()
        cluster.connection.sql("begin; create table late (i int); prepare transaction 'waiting'")
        cluster.connection.sql("select pg_switch_wal()")
        cluster.stop()
        copy = copy_of(Cluster(directory=cluster.directory, data=cluster.directory / "base"))
        result = copy.start(log_source=str(wal))
    assert "failed" not in result, result
    assert result["data"]["prepared_transactions"] == ["waiting"]
    assert any("max_prepared_transactions=" in entry["what"] for entry in result["carried_over"])
    assert any("max_connections=100" in entry["what"] for entry in result["neutralised"])


def test_check_mode_says_to_which_point(story: Story, copy_of: Callable[..., Copy]) -> None:
    copy = copy_of(story.copy("none"))
    before = state_of(copy.tree)
    result = copy.start(check=True, log_source=str(story.wal), recovery_target_time=story.times[3])
    assert result["changed"], result
    assert result["diff"]["after"]["recovery"] == f"recovery_target_time {story.times[3]}"
    assert state_of(copy.tree) == before
