# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Finding the programs of MariaDB or MySQL that can open data of one version, and naming the package that brings them.

A killed server's redo log can be replayed by its own series alone, such as 10.11. MariaDB from 10.8 on replays that of
an older one from 10.8 on as well. An older program opens nothing of a newer one.
"""

from __future__ import annotations

import glob
import os
import re

from .._engine.interface import Programs
from .._host.command import CommandError, find_program, run
from .._host.distribution import family
from .option_file import MysqlError
from .redo import product_of

__all__ = ["NAMES", "client_of", "fits", "installed", "package_name", "require", "search", "series_of", "tool_of"]

NAMES = {"mariadb": "MariaDB", "mysql": "MySQL"}
SERVERS = {"mariadb": ("mariadbd", "mysqld"), "mysql": ("mysqld",)}
CLIENTS = {"mariadb": ("mariadb", "mysql"), "mysql": ("mysql",)}
# Where distributions and the products' own packages put the server: Debian, RPM packages, SUSE, tar files.
DIRECTORIES = ("/usr/sbin", "/usr/libexec", "/usr/bin", "/usr/local/mysql/bin", "/usr/local/sbin", "/opt/*/bin")
PRINTED = re.compile(r"\bVer (\d{1,3}\.\d{1,3}\.\d{1,3})(\S*)")
WRITTEN = re.compile(r"\d{1,3}\.\d{1,3}(?:\.\d{1,3})?")
QUICK = 10  # seconds; printing a version takes milliseconds
ONE_FORMAT = (10, 8)  # of MariaDB's redo log since


def require(version: str, *, bindir: str | None = None) -> Programs:
    """Programs that can open data of that version. Raises MysqlError that says which package to install."""
    found = search(version, bindir=bindir)
    if found is not None:
        return found
    product, series = product_of(version), ".".join(map(str, series_of(version)))
    others = ", ".join(f"{other.version} in {other.bindir}" for other in installed())
    raise MysqlError(
        f"The programs of {NAMES[product]} {series} are not installed on this host"
        f" ({f'found: {others}' if others else 'none of any version was found'}), and no others can open this data"
        f" directory: install the package {package_name(version)} (the start playbook does it with"
        " install_packages=true), or name their directory with bindir.",
        package=package_name(version),
    )


def search(version: str, *, bindir: str | None = None) -> Programs | None:
    """Programs that can open data of that version, its own series first: in bindir, else where they usually are.

    Returns None where there are none. Raises MysqlError when bindir is given and holds something else.
    """
    if bindir is not None:
        return _explicit(version, bindir)
    known = [programs for programs in installed() if fits(version, programs.version)]
    return min(known, key=lambda programs: series_of(programs.version), default=None)


def fits(version: str, programs: str) -> bool:
    """Whether programs of that version open data of the other, also of a server that was killed."""
    data, ours = series_of(version), series_of(programs)
    if product_of(version) != product_of(programs):
        return False
    return data == ours or (product_of(version) == "mariadb" and ONE_FORMAT <= data < ours)


def series_of(version: str) -> tuple[int, int]:
    """The first two numbers of a version. Raises MysqlError for something else."""
    if not WRITTEN.match(version):
        raise MysqlError(f"version {version} is not one of MariaDB or MySQL; write for example 10.11.19.")
    first, second = version.split(".")[:2]
    return int(first), int(re.sub(r"\D.*", "", second))


def installed() -> list[Programs]:
    """Everything that can be found, one entry for each directory, oldest first."""
    found: dict[str, Programs] = {}
    for directory in _directories():
        programs = _examine(directory)
        if programs is not None:
            found.setdefault(os.path.realpath(_server(programs)), programs)
    return sorted(found.values(), key=lambda programs: series_of(programs.version))


def client_of(programs: Programs) -> str | None:
    """The client program that came with a server, which is in a directory of its own in most packages."""
    return tool_of(programs, *CLIENTS[product_of(programs.version)])


def tool_of(programs: Programs, *names: str) -> str | None:
    """The first of these programs, from where the server is or beside that."""
    beside = os.path.join(os.path.dirname(programs.bindir), "bin")
    found = (find_program(name, directories=(programs.bindir, beside)) for name in names)
    return next(filter(None, found), None)


def package_name(version: str, *, os_release: str | None = None) -> str:
    """The name of the server's package on this distribution; os_release is the text of /etc/os-release."""
    known = family(os_release)
    name = product_of(version)
    if known & {"debian", "ubuntu"}:
        return f"{name}-server-core"  # without a service
    return name if known & {"alpine", "suse", "opensuse"} else f"{name}-server"


def _explicit(version: str, bindir: str) -> Programs:
    programs = _examine(bindir)
    if programs is None:
        raise MysqlError(
            f"bindir {bindir} has no program {' or '.join(SERVERS[product_of(version)])} that runs: name the directory "
            "of the server's program, or leave bindir out to have it found."
        )
    if not fits(version, programs.version):
        raise MysqlError(
            f"bindir {bindir} holds {NAMES[product_of(programs.version)]} {programs.version}, which cannot open data "
            f"of {NAMES[product_of(version)]} {version}: name the directory of that version, or leave bindir out."
        )
    return programs


def _server(programs: Programs) -> str:
    return next(
        path for name in SERVERS[product_of(programs.version)] if os.access(path := programs.program(name), os.X_OK)
    )


def _directories() -> list[str]:
    found = [path for pattern in DIRECTORIES for path in sorted(glob.glob(pattern))]
    for name in ("mariadbd", "mysqld"):
        path = find_program(name)
        if path is not None:
            found.append(os.path.dirname(path))
    return list(dict.fromkeys(found))


def _examine(directory: str) -> Programs | None:
    for name in ("mariadbd", "mysqld"):
        path = os.path.join(directory, name)
        if os.access(path, os.X_OK) and not os.path.isdir(path):
            try:
                printed = run([path, "--no-defaults", "--version"], timeout=QUICK).stdout
            except CommandError:
                continue
            version = PRINTED.search(printed)
            if version is not None and (product_of(version[1]) == "mariadb") == ("MariaDB" in printed):
                return Programs(series_of(version[1])[0], version[1], directory)
    return None
