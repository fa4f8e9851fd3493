# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What users install: the wheel and the Galaxy tarball, each in an empty environment, used once on a real archive."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import yaml

from tests.support.host import remains

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tests.integration.conftest import Sample

CHECKOUT = Path(__file__).resolve().parents[2]
VERSION = yaml.safe_load((CHECKOUT / "galaxy.yml").read_text())["version"]
INSIDE = "ansible_collections/phpborg/instant_recovery"
PARTS = ("meta", "playbooks", "plugins", "roles")

USE_THE_API = """
import json, sys
from instant_recovery import InstantRecovery

archive, root = sys.argv[1:]
with InstantRecovery(session_root=root).start(archive=archive) as session:
    with session.connect() as connection, connection.cursor() as cursor:
        cursor.execute("select count(*) from pg_database")
        print(json.dumps(cursor.fetchone()[0]))
"""


@pytest.fixture(scope="module")
def wheel(shared_place: Path) -> Path:
    options = ["--no-deps", "--no-build-isolation", "--wheel-dir", str(shared_place)]
    run([sys.executable, "-m", "pip", "wheel", *options, str(CHECKOUT)])
    return next(shared_place.glob("*.whl"))


@pytest.fixture(scope="module")
def plain_ansible(shared_place: Path) -> Path:
    """An environment with ansible-core alone; returns its programs' directory."""
    return environment(shared_place / "plain", "ansible-core")


def test_the_wheel_holds_the_package_and_the_collection(wheel: Path) -> None:
    assert wheel.name == f"phpborg_instant_recovery-{VERSION}-py3-none-any.whl"
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {"instant_recovery/__init__.py", "instant_recovery/py.typed", f"{INSIDE}/galaxy.yml"} <= names
    assert {f"{INSIDE}/{path}" for path in tracked(*PARTS, "awx", "docs")} <= names
    assert not [name for name in names if "__pycache__" in name or "/tests/" in name]
    assert "ansible_collections/__init__.py" not in names


def test_the_wheel_in_an_empty_environment_serves_an_archive(wheel: Path, sample: Sample, place: Path) -> None:
    programs = environment(place / "wheel", str(wheel))
    root = place / "wheel-sessions"
    command = [str(programs / "python"), "-c", USE_THE_API, sample.name, str(root)]
    assert json.loads(run(command, sample.repository.environment)) >= 3
    assert remains(root) == []
    listed = run([str(programs / "ansible-galaxy"), "collection", "list"])
    assert f"phpborg.instant_recovery {VERSION}" in " ".join(listed.split())


def test_the_tarball_in_an_empty_environment_serves_an_archive(
    plain_ansible: Path, sample: Sample, place: Path
) -> None:
    galaxy = [str(plain_ansible / "ansible-galaxy"), "collection"]
    run([*galaxy, "build", "--output-path", str(place), str(CHECKOUT)])
    tarball = place / f"phpborg-instant_recovery-{VERSION}.tar.gz"
    installed = place / "galaxy"
    run([*galaxy, "install", "--offline", "-p", str(installed), str(tarball)])
    collection = installed / INSIDE
    held = {path.name for path in collection.iterdir()}
    beside = {
        "CHANGELOG.md",
        "CONTRIBUTING.md",
        "FILES.json",
        "LICENSE",
        "MANIFEST.json",
        "README.md",
        "SECURITY.md",
        "awx",
        "changelogs",
        "docs",
    }
    assert held == {*PARTS, *beside}
    packed = {str(path.relative_to(collection)) for part in PARTS for path in files_of(collection / part)}
    assert packed == set(tracked(*PARTS))
    # It needs none of what lies beside its own directories.
    for path in beside:
        subprocess.run(["rm", "-r", str(collection / path)], check=True)
    start_and_stop(plain_ansible, installed, sample)


def files_of(directory: Path) -> list[Path]:
    return [path for path in directory.rglob("*") if path.is_file()]


def start_and_stop(programs: Path, collections: Path, sample: Sample) -> None:
    """A session by the playbooks of the collection found below `collections`, from its start to a clean host."""
    root = collections / "sessions"
    variables = {"ANSIBLE_COLLECTIONS_PATH": str(collections), **sample.repository.environment}
    playbook = [str(programs / "ansible-playbook"), "-e", f"session_root={root}"]
    named = "phpborg.instant_recovery.instant_recovery"
    run([*playbook, f"{named}_start", "-e", f"archive={sample.name}"], variables)
    assert [path for path in root.iterdir() if path.name != "ended"]
    assert "archive sample-crashed" in run([*playbook, f"{named}_list"], variables)
    run([*playbook, f"{named}_stop", "-e", "session_id=all"], variables)
    assert remains(root) == []


def environment(directory: Path, *requirements: str) -> Path:
    """A virtual environment with what is asked for and nothing else; returns its programs' directory.

    This environment's pip installs into it, and what is used of it is compiled when it is used.
    """
    venv.create(directory, symlinks=True)
    into = ["--python", str(directory / "bin" / "python"), "--quiet", "--disable-pip-version-check"]
    run([sys.executable, "-m", "pip", *into, "install", "--no-compile", *requirements])
    return directory / "bin"


def tracked(*parts: str) -> list[str]:
    """The files that git knows, or would add, below these directories."""
    listed = run(["git", "ls-files", "--cached", "--others", "--exclude-standard", *parts], cwd=CHECKOUT)
    return [name for name in listed.splitlines() if (CHECKOUT / name).exists()]


def run(command: list[str], variables: Mapping[str, str] | None = None, *, cwd: Path = Path("/")) -> str:
    """Run a command away from the checkout and from what its environment says of Ansible and Python; its output."""
    hidden = ("ANSIBLE_", "BORG_", "PYTHON", "VIRTUAL_ENV")
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(hidden)}
    given = inherited | dict(variables or {})
    ran = subprocess.run(command, cwd=cwd, env=given, capture_output=True, text=True, timeout=600, check=False)
    assert ran.returncode == 0, f"{command}\n{ran.stdout}\n{ran.stderr}"
    return ran.stdout
