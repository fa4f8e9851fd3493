# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Copies that Mariabackup has made, and the way to a later point in time by archived binary logs."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pymysql
import pytest
from ansible_collections.phpborg.instant_recovery.plugins.modules import mysql_ephemeral

from tests.integration.conftest import needs_root
from tests.support.copies import Copy
from tests.support.mariadb import DATABASE, MariaDb, ask, checksums

pytestmark = needs_root


@pytest.fixture(scope="module", name="server")
def _server(shared_place: Path) -> Iterator[MariaDb]:
    with MariaDb(directory=shared_place / "maria") as server:
        server.populate(rows=500)
        server.tables = server.checksums()
        yield server


def started(copy: Copy, **options: Any) -> dict[str, Any]:
    result = copy.start(**options)
    assert not result.get("failed"), "\n".join([result["msg"], *result.get("log_tail", [])])
    return result


def read(result: dict[str, Any]) -> dict[str, str]:
    return checksums(lambda statement: ask(result["client_file"], statement))


@pytest.mark.parametrize("prepare", [False, True], ids=["unprepared", "prepared"])
def test_a_backup_is_served(server: MariaDb, shared_place: Path, copy_of: Callable[..., Copy], prepare: bool) -> None:
    backup = server.back_up(shared_place / f"backup-{prepare}", prepare=prepare)
    result = started(copy_of(backup, main=mysql_ephemeral.main))
    assert read(result) == server.tables
    assert result["data"]["recovered"] is not prepare
    assert result["recovered_to"]["position"].startswith("mysql-bin.00000")
    assert result["data"]["unreadable_tables"] == []
    ask(result["client_file"], f"insert into `{DATABASE}`.orders (item) values ('x')")


class Story:
    """A backup at one moment, and the binary logs of what came afterwards: each step is told by its row."""

    def __init__(self, server: MariaDb, place: Path) -> None:
        self.backup = server.back_up(place / "begin")
        self.logs = place / "archived logs"
        self.times: dict[str, str] = {}
        self.gtids: dict[str, str] = {}
        self.positions: dict[str, str] = {}
        self.states = {"begin": server.checksums()}
        server.sql(f"create table `{DATABASE}`.steps (name varchar(40), body longblob)")
        for step in ("one", "two", "three"):
            server.sql(
                f"insert into `{DATABASE}`.steps values ('{step}', unhex('00270a5c1aff'));"
                f"update `{DATABASE}`.orders set item = '{step}' where id <= 100; flush logs"
            )
            self.gtids[step] = server.sql("select @@gtid_binlog_pos")
            self.positions[step] = ":".join(server.sql("show master status").split("\t")[:2])
            self.states[step] = server.checksums()
            time.sleep(1.1)  # binary logs have whole seconds
            self.times[step] = datetime.now(UTC).isoformat(timespec="seconds")
        self.logs.mkdir(mode=0o700)
        for path in server.data.glob("mysql-bin.0*"):
            shutil.copy(path, self.logs)
            (self.logs / path.name).chmod(0o600)


@pytest.fixture(scope="module", name="story")
def _story(server: MariaDb, shared_place: Path) -> Story:
    return Story(server, shared_place)


@pytest.mark.parametrize("kind", ["time", "gtid", "position"])
def test_a_backup_is_brought_to_a_point_in_time(story: Story, copy_of: Callable[..., Copy], kind: str) -> None:
    target = {"time": story.times, "gtid": story.gtids, "position": story.positions}[kind]["two"]
    copy = copy_of(story.backup, main=mysql_ephemeral.main)
    result = started(copy, log_source=str(story.logs), **{f"recovery_target_{kind}": target})
    assert read(result) == story.states["two"]
    assert result["recovered_to"]["gtid"] == story.gtids["two"]
    assert result["recovered_to"]["reason"] == f"stopped at recovery_target_{kind} {target}"
    again = copy._call("restarted", check=False)
    assert not again.get("failed"), again
    assert read(again) == story.states["two"]
    assert "ERROR" not in ask(again["client_file"], f"delete from `{DATABASE}`.steps", check=False)
    other = copy.start(log_source=str(story.logs), recovery_target="end")
    assert "its data recovered to recovery_target_" in other["msg"]


def test_after_replay_nothing_can_be_written_where_that_is_asked_for(
    story: Story, copy_of: Callable[..., Copy]
) -> None:
    copy = copy_of(story.backup, main=mysql_ephemeral.main)
    result = started(copy, log_source=str(story.logs), recovery_target_gtid=story.gtids["two"], read_only=True)
    for _time in range(2):
        assert read(result) == story.states["two"]
        for statement in (f"delete from `{DATABASE}`.steps", "set global read_only = 0"):
            assert "ERROR" in ask(result["client_file"], statement, check=False)
        assert ask(result["client_file"], "select user from mysql.user where user like '%replay'") == ""
        result = copy._call("restarted", check=False)
        assert not result.get("failed"), result


def test_a_copy_that_was_made_when_the_log_had_just_been_changed(
    server: MariaDb, shared_place: Path, copy_of: Callable[..., Copy]
) -> None:
    """Its last log holds no transaction: whether a moment is before its end, an older one tells."""
    before = datetime.now(UTC)
    time.sleep(2)
    server.sql(f"insert into `{DATABASE}`.orders (item) values ('last'); flush logs")
    time.sleep(1.1)
    after = datetime.now(UTC)
    with server.frozen():
        copy = copy_of(server, main=mysql_ephemeral.main)
        backup = copy_of(server, main=mysql_ephemeral.main)
    logs = shared_place / "rotated"
    logs.mkdir()
    state = server.checksums()
    for path in server.data.glob("mysql-bin.0*"):
        shutil.copy(path, logs)
    early = before.isoformat(timespec="seconds")
    refused = copy.start(log_source=str(logs), recovery_target_time=early)
    assert refused["failed"]
    assert "is before the end of the copy" in refused["msg"]
    nothing = started(copy, log_source=str(logs), recovery_target="end")  # there is nothing to replay
    assert read(nothing) == state
    server.sql(f"insert into `{DATABASE}`.orders (item) values ('later')")
    for path in server.data.glob("mysql-bin.0*"):
        shutil.copy(path, logs)
    as_it_is = started(backup, log_source=str(logs), recovery_target_time=after.isoformat(timespec="seconds"))
    assert read(as_it_is) == state
    assert as_it_is["recovered_to"]["reason"].startswith("stopped at recovery_target_time")


def test_times_that_a_client_has_made_up_do_not_count(
    server: MariaDb, shared_place: Path, copy_of: Callable[..., Copy]
) -> None:
    future = "set timestamp = 2000000000"
    server.sql(f"{future}; insert into `{DATABASE}`.orders (item) values ('before')")
    backup = server.back_up(shared_place / "times")
    time.sleep(1.1)
    server.sql(f"{future}; insert into `{DATABASE}`.orders (item) values ('made up')")
    server.sql(f"insert into `{DATABASE}`.orders (item) values ('wanted')")
    time.sleep(1.1)
    state, moment = server.checksums(), datetime.now(UTC).isoformat(timespec="seconds")
    time.sleep(1.1)
    server.sql(f"insert into `{DATABASE}`.orders (item) values ('too late'); flush logs")
    logs = shared_place / "times of clients"
    logs.mkdir()
    for path in server.data.glob("mysql-bin.0*"):
        shutil.copy(path, logs)
    result = started(copy_of(backup, main=mysql_ephemeral.main), log_source=str(logs), recovery_target_time=moment)
    assert read(result) == state
    assert "1 say that they are of a time when their log had ended" in " ".join(map(str, result["warnings"]))


def test_what_is_replayed_lets_nobody_in(server: MariaDb, shared_place: Path, copy_of: Callable[..., Copy]) -> None:
    backup = server.back_up(shared_place / "accounts")
    server.sql("create user guest@'%'; grant all on *.* to guest@'%'; flush logs")
    logs = shared_place / "logs with accounts"
    logs.mkdir()
    for path in server.data.glob("mysql-bin.0*"):
        shutil.copy(path, logs)
    server.sql("drop user guest@'%'")
    result = started(copy_of(backup, main=mysql_ephemeral.main), log_source=str(logs), recovery_target="end")
    assert ask(result["client_file"], "select count(*) from mysql.user where user = 'guest'") == "1"
    with pytest.raises(pymysql.err.OperationalError, match="account is locked"):
        pymysql.connect(host="127.0.0.1", port=result["port"], user="guest")


def test_a_killed_server_is_brought_to_the_end_of_the_archived_logs(
    server: MariaDb, shared_place: Path, copy_of: Callable[..., Copy]
) -> None:
    with server.frozen():
        copy = copy_of(server, main=mysql_ephemeral.main)
    server.sql(f"insert into `{DATABASE}`.orders (item) values ('later'); flush logs; delete from `{DATABASE}`.old")
    logs = shared_place / "later"
    logs.mkdir()
    for path in server.data.glob("mysql-bin.0*"):
        shutil.copy(path, logs)
    result = started(copy, log_source=str(logs))
    assert read(result) == server.checksums()
    assert result["recovered_to"]["reason"] == "end of the archived logs"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"recovery_target": "end"}, "needs archived binary logs"),
        ({"recovery_target_time": "2001-01-01T00:00:00Z", "log_source": "LOGS"}, "is before the end of the copy"),
        (
            {"recovery_target_time": "2099-01-01T00:00:00Z", "log_source": "LOGS"},
            "was not reached: log_source .* ends",
        ),
        ({"recovery_target_gtid": "0-1-999999", "log_source": "LOGS"}, "was not reached"),
        ({"recovery_target_position": "mysql-bin.000001:4", "log_source": "LOGS"}, "is before the end of the copy"),
        ({"recovery_target_position": "mysql-bin.000003:999999999", "log_source": "LOGS"}, "was not reached"),
        ({"recovery_target": "end", "log_source": "/nonexistent"}, "cannot be read: No such file"),
        ({"recovery_target": "end", "log_source": "/etc"}, "holds no binary logs called mysql-bin.NUMBER"),
        ({"recovery_target": "end", "log_source": "GAP"}, "lacks mysql-bin.000003, so nothing after it"),
        ({"recovery_target": "end", "recovery_target_gtid": "0-1-1"}, "are given together"),
        ({"recovery_target_gtid": "x"}, "recovery_target_gtid is 'x': give the global transaction id"),
        ({"recovery_target_position": "x"}, "such as mysql-bin.000004:4672531"),
        ({"recovery_target_time": "yesterday"}, "cannot be used .it is no time."),
        ({"recovery_target": "immediate"}, "give end, which is the end of the archived binary logs"),
    ],
)
def test_targets_that_cannot_be_reached(
    story: Story, copy_of: Callable[..., Copy], place: Path, options: dict[str, str], said: str
) -> None:
    gap = place / "gap"
    shutil.copytree(story.logs, gap)
    (gap / "mysql-bin.000003").unlink()
    places = {"LOGS": str(story.logs), "GAP": str(gap)}
    copy = copy_of(story.backup, main=mysql_ephemeral.main)
    refused = copy.start(**{name: places.get(value, value) for name, value in options.items()})
    assert refused["failed"]
    assert re.search(said, refused["msg"]), refused["msg"]
    assert copy.left() == []
