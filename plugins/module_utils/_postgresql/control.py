# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What `global/pg_control` says about a PostgreSQL cluster, read without PostgreSQL's own programs.

Source of the layout: src/include/catalog/pg_control.h (structs CheckPoint and ControlFileData) of PostgreSQL 12 to 18
on little-endian 64-bit machines. The tests compare with pg_controldata's output.
"""

from __future__ import annotations

import struct
from dataclasses import asdict, dataclass, fields
from functools import lru_cache
from typing import Any

from .._errors import RecoveryError

__all__ = ["STANDARD_BUILD", "Build", "PgControl", "PgControlError", "crc32c", "parse_pg_control"]


class PgControlError(RecoveryError):
    """The file is no pg_control file, is damaged, or has a layout that is not known here."""


@dataclass(frozen=True)
class Build:
    """What is compiled into the server that wrote the files: sizes, of blocks in bytes (see pg_config_manual.h).

    alignment, and whether numbers of 8 bytes are passed as such, follow from the kind of machine.
    """

    alignment: int
    block_size: int
    segment_blocks: int
    wal_block_size: int
    name_size: int
    index_keys: int
    toast_size: int
    large_object_size: int
    passes_8_bytes: bool


STANDARD_BUILD = Build(8, 8192, 131072, 8192, 64, 32, 1996, 2048, True)  # of every distribution for 64 bits


@dataclass(frozen=True)
class PgControl:
    """The fields that decide how a copy can be started.

    `state` and `wal_level` are spelled as pg_controldata spells them, positions in the WAL as `X/X` (`0/0`: not set).
    `time` is the file's last change in seconds since the epoch. Sizes are bytes. `data_checksum_version` 0 means no
    checksums. `major` is None for a development version.
    """

    system_identifier: int
    pg_control_version: int
    catalog_version: int
    major: int | None
    state: str
    time: int
    checkpoint_lsn: str
    redo_lsn: str
    timeline: int
    min_recovery_point: str
    backup_start_point: str
    backup_end_point: str
    backup_end_required: bool
    wal_level: str
    max_connections: int
    max_worker_processes: int
    max_wal_senders: int
    max_prepared_xacts: int
    max_locks_per_xact: int
    block_size: int
    wal_segment_size: int
    data_checksum_version: int
    build: Build

    def as_dict(self) -> dict[str, Any]:
        """All fields but build, ready for a module's result."""
        return {name: value for name, value in asdict(self).items() if name != "build"}


def parse_pg_control(data: bytes) -> PgControl:
    """Decode the content of `global/pg_control`. Raises PgControlError."""
    _verify(data)
    found: dict[str, Any] = dict(zip(_FIELDS, _LAYOUT.unpack_from(data)))
    if found["pg_control_version"] < FLOAT4_DROPPED:
        found["passes_8_bytes"] = found["passes_more"]
    sizes = {size.name: found[size.name] for size in fields(Build)}
    known = {name: value for name, value in found.items() if name in PgControl.__annotations__}
    known.update({name: _lsn(value) for name, value in known.items() if name.endswith(("_lsn", "_point"))})
    known["state"], known["wal_level"] = _name(_STATES, found["state"]), _name(_WAL_LEVELS, found["wal_level"])
    control = PgControl(major=_MAJORS.get(found["catalog_version"]), build=Build(**sizes), **known)
    if control.wal_segment_size not in _SEGMENT_SIZES or not 0 <= control.time < _LATEST:
        raise PgControlError(
            f"pg_control says what no server has written there (segments of {control.wal_segment_size} bytes, changed "
            f"at {control.time}). Use another archive."
        )
    return control


_SEGMENT_SIZES = [2**power for power in range(20, 31)]  # bytes
_LATEST = 253402300800  # seconds since the epoch: the end of the year 9999


_STATES = (
    "starting up",
    "shut down",
    "shut down in recovery",
    "shutting down",
    "in crash recovery",
    "in archive recovery",
    "in production",
)
_WAL_LEVELS = ("minimal", "replica", "logical")

# CATALOG_VERSION_NO of the released versions: pg_control_version is the same from 13 to 16.
_MAJORS = {
    201909212: 12,
    202007201: 13,
    202107181: 14,
    202209061: 15,
    202307071: 16,
    202406281: 17,
    202506291: 18,
}

# Where the checksum of all that stands before it is, by pg_control_version. The fields used here never moved: 13 and 17
# changed only what had been padding, 18 put default_char_signedness in front of the nonce that ends the structure.
_CHECKSUM_OFFSETS = {1201: 288, 1300: 288, 1700: 288, 1800: 292}

_OTHER_OFFSETS = range(200, 300, 4)  # where machines have it that align numbers of 8 bytes to 4

_LAYOUT = struct.Struct(
    "<QIIi4xq"  # system_identifier, the two versions, state, time
    "QQI76x"  # checkPoint; of its copy redo and ThisTimeLineID
    "8xQ8xQQ?3x"  # unloggedLSN, minRecoveryPoint, its timeline, backupStartPoint, backupEndPoint, backupEndRequired
    "i4x5i"  # wal_level, wal_log_hints, MaxConnections … max_locks_per_xact
    "4xI8x"  # track_commit_timestamp, maxAlign, floatFormat
    "6I"  # blcksz, relseg_size, xlog_blcksz, xlog_seg_size, nameDataLen, indexMaxKeys
    "2I2?2xI"  # toast_max_chunk_size, loblksize, float8ByVal (in 12 float4ByVal before it), data_checksum_version
)
FLOAT4_DROPPED = 1300  # the pg_control_version from which on only numbers of 8 bytes may be passed either way


_FIELDS = (
    *("system_identifier", "pg_control_version", "catalog_version", "state", "time", "checkpoint_lsn", "redo_lsn"),
    *("timeline", "min_recovery_point", "backup_start_point", "backup_end_point", "backup_end_required", "wal_level"),
    *("max_connections", "max_worker_processes", "max_wal_senders", "max_prepared_xacts", "max_locks_per_xact"),
    *("alignment", "block_size", "segment_blocks", "wal_block_size", "wal_segment_size", "name_size", "index_keys"),
    *("toast_size", "large_object_size", "passes_8_bytes", "passes_more", "data_checksum_version"),
)


def _verify(data: bytes) -> None:
    version = struct.unpack_from("<I", data, 8)[0] if len(data) >= 12 else None
    offset = _CHECKSUM_OFFSETS.get(version) if version is not None else 0
    if offset is None:
        raise PgControlError(
            f"pg_control has the layout {version}, not one of PostgreSQL 12 to 18 on a little-endian machine. "
            "Such a copy cannot be used here."
        )
    if len(data) < offset + 4 or offset == 0:
        raise PgControlError(f"pg_control has only {len(data)} bytes: its copy was cut off. Use another archive.")
    if not _has_checksum(data, offset):
        if any(_has_checksum(data, place) for place in _OTHER_OFFSETS):
            raise PgControlError(
                "pg_control is laid out as on a machine of another kind, such as one of 32 bits (i386). Such a copy "
                "cannot be used here: it needs a host of that kind."
            )
        raise PgControlError("pg_control does not match its checksum: its copy is damaged. Use another archive.")


def _has_checksum(data: bytes, offset: int) -> bool:
    """Whether the checksum of all that stands before it is there."""
    stored = data[offset : offset + 4]
    return len(stored) == 4 and struct.unpack("<I", stored)[0] == crc32c(data[:offset])


def _name(names: tuple[str, ...], number: int) -> str:
    return names[number] if 0 <= number < len(names) else f"unknown ({number})"


def _lsn(position: int) -> str:
    return f"{position >> 32:X}/{position & 0xFFFFFFFF:X}"


def crc32c(data: bytes) -> int:
    """Castagnoli's CRC, as PostgreSQL uses it."""
    table = _crc32c_table()
    crc = 0xFFFFFFFF
    for byte in data:
        crc = table[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    return crc ^ 0xFFFFFFFF


@lru_cache(maxsize=1)
def _crc32c_table() -> tuple[int, ...]:
    table = []
    for byte in range(256):
        for _bit in range(8):
            byte = (byte >> 1) ^ (0x82F63B78 if byte & 1 else 0)
        table.append(byte)
    return tuple(table)
