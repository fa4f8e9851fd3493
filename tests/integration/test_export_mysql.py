# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Exports from sessions of MariaDB: what is loaded elsewhere equals the source, and a failure leaves nothing."""

from __future__ import annotations

import csv
import hashlib
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._session.session import claiming
from ansible_collections.phpborg.instant_recovery.plugins.modules import mysql_ephemeral, session_export

from tests.integration.conftest import needs_root
from tests.support.copies import Copy
from tests.support.host import processes_below
from tests.support.mariadb import DATABASE, MariaDb
from tests.support.modules import call

pytestmark = needs_root

STATEMENTS = r"""
create table `o``d"d, \table` (id int primary key, `a,b "c\` text character set utf8mb4, raw varbinary(20),
    wide longblob, at timestamp null, day datetime(6), price decimal(10, 3), number double, flags bit(5),
    kind enum('a', 'b,"'),
    old varchar(20) character set latin1, doubled int as (id * 2) stored, place point);
insert into `o``d"d, \table` (id, `a,b "c\`, raw, wide, at, day, price, number, flags, kind, old, place) values
    (1, 'quote " comma , line
break \\ 😀	tab', x'00ff0a22', repeat(x'00', 10), '2026-03-29 01:30:00', '2026-03-29 02:30:00.123456', -1.5,
    0.1e0 + 0.2e0, b'10101', 'b,"', 'é', point(1, 2)),
    (2, null, null, null, null, null, null, null, null, null, null, null),
    (3, '', '', '', '2026-01-01 00:00:00', '2026-01-01', 0, 1e300, 0, 'a', '', null),
    (4, 'NULL', 'NULL', 'NULL', '2026-01-01 00:00:00', '2026-01-01', 0, -1e-300, 0, 'a', '\\N', null);
create table parts (id int, value int) partition by range (id) (partition p0 values less than (100),
    partition p1 values less than maxvalue);
insert into parts select seq, seq from seq_1_to_300;
create table texts (id int primary key, body text);
insert into texts values (1, 'fine'), (2, concat('a', char(0), 'b'));
create view shown as select * from parts;
create sequence counter;
create procedure hello() select 'hello';
create trigger stamp before insert on parts for each row set new.value = new.id
"""


# Goes wrong after some rows were sent.
LATE = "repeat('x', 10000) as x, if(id < 250, 1, (select p.id from parts as p where p.id < parts.id)) as y"


@pytest.fixture(scope="module", name="source")
def _source(shared_place: Path) -> Iterator[MariaDb]:
    """A server that runs on, beside the session of its copy."""
    with MariaDb(directory=shared_place / "maria-export", settings={"default_time_zone": "'+02:00'"}) as server:
        server.populate()
        script = shared_place / "statements.sql"
        script.write_text(f"set names utf8mb4;\n{STATEMENTS};\n")
        load(server, DATABASE, script)
        server.stop()
        yield server


@pytest.fixture(scope="module", name="copy")
def _copy(source: MariaDb, shared_copies: Path) -> Iterator[Copy]:
    copy = Copy.of(source, shared_copies / "sessions", main=mysql_ephemeral.main)
    with claiming(str(copy.directory)) as session:
        session.update(engine="mariadb")
    result = copy.start()
    assert not result.get("failed"), result
    source.start()
    yield copy
    assert copy.end() == []
    assert processes_below(copy.tree) == []


def export(copy: Copy, *, check: bool = False, **options: Any) -> dict[str, Any]:
    where = {"session_id": copy.directory.name, "session_root": str(copy.directory.parent)}
    return call(session_export.main, check=check, **where, **options)


def exported(copy: Copy, path: Path, **options: Any) -> dict[str, Any]:
    result = export(copy, to=str(path), **options)
    assert not result.get("failed"), "\n".join([result["msg"], *result.get("log_tail", [])])
    assert (stat.S_IMODE(path.stat().st_mode), path.stat().st_size) == (0o600, result["size"])
    assert hashlib.sha256(path.read_bytes()).hexdigest() == result["sha256"]
    assert list(path.parent.iterdir()) == [path]
    return result


def refused(copy: Copy, place: Path, **options: Any) -> str:
    result = export(copy, **{"to": str(place / "x"), **options})
    assert result.get("failed"), result
    assert list(place.iterdir()) == []
    return str(result["msg"])


def load(server: MariaDb, database: str, path: Path) -> None:
    argv = ["mariadb", "--no-defaults", "--binary-mode", "-S", server.socket, "-u", "root", "--", database]
    with path.open("rb") as file:
        subprocess.run(argv, stdin=file, check=True, capture_output=True, timeout=120)


def tables_of(server: MariaDb, database: str) -> dict[str, str]:
    with server.connect(database) as connection, connection.cursor() as cursor:
        cursor.execute("show full tables where table_type = 'BASE TABLE'")
        names = ["`{}`".format(row[0].replace("`", "``")) for row in cursor.fetchall()]
        cursor.execute(f"checksum table {', '.join(names)}")
        return {str(name).partition(".")[2]: str(state) for name, state in cursor.fetchall()}


def test_a_whole_database_comes_back_as_it_was(copy: Copy, source: MariaDb, place: Path) -> None:
    result = exported(copy, place / "dump.sql")
    assert (result["format"], result["database"], result["rows"]) == ("sql", DATABASE, None)
    source.sql("create database home")
    load(source, "home", place / "dump.sql")
    expected = tables_of(source, DATABASE)
    assert len(expected) == 7
    assert tables_of(source, "home") == expected
    assert source.sql("call hello(); select count(*) from shown", database="home") == "hello\n300"


def test_chosen_tables_come_alone(copy: Copy, source: MariaDb, place: Path) -> None:
    result = exported(copy, place / "dump.sql", tables=['o?d["]d*', "parts"])
    assert len(result["tables"]) == 2
    source.sql("create database chosen")
    load(source, "chosen", place / "dump.sql")
    expected = tables_of(source, DATABASE)
    assert tables_of(source, "chosen") == {name: expected[name] for name in result["tables"]}


def test_csv_loses_nothing(copy: Copy, source: MariaDb, place: Path) -> None:
    result = exported(copy, place / "odd.csv", format="csv", tables=['o`d"d, \\table'])
    assert (result["rows"], len(result["tables"])) == (4, 1)
    lines = (place / "odd.csv").read_text()
    assert "\n2,,,,,,,,,,,4,\n" in lines
    assert '\n3,"",0x,0x,' in lines
    with (place / "odd.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows[0]['a,b "c\\'] == 'quote " comma , line\nbreak \\ 😀\ttab'
    assert (rows[0]["raw"], rows[0]["wide"], rows[0]["flags"]) == ("0x00FF0A22", f"0x{'00' * 10}", "0x15")
    assert (rows[0]["at"], rows[0]["day"]) == ("2026-03-28 23:30:00", "2026-03-29 02:30:00.123456")
    assert (rows[0]["price"], float(rows[0]["number"]), rows[0]["kind"]) == ("-1.500", 0.1 + 0.2, 'b,"')
    assert (rows[0]["old"], rows[3]["old"], rows[3]["raw"]) == ("é", "\\N", "0x4E554C4C")
    assert rows[0]["place"].startswith("0x")


def test_a_query_is_csv_in_its_order(copy: Copy, place: Path) -> None:
    query = "select value as `v\\`, upper(hex(id)) x from parts where id < 4 order by id desc -- the first"
    result = exported(copy, place / "q.csv", query=query)
    assert (result["rows"], (place / "q.csv").read_text()) == (3, '"v\\","x"\n3,"3"\n2,"2"\n1,"1"\n')


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"tables": ["part"]}, "No table of database shop data is meant by part: name one of parts"),
        ({"tables": ["shown"]}, "shown is a view, and no table"),
        ({"tables": ["counter"]}, "counter is a sequence, and no table"),
        ({"schemas": ["x"]}, "schemas are databases in mariadb"),
        ({"database": "nowhere"}, "The copy has no database nowhere: name one of shop data"),
        ({"format": "custom"}, "format custom is none that mariadb can be exported in: choose sql or csv"),
        ({"format": "csv", "tables": ["*"]}, "format csv holds one table, and these are meant"),
        ({"format": "csv", "tables": ["texts"]}, "A value in row 2 has a NUL character"),
        ({"query": "select * from nowhere"}, "Table 'shop data.nowhere' doesn't exist"),
        ({"query": "select 1 as a, 2 as a"}, "Duplicate column name 'a'"),
        ({"query": f"select {LATE} from parts order by id"}, "Subquery returns more than 1 row"),
        ({"timeout": 0}, "did not finish within 0 s"),
        ({"query": "\\! touch /tmp/x"}, "Unknown command"),
    ],
)
def test_what_cannot_be_had_is_refused(copy: Copy, place: Path, options: dict[str, Any], said: str) -> None:
    assert said in refused(copy, place, **options)
