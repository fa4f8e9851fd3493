# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A canary passphrase is looked for everywhere that a run can leave it, while it runs and after it."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from ansible_collections.phpborg.instant_recovery.plugins.modules import session

from tests.support.modules import call
from tests.support.playbook import Playbooks, Run
from tests.support.repository import PASSPHRASE, Repository
from tests.support.stack import Stack

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.integration.conftest import Sample

CANARY = PASSPHRASE.encode()


@dataclasses.dataclass(frozen=True)
class Way:
    """A way to hand over the secret. `holders` are the files that have to hold it."""

    playbooks: Playbooks
    options: tuple[str, ...]
    holders: tuple[Path, ...]


@pytest.fixture
def way(request: pytest.FixtureRequest, playbooks: Playbooks, sample: Sample, place: Path) -> Way:
    """Each way there is. What is secret is in a file for -e @file, as the README says, and never on a command line."""
    if request.param == "environment":
        return Way(playbooks, (), ())
    bare = dataclasses.replace(playbooks, environment={"BORG_BASE_DIR": str(sample.repository.base)})
    secret, variables = place / "secret", place / "secrets.json"
    for path in (secret, variables):
        path.touch(mode=0o600)
    secret.write_text(PASSPHRASE)
    values = {"passphrase": PASSPHRASE, "passcommand": f"cat {secret}", "passphrase_file": str(secret)}
    variables.write_text(json.dumps({f"borg_{request.param}": values[request.param]}))
    return Way(bare, ("--extra-vars", f"@{variables}"), (secret, variables))


def start(way: Way, sample: Sample, place: Path, *options: str, **variables: Any) -> Run:
    """A start that leaves the passphrase nowhere. Nothing but a start is given it."""
    log = place / "ansible.log"
    environment = {**way.playbooks.environment, "ANSIBLE_LOG_PATH": str(log)}
    runner = dataclasses.replace(way.playbooks, environment=environment)
    # -vvv prints every module's arguments, --diff every change.
    with watched_processes() as seen:
        run = runner.start("-vvv", "--diff", *options, *way.options, archive=sample.name, **variables)
    # `Run` holds the output, all results as callbacks get them, and the stats.
    assert PASSPHRASE not in json.dumps(dataclasses.asdict(run))
    assert_nothing_holds_it(place, way.playbooks, except_for=way.holders)
    assert log.stat().st_size > 0
    assert any("borg" in command for command in seen), "the sampling saw nothing"
    assert [command for command in seen if PASSPHRASE in command] == []
    return run


@pytest.mark.parametrize("way", ["environment", "passphrase", "passcommand", "passphrase_file"], indirect=True)
def test_check_mode_tells_the_passphrase_nowhere(way: Way, sample: Sample, place: Path) -> None:
    checked = start(way, sample, place, "--check")
    assert checked.returncode == 0, checked.output


@pytest.mark.parametrize("way", ["environment", "passphrase"], indirect=True)
def test_a_start_that_fails_tells_the_passphrase_nowhere(way: Way, sample: Sample, place: Path) -> None:
    """After all has been mounted, by when everybody has had it."""
    failed = start(way, sample, place, settings={"shared_buffers": "a little"})
    assert failed.returncode != 0
    assert "FATAL" in failed.message


@pytest.mark.parametrize("way", ["environment", "passphrase"], indirect=True)
def test_a_session_that_runs_tells_the_passphrase_nowhere(way: Way, sample: Sample, place: Path) -> None:
    """Of a file or a command nobody but Borg's own module knows what it says: see the next test."""
    started = start(way, sample, place)
    assert started.returncode == 0, started.output
    stopped = call(session.main, session_root=str(way.playbooks.session_root), state="absent", session_id="all")
    assert PASSPHRASE not in json.dumps(stopped)


@pytest.mark.parametrize("name", ["passcommand", "passphrase_file"])
def test_what_a_file_or_a_command_says_is_found_nowhere_either(
    playbooks: Playbooks, sample: Sample, place: Path, name: str
) -> None:
    secret = place / "secret"
    secret.touch(mode=0o600)
    secret.write_text(PASSPHRASE)
    given = {"passcommand": f"cat {secret}", "passphrase_file": str(secret)}
    root = Path(str(playbooks.session_root))
    stack, failing = (Stack(root, sample, secret={name: given[name]}) for _number in range(2))
    failing.server["settings"] = {"shared_buffers": "a little"}
    with watched_processes() as seen:
        stack.start()
        with pytest.raises(AssertionError, match="a little") as failed:
            failing.start()
    results = [stack.begun, stack.mounted, stack.served, stack.info(), failing.mounted, str(failed.value)]
    assert_nothing_holds_it(place, playbooks, except_for=(secret,))
    results += [stack.change("absent"), failing.change("absent", error_message=str(failed.value))]
    assert PASSPHRASE not in json.dumps(results)
    assert any("borg" in command for command in seen), "the sampling saw nothing"
    assert [command for command in seen if PASSPHRASE in command] == []


def test_a_wrong_passphrase_is_not_shown(playbooks: Playbooks, sample: Sample, place: Path) -> None:
    """Errors are where secrets slip out."""
    variables = place / "secrets.json"
    variables.write_text(json.dumps({"borg_passphrase": "canary-of-a-typing-error"}))
    run = playbooks.start("-vvv", "--diff", "--extra-vars", f"@{variables}", archive=sample.name)
    assert run.returncode != 0
    assert "passphrase" in run.message
    assert "canary-of-a-typing-error" not in run.output


def test_braces_in_a_passphrase(playbooks: Playbooks, place: Path) -> None:
    """As it is where it is marked, and refused with the cure where Ansible would make another one of it."""
    passphrase = "canary {{ 1 }} {% if 'of' \\ {# braces"
    repository = Repository(directory=place / "braces", base=place / "borg", passphrase=passphrase)
    repository.create()
    repository.archive("empty", "/etc/hostname")
    mine = dataclasses.replace(playbooks, environment={"BORG_BASE_DIR": str(repository.base)})
    text, variables = json.dumps(passphrase), place / "secrets.yml"

    def start() -> Run:
        return mine.start("--extra-vars", f"@{variables}", archive=f"{repository.location}::empty")

    variables.write_text(f"borg_passphrase: !unsafe {text}\n")
    assert "holds no database" in start().message  # it was opened
    variables.write_text(f"borg_passphrase: {text}\n")
    run = start()
    assert run.message.startswith("borg_passphrase has braces in it that Ansible takes for a template: mark it in its")
    assert "canary" not in run.output
    variables.write_text(f"vault: !unsafe {text}\nborg_passphrase: '{{{{ vault }}}}'\n")
    assert "holds no database" in start().message


@contextlib.contextmanager
def watched_processes() -> Iterator[set[str]]:
    """Command lines of all processes that run meanwhile, looked at as often as they need to be."""
    seen: set[str] = set()
    done = threading.Event()

    def watch() -> None:
        # Far below the life of any process that could be given a secret: Borg and a module take longer to be loaded. To
        # look five times as often costs as much as the play.
        while not done.wait(0.1):
            for directory in Path("/proc").glob("[0-9]*"):
                with contextlib.suppress(OSError):
                    seen.add((directory / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace"))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield seen
    finally:
        done.set()
        watcher.join()


def assert_nothing_holds_it(place: Path, playbooks: Playbooks | None = None, *, except_for: tuple[Path, ...]) -> None:
    """No file of the session, its record and logs, of the fact cache, of Ansible's temporary directories."""
    found = []
    roots = [Path(playbooks.session_root)] if playbooks and playbooks.session_root else []
    for top in (place, *roots, Path.home() / ".ansible"):
        for directory, names, files in os.walk(top):
            # The database itself is behind the mounts.
            names[:] = [name for name in names if not os.path.ismount(os.path.join(directory, name))]
            for path in (Path(directory, name) for name in files):
                with contextlib.suppress(OSError):
                    if path.is_file() and path not in except_for and CANARY in path.read_bytes():
                        found.append(path)
    assert found == []


def test_the_search_finds_what_is_there(place: Path) -> None:
    (place / "leak").write_bytes(b"x" + CANARY)
    with pytest.raises(AssertionError):
        assert_nothing_holds_it(place, except_for=())
