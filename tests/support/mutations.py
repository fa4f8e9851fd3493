# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ways to damage a data directory, or to make it a trap: each is chosen by a random generator, and can be told."""

from __future__ import annotations

import contextlib
import os
import shutil
import struct
from typing import TYPE_CHECKING

from ansible_collections.phpborg.instant_recovery.plugins.module_utils._postgresql.control import crc32c

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from random import Random

__all__ = ["mutate"]

CHECKSUMMED = 288  # bytes of pg_control before its checksum, in PostgreSQL 13 to 16 (struct ControlFileData)
ODD_NAMES = (
    *(b"-rf", b"a\nb", b" ", b"..a", b"%s", b"'; drop", b'"', b"\\", b"\xff\xfe", b"{{ 7 * 7 }}", b"$(id)", b"`id`"),
    *(b"x" * 255, b"\x1b[31m", "ü".encode("latin-1"), b"00000001000000000000000Z", b"backup_label.old", b"*"),
)
DIRECTORIES = ("base", "base/1", "global", "pg_wal", "pg_xact", "pg_tblspc", "pg_multixact", "pg_logical", "pg_stat")
FILES = (
    *("PG_VERSION", "global/pg_control", "global/pg_filenode.map", "global/1262", "pg_xact/0000", "base/1/1259"),
    *("base/1/PG_VERSION", "base/1/pg_filenode.map", "postgresql.conf", "postgresql.auto.conf", "pg_hba.conf"),
    *("global/1260", "base/1/1249", "base/1/2601", "pg_multixact/offsets/0000"),
)
TEXTS = (
    b"",
    b"\0" * 100,
    b"\xff" * 1000,
    b"x" * (1 << 20),
    b"START WAL LOCATION: FFFFFFFF/FFFFFFFF (file 0000000100000000000000FF)\nCHECKPOINT LOCATION: 0/0\n",
    b"START WAL LOCATION: 0/2000028 (file 000000010000000000000002)\r\nCHECKPOINT LOCATION: 0/2000060\r\n",
    b"START WAL LOCATION: 0/-1 (file ../../../etc/passwd)\nCHECKPOINT LOCATION: 99999999999/0\n",
    b"BACKUP METHOD: streamed\nBACKUP FROM: standby\nSTART TIME: never\nLABEL: \nSTART TIMELINE: 99999999999\n",
    b"16384 /CANARY\n",
    b"16384 ../../../../../../CANARY\n",
    b"-1 /\n99999999999999999999 relative\n16384\n\n16384 /a\\\nb\n",
    b"include_dir '/CANARY'\ninclude '/CANARY/file'\ninclude_if_exists '../../../../CANARY/file'\n",
    b"data_directory = '/CANARY'\nhba_file = '/CANARY/file'\nexternal_pid_file = '/CANARY/pid'\n",
    b"archive_command = 'touch /CANARY/archived'\narchive_mode = always\nrestore_command = 'touch /CANARY/restored'\n",
    b"shared_preload_libraries = '/CANARY/file'\nlog_directory = '/CANARY'\nstats_temp_directory = '/CANARY'\n",
    b"max_connections = 99999999999\nshared_buffers = -1\nport = many\n= \n'\n",
    b"shared_buffers = '900GB'\nmax_connections = 262143\n",
    b"include 'postgresql.conf'\n",
    b"9.6\n",
    b"99999999999999999999\n",
    b"15\n\n\n15",
)
TEXT_FILES = (
    *("backup_label", "tablespace_map", "postgresql.conf", "postgresql.auto.conf", "PG_VERSION", "recovery.signal"),
    *("standby.signal", "recovery.conf", "postmaster.pid", "postmaster.opts", "current_logfiles", "pg_ident.conf"),
)


def mutate(data: Path, canary: Path, random: Random) -> str:
    """Change something in the data directory; what. canary is a place outside that links and texts lead to."""
    return random.choice(KINDS)(data, canary, random)


def _link(data: Path, canary: Path, random: Random) -> str:
    name = random.choice((*DIRECTORIES, *FILES))
    target = random.choice(
        (str(canary), str(canary / "file"), f"../../../../../..{canary}", "/", "/proc/self/root", name)
    )
    target = random.choice((target, target, os.path.basename(name), "nowhere", "." * 3 + "/x", "x" * 4000))
    _remove(data / name)
    (data / name).symlink_to(target)
    return f"{name} is a link to {target[:40]}"


def _kind(data: Path, _canary: Path, random: Random) -> str:
    name = random.choice((*DIRECTORIES, *FILES))
    was_directory = (data / name).is_dir()
    _remove(data / name)
    kind = random.choice(("pipe", "other", "gone", "empty"))
    if kind == "pipe":
        os.mkfifo(data / name)
    elif kind == "other" and was_directory:
        (data / name).write_bytes(b"no directory")
    elif kind == "other":
        (data / name).mkdir()
    elif kind == "empty" and not was_directory:
        (data / name).touch()
    return f"{name} became {kind}"


def _name(data: Path, canary: Path, random: Random) -> str:
    directory = random.choice((".", *DIRECTORIES, "pg_wal/archive_status"))
    name = random.choice(ODD_NAMES)
    path = os.path.join(os.fsencode(data / directory), name)
    with contextlib.suppress(OSError):
        kind = random.choice(("file", "directory", "link"))
        if kind == "file":
            with open(path, "wb") as file:
                file.write(random.choice(TEXTS))
        elif kind == "directory":
            os.mkdir(path)
        else:
            os.symlink(os.fsencode(canary), path)
    return f"{directory} has {name[:40]!r}"


def _tablespace(data: Path, canary: Path, random: Random) -> str:
    name = str(random.choice((16384, 1663, 0, 99999999999)))
    target = random.choice((str(canary), "../../..", "/", "pg_tblspc", f"../../../../../../../..{canary}", "nowhere"))
    with contextlib.suppress(OSError):
        (data / "pg_tblspc" / name).symlink_to(target)
    return f"pg_tblspc/{name} leads to {target}"


def _text(data: Path, canary: Path, random: Random) -> str:
    name, text = random.choice(TEXT_FILES), random.choice(TEXTS)
    _remove(data / name)
    (data / name).write_bytes(text.replace(b"/CANARY", os.fsencode(canary)))
    return f"{name} holds {text[:60]!r}"


def _bytes(data: Path, _canary: Path, random: Random) -> str:
    """Truncated, grown, or with other bytes at random places."""
    name = random.choice(FILES)
    path = data / name
    if path.is_symlink() or not path.is_file():
        return "nothing"
    content = bytearray(path.read_bytes())
    way = random.choice(("cut", "grown", "flipped", "zeros"))
    if way == "cut":
        del content[random.randrange(len(content) + 1) :]
    elif way == "grown":
        content += random.randbytes(random.randrange(1, 20000))
    else:
        for _time in range(random.randrange(1, 50)):
            place = random.randrange(len(content) or 1)
            content[place : place + 8] = random.randbytes(8) if way == "flipped" else bytes(8)
    path.write_bytes(content)
    return f"{name} {way}"


def _control(data: Path, _canary: Path, random: Random) -> str:
    """A value that no server writes, with the right checksum."""
    path = data / "global" / "pg_control"
    if path.is_symlink() or not path.is_file() or path.stat().st_size < CHECKSUMMED + 4:
        return "nothing"
    content = bytearray(path.read_bytes())
    place = random.randrange(0, CHECKSUMMED - 8, 4)
    value = random.choice((0, 1, 0x7FFFFFFF, 0xFFFFFFFF, random.randrange(1 << 32), 8192, 1 << 30))
    struct.pack_into("<I", content, place, value)
    struct.pack_into("<I", content, CHECKSUMMED, crc32c(bytes(content[:CHECKSUMMED])))
    path.write_bytes(content)
    return f"pg_control has {value:#x} at {place}"


def _wal(data: Path, _canary: Path, random: Random) -> str:
    wal = data / "pg_wal"
    if wal.is_symlink() or not wal.is_dir():
        return "nothing"
    segments = sorted(path for path in wal.iterdir() if len(path.name) == 24 and path.is_file())
    if not segments:
        return "nothing"
    segment = random.choice(segments)
    way = random.choice(("cut", "headless", "sparse", "renamed", "noise", "records"))
    if way == "renamed":
        segment.rename(wal / f"{random.randrange(1 << 96):024X}")
        return f"{segment.name} has another number"
    if way == "sparse":
        os.truncate(segment, random.choice((1 << 20, 64 << 20, 256 << 20)))
    elif way == "cut":
        os.truncate(segment, random.randrange(segment.stat().st_size))
    else:
        with segment.open("r+b") as file:
            # The first page's header: magic, info, timeline, address, system identifier, sizes (XLogLongPageHeader).
            file.seek(random.randrange(0, 40) if way == "headless" else random.randrange(1 << 20))
            file.write(random.randbytes(random.choice((1, 8, 200 if way == "records" else 5000))))
    return f"{segment.name} {way}"


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


KINDS: tuple[Callable[[Path, Path, Random], str], ...] = (
    *(_link, _kind, _name, _tablespace, _text, _text, _bytes, _bytes, _control, _wal, _wal),
)
