# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Finding PostgreSQL's programs: what they print, what packages are called, where they are looked for."""

from __future__ import annotations

from pathlib import Path

import pytest
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._postgresql import programs as _pg_binaries
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._postgresql.cluster import PostgresError
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._postgresql.programs import (
    find_programs,
    installed,
    library_directory,
    package_name,
    parse_version,
    require,
)
from ansible_collections.phpborg.instant_recovery.plugins.modules import server_programs_info

from tests.support.cluster import server_directory
from tests.support.modules import call


@pytest.mark.parametrize(
    ("printed", "version"),
    [
        ("postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)\n", (15, "15.18")),
        ("postgres (PostgreSQL) 10.23\n", (10, "10.23")),
        ("postgres (PostgreSQL) 18beta1\n", (18, "18beta1")),
        ("postgres (EnterpriseDB) 16.4.1\n", (16, "16.4.1")),
        ("pg_ctl (PostgreSQL) 15.18\n", None),
        ("", None),
    ],
)
def test_the_version_that_is_printed(printed: str, version: tuple[int, str] | None) -> None:
    assert parse_version(printed) == version


@pytest.mark.parametrize(
    ("os_release", "package"),
    [
        ('ID=debian\nVERSION_ID="12"\n', "postgresql-13"),
        ("ID=ubuntu\nID_LIKE=debian\n", "postgresql-13"),
        ('ID="rocky"\nID_LIKE="rhel centos fedora"\n', "postgresql13-server"),
        ("ID=fedora\n", "postgresql13-server"),
        ('ID="opensuse-leap"\nID_LIKE="suse opensuse"\n', "postgresql13-server"),
        ("ID=alpine\n", "postgresql13"),
    ],
)
def test_the_package_of_a_distribution(os_release: str, package: str) -> None:
    assert package_name(13, os_release=os_release) == package


def test_every_layout_is_looked_into(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layouts = tuple(f"{tmp_path}{layout}" for layout in _pg_binaries.LAYOUTS)
    monkeypatch.setattr(_pg_binaries, "LAYOUTS", layouts)
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(_pg_binaries, "find_program", lambda *_, **__: None)
    for major, layout in enumerate(layouts, start=13):
        program(Path(layout.format(major=major)), f"postgres (PostgreSQL) {major}.1")
    assert [binaries.major for binaries in installed()] == [13, 14, 15, 16]
    assert require(14).bindir == f"{tmp_path}/usr/pgsql-14/bin"
    with pytest.raises(PostgresError, match=r"PostgreSQL 12 are not installed .*13\.1 in .*install the package"):
        require(12)


def test_a_server_in_path_is_found_where_its_link_leads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(tmp_path / "pg", "postgres (PostgreSQL) 99.1")
    (tmp_path / "path").mkdir()
    (tmp_path / "path" / "postgres").symlink_to(tmp_path / "pg" / "postgres")
    monkeypatch.setenv("PATH", str(tmp_path / "path"))
    found = find_programs(99)
    assert found is not None
    assert found.bindir == str(tmp_path / "pg")
    assert find_programs(98) is None


def test_a_given_directory_must_fit(tmp_path: Path) -> None:
    with pytest.raises(PostgresError, match="has no program postgres and no program psql"):
        find_programs(15, bindir=str(tmp_path))
    program(tmp_path, "postgres (PostgreSQL) 14.2")
    with pytest.raises(PostgresError, match=r"holds PostgreSQL 14\.2, and PostgreSQL 15 is needed"):
        find_programs(15, bindir=str(tmp_path))
    program(tmp_path, "something else")
    with pytest.raises(PostgresError, match="holds something else"):
        find_programs(15, bindir=str(tmp_path))


def test_the_libraries_of_this_host_are_found() -> None:
    directory = library_directory(server_directory())
    assert directory is not None
    assert Path(directory, "plpgsql.so").exists()
    assert library_directory("/nowhere/bin") is None


def test_the_module_tells_about_this_host() -> None:
    bindir = server_directory()
    major = Path(bindir).parent.name
    for version in (major, f"{major}.2"):
        result = call(server_programs_info.main, engine="postgresql", version=version)
        assert result["found"] is True
        assert result["bindir"] == bindir
        assert result["version"].startswith(f"{major}.")
        assert not result["changed"]
    missing = call(server_programs_info.main, engine="postgresql", version="12")
    assert missing["found"] is False
    assert missing["package"].startswith("postgresql")
    assert missing.keys() == result.keys() == call(server_programs_info.main, engine="postgresql").keys()
    for wrong in ("9.6", "latest", ""):
        assert (
            "is not a PostgreSQL version from 12 on"
            in call(server_programs_info.main, engine="postgresql", version=wrong)["msg"]
        )


def program(directory: Path, prints: str) -> None:
    """Stands for a server of a version that cannot be had here: only its --version is asked."""
    directory.mkdir(parents=True, exist_ok=True)
    for name in ("postgres", "psql"):
        (directory / name).write_text(f"#!/bin/sh\necho '{prints}'\n")
        (directory / name).chmod(0o755)
