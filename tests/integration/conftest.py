# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The sample that integration tests share, and a place of its own for each test, which must be clean at its end."""

from __future__ import annotations

import dataclasses
import os
import shutil
import stat
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.clock import Clock
from tests.support.cluster import Cluster, TableState, server_directory
from tests.support.copies import Copy
from tests.support.host import detach_mounts, processes_below, remains
from tests.support.once import made_once
from tests.support.playbook import Playbooks
from tests.support.repository import Repository

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

MEMORY = "INSTANT_RECOVERY_MEMORY"  # names a directory for whatever need not be on a disk; scripts/test makes it

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="makes users and runs servers as them: needs root")


@dataclass(frozen=True)
class Sample:
    """A cluster that was killed in the middle of writes, and its archive.

    `archive` is the archive's name and `data_directory` the path in it. `tables` is what the source held after its own
    recovery from the same files: what a session must show.
    """

    repository: Repository
    archive: str
    archive_id: str
    data_directory: str
    major: int
    superuser: str
    bindir: str
    tables: dict[str, TableState]

    @property
    def name(self) -> str:
        """REPOSITORY::NAME."""
        return f"{self.repository.location}::{self.archive}"


@pytest.fixture(scope="session", autouse=True)
def _open_fuse() -> None:
    """Mode 0666, as every distribution's udev gives it; a container's may have the kernel's 0600."""
    device = Path("/dev/fuse")
    if os.geteuid() == 0 and stat.S_IMODE(device.stat().st_mode) != 0o666:
        device.chmod(0o666)


@pytest.fixture(scope="session")
def shared_place() -> Iterator[Path]:
    """A directory for what tests share. Unlike pytest's own, other users can enter it."""
    yield from _place()


@pytest.fixture(scope="session")
def shared_place_on_disk() -> Iterator[Path]:
    """Another one, where what is made lies on a disk's file system."""
    yield from _place(on_disk=True)


@pytest.fixture
def place(request: pytest.FixtureRequest) -> Iterator[Path]:
    """A directory for one test, with a short path (sockets), which other users can enter; removed after the test.

    It is in memory, where a run of the tests has some for that, unless the test is marked on_disk.
    """
    yield from _place(on_disk=_is_on_disk(request))


@pytest.fixture(scope="session")
def sample(shared_place: Path) -> Sample:
    """The sample cluster, archived encrypted right after the crash. Tests only read it.

    Made once for all workers. Each has a copy of the repository, and so locks and caches of its own.
    """
    made = made_once("sample", _make_sample)
    repository = dataclasses.replace(made.repository, directory=shared_place / "repository", base=shared_place / "borg")
    shutil.copytree(made.repository.directory, repository.directory)
    repository.base.mkdir()
    return dataclasses.replace(made, repository=repository)


def _make_sample(place: Path) -> Sample:
    repository = Repository(directory=place / "repository", base=place / "borg")
    repository.create()
    with Cluster(directory=place / "production") as cluster:
        cluster.populate()
        cluster.crash()
        identifier = repository.archive("sample-crashed", cluster.data)
        cluster.start()
        tables = cluster.fingerprint()
        return Sample(
            repository=repository,
            archive="sample-crashed",
            archive_id=identifier,
            data_directory=str(cluster.data).lstrip("/"),
            major=int(Path(cluster.bindir).parent.name),
            superuser=cluster.superuser,
            bindir=server_directory(),
            tables=tables,
        )


@pytest.fixture
def clock(place: Path, monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clocks of the sessions that a test starts through modules."""
    clock = Clock(place / "clock")
    monkeypatch.setenv("INSTANT_RECOVERY_CLOCK", str(clock.path))
    return clock


@pytest.fixture
def playbooks(place: Path, copies: Path, sample: Sample) -> Iterator[Playbooks]:
    """Playbooks with a session root and fact cache of the test's own and the sample's passphrase in the environment.

    An archive is mounted once, not once for each processor, unless the test says otherwise. The test fails when a
    session, or anything of one, is left at its end.
    """
    root = copies / "sessions"
    runner = Playbooks(
        directory=place / "ansible",
        session_root=root,
        environment=sample.repository.environment,
        extra_vars={"readers": 1},
    )
    yield runner
    left = remains(root)
    if left:
        runner.stop("all")
        pytest.fail("left behind: " + "; ".join(left))


@pytest.fixture
def copies(request: pytest.FixtureRequest) -> Iterator[Path]:
    """A directory for sessions, apart from the test's own: their root and all above it may be nobody else's."""
    yield from _place(on_disk=_is_on_disk(request))


@pytest.fixture(scope="session")
def shared_copies() -> Iterator[Path]:
    """The same for sessions that tests of a module share."""
    yield from _place()


@pytest.fixture
def copy_of(copies: Path) -> Iterator[Callable[..., Copy]]:
    """Makes copies as an archive's tree shows them; the session of each is ended, with nothing left."""
    made: list[Copy] = []

    def make(cluster: Cluster, **options: Any) -> Copy:
        made.append(Copy.of(cluster, copies / "sessions", **options))
        return made[-1]

    yield make
    for copy in made:
        if copy.directory.exists():
            assert copy.end() == []
        assert processes_below(copy.tree) == []


def _is_on_disk(request: pytest.FixtureRequest) -> bool:
    return request.node.get_closest_marker("on_disk") is not None


def _place(*, on_disk: bool = False) -> Iterator[Path]:
    directory = Path(tempfile.mkdtemp(prefix="ir-", dir=None if on_disk else os.environ.get(MEMORY)))
    directory.chmod(0o711)
    yield directory
    mounted = detach_mounts(directory)
    # Never delete through a mount: the files below it are somebody else's.
    assert detach_mounts(directory) == []
    shutil.rmtree(directory)
    assert mounted == []
