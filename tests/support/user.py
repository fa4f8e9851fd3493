# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""An ordinary user made for a test, and removed after it. Needs root."""

from __future__ import annotations

import contextlib
import os
import pwd
import signal
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

from tests.support.host import detach_mounts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["ordinary_user", "passwordless_sudo"]

LOCKED, BUSY, WARNED = 1, 8, 12  # exit statuses of useradd and userdel
PATIENCE = 300.0  # seconds that others may be at work on /etc/passwd


@contextlib.contextmanager
def ordinary_user(purpose: str) -> Iterator[pwd.struct_passwd]:
    """Make a user with a home directory; at the end its processes, home and account are removed.

    The name, PURPOSE-PID, is this process's own: tests in others do not wait for it.
    """
    name = f"{purpose}-{os.getpid()}"
    # The password "*" matches nothing and, unlike useradd's "!", lets sshd accept keys without PAM.
    _run("useradd", "--create-home", "--password", "*", "--shell", "/bin/bash", name)
    user = pwd.getpwnam(name)
    try:
        yield user
    finally:
        _kill_processes(user.pw_uid)
        mounted = detach_mounts(user.pw_dir)  # userdel would only warn that it cannot remove the home directory
        _run("userdel", "--remove", name, before=lambda: _kill_processes(user.pw_uid))
        assert mounted == []
        assert not Path(user.pw_dir).exists()


@contextlib.contextmanager
def passwordless_sudo(name: str) -> Iterator[None]:
    """Let the user `name` become root by sudo without a password, for as long as the context lasts."""
    rule = Path(f"/etc/sudoers.d/instant-recovery-test-{name}")
    rule.touch(mode=0o440)
    try:
        rule.write_text(f"{name} ALL=(ALL) NOPASSWD: ALL\n")
        yield
    finally:
        rule.unlink()


def _kill_processes(uid: int) -> None:
    for directory in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if directory.name.isdigit() and directory.stat().st_uid == uid:
                os.kill(int(directory.name), signal.SIGKILL)


def _run(*argv: str, before: Callable[[], None] = lambda: None) -> None:
    deadline = time.monotonic() + PATIENCE
    while True:
        before()
        done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
        # userdel warns about a mail spool that never was, useradd about a skeleton: the account is what counts.
        if done.returncode in (0, WARNED):
            return
        # A process may have begun another one just before it was killed.
        if done.returncode not in (LOCKED, BUSY) or time.monotonic() > deadline:
            raise RuntimeError(f"{argv[0]} failed: {done.stderr.strip()}")
        time.sleep(0.2)
