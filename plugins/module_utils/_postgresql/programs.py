# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Finding the PostgreSQL programs of one major version, and naming the package that brings them.

A data directory can be opened by its own major version alone, and distributions keep several versions side by side.
"""

from __future__ import annotations

import glob
import os
import re

from .._engine.interface import Programs
from .._host.command import CommandError, find_program, run
from .._host.distribution import family
from .cluster import PostgresError

__all__ = ["find_programs", "installed", "library_directory", "package_name", "parse_version", "require"]

# Where distributions put the programs of major version N (a glob: also to list what is installed).
LAYOUTS = (
    "/usr/lib/postgresql/{major}/bin",  # Debian, Ubuntu, PGDG's Debian packages
    "/usr/pgsql-{major}/bin",  # PGDG's RPM packages
    "/usr/lib/postgresql{major}/bin",  # SUSE
    "/usr/libexec/postgresql{major}",  # Alpine
)
# What the server needs of its package beside itself; psql checks that the session can be entered.
PROGRAMS = ("postgres", "psql")
QUICK = 10  # seconds; printing a version takes milliseconds


def require(major: int, *, bindir: str | None = None) -> Programs:
    """The programs of that major version. Raises PostgresError that says which package to install."""
    found = find_programs(major, bindir=bindir)
    if found is not None:
        return found
    others = ", ".join(f"{other.version} in {other.bindir}" for other in installed())
    raise PostgresError(
        f"The programs of PostgreSQL {major} are not installed on this host"
        f" ({f'found: {others}' if others else 'none of any version was found'}), and only they can open this data"
        f" directory: install the package {package_name(major)} (the start playbook does it with"
        " install_packages=true), or name their directory with bindir.",
        package=package_name(major),
    )


def find_programs(major: int, *, bindir: str | None = None) -> Programs | None:
    """The programs of that major version: in bindir, else where distributions keep them, else in PATH.

    Returns None when there are none. Raises PostgresError when bindir is given and holds something else.
    """
    if bindir is not None:
        return _explicit(major, bindir)
    for directory in _directories(str(major)):
        programs = _examine(directory)
        if programs is not None and programs.major == major:
            return programs
    return None


def installed() -> list[Programs]:
    """Everything that can be found, one entry for each directory, oldest major version first."""
    found: dict[str, Programs] = {}
    for directory in _directories("*"):
        programs = _examine(directory)
        if programs is not None:
            found.setdefault(os.path.realpath(programs.bindir), programs)
    return sorted(found.values(), key=lambda programs: programs.major)


def package_name(major: int, *, os_release: str | None = None) -> str:
    """The name of the server's package on this distribution; os_release is the text of /etc/os-release."""
    known = family(os_release)
    if known & {"rhel", "fedora", "centos", "suse", "opensuse"}:
        return f"postgresql{major}-server"
    if "alpine" in known:
        return f"postgresql{major}"
    return f"postgresql-{major}"


def library_directory(bindir: str) -> str | None:
    """Where this installation keeps its loadable libraries ($libdir), or None when that cannot be told."""
    above = os.path.dirname(os.path.realpath(bindir))
    # pg_config would tell, but is often in a development package. plpgsql is part of every server.
    places = (f"{above}/lib", f"{above}/lib/postgresql", f"{above}/lib64/pgsql", f"{above}/lib/pgsql")
    return next((place for place in places if os.path.exists(f"{place}/plpgsql.so")), None)


def parse_version(text: str) -> tuple[int, str] | None:
    """Major and full version from what `postgres --version` prints, or None."""
    match = re.match(r"postgres \([^)]*\) ((\d+)\S*)", text)
    return (int(match.group(2)), match.group(1)) if match else None


def _explicit(major: int, bindir: str) -> Programs:
    missing = [name for name in PROGRAMS if not os.access(os.path.join(bindir, name), os.X_OK)]
    if missing:
        raise PostgresError(
            f"bindir {bindir} has no program {' and no program '.join(missing)}: "
            "name a directory that holds PostgreSQL's programs, or leave bindir out to have it found."
        )
    programs = _examine(bindir)
    if programs is None or programs.major != major:
        holds = "something else" if programs is None else f"PostgreSQL {programs.version}"
        raise PostgresError(
            f"bindir {bindir} holds {holds}, and PostgreSQL {major} is needed: "
            f"name the directory of version {major}, or leave bindir out to have it found."
        )
    return programs


def _directories(major: str) -> list[str]:
    """Candidates in the order of preference; `*` stands for every version."""
    found = [path for layout in LAYOUTS for path in sorted(glob.glob(layout.format(major=major)))]
    in_path = find_program("postgres", directories=("/usr/local/pgsql/bin",))
    if in_path is not None:
        # A link in PATH leads to the directory where the other programs and the libraries are.
        found.append(os.path.dirname(os.path.realpath(in_path)))
    return list(dict.fromkeys(found))


def _examine(directory: str) -> Programs | None:
    if not all(os.access(os.path.join(directory, name), os.X_OK) for name in PROGRAMS):
        return None
    try:
        printed = run([os.path.join(directory, "postgres"), "--version"], timeout=QUICK).stdout
    except CommandError:
        return None
    version = parse_version(printed)
    return None if version is None else Programs(version[0], version[1], directory)
