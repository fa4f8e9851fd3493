# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A host that systemd runs, for all tests here; the rest is as for the integration tests."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._host.mounts import mounts_below, unmount

from tests.integration.conftest import Sample, _open_fuse, place, sample, shared_place
from tests.support.container import Container, missing_tools

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["_open_fuse", "host", "place", "sample", "shared_place"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Have the first test wait for the host to be made, which takes up to half an hour."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.timeout(2400))


@pytest.fixture(scope="session")
def host(shared_place: Path, sample: Sample) -> Iterator[Container]:
    """A booted Debian in which the sample's repository can be reached, and sessions below the shared place."""
    if os.geteuid() != 0:
        pytest.skip("a container needs root")
    if missing := missing_tools():
        # Asked for by name, that nothing has run is a failure.
        lacking = pytest.fail if "INSTANT_RECOVERY_NAMED" in os.environ else pytest.skip
        lacking(f"a container needs the packages {', '.join(missing)}")
    # Not in memory, where /tmp may be: it takes 700 MB.
    directory = Path(tempfile.mkdtemp(prefix="ir-host-", dir="/var/tmp"))
    container = Container(directory=directory, shared=(shared_place,))
    try:
        container.make()
        container.boot()
        yield container
    finally:
        container.stop()
        for mount in mounts_below(str(directory)):  # of debootstrap, should it have been cut off: the host's own /proc
            unmount(mount.mountpoint)
        shutil.rmtree(directory)
