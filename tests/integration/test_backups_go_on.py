# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a mounted archive and backups to the same repository do to one another, by the option lock.

The repository is made so that `borg compact` has something to do: segments of 1 MiB in which chunks of two archives lie
side by side. Deleting one archive then makes it write the other one's chunks anew, elsewhere.
"""

from __future__ import annotations

import errno
import hashlib
import os
import select
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from ansible_collections.phpborg.instant_recovery.plugins.modules import borg_mount

from tests.support.host import processes_below
from tests.support.modules import call
from tests.support.repository import Repository

if TYPE_CHECKING:
    from collections.abc import Iterator

FILES, SIZE, BLOCK = 12, 512 * 1024, 64 * 1024
CHUNKS = ("--chunker-params", f"fixed,{BLOCK}", "--compression", "none")
# What reading gives when borg has ended: at that very moment, and from then on.
GONE = {errno.ENOTCONN, errno.ECONNABORTED, errno.EIO}


@dataclass(frozen=True)
class Store:
    """A repository with archives of `source`: `old`, `both` and of these the files called keep: `ours`, the newest."""

    repository: Repository
    source: Path

    def of(self, name: str) -> str:
        return f"{self.repository.location}::{name}"

    def run(self, *arguments: str) -> tuple[int, str]:
        """borg's exit status and words."""
        done = subprocess.run(
            ["borg", *arguments],
            env={**os.environ, **self.repository.environment, "BORG_RELOCATED_REPO_ACCESS_IS_OK": "yes"},
            cwd=self.source.parent,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        return done.returncode, done.stderr

    def segments(self) -> set[str]:
        return {path.name for path in (self.repository.directory / "data").glob("*/*")}

    def back_up(self) -> list[int]:
        """What runs every night, on a source that has changed; the exit statuses."""
        changed = self.source / "00-changed"
        changed.write_bytes(hashlib.shake_256(b"tonight").digest(SIZE))
        prune = ("prune", "--glob-archives", "o*", "--keep-last", "1", self.repository.location)
        commands: list[tuple[str, ...]] = [
            ("create", *CHUNKS, self.of("tonight"), self.source.name),
            prune,
            ("compact", self.repository.location),
        ]
        return [self.run(*command)[0] for command in commands]

    def contents(self) -> dict[str, list[str]]:
        """Hash and path of each file, by archive; in an order of our own, for borg's is that of the inodes."""
        names = [archive["archive"] for archive in self.repository.archives()]
        listed = {
            name: self.repository.borg("list", "--format", "{sha256} {path}{NL}", self.of(name)) for name in names
        }
        return {name: sorted(lines.splitlines()) for name, lines in listed.items()}


@pytest.fixture(scope="module")
def made(shared_place: Path) -> Store:
    top = shared_place / "backups"
    source = top / "source"
    source.mkdir(parents=True)
    for number in range(FILES):
        for kind in ("drop", "keep"):
            content = hashlib.shake_256(f"{number} {kind}".encode()).digest(SIZE)
            (source / f"{number:02}-{kind}").write_bytes(content)
    store = Store(Repository(directory=top / "repository", base=top / "borg"), source)
    store.repository.create()
    store.repository.borg("config", store.repository.location, "max_segment_size", str(1 << 20))
    store.repository.archive("old", "/usr/share/doc/base-files", options=["--exclude", "*/none"])
    for name, excluded in {"both": "*/none", "ours": "*-drop"}.items():
        store.repository.archive(name, source.name, options=[*CHUNKS, "--exclude", excluded], cwd=top)
    return store


@pytest.fixture
def store(made: Store, place: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """A copy for one test."""
    for name in [name for name in os.environ if name.startswith("BORG_")]:
        monkeypatch.delenv(name)
    store = copied(made, place / "store")
    monkeypatch.setenv("BORG_BASE_DIR", str(store.repository.base))
    return store


def copied(store: Store, place: Path) -> Store:
    shutil.copytree(store.repository.directory.parent, place, symlinks=True)
    return Store(Repository(directory=place / "repository", base=place / "borg"), place / "source")


@pytest.fixture
def mountpoint(place: Path) -> Iterator[Path]:
    yield place / "mnt"
    call(borg_mount.main, mountpoint=str(place / "mnt"), state="unmounted")
    assert processes_below(place / "mnt") == []


def mount(store: Store, mountpoint: Path, **options: Any) -> dict[str, Any]:
    return call(
        borg_mount.main,
        archive=store.of("ours"),
        mountpoint=str(mountpoint),
        passphrase=store.repository.passphrase,
        accept_relocated=True,
        **options,
    )


@dataclass
class Read:
    """Blocks read from a mount: how many were right and how many were not, and the errors that others gave."""

    right: int
    wrong: int
    errors: set[int]


def read(mountpoint: Path, source: Path, *, files: slice = slice(None)) -> Read:
    found = Read(0, 0, set())
    for path in sorted(source.glob("*-keep"))[files]:
        content = path.read_bytes()
        for offset in range(0, SIZE, BLOCK):
            try:
                with (mountpoint / "source" / path.name).open("rb", buffering=0) as file:
                    is_right = os.pread(file.fileno(), BLOCK, offset) == content[offset : offset + BLOCK]
            except OSError as error:
                found.errors.add(error.errno or 0)
            else:
                found.right += is_right
                found.wrong += not is_right
    return found


ALL = Read(FILES * SIZE // BLOCK, 0, set())


def test_backups_do_the_same_with_and_without_a_mount(store: Store, mountpoint: Path, place: Path) -> None:
    alone = copied(store, place / "alone")
    assert "msg" not in mount(store, mountpoint)
    assert not store.repository.is_locked()
    assert store.back_up() == alone.back_up() == [0, 0, 0]
    assert store.contents() == alone.contents()
    assert sorted(store.contents()) == ["both", "ours", "tonight"]
    # Pruning took `old`, whose chunks lay apart.
    assert read(mountpoint, store.source) == ALL
    assert store.run("check", store.repository.location)[0] == 0


def test_a_lock_that_is_held_keeps_backups_from_running(store: Store, mountpoint: Path) -> None:
    assert "msg" not in mount(store, mountpoint, lock="hold")
    assert store.repository.is_locked()
    assert store.back_up() == [2, 2, 2]
    status, words = store.run("delete", store.of("ours"))
    assert status == 2
    assert "Failed to create/acquire the lock" in words
    assert read(mountpoint, store.source) == ALL
    call(borg_mount.main, mountpoint=str(mountpoint), state="unmounted")
    assert store.back_up() == [0, 0, 0]


def test_a_lock_that_others_hold_keeps_a_mount_from_being_made(store: Store, mountpoint: Path) -> None:
    with subprocess.Popen(
        ["borg", "with-lock", store.repository.location, "sh", "-c", "echo; read line"],
        env={**os.environ, **store.repository.environment, "BORG_RELOCATED_REPO_ACCESS_IS_OK": "yes"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"\n"
        refused = mount(store, mountpoint, lock="hold")
        assert "is locked by another borg. Wait until that has finished, or set lock to bypass." in refused["msg"]
        assert "msg" not in mount(store, mountpoint)
        other.communicate(b"\n")


@pytest.mark.parametrize(
    ("options", "is_held"),
    [({"lock": "bypass"}, False), ({"bypass_lock": True}, False), ({"bypass_lock": False}, True)],
)
def test_other_ways_to_say_it(store: Store, mountpoint: Path, options: dict[str, Any], is_held: bool) -> None:
    assert "msg" not in mount(store, mountpoint, **options)
    assert store.repository.is_locked() == is_held


def test_the_two_options_contradict_each_other(store: Store, mountpoint: Path) -> None:
    refused = mount(store, mountpoint, lock="hold", bypass_lock=True)
    assert refused["msg"] == "lock is hold, but bypass_lock is true. Give one of them."


@pytest.mark.parametrize("deleted", [["ours", "both"], ["both"]], ids=["own", "another"])
@pytest.mark.parametrize("program", ["pyfuse3", "llfuse"])
def test_compaction_under_a_mount_gives_errors_and_never_wrong_data(
    store: Store, mountpoint: Path, monkeypatch: pytest.MonkeyPatch, deleted: list[str], program: str
) -> None:
    """Whether compaction has removed the archive's chunks or moved them to other segments, borg's mount ends.

    Its index is of the time when it was mounted, and it opens a segment when it first needs it. One that is gone is an
    exception that neither of its FUSE libraries turns into an error of the one read: it ends borg.
    """
    monkeypatch.setenv("BORG_FUSE_IMPL", f"{program},pyfuse3,llfuse")
    borg = os.pidfd_open(mount(store, mountpoint)["pids"][0])
    assert read(mountpoint, store.source, files=slice(1)).right == SIZE // BLOCK
    before = store.segments()
    for archive in deleted:
        assert store.run("delete", store.of(archive))[0] == 0
    # So far nothing is lost: only the manifest does not know of them any more.
    assert read(mountpoint, store.source, files=slice(2)).errors == set()
    assert store.run("compact", "--threshold", "1", store.repository.location)[0] == 0
    assert len(before & store.segments()) <= len(before) // 4

    found = read(mountpoint, store.source)
    assert found.wrong == 0
    assert found.errors
    assert found.errors <= GONE
    assert found.right < ALL.right
    assert select.select([borg], [], [], 30)[0]
    os.close(borg)

    # Mounting again cleans up first; what was only moved is there again.
    again = mount(store, mountpoint)
    if "ours" in deleted:
        assert "has no archive ours" in again["msg"]
    else:
        assert again["changed"]
        assert read(mountpoint, store.source) == ALL
