# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The restore_command of a session's recovery.

It asks this process for a file through one named pipe and copies what comes through another. So whoever may read the
WAL is who runs the module (the server's user often may not), no path of the archive gets into a shell, and on its way
each segment loses what would lead the copy back to production: see `_pg_wal`.
"""

from __future__ import annotations

import os
import shlex
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from ansible_collections.phpborg.instant_recovery.plugins.module_utils._errors import RecoveryError
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._pg_wal import TablespaceRecord, scan_segment

if TYPE_CHECKING:
    import pwd

    from ansible_collections.phpborg.instant_recovery.plugins.module_utils._pg_wal_archive import WalArchive

__all__ = ["PIPES", "WalServer"]

PIPES = ("wal.ask", "wal.answer")  # in the server's private directory
SEGMENT_NAME = 24  # characters; histories have other names
ENDING = 60  # seconds for the file that is being read when the server ends


class WalServer:
    """Serves the files of archive to the restore_command, as a context manager.

    Afterwards problem is why something could not be served, missing the first segment that was asked for and is not
    there, and records what was taken out of the WAL. Without an archive nothing is there.
    """

    def __init__(self, archive: WalArchive | None, directory: str, account: pwd.struct_passwd) -> None:
        self.problem: RecoveryError | None = None
        self.missing: str | None = None
        self.records: dict[int, TablespaceRecord] = {}
        self._archive = archive
        self._ask, self._answer = (os.path.join(directory, name) for name in PIPES)
        self._account = account
        self._cache: dict[str, bytes] = {}
        self._thread = threading.Thread(target=self._serve, daemon=True)

    @property
    def command(self) -> str:
        """The restore_command: %f is the file that is wanted, %p where it is to be put, below the data directory."""
        ask, answer = (shlex.quote(path).replace("%", "%%") for path in (self._ask, self._answer))
        # What is not there comes as nothing.
        return f"echo %f >{ask} && cat <{answer} >%p && test -s %p"

    def __enter__(self) -> WalServer:
        for path in (self._ask, self._answer):
            with suppress(FileNotFoundError):
                os.unlink(path)
            os.mkfifo(path, 0o600)
            if self._account.pw_uid != os.geteuid():
                os.chown(path, self._account.pw_uid, self._account.pw_gid, follow_symlinks=False)
        # Open for both: so neither end waits for the other, and no end of file comes between two questions.
        self._questions = os.fdopen(os.open(self._ask, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC), "r+b", buffering=0)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._questions.write(b"\n")
        deadline = time.monotonic() + ENDING
        while self._thread.is_alive() and time.monotonic() < deadline:
            # Should the server have been killed while it was to get an answer: nobody else will take it.
            os.close(os.open(self._answer, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC))
            self._thread.join(timeout=0.05)
        self._questions.close()
        for path in (self._ask, self._answer):
            with suppress(FileNotFoundError):
                os.unlink(path)

    def _serve(self) -> None:
        while name := self._questions.readline().decode("ascii", "replace").strip():
            content = self._content(name)
            if content is None and len(name) == SEGMENT_NAME:
                self.missing = name
            with suppress(BrokenPipeError), open(self._answer, "wb", buffering=0) as answer:
                view = memoryview(content or b"")
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
        except (OSError, ValueError) as error:
            self.problem = RecoveryError(f"WAL file {name} of wal_source cannot be used: {error}.")
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
        assert self._archive is not None
        before, after = (self._segment(self._archive.neighbour(name, distance)) for distance in (-1, 1))
        changed = bytearray(content)
        for record in scan_segment(name, content, before=before, after=after):
            self.records[record.oid] = record
            for patch in record.patches:
                if patch.path == name:
                    changed[patch.offset : patch.offset + len(patch.data)] = patch.data
        return bytes(changed)
