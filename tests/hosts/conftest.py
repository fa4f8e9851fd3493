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

from tests.integration.conftest import Sample, _open_fuse, place, sample, shared_place
from tests.support.container import Container, missing_tools

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["_open_fuse", "host", "place", "sample", "shared_place"]


@pytest.fixture(scope="session")
def host(shared_place: Path, sample: Sample) -> Iterator[Container]:
    """A booted Debian in which the sample's repository can be reached, and sessions below the shared place."""
    if os.geteuid() != 0:
        pytest.skip("a container needs root")
    if missing := missing_tools():
        pytest.skip(f"a container needs the packages {', '.join(missing)}")
    # Not in memory, where /tmp may be: it takes 700 MB.
    directory = Path(tempfile.mkdtemp(prefix="ir-host-", dir="/var/tmp"))
    container = Container(directory=directory, shared=(shared_place,))
    try:
        container.make()
        container.boot()
        yield container
    finally:
        container.stop()
        shutil.rmtree(directory)
