# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""pg_control files of real clusters, held against what pg_controldata said of them."""

from __future__ import annotations

import re
import struct
from datetime import UTC, datetime
from pathlib import Path

import pytest
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._postgresql.control import (
    STANDARD_BUILD,
    PgControlError,
    crc32c,
    parse_pg_control,
)

RECORDED = Path(__file__).parent / "recorded"
# pg_controldata's words for the fields.
LABELS = {
    "system_identifier": "Database system identifier",
    "pg_control_version": "pg_control version number",
    "catalog_version": "Catalog version number",
    "state": "Database cluster state",
    "checkpoint_lsn": "Latest checkpoint location",
    "redo_lsn": "Latest checkpoint's REDO location",
    "timeline": "Latest checkpoint's TimeLineID",
    "min_recovery_point": "Minimum recovery ending location",
    "backup_start_point": "Backup start location",
    "backup_end_point": "Backup end location",
    "wal_level": "wal_level setting",
    "max_connections": "max_connections setting",
    "max_worker_processes": "max_worker_processes setting",
    "max_wal_senders": "max_wal_senders setting",
    "max_prepared_xacts": "max_prepared_xacts setting",
    "max_locks_per_xact": "max_locks_per_xact setting",
    "block_size": "Database block size",
    "wal_segment_size": "Bytes per WAL segment",
    "data_checksum_version": "Data page checksum version",
}


def recorded(name: str) -> bytes:
    return (RECORDED / f"{name}.bin").read_bytes()


@pytest.mark.parametrize("path", sorted(RECORDED.glob("pg_control-*.bin")), ids=lambda path: path.stem)
def test_agrees_with_pg_controldata(path: Path) -> None:
    said = dict(re.findall(r"^([^:]+):\s*(.*)$", path.with_suffix(".txt").read_text(), re.MULTILINE))
    control = parse_pg_control(path.read_bytes())
    assert {name: str(getattr(control, name)) for name in LABELS} == {
        name: said[label] for name, label in LABELS.items()
    }
    assert control.major == int(path.stem.split("-")[1])
    labels = ("Maximum data alignment", "Database block size", "Blocks per segment of large relation", "WAL block size")
    labels = (*labels, "Maximum length of identifiers", "Maximum columns in an index", "Maximum size of a TOAST chunk")
    *sizes, passes_8_bytes = vars(control.build).values()
    assert list(map(str, sizes)) == [said[label] for label in (*labels, "Size of a large-object chunk")]
    assert passes_8_bytes == (said["Float8 argument passing"] == "by value")
    assert control.build == STANDARD_BUILD
    assert control.backup_end_required == (said["End-of-backup record required"] == "yes")
    changed = datetime.strptime(said["pg_control last modified"], "%a %b %d %H:%M:%S %Y").replace(tzinfo=UTC)
    assert control.time == changed.timestamp()


def test_states_are_distinguished() -> None:
    assert parse_pg_control(recorded("pg_control-15-shut-down")).state == "shut down"
    assert parse_pg_control(recorded("pg_control-15-crashed")).state == "in production"


def test_a_flipped_bit_is_noticed() -> None:
    data = bytearray(recorded("pg_control-15-crashed"))
    data[40] ^= 1
    with pytest.raises(PgControlError, match="does not match its checksum"):
        parse_pg_control(bytes(data))


def test_one_of_a_machine_of_32_bits_is_not_called_damaged() -> None:
    """There the fields have no room between them, and so the checksum stands elsewhere."""
    data = bytearray(recorded("pg_control-15-crashed"))
    struct.pack_into("<I", data, 260, crc32c(data[:260]))
    with pytest.raises(PgControlError, match=r"as on a machine of another kind, such as one of 32 bits"):
        parse_pg_control(bytes(data))


@pytest.mark.parametrize("size", [0, 11, 12, 256, 291])
def test_a_cut_off_file_is_noticed(size: int) -> None:
    with pytest.raises(PgControlError, match=f"only {size} bytes"):
        parse_pg_control(recorded("pg_control-15-crashed")[:size])


@pytest.mark.parametrize("version", [1100, 1902, int.from_bytes((1300).to_bytes(4, "big"), "little")])
def test_other_layouts_are_refused(version: int) -> None:
    data = bytearray(recorded("pg_control-15-crashed"))
    struct.pack_into("<I", data, 8, version)
    with pytest.raises(PgControlError, match=f"layout {version}"):
        parse_pg_control(bytes(data))
