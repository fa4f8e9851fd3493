# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The restore_command of a session's recovery.

It asks this process for a file through one named pipe and copies what comes through another. So whoever may read the
WAL is who runs the module (the server's user often may not), no path of the archive gets into a shell, and on its way
each segment loses what would lead the copy back to production: see `_postgresql/wal.py`.
"""

from __future__ import annotations

import errno
import os
import shlex
import stat
import threading
import time
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from .._errors import RecoveryError
from .wal import Scan, TablespaceRecord

if TYPE_CHECKING:
    from .._host.command import Account
    from .wal_archive import WalArchive

__all__ = ["PIPES", "WalServer"]

PIPES = ("wal.ask", "wal.answer")  # in a directory of ours
SEGMENT_NAME = 24  # characters; histories have other names
LONGEST_QUESTION = 256  # bytes; who asks is not trusted
ENDING = 60  # seconds for the file that is being read when the server ends


class WalServer:
    """Serves the files of archive to the restore_command, as a context manager.

    Afterwards problem is why something could not be served, missing the first segment that was asked for and is not
    there, and records what was taken out of the WAL. Without an archive nothing is there.
    """

    def __init__(self, archive: WalArchive | None, directory: str, account: Account) -> None:
        self.problem: RecoveryError | None = None
        self.missing: str | None = None
        self.records: dict[int, TablespaceRecord] = {}
        self._archive = archive
        self._ask, self._answer = (os.path.join(directory, name) for name in PIPES)
        self._account = account
        self._scan = Scan()
        self._cache: dict[str, bytes] = {}
        self._pipes: dict[str, int] = {}
        self._thread = threading.Thread(target=self._serve, daemon=True)

    @property
    def pipes(self) -> tuple[str, ...]:
        """Paths that the restore_command has to be able to write and read."""
        return (self._ask, self._answer)

    @property
    def command(self) -> str:
        """The restore_command: %f is the file that is wanted, %p where it is to be put, below the data directory."""
        ask, answer = (shlex.quote(path).replace("%", "%%") for path in (self._ask, self._answer))
        # What is not there comes as nothing.
        return f"echo %f >{ask} && cat <{answer} >%p && test -s %p"

    def __enter__(self) -> WalServer:
        try:
            for path in (self._ask, self._answer):
                self._pipes[path] = self._make_pipe(path)
            # Open for both: so neither end waits for the other, and no end of file comes between two questions.
            self._questions = os.fdopen(self._open(self._ask, os.O_RDWR), "r+b", buffering=0)
        except OSError as error:
            self._remove()
            raise RecoveryError(
                f"The pipes for the restore_command cannot be made in {os.path.dirname(self._ask)} ({error}): let "
                "nothing else use this directory."
            ) from error
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        # Nothing here may take the place of the error that the with block ended by.
        with suppress(OSError):
            self._questions.write(b"\n")
        deadline = time.monotonic() + ENDING
        while self._thread.is_alive() and time.monotonic() < deadline:
            # Should the server have been killed while it was to get an answer: nobody else will take it.
            with suppress(OSError):
                os.close(self._open(self._answer, os.O_RDONLY | os.O_NONBLOCK))
            self._thread.join(timeout=0.05)
        self._questions.close()
        self._remove()

    def _make_pipe(self, path: str) -> int:
        """A new pipe of the server's user, as a descriptor that only names it."""
        with suppress(FileNotFoundError):
            os.unlink(path)
        os.mkfifo(path, 0o600)
        pipe = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
        state = os.fstat(pipe)
        if not stat.S_ISFIFO(state.st_mode) or state.st_uid != os.geteuid():
            os.close(pipe)
            raise FileExistsError(errno.EEXIST, "something else was put in its place", path)
        if self._account.uid != os.geteuid():
            os.chown(f"/proc/self/fd/{pipe}", self._account.uid, self._account.gid)
        return pipe

    def _open(self, path: str, flags: int) -> int:
        return os.open(f"/proc/self/fd/{self._pipes[path]}", flags | os.O_CLOEXEC)

    def _remove(self) -> None:
        for path, pipe in self._pipes.items():
            os.close(pipe)
            with suppress(OSError):
                os.unlink(path)
        self._pipes.clear()

    def _serve(self) -> None:
        while name := self._questions.readline(LONGEST_QUESTION).decode("ascii", "replace").strip():
            content = self._content(name)
            if content is None and len(name) == SEGMENT_NAME:
                self.missing = name
            try:
                self._give(content or b"")
            except BrokenPipeError:
                pass  # who asked was killed
            except OSError as error:
                self.problem = self.problem or RecoveryError(f"WAL file {name} could not be handed over: {error}.")

    def _give(self, content: bytes) -> None:
        with os.fdopen(self._open(self._answer, os.O_WRONLY), "wb", buffering=0) as answer:
            view = memoryview(content)
            while view:
                view = view[answer.write(view) or 0 :]

    def _content(self, name: str) -> bytes | None:
        """What the restore_command gets. After a problem nothing: recovery ends, and the problem is told."""
        if self._archive is None or self.problem is not None:
            return None
        try:
            if len(name) != SEGMENT_NAME:
                return self._archive.read(name)
            content = self._segment(name)
            return None if content is None else self._silenced(name, content)
        except RecoveryError as error:
            self.problem = error
        except Exception as error:  # whatever it is, the server must not wait for an answer
            reason = str(error) or type(error).__name__
            self.problem = RecoveryError(f"WAL file {name} of log_source cannot be used: {reason}.")
        return None

    def _neighbour(self, name: str, distance: int) -> bytes | None:
        """The segment so many after this one, for the rest of a record; damaged, it matters when it is asked for."""
        if self._archive is None:
            return None
        try:
            return self._segment(self._archive.neighbour(name, distance))
        except (RecoveryError, OSError, ValueError):
            return None

    def _segment(self, name: str | None) -> bytes | None:
        """A segment as it is archived; those around it are kept for the next question."""
        if name is None or self._archive is None:
            return None
        content = self._cache.pop(name, None) or self._archive.read(name)
        if content is not None:
            self._cache[name] = content
        while len(self._cache) > 3:
            del self._cache[next(iter(self._cache))]
        return content

    def _silenced(self, name: str, content: bytes) -> bytes:
        before, after = (self._neighbour(name, distance) for distance in (-1, 1))
        changed = bytearray(content)
        for record in self._scan.segment(name, content, before=before, after=after):
            self.records[record.oid] = replace(record, patches=())  # they are for this segment alone
            for patch in record.patches:
                if patch.path == name:
                    changed[patch.offset : patch.offset + len(patch.data)] = patch.data
        return bytes(changed)
