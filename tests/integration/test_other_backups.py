# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Archives of backups that are no data directory: what they are is told, and what to do with them.

Dumps, base backups and images are real. The repositories of pgBackRest, Barman and WAL-G are made up: a few files with
the names that these tools give them.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import struct
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._host import compressed as _compressed
from ansible_collections.phpborg.instant_recovery.plugins.modules import borg_archive_info

from tests.support.cluster import DATABASE, Cluster, fingerprint
from tests.support.damage import Chunks, delete
from tests.support.host import remains
from tests.support.modules import call
from tests.support.repository import Repository
from tests.support.stack import Stack

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.playbook import Playbooks

LONG = 3 << 20  # bytes, of what is larger than any file that is read as a whole


@dataclasses.dataclass(frozen=True)
class Made:
    """What a running cluster is dumped and backed up to: a directory for each archive, in `top`."""

    repository: Repository
    cluster: Cluster
    top: Path

    def directory(self, name: str) -> Path:
        made = self.top / name
        made.mkdir(parents=True, exist_ok=True)
        return made

    def output(self, program: str, *options: str) -> bytes:
        """What a program of PostgreSQL's prints."""
        argv = [f"{self.cluster.bindir}/{program}", *options, "-h", str(self.cluster.run), "-U", self.cluster.superuser]
        own = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"] if os.geteuid() == 0 else []
        return subprocess.run([*own, *argv], stdout=subprocess.PIPE, check=True, cwd="/").stdout

    def archive(self, directory: str, name: str | None = None) -> str:
        """Archive the directory of that name."""
        self.repository.archive(name or directory, ".", cwd=self.top / directory)
        return f"{self.repository.location}::{name or directory}"


@pytest.fixture(scope="module")
def made(shared_place: Path) -> Iterator[Made]:
    top = shared_place / "others"
    top.mkdir()
    repository = Repository(directory=top / "repository", base=top / "borg")
    repository.create()
    with Cluster(directory=top / "prod") as cluster:
        cluster.populate()
        yield Made(repository, cluster, top / "archived")


@pytest.fixture
def looking(made: Made, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Options of the module that open the repository."""
    monkeypatch.setenv("BORG_BASE_DIR", str(made.repository.base))
    return {"passphrase": made.repository.passphrase}


def told(looking: dict[str, Any], archive: str) -> str:
    """The refusal, which names the remedy for all that was found."""
    refused = call(borg_archive_info.main, **looking, archive=archive)
    assert refused["failed"]
    assert all(one["remedy"] in refused["msg"] for one in refused["other_backups"])
    return str(refused["msg"])


DUMPS = (
    ("borgmatic/postgresql_databases/localhost/shop", "pg_dump -Fc", ""),
    ("nightly", "pg_dump -Ft", ""),
    ("dump.of.today", "pg_dumpall", ""),
    ("x/shop", "pg_dump", "gzip"),
    ("shop.bz2", "pg_dump", "bzip2"),
    ("shop.backup.xz", "pg_dump", "xz"),
    ("all.sql.zst", "pg_dumpall", "zstd"),
    ("all.lz4", "pg_dumpall", "lz4"),
)


@pytest.mark.parametrize("turn", [0, 1])
def test_dumps_under_any_name_and_compression(made: Made, looking: dict[str, Any], turn: int) -> None:
    """Of what nobody knows by its name the largest eight are looked into."""
    dumps = DUMPS[turn::2]
    for path, command, program in dumps:
        last = () if command.startswith("pg_dumpall") else (DATABASE,)
        dump = made.output(*command.split(), *last)
        if program:
            dump = subprocess.run([program, "-c"], input=dump, stdout=subprocess.PIPE, check=True).stdout
        place = made.directory(f"dumps-{turn}") / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(dump)
    (made.directory(f"dumps-{turn}") / "log").write_bytes(os.urandom(LONG))
    says = told(looking, made.archive(f"dumps-{turn}"))
    assert "holds only logical dumps, no data directory to start a server on: " in says
    assert [path for path, _command, _program in dumps if f"{path} (postgresql" not in says] == []
    assert says.endswith("Load the dump into a server of your own.")


def test_a_dump_from_standard_input(made: Made, looking: dict[str, Any]) -> None:
    archive = f"{made.repository.location}::stdin"
    argv = ["borg", "create", archive, "-"]
    environment = {**os.environ, **made.repository.environment}
    subprocess.run(argv, input=made.output("pg_dumpall"), env=environment, check=True)
    assert "only logical dumps, no data directory to start a server on: stdin (postgresql " in told(looking, archive)
    # Without a database being required the same is in the result.
    refused = call(borg_archive_info.main, **looking, archive=archive)
    listed = call(borg_archive_info.main, **looking, archive=archive, require_database=False)
    assert [one["path"] for one in listed["other_backups"]] == [one["path"] for one in refused["other_backups"]]
    assert listed["databases"] == refused["databases"]


def test_a_dump_in_directory_format(made: Made, looking: dict[str, Any]) -> None:
    target = made.top.parent / "prod" / "format-d"
    made.output("pg_dump", "-Fd", "-f", str(target), DATABASE)
    made.repository.archive("directory", "format-d", cwd=target.parent)
    says = told(looking, f"{made.repository.location}::directory")
    assert "only logical dumps, no data directory to start a server on: format-d/toc.dat (postgresql" in says


def test_a_base_backup_in_tar_format(made: Made, looking: dict[str, Any]) -> None:
    for number, options in enumerate(("-Ft", "-Ft -z", "-Ft -Z zstd -X none", "-Ft -X fetch -Z lz4")):
        target = made.top.parent / "prod" / f"base-{number}"
        made.output("pg_basebackup", *options.split(), "-c", "fast", "-D", str(target))
        shutil.move(target, made.directory("bases") / "kept" / str(number))
        base = next((made.directory("bases") / "kept" / str(number)).glob("base.tar*"))
        shutil.copy(base, made.directory("alone") / f"monday-{number}")
    says = told(looking, made.archive("bases"))
    assert "holds no data directory to start a server on. " in says
    for path in ("kept/0/base.tar", "kept/1/base.tar.gz", "kept/2/base.tar.zst", "kept/3/base.tar.lz4"):
        assert f"{path} is a base backup of PostgreSQL in tar format: unpack it into an empty directory, " in says
    assert "unpack it into an empty directory, pg_wal.tar into its pg_wal, and archive that directory" in says
    # Alone and under another name it is known by its content.
    says = told(looking, made.archive("alone"))
    for number in range(4):
        assert f"monday-{number} is a base backup of PostgreSQL in tar format: unpack it into an empty" in says


def test_an_image_of_a_file_system(made: Made, looking: dict[str, Any]) -> None:
    """As `borg create --read-special` of an LVM snapshot has it; and as `dd | gzip` has it."""
    place = made.directory("image") / "dev" / "vg0"
    place.mkdir(parents=True)
    tree = made.directory("tree")
    (tree / "PG_VERSION").write_text("15\n")
    subprocess.run(["truncate", "-s", "64M", place / "pgdata-snapshot"], check=True)
    subprocess.run(["/usr/sbin/mkfs.ext4", "-q", "-d", tree, place / "pgdata-snapshot"], check=True)
    assert told(looking, made.archive("image")) == (
        "Archive image holds no data directory to start a server on. dev/vg0/pgdata-snapshot is an image of a file "
        "system (ext2, ext3 or ext4): extract it (borg extract), mount it (mount -o loop), and archive the data "
        "directory in it with borg create."
    )
    subprocess.run(["gzip", "-1", place / "pgdata-snapshot"], check=True)
    says = told(looking, made.archive("image", "image-gz"))
    assert "dev/vg0/pgdata-snapshot.gz is an image of a file system (ext2, ext3 or ext4): extract it" in says


TOOLS = {
    "pgbackrest": (
        "of a repository of pgBackRest: have it restore that to a directory (pgbackrest --stanza=NAME",
        ["backup/main/backup.info", "backup/main/20261126-010203F/backup.manifest"],
        "backup/main/20261126-010203F/pg_data/base/5/1259.gz",
    ),
    "barman": (
        "of a repository of Barman: have it restore that to a directory (barman recover SERVER latest DIRECTORY)",
        ["db1/base/20261126T010203/backup.info", "db1/identity.json"],
        "db1/base/20261126T010203/data/base.tar.gz",
    ),
    "wal-g": (
        "of a repository of WAL-G or WAL-E: have it restore that to a directory (wal-g backup-fetch DIRECTORY LATEST)",
        ["basebackups_005/base_000000010000000000000003_backup_stop_sentinel.json"],
        "basebackups_005/base_000000010000000000000003/tar_partitions/part_001.tar.br",
    ),
}


def test_repositories_of_other_tools(made: Made, looking: dict[str, Any]) -> None:
    for tool, (_says, signs, data) in TOOLS.items():
        for path, content in [(data, os.urandom(LONG)), *((path, b"[x]\n") for path in signs)]:
            place = made.directory("tools") / tool / path
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(content)
    refusal = told(looking, made.archive("tools"))
    for tool, (says, signs, _data) in TOOLS.items():
        assert any(f"{tool}/{path} is {says}" in refusal for path in signs), refusal


def test_a_full_backup_of_pg_probackup_without_compression(made: Made, looking: dict[str, Any]) -> None:
    """It has the names of a data directory; each page has a header before it. Made here of a real data directory."""
    place = made.directory("probackup") / "backups" / "main" / "SQ1AB2"
    made.output("pg_basebackup", "-c", "fast", "-D", str(made.top.parent / "prod" / "plain"))
    shutil.copytree(made.top.parent / "prod" / "plain", place / "database")
    table = place / "database" / "base" / "5" / "1259"
    pages = [table.read_bytes()[at : at + 8192] for at in range(0, table.stat().st_size, 8192)]
    table.write_bytes(b"".join(struct.pack("<II", at, 8192) + page for at, page in enumerate(pages)))
    (place / "backup.control").write_text("#Configuration\nbackup-mode = FULL\nstream = true\ncompress-alg = none\n")
    says = told(looking, made.archive("probackup"))
    assert (
        "holds no data directory to start a server on. backups/main/SQ1AB2/backup.control is of a repository of "
        in says
    )
    assert "pg_probackup: have it restore that to a directory (pg_probackup restore -B CATALOG --instance NAME" in says


def test_without_the_program_a_compressed_file_is_told(
    made: Made, looking: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_compressed, "find_program", lambda _name: None)
    (made.directory("unseen") / "nightly\x1b[2J").write_bytes(subprocess.check_output(["zstd", "-c"], input=b"x"))
    says = told(looking, made.archive("unseen"))
    assert (
        r"start a server on. nightly\x1b[2J is a compressed file (zstd), and what is in it cannot be seen: zstd is not "
        "installed: install the package zstd."
    ) in says


def test_what_is_in_a_damaged_repository_is_told_as_far_as_it_can_be_read(
    made: Made, looking: dict[str, Any], place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (made.directory("lost") / "a").write_bytes(os.urandom(LONG))
    (made.directory("lost") / "b.sql").write_bytes(made.output("pg_dump", DATABASE))
    name = made.archive("lost").rpartition("::")[2]
    repository = made.repository.copy(place / "repository", owner="root")
    monkeypatch.setenv("BORG_BASE_DIR", str(repository.base))
    delete(repository, Chunks.of(repository, name).files["a"][0])
    says = told(looking, f"{repository.location}::{name}")
    assert "holds only logical dumps, no data directory to start a server on: b.sql (postgresql" in says
    assert f"a is a file that cannot be read: {repository.location} has lost content of a in archive lost. See" in says


def test_start_and_check_mode_tell_the_same(made: Made, playbooks: Playbooks) -> None:
    target = made.top.parent / "prod" / "told"
    made.output("pg_basebackup", "-Ft", "-z", "-c", "fast", "-D", str(target))
    made.repository.archive("told", "told", cwd=target.parent)
    mine = dataclasses.replace(playbooks, environment=made.repository.environment)
    for options in ((), ("--check",)):
        refused = mine.start(*options, archive=f"{made.repository.location}::told")
        assert refused.returncode != 0
        assert "told/base.tar.gz is a base backup of PostgreSQL in tar format: unpack it into an" in refused.message
    assert remains(playbooks.session_root) == []


def test_the_cure_for_a_base_backup_in_tar_format_is_one(made: Made, copies: Path) -> None:
    target = made.top.parent / "prod" / "cured"
    made.output("pg_basebackup", "-Ft", "-z", "-X", "fetch", "-c", "fast", "-D", str(target))
    made.repository.borg("import-tar", f"{made.repository.location}::cured", str(target / "base.tar.gz"))
    stack = Stack.of(copies / "sessions", made.repository, "cured").start()
    assert fingerprint(stack.connection()) == made.cluster.fingerprint()
    stack.change("absent")
    assert remains(stack.root) == []
