# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The copy-on-write layer over a read-only directory, by one of two drivers.

`block`: our own FUSE program (cowfs), which copies blocks. `overlayfs`: the kernel's, which copies whole files.
Both are seen through the same class, so whoever mounts need not know which it is.
"""

from __future__ import annotations

import os
import re
import stat
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .._errors import RecoveryError
from .._host.command import Account, account, find_program, last_line, run
from .._host.disk import floor_of, free_space
from .._host.files import read_end
from .._host.fuse_server import await_servers, end_servers
from .._host.mounts import Mount, is_responding, make_mount_point, mount_at, unmount
from .._host.processes import MARKER, Process, command_lines, spawn, stop_all
from .._host.programs import packed
from .._session.counters import counters_of
from .._session.directory import NAMES, RESUME
from .._session.record import LAYER, Claim
from .cowfs import program as cowfs
from .lost import failures_of

if TYPE_CHECKING:
    from .._session.session import Session

__all__ = ["COWFS", "Overlay", "OverlayError", "packed_cowfs", "remove_overlay"]

CLAIM = "merged"
# What the program of C(block) consists of.
COWFS = ("_host/clock", "_host/files", "_session/counters", "_borg/names", "_layer/cowfs")
FSTYPES = {"block": "fuse.cowfs", "overlayfs": "overlay"}
# A device node of the archive would else be this host's device, and belong to the server's user.
SAFE = "nodev,nosuid"
SIGNALS = (("SIGTERM", 10.0), ("SIGKILL", 5.0))
DETAIL_BYTES = 4000  # of the layer's log in an error: its last lines say why
LARGEST_CACHE = 1 << 30  # bytes; the default, unless a tenth of the free space is less
# KiB that the kernel reads ahead on the merged mount: with its own 128 a scan costs eight times as many requests.
READ_AHEAD = 1024
# What neither the kernel's nor FUSE's mount options, nor mount(8)'s own reading of them, can hold in a path.
SEPARATORS = re.compile(r"[,:\\\"\x00-\x1f\x7f]")


class OverlayError(RecoveryError):
    """The copy-on-write layer cannot be mounted or unmounted."""


@dataclass(frozen=True)
class Overlay:
    """What is to be mounted where.

    lower: identical read-only directories, more than one for reading in parallel (C(block) only). upper: a directory
    for the changes. owner: user to whom everything shall belong (None: as in the lower). cache_size: bytes on disk for
    what was fetched from the lower (None: the default). python: one that has pyfuse3. log: file for C(block)'s words.
    """

    driver: str
    lower: tuple[str, ...]
    upper: str
    mountpoint: str
    owner: str | None = None
    cache_size: int | None = None
    python: str | None = None
    log: str = os.devnull
    timeout: float = 30.0

    def is_mounted(self) -> bool:
        """Whether this very layer is there. Raises OverlayError where something else is."""
        mount = mount_at(self.mountpoint)
        if mount is None:
            return False
        ours = mount.source if self.driver == "block" else _option(mount, "lowerdir")
        if mount.fstype != FSTYPES[self.driver] or ours != self.lower[0]:
            raise OverlayError(
                f"{self.mountpoint} already holds {mount.source} ({mount.fstype}). Unmount that first, or choose "
                "another mountpoint."
            )
        missing = [option for option in SAFE.split(",") if option not in mount.options.split(",")]
        if missing:
            raise OverlayError(
                f"The layer at {self.mountpoint} was mounted without {' and '.join(missing)}, so that the archive's "
                "device nodes or setuid programs would work. Unmount it first."
            )
        if not is_responding(self.mountpoint):
            raise OverlayError(f"The layer at {self.mountpoint} is dead: its process was killed. Unmount it first.")
        return True

    def pid(self, session: Session | None) -> int | None:
        """The process that serves it; None for the kernel's."""
        return next((process.pid for process, _upper in _servers(self.mountpoint, session)), None)

    def check(self) -> None:
        """Raise OverlayError for what cannot be mounted, before anything is done."""
        for path in (*self.lower, self.upper, self.mountpoint):
            if SEPARATORS.search(path) or not os.path.isabs(path):
                raise OverlayError(
                    f"{path!r} cannot be mounted: choose an absolute path without comma, colon, quotation mark or "
                    "backslash."
                )
        for path in self.lower:
            if not os.path.isdir(path):
                raise OverlayError(f"lower {path} is not a directory. Mount the archive there first.")
        if self.driver == "overlayfs" and os.geteuid() != 0:
            raise OverlayError("driver overlayfs needs root: use become, or choose driver block, which needs none.")
        if self.driver == "block" and self.python is None:
            raise OverlayError("driver block needs a Python that has pyfuse3: install the package python3-pyfuse3.")
        if os.path.isdir(self.upper) and os.listdir(self.upper):
            raise OverlayError(
                f"upper {self.upper} is not empty. Choose an empty directory: changes are not taken over."
            )
        self._owner()

    def mount(self, session: Session | None) -> Process | None:
        """Mount, claiming it in the session first; the process that serves it, None for the kernel's.

        After an error nothing of it is left.
        """
        self.check()
        with ExitStack() as undo:
            make_mount_point(self.upper, undo)
            make_mount_point(self.mountpoint, undo)
            if session is not None:
                session.claim(Claim(CLAIM, "mount", LAYER, mountpoint=self.mountpoint))
                undo.callback(session.release_claim, CLAIM)
            process = None
            if self.driver == "block":
                process = self._mount_block(session, undo)
            else:
                self._mount_overlayfs(undo)
            undo.pop_all()
        return process

    def _mount_block(self, session: Session | None, undo: ExitStack) -> Process:
        program = _program(self.upper)
        undo.callback(_remove, program)
        undo.callback(_remove, counters_of(self.upper))
        undo.callback(_remove, failures_of(self.upper))
        with open(program, "wb") as file:
            file.write(packed_cowfs())
        env = {MARKER: session.directory} if session is not None else {}
        process = spawn(self._command(program, [*_told_of(session), *self._owned(session)]), log=self.log, env=env)
        undo.callback(stop_all, [process], SIGNALS)
        if session is not None:
            session.amend_claim(CLAIM, process=process, notice=cowfs.NOTICE.name)
        if await_servers({self.mountpoint: process}, timeout=self.timeout):
            said = _said(self.log)
            raise OverlayError(
                f"The copy-on-write layer did not start at {self.mountpoint}: {last_line(said) or 'it said nothing'}. "
                f"Its log: {self.log}",
                log_tail=said,
            )
        _read_ahead(self.mountpoint)
        return process

    def _command(self, program: str, others: list[str]) -> list[str]:
        owner = self._owner()
        cache = _default_cache(self.upper) if self.cache_size is None else self.cache_size
        command = [self.python or "", "-I", program, "--upper", self.upper, "--cache-size", str(cache)]
        for lower in self.lower:
            command += ["--lower", lower]
        if owner is not None:
            command += ["--owner", f"{owner.uid}:{owner.gid}"]
            if owner.uid != os.geteuid():
                command.append("--allow-other")
        told = ["--counters", counters_of(self.upper), "--failures", failures_of(self.upper)]
        return [*command, *others, *told, self.mountpoint]

    def _owned(self, session: Session | None) -> list[str]:
        """Options that say whose files are to become the owner's: those of the data directory's owner.

        A link could lead to anything else that the archive has, and production's server could not open all of it.
        """
        record = None if session is None else session.record
        if self.owner is None or record is None or record.owner_id is None or os.geteuid() != 0:
            return []
        directory = os.path.normpath(record.data_directory or "")
        return ["--owned", str(record.owner_id), "--always", "" if directory == "." else directory]

    def _owner(self) -> Account | None:
        if self.owner is None:
            return None
        try:
            entry = account(self.owner)
        except RecoveryError:
            raise OverlayError(f"owner is {self.owner}, but there is no such user on this host. Name one.") from None
        if os.geteuid() not in (0, entry.uid):
            raise OverlayError(f"owner is {self.owner}, which only root can arrange. Leave it out, or use become.")
        return entry

    def _mount_overlayfs(self, undo: ExitStack) -> None:
        changes, work = os.path.join(self.upper, "changes"), os.path.join(self.upper, "work")
        for directory in (changes, work):
            os.mkdir(directory, 0o700)
            undo.callback(_remove, directory)
        # The merged root takes mode and owner from here, at this moment, and PostgreSQL minds both.
        root, owner = os.stat(self.lower[0]), self._owner()
        os.chmod(changes, stat.S_IMODE(root.st_mode))
        os.chown(changes, *((owner.uid, owner.gid) if owner else (root.st_uid, root.st_gid)))
        options = f"{SAFE},lowerdir={self.lower[0]},upperdir={changes},workdir={work}"
        command = [find_program("mount") or "mount", "-t", "overlay", "overlay", "-o", options, self.mountpoint]
        run(command, timeout=self.timeout)
        undo.callback(unmount, self.mountpoint)
        _try_copying(self.mountpoint)


def packed_cowfs() -> bytes:
    """The program of C(block), which Python runs as it is."""
    return packed(*COWFS, main=f"from {cowfs.__name__} import main\nraise SystemExit(main())\n")


def remove_overlay(mountpoint: str, session: Session | None) -> bool:
    """Unmount the layer at mountpoint and wait for its process; whether there was one. Refuses what is not ours."""
    mount = mount_at(mountpoint)
    if mount is None:
        return False
    if mount.fstype not in FSTYPES.values():
        raise OverlayError(f"{mountpoint} holds {mount.source} ({mount.fstype}), which is no layer of ours.")
    servers = _servers(mountpoint, session)
    left = end_servers([mountpoint], [process for process, _upper in servers], SIGNALS, ends_within=SIGNALS[0][1])
    if left:
        raise OverlayError(f"Process {left[0].pid}, which served {mountpoint}, does not end.")
    for _process, upper in servers:
        _remove(_program(upper))
        _remove(counters_of(upper))
        _remove(failures_of(upper))
    if session is not None:
        session.release_claim(CLAIM)
    return True


def _told_of(session: Session | None) -> list[str]:
    """What the layer of a session is told: how to ask for the archive, and how much room it leaves at the very least.

    At the floor the keeper ends the session, some seconds late: until then half of it is the layer's to defend.
    """
    if session is None:
        return []
    _free, total = free_space(session.directory)
    floor = floor_of(session.record.free_space_floor, total)
    names = session.path(NAMES)
    told = ["--names", names] if os.path.exists(names) else []
    return [*told, "--resume", session.path(RESUME), "--reserve", str(floor // 2)]


def _program(upper: str) -> str:
    """Where the program of C(block) lies while it runs: beside the changes, so that C(ps) tells which layer it is."""
    return f"{upper}.cowfs"


def _servers(mountpoint: str, session: Session | None) -> list[tuple[Process, str]]:
    """The programs that serve mountpoint, with their upper directory: the session's, or without one this user's."""
    found = command_lines(None if session is None else session.record.processes)
    return [
        (process, arguments[arguments.index("--upper") + 1])
        for process, arguments in found
        if arguments and arguments[-1] == mountpoint and "--upper" in arguments
    ]


def _default_cache(upper: str) -> int:
    place = os.statvfs(upper)
    return min(LARGEST_CACHE, place.f_bavail * place.f_frsize // 10)


def _read_ahead(mountpoint: str) -> None:
    """Raise the kernel's read-ahead of this mount. Only root may; for others scans of cold data are somewhat slower."""
    mount = mount_at(mountpoint)
    if mount is not None:
        with suppress(OSError), open(f"/sys/class/bdi/{mount.device}/read_ahead_kb", "w", encoding="ascii") as setting:
            setting.write(str(READ_AHEAD))


def _try_copying(mountpoint: str) -> None:
    """Have one small file copied up: some kernels (seen: 5.15 to 6.4) cannot, from a FUSE mount."""
    for directory, _names, files in os.walk(mountpoint):
        for path in (os.path.join(directory, name) for name in files):
            state = os.lstat(path)
            if stat.S_ISREG(state.st_mode) and state.st_size <= 1 << 20:
                try:
                    os.close(os.open(path, os.O_RDWR | os.O_NOFOLLOW))
                except OSError as error:
                    raise OverlayError(
                        f"This kernel ({os.uname().release}) cannot copy files from the archive's mount with "
                        f"overlayfs: {error.strerror}. Choose driver block (package python3-pyfuse3)."
                    ) from None
                return


def _option(mount: Mount, name: str) -> str | None:
    values = [option.partition("=")[2] for option in mount.options.split(",") if option.startswith(f"{name}=")]
    return values[0] if values else None


def _remove(path: str) -> None:
    with suppress(FileNotFoundError, OSError):
        os.rmdir(path) if os.path.isdir(path) else os.unlink(path)


def _said(log: str) -> str:
    try:
        return read_end(log, DETAIL_BYTES).decode("utf-8", "replace")
    except OSError:
        return ""
