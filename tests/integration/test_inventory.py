# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The inventory plugin on real, encrypted repositories: in this process, and as Ansible's programs read it."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import socket
import subprocess
from dataclasses import dataclass
from pathlib import Path
from textwrap import indent
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from ansible.parsing.vault import VaultLib, VaultSecret

from tests.integration.conftest import needs_root
from tests.support.inventory import read_inventory, write_inventory
from tests.support.repository import BRISK, PASSPHRASE, Repository

if TYPE_CHECKING:
    from tests.integration.conftest import Sample
    from tests.support.playbook import Playbooks

MACHINE = socket.gethostname()
CONNECTION_CANARY = "canary-of-a-connection"


@dataclass(frozen=True)
class Fleet:
    """A repository with two series of db1 and db2, and the variables of an entry that opens it."""

    repository: Repository
    secret: Path
    entry: dict[str, Any]


@pytest.fixture(scope="module")
def fleet(shared_place: Path) -> Fleet:
    top = shared_place / "fleet"
    top.mkdir(mode=0o755)
    (top / "file").write_text("content")
    repository = Repository(directory=top / "repository", base=top / "borg")
    repository.create()
    for name, moment in (
        ("db2-2026-11-24T02:00", "2026-11-24T02:00:00"),
        ("db1-2026-11-25T02:00", "2026-11-25T02:00:00"),
        ("db1-2026-11-26T02:00", "2026-11-26T02:00:00"),
    ):
        repository.archive(name, top / "file", options=["--timestamp", moment])
    secret = top / "secret"
    secret.touch(mode=0o600)
    secret.write_text(f"{PASSPHRASE}\n")
    entry = {"name": "main", "repository": repository.location, "borg_passphrase_file": str(secret)}
    return Fleet(repository, secret, entry)


@pytest.fixture(autouse=True)
def _borgs_own_place(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    """Borg's caches and keys are the repository's own, and the secret is in no environment."""
    monkeypatch.setenv("BORG_BASE_DIR", str(fleet.repository.base))
    monkeypatch.delenv("BORG_PASSPHRASE", raising=False)
    monkeypatch.delenv("BORG_PASSCOMMAND", raising=False)


@pytest.fixture
def hosts(place: Path) -> Path:
    """An inventory of machines, with a group of three that verify; one of them is this one, by another name."""
    path = place / "hosts.yml"
    verifiers = {
        "v1": {"ansible_host": "{{ inventory_hostname }}.example.com", "ansible_password": CONNECTION_CANARY},
        "v2": {"ansible_host": "192.0.2.2", "ansible_python_interpreter": "{{ ansible_playbook_python }}"},
        f"{MACHINE}.example.com": {},
    }
    children = {"verifiers": {"hosts": verifiers, "vars": {"ansible_user": "verifier"}}}
    path.write_text(yaml.safe_dump({"all": {"children": children}}))
    return path


def test_series_become_hosts(fleet: Fleet, place: Path) -> None:
    found = read_inventory(write_inventory(place / "fleet.borg.yml", fleet.entry))
    assert (found.error, found.warnings) == ("", [])
    assert found.sources == ["db1@main", "db2@main"]
    variables = found.variables("db1@main")
    newest = fleet.repository.archives()[-1]
    source = variables["instant_recovery_source"]
    assert source["newest"] == {
        "name": "db1-2026-11-26T02:00",
        "id": newest["id"],
        "time": "2026-11-26T02:00:00.000+00:00",
    }
    assert source["oldest"]["name"] == "db1-2026-11-25T02:00"
    assert (source["archives"], source["machines"], source["error"]) == (2, [MACHINE], None)
    assert variables["session_archive"] == "db1-2026-11-26T02:00"
    assert variables["session_repository"] == fleet.repository.location
    assert (variables["ansible_host"], variables["ansible_connection"]) == ("localhost", "local")
    machine = MACHINE.replace("-", "_").replace(".", "_")
    assert found.groups("db1@main") == {
        "borg_series",
        "borg_repository_main",
        f"borg_machine_{machine}",
        "borg_verification_host_localhost",
    }
    assert PASSPHRASE not in found.dump()
    assert not fleet.repository.is_locked()


def test_a_passphrase_in_clear_is_refused_and_not_shown(fleet: Fleet, place: Path) -> None:
    entry = {"name": "main", "repository": fleet.repository.location, "borg_passphrase": PASSPHRASE}
    found = read_inventory(write_inventory(place / "fleet.borg.yml", entry))
    assert "repository main: borg_passphrase is in clear: encrypt it" in found.error
    assert PASSPHRASE not in found.error
    assert found.sources == []


def test_an_expression_that_comes_to_nothing_is_not_shown(fleet: Fleet, place: Path) -> None:
    secret = "{{ ('" + PASSPHRASE + "') ~ missing }}"
    entry = {"name": "main", "repository": fleet.repository.location, "borg_passphrase": secret}
    found = read_inventory(write_inventory(place / "fleet.borg.yml", entry))
    assert "borg_passphrase is an expression that cannot be evaluated" in found.error
    assert PASSPHRASE not in found.error


def test_a_source_is_reached_as_the_host_that_verifies_it(fleet: Fleet, place: Path, hosts: Path) -> None:
    (place / "host_vars").mkdir()
    (place / "host_vars" / "v1.yml").write_text("ansible_port: 2222\n")
    options: dict[str, Any] = {"verification_host": {"group": "verifiers"}, "segregated": True}
    found = read_inventory(write_inventory(place / "fleet.borg.yml", fleet.entry, **options), hosts)
    assert found.error == ""
    reached = {
        "v1": {"ansible_host": "v1.example.com", "ansible_port": 2222, "ansible_user": "verifier"},
        "v2": {
            "ansible_host": "192.0.2.2",
            "ansible_user": "verifier",
            "ansible_python_interpreter": "{{ ansible_playbook_python }}",
        },
    }
    for source in found.sources:
        variables = found.variables(source)
        host = variables["instant_recovery_verification_host"]
        own = {name: value for name, value in variables.items() if name.startswith("ansible_")}
        assert own == reached[host]  # and not the machine itself, though it is in the group
        assert sorted(variables["instant_recovery_verification_candidates"]) == ["v1", "v2"]
        assert f"borg_verification_host_{host}" in found.groups(source)
        assert "verifiers" not in found.groups(source)
    assert found.variables("v1")["ansible_password"] == CONNECTION_CANARY
    assert all(CONNECTION_CANARY not in json.dumps(found.variables(source), default=str) for source in found.sources)


@pytest.mark.parametrize("on_error", ["fail", "warn"])
def test_a_source_that_would_be_verified_on_itself(fleet: Fleet, place: Path, hosts: Path, on_error: str) -> None:
    options = {"verification_host": f"{MACHINE}.example.com", "segregated": True, "on_error": on_error}
    found = read_inventory(write_inventory(place / "fleet.borg.yml", fleet.entry, **options), hosts)
    sentence = f"segregated is true, and {MACHINE}.example.com is the source itself"
    if on_error == "fail":
        assert sentence in found.error
        assert found.sources == []
        return
    assert found.sources == ["db1@main", "db2@main"]
    assert len([one for one in found.warnings if "cannot be verified: segregated is true" in one]) == 2
    variables = found.variables("db1@main")
    assert sentence in variables["instant_recovery_source"]["error"]
    assert variables["instant_recovery_verification_host"] is None
    assert variables["ansible_host"] == "not-verifiable.invalid"
    assert "borg_error" in found.groups("db1@main")


def test_verified_on_the_source(fleet: Fleet, place: Path, hosts: Path) -> None:
    path = write_inventory(place / "fleet.borg.yml", fleet.entry, verification_host="source")
    found = read_inventory(path, hosts)
    assert found.variables("db1@main")["instant_recovery_verification_host"] == f"{MACHINE}.example.com"
    moved = write_inventory(place / "m.borg.yml", fleet.entry, verification_host="source", machines={MACHINE: "v2"})
    assert read_inventory(moved, hosts).variables("db1@main")["ansible_host"] == "192.0.2.2"
    alone = read_inventory(path)
    assert f"the machine {MACHINE} is no host of the inventory that was read before" in alone.error


def test_a_repository_that_cannot_be_listed_is_not_forgotten(fleet: Fleet, place: Path) -> None:
    gone = {"name": "gone", "repository": str(place / "gone")}
    failed = read_inventory(write_inventory(place / "fleet.borg.yml", fleet.entry, gone))
    assert f"all@gone: There is no Borg repository at {place}/gone" in failed.error
    assert failed.sources == []
    found = read_inventory(write_inventory(place / "fleet.borg.yml", fleet.entry, gone, on_error="warn"))
    assert found.sources == ["all@gone", "db1@main", "db2@main"]
    assert "There is no Borg repository" in found.variables("all@gone")["instant_recovery_source"]["error"]
    assert found.groups("all@gone") == {"borg_series", "borg_repository_gone", "borg_error"}
    assert any(one.startswith("all@gone cannot be verified: There is no Borg repository") for one in found.warnings)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"segregatd": True}, "segregatd is unknown in the inventory file: did you mean segregated?"),
        ({"on_error": "ignore"}, "'ignore' for config 'on_error'"),
        ({"machines": ["x"]}, "Config 'machines'"),
        ({"verification_host": {"group": "nobody"}}, "group nobody of verification_host has no hosts"),
        ({"repositories": "x"}, "repositories is no list of repositories"),
    ],
)
def test_what_the_file_cannot_say(fleet: Fleet, place: Path, options: dict[str, Any], message: str) -> None:
    path = place / "fleet.borg.yml"
    content = {"plugin": "phpborg.instant_recovery.borg", "repositories": [fleet.entry], **options}
    path.write_text(yaml.safe_dump(content))
    found = read_inventory(path)
    assert message in found.error
    assert found.sources == []


def test_names_that_mean_harm(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever may write into a repository may call an archive anything that Borg takes."""
    repository = Repository(directory=place / "hostile", base=place / "borg")
    repository.create()
    (place / "file").write_text("content")
    braces = "{{{{ lookup('pipe', 'id') }}}}"  # as Borg wants braces that are none of its placeholders
    for name in (braces, "\x1b[2Jdb1-2026-11-25", "db1-2026-11-25"):
        repository.archive(name, place / "file")
    secret = place / "secret"
    secret.write_text(PASSPHRASE)
    entry = {"name": "hostile", "repository": repository.location, "borg_passphrase_file": str(secret)}
    path = write_inventory(place / "fleet.borg.yml", entry, list_archives=True)
    monkeypatch.setenv("BORG_BASE_DIR", str(repository.base))
    found = read_inventory(path)
    assert found.sources == ["db1@hostile"]
    said = "\n".join(found.warnings)
    assert "has braces in its name that Ansible takes for a template" in said
    assert "act on a terminal" in said
    assert "\x1b" not in said
    assert "{{" not in said
    own = {"session_borg_passphrase": "", "ansible_python_interpreter": ""}  # are expressions, and of ours
    assert "{{" not in json.dumps({**found.variables("db1@hostile"), **own})


@needs_root
def test_machines_by_what_they_call_themselves(fleet: Fleet, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a namespace of their own, since Borg asks the kernel for the host's name."""
    repository = Repository(directory=place / "repository", base=place / "borg")
    repository.create()
    (place / "file").write_text("content")
    for number, machine in enumerate(("web1", "web2.example.com"), start=1):
        archive = f"{repository.location}::nightly-2026-11-2{number}"
        script = 'hostname "$0" && exec "$@"'
        subprocess.run(
            ["unshare", "--uts", "sh", "-c", script, machine, "borg", "create", archive, str(place / "file")],
            env={**os.environ, **BRISK, **repository.environment},
            check=True,
            capture_output=True,
        )
    entry = {**fleet.entry, "repository": repository.location}
    monkeypatch.setenv("BORG_BASE_DIR", str(repository.base))
    found = read_inventory(write_inventory(place / "fleet.borg.yml", entry))
    assert found.sources == ["nightly-web1@main", "nightly-web2@main"]  # Borg leaves the domain out
    assert "borg_machine_web2" in found.groups("nightly-web2@main")


def test_constructed_groups_and_variables(fleet: Fleet, place: Path) -> None:
    options: dict[str, Any] = {
        "compose": {"level": "'read' if instant_recovery_source.archives > 1 else 'open'"},
        "groups": {"deep": "level == 'read'"},
        "keyed_groups": [{"prefix": "day", "key": "instant_recovery_source.newest.time[:10]"}],
    }
    found = read_inventory(write_inventory(place / "fleet.borg.yml", fleet.entry, **options))
    assert found.error == ""
    assert {"deep", "day_2026_11_26"} <= found.groups("db1@main")
    assert "deep" not in found.groups("db2@main")
    strict = write_inventory(place / "s.borg.yml", fleet.entry, compose={"level": "missing.key"}, strict=True)
    assert "missing" in read_inventory(strict).error


def test_a_cache_in_place_of_borg(fleet: Fleet, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BORG_BASE_DIR", str(place / "borg"))  # remembers where a repository was seen last
    copy = dataclasses.replace(fleet.repository, directory=place / "repository")
    shutil.copytree(fleet.repository.directory, copy.directory)
    entry = {**fleet.entry, "repository": copy.location}
    cache = {"cache": True, "cache_plugin": "jsonfile", "cache_connection": str(place / "cache"), "cache_timeout": 0}
    path = write_inventory(place / "fleet.borg.yml", entry, **cache)
    assert read_inventory(path).sources == ["db1@main", "db2@main"]
    shutil.rmtree(copy.directory)
    again = read_inventory(path)
    assert (again.error, again.sources) == ("", ["db1@main", "db2@main"])
    assert again.variables("db1@main")["session_archive"] == "db1-2026-11-26T02:00"
    cached = [file.read_text() for file in (place / "cache").iterdir()]
    assert any("db1-2026-11-26T02:00" in text for text in cached)
    assert all(PASSPHRASE not in text for text in cached)
    assert "There is no Borg repository" in read_inventory(path, cache=False).error  # --flush-cache


def test_the_engine_of_the_newest_archive(
    sample: Sample, fleet: Fleet, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BORG_BASE_DIR", str(sample.repository.base))
    entry = {**fleet.entry, "repository": sample.repository.location}
    unseen = read_inventory(write_inventory(place / "a.borg.yml", entry))
    assert unseen.variables("sample-crashed@main")["instant_recovery_source"]["engines"] == []
    found = read_inventory(write_inventory(place / "b.borg.yml", entry, detect_engine=True))
    assert found.error == ""
    assert found.variables("sample-crashed@main")["session_engine"] == "postgresql"
    assert "borg_engine_postgresql" in found.groups("sample-crashed@main")


def test_a_source_is_started_by_its_name(sample: Sample, fleet: Fleet, place: Path, playbooks: Playbooks) -> None:
    """The start playbook takes repository, archive and secret from the inventory."""
    entry = {**fleet.entry, "repository": sample.repository.location, "engine": "postgresql"}
    path = write_inventory(place / "fleet.borg.yml", entry)
    runner = dataclasses.replace(playbooks, environment={"BORG_BASE_DIR": str(sample.repository.base)})
    run = runner.start("--check", "-i", str(path), deployment_location="remote", source_host="sample-crashed@main")
    assert run.returncode == 0, run.output
    assert f"on sample-crashed@main from {sample.name}" in run.output.replace("\n", " ")
    assert PASSPHRASE not in run.output


def test_ansible_lists_and_limits_and_opens_by_all_ways(fleet: Fleet, place: Path, playbooks: Playbooks) -> None:
    """Ansible's own programs, which find the plugin by the file's name and its key."""
    (place / "group_vars").mkdir()
    (place / "group_vars" / "all.yml").write_text("main: \"{{ lookup('ansible.builtin.env', 'MAIN_SECRET') }}\"\n")
    (place / "key").write_text("key")
    encrypted = VaultLib([("default", VaultSecret(b"key"))]).encrypt(PASSPHRASE).decode()
    ways = {
        "env": {"borg_passphrase_env": "MAIN_SECRET"},
        "command": {"borg_passcommand": f"sh -c \"cat '{fleet.secret}'\""},
        "expression": {"borg_passphrase": "{{ main }}"},
        "file": {"borg_passphrase_file": os.path.relpath(fleet.secret, place)},
        "vault": {"borg_passphrase": "VAULT"},
    }
    entries = [{"name": way, "repository": fleet.repository.location, **secret} for way, secret in ways.items()]
    path = write_inventory(place / "fleet.borg.yml", *entries)
    path.write_text(path.read_text().replace("VAULT", "!vault |\n" + indent(encrypted, "    ").rstrip()))
    environment = {"BORG_BASE_DIR": str(fleet.repository.base), "MAIN_SECRET": PASSPHRASE}
    runner = dataclasses.replace(playbooks, environment=environment)
    options = ("-i", str(path), "--vault-password-file", str(place / "key"))
    listed = runner.ansible("ansible-inventory", "-vvv", *options, "--list", "--limit", "borg_series:!db2@*")
    assert listed.output.count('"session_borg_passphrase"') == len(ways), listed.output
    assert all(f'"db1@{way}": {{' in listed.output for way in ways)
    assert '"db2@' not in listed.output
    assert "$ANSIBLE_VAULT" in listed.output
    assert PASSPHRASE not in listed.output
    said = "msg={{ session_borg_passphrase == lookup('ansible.builtin.env', 'MAIN_SECRET') }}"
    asked = runner.ansible("ansible", "db1@*", *options, "-m", "ansible.builtin.debug", "-a", said)
    assert asked.output.count("SUCCESS") == asked.output.lower().count("true") == len(ways), asked.output
