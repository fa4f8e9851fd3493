# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Counting the rows of CSV as it passes."""

from __future__ import annotations

from .interface import CSV, ExportError

__all__ = ["Rows"]


class Rows:
    """The rows of CSV that begins with the names of its columns. Line breaks in quotes are part of a value."""

    def __init__(self) -> None:
        self._lines, self._is_quoted = 0, False

    def take(self, data: bytes) -> None:
        """Look at the next piece. Raises ExportError for a NUL character, at which programs end a text."""
        whole, nul, _rest = data.partition(b"\0")
        # A quote in a value is doubled, which leaves it and enters it again.
        parts = whole.split(b'"')
        self._lines += b"".join(parts[int(self._is_quoted) :: 2]).count(b"\n")
        self._is_quoted ^= len(parts) % 2 == 0
        if nul:
            raise ExportError(
                f"A value in row {self._lines} has a NUL character, or the row is larger than the server sends: format "
                f"{CSV} cannot hold it. Use another format."
            )

    @property
    def number(self) -> int:
        """How many there were, without the first."""
        return max(0, self._lines - 1)
