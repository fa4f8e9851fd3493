# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Servers of other Debian suites, unpacked beside the host's packages and run by their suite's own loader.

Nothing is installed: apt gets a state directory of its own, in which no package is known.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from tests.support.server_versions import UnobtainableError

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["unpacked"]

KEYS = "/usr/share/keyrings/debian-archive-keyring.gpg"
MERGED = ("bin", "lib", "lib64", "sbin")
LIBRARIES = "usr/lib/x86_64-linux-gnu"
PROGRAMS = ("mysqld", "mariadbd", "mysql", "mariadb", "mysqlbinlog", "mariadb-binlog")
TIMEOUT = 900


def unpacked(suite: str, packages: Sequence[str], *, cache: Path, directory: Path) -> str:
    """Directory of programs of these packages of a suite, below directory. Downloads are kept in cache.

    Raises UnobtainableError.
    """
    state, root = cache / suite, directory / suite
    if not any((state / "cache" / "archives").glob("*.deb")):
        _download(suite, packages, state)
    for name in MERGED:  # packages may have their files in either, and all of them are looked for below usr
        (root / "usr" / name).mkdir(parents=True, exist_ok=True)
        (root / name).symlink_to(f"usr/{name}")
    for package in sorted((state / "cache" / "archives").glob("*.deb")):
        content = subprocess.Popen(["dpkg-deb", "--fsys-tarfile", str(package)], stdout=subprocess.PIPE)
        subprocess.run(["tar", "-x", "-C", str(root), "--keep-directory-symlink"], stdin=content.stdout, check=True)
        if content.wait():
            raise UnobtainableError(f"{package.name} cannot be unpacked")
    return str(_wrappers(root))


def _download(suite: str, packages: Sequence[str], state: Path) -> None:
    for part in ("lists/partial", "cache/archives/partial", "etc"):
        (state / part).mkdir(parents=True, exist_ok=True)
    (state / "status").touch()
    (state / "etc" / "sources.list").write_text(f"deb [signed-by={KEYS}] {_mirror()} {suite} main\n")
    options = {
        "Dir::State": state,
        "Dir::State::status": state / "status",
        "Dir::State::lists": state / "lists",
        "Dir::Cache": state / "cache",
        "Dir::Etc": state / "etc",
        "Dir::Etc::sourcelist": state / "etc" / "sources.list",
        "Dir::Etc::sourceparts": "/nonexistent",
        # A mirror may be behind sid; what it has is signed all the same.
        "Acquire::Check-Valid-Until": "false",
        "APT::Sandbox::User": "root",
    }
    apt = ["apt-get", "--quiet=2", *(word for name, value in options.items() for word in ("-o", f"{name}={value}"))]
    wanted = ["install", "--yes", "--no-install-recommends", "--download-only", *packages]
    for arguments in (["update"], wanted):
        done = subprocess.run([*apt, *arguments], capture_output=True, text=True, timeout=TIMEOUT, check=False)
        if done.returncode:
            shutil.rmtree(state)
            raise UnobtainableError(f"apt-get {arguments[0]} for {suite} failed: {done.stderr.strip()[-300:]}")


def _mirror() -> str:
    """Where this machine's apt has Debian from."""
    argv = ["apt-get", "indextargets", "--format", "$(REPO_URI)", "Label: Debian", "Origin: Debian"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=TIMEOUT, check=False)
    if not done.stdout.strip():
        raise UnobtainableError("apt of this machine knows no mirror of Debian")
    return done.stdout.split()[0]


def _wrappers(root: Path) -> Path:
    """A directory of scripts that run the programs by the suite's loader, beside the suite's own directories."""
    directory = root / "usr" / "own"
    directory.mkdir(exist_ok=True)
    for name in PROGRAMS:
        program = root / "usr" / "bin" / name
        server = root / "usr" / "sbin" / name
        if server.exists() and not server.is_symlink():
            shutil.copy(server, program)  # a sandbox shows what is in bin
        if program.exists():
            loader = f"{root}/{LIBRARIES}/ld-linux-x86-64.so.2 --library-path {root}/{LIBRARIES}"
            (directory / name).write_text(f'#!/bin/sh\nexec {loader} {program.resolve()} "$@"\n')
            (directory / name).chmod(0o755)
    return directory
