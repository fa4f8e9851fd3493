# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A directory of archived WAL, whoever filled it. It is only read.

Known layouts: everything in one directory (archive_command with cp, pg_receivewal), or in one directory for each log
number (Barman, pgBackRest), whose names are the first 16 digits of the segments'. Content may be compressed.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import re
import zlib
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from .._host.command import OutputError, find_program, run_bytes
from .._host.compressed import MAGIC, PROGRAMS, XZ_MEMORY
from .._host.files import HeldDirectory
from .cluster import PostgresError
from .wal import check_memory, segment_number

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from .._host.sandbox import Sandbox

__all__ = ["ARCHIVED_FILE", "SEGMENT", "WalArchive", "open_archive"]

# A segment, a timeline's or a backup's history; pgBackRest adds a checksum, others the kind of compression.
# A segment that pg_receivewal is still filling is .partial.
ARCHIVED_FILE = re.compile(
    r"(?P<name>[0-9A-F]{24}|[0-9A-F]{8}\.history|[0-9A-F]{24}\.[0-9A-F]{8}\.backup)"
    r"(?:-[0-9a-f]{40})?(?:\.(?:gz|bz2|xz|zst|lz4))?(?P<partial>\.partial)?(?:\.(?:gz|lz4))?"
)
SEGMENT = re.compile(r"[0-9A-F]{24}")
LOG_DIRECTORY = re.compile(r"[0-9A-F]{16}")
BY_PROGRAM = {MAGIC[name]: name for name in PROGRAMS}
LONGEST_MAGIC = max(map(len, MAGIC.values()))
LARGEST_HISTORY = 1 << 20  # bytes, of a timeline or a backup: they are some lines of text
COPIES = 8  # of a segment that are in memory while a server is given archived WAL
MOST_STREAMS = 100  # files that were put together into one
CURE = "name a log_source where it is whole"
TIMEOUT = 60  # seconds to decompress one segment, which takes a fraction of one
SYSTEM_IDENTIFIER = slice(24, 32)  # in a segment's first page: XLogLongPageHeaderData


@dataclass(frozen=True)
class WalArchive:
    """The WAL in directory of the cluster with that system identifier. segment_size is in bytes.

    The directory is held: it may be of the copy, whose code then runs while a server is given this WAL. room: where
    programs that decompress it are locked up.
    """

    directory: HeldDirectory
    segment_size: int
    system_identifier: int
    room: Sandbox | None = None

    @cached_property
    def _files(self) -> dict[str, str]:
        """Path in the directory, by name. A complete segment counts more than one that was being filled."""
        found: dict[str, str] = {}
        for path in sorted(_paths(self.directory)):
            match = ARCHIVED_FILE.fullmatch(os.path.basename(path))
            if match and not (match["partial"] and match["name"] in found):
                found[match["name"]] = path
        return found

    @cached_property
    def segments(self) -> list[str]:
        """Names of the segments, in order."""
        return sorted(name for name in self._files if SEGMENT.fullmatch(name))

    @cached_property
    def numbers(self) -> set[int]:
        """Numbers of the segments, of all timelines."""
        return {segment_number(name, self.segment_size) for name in self.segments}

    @property
    def timelines(self) -> list[int]:
        """Timelines that it has segments or the history of."""
        return sorted({int(name[:8], 16) for name in self._files})

    def read(self, name: str) -> bytes | None:
        """Content of a segment or a history; None where it is not here. Raises PostgresError where it is of no use."""
        path = self._files.get(name)
        if path is None:
            return None
        if SEGMENT.fullmatch(name) is None:
            return _read(self.directory, path, LARGEST_HISTORY, self.room)
        content = _read(self.directory, path, self.segment_size, self.room)
        if len(content) < self.segment_size and name == self.segments[-1]:
            return None  # its copy had only begun when the archive was made
        if len(content) != self.segment_size:
            problem = f"has {len(content)} bytes instead of {self.segment_size}: {CURE}"
        elif int.from_bytes(content[SYSTEM_IDENTIFIER], "little") != self.system_identifier:
            # Which may have been found in the archive, without anybody having named it.
            problem = (
                "belongs to another cluster than the data directory: name this cluster's archived WAL as log_source"
            )
        else:
            return content
        raise PostgresError(f"WAL segment {os.path.join(self.directory.path, path)} {problem}.")

    def neighbour(self, name: str, distance: int) -> str | None:
        """The segment so many after this one: on its timeline, else on the newest that has it."""
        wanted = segment_number(name, self.segment_size) + distance
        if wanted not in self.numbers:
            return None
        fitting = [other for other in self.segments if segment_number(other, self.segment_size) == wanted]
        return next((other for other in fitting if other[:8] == name[:8]), fitting[-1])


def open_archive(
    directory: str, *, segment_size: int, system_identifier: int, room: Sandbox | None = None
) -> WalArchive:
    """The WAL in directory, by whose path no link leads.

    Raises PostgresError where there is none, RecoveryError for more than memory can hold.
    """
    check_memory(COPIES * segment_size)
    try:
        archive = WalArchive(HeldDirectory(directory), segment_size, system_identifier, room)
        if archive.segments:
            return archive
    except OSError as error:
        raise PostgresError(
            f"log_source {directory} cannot be read ({error.strerror}): name the directory of the archived WAL."
        ) from error
    raise PostgresError(
        f"log_source {directory} has no WAL segments, neither in it nor in directories named as Barman and pgBackRest "
        "name them: name the directory whose files have names such as 000000010000000000000001."
    )


def _paths(directory: HeldDirectory) -> Iterator[str]:
    """The files in a directory. Not links: in an archive they are another host's."""
    files, directories = directory.listed()
    yield from files
    for name in filter(LOG_DIRECTORY.fullmatch, directories):
        yield from (f"{name}/{below}" for below in directory.listed(name)[0])


def _read(directory: HeldDirectory, name: str, limit: int, room: Sandbox | None = None) -> bytes:
    """A file's content, decompressed, of at most limit bytes. Raises PostgresError.

    Whatever its size and whatever it could be decompressed to, not much more than limit is read and made of it.
    """
    path = os.path.join(directory.path, name)
    try:
        content = _content(directory.open(name), path, limit)
        for magic, decompress in LIBRARIES.items():
            if content.startswith(magic):
                return _whole(path, decompress(content, limit + 1), limit)
    except (OSError, EOFError, ValueError, zlib.error, lzma.LZMAError) as error:
        reason = getattr(error, "strerror", None) or error
        raise PostgresError(f"WAL file {path} cannot be read ({reason}): {CURE}.") from error
    program = BY_PROGRAM.get(content[:4])
    return content if program is None else _decompress(path, program, content, limit, room)


def _content(descriptor: int, path: str, limit: int) -> bytes:
    """All of an open file, if that can be, or be decompressed to, limit bytes. Raises OSError and PostgresError."""
    with open(descriptor, "rb") as file:
        begin = file.read(LONGEST_MAGIC)
        # What cannot be compressed becomes a little longer by it.
        most = limit + limit // 16 + (1 << 16) if begin.startswith(tuple(MAGIC.values())) else limit
        size = os.fstat(file.fileno()).st_size
        if size > most:
            raise PostgresError(f"WAL file {path} has {size} bytes instead of {limit}: {CURE}.")
        return begin + file.read(most - len(begin))


def _whole(path: str, content: bytes, limit: int) -> bytes:
    if len(content) > limit:
        raise PostgresError(f"WAL file {path} has, decompressed, more than {limit} bytes: {CURE}.")
    return content


def _gzip(content: bytes, limit: int) -> bytes:
    with gzip.GzipFile(fileobj=io.BytesIO(content)) as file:
        return file.read(limit)


def _bzip2(content: bytes, limit: int) -> bytes:
    with bz2.BZ2File(io.BytesIO(content)) as file:
        return file.read(limit)


def _xz(content: bytes, limit: int) -> bytes:
    """Decompress as LZMAFile does, which takes as much memory as the file says that its decompression needs."""
    found = bytearray()
    for _stream in range(MOST_STREAMS):
        stream = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=XZ_MEMORY)
        found += stream.decompress(content, limit - len(found))
        while len(found) < limit and not stream.eof:
            if stream.needs_input:  # pylint: disable=using-constant-test  # it is a property
                raise EOFError("Compressed file ended before its end was reached")
            found += stream.decompress(b"", limit - len(found))
        content = stream.unused_data.lstrip(b"\0")  # there may be padding
        if not content or len(found) == limit:
            return bytes(found)
    raise ValueError(f"it has more than {MOST_STREAMS} parts")


# By what they begin with: Barman does not say so in the name. Each gives at most so many bytes.
LIBRARIES: dict[bytes, Callable[[bytes, int], bytes]] = {
    MAGIC["gzip"]: _gzip,
    MAGIC["bzip2"]: _bzip2,
    MAGIC["xz"]: _xz,
}


def _decompress(path: str, name: str, content: bytes, limit: int, room: Sandbox | None) -> bytes:
    """What the program makes of content, of at most limit bytes. Raises PostgresError and CommandError."""
    program = find_program(name)
    if program is None:
        raise PostgresError(
            f"WAL file {path} is compressed by {name}, which is not installed: install the package {name}."
        )
    try:
        # Unless they are told otherwise, they refuse what takes more than 128 MiB of memory.
        decompress = run_bytes if room is None else room.run
        return decompress([program, "-d", "-c", "-q"], timeout=TIMEOUT, stdin=content, limit=limit).stdout
    except OutputError:
        return _whole(path, bytes(limit + 1), limit)
