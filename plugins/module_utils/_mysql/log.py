# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a server's log says about its end, and about recovery."""

from __future__ import annotations

import itertools
import os
import re
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["explain", "log_tail", "missing_libraries", "prepared_transactions", "rolled_back", "said_since"]

TAIL = 30  # lines of the server's log in an error
LOOKED_AT = 1 << 20  # bytes of what a server says before it is ready
ERROR = re.compile(r"\[ERROR\] (?:\[MY-\d+\] \[\w+\] )?(?:InnoDB: )?(?:\S*mysqld: |\S*mariadbd: )?(.*)")
MISSING_LIBRARY = re.compile(r"Can't open shared library '([^']{1,300})'")
MOST_LIBRARIES = 1000  # mentions
# Said because of the sandbox, or after what matters.
HARMLESS = re.compile(
    r"Can't copy ownership|sched_setaffinity|^Aborting$|init function returned error|registration as a STORAGE"
    r"|Failed to initialize plugins|Unknown/unsupported storage engine|Plugin initialization aborted"
)
# What servers say, and what it means for a session.
EXPLANATIONS = (
    (
        r"Upgrade after a crash is not supported",
        "its redo log is of another version, and only that version replays it",
    ),
    (
        r"Found (\d+) prepared transactions",
        "transactions were prepared when it was killed, and the binary logs that decide about them are not in the copy",
    ),
    (
        r"(?:page corruption|Database page corruption|is corrupted|checksum mismatch)",
        "a page of InnoDB is damaged: use another archive, and find out whether the backup was taken at one moment",
    ),
    (
        r"(?:Unable to decrypt|cannot be decrypted|encryption key|is encrypted)",
        "the data are encrypted, and without their keys (MariaDB's encryption_key_file) nothing opens them",
    ),
    (
        r"File .* was not found|Cannot apply log to",
        "a table's file that its redo log changes is not in the copy: archive the directory that it is in as well, or "
        "a server that was shut down",
    ),
    (r"innodb_page_size|page size", "its pages have another size than the server can have"),
    (r"Different lower_case_table_names", "production's lower_case_table_names is another: give it in settings"),
    (r"unknown (?:variable|option) '([^']*)'", "the server does not know a setting that was given"),
)


def log_tail(log: str, *, begin: int = 0) -> list[str]:
    """The last lines of the server's log from the byte begin on."""
    return said_since(log, begin, limit=TAIL * 1000)[-TAIL:]


def said_since(log: str, begin: int, *, limit: int = LOOKED_AT) -> list[str]:
    """What the server has said from the byte begin of its log on; of very much the end."""
    with suppress(OSError), open(log, "rb") as file:
        file.seek(max(begin, os.fstat(file.fileno()).st_size - limit))
        return file.read(limit).decode("utf-8", "replace").splitlines()
    return []


def explain(said: Sequence[str]) -> str:
    """Why the server ended: what its errors mean for a session, and the first of them in its own words."""
    errors = [match[1].strip() for line in said if (match := ERROR.search(line))]
    told = [one for one in errors if not HARMLESS.search(one)]
    if not told:
        return said[-1].strip() if said else "it said nothing."
    for pattern, meaning in EXPLANATIONS:
        found = next((one for one in told if re.search(pattern, one)), None)
        if found is not None:
            return f"{meaning} ({_sentence(found)})"
    return _sentence(told[0])


def prepared_transactions(said: Sequence[str]) -> int | None:
    """How many transactions were found prepared, of which nothing tells whether they were committed."""
    for line in said:
        match = re.search(r"Found (\d{1,19}) prepared transactions!", line)
        if match is not None:
            return int(match[1])
    return None


def rolled_back(said: Sequence[str]) -> int:
    """How many transactions MySQL found prepared and, without binary logs, has rolled back."""
    found = (re.search(r"Found (\d{1,19}) prepared transaction\(s\) in InnoDB", line) for line in said)
    return next((int(match[1]) for match in found if match), 0)


def missing_libraries(said: Sequence[str]) -> list[str]:
    """Names of the libraries that the copy's tables of plugins and functions name, and that were not loaded."""
    found = (match[1].rpartition("/")[2] for line in said for match in MISSING_LIBRARY.finditer(line))
    return sorted(set(itertools.islice(found, MOST_LIBRARIES)))


def _sentence(text: str) -> str:
    return text if text.endswith(".") else f"{text}."
