# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Running a program to its end: an argv list, no shell, a fixed locale, a time-out that also ends its children."""

from __future__ import annotations

import contextlib
import os
import pwd
import selectors
import shutil
import signal
import subprocess
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ansible_collections.phpborg.instant_recovery.plugins.module_utils._errors import RecoveryError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = [
    "CommandError",
    "Completed",
    "CompletedBytes",
    "OutputError",
    "environment",
    "find_program",
    "identity",
    "last_line",
    "run",
    "run_bytes",
]

# Ansible often connects with a PATH that lacks these, and mount, umount or losetup live there.
SYSTEM_DIRECTORIES = ("/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin")
# Secrets are for borg alone: whoever runs borg passes them in env; every other program starts without them.
SECRETS = ("BORG_PASSPHRASE", "BORG_PASSCOMMAND", "BORG_PASSPHRASE_FD", "BORG_NEW_PASSPHRASE", "BORG_OTHER_PASSPHRASE")
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
    """A program wrote more than is taken of it, and was ended."""


@dataclass(frozen=True)
class Completed:
    """What a finished program left; stdout keeps undecodable bytes as surrogates, so paths survive a round trip."""

    argv: tuple[str, ...]
    returncode: int
    stdout: str
    stderr: str


@dataclass(frozen=True)
class CompletedBytes:
    """As Completed, with stdout as it came."""

    argv: tuple[str, ...]
    returncode: int
    stdout: bytes
    stderr: str


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
) -> Completed:
    """Run argv to its end and return its text; see run_bytes."""
    done = run_bytes(argv, timeout=timeout, env=env, check=check, stdin=stdin, user=user, cwd=cwd, limit=limit)
    return Completed(done.argv, done.returncode, os.fsdecode(done.stdout), done.stderr)


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
) -> CompletedBytes:
    """Run argv to its end, as user if given, within timeout seconds; it may write limit bytes to its standard output.

    The environment is environment(env, user). Raises CommandError at a time-out, for a program that cannot be run and,
    unless check is false, for a return code other than 0; OutputError where it writes more. Of its standard error the
    last ERRORS_KEPT bytes are kept.
    """
    process = _start(argv, env=environment(env or {}, user=user), user=user, cwd=cwd)
    exchange = _Exchange(process, stdin, limit)
    try:
        exchange.finish(timeout)
    except subprocess.TimeoutExpired:
        exchange.cut_off()
        problem = f"{os.path.basename(argv[0])} did not finish within {timeout:g} s and was ended"
        raise CommandError(argv, None, os.fsdecode(bytes(exchange.out)), _text(exchange.err), problem=problem) from None
    except _TooMuchError:
        exchange.cut_off()
        problem = f"{os.path.basename(argv[0])} wrote more than {limit} bytes, all that is taken of it, and was ended"
        raise OutputError(argv, None, "", _text(exchange.err), problem=problem) from None
    except BaseException:
        exchange.cut_off()
        raise
    finally:
        exchange.close()
    out, err = bytes(exchange.out), _text(exchange.err)
    if check and process.returncode != 0:
        raise CommandError(argv, process.returncode, os.fsdecode(out), err)
    return CompletedBytes(tuple(argv), process.returncode, out, err)


def find_program(name: str, *, directories: Sequence[str] = ()) -> str | None:
    """The path of the program called name: first in directories, then in PATH and the system's own directories."""
    return shutil.which(name, path=os.pathsep.join([*directories, _search_path()]))


def environment(env: Mapping[str, str], *, user: str | None = None) -> dict[str, str]:
    """The environment programs get: ours without Borg's secrets, a C locale, user's HOME and names, and then env."""
    inherited = {name: value for name, value in os.environ.items() if name not in SECRETS}
    inherited.update(PATH=_search_path(), LC_ALL="C")
    if user is not None:
        entry = _entry(user)
        inherited.update(HOME=entry.pw_dir, USER=entry.pw_name, LOGNAME=entry.pw_name)
    inherited.update(env)
    return inherited


def identity(user: str | None) -> dict[str, Any]:
    """The arguments that make subprocess.Popen run as user (none where that is who we are).

    Raises RecoveryError where user does not exist or only root could become it.
    """
    if user is None:
        return {}
    entry = _entry(user)
    if entry.pw_uid == os.geteuid():
        return {}
    if os.geteuid() != 0:
        raise RecoveryError(f"Only root can run a program as user {user}: use become, or leave the user out.")
    return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": os.getgrouplist(user, entry.pw_gid)}


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
    argv: Sequence[str], *, env: Mapping[str, str], user: str | None, cwd: str | None
) -> subprocess.Popen[bytes]:
    name = os.path.basename(argv[0])
    try:
        # A session of its own makes the process group that a time-out ends as a whole, and takes the controlling
        # terminal away: a tool that wants to ask a question fails instead of waiting for an answer.
        return subprocess.Popen(  # pylint: disable=ansible-bad-function  # run_command has no time-out
            list(argv),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=dict(env),
            cwd=cwd,
            start_new_session=True,
            **identity(user),
        )
    except FileNotFoundError as error:
        if cwd is not None and error.filename == cwd:
            raise CommandError(argv, 126, problem=f"{name} cannot start in {cwd}, which is not there") from error
        raise CommandError(argv, 127, problem=f"The program {argv[0]} was not found: install it") from error
    except OSError as error:
        raise CommandError(argv, 126, problem=f"{argv[0]} cannot be run ({error.strerror})") from error


class _TooMuchError(Exception):
    pass


class _Exchange:
    """What goes into a program and comes out of it; Popen.communicate takes as much as there is."""

    def __init__(self, process: subprocess.Popen[bytes], stdin: bytes, limit: int) -> None:
        self.out, self.err = bytearray(), bytearray()
        self._process, self._limit = process, limit
        self._ahead = memoryview(stdin)
        self._selector = selectors.DefaultSelector()
        if process.stdin is None or process.stdout is None or process.stderr is None:
            raise AssertionError("all are pipes")
        self._pipes = (process.stdin, process.stdout, process.stderr)
        os.set_blocking(process.stdin.fileno(), False)
        self._selector.register(process.stdin, selectors.EVENT_WRITE, self._write)
        self._selector.register(process.stdout, selectors.EVENT_READ, self._read_output)
        self._selector.register(process.stderr, selectors.EVENT_READ, self._read_errors)

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
        _end(self._process)
        errors = self._pipes[-1]
        if not errors.closed:
            os.set_blocking(errors.fileno(), False)
            with contextlib.suppress(BlockingIOError):  # somebody else has it open, and may go on writing
                for _piece in range(ERRORS_KEPT // PIECE):
                    if self._read_errors(errors.fileno()):
                        break

    def close(self) -> None:
        """Let go of the pipes."""
        self._selector.close()
        for pipe in self._pipes:
            with contextlib.suppress(OSError):
                pipe.close()

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


def _search_path() -> str:
    directories = [entry for entry in os.environ.get("PATH", "").split(os.pathsep) if entry]
    return os.pathsep.join(directories + [entry for entry in SYSTEM_DIRECTORIES if entry not in directories])


def _entry(user: str) -> pwd.struct_passwd:
    try:
        return pwd.getpwnam(user)
    except KeyError:
        raise RecoveryError(f"There is no user {user} on this host: name one that exists.") from None


def _text(data: bytes | bytearray) -> str:
    return data.decode("utf-8", "replace")
