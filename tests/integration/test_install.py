# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Packages are really installed on a system that lacks them, and a session starts there at once."""

from __future__ import annotations

import dataclasses
import os
import shutil
from typing import TYPE_CHECKING

import pytest

from tests.integration.conftest import needs_root
from tests.support.host import bare_system

if TYPE_CHECKING:
    from pathlib import Path

    from tests.integration.conftest import Sample
    from tests.support.playbook import Playbooks

pytestmark = [
    needs_root,
    pytest.mark.skipif(shutil.which("apt-get") is None, reason="needs a Debian system"),
    pytest.mark.skipif("INSTANT_RECOVERY_PACKAGES" not in os.environ, reason="part of scripts/test full"),
]


def test_everything_that_is_missing_is_installed(playbooks: Playbooks, sample: Sample, place: Path) -> None:
    packages = ("borgbackup", "fuse3", "python3-pyfuse3", f"postgresql-{sample.major}", "postgresql-common")
    # Both systems share one directory.
    here = dataclasses.replace(playbooks, session_root=place / "sessions")
    bare = dataclasses.replace(here, wrapper=bare_system(place, *packages))
    started = bare.start(archive=sample.name, install_packages=True, timeout=900)
    assert started.returncode == 0, started.output
    installed = [task for task in started.tasks if task.action == "ansible.builtin.package"]
    assert [task.status for task in installed] == ["ok", "ok"], started.output
    # Debian's package makes a cluster and starts it on port 5432 unless it is told not to.
    assert "Creating new PostgreSQL cluster" not in str(installed)
    assert started.session["driver"] == "block"

    # Its processes and mounts went with that system, as at a reboot. The directory is still here.
    (listed,) = here.sessions().stats["instant_recovery_sessions"]
    assert (listed["id"], listed["status"]) == (started.session["id"], "orphaned")
    stopped = here.stop(started.session["id"])
    assert stopped.returncode == 0, stopped.output
