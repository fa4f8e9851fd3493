# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is recognised by first bytes and by names. Of most kinds of images there is only the magic."""

from __future__ import annotations

import bz2
import functools
import gzip
import io
import lzma
import random
import shutil
import subprocess
import tarfile
import time
import zipfile
from typing import TYPE_CHECKING

import pytest
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._borg.items import Item
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._engine.contents import look_at
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._engine.listing import Listing
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._engine.other_backups import (
    BEGINNING,
    IMAGES,
    Dump,
    OtherBackup,
)
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._engines.contents import CONTENTS, find_databases
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._host import compressed as _compressed
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._host.compressed import (
    Beginning,
    beginning,
    compressed_size,
)
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._postgresql.other_backups import Signs

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

KINDS = [kind(Listing()) for kind in CONTENTS]
PG_DUMP = b"--\n-- PostgreSQL database dump\n--\n\n-- Dumped from database version 15.18 (Debian)\n"
# Does not get smaller by compression, and is more than one block of any program.
LONG = random.Random(1).randbytes(9 << 20)


def tar(*names: str, content: bytes = b"x") -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w", format=tarfile.USTAR_FORMAT) as file:
        for name in names:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            file.addfile(member, io.BytesIO(content))
    return made.getvalue()


def what(content: bytes, size: int = 1 << 20, compression: str | None = None) -> str | None:
    found = look_at("x", size, Beginning(content[:BEGINNING], compression), KINDS)
    return found.what if found else None


def test_what_hides_its_content_is_told() -> None:
    gpg = ["gpg", "--batch", "--passphrase", "x", "--pinentry-mode", "loopback", "-c", "-o", "-"]
    if shutil.which("gpg"):
        encrypted = subprocess.run(gpg, input=PG_DUMP, capture_output=True, check=False).stdout
        assert what(encrypted or b"\x8c\x0d\x04\x09\x03\x02") == "a file encrypted by GnuPG"
    for begin in (b"-----BEGIN PGP MESSAGE-----\n", b"\x85\x02\x0c\x03\x11", b"\x84\x5e\x03\x11"):
        assert what(begin + LONG[:100]) == "a file encrypted by GnuPG"
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as file:
        file.writestr("shop.zst", LONG[:1000])
    assert what(packed.getvalue()) == "a zip file"
    assert what(b"age-encryption.org/v1\n-> X25519 x") == "a file encrypted by age"
    assert what(b"Salted__" + LONG[:100]) == "a file encrypted by OpenSSL"


# -- compression


def compressed(name: str, content: bytes) -> bytes:
    """With little effort: how small it becomes is nobody's concern."""
    xz = functools.partial(lzma.compress, preset=0)
    libraries = {"gzip": gzip.compress, "bzip2": functools.partial(bz2.compress, compresslevel=1), "xz": xz}
    if name in libraries:
        return libraries[name](content)
    return subprocess.run([name, "-c", "-q"], input=content, stdout=subprocess.PIPE, check=True).stdout


@pytest.mark.parametrize("name", ["gzip", "bzip2", "xz", "zstd", "lz4"])
@pytest.mark.parametrize("content", [PG_DUMP, PG_DUMP + LONG], ids=["whole", "cut off"])
def test_the_beginning_of_a_compressed_file(name: str, content: bytes) -> None:
    data = compressed(name, content)
    begun = data[:BEGINNING]
    begun = data[: compressed_size(begun, BEGINNING)]
    found = beginning(begun, BEGINNING)
    assert (found.compression, found.problem) == (name, None)
    assert content.startswith(found.content)
    assert min(len(content), BEGINNING) >= len(found.content) >= len(PG_DUMP)


@pytest.mark.parametrize("name", ["gzip", "bzip2", "xz", "zstd", "lz4"])
def test_what_is_made_of_a_bomb_is_bounded(name: str) -> None:
    data = compressed(name, bytes(32 << 20))
    begun = data[: compressed_size(data, BEGINNING)]
    began = time.monotonic()
    assert beginning(begun, BEGINNING).content == bytes(BEGINNING)
    assert time.monotonic() - began < 20


@pytest.mark.parametrize("magic", [b"\x1f\x8b", b"BZh", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd", b"\x04\x22\x4d\x18"])
def test_what_only_begins_like_a_compressed_file(magic: bytes) -> None:
    found = beginning(magic + b"broken", BEGINNING)
    assert found.content == magic + b"broken"
    assert found.problem
    assert found.problem.startswith("it is damaged, or no ")


def test_without_the_program_only_the_magic_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_compressed, "find_program", lambda _name: None)
    found = look_at("a/all.sql.zst", 100, beginning(b"\x28\xb5\x2f\xfdxyz", BEGINNING), KINDS)
    assert str(found) == (
        "a/all.sql.zst is a compressed file (zstd), and what is in it cannot be seen: zstd is not installed: install "
        "the package zstd."
    )


# -- dumps


@pytest.mark.parametrize(
    ("content", "dump"),
    [
        (PG_DUMP, Dump("postgresql", "15.18")),
        (b"PGDMP\x01\x0e\x00", Dump("postgresql", None)),
        (tar("toc.dat", "3350.dat", "restore.sql"), Dump("postgresql", None)),
        (b"\xef\xbb\xbf" + PG_DUMP, Dump("postgresql", "15.18")),
        (PG_DUMP.decode().encode("utf-16"), Dump("postgresql", "15.18")),
        (b"/*M!999999\\- enable the sandbox mode */ \n-- MariaDB dump 10.19\n", Dump("mariadb", None)),
        (b"-- MySQL dump 10.13\n--\n-- Server version\t8.0.36\n", Dump("mysql", "8.0.36")),
        (b"-- Dump created by MySQL pump utility, version: 8.0.36\n", Dump("mysql", None)),
        (b"\n" * 20_000 + PG_DUMP, None),  # somebody writes about dumps
        (b"#!/bin/sh\necho '-- PostgreSQL database dump'\n", None),
        (b"", None),
    ],
)
def test_dumps(content: bytes, dump: Dump | None) -> None:
    found = look_at("x", len(content), Beginning(content), KINDS)
    assert (found if isinstance(found, Dump) else None) == dump


# -- tar files


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (["backup_label", "tablespace_map", "pg_wal/", "base/1/112"], "a base backup of PostgreSQL in tar format"),
        (["000000010000000000000002", "archive_status/0000.done"], "WAL of PostgreSQL in tar format"),
        (["PG_15_202209061/5/16384"], "a tablespace of PostgreSQL in tar format"),
        (["./var/lib/pg/base/1/1", "./var/lib/pg/PG_VERSION"], "a tar file of a database's data directory"),
        (["d" * 150 + "/ibdata1"], "a tar file of a database's data directory"),
        (["readme"], "a tar file"),
    ],
)
def test_tar_files(names: Sequence[str], says: str) -> None:
    assert what(tar(*names)) == says


@pytest.mark.parametrize("size", [b"-0000000001\0", b"\x80" + b"\xff" * 11, b"0o17\0", b"9" * 12, b" " * 12, b"7" * 12])
def test_a_tar_file_with_any_size_is_looked_through_once(size: bytes) -> None:
    header = bytearray(tar("PG_VERSION")[:512])
    header[124:136] = size.ljust(12, b"\0")
    assert what(bytes(header) * 200) == "a tar file of a database's data directory"


# -- images


@pytest.mark.parametrize("number", range(len(IMAGES)), ids=[f"{image.what} {image.offset}" for image in IMAGES])
def test_magics(number: int) -> None:
    image = IMAGES[number]
    content = bytearray(BEGINNING)
    content[image.offset : image.offset + len(image.magic)] = image.magic
    if image.offset == 1080:
        content[1024] = 1  # inodes
    if image.offset == 510:
        content[446:462] = b"\x80\0\0\0\x83\0\0\0\1\0\0\0\1\0\0\0"
    assert what(bytes(content)) == image.what
    assert what(bytes(content), size=100) is None  # too small to be one
    assert what(bytes(content), size=100, compression="gzip") == image.what


def test_real_images(tmp_path: Path) -> None:
    image = tmp_path / "image"
    for kind in ("ext2", "ext4"):
        with image.open("wb") as file:
            file.truncate(1 << 20)
        subprocess.run([f"/usr/sbin/mkfs.{kind}", "-q", "-F", image], check=True)
        assert what(image.read_bytes()) == "an image of a file system (ext2, ext3 or ext4)"


@pytest.mark.parametrize(
    "content",
    [
        bytes(BEGINNING),
        b"\xff" * BEGINNING,
        bytes(510) + b"\x55\xaa" + bytes(BEGINNING),  # a boot sector without a partition
        bytes(1080) + b"\x53\xef" + b"\1" * BEGINNING,
        b"text " * 30_000,
    ],
)
def test_what_is_no_image(content: bytes) -> None:
    assert what(content) is None


# -- other tools


@pytest.mark.parametrize(
    ("path", "tool"),
    [
        ("var/lib/pgbackrest/backup/main/backup.info", "pgBackRest"),
        ("backup/main/20261126-010203F/backup.manifest", "pgBackRest"),
        ("20261126-010203F_20261127-010203I/backup.manifest.copy", "pgBackRest"),
        ("barman/db1/base/20261126T010203/backup.info", "Barman"),
        ("db1/meta/20261126T010203-backup.info", "Barman"),
        ("srv/pgmoneta/primary/backup/20261126010203/backup.info", "pgmoneta"),
        ("wal-g/basebackups_005/base_000000010000000000000003_backup_stop_sentinel.json", "WAL-G or WAL-E"),
        ("line\nbreak/basebackups_005/base_000000010000000000000003_backup_stop_sentinel.json", "WAL-G or WAL-E"),
        ("catalog/backups/main/SQ1/backup_content.control", "pg_probackup"),
        ("etc/backup.info", None),
        ("home/x/my-backup.info", None),
        ("notes/backup.manifest", None),
    ],
)
def test_repositories_of_other_tools(path: str, tool: str | None) -> None:
    signs = Signs(lambda _path: None)
    for _twice in range(2):
        signs.note(path, *path.rpartition("/")[::2])
    assert [(one.path, one.what) for one in signs.found()] == ([(path, f"of a repository of {tool}")] if tool else [])


def test_what_only_looks_like_a_data_directory() -> None:
    """Pages of pg_probackup, whatever its catalogue has beside them; others beside them are as good as ever."""
    pages, contents = {}, {}
    for name in ("backups/main/SQ1/database", "srv/database"):
        pages.update({f"{name}/PG_VERSION": b"15\n", f"{name}/global/pg_control": b"x", f"{name}/base/5/1259": b"x"})
    contents = {"backups/main/SQ1/backup.control": b"backup-mode = FULL\n", **pages}
    items = [Item(path, "-", len(content), "postgres") for path, content in contents.items()]

    def find(items: list[Item]) -> tuple[list[str], list[str]]:
        found, catalogue = find_databases(items, read=lambda _items: contents, begin=lambda *_: {})
        return [one.data_directory for one in found], [one.what for one in catalogue.others]

    assert find(items) == (["srv/database"], [])
    items = [item for item in items if not item.path.startswith("srv")]
    assert find(items) == ([], ["of a repository of pg_probackup"])
    items.append(Item("backups/main/SQ1/backup_content.control", "-", 1, "postgres"))
    assert find(items) == ([], ["of a repository of pg_probackup"])


def test_a_base_backup_by_its_names() -> None:
    kept: list[str] = []
    signs = Signs(kept.append)
    for path in (
        "a/base.tar.gz",
        "a/backup_manifest",
        "b/base.tar.zst",
        "b/pg_wal.tar.zst",
        "c/base.tar",
        "d/backup_manifest",
    ):
        signs.note(path, *path.rpartition("/")[::2])
    assert [one.path for one in signs.found()] == ["a/base.tar.gz", "b/base.tar.zst"]
    for number in range(10_000):
        signs.note(f"{number}/base.tar", f"{number}", "base.tar")
    assert len(kept) < 1000


def test_names_act_on_no_terminal() -> None:
    assert str(OtherBackup("a\x1b[2J\nb", "a tar file", "look")) == r"a\x1b[2J\x0ab is a tar file: look."


def test_names_do_not_take_long() -> None:
    signs = Signs(lambda _path: None)
    began = time.process_time()
    for path in (
        "backup/" * 580 + "backup.info",
        "/" * 4000 + "backup.manifest",
        "basebackups_005/" * 250 + "_sentinel.json",
    ):
        for _time in range(100):
            signs.note(path, *path.rpartition("/")[::2])
    assert time.process_time() - began < 5
