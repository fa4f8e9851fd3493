# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A second Debian on this machine, with systemd as its process 1: made by debootstrap, booted by systemd-nspawn.

It is of this machine's own release and comes from the mirror that apt is configured for. It has its own processes,
mounts and control groups, and this machine's kernel and network. Needs root.
"""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from tests.support.playbook import CHECKOUT

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = ["Container", "missing_tools"]

PACKAGES = ("systemd", "systemd-sysv", "dbus", "borgbackup", "python3", "python3-pyfuse3", "fuse3", "postgresql")
CGROUPS = Path("/sys/fs/cgroup")
#: What systemd calls its control groups; systemd-nspawn adds the last two.
GROUPS = ("*.slice", "*.scope", "*.service", "payload", "supervisor")
BOOT, HALT = 120.0, 60.0  # seconds


def missing_tools() -> list[str]:
    """The Debian packages without which there can be no container."""
    needed = {"debootstrap": "debootstrap", "systemd-nspawn": "systemd-container"}
    return [package for program, package in needed.items() if shutil.which(program) is None]


@dataclass(kw_only=True)
class Container:
    """A Debian below `directory`. `shared` directories have the same path in it, and are the only ones it can change.

    The checkout and the Python that runs the tests are there, too.
    """

    directory: Path
    shared: tuple[Path, ...] = ()
    _leader: int = 0
    _nspawn: subprocess.Popen[bytes] | None = None
    _groups: set[Path] = field(default_factory=set)

    @property
    def root(self) -> Path:
        """The container's root directory."""
        return self.directory / "root"

    def make(self) -> None:
        """Install it: about two minutes."""
        release = platform.freedesktop_os_release()["VERSION_CODENAME"]
        packages = f"--include={','.join(PACKAGES)}"
        argv = ["debootstrap", "--variant=minbase", packages, release, str(self.root), _mirror(release)]
        log = self.directory / "debootstrap.log"
        with log.open("wb") as output:
            done = subprocess.run(argv, stdout=output, stderr=output, timeout=1800, check=False)
        if done.returncode != 0:
            raise RuntimeError(f"debootstrap failed: {log.read_text()[-2000:]}")
        (self.root / "etc" / "machine-id").unlink(missing_ok=True)

    def boot(self) -> None:
        """Boot it; returns when systemd has started everything."""
        self._groups = set(_groups())
        argv = ["systemd-nspawn", "--quiet", "--boot", "--register=no", "--keep-unit", "--capability=all"]
        argv += [f"--directory={self.root}", f"--machine=ir-{os.getpid()}", "--bind=/dev/fuse"]
        argv += [f"--bind={path}" for path in self.shared]
        argv += [f"--bind-ro={path}" for path in _pythons()]
        with (self.directory / "boot.log").open("wb") as output:
            self._nspawn = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
        deadline = time.monotonic() + BOOT
        while self._state() not in ("running", "degraded"):
            if time.monotonic() > deadline or self._nspawn.poll() is not None:
                raise RuntimeError(f"it does not boot: {(self.directory / 'boot.log').read_text()[-2000:]}")
            time.sleep(0.5)
        if (CGROUPS / "memory").is_dir():
            # systemd-nspawn closes the older hierarchies to a container; systemd looks at them when it starts.
            for name in ("memory", "cpu", "cpuacct", "blkio"):
                self._enter("mount", "-o", "remount,bind,rw", str(CGROUPS / name))
            self._enter("systemctl", "daemon-reexec")

    def command(self, environment: Mapping[str, str], *properties: str) -> list[str]:
        """The beginning of a command line that runs the rest of it in there, as a service with these properties.

        Whatever the service leaves running ends with it, unless it is in another unit by then. `environment`: what it
        gets of the caller's variables; only the names count.
        """
        service = ["systemd-run", "--quiet", "--pipe", "--wait", "--collect"]
        options = [f"--setenv={name}" for name in environment] + [f"--property={one}" for one in properties]
        return [*self._namespaces(), *service, *options, "--"]

    def run(self, *argv: str, timeout: float = 60, check: bool = True) -> str:
        """The output of a command in there."""
        done = subprocess.run(
            [*self.command({}), *argv],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout,
            check=False,
        )
        if check and done.returncode != 0:
            raise RuntimeError(f"{' '.join(argv)} ended with {done.returncode}: {done.stdout}")
        return done.stdout.strip()

    def units(self, pattern: str) -> list[str]:
        """The names of the units that systemd knows in there, in whatever state."""
        listed = self.run("systemctl", "list-units", "--all", "--plain", "--no-legend", "--no-pager", pattern)
        return [line.split()[0] for line in listed.splitlines()]

    def property(self, unit: str, name: str) -> str:
        """A property of a unit as systemctl show has it."""
        return self.run("systemctl", "show", "--property", name, "--value", unit)

    def stop(self) -> None:
        """Shut it down and remove its control groups; the files stay."""
        if self._nspawn is None:
            return
        self._nspawn.terminate()  # which it makes an orderly shutdown of
        try:
            self._nspawn.wait(HALT)
        except subprocess.TimeoutExpired:
            self._nspawn.kill()
            self._nspawn.wait(10)
        self._nspawn = None
        for group in sorted(set(_groups()) - self._groups, reverse=True):
            with contextlib.suppress(OSError):  # another one's, and in use
                group.rmdir()

    def _state(self) -> str:
        """What systemd in there says of itself; empty while it does not answer."""
        if self._nspawn is not None and not self._leader:
            children = Path(f"/proc/{self._nspawn.pid}/task/{self._nspawn.pid}/children").read_text().split()
            self._leader = int(children[0]) if children else 0
        if not self._leader:
            return ""
        return self._enter("systemctl", "is-system-running", check=False)

    def _enter(self, *argv: str, check: bool = True) -> str:
        done = subprocess.run([*self._namespaces(), *argv], capture_output=True, text=True, timeout=30, check=check)
        return done.stdout.strip()

    def _namespaces(self) -> list[str]:
        names = ("mount", "pid", "cgroup", "uts", "ipc")
        return ["nsenter", f"--target={self._leader}", *[f"--{name}" for name in names]]


def _mirror(release: str) -> str:
    """Where apt gets this release from."""
    argv = ["apt-get", "indextargets", "--format", "$(CODENAME) $(COMPONENT) $(REPO_URI)", "Created-By: Packages"]
    listed = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=True).stdout
    for line in listed.splitlines():
        codename, component, location = line.split()
        if (codename, component) == (release, "main"):
            return location
    raise RuntimeError(f"apt is not configured for {release}")


def _pythons() -> Iterator[Path]:
    """The checkout, the tests' virtual environment and the Python that it was made of, unless that is Debian's own."""
    yield CHECKOUT
    yield Path(sys.prefix).resolve()
    if sys.base_prefix != "/usr":
        yield Path(sys.base_prefix).resolve()


def _groups() -> Iterator[Path]:
    for pattern in GROUPS:
        for path in CGROUPS.rglob(pattern):
            if path.is_dir():
                yield path
