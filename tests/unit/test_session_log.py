# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Reading the logs of a session, with real files, real rotation and real waiting."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._session import logs as _session_log
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._session.logs import source_of
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._session.session import Session
from ansible_collections.phpborg.instant_recovery.plugins.modules import session_log

from tests.support.modules import call

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ME = pwd.getpwuid(os.geteuid()).pw_name


class Logs:
    """A session that consists of its directory, whose logs a test writes and reads."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.session = Session.create(str(root), user=ME)
        self.directory = Path(self.session.path("log"))
        self.cursor: Any = None

    def write(self, name: str, content: str | bytes) -> None:
        with (self.directory / name).open("ab") as file:
            file.write(content if isinstance(content, bytes) else content.encode())

    def call(self, **arguments: Any) -> dict[str, Any]:
        given = {"session_id": self.session.id, "session_root": str(self.root), **arguments}
        return call(session_log.main, **given)

    def read(self, **arguments: Any) -> list[str]:
        """The next lines, as `source text`; the cursor goes through JSON, as it does between two tasks."""
        result = self.call(cursor=json.loads(json.dumps(self.cursor)), **arguments)
        assert "msg" not in result, result["msg"]
        self.cursor, self.result = result["cursor"], result
        return [f"{line['source']} {line['text']}" for line in result["lines"]]

    def end(self) -> None:
        """What the tear-down does."""
        shutil.rmtree(self.directory)
        for name in ("archive", "upper", "merged", "run", "config", "client", "tmp"):
            os.rmdir(self.session.path(name))
        with self.session.locked():
            self.session.finish(status="stopped", error_message="stopped: by a test")


@pytest.fixture
def logs() -> Iterator[Logs]:
    """Below a short path: a session has to have room for the path of a socket."""
    with tempfile.TemporaryDirectory(prefix="logs-") as root:
        yield Logs(Path(root))


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("server.log", "server"),
        ("layer.log", "layer"),
        ("borg-1.log", "archive"),
        ("borg-log_archive-1.log", "archive"),
        ("keeper.log", "keeper"),
        ("server.log.1", None),
        (".log", None),
        ("notes", None),
    ],
)
def test_what_a_file_is_a_log_of(name: str, source: str | None) -> None:
    assert source_of(name) == source


def test_the_last_lines_and_then_what_is_added(logs: Logs) -> None:
    logs.write("server.log", "".join(f"line {number}\n" for number in range(10)))
    logs.write("layer.log", "one\n")
    assert logs.read(lines=2) == ["layer one", "server line 8", "server line 9"]
    assert logs.result["sources"] == ["layer", "server"]
    assert (logs.result["ended"], logs.result["more"], logs.result["changed"]) == (False, False, False)
    assert logs.read() == []
    logs.write("server.log", "new\n")
    logs.write("keeper.log", "a log that began meanwhile\n")
    assert logs.read(lines=0) == ["keeper a log that began meanwhile", "server new"]


@pytest.mark.parametrize(("lines", "expected"), [(0, []), (1, ["b"]), (2, ["a", "b"]), (9, ["a", "b"])])
def test_how_many_to_begin_with(logs: Logs, lines: int, expected: list[str]) -> None:
    logs.write("server.log", "a\nb\nhalf")
    assert logs.read(lines=lines) == [f"server {line}" for line in expected]
    logs.write("server.log", " whole\n")
    assert logs.read() == ["server half whole"]


def test_one_source_and_unknown_ones(logs: Logs) -> None:
    logs.write("server.log", "s\n")
    logs.write("layer.log", "l\n")
    logs.write("other.log", "o\n")
    assert logs.read(sources=["layer", "other"]) == ["layer l", "other o"]
    assert logs.read(sources=["layer"]) == []
    # It has not begun yet, but it may.
    assert logs.read(sources=["archive"]) == []
    failed = logs.call(sources=["layer", "sever"])
    assert failed["msg"].endswith("has no log of sever. It has logs of: layer, other, server.")


def test_rotation(logs: Logs) -> None:
    logs.write("server.log", "a\n")
    assert logs.read() == ["server a"]
    logs.write("server.log", "b\nc")
    os.rename(logs.directory / "server.log", logs.directory / "server.log.1")
    logs.write("server.log", "d\n")
    # The rest of the old one first; nothing will complete its last line.
    assert logs.read() == ["server b", "server c"]
    assert logs.read() == ["server d"]
    assert logs.read() == []


def test_rotation_while_it_waits(logs: Logs) -> None:
    logs.write("server.log", "a\n")
    logs.read()

    def rotate() -> None:
        os.rename(logs.directory / "server.log", logs.directory / "server.log.1")
        logs.write("server.log", "b\n")

    assert after(rotate, lambda: logs.read(wait=600)) == ["server b"]
    assert logs.read() == []


def test_emptied_in_place(logs: Logs) -> None:
    logs.write("server.log", "a long first line\n")
    logs.read()
    os.truncate(logs.directory / "server.log", 0)
    logs.write("server.log", "b\n")
    assert logs.read() == ["server b"]


def test_a_log_that_was_removed(logs: Logs) -> None:
    logs.write("layer.log", "a\n")
    logs.write("server.log", "b\n")
    logs.read()
    (logs.directory / "layer.log").unlink()
    assert logs.read() == []
    assert set(logs.cursor) == {"server.log"}


def test_bytes_that_are_no_text(logs: Logs) -> None:
    logs.write("server.log", b"\xff\xfe caf\xc3\xa9 \x1b[31m\x00\t{{ 1 + 1 }}\r\nafter\n")
    assert logs.read() == [r"server \xff\xfe café \x1b[31m\x00" + "\t{{ 1 + 1 }}", "server after"]


def test_words_of_borg(logs: Logs) -> None:
    entry = {"type": "log_message", "message": "Traceback\n  here\nOSError: gone", "levelname": "ERROR", "msgid": "X"}
    logs.write("borg-2.log", f"{json.dumps(entry)}\nplain words\n")
    assert logs.read() == ["archive Traceback", "archive   here", "archive OSError: gone", "archive plain words"]


def test_a_call_is_bounded(logs: Logs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_session_log, "LIMIT", 100)
    wanted = [f"line {number:03}" for number in range(50)]
    logs.cursor = {}
    logs.write("server.log", "".join(f"{line}\n" for line in wanted))
    logs.write("layer.log", "".join(f"{line}\n" for line in wanted))
    read, rounds = logs.read(), 1
    while logs.result["more"]:
        assert len(logs.result["lines"]) <= 12
        read += logs.read(wait=600)
        rounds += 1
    for source in ("server", "layer"):
        assert [line for line in read if line.startswith(source)] == [f"{source} {line}" for line in wanted]
    assert rounds >= 9


def test_a_line_longer_than_the_bound(logs: Logs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_session_log, "LIMIT", 100)
    logs.cursor = {}
    line = "xé" * 120
    logs.write("server.log", f"{line}\nshort\n")
    read = logs.read()
    while logs.result["more"]:
        read += logs.read()
    assert "".join(text.removeprefix("server ") for text in read) == f"{line}short"
    assert read[-1].endswith("short")


def test_the_beginning_within_the_bound(logs: Logs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_session_log, "LIMIT", 100)
    logs.write("server.log", "".join(f"line {number:03}\n" for number in range(50)))
    assert logs.read(lines=40) == [f"server line {number:03}" for number in range(39, 50)]


def test_waiting_ends_with_a_whole_line(logs: Logs) -> None:
    logs.write("server.log", "half")
    logs.read()

    def write() -> None:
        logs.write("server.log", " a line")
        time.sleep(0.1)
        logs.write("server.log", "\n")

    assert after(write, lambda: logs.read(wait=600)) == ["server half a line"]


def test_waiting_for_a_log_that_begins(logs: Logs) -> None:
    logs.read()
    assert after(lambda: logs.write("server.log", "a\n"), lambda: logs.read(wait=600)) == ["server a"]


def test_waiting_in_vain_costs_no_time_of_the_processor(logs: Logs) -> None:
    begun, used = time.monotonic(), time.process_time()
    assert logs.read(wait=0.6) == []
    assert time.monotonic() - begun > 0.55
    assert time.process_time() - used < 0.2


def test_the_end_of_the_session_ends_the_waiting(logs: Logs) -> None:
    logs.write("server.log", "a\n")
    logs.read()

    def end() -> None:
        logs.write("layer.log", "last words without a newline")
        logs.end()

    assert after(end, lambda: logs.read(wait=600)) in (["layer last words without a newline"], [])
    # Whether the words or the end came first: the end is told.
    assert logs.result["ended"] or (logs.read(wait=600) == [] and logs.result["ended"])


def test_last_words_are_read_from_a_directory_that_is_gone(logs: Logs, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tear-down removes a log between two looks; it was open."""
    logs.write("server.log", "a\n")
    logs.read()
    look = _session_log._Logs._look

    def end_after_a_look(self: Any) -> None:
        look(self)
        if logs.directory.exists():
            logs.write("server.log", "shut down")
            logs.end()

    monkeypatch.setattr(_session_log._Logs, "_look", end_after_a_look)
    assert logs.read(wait=600) == ["server shut down"]
    assert logs.result["ended"]


def test_nobody_left_to_read_ends_the_waiting(logs: Logs) -> None:
    """As when a follower's connection breaks off: no process of it stays behind on the host."""
    code = (
        "import sys\n"
        "from ansible_collections.phpborg.instant_recovery.plugins.module_utils._session.session import Session\n"
        "from ansible_collections.phpborg.instant_recovery.plugins.module_utils._session.logs import read_logs\n"
        "sys.stderr.write('.'); sys.stderr.flush(); read_logs(Session.open(sys.argv[1]), wait=60)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, logs.session.directory],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stderr.read(1) == b"."
        process.stdout.close()
        assert process.wait(timeout=20) == 0


def test_links_and_pipes_are_not_followed(logs: Logs, tmp_path: Path) -> None:
    secret = tmp_path / "secret.log"
    secret.write_text("secret\n")
    (logs.directory / "server.log").symlink_to(secret)
    os.mkfifo(logs.directory / "layer.log")
    (logs.directory / "directory.log").mkdir()
    assert logs.read() == []
    assert logs.result["sources"] == []
    # Neither does a cursor lead there.
    logs.cursor = {"../secret.log": {"inode": secret.stat().st_ino, "offset": 0}}
    assert logs.read() == []


def test_a_directory_of_logs_that_is_a_link(logs: Logs, tmp_path: Path) -> None:
    (tmp_path / "server.log").write_text("secret\n")
    logs.directory.rmdir()
    logs.directory.symlink_to(tmp_path)
    assert logs.read() == []


@pytest.mark.parametrize("cursor", [{"a.log": 5}, {"a.log": {"inode": "x", "offset": 0}}, {"a.log": {"inode": 1}}])
def test_a_cursor_that_is_none_of_ours(logs: Logs, cursor: Any) -> None:
    assert logs.call(cursor=cursor)["msg"].startswith("cursor is not what an earlier call returned.")


def test_numbers_below_zero(logs: Logs) -> None:
    assert "Neither can be less than 0." in logs.call(lines=-1)["msg"]
    assert "Neither can be less than 0." in logs.call(wait=-1)["msg"]


def test_sessions_that_are_not_there(logs: Logs) -> None:
    assert "There is no session 20200101-000000-0000 in" in logs.call(session_id="20200101-000000-0000")["msg"]
    logs.end()
    assert logs.call()["msg"].endswith("has ended (stopped: by a test), and its logs with it.")
    # Who has been following it is told so.
    logs.cursor = {}
    assert logs.read() == []
    assert logs.result["ended"]


def after(action: Callable[[], None], read: Callable[[], list[str]]) -> list[str]:
    """What `read` returns when `action` comes a moment after its beginning; it must not wait longer than it has to."""
    timer = threading.Timer(0.3, action)
    begun = time.monotonic()
    timer.start()
    result = read()
    assert time.monotonic() - begun < 300
    timer.join()
    return result
