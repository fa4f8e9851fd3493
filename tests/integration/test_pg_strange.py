# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Copies of clusters that are unlike this host: names in any bytes, closed databases, locales that are not here."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._postgresql import locales as _pg_locale
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._session.metrics import measure
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._session.session import Session

from tests.support import cluster as support
from tests.support.cluster import Cluster
from tests.support.database_rows import asked, read

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.support.copies import Copy

NAMES = ("caf\udce9", " blank ", "line\nbreak", "quote'\"\\")


def whats(result: dict[str, Any]) -> list[str]:
    return [entry["what"] for entry in result["neutralised"]]


def quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


@pytest.fixture(scope="module")
def ascii_cluster(shared_place: Path) -> Iterator[Cluster]:
    """In no encoding, with names in Latin-1, with line breaks and blanks; killed."""
    options = ["-E", "SQL_ASCII", "--locale=C"]
    with Cluster(directory=shared_place / "ascii", initdb_options=options) as cluster:
        ask = cluster.connection.sql
        for name in NAMES:
            ask(f"create database {quoted(name)}")
        ask('create role "r\udcf6le" superuser; alter database "caf\udce9" set app.who = \'\udcfc\'')
        ask('create unlogged table "t\udce4ble" as select 7 i', database="caf\udce9")
        cluster.stop(mode="immediate")
        yield cluster


def test_names_are_whatever_bytes_they_are(ascii_cluster: Cluster, copy_of: Callable[..., Copy]) -> None:
    copy = copy_of(ascii_cluster)
    result = copy.start()
    assert "failed" not in result, result
    json.dumps(result, ensure_ascii=False).encode()  # a lone surrogate is no text
    json.dumps(copy.record, ensure_ascii=False).encode()
    assert result["databases"] == [" blank ", r"caf\xe9", "line\nbreak", "postgres", "quote'\"\\"]
    assert result["data"]["not_looked_into"] == []
    assert result["data"]["emptied_tables"] == [r'caf\xe9: public."t\xe4ble"']
    assert r"app.who=\xfc, set for database caf\xe9" in [entry["what"] for entry in result["carried_over"]]
    for name in NAMES:
        assert copy.sql("select 1", database=name) == "1"
    assert copy.sql("select count(*) from pg_roles where rolname = 'r\udcf6le'") == "1"
    assert measure(Session.open(str(copy.directory)))["clients"] == 0


def test_none_of_the_names_can_be_written(place: Path, copy_of: Callable[..., Copy]) -> None:
    with Cluster(directory=place / "source", initdb_options=["-E", "SQL_ASCII", "--locale=C"]) as source:
        source.connection.sql('create database "caf\udce9 "')
        source.connection.sql("create table t as select 7 i", database="caf\udce9 ")
        source.connection.sql("drop database postgres", database="template1")
        source.stop()
        copy = copy_of(source)
        result = copy.start()
        assert "failed" not in result, result
        assert result["databases"] == ["caf\\xe9 "]
        argv = [f"{result['bindir']}/psql", "-X", "-w", "-A", "-t", "-c"]
        by_url = subprocess.run(
            [*argv, "select i from t", result["connection_string"]], capture_output=True, check=False
        )
        assert by_url.stdout == b"7\n", by_url.stderr
        environment = {**os.environ, "PGSERVICEFILE": result["client_file"]}
        line = [*argv, "select current_database()", "service=instant_recovery"]
        assert subprocess.run(line, env=environment, capture_output=True, check=False).stdout == b"template1\n"


@contextlib.contextmanager
def a_client(copy: Copy, result: dict[str, Any], database: str) -> Iterator[None]:
    """One that has asked something and stays."""
    argv = [f"{result['bindir']}/psql", "-X", "-h", str(copy.client), "-p", str(result["port"]), "-A", "-t"]
    argv += ["-U", "instant_recovery", database]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as client:
        assert client.stdin is not None
        assert client.stdout is not None
        client.stdin.write("select 1;\n")
        client.stdin.flush()
        assert client.stdout.readline() == "1\n"
        yield
        client.stdin.close()


@pytest.mark.parametrize("template", ["template1", "template0", "all", "lost"])
def test_clients_are_counted_where_nobody_may_connect(place: Path, copy_of: Callable[..., Copy], template: str) -> None:
    with Cluster(directory=place / "source") as source:
        ask = source.connection.sql
        ask("create table t as select generate_series(1, 1000) i")
        ask("alter database template1 allow_connections false")
        if template == "template0":
            ask("alter database template1 is_template false")
            ask("drop database template1")
        if template == "all":
            ask("update pg_database set datallowconn = false")
        source.stop()
        if template == "lost":  # what template1 had; it is in the catalog still
            shutil.rmtree(source.data / "base" / "1")
        copy = copy_of(source)
        result = copy.start()
        assert "failed" not in result, result
        opened = {"all": "template1", "lost": "template0"}.get(template, template)
        assert f"database {opened} opened to connections" in whats(result)
        session = Session.open(str(copy.directory))
        first = measure(session)
        assert first["clients"] == 0
        database = "template1" if template == "all" else "postgres"
        with a_client(copy, result, database):
            second = measure(session, earlier=first)
        assert second["clients"] == 1
        assert second["traces"] != first["traces"]
        if template == "all":
            return
        before = measure(session)["queries"]
        assert measure(session)["queries"] == before  # what the keeper asks is not counted
        copy.sql("select count(*) from t", database=database)
        assert measure(session)["queries"] > before


def test_what_is_not_counted_is_said(place: Path, copy_of: Callable[..., Copy]) -> None:
    """Without a template the clients are asked for in a database of theirs."""
    with Cluster(directory=place / "source") as source:
        source.connection.sql("update pg_database set datistemplate = false")
        for name in ("template0", "template1"):
            source.connection.sql(f"drop database {name}")
        source.stop()
        copy = copy_of(source)
        result = copy.start()
        assert "failed" not in result, result
        (said,) = [str(one) for one in result["warnings"] if "idle_timeout" in str(one)]
        assert "clients are asked for in database postgres" in said
        assert measure(Session.open(str(copy.directory)))["clients"] == 0


@pytest.fixture(scope="module")
def german(shared_place: Path) -> Iterator[Cluster]:
    """A cluster in a locale that this host does not have, with a database in C, too."""
    locales = shared_place / "locales"
    locales.mkdir()
    subprocess.run(["localedef", "--no-archive", "-i", "de_DE", "-f", "UTF-8", str(locales / "de_DE.utf8")], check=True)
    known = support._environment()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(support, "_environment", lambda: {**known, "LOCPATH": str(locales)})
        with Cluster(directory=shared_place / "german", initdb_options=["--locale=de_DE.utf8"]) as cluster:
            cluster.connection.sql("create table t as select unnest(array['Zebra', 'Äpfel', 'apfel', 'Bär']) as word")
            cluster.connection.sql("create database plain template template0 locale 'C'")
            cluster.stop(mode="immediate")
            yield cluster


def test_a_locale_that_is_not_here_is_made_for_the_session(german: Cluster, copy_of: Callable[..., Copy]) -> None:
    copy = copy_of(german)
    for _again in range(2):
        result = copy.start()
        assert "failed" not in result, result
        assert not any("Database postgres needs" in str(one) for one in result.get("warnings", []))
        assert copy.sql("select string_agg(word, ' ' order by word) from t") == "apfel Äpfel Bär Zebra"
        assert copy.sql("select 1", database="plain") == "1"
        made = copy.directory / "config" / "locale" / "de_DE.utf8"
        assert f"LOCPATH={made.parent}:" in Path(f"/proc/{result['pid']}/environ").read_text()
        assert made.stat().st_uid == os.geteuid()
        # The server's own user reads it and cannot write it.
        copy.sql("create temporary table tried (line text)")
        with pytest.raises(RuntimeError, match=r"touch .*failed|Permission denied|Read-only file system|exit code"):
            copy.sql(f"copy (select 1) to program 'touch {made}/LC_EVIL'")
        copy.stop()
        assert copy.left() == []


def test_a_locale_that_cannot_be_made_is_named_with_the_cure(
    german: Cluster, copy_of: Callable[..., Copy], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_pg_locale, "SOURCES", "/nonexistent")
    result = copy_of(german).start()
    assert result["msg"].startswith("The copy needs the locale de_DE.utf8, which this host does not have. Install it")
    for said in ("de_DE.UTF-8 UTF-8 to /etc/locale.gen, locale-gen", "dnf install glibc-langpack-de"):
        assert said in result["msg"]


def test_databases_are_known_without_a_server(place: Path) -> None:
    with Cluster(directory=place / "source") as source:
        major, sql = int(Path(source.bindir).parent.name), source.connection.sql
        for name in (*NAMES, "x" * 63, "dropped", "shop", "swiss", "closed"):
            sql(f"create database {quoted(name)}" if name.isascii() else "create database eu")
        sql("update pg_database set datcollate = 'de_DE.utf8', datctype = 'C' where datname = 'shop'")
        long = "x_YY." + "u" * 50 if major < 15 else "x_YY." + "u" * 300  # a length of four bytes
        sql(f"update pg_database set datcollate = '{long}' where datname = 'swiss'")
        sql("drop database dropped")
        sql("alter database closed allow_connections off")
        for statement in ("checkpoint", "vacuum full pg_database"):
            sql(statement)
            sql("checkpoint")
            told = asked(source.connection, major)
            assert read(source.data, major) == told
            assert {"shop", "swiss"} < {row.name for row in told} >= {"postgres"}
            assert not {"dropped", "closed"} & {row.name for row in told}


def test_a_database_alone_that_lacks_its_locale(
    place: Path, copy_of: Callable[..., Copy], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its name in the catalogs is the archive's: it becomes no path and no option."""
    with Cluster(directory=place / "source") as source:
        source.connection.sql("create database shop")
        source.connection.sql("create database odd")
        source.connection.sql(
            "update pg_database set datcollate = 'de_DE.utf8', datctype = 'de_DE.utf8' where datname = 'shop'"
        )
        source.connection.sql("update pg_database set datcollate = '../../../etc/x_YY.utf8' where datname = 'odd'")
        source.stop()
        copy = copy_of(source)
        result = copy.start()
        (said,) = [str(one) for one in result["warnings"] if "Database odd needs" in str(one)]
        assert (
            "Database odd needs the locale ../../../etc/x_YY.utf8, which this host does not have: nobody can"
        ) in said
        assert copy.sql("select 1", database="shop") == "1"
        copy.stop()
        monkeypatch.setattr(_pg_locale, "SOURCES", "/nonexistent")
        warnings = " ".join(map(str, copy.start()["warnings"]))
        assert (
            "Database shop needs the locale de_DE.utf8, which this host does not have: nobody can connect" in warnings
        )
        assert copy.sql("select 1") == "1"


def test_a_cluster_of_another_c_library_gets_the_warning(place: Path, copy_of: Callable[..., Copy]) -> None:
    """As musl leaves it: a locale of that name, and no version of its collation."""
    with Cluster(directory=place / "source") as source:
        if int(Path(source.bindir).parent.name) < 15:
            pytest.skip("databases have no versions of collations")
        for name in ("musl", "plain"):
            source.connection.sql(f"create database {name}")
        source.connection.sql("update pg_database set datcollversion = null")
        source.connection.sql(
            "update pg_database set datcollate = 'de_DE.utf8', datctype = 'de_DE.utf8' where datname = 'musl'"
        )
        source.stop()
        result = copy_of(source).start()
        (collation,) = result["data"]["collations"]
        assert (collation["database"], collation["collation"], collation["recorded"]) == ("musl", None, None)
        assert collation["actual"]
        (said,) = [str(one) for one in result["warnings"] if "Database musl sorts" in str(one)]
        assert ("Database musl sorts text by a collation of which no version is recorded, as another C") in said
