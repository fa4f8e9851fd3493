# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The catalogue of databases, read from its file without a server.

A copy that was killed may have newer rows in its WAL: what is read here is a hint for people, and never decides.

Layouts: bufpage.h, itemid.h, htup_details.h, varatt.h, relmapper.c and pg_database.h of PostgreSQL 12 to 18, on
little-endian machines.
"""

from __future__ import annotations

import posixpath
import struct
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["FILE", "MAP", "DatabaseRow", "databases_in", "file_of_databases", "oids_in"]

PG_DATABASE = 1262  # its oid
FILE = f"global/{PG_DATABASE}"  # where its rows are, unless it was rewritten
MAP = "global/pg_filenode.map"  # which tells where they are then
MAP_MAGIC, MOST_MAPPED = 0x592717, 62
PAGE_HEADER, ITEM_POINTER, IS_TUPLE = 24, 4, 1
HAS_NULLS, ONLY_LOCKED = 0x0001, 0x0080  # t_infomask
INSERTED, INSERT_FAILED, DELETE_FAILED = 0x0100, 0x0200, 0x0800  # the first two together: frozen
COLUMNS = 0x07FF  # of t_infomask2
BROKEN = -2  # datconnlimit of what a failed DROP DATABASE has left
TEMPLATE = "template0"  # that nobody connects to


class DatabaseRow(NamedTuple):
    """A database. locales: what it needs of the C library.

    is_versioned: whether a version of its collation, by that library, ought to be recorded.
    """

    name: str
    locales: tuple[str, ...]
    is_versioned: bool
    recorded: str | None


class _Tuple(NamedTuple):
    """A row as it is stored: bits about it, number of its columns, which of them are null, and their bytes."""

    infomask: int
    columns: int
    nulls: bytes
    data: bytes


def file_of_databases(filenode_map: bytes) -> str:
    """Where the rows are, below the data directory, as its map of rewritten catalogues says."""
    if len(filenode_map) >= 8 + 8 * MOST_MAPPED:
        magic, number = struct.unpack_from("<II", filenode_map)
        pairs = struct.iter_unpack("<II", filenode_map[8 : 8 + 8 * min(number, MOST_MAPPED)])
        if magic == MAP_MAGIC and (found := dict(pairs).get(PG_DATABASE)):
            return posixpath.join(posixpath.dirname(FILE), str(found))
    return FILE


def oids_in(content: bytes, block_size: int) -> set[str]:
    """The oids that its rows begin with, deleted ones among them."""
    return {str(int.from_bytes(row.data[:4], "little")) for row in _tuples(content, block_size)}


def databases_in(content: bytes, block_size: int, major: int) -> list[DatabaseRow]:
    """The databases that can be connected to."""
    parse = _with_names if major < 15 else _with_texts
    rows = []
    for row in _tuples(content, block_size):
        has_failed = row.infomask & (INSERTED | INSERT_FAILED) == INSERT_FAILED
        if not has_failed and row.infomask & (DELETE_FAILED | ONLY_LOCKED):
            try:
                rows.append(parse(row, major))
            except (struct.error, ValueError, IndexError):
                continue  # what no server has written
    return [row for row in rows if row is not None and row.name != TEMPLATE]


def _tuples(content: bytes, block_size: int) -> Iterator[_Tuple]:
    for start in range(0, len(content), block_size):
        page = content[start : start + block_size]
        end = int.from_bytes(page[12:14], "little")  # pd_lower
        for at in range(PAGE_HEADER, min(end, len(page) - ITEM_POINTER), ITEM_POINTER):
            pointer = int.from_bytes(page[at : at + ITEM_POINTER], "little")
            offset, length = pointer & 0x7FFF, pointer >> 17
            stored = page[offset : offset + length]
            if pointer >> 15 & 3 == IS_TUPLE and len(stored) > 23:
                columns, infomask, header = struct.unpack_from("<HHB", stored, 18)
                nulls = stored[23:header] if infomask & HAS_NULLS else b""
                yield _Tuple(infomask, columns & COLUMNS, nulls, stored[header:])


def _with_names(row: _Tuple, _major: int) -> DatabaseRow | None:
    """A row until PostgreSQL 14, whose locales have a fixed size."""
    name, collate, ctype, is_open, limit = struct.unpack_from("<4x64s8x64s64sx?2xi", row.data)
    if not is_open or limit == BROKEN:
        return None
    return DatabaseRow(_text(name), _named(_text(collate), _text(ctype)), False, None)


def _with_texts(row: _Tuple, major: int) -> DatabaseRow | None:
    """A row from PostgreSQL 15 on: what is of a fixed size, and texts."""
    name, provider, is_open, limit = struct.unpack_from("<4x64s8xcx?xi12x", row.data)
    if not is_open or limit == BROKEN:
        return None
    fixed = 11 if major < 17 else 12  # dathasloginevt
    collate, ctype, *others = _texts(row, fixed, 96)
    recorded = others[1 if major < 16 else 2]  # after daticulocale, and daticurules
    is_versioned = provider == b"c" and (collate or "C").upper().partition(".")[0] not in ("C", "POSIX")
    return DatabaseRow(_text(name), _named(collate, ctype), is_versioned, recorded if is_versioned else None)


def _texts(row: _Tuple, first: int, offset: int) -> list[str | None]:
    """The row's columns from `first` on as far as they are texts, five at most, which are stored from `offset` on."""
    found: list[str | None] = []
    for column in range(first, first + 5):
        text = None
        if column < row.columns and not _is_null(row, column):
            content, offset = _text_at(row.data, offset)
            text = _text(content)
        found.append(text)
    return found


def _is_null(row: _Tuple, column: int) -> bool:
    return bool(row.nulls) and not row.nulls[column // 8] >> column % 8 & 1


def _text_at(data: bytes, offset: int) -> tuple[bytes, int]:
    """A text and where the next begins: behind a length of one byte, or of four at a multiple of four."""
    if data[offset : offset + 1] == b"\0":
        offset += -offset % 4
    (length,) = struct.unpack_from("<B", data, offset)
    if length & 1:
        begin, end = offset + 1, offset + (length >> 1)
    elif length & 2:
        raise ValueError("compressed")
    else:
        begin, end = offset + 4, offset + (struct.unpack_from("<I", data, offset)[0] >> 2)
    if not begin <= end <= len(data):
        raise ValueError("no text")
    return data[begin:end], end


def _text(content: bytes) -> str:
    return content.partition(b"\0")[0].decode("utf-8", "surrogateescape")


def _named(*names: str | None) -> tuple[str, ...]:
    return tuple(sorted({name for name in names if name}))
