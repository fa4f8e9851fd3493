# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The logs of one session, read from where an earlier call ended, with waiting for what comes next.

Whole lines only, and all files together at most LIMIT bytes at a time. While it waits it keeps the files open: what a
server says at its very end is read even though the session's directory is gone by then.
"""

from __future__ import annotations

import codecs
import ctypes
import errno
import json
import os
import re
import select
import time
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

from .._errors import RecoveryError, text_shown
from .._host.files import open_regular
from .session import Session

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

__all__ = ["LIMIT", "Reading", "read_logs", "source_of"]

LIMIT = 1 << 20  # bytes of logs in one call
MOST_LINES = 20_000  # of one file in one call, each of which is an entry of the result
SUFFIX = ".log"  # after the name of its source
ARCHIVE = re.compile(r"borg-.+")  # borg-1 for each reader, and others for an archive of logs
# A log may not have begun when it is asked for.
USUAL_SOURCES = frozenset({"server", "layer", "archive", "keeper", "export"})
STDOUT = 1


@dataclass(frozen=True)
class Reading:
    """What was read: lines as (source, text), where to go on, and whether the session has ended.

    `more` is true where LIMIT kept something back for the next call. `sources` are those that have a log.
    """

    lines: list[tuple[str, str]]
    cursor: dict[str, dict[str, int]]
    ended: bool
    more: bool
    sources: list[str]


def read_logs(
    session: Session | None,
    *,
    sources: Sequence[str] = (),
    lines: int = 100,
    cursor: Mapping[str, Any] | None = None,
    wait: float = 0,
) -> Reading:
    """Read what `cursor` does not have yet; without a cursor the last `lines` lines of each log.

    `session` is None where it has ended already. Where there is nothing new it waits up to `wait` seconds, until there
    is, or the session has ended, or nobody is left to read this process's standard output. Raises RecoveryError.
    """
    begun = _checked(cursor)
    if session is None:
        return Reading([], begun or {}, ended=True, more=False, sources=[])
    deadline = time.monotonic() + wait
    with ExitStack() as stack:
        # Before the first look: what happens after it is told.
        changes = stack.enter_context(_changes(session)) if wait > 0 else None
        logs = stack.enter_context(_Logs(session, sources, lines, begun))
        logs.refuse_unknown()
        while True:
            reading = logs.read()
            left = deadline - time.monotonic()
            if reading.lines or reading.ended or changes is None or left <= 0:
                return reading
            if not changes.await_one(left):
                deadline = 0


def source_of(name: str) -> str | None:
    """What the log file of this name is a log of; None for a file that is no log, such as one that was rotated."""
    stem = name[: -len(SUFFIX)]
    if not name.endswith(SUFFIX) or not stem:
        return None
    return "archive" if ARCHIVE.fullmatch(stem) else stem


@dataclass
class _File:
    """An open log. It stays open when it is renamed or removed."""

    source: str
    descriptor: int
    inode: int
    offset: int = 0

    @property
    def size(self) -> int:
        return os.fstat(self.descriptor).st_size

    def take(self, limit: int, *, to_the_end: bool) -> tuple[list[str], bool]:
        """The whole lines among the next `limit` bytes, and whether there is more to take already.

        Half a line waits for its rest, unless it alone exceeds the limit or, `to_the_end`, nothing will follow.
        """
        data = _first_lines(os.pread(self.descriptor, limit, self.offset))
        is_all = self.offset + len(data) >= self.size
        end = data.rfind(b"\n") + 1
        if (not end and len(data) == limit) or (to_the_end and is_all):
            end = len(data) - (0 if to_the_end and is_all else _unfinished_character(data))
        self.offset += end
        return _texts(self.source, data[:end]), not is_all

    def skip_to_last(self, lines: int) -> None:
        """Go where the last `lines` whole lines begin, as far as they are within LIMIT."""
        begin = max(0, self.size - LIMIT)
        data = os.pread(self.descriptor, LIMIT, begin)
        position = data.rfind(b"\n") + 1
        for _line in range(lines):
            if position == 0:
                break
            position = data.rfind(b"\n", 0, position - 1) + 1
        if position == 0 and begin:
            position = data.find(b"\n") + 1  # what precedes that is the rest of a longer line
        self.offset = begin + position


class _Logs:
    """The log files of a session and how far each was read."""

    def __init__(self, session: Session, sources: Sequence[str], lines: int, cursor: dict[str, dict[str, int]] | None):
        self._session = session
        self._wanted = frozenset(sources)
        self._lines = lines
        self._cursor = cursor
        self._current: dict[str, _File] = {}  # by file name
        self._rotated: dict[str, list[_File]] = {}  # of that name before, with something left to read, oldest first

    def __enter__(self) -> _Logs:
        return self

    def refuse_unknown(self) -> None:
        """Raise RecoveryError for a source that has no log and is not known to get one."""
        self._look()
        if unknown := self._wanted - USUAL_SOURCES - self._sources():
            raise RecoveryError(
                f"Session {self._session.id} has no log of {', '.join(sorted(unknown))}. It has logs of: "
                f"{', '.join(sorted(self._sources())) or 'nothing yet'}."
            )

    def __exit__(self, *_: object) -> None:
        for file in chain(self._current.values(), *self._rotated.values()):
            os.close(file.descriptor)

    def read(self) -> Reading:
        """The next lines of all files."""
        # In this order: what was written until the end is read before the end is told.
        ended = not os.path.lexists(self._session.directory)
        self._look()
        self._forget_read()
        lines: list[tuple[str, str]] = []
        more = False
        waiting = [file for file in self._chosen() if file.size != file.offset]
        for file in waiting:
            is_last = ended or file not in self._current.values()
            texts, has_more = file.take(LIMIT // len(waiting), to_the_end=is_last)
            lines += [(file.source, text) for text in texts]
            more = more or has_more
        self._forget_read()
        return Reading(lines, self._position(), ended and not more, more, sorted(self._sources()))

    def _chosen(self) -> Iterator[_File]:
        """The files that are to be read, at most one of each name: a log that was rotated before its successor."""
        for name, file in self._current.items():
            oldest = (self._rotated.get(name) or [file])[0]
            if not self._wanted or file.source in self._wanted:
                if oldest.size < oldest.offset:
                    oldest.offset = 0  # it was emptied in place
                yield oldest

    def _look(self) -> None:
        """Open what is new in the directory; note what has another file's name now."""
        is_first = self._cursor is None
        cursor, self._cursor = self._cursor or {}, {}
        try:
            directory = os.open(self._session.path("log"), os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError):
            return  # the session ends; what is open can still be read
        try:
            for name in sorted(os.listdir(directory)):
                source = source_of(name)
                if source is not None:
                    self._take_up(directory, name, source, cursor.get(name), is_first=is_first)
        finally:
            os.close(directory)

    def _take_up(
        self, directory: int, name: str, source: str, before: dict[str, int] | None, *, is_first: bool
    ) -> None:
        known = self._current.get(name)
        file = _open(directory, name, source, known)
        if file is None:
            return
        if known is not None:
            self._rotated.setdefault(name, []).append(known)
        self._current[name] = file
        if before is None:
            if is_first:
                file.skip_to_last(self._lines)
        elif before["inode"] == file.inode:
            file.offset = before["offset"]
        else:
            rest = _find(directory, before["inode"], source)
            if rest is not None:
                rest.offset = before["offset"]
                self._rotated.setdefault(name, []).append(rest)

    def _forget_read(self) -> None:
        for name, files in list(self._rotated.items()):
            while files and files[0].offset >= files[0].size:
                os.close(files.pop(0).descriptor)
            if not files:
                del self._rotated[name]

    def _position(self) -> dict[str, dict[str, int]]:
        oldest = {name: (self._rotated.get(name) or [file])[0] for name, file in self._current.items()}
        return {name: {"inode": file.inode, "offset": file.offset} for name, file in oldest.items()}

    def _sources(self) -> set[str]:
        return {file.source for file in self._current.values()}


def _open(directory: int, name: str, source: str, known: _File | None = None) -> _File | None:
    """The file in directory, unless it is `known`, is no regular file (a link might lead anywhere) or has just gone."""
    try:
        if known is not None and os.stat(name, dir_fd=directory, follow_symlinks=False).st_ino == known.inode:
            return None
        descriptor = open_regular(name, os.O_RDONLY, dir_fd=directory)
    except OSError:
        return None
    return _File(source, descriptor, os.fstat(descriptor).st_ino)


def _find(directory: int, inode: int, source: str) -> _File | None:
    """The file of that inode, by whatever name it has now."""
    for name in os.listdir(directory):
        with suppress(FileNotFoundError):
            if os.stat(name, dir_fd=directory, follow_symlinks=False).st_ino == inode:
                return _open(directory, name, source)
    return None


def _checked(cursor: Mapping[str, Any] | None) -> dict[str, dict[str, int]] | None:
    """The cursor, which has been through templates and JSON. Raises RecoveryError where it is not one of ours."""
    if cursor is None:
        return None
    try:
        return {
            str(name): {"inode": int(place["inode"]), "offset": max(0, int(place["offset"]))}
            for name, place in cursor.items()
        }
    except (TypeError, ValueError, KeyError, AttributeError, OverflowError):
        raise RecoveryError("cursor is not what an earlier call returned. Leave it out to begin anew.") from None


def _texts(source: str, data: bytes) -> list[str]:
    """The lines in `data`, fit for any terminal. Borg's are JSON objects: their messages, which may have many lines."""
    texts = [line.decode("utf-8", "backslashreplace") for line in data.split(b"\n")]
    if texts and not texts[-1]:
        texts.pop()  # behind the last newline
    if source == "archive":
        texts = [line for text in texts for line in _said_by_borg(text).splitlines()][:MOST_LINES]
    return [text_shown(text.rstrip("\r")) for text in texts]


def _said_by_borg(line: str) -> str:
    """What a line of Borg's log says: JSON, perhaps behind a prompt, or what somebody else put there."""
    words, brace, rest = line.partition('{"')
    try:
        return "\n".join(filter(None, [words.strip(), str(json.loads(brace + rest)["message"])]))
    except (ValueError, LookupError, TypeError, RecursionError):
        return line


def _first_lines(data: bytes) -> bytes:
    """Data up to so many lines, each of which becomes an entry: any client can have the server log a million."""
    position = -1
    for _line in range(MOST_LINES):
        position = data.find(b"\n", position + 1)
        if position < 0:
            return data
    return data[: position + 1]


def _unfinished_character(data: bytes) -> int:
    """How many bytes at the end of data are the beginning of a character."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    decoder.decode(data[-4:].lstrip(bytes(range(0x80, 0xC0))))
    return len(decoder.getstate()[0])


# From <sys/inotify.h>.
_MODIFY, _MOVED, _CREATE, _DELETE = 0x2, 0xC0, 0x100, 0x200
_DELETE_SELF, _MOVE_SELF, _ONLYDIR, _DONT_FOLLOW = 0x400, 0x800, 0x1000000, 0x2000000
_GONE = _DELETE_SELF | _MOVE_SELF  # the tear-down renames the session's directory before it removes it
_WRITTEN = _MODIFY | _MOVED | _CREATE | _DELETE


class _Changes:
    """Tells when a session's logs have changed, or its directory is gone."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def await_one(self, seconds: float) -> bool:
        """Wait for a change; false where there was none in time, or where nobody waits for this process any more."""
        waiter = select.poll()
        waiter.register(self._descriptor, select.POLLIN)
        # Errors and hang-ups alone: who follows a log from elsewhere has gone away.
        waiter.register(STDOUT, 0)
        ready = dict(waiter.poll(seconds * 1000))
        if self._descriptor in ready:
            os.read(self._descriptor, 1 << 16)  # what has changed is looked at anew
        return self._descriptor in ready and STDOUT not in ready


@contextmanager
def _changes(session: Session) -> Iterator[_Changes]:
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = libc.inotify_init1(os.O_CLOEXEC)
    if descriptor < 0:
        raise _unwatchable(ctypes.get_errno(), "instances")
    try:
        for path, mask in ((session.directory, _GONE), (session.path("log"), _GONE | _WRITTEN)):
            watched = mask | _ONLYDIR | _DONT_FOLLOW
            added = libc.inotify_add_watch(descriptor, os.fsencode(path), ctypes.c_uint32(watched))
            # What has gone is found out by the first look.
            if added < 0 and ctypes.get_errno() not in (errno.ENOENT, errno.ENOTDIR):
                raise _unwatchable(ctypes.get_errno(), "watches")
        yield _Changes(descriptor)
    finally:
        os.close(descriptor)


def _unwatchable(number: int, resource: str) -> RecoveryError:
    return RecoveryError(
        f"Changes of the logs cannot be waited for ({os.strerror(number)}). Raise fs.inotify.max_user_{resource} on "
        "this host, or set wait to 0."
    )
