# Copyright (c) 2026, phpBorg contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a host must have before a session can start on it: Borg, FUSE, a copy-on-write driver, a place for the session.

Everything is looked at and nothing is changed. The database server is the engine role's business.
"""

from __future__ import annotations

import os
import pwd
import stat
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .command import CommandError, find_program, run
from .disk import floor_of, free_space, in_words
from .links import is_within
from .mounts import mounts
from .ownership import exposure

__all__ = [
    "DRIVERS",
    "FUSE_LIBRARIES",
    "Host",
    "Problem",
    "Report",
    "choose_driver",
    "examine",
    "mounting_problems",
]

DRIVERS = ("auto", "block", "overlayfs")
FUSE_LIBRARIES = ("pyfuse3", "llfuse")

COPIES_WHOLE_FILES = (
    "driver overlayfs copies a file whole when it is first opened for writing, and database servers open most of their "
    "files so: a session can take as long and write as much as a restore. The package python3-pyfuse3 cures it: driver "
    "block comes with it."
)


@dataclass(frozen=True)
class Problem:
    """One thing that keeps a session from starting: what is wrong, what to do about it, which packages cure it."""

    what: str
    remedy: str
    packages: tuple[str, ...] = ()


@dataclass(frozen=True)
class Report:
    """What was found. `driver` is None when there is none to be had, `python` is a Python that has pyfuse3.

    `packages` are those that mend the problems, and those without which a session works less well.
    """

    problems: tuple[Problem, ...]
    packages: tuple[str, ...]
    driver: str | None
    python: str | None
    warnings: tuple[str, ...]

    def as_result(self) -> dict[str, Any]:
        """Plain data for the module's result; warnings go their own way."""
        return {
            "problems": [{**asdict(problem), "packages": list(problem.packages)} for problem in self.problems],
            "packages": list(self.packages),
            "driver": self.driver,
            "python": self.python,
        }


@dataclass(frozen=True)
class Host:
    """The host's facts that decide, so that deciding needs no host.

    borg: path of the program. borg_libraries: the FUSE libraries its Python has; None when borg is not a Python script.
    fusermount: path of fusermount3; fusermount_setuid: whether it may mount. fuse_error: why /dev/fuse cannot be
    opened. overlay: whether the kernel has overlayfs.
    """

    user: str
    is_root: bool
    borg: str | None
    borg_libraries: tuple[str, ...] | None
    fusermount: str | None
    fusermount_setuid: bool
    fuse_error: OSError | None
    python: str | None
    overlay: bool

    @classmethod
    def look(cls) -> Host:
        """Facts of the host, as this process's user sees it."""
        borg = find_program("borg")
        interpreter = None if borg is None else _script_interpreter(borg)
        pythons = [python for python in (interpreter, "/usr/bin/python3", sys.executable) if python]
        libraries = {python: _fuse_libraries(python) for python in dict.fromkeys(pythons)}
        fusermount = find_program("fusermount3")
        return cls(
            user=pwd.getpwuid(os.geteuid()).pw_name,
            is_root=os.geteuid() == 0,
            borg=borg,
            borg_libraries=None if interpreter is None else libraries[interpreter],
            fusermount=fusermount,
            fusermount_setuid=fusermount is not None and _gains_root(fusermount),
            fuse_error=_fuse_error(),
            python=next((python for python, names in libraries.items() if "pyfuse3" in names), None),
            overlay=_has_overlay(),
        )


def examine(host: Host, *, driver: str, session_root: str, minimum_free: int, floor: str = "0") -> Report:
    """Everything that is wrong with `host` for sessions below `session_root` with at least `minimum_free` bytes.

    `floor` is what sessions leave free, as floor_of() has it.
    """
    problems = mounting_problems(host)
    resolved, driver_problem, warnings = choose_driver(host, driver)
    if driver_problem is not None:
        problems.append(driver_problem)
    place = _place_problem(session_root, needed=(minimum_free, floor), is_root=host.is_root, user=host.user)
    place = place or (_overlay_on_overlay(session_root) if resolved == "overlayfs" else None)
    if place is not None:
        problems.append(place)
    packages = {package for problem in problems for package in problem.packages} | _recommended(host)
    return Report(
        problems=tuple(problems),
        packages=tuple(sorted(packages)),
        driver=resolved,
        python=host.python,
        warnings=warnings,
    )


def _recommended(host: Host) -> set[str]:
    """Packages that a session of root can do without: Borg mounts with pyfuse3, and driver block is built on it."""
    wanted = {"python3-pyfuse3"} if host.python is None else set()
    return wanted | ({"fuse3"} if host.fusermount is None else set())


def mounting_problems(host: Host) -> list[Problem]:
    """What keeps `host` from mounting archives."""
    return [*_borg_problems(host), *_fuse_problems(host)]


def _borg_problems(host: Host) -> list[Problem]:
    if host.borg is None:
        return [Problem("borg is not installed", "install the package borgbackup", ("borgbackup",))]
    if host.borg_libraries == ():
        return [
            Problem(
                f"{host.borg} cannot mount archives: its Python has neither pyfuse3 nor llfuse",
                "install the package python3-pyfuse3, or borgbackup[pyfuse3] where pip installed Borg",
                ("python3-pyfuse3",),
            )
        ]
    return []


def _fuse_problems(host: Host) -> list[Problem]:
    problems = []
    if host.fusermount is None and not host.is_root:
        what = f"fusermount3 is not installed, and the user {host.user} cannot mount without it"
        problems.append(Problem(what, "install the package fuse3", ("fuse3",)))
    elif not host.fusermount_setuid and not host.is_root:
        what = f"{host.fusermount} is not setuid root, so the user {host.user} cannot mount with it"
        problems.append(Problem(what, f"reinstall the package fuse3, or run as root: chmod u+s {host.fusermount}"))
    if isinstance(host.fuse_error, FileNotFoundError):
        remedy = "run as root: modprobe fuse; a container must be given the device (docker run --device /dev/fuse)"
        problems.append(Problem("/dev/fuse does not exist", remedy))
    elif host.fuse_error is not None:
        what = f"/dev/fuse is closed to the user {host.user}: {host.fuse_error.strerror}"
        remedy = "run as root: chmod 0666 /dev/fuse (the mode every distribution gives it)"
        if host.is_root:
            remedy = (
                "load the module (modprobe fuse), or let the container use the device (docker run --device /dev/fuse)"
            )
        problems.append(Problem(what, remedy))
    return problems


def choose_driver(host: Host, driver: str) -> tuple[str | None, Problem | None, tuple[str, ...]]:
    """The driver to use, or what is missing for it, and warnings."""
    if driver != "overlayfs" and host.python is not None:
        return "block", None, ()
    no_pyfuse3 = Problem(
        "driver block needs a Python that has pyfuse3, and none was found",
        "install the package python3-pyfuse3" + (", or choose driver=overlayfs" if host.is_root else ""),
        ("python3-pyfuse3",),
    )
    if driver == "block":
        return None, no_pyfuse3, ()
    if not host.is_root:
        remedy = "choose driver=block, which needs no root, or become root (ansible-playbook --become)"
        refused = Problem(f"driver overlayfs needs root, and the user is {host.user}", remedy)
        return None, (no_pyfuse3 if driver == "auto" else refused), ()
    if not host.overlay:
        missing = Problem("the kernel has no overlayfs", "run modprobe overlay, or choose driver=block", ())
        return None, (no_pyfuse3 if driver == "auto" else missing), ()
    return "overlayfs", None, (COPIES_WHOLE_FILES,)


def _place_problem(session_root: str, *, needed: tuple[int, str], is_root: bool, user: str) -> Problem | None:
    """What is wrong with the session root, which need not exist yet."""
    if not os.path.isabs(session_root):
        return Problem(f"session root {session_root} is not an absolute path", "give session_root from / on")
    place = _nearest_existing(Path(session_root))
    elsewhere = "choose another directory with session_root"
    if not place.is_dir():
        return Problem(f"session root {session_root}: {place} is not a directory", elsewhere)
    exposed = exposure(os.path.realpath(session_root))
    if exposed is not None:
        return Problem(f"session root {session_root} cannot be used: {exposed}", f"close it, or {elsewhere}")
    if not os.access(place, os.W_OK | os.X_OK):
        reason = "its file system is read-only" if _is_read_only(place) else f"{place} is not writable for {user}"
        return Problem(f"session root {session_root} cannot be used: {reason}", elsewhere)
    closed = _closed_ancestor(place) if is_root else None
    if closed is not None:
        what = (
            f"session root {session_root} cannot be entered by the database server's user: {closed} is closed to others"
        )
        return Problem(what, elsewhere)
    free, total = free_space(str(place))
    least = max(needed[0], floor_of(needed[1], total))
    if free < least:
        what = f"session root {session_root} has {in_words(free)} free, and {in_words(least)} are needed"
        option = "minimum_free" if least == needed[0] else "free_space_floor"
        return Problem(what, f"free space on the file system of {place}, lower {option}, or {elsewhere}")
    return None


def _overlay_on_overlay(session_root: str) -> Problem | None:
    place = str(_nearest_existing(Path(session_root)))
    holding = [mount for mount in mounts() if is_within(place, mount.mountpoint)]
    # The longest mount point holds the path, the last one listed when several are stacked.
    holding.sort(key=lambda mount: len(mount.mountpoint))
    if not holding or holding[-1].fstype != "overlay":
        return None
    return Problem(
        f"session root {session_root} lies on an overlay file system, where driver overlayfs cannot keep its changes",
        "choose driver=block, or a session_root on a disk's file system",
    )


def _nearest_existing(path: Path) -> Path:
    return next(place for place in (path, *path.parents) if os.path.lexists(place))


def _closed_ancestor(place: Path) -> Path | None:
    """The topmost directory on the way that others cannot enter; access lists are left to the administrator."""
    for directory in reversed([place, *place.parents]):
        if not directory.stat().st_mode & stat.S_IXOTH and "system.posix_acl_access" not in os.listxattr(directory):
            return directory
    return None


def _is_read_only(place: Path) -> bool:
    return bool(os.statvfs(place).f_flag & os.ST_RDONLY)


def _script_interpreter(program: str) -> str | None:
    """The interpreter a script's first line names; None for a binary (Borg's stand-alone one brings FUSE along)."""
    with open(program, "rb") as file:
        first = file.readline(512)
    words = first[2:].decode(errors="replace").split() if first.startswith(b"#!") else []
    if words and os.path.basename(words[0]) == "env":
        return find_program(words[-1])
    return words[0] if words else None


def _fuse_libraries(python: str) -> tuple[str, ...]:
    """Which of FUSE_LIBRARIES that Python finds. Finding is enough: importing them would take ten times as long."""
    program = "import sys, importlib.util as u; print(*[name for name in sys.argv[1:] if u.find_spec(name)])"
    try:
        found = run([python, "-I", "-c", program, *FUSE_LIBRARIES], timeout=30).stdout
    except CommandError:
        return ()
    return tuple(found.split())


def _gains_root(program: str) -> bool:
    state = os.stat(program)
    is_setuid = state.st_uid == 0 and bool(state.st_mode & stat.S_ISUID)
    return is_setuid or "security.capability" in os.listxattr(program)


def _fuse_error() -> OSError | None:
    try:
        os.close(os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        return error
    return None


def _has_overlay() -> bool:
    if "\toverlay\n" in Path("/proc/filesystems").read_text(encoding="ascii"):
        return True
    modules = Path("/lib/modules") / os.uname().release
    return any((modules / "kernel/fs/overlayfs").glob("overlay.ko*"))
