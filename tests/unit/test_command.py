# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Running programs to their end."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._errors import RecoveryError
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._host.command import (
    CommandError,
    OutputError,
    environment,
    find_program,
    run,
    run_bytes,
)
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._host.processes import identify

from tests.support.clock import wait_until

if TYPE_CHECKING:
    from pathlib import Path

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")


def shell(script: str) -> list[str]:
    return ["sh", "-c", script]


def test_output_input_and_environment() -> None:
    done = run(shell("cat; echo $LC_ALL $WHO; echo oops >&2"), timeout=10, env={"WHO": "me"}, stdin=b"given ")
    assert (done.stdout, done.stderr, done.returncode) == ("given C me\n", "oops\n", 0)


def test_bytes_and_undecodable_names_survive() -> None:
    assert run_bytes(["printf", r"\377\000"], timeout=10).stdout == b"\xff\0"
    assert os.fsencode(run(["printf", r"\377"], timeout=10).stdout) == b"\xff"


def test_a_failure_says_the_last_line_and_carries_the_rest() -> None:
    with pytest.raises(CommandError) as caught:
        run(shell("echo first >&2; echo the reason >&2; exit 3"), timeout=10)
    assert str(caught.value) == "sh failed with exit status 3: the reason"
    assert caught.value.returncode == 3
    assert caught.value.details["rc"] == 3
    assert caught.value.details["command"][0] == "sh"
    assert "first" in caught.value.details["stderr"]


def test_a_failure_may_be_wanted() -> None:
    assert run(shell("exit 3"), timeout=10, check=False).returncode == 3


def test_a_signal_is_named() -> None:
    with pytest.raises(CommandError, match=r"^sh was ended by SIGTERM\.$"):
        run(shell("kill $$"), timeout=10)


@pytest.mark.parametrize(("program", "code"), [("no-such-program", 127), ("/etc/passwd", 126), ("/proc", 126)])
def test_a_program_that_cannot_be_run(program: str, code: int) -> None:
    with pytest.raises(CommandError, match=program) as caught:
        run([program], timeout=10)
    assert caught.value.returncode == code


def test_a_time_out_ends_the_children_too_and_keeps_what_was_said(tmp_path: Path) -> None:
    begun = time.monotonic()
    with pytest.raises(CommandError, match=r"sh did not finish within 3 s and was ended: half-way") as caught:
        run(shell(f"echo half-way >&2; sleep 600 & echo $! > {tmp_path}/pid; wait"), timeout=3)
    assert time.monotonic() - begun < 300
    assert caught.value.returncode is None
    child = int((tmp_path / "pid").read_text())
    wait_until(lambda: identify(child) is None)  # its entry stays until its new parent has looked


def test_a_question_is_never_waited_for() -> None:
    asking = "import sys\ntry: open('/dev/tty')\nexcept OSError: print('no terminal')"
    assert run([sys.executable, "-c", asking], timeout=10).stdout == "no terminal\n"


def test_the_environment_has_no_secrets_and_finds_system_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BORG_PASSPHRASE", "canary")
    monkeypatch.setenv("PATH", "/nowhere")
    seen = environment({"KEY": "value"})
    assert "canary" not in seen.values()
    assert seen["KEY"] == "value"
    assert seen["PATH"].startswith("/nowhere:")
    assert find_program("mount")
    assert environment({"BORG_PASSPHRASE": "given"})["BORG_PASSPHRASE"] == "given"


def test_of_borgs_variables_only_those_that_are_meant_are_inherited(monkeypatch: pytest.MonkeyPatch) -> None:
    """The others name another repository, run code (a configuration of logging does) or answer dangerous questions."""
    for name in [name for name in os.environ if name.startswith("BORG_")]:
        monkeypatch.delenv(name)
    meant = ("BORG_BASE_DIR", "BORG_RSH", "BORG_KEY_FILE", "BORG_RELOCATED_REPO_ACCESS_IS_OK", "BORG_HOST_ID")
    others = ("BORG_REPO", "BORG_LOGGING_CONF", "BORG_CHECK_I_KNOW_WHAT_I_AM_DOING", "BORG_PASSPHRASE_FD", "BORG_NEW")
    for name in (*meant, *others):
        monkeypatch.setenv(name, "x")
    assert {name for name in environment({}) if name.startswith("BORG_")} == set(meant)
    assert environment({"BORG_REPO": "given"})["BORG_REPO"] == "given"


def test_what_a_caller_sets_for_other_programs_stays_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    foreign = (
        *("PYTHONPATH", "PYTHONHOME", "PYTHONSTARTUP", "VIRTUAL_ENV", "CONDA_PREFIX", "LD_LIBRARY_PATH", "LD_PRELOAD"),
        *("LD_AUDIT", "PERL5LIB", "GCONV_PATH", "LOCPATH", "LANGUAGE", "LANG", "LC_MESSAGES", "BASH_ENV", "ENV"),
        *("BASH_FUNC_borg%%", "PGHOSTADDR", "PGSERVICE", "PGOPTIONS", "MYSQL_PWD", "MYSQL_HOST", "GLIBC_TUNABLES"),
    )
    kept = ("HOME", "SSH_AUTH_SOCK", "XDG_CACHE_HOME", "https_proxy", "VAULT_TOKEN", "GNUPGHOME", "TMPDIR", "TZ")
    for name in (*foreign, *kept):
        monkeypatch.setenv(name, "x")
    seen = environment({})
    assert [name for name in foreign if name in seen] == []
    assert [name for name in kept if name not in seen] == []
    assert seen["LC_ALL"] == "C"
    assert environment({"PYTHONPATH": "meant"})["PYTHONPATH"] == "meant"


def test_finding_a_program_prefers_the_given_directories(tmp_path: Path) -> None:
    own = tmp_path / "ls"
    own.write_text("#!/bin/sh\n")
    own.chmod(0o755)
    assert find_program("ls", directories=[str(tmp_path)]) == str(own)
    assert find_program("no-such-program") is None


@needs_root
def test_running_as_another_user() -> None:
    done = run(shell("id -un; id -gn; echo $HOME $USER"), timeout=10, user="nobody", cwd="/")
    assert done.stdout.split()[0] == "nobody"
    assert done.stdout.split()[-1] == "nobody"


def test_an_unknown_user() -> None:
    with pytest.raises(RecoveryError, match="There is no user no-such-user"):
        run(["true"], timeout=10, user="no-such-user")


def test_no_more_is_taken_than_is_allowed() -> None:
    assert run_bytes(["head", "-c", "1000", "/dev/zero"], timeout=10, limit=1000).stdout == bytes(1000)
    begun = time.monotonic()
    with pytest.raises(
        OutputError, match=r"^sh wrote more than 1000 bytes, all that is taken of it, and was ended: why"
    ):
        run_bytes(shell("echo why >&2; cat /dev/zero"), timeout=600, limit=1000)
    assert time.monotonic() - begun < 300


def test_of_endless_complaints_the_last_are_kept() -> None:
    done = run(shell("head -c 9000000 /dev/zero >&2; echo the last >&2"), timeout=60)
    assert done.stderr.endswith("the last\n")
    assert len(done.stderr) == 1 << 20


def test_much_goes_in_and_out_at_once() -> None:
    data = os.urandom(1 << 20) * 20
    assert run_bytes(["cat"], timeout=60, stdin=data).stdout == data


def test_a_program_need_not_take_what_it_is_given() -> None:
    assert run_bytes(shell("exec <&-; sleep 0.2; echo done"), timeout=10, stdin=bytes(1 << 20)).stdout == b"done\n"


def test_an_interrupt_ends_the_program_too(tmp_path: Path) -> None:
    def interrupt(_signal: int, _frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.5)
        with pytest.raises(KeyboardInterrupt):
            run(shell(f"echo $$ > {tmp_path}/pid; exec sleep 60"), timeout=60)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert identify(int((tmp_path / "pid").read_text())) is None


def test_a_caller_that_is_killed_takes_the_program_with_it(tmp_path: Path) -> None:
    """A Borg in a session of its own would else wait for its repository for ever."""
    told = tmp_path / "pid"
    module = "ansible_collections.phpborg.instant_recovery.plugins.module_utils._host.command"
    script = f"import sys; sys.path[:0] = {sys.path!r}\nfrom {module} import run\n"
    script += f"run(['sh', '-c', 'echo $$ > {told}; exec sleep 60'], timeout=60)"
    with subprocess.Popen([sys.executable, "-c", script]) as caller:
        deadline = time.monotonic() + 30
        while not (told.exists() and told.read_text().strip()) and time.monotonic() < deadline:
            time.sleep(0.02)
        caller.kill()
    pid = int(told.read_text())
    while identify(pid) is not None and time.monotonic() < deadline:
        time.sleep(0.02)
    assert identify(pid) is None


def test_nothing_stays_open() -> None:
    before = len(os.listdir("/proc/self/fd"))
    for script in ("cat", "exit 3", "cat /dev/zero", "sleep 9"):
        with contextlib.suppress(CommandError):
            run(shell(script), timeout=0.5, limit=1000)
    assert len(os.listdir("/proc/self/fd")) == before
