# Copyright (c) 2026, phpBorg contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Execution environments: the containers in which AWX and ansible-navigator run Ansible, and which end with it."""

from __future__ import annotations

import os.path
from typing import TYPE_CHECKING

from .values import OptionError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["refuse_container"]

# AWX gives one of them to every job.
JOB_IDS = ("awx_job_id", "tower_job_id")
# A container of podman's, with the directory that ansible-runner works in.
TRACES = ("/run/.containerenv", "/runner")


def refuse_container(entry_point: str, variables: Mapping[str, object], host: str, transport: str) -> None:
    """Raise OptionError where a session's host would be the container in which Ansible runs.

    `transport` is the kind of connection to the play's host, such as local or ssh. A container has no FUSE, and all
    that runs in it ends with the job.
    """
    if transport != "local" or not _is_container(variables):
        return
    if entry_point == "start":
        raise OptionError(
            f"{host} is the execution environment of this job, a container that ends with it: choose a host that is "
            "reached through SSH, with deployment_location=remote and source_host=its name in the inventory."
        )
    raise OptionError(
        f"There is no host but {host}, the execution environment of this job, where no session can be: choose the "
        "inventory that has the sessions' hosts."
    )


def _is_container(variables: Mapping[str, object]) -> bool:
    return any(name in variables for name in JOB_IDS) or all(map(os.path.exists, TRACES))
