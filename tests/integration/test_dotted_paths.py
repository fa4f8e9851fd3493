# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Archives whose paths begin with `./`, as `tar -cf - . | borg import-tar` makes them with Borg 1.2.4.

None of Borg's patterns but regular expressions match such a path, and nobody gets to a directory `.` of its mount.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
from typing import TYPE_CHECKING, Any

import pytest
from ansible_collections.phpborg.instant_recovery.plugins.modules import borg_archive_info, borg_mount, copy_plan_info

from tests.integration.conftest import needs_root
from tests.support.cluster import Cluster, Connection
from tests.support.host import remains
from tests.support.modules import call
from tests.support.repository import Repository

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.playbook import Playbooks

pytestmark = needs_root  # its cluster belongs to postgres


@dataclasses.dataclass(frozen=True)
class Made:
    """A cluster with a tablespace and archived WAL beside it, in `top`; it is not running."""

    repository: Repository
    cluster: Cluster
    top: Path

    def taken(self, name: str, *members: str, top: Path | None = None) -> str:
        """An archive that Borg makes of a tar file with these members of `top`."""
        file = self.repository.directory.with_suffix(".tar")
        subprocess.run(["tar", "-C", top or self.top, "-cf", file, *members], check=True)
        self.repository.borg("import-tar", f"{self.repository.location}::{name}", str(file))
        file.unlink()
        return f"{self.repository.location}::{name}"


@pytest.fixture(scope="module")
def made(shared_place: Path) -> Iterator[Made]:
    top = shared_place / "dotted"
    for path in (top / "space", top / "wal"):
        path.mkdir(parents=True)
        shutil.chown(path, "postgres")
    repository = Repository(directory=shared_place / "dotted-repository", base=shared_place / "dotted-borg")
    repository.create()
    settings = {"archive_mode": "on", "archive_command": f"cp %p {top}/wal/%f"}
    with Cluster(directory=top / "prod", settings=settings) as cluster:
        cluster.connection.sql(f"create tablespace space location '{top}/space'")
        cluster.connection.sql("create table t tablespace space as select generate_series(1, 1000) as i")
        cluster.connection.sql("select pg_switch_wal()")
        cluster.stop()
        # A hard link is archived under one of its names.
        os.link(cluster.data / "PG_VERSION", cluster.data / "PG_VERSION.old")
        yield Made(repository, cluster, top)


@pytest.fixture
def looking(made: Made, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Options of modules that open the repository."""
    monkeypatch.setenv("BORG_BASE_DIR", str(made.repository.base))
    return {"passphrase": made.repository.passphrase}


def test_a_session_of_such_an_archive(made: Made, playbooks: Playbooks, looking: dict[str, Any]) -> None:
    archive = made.taken("all", ".")
    mine = dataclasses.replace(playbooks, environment=made.repository.environment)
    assert mine.start("--check", archive=archive, log_source="archive:/wal").returncode == 0
    log_archive = made.taken("wal", "./wal")
    found = call(borg_archive_info.main, **looking, archive=archive)
    planned = call(
        copy_plan_info.main,
        engine="postgresql",
        **looking,
        archive=archive,
        paths=found["paths"],
        data_directory=found["database"]["data_directory"],
        links=found["database"]["links"],
        user="postgres",
        log_archive=log_archive,
        log_source="./wal",
    )
    assert "failed" not in planned, planned
    started = mine.start(archive=archive, log_source=f"{log_archive}:/wal")
    assert started.returncode == 0, started.output
    assert started.session["overlay_merged_dir"]
    connection = Connection.of_session(started.session, bindir=made.cluster.bindir)
    assert connection.sql("select count(*), sum(i) from t") == "1000|500500"
    assert connection.sql("insert into t values (0); select count(*) from t") == "1001"
    mine.end(started.session["id"])


def test_the_archives_root_as_a_data_directory(made: Made, looking: dict[str, Any], place: Path) -> None:
    looking["archive"] = made.taken("root", ".", top=made.cluster.data)
    found = call(borg_archive_info.main, **looking)
    assert (found["database"]["data_directory"], found["paths"]) == (".", ["./"]), found
    mountpoint = place / "mnt"
    mounted = call(borg_mount.main, **looking, mountpoint=str(mountpoint), paths=found["paths"])
    assert mounted["changed"], mounted
    try:
        for name in ("PG_VERSION", "PG_VERSION.old", "global/pg_control"):
            assert (mountpoint / name).read_bytes() == (made.cluster.data / name).read_bytes()
        assert sorted(os.listdir(mountpoint)) == sorted(os.listdir(made.cluster.data))
    finally:
        call(borg_mount.main, mountpoint=str(mountpoint), state="unmounted")
    assert [line for line in remains(place) if not line.startswith("path")] == []


def test_what_is_mounted_of_such_an_archive(made: Made, looking: dict[str, Any], place: Path) -> None:
    """All that belongs to the database, and nothing that only sounds alike."""
    (made.top / "space.old").mkdir(exist_ok=True)
    looking["archive"] = made.taken("parts", "./prod/data", "./space", "./space.old", "./wal")
    found = call(borg_archive_info.main, **looking)
    assert found["database"]["data_directory"] == "prod/data"
    assert found["paths"] == ["./prod/data", "./space"]
    assert [one["path"] for one in found["log_archives"]] == ["./wal"]
    assert call(borg_archive_info.main, **looking, data_directory="./prod/data")["paths"] == found["paths"]
    mountpoint = place / "mnt"
    options = {**looking, "mountpoint": str(mountpoint), "paths": found["paths"], "readers": 2}
    mounted = call(borg_mount.main, **options)
    assert mounted["changed"], mounted
    try:
        assert not call(borg_mount.main, **options)["changed"]
        assert [sorted(os.listdir(mountpoint / number)) for number in "12"] == [["prod", "space"]] * 2
    finally:
        call(borg_mount.main, mountpoint=str(mountpoint), state="unmounted")
    missing = call(borg_mount.main, **{**options, "paths": ["./prod/dat", "./space"]})
    assert "Archive parts has no prod/dat. borg_archive_info tells what it has." in missing["msg"]
    assert [line for line in remains(place) if not line.startswith("path")] == []


def test_what_borg_cannot_show_together_is_refused_with_the_cure(made: Made, looking: dict[str, Any]) -> None:
    looking["archive"] = made.taken("mixed", "./prod/data", "space", "./wal")
    assert call(borg_archive_info.main, **looking)["msg"] == (
        "The archive has paths that begin with ./ (of prod/data) and paths that do not (of space), which Borg cannot "
        "show in one mount: extract it, and archive its files with borg create."
    )
    # What does not concern the database may begin as it likes.
    looking["archive"] = made.taken("beside", "prod/data", "space", "./wal")
    found = call(borg_archive_info.main, **looking)
    assert (found["paths"], found["log_archives"][0]["path"]) == (["prod/data", "space"], "./wal")
