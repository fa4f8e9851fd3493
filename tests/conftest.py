# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Lets the tests, and the Ansible that they run, find this checkout as phpborg.instant_recovery.

scripts/setup arranges the same for .venv; this is for a pytest from anywhere else.
A pytest that was put into the background by a shell gets back the Ctrl-C that it came to ignore: tests press it.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[1]
COLLECTIONS = CHECKOUT / ".cache" / "collections"
UNIT = CHECKOUT / "tests" / "unit"
COMMON = "INSTANT_RECOVERY_COMMON"  # as in tests.support.once, which is not imported before paths are set
MEMORY = "INSTANT_RECOVERY_MEMORY"  # as in tests.integration.conftest
TESTS = "INSTANT_RECOVERY_TESTS"  # as in tests.support.once

link = COLLECTIONS / "ansible_collections" / "phpborg" / "instant_recovery"
if not link.is_symlink():
    COLLECTIONS.parent.mkdir(mode=0o700, exist_ok=True)
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(Path("..", "..", "..", ".."))
for directory in (COLLECTIONS, CHECKOUT / "src"):
    if str(directory) not in sys.path:
        sys.path.insert(0, str(directory))
os.environ["ANSIBLE_COLLECTIONS_PATH"] = str(COLLECTIONS)
os.environ[TESTS] = "1"
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_configure(config: pytest.Config) -> None:
    """Name a directory for what is made once for all workers of this run: see tests.support.once."""
    if not hasattr(config, "workerinput"):
        top = os.environ.get(MEMORY) or tempfile.gettempdir()
        os.environ[COMMON] = str(Path(top, f"ir-{uuid.uuid4().hex[:8]}"))


def pytest_unconfigure(config: pytest.Config) -> None:
    """Remove it."""
    if not hasattr(config, "workerinput"):
        shutil.rmtree(os.environ.pop(COMMON), ignore_errors=True)


@pytest.hookimpl(tryfirst=True)  # before xdist looks at the groups
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """What takes long comes first, and what takes little, the unit tests, keeps all workers busy to the end.

    Tests that share a fixture of their module stay together (--dist loadgroup): one worker makes it, and makes it once.
    """
    items.sort(key=lambda item: UNIT in item.path.parents)
    for item in items if config.pluginmanager.hasplugin("xdist") else ():
        if isinstance(item, pytest.Function) and "module" in _scopes(item):
            item.add_marker(pytest.mark.xdist_group(item.path.stem))


@pytest.hookimpl(trylast=True)
def pytest_collection_finish(session: pytest.Session) -> None:
    """Refuse to go on where xdist does not see the groups: see pyproject.toml on pytest."""
    if session.config.getoption("loadgroup", default=False):
        unseen = [item for item in session.items if item.get_closest_marker("xdist_group") and "@" not in item.nodeid]
        if unseen:
            raise pytest.UsageError(f"pytest-xdist does not group tests with pytest {pytest.__version__}: {unseen[0]}")


@pytest.fixture(autouse=True)
def _same_signal_handlers() -> Iterator[None]:
    """Fail where a test leaves another handler, which the processes of later ones would inherit, and not end."""
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.getsignal(number) for number in numbers]
    yield
    assert [signal.getsignal(number) for number in numbers] == before


def _scopes(item: pytest.Function) -> set[str]:
    definitions = item._fixtureinfo.name2fixturedefs
    return {definitions[name][-1].scope for name in item.fixturenames if name in definitions}
