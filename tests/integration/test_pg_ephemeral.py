# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""pg_ephemeral on real PostgreSQL clusters, copied to plain directories that play the merged tree."""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._engine.links import find_links
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._host.processes import identify
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._host.users import processes_of
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._postgresql.control import crc32c
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._postgresql.server import CLIENT_WORDS
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._postgresql.wal import Scan, Start, scan
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._session.metrics import measure
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._session.session import Session
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._session.teardown import tear_down

import instant_recovery as api
from instant_recovery._postgresql import OWN_WORDS
from tests.support.cluster import DATABASE, QUIET, Cluster, Connection
from tests.support.copies import Copy
from tests.support.empty_fuse import empty_fuse
from tests.support.forked import forked
from tests.support.host import free_port, processes_below
from tests.support.user import ordinary_user

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="runs servers as other users: needs root")
OWNER = "postgres" if os.geteuid() == 0 else pwd.getpwuid(os.geteuid()).pw_name


@pytest.fixture(scope="module")
def crashed(shared_place: Path) -> Iterator[Cluster]:
    """A cluster that was killed in the middle of writes. Tests copy it and leave it alone."""
    with Cluster(directory=shared_place / "crashed") as cluster:
        cluster.populate()
        cluster.crash()
        yield cluster


@pytest.fixture(scope="module")
def closed(shared_place: Path) -> Iterator[Cluster]:
    """A small cluster that was shut down in order."""
    with Cluster(directory=shared_place / "closed") as cluster:
        cluster.sql("create table t (id int primary key); insert into t values (1), (2)", database="postgres")
        cluster.stop()
        yield cluster


@pytest.fixture
def production(place: Path, closed: Cluster) -> Iterator[Callable[..., Cluster]]:
    """Starts servers that play production: each on data of its own, with these settings."""
    made: list[Cluster] = []

    def make(**settings: str) -> Cluster:
        cluster = Cluster(directory=place / f"production{len(made)}")
        cluster.run.mkdir(parents=True)
        subprocess.run(["cp", "-a", str(closed.data), str(cluster.data)], check=True)
        for path in (cluster.directory, cluster.run):
            shutil.chown(path, OWNER)
        own = {"unix_socket_directories": str(cluster.run), **settings}
        with (cluster.data / "postgresql.auto.conf").open("a") as file:
            file.write("".join(f"{name} = '{value}'\n" for name, value in own.items()))
        cluster.start()
        made.append(cluster)
        return cluster

    yield make
    for cluster in made:
        cluster.close()


def whats(result: dict[str, Any]) -> list[str]:
    return [entry["what"] for entry in result["neutralised"]]


def psql(result: dict[str, Any], statement: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """As a person would: psql service=instant_recovery."""
    return subprocess.run(
        [f"{result['bindir']}/psql", "-X", "-w", "-A", "-t", "-c", statement, "service=instant_recovery"],
        env={"PATH": "/usr/bin:/bin", "PGSERVICEFILE": result["client_file"], **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_a_name_of_the_archive_that_looks_like_a_variable_is_a_name(
    closed: Cluster, copy_of: Callable[..., Copy], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ansible would put in what the environment has by that name, and messages and logs would tell it."""
    monkeypatch.setenv("BORG_PASSPHRASE", "hush")
    copy = copy_of(closed)
    for name in ("data_directory", "log_source"):
        refused = copy.start(**{name: f"{copy.tree}/$BORG_PASSPHRASE"})
        assert f"{copy.tree}/$BORG_PASSPHRASE" in refused["msg"], refused["msg"]
        assert "hush" not in str(refused)


def through_tcp(result: dict[str, Any], statement: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """By the URL, in which only the file with the password is named; with PGUSER as somebody else."""
    url = result["connection_string"]
    if environment:
        url = url.replace("instant_recovery@", "").partition("?")[0]
    return through_url({**result, "connection_string": url}, statement, **environment)


def through_url(result: dict[str, Any], statement: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """By the URL as it is, with these variables in the client's environment."""
    return subprocess.run(
        [f"{result['bindir']}/psql", "-X", "-w", "-A", "-t", "-c", statement, result["connection_string"]],
        env={"PATH": "/usr/bin:/bin", "HOME": "/nonexistent", **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_a_crashed_copy_is_recovered_and_can_be_queried_and_written(
    crashed: Cluster, copy_of: Callable[..., Copy]
) -> None:
    copy = copy_of(crashed)
    result = copy.start()
    assert result["changed"], result
    assert result["superuser"] == crashed.superuser
    assert result["user"] == "instant_recovery"
    assert set(result["databases"]) == {"postgres", DATABASE}
    assert int(copy.sql("select count(*) from pgbench_history", database=DATABASE)) > 0
    copy.sql("create table mine as select 1 as one", database=DATABASE)
    answer = psql(result, "select current_user, rolsuper, current_setting('data_directory') from pg_roles"
                          " where rolname = current_user")  # fmt: skip
    assert answer.stdout.strip() == f"instant_recovery|t|{copy.data}", answer.stderr
    assert "redo done" in copy.log()


def test_check_start_again_stop_again(closed: Cluster, copy_of: Callable[..., Copy]) -> None:
    copy = copy_of(closed)
    before = digest(copy.tree)
    predicted = copy.start(check=True)
    assert predicted["changed"]
    assert digest(copy.tree) == before
    assert copy.left() == []

    started = copy.start()
    assert started["changed"]
    assert started.keys() == predicted.keys()
    assert set(whats(predicted)) <= set(whats(started))
    for again in (copy.start(), copy.start(check=True), copy.start(port=started["port"])):
        assert not again["changed"]
        calls = dict.fromkeys(("changed", "diff", "elapsed", "invocation", "session"))
        assert {**again, **calls} == {**started, **calls}

    assert copy.stop(check=True)["changed"]
    assert copy.stop()["changed"]
    for again in (copy.stop(), copy.stop(check=True)):
        assert not again["changed"]
        assert again.keys() == started.keys()
    assert copy.left() == []


def test_a_running_server_is_not_started_otherwise(closed: Cluster, copy_of: Callable[..., Copy]) -> None:
    copy = copy_of(closed)
    copy.start(settings={"work_mem": "8MB"})
    for options, said in (
        ({"port": 15999}, "port 15432"),
        ({"read_only": True}, "read_only False"),
        ({"settings": {"work_mem": "16MB"}}, "work_mem 8MB"),
    ):
        result = copy.start(**options)
        assert result["failed"]
        assert said.split()[0] in result["msg"]
        assert "stop it first" in result["msg"]
    assert not copy.start(settings={"work_mem": "8MB"})["changed"]


def test_only_the_session_role_gets_in_through_tcp(closed: Cluster, copy_of: Callable[..., Copy]) -> None:
    copy = copy_of(closed)
    result = copy.start()
    copy.sql("create role visitor login password 'known'")
    assert psql(result, "select 1").stdout == "1\n"
    assert through_tcp(result, "select current_user").stdout == "instant_recovery\n"
    for refused in ({"PGUSER": "visitor", "PGPASSWORD": "known"}, {"PGUSER": "instant_recovery", "PGPASSWORD": "no"}):
        assert through_tcp(result, "select 1", **refused).returncode != 0
    for path in (copy.client / "pgpass", copy.client / "pg_service.conf"):
        assert path.stat().st_mode & 0o777 == 0o600, path
    for name in ("postgresql.conf", "pg_hba.conf"):
        state = (copy.directory / "config" / name).stat()
        assert (state.st_uid, state.st_mode & 0o137) == (os.geteuid(), 0), name
    password = (copy.client / "pgpass").read_text().strip().rpartition(":")[2]
    assert password not in json.dumps(result)
    assert password not in copy.log()
    listening = subprocess.run(["ss", "-ltnH"], capture_output=True, text=True, check=False).stdout
    if listening:
        assert f"127.0.0.1:{result['port']}" in listening
        assert f"0.0.0.0:{result['port']}" not in listening


INSISTED_ON = {
    "PGHOST": "192.0.2.1",
    "PGHOSTADDR": "192.0.2.1",
    "PGPORT": "1",
    "PGUSER": "nobody",
    "PGDATABASE": "nowhere",
    "PGPASSWORD": "another",
    "PGPASSFILE": "/dev/null",
    "PGOPTIONS": "-c role=nobody",
    "PGCHANNELBINDING": "require",
    "PGREQUIREAUTH": "md5",
    "PGREQUIREPEER": "nobody",
    "PGTARGETSESSIONATTRS": "standby",
    "PGSSLMODE": "verify-full",
    "PGREQUIRESSL": "1",
    "PGSSLROOTCERT": "system",
    "PGSSLCERTMODE": "require",
    "PGSSLNEGOTIATION": "direct",
    "PGSSLMINPROTOCOLVERSION": "TLSv1.3",
    "PGGSSENCMODE": "require",
    "PGSERVICE": "production",
    "PGTZ": "Asia/Tokyo",
}
IN_NO_URL = ("PGREQUIREAUTH", "PGSSLCERTMODE", "PGSSLNEGOTIATION")  # words that libpq 13 does not know


def test_what_a_client_s_environment_insists_on_does_not_count(
    closed: Cluster, place: Path, copy_of: Callable[..., Copy], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Production's host, certificates, roles and options; the session has none of them. Also what psycopg2 is told."""
    copy = copy_of(closed)
    result = copy.start()
    session = api.Session.from_record({"id": copy.directory.name, "status": "active", "engine": "postgresql", **result})
    services = place / "services"
    services.write_text("[production]\nhost=192.0.2.1\nsslmode=verify-full\noptions=-c role=nobody\nuser=nobody\n")
    asked = "select current_user"
    known = {}
    for name, value in [*INSISTED_ON.items(), ("PGCONNECT_TIMEOUT", "5")]:
        others = INSISTED_ON if name == "PGCONNECT_TIMEOUT" else {name: value}  # in the end all of them at once
        known[name, "line"] = psql(result, asked, **others).stdout
        in_url = {key: one for key, one in others.items() if key not in IN_NO_URL}
        known[name, "URL"] = through_url(result, asked, PGSERVICEFILE=str(services), **in_url).stdout
        with monkeypatch.context() as patched:
            for key, one in (("PGSERVICEFILE", str(services)), *others.items()):
                patched.setenv(key, one)
            with contextlib.closing(session.connect()) as connection, connection.cursor() as cursor:
                cursor.execute(asked)
                known[name, "API"] = f"{cursor.fetchone()[0]}\n"
    assert {way: said for way, said in known.items() if said != "instant_recovery\n"} == {}
    assert {word: value for word, value, _since in OWN_WORDS} == {word: value for word, value, _since in CLIENT_WORDS}


def test_read_only_holds_against_settings_of_roles_and_databases(
    production: Callable[..., Cluster], copy_of: Callable[..., Copy]
) -> None:
    source = production()
    source.sql(
        'alter role "chief dba" set default_transaction_read_only = off;'
        "alter database postgres set default_transaction_read_only = off;"
        'alter role "chief dba" in database postgres set default_transaction_read_only = off;'
        "alter role \"chief dba\" set work_mem = '7MB'",
        database="postgres",
    )
    source.stop()
    copy = copy_of(source)
    result = copy.start(read_only=True)
    assert result["read_only"] is True
    show = "select current_setting('default_transaction_read_only') || current_setting('work_mem')"
    assert copy.sql(show) == "on4MB"
    assert copy.sql(show, user=source.superuser) == "on7MB"
    assert any("default_transaction_read_only of roles and databases reset" in what for what in whats(result))
    with pytest.raises(RuntimeError, match="read-only transaction"):
        copy.sql("create table t ()", user=source.superuser)


SET_FOR_PRODUCTION = (
    "create role app nologin; create table secret as select generate_series(1, 1000) i;"
    "create schema evil; create table evil.secret as select 0 i;"
    "alter role all set statement_timeout = '20ms'; alter role all set lock_timeout = '1ms';"
    "alter role all set idle_in_transaction_session_timeout = '1ms';"
    "alter role all set work_mem = '64kB';"
    "alter database postgres set role = 'app'; alter database template1 set role = 'app';"
    "alter database postgres set session_authorization = 'app';"
    "alter database postgres set search_path = evil, pg_catalog;"
    "alter database postgres set default_transaction_read_only = on;"
    "alter database postgres set default_transaction_isolation = 'serializable';"
    "alter database postgres set transaction_read_only = on;"
    "alter database postgres set \"TimeZone\" = 'Asia/Tokyo'; alter database postgres set app.tenant = 'seven';"
    "alter database postgres set session_preload_libraries = 'gone'; alter database postgres set jit = 'on';"
    "alter role \"chief dba\" set work_mem = '7MB';"
    # As no command writes them, but a hostile archive may.
    "update pg_db_role_setting set setconfig = array_append(setconfig, 'Local-Preload_libraries=evil')"
    " where setdatabase <> 0"
)


def test_what_databases_set_for_production_does_not_count_for_the_session(
    production: Callable[..., Cluster], copy_of: Callable[..., Copy]
) -> None:
    source = production()
    source.sql(SET_FOR_PRODUCTION, database="postgres")
    source.stop()
    copy = copy_of(source)
    result = copy.start(settings={"lock_timeout": "7s"})
    assert "failed" not in result, result
    asked = (
        "select current_user, session_user, (select count(*) from secret), current_setting('statement_timeout'),"
        " current_setting('lock_timeout'), current_setting('work_mem'), current_setting('search_path'),"
        " current_setting('default_transaction_read_only'), current_setting('TimeZone'), current_setting('app.tenant'),"
        " current_setting('default_transaction_isolation'), current_setting('jit'), pg_sleep(0.1)"
    )
    expected = 'instant_recovery|instant_recovery|1000|0|7s|4MB|"$user", public|off|Asia/Tokyo|seven|serializable|off|'
    assert psql(result, asked).stdout.strip() == expected
    assert through_tcp(result, asked).stdout.strip() == expected
    copy.sql("create table mine ()")
    assert result["data"]["not_looked_into"] == []
    check_what_is_told(result)
    # As production's own roles log in, everything is as it was, but for what would have run code.
    own = "set statement_timeout = 0; select current_setting('work_mem'), current_setting('search_path')"
    assert copy.sql(own, user=source.superuser) == "7MB|evil, pg_catalog"
    assert "Asia/Tokyo" in copy.sql("select setconfig from pg_db_role_setting where setrole = 0 and setdatabase <> 0")
    # Stopped and started again: what the user sets in the session is subject to the same.
    copy.sql("alter database postgres set role = 'app'; alter role instant_recovery set statement_timeout = 1")
    copy.stop()
    again = copy.start(settings={"TimeZone": "UTC"}, port=free_port())  # the old one may be another test's by now
    shown = "select current_user, current_setting('statement_timeout'), current_setting('TimeZone')"
    assert psql(again, shown).stdout == "instant_recovery|0|UTC\n"


def check_what_is_told(result: dict[str, Any]) -> None:
    """What was reset or overruled, and what stays."""
    what, stays = " ".join(whats(result)), [entry["what"] for entry in result["carried_over"]]
    for said in (
        "role of roles and databases reset (role=app)",
        "Local-Preload_libraries of roles and databases reset",
        "statement_timeout=20ms, set for all roles, overruled for instant_recovery (statement_timeout=0)",
        'search_path=evil, pg_catalog, set for database postgres, overruled for instant_recovery (search_path="$user"',
    ):
        assert said in what
    assert "TimeZone=Asia/Tokyo, set for database postgres" in stays
    assert "app.tenant=seven, set for database postgres" in stays


def test_what_is_set_in_the_session_does_not_count_for_its_keeper(
    closed: Cluster, copy_of: Callable[..., Copy]
) -> None:
    copy = copy_of(closed)
    copy.start()
    copy.sql(
        "create role app nologin; alter database template1 set role = 'app';"
        "alter role instant_recovery set statement_timeout = 1; alter role all set idle_session_timeout = 1;"
        "alter role instant_recovery in database template1 set search_path = evil, pg_catalog;"
        "alter role instant_recovery in database template1 set role = app"
    )
    sample = measure(Session.open(str(copy.directory)))
    assert sample["clients"] == 0
    assert sample["queries"] > 0


def test_nothing_of_the_archived_configuration_is_used(
    place: Path, production: Callable[..., Cluster], copy_of: Callable[..., Copy]
) -> None:
    evidence = place / "evidence"
    evidence.mkdir()
    evidence.chmod(0o777)
    source = production()
    source.sql("create table u (id int)", database="postgres")
    source.stop(mode="immediate")
    settings = dangerous_settings(evidence)
    with (source.data / "postgresql.conf").open("a") as file:
        file.write("".join(f"{name} = '{value}'\n" for name, value in settings.items()))
    with (source.data / "postgresql.auto.conf").open("a") as file:
        file.write(f"archive_command = 'cp %p {evidence}/auto-%f'\nsession_preload_libraries = 'nowhere'\n")
    copy = copy_of(source)
    result = copy.start()
    assert "failed" not in result, result
    assert result["port"] != 15999
    assert whats(result)[0].startswith("postgresql.auto.conf emptied (archive_command, checkpoint_timeout, ")
    assert "library pg_cron not preloaded" in whats(result)
    shown = copy.sql(
        "select string_agg(name || '=' || setting, ' ' order by name) from pg_settings where name in ('archive_mode',"
        " 'TimeZone', 'shared_preload_libraries', 'listen_addresses', 'huge_pages', 'archive_command')"
    )
    assert result["settings"]["TimeZone"] == "Europe/Berlin"
    assert "shared_preload_libraries=pg_stat_statements,auto_explain" in shown
    assert "listen_addresses=127.0.0.1" in shown
    assert "lc_numeric" not in result["settings"]
    copy.sql(f"alter system set archive_command = 'touch {evidence}/altered'")
    copy.sql("select pg_reload_conf()")
    copy.sql("create table w as select 1; select pg_switch_wal(); checkpoint")
    copy.stop()
    assert list(evidence.iterdir()) == []
    # What the archive had set comes back with the next start, and what the session set stays.
    assert copy.start()["settings"]["TimeZone"] == "Europe/Berlin"
    assert "altered" in copy.path("postgresql.auto.conf").read_text()


def dangerous_settings(evidence: Path) -> dict[str, str]:
    """What production may have configured; most of it would leave a file in evidence."""
    return {
        "archive_mode": "always",
        "archive_command": f"cp %p {evidence}/%f",
        "restore_command": f"touch {evidence}/restored; false",
        "archive_cleanup_command": f"touch {evidence}/cleaned",
        "recovery_end_command": f"touch {evidence}/ended",
        "primary_conninfo": "host=127.0.0.1 port=1",
        "external_pid_file": f"{evidence}/pid",
        "logging_collector": "on",
        "log_directory": str(evidence),
        "listen_addresses": "*",
        "port": "15999",
        "unix_socket_directories": str(evidence),
        "shared_buffers": "100GB",
        "huge_pages": "on",
        "synchronous_standby_names": "somebody",
        "ssl": "on",
        "shared_preload_libraries": "pg_stat_statements,pg_cron,auto_explain",
        "TimeZone": "Europe/Berlin",
        "lc_numeric": "xx_XX.nowhere",
    }


def test_a_configuration_counts_with_what_it_includes(closed: Cluster, copy_of: Callable[..., Copy]) -> None:
    """As Patroni and Debian have it, and a container whose server was given a setting on its command line."""
    copy = copy_of(closed)
    copy.path("base.conf").write_text("timezone = 'Asia/Tokyo'\n")
    copy.path("conf.d").mkdir()
    copy.path("conf.d/10.conf").write_text("datestyle = 'german'\n")
    copy.path("postgresql.conf").write_text("include 'base.conf'\ninclude_dir = 'conf.d'\ninclude '/srv/gone.conf'\n")
    options = copy.path("postmaster.opts")
    options.write_text(options.read_text().rstrip("\n") + ' "-c" "bytea_output=escape"\n')
    copy.own()
    for check in (True, False):
        result = copy.start(check=check)
        assert "failed" not in result, result
        kept = " ".join(entry["what"] for entry in result["carried_over"])
        assert "TimeZone=Asia/Tokyo, DateStyle=german" in kept
        (said,) = [str(one) for one in result["warnings"] if "The archived configuration includes" in str(one)]
        assert "/srv/gone.conf" in said
    shown = "select current_setting('TimeZone'), date '2026-11-26', '\\x41'::bytea"
    assert psql(result, shown).stdout == "Asia/Tokyo|26.11.2026|A\n"
    # A start anew finds what the archive said, and not what this server was started with.
    copy.stop()
    assert psql(copy.start(), shown).stdout == "Asia/Tokyo|26.11.2026|A\n"


def test_tablespaces_and_wal_are_taken_from_the_tree(place: Path, copy_of: Callable[..., Copy]) -> None:
    outside = place / "fast disk"
    wal = place / "wal"
    outside.mkdir()
    shutil.chown(outside, OWNER)
    source = Cluster(directory=place / "source", initdb_options=[f"--waldir={wal}"])
    shutil.chown(place, OWNER)
    with source:
        source.sql(f"create tablespace fast location '{outside}'", database="postgres")
        source.sql("create table t tablespace fast as select generate_series(1, 1000) i", database="postgres")
        source.stop(mode="immediate")
        for path in (outside, wal):
            shutil.chown(path, OWNER)
        before = {path: digest(path) for path in (outside, wal)}
        copy = copy_of(source)
        for path in (outside, wal):
            copy.add(path)
        result = copy.start()
        assert "failed" not in result, result
        assert f"pg_wal re-pointed to {copy.tree}{wal}" in whats(result)
        assert copy.sql("select count(*), pg_tablespace_location(oid) from t, pg_tablespace"
                        " where spcname = 'fast' group by 2") == f"1000|{copy.tree}{outside}"  # fmt: skip
        copy.sql("insert into t select 1; create table u tablespace fast as select * from t; checkpoint")
        copy.stop()
        assert {path: digest(path) for path in (outside, wal)} == before
        for link in find_links(str(copy.data)):
            assert os.path.realpath(link.path).startswith(f"{copy.tree}/")


def test_links_out_of_the_copy_are_refused_before_anything_is_opened(
    closed: Cluster, place: Path, copy_of: Callable[..., Copy]
) -> None:
    copy = copy_of(closed)
    live = place / "live"
    shutil.copytree(closed.data, live)
    (copy.data / "pg_tblspc" / "16999").symlink_to(live / "base")
    shutil.rmtree(copy.data / "pg_xact")
    (copy.data / "pg_xact").symlink_to(live / "pg_xact")
    (copy.data / "base" / "1" / "1259").unlink()
    (copy.data / "base" / "1" / "1259").symlink_to(live / "base" / "1" / "1259")
    before = digest(copy.tree)
    for check in (True, False):
        result = copy.start(check=check)
        assert result["failed"]
        assert "tablespace 16999" in result["msg"]
        assert "pg_xact is a link" in result["msg"]
        assert "base/1/1259 is a link" in result["msg"]
        assert len(result["problems"]) == 3
    assert digest(copy.tree) == before


# Links in these places are of no use to a session, and go; elsewhere one that leads out is refused.
USELESS = (
    *("pg_replslot", "pg_stat_tmp", "postgresql.auto.conf", "postmaster.pid", "standby.signal"),
    *("recovery.signal", "recovery.conf", "conf.d", "log"),
)
SOUGHT = (
    *("global/pg_control", "global/1262", "global/pg_filenode.map", "pg_wal/archive_status", "pg_wal/00000002.history"),
    *("base/1", "base/1/1259", "pg_tblspc/16400", "pg_replslot/slot", "pg_logical/mappings"),
    *("instant_recovery_left_out", "backup_label", "backup_manifest", "tablespace_map"),
    *("postmaster.opts.archived", "postgresql.auto.conf.archived"),
)


def test_where_links_of_the_archive_lead_on_this_host_is_not_even_looked_at(
    closed: Cluster, place: Path, copy_of: Callable[..., Copy]
) -> None:
    """There may be an automatic mount, by which an archive could have root ask a server of its choice, or wait."""
    trap, log, kept = place / "trap", place / "looked for", place / "kept"
    trap.mkdir()
    copy = copy_of(closed)
    segments = [f"pg_wal/{name}" for name in os.listdir(copy.path("pg_wal")) if len(name) == 24]
    with empty_fuse(str(trap), log=str(log)):
        assert not (trap / "seen").exists()
        for name in (*USELESS, *SOUGHT, *segments, *os.listdir(copy.data)):
            linked = copy.path(name)
            if linked.exists():
                linked.rename(kept)
            linked.symlink_to(trap / name.replace("/", "-"))
            for missing in ("refuse", "leave_out"):
                result = copy.start(check=True, missing_tablespaces=missing)
                assert "msg" not in result or re.search("copy|data_directory", result["msg"]), (name, result)
            linked.unlink()
            if kept.exists():
                kept.rename(linked)
        for name in USELESS:
            if copy.path(name).exists():
                copy.path(name).rename(f"{kept}-{name}")
            copy.path(name).symlink_to(trap / name)
        copy.own()
        assert "msg" not in (result := copy.start()), result
        assert copy.sql("select 1") == "1"
        assert set(log.read_text().split("\n")) == {"seen", ""}


def test_what_makes_a_standby_of_it_is_removed(closed: Cluster, copy_of: Callable[..., Copy]) -> None:
    copy = copy_of(closed)
    for name in ("standby.signal", "recovery.signal", "recovery.conf", "postmaster.pid"):
        copy.path(name).write_text(f"{os.getpid()}\n" if name == "postmaster.pid" else "")
    slot = copy.path("pg_replslot/for_standby")
    slot.mkdir()
    (slot / "state").write_bytes(b"anything")
    copy.own()
    copy.data.chmod(0o755)
    result = copy.start()
    assert "failed" not in result, result
    assert {
        "mode of the data directory changed from 0755 to 0700",
        *("postmaster.pid removed", "standby.signal removed", "recovery.signal removed", "recovery.conf removed"),
        "replication slot for_standby removed",
    } <= set(whats(result))
    assert copy.sql("select pg_is_in_recovery()") == "f"
    os.kill(os.getpid(), 0)


def test_a_subscription_is_cut_off(production: Callable[..., Cluster], copy_of: Callable[..., Copy]) -> None:
    publisher = production(wal_level="logical")
    publisher.sql("create table u (id int); create publication p for all tables", database="postgres")
    subscriber = production()
    conninfo = f"host={publisher.run} port=5432 dbname=postgres user=''chief dba''"
    publisher.sql("select pg_create_logical_replication_slot('s', 'pgoutput')", database="postgres")
    subscriber.sql("create table u (id int)", database="postgres")
    subscriber.sql(
        f"create subscription s connection '{conninfo}' publication p "
        # Copying the table would make a second slot, which outlives the killed subscriber for a moment.
        "with (create_slot = false, copy_data = false)",
        database="postgres",
    )
    subscriber.stop(mode="immediate")
    copy = copy_of(subscriber)
    active = "select active, confirmed_flush_lsn from pg_replication_slots"
    wait_for(lambda: publisher.sql(active, database="postgres").startswith("f|"))
    before = publisher.sql(active, database="postgres")
    result = copy.start()
    assert "failed" not in result, result
    assert "subscription s disabled and parted from its slot" in whats(result)
    publisher.sql("insert into u values (1)", database="postgres")
    assert copy.sql("select subenabled, subslotname is null from pg_subscription") == "f|t"
    copy.sql("drop subscription s")
    assert publisher.sql(active, database="postgres") == before


def test_a_superuser_who_may_not_log_in_and_no_database_postgres(
    production: Callable[..., Cluster], copy_of: Callable[..., Copy]
) -> None:
    name = "Ünsere \"DBA\" \\ 'x'"
    source = production()
    quoted = name.replace('"', '""')
    source.sql("create role tmp superuser login", database="postgres")
    source.sql('create database "only one; here"', database="postgres")
    renamer = Connection(
        socket_directory=str(source.run), port=5432, user="tmp", bindir=source.bindir, os_user=source.os_user
    )
    renamer.sql(f'alter role "chief dba" rename to "{quoted}"; alter role "{quoted}" nologin', database="template1")
    renamer.sql("drop database postgres", database="template1")
    subprocess.run(["kill", "-QUIT", str(source.pid)], check=True)
    wait_for(lambda: source.pid is None)
    copy = copy_of(source)
    result = copy.start()
    assert "failed" not in result, result
    assert result["recovered_to"]["reason"] == "end of the WAL"
    assert result["recovered_to"]["time"] is not None
    assert result["superuser"] == name
    assert result["databases"] == ["only one; here"]
    assert psql(result, "select current_database()").stdout.strip() == "only one; here"
    assert "/only%20one%3B%20here?" in result["connection_string"]


def test_bad_input_is_one_clear_sentence_and_leaves_nothing(
    closed: Cluster, place: Path, copy_of: Callable[..., Copy]
) -> None:
    copy = copy_of(closed)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        for options, said in (
            ({"data_directory": str(copy.tree / "no")}, "cannot be read: No such file"),
            ({"data_directory": str(place)}, f"is not a directory of the copy in {copy.tree}"),
            ({"data_directory": f"{copy.tree}/../run"}, "is not a directory of the copy"),
            ({"data_directory": str(copy.tree)}, "is not a PostgreSQL data directory"),
            ({"port": port}, f"port {port} is taken on 127.0.0.1"),
            ({"port": 80}, "port 80 is out of range"),
            ({"port": 70000}, "port 70000 is out of range"),
            ({"bindir": "/usr/bin"}, "bindir /usr/bin"),
            ({"settings": {"archive_mode": "on"}}, "archive_mode cannot be set"),
            ({"settings": {"Data_Directory": "/"}}, "Data_Directory cannot be set"),
            ({"settings": {"work_mem; drop": 1}}, "is not the name of a setting"),
            ({"settings": {"no_such_setting": 1}}, 'unrecognized configuration parameter "no_such_setting"'),
            ({"settings": {"work_mem": "much"}}, "invalid value for parameter"),
        ):
            result = copy.start(**options)
            assert result["failed"], options
            assert said in result["msg"], options
            assert processes_below(place) == []
            assert copy.left() == []


@pytest.mark.parametrize(("version", "said"), [("13", "postgresql-13"), ("9.6", "sessions can be started from 12")])
def test_a_version_that_is_not_here(
    version: str, said: str, closed: Cluster, copy_of: Callable[..., Copy], monkeypatch: pytest.MonkeyPatch
) -> None:
    """pg_control of another version is made by no means here, so its catalog version is taken as unknown."""
    from ansible_collections.phpborg.instant_recovery.plugins.module_utils._postgresql import control as _pg_control

    copy = copy_of(closed)
    copy.path("PG_VERSION").write_text(f"{version}\n")
    monkeypatch.setattr(_pg_control, "_MAJORS", {})
    result = copy.start()
    assert result["failed"]
    assert said in result["msg"]


def test_a_copy_that_cannot_be_recovered_says_why(closed: Cluster, copy_of: Callable[..., Copy]) -> None:
    copy = copy_of(closed)
    segments = [path for path in copy.path("pg_wal").iterdir() if len(path.name) == 24]
    for segment in segments:
        segment.write_bytes(bytes(segment.stat().st_size))
    result = copy.start()
    assert result["failed"]
    assert "could not locate a valid checkpoint record" in result["msg"]
    assert any("PANIC" in line for line in result["log_tail"])
    for segment in segments:
        segment.unlink()
    result = copy.start()
    assert "recovery has to begin in WAL segment" in result["msg"]


@pytest.mark.parametrize(
    ("offset", "number", "said"),
    [
        (0, 32768, "needs a server built with blocks of 32 KB, and PostgreSQL "),
        (4, 65536, "needs a server built with files of 65536 blocks, and PostgreSQL "),
        (16, 128, "needs a server built with names of 128 bytes (NAMEDATALEN), and PostgreSQL "),
        (24, 2000, "needs a server built with TOAST chunks of 2000 bytes, as on another kind of machine"),
        (32, 0, "needs a server built with numbers of 8 bytes passed as such: 0 (USE_FLOAT8_BYVAL), as on another"),
        (-12, 4, "needs a server built with values aligned to 4 bytes (MAXALIGN), as on another kind of machine"),
        (-204, 202209999, "is of a variant of PostgreSQL "),
    ],
)
def test_a_copy_of_another_build_is_refused_before_anything_starts(
    closed: Cluster, copy_of: Callable[..., Copy], offset: int, number: int, said: str
) -> None:
    """As a server writes pg_control that was built with other options, on another machine, or from other sources."""
    copy = copy_of(closed)
    control = bytearray(copy.path("global/pg_control").read_bytes())
    struct.pack_into("<I", control, control.index(struct.pack("<II", 8192, 131072)) + offset, number)
    end = 292 if copy.path("PG_VERSION").read_text() == "18\n" else 288
    struct.pack_into("<I", control, end, crc32c(control[:end]))
    copy.path("global/pg_control").write_bytes(control)
    before = digest(copy.tree)
    for check in (True, False):
        result = copy.start(check=check)
        assert result["failed"]
        assert f"The copy {said}" in result["msg"]
        assert "(bindir)" in result["msg"]
        assert "initdb" not in json.dumps(result)
    assert digest(copy.tree) == before


def test_a_backup_with_a_label_is_recovered_from_it(
    place: Path, production: Callable[..., Cluster], copy_of: Callable[..., Copy]
) -> None:
    outside = place / "space"
    outside.mkdir()
    shutil.chown(outside, OWNER)
    source = production()
    source.sql(f"create tablespace s location '{outside}'", database="postgres")
    source.sql("create table v tablespace s as select generate_series(1, 100) i", database="postgres")
    backup = place / "backup"
    mapped = place / "mapped"
    shutil.chown(place, OWNER)
    as_owner(
        *(f"{source.bindir}/pg_basebackup", "-h", str(source.run), "-p", "5432", "-U", source.superuser),
        *("-D", str(backup), "-X", "stream", "-c", "fast", f"--tablespace-mapping={outside}={mapped}"),
    )
    # As the low-level interface leaves it: the map is the only place that names the tablespace's directory.
    (link,) = (path for path in (backup / "pg_tblspc").iterdir())
    (backup / "tablespace_map").write_text(f"{link.name} {outside}\n")
    link.unlink()
    copy = copy_of(Cluster(directory=source.directory, data=backup))
    there = copy.tree / str(outside).lstrip("/")
    subprocess.run(["cp", "-a", str(mapped), str(there)], check=True)
    copy.own()
    before = digest(outside)
    result = copy.start()
    assert "failed" not in result, result
    assert "tablespace_map removed" in whats(result)
    assert copy.sql("select count(*) from v") == "100"
    assert os.readlink(copy.path(f"pg_tblspc/{link.name}")) == str(there)
    copy.sql("insert into v values (1); checkpoint")
    copy.stop()
    assert digest(outside) == before


@pytest.fixture(scope="module")
def labelled(shared_place: Path) -> Iterator[tuple[Cluster, bytes, bytes]]:
    """A copy that was made file by file while the server ran, its label, and that as psql's table."""
    with Cluster(directory=shared_place / "labelled") as cluster:
        copy = cluster.directory / "copy"
        script = cluster.directory / "script"
        older = int(Path(cluster.bindir).parent.name) < 15
        begin, end = ("pg_start_backup('x + y', true, false)", "pg_stop_backup(false)")
        begin, end = (begin, end) if older else ("pg_backup_start('x + y', true)", "pg_backup_stop(false)")
        script.write_text(
            f"select {begin};\n\\! cp -a {cluster.data} {copy}\ncreate table late as select 7 i;\n"
            f"select * from {end} \\gset\n\\o {copy}/table\n\\pset format aligned\nselect :'labelfile' labelfile;\n"
            f"\\o {copy}/plain\n\\pset format unaligned\n\\t\nselect :'labelfile';\n"
        )
        where = ("-h", str(cluster.run), "-p", "5432", "-U", cluster.superuser, "-d", "postgres")
        as_owner(f"{cluster.bindir}/psql", "-X", "-q", "-o", "/dev/null", *where, "-f", str(script))
        for segment in (cluster.data / "pg_wal").glob("?" * 24):
            shutil.copy(segment, copy / "pg_wal")
        (copy / "postmaster.pid").unlink()
        yield Cluster(directory=cluster.directory, data=copy), *((copy / n).read_bytes() for n in ("plain", "table"))


@pytest.mark.parametrize("form", ["as it is", "CR LF", "table", "no line break", "UTF-16", "expanded"])
def test_a_label_in_the_form_that_scripts_write_is_read(
    labelled: tuple[Cluster, bytes, bytes], copy_of: Callable[..., Copy], form: str
) -> None:
    source, plain, table = labelled
    text = plain.rstrip(b"\n") + b"\n"
    assert b"+\n" in table
    assert b"--------" in table
    written = {
        "as it is": text,
        "CR LF": text.replace(b"\n", b"\r\n"),
        "table": table,
        "no line break": text.rstrip(),
        "UTF-16": text.decode().encode("utf-16"),
        "expanded": b"labelfile | " + text.rstrip().replace(b"\n", b"+\n          | ") + b"\n",
    }[form]
    copy = copy_of(source)
    copy.path("backup_label").write_bytes(written)
    copy.own()
    result = copy.start()
    assert "failed" not in result, result
    assert copy.sql("select i from late") == "7"  # made after the copy had begun: it is in the WAL alone
    assert "consistent recovery state reached" in copy.log()
    mended = "backup_label brought into the form that pg_backup_stop() returned it in"
    assert (mended in whats(result)) == (form not in ("as it is", "no line break"))
    assert copy.path("backup_label.old").read_bytes().rstrip(b"\n") == text.rstrip(b"\n")


@pytest.mark.parametrize(
    ("written", "said"),
    [
        (b"", "backup_label is empty, so nobody knows where recovery has to begin"),
        (b"START WAL LOCATION: soon\n", "no line START WAL LOCATION, CHECKPOINT LOCATION, BACKUP METHOD, BACKUP FROM,"),
        # The server would go on without a word, and not wait for the backup's end.
        (
            b"START WAL LOCATION: 0/2000028 (file 000000010000000000000002)\nCHECKPOINT LOCATION: 0/2000060\n",
            "backup_label has no line BACKUP METHOD, BACKUP FROM,",
        ),
        (b"(1 row)\n" * 300000, "and begins with b'(1 row)"),
    ],
    ids=["empty", "cut off", "cut off later", "huge"],
)
def test_a_label_that_says_nothing_is_named(
    closed: Cluster, copy_of: Callable[..., Copy], written: bytes, said: str
) -> None:
    copy = copy_of(closed)
    copy.path("backup_label").write_bytes(written)
    for check in (True, False):
        result = copy.start(check=check)
        assert result["failed"]
        assert said in result["msg"]
        assert len(result["problems"]) == 1


def test_prepared_transactions_and_lost_empty_directories(
    production: Callable[..., Cluster], copy_of: Callable[..., Copy]
) -> None:
    source = production(max_prepared_transactions="7")
    source.sql("create table u (id int)", database="postgres")
    source.sql("begin; insert into u values (1); prepare transaction 'waiting'", database="postgres")
    source.stop(mode="immediate")
    copy = copy_of(source)
    for name in ("pg_notify", "pg_snapshots", "pg_stat_tmp"):
        shutil.rmtree(copy.path(name))
    result = copy.start()
    assert "failed" not in result, result
    assert "empty directory pg_notify made" in whats(result)
    assert copy.sql("select gid from pg_prepared_xacts") == "waiting"


def test_starts_at_the_same_time_come_to_different_ports(
    closed: Cluster, place: Path, copy_of: Callable[..., Copy]
) -> None:
    copies = [copy_of(closed) for _number in range(3)]
    with ThreadPoolExecutor() as pool:
        results = list(pool.map(lambda copy: forked(lambda: copy.start(port=None)), copies))
    assert all("failed" not in result for result in results), results
    assert len({result["port"] for result in results}) == 3


def test_a_session_records_the_server_and_ends_it(closed: Cluster, place: Path, copy_of: Callable[..., Copy]) -> None:
    copy = copy_of(closed)
    other = Session.create(str(copy.directory.parent), user=None, fields={})
    other.update(port=15432)
    result = copy.start(port=None)
    assert "failed" not in result, result
    record = copy.record
    assert record["port"] == result["port"] != 15432
    assert record["pid"] == result["pid"]
    assert record["client_file"] == f"{copy.directory}/client/pg_service.conf"
    assert record["timings"]["server"] > 0
    assert [claim["name"] for claim in record["claims"]] == ["server", "port"]
    warden = record["claims"][0]["process"]["pid"]
    init = Path(f"/proc/{warden}/task/{warden}/children").read_text().split()
    assert f"PPid:\t{init[0]}\n" in Path(f"/proc/{result['pid']}/status").read_text()
    assert Path(f"/proc/{result['pid']}").stat().st_uid == copy.uid
    title = Path(f"/proc/{result['pid']}/cmdline").read_bytes().decode()
    assert f"cluster_name=instant_recovery {copy.directory.name}" in title

    assert copy.stop()["changed"]
    assert copy.record["claims"] == []
    again = copy.start()
    assert again["changed"]
    os.kill(again["pid"], signal.SIGKILL)
    wait_for(lambda: identify(again["pid"]) is None)
    assert copy.end() == []
    assert tear_down(other) == []
    assert not copy.directory.exists()
    assert processes_below(copy.directory) == []


@needs_root
def test_each_session_has_a_user_that_nothing_else_has(closed: Cluster, copy_of: Callable[..., Copy]) -> None:
    one, two = copy_of(closed), copy_of(closed)
    for copy in (one, two):
        assert "failed" not in copy.start()
        with pytest.raises(KeyError):
            pwd.getpwuid(copy.uid)
    assert one.uid != two.uid
    seen = "create table seen (line text); copy seen from program $$id -un; id -G; ls /proc | grep -c ^[0-9]$$"
    one.sql(seen)
    name, groups, processes = one.sql("select string_agg(line, ',') from seen").split(",")
    assert name == f"instant-recovery-{one.uid}"
    assert groups == str(one.uid)
    assert int(processes) < 20
    uid = one.uid
    assert one.end() == []
    assert [pid for pid in processes_of(uid) if identify(pid)] == []
    assert not Path(f"/run/instant_recovery/uids/{uid}").exists()


@needs_root
def test_a_user_can_be_named_and_nobody_is_root(closed: Cluster, copy_of: Callable[..., Copy]) -> None:
    copy = copy_of(closed, user=OWNER)
    result = copy.start()
    assert Path(f"/proc/{result['pid']}").stat().st_uid == pwd.getpwnam(OWNER).pw_uid
    assert "PostgreSQL refuses to run as root" in copy_of(closed, user="root").start()["msg"]
    strange = copy_of(closed)
    os.chown(strange.data, 54321, 54321)
    assert "belongs to user id 54321, and PostgreSQL runs only as the owner" in strange.start()["msg"]


def test_what_a_session_was_recovered_to_outlives_a_stop(crashed: Cluster, copy_of: Callable[..., Copy]) -> None:
    """Stopped and started within the session: the record, the module's result and the data stay at the same point."""
    copy = copy_of(crashed)
    first = copy.start()
    assert first["recovered_to"]["reason"] == "end of the WAL", first
    reached = first["recovered_to"]
    password = (copy.client / "pgpass").read_text()
    for _again in range(2):
        assert copy.stop()["changed"]
        assert copy.record["recovered_to"] == reached
        again = copy.start()
        assert again["changed"]
        assert again["recovered_to"] == again["session"]["recovered_to"] == reached
        assert copy.record["recovered_to"] == reached
        assert (copy.client / "pgpass").read_text() != password


@needs_root
def test_an_ordinary_user_needs_nothing_of_root(closed: Cluster, place: Path) -> None:
    with ordinary_user("ir-pg-test") as user:
        home = place / "home"
        home.mkdir(mode=0o700)
        shutil.chown(home, user.pw_name)
        given = place / "given"
        subprocess.run(["cp", "-a", str(closed.data), str(given)], check=True)
        subprocess.run(["chown", "-R", f"{user.pw_name}:", str(given)], check=True)
        source = Cluster(directory=closed.directory, data=given)
        copy = forked(lambda: Copy.of(source, home / "sessions"), user=user)
        result = forked(copy.start, user=user)
        assert "failed" not in result, result
        assert Path(f"/proc/{result['pid']}").stat().st_uid == user.pw_uid
        assert psql(result, "select count(*) from t").stdout == "2\n"
        assert not forked(copy.start, user=user)["changed"]
        assert forked(copy.stop, user=user)["changed"]
        assert forked(copy.end, user=user) == []
        assert not copy.directory.exists()


def test_a_killed_server_is_cleaned_up_and_started_again(closed: Cluster, copy_of: Callable[..., Copy]) -> None:
    copy = copy_of(closed)
    first = copy.start()
    (claim,) = [one for one in copy.record["claims"] if one["name"] == "server"]
    os.kill(first["pid"], signal.SIGKILL)
    wait_for(lambda: identify(claim["process"]["pid"]) is None)  # its warden ends after it
    second = copy.start()
    assert second["changed"]
    assert copy.sql("select count(*) from t") == "2"
    os.kill(second["pid"], signal.SIGSTOP)
    stopper = ThreadPoolExecutor(1).submit(copy.stop)
    time.sleep(0.2)
    os.kill(second["pid"], signal.SIGCONT)
    assert stopper.result(timeout=60)["changed"]


def test_a_start_that_takes_too_long_is_ended(crashed: Cluster, copy_of: Callable[..., Copy]) -> None:
    copy = copy_of(crashed)
    result = copy.start(timeout=0)
    assert result["failed"]
    assert "did not finish within" in result["msg"]


def test_tablespace_records_are_found_and_silenced_wherever_they_lie(place: Path) -> None:
    """Across the ends of pages and segments too, even with the header itself parted; pg_waldump is the judge."""
    source = Cluster(directory=place / "source", initdb_options=["--wal-segsize=1"], settings=QUIET)
    with source:
        begin = source.sql("select pg_current_wal_insert_lsn()", database="postgres")
        lead = 0
        # Bytes between the record's beginning and the end of the page, and whether a segment ends there, too.
        wanted = [(200, False), *((left, segment) for left in (8, 16, 600) for segment in (False, True))]
        for number, (left, ends_segment) in enumerate(wanted):
            location = place / f"{number}{'x' * 200}" / ("y" * 200) / ("z" * 200)
            if number == 0:  # a record that fits into 255 bytes has another form
                location = place / "short"
            location.mkdir(parents=True)
            shutil.chown(location, OWNER)
            fill_wal(source, lead + left, 2**20 if ends_segment else 8192)
            before = position(source.sql("select pg_current_wal_insert_lsn()", database="postgres"))
            source.sql(f"create tablespace t{number} location '{location}'", database="postgres")
            lead = dumped(source, begin)[-1][0] - before
        source.stop(mode="immediate")
        records = dumped(source, begin)
        assert len(records) == len(wanted)
        found = [*scan(str(source.data / "pg_wal"), Start(position(begin), 1, 2**20))]
        assert [(record.oid, record.location) for record in found] == [(oid, path) for _lsn, oid, path in records]
        parted = {8192 - lsn % 8192 for lsn, _oid, _path in records}
        assert {8, 16, 600} <= parted, parted
        assert {8, 16} <= {2**20 - lsn % 2**20 for lsn, _oid, _path in records}

        # Segment by segment, as a restore_command gets them, the same is found.
        apart = set(patches_by_segment(source.data / "pg_wal"))
        assert apart == {(patch.path, patch.offset, patch.data) for record in found for patch in record.patches}
        everything = waldump(source, begin)
        for patch in (patch for record in found for patch in record.patches):
            with open(patch.path, "r+b") as file:
                file.seek(patch.offset)
                file.write(patch.data)
        assert dumped(source, begin) == []
        after = waldump(source, begin)
        assert len(after) == len(everything)
        changed = [(old, new) for old, new in zip(everything, after, strict=True) if old != new]
        assert len(changed) == len(wanted)
        assert all("desc: NOOP" in new for _old, new in changed)
        source.start()


def digest(directory: Path) -> str:
    """Of names, sizes, contents and change times of everything below directory."""
    program = r"""
import hashlib, os, sys
total = hashlib.sha256()
for place, directories, files in os.walk(sys.argv[1]):
    directories.sort()
    for name in sorted(directories + files):
        path = os.path.join(place, name)
        state = os.lstat(path)
        total.update(repr((path, state.st_mode, state.st_size, state.st_mtime_ns, state.st_ino)).encode())
        if os.path.isfile(path) and not os.path.islink(path):
            total.update(open(path, "rb").read())
print(total.hexdigest())
"""
    return subprocess.run(
        [sys.executable, "-c", program, str(directory)], capture_output=True, text=True, check=True
    ).stdout


def as_owner(*argv: str) -> None:
    user = pwd.getpwnam(OWNER)
    identity = {} if os.geteuid() != 0 else {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
    subprocess.run(argv, check=True, cwd="/", timeout=120, **identity)


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def waldump(cluster: Cluster, begin: str) -> list[str]:
    argv = [f"{cluster.bindir}/pg_waldump", "-p", str(cluster.data / "pg_wal"), "-s", begin]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=60)
    assert "error in WAL record" in done.stderr, done.stderr
    return done.stdout.splitlines()


def dumped(cluster: Cluster, begin: str) -> list[tuple[int, int, str]]:
    """Position, oid and path of every CREATE TABLESPACE since begin."""
    pattern = re.compile(r'rmgr: Tablespace .*lsn: (\S+), .*desc: CREATE (\d+) "(.*)"')
    found = filter(None, map(pattern.match, waldump(cluster, begin)))
    return [(position(match.group(1)), int(match.group(2)), match.group(3)) for match in found]


def position(lsn: str) -> int:
    high, _slash, low = lsn.partition("/")
    return int(high, 16) << 32 | int(low, 16)


def patches_by_segment(wal: Path) -> Iterator[tuple[str, int, bytes]]:
    """Path, offset and bytes of each patch, found with no more at hand than a segment and its neighbours."""
    names = sorted(path.name for path in wal.iterdir() if len(path.name) == 24)
    contents = [(wal / name).read_bytes() for name in names]
    around = zip(names, contents, [None, *contents[:-1]], [*contents[1:], None], strict=True)
    for name, content, before, after in around:
        for record in Scan().segment(name, content, before=before, after=after):
            yield from ((f"{wal}/{name}", patch.offset, patch.data) for patch in record.patches if patch.path == name)


def fill_wal(cluster: Cluster, left: int, boundary: int) -> None:
    """Write messages until so many bytes are left before a multiple of boundary."""
    for _attempt in range(20):
        now = position(cluster.sql("select pg_current_wal_insert_lsn()", database="postgres"))
        missing = (-left - now) % boundary
        if missing == 0:
            return
        if missing < 56:  # less than the smallest message
            missing += boundary
        pages = range(now // 8192 * 8192 + 8192, now + missing + 1, 8192)
        room = missing - sum(40 if page % 2**20 == 0 else 24 for page in pages)
        # Beside its text a message takes 51 bytes, or 54 when it is long.
        size = max(0, room - 51 if room < 280 else room - 54)
        cluster.sql(f"select pg_logical_emit_message(false, '', repeat('x', {size}))", database="postgres")
    raise AssertionError("could not come to that position")
