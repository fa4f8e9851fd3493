# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What people give is taken for what it says, or refused with one sentence, which names the value and the remedy.

That plays do refuse it is tested once for each stage, in tests/integration/test_bad_input.py.
"""

from __future__ import annotations

import datetime
import re
from typing import Any

import pytest
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._errors import RecoveryError
from ansible_collections.phpborg.instant_recovery.plugins.plugin_utils.options import (
    check_host,
    check_options,
    refuse_misspelt,
)
from ansible_collections.phpborg.instant_recovery.plugins.plugin_utils.table import (
    ENTRY_POINTS,
    Table,
    all_variables,
    read_table,
    variables_of,
)
from ansible_collections.phpborg.instant_recovery.plugins.plugin_utils.values import (
    CHOICES,
    EXPLANATIONS,
    FORMS,
    RANGES,
    TYPES,
)

ARCHIVE = {"archive": "/srv/repository::name"}
START = read_table("start")

#: A variable, a value that it cannot have, and what is found in the refusal: plain text, or a regular expression.
VALUES: list[tuple[str, Any, str]] = [
    ("driver", "btrfs", "^driver btrfs is unknown: choose auto, block or overlayfs.$"),
    ("engine", "oracle", "^engine oracle is unknown: choose auto or one of: postgresql, mariadb, mysql.$"),
    ("deployment_location", "cloud", "choose local .this host. or remote"),
    ("ttl", "soon", "^ttl: 'soon' is not a duration: write it as 90s, 15m, 2h"),
    ("ttl", True, "is not a duration"),
    ("ttl", "11y", "is not a duration"),
    ("ttl", "4000d", "is too long: choose ten years"),
    ("idle_timeout", "soon", "90s, 15m, 2h"),
    ("suspend_after", "soon", "90s, 15m, 2h"),
    ("read_only", "maybe", "^read_only maybe is neither true nor false.$"),
    ("read_only", 2, "true nor false"),
    ("examine", "maybe", "true nor false"),
    ("install_packages", "maybe", "true nor false"),
    ("recovery_target_inclusive", "maybe", "true nor false"),
    ("network", "internet", "choose none, .*, or host"),
    ("lock", "steal", "choose bypass, .* hold, .* or auto"),
    ("settings", "work_mem", "JSON"),
    ("settings", "[1]", "JSON"),
    ("relocated", "/mnt", "JSON"),
    ("archive", ["a"], "is no text"),
    ("readers", "many", "1 to 16"),
    ("readers", 17, "1 to 16"),
    ("readers", 1.5, "1 to 16"),
    ("missing_tablespaces", "empty", "choose refuse or leave_out"),
    ("log_source", "archive:/", "names no directory: write it as archive:PATH"),
    ("repository", "--option", "^repository: '--option' is no repository, because it begins with a dash"),
    (
        "recovery_target_time",
        "yesterday",
        "^recovery_target_time 'yesterday' cannot be used .*: write it as 2026-11-22T",
    ),
    ("recovery_target_time", datetime.date(2026, 11, 22), "as a space ends a value on the command line"),
    ("recovery_target_lsn", "zz", "give a position in the write-ahead log, such as 1A/2B3C4D5E"),
    ("recovery_target_xid", 0, "give the number of a transaction"),
    ("recovery_target_xid", "x", "is no number"),
    ("recovery_target_name", "n" * 64, "at most 63 bytes"),
    ("recovery_target_name", "ä" * 32, "at most 63 bytes"),
    ("recovery_target", "now", "give immediate, .* or one of recovery_target_time"),
    ("recovery_target_timeline", "newest", "give latest, current or a timeline's number"),
    ("recovery_target_action", "pause", "would accept no connections"),
    ("recovery_target_action", "fly", "leave it out"),
    ("cpu_weight", "0", "1 to 10000"),
    ("io_weight", "10001", "1 to 10000"),
    ("memory_max", "lots", "^memory_max lots is not a size"),
    ("memory_max", "110%", "is no part of the host's memory"),
    ("cache_size", "lots", "^cache_size lots is not a size; write for example 500M"),
    ("minimum_free", "-1", "is not a size"),
    ("free_space_floor", "much", "or a share of the disk such as 5%"),
    ("max_sessions", "many", "is no number"),
    ("max_sessions", -1, "is no number"),
    ("start_timeout", "1h", "write seconds, such as 3600"),
    ("start_timeout", 0, "write seconds, such as 3600"),
    *(("port", port, "is no port: .* 1024 to 65535") for port in ("65536", "-1", "80", "http", True, 1.5)),
]
#: What else cannot be meant, and the beginning of what is said of it.
CASES: list[tuple[str, dict[str, Any], str]] = [
    ("start", {}, "archive is not given: name it as REPOSITORY::NAME"),
    ("start", {"archive": "sample"}, "archive sample names no repository: write it as REPOSITORY::NAME"),
    (
        "start",
        {**ARCHIVE, "repository": "/elsewhere"},
        "archive /srv/repository::name and repository /elsewhere name different repositories: leave one of the two out",
    ),
    (
        "start",
        {**ARCHIVE, "borg_passphrase": "x", "borg_passcommand": "echo y"},
        "More than one of borg_passphrase, borg_passcommand and borg_passphrase_file is given: leave all but one out",
    ),
    ("stop", {}, "session_id is not given: name a session (instant_recovery_list shows them), or all."),
    *(
        (
            entry_point,
            {"session_id": name},
            "session_id is not given: name a session (instant_recovery_list shows them).",
        )
        for entry_point in ("extend", "reset", "logs")
        for name in ("", None, "all")
    ),
    ("logs", {"session_id": "a", "follow_for": "10m"}, "follow_for is given without follow: add follow=true"),
    ("logs", {"session_id": "a", "follow": True, "follow_for": "soon"}, "follow_for: 'soon' is not a duration"),
    ("logs", {"session_id": "a", "lines": "all"}, "lines all is no number of lines: write one such as 100"),
    ("logs", {"session_id": "a", "sources": {"server": 1}}, "sources {'server': 1} is no list: give names"),
    ("list", {"ended": "maybe"}, "ended maybe is neither true nor false"),
]
#: What is given, and what it says.
TAKEN: list[tuple[str, Any, Any]] = [
    ("port", "15999", 15999),
    ("port", 15999.0, 15999),
    ("port", "15999.0", 15999),
    ("readers", 2.0, 2),
    ("cpu_weight", 50.0, 50),
    ("max_sessions", "3.0", 3),
    ("max_sessions", 0, 0),
    ("start_timeout", 600.0, 600),
    *(("read_only", yes, True) for yes in ("yes", "on", "True", "TRUE", "1", 1, 1.0, True)),
    *(("read_only", no, False) for no in ("no", "off", "False", "0", 0, False)),
    ("ttl", 90, "90"),
    ("ttl", 90.0, "90"),
    ("ttl", 1.5, "1.5"),
    ("ttl", "1h30m", "1h30m"),
    ("suspend_after", "auto", "auto"),
    ("memory_max", "1.5%", "1.5%"),
    ("free_space_floor", 1000, "1000"),
    ("settings", '{"work_mem": "64MB"}', {"work_mem": "64MB"}),
    ("relocated", {"/mnt": None}, {"/mnt": None}),
    ("data_directory", 15, "15"),
]
TAKEN_OF_ENGINE: list[tuple[str, Any, Any]] = [
    ("recovery_target_time", "2026-11-22 14:05", "2026-11-22 14:05"),
    # As YAML reads a time that has no quotes.
    (
        "recovery_target_time",
        datetime.datetime(2026, 11, 22, 14, 5, tzinfo=datetime.UTC),
        "2026-11-22 14:05:00+00:00",
    ),
    ("recovery_target_time", datetime.datetime(2026, 11, 22, 14, 5), "2026-11-22 14:05:00"),
    ("recovery_target_xid", "4711", 4711),
    ("recovery_target_timeline", 5, "5"),
    ("recovery_target_timeline", 5.0, "5"),
    ("recovery_target_inclusive", "no", False),
]


def start(**given: Any) -> dict[str, Any]:
    own = {engine: {name: given[name] for name in given.keys() & known} for engine, known in START.engines.items()}
    shared = given.keys() - {name for values in own.values() for name in values}
    return check_options(START, {name: given[name] for name in shared}, own)


@pytest.mark.parametrize(
    ("name", "value", "text"), VALUES, ids=[f"{name}={value}"[:40] for name, value, _text in VALUES]
)
def test_a_value_is_refused(name: str, value: Any, text: str) -> None:
    with pytest.raises(RecoveryError) as refusal:
        start(**{**ARCHIVE, name: value})
    sentence = str(refusal.value)
    assert re.search(text, sentence), sentence
    assert sentence.startswith(name)
    assert str(value) in sentence
    assert "\n" not in sentence


@pytest.mark.parametrize(("entry_point", "given", "text"), CASES, ids=[text[:40] for *_given, text in CASES])
def test_what_cannot_be_meant_is_refused(entry_point: str, given: dict[str, Any], text: str) -> None:
    with pytest.raises(RecoveryError) as refusal:
        check_options(read_table(entry_point), given)
    assert str(refusal.value).startswith(text)


@pytest.mark.parametrize(
    ("name", "given", "said"), TAKEN, ids=[f"{name}={given!r}"[:40] for name, given, _said in TAKEN]
)
def test_what_is_given_is_taken_for_what_it_says(name: str, given: Any, said: Any) -> None:
    taken = start(**{**ARCHIVE, name: given})["options"][name]
    assert (taken, type(taken)) == (said, type(said))


@pytest.mark.parametrize(
    ("name", "given", "said"), TAKEN_OF_ENGINE, ids=[f"{name}={given!r}"[:40] for name, given, _ in TAKEN_OF_ENGINE]
)
def test_so_is_what_only_the_engine_knows(name: str, given: Any, said: Any) -> None:
    checked = start(**{**ARCHIVE, name: given})
    assert checked["refusals"]["postgresql"] == ""
    assert checked["engine_options"]["postgresql"][name] == said


@pytest.mark.parametrize("empty", ["", None])
def test_empty_is_not_given(empty: str | None) -> None:
    """Surveys send an empty answer for what nobody has answered."""
    unanswered = dict.fromkeys([*START.options, *START.engines["postgresql"]], empty)
    checked = start(**{**unanswered, **ARCHIVE})
    assert checked == start(**ARCHIVE)
    options = checked["options"]
    assert {name for name in options if name not in ARCHIVE} == {
        "log_place",
        *(name for name, spec in START.options.items() if "default" in spec),
    }
    assert (options["ttl"], options["read_only"], options["settings"]) == ("2h", False, {})
    assert checked["engine_options"]["postgresql"] == {
        "recovery_target_inclusive": True,
        "missing_tablespaces": "refuse",
        "point": "",
    }


def test_0_is_what_some_are_left_out_for() -> None:
    assert start(**ARCHIVE, port=0, readers="0") == start(**ARCHIVE)


def test_secrets_are_only_looked_for() -> None:
    assert "pass" not in str(start(**ARCHIVE, borg_passcommand="print the pass"))
    assert start(**ARCHIVE, borg_passphrase_file="/f", borg_passphrase="")["options"]["borg_passphrase_file"] == "/f"


def test_where_archived_logs_are() -> None:
    def place(text: str | None) -> dict[str, Any]:
        found: dict[str, Any] = start(**ARCHIVE, log_source=text)["options"]["log_place"]
        return {name: value for name, value in found.items() if value}

    assert place("") == place(None) == {}
    assert place("/srv/wal") == {"path": "/srv/wal"}
    assert place("archive:wal") == {"path": "wal", "is_own": True}
    assert place("/r::a:/wal") == {"path": "wal", "archive": "/r::a"}


def test_the_point_in_time_is_told_in_words() -> None:
    def point(**given: Any) -> str:
        told: str = start(**ARCHIVE, **given)["engine_options"]["postgresql"]["point"]
        return told

    assert point(recovery_target_xid=7) == "recovery_target_xid 7"
    assert point(recovery_target_lsn="0/1", recovery_target_inclusive="off") == "recovery_target_lsn 0/1, exclusive"
    assert point(recovery_target_timeline="current") == ""
    with pytest.raises(RecoveryError, match="recovery_target_xid and recovery_target_lsn are given together, and"):
        point(recovery_target_xid=7, recovery_target_lsn="0/1")


def engines(engine: str = "auto", **own: dict[str, Any]) -> dict[str, Any]:
    """As if there were another engine, which has a point in time, too."""

    def point(options: Any) -> str:
        if options.get("gtid") == "bad":
            raise RecoveryError("gtid bad cannot be meant.")
        return str(options.get("gtid", ""))

    other = {"gtid": {"type": "str"}, "bindir": {"type": "str"}}
    choices = {"type": "str", "choices": ["auto", "postgresql", "mariadb"], "default": "auto"}
    table = Table(
        "start", {**START.options, "engine": choices}, {"postgresql": START.engines["postgresql"], "mariadb": other}
    )
    points = {"postgresql": lambda options: str(options.get("recovery_target_lsn", "")), "mariadb": point}
    return check_options(table, {**ARCHIVE, "engine": engine}, own, points)


def test_options_of_another_engine_than_the_archives_are_refused_by_name() -> None:
    checked = engines(postgresql={"recovery_target_lsn": "0/1"})
    assert checked["refusals"] == {
        "postgresql": "",
        "mariadb": "recovery_target_lsn is an option of postgresql, and archive /srv/repository::name holds mariadb: "
        "leave it out.",
    }
    assert engines("mariadb", mariadb={"gtid": "0-1-2"})["engine_options"]["mariadb"]["point"] == "0-1-2"
    with pytest.raises(RecoveryError, match="gtid is an option of mariadb, and engine is postgresql: leave it out"):
        engines("postgresql", mariadb={"gtid": "0-1-2"})
    with pytest.raises(RecoveryError, match="gtid bad cannot be meant"):
        engines("mariadb", mariadb={"gtid": "bad"})


def test_what_several_engines_know_counts_for_each() -> None:
    checked = engines(postgresql={"bindir": "/p"}, mariadb={"bindir": "/m"})
    assert checked["refusals"] == {"postgresql": "", "mariadb": ""}
    assert {engine: own["bindir"] for engine, own in checked["engine_options"].items()} == {
        "postgresql": "/p",
        "mariadb": "/m",
    }


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"deployment_location": "remote"}, "deployment_location is remote, and source_host is not given"),
        (
            {"deployment_location": "remote", "source_host": "db7"},
            "source_host db7 is not in the inventory: name one of its hosts (db1, localhost), or choose",
        ),
        (
            {"source_host": "db1", "deployment_location": ""},
            "source_host db1 is given without deployment_location: add deployment_location=remote",
        ),
        (
            {"source_host": "db1", "deployment_location": "remote"},
            "source_host is db1, and the play runs on localhost: give source_host and deployment_location by these",
        ),
    ],
)
def test_a_host_that_cannot_be_meant_is_refused(given: dict[str, Any], text: str) -> None:
    with pytest.raises(RecoveryError) as refusal:
        check_host(given, ["localhost", "db1"], "localhost")
    assert str(refusal.value).startswith(text)


def test_hosts_that_can() -> None:
    for given in ({}, {"deployment_location": "remote", "source_host": "db1"}, {"deployment_location": "local"}):
        check_host(given, ["db1"], "db1")


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("recovery_target_tiem", "recovery_target_time"),
        ("recovery-target-time", "recovery_target_time"),
        ("drvier", "driver"),
        ("Archive", "archive"),
        ("timeout", "start_timeout"),
        ("wal_source", "log_source"),
        ("rsh", "borg_rsh"),
        ("passphrase", "borg_passphrase"),
        ("session_tll", "session_ttl"),
        ("folow_for", "follow_for"),
        ("PORT", "port"),
        *((name, None) for name in ("archive", "my_archive", "borg_repository", "awx_job_id", "ansible_port")),
        *((name, None) for name in ("note", "roots", "instant_recovery_session", "instant_recovery_session_id")),
    ],
)
def test_names_that_resemble_known_ones_are_refused(given: str, meant: str | None) -> None:
    known = sorted(all_variables())
    if meant is None:
        refuse_misspelt([given, "ttl"], known)
        return
    with pytest.raises(RecoveryError) as refusal:
        refuse_misspelt([given, "ttl"], known)
    assert str(refusal.value) == (
        f"{given} is unknown: did you mean {meant}? Mend it, or add accept_unknown=true if it is meant for something "
        "else."
    )


def test_names_of_variables() -> None:
    assert variables_of("ttl", plain=True) == ["ttl", "session_ttl"]
    assert variables_of("ttl", plain=False) == ["session_ttl"]
    assert variables_of("bindir", "postgresql", plain=True) == ["bindir", "postgresql_bindir"]
    assert variables_of("session_root", plain=True) == ["session_root"]


def test_the_table_can_be_read_by_the_check() -> None:
    """Each type is one that is read, defaults are what a value says, and no form or sentence is of an unknown name."""
    known: dict[str, Any] = {}
    for table in map(read_table, ENTRY_POINTS):
        for options in (table.options, *table.engines.values()):
            for name, spec in options.items():
                known[name] = spec
                assert spec["type"] in TYPES, name
                assert "default" not in spec or TYPES[spec["type"]](name, spec["default"]) == spec["default"], name
    assert {*FORMS, *RANGES, *CHOICES} <= known.keys()
    assert EXPLANATIONS.keys() <= known.keys() | TYPES.keys()
    for name, words in CHOICES.items():
        assert all(choice in words or "{others}" in words for choice in known[name]["choices"]), name


def test_what_only_one_engine_can_is_refused_by_name_with_another() -> None:
    for engine in ("mariadb", "mysql"):
        said = f"recovery_target_lsn is an option of postgresql, and engine is {engine}: leave it out"
        with pytest.raises(RecoveryError, match=said):
            start(**ARCHIVE, engine=engine, recovery_target_lsn="0/1")
    with pytest.raises(RecoveryError, match="recovery_target_gtid is an option of mariadb, and engine is postgresql"):
        start(**ARCHIVE, engine="postgresql", recovery_target_gtid="0-1-2")
    told = start(**ARCHIVE, recovery_target_gtid="0-1-2")
    assert told["engine_options"]["mariadb"]["point"] == "recovery_target_gtid 0-1-2"
    assert "leave it out" in told["refusals"]["postgresql"]
