# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Each major version of PostgreSQL on the whole way: from an encrypted repository to a server that answers."""

from __future__ import annotations

import time
from contextlib import closing
from typing import TYPE_CHECKING, Any

import psycopg2
import pytest
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._postgresql.settings import guards
from ansible_collections.phpborg.instant_recovery.plugins.modules import pg_ephemeral

from tests.support.cluster import Cluster, fingerprint
from tests.support.database_rows import asked, read
from tests.support.host import remains
from tests.support.modules import call
from tests.support.playbook import Playbooks
from tests.support.repository import Repository

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.support.stack import Stack
    from tests.versions.conftest import History, Programs


def log_in(stack: Stack, **other: Any) -> psycopg2.extensions.connection:
    """As a program would: through TCP, with the session's password unless another one is given."""
    return psycopg2.connect(stack.served["connection_string"], sslmode="disable", **other)


def steps(stack: Stack) -> list[int]:
    return [int(step) for step in stack.connection().sql("select step from ledger order by 1").splitlines()]


@pytest.mark.parametrize(("archive", "reason"), [("closed", "shut down in order"), ("crashed", "end of the WAL")])
def test_a_copy_shows_what_production_held(
    archive: str, reason: str, history: History, recover: Callable[..., Stack]
) -> None:
    stack = recover(archive, examine=True)
    assert fingerprint(stack.connection()) == history.samples[archive].tables
    assert stack.served["recovered_to"]["reason"] == reason
    assert stack.served["version"].startswith(f"{history.major}.")
    assert stack.served["data"]["not_looked_into"] == []
    assert not stack.served.get("warnings"), stack.served["warnings"]
    said = [entry["what"] for entry in stack.served["neutralised"]]
    assert "subscription s disabled and parted from its slot" in said
    assert "dynamic_library_path of roles and databases reset (dynamic_library_path=/nowhere)" in said
    stack.connection().sql("create table mine as select 1 as one; checkpoint")
    if history.major == 12:  # as the server itself advises
        stack.connection().sql("alter subscription s set (slot_name = none)")
    stack.connection().sql("drop subscription s")


def test_databases_are_known_without_a_server(history: History, recover: Callable[..., Stack]) -> None:
    told = asked(recover("closed").connection(), history.major)
    assert read(history.cluster.data, history.major) == told
    assert len(told) >= 2


def test_an_idle_session_ends_and_no_other(recover: Callable[..., Stack]) -> None:
    """Up to PostgreSQL 14 nobody counts transactions; newer servers do, but late those of a client that stays."""
    stack = recover("closed", session={"idle_timeout": "4s"})
    with closing(log_in(stack)) as connection, connection.cursor() as cursor:
        connection.autocommit = True
        for _second in range(8):
            cursor.execute("select 1")
            time.sleep(1)
        metrics = stack.info()["metrics"]
        assert (metrics["clients"], metrics["active_clients"]) == (1, 0)
    deadline = time.monotonic() + 20
    deadline = time.monotonic() + 20
    while stack.info()["status"] != "stopped" and time.monotonic() < deadline:
        time.sleep(0.5)
    assert stack.info()["stop_reason"] == "idle for 4 s"


@pytest.mark.parametrize("kind", ["backup", "exclusive backup"])
def test_a_low_level_backup_shows_the_moment_of_its_end(
    kind: str, history: History, recover: Callable[..., Stack]
) -> None:
    if kind not in history.samples:
        pytest.skip(f"PostgreSQL {history.major} has no exclusive backups")
    missing = {"log_source": str(history.wal), "recovery_target": "immediate"}
    for archive, options in ((kind, {}), (f"{kind}, cut off", missing)):
        stack = recover(archive, **options)
        assert fingerprint(stack.connection()) == history.samples[archive].tables
    # The server would start, on files that were copied at different moments.
    with pytest.raises(AssertionError, match=r"^The WAL ends before the backup did: segment \w{24} is missing\. To"):
        recover(f"{kind}, cut off")


def test_a_point_in_time(history: History, recover: Callable[..., Stack]) -> None:
    where = {"log_source": str(history.wal)}
    stack = recover("backup, cut off", recovery_target_time=history.times[1], **where)
    assert steps(stack) == [1, 2]
    assert stack.served["recovered_to"]["reason"].startswith("stopping before commit")
    # In the copy itself the WAL goes as far as the backup did.
    with pytest.raises(AssertionError, match="recovery_target_name nothing was not reached: the WAL ends at"):
        recover("backup", recovery_target_name="nothing")
    with pytest.raises(AssertionError, match="is before the end of the copy"):
        recover("backup, cut off", recovery_target_lsn="0/1", **where)


def test_a_tablespace_in_the_wal_is_made_in_the_copy(history: History, recover: Callable[..., Stack]) -> None:
    stack = recover("backup, cut off", recovery_target_time=history.times[2], log_source=str(history.wal))
    assert steps(stack) == [1, 2, 3]
    assert stack.connection().sql("select count(*), sum(i) from there") == "1000|500500"
    stack.connection().sql("insert into there values (1); checkpoint")
    assert list(history.space.iterdir()) == []
    said = [entry["what"] for entry in stack.served["neutralised"] if "taken out of the WAL" in entry["what"]]
    assert [what.partition(" in ")[2] for what in said] == [f"{history.space} taken out of the WAL"]


def test_wal_that_lacks_data_is_refused(history: History, recover: Callable[..., Stack]) -> None:
    with pytest.raises(AssertionError, match=r"^The WAL was partly written with wal_level=minimal, so nothing beyond"):
        recover("backup, cut off", log_source=str(history.wal))


def test_the_settings_of_a_session_are_those_of_its_server(history: History, recover: Callable[..., Stack]) -> None:
    stack = recover("crashed", settings={"work_mem": "8MB"})
    wanted = {**guards(history.major), "TimeZone": "Asia/Kathmandu", "work_mem": "8192", "fsync": "off"}
    wanted["archive_command"] = "(disabled)"  # as it is shown without archive_mode
    with closing(log_in(stack)) as connection, connection.cursor() as cursor:
        cursor.execute("select name, setting from pg_settings where source in ('command line', 'configuration file')")
        known = dict(cursor.fetchall())
    del wanted["dynamic_library_path"]  # its default, which may be told as such
    assert {name: known.get(name, "") for name in wanted} == wanted
    assert {name for name in stack.served["settings"] if name not in known} == set()


def test_the_sessions_role_logs_in_with_its_password_and_only_reads(recover: Callable[..., Stack]) -> None:
    stack = recover("closed", read_only=True)
    with closing(log_in(stack)) as connection, connection.cursor() as cursor:
        cursor.execute("select rolpassword like 'SCRAM-SHA-256$%', inet_server_addr() from pg_authid"
                       " where rolname = current_user")  # fmt: skip
        assert cursor.fetchone() == (True, "127.0.0.1")
        with pytest.raises(psycopg2.Error, match="read-only transaction"):
            cursor.execute("create table mine as select 1 as one")
    with pytest.raises(psycopg2.OperationalError, match="password authentication failed"):
        log_in(stack, password="wrong")


def test_a_server_is_stopped_and_started_again(history: History, recover: Callable[..., Stack]) -> None:
    stack = recover("crashed")
    stack.connection().sql("create table mine as select 1 as one")
    session = {"session_directory": str(stack.directory)}
    again = call(pg_ephemeral.main, state="restarted", **session)
    assert again["changed"], again
    assert again["recovered_to"] == stack.served["recovered_to"]
    assert stack.connection().sql("select one from mine") == "1"
    data = f"{stack.begun['directories']['merged']}/{history.samples['crashed'].data_directory}"
    for changed in (True, False):
        assert call(pg_ephemeral.main, state="stopped", data_directory=data, **session)["changed"] is changed
    stack.reset()
    assert fingerprint(stack.connection()) == history.samples["crashed"].tables


def test_an_older_version_is_refused(older_server: Programs, place: Path) -> None:
    repository = Repository(directory=place / "repository", base=place / "borg")
    repository.create()
    with Cluster(directory=place / "production", bindir=older_server.bindir) as cluster:
        cluster.stop()
        repository.archive("old", cluster.data)
    root = place / "sessions"
    playbooks = Playbooks(directory=place / "ansible", session_root=root, environment=repository.environment)
    started = playbooks.start(archive=f"{repository.location}::old")
    assert started.returncode != 0
    assert "is of PostgreSQL 11; sessions can be started from 12 and newer" in started.message
    assert remains(root) == []
