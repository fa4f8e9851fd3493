# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The configuration of a session's server, by version."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._postgresql.cluster import (
    DataDirectory,
    PostgresError,
    quote_literal,
)
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._postgresql.configuration import (
    parse_configuration,
)
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._postgresql.control import parse_pg_control
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._postgresql.settings import (
    CARRIED,
    GUARDS,
    TUNING,
    carried,
    check_settings,
    guards,
    preload,
    render_configuration,
    report_carried,
    report_limits,
    tuning,
    warn_of_carried,
)

from tests.support.cluster import server_directory

CONFIGURATION = r"""
# comment
archive_command = 'cp %p /archive/%f'	# not a setting
port=5433
listen_addresses '*'
  Work_Mem	64MB
search_path = '"$user", public'
log_line_prefix = '%m ''quoted'' \\ '
shared_preload_libraries = 'pg_cron, "$libdir/pg_stat_statements",auto_explain'
port = 5434
include_dir = 'conf.d'
pg_stat_statements.max = 10000
#hot_standby = on
"""


def test_a_configuration_is_read_as_postgresql_reads_it() -> None:
    assert parse_configuration(CONFIGURATION) == {
        "archive_command": "cp %p /archive/%f",
        "port": "5434",
        "listen_addresses": "*",
        "work_mem": "64MB",
        "search_path": '"$user", public',
        "log_line_prefix": "%m 'quoted' \\ ",
        "shared_preload_libraries": 'pg_cron, "$libdir/pg_stat_statements",auto_explain',
        "include_dir": "conf.d",
        "pg_stat_statements.max": "10000",
    }


def test_what_is_rendered_is_read_back() -> None:
    settings = {"a": "it's", "b.c": "back\\slash", "d": "", "fsync": "off"}
    text = render_configuration({"First": settings, "Nothing": {}, "Second": {"a": "2"}})
    assert parse_configuration(text) == {**settings, "a": "2"}
    assert "# Nothing" not in text
    assert "fsync = 'off'  # nothing has to survive" in text


@pytest.mark.parametrize(
    ("major", "known", "unknown"),
    [
        (12, "stats_temp_directory", "archive_library"),
        (13, "promote_trigger_file", "archive_library"),
        (15, "archive_library", "stats_temp_directory"),
        (16, "restore_command", "promote_trigger_file"),
        (17, "sync_replication_slots", "promote_trigger_file"),
    ],
)
def test_guards_by_version(major: int, known: str, unknown: str) -> None:
    assert known in guards(major)
    assert unknown not in guards(major)


def test_every_setting_is_known_to_the_server_installed_here() -> None:
    bindir = server_directory()
    major = int(Path(bindir).parent.name)
    argv = [f"{bindir}/postgres", "--describe-config"]
    described = subprocess.run(argv, capture_output=True, text=True, check=True).stdout
    known = {line.split("\t")[0] for line in described.splitlines()}
    settings = [*TUNING, *(setting for guard in GUARDS for setting in guard.settings)]
    assert {setting.name for setting in settings if setting.known_to(major)} - known == set()
    assert not {setting.name for setting in settings if not setting.known_to(major)} & known
    assert set(CARRIED) <= known


@pytest.mark.parametrize(
    "name", ["archive_command", "Listen_Addresses", "config_file", "include", "port", "data_directory", "ssl"]
)
def test_settings_that_would_undo_the_isolation_are_refused(name: str) -> None:
    with pytest.raises(PostgresError, match=f"{name} cannot be set"):
        check_settings({name: "x"}, 15)


def test_settings_of_the_user_become_text() -> None:
    given = {"work_mem": "64MB", "jit": True, "random_page_cost": 1.1, "max_connections": 7, "my.own": "x"}
    expected = {"work_mem": "64MB", "jit": "on", "random_page_cost": "1.1", "max_connections": "7", "my.own": "x"}
    assert check_settings(given, 15) == expected
    for wrong in ({"a b": "1"}, {"work_mem": ["1"]}, {"work_mem": None}, {"x\ny": "1"}):
        with pytest.raises(PostgresError, match="settings: "):
            check_settings(wrong, 15)


def test_only_libraries_that_look_on_and_are_here_are_kept() -> None:
    kept, left_out = preload(parse_configuration(CONFIGURATION), server_directory())
    assert kept == {"shared_preload_libraries": "pg_stat_statements,auto_explain"}
    assert left_out == ["pg_cron"]
    assert preload({}, server_directory()) == ({}, [])
    assert preload({"shared_preload_libraries": "pg_stat_statements"}, "/nowhere/bin") == ({}, ["pg_stat_statements"])


def test_what_is_carried_over_must_exist_here() -> None:
    archived = {
        "timezone": "Europe/Berlin",
        "lc_time": "C",
        "lc_numeric": "xx_XX.UTF-8",
        "datestyle": "iso, dmy",
        "shared_buffers": "64GB",
    }
    assert carried(archived) == {"TimeZone": "Europe/Berlin", "lc_time": "C", "DateStyle": "iso, dmy"}
    assert carried({"timezone": "../../../etc/passwd"}) == {}
    for wrong in ("Nowhere/Land", "tzdata.zi", "right/UTC", "/etc/localtime", "", "UTC+"):
        assert carried({"timezone": wrong}) == {}
    for name in ("europe/berlin", "utc", "UTC-3", "<+05>-05", "CET-1CEST,M3.5.0,M10.5.0/3"):  # a server takes them all
        assert carried({"timezone": name}) == {"TimeZone": name}


def test_what_is_not_carried_over_is_warned_of() -> None:
    windows = dict.fromkeys(("lc_monetary", "lc_numeric", "lc_time"), "English_United States.1252")
    zone, of_windows = warn_of_carried({"timezone": "Nowhere/Land", **windows})
    assert zone.startswith("Production's time zone Nowhere/Land is not known to this host: times are shown in GMT.")
    assert of_windows.startswith(
        "Production's locale English_United States.1252 (lc_monetary, lc_numeric, lc_time) is not known to this host"
    )
    assert of_windows.endswith("start the session on a host of the kind that the copy is from.")
    (debian,) = warn_of_carried({"lc_time": "xx_XX.UTF-8", "datestyle": "iso, dmy"})
    assert "add the line xx_XX.UTF-8 UTF-8 to /etc/locale.gen" in debian


def test_what_was_kept_and_what_was_not_is_said() -> None:
    recorded = Path(__file__).parent / "recorded" / "pg_control-15-shut-down.bin"
    control = replace(parse_pg_control(recorded.read_bytes()), max_connections=300, max_prepared_xacts=7)
    data = DataDirectory(path="/data", major=15, control=control, uid=1, gid=1, mode=0o700)
    archived = {"timezone": "Europe/Berlin", "lc_time": "xx_XX", "shared_buffers": "64GB"}
    libraries = {"shared_preload_libraries": "auto_explain"}
    checksums = "on" if control.data_checksum_version else "off"
    assert [entry["what"] for entry in report_carried(data, archived, libraries)] == [
        "TimeZone=Europe/Berlin",
        "shared_preload_libraries=auto_explain",
        "max_prepared_transactions=64, max_locks_per_transaction=64",
        f"data_checksums={checksums}",
        "lc_time=xx_XX not carried over",
    ]
    larger = replace(data, control=replace(control, max_prepared_xacts=700, max_locks_per_xact=128))
    assert tuning(larger)["max_prepared_transactions"] == "700"
    assert "max_prepared_transactions=700, max_locks_per_transaction=128" in str(report_carried(larger, {}, {}))
    (left,) = report_limits(data, archived)
    assert left["what"].startswith("production's shared_buffers=64GB, max_connections=300, max_worker_processes=")


def test_quoting_of_sql() -> None:
    assert quote_literal("it's") == "'it''s'"
    assert quote_literal("a\\'b") == "E'a\\\\''b'"
