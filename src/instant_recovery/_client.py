# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The entry point: start, stop and list sessions."""

from __future__ import annotations

import contextlib
import logging
import secrets
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ._errors import InstantRecoveryError, PlaybookError, SessionNotFoundError, TaskError, UsageError
from ._export import Export, ExportProgress, Follower
from ._logs import LogLine, log_lines
from ._options import StartOptions
from ._playbook import Inventory, inventory_sources, playbook_events, run_playbook, with_secret
from ._progress import ProgressCallback, Reporter
from ._session import Session

if TYPE_CHECKING:
    import os
    import threading
    from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
    from typing import Literal, Unpack

    from ._outcome import Event

__all__ = ["InstantRecovery"]

LOGS_TIMEOUT = 300.0  # seconds, for the logs that there are already

logger = logging.getLogger("instant_recovery")


class InstantRecovery:
    """Sessions on the hosts of one inventory. Holds no state: use it from as many threads as you like.

    `inventory` is what ansible-playbook's -i takes, several of them, or a mapping (which lies in a private file in
    memory while a playbook runs); None is Ansible's configured one, and enough for sessions on this host.
    `session_root` is where the hosts keep sessions, if not at the default place.
    `variables` are given to every playbook: ansible_become_password and the like. They are never written to a disk.
    `collections_path` is the directory above another `ansible_collections` than the one installed with this package.
    """

    def __init__(
        self,
        inventory: Inventory = None,
        *,
        session_root: str | None = None,
        variables: Mapping[str, object] | None = None,
        collections_path: str | os.PathLike[str] | None = None,
    ) -> None:
        self._inventory = inventory_sources(inventory)
        self._variables = {**(variables or {}), **_given(session_root=session_root)}
        self._collection = _find_collection(collections_path)

    def start(
        self,
        archive: str,
        *,
        progress: ProgressCallback | None = None,
        cancel: threading.Event | None = None,
        timeout: float = 3600.0,
        **options: Unpack[StartOptions],
    ) -> Session:
        """Start a session from an archive (REPOSITORY::NAME, see docs/variables.md); returns when its server is ready.

        `options` are the other variables of the start playbook; None leaves the playbook's default. Without a secret
        among them, BORG_PASSPHRASE of the environment counts, and BORG_PASSCOMMAND for sessions on this host.
        `progress` is called at each step, in this thread. Setting `cancel` from another thread, `timeout` (seconds),
        Ctrl-C, and an exception out of `progress` all cut the start off; what it had done is then undone before the
        exception comes out of here. Raises PlaybookError (mostly TaskError), CancelledError, RunTimeoutError.
        """
        if unknown := options.keys() - StartOptions.__annotations__.keys():
            raise TypeError(f"start has no {', '.join(sorted(unknown))}")
        session_id = _new_id()
        variables = _given(archive=archive, session_id=session_id, **options)
        reporter = Reporter(progress)
        try:
            stats = self._run(
                "instant_recovery_start",
                with_secret({**self._variables, **variables}),
                timeout,
                cancel=cancel,
                on_event=reporter.take,
            )
            session = self._session(stats["instant_recovery_session"], session_id)
            reporter.ready()
        except PlaybookError as error:
            # After a failed task the play has undone its work itself.
            if not isinstance(error, TaskError) and reporter.has_reached("session"):
                self._abandon(session_id, error)
            raise
        except BaseException as error:
            self._abandon(session_id, error)
            raise
        logger.info("session %s is ready on %s", session.id, session.host)
        return session

    def stop(self, session: Session | str, *, timeout: float = 600.0) -> Session:
        """Stop a session (or its id), wherever among the inventory's hosts it runs; returns its final state.

        Stopping a stopped one is fine. Raises SessionNotFoundError, and PlaybookError when something of it remains.
        """
        session_id = session.id if isinstance(session, Session) else session
        if session_id == "all":
            raise UsageError("stop ends one session: use stop_all for all of them")
        try:
            stopped = self._stop(session_id, timeout)
        except TaskError as error:
            _tell_unknown(error, "instant_recovery_stopped")
            raise
        logger.info("session %s is stopped", session_id)
        if len(stopped) > 1:
            raise InstantRecoveryError(
                f"session {session_id} was stopped, and {', '.join(str(one.host) for one in stopped)} all say that it"
                " was theirs: look at these hosts"
            )
        return self._session(stopped[0].record, session_id)

    def stop_all(self, *, timeout: float = 600.0) -> tuple[Session, ...]:
        """Stop every session of the inventory's hosts; returns their final states. Raises PlaybookError."""
        return self._stop("all", timeout)

    def extend(
        self,
        session: Session | str,
        ttl: str | None = None,
        *,
        idle_timeout: str | None = None,
        timeout: float = 300.0,
    ) -> Session:
        """Let a session live for `ttl` from now on (4h; 0 is for ever); returns its state.

        `idle_timeout` is how long it may be idle, None leaves it. Raises SessionNotFoundError and PlaybookError.
        """
        return self._change("extend", session, _given(ttl=ttl, idle_timeout=idle_timeout), timeout)

    def reset(self, session: Session | str, *, timeout: float = 600.0) -> Session:
        """Take a session back to the archive's state, with its port and credentials; returns its state.

        Its clients are disconnected. Raises SessionNotFoundError and PlaybookError.
        """
        return self._change("reset", session, {}, timeout)

    def reap(self, *, timeout: float = 600.0) -> tuple[str, ...]:
        """Remove what crashes have left on the inventory's hosts; returns what that was. Raises PlaybookError."""
        stats = self._run("instant_recovery_reap", {}, timeout)
        return tuple(stats["instant_recovery_reaped"])

    def list(self, *, timeout: float = 300.0) -> tuple[Session, ...]:
        """Every session of the inventory's hosts, its status held against what is really there.

        Raises PlaybookError when a host does not answer; its `stats["instant_recovery_sessions"]` has the others'.
        """
        stats = self._run("instant_recovery_list", {}, timeout)
        return self._sessions(stats["instant_recovery_sessions"])

    def logs(
        self,
        session: Session | str,
        *,
        lines: int = 100,
        sources: Sequence[str] | None = None,
        follow: bool = False,
        timeout: float | None = None,
    ) -> Generator[LogLine, None, None]:
        """The logs of a session (or of its id), wherever among the inventory's hosts it runs, as a generator.

        It begins with the last `lines` lines of each log; `sources` chooses some ("server", "layer", "archive",
        "keeper"). With `follow` it goes on live until the session ends. Closing it, as `contextlib.closing` does, or
        Ctrl-C ends the run behind it, with nothing left. It must not outlive `timeout` seconds; None is 300, and
        without an end when following. Raises SessionNotFoundError, PlaybookError (a session that has ended has no
        logs), RunTimeoutError, all at the first line or later.
        """
        session_id = session.id if isinstance(session, Session) else session
        variables = _given(session_id=session_id, lines=lines, sources=sources, follow=follow)
        events = playbook_events(
            "instant_recovery_logs",
            collection=self._collection,
            inventory=self._inventory,
            variables={**self._variables, **variables, "format": "json"},
            timeout=LOGS_TIMEOUT if timeout is None and not follow else timeout,
            # It changes nothing: there is nothing to wait for.
            module_grace=0.0,
        )
        with contextlib.closing(events):
            try:
                for event in events:
                    yield from log_lines(event)
            except TaskError as error:
                _tell_unknown(error, "instant_recovery_log_hosts")
                raise

    def export(
        self,
        source: Session | str,
        *,
        to: str | None = None,
        fetch_to: str | os.PathLike[str] | None = None,
        database: str | None = None,
        tables: Sequence[str] | None = None,
        schemas: Sequence[str] | None = None,
        query: str | None = None,
        format: Literal["sql", "custom", "csv"] | None = None,
        force: bool = False,
        recipient: str | None = None,
        progress: Callable[[ExportProgress], None] | None = None,
        timeout: float = 86400.0,
        **options: Unpack[StartOptions],
    ) -> Export:
        """Export from a session (or its id), or from an archive (REPOSITORY::NAME), as docs/data-home.md describes it.

        From an archive a session is started, with `options` as for `start`, and stopped, whatever happens. `to` is a
        path on the session's host, `fetch_to` one here. `progress` is called in a thread of its own. `timeout` is for
        all of it, in seconds. Raises PlaybookError (mostly TaskError), RunTimeoutError, SessionNotFoundError.
        """
        if unknown := options.keys() - StartOptions.__annotations__.keys():
            raise TypeError(f"export has no {', '.join(sorted(unknown))}")
        is_archive = isinstance(source, str) and "::" in source
        session_id = _new_id() if is_archive else source.id if isinstance(source, Session) else source
        what = _given(database=database, tables=tables, schemas=schemas, session_query=query, format=format, to=to)
        where = _given(fetch_to=None if fetch_to is None else str(Path(fetch_to).absolute()), recipient=recipient)
        given = {**what, **where, "force": force, "export_timeout": max(1, int(timeout)), "session_id": session_id}
        if is_archive:
            given = with_secret({**self._variables, **given, **_given(archive=source, **options)})
        try:
            with Follower(progress, lambda ended: self._export_events(session_id, ended)) as follower:
                stats = self._run("instant_recovery_export", given, timeout, on_event=follower.take)
        except TaskError as error:
            _tell_unknown(error, "instant_recovery_found")
            raise
        except BaseException as error:
            if is_archive:
                self._abandon(session_id, error)
            raise
        return Export.from_result(stats["instant_recovery_export"])

    def _export_events(self, session_id: str, ended: threading.Event) -> Iterable[Event]:
        return playbook_events(
            "instant_recovery_logs",
            collection=self._collection,
            inventory=self._inventory,
            variables={
                **self._variables,
                **_given(session_id=session_id, lines=1, sources=["export"], follow=True, format="json"),
            },
            timeout=None,
            cancel=ended,
            module_grace=0.0,
        )

    def _change(self, what: str, session: Session | str, variables: Mapping[str, object], timeout: float) -> Session:
        session_id = session.id if isinstance(session, Session) else session
        try:
            stats = self._run(f"instant_recovery_{what}", {"session_id": session_id, **variables}, timeout)
        except TaskError as error:
            _tell_unknown(error, "instant_recovery_found")
            raise
        return self._session(stats["instant_recovery_session"], session_id)

    def _stop(self, session_id: str, timeout: float) -> tuple[Session, ...]:
        stats = self._run("instant_recovery_stop", {"session_id": session_id}, timeout)
        return self._sessions(stats["instant_recovery_stopped"])

    def _abandon(self, session_id: str, reason: BaseException) -> None:
        """Stop what a start that was cut off may have left; when that fails, the reason of the cut comes first."""
        logger.info("the start was cut off, stopping session %s", session_id)
        try:
            self.stop(session_id)
        except SessionNotFoundError:
            pass  # It had not come as far as to make one.
        except BaseException as error:
            note = f"session {session_id} may still be there: stop it with instant_recovery_stop ({error!r})"
            reason.add_note(note)
            logger.error("%s", note)
            if not isinstance(error, Exception):
                raise

    def _run(self, playbook: str, variables: Mapping[str, object], timeout: float, **options: Any) -> dict[str, Any]:
        return run_playbook(
            playbook,
            collection=self._collection,
            inventory=self._inventory,
            variables={**self._variables, **variables},
            timeout=timeout,
            **options,
        )

    def _session(self, record: Mapping[str, Any], session_id: str | None = None) -> Session:
        if session_id not in (None, record["id"]):
            raise InstantRecoveryError(f"asked for session {session_id}, {record['host']} answered with another one")
        return Session.from_record(record, stop=self.stop, logs=self.logs)

    def _sessions(self, records: Iterable[Mapping[str, Any]]) -> tuple[Session, ...]:
        return tuple(self._session(record) for record in records)


def _tell_unknown(error: TaskError, found: str) -> None:
    """Raise SessionNotFoundError where the play said in its statistics, by the name `found`, that no host has it."""
    if error.stats.get(found) == []:
        raise SessionNotFoundError(error.message, failures=error.failures, stats=error.stats) from error


def _given(**values: object) -> dict[str, object]:
    return {name: value for name, value in values.items() if value is not None}


def _new_id() -> str:
    """An id of the form that the collection gives: known before the start, so that a start cut off can be stopped."""
    return f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{secrets.token_hex(2)}"


def _find_collection(collections_path: str | os.PathLike[str] | None) -> Path:
    """The collection's directory: below `collections_path`, or installed beside this package, or the checkout's."""
    package = Path(__file__).resolve().parent
    name = Path("ansible_collections", "phpborg", "instant_recovery")
    if collections_path is not None:
        candidates = [Path(collections_path).resolve() / name]
    else:
        candidates = [package.parent / name, package.parent.parent]
    for candidate in candidates:
        if (candidate / "playbooks").is_dir():
            return candidate
    raise UsageError(
        f"the collection phpborg.instant_recovery is not in {candidates[0]}: reinstall this package,"
        " or name the directory above ansible_collections as collections_path"
    )
