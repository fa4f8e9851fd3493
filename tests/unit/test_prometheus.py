# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The file for Prometheus: it is written where it is meant to be, and takes the place of nothing else."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._session.directory import SessionError
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._session.prometheus import (
    check_textfile,
    write_textfile,
)
from ansible_collections.phpborg.instant_recovery.plugins.modules import session as session_module

from tests.support.forked import forked
from tests.support.modules import call
from tests.support.user import ordinary_user

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can act for other users")
OURS = "# HELP instant_recovery_sessions Sessions on this host.\nold\n"


@pytest.fixture(name="place")
def _place() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="prom-") as directory:
        os.chmod(directory, 0o755)
        yield Path(directory)


def plant_text(path: Path) -> None:
    path.write_text("root:secret:20000::::::\n")


def plant_empty(path: Path) -> None:
    path.touch()


def plant_look_alike(path: Path) -> None:
    path.write_text("# HELP other_sessions\n# HELP instant_recovery_sessions\n")


def plant_link(path: Path) -> None:
    (path.parent / "precious").write_text(OURS)
    path.symlink_to("precious")


def plant_dangling(path: Path) -> None:
    path.symlink_to("not-there")


def plant_pipe(path: Path) -> None:
    os.mkfifo(path)


def plant_directory(path: Path) -> None:
    path.mkdir()


def listing(place: Path) -> dict[str, object]:
    """What is below place, and what it says."""
    found: dict[str, object] = {}
    for path in sorted(place.rglob("*")):
        said = os.readlink(path) if path.is_symlink() else path.read_text() if path.is_file() else path.stat().st_mode
        found[str(path.relative_to(place))] = said
    return found


@pytest.mark.parametrize("earlier", [None, OURS])
def test_the_file_appears_and_is_replaced(place: Path, earlier: str | None) -> None:
    path = place / "sessions.prom"
    if earlier:
        path.write_text(earlier)
        path.chmod(0o600)
    check_textfile(str(path))
    write_textfile(str(path), str(place / "sessions"))
    assert path.read_text().startswith(OURS.splitlines()[0])
    assert "old" not in path.read_text()
    assert path.stat().st_mode & 0o777 == 0o644
    assert os.listdir(place) == ["sessions.prom"]
    write_textfile(str(path), str(place / "sessions"))


@pytest.mark.parametrize(
    "plant", [plant_text, plant_empty, plant_look_alike, plant_link, plant_dangling, plant_pipe, plant_directory]
)
def test_what_is_not_ours_stays_as_it_is(place: Path, plant: Callable[[Path], None]) -> None:
    path = place / "sessions.prom"
    plant(path)
    before = listing(place)
    for action in (lambda: check_textfile(str(path)), lambda: write_textfile(str(path), str(place / "sessions"))):
        with pytest.raises(SessionError, match=r"metrics_textfile '.*sessions\.prom' cannot be used: .*what|the file"):
            action()
    assert listing(place) == before


@pytest.mark.parametrize("name", ["shadow", "sessions.prom.txt", ".prom", "a\nb.prom", "sessions.prom/", "x.PROM", ""])
def test_names_that_cannot_be(place: Path, name: str) -> None:
    for path in (f"{place}/{name}", f"relative/{name}"):
        with pytest.raises(SessionError, match=r"it is no absolute path of a file \.prom\. Name a file that ends in"):
            check_textfile(path)
    with pytest.raises(SessionError, match="no absolute path"):
        check_textfile("sessions.prom")
    assert os.listdir(place) == []


def test_a_directory_that_others_can_write_to(place: Path) -> None:
    (place / "open").mkdir()
    (place / "open").chmod(0o777)
    with pytest.raises(SessionError, match=f"{place}/open can be written by other users"):
        check_textfile(f"{place}/open/sessions.prom")
    with pytest.raises(SessionError, match=f"{place}/none: No such file or directory"):
        check_textfile(f"{place}/none/sessions.prom")


@needs_root
def test_a_services_directory_is_written_to_and_its_links_are_not_followed(place: Path) -> None:
    """As Debian's /var/lib/prometheus, which is prometheus's, and node-exporter in it."""
    with ordinary_user("ir-collector") as service:
        inner = place / "service" / "textfiles"
        inner.mkdir(parents=True)
        shutil.chown(inner.parent, service.pw_name)
        write_textfile(f"{inner}/sessions.prom", str(place / "sessions"))
        (place / "victim").mkdir()
        inner.rename(inner.with_name("aside"))
        forked(lambda: os.symlink(f"{place}/victim", str(inner)), user=service)
        with pytest.raises(SessionError, match="textfiles is a link that is neither root's nor ours"):
            write_textfile(f"{inner}/sessions.prom", str(place / "sessions"))
        assert os.listdir(place / "victim") == []
        with pytest.raises(RuntimeError, match="cannot be written by this user"):
            forked(lambda: check_textfile(f"{place}/victim/sessions.prom"), user=service)


@pytest.mark.parametrize("check", [False, True])
@pytest.mark.parametrize(
    ("name", "plant"), [("shadow", plant_text), ("shadow.prom", plant_text), ("x.prom", plant_link)]
)
def test_a_session_is_refused_before_anything_is_made(
    place: Path, name: str, plant: Callable[[Path], None], check: bool
) -> None:
    plant(place / name)
    before = listing(place)
    arguments = {"session_root": f"{place}/sessions", "metrics_textfile": f"{place}/{name}", "server_user": "nobody"}
    result = call(session_module.main, check=check, **arguments)
    assert result["failed"]
    assert result["msg"].startswith(f"metrics_textfile '{place}/{name}' cannot be used: ")
    assert listing(place) == before
