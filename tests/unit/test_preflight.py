# Copyright (c) 2026, phpBorg contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the preflight says of hosts that lack something. Looking at a real host is tests/integration's part."""

from __future__ import annotations

import dataclasses
import errno
import os
from typing import TYPE_CHECKING, Any

import pytest
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._host.preflight import Host, Report, examine

if TYPE_CHECKING:
    from pathlib import Path

READY = Host(
    user="alice",
    is_root=False,
    borg="/usr/bin/borg",
    borg_libraries=("pyfuse3",),
    fusermount="/usr/bin/fusermount3",
    fusermount_setuid=True,
    fuse_error=None,
    python="/usr/bin/python3",
    overlay=True,
)
ROOT = dataclasses.replace(READY, user="root", is_root=True)


@pytest.fixture(name="root")
def _root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A session root that is not there yet, below directories whose access lists count as open to everybody."""
    monkeypatch.setattr("os.listxattr", lambda _: ["system.posix_acl_access"])
    return str(tmp_path / "sessions")


def look(root: str, *, driver: str = "auto", minimum_free: int = 1, host: Host = READY, **changes: Any) -> Report:
    return examine(dataclasses.replace(host, **changes), driver=driver, session_root=root, minimum_free=minimum_free)


def only_problem(report: Report) -> str:
    (problem,) = report.problems
    return f"{problem.what}: {problem.remedy} {list(problem.packages)}"


def test_a_host_with_everything_is_ready(root: str) -> None:
    assert look(root) == Report(problems=(), packages=(), driver="block", python="/usr/bin/python3", warnings=())


def test_a_bare_host_hears_everything_at_once(root: str) -> None:
    report = look(root, borg=None, borg_libraries=None, fusermount=None, fusermount_setuid=False, python=None)
    assert report.as_result()["packages"] == ["borgbackup", "fuse3", "python3-pyfuse3"]
    assert [problem.what.split()[0] for problem in report.problems] == ["borg", "fusermount3", "driver"]
    assert report.driver is None


def test_borg_without_fuse_support(root: str) -> None:
    assert only_problem(look(root, borg_libraries=())).startswith("/usr/bin/borg cannot mount archives")
    # Borg's stand-alone binary brings its own.
    assert look(root, borg_libraries=None).problems == ()


def test_fusermount_is_for_ordinary_users(root: str) -> None:
    assert "chmod u+s /usr/bin/fusermount3" in only_problem(look(root, fusermount_setuid=False))
    assert look(root, host=ROOT, fusermount=None, fusermount_setuid=False).problems == ()


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            FileNotFoundError(errno.ENOENT, "No such file or directory"),
            "/dev/fuse does not exist: run as root: modprobe",
        ),
        (
            PermissionError(errno.EACCES, "Permission denied"),
            "closed to the user alice: Permission denied: run as root: c",
        ),
    ],
)
def test_dev_fuse(root: str, error: OSError, said: str) -> None:
    assert said in only_problem(look(root, fuse_error=error))


def test_root_is_not_told_to_become_root(root: str) -> None:
    report = look(root, host=ROOT, fuse_error=PermissionError(errno.EPERM, "Operation not permitted"))
    assert "container use the device" in only_problem(report)


def test_driver_block_needs_pyfuse3(root: str) -> None:
    assert only_problem(look(root, driver="block", python=None)).endswith("['python3-pyfuse3']")
    assert "or choose driver=overlayfs" in only_problem(look(root, host=ROOT, driver="block", python=None))


def test_driver_overlayfs_needs_root(root: str) -> None:
    assert "needs root, and the user is alice" in only_problem(look(root, driver="overlayfs"))
    assert look(root, host=ROOT, driver="overlayfs").driver == "overlayfs"
    assert "no overlayfs" in only_problem(look(root, host=ROOT, driver="overlayfs", overlay=False))


def test_auto_falls_back_to_overlayfs_with_a_warning(root: str) -> None:
    report = look(root, host=ROOT, python=None)
    assert (report.driver, report.problems) == ("overlayfs", ())
    assert "python3-pyfuse3" in report.warnings[0]
    assert report.packages == ("python3-pyfuse3",)
    # Nothing to fall back to for an ordinary user, or without overlayfs: the cure is the better driver.
    for report in (look(root, python=None), look(root, host=ROOT, python=None, overlay=False)):
        assert only_problem(report).endswith("['python3-pyfuse3']")


def test_session_root_must_be_absolute() -> None:
    assert "session root sessions is not an absolute path" in only_problem(look("sessions"))


def test_session_root_below_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert f"{tmp_path}/file is not a directory" in only_problem(look(str(tmp_path / "file" / "sessions")))


def test_session_root_without_permission(root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.access", lambda *_: False)
    assert f"{tmp_path} is not writable for alice" in only_problem(look(root))


def test_session_root_that_others_could_exchange(tmp_path: Path) -> None:
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    (problem,) = look(str(tmp_path / "open" / "sessions")).problems
    assert problem.what == (
        f"session root {tmp_path}/open/sessions cannot be used: {tmp_path}/open can be written by other users"
    )
    assert problem.remedy == "close it, or choose another directory with session_root"


def test_session_root_nearly_full(root: str) -> None:
    said = only_problem(look(root, minimum_free=2**60))
    assert f"session root {root} has" in said
    assert "1073741824.0 GiB are needed: free space on the file system of" in said


def test_session_root_that_the_server_user_cannot_enter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tmp_path.chmod(0o700)
    monkeypatch.setattr("os.listxattr", lambda _: [])
    said = only_problem(look(str(tmp_path), host=ROOT))
    assert "cannot be entered by the database server's user" in said
    # An ordinary user runs the server too.
    assert look(str(tmp_path)).problems == ()


def test_this_host_can_be_looked_at() -> None:
    assert Host.look().is_root == (os.geteuid() == 0)
