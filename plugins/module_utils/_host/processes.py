# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Processes that outlive the module that started them: starting, recognising and stopping them.

A pid alone says nothing: it is used again, and after a reboot all are. So a process is known by pid, start time and
boot. A process that was started but not yet recorded when a module was killed is found by a mark in its environment.
"""

from __future__ import annotations

import errno
import os
import select
import signal
import stat
import subprocess
import time
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from .command import Bounds, CommandError, environment, identity
from .files import open_regular

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

__all__ = [
    "KILL",
    "MARKER",
    "PIPE_HOLDS",
    "Process",
    "ancestors",
    "connection",
    "controller",
    "descendants",
    "describe",
    "end_family",
    "identify",
    "marked",
    "marks_below",
    "memory_file",
    "open_log",
    "open_pidfd",
    "secret_pipe",
    "send",
    "spawn",
    "stop",
    "stop_all",
    "wait_for_any_end",
    "wait_for_end",
]

MARKER = "INSTANT_RECOVERY_SESSION"  # set to the session's directory in every process of a session
SSH_SERVERS = ("sshd", "sshd-session", "dropbear")  # sshd-session: OpenSSH 9.8 and newer
PIPE_HOLDS = 65536  # bytes that a pipe takes when nobody reads (pipe(7)): what comes through one is no longer
KILL = (("SIGKILL", 5.0),)
ROUNDS = 10
POLL_INTERVAL = 0.05  # seconds; only for kernels before 5.3, which cannot tell when a foreign process ends

_spawned: list[subprocess.Popen[bytes]] = []


@dataclass(frozen=True)
class Process:
    """One process of one boot. start_time is in clock ticks since boot, as /proc/PID/stat has it."""

    pid: int
    start_time: int
    boot_id: str

    def as_dict(self) -> dict[str, Any]:
        """For the session's record."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Process:
        """From the session's record. Raises KeyError or ValueError for something else."""
        return cls(int(data["pid"]), int(data["start_time"]), str(data["boot_id"]))

    def alive(self) -> bool:
        """Whether this very process runs; one that has ended and waits for its parent does not."""
        return identify(self.pid) == self


def identify(pid: int) -> Process | None:
    """The process that has this pid now, or None."""
    status = _status(pid)
    return None if status is None or status.ended else Process(pid, status.start_time, _boot_id())


def ancestors() -> list[int]:
    """Our process, the one that started it, and so on up to the first."""
    return _ancestry(os.getpid(), _parents())


def controller() -> Process | None:
    """The ansible-playbook that this module belongs to, where it runs on this host: it lives as long as the play.

    Of several the outermost: some versions of Ansible fork for each task, under the same name.
    """
    for pid in reversed(ancestors()[1:]):
        with suppress(OSError), open(f"/proc/{pid}/cmdline", "rb") as cmdline:
            # The interpreter may come first.
            names = [os.path.basename(word) for word in cmdline.read().split(b"\0")[:2]]
            if any(name.startswith(b"ansible-playbook") for name in names):
                return identify(pid)
    return None


def connection() -> Process | None:
    """The ssh server's process for the connection through which this module was sent; None on the controller itself.

    It lives as long as the connection, which Ansible keeps for a minute after the last task (ControlPersist).
    """
    for pid in ancestors()[1:]:
        with suppress(OSError), open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace", newline="\n") as name:
            if name.read().strip() in SSH_SERVERS:
                return identify(pid)
    return None


def marked(session_directory: str) -> list[Process]:
    """Our own programs at work for a session, other than this one and those it was started by.

    They bear the session's mark in their environment, and run as the user who looks: Borg, the layer, the keeper. What
    runs in a sandbox is recorded before it runs, so it need not be looked for.
    """
    mark = os.fsencode(f"{MARKER}={session_directory}")
    parents = _parents()
    found = []
    for pid in sorted(set(parents).difference(_ancestry(os.getpid(), parents))):
        process = identify(pid)
        if process and _is_own(pid) and _has_mark(pid, mark) and process.alive():
            found.append(process)
    return found


def marks_below(root: str) -> set[str]:
    """The session directories directly below root that processes bear the mark of."""
    found = set()
    prefix = os.fsencode(f"{MARKER}={os.path.join(root, '')}")
    for pid in filter(_is_own, _parents()):
        with suppress(OSError), open(f"/proc/{pid}/environ", "rb") as environ:
            for entry in environ.read().split(b"\0"):
                if entry.startswith(prefix) and b"/" not in entry[len(prefix) :]:
                    found.add(os.fsdecode(entry.partition(b"=")[2]))
    return found


def descendants(*processes: Process) -> list[Process]:
    """The children of those of processes that live, theirs, and so on. One look at all of the host's processes."""
    tops = {process.pid for process in processes if process.alive()}
    if not tops:
        return []
    parents = _parents()
    pids = [pid for pid in sorted(parents) if pid not in tops and not tops.isdisjoint(_ancestry(pid, parents))]
    return [found for found in map(identify, pids) if found is not None]


def command_lines(claimed: Iterable[Process] | None) -> Iterator[tuple[Process, list[str]]]:
    """Processes that live, with their arguments: those that a record claims, or all of this user's own.

    Where there is a record it alone counts: anybody can have any arguments.
    """
    if claimed is None:
        own = (int(name) for name in os.listdir("/proc") if name.isdigit() and _is_own(int(name)))
        claimed = filter(None, map(identify, own))
    for process in claimed:
        with suppress(OSError), open(f"/proc/{process.pid}/cmdline", "rb") as cmdline:
            arguments = os.fsdecode(cmdline.read()).split("\0")[:-1]
            if process.alive():
                yield process, arguments


def describe(process: Process) -> str:
    """Such as C(process 4711 (postgres)), for messages."""
    try:
        with open(f"/proc/{process.pid}/comm", encoding="utf-8", errors="replace", newline="\n") as comm:
            return f"process {process.pid} ({comm.read().strip()})"
    except OSError:
        return f"process {process.pid}"


def spawn(
    argv: Sequence[str],
    *,
    log: str,
    env: Mapping[str, str],
    user: str | None = None,
    cwd: str = "/",
    pass_fds: Sequence[int] = (),
    umask: int = 0o077,
    bounds: Bounds | None = None,
    **options: Any,
) -> Process:
    """Start a daemon: a session of its own, standard input from /dev/null, output appended to log (made 0600).

    env is added to environment(), as in _command.run; a daemon of a session carries MARKER in it. pass_fds stay open
    in it under their numbers, for instance the writing end of a pipe on which it reports that it is ready. options are
    further ones of subprocess.Popen. Raises CommandError when argv cannot be run.
    """
    _spawned[:] = [child for child in _spawned if child.poll() is None]
    output = open_log(log, argv)
    try:
        child = subprocess.Popen(  # pylint: disable=ansible-bad-function  # outlives the module
            list(argv),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=environment(env, user=user),
            cwd=cwd,
            pass_fds=tuple(pass_fds),
            umask=umask,
            start_new_session=True,
            **identity(user),
            **options,
        )
    except OSError as error:
        code = 127 if isinstance(error, FileNotFoundError) else 126
        raise CommandError(argv, code, problem=f"{argv[0]} cannot be started ({error.strerror})") from error
    finally:
        os.close(output)
    if bounds is not None:
        bounds.hold(child.pid)
    _spawned.append(child)
    # Until it is waited for it keeps its entry in /proc, even when it has already failed.
    status = _status(child.pid)
    return Process(child.pid, status.start_time if status else 0, _boot_id())


def open_log(path: str, argv: Sequence[str]) -> int:
    """A descriptor that appends to the log of a program, which is made where it is missing. Raises CommandError."""
    try:
        if path == os.devnull:
            return os.open(path, os.O_WRONLY)
        return open_regular(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    except OSError as error:
        problem = f"{argv[0]} was not started, because its log {path} cannot be written ({error.strerror})"
        raise CommandError(argv, 126, problem=problem) from error


def send(process: Process, name: str) -> None:
    """Send a signal to process and to no other that may have its pid by now; silent when it ended or is not ours."""
    number, pidfd = signal.Signals[name], open_pidfd(process)
    try:
        if pidfd is not None:
            signal.pidfd_send_signal(pidfd, number)
        elif process.alive():
            os.kill(process.pid, number)
    except OSError as error:
        if error.errno not in (errno.ESRCH, errno.EPERM):
            raise
    finally:
        if pidfd is not None:
            os.close(pidfd)


def stop(process: Process, signals: Sequence[tuple[str, float]]) -> bool:
    """Send the named signals one after the other, each followed by a wait of so many seconds, until process has ended.

    Returns false when it is still there: the kernel cannot end it now, or we may not.
    """
    return not stop_all([process], signals)


def stop_all(processes: Iterable[Process], signals: Sequence[tuple[str, float]]) -> list[Process]:
    """Stop several processes at once, as stop() does; returns those that are still there."""
    left = [process for process in processes if process.alive()]
    for name, seconds in signals:
        for process in left:
            send(process, name)
        left = wait_for_end(left, timeout=seconds)
        if not left:
            break
    return left


def end_family(process: Process, signals: Sequence[tuple[str, float]]) -> list[Process]:
    """Stop process as stop does, and kill whatever it has started; returns those that are still there.

    Where it does not end by itself, what it has started is killed first: it may have nothing else that ends it.
    """
    family = descendants(process)
    gentle = [(name, seconds) for name, seconds in signals if name != KILL[0][0]]
    if not stop(process, gentle):
        for _round in range(ROUNDS):  # what was born in the meantime
            family = descendants(process)
            if not family:
                break
            stop_all(family, KILL)
    return stop_all([*family, process], KILL)


def wait_for_end(processes: Iterable[Process], *, timeout: float) -> list[Process]:
    """Wait up to timeout seconds for all of processes to end; returns those that are still there."""
    deadline = time.monotonic() + timeout
    left = list(processes)
    while True:
        left = [process for process in left if process.alive()]
        seconds = deadline - time.monotonic()
        if not left or seconds <= 0:
            return left
        pidfd = open_pidfd(left[0])
        if pidfd is None:
            time.sleep(min(seconds, POLL_INTERVAL))
            continue
        try:
            waiter = select.poll()
            waiter.register(pidfd, select.POLLIN)
            waiter.poll(seconds * 1000)
        finally:
            os.close(pidfd)


def wait_for_any_end(processes: Iterable[Process], *, timeout: float, readable: Iterable[int] = ()) -> None:
    """Wait up to timeout seconds for one of processes to end, or something to read from one of these descriptors.

    Kernels that cannot tell of an end wait for all of the time.
    """
    pidfds = [pidfd for pidfd in map(open_pidfd, processes) if pidfd is not None]
    try:
        waiter = select.poll()
        for descriptor in (*pidfds, *readable):
            waiter.register(descriptor, select.POLLIN)
        waiter.poll(max(0.0, timeout) * 1000)
    finally:
        for pidfd in pidfds:
            os.close(pidfd)


@contextmanager
def secret_pipe(variable: str, secret: str | None) -> Iterator[tuple[dict[str, str], list[int]]]:
    """A pipe that holds a secret, for a process to be started in the block: the environment that names it, descriptors.

    Both are empty where there is no secret. Raises CommandError for one that finds no room in a pipe.
    """
    if secret is None:
        yield {}, []
        return
    content = secret.encode("utf-8", "surrogateescape")
    if len(content) > PIPE_HOLDS:
        problem = f"The secret for {variable} has {len(content)} bytes, and {PIPE_HOLDS} is the most"
        raise CommandError([variable], 126, problem=problem)
    reading, writing = os.pipe()
    try:
        os.write(writing, content)  # nobody has to read yet
        os.close(writing)
        yield {variable: str(reading)}, [reading]
    finally:
        os.close(reading)


def memory_file(name: str, content: bytes) -> int:
    """A file that is only in memory, to be read from its beginning by whoever inherits it."""
    descriptor = os.memfd_create(name)
    view = memoryview(content)
    while view:
        view = view[os.write(descriptor, view) :]
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor


def open_pidfd(process: Process) -> int | None:
    """A descriptor that becomes readable when process ends; None when it has, or on kernels before 5.3."""
    try:
        pidfd = os.pidfd_open(process.pid)
    except (AttributeError, OSError):
        return None
    if process.alive():  # looked at after opening: the pid may have passed to another process
        return pidfd
    os.close(pidfd)
    return None


@dataclass(frozen=True)
class _Status:
    ended: bool
    parent: int
    start_time: int


def _status(pid: int) -> _Status | None:
    try:
        with open(f"/proc/{pid}/stat", "rb") as stat:
            # The second field is the program's name in parentheses, and may itself hold blanks and parentheses.
            fields = stat.read().rpartition(b")")[2].split()
    except OSError:
        return None
    return _Status(fields[0] in (b"Z", b"X"), int(fields[1]), int(fields[19])) if len(fields) > 19 else None


def _boot_id() -> str:
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii", newline="\n") as boot_id:
        return boot_id.read().strip()


def _parents() -> dict[int, int]:
    """pid to parent's pid, of all processes that can be seen."""
    table = {}
    for name in os.listdir("/proc"):
        status = _status(int(name)) if name.isdigit() else None
        if status is not None:
            table[int(name)] = status.parent
    return table


def _ancestry(pid: int, parents: Mapping[int, int]) -> list[int]:
    """pid and whom it descends from, the nearest first."""
    found: list[int] = []
    while pid and pid not in found:
        found.append(pid)
        pid = parents.get(pid, 0)
    return found


def _has_mark(pid: int, mark: bytes) -> bool:
    try:
        with open(f"/proc/{pid}/environ", "rb") as environ:
            return mark in environ.read().split(b"\0")
    except OSError:
        return False


def _is_own(pid: int) -> bool:
    """Whether a process is of this user, and not in a sandbox: to read what such a one has in its memory may hang."""
    try:
        if os.stat(f"/proc/{pid}").st_uid != os.geteuid():
            return False
        if os.geteuid() == 0:
            return not _is_borrowed(pid)
        return os.readlink(f"/proc/{pid}/ns/pid") == os.readlink("/proc/self/ns/pid")
    except OSError:
        return False


def _is_borrowed(pid: int) -> bool:
    """Whether root's rights were lent to a process: who started a setuid program chose its environment. Raises OSError.

    Such a program may become root in every respect, as sudo does; its file tells, then.
    """
    with open(f"/proc/{pid}/status", encoding="utf-8", errors="replace", newline="\n") as status:
        ids = next(line.split()[1:] for line in status if line.startswith("Uid:"))
    return set(ids) != {"0"} or bool(os.stat(f"/proc/{pid}/exe").st_mode & (stat.S_ISUID | stat.S_ISGID))
