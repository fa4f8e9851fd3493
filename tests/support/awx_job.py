# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs the templates of awx/data as AWX does, without AWX: by ansible-runner's transmit, worker and process.

What AWX does between a launch and ansible-runner is done here by hand, as it was seen on a real server: the private
data directory, variables that are no templates, the credential's injectors, and an inventory that is a program.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sysconfig
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ansible_runner
import yaml
from jinja2 import Template

from tests.support.awx_content import CHECKOUT, content

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Awx", "Job"]

SETTINGS = {"job_timeout": 0, "suppress_ansible_output": True, "suppress_output_file": True}
USER = "alice"


class _Unsafe(yaml.SafeDumper):
    """Texts that Ansible is not to look at for templates."""


_Unsafe.add_representer(str, lambda dumper, text: dumper.represent_scalar("!unsafe", text, style="'"))


@dataclass(frozen=True)
class Job:
    """A finished job: AWX's `status` and `artifacts`, what was printed, and ansible-runner's events."""

    number: int
    status: str
    artifacts: dict[str, Any]
    output: str
    events: list[dict[str, Any]]

    @property
    def hosts(self) -> set[str]:
        """The hosts that tasks ran on."""
        return {event["event_data"]["host"] for event in self.events if event.get("event_data", {}).get("host")}


@dataclass(kw_only=True)
class Awx:
    """Launches templates on an inventory: variables by host.

    `credential` are the inputs of one of the type "Borg repository". `programs` is where ansible-runner and Ansible of
    the execution environment are, and `environment` is theirs.
    """

    directory: Path
    hosts: Mapping[str, Mapping[str, Any]]
    credential: Mapping[str, str]
    programs: Path = Path(sysconfig.get_path("scripts"))
    environment: Mapping[str, str] = field(default_factory=dict)
    jobs: list[Job] = field(default_factory=list)

    def launch(self, template: str, answers: Mapping[str, Any] | None = None, *, after: Job | None = None) -> Job:
        """Run a template; `after` is the job before it in a workflow, whose artifacts become variables."""
        (found,) = [one for one in content()["controller_templates"] if one["name"] == template]
        number = len(self.jobs) + 1
        private = self.directory / f"job {number}"
        injected = self._write(private, found, number, {**(after.artifacts if after else {}), **(answers or {})})
        events: list[dict[str, Any]] = []
        # With a cancel_callback ansible-runner leaves the handlers of signals as they are.
        options = {"private_data_dir": str(private), "ident": str(number), "quiet": True, "cancel_callback": bool}
        with tempfile.TemporaryFile() as sent:  # its name is looked at
            ansible_runner.interface.run(
                streamer="transmit",
                _output=sent,
                playbook=found["playbook"],
                envvars=injected,
                suppress_env_files=True,
                **options,
            )
            sent.seek(0)
            received = self._work(sent.read(), self.directory / f"worker {number}")
        runner = ansible_runner.interface.run(
            streamer="process", _input=io.BytesIO(received), event_handler=events.append, **options
        )
        final = [event for event in events if event["event"] == "playbook_on_stats"]
        artifacts = final[-1]["event_data"].get("artifact_data", {}) if final else {}
        output = "\n".join(event.get("stdout", "") for event in events)
        self.jobs.append(Job(number, runner.status, artifacts, output, events))
        return self.jobs[-1]

    def _work(self, sent: bytes, directory: Path) -> bytes:
        """What the container does, whose environment has nothing of the caller's."""
        directory.mkdir()
        ran = subprocess.run(
            [self.programs / "ansible-runner", "worker", "--private-data-dir", directory],
            input=sent,
            capture_output=True,
            timeout=600,
            check=False,
            env={"PATH": f"{self.programs}:{os.environ['PATH']}", "HOME": str(directory), **self.environment},
        )
        assert ran.stdout, ran.stderr.decode()
        return ran.stdout

    def _write(
        self, private: Path, template: Mapping[str, Any], number: int, answers: dict[str, Any]
    ) -> dict[str, str]:
        """Make the private data directory; returns what the credential puts into the environment."""
        shutil.copytree(CHECKOUT / "awx" / "project", private / "project")
        for name in ("env", "inventory"):
            (private / name).mkdir()
        given = {name: value for name, value in template.get("extra_vars", {}).items() if name not in answers}
        answers = {**_defaults(template), **answers, **_of_job(template, number)}
        dumped = yaml.dump(given) if given else ""
        (private / "env" / "extravars").write_text(dumped + yaml.dump(answers, Dumper=_Unsafe))
        environment, variables = self._injected()
        (private / "env" / "tmp1").write_text(yaml.dump(variables, Dumper=_Unsafe))
        # In a container this is /runner.
        worker = self.directory / f"worker {number}"
        (private / "env" / "cmdline").write_text(f"-u root -e '@{worker}/env/tmp1'")
        (private / "env" / "settings").write_text(json.dumps(SETTINGS))
        inventory = private / "inventory" / "hosts"
        inventory.write_text(f"#!/usr/bin/env python3\nprint({json.dumps(self._inventory())!r})\n")
        inventory.chmod(0o700)
        collections = f"{CHECKOUT}/.cache/collections"
        return {
            "ANSIBLE_COLLECTIONS_PATH": f"{worker}/requirements_collections:{collections}",
            "ANSIBLE_FORCE_COLOR": "False",
            "ANSIBLE_HOST_KEY_CHECKING": "False",
            "ANSIBLE_INVENTORY_UNPARSED_FAILED": "True",
            "JOB_ID": str(number),
            **environment,
        }

    def _inventory(self) -> dict[str, Any]:
        hosts = {
            name: {**variables, "remote_tower_enabled": "true", "remote_tower_id": number}
            for number, (name, variables) in enumerate(self.hosts.items(), start=1)
        }
        return {"all": {"hosts": list(hosts)}, "_meta": {"hostvars": hosts}}

    def _injected(self) -> tuple[dict[str, str], dict[str, str]]:
        """Environment and variables that the credential's type makes of its inputs."""
        (credential_type,) = content()["controller_credential_types"]
        environment, variables = (
            {name: Template(template).render(**self.credential) for name, template in some.items()}
            for some in (credential_type["injectors"]["env"], credential_type["injectors"]["extra_vars"])
        )
        return environment, variables


def _defaults(template: Mapping[str, Any]) -> dict[str, Any]:
    questions = template.get("survey_spec", {}).get("spec", [])
    return {question["variable"]: question["default"] for question in questions if "default" in question}


def _of_job(template: Mapping[str, Any], number: int) -> dict[str, Any]:
    """What AWX adds to the variables of each job, under both names of the product."""
    said = {
        "job_id": number,
        "job_launch_type": "manual",
        "job_template_id": 7,
        "job_template_name": template["name"],
        "user_id": 1,
        "user_name": USER,
        "user_email": "",
        "user_first_name": "",
        "user_last_name": "",
        "inventory_id": 2,
        "inventory_name": "Databases",
        "project_revision": "0" * 40,
        "execution_node": "node",
    }
    return {f"{prefix}_{name}": value for prefix in ("awx", "tower") for name, value in said.items()}
