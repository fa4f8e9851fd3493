# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Seccomp, for the program that `_host/sandbox.py` runs: what neither namespaces nor Landlock govern.

Sources of the numbers: linux/seccomp.h, linux/filter.h, linux/audit.h, linux/prctl.h and the architectures' tables of
system calls.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct

from .kernel import checked, libc

TYPE_CHECKING = False  # without typing, whose import would take longer than all that is done here
if TYPE_CHECKING:
    from typing import Union

    _Line = tuple[int, int, Union[int, str], Union[int, str]]  # code, value, where to go on if it is so, and if not

__all__ = ["can_filter_calls", "restrict_calls"]

_MODE_FILTER = 2
_ANY_NAMESPACE = 0x7E020000  # CLONE_NEW*, of clone()'s flags


class _Calls:
    """An architecture's number (AUDIT_ARCH) and those of its system calls.

    connects: connect, sendmsg and sendmmsg. others: what slows down, traces or rewrites other processes. kernel: what
    opens parts of the kernel that a database server never needs. attributes: what changes mode, owner, times or
    extended attributes of a file. modes: of these, what libc's chmod() is. limits: prlimit64, which libc uses for the
    limits of the process itself as well. fcntl: of which some commands are refused. locks: flock. pair: socketpair.
    huge: mmap, memfd_create and shmget, each with the place of its flags among the arguments, and that of huge pages.
    control: prctl. option: setsockopt. limit: setrlimit. device: ioctl.
    """

    def __init__(self, architecture: int, **numbers: object) -> None:
        self.architecture = architecture
        self.__dict__.update(numbers)

    connects: tuple[int, ...]
    sendto: int
    socket: int
    clone: int
    others: tuple[int, ...]
    kernel: tuple[int, ...]
    limits: int
    fcntl: int
    locks: int
    pair: int
    huge: tuple[tuple[int, int, int], ...]
    control: int
    option: int
    limit: int
    device: int
    attributes: tuple[int, ...]
    modes: tuple[int, ...]


# fchmodat2, setxattrat, removexattrat, file_setattr: the same everywhere.
_NEWER_ATTRIBUTES = (452, 463, 466, 469)
_NEWER_OTHERS = (438, 440)  # pidfd_getfd, process_madvise
# io_uring_setup, _enter and _register, behind which a filter sees nothing; open_tree, move_mount, fsopen, fsconfig,
# fsmount, fspick, mount_setattr, open_tree_attr; quotactl_fd; memfd_secret, whose pages are taken out of the kernel's
# map of memory, which stays in pieces afterwards.
_NEWER_KERNEL = (425, 426, 427, 428, 429, 430, 431, 432, 433, 442, 467, 443, 447)
_MAP_HUGETLB, _MFD_HUGETLB, _SHM_HUGETLB = 0x40000, 4, 0o4000
_CLONE3 = 435  # its flags are in memory, where a filter cannot look; libc falls back to clone
_CALLS = {
    "x86_64": _Calls(
        0xC000003E,
        connects=(42, 46, 307),
        sendto=44,
        socket=41,
        clone=56,
        # setpriority, sched_setparam, sched_setscheduler, sched_setaffinity, sched_setattr, ioprio_set; ptrace,
        # process_vm_readv, process_vm_writev
        others=(141, 142, 144, 203, 314, 251, 101, 310, 311, *_NEWER_OTHERS),
        # add_key, request_key, keyctl; unshare, setns; mount, umount2, pivot_root, chroot; bpf, perf_event_open,
        # userfaultfd; mq_open to mq_getsetattr; inotify_init, _init1, _add_watch; fanotify_init, _mark; io_setup, whose
        # contexts the whole host shares; sync, syncfs and quotactl, which write out everybody's; seccomp,
        # whose filters are counted for the whole host and can have it log each call
        kernel=(
            *(248, 249, 250, 272, 308, 165, 166, 155, 161, 321, 298, 323),
            *(*range(240, 246), 253, 294, 254, 300, 301, 206, 162, 306, 179, 317, *_NEWER_KERNEL),
        ),
        limits=302,
        fcntl=72,
        locks=73,
        pair=53,
        huge=((9, 3, _MAP_HUGETLB), (319, 1, _MFD_HUGETLB), (29, 2, _SHM_HUGETLB)),
        control=157,
        option=54,
        limit=160,
        device=16,
        # fchmod, chown, fchown, lchown, fchownat; utime, utimes, futimesat, utimensat; set and remove xattr, each 3
        attributes=(91, 92, 93, 94, 260, 132, 235, 261, 280, 188, 189, 190, 197, 198, 199, *_NEWER_ATTRIBUTES),
        modes=(90, 268),  # chmod, fchmodat
    ),
    "aarch64": _Calls(
        0xC00000B7,
        connects=(203, 211, 269),
        sendto=206,
        socket=198,
        clone=220,
        others=(140, 118, 119, 122, 274, 30, 117, 270, 271, *_NEWER_OTHERS),  # in the same order
        kernel=(  # in the same order
            *(217, 218, 219, 97, 268, 40, 39, 41, 51, 280, 241, 282),
            *(*range(180, 186), 26, 27, 262, 263, 0, 81, 267, 60, 277, *_NEWER_KERNEL),
        ),
        limits=261,
        fcntl=25,
        locks=32,
        pair=199,
        huge=((222, 3, _MAP_HUGETLB), (279, 1, _MFD_HUGETLB), (194, 2, _SHM_HUGETLB)),
        control=167,
        option=208,
        limit=164,
        device=29,
        # fchmod, fchownat, fchown; utimensat; {,l,f}setxattr, {,l,f}removexattr
        attributes=(52, 54, 55, 88, 5, 6, 7, 14, 15, 16, *_NEWER_ATTRIBUTES),
        modes=(53,),  # fchmodat
    ),
}
_FOREIGN_ABI = 0x40000000  # x32 calls on x86_64 have numbers from here on
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06  # BPF: ld [k], jeq, jge, jset, ret
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000
_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT, _FIFTH_ARGUMENT = 0, 4, 16, 48  # offsets in struct seccomp_data
_AND = 0x54  # BPF: and k
_AF_UNIX, _AF_INET, _AF_INET6 = 1, 2, 10
# Memory of pipes is counted for each user, and its other programs would get small ones; leases and notes of changes are
# for files that others use.
_F_REFUSED = (1031, 1024, 1026, 1040)  # F_SETPIPE_SZ, F_SETLEASE, F_NOTIFY, F_SETDELEG
_F_LOCKS = (6, 7, 37, 38)  # F_SETLK, F_SETLKW, F_OFD_SETLK, F_OFD_SETLKW
_RLIMIT_CORE, _SOL_SOCKET = 4, 1
_PR_SET_SECCOMP, _PR_SCHED_CORE = 22, 62  # the latter has a processor's other threads idle
_SO_FILTERS = (26, 50, 51, 52)  # SO_ATTACH_FILTER, SO_ATTACH_BPF, SO_ATTACH_REUSEPORT_CBPF and _EBPF
_BTRFS_SYNC, _BTRFS_START_SYNC = 0x9408, 0x80089418  # write out the whole file system: linux/btrfs.h
_SOCK_STREAM, _SOCK_DGRAM, _TCP, _UDP = 1, 2, 6, 17


class _Program(ctypes.Structure):
    """struct sock_fprog; `filter` keeps the instructions alive."""

    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def can_filter_calls() -> bool:
    """Whether filters of system calls are known for this architecture."""
    return os.uname().machine in _CALLS and os.path.exists("/proc/sys/kernel/seccomp")


def restrict_calls(network: str) -> None:
    code = _filter(network)
    program = _Program(len(code) // 8, code)
    checked(libc.prctl(_PR_SET_SECCOMP, _MODE_FILTER, ctypes.byref(program), 0, 0), "seccomp")


def _filter(network: str) -> bytes:
    """A filter that refuses with EACCES what changes files' attributes or other processes, and what calls somebody.

    chmod() seems to succeed and does nothing: a server ends when it cannot set the mode of its socket, which has the
    right one from the umask and lies in a directory of the server's user alone. So do locks of files: those of programs
    and libraries are the host's own, where others would wait for them, and the copy's are nobody else's.
    """
    calls = _CALLS[os.uname().machine]
    is_silent = network in ("none", "serve")
    refused = (*calls.attributes, *calls.others, *calls.kernel, *(calls.connects if is_silent else ()))
    # Each line: code, value, and where to go on if it is so, and if not: so many lines after the next, or an end.
    lines: list[_Line] = [
        (_LOAD, _ARCHITECTURE, 0, 0),
        (_EQUAL, calls.architecture, 0, "refuse"),
        (_LOAD, _NUMBER, 0, 0),
        (_AT_LEAST, _FOREIGN_ABI, "refuse", 0),
        *((_EQUAL, number, "refuse", 0) for number in refused),
        *((_EQUAL, number, "pretend", 0) for number in (*calls.modes, calls.locks)),
        (_EQUAL, _CLONE3, "unknown", 0),
        *_with_argument(calls.clone, (_ANY_BIT, _ANY_NAMESPACE, "refuse", "allow")),
        *_limits(calls),
        *_with_value(calls.control, refused=(_PR_SET_SECCOMP, _PR_SCHED_CORE)),
        *_options(calls.option),
        *_with_command(calls.device, refused=(_BTRFS_SYNC, _BTRFS_START_SYNC)),
        # Huge pages are few, reserved by the host for its own, and in no limit of memory.
        *(line for number, place, flag in calls.huge for line in _with_flag(number, place, flag)),
        *_with_argument(calls.pair, (_EQUAL, _AF_UNIX, "allow", "refuse")),
        *_with_command(calls.fcntl, refused=_F_REFUSED, pretended=_F_LOCKS),
        *_sockets(calls.socket, network),
        *(_sends_to_an_address(calls.sendto) if is_silent else [(_EQUAL, 0, "allow", "allow")]),
    ]
    ends = {
        "allow": _ALLOW,
        "refuse": _ERRNO | errno.EACCES,
        "pretend": _ERRNO,
        "unknown": _ERRNO | errno.ENOSYS,
    }
    places = {name: len(lines) + number for number, name in enumerate(ends)}
    code = b"".join(
        struct.pack("=HBBI", code, *(to if isinstance(to, int) else places[to] - at - 1 for to in (yes, no)), value)
        for at, (code, value, yes, no) in enumerate(lines)
    )
    return code + b"".join(struct.pack("=HBBI", _RETURN, 0, 0, value) for value in ends.values())


def _with_argument(number: int, decision: _Line) -> list[_Line]:
    """Lines that decide about one call by the lower half of its first argument."""
    return [(_EQUAL, number, 0, 2), (_LOAD, _FIRST_ARGUMENT, 0, 0), decision]


def _with_value(number: int, *, refused: tuple[int, ...]) -> list[_Line]:
    """Lines that refuse one call with some values in the lower half of its first argument."""
    return [
        (_EQUAL, number, 0, len(refused) + 2),
        (_LOAD, _FIRST_ARGUMENT, 0, 0),
        *((_EQUAL, value, "refuse", 0) for value in refused),
        (_EQUAL, 0, "allow", "allow"),
    ]


def _with_command(number: int, *, refused: tuple[int, ...], pretended: tuple[int, ...] = ()) -> list[_Line]:
    """Lines that decide about one call by the lower half of its second argument."""
    return [
        (_EQUAL, number, 0, len(refused) + len(pretended) + 2),
        (_LOAD, _FIRST_ARGUMENT + 8, 0, 0),
        *((_EQUAL, command, "refuse", 0) for command in refused),
        *((_EQUAL, command, "pretend", 0) for command in pretended),
        (_EQUAL, 0, "allow", "allow"),
    ]


def _limits(calls: _Calls) -> list[_Line]:
    """Lines that decide about limits: none of another process, and not that of core dumps, which others would take.

    A process is given by its id, of which the kernel takes the lower half; 0 is itself. To ask is allowed.
    """
    return [
        *_with_argument(calls.limit, (_EQUAL, _RLIMIT_CORE, "refuse", "allow")),
        (_EQUAL, calls.limits, 0, 8),
        (_LOAD, _FIRST_ARGUMENT, 0, 0),
        (_EQUAL, 0, 0, "refuse"),
        (_LOAD, _FIRST_ARGUMENT + 8, 0, 0),
        (_EQUAL, _RLIMIT_CORE, 0, "allow"),
        (_LOAD, _FIRST_ARGUMENT + 16, 0, 0),  # where the new limit is, in two halves
        (_EQUAL, 0, 0, "refuse"),
        (_LOAD, _FIRST_ARGUMENT + 20, 0, 0),
        (_EQUAL, 0, "allow", "refuse"),
    ]


def _options(option: int) -> list[_Line]:
    """Lines that refuse sockets' filters, whose programs are counted for the whole host."""
    return [
        (_EQUAL, option, 0, len(_SO_FILTERS) + 4),
        (_LOAD, _FIRST_ARGUMENT + 8, 0, 0),
        (_EQUAL, _SOL_SOCKET, 0, "allow"),
        (_LOAD, _FIRST_ARGUMENT + 16, 0, 0),
        *((_EQUAL, name, "refuse", 0) for name in _SO_FILTERS),
        (_EQUAL, 0, "allow", "allow"),
    ]


def _with_flag(number: int, place: int, flag: int) -> list[_Line]:
    """Lines that refuse one call with a flag in the lower half of an argument."""
    return [(_EQUAL, number, 0, 2), (_LOAD, _FIRST_ARGUMENT + 8 * place, 0, 0), (_ANY_BIT, flag, "refuse", "allow")]


def _sockets(socket: int, network: str) -> list[_Line]:
    """Lines that decide which sockets may be made: of this host only, or also of TCP, and of UDP for names (DNS).

    Landlock decides about ports of TCP alone. Multipath TCP, UDP and others could be listened on at production's.
    """
    if network in ("none", "unix"):  # also where there is no network: some families have nothing to do with one
        return _with_argument(socket, (_EQUAL, _AF_UNIX, "allow", "refuse"))
    kinds = (_SOCK_STREAM, _SOCK_DGRAM) if network == "host" else (_SOCK_STREAM, _SOCK_STREAM)
    lines: list[_Line] = [
        (_LOAD, _FIRST_ARGUMENT, 0, 0),
        (_EQUAL, _AF_UNIX, "allow", 0),
        (_EQUAL, _AF_INET, 1, 0),
        (_EQUAL, _AF_INET6, 0, "refuse"),
        (_LOAD, _FIRST_ARGUMENT + 8, 0, 0),
        (_AND, 0xF, 0, 0),  # without SOCK_NONBLOCK and SOCK_CLOEXEC
        (_EQUAL, kinds[0], 1, 0),
        (_EQUAL, kinds[1], 0, "refuse"),
        (_LOAD, _FIRST_ARGUMENT + 16, 0, 0),
        (_EQUAL, 0, "allow", 0),
        (_EQUAL, _TCP, "allow", 0),
        (_EQUAL, _UDP if network == "host" else _TCP, "allow", "refuse"),
    ]
    return [(_EQUAL, socket, 0, len(lines)), *lines]


def _sends_to_an_address(sendto: int) -> list[_Line]:
    """Lines that refuse sendto() with an address, which is seen in two halves; send() has none. The last ones."""
    return [
        (_EQUAL, sendto, 0, "allow"),
        (_LOAD, _FIFTH_ARGUMENT, 0, 0),
        (_EQUAL, 0, 0, "refuse"),
        (_LOAD, _FIFTH_ARGUMENT + 4, 0, 0),
        (_EQUAL, 0, "allow", "refuse"),
    ]
