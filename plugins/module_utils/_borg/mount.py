# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Read-only FUSE mounts of one archive: several identical ones for parallel reading, all of them or none.

`borg mount` runs in the foreground as a daemon of ours, so that its process is known and its words are kept. What is
mounted where is decided by the mount table and by the arguments of the process that serves the mount, which the
session's record claims.
"""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from .._errors import MORE_TIME, RecoveryError
from .._host.command import Bounds, account, end_with_caller
from .._host.files import open_below, read_beginning
from .._host.fuse_server import await_servers, end_servers
from .._host.limits import bounds_of_borg
from .._host.mounts import is_responding, make_mount_point, mount_at, mounts_below, tie, unmount
from .._host.preflight import Host, mounting_problems
from .._host.processes import MARKER, Process, command_lines, spawn
from .._session.directory import TEMPORARY
from .._session.record import LOGS, Claim
from .._session.session import Session
from .remount import Remount
from .repository import BorgError, Repository, last_words, plain_path
from .suspects import is_odd

__all__ = ["ArchiveMount", "mounted_archives", "unmount_archives"]

# Decoded chunks (of about 2 MiB) that each mount keeps. Borg keeps as many as there are CPUs, which is less than the
# files that a starting server reads alternately.
DATA_CACHE_ENTRIES = "8"
# On a host with more sessions than CPUs memory counts more than the tenth of Borg's time that it costs to return each
# chunk's memory at once: mallopt(3), thresholds in bytes.
THRIFTY = {
    "BORG_MOUNT_DATA_CACHE_ENTRIES": "1",
    "MALLOC_MMAP_THRESHOLD_": "65536",
    "MALLOC_TRIM_THRESHOLD_": "65536",
}
SOURCE = "borgfs"  # as every borg mount is called in the mount table
SERVER_ENDS = 10.0  # seconds that borg has to close its repository after its mount is gone
LONGEST_SPEECH = 1 << 20  # bytes of a borg's log that are looked at for why it failed
SIGNALS = (("SIGTERM", 5.0), ("SIGKILL", 5.0))


@dataclass(frozen=True)
class ArchiveMount:
    """What is to be mounted where.

    With one reader at `mountpoint` itself, with more at `mountpoint`/1, /2 and so on. `paths` are those of the archive
    (none: all of it), and of `directories` the entry alone is mounted besides. `owner` is the user to whom everything
    shall seem to belong. Without a session's directory the logs go to `log_directory`, and without that they are kept
    only for an error message. `tied_to` is a descriptor that borg inherits (_mounts.unmounted_with_its_users): a mount
    for as long as this process needs it, should it be killed. `temporary` is where borg puts aside what it does not
    keep in memory, in place of TMPDIR; a session has its own. Raises BorgError for paths that lead out of the archive.
    """

    repository: Repository
    archive: str
    mountpoint: str
    paths: tuple[str, ...] = ()
    directories: tuple[str, ...] = ()
    strip_components: int = 0
    readers: int = 1
    owner: str | None = None
    allow_other: bool = False
    log_directory: str | None = None
    tied_to: int | None = None
    temporary: str | None = None

    def __post_init__(self) -> None:
        for path in (*self.paths, *self.directories):
            if is_odd(path.lstrip("/")):
                raise BorgError(f"{path!r} leads out of the archive: name paths as borg list shows them.")

    @property
    def mountpoints(self) -> list[str]:
        """Where each reader mounts."""
        if self.readers == 1:
            return [self.mountpoint]
        return [os.path.join(self.mountpoint, str(number)) for number in range(1, self.readers + 1)]

    def missing(self, session: Session | None) -> list[str]:
        """The mount points where the archive is not mounted. Raises BorgError where something else is."""
        location = self.repository.archive_location(self.archive)
        missing = []
        for mountpoint in self.mountpoints:
            standing = _standing(mountpoint, session)
            if standing is None or standing.is_dead:
                missing.append(mountpoint)
            elif standing.location != location:
                raise BorgError(
                    f"{mountpoint} already holds {standing.what}. Unmount that first, or choose another mountpoint."
                )
        return missing

    def pids(self, session: Session | None) -> list[int]:
        """The processes that serve the mounts, in the order of `mountpoints`."""
        serving = _serving(session)
        return [serving[mountpoint].process.pid for mountpoint in self.mountpoints if mountpoint in serving]

    def mount(self, session: Session | None) -> list[str]:
        """Mount where `missing` says, claiming it in the session first; returns the mount points that were missing.

        After an error nothing of it is left. Raises BorgError, MountError and SessionError.
        """
        missing = self.missing(session)
        for mountpoint in missing:
            unmount(mountpoint)  # what a borg that was killed left behind
        with _log_directory(session, self.log_directory) as logs, ExitStack() as undo:
            for mountpoint in missing:
                make_mount_point(mountpoint, undo)
            self._await([self._start(mountpoint, logs, session, undo) for mountpoint in missing])
            undo.pop_all()
        return missing

    def remounts(self, session: Session) -> list[Remount]:
        """How to make again what mount() has made for the session, or found there."""
        env, passphrase = self.repository.environment_and_secret()
        listing = self.repository.command("list", "--json", "--consider-checkpoints", of=[self.repository.location])
        # Not where somebody counts on Borg's lock, and not where it may take somebody to reach the repository: an agent
        # of ssh can go with whoever started the session.
        has_agent = not self.repository.is_local and "SSH_AUTH_SOCK" in os.environ
        may_suspend = self.repository.bypass_lock and not has_agent
        return [
            Remount(
                name=self._name(mountpoint),
                mountpoint=mountpoint,
                archive=self.archive,
                argv=self._command(mountpoint, session),
                listing=listing,
                env={**_server_environment(session), **env},
                passphrase=passphrase,
                log=self._log(mountpoint, session.path("log"), session),
                memory=session.record.memory_max,
                may_suspend=may_suspend,
            )
            for mountpoint in self.mountpoints
        ]

    def _name(self, mountpoint: str) -> str:
        """What a session calls the mount in its claims."""
        return f"{os.path.basename(self.mountpoint)}-{self.mountpoints.index(mountpoint) + 1}"

    def _log(self, mountpoint: str, logs: str, session: Session | None) -> str:
        # A session may mount a second archive, for its logs: claims and logs must not be taken for one another's.
        name = self._name(mountpoint)
        is_archive = session is None or self.mountpoint == session.path("archive")
        return os.path.join(logs, f"borg-{name.rpartition('-')[2] if is_archive else name}.log")

    def _command(self, mountpoint: str, session: Session | None) -> list[str]:
        return self.repository.mount_command(
            self.archive,
            mountpoint,
            paths=self.paths,
            directories=self.directories,
            strip_components=self.strip_components,
            owner=None if _shows_owners(session) else _owner_ids(self.owner),
            numeric_ids=_shows_owners(session),
            allow_other=self.allow_other,
        )

    def _start(self, mountpoint: str, logs: str, session: Session | None, undo: ExitStack) -> _Server:
        name, argv, log = (
            self._name(mountpoint),
            self._command(mountpoint, session),
            self._log(mountpoint, logs, session),
        )
        env = _server_environment(session)
        if self.temporary is not None:
            env["TMPDIR"] = self.temporary
        if session is not None:
            part = os.path.basename(self.mountpoint)
            session.claim(Claim(name, "mount", part, required=part != LOGS, mountpoint=mountpoint))
            undo.callback(session.release_claim, name)
        offset = os.path.getsize(log) if os.path.exists(log) else 0
        with self.repository.environment_with_pipe() as (secret, descriptors):
            bound: dict[str, Any] = {}
            if self.tied_to is not None:
                descriptors, bound = [*descriptors, self.tied_to], {"preexec_fn": end_with_caller()}
            process = spawn(
                argv, log=log, env={**env, **secret}, pass_fds=descriptors, bounds=_bounds(session), **bound
            )
        if self.tied_to is not None:
            tie(process, self.tied_to)
        server = _Server(process, mountpoint, tuple(argv), log, offset)
        undo.callback(server.end)
        if session is not None:
            session.amend_claim(name, process=process)
        return server

    def _await(self, servers: Sequence[_Server]) -> None:
        """Wait until all serve, and see that they serve what was asked for."""
        missing = await_servers(
            {server.mountpoint: server.process for server in servers}, timeout=self.repository.timeout
        )
        for server in servers:
            if not server.process.alive():
                raise self._failure(server)
            if server.mountpoint in missing:
                raise BorgError(
                    f"borg did not mount {self.archive} at {server.mountpoint} within {self.repository.timeout:g} s: "
                    f"{MORE_TIME}, or see what borg waits for.",
                    command=list(server.argv),
                    stderr=last_words(server.said()),
                )
        for path in map(plain_path, self.paths) if servers else ():
            # Only what strip_components leaves of it can be seen; of what it removes wholly, the content.
            rest = path.split("/")[self.strip_components :]
            top = servers[0].mountpoint
            if not (_holds(top, "/".join(rest)) if rest else os.listdir(top)):
                raise BorgError(
                    f"Archive {self.archive} has no {path}. borg_archive_info tells what it has.",
                    paths=list(self.paths),
                )

    def _failure(self, server: _Server) -> BorgError:
        """Why a borg ended without having mounted."""
        error = self.repository.error(server.argv, None, server.said(), archive=self.archive)
        # What FUSE says of itself is vague: better to look what this host lacks.
        problems = mounting_problems(Host.look()) if error.msgid is None else []
        if problems:
            return BorgError(f"{self.archive} cannot be mounted: {problems[0].what}. To cure it, {problems[0].remedy}.")
        return error


def mounted_archives(mountpoint: str) -> list[str]:
    """The Borg mounts at `mountpoint` and below. Raises BorgError where something else is mounted there."""
    table = mounts_below(mountpoint)
    for mount in table:
        if mount.source != SOURCE:
            raise BorgError(
                f"{mount.mountpoint} holds {mount.source} ({mount.fstype}), which is no Borg mount of ours."
            )
    return [mount.mountpoint for mount in table]


def unmount_archives(mountpoint: str, session: Session | None) -> list[str]:
    """Unmount what `mounted_archives` says and wait for its borg to end; returns the mount points."""
    mounted = mounted_archives(mountpoint)
    serving = _serving(session)
    servers = [serving[point].process for point in mounted if point in serving]
    end_servers(mounted, servers, SIGNALS, ends_within=SERVER_ENDS)
    for point in mounted:
        if os.path.dirname(point) == mountpoint:
            with suppress(OSError):
                os.rmdir(point)
    for claim in list(session.record.claims) if session is not None else ():
        if session is not None and claim.mountpoint in mounted:
            session.release_claim(claim.name)
    return mounted


@dataclass(frozen=True)
class _Server:
    """A borg that was started; what it says stands in its log from `offset` on."""

    process: Process
    mountpoint: str
    argv: tuple[str, ...]
    log: str
    offset: int

    def said(self) -> str:
        """Return what a borg has logged.

        Where that was too much the session's keeper has begun the log anew, and the last words are there.
        """
        begun_anew = os.path.getsize(self.log) < self.offset
        offset = 0 if begun_anew else self.offset
        return read_beginning(self.log, LONGEST_SPEECH, offset=offset).decode("utf-8", "replace")

    def end(self) -> None:
        """Undo what it did, however far it came."""
        end_servers([self.mountpoint], [self.process], SIGNALS)


@dataclass(frozen=True)
class _Standing:
    """What is mounted at a mount point: in words, and which archive a living borg serves there."""

    what: str
    location: str | None = None
    is_dead: bool = False


def _standing(mountpoint: str, session: Session | None) -> _Standing | None:
    mount = mount_at(mountpoint)
    if mount is None:
        return None
    if mount.source != SOURCE:
        return _Standing(f"{mount.source} ({mount.fstype})")
    server = _serving(session).get(mount.mountpoint)
    if server is not None:
        return _Standing(f"archive {server.location}", server.location)
    return _Standing("a Borg mount of unknown origin", is_dead=not is_responding(mount.mountpoint))


@dataclass(frozen=True)
class _Serving:
    process: Process
    location: str


def _serving(session: Session | None) -> dict[str, _Serving]:
    """The borg processes that serve an archive, by mount point: the session's, or without one all of this user's."""
    found = {}
    for process, argv in command_lines(None if session is None else session.record.processes):
        position = next((index for index, argument in enumerate(argv) if "::" in argument), 0)
        if "mount" in argv[:position] and position + 1 < len(argv):
            found[argv[position + 1]] = _Serving(process, argv[position])
    return found


def _bounds(session: Session | None) -> Bounds:
    return bounds_of_borg(None if session is None else session.record.memory_max)


def _holds(mountpoint: str, path: str) -> bool:
    """Whether a mounted archive has this path. No link of the archive is followed: it would lead to this host."""
    top = os.open(mountpoint, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.close(open_below(top, path, os.O_PATH))
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            return False
        raise
    finally:
        os.close(top)
    return True


def _server_environment(session: Session | None) -> dict[str, str]:
    env = dict(THRIFTY) if _is_crowded(session) else {"BORG_MOUNT_DATA_CACHE_ENTRIES": DATA_CACHE_ENTRIES}
    env.update({name: os.environ[name] for name in env if name in os.environ})
    return env if session is None else {**env, MARKER: session.directory, "TMPDIR": session.path(TEMPORARY)}


def _is_crowded(session: Session | None) -> bool:
    if session is None:
        return False
    return len(Session.all(os.path.dirname(session.directory))) > len(os.sched_getaffinity(0))


def _shows_owners(session: Session | None) -> bool:
    """Whether the mount has to show archived owners, for the layer to tell the server's files from all others.

    By their numbers: of two users the host may know one by the other's number, and take them for one.
    """
    return session is not None and session.record.owner_id is not None and os.geteuid() == 0


def _owner_ids(owner: str | None) -> tuple[int, int] | None:
    """uid and gid for -o; an ordinary user can only read what seems to be the user's own."""
    if owner is None:
        return None if os.geteuid() == 0 else (os.geteuid(), os.getegid())
    try:
        entry = account(owner)
    except RecoveryError:
        raise BorgError(f"owner is {owner}, but there is no such user on this host. Name one that exists.") from None
    if os.geteuid() not in (0, entry.uid):
        raise BorgError(f"owner is {owner}, whose files only root and {owner} could read. Leave it out, or use become.")
    # Borg takes only numbers that the host has a name for. A session's own user gets the files from the layer above,
    # which root reads for it.
    return None if entry.is_own else (entry.uid, entry.gid)


@contextmanager
def _log_directory(session: Session | None, log_directory: str | None) -> Iterator[str]:
    if session is not None or log_directory is not None:
        directory = log_directory or os.path.join(session.directory if session else "", "log")
        os.makedirs(directory, mode=0o700, exist_ok=True)
        yield directory
    else:
        with tempfile.TemporaryDirectory(prefix="borg-mount-") as directory:
            yield directory
