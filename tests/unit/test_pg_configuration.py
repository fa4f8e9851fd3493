# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The configuration that a copy brings with it: what it says wherever it says it, and what of it is not there."""

from __future__ import annotations

from pathlib import Path

import pytest
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._postgresql import configuration
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._postgresql.cluster import (
    DataDirectory,
    PostgresError,
    read_data_directory,
    read_regular_file,
)
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._postgresql.configuration import (
    MOST_MISSING,
    read_configuration,
)

DATA = "snap/var/lib/postgresql/15/main"
ETC = "snap/etc/postgresql/15/main"


@pytest.fixture
def data(tmp_path: Path) -> DataDirectory:
    """A data directory in a tree, as a snapshot's archive has it."""
    directory = tmp_path / DATA
    (directory / "global").mkdir(parents=True)
    (directory / "PG_VERSION").write_text("15")
    recorded = Path(__file__).parent / "recorded" / "pg_control-15-shut-down.bin"
    (directory / "global" / "pg_control").write_bytes(recorded.read_bytes())
    return read_data_directory(str(directory))


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_debians_configuration_is_found_when_it_is_in_the_tree(tmp_path: Path, data: DataDirectory) -> None:
    write(tmp_path / DATA / "postgresql.auto.conf", "work_mem = '3MB'\n")
    assert read_configuration(data, str(tmp_path)).settings == {"work_mem": "3MB"}
    write(tmp_path / ETC / "postgresql.conf", "work_mem = '1MB'\nTimeZone = 'Asia/Tokyo'\n")
    expected = {"work_mem": "3MB", "timezone": "Asia/Tokyo"}
    assert read_configuration(data, str(tmp_path)).settings == expected
    (tmp_path / DATA / "postgresql.conf").symlink_to("/etc/passwd")
    assert read_configuration(data, str(tmp_path)).settings == expected


def test_files_that_are_links_of_the_archive_count(tmp_path: Path, data: DataDirectory) -> None:
    write(tmp_path / "conf" / "main", "TimeZone = 'Asia/Tokyo'\ninclude 'a\0b'\n")
    write(tmp_path / "conf" / "altered", "work_mem = '3MB'\n")
    (tmp_path / DATA / "postgresql.conf").symlink_to("/conf/main")
    (tmp_path / DATA / "postgresql.auto.conf").symlink_to("../../../../../../conf/altered")
    found = read_configuration(data, str(tmp_path))
    assert found.settings == {"work_mem": "3MB", "timezone": "Asia/Tokyo"}
    assert len(found.missing) == 1


def test_what_is_included_counts_where_it_stands(tmp_path: Path, data: DataDirectory) -> None:
    """As Patroni, Debian and CloudNativePG have it."""
    etc = tmp_path / ETC
    write(
        etc / "postgresql.conf",
        "datestyle = 'iso'\nwork_mem = '1MB'\ninclude 'base.conf'\nwork_mem = '2MB'\nINCLUDE_DIR = 'conf.d'\n"
        "include_if_exists = 'nowhere.conf'\ninclude '/etc/postgresql/15/main/whole.conf'\n",
    )
    write(etc / "base.conf", "timezone = 'Asia/Tokyo'\nwork_mem = '9MB'\ninclude 'sub/deeper.conf'\n")
    write(etc / "sub" / "deeper.conf", "include 'beside.conf'\n")
    write(etc / "sub" / "beside.conf", "lc_time = 'C'\n")
    write(etc / "conf.d" / "20.conf", "datestyle = 'sql'\n")
    write(etc / "conf.d" / "10.conf", "datestyle = 'german'\n")
    write(etc / "conf.d" / ".hidden.conf", "datestyle = 'postgres'\n")
    write(etc / "conf.d" / "99.conf.orig", "datestyle = 'postgres'\n")
    write(etc / "whole.conf", "xmloption = 'document'\n")
    found = read_configuration(data, str(tmp_path))
    assert found.settings == {
        "datestyle": "sql",
        "work_mem": "2MB",
        "timezone": "Asia/Tokyo",
        "lc_time": "C",
        "xmloption": "document",
    }
    assert found.missing == ()
    assert found.warnings() == []


def test_what_is_included_and_not_there_is_told(tmp_path: Path, data: DataDirectory) -> None:
    write(
        tmp_path / DATA / "postgresql.conf",
        "include '/srv/common.conf'\ninclude_dir = 'conf.d'\ninclude '../../../../../../../../etc/passwd'\n"
        "include 'link.conf'\ninclude 'postgresql.conf'\ntimezone = 'UTC'\n",
    )
    (tmp_path / DATA / "link.conf").symlink_to("/etc/passwd")
    found = read_configuration(data, str(tmp_path))
    assert found.settings == {"timezone": "UTC"}
    assert found.missing[:3] == ("/srv/common.conf", "conf.d", "../../../../../../../../etc/passwd")
    assert "link.conf" in found.missing
    told = " ".join(found.warnings())
    assert "includes /srv/common.conf, which the archive has neither with the data directory nor beside" in told


def test_a_copy_does_without_a_configuration_that_cannot_be_read(
    tmp_path: Path, data: DataDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The repository has lost its content, say."""
    write(tmp_path / DATA / "postgresql.conf", "include 'lost.conf'\ntimezone = 'UTC'\n")
    write(tmp_path / DATA / "lost.conf", "")

    def read(path: str) -> bytes | None:
        if path.endswith(("lost.conf", "postmaster.opts")):
            raise PostgresError(f"{path} cannot be read: Input/output error.")
        return read_regular_file(path)

    monkeypatch.setattr(configuration, "read_regular_file", read)
    found = read_configuration(data, str(tmp_path))
    assert (found.settings, found.missing) == ({"timezone": "UTC"}, ())
    assert len(found.warnings()) == 2
    assert "lost.conf cannot be read: Input/output error. What the archived configuration sets" in found.warnings()[1]


def test_an_archive_does_not_make_it_read_for_ever(tmp_path: Path, data: DataDirectory) -> None:
    write(tmp_path / DATA / "postgresql.conf", "include_dir = '.'\n" * 3)
    for number in range(30):
        write(tmp_path / DATA / f"{number}.conf", f"a{number} = 1\ninclude_dir = '.'\n")
    write(tmp_path / DATA / "far.conf", "include 'gone.conf'\n" * 50000)
    found = read_configuration(data, str(tmp_path))
    assert set(found.settings) <= {f"a{number}" for number in range(30)}
    assert len(found.missing) <= MOST_MISSING


def test_what_the_server_was_started_with_counts_more_than_files(tmp_path: Path, data: DataDirectory) -> None:
    """As `docker run postgres -c timezone=Asia/Tokyo` leaves it, whose data directory is a volume."""
    write(tmp_path / DATA / "custom.conf", "xmlbinary = 'hex'\n")
    write(tmp_path / DATA / "postgresql.conf", "timezone = 'UTC'\ninclude '/var/lib/data/custom.conf'\n")
    write(tmp_path / DATA / "postgresql.auto.conf", "datestyle = 'iso'\n")
    write(
        tmp_path / DATA / "postmaster.opts",
        '/usr/bin/postgres "-D" "/var/lib/data/" "-c" "timezone=Asia/Tokyo" "--DateStyle=german" "-clc-time=C"\n',
    )
    assert read_configuration(data, str(tmp_path)).settings == {
        "timezone": "Asia/Tokyo",
        "datestyle": "german",
        "lc_time": "C",
        "xmlbinary": "hex",
    }
