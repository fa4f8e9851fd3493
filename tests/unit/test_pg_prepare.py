# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Reading what a single-user server prints and logs, and making the stored form of a password."""

from __future__ import annotations

import base64
import hashlib
import hmac

import pytest
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._postgresql.catalogs import (
    catalog_script,
    parse_catalogs,
)
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._postgresql.cluster import PostgresError
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._postgresql.log import reason
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._postgresql.recovery import recovered_to
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._postgresql.role import RoleSettings
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._postgresql.single_user import scram_verifier

# Printed by PostgreSQL 15.18 on a subscriber.
OUTPUT = r"""
PostgreSQL stand-alone backend 15.18 (Debian 15.18-0+deb12u1)
backend> {"settings" : {"reset" : ["default_transaction_read_only=off", "default_transaction_read_only=off"], "counting" : [[null, "statement_timeout=20ms", "statement_timeout", "0"], ["shop data", "TimeZone=Asia/Tokyo", null, null]]}, "subscriptions" : ["s"], "opened" : "template1"}
backend> backend> backend> backend> backend> backend> {"superuser" : "chief \"dba\" \\", "role" : true, "settings_left" : 0, "subscriptions_left" : 0, "databases" : ["postgres", "shop data"], "unlogged" : {"shop data" : 3}, "probed" : "template1", "unconverted" : ["shop data"], "prepared" : ["waiting"], "tablespaces" : {"16400" : "fast"}, "reached" : {"time" : "2026-11-22T17:05:31.082258+00:00", "lsn" : "0/4000000", "timeline" : 2}, "locales" : [["postgres", "C.UTF-8", "C.UTF-8", "2.31", "2.36"], ["shop data", "C", "xx_XX.utf8", "2.36", "2.36"], ["template1", "C", "C", null, null]]}
backend> """  # noqa: E501


def test_the_answers_of_a_single_user_server() -> None:
    catalogs = parse_catalogs(OUTPUT)
    assert catalogs.superuser == 'chief "dba" \\'
    assert catalogs.databases == ["postgres", "shop data"]
    assert [entry["what"] for entry in catalogs.neutralised] == [
        "default_transaction_read_only of roles and databases reset (default_transaction_read_only=off)",
        "statement_timeout=20ms, set for all roles, overruled for instant_recovery (statement_timeout=0)",
        "subscription s disabled and parted from its slot",
        "database template1 opened to connections",
    ]
    assert [entry["what"] for entry in catalogs.staying] == ["TimeZone=Asia/Tokyo, set for database shop data"]
    assert (catalogs.probed, catalogs.encoding("shop data"), catalogs.encoding("x")) == (
        "template1",
        "SQL_ASCII",
        "UTF8",
    )
    assert catalogs.tablespaces == {"16400": "fast"}
    assert catalogs.reached == {"time": "2026-11-22T17:05:31.082258+00:00", "lsn": "0/4000000", "timeline": 2}
    assert catalogs.collations == [{"database": "postgres", "collation": None, "recorded": "2.31", "actual": "2.36"}]
    assert catalogs.locales == {"postgres": ["C.UTF-8"], "shop data": ["C", "xx_XX.utf8"], "template1": ["C"]}


@pytest.mark.parametrize(
    "output",
    [
        "",
        OUTPUT.replace('"role" : true', '"role" : false'),
        OUTPUT.replace('"settings_left" : 0', '"settings_left" : 1'),
        OUTPUT.replace('"probed" : "template1"', '"probed" : null'),
        OUTPUT.replace('"subscriptions_left" : 0', '"subscriptions_left" : 1'),
        OUTPUT.splitlines()[2],
    ],
)
def test_work_that_was_not_done_is_noticed(output: str) -> None:
    with pytest.raises(PostgresError, match=r"could not be changed: no room left\."):
        parse_catalogs(output, ["x ERROR:  role exists", "x FATAL:  no room left"])


def test_an_answer_that_is_nested_without_end_is_refused() -> None:
    """Whoever goes through it later would end in the middle of a sentence."""
    output = OUTPUT.replace('"probed" : "template1"', f'"probed" : {"[" * 700}{"]" * 700}')
    assert output != OUTPUT
    with pytest.raises(PostgresError, match="answered with what no server says"):
        parse_catalogs(output)


def test_the_script_is_one_statement_a_line() -> None:
    settings = RoleSettings(settings={"search_path": "a,\n  'b'"}, given=["TimeZone"], read_only=True)
    script = catalog_script(major=15, verifier="SCRAM-SHA-256$4096:c2FsdA==$a=:b=", settings=settings)
    statements = script.split(";\n\n")
    assert statements.pop() == ""
    assert len(statements) == 10
    assert not any("\n" in statement for statement in statements)
    assert r"(E'search_path', E'a,\x0a\x20\x20''b''')" in script
    assert "E'default_transaction_read_only', E'transaction_read_only'" in script
    older = catalog_script(major=14, verifier="x", settings=RoleSettings(settings={}, given=(), read_only=False))
    assert "E'default_transaction_read_only', E'transaction_read_only'" not in older
    assert "datcollversion" not in older


def test_the_stored_form_of_a_password() -> None:
    """RFC 7677, section 3: with our server key, its example must come to the server signature given there."""
    nonce = "rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0"
    salt = "W22ZaJ0SNY7soEsUEjb6gQ=="
    verifier = scram_verifier("pencil", salt=base64.b64decode(salt))
    start, keys = verifier.rsplit("$", 1)
    assert start == f"SCRAM-SHA-256$4096:{salt}"
    stored, server = (base64.b64decode(key) for key in keys.split(":"))
    message = f"n=user,r=rOprNGfwEbeRWgbNEkqO,r={nonce},s={salt},i=4096,c=biws,r={nonce}".encode()
    signature = hmac.digest(server, message, "sha256")
    assert base64.b64encode(signature) == b"6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4="
    proof = base64.b64decode("dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=")
    mask = hmac.digest(stored, message, "sha256")
    client_key = bytes(one ^ other for one, other in zip(proof, mask, strict=True))
    assert hashlib.sha256(client_key).digest() == stored


@pytest.mark.parametrize(
    ("log", "said"),
    [
        ([], "it said nothing."),
        (["2026-11-22 13:30:43 UTC [1] LOG:  starting"], "2026-11-22 13:30:43 UTC [1] LOG:  starting"),
        (
            [
                "2026 [1] 00000 LOG:  database system was interrupted",
                "2026 [1] 00000 LOG:  invalid primary checkpoint record",
                "2026 [1] XX000 PANIC:  could not locate a valid checkpoint record",
            ],
            "could not locate a valid checkpoint record.",
        ),
        (
            [
                "2026 [1] 22023 FATAL:  database locale is incompatible with operating system",
                '2026 [1] 22023 DETAIL:  The database was initialized with LC_COLLATE "xx_XX".',
                "2026 [1] 22023 HINT:  Recreate the database with another locale or install the missing locale.",
                "something else",
            ],
            "database locale is incompatible with operating system. "
            'The database was initialized with LC_COLLATE "xx_XX". '
            "Recreate the database with another locale or install the missing locale.",
        ),
        (
            [
                '2026 [1] LOG:  unrecognized configuration parameter "x" in file "/run/postgresql.conf" line 3',
                '2026 [1] FATAL:  configuration file "/run/postgresql.conf" contains errors',
            ],
            'unrecognized configuration parameter "x" in file "/run/postgresql.conf" line 3. '
            'configuration file "/run/postgresql.conf" contains errors.',
        ),
    ],
)
def test_why_a_server_ended(log: list[str], said: str) -> None:
    assert reason(log) == said


def test_a_server_s_advice_for_new_clusters_is_not_passed_on() -> None:
    log = [
        "2026 [1] FATAL:  database files are incompatible with server",
        "2026 [1] DETAIL:  The database cluster was initialized with TOAST_MAX_CHUNK_SIZE 1996.",
        "2026 [1] HINT:  It looks like you need to recompile or initdb.",
    ]
    assert reason(log) == (
        "The files were written by a server that was built otherwise than the one here. "
        "The database cluster was initialized with TOAST_MAX_CHUNK_SIZE 1996. "
        "Name the directory of that build's programs (bindir), or look whether global/pg_control is damaged."
    )


def test_what_an_earlier_try_reached_is_in_the_log() -> None:
    log = [
        "2026-11-22 17:05:32 UTC [7] 00000 LOG:  redo done at 0/3000110 system usage: CPU: user: 0.00 s",
        "2026-11-22 17:05:32 UTC [7] 00000 LOG:  last completed transaction was at log time 2026-11-22 17:05:31.08+00",
    ]
    nothing = {"time": None, "lsn": None, "timeline": 1}
    assert recovered_to(nothing, log) == {
        "time": "2026-11-22T17:05:31.08+00:00",
        "lsn": "0/3000110",
        "timeline": 1,
        "reason": "end of the WAL",
    }
    assert recovered_to(nothing, []) == {**nothing, "reason": "shut down in order"}
