# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The program that locks itself up and then becomes another one: see `_host/sandbox.py`, which starts it.

It runs by itself, with nothing but the standard library, because what it does cannot be done between fork and exec of
a process with threads. Its child makes a root directory of its own, which holds only what it was told, becomes the
server's user, restricts itself by Landlock and seccomp, and executes the program that it was given. It stays as that
child's warden (`warden.py`). In a namespace of processes there is one more between the two, its init, which is ours:
nobody in the namespace can signal, trace or outlive it, whatever the program makes of itself.

    main(PROGRAM, SPECIFICATION, STATUS, GO)

The arguments are descriptors. PROGRAM is the zip file that this comes from. SPECIFICATION holds JSON with the fields of
`Specification`. STATUS gets a line of JSON, {"pid": the warden's}, and after an error {"error": …}; it is closed when
the program runs. Nothing is executed before a byte has come through GO, and nothing at all when that is closed first:
whoever starts a process can record it before it runs.

Source of the numbers: linux/prctl.h.
"""

from __future__ import annotations

import json
import os
import resource
import signal
from contextlib import suppress

from .calls import restrict_calls
from .kernel import checked, libc
from .landlock import restrict_files
from .root import enter_namespaces, make_root
from .specification import Specification
from .warden import FORWARDED, Warden, open_doors

__all__ = ["main"]

_MOST_DESCRIPTORS = 1 << 16  # that this program may have got
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_NAME, _PR_SET_CHILD_SUBREAPER, _PR_SET_NO_NEW_PRIVS = 1, 4, 15, 36, 38


def main(program: int, specification: int, status: int, go: int) -> None:
    """Be the program that the module's docstring describes."""
    os.close(program)
    with os.fdopen(specification, "rb") as file:
        spec = Specification(file.read())
    for descriptor in (status, go):
        os.set_inheritable(descriptor, False)
    life, living = os.pipe()  # closed when the warden is no more
    said, saying = os.pipe()
    try:
        checked(libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs")
        # Whatever the program starts stays below this process, should there be no namespace that ends with it.
        checked(libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0), "subreaper")
        doors = open_doors(spec)
        if spec.namespaces:
            enter_namespaces(spec)
        child = os.fork()
    except OSError as error:
        _tell(status, error=str(error))
        raise SystemExit(1) from None
    if child == 0:
        os.close(living)
        for number in spec.logged:
            os.dup2(saying, number)
        _begin(spec, status, go, life)
    for descriptor in (go, life, saying):
        os.close(descriptor)
    libc.prctl(_PR_SET_NAME, b"ir-warden", 0, 0, 0)
    warden = Warden(spec, child, said, doors)
    _tell(status, pid=os.getpid())
    os.close(status)
    _change_user(spec)
    if spec.caller:
        _end_with_caller(spec.caller)
    raise SystemExit(warden.watch())


def _begin(spec: Specification, status: int, go: int, life: int) -> None:
    """Be the namespace's init, where there is one, and have the program executed; never returns."""
    try:
        _be_the_first_to_go()
        os.umask(0o022)  # a keeper has a stricter one, and its user could not enter what is made here
        program = 0
        if spec.namespaces:
            make_root(spec)
            # Nor can anybody in the namespace write into its memory. Before, it could not enter its own /proc/self/fd.
            checked(libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0), "dumpable")
            program = os.fork()
        if program == 0:
            _become(spec, go, life)
        os.close(status)  # which tells that the program runs, when that has closed it, too
        _be_init(spec, program, life)
    except BaseException as error:  # nothing of this process may go on
        with suppress(OSError):
            _tell(status, error=str(error))
    os._exit(126)


def _be_init(spec: Specification, program: int, life: int) -> None:
    """Hand signals on to the program, and end with it or with the warden; all others in the namespace end by that."""
    libc.prctl(_PR_SET_NAME, b"ir-init", 0, 0, 0)
    os.closerange(0, life)
    os.closerange(life + 1, _MOST_DESCRIPTORS)
    _change_user(spec)
    _end_with_parent(life)
    for number in FORWARDED:
        signal.signal(number, lambda received, _frame: os.kill(program, received))
    while True:
        pid, code = os.wait()
        if pid == program:
            os._exit(128 + os.WTERMSIG(code) if os.WIFSIGNALED(code) else os.WEXITSTATUS(code))


def _be_the_first_to_go() -> None:
    """Have the kernel, when memory is short, end the program and not production's, nor what watches over it here.

    Nor is there anything in a core dump, which a socket would get whatever the limit is (core(5)). What is started from
    here on inherits both.
    """
    for name, value in (("oom_score_adj", "1000"), ("coredump_filter", "0")):
        with suppress(OSError), open(f"/proc/self/{name}", "w", encoding="ascii") as file:  # a kernel without it
            file.write(value)


def _become(spec: Specification, go: int, life: int) -> None:
    """Lock this process up and execute the program. Raises OSError."""
    os.setsid()
    if not os.read(go, 1):
        os._exit(1)  # whoever started this is gone, and nobody knows of it
    _limit(spec)
    _change_user(spec)
    if not spec.namespaces:  # there it ends with its init
        _end_with_parent(life)
    if spec.landlock:
        restrict_files(spec)
    if spec.seccomp:
        restrict_calls(spec.network)
    for number in (signal.SIGINT, signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)
    os.umask(0o077)
    os.execve(spec.argv[0], spec.argv, spec.env)


def _tell(status: int, **fields: object) -> None:
    os.write(status, json.dumps(fields).encode() + b"\n")


def _end_with_parent(life: int) -> None:
    """Be killed when the warden ends. To be called when the user is the last one: a change takes that away."""
    checked(libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0), "parent's death signal")
    os.set_blocking(life, False)
    try:
        os.read(life, 1)
    except BlockingIOError:
        return
    os._exit(1)  # it has ended before


def _end_with_caller(caller: int) -> None:
    """Be killed when the process ends that this is run for, which may be killed itself. To be called as above."""
    checked(libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0), "parent's death signal")
    if os.getppid() != caller:  # it has ended before
        raise SystemExit(1)


def _limit(spec: Specification) -> None:
    # What the memory of a server holds is on no other disk. 1 and not 0: then no program that takes core dumps is
    # started, either, as root and outside (core(5)). It cannot be changed from here on (calls.py).
    # Where somebody has set 0 before, only root could change that.
    with suppress(ValueError):
        resource.setrlimit(resource.RLIMIT_CORE, (1, 1))
    if spec.memory:
        resource.setrlimit(resource.RLIMIT_AS, (spec.memory, spec.memory))
    if spec.data:
        most = resource.getrlimit(resource.RLIMIT_DATA)[1]
        data = spec.data if most == resource.RLIM_INFINITY else min(spec.data, most)
        resource.setrlimit(resource.RLIMIT_DATA, (data, data))
    # A namespace's user is counted by himself (since Linux 5.14), and for all that he has outside as well: half of an
    # ordinary user's are left to his other programs.
    if spec.processes:
        allowed = [limit for limit in resource.getrlimit(resource.RLIMIT_NPROC) if limit != resource.RLIM_INFINITY]
        most = min(spec.processes, min(allowed, default=2 * spec.processes) // 2)
        resource.setrlimit(resource.RLIMIT_NPROC, (most, most))
    if spec.files:
        files = min(spec.files, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
        resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))


def _change_user(spec: Specification) -> None:
    if os.geteuid() == 0:
        os.setgroups([])
    if (os.getuid(), os.getgid()) != (spec.uid, spec.gid):
        os.setresgid(spec.gid, spec.gid, spec.gid)
        os.setresuid(spec.uid, spec.uid, spec.uid)
