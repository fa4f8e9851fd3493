# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The program that locks itself up and then becomes another one: see `_sandbox`, which starts it.

It runs by itself, with nothing but the standard library, because what it does cannot be done between fork and exec of
a process with threads. It makes namespaces and a root directory of its own, which hold only what it was told, becomes
the server's user, restricts itself by Landlock and seccomp, and executes the program that it was given.

    python3 -I -S PROGRAM SPECIFICATION STATUS GO

The arguments are descriptors. SPECIFICATION holds JSON with the fields of `Specification`. STATUS gets a line of JSON,
{"pid": …}, and after an error {"error": …}; it is closed when the program runs. Nothing is executed before a byte has
come through GO, and nothing at all when that is closed first: whoever starts a process can record it before it runs.

Sources of the numbers: linux/landlock.h, linux/seccomp.h, linux/filter.h, linux/audit.h, linux/sched.h, linux/mount.h,
linux/prctl.h and the architectures' tables of system calls.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import resource
import signal
import stat
import struct
import sys
import time
from contextlib import suppress

TYPE_CHECKING = False  # without typing, whose import would take longer than all that is done here
if TYPE_CHECKING:
    from typing import Union

    _Line = tuple[int, int, Union[int, str], Union[int, str]]  # code, value, where to go on if it is so, and if not

__all__ = ["DEVICES", "SIGNALS_SINCE", "SYSTEM", "can_filter_calls", "landlock_version", "main"]

# Where programs, libraries and their data are. Not all of /usr: a database may live in /usr/local/pgsql/data.
_PARTS = ("bin", "sbin", "lib", "lib32", "lib64", "libx32", "libexec", "share")
SYSTEM = tuple(f"{prefix}/{part}" for prefix in ("", "/usr", "/usr/local") for part in _PARTS)
# Of /etc what programs and libc look up, and no more: there are passwords and keys in it as well.
CONFIGURATION = tuple(
    f"/etc/{name}"
    for name in (
        *("passwd", "group", "nsswitch.conf", "host.conf", "hosts", "services", "protocols", "gai.conf"),
        *("ld.so.cache", "ld.so.conf", "ld.so.conf.d", "ld.so.preload", "localtime", "timezone", "locale.alias"),
        *("locale.conf", "alternatives", "ssl/openssl.cnf", "ssl/certs", "pki/tls/openssl.cnf", "crypto-policies"),
    )
)
RESOLVER = ("/etc/resolv.conf",)  # for a server that may call others
# Not /dev/shm, where production's shared memory is.
DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/tty", "/dev/random", "/dev/urandom")

_SMALL = "size=4m,mode=0755"  # the new root holds mount points and two small files

_CLONE_NEWNS, _CLONE_NEWIPC, _CLONE_NEWUSER = 0x00020000, 0x08000000, 0x10000000
_CLONE_NEWPID, _CLONE_NEWNET, _ANY_NAMESPACE = 0x20000000, 0x40000000, 0x7E020000
_MS_RDONLY, _MS_NOSUID, _MS_NODEV, _MS_NOEXEC, _MS_REMOUNT = 1, 2, 4, 8, 32
_MS_NOATIME, _MS_NODIRATIME, _MS_BIND, _MS_REC, _MS_PRIVATE, _MS_RELATIME = 1024, 2048, 4096, 16384, 1 << 18, 1 << 21
_MNT_DETACH = 2
_OPTIONS = {
    "ro": _MS_RDONLY,
    "nosuid": _MS_NOSUID,
    "nodev": _MS_NODEV,
    "noexec": _MS_NOEXEC,
    "noatime": _MS_NOATIME,
    "nodiratime": _MS_NODIRATIME,
    "relatime": _MS_RELATIME,
}
_PR_SET_PDEATHSIG, _PR_SET_SECCOMP, _PR_SET_CHILD_SUBREAPER, _PR_SET_NO_NEW_PRIVS = 1, 22, 36, 38
_MODE_FILTER = 2
_LAST_WORDS = 30.0  # seconds for what a program leaves behind to end, after SIGKILL

_libc = ctypes.CDLL(None, use_errno=True)


def landlock_version() -> int:
    """The version of Landlock's interface; 0 where the kernel has none."""
    return max(0, int(_libc.syscall(_CREATE_RULESET, None, 0, _VERSION)))


def can_filter_calls() -> bool:
    """Whether filters of system calls are known for this architecture."""
    return os.uname().machine in _CALLS and os.path.exists("/proc/sys/kernel/seccomp")


class Specification:
    """What is to be run and what it may reach, as the fields of the JSON object.

    argv, env. uid, gid: whom it runs as. account: name of an entry to be added to /etc/passwd, or null. staging: a
    directory where the new root is made, which hides it in this process's own namespace of mounts alone. readable,
    writable: absolute paths of trees, files or sockets. network: none, unix (sockets of this host only), serve (port
    alone, no connections to anybody) or host (port, and connections). port: TCP port that may be listened on.
    namespaces, landlock, seccomp: whether they are to be used. daemon: whether the program outlives this one.
    processes: most of them at a time (0: any number). memory: bytes of address space (0: any).
    """

    def __init__(self, text: bytes) -> None:
        self.__dict__.update(json.loads(text))

    argv: list[str]
    env: dict[str, str]
    uid: int
    gid: int
    account: str | None
    staging: str
    readable: list[str]
    writable: list[str]
    network: str
    port: int
    namespaces: bool
    landlock: bool
    seccomp: bool
    daemon: bool
    processes: int
    memory: int


def main() -> None:
    """Be the program that the module's docstring describes."""
    specification, status, go = map(int, sys.argv[1:4])
    for descriptor in (status, go):
        os.set_inheritable(descriptor, False)
    with os.fdopen(specification, "rb") as file:
        spec = Specification(file.read())
    try:
        _checked(_libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs")
        # Whatever the program starts stays below this process, should there be no namespace that ends with it.
        _checked(_libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0), "subreaper")
        if spec.namespaces:
            _enter_namespaces(spec)
        child = os.fork()
    except OSError as error:
        _tell(status, error=str(error))
        raise SystemExit(1) from None
    if child == 0:
        _become(spec, status, go)
    os.close(go)
    is_left_alone = spec.daemon and spec.namespaces
    _tell(status, pid=child if spec.namespaces else os.getpid())
    os.close(status)
    raise SystemExit(0 if is_left_alone else _supervise(child))


def _become(spec: Specification, status: int, go: int) -> None:
    """Lock this process up and execute the program; never returns."""
    try:
        os.setsid()
        os.umask(0o022)  # a keeper has a stricter one, and its user could not enter what is made here
        if spec.namespaces:
            _make_root(spec)
        if not os.read(go, 1):
            os._exit(1)  # whoever started this is gone, and nobody knows of it
        _limit(spec)
        _change_user(spec)
        if not (spec.daemon and spec.namespaces):
            _checked(_libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0), "parent's death signal")
        if spec.landlock:
            _restrict_files(spec)
        if spec.seccomp:
            _restrict_calls(spec.network)
        for number in (signal.SIGINT, signal.SIGPIPE, signal.SIGXFSZ):
            signal.signal(number, signal.SIG_DFL)
        os.umask(0o077)
        os.execve(spec.argv[0], spec.argv, spec.env)
    except BaseException as error:  # nothing of this process may go on
        _tell(status, error=str(error))
    os._exit(126)


def _tell(status: int, **fields: object) -> None:
    os.write(status, json.dumps(fields).encode() + b"\n")


def _supervise(child: int) -> int:
    """Wait for the program, end whatever it leaves behind, and return its exit status (128 + number for a signal)."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGQUIT, signal.SIGHUP):
        signal.signal(number, lambda received, _frame: _forward(child, received))
    while True:
        pid, code = os.wait()
        if pid == child:
            break
    deadline = time.monotonic() + _LAST_WORDS
    while time.monotonic() < deadline and _kill_children():
        time.sleep(0.01)
    return 128 + os.WTERMSIG(code) if os.WIFSIGNALED(code) else os.WEXITSTATUS(code)


def _forward(child: int, number: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(child, number)


def _kill_children() -> bool:
    """Kill this process's children; whether there were any. Theirs become this process's (PR_SET_CHILD_SUBREAPER)."""
    me = str(os.getpid()).encode()
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{name}/stat", "rb") as file:
                parent = file.read().rpartition(b")")[2].split()[1]
            if parent == me:
                os.kill(int(name), signal.SIGKILL)
        except (OSError, IndexError):
            continue
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return False
    return True


def _checked(result: int, what: str) -> int:
    """The result of a call into libc. Raises OSError where it is -1."""
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return int(result)


# ---- namespaces and the root directory


def _enter_namespaces(spec: Specification) -> None:
    """Mounts, System V objects and processes of its own; a network without anything where none is needed.

    An ordinary user gets them through a namespace of users, in which there is that user and nobody else.
    """
    flags = _CLONE_NEWNS | _CLONE_NEWIPC | _CLONE_NEWPID
    if spec.network in ("none", "unix"):
        flags |= _CLONE_NEWNET
    uid, gid = os.geteuid(), os.getegid()
    if uid == 0:
        _checked(_libc.unshare(flags), "namespaces")
        return
    _checked(_libc.unshare(flags | _CLONE_NEWUSER), "namespaces")
    for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
        with open(f"/proc/self/{name}", "w", encoding="ascii") as file:
            file.write(text)


class _Source:
    """Something of the host's that is to be seen at the same path: held open, since the new root will hide it."""

    def __init__(self, path: str, *, is_writable: bool, is_device: bool = False) -> None:
        self.path, self.is_writable, self.is_device = path, is_writable, is_device
        self.descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
        self.is_directory = stat.S_ISDIR(os.fstat(self.descriptor).st_mode)


def _make_root(spec: Specification) -> None:
    """Put a root directory that holds what the specification names, and nothing else, in place of the host's."""
    _mount(None, "/", None, _MS_REC | _MS_PRIVATE)
    links, sources = _collect(spec)
    entries = _account_files(spec)
    top = spec.staging
    _mount("tmpfs", top, "tmpfs", _MS_NOSUID | _MS_NODEV, _SMALL)
    for source in sources:
        _bind(top, source)
    for path, target in {**links, **{f"/dev/{name}": f"/proc/self/fd{at}" for name, at in _STANDARD.items()}}.items():
        place = top + path
        if not os.path.lexists(place):
            os.makedirs(os.path.dirname(place), exist_ok=True)
            os.symlink(target, place)
    for path, text in entries.items():
        with open(top + path, "wb") as file:
            file.write(text)
    _harden(top, sources)
    os.makedirs(f"{top}/proc", exist_ok=True)
    with suppress(OSError):  # a container's /proc may be covered in part: then there is none, which servers can do with
        _mount("proc", f"{top}/proc", "proc", _MS_NOSUID | _MS_NODEV | _MS_NOEXEC)
    os.chdir(top)
    _checked(_libc.pivot_root(b".", b"."), "pivot_root")
    _checked(_libc.umount2(b".", _MNT_DETACH), "umount")
    os.chdir("/")
    for source in sources:
        os.close(source.descriptor)
    _mount(None, "/", None, _MS_BIND | _MS_REMOUNT | _MS_RDONLY | _MS_NOSUID | _MS_NODEV)


_STANDARD = {"fd": "", "stdin": "/0", "stdout": "/1", "stderr": "/2"}


def _collect(spec: Specification) -> tuple[dict[str, str], list[_Source]]:
    """Links to be made, by their path, and what is to be bound, outer trees first. What is not there is left out."""
    links: dict[str, str] = {}
    sources: list[_Source] = []
    configuration = (*CONFIGURATION, *(RESOLVER if spec.network == "host" else ()))
    own = ("/etc/passwd", "/etc/group") if spec.account else ()
    readable = [path for path in (*SYSTEM, *configuration, *spec.readable) if path not in own]
    for path in readable:
        target = os.path.realpath(path)
        if os.path.islink(path) and any(_is_below(target, tree) for tree in SYSTEM):
            links[path] = os.readlink(path)
        elif os.path.exists(path) and not any(_is_below(path, done.path) for done in sources):
            sources.append(_Source(path, is_writable=False))
    sources += [_Source(path, is_writable=True, is_device=True) for path in DEVICES if os.path.exists(path)]
    sources += [_Source(path, is_writable=True) for path in spec.writable if os.path.lexists(path)]
    return links, sorted(sources, key=lambda source: source.path.count("/"))


def _is_below(path: str, directory: str) -> bool:
    return path == directory or path.startswith(directory.rstrip("/") + "/")


def _account_files(spec: Specification) -> dict[str, bytes]:
    """/etc/passwd and /etc/group with an entry for a user whom the host does not know; some programs insist on one."""
    if not spec.account:
        return {}
    files = {}
    entries = {
        "/etc/passwd": f"{spec.account}:x:{spec.uid}:{spec.gid}::/:/usr/sbin/nologin\n",
        "/etc/group": f"{spec.account}:x:{spec.gid}:\n",
    }
    for path, entry in entries.items():
        try:
            with open(path, "rb") as file:
                files[path] = file.read().rstrip(b"\n") + b"\n" + entry.encode()
        except OSError:
            files[path] = entry.encode()
    return files


def _bind(top: str, source: _Source) -> None:
    place = top + source.path
    if source.is_directory:
        os.makedirs(place, exist_ok=True)
    elif not os.path.lexists(place):
        os.makedirs(os.path.dirname(place), exist_ok=True)
        os.close(os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    _mount(f"/proc/self/fd/{source.descriptor}", place, None, _MS_BIND | _MS_REC)


def _harden(top: str, sources: list[_Source]) -> None:
    """Make every mount below the new root nosuid, nodev but for devices, and read-only unless it is to be written.

    Mount by mount: the kernel has a call that does it for a whole tree since 5.12 only.
    """
    devices = {top + source.path for source in sources if source.is_device}
    writable = [top + source.path for source in sources if source.is_writable]
    for place, options in _mounts_of_root(top):
        flags = _MS_BIND | _MS_REMOUNT | _MS_NOSUID
        for option in options.split(","):
            flags |= _OPTIONS.get(option, 0)
        flags |= 0 if place in devices else _MS_NODEV
        flags |= 0 if any(_is_below(place, tree) for tree in writable) else _MS_RDONLY
        _mount(None, place, None, flags)


def _mounts_of_root(top: str) -> list[tuple[str, str]]:
    """Mount points below the new root and their options. The host's own mounts may hide behind it (proc(5))."""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        mounts = [line.split(" ") for line in file]
    inside = {[fields[0] for fields in mounts if _unescaped(fields[4]) == top][-1]}
    found = []
    for fields in mounts:  # parents come first
        if fields[1] in inside:
            inside.add(fields[0])
            found.append((_unescaped(fields[4]), fields[5]))
    return found


def _unescaped(text: str) -> str:
    """A path of mountinfo, which has blanks and the like in octal (proc(5))."""
    for code in ("040", "011", "012", "134"):
        text = text.replace(f"\\{code}", chr(int(code, 8)))
    return text


def _mount(source: str | None, target: str, kind: str | None, flags: int, data: str | None = None) -> None:
    given = [None if value is None else os.fsencode(value) for value in (source, target, kind, data)]
    result = _libc.mount(given[0], given[1], given[2], ctypes.c_ulong(flags), given[3])
    _checked(result, f"mount {target}")


# ---- limits and the user


def _limit(spec: Specification) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # what the memory of a server holds is on no other disk
    if spec.memory:
        resource.setrlimit(resource.RLIMIT_AS, (spec.memory, spec.memory))
    # Counted for each user of each namespace (since Linux 5.14): without one, the user's other processes would count.
    if spec.processes and spec.namespaces:
        hard = resource.getrlimit(resource.RLIMIT_NPROC)[1]
        most = spec.processes if hard == resource.RLIM_INFINITY else min(spec.processes, hard)
        resource.setrlimit(resource.RLIMIT_NPROC, (most, most))


def _change_user(spec: Specification) -> None:
    if os.geteuid() == 0:
        os.setgroups([])
    if (os.getuid(), os.getgid()) != (spec.uid, spec.gid):
        os.setresgid(spec.gid, spec.gid, spec.gid)
        os.setresuid(spec.uid, spec.uid, spec.uid)


# ---- Landlock: files, listening, and others' sockets and processes

# struct landlock_ruleset_attr, landlock_path_beneath_attr, landlock_net_port_attr; the system calls have these numbers
# on every architecture.
_RULESET, _PATH_RULE, _PORT_RULE = struct.Struct("=QQQ"), struct.Struct("=Qi"), struct.Struct("=QQ")
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_PATH_BENEATH, _NET_PORT, _VERSION = 1, 2, 1
_READ = 1 << 0 | 1 << 2 | 1 << 3  # execute, read a file, list a directory
_OF_FILES = 1 << 0 | 1 << 1 | 1 << 2 | 1 << 14  # the rights that a rule for a single file can give
_RIGHTS = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1}  # all that the ABI versions know of
_BIND_TCP, _CONNECT_TCP, _PORTS_SINCE = 1, 2, 4
_SCOPES, SIGNALS_SINCE = 0b11, 6  # abstract sockets of others, and signals to them


def _restrict_files(spec: Specification) -> None:
    version = landlock_version()
    rights = _RIGHTS[min(version, max(_RIGHTS))]
    ports = _BIND_TCP | (0 if spec.network == "host" else _CONNECT_TCP) if version >= _PORTS_SINCE else 0
    # Older kernels know a shorter structure, and take a longer one when the rest is zero.
    attributes = _RULESET.pack(rights, ports, _SCOPES if version >= SIGNALS_SINCE else 0)
    ruleset = _checked(_libc.syscall(_CREATE_RULESET, attributes, len(attributes), 0), "landlock_create_ruleset")
    configuration = (*CONFIGURATION, *(RESOLVER if spec.network == "host" else ()))
    for path in (*SYSTEM, *configuration, "/proc", *spec.readable):
        _grant(ruleset, path, rights & _READ)
    for path in (*DEVICES, *spec.writable):
        _grant(ruleset, path, rights)
    if ports and spec.port:
        rule = _PORT_RULE.pack(_BIND_TCP, spec.port)
        _checked(_libc.syscall(_ADD_RULE, ruleset, _NET_PORT, rule, 0), "landlock_add_rule")
    _checked(_libc.syscall(_RESTRICT_SELF, ruleset, 0), "landlock_restrict_self")
    os.close(ruleset)


def _grant(ruleset: int, path: str, rights: int) -> None:
    try:
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return
    try:
        # A FUSE mount can be closed to all but who made it, down to its attributes: then there is nothing to grant.
        with suppress(PermissionError):
            granted = rights if stat.S_ISDIR(os.fstat(descriptor).st_mode) else rights & _OF_FILES
            rule = _PATH_RULE.pack(granted, descriptor)
            _checked(_libc.syscall(_ADD_RULE, ruleset, _PATH_BENEATH, rule, 0), f"landlock_add_rule {path}")
    finally:
        os.close(descriptor)


# ---- seccomp: what neither namespaces nor Landlock govern


class _Calls:
    """An architecture's number (AUDIT_ARCH) and those of its system calls.

    connects: connect, sendmsg and sendmmsg. others: what slows down, traces or rewrites other processes. kernel: what
    opens parts of the kernel that a database server never needs. attributes: what changes mode, owner, times or
    extended attributes of a file. modes: of these, what libc's chmod() is. limits: prlimit64, which libc uses for the
    limits of the process itself as well.
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
    attributes: tuple[int, ...]
    modes: tuple[int, ...]


# fchmodat2, setxattrat, removexattrat, file_setattr: the same everywhere.
_NEWER_ATTRIBUTES = (452, 463, 466, 469)
_NEWER_OTHERS = (438, 440)  # pidfd_getfd, process_madvise
# io_uring_setup, _enter and _register, behind which a filter sees nothing; open_tree, move_mount, fsopen, fsconfig,
# fsmount, fspick, mount_setattr, open_tree_attr.
_NEWER_KERNEL = (425, 426, 427, 428, 429, 430, 431, 432, 433, 442, 467)
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
        # userfaultfd
        kernel=(248, 249, 250, 272, 308, 165, 166, 155, 161, 321, 298, 323, *_NEWER_KERNEL),
        limits=302,
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
        kernel=(217, 218, 219, 97, 268, 40, 39, 41, 51, 280, 241, 282, *_NEWER_KERNEL),  # in the same order
        limits=261,
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
_SOCK_STREAM, _SOCK_DGRAM, _TCP, _UDP = 1, 2, 6, 17


class _Program(ctypes.Structure):
    """struct sock_fprog; `filter` keeps the instructions alive."""

    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def _restrict_calls(network: str) -> None:
    code = _filter(network)
    program = _Program(len(code) // 8, code)
    _checked(_libc.prctl(_PR_SET_SECCOMP, _MODE_FILTER, ctypes.byref(program), 0, 0), "seccomp")


def _filter(network: str) -> bytes:
    """A filter that refuses with EACCES what changes files' attributes or other processes, and what calls somebody.

    chmod() seems to succeed and does nothing: a server ends when it cannot set the mode of its socket, which has the
    right one from the umask and lies in a directory of the server's user alone.
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
        *((_EQUAL, number, "pretend", 0) for number in calls.modes),
        (_EQUAL, _CLONE3, "unknown", 0),
        *_with_argument(calls.clone, (_ANY_BIT, _ANY_NAMESPACE, "refuse", "allow")),
        # A process by its id, of which the kernel takes the lower half; 0 is itself.
        *_with_argument(calls.limits, (_EQUAL, 0, "allow", "refuse")),
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


def _sockets(socket: int, network: str) -> list[_Line]:
    """Lines that decide which sockets may be made: of this host only, or also of TCP, and of UDP for names (DNS).

    Landlock decides about ports of TCP alone. Multipath TCP, UDP and others could be listened on at production's.
    """
    if network == "none":
        return []  # there is no network
    if network == "unix":
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


if __name__ == "__main__":
    main()
