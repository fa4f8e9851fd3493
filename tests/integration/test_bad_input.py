# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Input that cannot work: one clear message each, which names the value and the remedy, and a clean host after it.

One play for each stage that can refuse. What else it refuses is tested where that is done: in tests/unit for what the
check of options refuses (test_options.py) and for the host (test_preflight.py), in test_borg_modules.py for
archives, in test_pg_ephemeral.py and test_pg_point_in_time.py for what a server is to be.

That the host is clean is checked by the fixture `playbooks` at the end of every test, too.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
import socket
import struct
import subprocess
from typing import TYPE_CHECKING

from ansible_collections.phpborg.instant_recovery.plugins.module_utils._postgresql.control import crc32c
from ansible_collections.phpborg.instant_recovery.plugins.modules import session as session_module

from tests.integration.conftest import needs_root
from tests.support.host import remains, without
from tests.support.modules import call
from tests.support.playbook import Playbooks, Run
from tests.support.repository import Repository
from tests.support.user import ordinary_user

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.integration.conftest import Sample


def test_a_name_that_is_unknown(playbooks: Playbooks, sample: Sample) -> None:
    """Ansible by itself would pass over it, and the session would be one of another point in time."""
    run = playbooks.start(archive=sample.name, recovery_target_tiem="2026-11-22 09:30")
    refuse(run, "recovery_target_tiem is unknown: did you mean recovery_target_time? Mend it, or add")


def test_a_host_that_is_not_in_the_inventory(playbooks: Playbooks, sample: Sample) -> None:
    """Ansible by itself would say that no host matched, and succeed."""
    run = playbooks.start(archive=sample.name, deployment_location="remote", source_host="db7")
    refuse(run, "source_host db7 is not in the inventory", "-i")


def test_a_value_that_cannot_be_meant(playbooks: Playbooks, sample: Sample) -> None:
    run = playbooks.start(archive=sample.name, driver="btrfs", ttl="soon")
    refuse(run, "^driver btrfs is unknown: choose auto, block or overlayfs.$")


def test_an_archive_that_cannot_be_read(playbooks: Playbooks, sample: Sample) -> None:
    refuse(playbooks.start(archive=sample.name, borg_passphrase="mistyped"), "passphrase", sample.repository.location)


@needs_root
def test_a_host_that_is_not_ready(playbooks: Playbooks, sample: Sample) -> None:
    hidden = dataclasses.replace(playbooks, wrapper=without("/dev/fuse"))
    refuse(hidden.start(archive=sample.name), "/dev/fuse does not exist", "modprobe fuse")


@needs_root
def test_a_session_root_that_cannot_be_used(playbooks: Playbooks, sample: Sample, place: Path) -> None:
    with ordinary_user("ir-readonly") as user:
        run = dataclasses.replace(playbooks, os_user=user.pw_name).start(archive=sample.name)
        root = playbooks.session_root
        assert root is not None
        problem = f"session root {root} cannot be used: {root.parent} is not writable for {user.pw_name}"
    refuse(run, problem)
    assert "/proc/sessions" in refused_session(session_root="/proc/sessions")
    with small_file_system(place / "small"):
        said = refused_session(session_root=str(place / "small" / "sessions"))
    assert f"session root {place}/small/sessions has " in said
    assert "1.0 GiB are needed" in said
    assert "free space" in said


def test_a_port_that_is_taken(place: Path) -> None:
    """The session is refused, before anything is mounted for it."""
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        said = refused_session(session_root=str(place / "sessions"), port=port)
    assert said.startswith(f"port {port} is taken on 127.0.0.1: choose another one")
    assert remains(place / "sessions") == []


def test_a_step_that_fails_undoes_the_others(playbooks: Playbooks, sample: Sample) -> None:
    """The archive is mounted by then."""
    run = playbooks.start(archive=sample.name, log_source=f"{sample.repository.location}::gone-*")
    refuse(run, "gone-\\*", "was undone, and nothing of it is left on localhost")
    assert_failed_record(playbooks, run)


def test_a_server_that_fails_undoes_the_others(playbooks: Playbooks, sample: Sample) -> None:
    """The layer is mounted by then, too. The server itself complains: its log's last lines are in the message."""
    run = playbooks.start(archive=sample.name, settings={"shared_buffers": "a little"})
    refuse(run, "FATAL:  configuration file", "was undone, and nothing of it is left on localhost")
    assert_failed_record(playbooks, run)


def test_a_server_whose_programs_are_missing(playbooks: Playbooks, sample: Sample, place: Path) -> None:
    """Only the files that a data directory is recognised by, which say that it is of PostgreSQL 12."""
    repository = Repository(directory=place / "repository", base=sample.repository.base)
    repository.create()
    markers = [f"{sample.data_directory}/{name}" for name in ("PG_VERSION", "global/pg_control")]
    sample.repository.borg("extract", sample.name, *markers, cwd=place)
    make_older(place / sample.data_directory)
    repository.archive("old", place / sample.data_directory)
    run = playbooks.start(archive=f"{repository.location}::old")
    refuse(run, "The programs of PostgreSQL 12 are not installed", "install the package postgresql-12")
    assert_failed_record(playbooks, run)


def make_older(data: Path) -> None:
    """See src/include/catalog/pg_control.h and catversion.h of PostgreSQL 12."""
    (data / "PG_VERSION").write_text("12\n")
    control = bytearray((data / "global" / "pg_control").read_bytes())
    control[8:16] = struct.pack("<II", 1201, 201909212)
    control[288:292] = struct.pack("<I", crc32c(bytes(control[:288])))
    (data / "global" / "pg_control").write_bytes(control)


def test_a_location_that_is_a_command_or_an_option(playbooks: Playbooks, sample: Sample, place: Path) -> None:
    """What a survey asks for ran a command as root, or had Borg write over a file, in check mode as well."""
    made = place / "made"
    slashless = str(made).replace("/", "\\57")
    command = f"ssh://-oProxyCommand=id >$(printf '{slashless}');false/repo"
    environment = {**playbooks.environment, "BORG_REPO": sample.repository.location}
    open_to_it = dataclasses.replace(playbooks, environment=environment)
    attempts: list[tuple[str, str, list[str]]] = [
        ("archive", f"{command}::latest", []),
        ("repository", f"--debug-profile={made}", ["--check"]),
        ("log_source", f"{command}::latest", []),
    ]
    for variable, value, options in attempts:
        run = open_to_it.start(*options, **{"archive": sample.name, variable: value})
        refuse(run, f"{variable}: ", "is no repository, because", "Write a path, ssh://user@host/path")
        asked = {task.action for task in run.tasks if task.action.startswith("phpborg")}
        assert asked == {"phpborg.instant_recovery.session_options"}, "no host was asked"
    assert not made.exists()


def test_stop_of_an_unknown_id(playbooks: Playbooks) -> None:
    run = playbooks.stop("20200101-000000-0000")
    refuse(run, "No session 20200101-000000-0000 is known on localhost", "instant_recovery_list")
    assert run.stats["instant_recovery_stopped"] == []


@needs_root
def test_check_mode_on_a_bare_host(playbooks: Playbooks, sample: Sample) -> None:
    """Where nothing is installed, check mode says what a real run would install or stop at, and succeeds."""
    tools = ("/usr/bin/borg", "/usr/bin/fusermount3", "/usr/lib/python3/dist-packages", "/usr/lib/postgresql")
    bare = dataclasses.replace(playbooks, wrapper=without(*tools))
    allowed = bare.start("--check", archive=sample.name, install_packages=True)
    assert allowed.returncode == 0, allowed.output
    assert "Would install on localhost: borgbackup fuse3 python3-pyfuse3" in allowed.output
    told = bare.start("--check", archive=sample.name)
    assert told.returncode == 0, told.output
    assert "borg is not installed: install the package borgbackup" in told.output
    assert remains(str(playbooks.session_root)) == []
    refuse(bare.start(archive=sample.name), "borg is not installed", "install_packages=true")


@needs_root
def test_check_mode_without_the_server(playbooks: Playbooks, sample: Sample) -> None:
    bare = dataclasses.replace(playbooks, wrapper=without("/usr/lib/postgresql"))
    run = bare.start("--check", archive=sample.name, install_packages=True)
    assert run.returncode == 0, run.output
    assert f"Would install on localhost: postgresql-{sample.major}" in run.output
    refuse(bare.start(archive=sample.name), f"postgresql-{sample.major}", "install_packages=true")


def refused_session(**options: object) -> str:
    """What the module says that makes a session's record."""
    result = call(session_module.main, engine="postgresql", **options)
    assert result["failed"]
    return str(result["msg"])


def refuse(run: Run, *said: str) -> None:
    """The play failed with one message, in which all of `said` (regular expressions or plain text) is found."""
    assert run.returncode not in (0, None), run.output
    assert "Traceback" not in run.output, run.output
    for text in said:
        assert text in run.message or re.search(text, run.message), f"{text!r} is not in {run.message!r}\n{run.output}"
    failed = [task for task in run.tasks if task.status == "failed"]
    # The failure of a step inside the session is followed by the one that tells what became of it.
    assert len(failed) <= 2, run.output


def assert_failed_record(playbooks: Playbooks, run: Run) -> None:
    """The host remembers the session and why it failed."""
    begun = next(task.result["session"] for task in run.tasks if task.action.endswith(".session"))
    again = call(session_module.main, session_root=str(playbooks.session_root), state="absent", session_id=begun["id"])
    assert not again["changed"], again
    record = again["session"]
    assert record["status"] == "failed"
    assert record["error_message"] in run.message


@contextlib.contextmanager
def small_file_system(directory: Path) -> Iterator[None]:
    """A file system of 16 MiB."""
    directory.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "none", str(directory)], check=True, timeout=30)
    try:
        yield
    finally:
        subprocess.run(["umount", str(directory)], check=True, timeout=30)
