# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Compressed data are known by what they begin with; what the beginning of a compressed file holds.

Whoever made the file may wish this host ill: what is made of it is bounded, and the programs that Python has no library
for are locked up.
"""

from __future__ import annotations

import bz2
import lzma
import os
import pwd
import zlib
from typing import TYPE_CHECKING, NamedTuple

from .._errors import RecoveryError
from .command import Account, CommandError, OutputError, account, find_program
from .sandbox import Sandbox

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["MAGIC", "PROGRAMS", "XZ_MEMORY", "Beginning", "beginning", "compressed_size"]

MAGIC = {
    "gzip": b"\x1f\x8b",
    "bzip2": b"BZh",
    "xz": b"\xfd7zXZ\0",
    "zstd": b"\x28\xb5\x2f\xfd",
    "lz4": b"\x04\x22\x4d\x18",
}
PROGRAMS = ("zstd", "lz4")  # of these names; for the others Python has libraries
XZ_MEMORY = 100 << 20  # bytes; at its highest level xz needs 65 MiB
# Bytes of a file that hold its first block, before which nothing can be decompressed: of the others a few are enough.
FIRST_BLOCK = {"bzip2": 1 << 20, "zstd": 1 << 18, "lz4": (4 << 20) + (1 << 16)}
TIMEOUT = 60  # seconds to decompress one block, which takes a fraction of one


class Beginning(NamedTuple):
    """The first bytes of a file's content; compression: what it is compressed by, if it is.

    Where it could not be decompressed, problem says why, and content is as it is in the file.
    """

    content: bytes
    compression: str | None = None
    problem: str | None = None


def compressed_size(data: bytes, size: int) -> int:
    """How many bytes of a file that begins with data are needed to see the first `size` bytes of its content, or so."""
    return max(size, FIRST_BLOCK.get(_compression(data) or "", 0))


def beginning(data: bytes, size: int) -> Beginning:
    """What a file that begins with data holds, of at most `size` bytes."""
    name = _compression(data)
    if name is None:
        return Beginning(data[:size])
    try:
        content = LIBRARIES[name](data, size) if name in LIBRARIES else _by_program(name, data, size)
    except (zlib.error, OSError, EOFError, ValueError, lzma.LZMAError):
        return Beginning(data[:size], name, f"it is damaged, or no {name} file")
    except RecoveryError as error:
        return Beginning(data[:size], name, str(error).rstrip("."))
    return Beginning(content, name)


def _compression(data: bytes) -> str | None:
    return next((name for name, magic in MAGIC.items() if data.startswith(magic)), None)


def _gzip(data: bytes, size: int) -> bytes:
    return zlib.decompressobj(wbits=31).decompress(data, size)


def _bzip2(data: bytes, size: int) -> bytes:
    return bz2.BZ2Decompressor().decompress(data, size)


def _xz(data: bytes, size: int) -> bytes:
    return lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=XZ_MEMORY).decompress(data, size)


LIBRARIES: dict[str, Callable[[bytes, int], bytes]] = {"gzip": _gzip, "bzip2": _bzip2, "xz": _xz}


def _by_program(name: str, data: bytes, size: int) -> bytes:
    """What the program makes of data, which end somewhere: it is content with what came before that."""
    program = find_program(name)
    if program is None:
        raise RecoveryError(f"{name} is not installed: install the package {name}")
    try:
        # Unless they are told otherwise, they refuse what takes more than 128 MiB of memory.
        done = Sandbox(account=_nobody()).run(
            [program, "-d", "-c", "-q"], timeout=TIMEOUT, stdin=data, limit=size, check=False
        )
    except OutputError as error:
        return error.taken
    except CommandError as error:
        raise EOFError(str(error)) from None
    if done.returncode and not done.stdout:
        raise EOFError(done.stderr)
    return done.stdout


def _nobody() -> Account:
    """Who owns nothing, where we may become that."""
    if os.geteuid() == 0:
        return account("nobody")
    return Account(pwd.getpwuid(os.geteuid()).pw_name, os.geteuid(), os.getegid())
