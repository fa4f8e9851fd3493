# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Running a program to its end: an argv list, no shell, a fixed locale, a time-out that also ends its children."""

from __future__ import annotations

import contextlib
import ctypes
import os
import pwd
import re
import resource
import selectors
import shutil
import signal
import subprocess
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .._errors import RecoveryError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

__all__ = [
    "Account",
    "Bounds",
    "CommandError",
    "Completed",
    "CompletedBytes",
    "Inner",
    "OutputError",
    "account",
    "end_with_caller",
    "environment",
    "find_program",
    "identity",
    "last_line",
    "run",
    "run_bytes",
    "search_path",
]

PR_SET_PDEATHSIG = 1  # linux/prctl.h
# Ansible often connects with a PATH that lacks these, and mount, umount or losetup live there.
SYSTEM_DIRECTORIES = ("/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin")
# Of Borg's variables, those that say where it keeps what is its own, how it reaches a repository, and what it may open
# without a question. Not secrets: those are for borg alone, and whoever runs it passes them in env. Not BORG_REPO and
# the like either: what is opened, and what is done with it, is what we are asked for.
FOR_BORG = (
    *("BORG_BASE_DIR", "BORG_CACHE_DIR", "BORG_CONFIG_DIR", "BORG_SECURITY_DIR", "BORG_KEYS_DIR", "BORG_KEY_FILE"),
    *("BORG_RSH", "BORG_REMOTE_PATH", "BORG_HOST_ID", "BORG_USE_CHUNKS_ARCHIVE", "BORG_WORKAROUNDS"),
    *("BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK", "BORG_RELOCATED_REPO_ACCESS_IS_OK"),
    *("BORG_FUSE_IMPL", "BORG_MOUNT_DATA_CACHE_ENTRIES"),
)
# What a caller's shell, virtual environment or module system sets for programs of its own: where code, libraries and
# locales come from, what a shell does first, and which server a database's client goes to. The system's Borg ends with
# another Python's modules. What is left is for the passcommand, whatever that needs.
FOREIGN = re.compile(
    r"(?:BORG|PYTHON|VIRTUAL_ENV|__PYVENV|CONDA|PYENV|UV_|PIP_|LD_|DYLD_|MALLOC_|GLIBC_|PERL|RUBY|GEM_|NODE_|JAVA_"
    r"|PG|MYSQL|MARIADB|MONGO|LC_|BASH_|SHELLOPTS|BASHOPTS|GCONV_PATH|LOCPATH|NLSPATH|LANG|OPENSSL_|_MODULES|LOADEDMODULES"
    r"|ENV$|CDPATH$|IFS$|HOSTALIASES$|LOCALDOMAIN$|RES_OPTIONS$)"
)
OUTPUT_LIMIT = 64 << 20  # bytes of standard output, unless told otherwise: what is to be read here is far less
ERRORS_KEPT = 1 << 20  # bytes of standard error, the last
PIECE = 1 << 16  # bytes that are read or written at once
DETAIL_CHARACTERS = 4000  # of a tool's stderr in a failed result: its last lines say why


class CommandError(RecoveryError):
    """A program failed.

    returncode is as in subprocess (negative: ended by that signal), 127 for a program that is not there, 126 for one
    that cannot be run, None after a time-out.
    """

    def __init__(
        self, argv: Sequence[str], returncode: int | None, stdout: str = "", stderr: str = "", *, problem: str = ""
    ) -> None:
        self.argv = list(argv)
        self.returncode = returncode
        self.stdout = stdout
        self.stderr = stderr
        said = last_line(stderr) or last_line(stdout)
        message = problem or _problem(os.path.basename(argv[0]), returncode)
        super().__init__(
            f"{message}: {said}" if said else f"{message}.",
            command=self.argv,
            rc=returncode,
            stderr=stderr[-DETAIL_CHARACTERS:],
        )


class OutputError(CommandError):
    """A program wrote more than is taken of it, and was ended. taken: that much of its output."""

    taken = b""


@dataclass(frozen=True)
class Account:
    """Whom a program runs as: the name and numbers of a user.

    is_own: a user of the session's own, whom the host does not know (see `_host/users.py`).
    """

    name: str
    uid: int
    gid: int
    is_own: bool = False


@dataclass(frozen=True)
class Bounds:
    """What a program, and what it starts, may have: bytes of memory of its own, and of each file (0: any)."""

    memory: int = 0
    file: int = 0

    def hold(self, pid: int) -> None:
        """Bind a process that was just started. What is beyond is an error to it: ENOMEM, EFBIG."""
        # Its memory may hold a key. 1 and not 0: then no program that takes core dumps gets one, either (core(5)).
        core = (resource.RLIMIT_CORE, 1)
        for kind, most in ((resource.RLIMIT_DATA, self.memory), (resource.RLIMIT_FSIZE, self.file), core):
            if most:
                with contextlib.suppress(ProcessLookupError):
                    known = resource.prlimit(pid, kind)[1]
                    limit = most if known == resource.RLIM_INFINITY else min(most, known)
                    resource.prlimit(pid, kind, (limit, limit))


@dataclass(frozen=True)
class Inner:
    """A program that another one runs in its turn, as run_bytes() needs to know it.

    The other gets no environment but what it is given. pass_fds stay open in it. started is called when the other runs,
    cut_off before it is killed: what it has started may be out of its reach. errors: a descriptor that takes its
    standard error.
    """

    argv: Sequence[str]
    pass_fds: Sequence[int]
    started: Callable[[], object]
    errors: int | None = None
    cut_off: Callable[[], None] = lambda: None


@dataclass(frozen=True)
class Completed:
    """What a finished program left; stdout keeps undecodable bytes as surrogates, so paths survive a round trip."""

    argv: tuple[str, ...]
    returncode: int
    stdout: str
    stderr: str


@dataclass(frozen=True)
class CompletedBytes:
    """A finished program like Completed, with stdout as it came."""

    argv: tuple[str, ...]
    returncode: int
    stdout: bytes
    stderr: str

    def text(self) -> Completed:
        """The result with its output as text."""
        return Completed(self.argv, self.returncode, os.fsdecode(self.stdout), self.stderr)

    def checked(self) -> CompletedBytes:
        """Return the result if the return code is 0. Raises CommandError for any other."""
        if self.returncode != 0:
            raise CommandError(self.argv, self.returncode, os.fsdecode(self.stdout), self.stderr)
        return self


def run(
    argv: Sequence[str],
    *,
    timeout: float,
    env: Mapping[str, str] | None = None,
    check: bool = True,
    stdin: bytes = b"",
    user: str | None = None,
    cwd: str | None = None,
    limit: int = OUTPUT_LIMIT,
    bounds: Bounds | None = None,
) -> Completed:
    """Run argv to its end and return its text; see run_bytes."""
    return run_bytes(
        argv, timeout=timeout, env=env, check=check, stdin=stdin, user=user, cwd=cwd, limit=limit, bounds=bounds
    ).text()


def run_bytes(
    argv: Sequence[str],
    *,
    timeout: float,
    env: Mapping[str, str] | None = None,
    check: bool = True,
    stdin: bytes = b"",
    user: str | None = None,
    cwd: str | None = None,
    limit: int = OUTPUT_LIMIT,
    bounds: Bounds | None = None,
    inner: Inner | None = None,
    take: Callable[[bytes], object] | None = None,
) -> CompletedBytes:
    """Run argv to its end, as user if given, within timeout seconds; it may write limit bytes to its standard output.

    The environment is environment(env, user). inner is what argv is to run in its turn. take gets the output piece by
    piece, however much it is, and nothing of it is kept.
    Raises CommandError at a time-out, for a program that cannot be run and, unless check is false, for a return code
    other than 0; OutputError where it writes more. Of its standard error the last ERRORS_KEPT bytes are kept.
    """
    shown = argv if inner is None else inner.argv
    given = environment(env or {}, user=user) if inner is None else dict(env or {})
    process = _start(argv, env=given, user=user, cwd=cwd, inner=inner)
    if bounds is not None:
        bounds.hold(process.pid)
    exchange = _Exchange(process, stdin, limit, cut_off=inner.cut_off if inner else None, take=take)
    name = os.path.basename(shown[0])
    try:
        if inner is not None:
            inner.started()
        exchange.finish(timeout)
    except subprocess.TimeoutExpired:
        exchange.cut_off()
        problem = f"{name} did not finish within {timeout:g} s and was ended"
        raise CommandError(shown, None, exchange.printed(), _text(exchange.err), problem=problem) from None
    except _TooMuchError:
        exchange.cut_off()
        problem = f"{name} wrote more than {limit} bytes, all that is taken of it, and was ended"
        failure = OutputError(shown, None, "", _text(exchange.err), problem=problem)
        failure.taken = bytes(exchange.out[:limit])
        raise failure from None
    except BaseException:
        exchange.cut_off()
        raise
    finally:
        exchange.close()
    done = CompletedBytes(tuple(shown), process.returncode, bytes(exchange.out), _text(exchange.err))
    return done.checked() if check else done


def find_program(name: str, *, directories: Sequence[str] = ()) -> str | None:
    """The path of the program called name: first in directories, then in PATH and the system's own directories."""
    return shutil.which(name, path=os.pathsep.join([*directories, search_path()]))


def environment(env: Mapping[str, str], *, user: str | None = None) -> dict[str, str]:
    """The environment programs get: ours without what is FOREIGN, a C locale, user's HOME and names, and then env."""
    inherited = {name: value for name, value in os.environ.items() if name in FOR_BORG or not FOREIGN.match(name)}
    inherited.update(PATH=search_path(), LC_ALL="C")
    if user is not None:
        name = account(user).name
        home = "/" if account(user).is_own else _entry(user).pw_dir
        inherited.update(HOME=home, USER=name, LOGNAME=name)
    inherited.update(env)
    return inherited


def identity(user: str | None) -> dict[str, Any]:
    """The arguments that make subprocess.Popen run as user (none where that is who we are).

    Raises RecoveryError where user does not exist or only root could become it.
    """
    if user is None:
        return {}
    wanted = account(user)
    if wanted.uid == os.geteuid():
        return {}
    if os.geteuid() != 0:
        raise RecoveryError(f"Only root can run a program as user {user}: use become, or leave the user out.")
    groups = [] if wanted.is_own else os.getgrouplist(user, wanted.gid)
    return {"user": wanted.uid, "group": wanted.gid, "extra_groups": groups}


def search_path() -> str:
    """PATH, and the system's own directories where they are missing in it."""
    directories = [entry for entry in os.environ.get("PATH", "").split(os.pathsep) if entry]
    return os.pathsep.join(directories + [entry for entry in SYSTEM_DIRECTORIES if entry not in directories])


def account(user: str) -> Account:
    """The account called user; a number is a user of a session's own. Raises RecoveryError where there is none."""
    if user.isascii() and user.isdigit():
        return Account(name=f"instant-recovery-{user}", uid=int(user), gid=int(user), is_own=True)
    entry = _entry(user)
    return Account(name=entry.pw_name, uid=entry.pw_uid, gid=entry.pw_gid)


def last_line(text: str) -> str:
    """The last line of text that is not blank, or an empty string."""
    lines = text.strip().splitlines()
    return lines[-1].strip() if lines else ""


def _problem(name: str, returncode: int | None) -> str:
    if returncode is None:
        return f"{name} did not finish in time"
    if returncode >= 0:
        return f"{name} failed with exit status {returncode}"
    try:
        return f"{name} was ended by {signal.Signals(-returncode).name}"
    except ValueError:
        return f"{name} was ended by signal {-returncode}"


def _start(
    argv: Sequence[str], *, env: Mapping[str, str], user: str | None, cwd: str | None, inner: Inner | None
) -> subprocess.Popen[bytes]:
    name = os.path.basename(argv[0])
    try:
        # A session of its own makes the process group that a time-out ends as a whole, and takes the controlling
        # terminal away: a tool that wants to ask a question fails instead of waiting for an answer.
        return subprocess.Popen(  # pylint: disable=ansible-bad-function  # run_command has no time-out
            list(argv),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE if inner is None or inner.errors is None else inner.errors,
            pass_fds=() if inner is None else tuple(inner.pass_fds),
            env=dict(env),
            cwd=cwd,
            start_new_session=True,
            preexec_fn=end_with_caller(),
            **identity(user),
        )
    except FileNotFoundError as error:
        if cwd is not None and error.filename == cwd:
            raise CommandError(argv, 126, problem=f"{name} cannot start in {cwd}, which is not there") from error
        raise CommandError(argv, 127, problem=f"The program {argv[0]} was not found: install it") from error
    except OSError as error:
        raise CommandError(argv, 126, problem=f"{argv[0]} cannot be run ({error.strerror})") from error


def end_with_caller() -> Callable[[], None]:
    """Give what a child has to do so that it is killed when its parent ends, however that comes.

    A program in a session of its own would else go on, perhaps for ever, when a module is killed with its play. Of a
    change of user it is to be done after that, as Popen does it: the change takes it away (prctl(2)).
    """
    # Looked up here: between fork and exec as little as possible is done.
    prctl = ctypes.CDLL(None, use_errno=True).prctl

    def bind() -> None:
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)

    return bind


class _TooMuchError(Exception):
    pass


class _Exchange:
    """What goes into a program and comes out of it; Popen.communicate takes as much as there is."""

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        stdin: bytes,
        limit: int,
        *,
        cut_off: Callable[[], None] | None,
        take: Callable[[bytes], object] | None,
    ) -> None:
        self._before_end, self._take = cut_off, take
        self.out, self.err = bytearray(), bytearray()
        self._process, self._limit = process, limit
        self._ahead = memoryview(stdin)
        self._selector = selectors.DefaultSelector()
        if process.stdin is None or process.stdout is None:
            raise AssertionError("both are pipes")
        self._errors = process.stderr  # None: they go to a log
        os.set_blocking(process.stdin.fileno(), False)
        self._selector.register(process.stdin, selectors.EVENT_WRITE, self._write)
        self._selector.register(process.stdout, selectors.EVENT_READ, self._read_output)
        if self._errors is not None:
            self._selector.register(self._errors, selectors.EVENT_READ, self._read_errors)

    def finish(self, timeout: float) -> None:
        """Go on until the program has ended. Raises subprocess.TimeoutExpired and _TooMuchError."""
        deadline = time.monotonic() + timeout
        while self._selector.get_map():
            left = deadline - time.monotonic()
            if left <= 0:
                raise subprocess.TimeoutExpired(self._process.args, timeout)
            for key, _events in self._selector.select(left):
                if key.data(key.fd):
                    self._selector.unregister(key.fileobj)
                    key.fileobj.close()  # type: ignore[union-attr]
        self._process.wait(max(0.0, deadline - time.monotonic()))

    def cut_off(self) -> None:
        """End the program, and take what it has said about why."""
        if self._before_end is not None:
            self._before_end()
        _end(self._process)
        errors = self._errors
        if errors is not None and not errors.closed:
            os.set_blocking(errors.fileno(), False)
            with contextlib.suppress(BlockingIOError):  # somebody else has it open, and may go on writing
                for _piece in range(ERRORS_KEPT // PIECE):
                    if self._read_errors(errors.fileno()):
                        break

    def close(self) -> None:
        """Let go of the pipes."""
        self._selector.close()
        for pipe in (self._process.stdin, self._process.stdout, self._errors):
            with contextlib.suppress(OSError):
                if pipe is not None:
                    pipe.close()

    def printed(self) -> str:
        """What came until now, as text."""
        return os.fsdecode(bytes(self.out))

    def _write(self, pipe: int) -> bool:
        """Whether all is written, or nobody wants more."""
        try:
            self._ahead = self._ahead[os.write(pipe, self._ahead[:PIECE]) :] if self._ahead else self._ahead
        except BrokenPipeError:
            return True
        return not self._ahead

    def _read_output(self, pipe: int) -> bool:
        """Whether the end has come."""
        data = os.read(pipe, PIECE)
        if self._take is not None:
            self._take(data)
            return not data
        self.out += data
        if len(self.out) > self._limit:
            raise _TooMuchError
        return not data

    def _read_errors(self, pipe: int) -> bool:
        data = os.read(pipe, PIECE)
        self.err += data
        del self.err[:-ERRORS_KEPT]
        return not data


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill the process group. Never waits for a process that the kernel cannot end."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=5)


def _entry(user: str) -> pwd.struct_passwd:
    try:
        return pwd.getpwnam(user)
    except KeyError:
        raise RecoveryError(f"There is no user {user} on this host: name one that exists.") from None


def _text(data: bytes | bytearray) -> str:
    return data.decode("utf-8", "replace")
