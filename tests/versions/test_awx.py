# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is tried for AWX with a download: modules of awx.awx, ansible-builder, and other ansible-core in its jobs."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import yaml

from tests.integration.conftest import copies, needs_root, playbooks, sample
from tests.integration.test_awx import awx, start_to_stop, user
from tests.support.awx_content import content
from tests.support.awx_server import AwxServer
from tests.support.playbook import CHECKOUT, Playbooks, Run
from tests.versions.test_ansible_core import scripts

if TYPE_CHECKING:
    import pwd
    from collections.abc import Iterator

    from tests.integration.conftest import Sample
    from tests.support.awx_job import Awx

__all__ = ["awx", "copies", "playbooks", "sample", "scripts", "user"]

CACHE = CHECKOUT / ".cache"
SITE = {"awx_project_url": "https://git.example.com/r.git", "awx_webhook_url": "https://hooks.example.com/r"}
WORKFLOW = "Instant Recovery - start, approve, stop"


@needs_root
def test_the_templates_on_each_ansible_core(
    awx: Awx, sample: Sample, user: pwd.struct_passwd, scripts: Path, place: Path
) -> None:
    if not (scripts / "ansible-runner").exists():
        subprocess.run([scripts / "pip", "install", "--quiet", "ansible-runner>=2.4"], check=True, timeout=600)
    start_to_stop(dataclasses.replace(awx, programs=scripts), sample, user)


@pytest.fixture(scope="module")
def collections() -> Path:
    """A directory with awx.awx, from the last releases of the package `ansible` that have it."""
    directory = CACHE / "awx-collection"
    if not directory.exists():
        with tempfile.TemporaryDirectory(dir=CACHE) as new:
            wanted = ["download", "--quiet", "--no-deps", "--dest", new, "ansible>=12,<14"]
            if subprocess.run([sys.executable, "-m", "pip", *wanted], timeout=600, check=False).returncode != 0:
                pytest.skip("pip cannot download a package ansible that has awx.awx (12 or 13)")
            with zipfile.ZipFile(next(Path(new).glob("*.whl"))) as wheel:
                names = [name for name in wheel.namelist() if name.startswith("ansible_collections/awx/")]
                wheel.extractall(Path(new) / "collections", names)
            (Path(new) / "collections").rename(directory)
    return directory


@pytest.fixture
def server() -> Iterator[AwxServer]:
    with AwxServer() as server:
        yield server


@pytest.fixture
def controller(playbooks: Playbooks, collections: Path, server: AwxServer) -> Playbooks:
    """Where the playbook instant_recovery_awx finds awx.awx and the server."""
    path = f"{CHECKOUT}/.cache/collections:{collections}"
    return dataclasses.replace(playbooks, environment={**server.environment, "ANSIBLE_COLLECTIONS_PATH": path})


def applied(run: Run) -> set[str]:
    """Names of the objects that were changed by a run that succeeded."""
    assert run.returncode == 0, run.output
    results = [one for task in run.tasks for one in task.result.get("results", [])]
    return {one["item"]["name"] for one in results if one.get("changed")}


def test_what_awx_has_then_and_after_it_was_taken_back(controller: Playbooks, server: AwxServer) -> None:
    wanted = content(**SITE)
    names = {one["name"] for objects in wanted.values() for one in objects}
    assert applied(controller.run("awx", **SITE)) == names
    for template in wanted["controller_templates"]:
        kept = server.named("job_templates")[template["name"]]
        assert kept["playbook"] == template["playbook"]
        assert json.loads(kept.get("extra_vars", "{}")) == template.get("extra_vars", {})
        assert server.surveys.get(kept["id"]) == template.get("survey_spec")
    (kept,) = server.named("credential_types").values()
    assert kept["injectors"] == wanted["controller_credential_types"][0]["injectors"]
    hook = server.named("notification_templates")["Instant Recovery"]["id"]
    assert server.related("projects", "Instant Recovery", "notification_templates_error") == [hook]
    assert server.related("workflow_job_templates", WORKFLOW, "notification_templates_approvals") == [hook]
    assert_workflow(server)

    # Nothing but what the collection's module says by itself.
    server.writes.clear()
    assert applied(controller.run("awx", **SITE)) <= {WORKFLOW}
    assert not [write for write in server.writes if "workflow" not in write]

    removed = applied(controller.run("awx", awx_state="absent", **SITE))
    assert removed == names - {"Databases"}
    # AWX removes an update with its project, and an approval with its node.
    kept_here = ("project_updates", "workflow_approval_templates")
    left = {kind: set(server.named(kind)) for kind, some in server.objects.items() if some and kind not in kept_here}
    assert left == {"organizations": {"Default"}, "inventories": {"Databases"}}
    assert applied(controller.run("awx", awx_state="absent", **SITE)) == set()


def assert_workflow(server: AwxServer) -> None:
    nodes = server.named("workflow_job_template_nodes")
    templates = {one["id"]: one for one in server.named("job_templates").values()}
    assert templates[nodes["start"]["unified_job_template"]]["name"] == "Instant Recovery - start"
    assert templates[nodes["stop"]["unified_job_template"]]["name"] == "Instant Recovery - stop"
    (approval,) = server.named("workflow_approval_templates").values()
    assert (nodes["approve"]["unified_job_template"], approval["timeout"]) == (approval["id"], 7200)
    kind = "workflow_job_template_nodes"
    assert server.related(kind, "start", "success_nodes") == [nodes["approve"]["id"]]
    assert server.related(kind, "approve", "always_nodes") == [nodes["stop"]["id"]]


@pytest.mark.parametrize(
    ("name", "before", "after", "told"),
    [
        ("surveys.yml", "default: 'false'", "default: false", "is of another type than multiplechoice"),
        ("job_templates.yml", "playbook: reap.yml", "playbook: gone.yml", "Playbook not found for project."),
        ("workflows.yml", "extra_data: {ttl: 2h}", "extra_data: {ttl: 3h}", "is none of the choices"),
    ],
)
def test_the_server_refuses_what_awx_refuses(
    controller: Playbooks, place: Path, name: str, before: str, after: str, told: str
) -> None:
    copy = place / "data"
    shutil.copytree(CHECKOUT / "awx" / "data", copy)
    text = (copy / name).read_text()
    assert before in text
    (copy / name).write_text(text.replace(before, after))
    refused = controller.run("awx", awx_directory=str(copy))
    assert refused.returncode != 0
    assert told in refused.output


def test_ansible_builder_takes_the_execution_environment(place: Path) -> None:
    """Its schema refuses a key that it does not know. No image can be built here."""
    environment = CACHE / "ansible-builder"
    if not (environment / "bin" / "ansible-builder").exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(environment)], check=True)
        subprocess.run(
            [environment / "bin" / "pip", "install", "--quiet", "ansible-builder>=3.1"], check=True, timeout=600
        )
    recipe = CHECKOUT / "awx" / "execution-environment" / "execution-environment.yml"
    create = [environment / "bin" / "ansible-builder", "create", "--context", place / "context", "--file"]
    subprocess.run([*create, recipe], check=True, cwd=recipe.parent, capture_output=True, timeout=60)
    built = "".join(path.read_text() for path in (place / "context").rglob("*") if path.is_file())
    assert "phpborg/instant_recovery" in built
    packages = (place / "context" / "_build" / "bindep.txt").read_text().split()
    assert {name for name in packages if not name.startswith("[")} == {"openssh-clients", "openssh-client"}
    assert not (place / "context" / "_build" / "requirements.txt").exists()

    misspelt = place / "misspelt.yml"
    misspelt.write_text(yaml.safe_dump({**yaml.safe_load(recipe.read_text()), "dependancies": {}}))
    refused = subprocess.run(
        [*create, misspelt], check=False, cwd=recipe.parent, capture_output=True, text=True, timeout=60
    )
    assert refused.returncode != 0
    assert "dependancies" in refused.stdout + refused.stderr

    introspected = subprocess.run(
        [environment / "bin" / "ansible-builder", "introspect", CACHE / "collections"],
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert not [line for line in introspected.stdout.splitlines() if line.strip().startswith("- ")]
