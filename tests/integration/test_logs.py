# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The logs of real sessions: through the playbook and the Python API, here and on another host, live."""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import subprocess
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from instant_recovery import InstantRecovery, LogLine, RunTimeoutError, Session, SessionNotFoundError, TaskError
from tests.integration.conftest import needs_root
from tests.support.clock import PATIENCE
from tests.support.host import remains
from tests.support.playbook import CHECKOUT, Playbooks, packed_once
from tests.support.sshd import Sshd
from tests.support.stack import Stack

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    from tests.integration.conftest import Sample


@pytest.fixture(scope="module")
def root(shared_place: Path, sample: Sample) -> Iterator[Path]:
    """A session root; afterwards nothing is left of sessions."""
    root = shared_place / "log-sessions"
    with pytest.MonkeyPatch.context() as patch:
        for variable, value in {"BORG_BASE_DIR": str(sample.repository.base), **packed_once()}.items():
            patch.setenv(variable, value)
        yield root
    assert remains(root) == []


@pytest.fixture(scope="module")
def client(root: Path) -> InstantRecovery:
    return InstantRecovery(session_root=str(root))


@pytest.fixture(scope="module")
def session(client: InstantRecovery, root: Path, sample: Sample) -> Iterator[Session]:
    """A session that tests leave running."""
    with made(client, root, sample) as session:
        yield session


@contextlib.contextmanager
def made(client: InstantRecovery, root: Path, sample: Sample) -> Iterator[Session]:
    """A session of the modules, which takes less time than a play; ended if it is there still."""
    stack = Stack(root, sample, readers=1)
    try:
        stack.start()
        (session,) = (one for one in client.list() if one.id == stack.id)
        yield session
    finally:
        stack.change("absent")


@pytest.fixture(autouse=True)
def _no_followers(root: Path) -> Iterator[None]:
    yield
    assert followers(root) == []


class Reader:
    """Reads a generator of lines in a thread, so that a test can wait for a line with a limit."""

    def __init__(self, lines: Generator[LogLine, None, None]) -> None:
        self._lines = lines
        self._queue: queue.SimpleQueue[LogLine | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        try:
            for line in self._lines:
                self._queue.put(line)
        finally:
            self._queue.put(None)

    def until(self, text: str, *, timeout: float = PATIENCE) -> None:
        """Wait for a line with this text."""
        line = LogLine(source="", text="")
        while text not in line.text:
            taken = self._queue.get(timeout=timeout)
            assert taken is not None, "the logs have ended"
            line = taken

    def end(self, *, timeout: float) -> list[LogLine]:
        """The rest, once the logs have ended by themselves."""
        self._thread.join(timeout)
        assert not self._thread.is_alive()
        rest = []
        while (line := self._queue.get_nowait()) is not None:
            rest.append(line)
        return rest


def test_follow_and_end_with_the_session(client: InstantRecovery, root: Path, sample: Sample) -> None:
    with made(client, root, sample) as session:
        reader = Reader(session.logs(follow=True, timeout=120))
        reader.until("database system is ready")
        for column in ("{{ 1 + 1 }}", "another"):
            fail(session, column)
            reader.until(f'column "{column}" does not exist')
        session.stop()
        rest = reader.end(timeout=PATIENCE)
        assert {line.source for line in rest} <= {"server", "layer", "archive", "keeper"}
        # Nothing of it can be read any more, and it is told why.
        with pytest.raises(TaskError, match=rf"Session {session.id} has ended \(stopped\), and its logs with it"):
            next(client.logs(session))


def test_the_last_lines_of_one_source(client: InstantRecovery, session: Session, root: Path, place: Path) -> None:
    fail(session, "last")
    found = list(client.logs(session.id, lines=2, sources=["server"]))
    assert [line.source for line in found] == ["server", "server"]
    assert 'column "last" does not exist' in found[0].text
    assert "STATEMENT:" in found[1].text

    # As people see it: one line each, and nothing of JSON.
    playbooks = Playbooks(directory=place / "ansible", session_root=root)
    variables = {"session_id": session.id, "sources": "server", "follow": True, "follow_for": "1s"}
    run = playbooks.run(str(CHECKOUT / "playbooks/instant_recovery_logs.yml"), **variables)
    assert run.returncode == 0
    assert not run.changed
    assert f"\nserver | {found[0].text}\nserver | {found[1].text}\n" in run.output
    assert run.stats["instant_recovery_log_hosts"] == ["localhost"]

    with pytest.raises(SessionNotFoundError, match="No session 20200101-000000-0000 is known on"):
        next(client.logs("20200101-000000-0000"))
    with pytest.raises(TaskError, match=r"has no log of sever\. It has logs of: archive, keeper, layer, server"):
        next(client.logs(session, sources=["sever"]))


def test_leaving_in_the_middle(client: InstantRecovery, session: Session, root: Path) -> None:
    for line in (lines := client.logs(session, follow=True)):
        assert line.text
        break
    lines.close()
    assert followers(root) == []

    lines = client.logs(session, lines=1, sources=["server"], follow=True)
    next(lines)
    threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        list(lines)
    assert followers(root) == []

    with pytest.raises(RunTimeoutError):
        list(client.logs(session, lines=0, follow=True, timeout=4.0))


@needs_root
def test_another_host(session: Session, root: Path, place: Path) -> None:
    with Sshd(directory=place / "sshd", users=["root"]) as sshd:
        # The same machine by two names. The first one counts, and each line comes once.
        hosts = {"db1": sshd.variables("root")}
        client = InstantRecovery({"all": {"hosts": hosts}}, session_root=str(root))
        logs = client.logs(session.id, lines=1, sources=["server"], follow=True, timeout=120)
        with contextlib.closing(logs) as lines:
            first = next(lines)
            fail(session, "far away")
            found = [next(lines), next(lines)]
            assert 'column "far away" does not exist' in found[0].text
            assert "STATEMENT:" in found[1].text
            assert first not in found
        assert "Accepted publickey for root" in (sshd.directory / "log").read_text()


def fail(session: Session, column: str) -> None:
    """Make the server log an error. Whoever runs it here is the server's own superuser or root."""
    assert session.connection_string is not None
    environment = {**os.environ, "PGSERVICEFILE": str(session.client_file)}
    done = subprocess.run(
        ["psql", "-X", "service=instant_recovery", "-c", f'select "{column}"'],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "does not exist" in done.stderr


def followers(root: Path) -> list[str]:
    """Private directories of runs of this process, Ansible's processes in them, and modules that wait for changes."""
    name = f"instant-recovery-{os.getpid()}-"
    found = [str(path) for top in ("/dev/shm", "/tmp") for path in Path(top).glob(f"{name}*")]
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            files = [os.readlink(link) for link in (process / "fd").iterdir()]
            waits = "anon_inode:inotify" in files and any(file.startswith(f"{root}/") for file in files)
            if name in command or waits:
                found.append(f"{process.name}: {command}")
    return found
