# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""How a server has to be built to open a copy: what is compiled into it, and stands in the copy's pg_control."""

from __future__ import annotations

import mmap
from typing import TYPE_CHECKING

from .._host.command import CommandError, run
from .cluster import PostgresError
from .control import STANDARD_BUILD

if TYPE_CHECKING:
    from .._engine.interface import Programs
    from .cluster import DataDirectory

__all__ = ["check_build"]

QUICK = 10  # seconds; a server prints a setting within milliseconds
# By the names of Build: the server's setting that shows the size, what has to be added to it, and how to say it.
SIZES = {
    "block_size": ("block_size", 0, "blocks of {:g} KB", 1024),
    "segment_blocks": ("segment_size", 0, "files of {:g} blocks", 1),
    "wal_block_size": ("wal_block_size", 0, "WAL blocks of {:g} KB", 1024),
    "name_size": ("max_identifier_length", 1, "names of {:g} bytes (NAMEDATALEN)", 1),
    "index_keys": ("max_index_keys", 0, "indexes of {:g} columns (INDEX_MAX_KEYS)", 1),
}
# What no setting shows.
FIXED = {
    "alignment": "values aligned to {:d} bytes (MAXALIGN)",
    "passes_8_bytes": "numbers of 8 bytes passed as such: {:d} (USE_FLOAT8_BYVAL)",
    "toast_size": "TOAST chunks of {:d} bytes",
    "large_object_size": "large objects in pieces of {:d} bytes (LOBLKSIZE)",
}


def check_build(data: DataDirectory, programs: Programs, *, is_named: bool) -> None:
    """Raise PostgresError where the server is built for other sizes than the copy has.

    is_named: whether a user has chosen the programs. Those of distributions have the sizes that nearly every copy has,
    too, and are not asked then.
    """
    if data.control.major is None and not _knows_catalogs(data, programs):
        raise PostgresError(
            f"The copy is of a variant of PostgreSQL {data.major}, or of a version before its release (catalog version "
            f"{data.control.catalog_version}), and PostgreSQL {programs.version} in {programs.bindir} cannot read it: "
            "name the directory of that server's programs (bindir)."
        )
    build = data.control.build
    if build == STANDARD_BUILD and not is_named:
        return
    for name, (setting, more, words, unit) in SIZES.items():
        wanted, built = getattr(build, name), _setting(programs, setting)
        if built is not None and built + more != wanted:
            needed, has = words.format(wanted / unit), words.format((built + more) / unit)
            raise PostgresError(
                f"The copy needs a server built with {needed}, and PostgreSQL {programs.version} in {programs.bindir} "
                f"is built with {has}: name the directory of the programs of such a build (bindir)."
            )
    for name, words in FIXED.items():
        wanted, usual = getattr(build, name), getattr(STANDARD_BUILD, name)
        if wanted != usual and not is_named:  # no server tells its own
            raise PostgresError(
                f"The copy needs a server built with {words.format(wanted)}, as on another kind of machine, instead of "
                f"{usual:d}: start the session on a host of the kind that the copy is from, or name the directory of "
                "the programs of such a build (bindir)."
            )


def _setting(programs: Programs, name: str) -> int | None:
    """One of the server's fixed settings; None where it does not tell."""
    argv = [programs.program("postgres"), "-C", name, "-D", "/", "-c", "config_file=/dev/null"]
    try:
        return int(run(argv, timeout=QUICK).stdout)
    except (CommandError, ValueError):
        return None


def _knows_catalogs(data: DataDirectory, programs: Programs) -> bool:
    """Whether the server's program has the name that it gives to directories of tablespaces with such catalogs."""
    name = f"PG_{data.major}_{data.control.catalog_version}".encode()
    try:
        with open(programs.program("postgres"), "rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ).find(name) >= 0
    except (OSError, ValueError):
        return True
