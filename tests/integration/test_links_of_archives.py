# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Data directories that reach over a whole host, by links: what the archive has of it is found, and nothing else is.

One cluster has all that people do at once. Its data directory and one database's lie behind links that lead through
linked directories; its WAL, and a tablespace that a database has as its own, are on volumes of a container, so that
their links lead nowhere in the archive.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from ansible_collections.phpborg.instant_recovery.plugins.modules import borg_archive_info, copy_plan_info

from tests.integration.conftest import needs_root
from tests.support.cluster import Cluster, Connection
from tests.support.modules import call
from tests.support.repository import Repository
from tests.support.stack import Stack, ended

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.playbook import Playbooks

pytestmark = needs_root  # its cluster belongs to postgres

NAME = "var/lib/postgresql/main/data"  # of the data directory, on its host
VOLUMES = "var/lib/docker/volumes"
FAST, WAL = f"{VOLUMES}/fast/_data", f"{VOLUMES}/wal/_data/pg_wal"


@dataclasses.dataclass(frozen=True)
class Made:
    """A cluster that was shut down, in `top`, which was the root of its host."""

    repository: Repository
    cluster: Cluster
    top: Path
    oids: dict[str, str]

    def archive(self, name: str) -> str:
        """Archive the host as it is now."""
        self.repository.archive(name, *sorted(path.name for path in self.top.iterdir()), cwd=self.top)
        return f"{self.repository.location}::{name}"


@pytest.fixture(scope="module")
def made(shared_place: Path) -> Iterator[Made]:
    top = shared_place / "host"
    for path in (top / FAST, top / "disks/ssd/dbs", top / "disk1/data"):
        path.mkdir(parents=True)
        shutil.chown(path, "postgres")
    repository = Repository(directory=shared_place / "host-repository", base=shared_place / "host-borg")
    repository.create()
    with Cluster(directory=shared_place / "host-run", data=top / "disk1/data/pg") as cluster:
        ask = cluster.connection.sql
        ask(f"create tablespace fast location '{top / FAST}'")
        ask("create database own tablespace fast")
        ask("create database linked")
        for database in ("own", "linked"):
            ask("create table t as select generate_series(1, 1000) i", database=database)
        oids = dict(line.split("|") for line in ask("select datname, oid from pg_database").splitlines())
        oids["fast"] = ask("select oid from pg_tablespace where spcname = 'fast'")
        cluster.stop()
        _rearrange(top, cluster.data, oids)
        yield Made(repository, cluster, top, oids)


def _rearrange(top: Path, data: Path, oids: dict[str, str]) -> None:
    shutil.move(data / "base" / oids["linked"], top / "disks/ssd/dbs")
    link(top / "ssd", "/disks/ssd")
    link(data / "base" / oids["linked"], f"/ssd/dbs/{oids['linked']}")
    (top / WAL).parent.mkdir(parents=True)
    shutil.move(data / "pg_wal", top / WAL)
    link(data / "pg_wal", "/var/lib/wal/pg_wal")
    link(data / "pg_tblspc" / oids["fast"], "/fast")
    # Two steps, the second of which goes up from behind a link, which is not the way that its path is spelled.
    link(top / "var/lib/postgresql/main", "/disk1/data")
    (data / "postmaster.opts").unlink()
    link(top / "disk1/data/data", "../data/pg")
    configuration = top / "etc/postgresql/15/main/postgresql.conf"
    configuration.parent.mkdir(parents=True)
    configuration.write_text(f"data_directory = '/{NAME}'\ndatestyle = 'german'\n")


def link(path: Path, target: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    path.symlink_to(target)


@pytest.fixture
def looking(made: Made, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Options of the module that open the repository."""
    monkeypatch.setenv("BORG_BASE_DIR", str(made.repository.base))
    return {"passphrase": made.repository.passphrase}


@pytest.fixture
def runner(playbooks: Playbooks, made: Made) -> Playbooks:
    return dataclasses.replace(playbooks, environment=made.repository.environment)


def test_everything_is_found_and_answers(made: Made, runner: Playbooks) -> None:
    """Of two volumes that may be it the variable names one. The tests after it ask the modules alone."""
    with another_volume(made, "fast"):
        archive = made.archive("whole")
    chosen = {"data_directory": f"/{NAME}", "relocated": {"/fast": FAST}, "server_user": "postgres"}
    run = runner.start(archive=archive, **chosen)
    assert run.returncode == 0, run.output
    connection = Connection.of_session(run.session, bindir=made.cluster.bindir)
    for database in ("own", "linked"):
        assert connection.sql("select count(*) from t", database=database) == "1000"
        connection.sql("insert into t values (0); checkpoint", database=database)
        assert connection.sql("select count(*) from t", database=database) == "1001"
    assert connection.sql("select date '2026-11-26'") == "26.11.2026"
    assert Path(f"/proc/{run.session['pid']}").owner() == "postgres"
    runner.end(run.session["id"])


@contextlib.contextmanager
def another_volume(made: Made, volume: str) -> Iterator[None]:
    """An older copy of a volume beside it."""
    shutil.copytree(made.top / VOLUMES / volume, made.top / VOLUMES / "older", symlinks=True)
    yield
    shutil.rmtree(made.top / VOLUMES / "older")


def session_of(root: Path, made: Made, archive: str, **options: Any) -> Connection:
    """The server of a session that modules make, which lives as long as the fixture root."""
    stack = Stack.of(root, made.repository, archive.rpartition("::")[2], **options).start()
    return Connection.of_session(stack.info(), bindir=made.cluster.bindir)


@pytest.fixture(name="root")
def _root(copies: Path) -> Iterator[Path]:
    with ended(copies / "sessions") as root:
        yield root


def test_a_data_directory_that_has_no_entry_of_its_own(made: Made, root: Path) -> None:
    """As borg create makes it of main/*: Borg has to invent the directory, and gives it to root."""
    data = made.cluster.data
    inside = [str(path.relative_to(made.top)) for path in sorted(data.iterdir())]
    others = [path.name for path in sorted(made.top.iterdir()) if path.name != "disk1"]
    made.repository.archive("inside", *inside, *others, cwd=made.top)
    connection = session_of(root, made, "inside")
    assert connection.sql("create table mine (); select count(*) from t", database="own") == "1000"


def test_what_the_server_could_not_open_in_production_it_cannot_here(made: Made, root: Path) -> None:
    """Whoever may make links in the data directory would read all that a whole host's archive has, root's keys too."""
    keys, way = made.top / "root/.ssh", made.cluster.data / "base/pgsql_tmp2"
    keys.mkdir(mode=0o700, parents=True)
    (keys / "id").write_text("a key of root's")
    (keys / "id").chmod(0o600)
    link(way, "/root/.ssh")
    # Open to all, but in a closed home.
    project, other_way = made.top / "home/bob/project", made.cluster.data / "base/pgsql_tmp3"
    project.mkdir(parents=True)
    (project / "notes").write_text("bob's own")
    project.parent.chmod(0o700)
    link(other_way, "/home/bob/project")
    try:
        archive = made.archive("private")
    finally:
        for made_here in (way, other_way):
            made_here.unlink()
        for directory in ("root", "home"):
            shutil.rmtree(made.top / directory)
    attempts = ("pg_read_file('base/pgsql_tmp2/id')", "pg_ls_dir('base/pgsql_tmp2')")
    for given in ({}, {"server_user": "nobody"}, {"server_user": "postgres"}):
        connection = session_of(root, made, archive, look={"data_directory": f"/{NAME}"}, options=given)
        for attempt in (*attempts, "pg_read_file('base/pgsql_tmp3/notes')"):
            with pytest.raises(RuntimeError, match="Permission denied"):
                connection.sql(f"select {attempt}")
        assert connection.sql("select count(*) from t", database="own") == "1000"


def test_what_is_found_is_told(made: Made, looking: dict[str, Any]) -> None:
    found = call(borg_archive_info.main, **looking, archive=made.archive("told"), data_directory=NAME)
    database = found["database"]
    data = "disk1/data/pg"
    assert (database["data_directory"], database["configuration_directory"]) == (data, "etc/postgresql/15/main")
    assert database["links"] == {
        f"{data}/pg_wal": WAL,
        f"{data}/pg_tblspc/{made.oids['fast']}": FAST,
        f"{data}/base/{made.oids['linked']}": f"disks/ssd/dbs/{made.oids['linked']}",
    }
    assert found["paths"] == [data, *sorted([*database["links"].values()]), "etc/postgresql/15/main"]
    assert found["directories"] == ["disks", "disks/ssd", "disks/ssd/dbs"]  # above the link of no known kind
    assert (database["problems"], database["refusals"]) == ([], [])


@pytest.mark.parametrize(("volume", "target", "inside"), [("wal", "/var/lib/wal", "/pg_wal"), ("fast", "/fast", "")])
def test_of_two_that_may_be_it_the_user_has_the_choice(
    made: Made, looking: dict[str, Any], volume: str, target: str, inside: str
) -> None:
    """What is said of a directory counts for all below it."""
    with another_volume(made, volume):
        archive = made.archive(f"two-{volume}")
    refused = call(borg_archive_info.main, **looking, archive=archive)
    places = [f"{VOLUMES}/{name}/_data" for name in (volume, "older")]
    assert all(f"{place}{inside}" in refused["msg"] for place in places), refused
    suggested = json.loads(refused["msg"][refused["msg"].index('{"relocated"') :].rstrip("."))
    assert suggested["relocated"].keys() == {f"{target}{inside}"}
    for place in places:
        chosen = call(borg_archive_info.main, **looking, archive=archive, relocated={target: f"/{place}"})
        assert f"{place}{inside}" in chosen["database"]["links"].values(), chosen
    wrong = call(borg_archive_info.main, **looking, archive=archive, relocated={target: "var/lib/nowhere"})
    assert f"relocated says that {target} is in var/lib/nowhere, where the archive has no " in wrong["msg"]
    # Without the slash, and to the end of what a start would do.
    planned = plan(archive, looking, relocated={target: places[0]})
    assert "failed" not in planned, planned


def plan(archive: str, looking: dict[str, Any], **options: Any) -> dict[str, Any]:
    """What the modules of a start in check mode make of an archive."""
    found = call(borg_archive_info.main, **looking, archive=archive, **options)
    database = found["database"]
    given = {name: database[name] for name in ("data_directory", "configuration_directory", "links")}
    return call(
        copy_plan_info.main,
        engine="postgresql",
        **looking,
        archive=archive,
        paths=found["paths"],
        user="postgres",
        **given,
    )


def test_links_that_lead_round_or_to_this_host(made: Made, looking: dict[str, Any]) -> None:
    """What the archive does not have is refused before a server looks at it, and no directory of this host is it."""
    place = made.cluster.data / "base" / made.oids["linked"]
    before = place.readlink()
    link(made.top / "round", "/around")
    link(made.top / "around", "round/x")
    try:
        for number, target in enumerate(
            ("/round/x", f"{made.top}/disks/ssd/dbs/{made.oids['linked']}", "/usr/lib", "/")
        ):
            link(place, target)
            archive = made.archive(f"out-{number}")
            found = call(borg_archive_info.main, **looking, archive=archive)
            assert not any(made.oids["linked"] in path for path in found["database"]["links"]), target
            if number < 2:
                refused = plan(archive, looking)
                assert f"{made.oids['linked']} is a link to {target}, which leads out of the copy" in refused["msg"]
    finally:
        link(place, str(before))
