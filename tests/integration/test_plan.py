# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What would be done to a copy is told in check mode, before anything is done, and shown with --diff when it is."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._borg.mount import mounted_archives
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._host.processes import command_lines
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._postgresql.engine import Postgresql
from ansible_collections.phpborg.instant_recovery.plugins.modules import copy_plan_info

from tests.integration.conftest import needs_root
from tests.support.clock import wait_until
from tests.support.cluster import Cluster, Connection
from tests.support.host import mountinfo
from tests.support.modules import call
from tests.support.repository import Repository
from tests.support.stack import Stack

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ansible_collections.phpborg.instant_recovery.plugins.module_utils._postgresql.plan import PostgresqlRequest

    from tests.support.playbook import Playbooks, Run

pytestmark = needs_root  # its clusters belong to postgres


@dataclasses.dataclass(frozen=True)
class Backups:
    """Archives: `whole` with the tablespace, `part` without it, `base` a base backup without WAL, `wal` its WAL."""

    repository: Repository
    data: str
    bindir: str

    def of(self, name: str) -> str:
        return f"{self.repository.location}::{name}"


@pytest.fixture(scope="module")
def backups(shared_place: Path) -> Iterator[Backups]:
    place = shared_place / "plan"
    space, wal = place / "space", place / "wal"
    for path in (space, wal):
        path.mkdir(parents=True)
        shutil.chown(path, "postgres")
    repository = Repository(directory=place / "repository", base=shared_place / "borg")
    repository.create()
    settings = {"archive_mode": "on", "archive_command": f"cp %p {wal}/%f", "TimeZone": "Asia/Kathmandu"}
    with Cluster(directory=place / "production", settings=settings) as cluster:
        base = cluster.directory / "base"
        argv = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups", f"{cluster.bindir}/pg_basebackup"]
        argv += ["-h", str(cluster.run), "-p", "5432", "-U", cluster.superuser, "-D", str(base)]
        subprocess.run([*argv, "-X", "none", "-c", "fast", "--no-sync"], check=True, capture_output=True)
        cluster.connection.sql("create database elsewhere")
        cluster.connection.sql("update pg_database set datcollate = 'xx_XX.utf8' where datname = 'elsewhere'")
        cluster.connection.sql("checkpoint")
        cluster.connection.sql(f"create tablespace fast location '{space}'")
        cluster.connection.sql("create table kept as select 1 one; create table lost tablespace fast as select 2 two")
        cluster.connection.sql("select pg_switch_wal()")
        cluster.stop(mode="immediate")
        (cluster.data / "standby.signal").touch()
        repository.archive("whole", cluster.data, space)
        repository.archive("part", cluster.data)
        repository.archive("base", base)
        repository.archive("wal", wal)
        yield Backups(repository, str(cluster.data)[1:], cluster.bindir)


@pytest.fixture(autouse=True)
def temporary(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary directories are made: others look into archives at the same time."""
    directory = place / "temporary"
    directory.mkdir()
    monkeypatch.setenv("TMPDIR", str(directory))
    monkeypatch.setattr(tempfile, "tempdir", str(directory))
    return directory


@pytest.fixture
def looking(playbooks: Playbooks, temporary: Path) -> Playbooks:
    """Playbooks whose temporary directories are made there, too."""
    return dataclasses.replace(playbooks, environment={**playbooks.environment, "TMPDIR": str(temporary)})


def left_over(temporary: Path) -> list[str]:
    """Mounts and directories of a look that should be gone."""
    mounts = [line.split()[4] for line in mountinfo()]
    return [*(path for path in mounts if path.startswith(str(temporary))), *map(str, temporary.glob("instant-*"))]


def plan_of(run: Run) -> str:
    assert run.returncode == 0, run.output
    (said,) = (task.result["msg"] for task in run.tasks if task.task.endswith("Tell what a real run would do"))
    return "\n".join(said)


def test_check_mode_tells_what_a_start_then_does(looking: Playbooks, backups: Backups, temporary: Path) -> None:
    looked = looking.start("--check", archive=backups.of("whole"))
    told, output = plan_of(looked), " ".join(looked.output.split())
    assert "would carry over: TimeZone=Asia/Kathmandu, " in told
    assert re.search(r"would do: creation of tablespace \d+ in \S+/space taken out of the WAL", told)
    assert "would do: standby.signal removed: as a standby the server would connect to production" in told
    assert "Database elsewhere needs the locale xx_XX.utf8, which this host does not have: nobody can" in output
    assert left_over(temporary) == []
    assert not Path(str(looking.session_root)).exists()

    started = looking.start("--diff", archive=backups.of("whole"))
    assert started.returncode == 0, started.output
    (result,) = (task.result for task in started.tasks if task.action.endswith(".pg_ephemeral"))
    directory = str(Path(started.session["overlay_merged_dir"]).parent)
    for entry in (*result["neutralised"], *result["carried_over"]):
        sentence = f"{entry['what']}: {entry['why']}".replace(directory, "SESSION")
        # Each session has a user of its own.
        assert re.sub(r"\(id \d+\)", "(id N)", sentence) in re.sub(r"\(id \d+\)", "(id N)", told)
    # What --diff printed.
    for line in ("standby.signal removed", "archive_mode=off, archive_command emptied", "TimeZone=Asia/Kathmandu"):
        assert any(line in printed and printed.startswith("+") for printed in started.output.splitlines()), line
    looking.end(started.session["id"])


def test_check_mode_refuses_what_a_start_would(
    looking: Playbooks, backups: Backups, temporary: Path, copies: Path
) -> None:
    refused = looking.start("--check", archive=backups.of("part"))
    assert refused.returncode != 0
    assert "or go on without what lies there (missing_tablespaces=leave_out)" in refused.message, refused.message
    assert "SESSION/merged/" in refused.message
    told = plan_of(looking.start("--check", archive=backups.of("base"), log_source=backups.of("wal")))
    assert "would do: restore_command emptied" in told
    assert left_over(temporary) == []

    server = {"missing_tablespaces": "leave_out"}
    stack = Stack.of(copies / "sessions", backups.repository, "part", server=server).start()
    connection = Connection.of_session(stack.info(), bindir=backups.bindir)
    assert connection.sql("select one from kept") == "1"
    with pytest.raises(RuntimeError, match="could not open file"):
        connection.sql("select two from lost")
    stack.change("absent")


def options(backups: Backups) -> dict[str, Any]:
    secret = {"passphrase": backups.repository.passphrase}
    return {"archive": backups.of("whole"), "paths": [backups.data], "data_directory": backups.data, **secret}


def test_the_module_alone(backups: Backups, temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BORG_BASE_DIR", str(backups.repository.base))
    given = {**options(backups), "user": "postgres", "missing_tablespaces": "leave_out"}
    result = call(copy_plan_info.main, engine="postgresql", **given)
    assert not result["changed"], result
    assert result["version"].startswith("15.")
    assert result["recovery"] is None
    assert "left out: its link leads to the empty directory SESSION/merged/" in str(result["neutralised"])
    for more, said in (
        ({"user": "root"}, "PostgreSQL refuses to run as root"),
        ({"user": "postgres", "recovery_target_time": "soon"}, "recovery_target_time 'soon' cannot be used"),
        ({"user": "postgres", "log_source": "no", "log_archive": backups.of("wal")}, "Archive wal has no no"),
    ):
        result = call(copy_plan_info.main, engine="postgresql", **{**options(backups), **more})
        assert result["failed"]
        assert said in result["msg"], result["msg"]
        assert left_over(temporary) == []


def test_a_repository_that_stops_answering_ends_a_look(
    backups: Backups, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The module waits in the kernel by then, where no signal reaches it."""
    monkeypatch.setenv("BORG_BASE_DIR", str(backups.repository.base))
    monkeypatch.setattr(copy_plan_info, "GRACE", 0)

    def wait_for_ever(_engine: Postgresql, request: PostgresqlRequest) -> None:
        found = mounted_archives(str(temporary))
        (borg,) = (process for process, argv in command_lines(None) if found[0] in argv and "mount" in argv)
        os.kill(borg.pid, signal.SIGSTOP)
        with open(f"{request.data_directory}/base/1/PG_VERSION") as file:
            file.read()

    monkeypatch.setattr(Postgresql, "plan", wait_for_ever)
    result = call(copy_plan_info.main, engine="postgresql", **options(backups), user="postgres", timeout=10)
    assert result["failed"]
    assert "base/1/PG_VERSION: " in result["msg"], result["msg"]
    assert left_over(temporary) == []


def test_a_look_that_is_killed_leaves_no_mount(backups: Backups, temporary: Path) -> None:
    """However that comes, and whatever Borg does at a signal."""
    script = (
        "import json, os, signal, sys\n"
        "sys.path[:] = json.loads(sys.argv[1])\n"
        "from ansible_collections.phpborg.instant_recovery.plugins.modules import copy_plan_info as module\n"
        "from tests.support.modules import call\n"
        "type(module.ENGINES['postgresql']).plan = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        "call(module.main, engine='postgresql', user='postgres', **json.load(sys.stdin))\n"
    )
    killed = subprocess.run(
        # No PYTHONPATH: Borg would inherit it, and runs on a Python of its own.
        [sys.executable, "-c", script, json.dumps(sys.path)],
        env={**os.environ, **backups.repository.environment},
        input=json.dumps(options(backups)),  # it holds the secret
        text=True,
        cwd=Path(__file__).parents[2],
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL
    wait_until(lambda: not any("merged" in path for path in left_over(temporary)))
    (directory,) = left_over(temporary)
    # Where it mounted, and where Borg would have put something aside.
    assert sorted(str(path.relative_to(directory)) for path in Path(directory).rglob("*")) == ["merged", "tmp"]
