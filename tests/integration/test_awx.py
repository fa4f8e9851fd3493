# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The templates of awx/data, launched as AWX launches them, from a start to its stop by the workflow.

AWX itself is in no package registry. What is real is all that its jobs consist of: ansible-runner's three streams,
variables, credential, inventory and project as it writes them, and a host that is reached by SSH.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.integration.conftest import needs_root
from tests.support.awx_job import USER, Awx, Job
from tests.support.cluster import Connection, fingerprint
from tests.support.host import remains
from tests.support.sshd import Sshd
from tests.support.user import ordinary_user

if TYPE_CHECKING:
    import pwd
    from collections.abc import Iterator

    from tests.integration.conftest import Sample
    from tests.support.playbook import Playbooks

pytestmark = needs_root


@pytest.fixture
def user() -> Iterator[pwd.struct_passwd]:
    with ordinary_user("ir-awx") as user:
        yield user


@pytest.fixture
def awx(place: Path, sample: Sample, user: pwd.struct_passwd) -> Iterator[Awx]:
    """With an inventory of db1, which is reached as an ordinary user, and the localhost of AWX's demonstration."""
    repository = sample.repository.copy(place / "repository", owner=user.pw_name)
    with Sshd(directory=place / "sshd", users=[user.pw_name]) as sshd:
        (place / "jobs").mkdir()
        yield Awx(
            directory=place / "jobs",
            hosts={"db1": sshd.variables(user.pw_name) | {"readers": 1}, "localhost": {"ansible_connection": "local"}},
            credential={"repository": repository.location, "passphrase": repository.passphrase},
        )


def done(job: Job) -> Job:
    assert job.status == "successful", job.output
    return job


def start_to_stop(awx: Awx, sample: Sample, user: pwd.struct_passwd) -> None:
    """A session by AWX's templates, to the last trace of it."""
    root = f"{user.pw_dir}/.local/state/instant_recovery"
    answers = {"source_host": "db1", "archive": sample.archive}
    started = done(awx.launch("Instant Recovery - start", answers))
    session = started.artifacts["instant_recovery_session"]
    assert started.artifacts["instant_recovery_session_id"] == session["id"]
    assert (session["host"], session["deployment_location"]) == ("db1", "remote")
    connection = Connection.of_session(session, bindir=sample.bindir, os_user=user.pw_name)
    assert fingerprint(connection) == sample.tables
    note = f'launch the template "Instant Recovery - stop" with session_id {session["id"]}'
    assert started.output.count(note) == 2  # before it is there, and after
    assert "instant_recovery_stop" not in started.output
    assert started.hosts == {"db1"}

    # In the workflow, without an answer: the session is the one of the start.
    stopped = done(awx.launch("Instant Recovery - stop", after=started))
    assert [one["status"] for one in stopped.artifacts["instant_recovery_stopped"]] == ["stopped"]
    assert stopped.hosts == {"db1"}
    assert remains(Path(root)) == []
    log = [json.loads(line) for line in Path(root, "audit.log").read_text().splitlines()]
    assert [(line["event"], line["claimed_by"]) for line in log] == [
        ("start", f"{USER}@AWX job {started.number}"),
        ("stop", f"{USER}@AWX job {stopped.number}"),
    ]


def test_a_session_by_the_templates(awx: Awx, sample: Sample, user: pwd.struct_passwd) -> None:
    start_to_stop(awx, sample, user)
    refused = awx.launch("Instant Recovery - start", {"source_host": "localhost", "archive": sample.archive})
    assert refused.status == "failed"
    assert "localhost is the execution environment of this job" in refused.output
    unanswered = awx.launch("Instant Recovery - stop")
    assert "session_id is not given: name a session" in unanswered.output
    assert_secret_in_nothing(awx)


def assert_secret_in_nothing(awx: Awx) -> None:
    secret = awx.credential["passphrase"]
    assert secret not in json.dumps([job.events for job in awx.jobs])
    files = [path for path in awx.directory.rglob("*") if path.is_file()]
    kept = {path.name for path in files if secret.encode() in path.read_bytes()}
    # ansible-runner writes its environment there, in directories that AWX removes with the job.
    assert kept == {"command"}


def test_without_a_collection_for_awx_that_is_said(playbooks: Playbooks) -> None:
    run = playbooks.run("awx")
    assert run.returncode != 0
    assert "Neither awx.awx nor ansible.controller is installed where Ansible runs" in run.output
