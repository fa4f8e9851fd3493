# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The Python API over the real ansible-runner.

How runs are made, cut off and cleaned up is tested with a stand-in collection, whose modules can be held in flight;
a session is a file there. The last tests use the collection itself.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import signal
import subprocess
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from instant_recovery import (
    CancelledError,
    ConnectError,
    InstantRecovery,
    PlaybookError,
    Progress,
    RunTimeoutError,
    SessionNotFoundError,
    TaskError,
    UnreachableError,
    UsageError,
)
from tests.integration.conftest import needs_root
from tests.support.clock import wait_until
from tests.support.cluster import DATABASE
from tests.support.host import free_port, is_listening, remains
from tests.support.playbook import packed_once
from tests.support.sshd import Sshd

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.integration.conftest import Sample

CANARY = "canary-5d1f7a-in-the-api"

# Instead of ssh's own reason, where ssh ends while Ansible still writes to it (a race of Ansible's).
WORDS_LOST = "what ssh said is lost"

MODULE = """
import os
from ansible.module_utils.basic import AnsibleModule

def main():
    module = AnsibleModule(argument_spec=dict(
        session_root=dict(type='path', required=True),
        session_id=dict(type='str'),
        state=dict(type='str', default='present'),
        passphrase=dict(type='str', no_log=True),
        hold=dict(type='path'),
        problem=dict(type='str'),
    ))
    path = os.path.join(module.params['session_root'], module.params['session_id'] or '')
    if module.params['hold']:
        # In flight until the test says so.
        os.write(os.open(module.params['hold'] + '.begun', os.O_WRONLY), b'.')
        os.read(os.open(module.params['hold'] + '.go', os.O_RDONLY), 1)
    if module.params['problem']:
        module.fail_json(msg=module.params['problem'], command=['borg', 'mount'], rc=2, stderr='borg: no')
    existed = os.path.exists(path)
    if module.params['state'] == 'absent' and existed:
        os.unlink(path)
    elif module.params['state'] == 'present':
        open(path, 'x').close()
    module.exit_json(changed=True, existed=existed, passphrase_seen=module.params['passphrase'] == '%s')

main()
"""

START = """
- name: Start
  hosts: "{{ source_host | default('localhost') }}"
  gather_facts: false
  vars:
    ansible_pipelining: true
    ansible_python_interpreter: "{{ ansible_playbook_python }}"
  tasks:
    - block:
        - name: Look into the archive
          phpborg.instant_recovery.borg_archive_info: {session_root: "{{ session_root }}", state: info}
        - name: Record the session
          phpborg.instant_recovery.session: {session_root: "{{ session_root }}", session_id: "{{ session_id }}"}
        - name: Mount the archive
          phpborg.instant_recovery.borg_mount:
            session_root: "{{ session_root }}"
            state: mounted
            passphrase: "{{ borg_passphrase | default(omit) }}"
            hold: "{{ hold | default(omit) }}"
            problem: "{{ problem | default(omit) }}"
          register: mounted
        - ansible.builtin.set_stats:
            data:
              instant_recovery_session:
                id: "{{ session_id }}"
                status: active
                host: "{{ inventory_hostname }}"
                archive: {repository: /repo, name: "{{ archive }}"}
                timings: {mount: 0.5}
                passphrase_seen: "{{ mounted.passphrase_seen }}"
      rescue:
        - name: Undo
          phpborg.instant_recovery.session:
            {session_root: "{{ session_root }}", session_id: "{{ session_id }}", state: absent}
        - name: Say what was wrong
          ansible.builtin.fail:
            msg: "Start failed: {{ ansible_failed_result.msg }}"
"""

STOP = """
- name: Stop
  hosts: localhost
  gather_facts: false
  vars:
    ansible_python_interpreter: "{{ ansible_playbook_python }}"
  tasks:
    - name: Stop the session
      phpborg.instant_recovery.session:
        {session_root: "{{ session_root }}", session_id: "{{ session_id }}", state: absent}
      register: absent
    - ansible.builtin.set_stats:
        data:
          instant_recovery_stopped: "{{ [{'id': session_id, 'status': 'stopped'}] if absent.existed else [] }}"
    - name: Refuse an unknown id
      ansible.builtin.fail:
        msg: No host knows it
      when: not absent.existed
"""


@pytest.fixture
def collections(tmp_path: Path) -> Path:
    """A directory with the stand-in collection."""
    collection = tmp_path / "collections" / "ansible_collections" / "phpborg" / "instant_recovery"
    (collection / "plugins" / "modules").mkdir(parents=True)
    (collection / "playbooks").mkdir()
    for name in ("borg_archive_info", "session", "borg_mount"):
        (collection / "plugins" / "modules" / f"{name}.py").write_text(MODULE % CANARY)
    for name, text in {"start": START, "stop": STOP}.items():
        (collection / "playbooks" / f"instant_recovery_{name}.yml").write_text(text)
    return tmp_path / "collections"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The stand-in's session root: a file per session."""
    directory = tmp_path / "sessions"
    directory.mkdir()
    return directory


@pytest.fixture(autouse=True)
def _packed_once(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client's plays pack their modules once for all tests; those of the stand-in have the names of the real ones."""
    environment = packed_once("stand-in") if "collections" in request.fixturenames else packed_once()
    for variable, value in environment.items():
        monkeypatch.setenv(variable, value)


@pytest.fixture
def client(collections: Path, root: Path) -> Iterator[InstantRecovery]:
    """A client of the stand-in; afterwards no private directory is left, whatever the test did."""
    yield InstantRecovery(session_root=str(root), collections_path=collections)
    assert private_directories() == []


class Hold:
    """Keeps the stand-in's borg_mount in flight."""

    def __init__(self, path: Path) -> None:
        self.path = path
        for suffix in (".begun", ".go"):
            os.mkfifo(f"{path}{suffix}")
        # Opened for both, so that neither side waits for the other.
        self._begun, self._go = (os.open(f"{path}{suffix}", os.O_RDWR) for suffix in (".begun", ".go"))

    @contextlib.contextmanager
    def then(self, action: Callable[[], None], *, seconds: float = 0.0) -> Iterator[None]:
        """In a thread beside the body: wait for the module, act, and some seconds later let the module go on."""
        over = threading.Event()

        def run() -> None:
            select.select([self._begun], [], [])
            if not over.is_set():
                action()
                over.wait(seconds)
            os.write(self._go, b".")

        thread = threading.Thread(target=run)
        thread.start()
        try:
            yield
        finally:
            over.set()
            os.write(self._begun, b".")
            thread.join()

    def close(self) -> None:
        os.close(self._begun)
        os.close(self._go)


@pytest.fixture
def hold(tmp_path: Path) -> Iterator[Hold]:
    with contextlib.closing(Hold(tmp_path / "hold")) as hold:
        yield hold


def held(client: InstantRecovery, hold: Hold) -> InstantRecovery:
    client._variables["hold"] = str(hold.path)
    return client


def private_directories() -> list[str]:
    return [
        str(path) for parent in ("/dev/shm", "/tmp") for path in Path(parent).glob(f"instant-recovery-{os.getpid()}-*")
    ]


def test_start_and_stop(client: InstantRecovery, root: Path) -> None:
    seen: list[Progress] = []
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    environment = dict(os.environ)
    with client.start("db-{{ 1 + 1 }}", borg_passphrase=CANARY, progress=seen.append) as session:
        assert [path.name for path in root.iterdir()] == [session.id]
        assert (session.status, session.host, session.timings) == ("active", "localhost", {"mount": 0.5})
        # Values are data, never templates.
        assert session.archive is not None
        assert session.archive.name == "db-{{ 1 + 1 }}"
        assert session.record["passphrase_seen"] is True
    assert list(root.iterdir()) == []
    assert [progress.step for progress in seen] == ["prepare", "archive", "session", "mount", "ready"]
    assert [progress.fraction for progress in seen] == sorted(progress.fraction for progress in seen)
    assert seen[-1].fraction == 1.0
    assert seen[-1].elapsed > seen[0].elapsed
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert dict(os.environ) == environment


def test_failed_task(client: InstantRecovery, root: Path) -> None:
    client._variables["problem"] = "Passphrase is wrong"
    with pytest.raises(TaskError) as caught:
        client.start("db")
    error = caught.value
    assert str(error) == "localhost: Start failed: Passphrase is wrong"
    assert (error.host, error.task, error.message) == (
        "localhost",
        "Mount the archive",
        "Start failed: Passphrase is wrong",
    )
    assert error.details == {"command": ["borg", "mount"], "rc": 2, "stderr": "borg: no"}
    assert list(root.iterdir()) == []


def test_timeout(client: InstantRecovery, root: Path, hold: Hold) -> None:
    with hold.then(lambda: None, seconds=6), pytest.raises(RunTimeoutError, match="within 5 s"):
        held(client, hold).start("db", timeout=5)
    assert list(root.iterdir()) == []


def test_cancel(client: InstantRecovery, root: Path, hold: Hold) -> None:
    cancel = threading.Event()
    with hold.then(cancel.set, seconds=1), pytest.raises(CancelledError):
        held(client, hold).start("db", cancel=cancel)
    assert list(root.iterdir()) == []


def test_cancel_of_a_long_module(client: InstantRecovery, root: Path, hold: Hold) -> None:
    cancel = threading.Event()
    # It would go on for ever.
    with hold.then(cancel.set, seconds=1e6), pytest.raises(CancelledError):
        held(client, hold).start("db", cancel=cancel)
    assert list(root.iterdir()) == []


def test_ctrl_c(client: InstantRecovery, root: Path, hold: Hold) -> None:
    with hold.then(lambda: os.kill(os.getpid(), signal.SIGINT), seconds=1), pytest.raises(KeyboardInterrupt):
        held(client, hold).start("db")
    assert list(root.iterdir()) == []


@pytest.mark.parametrize("step", ["prepare", "mount", "ready"])
def test_raising_callback(client: InstantRecovery, root: Path, step: str) -> None:
    def progress(progress: Progress) -> None:
        if progress.step == step:
            raise ZeroDivisionError(step)

    with pytest.raises(ZeroDivisionError, match=step):
        client.start("db", progress=progress)
    assert list(root.iterdir()) == []


def test_two_threads(client: InstantRecovery, root: Path) -> None:
    failed: list[BaseException] = []

    def use(archive: str) -> None:
        try:
            with client.start(archive) as session:
                assert session.archive is not None
                assert session.archive.name == archive
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=use, args=(f"db-{number}",)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert list(root.iterdir()) == []


@pytest.mark.parametrize("source", ["argument", "environment"])
def test_secret_is_nowhere(
    client: InstantRecovery,
    hold: Hold,
    source: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("DEBUG")
    if source == "environment":
        monkeypatch.setenv("BORG_PASSPHRASE", CANARY)
    found: dict[str, list[str]] = {}

    def look() -> None:
        found["secret"] = places_with(CANARY)
        found["control"] = places_with("instant_recovery_start")
        (directory,) = private_directories()
        found["environment"] = [str(path) for path in Path(directory).rglob("command")]
        found["mode"] = [oct(Path(directory).stat().st_mode)]

    passphrase = CANARY if source == "argument" else None
    with hold.then(look):
        session = held(client, hold).start("db", borg_passphrase=passphrase)
    session.stop()
    assert session.record["passphrase_seen"] is True
    assert found["control"]
    assert found["secret"] == []
    assert found["environment"] == []
    assert found["mode"] == ["0o40700"]
    assert places_with(CANARY) == []
    assert CANARY not in caplog.text


def places_with(canary: str, *directories: Path, environments: bool = True) -> list[str]:
    """Files of runs and in `directories`, and argv and environments of all processes but this one, with the text."""
    needle = canary.encode()
    places = list(Path("/proc").glob("[0-9]*/cmdline"))
    if environments:
        places += [path for path in Path("/proc").glob("[0-9]*/environ") if path.parent.name != str(os.getpid())]
    for top in (*private_directories(), Path("~/.ansible").expanduser(), *directories):
        for directory, names, files in os.walk(top):
            # The database itself is behind the mounts.
            names[:] = [name for name in names if not os.path.ismount(os.path.join(directory, name))]
            places += [path for path in (Path(directory, name) for name in files) if path.is_file()]
    found = []
    for place in places:
        with contextlib.suppress(OSError):
            if needle in place.read_bytes():
                found.append(str(place))
    return found


def test_stop_of_unknown_id(client: InstantRecovery) -> None:
    with pytest.raises(SessionNotFoundError, match="No host knows it"):
        client.stop("20260101-000000-0000")


def test_unreachable_host(collections: Path, root: Path, caplog: pytest.LogCaptureFixture) -> None:
    inventory = {"all": {"hosts": {"gone": {"ansible_host": "127.0.0.1", "ansible_port": 1}}}}
    client = InstantRecovery(inventory, session_root=str(root), collections_path=collections)
    with pytest.raises(UnreachableError) as caught:
        client.start("db", source_host="gone")
    assert caught.value.host == "gone"
    assert re.search(f"Connection refused|{WORDS_LOST}", caught.value.message)


@needs_root
def test_unknown_host_key(collections: Path, root: Path, place: Path) -> None:
    # ansible-runner by itself would switch the check off, or wait for an answer for ever.
    with Sshd(directory=place / "sshd", users=["root"]) as sshd:
        nothing_known = f"-o UserKnownHostsFile={place}/none -o GlobalKnownHostsFile={place}/none"
        host = {**sshd.variables("root"), "ansible_ssh_common_args": nothing_known}
        client = InstantRecovery(
            {"all": {"hosts": {"db1": host}}}, session_root=str(root), collections_path=collections
        )
        with pytest.raises(UnreachableError, match=f"Host key verification failed|{WORDS_LOST}"):
            client.start("db", source_host="db1")
        assert "Accepted publickey" not in (sshd.directory / "log").read_text()


def test_ansible_gives_up(collections: Path, client: InstantRecovery) -> None:
    playbook = collections / "ansible_collections/phpborg/instant_recovery/playbooks/instant_recovery_start.yml"
    playbook.write_text("- hosts: [")
    with pytest.raises(PlaybookError, match=r"(?i)yaml|flow sequence"):
        client.start("db")


def test_missing_inventory(tmp_path: Path, collections: Path) -> None:
    with pytest.raises(UsageError, match="no inventory"):
        InstantRecovery(tmp_path / "hosts.yml", collections_path=collections)


def test_missing_collection(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="collections_path"):
        InstantRecovery(collections_path=tmp_path)


@pytest.fixture
def real(place: Path, sample: Sample, monkeypatch: pytest.MonkeyPatch) -> Iterator[InstantRecovery]:
    """A client of this checkout's collection; afterwards no session of its own root is left."""
    monkeypatch.setenv("BORG_BASE_DIR", str(sample.repository.base))
    client = InstantRecovery(session_root=str(place / "sessions"))
    yield client
    left = remains(place / "sessions")
    if left:
        client.stop_all()
    assert left == []
    assert private_directories() == []


def test_query_an_archive(real: InstantRecovery, sample: Sample, place: Path) -> None:
    passphrase = sample.repository.passphrase
    leaks: set[str] = set()

    def look(progress: Progress) -> None:
        # Borg itself is given it in its environment.
        leaks.update(places_with(passphrase, place / "sessions", environments=False))

    with real.start(sample.name, borg_passphrase=passphrase, progress=look) as session:
        with contextlib.closing(session.connect(DATABASE)) as connection, connection.cursor() as cursor:
            cursor.execute('select count(*) from "Order Lines"')
            rows = sample.tables[f'{DATABASE}.public."Order Lines"'].rows
            assert cursor.fetchone() == (rows,)
        assert [(other.id, other.status) for other in real.list()] == [(session.id, "active")]
        assert session.archive is not None
        assert session.archive.id == sample.archive_id
        assert places_with(passphrase, place / "sessions", environments=False) == []
        assert leaks == set()
    # Another process may have stopped it already.
    assert session.stop().status == "stopped"


@pytest.mark.parametrize("step", ["mount", "server"])
def test_cut_off(real: InstantRecovery, sample: Sample, step: str) -> None:
    def interrupt(progress: Progress) -> None:
        if progress.step == step:
            raise KeyboardInterrupt

    # What is left is judged by the fixture.
    with pytest.raises(KeyboardInterrupt):
        real.start(sample.name, borg_passphrase=sample.repository.passphrase, progress=interrupt)


def test_wrong_passphrase(real: InstantRecovery, sample: Sample) -> None:
    with pytest.raises(TaskError, match=r"(?i)passphrase") as caught:
        real.start(sample.name, borg_passphrase="wrong")
    assert caught.value.host == "localhost"
    assert caught.value.details["rc"] == 2


@needs_root
def test_remote_session(real: InstantRecovery, sample: Sample, place: Path) -> None:
    with Sshd(directory=place / "sshd", users=["root"]) as sshd:
        client = InstantRecovery(
            {"all": {"hosts": {"db1": sshd.variables("root")}}}, session_root=str(place / "sessions")
        )
        with client.start(
            sample.name,
            deployment_location="remote",
            source_host="db1",
            borg_passphrase=sample.repository.passphrase,
            accept_relocated=True,  # root has opened other tests' copies of this repository
        ) as session:
            with pytest.raises(ConnectError, match="ssh -N -L") as caught:
                session.connect()
            with tunnel(str(caught.value), sshd) as port:
                connection = session.connect(DATABASE, host="127.0.0.1", port=port)
                with contextlib.closing(connection), connection.cursor() as cursor:
                    cursor.execute("select 1")
                    assert cursor.fetchone() == (1,)


@contextlib.contextmanager
def tunnel(advice: str, sshd: Sshd) -> Iterator[int]:
    """The tunnel that the message advises, to the test's own sshd."""
    found = re.search(r"ssh -N -L (\d+):(\S+) db1 ", advice)
    assert found is not None
    port = free_port()  # here both ends are on one host
    options = ["-p", str(sshd.port), "-i", str(sshd.key), "-o", f"UserKnownHostsFile={sshd.directory}/known_hosts"]
    options += ["-o", "ExitOnForwardFailure=yes", "-o", "BatchMode=yes", "-F", "none"]
    with subprocess.Popen(["ssh", *options, "-N", "-L", f"{port}:{found[2]}", "root@127.0.0.1"]) as ssh:
        try:
            wait_until(lambda: ssh.poll() is not None or is_listening(port))
            assert ssh.poll() is None
            yield port
        finally:
            ssh.terminate()
