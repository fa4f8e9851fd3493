# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What directories take of a disk, whoever made them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._host.disk import (
    disk_usage,
    session_usage,
    unnamed_usage,
)
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._host.processes import identify

from tests.support.clock import wait_until
from tests.support.empty_fuse import empty_fuse
from tests.support.forked import forked

MEGABYTE = 1 << 20
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount")


def du(path: Path) -> int:
    """What du(1) says."""
    return int(subprocess.check_output(["du", "-s", "-B1", "--one-file-system", path]).split()[0])


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Files, one with several names, one that is mostly a hole, links, a pipe, directories."""
    top = tmp_path / "tree"
    (top / "a/b/c").mkdir(parents=True)
    (top / "a/large").write_bytes(os.urandom(3 * MEGABYTE))
    os.link(top / "a/large", top / "a/b/again")
    os.link(top / "a/large", top / "again")
    with (top / "a/b/c/sparse").open("wb") as file:
        os.pwrite(file.fileno(), b"end", 1 << 40)
    (top / "a/out").symlink_to("/usr")
    os.mkfifo(top / "pipe")
    return top


def test_it_counts_as_du_does(tree: Path) -> None:
    assert disk_usage(str(tree)) == du(tree) - tree.stat().st_blocks * 512
    assert disk_usage(str(tree / "missing")) == 0
    assert disk_usage(str(tree / "pipe")) == 0


def test_directories_deeper_than_any_path_can_name_count_too(tmp_path: Path) -> None:
    """Several thousand: more than a path can be long, descriptors can be open, or functions can call themselves."""
    here = os.open(tmp_path, os.O_RDONLY)
    for _level in range(3000):
        os.mkdir("deep", dir_fd=here)
        below = os.open("deep", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    file = os.open("large", os.O_WRONLY | os.O_CREAT, dir_fd=here)
    os.write(file, os.urandom(5 * MEGABYTE))
    os.close(file)
    os.close(here)
    try:
        before = len(os.listdir("/proc/self/fd"))
        assert disk_usage(str(tmp_path)) >= 5 * MEGABYTE
        assert len(os.listdir("/proc/self/fd")) == before
    finally:
        subprocess.run(["rm", "-rf", tmp_path / "deep"], check=True)


def test_of_a_session_what_is_mounted_in_it_does_not_count(tmp_path: Path) -> None:
    for name in ("archive", "merged", "log_archive", "upper", "run", "log"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "large").write_bytes(os.urandom(MEGABYTE))
    assert 3 * MEGABYTE <= session_usage(str(tmp_path)) < 3.1 * MEGABYTE
    assert 2 * MEGABYTE <= session_usage(str(tmp_path), besides=("upper",)) < 2.1 * MEGABYTE


@needs_root
def test_a_mount_that_hangs_is_not_looked_at(tmp_path: Path) -> None:
    (tmp_path / "archive").mkdir()
    with empty_fuse(str(tmp_path / "archive")) as server:
        os.kill(server.pid, signal.SIGSTOP)
        try:
            assert forked(lambda: session_usage(str(tmp_path))) == 0
        finally:
            os.kill(server.pid, signal.SIGCONT)


@needs_root
def test_another_file_system_does_not_count(tree: Path) -> None:
    before = disk_usage(str(tree))
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", tree / "a/b/c"], check=True)
    try:
        (tree / "a/b/c/elsewhere").write_bytes(os.urandom(MEGABYTE))
        assert disk_usage(str(tree)) < before
    finally:
        subprocess.run(["umount", tree / "a/b/c"], check=True)


def test_files_without_a_name_are_counted(tmp_path: Path) -> None:
    """As Borg puts aside what it does not keep in memory."""
    put_aside = "aside = tempfile.TemporaryFile(dir=sys.argv[1]); aside.write(bytes(3 << 20)); aside.flush()"
    script = f"import sys, tempfile; {put_aside}; input()"
    with subprocess.Popen([sys.executable, "-c", script, tmp_path], stdin=subprocess.PIPE) as program:
        process = identify(program.pid)
        assert process is not None
        wait_until(lambda: unnamed_usage([process], str(tmp_path)) >= 3 << 20)
        assert unnamed_usage([process], "/proc") == 0, "another file system"
    assert unnamed_usage([process], str(tmp_path)) == 0
