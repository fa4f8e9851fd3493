# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""How a server has to be built to open a copy: sizes that are compiled into it, and stand in the copy's pg_control."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .._host.command import CommandError, run
from .cluster import PostgresError
from .control import STANDARD_BUILD

if TYPE_CHECKING:
    from .cluster import DataDirectory
    from .programs import Binaries

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


def check_build(data: DataDirectory, binaries: Binaries, *, is_named: bool) -> None:
    """Raise PostgresError where the server is built for other sizes than the copy has.

    is_named: whether a user has chosen the programs. Those of distributions have the sizes that nearly every copy has,
    too, and are not asked then.
    """
    build = data.control.build
    if build == STANDARD_BUILD and not is_named:
        return
    for name, (setting, more, words, unit) in SIZES.items():
        wanted, built = getattr(build, name), _setting(binaries, setting)
        if built is not None and built + more != wanted:
            needed, has = words.format(wanted / unit), words.format((built + more) / unit)
            raise PostgresError(
                f"The copy needs a server built with {needed}, and PostgreSQL {binaries.version} in {binaries.bindir} "
                f"is built with {has}: name the directory of the programs of such a build (bindir)."
            )


def _setting(binaries: Binaries, name: str) -> int | None:
    """One of the server's fixed settings; None where it does not tell."""
    argv = [binaries.program("postgres"), "-C", name, "-D", "/", "-c", "config_file=/dev/null"]
    try:
        return int(run(argv, timeout=QUICK).stdout)
    except (CommandError, ValueError):
        return None
