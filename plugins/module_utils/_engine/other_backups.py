# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What an archive may hold instead of a data directory: dumps, tar files, images, encrypted files.

They are known by the first bytes of their files. What is one engine's is told by its Contents. Everything here is pure.
Whoever made the archive may wish this host ill: what is looked at is bounded.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import NamedTuple

from .._errors import shown
from .._host.compressed import Beginning

__all__ = [
    "BEGINNING",
    "Dump",
    "OtherBackup",
    "dump_header",
    "dump_of",
    "is_probable",
    "of_no_engine",
    "tar_members",
    "unseen",
]

# Bytes of a file's content that are looked at: file systems say what they are within the first 128 KiB.
BEGINNING = 128 * 1024
DUMP_HEADER = 16 * 1024  # bytes; programs that write dumps say so in the first lines
SMALLEST_IMAGE = 64 * 1024  # bytes; of a file system, a volume or a disk
SECTOR = 512


@dataclass(frozen=True)
class OtherBackup:
    """A file of the archive that is, or is part of, a backup which no server can be started on; remedy: what can."""

    path: str
    what: str
    remedy: str

    def __str__(self) -> str:
        return f"{shown(self.path)} is {self.what}: {self.remedy}."

    def as_dict(self) -> dict[str, str]:
        """Plain data for a module's result."""
        return asdict(self)


class Dump(NamedTuple):
    """What a logical dump says of itself."""

    engine: str
    version: str | None


# -- dumps

DUMP_VERSION = re.compile(rb"Dumped from database version (\d+(?:\.\d+)*)|Server version\s+(\d+(?:\.\d+)+)")
# As programs on Windows write text, whatever is in it.
UTF_16 = (b"\xff\xfe", b"\xfe\xff")
# By their names only the order is decided in which files are looked at: borgmatic's have none that says anything.
PROBABLE_NAME = re.compile(
    r"\.(?:sql|[a-z]{0,9}dump|dmp|backup|custom|archive|tar|tgz|img|raw|qcow2|vmdk|vdi|zip|7z)"
    r"(?:\.(?:gz|bz2|xz|zst|lz4|gpg|pgp|age|enc))*$"
    r"|^toc\.dat$|^stdin$",
    re.IGNORECASE,
)
PROBABLE_PLACE = re.compile(r"(?:^|/)[a-z]{1,20}_databases(?:/|$)")


def is_probable(directory: str, name: str) -> bool:
    """Whether a file is called like a dump, or like one of the other kinds."""
    return bool(PROBABLE_NAME.search(name) or PROBABLE_PLACE.search(directory))


def dump_header(content: bytes) -> bytes:
    """The beginning of a file in which programs that write dumps say so, as UTF-8."""
    if content.startswith(UTF_16):
        content = content.decode("utf-16", "replace").encode()
    return content[:DUMP_HEADER]


def dump_of(engine: str, pattern: re.Pattern[bytes], header: bytes) -> Dump | None:
    """The dump of an engine's that begins like this, if it is one."""
    if not pattern.search(header):
        return None
    version = DUMP_VERSION.search(header)
    return Dump(engine, (version.group(1) or version.group(2)).decode() if version else None)


# -- tar files

OCTAL = re.compile(rb"[0-7]{0,12}")
TAR_MAGIC = b"ustar"  # of all that is written today, at offset 257
UNPACK_TAR = "archive the files that are in it instead, which borg import-tar makes of it without unpacking"


def tar_members(content: bytes) -> list[str]:
    """Names of the members of a tar file whose headers are in its beginning; nothing where it is none."""
    return list(_tar_members(content))


def _tar_members(content: bytes) -> Iterator[str]:
    offset = 0
    while content.startswith(TAR_MAGIC, offset + 257):
        header = content[offset : offset + SECTOR]
        name, prefix = (header[part].split(b"\0")[0] for part in (slice(0, 100), slice(345, 500)))
        path = posixpath.join(prefix.decode("utf-8", "replace"), name.decode("utf-8", "replace"))
        yield path[2:] if path.startswith("./") else path
        digits = header[124:136].strip(b" \0")
        if not OCTAL.fullmatch(digits):  # it is too large for this way to write it, or no number
            return
        size = int(digits or b"0", 8)
        offset += SECTOR + (size + SECTOR - 1) // SECTOR * SECTOR


def _in_tar(path: str, members: Sequence[str], data_files: Container[str]) -> OtherBackup | None:
    if not members:
        return None
    if any(posixpath.basename(name) in data_files for name in members):
        return OtherBackup(path, "a tar file of a database's data directory", UNPACK_TAR)
    return OtherBackup(path, "a tar file", f"if a data directory is in it, {UNPACK_TAR}")


# -- images


class _Image(NamedTuple):
    """What has a magic at an offset, and where that is short, is plausible."""

    what: str
    remedy: str
    offset: int
    magic: bytes
    is_plausible: Callable[[bytes], bool] = lambda _content: True


ARCHIVE_IT = "archive the data directory in it with borg create"
MOUNT = f"extract it (borg extract), mount it (mount -o loop), and {ARCHIVE_IT}"


def _attach(how: str) -> str:
    return f"extract it (borg extract), attach it ({how}), mount the file system in it, and {ARCHIVE_IT}"


def _receive(how: str) -> str:
    return f"receive it ({how}), and {ARCHIVE_IT}"


def _is_ext(content: bytes) -> bool:
    """Whether an ext superblock's block size, first data block and magic can be meant: the latter is of two bytes."""
    block_size, first = (int.from_bytes(content[1024 + at : 1028 + at], "little") for at in (24, 20))
    return block_size <= 6 and first <= 1 and any(content[1024:1028])


def _has_partitions(content: bytes) -> bool:
    """Whether a boot sector has a partition: many things end with its magic, of two bytes."""
    entries = [content[446 + 16 * number :][:16] for number in range(4)]
    known = all(entry[:1] in (b"\0", b"\x80") for entry in entries)
    return known and any(entry[4:5] != b"\0" and any(entry[12:16]) for entry in entries)


PARTITIONED, VIRTUAL = _attach("losetup -P"), _attach("qemu-nbd --connect")
FILE_SYSTEMS = (
    ("xfs", 0, b"XFSB"),
    ("squashfs", 0, b"hsqs"),
    ("btrfs", 0x10040, b"_BHRfS_M"),
    ("reiserfs", 0x10034, b"ReIsEr"),
    ("jfs", 0x8000, b"JFS1"),
    ("f2fs", 1024, b"\x10\x20\xf5\xf2"),
    ("iso9660", 0x8001, b"CD001"),
    ("ntfs", 3, b"NTFS    "),
    ("fat", 54, b"FAT1"),
    ("fat", 82, b"FAT32   "),
)
# Of a disk with GPT the boot sector says that it has one partition; a boot sector is also that of a file system.
IMAGES = (
    _Image("an image of a disk (qcow2)", VIRTUAL, 0, b"QFI\xfb"),
    _Image("an image of a disk (VMDK)", VIRTUAL, 0, b"KDMV"),
    _Image("an image of a disk (VMDK)", VIRTUAL, 0, b"# Disk DescriptorFile"),
    _Image("an image of a disk (VHD)", VIRTUAL, 0, b"conectix"),
    _Image("an image of a disk (VHDX)", VIRTUAL, 0, b"vhdxfile"),
    _Image("an image of a disk (VDI)", VIRTUAL, 64, b"\x7f\x10\xda\xbe"),
    _Image("an encrypted volume (LUKS)", _attach("losetup, cryptsetup open"), 0, b"LUKS\xba\xbe"),
    _Image("a stream of zfs send", _receive("zfs receive"), 8, b"\xac\xcb\xba\xf5\x02"),
    _Image("a stream of btrfs send", _receive("btrfs receive"), 0, b"btrfs-stream\0"),
    _Image("an image of a file system (ext2, ext3 or ext4)", MOUNT, 1080, b"\x53\xef", _is_ext),
    *(_Image(f"an image of a file system ({name})", MOUNT, at, magic) for name, at, magic in FILE_SYSTEMS),
    *(
        _Image("a physical volume of LVM", _attach("losetup, vgchange -ay"), sector * SECTOR, b"LABELONE")
        for sector in range(4)
    ),
    *(_Image("a part of a RAID", _attach("losetup, mdadm --assemble"), at, b"\xfc\x4e\x2b\xa9") for at in (0, 4096)),
    *(_Image("an image of a disk with partitions", PARTITIONED, at, b"EFI PART") for at in (512, 4096)),
    _Image("an image of a disk with partitions", PARTITIONED, 510, b"\x55\xaa", _has_partitions),
)
ZFS_LABEL = slice(16 << 10, 128 << 10)  # names and values


def _image(path: str, size: int, content: bytes, compression: str | None) -> OtherBackup | None:
    if size < SMALLEST_IMAGE and compression is None:
        return None
    for image in IMAGES:
        if content.startswith(image.magic, image.offset) and image.is_plausible(content):
            return OtherBackup(path, image.what, image.remedy)
    if b"pool_guid" in content[ZFS_LABEL] and b"vdev_tree" in content[ZFS_LABEL]:
        return OtherBackup(path, "a part of a pool of ZFS", _attach("losetup, zpool import -d"))
    return None


# -- what hides its content

DECRYPT = "decrypt it ({how}), and archive what is in it with borg create, which can encrypt a repository itself"
UNPACK = "unpack it, and archive the files with borg create"
# OpenPGP (RFC 4880, 5.1 and 5.3): a session key of version 3 for a public key (RSA, ECDH), or one of version 4 for a
# passphrase, which every encrypted message begins with.
OPENPGP = re.compile(
    rb"-----BEGIN PGP MESSAGE-----|\x85[\x01-\x04].\x03|\x84[\x40-\xff]\x03|\xc1[\x40-\xdf].?\x03"
    rb"|[\x8c\xc3][\x04\x0d\x2e]\x04[\x07-\x0a][\x00-\x03]",
    re.DOTALL,
)
HIDING = (
    ("a file encrypted by GnuPG", DECRYPT.format(how="gpg --decrypt"), OPENPGP),
    ("a file encrypted by age", DECRYPT.format(how="age --decrypt"), re.compile(rb"age-encryption\.org/v1\n")),
    ("a file encrypted by OpenSSL", DECRYPT.format(how="openssl enc -d"), re.compile(rb"Salted__")),
    ("a zip file", UNPACK, re.compile(rb"PK\x03\x04")),
    ("a 7z file", UNPACK, re.compile(rb"7z\xbc\xaf\x27\x1c")),
    ("a rar file", UNPACK, re.compile(rb"Rar!\x1a\x07")),
)


def _hidden(path: str, content: bytes) -> OtherBackup | None:
    found = ((what, remedy) for what, remedy, begin in HIDING if begin.match(content))
    return next((OtherBackup(path, *told) for told in found), None)


def unseen(path: str, beginning: Beginning) -> OtherBackup | None:
    """What a file is whose content cannot be seen; None where it can."""
    if beginning.problem is None:
        return None
    compressed = f"a compressed file ({beginning.compression}), and what is in it cannot be seen"
    return OtherBackup(path, compressed if beginning.compression else "a file that cannot be read", beginning.problem)


def of_no_engine(
    path: str, size: int, beginning: Beginning, members: Sequence[str], data_files: Container[str]
) -> OtherBackup | None:
    """What a file with that path, size in the archive, and beginning is, if it may be a backup and is no engine's own.

    members: those of the tar file that it is. data_files: names that files of data directories have.
    """
    found = _in_tar(path, members, data_files) or _image(path, size, beginning.content, beginning.compression)
    return found or _hidden(path, beginning.content)
