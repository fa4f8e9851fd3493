# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Input that cannot work: one clear message each, which names the value and the remedy, and a clean host after it.

That the host is clean is checked by the fixture `playbooks` at the end of every test, too.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
import shutil
import socket
import struct
import subprocess
from typing import TYPE_CHECKING

import pytest
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._pg_control import crc32c

from tests.integration.conftest import needs_root
from tests.support.host import closed_fuse, remains, without
from tests.support.playbook import Playbooks, Run
from tests.support.repository import Repository
from tests.support.user import ordinary_user

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.integration.conftest import Sample


@dataclasses.dataclass(frozen=True)
class OddArchives:
    """A repository with archives that no session can be started from, and the paths of the two clusters in one."""

    repository: Repository
    clusters: tuple[str, str]


@pytest.fixture(scope="module")
def odd(shared_place: Path, sample: Sample) -> OddArchives:
    """Only the files that a data directory is recognised by, taken from the sample's archive."""
    top = shared_place / "odd"
    repository = Repository(directory=top / "repository", base=sample.repository.base)
    top.mkdir()
    repository.create()
    markers = [f"{sample.data_directory}/{name}" for name in ("PG_VERSION", "global/pg_control")]
    sample.repository.borg("extract", sample.name, *markers, cwd=top)
    (top / "nothing").mkdir()
    (top / "nothing" / "readme.txt").write_text("no database here")
    (top / "dump").mkdir()
    (top / "dump" / "shop.sql").write_text("--\n-- PostgreSQL database dump\n--\n\nSET statement_timeout = 0;\n")
    clusters = (top / "two" / "first", top / "two" / "second")
    for cluster in clusters:
        shutil.copytree(top / sample.data_directory, cluster)
    shutil.copytree(clusters[0], top / "old")
    _make_older(top / "old")
    for name in ("nothing", "dump", "two", "old"):
        repository.archive(name, top / name)
    return OddArchives(repository=repository, clusters=(str(clusters[0])[1:], str(clusters[1])[1:]))


def _make_older(data: Path) -> None:
    """Have a data directory say that it is of PostgreSQL 12: src/include/catalog/pg_control.h, catversion.h there."""
    (data / "PG_VERSION").write_text("12\n")
    control = bytearray((data / "global" / "pg_control").read_bytes())
    control[8:16] = struct.pack("<II", 1201, 201909212)
    control[288:292] = struct.pack("<I", crc32c(bytes(control[:288])))
    (data / "global" / "pg_control").write_bytes(control)


def test_wrong_passphrase(playbooks: Playbooks, sample: Sample) -> None:
    refuse(playbooks.start(archive=sample.name, borg_passphrase="mistyped"), "passphrase", sample.repository.location)


def test_missing_passphrase(playbooks: Playbooks, sample: Sample) -> None:
    bare = dataclasses.replace(playbooks, environment={"BORG_BASE_DIR": str(playbooks.directory / "borg")})
    refuse(bare.start(archive=sample.name), "passphrase", sample.repository.location)


def test_passphrase_that_is_part_of_a_path(playbooks: Playbooks, odd: OddArchives, place: Path) -> None:
    """Ansible would mask the path, and what the later steps are told would be asterisks."""
    repository = Repository(directory=place / "masked" / "repository", base=place / "borg", passphrase="masked")
    repository.directory.parent.mkdir()
    repository.create()
    repository.archive("one", f"/{odd.clusters[0]}")
    own = dataclasses.replace(playbooks, environment=repository.environment)
    refuse(own.start(archive=f"{repository.location}::one"), "The passphrase is also a part", "borg_passphrase_file")


def test_two_secrets(playbooks: Playbooks, sample: Sample) -> None:
    run = playbooks.start(archive=sample.name, borg_passphrase="x", borg_passcommand="echo y")
    refuse(run, "More than one of borg_passphrase, borg_passcommand")


def test_repository_not_there(playbooks: Playbooks, place: Path) -> None:
    refuse(playbooks.start(archive=f"{place}/absent::latest"), f"{place}/absent")


def test_archive_not_there(playbooks: Playbooks, sample: Sample) -> None:
    refuse(playbooks.start(archive=f"{sample.repository.location}::absent"), "absent", sample.archive)


def test_glob_without_match(playbooks: Playbooks, sample: Sample) -> None:
    refuse(playbooks.start(archive=f"{sample.repository.location}::db7-*"), "db7-*", sample.archive)


def test_latest_of_nothing(playbooks: Playbooks, sample: Sample, place: Path) -> None:
    empty = Repository(directory=place / "empty", base=sample.repository.base)
    empty.create()
    refuse(playbooks.start(archive="latest", repository=empty.location), empty.location, "no archive")


def test_no_repository_named(playbooks: Playbooks) -> None:
    refuse(playbooks.start(archive="sample"), "archive sample names no repository", "REPOSITORY::NAME")


def test_no_archive_named(playbooks: Playbooks) -> None:
    refuse(playbooks.start(), "archive is not given", "REPOSITORY::NAME")


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
        ("wal_source", f"{command}::latest", []),
    ]
    for variable, value, options in attempts:
        run = open_to_it.start(*options, **{"archive": sample.name, variable: value})
        refuse(run, f"{variable}: ", "is no repository, because", "Write a path, ssh://user@host/path")
        assert [task.action for task in run.tasks if task.action.startswith("phpborg")] == [], "no host was asked"
    assert not made.exists()


def test_two_repositories_named(playbooks: Playbooks, sample: Sample) -> None:
    run = playbooks.start(archive=sample.name, repository="/elsewhere")
    refuse(run, f"archive {sample.name} and repository /elsewhere name different repositories")


def test_archive_without_database(playbooks: Playbooks, odd: OddArchives) -> None:
    refuse(playbooks.start(archive=f"{odd.repository.location}::nothing"), "nothing holds no database")


def test_archive_with_a_dump_only(playbooks: Playbooks, odd: OddArchives) -> None:
    refuse(playbooks.start(archive=f"{odd.repository.location}::dump"), "dump", "shop.sql")


def test_two_clusters_and_no_choice(playbooks: Playbooks, odd: OddArchives) -> None:
    refuse(playbooks.start(archive=f"{odd.repository.location}::two"), "data_directory", *odd.clusters)


def test_data_directory_not_in_the_archive(playbooks: Playbooks, sample: Sample) -> None:
    run = playbooks.start(archive=sample.name, data_directory="srv/absent")
    refuse(run, "srv/absent", sample.data_directory)


def test_server_of_that_version_missing(playbooks: Playbooks, odd: OddArchives) -> None:
    run = playbooks.start(archive=f"{odd.repository.location}::old")
    refuse(run, "The programs of PostgreSQL 12 are not installed", "install the package postgresql-12")
    assert_failed_record(playbooks, run)


def test_port_taken(playbooks: Playbooks, sample: Sample) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        run = playbooks.start(archive=sample.name, port=port)
    refuse(run, f"port {port} is taken on 127.0.0.1: choose another one")
    assert not any(task.action.endswith(".borg_mount") for task in run.tasks), "said before anything is mounted"


@pytest.mark.parametrize("port", ["65536", "-1", "80", "http"])
def test_port_out_of_range(playbooks: Playbooks, sample: Sample, port: str) -> None:
    refuse(playbooks.start(archive=sample.name, port=port), f"port {port} is no port", "1024 to 65535")


@needs_root
def test_dev_fuse_missing(playbooks: Playbooks, sample: Sample) -> None:
    hidden = dataclasses.replace(playbooks, wrapper=without("/dev/fuse"))
    refuse(hidden.start(archive=sample.name), "/dev/fuse does not exist", "modprobe fuse")


@needs_root
def test_dev_fuse_closed(playbooks: Playbooks, sample: Sample, place: Path) -> None:
    with ordinary_user("ir-closed") as user:
        closed = dataclasses.replace(playbooks, wrapper=closed_fuse(place), os_user=user.pw_name, session_root=None)
        refuse(closed.start(archive=sample.name), "/dev/fuse is closed to the user ir-closed", "chmod 0666 /dev/fuse")


@needs_root
def test_session_root_not_writable(playbooks: Playbooks, sample: Sample, place: Path) -> None:
    with ordinary_user("ir-readonly") as user:
        run = dataclasses.replace(playbooks, os_user=user.pw_name).start(archive=sample.name)
    refuse(run, f"session root {playbooks.session_root} cannot be used: {place} is not writable for ir-readonly")
    refuse(playbooks.start(archive=sample.name, session_root="/proc/sessions"), "/proc/sessions")


@needs_root
def test_session_root_nearly_full(playbooks: Playbooks, sample: Sample, place: Path) -> None:
    with small_file_system(place / "small"):
        run = playbooks.start(archive=sample.name, session_root=str(place / "small" / "sessions"))
    refuse(run, f"session root {place}/small/sessions has", "1.0 GiB are needed", "free space")


@pytest.mark.parametrize(
    ("variable", "value", "choices"),
    [
        ("driver", "btrfs", "auto, block or overlayfs"),
        ("engine", "oracle", "auto or one of: postgresql"),
        ("deployment_location", "cloud", "local .* or remote"),
        ("ttl", "soon", "90s, 15m, 2h"),
        ("read_only", "maybe", "true nor false"),
        ("settings", "work_mem", "JSON"),
        ("readers", "many", "1 to 16"),
        ("missing_tablespaces", "empty", "choose refuse, or leave_out"),
        ("recovery_target_time", "yesterday", "no time: write it as 2026-11-22T14:05"),
        ("recovery_target_time", "2026-11-22", "as a space ends a value on the command line"),
        ("recovery_target_lsn", "zz", "no position .* write it as 1A/2B3C4D5E"),
        ("recovery_target_xid", 0, "no transaction: give its number"),
        ("recovery_target", "now", "choose immediate"),
        ("recovery_target_timeline", "newest", "choose latest, current or a number"),
        ("cpu_weight", "0", "1 to 10000"),
        ("io_weight", "10001", "1 to 10000"),
        ("memory_max", "lots", "512M or 4G"),
    ],
)
def test_unknown_value(playbooks: Playbooks, sample: Sample, variable: str, value: object, choices: str) -> None:
    refuse(playbooks.start(archive=sample.name, **{variable: value}), f"{variable} {value} is", choices)


def test_two_recovery_targets(playbooks: Playbooks, sample: Sample) -> None:
    run = playbooks.start(archive=sample.name, recovery_target_xid=7, recovery_target_lsn="0/1")
    refuse(run, "recovery_target_xid 7 and recovery_target_lsn 0/1 are given together", "leave all but one out")


def test_a_misspelt_variable(playbooks: Playbooks, sample: Sample) -> None:
    """Ansible by itself would pass over it, and the session would be one of another point in time."""
    # These are known, the first as the role's own name of it, or none of our business.
    others = {"session_recovery_target_time": "", "host_driver": "auto", "note": "x", "roots": "x", "awx_job_id": 7}
    run = playbooks.start(archive=sample.name, recovery_target_tiem="2026-11-22 09:30", **others)
    refuse(
        run, "recovery_target_tiem is unknown: did you mean recovery_target_time? Mend it, or add accept_unknown=true"
    )
    assert not any(name in run.message for name in others)
    run = playbooks.start(archive=sample.name, port="none", ports=[1], accept_unknown=True)
    refuse(run, "port none is no port")


def test_source_host(playbooks: Playbooks, sample: Sample) -> None:
    """Ansible by itself would say that no host matched, and succeed."""
    remote = {"archive": sample.name, "deployment_location": "remote"}
    refuse(playbooks.start(**remote), "source_host is not given")
    refuse(playbooks.start(**remote, source_host="db7"), "source_host db7 is not in the inventory", "-i")
    refuse(playbooks.start(archive=sample.name, source_host="db7"), "db7 is given without deployment_location")


def test_stop_of_an_unknown_id(playbooks: Playbooks) -> None:
    run = playbooks.stop("20200101-000000-0000")
    refuse(run, "No session 20200101-000000-0000 is known on localhost", "instant_recovery_list")
    assert run.stats["instant_recovery_stopped"] == []
    refuse(playbooks.run("stop"), "session_id is not given", "all")


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"cache_size": "lots"}, "lots"),
        # The server itself complains: its log's last lines are in the message.
        ({"settings": {"shared_buffers": "a little"}}, "FATAL:  configuration file"),
        ({"settings": {"archive_command": "/bin/true"}}, "archive_command"),
    ],
)
def test_a_step_that_fails_undoes_the_others(
    playbooks: Playbooks, sample: Sample, variables: dict[str, object], said: str
) -> None:
    """The archive is mounted by then, in the later cases the layer, too."""
    run = playbooks.start(archive=sample.name, **variables)
    refuse(run, said, "was undone, and nothing of it is left on localhost")
    assert_failed_record(playbooks, run)


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
    again = playbooks.stop(begun["id"])
    assert again.returncode == 0, again.output
    assert not again.changed
    (record,) = again.stats["instant_recovery_stopped"]
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
