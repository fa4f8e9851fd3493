# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Archives that somebody made to reach beyond their copy: what they list is refused, what they mount is harmless.

They are made with Borg's own commands: `borg import-tar` takes over whatever a tar file says.
"""

from __future__ import annotations

import codecs
import dataclasses
import io
import itertools
import os
import pwd
import stat
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._borg import repository as _repository
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._errors import is_plain
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._host import limits as _limits
from ansible_collections.phpborg.instant_recovery.plugins.modules import (
    borg_archive_info,
    borg_mount,
    copy_plan_info,
    overlay_mount,
)

from tests.integration.conftest import needs_root
from tests.support.cluster import Cluster
from tests.support.forked import forked
from tests.support.host import mountinfo, remains
from tests.support.layer import Layer
from tests.support.modules import call
from tests.support.repository import Repository
from tests.support.user import ordinary_user

CONTROL = (Path(__file__).parents[1] / "unit" / "recorded" / "pg_control-15-shut-down.bin").read_bytes()
PG = "srv/pg"
KINDS = {
    "d": tarfile.DIRTYPE,
    "l": tarfile.SYMTYPE,
    "h": tarfile.LNKTYPE,
    "c": tarfile.CHRTYPE,
    "b": tarfile.BLKTYPE,
    "p": tarfile.FIFOTYPE,
}
NUMBERS = itertools.count()
REMEDY = "borg create makes no such archive: use another one, and find out who made this."
NO_SUCH_THING = "no database has one: use another archive, and find out who made this."


def look_at_plan(made: Made, archive: str) -> dict[str, Any]:
    """What the look at the copy in an archive gives."""
    options = {**made.options(archive), "engine": "postgresql", "user": "postgres"}
    return call(copy_plan_info.main, **options, paths=[PG], data_directory=PG)


@dataclasses.dataclass(frozen=True)
class Made:
    """A repository to put archives into, and what modules need to open it."""

    repository: Repository

    def archive(self, name: str, *members: tuple[str, str, Any]) -> str:
        """Make an archive of a small data directory followed by members: kind, path, content or target or device."""
        cluster = [
            ("d", "srv", None),
            ("d", PG, None),
            ("-", f"{PG}/PG_VERSION", b"15\n"),
            ("d", f"{PG}/global", None),
            ("-", f"{PG}/global/pg_control", CONTROL),
            ("d", f"{PG}/base", None),
            ("-", f"{PG}/pg_wal/000000010000000000000001", b"WAL"),
        ]
        content = io.BytesIO()
        with tarfile.open(fileobj=content, mode="w", format=tarfile.PAX_FORMAT) as tar:
            for kind, path, what in [*cluster, *members]:
                tar.addfile(*_member(kind, path, what))
        file = self.repository.directory.parent / "members.tar"
        file.write_bytes(content.getvalue())
        name = f"{name}-{next(NUMBERS)}"
        self.repository.borg("import-tar", f"{self.repository.location}::{name}", str(file))
        return f"{self.repository.location}::{name}"

    def options(self, archive: str) -> dict[str, Any]:
        return {"archive": archive, "passphrase": self.repository.passphrase}


def _member(kind: str, path: str, what: Any) -> tuple[tarfile.TarInfo, io.BytesIO | None]:
    member = tarfile.TarInfo(path)
    member.mode = 0o777 if kind == "d" else 0o666
    if kind == "-":
        member.size = len(what)
        return member, io.BytesIO(what)
    member.type = KINDS[kind]
    if kind in "lh":
        member.linkname = what
    if kind in "bc":
        member.devmajor, member.devminor = what
    return member, None


@pytest.fixture(scope="module")
def repository(shared_place: Path) -> Repository:
    place = shared_place / "hostile"
    place.mkdir()
    repository = Repository(directory=place / "repository", base=place / "borg")
    repository.create()
    return repository


@pytest.fixture
def made(repository: Repository, monkeypatch: pytest.MonkeyPatch) -> Made:
    for name in [name for name in os.environ if name.startswith("BORG_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("BORG_BASE_DIR", str(repository.base))
    return Made(repository)


def listed(directory: Path) -> list[str]:
    return [line for line in mountinfo() if str(directory) in line]


# -- what the archive lists


@pytest.mark.parametrize(
    ("members", "said"),
    [
        ([("l", PG, "/production")], f"lists {PG} as a link to /production, and also entries below it"),
        ([("l", "srv", "/production")], "lists srv as a link to /production, and also entries below it"),
        ([("-", f"{PG}/base/../../../etc/cron.d/x", b"x")], "has the item 'srv/pg/base/../../../etc/cron.d/x', whose"),
        ([("b", f"{PG}/disk", (7, 0))], f"has the device node {PG}/disk among the database's files"),
        ([("c", "dev/zero", (1, 5)), ("h", f"{PG}/zero", "dev/zero")], f"has the device node {PG}/zero among"),
        ([("p", f"{PG}/base/1259", None)], f"has a named pipe where the server opens a file, {PG}/base/1259"),
        ([("l", "x", "/production"), ("h", f"{PG}/base/5", "x")], f"lists {PG}/base/5 as another name of x, which is"),
        ([("-", f"{PG}/base", b"x")], f"lists {PG}/base as a directory and as something else"),
    ],
)
def test_what_no_honest_archive_lists(made: Made, members: list[tuple[str, str, Any]], said: str) -> None:
    archive = made.archive("hostile", *members)
    result = call(borg_archive_info.main, **made.options(archive))
    assert result["failed"]
    assert result["msg"].startswith(f"The archive {said}"), result["msg"]
    assert result["msg"].endswith((f": {REMEDY}", NO_SUCH_THING))


@pytest.mark.parametrize("name", ["srv/\x1b[2Jpg", "srv/\x9b2Jpg", "srv/two\nlines", "srv/\u202egp"])
def test_a_data_directory_whose_name_acts_on_a_terminal(made: Made, name: str) -> None:
    """What a play prints and passes on is its name as it is."""
    archive = made.archive("named", ("-", f"{name}/PG_VERSION", b"15\n"), ("-", f"{name}/global/pg_control", CONTROL))
    result = call(borg_archive_info.main, **made.options(archive), data_directory=name)
    assert result["failed"]
    assert result["msg"].startswith("The database's directory srv/"), result["msg"]
    assert "has characters in its name that act on a terminal or break a line: extract it" in result["msg"]
    assert is_plain(result["msg"])


def test_it_is_refused_where_nothing_has_to_be_found_as_well(made: Made) -> None:
    archive = made.archive("hostile", ("l", PG, "/production"))
    result = call(borg_archive_info.main, **made.options(archive), require_database=False)
    assert result["failed"]
    assert result["msg"].startswith(f"The archive lists {PG} as a link to /production, and also entries below it")


# Gives an archive a piece of metadata that is compressed a thousandfold: its repository, name and bytes.
BOMB = """
import sys
from borg.logger import setup_logging
setup_logging()
from borg.compress import CompressionSpec
from borg.helpers import Manifest, msgpack
from borg.item import ArchiveItem
from borg.repository import Repository
with Repository(sys.argv[1], exclusive=True) as repository:
    manifest, key = Manifest.load(repository, Manifest.NO_OPERATION_CHECK)
    key.compressor = CompressionSpec("zlib,9").compressor
    content = bytes(int(sys.argv[3]))
    chunk = key.id_hash(content)
    repository.put(chunk, key.encrypt(content))
    known = manifest.archives[sys.argv[2]]
    archive = ArchiveItem(internal_dict=msgpack.unpackb(key.decrypt(known.id, repository.get(known.id))))
    archive.items = [*archive.items, chunk]
    packed = msgpack.packb(archive.as_dict())
    changed = key.id_hash(packed)
    repository.put(changed, key.encrypt(packed))
    manifest.archives[sys.argv[2]] = (changed, known.ts)
    manifest.write()
    repository.commit(compact=False)
"""


def test_metadata_that_would_fill_the_memory(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    name = made.archive("bomb")
    location, _colons, archive = name.partition("::")
    environment = {**os.environ, **made.repository.environment, "LC_ALL": "C.UTF-8"}
    argv = ["/usr/bin/python3", "-c", BOMB, location, archive, str(600 << 20)]
    subprocess.run(argv, env=environment, check=True, capture_output=True, timeout=300)
    for module in (_limits, _repository):
        monkeypatch.setattr(module, "half_of_memory", lambda: 400 << 20)
    result = call(borg_archive_info.main, **made.options(name))
    assert result["failed"]
    assert "MemoryError" in result["msg"], result["msg"]
    assert "a session's what memory_max gives" in result["msg"], result["msg"]


def test_what_a_hosts_archive_lists_is_taken(made: Made) -> None:
    members = [
        ("c", "dev/null", (1, 3)),
        ("p", "run/initctl", None),
        ("p", f"{PG}/log.pipe", None),
        ("l", f"{PG}/pg_hba.conf", "/etc/postgresql/pg_hba.conf"),
        ("-", f"{PG}/PG_VERSION", b"15\n"),
    ]
    result = call(borg_archive_info.main, **made.options(made.archive("host", *members)))
    assert result["paths"] == [PG], result


@needs_root
def test_a_link_in_the_place_of_the_data_directory_harms_nobody(
    made: Made, place: Path, playbooks: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That of production, which runs on: whether one wants to start, or only to look, and whoever is asked."""
    with Cluster(directory=place / "production") as production:
        before, pid = production.connection.sql("select pg_postmaster_start_time()"), production.pid
        archive = made.archive("hostile", ("l", PG, str(production.data)))
        mine = dataclasses.replace(playbooks, environment=made.repository.environment)
        said = f"lists {PG} as a link to {production.data}, and also entries"
        # In both modes it is the first that a start asks.
        assert said in call(borg_archive_info.main, **made.options(archive))["msg"]
        refused = mine.start("--check", archive=archive)
        assert refused.returncode != 0
        assert said in refused.message, refused.message
        monkeypatch.setenv("TMPDIR", str(place))
        alone = call(
            copy_plan_info.main,
            engine="postgresql",
            **made.options(archive),
            paths=[PG],
            data_directory=PG,
            user="postgres",
        )
        assert alone["failed"]
        assert alone["msg"].startswith(f"data_directory {PG} is not in what was mounted of the archive (paths), or is")
        assert remains(playbooks.session_root) == []
        assert listed(place) == []
        assert (production.connection.sql("select pg_postmaster_start_time()"), production.pid) == (before, pid)


@needs_root
def test_a_device_node_is_refused_by_whoever_looks_at_the_copy(
    made: Made, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(place))
    archive = made.archive("hostile", ("b", f"{PG}/base/a/b/disk", (7, 0)))
    result = call(
        copy_plan_info.main,
        engine="postgresql",
        **made.options(archive),
        paths=[PG],
        data_directory=PG,
        user="postgres",
    )
    assert result["failed"]
    assert result["msg"].startswith(f"SESSION/merged/{PG}/base/a/b/disk is a device node, and no database has one: use")


def test_the_small_files_of_very_many_databases_are_read(made: Made) -> None:
    """More paths than one command line can hold."""
    deep = "/".join(["d" * 250] * 8)
    paths = [f"{deep}/{number:03}/PG_VERSION" for number in range(600)]
    archive = made.archive("many", *(("-", path, f"{number}".encode()) for number, path in enumerate(paths)))
    repository = _repository.Repository(made.repository.location, passphrase=made.repository.passphrase)
    name = archive.rpartition("::")[2]
    items = [item for item in repository.list_items(name) if item.path in set(paths)]
    contents = repository.read_files(name, items)
    assert contents == {path: f"{number}".encode() for number, path in enumerate(paths)}


# -- what is mounted of it


@pytest.fixture
def archived_nodes(made: Made, place: Path) -> Iterator[str]:
    """The mount of an archive with device nodes, whose owner is to be postgres; all of this host can open the like."""
    archive = made.archive("nodes", ("c", f"{PG}/zero", (1, 5)), ("b", f"{PG}/disk", (7, 0)), ("p", f"{PG}/pipe", None))
    os.mknod(place / "zero", 0o666 | stat.S_IFCHR, os.makedev(1, 5))
    os.chmod(place / "zero", 0o666)
    assert forked(lambda: _outcome(str(place / "zero"), os.O_RDONLY), user=pwd.getpwnam("postgres")) == "opened"
    mountpoint = str(place / "archive")
    done = call(borg_mount.main, **made.options(archive), mountpoint=mountpoint, paths=[PG], owner="postgres")
    assert not done.get("failed"), done
    yield mountpoint
    assert call(borg_mount.main, mountpoint=mountpoint, state="unmounted")["changed"]


@needs_root
@pytest.mark.parametrize("driver", ["block", "overlayfs"])
def test_archived_device_nodes_are_shown_and_not_opened(archived_nodes: str, place: Path, driver: str) -> None:
    """Neither by the server's user, to whom they seem to belong, nor by root, nor through Borg's mount."""
    merged = str(place / "merged")
    arguments = {"lower": [archived_nodes], "upper": str(place / "upper"), "mountpoint": merged, "driver": driver}
    done = call(overlay_mount.main, **arguments, owner="postgres")
    assert not done.get("failed"), done
    try:
        assert [_flags(path) >= {"nodev", "nosuid"} for path in (archived_nodes, merged)] == [True, True]
        for user in (pwd.getpwnam("postgres"), None):
            for top in (archived_nodes, merged):
                for name in ("zero", "disk"):
                    path = f"{top}/{PG}/{name}"
                    assert forked(lambda path=path: _outcomes(path), user=user) == ["EACCES"] * 3, path
        zero, disk = (os.lstat(f"{merged}/{PG}/{name}") for name in ("zero", "disk"))
        assert (stat.S_ISCHR(zero.st_mode), zero.st_rdev) == (True, os.makedev(1, 5))
        assert (stat.S_ISBLK(disk.st_mode), disk.st_rdev) == (True, os.makedev(7, 0))
        assert stat.S_ISFIFO(os.lstat(f"{merged}/{PG}/pipe").st_mode)
        assert not call(overlay_mount.main, **arguments, owner="postgres")["changed"]
    finally:
        assert call(overlay_mount.main, mountpoint=merged, state="unmounted")["changed"]


@needs_root
@pytest.mark.parametrize("driver", ["block", "overlayfs"])
def test_a_device_node_that_is_made_in_the_layer_is_none(place: Path, driver: str) -> None:
    (place / "lower").mkdir()
    merged = place / "merged"
    arguments = {"lower": [str(place / "lower")], "upper": str(place / "upper"), "mountpoint": str(merged)}
    assert call(overlay_mount.main, **arguments, driver=driver)["changed"]
    try:
        try:
            os.mknod(merged / "zero", 0o666 | stat.S_IFCHR, os.makedev(1, 5))
        except PermissionError:
            assert driver == "block"
        else:
            assert _outcomes(str(merged / "zero")) == ["EACCES"] * 3
        os.mkfifo(merged / "pipe")
        assert os.listdir(merged) in (["pipe"], ["pipe", "zero"], ["zero", "pipe"])
    finally:
        call(overlay_mount.main, mountpoint=str(merged), state="unmounted")


@needs_root
def test_a_layer_that_devices_could_be_opened_through_is_none_of_ours(place: Path) -> None:
    lower, upper, work, merged = (place / name for name in ("lower", "upper", "work", "merged"))
    for path in (lower, upper, work, merged):
        path.mkdir()
    options = f"lowerdir={lower},upperdir={upper},workdir={work}"
    subprocess.run(["mount", "-t", "overlay", "overlay", "-o", options, merged], check=True)
    try:
        arguments = {"lower": [str(lower)], "upper": str(upper), "mountpoint": str(merged), "driver": "overlayfs"}
        refused = call(overlay_mount.main, **arguments)
        assert refused["failed"]
        assert f"The layer at {merged} was mounted without nodev and nosuid, so that" in refused["msg"], refused["msg"]
    finally:
        subprocess.run(["umount", merged], check=True)


@needs_root
def test_an_ordinary_users_mounts_are_as_safe(made: Made, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = made.archive("nodes", ("c", f"{PG}/zero", (1, 5))).rpartition("::")[2]
    with ordinary_user("ir-nodes") as user:
        place.chmod(0o755)
        repository = made.repository.copy(place / "mine", owner=user.pw_name)
        monkeypatch.setenv("BORG_BASE_DIR", f"{user.pw_dir}/base")
        archive, home = f"{repository.location}::{name}", Path(user.pw_dir)
        point = str(home / "archive")
        codecs.lookup("ascii")  # afterwards this Python's own files may be out of reach
        done = forked(
            lambda: call(borg_mount.main, **made.options(archive), mountpoint=point, paths=[PG]),
            user=user,
        )
        assert not done.get("failed"), done
        try:
            with Layer(lower=[home / "archive"], directory=home / "layer", user=user) as layer:
                for top in (point, str(layer.root)):
                    assert _flags(top) >= {"nodev", "nosuid"}
                    assert forked(lambda top=top: _outcomes(f"{top}/{PG}/zero"), user=user) == ["EACCES"] * 3
        finally:
            forked(lambda: call(borg_mount.main, mountpoint=point, state="unmounted"), user=user)


def _outcomes(path: str) -> list[str]:
    return [_outcome(path, flags) for flags in (os.O_RDONLY, os.O_WRONLY, os.O_RDWR | os.O_NONBLOCK)]


def _outcome(path: str, flags: int) -> str:
    try:
        os.close(os.open(path, flags))
    except OSError as error:
        return os.strerror(error.errno or 0) if not isinstance(error, PermissionError) else "EACCES"
    return "opened"


def _flags(mountpoint: str) -> set[str]:
    """The flags of a mount; not the options of its file system, which are only words."""
    lines = [line.split(" ") for line in mountinfo()]
    return next(set(line[5].split(",")) for line in lines if line[4] == mountpoint)
