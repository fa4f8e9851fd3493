# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which directories others could exchange: owners, modes, groups and links on the way to them."""

from __future__ import annotations

import os
import pwd
import shutil
import struct
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._errors import RecoveryError
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._host.ownership import exposure, open_directory

from tests.support.forked import forked
from tests.support.user import ordinary_user

if TYPE_CHECKING:
    from collections.abc import Iterator

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")


@pytest.fixture(name="place")
def _place() -> Iterator[Path]:
    """A directory of ours in /tmp, which is everybody's and sticky."""
    with tempfile.TemporaryDirectory(prefix="owned-") as directory:
        os.chmod(directory, 0o755)
        yield Path(directory)


@pytest.fixture(name="eve", scope="module")
def _eve() -> Iterator[pwd.struct_passwd]:
    with ordinary_user("ir-owner") as user:
        yield user


def directory(path: Path, mode: int = 0o755, owner: str | None = None, group: str | None = None) -> str:
    path.mkdir(parents=True)
    if owner or group:
        shutil.chown(path, owner, group)
    path.chmod(mode)
    return str(path)


def access_list(uid: int) -> bytes:
    """u::rwx, u:UID:rwx, g::r-x, m::rwx, o::r-x as the kernel takes it (linux/posix_acl_xattr.h)."""
    nobody = 2**32 - 1
    entries = ((0x01, 7, nobody), (0x02, 7, uid), (0x04, 5, nobody), (0x10, 7, nobody), (0x20, 5, nobody))
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


def opened(path: str) -> str:
    """Where open_directory() ends."""
    descriptor = open_directory(path)
    try:
        return os.readlink(f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)


def test_ours_below_the_sticky_tmp(place: Path) -> None:
    ours = directory(place / "a" / "b", 0o700)
    assert exposure(ours) is None
    assert exposure(f"{ours}/not/there/yet") is None
    assert opened(ours) == ours
    assert exposure("/") is None
    assert opened("/") == "/"


def test_what_everybody_may_write_to(place: Path) -> None:
    shared = directory(place / "shared", 0o777)
    below = directory(place / "shared" / "below")
    assert exposure(shared) == exposure(below) == f"{shared} can be written by other users"
    with pytest.raises(RecoveryError, match=f"^{shared} can be written by other users$"):
        open_directory(below)
    os.chmod(shared, 0o1777)
    assert exposure(below) is None, "it is ours, and sticky: nobody else can rename it"
    assert exposure(shared) == f"{shared} can be written by other users", "anybody could take a session's name"
    assert opened(below) == below


@needs_root
def test_what_belongs_to_others(place: Path, eve: pwd.struct_passwd) -> None:
    theirs = directory(place / "eve", 0o755, eve.pw_name)
    below = directory(place / "eve" / "sessions", 0o700)
    for path in (theirs, below, f"{theirs}/not/there"):
        assert exposure(path) == f"{theirs} belongs to {eve.pw_name}, who could exchange what is in it"
    assert opened(theirs) == theirs, "a service's directory may be written to, without following its links"
    assert forked(lambda: exposure(theirs), user=eve) is None
    assert forked(lambda: exposure(str(place)), user=eve) is None, "root is trusted by everybody"


@needs_root
def test_what_is_in_a_sticky_directory_has_an_owner_too(place: Path, eve: pwd.struct_passwd) -> None:
    directory(place / "tmp", 0o1777)
    theirs = directory(place / "tmp" / "x", 0o755, eve.pw_name)
    assert exposure(f"{theirs}/sessions") == f"{theirs} belongs to {eve.pw_name}, who could exchange what is in it"


@needs_root
def test_a_group_is_others_unless_it_is_the_owners_own(place: Path, eve: pwd.struct_passwd) -> None:
    own = directory(place / "own", 0o775, "root", "root")
    assert exposure(own) is None
    shared = directory(place / "shared", 0o775, "root", "adm")
    assert exposure(shared) == f"{shared} can be written by other users"
    private = directory(place / "private", 0o775, eve.pw_name, eve.pw_name)
    assert forked(lambda: exposure(private), user=eve) is None, "as a umask of 002 makes it"
    assert opened(private) == private
    guest = directory(place / "guest", 0o775, "root", eve.pw_name)
    assert exposure(guest) == f"{guest} can be written by other users"
    unknown = directory(place / "unknown", 0o775)
    os.chown(unknown, 0, 54321)
    assert exposure(unknown) == f"{unknown} can be written by other users"


@needs_root
def test_an_access_list_makes_others(place: Path, eve: pwd.struct_passwd) -> None:
    listed = directory(place / "listed", 0o755)
    os.setxattr(listed, "system.posix_acl_access", access_list(eve.pw_uid))
    assert exposure(listed) == f"{listed} can be written by other users"


@needs_root
def test_only_links_of_ours_and_roots_are_followed(place: Path, eve: pwd.struct_passwd) -> None:
    target = directory(place / "target" / "inner")
    for name, to in (("absolute", f"{place}/target"), ("relative", "x/../target"), ("chain", "absolute")):
        (place / name).symlink_to(to)
    directory(place / "x")
    for name in ("absolute", "relative", "chain"):
        assert opened(str(place / name / "inner")) == target
    theirs = Path(directory(place / "eve", 0o755, eve.pw_name))
    for link in (theirs / "link", theirs / "given"):
        link.symlink_to(target)
    os.lchown(theirs / "link", eve.pw_uid, eve.pw_gid)
    for link in (theirs / "link", theirs / "given"):
        with pytest.raises(RecoveryError, match=f"^{link} is a link that is neither root's nor ours$"):
            open_directory(str(link))
    (place / "loop").symlink_to("loop")
    with pytest.raises(RecoveryError):
        open_directory(str(place / "loop"))
    with pytest.raises(FileNotFoundError):
        open_directory(str(place / "missing"))
    (place / "file").touch()
    with pytest.raises(NotADirectoryError):
        open_directory(str(place / "file"))


def test_a_link_is_told(place: Path) -> None:
    (place / "link").symlink_to("/")
    assert exposure(f"{place}/link/etc") == f"{place}/link is a link"
