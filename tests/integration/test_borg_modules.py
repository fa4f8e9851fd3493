# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""borg_archive_info and borg_mount, with real Borg, FUSE and PostgreSQL."""

from __future__ import annotations

import contextlib
import ctypes
import filecmp
import json
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._session.session import Session
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._session.teardown import tear_down
from ansible_collections.phpborg.instant_recovery.plugins.modules import (
    borg_archive_info,
    borg_mount,
    host_preflight,
)

from tests.integration.conftest import needs_root
from tests.support.clock import wait_until
from tests.support.cluster import Cluster
from tests.support.forked import forked
from tests.support.host import mountinfo, processes_below
from tests.support.modules import call
from tests.support.repository import Repository
from tests.support.sshd import Sshd
from tests.support.user import ordinary_user

Module = Callable[..., dict[str, Any]]
# Of this run alone: it is looked for in everything that goes on on the host.
SECRET = f"canary-{os.getpid()}-of-the-borg-modules"


@dataclass(frozen=True)
class Archives:
    """A repository with one cluster in several states, and the directories that were archived and still are there.

    Oldest first: `app-1` crashed, `app-2` closed in order, `backup-1` by pg_basebackup, `two` both of the latter,
    `dumps` by pg_dump, `nothing` without any database.
    """

    repository: Repository
    data: Path
    basebackup: Path
    state: str

    def of(self, name: str) -> str:
        """REPOSITORY::NAME."""
        return f"{self.repository.location}::{name}"


@pytest.fixture(scope="module")
def archives(shared_place: Path) -> Iterator[Archives]:
    top = shared_place / "borg-modules"
    top.mkdir(mode=0o755)
    repository = Repository(directory=top / "repository", base=top / "borg", passphrase=SECRET)
    repository.create()
    with Cluster(directory=top / "prod", settings={"max_connections": "37"}) as cluster:
        cluster.populate()
        cluster.crash(wal_megabytes=0.5)
        repository.archive("app-1", cluster.data)
        cluster.start()
        basebackup, dumps = top / "prod" / "base backup", top / "prod" / "dumps"
        cluster._as_owner([f"{cluster.bindir}/pg_basebackup", "-D", str(basebackup), "-c", "fast", *_server(cluster)])
        cluster._as_owner(["mkdir", str(dumps)])
        cluster._as_owner(
            [f"{cluster.bindir}/pg_dump", "-Fc", "-f", str(dumps / "shop.dump"), *_server(cluster), "shop data"]
        )
        cluster.stop()
        repository.archive("app-2", cluster.data)
        repository.archive("backup-1", basebackup)
        repository.archive("two", cluster.data, basebackup)
        repository.archive("dumps", dumps)
        repository.archive("nothing", "usr/share/doc/base-files")
        yield Archives(repository, cluster.data, basebackup, cluster.control_state())


@pytest.fixture
def info(archives: Archives, monkeypatch: pytest.MonkeyPatch) -> Module:
    """borg_archive_info with the passphrase, which may be replaced."""
    return _module(borg_archive_info.main, archives, monkeypatch)


@pytest.fixture
def mount(archives: Archives, monkeypatch: pytest.MonkeyPatch) -> Module:
    """borg_mount with the passphrase, which may be replaced."""
    return _module(borg_mount.main, archives, monkeypatch)


def _module(main: Callable[[], None], archives: Archives, monkeypatch: pytest.MonkeyPatch) -> Module:
    for name in [name for name in os.environ if name.startswith("BORG_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("BORG_BASE_DIR", str(archives.repository.base))

    def run(**arguments: Any) -> dict[str, Any]:
        secret = {} if {"passcommand", "passphrase_file"} & arguments.keys() else {"passphrase": SECRET}
        result = call(main, **{**secret, **arguments})
        assert SECRET not in json.dumps(result)
        return result

    return run


@pytest.fixture
def borg_calls(place: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[str]]:
    """Which of borg's commands were run: the real borg, behind a script that notes it."""
    log = place / "calls"
    log.touch()
    script = place / "bin" / "borg"
    script.parent.mkdir()
    script.write_text(f'#!/bin/sh\necho "$1" >> {log}\nexec {shutil.which("borg")} "$@"\n')
    script.chmod(0o755)
    monkeypatch.setenv("PATH", str(script.parent), prepend=os.pathsep)
    return lambda: log.read_text().split()


# borg_archive_info


def test_a_crashed_cluster(info: Module, archives: Archives) -> None:
    found = info(archive=archives.of("app-1"))
    assert not found["changed"]
    database = found["database"]
    assert found["databases"] == [database]
    assert (database["engine"], database["kind"]) == ("postgresql", "crash_consistent")
    assert database["version"] == (archives.data / "PG_VERSION").read_text().strip()
    assert database["data_directory"] == str(archives.data).lstrip("/")
    assert database["original_directory"] == str(archives.data)
    assert database["control"]["max_connections"] == 37
    assert database["owner"] == archives.data.owner()
    assert database["wal_directory"]["segments"] > 0
    assert (database["problems"], database["symlinks"], database["tablespaces"]) == ([], [], [])
    assert found["paths"] == [database["data_directory"]]
    assert found["archive"]["size"] >= database["size"] > 20 * 2**20


@pytest.mark.parametrize(
    ("name", "kind", "markers"),
    [("app-2", "clean_shutdown", []), ("backup-1", "backup_label", ["backup_label"])],
)
def test_other_kinds_of_copy(info: Module, archives: Archives, name: str, kind: str, markers: list[str]) -> None:
    database = info(archive=archives.of(name))["database"]
    assert (database["kind"], database["markers"]) == (kind, markers)
    if kind == "clean_shutdown":
        assert database["state"] == archives.state


@pytest.mark.parametrize(("wanted", "found"), [("latest", "nothing"), ("app-*", "app-2"), ("app-?", "app-2")])
def test_the_newest_that_matches_with_three_calls_of_borg(
    info: Module, archives: Archives, borg_calls: Callable[[], list[str]], wanted: str, found: str
) -> None:
    result = info(repository=archives.repository.location, archive=wanted, require_database=False)
    assert result["archive"]["name"] == found
    # What tells of the database; where there is none, the largest files, which are small.
    assert borg_calls() == ["list", "list", "extract"]


def test_listing_with_and_without_details(
    info: Module, archives: Archives, borg_calls: Callable[[], list[str]]
) -> None:
    names = ["app-1", "app-2", "backup-1", "two", "dumps", "nothing"]
    bare = info(repository=archives.repository.location)
    assert [archive["name"] for archive in bare["archives"]] == names
    assert (bare["archive"], bare["databases"], bare["database"], bare["paths"]) == (None, [], None, [])
    full = info(repository=archives.repository.location, details=True)
    assert [archive["name"] for archive in full["archives"]] == names
    assert all(archive["hostname"] and archive["size"] and archive["files"] for archive in full["archives"])
    assert {archive["id"]: archive["time"] for archive in full["archives"]} == {
        archive["id"]: archive["time"] for archive in bare["archives"]
    }
    assert borg_calls() == ["list", "info"]
    assert [archive["id"] for archive in archives.repository.archives()] == [a["id"] for a in bare["archives"]]
    of_one = info(archive=archives.of("two"), details=True, require_database=False)["archive"]
    assert (of_one["hostname"], of_one["size"]) == (full["archives"][3]["hostname"], full["archives"][3]["size"])


def test_two_clusters_need_a_choice(info: Module, archives: Archives) -> None:
    paths = sorted(str(path).lstrip("/") for path in (archives.data, archives.basebackup))
    failed = info(archive=archives.of("two"))
    assert failed["failed"]
    assert failed["msg"].startswith(f"Archive two holds 2 databases: {paths[0]} (postgresql ")
    assert failed["msg"].endswith("Choose one with data_directory.")
    assert [database["data_directory"] for database in failed["databases"]] == paths
    chosen = info(archive=archives.of("two"), data_directory=f"/{paths[1]}")
    assert chosen["database"]["data_directory"] == paths[1]
    listed = info(archive=archives.of("two"), require_database=False)
    assert (listed["database"], len(listed["databases"])) == (None, 2)


def test_the_latest_of_nothing(info: Module, archives: Archives, place: Path) -> None:
    empty = Repository(directory=place / "empty", base=archives.repository.base, passphrase=SECRET)
    empty.create()
    said = info(repository=empty.location, archive="latest")["msg"]
    assert empty.location in said
    assert "no archive" in said


def test_a_passphrase_that_is_part_of_a_path(archives: Archives, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ansible would mask the path, and what the later steps are told would be asterisks."""
    monkeypatch.setenv("BORG_BASE_DIR", str(place / "borg"))
    repository = Repository(directory=place / "masked" / "repository", base=place / "borg", passphrase="masked")
    repository.directory.parent.mkdir()
    repository.create()
    repository.archive("one", archives.data / "PG_VERSION", archives.data / "global" / "pg_control")
    said = call(borg_archive_info.main, archive=f"{repository.location}::one", passphrase="masked")["msg"]
    assert said.startswith("The passphrase is also a part of ")
    assert "borg_passphrase_file" in said or "passphrase_file" in said


def test_dumps_are_named_for_what_they_are(info: Module, archives: Archives) -> None:
    failed = info(archive=archives.of("dumps"))
    assert failed["failed"]
    assert "Archive dumps holds only logical dumps, no data directory" in failed["msg"]
    (dump,) = info(archive=archives.of("dumps"), require_database=False)["databases"]
    assert (dump["engine"], dump["kind"]) == ("postgresql", "logical_dump")
    assert dump["data_directory"].endswith("dumps/shop.dump")


def test_the_current_directory_as_an_archive(info: Module, archives: Archives) -> None:
    archives.repository.archive("root", ".", cwd=archives.data)
    try:
        found = info(archive=archives.of("root"))
        assert (found["database"]["data_directory"], found["paths"]) == (".", ["."])
        assert found["database"]["kind"] == "clean_shutdown"
    finally:
        archives.repository.borg("delete", archives.of("root"))


BAD_INPUT = [
    ({"archive": "{repo}::none"}, "has no archive none. It holds: nothing, dumps, two"),
    ({"archive": "{repo}::no-*"}, "has no archive that matches no-*. It holds: nothing"),
    ({"archive": "{repo}::nothing"}, "Archive nothing holds no database: nothing in it marks a data directory"),
    ({"archive": "{repo}::app-1", "data_directory": "etc"}, "Archive app-1 has no data directory etc. It holds: "),
    ({"archive": "{repo}::app-1", "engine": "mongodb"}, "Archive app-1 has no mongodb data directory. It holds: "),
    ({"archive": "/nowhere::a"}, "There is no Borg repository at /nowhere. Check the path"),
    ({"archive": "/usr::a"}, "There is no Borg repository at /usr. Check the path"),
    ({"archive": "{repo}::app-1", "passphrase": "false"}, "The passphrase for {repo} is "),
    ({"archive": "{repo}::app-1", "passphrase": None}, "needs a passphrase, and none was given. Give one of"),
    ({"archive": "{repo}::app-1", "passcommand": "false"}, "The passcommand for {repo} failed, or took more than"),
    ({"archive": "{repo}::app-1", "passphrase_file": "/none"}, "passphrase_file /none cannot be read (No such file"),
    ({"archive": "app-1"}, "No repository was given. Set repository, or write archive as REPOSITORY::NAME."),
    # In ssh's own words, or in Borg's, where it saw the connection end before it read them.
    ({"archive": "ssh://127.0.0.1:9/r::a"}, "ssh://127.0.0.1:9/r cannot be reached: "),
    ({"archive": "{repo}::app-1", "timeout": 0.1}, "did not finish within 0.1 s"),
]


@pytest.mark.parametrize(("arguments", "says"), BAD_INPUT, ids=[says for _arguments, says in BAD_INPUT])
def test_bad_input(info: Module, archives: Archives, arguments: dict[str, Any], says: str) -> None:
    def filled(text: Any) -> Any:
        return text.replace("{repo}", archives.repository.location) if isinstance(text, str) else text

    result = info(**{name: filled(value) for name, value in arguments.items()})
    assert result["failed"]
    assert filled(says) in result["msg"]
    assert "Traceback" not in result["msg"]


def test_secrets_by_command_file_and_environment(
    info: Module, archives: Archives, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = place / "passphrase"
    path.write_text(f"{SECRET}\n")
    assert "failed" not in info(repository=archives.repository.location, passphrase_file=str(path))
    assert "failed" not in info(repository=archives.repository.location, passcommand=f"cat {path}")
    monkeypatch.setenv("BORG_PASSPHRASE", SECRET)
    assert "failed" not in info(repository=archives.repository.location, passphrase=None)
    monkeypatch.setenv("BORG_PASSPHRASE", "wrong")
    assert "failed" not in info(repository=archives.repository.location)
    assert "failed" not in info(repository=archives.repository.location, passcommand=f"cat {path}")
    both = info(repository=archives.repository.location, passphrase="one", passcommand="two")
    assert "mutually exclusive" in both["msg"]


def test_questions_of_a_newcomer_are_answered_by_options(
    info: Module, archives: Archives, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = Repository(directory=place / "plain", base=place / "its-base", encryption="none")
    plain.create()
    monkeypatch.setenv("BORG_BASE_DIR", str(place / "newcomer"))
    refused = info(repository=plain.location)
    assert "is not encrypted and was never used from this host" in refused["msg"]
    assert "Set accept_unencrypted" in refused["msg"]
    assert "failed" not in info(repository=plain.location, accept_unencrypted=True)
    plain.directory.rename(place / "moved")
    refused = info(repository=str(place / "moved"))
    assert f"was previously located at {plain.location}" in refused["msg"]
    assert "Set accept_relocated" in refused["msg"]
    assert "failed" not in info(repository=str(place / "moved"), accept_relocated=True)


def test_the_lock_is_respected_only_when_asked_to(info: Module, archives: Archives) -> None:
    with _locked(archives.repository):
        assert "failed" not in info(repository=archives.repository.location)
        refused = info(repository=archives.repository.location, bypass_lock=False)
    assert "is locked by another borg. Wait until that has finished, or set lock to bypass." in refused["msg"]


def test_a_host_without_borg(info: Module, monkeypatch: pytest.MonkeyPatch) -> None:
    _hide_borg(monkeypatch)
    assert info(repository="/r")["msg"] == "borg is not installed on this host. Install the package borgbackup."


@needs_root
def test_a_repository_behind_ssh(
    info: Module, mount: Module, archives: Archives, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ordinary_user("irborg") as user, Sshd(directory=place / "sshd", users=[user.pw_name]) as sshd:
        archives.repository.copy(place / "repository", owner=user.pw_name)
        monkeypatch.setenv("BORG_BASE_DIR", str(place / "base"))
        archive = f"ssh://{user.pw_name}@127.0.0.1:{sshd.port}{place}/repository::app-1"
        rsh = (
            f"ssh -i {sshd.key} -oBatchMode=yes -oIdentitiesOnly=yes -oUserKnownHostsFile={sshd.directory}/known_hosts"
        )
        found = info(archive=archive, rsh=rsh)
        assert found["database"]["kind"] == "crash_consistent"
        mountpoint = str(place / "mnt")
        mounted = mount(archive=archive, rsh=rsh, mountpoint=mountpoint, paths=found["paths"], readers=2)
        assert mounted["changed"]
        assert (Path(mountpoint) / "2" / found["paths"][0] / "PG_VERSION").read_text()
        assert mount(mountpoint=mountpoint, state="unmounted")["changed"]
        unknown = info(archive=archive, rsh=f"ssh -i {sshd.key} -oBatchMode=yes -oUserKnownHostsFile=/dev/null")
        # borg does not always catch what ssh says at its end.
        assert f"{archive.partition('::')[0]} cannot be reached: " in unknown["msg"]
        assert "Check that ssh logs in there without asking anything (known host key, no password)" in unknown["msg"]


# borg_mount


def test_mounting_checked_done_again_and_undone(mount: Module, archives: Archives, place: Path) -> None:
    mountpoint = str(place / "mnt" / "deep")
    data = str(archives.data).lstrip("/")
    arguments: dict[str, Any] = {
        "archive": archives.of("app-2"),
        "mountpoint": mountpoint,
        "paths": [data],
        "readers": 2,
    }
    points = [f"{mountpoint}/1", f"{mountpoint}/2"]
    diff = {"before": {"mounted": []}, "after": {"mounted": points}}

    planned = mount(**arguments, check=True)
    assert (planned["changed"], planned["diff"], planned["pids"]) == (True, diff, [])
    assert not Path(mountpoint).parent.exists()

    done = mount(**arguments)
    assert (done["changed"], done["diff"], done["mountpoints"]) == (True, diff, points)
    for point, pid in zip(points, done["pids"], strict=True):
        assert point in Path(f"/proc/{pid}/cmdline").read_text()
        assert _differences(archives.data, Path(point) / data) == []
        with pytest.raises(OSError, match="Read-only"):
            (Path(point) / data / "new").touch()

    for check in (False, True):
        again = mount(**arguments, check=check)
        assert (again["changed"], again["mountpoints"], again["pids"]) == (False, points, done["pids"])
        assert again["diff"]["before"] == again["diff"]["after"]

    planned = mount(mountpoint=mountpoint, state="unmounted", check=True)
    assert (planned["changed"], _mounted_below(place)) == (True, points)
    undone = mount(mountpoint=mountpoint, state="unmounted")
    assert (undone["changed"], undone["mountpoints"]) == (True, [])
    assert undone["diff"] == {"before": {"mounted": points}, "after": {"mounted": []}}
    for check in (False, True):
        assert not mount(mountpoint=mountpoint, state="unmounted", check=check)["changed"]
    assert _leftovers(place) == []
    assert list(Path(mountpoint).iterdir()) == []


def test_only_what_is_missing_is_mounted(mount: Module, archives: Archives, place: Path) -> None:
    """After one of the readers was killed, its dead mount is replaced and the others stay."""
    arguments = {"archive": archives.of("nothing"), "mountpoint": str(place / "mnt"), "readers": 3}
    with _unmounted_at_end(mount, place / "mnt"):
        first = mount(**arguments)["pids"]
        os.kill(first[1], signal.SIGKILL)
        _await_end(first[1])
        with pytest.raises(OSError, match="connect"):
            os.listdir(place / "mnt" / "2")
        repaired = mount(**arguments)
        assert repaired["changed"]
        assert repaired["diff"]["before"]["mounted"] == [f"{place}/mnt/1", f"{place}/mnt/3"]
        assert (repaired["pids"][0], repaired["pids"][2]) == (first[0], first[2])
        assert repaired["pids"][1] != first[1]
        assert os.listdir(place / "mnt" / "2") == ["usr"]


@needs_root
def test_owner_and_stripped_components(mount: Module, archives: Archives, place: Path) -> None:
    data = str(archives.data).lstrip("/")
    with _unmounted_at_end(mount, place / "mnt"):
        result = mount(
            archive=archives.of("app-2"),
            mountpoint=str(place / "mnt"),
            paths=[data],
            strip_components=data.count("/") + 1,
            owner="nobody",
        )
        assert result["mountpoints"] == [str(place / "mnt")]
        assert (place / "mnt" / "PG_VERSION").owner() == "nobody"
        assert _differences(archives.data, place / "mnt") == []


def test_an_archive_whose_owner_is_unknown_here(mount: Module, archives: Archives, place: Path) -> None:
    """Its user's name exists on the host it comes from only: the number remains, or the owner that was asked for."""
    if os.geteuid() != 0:
        pytest.skip("only root can archive somebody else's files")
    with ordinary_user("irgone") as gone:
        (place / "theirs").mkdir()
        (place / "theirs" / "file").write_text("content")
        shutil.chown(place / "theirs" / "file", user=gone.pw_name)
        archives.repository.archive("unknown-owner", place / "theirs")
    try:
        with _unmounted_at_end(mount, place / "mnt"):
            mount(archive=archives.of("unknown-owner"), mountpoint=str(place / "mnt"), owner="daemon")
            assert (place / "mnt" / str(place).lstrip("/") / "theirs" / "file").owner() == "daemon"
    finally:
        archives.repository.borg("delete", archives.of("unknown-owner"))


def test_secrets_are_borgs_alone(mount: Module, archives: Archives, place: Path) -> None:
    """The passphrase is in no process's arguments or environment, in no log, and on no disk."""
    (place / "log").mkdir()
    with _unmounted_at_end(mount, place / "mnt"):
        mount(
            archive=archives.of("nothing"), mountpoint=str(place / "mnt"), readers=2, log_directory=str(place / "log")
        )
        for directory in Path("/proc").iterdir():
            if directory.name.isdigit() and int(directory.name) != os.getpid():
                with contextlib.suppress(OSError):
                    assert SECRET.encode() not in (directory / "cmdline").read_bytes(), directory
                    assert SECRET.encode() not in (directory / "environ").read_bytes(), directory
        assert sorted(path.name for path in (place / "log").iterdir()) == ["borg-1.log", "borg-2.log"]
        assert all(SECRET not in path.read_text() for path in (place / "log").iterdir())
        assert all(path.stat().st_mode & 0o077 == 0 for path in (place / "log").iterdir())


FAILING = [
    ({"archive": "{repo}::none"}, "has no archive none. borg_archive_info lists what it has."),
    ({"archive": "{repo}::latest"}, "has no archive latest."),
    ({"archive": "{repo}::app-2", "paths": ["nowhere"]}, "Archive app-2 has no nowhere. borg_archive_info tells"),
    ({"archive": "{repo}::app-2", "passphrase": "false"}, "The passphrase for {repo} is "),
    ({"archive": "{repo}::app-2", "passphrase": None}, "needs a passphrase, and none was given."),
    ({"archive": "/nowhere::a"}, "There is no Borg repository at /nowhere."),
    ({"archive": "{repo}::app-2", "owner": "nobody-at-all"}, "owner is nobody-at-all, but there is no such user"),
    ({"archive": "{repo}::app-2", "readers": 0}, "readers is 0. At least one mount is needed."),
    ({"archive": "{repo}::app-2", "timeout": 0.05}, "did not mount app-2 at"),
]


@pytest.mark.parametrize(("arguments", "says"), FAILING, ids=[says for _arguments, says in FAILING])
def test_a_failed_mount_leaves_nothing(
    mount: Module, archives: Archives, place: Path, arguments: dict[str, Any], says: str
) -> None:
    archive = arguments["archive"].replace("{repo}", archives.repository.location)
    result = mount(**{"readers": 2, "mountpoint": str(place / "made" / "mnt"), **arguments, "archive": archive})
    assert result["failed"]
    assert says.replace("{repo}", archives.repository.location) in result["msg"]
    assert _leftovers(place) == []
    assert list(place.iterdir()) == []


@needs_root
def test_what_is_not_ours_is_refused(mount: Module, archives: Archives, place: Path) -> None:
    foreign = place / "foreign"
    foreign.mkdir()
    (place / "full").mkdir()
    (place / "full" / "file").touch()
    subprocess.run(["mount", "-t", "tmpfs", "stranger", foreign], check=True)
    try:
        archive = archives.of("nothing")
        for check in (False, True):
            refused = mount(archive=archive, mountpoint=str(foreign), check=check)
            assert refused["msg"].startswith(f"{foreign} already holds stranger (tmpfs). Unmount that first")
            refused = mount(mountpoint=str(foreign), state="unmounted", check=check)
            assert refused["msg"].startswith(f"{foreign} holds stranger (tmpfs), which is no Borg mount")
        assert _mounted_below(place) == [str(foreign)]
    finally:
        subprocess.run(["umount", foreign], check=True)
    assert f"{place}/full is not empty." in mount(archive=archive, mountpoint=str(place / "full"))["msg"]
    with _unmounted_at_end(mount, place / "mnt"):
        mount(archive=archive, mountpoint=str(place / "mnt"))
        refused = mount(archive=archives.of("app-2"), mountpoint=str(place / "mnt"))
        assert refused["msg"].startswith(f"{place}/mnt already holds archive {archive}. Unmount that first")
        assert os.listdir(place / "mnt") == ["usr"]


def test_the_lock_is_held_only_when_asked_to(mount: Module, archives: Archives, place: Path) -> None:
    with _unmounted_at_end(mount, place / "mnt"):
        mount(archive=archives.of("nothing"), mountpoint=str(place / "mnt"))
        assert not archives.repository.is_locked()
        archives.repository.archive("meanwhile", place / "mnt")
        archives.repository.borg("delete", archives.of("meanwhile"))
    with _unmounted_at_end(mount, place / "mnt"):
        mount(archive=archives.of("nothing"), mountpoint=str(place / "mnt"), bypass_lock=False)
        assert archives.repository.is_locked()
        with pytest.raises(RuntimeError, match="lock"):
            archives.repository.archive("meanwhile", place / "mnt")
    assert not archives.repository.is_locked()


@pytest.mark.parametrize("readers", [1, 2])
def test_mounts_of_a_session(mount: Module, archives: Archives, place: Path, readers: int) -> None:
    """Claimed before they are made, in its log directory, and ended by its tear-down."""
    session = Session.create(str(place / "sessions"), user="root" if os.geteuid() == 0 else os.environ["USER"])
    mountpoint = session.path("archive")
    arguments = {"mountpoint": mountpoint, "readers": readers, "session_directory": session.directory}
    failed = mount(archive=archives.of("none"), **arguments)
    assert "has no archive none" in failed["msg"]
    assert Session.open(session.directory).record.claims == ()

    done = mount(archive=archives.of("nothing"), **arguments)
    record = Session.open(session.directory).record
    assert record.borg_mount_point == mountpoint
    assert record.timings["borg_mount"] > 0
    keeper, *claims = record.claims
    assert keeper.name == "keeper"
    assert [(claim.kind, claim.mountpoint) for claim in claims] == [("mount", point) for point in done["mountpoints"]]
    assert [claim.process.pid for claim in claims] == done["pids"]
    for pid in done["pids"]:
        assert f"INSTANT_RECOVERY_SESSION={session.directory}\0" in Path(f"/proc/{pid}/environ").read_text()
    assert len(list(Path(session.path("log")).glob("borg-*.log"))) == readers

    assert mount(mountpoint=mountpoint, state="unmounted", session_directory=session.directory)["changed"]
    assert [claim.name for claim in Session.open(session.directory).record.claims] == ["keeper"]
    assert mount(archive=archives.of("nothing"), **arguments)["changed"]
    assert tear_down(Session.open(session.directory)) == []
    assert _leftovers(place) == []


@needs_root
def test_an_ordinary_user_needs_no_root(archives: Archives, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with ordinary_user("irborg") as user:
        place.chmod(0o755)
        repository = archives.repository.copy(place / "repository", owner=user.pw_name)
        monkeypatch.setenv("BORG_BASE_DIR", f"{user.pw_dir}/base")
        mountpoint = f"{user.pw_dir}/mnt"
        data = str(archives.data).lstrip("/")

        def as_user() -> dict[str, Any]:
            common: dict[str, Any] = {"archive": f"{repository.location}::app-2", "passphrase": SECRET}
            found = call(borg_archive_info.main, **common)
            arguments = {**common, "mountpoint": mountpoint, "paths": found["paths"]}
            refused = call(borg_mount.main, **arguments, owner="root")
            done = call(borg_mount.main, **arguments)
            again = call(borg_mount.main, **arguments)
            content = (Path(mountpoint) / data / "global" / "pg_control").read_bytes()
            owner = (Path(mountpoint) / data).owner()
            undone = call(borg_mount.main, mountpoint=mountpoint, state="unmounted")
            return {
                "changes": [result.get("changed") for result in (done, again, undone)],
                "refused": refused["msg"],
                "content": content,
                "owner": owner,
            }

        seen = forked(as_user, user=user)
        assert seen["changes"] == [True, False, True]
        assert seen["content"] == (archives.data / "global" / "pg_control").read_bytes()
        assert seen["owner"] == user.pw_name
        assert "owner is root, whose files only root and root could read" in seen["refused"]
        assert _mounted_below(Path(user.pw_dir)) == []


@needs_root
@pytest.mark.parametrize(
    ("hidden", "says"),
    [
        ("/dev/fuse", "/dev/fuse is closed to the user {user}: Permission denied. To cure it, run as root: chmod 0666"),
        (
            "/usr/bin/fusermount3",
            "fusermount3 is not installed, and the user {user} cannot mount without it. To cure it",
        ),
    ],
)
def test_a_host_where_fuse_is_closed(
    archives: Archives, place: Path, monkeypatch: pytest.MonkeyPatch, hidden: str, says: str
) -> None:
    """In a mount name space of the test's own, where a file without any permission lies over what is hidden."""
    cover = place / "cover"
    cover.touch()
    cover.chmod(0)
    with ordinary_user("irborg") as user:
        repository = archives.repository.copy(place / "repository", owner=user.pw_name)
        monkeypatch.setenv("BORG_BASE_DIR", f"{user.pw_dir}/base")

        def as_user() -> dict[str, Any]:
            arguments = {"archive": f"{repository.location}::app-2", "passphrase": SECRET}
            told = call(host_preflight.main, session_root=f"{user.pw_dir}/sessions")["problems"]
            return {**call(borg_mount.main, mountpoint=f"{user.pw_dir}/mnt", **arguments), "told": told}

        def with_cover() -> dict[str, Any]:
            assert ctypes.CDLL(None).unshare(0x20000) == 0  # CLONE_NEWNS; os.unshare comes with Python 3.12
            subprocess.run(["mount", "--make-rprivate", "/"], check=True)
            subprocess.run(["mount", "--bind", cover, hidden], check=True)
            return forked(as_user, user=user)

        result = forked(with_cover)
        assert says.format(user=user.pw_name) in result["msg"]
        assert [one["what"] for one in result["told"] if hidden.split("/")[-1] in one["what"]], result["told"]
        assert not Path(user.pw_dir, "mnt").exists()


def test_mounting_on_a_host_without_borg(mount: Module, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _hide_borg(monkeypatch)
    arguments = {"archive": "/r::a", "mountpoint": str(place / "mnt")}
    assert mount(**arguments)["msg"] == "borg is not installed on this host. Install the package borgbackup."
    assert mount(**arguments, check=True)["changed"]
    assert list(place.iterdir()) == []


def _server(cluster: Cluster) -> list[str]:
    return ["-h", str(cluster.run), "-U", cluster.superuser]


def _hide_borg(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "ansible_collections.phpborg.instant_recovery.plugins.module_utils._borg.repository.find_program",
        lambda _name: None,
    )


@contextlib.contextmanager
def _locked(repository: Repository) -> Iterator[None]:
    """While another borg holds the repository's lock."""
    argv = ["borg", "with-lock", repository.location, "sh", "-c", "echo locked; read -r _"]
    holder = subprocess.Popen(
        argv, env={**os.environ, **repository.environment}, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"locked\n"
        yield
    finally:
        holder.communicate(b"\n", timeout=30)


@contextlib.contextmanager
def _unmounted_at_end(mount: Module, mountpoint: Path) -> Iterator[None]:
    try:
        yield
    finally:
        mount(mountpoint=str(mountpoint), state="unmounted")
        assert _leftovers(mountpoint) == []


def _leftovers(directory: Path) -> list[str]:
    return _mounted_below(directory) + [f"{pid} {command}" for pid, command in processes_below(directory)]


def _mounted_below(directory: Path) -> list[str]:
    points = [line.split()[4] for line in mountinfo()]
    return sorted(point for point in points if point.startswith(str(directory)))


def _await_end(pid: int) -> None:
    cmdline = Path(f"/proc/{pid}/cmdline")
    wait_until(lambda: not (cmdline.exists() and cmdline.read_bytes()))


def _differences(original: Path, copy: Path) -> list[str]:
    """Files of `original` that are missing or other in `copy`, or the other way round."""
    ours, theirs = _files(original), _files(copy)
    changed = [name for name in ours & theirs if not filecmp.cmp(original / name, copy / name, shallow=False)]
    return sorted({*(ours ^ theirs), *changed})


def _files(top: Path) -> set[str]:
    return {str(path.relative_to(top)) for path in top.rglob("*") if path.is_file()}
