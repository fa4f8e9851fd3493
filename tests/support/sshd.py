# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""An sshd of the test's own: loopback only, own host key, own user key, nothing of /etc/ssh is read or changed."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from ansible_collections.phpborg.instant_recovery.plugins.module_utils._host.processes import descendants, identify

from tests.support.host import free_port

__all__ = ["Sshd"]


@dataclass(kw_only=True)
class Sshd:
    """An sshd on a free port of 127.0.0.1 that lets the given users in by a key made here. A context manager.

    `directory` must be traversable by these users (sshd reads the authorised keys as the user).
    """

    directory: Path
    users: list[str]
    port: int = field(init=False, default=0)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def key(self) -> Path:
        """The private key that all of `users` accept."""
        return self.directory / "user_key"

    def variables(self, user: str) -> dict[str, Any]:
        """Inventory variables of a host reached through this sshd as `user`."""
        return {
            "ansible_connection": "ssh",
            "ansible_host": "127.0.0.1",
            "ansible_port": self.port,
            "ansible_user": user,
            "ansible_ssh_private_key_file": str(self.key),
            "ansible_ssh_common_args": f"-o UserKnownHostsFile={self.directory}/known_hosts"
            " -o StrictHostKeyChecking=yes -o IdentitiesOnly=yes",
            "ansible_python_interpreter": "/usr/bin/python3",
        }

    def start(self) -> None:
        """Make keys and configuration, start, wait until connections are accepted."""
        self.directory.mkdir(mode=0o755, parents=True, exist_ok=True)
        # sshd insists on this directory; the service's unit file makes it, and no service runs in a container.
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
        for name in ("host_key", "user_key"):
            _run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self.directory / name))
        self.port = free_port()
        (self.directory / "config").write_text(self._configuration())
        host_key = (self.directory / "host_key.pub").read_text()
        (self.directory / "known_hosts").write_text(f"[127.0.0.1]:{self.port} {host_key}")
        self._authorize()
        program = shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin")
        if program is None:
            raise RuntimeError("the tests of remote sessions need sshd: apt-get install openssh-server")
        self._process = subprocess.Popen(
            [program, "-D", "-e", "-f", str(self.directory / "config")],
            stdin=subprocess.DEVNULL,
            stderr=(self.directory / "log").open("wb"),
        )
        self._await()

    def drop_connections(self) -> None:
        """Kill what serves the connections in progress; new ones are accepted."""
        listener = identify(self._process.pid)
        for process in descendants(listener) if listener else ():
            if Path(f"/proc/{process.pid}/comm").read_text().startswith("sshd"):
                os.kill(process.pid, signal.SIGKILL)

    def stop(self) -> None:
        """End the listener; connections in progress end with their clients."""
        self._process.terminate()
        self._process.wait(timeout=30)

    def _configuration(self) -> str:
        return (
            f"ListenAddress 127.0.0.1:{self.port}\n"
            f"HostKey {self.directory}/host_key\n"
            f"AuthorizedKeysFile {self.directory}/keys/%u\n"
            f"AllowUsers {' '.join(self.users)}\n"
            "PidFile none\nUsePAM no\nPasswordAuthentication no\nStrictModes no\nAcceptEnv LANG\n"
            "Subsystem sftp internal-sftp\n"
        )

    def _authorize(self) -> None:
        keys = self.directory / "keys"
        keys.mkdir(mode=0o755, exist_ok=True)
        for user in self.users:
            shutil.copy(self.directory / "user_key.pub", keys / user)
            os.chown(keys / user, pwd.getpwnam(user).pw_uid, -1)

    def _await(self) -> None:
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                raise RuntimeError(f"sshd ended: {(self.directory / 'log').read_text()}")
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.02)
        raise TimeoutError("sshd does not listen after 30 s")


def _run(*argv: str) -> None:
    subprocess.run(argv, check=True, capture_output=True, timeout=60)
