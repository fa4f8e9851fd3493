# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Series of archives, told by their names."""

from __future__ import annotations

from fnmatch import fnmatchcase

import pytest
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._borg.repository import Archive
from ansible_collections.phpborg.instant_recovery.plugins.plugin_utils.series import (
    Grouped,
    SeriesError,
    compile_pattern,
    group,
    stem,
)


def archives(*names: str, machine: str | None = "db1") -> list[Archive]:
    """Archives of these names, each made a day after the one before."""
    return [
        Archive("/repository", name, f"{number:064x}", f"2026-11-{number:02}T02:00:00.000+00:00", hostname=machine)
        for number, name in enumerate(names, start=1)
    ]


def grouped(*names: str, pattern: str | None = None, exclude: tuple[str, ...] = ()) -> Grouped:
    return group(archives(*names), pattern=compile_pattern(pattern) if pattern else None, exclude=exclude)


@pytest.mark.parametrize(
    ("name", "same"),
    [
        ("db1-2026-11-25T02:00", "db1"),
        ("db1-2026-11-25T02:00:07", "db1"),
        ("db1-2026-11-25T02:00:07.123456", "db1"),
        ("db1-2026-11-25T02:00:07+01:00", "db1"),
        ("db1-2026-11-25T02:00:07Z", "db1"),
        ("db1_20261125", "db1"),
        ("db1_20261125_020000", "db1"),
        ("db1-20261125020000", "db1"),
        ("db1.2026.11.25-02-00", "db1"),
        ("db1-25.11.2026", "db1"),
        ("db1-2026-11", "db1"),
        ("db1-1795352956", "db1"),
        ("2026-11-25_db1", "db1"),
        ("db1-2026-11-25-full", "db1-full"),
        ("web-12-2026-11-25", "web-12"),  # a machine's number is no counter where there is a time
        ("nightly-17", "nightly"),
        ("db1", "db1"),  # a digit of the name itself
        ("2026-11-25", ""),
        ("db1-20269925", "db1"),  # no date, but a number at the end
        ("db1-9920261125", "db1"),
        ("db1-v20261125x9", "db1-v-x9"),
    ],
)
def test_what_stays_the_same_in_a_name(name: str, same: str) -> None:
    assert stem(name) == same


def test_series_by_what_stays_the_same() -> None:
    found = grouped("db1-2026-11-25T02:00", "db2-2026-11-25T02:00", "db1-2026-11-26T02:00", "db1-wal-2026-11-26")
    assert [series.name for series in found.series] == ["db1", "db1-wal", "db2"]
    assert [archive.name for archive in found.series[0].archives] == ["db1-2026-11-25T02:00", "db1-2026-11-26T02:00"]
    assert found.series[0].newest.name == "db1-2026-11-26T02:00"
    assert found.series[0].machines == ("db1",)
    assert found.unmatched == found.refused == []


def test_the_newest_is_so_by_its_time_and_not_by_its_name() -> None:
    (series,) = grouped("db1-2026-11-26T02:00", "db1-2026-11-25T02:00").series
    assert series.newest.name == "db1-2026-11-25T02:00"


@pytest.mark.parametrize("name", ["db1-2026-11-25T02:00", "[a]*?-20261125", "nightly-17", "plain", "db[1]"])
def test_a_glob_means_the_names_of_the_series_and_no_other(name: str) -> None:
    (series,) = grouped(name).series
    assert fnmatchcase(name, series.glob)
    assert fnmatchcase("db1-2027-01-02T13:45", series.glob) == (name == "db1-2026-11-25T02:00")
    for other in ("db1-wal-2026-11-25T02:00", "xdb1-2026-11-25T02:00", "a-20261125", "nightly-x", "plain2", "db1"):
        assert not fnmatchcase(other, series.glob)


def test_machines_that_call_their_archives_alike_are_apart() -> None:
    both = [*archives("backup-2026-11-25"), *archives("backup-2026-11-26", machine="db2.example.com")]
    found = group(both, pattern=None)
    assert {one.name: one.machines for one in found.series} == {
        "backup-db1": ("db1",),
        "backup-db2.example.com": ("db2.example.com",),
    }


def test_names_that_are_times_alone_are_called_as_their_machine() -> None:
    both = [*archives("2026-11-25"), *archives("2026-11-26", machine=None)]
    assert [one.name for one in group(both, pattern=None).series] == ["archives", "db1"]


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        (r"^(?P<series>db\d)-(\w+)-", ["db1"]),
        (r"^(db\d)", ["db1"]),
        (r"full|wal", ["full", "wal"]),
    ],
)
def test_a_declared_expression_decides_alone(pattern: str, names: list[str]) -> None:
    found = grouped("db1-full-2026-11-25", "db1-wal-2026-11-25", "other", pattern=pattern)
    assert [one.name for one in found.series] == names
    assert found.unmatched == ["other"]


def test_a_declared_expression_joins_machines() -> None:
    both = [*archives("db-2026-11-25", machine="old"), *archives("db-2026-11-25", "db-2026-11-26", machine="new")]
    (series,) = group(both, pattern=compile_pattern("db")).series
    assert series.machines == ("new", "old")


def test_an_expression_that_is_none() -> None:
    with pytest.raises(SeriesError, match=r"series '\(' is no regular expression .*: correct it"):
        compile_pattern("(")


def test_what_is_excluded_is_not_told() -> None:
    found = grouped("db1-2026-11-25", "x-manual", "other", pattern="^db1", exclude=("*-manual", "o*"))
    assert found.unmatched == []
    assert len(found.series) == 1


@pytest.mark.parametrize("name", ["{{ 1 }}", "a{%b", "a{{{b", "x{#y", "a\x1b[2Jb", "a\u202eb", "a/b", "-x", "a\nb"])
def test_no_host_is_made_of_a_name_that_means_harm(name: str) -> None:
    found = grouped(name, "db1-2026-11-25")
    assert [one.name for one in found.series] == ["db1"]
    (refused,) = found.refused
    assert "{{ 1 }}" in refused or refused.isprintable()


@pytest.mark.parametrize("machine", ["{{ 1 }}", "", "a b", "-x", "a\n", "x" * 300, "../x"])
def test_a_machine_whose_name_is_none_is_unknown(machine: str) -> None:
    (series,) = group(archives("db1-2026-11-25", machine=machine), pattern=None).series
    assert (series.name, series.machines) == ("db1", ())


def test_names_of_series_are_plain_and_unique() -> None:
    found = grouped("a b-2026-11-25", "a$b-2026-11-25", "ü:x-2026-11-25", "x" * 150, "x" * 151)
    names = [one.name for one in found.series]
    assert len(set(names)) == 5
    assert all(
        len(name) <= 100 and name.isascii() and name.replace("-", "").replace("_", "").isalnum() for name in names
    )


@pytest.mark.parametrize("name", ["2026-11-" * 5000, "1" * 50_000, "-" * 50_000, "20261125T" * 5000])
def test_a_name_that_is_as_long_as_somebody_likes(name: str) -> None:
    """An expression that tries all ways of reading it would not come to an end."""
    assert all(len(series.name) <= 100 for series in grouped(f"a{name}").series)
