# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The main job, end to end: name an archive, query a server, stop it, find nothing left."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._host.processes import identify
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._session.session import Session
from ansible_collections.phpborg.instant_recovery.plugins.modules import session as session_module
from ansible_collections.phpborg.instant_recovery.plugins.modules import session_info, session_reap

from tests.integration.conftest import needs_root
from tests.support.cluster import DATABASE, Connection, fingerprint
from tests.support.host import free_port, is_listening, remains
from tests.support.modules import call
from tests.support.playbook import CHECKOUT, Playbooks, Run
from tests.support.stack import Stack
from tests.support.user import ordinary_user

if TYPE_CHECKING:
    from tests.integration.conftest import Sample

pytestmark = pytest.mark.on_disk  # as sessions are

CONTRACT = [
    *("id", "status", "engine", "engine_version", "host", "deployment_location", "archive", "driver", "port"),
    *("socket_directory", "user", "connection_string", "client_file", "pid", "borg_mount_point", "overlay_upper_dir"),
    *("overlay_merged_dir", "upper_bytes", "created_at", "started_at", "stopped_at", "expires_at", "error_message"),
    *("timings", "recovered_to", "stop_reason"),
]
STATUSES = {"starting", "active", "stopping", "stopped", "failed", "orphaned"}


def test_start_query_stop(playbooks: Playbooks, sample: Sample) -> None:
    before = sample.repository.digest()
    environment = {**playbooks.environment, "SUDO_USER": "alice"}
    playbooks = dataclasses.replace(playbooks, extra_vars={}, environment=environment)
    # As a survey of AWX gives it, in which nothing else was answered.
    specs = yaml.safe_load((CHECKOUT / "roles/session/meta/argument_specs.yml").read_text())["argument_specs"]
    names = [name.removeprefix("session_") for name in specs["start"]["options"]]
    unanswered = {name: "" for name in names if name not in ("archive", "id", "root")}
    started = succeed(playbooks.start(archive=sample.name, **unanswered))
    session = started.session
    assert started.stats["instant_recovery_session_id"] == session["id"]

    check_record(session, sample)
    check_timings(started)
    assert fingerprint(connection(session, sample)) == sample.tables
    stop_command = check_closing_note(started)
    (listed,) = succeed(playbooks.sessions()).stats["instant_recovery_sessions"]
    assert (listed["id"], listed["status"]) == (session["id"], "active")
    assert cached_fact(playbooks)["id"] == session["id"]
    assert f"Would stop session {session['id']}" in succeed(playbooks.stop(session["id"], "--check")).output
    assert is_listening(session["port"])

    stopped = succeed(playbooks.ansible(*stop_command))  # complete: it works as it stands
    assert stopped.changed
    (final,) = stopped.stats["instant_recovery_stopped"]
    assert (final["id"], final["status"]) == (session["id"], "stopped")
    assert_clean(playbooks, session)
    assert sample.repository.digest() == before
    assert not sample.repository.is_locked()

    log = Path(str(playbooks.session_root), "audit.log").read_text().splitlines()
    told = [(line["event"], line["claimed_by"]) for line in map(json.loads, log)]
    assert told == [(event, f"alice@{os.uname().nodename}") for event in ("start", "stop")]
    again = succeed(playbooks.stop(session["id"]))
    assert not again.changed
    assert cached_fact(playbooks)["status"] == "stopped"


@needs_root
def test_a_session_of_another_mount_namespace(playbooks: Playbooks, sample: Sample) -> None:
    """As a job runner or a unit with PrivateTmp starts it; who looks from the host sees the same."""
    inside = dataclasses.replace(playbooks, wrapper=["unshare", "--mount", "--propagation", "private"])
    session = succeed(inside.start(archive=sample.name)).session
    (listed,) = call(session_info.main, session_root=str(playbooks.session_root))["sessions"]
    assert (listed["status"], listed["error_message"]) == ("active", None)
    assert [(one["mounted"], one["responding"]) for one in listed["checks"]["mounts"]] == [(True, True)] * 2
    assert fingerprint(connection(session, sample)) == sample.tables
    assert call(session_reap.main, session_root=str(playbooks.session_root))["reaped"] == []
    # From here it could only be ended, and not be started again: it is left as it is.
    connection(session, sample).sql("create table mine (i int)")
    refused = playbooks.run("reset", session_id=session["id"])
    assert "was started in another mount namespace" in refused.message
    assert connection(session, sample).sql("select count(*) from mine") == "0"
    assert succeed(playbooks.stop(session["id"])).changed
    assert remains(str(playbooks.session_root)) == []


def test_sessions_do_not_see_each_other(playbooks: Playbooks, sample: Sample) -> None:
    """A session can be written to; a second one of the same archive, and the archive, know nothing of it."""
    before = sample.repository.digest()
    first = succeed(playbooks.start(archive=f"{sample.repository.location}::latest")).session
    writer = connection(first, sample)
    writer.sql(
        "update pgbench_accounts set abalance = 4711; drop table notes; create table own (i int)", database=DATABASE
    )
    writer.sql("checkpoint")

    # By the modules, which know as little of the first as the play does.
    second = Stack(Path(str(playbooks.session_root)), sample).start().info()
    assert {second[key] for key in ("id", "port", "socket_directory")}.isdisjoint(
        {first[key] for key in ("id", "port", "socket_directory")}
    )
    assert fingerprint(connection(second, sample)) == sample.tables
    assert writer.sql("select distinct abalance from pgbench_accounts", database=DATABASE) == "4711"
    assert sample.repository.digest() == before

    listed = succeed(playbooks.sessions()).stats["instant_recovery_sessions"]
    assert [one["status"] for one in listed] == ["active", "active"]
    stopped = succeed(playbooks.stop("all"))
    assert {one["id"] for one in stopped.stats["instant_recovery_stopped"]} == {first["id"], second["id"]}
    for session in (first, second):
        assert_clean(playbooks, session)
    assert not succeed(playbooks.stop("all")).changed


@needs_root
def test_as_an_ordinary_user(playbooks: Playbooks, sample: Sample, place: Path) -> None:
    """Ansible, borg, the layer and the server all run as a user who can become nobody else."""
    with ordinary_user("ir-alone") as user:
        repository = sample.repository.copy(place / "repository", owner=user.pw_name)
        own = dataclasses.replace(
            playbooks, os_user=user.pw_name, session_root=None, environment={"BORG_PASSPHRASE": repository.passphrase}
        )
        session = succeed(own.start(archive=f"{repository.location}::latest")).session
        root = f"{user.pw_dir}/.local/state/instant_recovery"
        assert session["overlay_merged_dir"].startswith(f"{root}/")
        server = connection(session, sample, os_user=user.pw_name)
        assert fingerprint(server) == sample.tables
        server.sql("vacuum full notes", database=DATABASE)
        succeed(own.stop(session["id"]))
        assert remains(root) == []
        assert identify(session["pid"]) is None  # its port may be another session's by now


def test_variables_of_the_contract(playbooks: Playbooks, sample: Sample) -> None:
    """As strings, which is how `-e name=value` gives them. The driver is the one that all other tests leave alone."""
    port, name = free_port(), "20990101-000000-abcd"
    driver = "overlayfs" if os.geteuid() == 0 else "block"
    session = succeed(
        playbooks.start(
            session_id=name,
            archive="sample-*",
            repository=sample.repository.location,
            deployment_location="local",
            engine="postgresql",
            driver=driver,
            data_directory="/" + sample.data_directory,
            port=str(port),
            read_only="yes",
            ttl="90m",
            settings={"work_mem": "77MB"},
        )
    ).session
    server = connection(session, sample)
    assert (session["driver"], session["port"]) == (driver, port)
    assert fingerprint(server) == sample.tables
    assert server.sql("show work_mem") == "77MB"
    with pytest.raises(RuntimeError, match="read-only transaction"):
        server.sql("create table t ()", database=DATABASE)
    assert session["expires_at"] > session["started_at"]
    assert session["id"] == name
    taken = playbooks.start(archive=sample.name, session_id=name)
    assert taken.returncode != 0
    assert f"There is a session {name} on localhost, which is active" in taken.message
    assert succeed(playbooks.stop(name)).changed
    assert_clean(playbooks, session)
    ended = call(session_module.main, session_root=str(playbooks.session_root), session_id=name)
    assert name in ended["msg"]


def test_check_mode_changes_nothing(playbooks: Playbooks, sample: Sample) -> None:
    checked = succeed(playbooks.start("--check", "--diff", archive=sample.name))
    assert "Would start postgresql" in checked.output
    assert checked.stats == {}
    assert playbooks.session_root is not None
    assert not playbooks.session_root.exists()
    assert not any((playbooks.directory / "facts").glob("*"))


def check_record(session: dict[str, Any], sample: Sample) -> None:
    assert list(session) == CONTRACT
    assert session["status"] in STATUSES
    expected = {
        "status": "active",
        "engine": "postgresql",
        "host": "localhost",
        "deployment_location": "local",
        # The session's own role: production's need not be known, and are not changed.
        "user": "instant_recovery",
        "stopped_at": None,
        "error_message": None,
    }
    assert {key: session[key] for key in expected} == expected
    assert session["engine_version"].startswith(f"{sample.major}.")
    archive = session["archive"]
    assert archive.keys() == {"repository", "name", "id", "time"}
    assert (archive["name"], archive["id"]) == (sample.archive, sample.archive_id)
    assert str(session["port"]) in session["connection_string"]
    assert is_listening(session["port"])


def check_timings(started: Run) -> None:
    """How long it may take is a matter for tests/benchmarks: a test must not fail because a machine is busy."""
    timings = started.session["timings"]
    steps = {step: seconds for step, seconds in timings.items() if step not in ("total", "overhead")}
    assert set(steps) == {"borg_archive_info", "borg_mount", "overlay_mount", "server"}
    assert timings["overhead"] == pytest.approx(timings["total"] - sum(steps.values()), abs=0.01)
    assert timings["total"] <= started.seconds


def check_closing_note(started: Run) -> list[str]:
    """That it tells all; its stop command."""
    last = started.tasks[-1]
    assert last.action == "ansible.builtin.debug"
    lines: list[str] = last.result["msg"]
    note, session = "\n".join(lines), started.session
    assert session["id"] in note
    assert session["connection_string"] in note
    assert session["socket_directory"] in note
    assert "psql" in note
    assert f"{session['timings']['overhead']}" in note
    (command,) = (line.removeprefix("stop:\n").split() for line in lines if line.startswith("stop:\n"))
    assert command[0] == "ansible-playbook"
    return command


def connection(session: dict[str, Any], sample: Sample, *, os_user: str | None = None) -> Connection:
    return Connection.of_session(session, bindir=sample.bindir, os_user=os_user)


def cached_fact(playbooks: Playbooks, host: str = "localhost") -> dict[str, Any]:
    """What a later play reads from the cache: only Ansible knows the cache's format."""
    play = [
        {
            "hosts": host,
            "gather_facts": False,
            "tasks": [{"ansible.builtin.debug": {"msg": "{{ ansible_facts['instant_recovery_session'] }}"}}],
        }
    ]
    path = playbooks.directory / "read_fact.yml"
    path.write_text(yaml.safe_dump(play))
    fact: dict[str, Any] = succeed(playbooks.run(str(path))).tasks[-1].result["msg"]
    return fact


def assert_clean(playbooks: Playbooks, session: dict[str, Any]) -> None:
    others = [one["id"] for one in call(session_info.main, session_root=str(playbooks.session_root))["sessions"]]
    left = [line for line in remains(str(playbooks.session_root)) if not any(other in line for other in others)]
    assert left == []
    assert session["id"] not in others
    assert identify(session["pid"]) is None  # its port may be another session's by now


def succeed(run: Run) -> Run:
    assert run.returncode == 0, run.output
    return run


def test_what_looks_like_a_template_in_a_record_is_text(playbooks: Playbooks, place: Path) -> None:
    """An archive's name, or what a link of it says, is in the record of a session, and that in the statistics."""
    text = f"{{{{ lookup('ansible.builtin.pipe', 'touch {place}/evaluated') }}}}"
    root = playbooks.session_root
    session = Session.create(str(root), session_id="mine", user="nobody", fields={"archive": {"name": text}})
    listed = playbooks.sessions()
    (told,) = listed.stats["instant_recovery_sessions"]
    assert (told["id"], told["archive"]["name"]) == (session.id, text), listed.output
    assert text in listed.output
    stopped = playbooks.stop("mine")
    assert stopped.returncode == 0, stopped.output
    assert [one["archive"]["name"] for one in stopped.stats["instant_recovery_stopped"]] == [text]
    assert not (place / "evaluated").exists()
    assert remains(root) == []
