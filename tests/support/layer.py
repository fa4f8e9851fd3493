# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The copy-on-write layer as a program of its own, mounted for a test."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from ansible_collections.phpborg.instant_recovery.plugins.module_utils._host.programs import packed
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._layer.cowfs import program as cowfs
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._layer.overlay import COWFS, packed_cowfs

from tests.support.host import mountinfo

if TYPE_CHECKING:
    import pwd
    from collections.abc import Callable, Mapping, Sequence

__all__ = ["PYTHON", "Layer", "drop_names", "forget", "is_mounted", "wait_for_mounts"]

PYTHON = "/usr/bin/python3"  # Debian's, which has pyfuse3


@dataclass(kw_only=True)
class Layer:
    """The layer over `lower` (identical directories), as a context manager: mounted inside, nothing left after it.

    Everything else is in `directory`: changes in `upper` (may be given), the mount at `root`, what it says in `log`.
    `constants` are of modules of the program, such as {"operations.MOST_NAMES": 100}, with other values.
    """

    lower: Sequence[Path]
    directory: Path
    upper: Path = field(default=Path())
    options: Sequence[str] = ()
    user: pwd.struct_passwd | None = None
    constants: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.root = self.directory / "merged"
        self.log = self.directory / "log"
        self.program = self.directory / "cowfs"
        if self.upper == Path():
            self.upper = self.directory / "upper"

    def __enter__(self) -> Self:
        for path in (self.directory, self.root, self.upper):
            path.mkdir(exist_ok=True)
            if self.user is not None:
                os.chown(path, self.user.pw_uid, self.user.pw_gid)
        self.program.write_bytes(_program(self.constants))
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.stop()
        finally:
            self.kill()
            unmount(self.root)

    def start(self) -> None:
        """Run the program and wait until it has mounted."""
        lowers = [argument for path in self.lower for argument in ("--lower", str(path))]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [PYTHON, str(self.program), *lowers, "--upper", str(self.upper), *self.options, str(self.root)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                **_identity(self.user),
            )
        wait_for_mounts(lambda: is_mounted(self.root) or self.process.poll() is not None)
        assert is_mounted(self.root), self.said()

    def stop(self) -> None:
        """End it in order, if it runs, and hold it to that: no mount, no complaint, exit code 0."""
        if self.process.poll() is None:
            self.process.terminate()
            assert self.process.wait(timeout=30) == 0, self.said()
            assert not is_mounted(self.root)
            assert "Traceback" not in self.said(), self.said()

    def kill(self) -> None:
        """SIGKILL: leaves a dead mount."""
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGKILL)
        self.process.wait(timeout=30)

    def said(self) -> str:
        """The layer's log."""
        return self.log.read_text()

    def complaints(self) -> list[str]:
        """The lines of its log that tell of trouble."""
        return [line for line in self.said().splitlines() if " ERROR " in line or " WARNING " in line]

    def memory(self) -> int:
        """The memory it has now, bytes."""
        return _status(self.process.pid, "VmRSS")

    def peak_memory(self) -> int:
        """The most memory it ever had, bytes."""
        return _status(self.process.pid, "VmHWM")

    def descriptors(self) -> int:
        """Open file descriptors."""
        return len(list(Path(f"/proc/{self.process.pid}/fd").iterdir()))

    def changes(self) -> list[Path]:
        """Files in the upper directory."""
        return sorted(self.upper.iterdir())


def _program(constants: Mapping[str, int]) -> bytes:
    """The layer as a session has it, or with other values of some constants."""
    if not constants:
        return packed_cowfs()
    room = cowfs.__name__.rpartition(".")[0]
    lines = [f"from {room}.program import main"]
    for constant, value in constants.items():
        lines += [f"import {room}.{constant.split('.')[0]}", f"{room}.{constant} = {value}"]
    return packed(*COWFS, main="\n".join([*lines, "raise SystemExit(main())"]))


def forget(paths: Sequence[str | Path | int]) -> None:
    """Have the kernel write back and forget what it holds of these files (or descriptors) and, for root, all names.

    What is read after it comes from the layer, not from the page cache. Pages that are mapped somewhere stay.
    """
    for path in paths:
        with contextlib.ExitStack() as opened, contextlib.suppress(PermissionError):
            descriptor = path if isinstance(path, int) else _open(path, opened)
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    drop_names()


def drop_names() -> None:
    """Have the kernel forget unused names and inodes, of all file systems. Only root can."""
    if os.geteuid() == 0:
        Path("/proc/sys/vm/drop_caches").write_text("2")


def is_mounted(path: Path) -> bool:
    """Whether a mount is at `path`, dead or alive."""
    lines = mountinfo()
    return str(path) in (line.split()[4] for line in lines)


def wait_for_mounts(condition: Callable[[], bool], timeout: float = 30) -> None:
    """Wait until the condition holds, looking again whenever mounts change, and each tenth of a second."""
    deadline = time.monotonic() + timeout
    with Path("/proc/self/mountinfo").open() as mounts:
        poller = select.poll()
        poller.register(mounts, select.POLLERR | select.POLLPRI)
        while not condition():
            if time.monotonic() > deadline:
                raise TimeoutError
            poller.poll(100)


def unmount(path: Path) -> None:
    """Unmount by force what may be there."""
    while is_mounted(path):
        subprocess.run(["umount", "--lazy", str(path)], check=True, timeout=30)


def _open(path: str | Path, opened: contextlib.ExitStack) -> int:
    descriptor = os.open(path, os.O_RDONLY)
    opened.callback(os.close, descriptor)
    return descriptor


def _status(pid: int, name: str) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise KeyError(name)


def _identity(user: pwd.struct_passwd | None) -> dict[str, Any]:
    if user is None:
        return {}
    return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": [], "cwd": user.pw_dir}
