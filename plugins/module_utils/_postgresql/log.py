# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a server's log says about its end."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["log_tail", "reason"]

TAIL = 30  # lines of the server's log in an error
INCOMPATIBLE = "database files are incompatible with server"  # ReadControlFile() in PostgreSQL's xlog.c
FOR_NEW_CLUSTERS = ("initdb", "recompile")  # words of hints for somebody who makes a cluster


def log_tail(log: str, *, begin: int = 0) -> list[str]:
    """The last lines of the server's log from the byte begin on."""
    with suppress(OSError), open(log, "rb") as file:
        file.seek(max(begin, os.fstat(file.fileno()).st_size - TAIL * 1000))
        return file.read().decode("utf-8", "replace").splitlines()[-TAIL:]
    return []


def reason(log: Sequence[str]) -> str:
    """Why the server ended, in its own words: its last FATAL or PANIC with what belongs to it, else its last line."""
    severe = [number for number, line in enumerate(log) if re.search(r"\b(?:FATAL|PANIC):  ", line)]
    if not severe:
        said = [line.strip() for line in log if not any(word in line for word in FOR_NEW_CLUSTERS)]
        return said[-1] if said else "it said nothing."
    last = log[severe[-1]]
    # What is wrong with a configuration file is said before "… contains errors", and before anything else.
    lines = [*(log[: severe[-1]] if re.search(r'"[^"]*\.conf"', last) else []), last]
    for line in log[severe[-1] + 1 :]:
        if re.search(r"\b(?:DETAIL|HINT):  ", line) is None:
            break
        lines.append(line)
    sentences = _in_our_words([re.split(r"\b[A-Z]+:  ", line, maxsplit=1)[-1].strip() for line in lines])
    return " ".join(sentence if sentence.endswith(".") else f"{sentence}." for sentence in sentences)


def _in_our_words(sentences: Sequence[str]) -> list[str]:
    """Why a server ended, without its advice to make a new cluster."""
    kept = [one for one in sentences if not any(word in one for word in FOR_NEW_CLUSTERS)]
    if not any(INCOMPATIBLE in one for one in sentences):
        return kept
    return [
        "The files were written by a server that was built otherwise than the one here",
        *(one for one in kept if INCOMPATIBLE not in one),
        "Name the directory of that build's programs (bindir), or look whether global/pg_control is damaged.",
    ]
