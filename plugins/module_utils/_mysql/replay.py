# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Replay of archived binary logs: which parts of them lead from a copy to a point in time.

They are read by whoever runs the module, by their headers alone, and reach the client's program through a pipe: the
server's user need not be able to read them.
"""

from __future__ import annotations

import errno
import os
import select
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from typing import IO, TYPE_CHECKING, Any

from .._errors import RecoveryError, shown
from .._host.files import HeldDirectory
from .binlog import HEAD, NAME, Transaction, description, parse_head, sorted_logs, transactions
from .option_file import MysqlError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .directory import BinaryLogs, DataDirectory
    from .target import Target

__all__ = ["Feed", "Piece", "Replay", "plan_replay"]

PIECE = 1 << 20  # bytes that are handed on at once
LATE = 2  # seconds by which a transaction may end after the log that it is in
PAUSE = 0.05  # seconds between two looks whether somebody reads


@dataclass(frozen=True)
class Piece:
    """A part of one archived log: events from begin on, up to end."""

    name: str
    begin: int
    end: int


@dataclass(frozen=True)
class Replay:
    """What is to be replayed of a directory of logs, and the point that it leads to, as `recovered_to`.

    warnings: what makes that point uncertain.
    """

    source: str
    pieces: tuple[Piece, ...]
    number: int
    reached: dict[str, Any]
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Start:
    """Where a copy ends: name of a log and position. is_closed: the server had ended that log.

    own: the copy's own logs, which lead there, with their directory.
    """

    name: str
    position: int
    is_closed: bool = False
    own: BinaryLogs | None = None


def plan_replay(data: DataDirectory, source: str, target: Target | None) -> Replay:
    """What of the archived logs in source leads from the copy to the target, or to their end.

    Raises MysqlError where they do not lead there.
    """
    try:
        logs = HeldDirectory(source)
        names = logs.listed()[0]
    except OSError as error:
        raise MysqlError(f"log_source {source} cannot be read: {error.strerror}. Name a directory.") from error
    start = _start(data)
    base = _base(start.name)
    known = list(sorted_logs(names, base))
    if not known:
        raise MysqlError(
            f"log_source {source} holds no binary logs called {shown(base)}.NUMBER: name another directory."
        )
    ahead = _from(known, start, source)
    plan = _Planner(logs, source, known, start, target)
    plan.refuse_what_is_before()
    for name in ahead:
        if not plan.add(name):
            break
    return plan.done()


def _start(data: DataDirectory) -> _Start:
    backup, own = data.backup, data.binlogs
    if backup is not None and backup.file is not None and backup.position is not None:
        return _Start(backup.file, backup.position)
    if own is None or not own.names:
        raise MysqlError(
            f"The copy in {data.path} has no binary logs of its own, so nobody knows where in the archived ones it "
            "ends: use a copy that has them, or a backup of mariadb-backup, which notes it."
        )
    held, last = HeldDirectory(own.directory), own.names[-1]
    with open(held.open(last), "rb") as file:
        begin, size = len(description(file)), os.fstat(file.fileno()).st_size
        # Recovery commits all that is in the copy's last log.
        end = max((one.end for one in transactions(file, begin, size)), default=begin)
    return _Start(last, end, is_closed=not own.is_open, own=own)


def _base(name: str) -> str:
    match = NAME.fullmatch(name)
    if match is None:
        raise MysqlError(
            f"The copy ends in a binary log called {shown(name)}, which is no such name: use another copy."
        )
    return match["base"]


def _number(name: str) -> int:
    return int(name.rpartition(".")[2])


def _from(known: Sequence[str], start: _Start, source: str) -> list[str]:
    """Of known logs those that follow the copy, beginning with the one that it ends in."""
    ahead = [name for name in known if _number(name) >= _number(start.name)]
    first = _number(start.name) + (1 if start.is_closed and start.name not in ahead else 0)
    for expected, name in enumerate(ahead, first):
        if _number(name) != expected:
            missing = f"{_base(start.name)}.{expected:06d}"
            raise MysqlError(
                f"log_source {source} lacks {shown(missing)}, so nothing after it can be replayed: add it."
            )
    if not ahead:
        raise MysqlError(
            f"log_source {source} ends with {shown(known[-1])}, and the copy ends in {shown(start.name)}: name a "
            "directory with later logs."
        )
    return ahead


class _Clock:
    """Times of transactions, which any client can choose (SET timestamp): none is later than the next log's beginning.

    odd: how many were; such a one counts as of the same time as the one before it.
    """

    def __init__(self) -> None:
        self.odd = 0
        self._moment, self._latest = 0, 0.0

    def enter(self, logs: HeldDirectory, names: Sequence[str], name: str) -> None:
        """Go on with the log called name, one of those that follow each other."""
        later = [one for one in names if _number(one) > _number(name)]
        self._latest = _begun(logs, min(later, key=_number)) if later else time.time()

    def moment(self, one: Transaction) -> int:
        """Seconds since the epoch."""
        if one.time <= self._latest + LATE:
            self._moment = one.time
        else:
            self.odd += 1
        return self._moment


def _begun(logs: HeldDirectory, name: str) -> float:
    """When a log was begun; now, where it does not tell."""
    with open(logs.open(name), "rb") as file:
        head = parse_head(file.read(HEAD))
    return time.time() if head is None else head.time


class _Planner:
    """Goes through the logs, one after the other, up to the target. known: names of all archived logs."""

    def __init__(
        self, logs: HeldDirectory, source: str, known: Sequence[str], start: _Start, target: Target | None
    ) -> None:
        self._logs, self._source, self._start, self._target = logs, source, start, target
        self._known, self._clock = known, _Clock()
        self._pieces: list[Piece] = []
        self._last: Transaction | None = None
        self._number, self._is_reached = 0, False
        place = None if target is None else target.place
        if place is not None and (_number(place[0]), place[1]) < (_number(start.name), start.position):
            raise _too_early(target, start)

    def add(self, name: str) -> bool:
        """Take what counts of one log; whether the next one may count as well. Raises MysqlError."""
        with open(self._logs.open(name), "rb") as file:
            if parse_head(file.read(HEAD)) is None:
                raise MysqlError(f"{shown(name)} in log_source {self._source} is no binary log: name another.")
            size, begin = os.fstat(file.fileno()).st_size, len(description(file))
            if name == self._start.name:
                begin = self._start.position
                if begin > size:
                    raise MysqlError(
                        f"{shown(name)} in log_source {self._source} ends at {size}, and the copy at {begin}: it is "
                        "cut off, or another server's. Name a directory that has it whole."
                    )
            first, end = None, begin
            self._clock.enter(self._logs, self._known, name)
            for one in transactions(file, begin, size):
                moment = self._clock.moment(one)
                if self._is_beyond(name, one, moment):
                    self._is_reached = True
                    break
                # What comes before the first are lists of ids, of the whole log.
                first, end = one.begin if first is None else first, one.end
                self._last, self._number = replace(one, time=moment), self._number + 1
                if self._target is not None and self._target.gtid is not None and one.gtid == self._target.gtid:
                    self._is_reached = True
                    break
        if first is not None:
            self._pieces.append(Piece(name, first, end))
        place = None if self._target is None else self._target.place
        self._is_reached |= place is not None and name == place[0] and place[1] <= size
        return not self._is_reached

    def done(self) -> Replay:
        """The outcome. Raises MysqlError where the target was not reached."""
        target = self._target
        if target is not None and target.setting != "recovery_target" and not self._is_reached:
            last = f"the last transaction in them ended at {_time(self._last.time)}" if self._last else "they have none"
            raise MysqlError(
                f"{target} was not reached: log_source {self._source} ends before, {last}. Name a directory with later "
                "logs, or an earlier target."
            )
        end = f"{self._start.name}:{self._start.position}"
        if self._pieces:
            end = f"{self._pieces[-1].name}:{self._pieces[-1].end}"
        reached = {
            "time": _time(self._last.time) if self._last else None,
            "position": end,
            "gtid": self._last.gtid if self._last else None,
            "reason": f"stopped at {target}" if self._is_reached else "end of the archived logs",
        }
        return Replay(self._source, tuple(self._pieces), self._number, reached, tuple(self._warnings()))

    def _warnings(self) -> Iterator[str]:
        if self._clock.odd and self._target is not None and self._target.time is not None:
            yield (
                f"Of the transactions in log_source {self._source}, {self._clock.odd} say that they are of a time when "
                "their log had ended (SET timestamp): each counts as of the same time as the one before it. A position "
                "or a global transaction id is exact."
            )

    def refuse_what_is_before(self) -> None:
        """Raise MysqlError where the target is among what the copy has already.

        Looked at is the log that the copy ends in, and while there are no transactions, the ones before it. Where there
        are none at all, nothing is known of the time before the last of them was begun.
        """
        start, target, begun, clock = self._start, self._target, 0, _Clock()
        if target is None or (target.time is None and target.gtid is None):
            return
        for logs, names, name in self._before():
            clock.enter(logs, names, name)
            with open(logs.open(name), "rb") as file:
                head = parse_head(file.read(HEAD))
                size = start.position if name == start.name else os.fstat(file.fileno()).st_size
                any_there = False
                for one in transactions(file, len(description(file)), size):
                    any_there = True
                    if self._is_beyond("", one, clock.moment(one)) or (
                        target.gtid is not None and one.gtid == target.gtid
                    ):
                        raise _too_early(target, start)
            if any_there:
                return
            begun = head.time if head is not None else begun
        if target.time is not None and target.time.timestamp() < begun:
            raise _too_early(target, start)

    def _before(self) -> Iterator[tuple[HeldDirectory, Sequence[str], str]]:
        """Logs up to the copy's end, the newest first: its own, or archived ones; each with all of its kind."""
        own = self._start.own
        logs, names = (self._logs, self._known) if own is None else (HeldDirectory(own.directory), own.names)
        for name in sorted(names, key=_number, reverse=True):
            if _number(name) <= _number(self._start.name):
                yield logs, names, name

    def _is_beyond(self, name: str, one: Transaction, moment: int) -> bool:
        """Whether a transaction, which was made at that moment, does not count any more."""
        target = self._target
        if target is None:
            return False
        if target.time is not None:
            return moment >= target.time.timestamp()
        return target.place is not None and name == target.place[0] and one.end > target.place[1]


def _too_early(target: Target | None, start: _Start) -> MysqlError:
    return MysqlError(
        f"{target} is before the end of the copy, which is in {shown(start.name)} at {start.position}: name a later "
        "point, or use an older archive."
    )


def _time(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat()


class Feed:
    """A pipe with what is to be replayed as one log, while it is entered."""

    def __init__(self, replay: Replay, path: str, group: int, *, deadline: float) -> None:
        self._replay, self.path, self._group, self._deadline = replay, path, group, deadline
        self._ended = threading.Event()
        self.problem: Exception | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Feed:
        os.mkfifo(self.path, 0o600)
        if self._group != os.getegid():
            os.chown(self.path, -1, self._group)
        os.chmod(self.path, 0o640)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        with suppress(FileNotFoundError):
            os.unlink(self.path)

    def _run(self) -> None:
        try:
            pipe = self._opened()
            if pipe is not None:
                try:
                    for data in self._content():
                        self._write(pipe, data)
                finally:
                    os.close(pipe)
        except BrokenPipeError:
            pass  # the program has ended, and says why
        except (OSError, RecoveryError) as error:
            self.problem = error

    def _opened(self) -> int | None:
        while not self._is_over():
            try:
                return os.open(self.path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            except OSError as error:
                if error.errno != errno.ENXIO:  # nobody reads it yet
                    raise
            self._ended.wait(PAUSE)
        return None

    def _is_over(self) -> bool:
        return self._ended.is_set() or time.monotonic() > self._deadline

    def _content(self) -> Iterator[bytes]:
        """One log: the first with its magic number and description, of each next one what follows the number."""
        logs, is_first = HeldDirectory(self._replay.source), True
        for piece in self._replay.pieces:
            with open(logs.open(piece.name), "rb") as file:
                head = description(file)
                yield head if is_first else head[4:]
                is_first = False
                file.seek(piece.begin)
                yield from _parts(file, piece.end - piece.begin)

    def _write(self, pipe: int, data: bytes) -> None:
        ahead = memoryview(data)
        while ahead:
            if self._is_over():
                raise BrokenPipeError
            if select.select([], [pipe], [], PAUSE)[1]:
                with suppress(BlockingIOError):
                    ahead = ahead[os.write(pipe, ahead[:65536]) :]


def _parts(file: IO[bytes], size: int) -> Iterator[bytes]:
    while size > 0 and (data := file.read(min(PIECE, size))):
        size -= len(data)
        yield data
