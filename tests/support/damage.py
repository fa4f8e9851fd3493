# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Damage done to a Borg repository of a test: chunks that go missing, and chunks of which a byte has changed."""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.support.repository import Repository

__all__ = ["Chunks", "delete", "flip", "repair"]

PUT = 0  # the tag of an object in a segment, before its id: LoggedIO in Borg's repository.py


@dataclass(frozen=True)
class Chunks:
    """The ids of an archive's chunks: `files` by path in the archive, and those of its list of `items`."""

    files: dict[str, list[str]]
    items: list[str]

    @classmethod
    def of(cls, repository: Repository, archive: str) -> Chunks:
        """Reads them with `borg debug dump-archive`, which marks an id as binary with a leading byte."""
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory, "dump")
            repository.borg("debug", "dump-archive", f"{repository.location}::{archive}", str(path))
            dump: dict[str, Any] = json.loads(path.read_text())
        files = {item["path"]: [_plain(chunk[0]) for chunk in item.get("chunks", ())] for item in dump["_items"]}
        return cls(files, [_plain(identifier) for identifier in dump["_meta"]["items"]])


def delete(repository: Repository, chunk: str) -> None:
    """Have the repository forget a chunk."""
    repository.borg("debug", "delete-obj", repository.location, chunk)


def flip(repository: Repository, chunk: str) -> None:
    """Change one byte of a chunk where it is stored."""
    name = bytes([PUT]) + bytes.fromhex(chunk)
    for path in sorted((repository.directory / "data").glob("*/*")):
        content = path.read_bytes()
        place = content.find(name) + len(name) + 50
        if name in content:
            with path.open("r+b") as segment:
                segment.seek(place)
                segment.write(bytes([content[place] ^ 1]))
            return
    raise LookupError(chunk)


def stored_size(repository: Repository, chunk: str) -> int:
    """Bytes that a chunk takes in the repository (Borg's repository.py: crc, size, tag, key)."""
    name = bytes([PUT]) + bytes.fromhex(chunk)
    for path in (repository.directory / "data").glob("*/*"):
        before, found, _rest = path.read_bytes().partition(name)
        if found:
            return int.from_bytes(before[-4:], "little")
    raise LookupError(chunk)


def repair(repository: Repository) -> None:
    """`borg check --repair`, which replaces lost chunks by zeros and remembers it."""
    repository.borg("check", "--repair", repository.location, environment={"BORG_CHECK_I_KNOW_WHAT_I_AM_DOING": "YES"})


def _plain(identifier: str) -> str:
    return identifier.lstrip("\x7f")
