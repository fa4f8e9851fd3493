# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The mount table, on recorded text and on real mounts."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from typing import TYPE_CHECKING

import pytest
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._host.mounts import (
    Mount,
    MountError,
    is_responding,
    mount_at,
    mounts,
    mounts_below,
    parse_mountinfo,
    unmount,
    wait_until,
)
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._host.processes import spawn, stop, wait_for_end

from tests.support.empty_fuse import empty_fuse
from tests.support.forked import forked
from tests.support.user import ordinary_user

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")

RECORDED = r"""
24 1 254:1 / / rw,relatime shared:1 - ext4 /dev/vda1 rw,errors=remount-ro
25 24 0:22 / /proc rw,nosuid,nodev,noexec,relatime shared:13 - proc proc rw
311 24 0:52 / /srv/with\040blank\134and\011tab rw,nosuid,nodev,relatime shared:170 master:3 - fuse borgfs ro,user_id=0
312 24 0:53 / /srv/merged rw,relatime - overlay overlay rw,lowerdir=/a\072b,upperdir=/srv/up
313 312 0:54 / /srv/merged rw,relatime - fuse.cowfs cowfs rw,user_id=1000,group_id=1000
314 24 0:55 /sub//deleted /srv/gone ro - tmpfs  rw
not a line of this file
"""


def test_recorded_table() -> None:
    table = parse_mountinfo(RECORDED)
    assert [mount.mount_id for mount in table] == [24, 25, 311, 312, 313, 314]
    assert table[2] == Mount(
        mountpoint="/srv/with blank\\and\ttab",
        fstype="fuse",
        source="borgfs",
        options="rw,nosuid,nodev,relatime,ro,user_id=0",
        device="0:52",
        mount_id=311,
        parent_id=24,
    )
    assert table[3].options == "rw,relatime,rw,lowerdir=/a:b,upperdir=/srv/up"
    assert [mount.is_fuse for mount in table] == [False, False, True, False, True, False]
    assert table[5].source == ""


def test_the_table_of_this_machine() -> None:
    assert mount_at("/proc") in mounts()
    assert mount_at("/proc/self") is None
    assert mounts_below("/")[-1].mountpoint == "/"


@pytest.fixture(name="point")
def _point(tmp_path: Path) -> Iterator[str]:
    """A mount point with an awkward name; whatever a test leaves there is unmounted."""
    point = tmp_path / "a \\ b\tc\rd\x0be\x1cf\u2028g"
    point.mkdir()
    yield str(point)
    for mount in mounts_below(str(tmp_path)):
        subprocess.run(["umount", "--lazy", mount.mountpoint], check=True)


@needs_root
def test_a_mount_that_was_moved_below_a_younger_one(point: str, tmp_path: Path) -> None:
    """As a system's own are when it boots: the kernel lists them by age."""
    elsewhere, inner = str(tmp_path / "elsewhere"), os.path.join(point, "inner")
    subprocess.run(["mount", "--bind", str(tmp_path), str(tmp_path)], check=True)
    subprocess.run(["mount", "--make-private", str(tmp_path)], check=True)  # only such mounts can be moved
    os.mkdir(elsewhere)
    tmpfs(elsewhere)
    tmpfs(point)
    os.mkdir(inner)
    subprocess.run(["mount", "--move", elsewhere, inner], check=True)
    assert [mount.mountpoint for mount in mounts_below(point)] == [inner, point]
    tmpfs(elsewhere)
    subprocess.run(["mount", "--move", inner, elsewhere], check=True)  # older than what it covers
    moved = mount_at(elsewhere)
    unmount(elsewhere)
    assert moved is not None
    assert mount_at(elsewhere) not in (None, moved)


def tmpfs(point: str) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", point], check=True)


@needs_root
def test_the_topmost_of_stacked_mounts_goes_first(point: str) -> None:
    tmpfs(point)
    lower = mount_at(point)
    tmpfs(point)
    upper = mount_at(point)
    assert lower is not None
    assert upper is not None
    assert lower.mount_id != upper.mount_id
    unmount(point)
    assert mount_at(point) == lower
    unmount(point)
    assert mount_at(point) is None
    unmount(point)


@needs_root
def test_mounts_below_come_in_an_order_to_unmount_them(point: str, tmp_path: Path) -> None:
    inner, sibling = os.path.join(point, "inner"), str(tmp_path / "a")
    tmpfs(point)
    os.mkdir(inner)
    os.mkdir(sibling)
    tmpfs(inner)
    tmpfs(point)  # hides inner, which can be unmounted only when this one is gone
    tmpfs(sibling)
    found = mounts_below(str(tmp_path))
    assert [mount.mountpoint for mount in found] == [sibling, point, inner, point]
    assert mounts_below(sibling) == found[:1]
    assert mounts_below(sibling + "/") == found[:1]
    for mount in found:
        unmount(mount.mountpoint)
    assert mounts_below(str(tmp_path)) == []


@needs_root
def test_a_mount_is_found_through_a_link(point: str, tmp_path: Path) -> None:
    tmpfs(point)
    (tmp_path / "link").symlink_to(tmp_path)
    (tmp_path / "direct").symlink_to(point)
    assert mount_at(str(tmp_path / "link" / os.path.basename(point))) == mount_at(point)
    assert mount_at(str(tmp_path / "direct")) == mount_at(point)
    assert len(mounts_below(str(tmp_path / "link"))) == 1


@needs_root
def test_a_busy_mount_is_detached(point: str) -> None:
    tmpfs(point)
    with subprocess.Popen(["sleep", "60"], cwd=point) as user:
        unmount(point)
        assert mount_at(point) is None
        user.kill()


def test_what_is_not_ours_cannot_be_unmounted() -> None:
    refused = r"/proc \(proc\) cannot be unmounted: .*\. End what uses it"
    if os.geteuid() == 0:
        with ordinary_user("ir-unit") as user, pytest.raises(RuntimeError, match=refused):
            forked(lambda: unmount("/proc"), user=user)
    else:
        with pytest.raises(MountError, match=refused):
            unmount("/proc")


def test_a_fuse_mount_that_lives(point: str) -> None:
    with empty_fuse(point) as server:
        mount = mount_at(point)
        assert mount is not None
        assert mount.is_fuse
        assert mount.source == "empty"
        assert is_responding(point)
        unmount(point)
        assert wait_for_end([server], timeout=10) == []


def test_a_fuse_mount_that_died(point: str) -> None:
    with empty_fuse(point) as server:
        stop(server, [("SIGKILL", 10)])
        assert mount_at(point) is not None
        assert not is_responding(point)
        unmount(point)
        assert mount_at(point) is None


def test_a_fuse_mount_that_hangs(point: str) -> None:
    with empty_fuse(point) as server:
        os.kill(server.pid, signal.SIGSTOP)
        assert not is_responding(point, timeout=0.5)
        unmount(point, timeout=1)
        assert mount_at(point) is None


def test_other_paths_respond_or_not(point: str) -> None:
    assert is_responding(point)
    assert not is_responding(os.path.join(point, "missing"))


@needs_root
def test_an_ordinary_user_unmounts_through_fusermount() -> None:
    def mount_and_unmount() -> list[bool]:
        point = os.path.expanduser("~/point")
        os.mkdir(point)
        seen = []
        with empty_fuse(point) as server:
            seen += [is_responding(point)]
            os.chdir(point)
            unmount(point)  # busy
            os.chdir("/")
            seen += [mount_at(point) is None]
            stop(server, [("SIGKILL", 10)])
        with empty_fuse(point) as server:
            stop(server, [("SIGKILL", 10)])
            unmount(point)
            seen += [mount_at(point) is None]
        return seen

    with ordinary_user("ir-unit") as user:
        assert forked(mount_and_unmount, user=user) == [True, True, True]


@needs_root
def test_a_mount_is_awaited_without_delay(point: str) -> None:
    done: list[float] = []

    def later() -> None:
        time.sleep(0.3)
        tmpfs(point)
        done.append(time.monotonic())

    thread = threading.Thread(target=later)
    thread.start()
    assert wait_until(lambda: mount_at(point) is not None, timeout=600)
    seen = time.monotonic()
    thread.join()
    assert seen - done[0] < 300


def test_waiting_ends() -> None:
    begun = time.monotonic()
    assert not wait_until(lambda: False, timeout=0.3)
    assert time.monotonic() - begun >= 0.3
    assert wait_until(lambda: True, timeout=0)


def test_waiting_ends_with_the_process_that_should_have_mounted() -> None:
    process = spawn(["sleep", "0.3"], log="/dev/null", env={})
    begun = time.monotonic()
    assert not wait_until(lambda: False, timeout=600, processes=[process])
    assert time.monotonic() - begun < 300
