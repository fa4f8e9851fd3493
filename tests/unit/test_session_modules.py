# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The modules session and session_info, with real processes, mounts and sockets."""

from __future__ import annotations

import contextlib
import os
import socket
import tempfile
import time
from datetime import datetime
from typing import TYPE_CHECKING, Any

import pytest
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._host.mounts import unmount
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._host.processes import (
    MARKER,
    Process,
    marked,
    spawn,
    stop,
    stop_all,
)
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._session.directory import SessionError
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._session.record import PUBLIC_KEYS, Claim
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._session.session import Session
from ansible_collections.phpborg.instant_recovery.plugins.modules import session as session_module
from ansible_collections.phpborg.instant_recovery.plugins.modules import session_info

from tests.support.empty_fuse import empty_fuse
from tests.support.host import remains
from tests.support.modules import call

if TYPE_CHECKING:
    from collections.abc import Iterator

KILL = [("SIGKILL", 5.0)]


@pytest.fixture(name="root")
def _root() -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix="spine-") as root:
        os.chmod(root, 0o711)  # a server's user has to pass
        yield root
        for name in os.listdir(root):
            stop_all(marked(os.path.join(root, name)), KILL)


def session(root: str, state: str = "present", **arguments: Any) -> dict[str, Any]:
    return call(session_module.main, session_root=root, state=state, **arguments)


def info(root: str, **arguments: Any) -> list[dict[str, Any]]:
    result = call(session_info.main, session_root=root, **arguments)
    assert result["changed"] is False
    assert result["elapsed"] >= 0
    sessions: list[dict[str, Any]] = result["sessions"]
    return sessions


@contextlib.contextmanager
def listening() -> Iterator[int]:
    """A TCP server on a free port of 127.0.0.1."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def daemon(one: Session, name: str) -> Process:
    """A recorded process of the session."""
    one.claim(Claim(name, "process", "server", signals=(("SIGTERM", 5), ("SIGKILL", 5))))
    process = spawn(["sleep", "60"], log=one.path("log/out"), env={MARKER: one.directory})
    one.amend_claim(name, process=process)
    return process


@contextlib.contextmanager
def active(one: Session) -> Iterator[tuple[Process, Process, int]]:
    """Make the session active: a mount and its server, a process, and a port on which something listens."""
    one.claim(Claim("merged", "mount", "layer", mountpoint=one.path("merged")))
    mounted = empty_fuse(one.path("merged"), env={MARKER: one.directory}, log=one.path("log/fuse"))
    with mounted as server, listening() as port:
        one.amend_claim("merged", process=server)
        process = daemon(one, "server")
        one.update(status="active", port=port)
        yield server, process, port


def test_a_life(root: str) -> None:
    before = time.time() - 3
    fields = {"engine": "postgresql", "host": "db1", "archive": {"name": "a", "id": "1"}, "timings": {"look": 0.25}}
    begun = session(root, ttl="2h", began=before, **fields)
    assert begun["changed"]
    assert begun["diff"]["before"] == {}
    assert begun["diff"]["after"]["status"] == "starting"
    assert set(begun["session"]) == set(PUBLIC_KEYS)
    assert begun["session"]["archive"] == {"repository": None, "name": "a", "id": "1", "time": None}
    assert begun["session_directory"] == os.path.join(root, begun["session"]["id"])
    assert all(os.path.isdir(path) for path in begun["directories"].values())
    one = Session.open(begun["session_directory"])
    daemon(one, "server")
    one.timing("server", 0.5)
    name = begun["session"]["id"]

    one.activate(port=15432)
    started, after = one.record.public(), time.time()
    assert (started["status"], started["port"]) == ("active", 15432)
    assert 3 <= started["timings"]["total"] <= round(after - before, 3)
    assert started["timings"]["overhead"] == pytest.approx(started["timings"]["total"] - 0.75)
    assert started["started_at"] > started["created_at"]
    lives = datetime.fromisoformat(started["expires_at"]) - datetime.fromisoformat(started["started_at"])
    assert lives.total_seconds() == 7200
    one.activate(port=15433)
    assert one.record.public() == {**started, "port": 15433}, "a server that is started again changes nothing else"

    stopped = session(root, "absent", session_id=name)
    assert stopped["changed"]
    assert stopped["session"]["status"] == "stopped"
    assert stopped["diff"]["after"] == {}
    assert remains(root) == []
    again = session(root, "absent", session_id=name)
    assert not again["changed"]
    assert again["session"] == stopped["session"]
    assert set(again) == set(stopped)
    assert os.listdir(os.path.join(root, "ended")) == [f"{name}.json"]


def test_check_mode_predicts_and_does_nothing(root: str) -> None:
    planned = session(root + "/new", session_id="mine", engine="postgresql", check=True)
    assert planned["changed"]
    assert planned["session"]["id"] == "mine"
    assert planned["session_directory"] == root + "/new/mine"
    assert session(root, check=True)["session_directory"] is None
    assert os.listdir(root) == []
    session(root, session_id="mine")
    assert session(root, "absent", session_id="mine", check=True)["changed"]
    assert session(root, "absent", session_id="all", check=True)["changed"]
    assert info(root, session_id="mine", check=True)[0]["status"] == "starting"


def test_a_named_session_is_made_once(root: str) -> None:
    assert session(root, session_id="mine")["changed"]
    again = session(root, session_id="mine")
    assert not again["changed"]
    assert again["session_directory"] == os.path.join(root, "mine")


def test_all_are_stopped_even_when_one_cannot_be(root: str) -> None:
    for name in ("one", "two", "three"):
        session(root, session_id=name)
    with open(os.path.join(root, "two", "session.json"), "w") as record:
        record.write("{")
    result = session(root, "absent", session_id="all")
    assert result["failed"]
    assert "two/session.json is damaged" in result["msg"]
    assert sorted(os.listdir(root)) == ["audit.log", "ended", "two"]
    os.unlink(os.path.join(root, "two", "session.json"))
    os.rename(os.path.join(root, "two"), os.path.join(root, "20261122-130501-9c1e"))
    result = session(root, "absent", session_id="all")
    assert result["changed"]
    assert [one["id"] for one in result["sessions"]] == ["20261122-130501-9c1e"]
    assert not session(root, "absent", session_id="all")["changed"]
    assert remains(root) == []


def test_unknown_sessions(root: str) -> None:
    session(root, session_id="mine")
    assert session(root, "absent", session_id="yours")["msg"] == (
        f"There is no session yours in {root}. Sessions there: mine. Name one of them, or its session_root."
    )
    assert "is not a session id" in session(root, "absent", session_id="../mine")["msg"]
    assert "are missing: session_id" in session(root, "absent")["msg"]
    assert info(root, session_id="yours") == []


def test_a_session_that_is_worked_on_is_not_stopped(root: str) -> None:
    session(root, session_id="mine")
    with Session.open(os.path.join(root, "mine")).locked():
        result = session(root, "absent", session_id="mine", lock_timeout=0)
    assert f"mine is being worked on by process {os.getpid()}" in result["msg"]


def test_a_session_that_ends_cannot_become_active(root: str) -> None:
    session(root, session_id="mine")
    one = Session.open(os.path.join(root, "mine"))
    one.update(status="stopping", error_message="Still there: x")
    with pytest.raises(SessionError, match="mine is stopping: nothing can be added"):
        one.activate()
    assert info(root)[0]["status"] == "stopping"


def test_a_wrong_share(root: str) -> None:
    assert "memory_max 200% is no part of the host's memory" in session(root, memory_max="200%")["msg"]
    assert "memory_max -1 is not a size" in session(root, memory_max="-1")["msg"]
    assert "memory_max 1M is too little for a session: choose 256M" in session(root, memory_max="1M")["msg"]
    assert "cpu_weight 0 is no weight: choose 1 to 10000" in session(root, cpu_weight=0)["msg"]
    assert "io_weight 10001 is no weight" in session(root, io_weight=10001)["msg"]


def test_a_wrong_ttl(root: str) -> None:
    assert "'soon' is not a duration" in session(root, ttl="soon")["msg"]
    assert os.listdir(root) == []


@pytest.mark.parametrize(("given", "kept"), [(None, None), ("auto", None), ("0", 0), ("5m", 300)])
def test_when_an_archive_is_suspended(root: str, given: str | None, kept: float | None) -> None:
    begun = session(root, **({} if given is None else {"suspend_after": given}))
    assert Session.open(begun["session_directory"]).record.suspend_after == kept


def test_no_sessions(root: str) -> None:
    assert info(root) == []
    assert info(root + "/not/there") == []


def test_an_active_session_that_is_whole(root: str) -> None:
    one = Session.open(session(root, session_id="mine")["session_directory"])
    with active(one) as (server, process, port):
        with open(one.path("upper/changes"), "wb") as changes:
            changes.write(bytes(100_000))
            changes.truncate(1 << 30)
        os.link(one.path("upper/changes"), one.path("upper/same"))
        (seen,) = info(root)
    assert set(seen) == {*PUBLIC_KEYS, "checks", "metrics"}
    assert (seen["status"], seen["error_message"], seen["port"]) == ("active", None, port)
    seen["checks"]["processes"] = [one for one in seen["checks"]["processes"] if one["name"] != "keeper"]
    assert seen["checks"] == {
        "mounts": [
            {
                "name": "merged",
                "mountpoint": one.path("merged"),
                "mounted": True,
                "responding": True,
                "suspended": False,
            }
        ],
        "processes": [
            {"name": "merged", "pid": server.pid, "alive": True},
            {"name": "server", "pid": process.pid, "alive": True},
        ],
        "port": True,
    }
    assert 100_000 <= seen["upper_bytes"] < 200_000


def test_an_active_session_that_falls_to_pieces(root: str) -> None:
    one = Session.open(session(root, session_id="mine")["session_directory"])
    point = one.path("merged")
    with active(one) as (server, process, port):
        stop(process, KILL)
        (seen,) = info(root, session_id="mine")
        assert seen["status"] == "orphaned"
        assert f"The process server ({process.pid}) is gone" in seen["error_message"]
        assert "Stop the session" in seen["error_message"]

        stop(server, KILL)
        (seen,) = info(root)
        (mount,) = seen["checks"]["mounts"]
        assert (mount["mounted"], mount["responding"]) == (True, False)
        assert f"The mount {point} does not answer" in seen["error_message"]
        unmount(point)
        (seen,) = info(root)
        assert f"Nothing is mounted at {point}" in seen["error_message"]
    (seen,) = info(root)
    assert seen["checks"]["port"] is False
    assert f"Nothing listens on port {port}" in seen["error_message"]
    assert Session.open(one.directory).record.status == "active", "looking changes nothing"
    assert session(root, "absent", session_id="mine")["changed"]
    assert remains(root) == []


def test_a_start_or_stop_that_was_cut_off(root: str) -> None:
    one = Session.open(session(root, session_id="mine")["session_directory"])
    assert info(root)[0]["status"] == "starting"
    os.utime(one.path("session.json"), (0, 0))
    assert info(root)[0]["error_message"].startswith("The start was cut off.")
    with one.locked():
        assert info(root)[0]["status"] == "starting"
    process = daemon(one, "borg")
    assert info(root)[0]["status"] == "starting"
    stop(process, KILL)
    assert info(root)[0]["status"] == "orphaned"
    one.update(status="stopping")
    assert info(root)[0]["error_message"].startswith("Stopping was cut off.")
    one.remember("server", {})
    one.update(status="starting")
    os.utime(one.path("session.json"), (0, 0))
    assert "The reset was cut off, when its changes may have been dropped" in info(root)[0]["error_message"]
    one.update(status="stopping")
    with one.locked():
        assert info(root)[0]["status"] == "stopping"


def test_a_reboot(root: str) -> None:
    one = Session.open(session(root, session_id="mine")["session_directory"])
    one.claim(Claim("server", "process", "server", process=Process(os.getpid(), 1, "another boot")))
    one.update(status="active", pid=os.getpid())
    (seen,) = info(root)
    assert seen["status"] == "orphaned"
    assert {"name": "server", "pid": os.getpid(), "alive": False} in seen["checks"]["processes"]


def test_sessions_whose_record_is_gone_or_damaged(root: str) -> None:
    session(root, session_id="mine")
    with open(os.path.join(root, "mine", "session.json"), "w") as record:
        record.write("")
    name = session(root)["session"]["id"]
    os.unlink(os.path.join(root, name, "session.json"))
    lost, damaged = info(root)
    assert (lost["id"], lost["status"]) == (name, "orphaned")
    assert "Its record is gone" in lost["error_message"]
    assert (damaged["id"], damaged["status"]) == ("mine", "orphaned")
    assert "is damaged" in damaged["error_message"]


def test_ended_sessions(root: str) -> None:
    session(root, session_id="mine")
    session(root, "absent", session_id="mine", error_message="The port was taken.")
    assert info(root) == []
    for (seen,) in (info(root, ended=True), info(root, session_id="mine")):
        assert (seen["status"], seen["error_message"]) == ("failed", "The port was taken.")
        assert seen["checks"] == {"mounts": [], "processes": [], "port": None}
