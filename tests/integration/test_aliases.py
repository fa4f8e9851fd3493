# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Directories that a sandbox shows at paths of production's: the copy's own, and never what a link has put there."""

from __future__ import annotations

import os
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._errors import RecoveryError
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._host.command import account
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._host.sandbox import Sandbox

from tests.integration.conftest import needs_root

pytestmark = needs_root


@pytest.fixture(name="room")
def _room(place: Path) -> Sandbox:
    """A sandbox with a writable tree `copy` beside a directory `production`, both with a table."""
    for name in ("copy/far", "production"):
        (place / name).mkdir(parents=True)
        (place / name / "table").write_text(name)
    os.chown(place / "copy" / "far" / "table", 65534, 65534)
    return Sandbox(
        account=account("nobody"),
        writable=(str(place / "copy"),),
        session_directory=str(place / "copy"),
        aliases=((str(place / "production"), str(place / "copy" / "far")),),
    )


def test_a_program_sees_and_writes_the_copy_where_production_is(room: Sandbox, place: Path) -> None:
    table = str(place / "production" / "table")
    script = 'cat "$1" && echo changed >"$1"'
    assert room.run(["/bin/sh", "-c", script, "sh", table], timeout=30).stdout == b"copy/far"
    assert (place / "copy" / "far" / "table").read_text() == "changed\n"
    assert (place / "production" / "table").read_text() == "production"


@pytest.mark.parametrize("path", ["//etc", "/etc", "/usr/lib/instant-recovery-none/x"])
def test_nothing_of_the_host_is_written_when_something_covers_what_is_its(
    room: Sandbox, place: Path, path: str
) -> None:
    """Were such a path shown all the same, what is made for the program would end up where the archive's links lead."""
    victim = place / "victim"
    victim.write_text("untouched")
    (place / "copy" / "far" / "hosts").symlink_to(victim)
    (place / "copy" / "far" / "passwd").symlink_to(victim)
    hostile = replace(room, aliases=((path, str(place / "copy" / "far")),))
    with pytest.raises(RecoveryError, match="cannot be confined"):
        hostile.run(["/bin/ls", "/"], timeout=30)
    assert victim.read_text() == "untouched"
    assert victim.stat().st_mode & 0o777 == 0o644
    assert not Path("/usr/lib/instant-recovery-none").exists()


def test_no_mount_of_somebody_elses_keeps_programs_from_starting(room: Sandbox, place: Path) -> None:
    """As an ordinary user makes one, with FUSE: its path may hold what Python takes for the end of a line."""
    point = place / "a\rb\x0bc\x85d"
    point.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "none", point], check=True)
    try:
        assert room.run(["/bin/echo", "here"], timeout=30).stdout == b"here\n"
    finally:
        subprocess.run(["umount", point], check=True)


@pytest.mark.parametrize("part", ["far", "above"])
def test_no_link_leads_to_what_is_shown(room: Sandbox, place: Path, part: str) -> None:
    """Neither in the directory's place nor above it: code of the copy may have put it there since it was looked at."""
    other = place / "secret" / "far"
    other.mkdir(parents=True)
    if part == "far":
        (place / "copy" / "far").rename(place / "copy" / "was")
        (place / "copy" / "far").symlink_to(other)
    else:
        (place / "copy").rename(place / "was")
        (place / "copy").symlink_to(place / "secret")
    with pytest.raises(RecoveryError):
        room.run(["/bin/ls", str(place / "production")], timeout=30)


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/etc/x",
        "/usr/lib/x",
        "/proc",
        "/dev/shm/x",
        "/run/x",
        "relative",
        "/a/../etc",
        "//etc",
        "//usr/lib/x",
        "//proc",
        "//",
        "/elsewhere//x",
        "COPY",
        "COPY/far",
        "ABOVE",
        "TWICE/x",
    ],
)
def test_nothing_is_shown_over_what_a_program_sees_otherwise(room: Sandbox, place: Path, path: str) -> None:
    known = {"COPY": place / "copy", "ABOVE": place, "TWICE": place / "production"}
    for name, meant in known.items():
        path = path.replace(name, str(meant))
    assert not room.can_show(path)
    assert room.can_show(str(place / "elsewhere"))
