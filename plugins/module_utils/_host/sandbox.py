# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Running what the archive can tell what to do: in a room of its own, decided by the kernel and not by the program.

Cutting a copy loose from production is a list of known ties. This holds for the unknown ones: whatever link, setting,
function or library asks for it, nothing outside of the session can be opened, called, signalled or slowed down, and all
processes end together. Three walls stand behind one another, and each one alone keeps files closed:

- a user of the session's own, where root starts it (`_host/users.py`);
- namespaces: a root directory that holds only programs and the session's own directories, no other processes, no
  System V objects of others, and no network where none is needed. For an ordinary user through a user namespace;
- Landlock (Linux 5.13), and seccomp for what neither of them governs.

`confined/program.py` does the work, in a process of its own, which stays as the program's warden: what is to reach a
server comes to the warden, and what a server says goes to the log through it.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from .._errors import RecoveryError
from .command import Account, Completed, CompletedBytes, Inner, run_bytes, search_path
from .confined import program as confined_program  # so Ansible ships it
from .confined.calls import can_filter_calls
from .confined.landlock import landlock_version
from .confined.specification import SYSTEM
from .links import is_within, normal
from .processes import KILL, MARKER, Process, descendants, end_family, identify, memory_file, open_log
from .programs import packed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

__all__ = ["Sandbox", "SandboxError", "missing_walls"]

RUN = (
    "import sys; sys.path.insert(0, '/proc/self/fd/' + sys.argv[1]); "
    f"from {confined_program.__name__} import main; main(*map(int, sys.argv[1:]))"
)
NEVER_SHOWN = ("/etc", "/dev", "/proc", "/sys", "/run")  # where a program looks for what is the host's
ANYWHERE = "/tmp"  # a directory that every host has
PATIENCE = 60.0  # seconds for the program to lock itself up, which takes some milliseconds
# Processes of a server, of which PostgreSQL has one for each connection, and files that each may have open, as most
# systems have it. A host has so many of both, for all: a session gets an eighth and a quarter, but the least.
MOST_PROCESSES, LEAST_PROCESSES = 4096, 256
MOST_FILES, LEAST_FILES = 1024, 256
TOOL_MEMORY = 2 << 30  # bytes of address space for a program that only looks at something
TOOL_OUTPUT = 64 << 20  # bytes that such a program may print


# A specification for a program that may reach nothing, with no wall around it.
NOTHING: dict[str, Any] = {
    **dict.fromkeys(("readable", "writable", "aliases", "private", "logged", "doors"), ()),
    **dict.fromkeys(("namespaces", "landlock", "seccomp"), False),
    **dict.fromkeys(("port", "caller", "processes", "files", "memory", "data"), 0),
    "env": {},
    "account": None,
    "staging": ANYWHERE,
    "network": "none",
}


class SandboxError(RecoveryError):
    """A program cannot be locked up, or not as it has to be."""


@dataclass(frozen=True)
class Sandbox:
    """What a program may reach.

    account: whom it runs as. readable, writable: paths of trees, files or sockets; programs and libraries can be read
    always, and paths that do not exist are passed over. network: `none`; `unix`, for clients of a socket that is among
    the paths; `serve`, to listen on port and call nobody; `host`, to listen on port and call anybody. private: paths of
    directories that nobody else needs to see: where there are namespaces they are small ones in memory. aliases: pairs
    of a path and a directory of a writable tree that is to be seen there as well, where there are namespaces.
    session_directory: whose mark its processes bear until they execute the program. memory_max: bytes of memory of its
    own that each process may have (0: any).
    """

    account: Account
    readable: tuple[str, ...] = ()
    writable: tuple[str, ...] = ()
    private: tuple[str, ...] = ()
    aliases: tuple[tuple[str, str], ...] = ()
    network: str = "none"
    port: int = 0
    session_directory: str | None = None
    memory_max: int = 0
    accept_unconfined: bool = False

    def as_dict(self) -> dict[str, Any]:
        """For the session's record."""
        return asdict(self)

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Sandbox:
        """From the session's record. Raises TypeError or KeyError for something else."""
        trees = {name: tuple(fields[name]) for name in ("readable", "writable", "private")}
        aliases = tuple((path, source) for path, source in fields["aliases"])
        return cls(**{**fields, **trees, "aliases": aliases, "account": Account(**fields["account"])})

    def for_tool(self, *, readable: Sequence[str] = (), writable: Sequence[str] = (), network: str = "none") -> Sandbox:
        """A room of the same user, for a program that only looks at these paths."""
        bare = replace(self, private=(), aliases=(), network=network, port=0)
        return replace(bare, readable=tuple(readable), writable=tuple(writable))

    def can_show(self, path: str) -> bool:
        """Whether a directory can be an alias: its program has a root directory, and sees nothing above or below it."""
        others = [*SYSTEM, *NEVER_SHOWN, *self.readable, *self.writable, *self.private, self.session_directory or "/"]
        others += [alias for alias, _source in self.aliases]
        apart = not any(is_within(path, other) or is_within(other, path) for other in others)
        return _has_namespaces() and path == normal(path) and path.startswith("/") and apart

    def has_network(self) -> bool:
        """Whether its program has a network of its own, with nobody in it: who is to come to it comes by a door."""
        return self.network != "host" and _has_namespaces()

    def start(
        self,
        argv: Sequence[str],
        *,
        log: str,
        env: Mapping[str, str],
        claim: Callable[[Process], None],
        doors: Iterable[tuple[int, str | int, int]] = (),
    ) -> Process:
        """Run argv as a daemon whose output goes to log, and return its process.

        claim is called with the process of its warden before the program is executed; when that does not return, it
        never is. The warden hands signals on, ends everything that the program leaves behind, and ends with it; killed,
        it takes the program with it. doors: descriptors of sockets that listen, each with what is behind it, by the
        path of a socket or as a TCP port, as the program sees them, and how many clients may come. Raises SandboxError.
        """
        with self._launch(argv, env, logged=(1, 2), doors=doors) as launch:
            output = open_log(log, argv)
            try:
                warden = subprocess.Popen(  # pylint: disable=ansible-bad-function  # outlives the module
                    launch.command,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    env=launch.environment,
                    cwd="/",
                    pass_fds=launch.descriptors,
                    start_new_session=True,
                )
            finally:
                os.close(output)
            _wardens[:] = [*(one for one in _wardens if one.poll() is None), warden]
            launch.begin(claim)
            launch.await_execution()
            return launch.program()

    def run(
        self,
        argv: Sequence[str],
        *,
        timeout: float,
        env: Mapping[str, str] | None = None,
        check: bool = True,
        stdin: bytes = b"",
        limit: int = TOOL_OUTPUT,
        log: str | None = None,
        memory: int = TOOL_MEMORY,
        claim: Callable[[Process], None] | None = None,
        take: Callable[[bytes], object] | None = None,
    ) -> CompletedBytes:
        """Run argv to its end; as `command.run_bytes`, with at most limit bytes of output, or any number for take.

        What it leaves behind is ended with it, and all of it with this process, killed or not. log is a file that its
        standard error is appended to. claim is as in start(). Raises CommandError, OutputError and, where the program
        cannot be locked up, SandboxError.
        """
        logged = () if log is None else (2,)
        launching = self._launch(argv, env or {}, logged=logged, memory=memory, caller=os.getpid())
        with launching as launch, ExitStack() as opened:
            errors = None
            if log is not None:
                errors = open_log(log, argv)
                opened.callback(os.close, errors)
            done = run_bytes(
                launch.command,
                timeout=timeout,
                env=launch.environment,
                check=False,
                stdin=stdin,
                limit=limit,
                inner=Inner(argv, launch.descriptors, lambda: launch.begin(claim), errors, launch.cut_off),
                take=take,
            )
            launch.await_execution()
        return done.checked() if check else done

    def text(self, argv: Sequence[str], *, timeout: float, **options: Any) -> Completed:
        """Run a program as run() does; the output is text."""
        return self.run(argv, timeout=timeout, **options).text()

    @contextmanager
    def _launch(
        self,
        argv: Sequence[str],
        env: Mapping[str, str],
        *,
        logged: Sequence[int],
        doors: Iterable[tuple[int, str | int, int]] = (),
        memory: int = 0,
        caller: int = 0,
    ) -> Iterator[_Launch]:
        namespaces, landlock = _walls(self.account, accept_unconfined=self.accept_unconfined)
        specification = {
            **NOTHING,
            "argv": list(argv),
            "env": {**_environment(self.account), **self._mark(), **env},
            "uid": self.account.uid,
            "gid": self.account.gid,
            "account": self.account.name if self.account.is_own else None,
            "staging": self.session_directory or ANYWHERE,
            "readable": list(self.readable),
            "writable": list(self.writable),
            "aliases": list(self.aliases) if namespaces else [],
            "private": list(self.private),
            "network": self.network,
            "port": self.port,
            "namespaces": namespaces,
            "landlock": landlock,
            "seccomp": can_filter_calls(),
            "logged": list(logged),
            "doors": list(doors),
            "caller": caller,
            **_numbers(),
            "memory": memory,
            "data": self.memory_max,
        }
        launch = _Launch(specification, self.session_directory)
        try:
            yield launch
        finally:
            launch.close()

    def _mark(self) -> dict[str, str]:
        """An ordinary user's server is found by it, should the session's record be lost."""
        return {} if self.session_directory is None else {MARKER: self.session_directory}

    def report(self) -> tuple[list[dict[str, str]], list[str]]:
        """What holds on this host, as {what, why}, and warnings about what does not. Raises SandboxError as start."""
        namespaces, landlock = _walls(self.account, accept_unconfined=self.accept_unconfined)
        by = ", ".join([*(["a root directory of its own"] if namespaces else []), *(["Landlock"] if landlock else [])])
        done = []
        if by:
            why = "whatever link, function or library asks for it, no file of production can be opened"
            done.append({"what": f"files outside of the session closed to the server ({by})", "why": why})
        if namespaces:
            why = "a function of the copy could have signalled production's processes, removed its shared memory, or "
            why += "left something running after the session's end"
            done.append({"what": "processes and System V objects of the host out of the server's sight", "why": why})
        if self.account.is_own:
            why = "production's user may do everything with production's files and processes"
            done.append(
                {"what": f"the server runs as a user that owns nothing else (id {self.account.uid})", "why": why}
            )
        if can_filter_calls():
            done += self._report_calls()
        missing = missing_walls(self.account)
        return done, [f"The session is not confined as it should be, which was accepted: {missing}."] if missing else []

    def _report_calls(self) -> list[dict[str, str]]:
        why = "a function of the copy could have locked production out of its own files"
        done = [{"what": "changes of modes, owners and times of files refused to the server (seccomp)", "why": why}]
        why = "a function of the copy could have had production's processes slowed down, or ended by their limits"
        done.append({"what": "limits and priorities of other processes refused to the server (seccomp)", "why": why})
        if self.network != "host":
            why = "a trigger, a foreign table or a library of the copy could have reached production"
            done.append({"what": "connections from the server to anywhere refused (seccomp)", "why": why})
        return done


def missing_walls(account: Account) -> str | None:
    """What this host lacks to lock up a server of account, and the cure; None where it can be done."""
    if not can_filter_calls():
        return "calls of the kernel cannot be filtered here (seccomp, on x86_64 and aarch64)"
    if _has_namespaces():
        return None
    # Landlock alone leaves System V objects of the user open, and lets processes go on when their session has ended.
    return (
        "this user may not make namespaces (sysctl user.max_user_namespaces, kernel.unprivileged_userns_clone, "
        "kernel.apparmor_restrict_unprivileged_userns): allow that, or start the session as root"
    )


def _walls(account: Account, *, accept_unconfined: bool) -> tuple[bool, bool]:
    """Whether namespaces and Landlock are to be used. Raises SandboxError where that is not enough."""
    missing = missing_walls(account)
    if missing and not accept_unconfined:
        raise SandboxError(
            f"The server cannot be kept away from this host's other files and processes: {missing}. "
            "accept_unconfined=true starts it all the same."
        )
    return _has_namespaces(), landlock_version() > 0


def _has_namespaces() -> bool:
    """Whether namespaces can be made. Root always can where it can mount, and is told by the attempt if not."""
    return os.geteuid() == 0 or _user_namespaces_work(os.geteuid())


@lru_cache(maxsize=1)
def _user_namespaces_work(uid: int) -> bool:
    """Whether this user can have a namespace of users and mount in it: distributions forbid one or the other."""
    specification = {**NOTHING, "argv": ["/bin/true"], "uid": uid, "gid": os.getegid(), "namespaces": True}
    launch = _Launch(specification, None)
    try:
        inner = Inner(["true"], launch.descriptors, lambda: launch.begin(None))
        done = run_bytes(launch.command, timeout=PATIENCE, env=launch.environment, check=False, inner=inner)
    except RecoveryError:
        return False
    finally:
        launch.close()
    return done.returncode == 0


_wardens: list[subprocess.Popen[bytes]] = []  # kept, so that Python does not complain of children that live on


def _numbers() -> dict[str, int]:
    """How many processes a server may have, and files each of them, so that others have theirs (proc(5))."""
    ids, files = (_number_in(f"/proc/sys/{name}") for name in ("kernel/pid_max", "fs/file-max"))
    processes = max(LEAST_PROCESSES, min(MOST_PROCESSES, ids // 8, files // 4 // MOST_FILES))
    return {"processes": processes, "files": max(LEAST_FILES, min(MOST_FILES, files // 4 // processes))}


def _number_in(path: str) -> int:
    with open(path, encoding="ascii") as file:
        return int(file.read())


class _Launch:
    """One run of the program: its command line, and both ends of the pipes to it."""

    def __init__(self, specification: Mapping[str, Any], session_directory: str | None) -> None:
        self.environment = {"PATH": search_path(), "LC_ALL": "C.UTF-8"}
        if session_directory is not None:
            self.environment[MARKER] = session_directory
        program = memory_file("sandbox", _program())
        given = memory_file("specification", json.dumps(specification).encode())
        self._status, status = os.pipe()
        go, self._go = os.pipe()
        ours = (program, given, status, go)
        self.descriptors = [*ours, *(door[0] for door in specification["doors"])]
        self._open = {*ours, self._status, self._go}
        self._said = b""
        self._process: Process | None = None
        self._theirs, self._has_init = ours, int(specification["namespaces"])
        self.command = [sys.executable, "-I", "-S", "-c", RUN, *map(str, ours)]

    def close(self) -> None:
        """Close what is open still. A program that was not begun ends by that."""
        self._close(*self._open)

    def _close(self, *descriptors: int) -> None:
        for descriptor in descriptors:
            self._open.discard(descriptor)  # its number may be another thread's in a moment
            os.close(descriptor)

    def begin(self, claim: Callable[[Process], None] | None) -> None:
        """Learn which process it is, have it claimed, and let it execute the program."""
        self._close(*self._theirs)
        answer = json.loads(self._line() or b"{}")
        process = identify(answer["pid"]) if "pid" in answer else None
        if process is None:
            raise SandboxError(f"The server cannot be confined to its session: {answer.get('error', 'it ended')}.")
        self._process = process
        if claim is not None:
            claim(process)
        with suppress(BrokenPipeError):  # it has failed, which it tells
            os.write(self._go, b"!")

    def program(self) -> Process:
        """The process of the program, of which the warden may have begun; the warden's where it has ended."""
        if self._process is None:
            raise AssertionError("it was not begun")
        family = sorted(descendants(self._process), key=lambda one: (one.start_time, one.pid))
        return [*family[self._has_init :], self._process][0]

    def cut_off(self) -> None:
        """Kill the warden, and what the program has started."""
        if self._process is not None:
            end_family(self._process, KILL)

    def await_execution(self) -> None:
        """Wait until the program is executed. Raises SandboxError where that has failed."""
        rest = self._line()
        if rest:
            raise SandboxError(f"The server cannot be confined to its session: {json.loads(rest)['error']}.")

    def _line(self) -> bytes:
        """The next line of its status, or nothing when that was closed."""
        deadline = time.monotonic() + PATIENCE
        while b"\n" not in self._said:
            ready, _writable, _failed = select.select([self._status], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                raise SandboxError(f"The server was not confined to its session within {PATIENCE:g} s.")
            more = os.read(self._status, 4096)
            if not more:
                break
            self._said += more
        line, _newline, self._said = self._said.partition(b"\n")
        return line


@lru_cache(maxsize=1)
def _program() -> bytes:
    return packed("_host/confined", compiled=True)


def _environment(account: Account) -> dict[str, str]:
    """What every program gets: nothing of what the one who starts has set for other servers."""
    return {
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "LC_ALL": "C",
        "HOME": "/",
        "USER": account.name,
        "LOGNAME": account.name,
    }
