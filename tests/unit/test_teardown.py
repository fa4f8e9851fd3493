# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The one tear-down path, on sessions of real processes and mounts, in every state that a crash can leave them in."""

from __future__ import annotations

import os
import pwd
import signal
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._host.mounts import mounts_below
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._host.processes import (
    MARKER,
    Process,
    marked,
    spawn,
    stop,
    stop_all,
)
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._host.trees import empty_directory
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._session import teardown as _teardown
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._session.directory import SessionError
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._session.record import Claim, Record
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._session.session import Session
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._session.teardown import (
    cut_off,
    drop_changes,
    tear_down,
)

from tests.support.empty_fuse import empty_fuse
from tests.support.forked import forked
from tests.support.host import remains
from tests.support.user import ordinary_user

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
ME = pwd.getpwuid(os.geteuid()).pw_name
QUICK = (("SIGINT", 5), ("SIGKILL", 5))


@pytest.fixture(name="root")
def _root() -> Iterator[str]:
    """A session root; a test that fails may leave processes and mounts below it, which end here."""
    with tempfile.TemporaryDirectory(prefix="spine-") as root:
        os.chmod(root, 0o711)
        yield root
        for name in os.listdir(root):
            stop_all(marked(os.path.join(root, name)), [("SIGKILL", 5)])
        for mount in mounts_below(root):
            subprocess.run(["umount", "--lazy", mount.mountpoint], check=True)


@pytest.fixture(name="session")
def _session(root: str) -> Session:
    return Session.create(root, session_id="mine", user=ME)


def start(session: Session, argv: Sequence[str] = ("sleep", "60"), **env: str) -> Process:
    return spawn(argv, log=session.path("log/out"), env={MARKER: session.directory, **env})


def tmpfs(point: str, *options: str) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", ",".join(["size=256k", *options]), "tmpfs", point], check=True)


def last(session: Session) -> Record:
    record = Session.ended(os.path.dirname(session.directory), session.id)
    assert record is not None
    return record


@needs_root
def test_a_whole_session_goes_in_reverse_order(session: Session, root: str, tmp_path: Path) -> None:
    """The server may still use the mount when it is asked to stop."""
    merged, order = session.path("merged"), tmp_path / "order"
    session.claim(Claim("merged", "mount", "layer", mountpoint=merged))
    tmpfs(merged)
    session.claim(Claim("server", "process", "server", signals=(("SIGINT", 10), ("SIGKILL", 5))))
    script = f"trap 'mountpoint {merged} > {order}; exit' INT; touch {merged}/started; while :; do sleep 0.05; done"
    server = start(session, ["sh", "-c", script])
    session.amend_claim("server", process=server)
    session.update(status="active", port=15432)
    while not os.path.exists(f"{merged}/started"):
        time.sleep(0.01)
    assert tear_down(session) == []
    assert "is a mountpoint" in order.read_text()
    assert remains(root) == []
    assert (last(session).status, last(session).port) == ("stopped", 15432)
    assert last(session).stopped_at


def _layer_of(session: Session, process: Process) -> Claim:
    point = session.path("merged")
    return Claim("merged", "mount", "layer", mountpoint=point, process=process, notice="SIGUSR1", signals=QUICK)


@pytest.mark.parametrize("way", [tear_down, drop_changes, lambda one: cut_off(one, "Enough.")])
def test_who_wants_to_know_is_told_before_anything_ends(session: Session, way: Any, tmp_path: Path) -> None:
    told, ready, order = tmp_path / "told", tmp_path / "ready", tmp_path / "order"
    listens = f"trap 'touch {told}' USR1; touch {ready}; while :; do sleep 0.05; done"
    layer = start(session, ["sh", "-c", listens])
    session.claim(_layer_of(session, layer))
    script = f"trap 'sleep 0.2; ls {told} > {order}; exit' INT; touch {ready}.too; while :; do sleep 0.05; done"
    server = start(session, ["sh", "-c", script])
    session.claim(Claim("server", "process", "server", process=server, signals=(("SIGINT", 10), ("SIGKILL", 5))))
    while not (ready.exists() and os.path.exists(f"{ready}.too")):
        time.sleep(0.01)
    way(session)
    assert not server.alive()
    assert order.read_text().split() == [str(told)]


def test_a_failed_start_keeps_its_reason(session: Session, root: str) -> None:
    assert tear_down(session, status="failed", error_message="The server did not start.") == []
    assert (last(session).status, last(session).error_message) == ("failed", "The server did not start.")
    assert remains(root) == []


def test_a_reason_of_any_length_keeps_no_session_alive(session: Session, root: str) -> None:
    assert tear_down(session, status="failed", error_message="it is so: " * (4 << 20)) == []
    message = last(session).error_message or ""
    assert message.startswith("it is so: it is so")
    assert message.endswith(" (41943040 characters in all)")
    assert len(message) < 20000
    assert remains(root) == []


KILLED = """import os, signal, sys; sys.path[:0] = {path!r}
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._host.processes import MARKER, spawn
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._session.record import Claim
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._session.session import Session
with Session.open({directory!r}).locked() as session:
    session.claim(Claim("server", "process", "server", signals=(("SIGTERM", 5), ("SIGKILL", 5))))
    for _ in range({count}):
        spawn(["sleep", "60"], log=session.path("log/out"), env={{MARKER: session.directory}})
    os.kill(os.getpid(), signal.SIGKILL)"""


@pytest.mark.parametrize("count", [0, 1, 3])
def test_a_module_killed_between_starting_and_recording(session: Session, root: str, count: int) -> None:
    script = KILLED.format(path=sys.path, directory=session.directory, count=count)
    done = subprocess.run([sys.executable, "-c", script], timeout=20, check=False)
    assert done.returncode == -signal.SIGKILL
    assert len(marked(session.directory)) == count
    assert tear_down(session) == []
    assert marked(session.directory) == []
    assert remains(root) == []


def test_an_unrecorded_server_is_stopped_before_what_it_stands_on(session: Session, tmp_path: Path) -> None:
    """The lower mounts' servers, which are recorded, and their children are not mistaken for it."""
    session.claim(Claim("archive", "mount", "archive", mountpoint=session.path("archive")))
    borg = start(session, ["sh", "-c", f"trap 'echo borg >> {tmp_path}/order; exit' TERM; sleep 60 & wait"])
    session.amend_claim("archive", process=borg)
    session.claim(Claim("server", "process", "server", signals=(("SIGINT", 1), ("SIGKILL", 5))))
    server = start(session, ["sh", "-c", f"trap 'echo server >> {tmp_path}/order; exit' INT; sleep 60 & wait"])
    while len(marked(session.directory)) < 4:
        time.sleep(0.01)
    assert tear_down(session) == []
    assert (tmp_path / "order").read_text() == "server\nborg\n"
    assert not server.alive()


def test_fuse_servers_end_in_order(session: Session, root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_teardown, "UNMOUNTED_SERVER_ENDS", 600)
    point = session.path("merged")
    session.claim(Claim("merged", "mount", "layer", mountpoint=point))
    with empty_fuse(point, env={MARKER: session.directory}, log=session.path("log/fuse")) as server:
        session.amend_claim("merged", process=server)
        begun = time.monotonic()
        assert tear_down(session) == []
        assert time.monotonic() - begun < 300
        assert not server.alive()
    assert remains(root) == []


@pytest.mark.parametrize("state", [signal.SIGKILL, signal.SIGSTOP])
@pytest.mark.parametrize("recorded", [True, False])
def test_fuse_servers_that_died_or_hang(
    session: Session, root: str, state: signal.Signals, recorded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_teardown, "UNMOUNTED_SERVER_ENDS", 0.5)
    point = session.path("merged")
    session.claim(Claim("merged", "mount", "layer", mountpoint=point, signals=(("SIGTERM", 0.2), ("SIGKILL", 5))))
    with empty_fuse(point, env={MARKER: session.directory}, log=session.path("log/fuse")) as server:
        if recorded:
            session.amend_claim("merged", process=server)
        session.claim(Claim("server", "process", "server", signals=(("SIGINT", 0.2), ("SIGKILL", 0.2))))
        os.kill(server.pid, state)
        # Hangs in the kernel and cannot be killed, until the server of the mount has gone.
        user = start(session, [sys.executable, "-c", f"import os; os.statvfs({point!r})"])
        session.amend_claim("server", process=user)
        time.sleep(0.3)
        assert tear_down(session) == []
        assert not server.alive()
        assert not user.alive()
    assert remains(root) == []


@needs_root
def test_stacked_hidden_and_busy_mounts(session: Session, root: str) -> None:
    point = session.path("merged")
    session.claim(Claim("merged", "mount", "layer", mountpoint=point))
    tmpfs(point)
    os.mkdir(os.path.join(point, "inner"))
    tmpfs(os.path.join(point, "inner"))
    tmpfs(point)
    with subprocess.Popen(["sleep", "60"], cwd=point) as visitor:
        assert tear_down(session) == []
        assert visitor.poll() is None, "a visitor of the mount is not ours to stop"
        visitor.kill()
    assert mounts_below(root) == []


@needs_root
def test_mounts_that_nobody_recorded(session: Session, root: str) -> None:
    os.mkdir(session.path("archive/1"))
    tmpfs(session.path("archive/1"))
    with empty_fuse(session.path("merged"), env={MARKER: session.directory}):
        assert tear_down(session) == []
    assert remains(root) == []


@needs_root
def test_what_lies_outside_is_not_touched(session: Session, tmp_path: Path, root: str) -> None:
    """Neither through a bind mount, even of the same file system, nor a link, nor a hard link."""
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "data").write_text("precious")
    for name in ("bound", "elsewhere"):
        os.mkdir(session.path(f"upper/{name}"))
    os.symlink(precious, session.path("upper/link"))
    os.symlink(precious / "data", session.path("upper/link to a file"))
    bound = session.path("upper/bound")
    subprocess.run(["mount", "--bind", precious, bound], check=True)
    stranger = spawn(["sleep", "60"], log=str(tmp_path / "log"), env={MARKER: session.directory + "-other"})
    left = empty_directory(session.directory)
    assert left == [f"{bound} (something is mounted there)"]
    subprocess.run(["umount", bound], check=True)
    session = Session.create(root, session_id="next", user=ME)
    os.symlink(precious, session.path("upper/link"))
    os.mkdir(session.path("upper/bound"))
    subprocess.run(["mount", "--bind", precious, session.path("upper/bound")], check=True)
    assert tear_down(session) == []
    assert (precious / "data").read_text() == "precious"
    assert stranger.alive()
    assert stop(stranger, [("SIGKILL", 5)])


def test_directories_that_their_owner_has_closed(session: Session, root: str) -> None:
    work = Path(session.path("upper/work/work"))
    (work / "deep").mkdir(parents=True)
    (work / "deep" / "file").touch()
    for directory in (work / "deep", work):
        directory.chmod(0)
    assert tear_down(session) == []
    assert remains(root) == []


def test_a_reboot_between(session: Session, root: str) -> None:
    """Nothing of it runs any more, and whoever has its pids now is left alone."""
    innocent = spawn(["sleep", "60"], log="/dev/null", env={})
    before = Process(innocent.pid, innocent.start_time, "11111111-2222-3333-4444-555555555555")
    session.claim(Claim("archive", "mount", "archive", mountpoint=session.path("archive"), process=before))
    session.claim(Claim("server", "process", "server", process=before))
    session.update(status="active")
    assert tear_down(session) == []
    assert innocent.alive()
    assert stop(innocent, [("SIGKILL", 5)])
    assert remains(root) == []


def test_a_pid_that_another_process_has_now(session: Session) -> None:
    innocent = spawn(["sleep", "60"], log="/dev/null", env={})
    earlier = Process(innocent.pid, innocent.start_time - 5, innocent.boot_id)
    session.claim(Claim("server", "process", "server", process=earlier))
    assert tear_down(session) == []
    assert innocent.alive()
    assert stop(innocent, [("SIGKILL", 5)])


def test_two_at_once_and_one_more(session: Session, root: str) -> None:
    session.claim(Claim("server", "process", "server", signals=QUICK))
    session.amend_claim("server", process=start(session))
    outcomes: list[object] = []

    def run() -> None:
        try:
            outcomes.append(tear_down(Session.open(session.directory)))
        except SessionError as error:
            outcomes.append(type(error).__name__)

    threads = [threading.Thread(target=run) for _number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(map(str, outcomes)) == ["SessionGoneError", "SessionGoneError", "[]"]
    assert remains(root) == []


def test_a_session_that_is_half_gone(root: str) -> None:
    """Cut off while it was being removed, or its record lost: processes and mounts are found by their marks."""
    session = Session.create(root, user=ME)
    process = start(session)
    for name in ("session.json", "merged", "run"):
        path = session.path(name)
        os.rmdir(path) if os.path.isdir(path) else os.unlink(path)
    assert tear_down(Session.open(session.directory)) == []
    assert not process.alive()
    assert last(session).status == "stopped"
    assert remains(root) == []


def test_a_claimed_mount_point_that_is_gone(session: Session, root: str) -> None:
    session.claim(Claim("archive", "mount", "archive", mountpoint=session.path("archive/1")))
    session.claim(Claim("outside", "mount", "archive", mountpoint="/nowhere/at/all"))
    assert tear_down(session) == []
    assert remains(root) == []


def test_a_damaged_record_is_refused_and_nothing_touched(session: Session) -> None:
    process = start(session)
    Path(session.path("session.json")).write_text("{")
    with pytest.raises(SessionError, match=r"session.json is damaged .* Move it away and stop the session"):
        tear_down(session)
    assert process.alive()
    assert stop(process, [("SIGKILL", 5)])


@needs_root
def test_a_full_disk_does_not_keep_a_session_alive(root: str) -> None:
    tmpfs(root, "mode=711")
    for name in ("first", "second"):
        session = Session.create(root, session_id=name, user=ME)
        session.claim(Claim("server", "process", "server", signals=QUICK))
        session.amend_claim("server", process=start(session))
        session.update(status="active")
    filler = os.path.join(root, "filler")  # not the session's own: removing the session frees no room
    with open(filler, "wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(4096))
    for name in ("first", "second"):
        session = Session.open(os.path.join(root, name))
        assert tear_down(session) == []
        assert last(session).status == "stopped"
    assert sorted(os.listdir(root)) == ["audit.log", "ended", "filler"]


@needs_root
def test_what_remains_is_said_and_a_second_stop_finishes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An ordinary user's session in which root has mounted something and runs a process."""
    monkeypatch.setattr(_teardown, "UNMOUNTED_SERVER_ENDS", 0.5)
    with ordinary_user("ir-unit") as user:
        root = os.path.join(user.pw_dir, "sessions")
        directory = forked(lambda: Session.create(root, session_id="mine", user=user.pw_name).directory, user=user)
        tmpfs(os.path.join(directory, "merged"))
        process = spawn(["sleep", "60"], log=str(tmp_path / "log"), env={})

        def claim() -> None:
            Session.open(directory).claim(
                Claim("server", "process", "server", signals=(("SIGKILL", 0.1),), process=process)
            )

        def stop_it(status: str, reason: str | None) -> tuple[list[str], Record]:
            session = Session.open(directory)
            left = tear_down(session, status=status, error_message=reason)
            return left, session.record

        forked(claim, user=user)
        left, record = forked(lambda: stop_it("failed", "The server did not start."), user=user)
        assert left == [f"process {process.pid} (sleep)", f"the mount {directory}/merged (tmpfs)"]
        assert record.status == "stopping"
        for what in left:
            assert what in record.error_message
        assert "stop the session again" in record.error_message
        assert process.alive()
        subprocess.run(["umount", os.path.join(directory, "merged")], check=True)
        stop(process, [("SIGKILL", 5)])
        left, record = forked(lambda: stop_it("stopped", None), user=user)
        assert left == []
        assert (record.status, record.error_message) == ("failed", "The server did not start.")
        assert not os.path.exists(directory)


def test_removing_a_tree_that_is_not_there(tmp_path: Path) -> None:
    assert empty_directory(str(tmp_path / "missing")) == []
    (tmp_path / "link").symlink_to(tmp_path)
    assert empty_directory(str(tmp_path / "link")) == [f"{tmp_path}/link (Not a directory)"]


@needs_root
def test_a_closed_directory_is_opened_and_no_link_in_its_place() -> None:
    """The server may exchange them in between: what the link leads to is the user's own."""
    with tempfile.TemporaryDirectory(prefix="ir-") as place, ordinary_user("ir-tree-test") as user:
        top = Path(place)
        top.chmod(0o755)
        for name in ("tree", "tree/closed", "tree/closed/inner", "own"):
            (top / name).mkdir(mode=0o700)
            os.chown(top / name, user.pw_uid, user.pw_gid)
        (top / "tree" / "closed").chmod(0)
        (top / "own").chmod(0o500)
        (top / "tree" / "link").symlink_to(top / "own")
        assert forked(lambda: empty_directory(str(top / "tree")), user=user) == []
        assert (top / "own").stat().st_mode & 0o777 == 0o500
        assert os.listdir(top / "tree") == []


def test_a_tree_deeper_than_any_stack_is_removed(tmp_path: Path) -> None:
    """A hostile server makes it step by step; no path would lead to its end."""
    place = os.open(tmp_path, os.O_RDONLY)
    for _step in range(1500):
        os.mkdir("d", dir_fd=place)
        below = os.open("d", os.O_RDONLY, dir_fd=place)
        os.close(place)
        place = below
    os.close(place)
    assert empty_directory(str(tmp_path)) == []
    assert os.listdir(tmp_path) == []
