# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Sessions on another host, reached through an sshd of the test's own: as an ordinary user, and as root through sudo.

The other host is this machine under another name. What makes it another one for the playbooks is real: a connection by
SSH, a user and home of its own, an environment without the caller's secrets.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import signal
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._host.processes import identify
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._session.liveness import RECONNECTS

from tests.integration.conftest import needs_root
from tests.support.clock import wait_until
from tests.support.cluster import DATABASE, Connection, fingerprint
from tests.support.host import processes_below, remains
from tests.support.playbook import CHECKOUT, Playbooks, Run
from tests.support.sshd import Sshd
from tests.support.user import ordinary_user, passwordless_sudo

if TYPE_CHECKING:
    import pwd
    from collections.abc import Iterator

    from tests.integration.conftest import Sample
    from tests.support.repository import Repository

pytestmark = needs_root


@dataclasses.dataclass(frozen=True)
class Hosts:
    """An inventory with the host `db1`, reached as an ordinary user, `db2`, where this user becomes root, and `gone`.

    `repository` is a copy of the sample's that the ordinary user may use.
    """

    inventory: Path
    user: pwd.struct_passwd
    repository: Repository
    sshd: Sshd


@pytest.fixture(scope="module")
def hosts(shared_place: Path, sample: Sample) -> Iterator[Hosts]:
    with (
        ordinary_user("ir-ordinary") as user,
        ordinary_user("ir-admin") as admin,
        passwordless_sudo(admin.pw_name),
        Sshd(directory=shared_place / "sshd", users=[user.pw_name, admin.pw_name]) as sshd,
    ):
        variables: dict[str, dict[str, Any]] = {
            "db1": sshd.variables(user.pw_name),
            "db2": {**sshd.variables(admin.pw_name), "ansible_become": True},
            "gone": {**sshd.variables(user.pw_name), "ansible_port": 1},
        }
        inventory = shared_place / "hosts.yml"
        inventory.write_text(yaml.safe_dump({"all": {"hosts": variables}}))
        repository = sample.repository.copy(shared_place / "remote-repository", owner=user.pw_name)
        yield Hosts(inventory=inventory, user=user, repository=repository, sshd=sshd)


@pytest.fixture
def remote(playbooks: Playbooks, hosts: Hosts) -> Playbooks:
    """With the roots that the hosts choose themselves, and the passphrase in the controller's environment alone."""
    return dataclasses.replace(playbooks, inventory=hosts.inventory, session_root=None)


def test_as_an_ordinary_user(remote: Playbooks, hosts: Hosts, sample: Sample) -> None:
    """No root, no sudo: borg, the layer and the server all run as the user who is logged in."""
    root = f"{hosts.user.pw_dir}/.local/state/instant_recovery"
    started = succeed(start_on(remote, hosts, "db1"))
    session = session_of(started, "db1")
    assert session["driver"] == "block"
    assert session["overlay_merged_dir"].startswith(f"{root}/")
    connection = Connection.of_session(session, bindir=sample.bindir, os_user=hosts.user.pw_name)
    assert fingerprint(connection) == sample.tables
    connection.sql("update pgbench_branches set bbalance = 1", database=DATABASE)
    assert owners(session) == {hosts.user.pw_uid}

    listed = succeed(remote.sessions("--limit", "db1")).stats["instant_recovery_sessions"]
    assert [(one["id"], one["status"], one["host"]) for one in listed] == [(session["id"], "active", "db1")]
    # By the note's command, which is complete: it names the inventory, which nobody else would know. The id is enough,
    # though one host of the inventory does not answer.
    (command,) = (line for line in started.tasks[-1].result["msg"] if line.startswith("stop:\n"))
    stopped = succeed(dataclasses.replace(remote, inventory=None).ansible(*command.removeprefix("stop:\n").split()))
    assert [one["status"] for one in stopped.stats["instant_recovery_stopped"]] == ["stopped"]
    assert remains(root) == []
    assert identify(session["pid"]) is None  # its port may be another session's by now


def test_as_root_through_sudo(remote: Playbooks, hosts: Hosts, sample: Sample, place: Path) -> None:
    """The secret crosses ssh and sudo as a module's argument: no environment does.

    The cached fact of the host knows the root that a session was started with: to stop it, the id is enough.
    """
    root = place / "root-sessions"
    session = start(remote, hosts, "db2", session_root=str(root))
    assert fingerprint(Connection.of_session(session, bindir=sample.bindir)) == sample.tables
    succeed(remote.stop(session["id"], "--limit", "db2"))
    assert remains(root) == []


def test_hosts_that_do_not_answer(remote: Playbooks, hosts: Hosts) -> None:
    """Told exactly: a start fails, an unknown id names them, `all` does not pretend to have stopped everything."""
    archive = f"{hosts.repository.location}::latest"
    started = remote.start(deployment_location="remote", source_host="gone", archive=archive)
    assert started.returncode != 0
    assert "Connection refused" in started.message or "Make sure this host can be reached over SSH" in started.message
    for session_id in ("20200101-000000-0000", "all"):
        # Not localhost: `all` would stop sessions of whoever works on this machine.
        run = remote.stop(session_id, "--limit", "db1,gone")
        assert run.returncode != 0
        assert "gone: " in run.message
        # What Ansible says depends on whether ssh ends before or after the module was written to it.
        assert "Connection refused" in run.message or "Make sure this host can be reached over SSH" in run.message


def test_a_connection_that_is_killed(remote: Playbooks, hosts: Hosts, place: Path) -> None:
    """The list tells how far the start had come and that nobody goes on; stop cleans up, and the next start is fine."""
    root = Path(hosts.user.pw_dir) / ".local/state/instant_recovery"
    with ThreadPoolExecutor(1) as pool:
        starting = pool.submit(start_on, remote, hosts, "db1")
        wait_until(lambda: any('"borg_mount":' in path.read_text() for path in root.glob("*/session.json")))
        while not starting.done():  # between two tasks Ansible would only connect again
            hosts.sshd.drop_connections()
            time.sleep(0.05)
        assert starting.result().returncode != 0
    (record,) = root.glob("*/session.json")

    def look() -> dict[str, Any]:
        # A play may pause between two steps: what is told begins ten seconds after the last of them.
        os.utime(record, (time.time() - 12, time.time() - 12))
        (told,) = succeed(remote.sessions("--limit", "db1")).stats["instant_recovery_sessions"]
        assert told["status"] == "starting"
        return dict(told)

    told: dict[str, Any] = {}

    def is_told() -> bool:
        told.update(look())
        return bool(told["error_message"])

    wait_until(is_told)  # the module in flight may still come to its end
    assert re.match(r"Nobody has worked on it for [0-9]+ s, after (borg|overlay)_mount\.", told["error_message"])
    succeed(remote.stop(told["id"], "--limit", "db1"))
    assert remains(root) == []
    succeed(remote.stop(start(remote, hosts, "db1")["id"], "--limit", "db1"))
    assert remains(root) == []


def test_a_controller_that_is_killed(remote: Playbooks, hosts: Hosts, place: Path) -> None:
    """Its connection outlives it by ControlPersist, which is short here; then the host's keeper undoes the start."""
    root = Path(hosts.user.pw_dir) / ".local/state/instant_recovery"
    persist = {"ansible_ssh_args": "-o ControlMaster=auto -o ControlPersist=2s", "ansible_control_path": f"{place}/cp"}
    place.joinpath("ansible").mkdir()
    variables = {"deployment_location": "remote", "source_host": "db1", **archive_of(hosts), **persist, "readers": 1}
    ansible = subprocess.Popen(
        [
            *(*remote.command("ansible-playbook"), str(CHECKOUT / "playbooks" / "instant_recovery_start.yml")),
            *("--inventory", str(hosts.inventory), "--extra-vars", json.dumps(variables)),
        ],
        env=remote.process_environment(place / "killed.jsonl"),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    wait_until(lambda: any('"borg_mount":' in path.read_text() for path in root.glob("*/session.json")))
    os.killpg(ansible.pid, signal.SIGKILL)
    ansible.wait()
    # What was in flight comes to its end, then the connection goes, and a play might connect again for a while.
    wait_until(lambda: remains(root) == [], seconds=2 * RECONNECTS + 30)
    ended = succeed(remote.sessions("--limit", "db1", ended=True)).stats["instant_recovery_sessions"]
    told = max(ended, key=lambda one: str(one["created_at"]))
    assert told["status"] == "failed"
    assert told["error_message"].startswith("The start was cut off after ")


def start(remote: Playbooks, hosts: Hosts, host: str, **variables: Any) -> dict[str, Any]:
    return session_of(succeed(start_on(remote, hosts, host, **variables)), host)


def session_of(run: Run, host: str) -> dict[str, Any]:
    session = run.session
    assert (session["host"], session["deployment_location"]) == (host, "remote")
    assert 0 < session["timings"]["overhead"] < session["timings"]["total"] <= run.seconds
    return session


def start_on(remote: Playbooks, hosts: Hosts, host: str, **variables: Any) -> Run:
    return remote.start(deployment_location="remote", source_host=host, **archive_of(hosts), **variables)


def archive_of(hosts: Hosts) -> dict[str, Any]:
    # Root's Borg may have met the sample's repository elsewhere, in other tests: this is a copy, put there on purpose.
    return {"repository": hosts.repository.location, "archive": "sample-*", "accept_relocated": True}


def owners(session: dict[str, Any]) -> set[int]:
    """User ids of all processes of the session."""
    root = os.path.dirname(session["overlay_merged_dir"])
    return {os.stat(f"/proc/{pid}").st_uid for pid, _command in processes_below(root)}


def succeed(run: Run) -> Run:
    assert run.returncode == 0, run.output
    return run
