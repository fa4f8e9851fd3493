# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Exports from sessions of PostgreSQL: what is loaded elsewhere equals the source, and a failure leaves nothing."""

from __future__ import annotations

import csv
import errno
import hashlib
import json
import os
import signal
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.phpborg.instant_recovery.plugins.modules import session_export, session_log

from tests.integration.conftest import needs_root
from tests.support.clock import wait_until
from tests.support.cluster import Cluster
from tests.support.copies import Copy
from tests.support.host import processes_below
from tests.support.modules import call

pytestmark = needs_root

DATABASE = "take home"
ODD = 'Ta"b.le*\n?'
STATEMENTS = r"""
create schema "Od.d"; create schema empty; create schema moved;
create table "Od.d"."Ta""b.le*
?" (id int primary key, "a,b" text, raw bytea, list text[], at timestamptz, span interval, number float8, doubled int
    generated always as (id * 2) stored, doc jsonb);
insert into "Od.d"."Ta""b.le*
?" values (1, E'quote " comma , line\nbreak \\.', '\x00ff0a22', array['a', null, 'b "c"', ''], '2026-03-29 01:30:00+01',
    '1 mon 2 days', 0.1::float8 + 0.2, default, '{"a": [1, null]}'),
    (2, null, null, null, null, null, 'NaN', default, null),
    (3, '', '', '{}', '-infinity', '0', '-0', default, '{}'), (4, E'\\N', '\x5c4e', '{NULL}', 'infinity', null, 1e308,
    default, '"\\u0041"');
create table measures (at date, value int) partition by range (at);
create table moved.measures_1 partition of measures for values from ('2026-01-01') to ('2026-02-01');
create table measures_2 partition of measures for values from ('2026-02-01') to ('2026-03-01');
insert into measures select date '2026-01-01' + i % 59, i from generate_series(1, 3000) i;
create table parent (id int); create table child (more text) inherits (parent);
insert into parent values (1); insert into child values (2, 'x');
create view shown as select * from parent;
create materialized view kept as select count(*) from measures;
create extension file_fdw; create server files foreign data wrapper file_fdw;
create foreign table elsewhere (line text) server files options (filename '/etc/hostname');
create table wide (id int primary key, body text);
alter table wide alter body set storage external;
insert into wide select i, repeat(md5(i::text), 1000) from generate_series(1, 600) i;
create sequence counter;
select lo_from_bytea(4711, '\x0102ff00');
"""
# Rows of all tables of one database, partitions and children by themselves.
TABLES = """select format('%I.%I', n.nspname, c.relname) from pg_class c join pg_namespace n on n.oid = relnamespace
    where relkind = 'r' and nspname !~ '^pg_' and nspname <> 'information_schema' order by 1"""


def rows_of(cluster: Cluster, database: str) -> dict[str, str]:
    names = cluster.sql(f"select json_agg(x) from ({TABLES}) as t(x)", database=database)
    found = {}
    for name in json.loads(names or "[]") or []:
        found[name] = cluster.sql(
            "set datestyle = 'ISO'; set extra_float_digits = 3; "
            f"select count(*), coalesce(sum(hashtextextended(t::text, 0)), 0) from only {name} t",
            database=database,
        )
    return found


@pytest.fixture(scope="module", name="source")
def _source(shared_place: Path) -> Iterator[Cluster]:
    """A server that runs on, beside the session of its copy."""
    with Cluster(directory=shared_place / "exported") as cluster:
        cluster.sql(f'create database "{DATABASE}"', database="postgres")
        cluster.sql("set timezone = 'UTC';" + STATEMENTS, database=DATABASE)
        cluster.sql(f"alter database \"{DATABASE}\" set datestyle = 'German'", database="postgres")
        cluster.sql(f"alter database \"{DATABASE}\" set extra_float_digits = '-10'", database="postgres")
        cluster.stop()
        yield cluster


@pytest.fixture(scope="module", name="copy")
def _copy(source: Cluster, shared_copies: Path) -> Iterator[Copy]:
    copy = Copy.of(source, shared_copies / "sessions")
    result = copy.start()
    assert not result.get("failed"), result
    source.start()
    yield copy
    assert copy.end() == []
    assert processes_below(copy.tree) == []


def export(copy: Copy, *, check: bool = False, **options: Any) -> dict[str, Any]:
    return call(
        session_export.main,
        check=check,
        session_id=copy.directory.name,
        session_root=str(copy.directory.parent),
        **{"database": DATABASE, **options},
    )


def exported(copy: Copy, path: Path, **options: Any) -> dict[str, Any]:
    result = export(copy, to=str(path), **options)
    assert not result.get("failed"), result
    state = path.stat()
    assert (stat.S_IMODE(state.st_mode), state.st_uid, state.st_size) == (0o600, os.geteuid(), result["size"])
    assert hashlib.sha256(path.read_bytes()).hexdigest() == result["sha256"]
    assert result["path"] == str(path)
    assert list(path.parent.iterdir()) == [path]
    return result


def refused(copy: Copy, place: Path, **options: Any) -> str:
    result = export(copy, **{"to": str(place / "x"), **options})
    assert result.get("failed"), result
    assert list(place.iterdir()) == []
    return str(result["msg"])


def load(source: Cluster, database: str, argv: list[str], path: Path) -> None:
    source.sql(f'create database "{database}"', database="postgres")
    environment = {**os.environ, "PGHOST": source.connection.socket_directory, "PGPORT": str(source.connection.port)}
    with path.open("rb") as file:
        program = [f"{source.bindir}/{argv[0]}", *argv[1:], "-U", source.superuser, "-d", database]
        subprocess.run(
            program, stdin=file, env=environment, check=True, capture_output=True, user="postgres", timeout=120
        )


@pytest.mark.parametrize(
    ("form", "argv"),
    [("sql", ["psql", "-X", "-v", "ON_ERROR_STOP=1"]), ("custom", ["pg_restore", "--no-owner", "--exit-on-error"])],
)
def test_a_whole_database_comes_back_as_it_was(
    copy: Copy, source: Cluster, place: Path, form: str, argv: list[str]
) -> None:
    result = exported(copy, place / "dump", format=form)
    assert (result["format"], result["database"], result["rows"]) == (form, DATABASE, None)
    assert "public.measures" in result["tables"]
    load(source, form, argv, place / "dump")
    expected = rows_of(source, DATABASE)
    assert len(expected) == 6
    assert rows_of(source, form) == expected
    assert source.sql("select encode(lo_get(4711), 'hex')", database=form) == "0102ff00"
    assert source.sql("select count(*) from shown", database=form) == "2"


def test_chosen_tables_come_with_their_parts_alone(copy: Copy, source: Cluster, place: Path) -> None:
    result = exported(copy, place / "dump", tables=["measures", "public.pa*"])
    assert result["tables"] == ["public.measures", "public.parent"]
    source.sql("create schema if not exists moved", database="template1")
    load(source, "chosen", ["psql", "-X", "-v", "ON_ERROR_STOP=1"], place / "dump")
    source.sql("drop schema moved", database="template1")
    expected = rows_of(source, DATABASE)
    names = ["moved.measures_1", "public.child", "public.measures_2", "public.parent"]
    assert rows_of(source, "chosen") == {name: expected[name] for name in names}


def test_a_schema_comes_alone(copy: Copy, source: Cluster, place: Path) -> None:
    result = exported(copy, place / "dump", schemas=["Od*"])
    assert len(result["tables"]) == 1
    load(source, "schema", ["psql", "-X", "-v", "ON_ERROR_STOP=1"], place / "dump")
    assert list(rows_of(source, "schema")) == [name for name in rows_of(source, DATABASE) if name.startswith('"Od.d"')]


def test_csv_loses_nothing(copy: Copy, source: Cluster, place: Path) -> None:
    result = exported(copy, place / "odd.csv", format="csv", tables=[f"Od.d.{ODD}"])
    assert (result["rows"], len(result["tables"])) == (4, 1)
    lines = place.joinpath("odd.csv").read_text()
    assert lines.startswith('id,"a,b",raw,list,at,span,number,doubled,doc\n')
    assert "2,,,,,,NaN,4,\n" in lines
    assert '\n3,"",\\x,' in lines
    assert "0.30000000000000004" in lines
    source.sql("create database csv", database="postgres")
    source.sql(
        "create table t (id int, a text, raw bytea, list text[], at timestamptz, span interval, number float8,"
        " doubled int, doc jsonb)",
        database="csv",
    )
    place.chmod(0o755)
    (place / "odd.csv").chmod(0o644)
    source.sql(f"copy t from '{place}/odd.csv' with (format csv, header)", database="csv")
    loaded = source.sql("select sum(hashtextextended(t::text, 0)) from t", database="csv")
    assert rows_of(source, DATABASE)[source.sql(TABLES, database=DATABASE).split("\n")[0] + '\n?"'].endswith(loaded)


def test_a_partitioned_table_is_one_of_csv(copy: Copy, place: Path) -> None:
    assert exported(copy, place / "m.csv", format="csv", tables=["measures"])["rows"] == 3000


def test_a_query_is_csv_in_its_order(copy: Copy, place: Path) -> None:
    query = "select value, at from measures where value <= 3 order by value desc; -- the first three"
    result = exported(copy, place / "q.csv", query=query.replace("; --", " --"))
    assert (result["format"], result["rows"], result["tables"]) == ("csv", 3, [])
    with (place / "q.csv").open(newline="") as file:
        assert list(csv.reader(file)) == [
            ["value", "at"],
            ["3", "2026-01-04"],
            ["2", "2026-01-03"],
            ["1", "2026-01-02"],
        ]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"tables": ["order"]}, "No table of database take home is meant by order: name one of"),
        ({"tables": ["measure"]}, "measure: name one of public.measures"),
        ({"tables": ["shown"]}, "public.shown is a view, and no table"),
        ({"tables": ["sho*"]}, "public.shown is a view, and no table"),
        ({"tables": ["kept"]}, "public.kept is a materialized view, and no table"),
        ({"tables": ["public.elsewhere"]}, "is a foreign table, whose rows are on another server, and no table"),
        ({"tables": ["counter"]}, "public.counter is a sequence, and no table"),
        ({"schemas": ["nothing"]}, "No schema of database take home that has tables is meant by nothing"),
        ({"database": "nowhere"}, "The copy has no database nowhere: name one of"),
        ({"format": "csv"}, "format csv holds one table, or the rows of one query"),
        ({"format": "csv", "tables": ["measures*"]}, "holds one table, and these are meant: moved.measures_1"),
        ({"format": "sql", "query": "select 1"}, "query gives rows, which format sql cannot hold"),
        ({"query": "select 1", "tables": ["parent"]}, "query is given together with tables or schemas"),
        ({"query": " "}, "query is empty"),
        ({"query": "select * from nowhere"}, 'relation "nowhere" does not exist'),
        ({"query": "select 1 / (value - 2500) from measures order by value"}, "division by zero"),
        ({"recipient": "somebody"}, "recipient is no public key"),
        ({"recipient": "/nowhere/key"}, "recipient /nowhere/key cannot be read: No such file"),
        ({"to": "/nowhere/at/all"}, "to /nowhere/at/all is in no directory that there is"),
        ({"to": "/dev/null", "force": True}, "to /dev/null is no file"),
        ({"timeout": 0}, "did not finish within 0 s"),
    ],
)
def test_what_cannot_be_had_is_refused(copy: Copy, place: Path, options: dict[str, Any], said: str) -> None:
    assert said in refused(copy, place, **options)


def test_a_file_is_replaced_only_when_told(copy: Copy, place: Path) -> None:
    path = place / "x"
    path.write_text("mine")
    result = export(copy, to=str(path), tables=["parent"])
    assert result["failed"]
    assert f"to {path} is there already" in result["msg"]
    assert path.read_text() == "mine"
    exported(copy, path, tables=["parent"], force=True)
    assert "mine" not in path.read_text()


def test_check_mode_checks_and_writes_nothing(copy: Copy, place: Path) -> None:
    result = export(copy, check=True, to=str(place / "x"), tables=["parent"])
    assert (result["changed"], result["tables"], result["size"]) == (True, ["public.parent"], None)
    assert list(place.iterdir()) == []
    assert export(copy, check=True, to=str(place / "x"), tables=["none"])["failed"]


def test_the_log_and_the_audit_log_tell_of_it(copy: Copy, place: Path) -> None:
    exported(copy, place / "x", tables=["wide"], requested_by="ann@desk")
    where = {"session_id": copy.directory.name, "session_root": str(copy.directory.parent)}
    lines = [line["text"] for line in call(session_log.main, sources=["export"], **where)["lines"]]
    assert any('dumping contents of table "public.wide"' in line for line in lines)
    assert lines[-1].startswith("export: 19")
    assert " bytes, of tables that take " in lines[-1]
    told = (copy.directory.parent / "audit.log").read_text().splitlines()[-1]
    assert '"event": "export"' in told
    assert "ann@desk" in told


@pytest.mark.parametrize("size", ["1m", "12m"])
def test_a_disk_that_is_too_small_keeps_nothing(copy: Copy, place: Path, size: str) -> None:
    """Known before, and found in the middle: what is exported takes 19 MB, in the copy as well."""
    disk = place / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(disk)], check=True)
    try:
        said = refused(copy, disk, tables=["wide"])
        expected = (
            "MiB free, and what is to be exported takes 6 MiB at least" if size == "1m" else "No space left on device"
        )
        assert expected in said
        assert os.statvfs(disk).f_bfree == os.statvfs(disk).f_blocks
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize("has_unnamed", [True, False])
def test_a_kill_in_the_middle_leaves_no_file_and_no_process(
    copy: Copy, place: Path, monkeypatch: pytest.MonkeyPatch, has_unnamed: bool
) -> None:
    if not has_unnamed:
        without_unnamed_files(monkeypatch)
    query = "select repeat('x', 1000), pg_sleep(case when i = 2000 then 600 end) from generate_series(1, 4000) i"
    child = os.fork()
    if not child:
        export(copy, to=str(place / "x"), query=query)
        os._exit(0)
    wait_until(lambda: _sleeps(copy))
    assert not (place / "x").exists()
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    # The server notices that its client is gone, though it does nothing but sleep.
    wait_until(lambda: not _sleeps(copy))
    left = [path.name for path in place.iterdir()]
    assert left == [] if has_unnamed else [name.endswith(".partial") for name in left] == [True]


def test_a_file_system_without_unnamed_files_will_do(copy: Copy, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_unnamed_files(monkeypatch)
    exported(copy, place / "x", tables=["parent"])
    assert "is there already" in export(copy, to=str(place / "x"), tables=["parent"])["msg"]
    exported(copy, place / "x", tables=["parent"], force=True)
    (place / "x").unlink()
    refused(copy, place, query="select 1 / 0")


def without_unnamed_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the kernel answer as for NFS."""
    real = os.open

    def refusing(path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP), path)
        return real(path, flags, mode, dir_fd=dir_fd)

    monkeypatch.setattr(os, "open", refusing)


def _sleeps(copy: Copy) -> bool:
    return copy.sql("select count(*) from pg_stat_activity where wait_event = 'PgSleep'", database=DATABASE) != "0"


def test_a_server_that_ends_in_the_middle_leaves_nothing(
    source: Cluster, copy_of: Callable[..., Copy], place: Path
) -> None:
    source.stop()
    copy = copy_of(source)
    source.start()
    assert not copy.start().get("failed")
    child = forked_export(copy, place)
    wait_until(lambda: _sleeps(copy))
    assert copy.stop()["changed"]
    assert os.waitpid(child, 0)[1] == 0
    said = (place.parent / f"{place.name}.said").read_text()
    (place.parent / f"{place.name}.said").unlink()
    assert "did not come to its end, and nothing was written" in said
    assert list(place.iterdir()) == []
    assert "has no server that runs" in refused(copy, place, tables=["parent"])


def forked_export(copy: Copy, place: Path) -> int:
    child = os.fork()
    if not child:
        status = 1
        try:
            result = export(copy, to=str(place / "x"), query="select 1, pg_sleep(600)")
            place.with_name(f"{place.name}.said").write_text(result["msg"])
            status = 0
        finally:
            os._exit(status)
    return child


def test_it_is_encrypted_for_a_key_of_age(copy: Copy, place: Path, tmp_path: Path) -> None:
    subprocess.run(["age-keygen", "-o", str(tmp_path / "secret")], check=True, capture_output=True)
    told = subprocess.run(["age-keygen", "-y", str(tmp_path / "secret")], check=True, capture_output=True, text=True)
    (tmp_path / "public").write_text(f"# of somebody\n{told.stdout}")
    for recipient in (told.stdout.strip(), str(tmp_path / "public")):
        result = exported(copy, place / "x", tables=["wide"], recipient=recipient, force=True)
        assert result["encrypted_by"] == "age"
        done = subprocess.run(
            ["age", "-d", "-i", str(tmp_path / "secret"), str(place / "x")], check=True, capture_output=True
        )
        assert done.stdout.count(b"\n600\t") == 1


def test_it_is_encrypted_for_a_key_of_gnupg(copy: Copy, place: Path, tmp_path: Path) -> None:
    home = tmp_path / "gnupg"
    home.mkdir(mode=0o700)
    gpg = ["gpg", "--batch", "--homedir", str(home)]
    parameters = ["--passphrase", "", "--quick-generate-key", "somebody@example.com", "rsa2048", "encr"]
    subprocess.run([*gpg, *parameters], check=True, capture_output=True, timeout=60)
    key = subprocess.run([*gpg, "--armor", "--export"], check=True, capture_output=True, text=True).stdout
    try:
        plain = exported(copy, place / "plain", format="csv", tables=["wide"])
        content = (place / "plain").read_bytes()
        (place / "plain").unlink()
        result = exported(copy, place / "x", format="csv", tables=["wide"], recipient=key)
        assert (result["encrypted_by"], result["rows"], plain["encrypted_by"]) == ("gpg", 600, None)
        done = subprocess.run([*gpg, "--decrypt", str(place / "x")], check=True, capture_output=True, timeout=60)
        assert done.stdout == content
    finally:
        subprocess.run(["gpgconf", "--homedir", str(home), "--kill", "all"], check=True)
    (place / "x").unlink()
    spoilt = key[:200] + key[300:]
    assert "gpg cannot encrypt for the recipient" in refused(copy, place, tables=["wide"], recipient=spoilt)
