# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a session's server can reach, decided by the kernel and not by the server: files (Landlock), others (seccomp).

Cutting a copy loose from production is a list of known ties. This holds for the unknown ones: whatever link, setting,
function or library asks for it, a file outside the session cannot be opened and nobody can be called. Both work for an
ordinary user, are inherited by everything the server starts, and cannot be taken off again.

Sources of the numbers: linux/landlock.h, linux/seccomp.h, linux/filter.h, linux/audit.h and the architectures' tables
of system calls. Landlock is in Linux since 5.13; a kernel may be built or started without it.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
import subprocess
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ansible_collections.phpborg.instant_recovery.plugins.module_utils._errors import RecoveryError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["SYSTEM", "Confinement", "can_filter_calls", "landlock_version"]

# Where programs, libraries and their data are. Not all of /usr: a database may live in /usr/local/pgsql/data.
_PARTS = ("bin", "sbin", "lib", "lib32", "lib64", "libx32", "libexec", "share")
SYSTEM = (
    *(f"{prefix}/{part}" for prefix in ("", "/usr", "/usr/local") for part in _PARTS),
    *("/etc", "/proc", "/sys"),
    "/var/lib/sss",  # names of users, where a directory service tells them
)
# Not /dev/shm, where production's shared memory is.
DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/tty", "/dev/random", "/dev/urandom")

REFUSED = "The server cannot be confined to its session, because something around Ansible forbids it: run it outside"

# struct landlock_ruleset_attr, landlock_path_beneath_attr; the system calls have these numbers on every architecture.
_RULESET, _RULE = struct.Struct("=QQQ"), struct.Struct("=Qi")
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_PATH_BENEATH, _VERSION = 1, 1
_READ = 1 << 0 | 1 << 2 | 1 << 3  # execute, read a file, list a directory
_OF_FILES = 1 << 0 | 1 << 1 | 1 << 2 | 1 << 14  # the rights that a rule for a single file can give
_RIGHTS = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1}  # all that the ABI versions know of
_SCOPES, _SCOPES_SINCE = 0b11, 6  # abstract sockets of others, and signals to them
_LATER = ((3, "truncate files"), (_SCOPES_SINCE, "send signals to processes"))  # what versions before these let through

_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _MODE_FILTER = 38, 22, 2


@dataclass(frozen=True)
class _Calls:
    """An architecture's number (AUDIT_ARCH) and those of its system calls.

    connects: connect, sendmsg and sendmmsg. attributes: what changes mode, owner, times or extended attributes of a
    file. modes: of these, what libc's chmod() is. others: what slows down, traces or rewrites other processes. limits:
    prlimit64, which libc uses for the limits of the process itself as well.
    """

    architecture: int
    connects: tuple[int, ...]
    sendto: int
    others: tuple[int, ...]
    limits: int
    attributes: tuple[int, ...]
    modes: tuple[int, ...]


# fchmodat2, setxattrat, removexattrat, file_setattr: the same everywhere.
_NEWER_ATTRIBUTES = (452, 463, 466, 469)
_NEWER_OTHERS = (438, 440)  # pidfd_getfd, process_madvise
_CALLS = {
    "x86_64": _Calls(
        architecture=0xC000003E,
        connects=(42, 46, 307),
        sendto=44,
        # setpriority, sched_setparam, sched_setscheduler, sched_setaffinity, sched_setattr, ioprio_set; ptrace,
        # process_vm_readv, process_vm_writev
        others=(141, 142, 144, 203, 314, 251, 101, 310, 311, *_NEWER_OTHERS),
        limits=302,
        # fchmod, chown, fchown, lchown, fchownat; utime, utimes, futimesat, utimensat; set and remove xattr, each 3
        attributes=(91, 92, 93, 94, 260, 132, 235, 261, 280, 188, 189, 190, 197, 198, 199, *_NEWER_ATTRIBUTES),
        modes=(90, 268),  # chmod, fchmodat
    ),
    "aarch64": _Calls(
        architecture=0xC00000B7,
        connects=(203, 211, 269),
        sendto=206,
        others=(140, 118, 119, 122, 274, 30, 117, 270, 271, *_NEWER_OTHERS),  # in the same order
        limits=261,
        # fchmod, fchownat, fchown; utimensat; {,l,f}setxattr, {,l,f}removexattr
        attributes=(52, 54, 55, 88, 5, 6, 7, 14, 15, 16, *_NEWER_ATTRIBUTES),
        modes=(53,),  # fchmodat
    ),
}
_IO_URING_SETUP = 425  # what comes after it is not seen by a filter
_FOREIGN_ABI = 0x40000000  # x32 calls on x86_64 have numbers from here on
_LOAD, _EQUAL, _AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06  # BPF: ld [k], jeq, jge, ret
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000
_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT, _FIFTH_ARGUMENT = 0, 4, 16, 48  # offsets in struct seccomp_data


@dataclass(frozen=True)
class Confinement:
    """What a process may reach: trees to read and execute, trees to change, and whether it may open connections.

    Paths that do not exist are passed over. SYSTEM and DEVICES are granted always. Connections that others open to
    the process are not concerned.
    """

    readable: Sequence[str] = ()
    writable: Sequence[str] = ()
    connections: bool = True

    @contextmanager
    def arguments(self) -> Iterator[dict[str, Any]]:
        """The arguments that make subprocess.Popen confine the process, valid inside the with block.

        What the kernel cannot do is left out, see report. Raises RecoveryError where it refuses to.
        """
        ruleset = self._ruleset() if landlock_version() else None
        program = _filter(connections=self.connections) if can_filter_calls() else None
        libc = ctypes.CDLL(None, use_errno=True)
        # Looked up here: between fork and exec as little as possible is done.
        prctl, system_call, filter_program = libc.prctl, libc.syscall, program and ctypes.byref(program)

        def confine() -> None:  # in the child, after it has become another user
            _checked(prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
            if ruleset is not None:
                _checked(system_call(_RESTRICT_SELF, ruleset, 0))
            if filter_program is not None:
                _checked(prctl(_PR_SET_SECCOMP, _MODE_FILTER, filter_program, 0, 0))

        try:
            yield {"preexec_fn": confine}
        except subprocess.SubprocessError as error:
            if isinstance(error, (subprocess.TimeoutExpired, subprocess.CalledProcessError)):
                raise
            raise RecoveryError(f"{REFUSED} (prctl or landlock_restrict_self failed).") from error
        finally:
            if ruleset is not None:
                os.close(ruleset)

    def _ruleset(self) -> int:
        """The descriptor of a Landlock ruleset."""
        libc = ctypes.CDLL(None, use_errno=True)
        version = landlock_version()
        rights = _RIGHTS[min(version, max(_RIGHTS))]
        attributes = _RULESET.pack(rights, 0, _SCOPES if version >= _SCOPES_SINCE else 0)
        # Older kernels know a shorter structure, and take a longer one when the rest is zero.
        ruleset = _checked(libc.syscall(_CREATE_RULESET, attributes, len(attributes), 0))
        try:
            for path in (*SYSTEM, *self.readable):
                _grant(libc, ruleset, path, rights & _READ)
            for path in (*DEVICES, *self.writable):
                _grant(libc, ruleset, path, rights)
        except BaseException:
            os.close(ruleset)
            raise
        return ruleset

    def report(self) -> tuple[list[dict[str, str]], list[str]]:
        """What holds on this kernel, as {what, why}, and warnings about what does not."""
        done, warnings = [], []
        version = landlock_version()
        if version:
            why = "whatever link, function or library asks for it, no file of production can be opened"
            done.append({"what": "files outside of the session closed to the server (Landlock)", "why": why})
        else:
            warnings.append(
                "This kernel has no Landlock (Linux has it since 5.13, unless it is switched off): a function of the "
                "copy could open other files of the user who runs its server, production's among them."
            )
        still = [act for since, act in _LATER if 0 < version < since]
        if still:
            warnings.append(
                f"This kernel's Landlock is of version {version}: a function of the copy could still "
                f"{' and '.join(still)} of the user who runs its server."
            )
        if not can_filter_calls():
            warnings.append(
                f"Calls of the kernel cannot be refused on {platform.machine()}: the copy can change modes and times "
                f"of its user's files, limits of its processes{'' if self.connections else ', and call other servers'}."
            )
            return done, warnings
        why = "Landlock lets it through, and a function of the copy could have locked production out of its own files"
        done.append({"what": "changes of modes, owners and times of files refused to the server (seccomp)", "why": why})
        why = "a function of the copy could have had production's processes slowed down, or ended by their limits"
        done.append({"what": "limits and priorities of other processes refused to the server (seccomp)", "why": why})
        if not self.connections:
            why = "a trigger, a foreign table or a library of the copy could have reached production"
            done.append({"what": "connections from the server to anywhere refused (seccomp)", "why": why})
        return done, warnings


def landlock_version() -> int:
    """The version of Landlock's interface; 0 where the kernel has none."""
    return max(0, int(ctypes.CDLL(None, use_errno=True).syscall(_CREATE_RULESET, None, 0, _VERSION)))


def can_filter_calls() -> bool:
    """Whether filters of system calls are known for this architecture."""
    return platform.machine() in _CALLS and os.path.exists("/proc/sys/kernel/seccomp")


def _grant(libc: ctypes.CDLL, ruleset: int, path: str, rights: int) -> None:
    try:
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return
    try:
        granted = rights if os.path.isdir(path) else rights & _OF_FILES
        _checked(libc.syscall(_ADD_RULE, ruleset, _PATH_BENEATH, _RULE.pack(granted, descriptor), 0))
    finally:
        os.close(descriptor)


class _Program(ctypes.Structure):
    """struct sock_fprog; `code` keeps the instructions alive."""

    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def _filter(*, connections: bool) -> _Program:
    """A filter that refuses with EACCES what changes files' attributes or other processes, and, unless connections
    are allowed, what calls somebody.

    chmod() seems to succeed and does nothing: a server ends when it cannot set the mode of its socket, which has the
    right one from the umask and lies in a directory of the server's user alone.
    """
    calls = _CALLS[platform.machine()]
    refused = (*calls.attributes, *calls.others, *(() if connections else (*calls.connects, _IO_URING_SETUP)))
    to_address = [] if connections else _sends_to_an_address(calls.sendto)
    # Each line: code, value, and where to go on if it is so, and if not: so many lines after the next, or an end.
    lines: list[tuple[int, int, int | str, int | str]] = [
        (_LOAD, _ARCHITECTURE, 0, 0),
        (_EQUAL, calls.architecture, 0, "refuse"),
        (_LOAD, _NUMBER, 0, 0),
        (_AT_LEAST, _FOREIGN_ABI, "refuse", 0),
        *((_EQUAL, number, "refuse", 0) for number in refused),
        *((_EQUAL, number, "pretend", 0) for number in calls.modes),
        *_limits_another(calls.limits),
        *to_address,
    ]
    ends = {"allow": _ALLOW, "refuse": _ERRNO | errno.EACCES, "pretend": _ERRNO}
    places = {name: len(lines) + number for number, name in enumerate(ends)}
    code = b"".join(
        struct.pack("=HBBI", code, *(to if isinstance(to, int) else places[to] - at - 1 for to in (yes, no)), value)
        for at, (code, value, yes, no) in enumerate(lines)
    )
    code += b"".join(struct.pack("=HBBI", _RETURN, 0, 0, value) for value in ends.values())
    return _Program(len(code) // 8, code)


def _limits_another(prlimit: int) -> list[tuple[int, int, int | str, int | str]]:
    """Lines that refuse prlimit64() for a process by its id, of which the kernel takes the lower half; 0 is itself."""
    return [(_EQUAL, prlimit, 0, 2), (_LOAD, _FIRST_ARGUMENT, 0, 0), (_EQUAL, 0, "allow", "refuse")]


def _sends_to_an_address(sendto: int) -> list[tuple[int, int, int | str, int | str]]:
    """Lines that refuse sendto() with an address, which is seen in two halves; send() has none. The last ones."""
    return [
        (_EQUAL, sendto, 0, "allow"),
        (_LOAD, _FIFTH_ARGUMENT, 0, 0),
        (_EQUAL, 0, 0, "refuse"),
        (_LOAD, _FIFTH_ARGUMENT + 4, 0, 0),
        (_EQUAL, 0, "allow", "refuse"),
    ]


def _checked(result: int) -> int:
    """The result of a call into libc. Raises RecoveryError where it is -1."""
    if result < 0:
        number = ctypes.get_errno()
        raise RecoveryError(f"{REFUSED} ({os.strerror(number)}).")
    return int(result)
