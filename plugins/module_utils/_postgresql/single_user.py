# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Recovery of a copied cluster, and what has to be changed in its catalogs, before a server listens.

Both are done by one run of `postgres --single`. It needs no role to log in as (the bootstrap superuser may have any
name, or be barred from logging in), starts no workers, and lets nobody else in. Measured: 40 ms beside recovery
itself, which is as fast there as in a server and then need not be done by the server.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import re
import time
from collections import deque
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from .._errors import MORE_TIME
from .._host.command import CommandError, OutputError
from .catalogs import Catalogs, catalog_script, parse_catalogs
from .cluster import PostgresError
from .locales import missing_locale
from .log import log_tail, reason

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from .._host.processes import Process
    from .._host.sandbox import Sandbox
    from .locales import Locales
    from .role import RoleSettings

__all__ = ["prepare", "scram_verifier"]

SCRAM_ITERATIONS = 4096  # PostgreSQL's own number; the password is random, so more would only slow logins
# To run in: the first that exists, beginning with the one that can least be done without.
DATABASES = ("template1", "postgres", "template0")
INVALID_CATALOG_NAME = "3D000"  # SQLSTATE: the database does not exist
ABOUT_RECOVERY = re.compile(
    rb"LOG:  (?:recovery stopping |redo done at |last completed transaction was at log time )"
    rb"|WARNING:  (?:page \d+ of relation |WAL was generated with )"
)
MOST_LINES, LONGEST_LINE = 10_000, 1024  # of the log that are kept at either end, and bytes of each
MOST_SAID = 16 << 20  # bytes that the catalogs may tell, of names of databases mostly


def prepare(
    argv: Sequence[str],
    *,
    room: Sandbox,
    log: str,
    timeout: float,
    major: int,
    verifier: str,
    settings: RoleSettings,
    locales: Locales,
    claim: Callable[[Process], None] = lambda _process: None,
    explain: Callable[[list[str]], str | None] = lambda _log: None,
) -> Catalogs:
    """Recover the cluster and change its catalogs: see catalog_script. The session role gets this SCRAM verifier.

    argv is the server's, without --single and the database's name, and is run in room. The log gets what the server
    says. claim gets the process of each server that is run for it, before it runs. locales makes one that is missing.
    Raises PostgresError with the server's reason, or what explain makes of its last lines; also when it takes more than
    timeout seconds.
    """
    deadline = time.monotonic() + timeout
    earlier = _size(log)
    script = catalog_script(major=major, verifier=verifier, settings=settings)
    databases = iter(DATABASES)
    database = next(databases, None)
    while database is not None:
        begin = _size(log)
        single = [argv[0], "--single", "-j", *argv[1:], *_OPTIONS, database]
        left = max(0.0, deadline - time.monotonic())
        code, output = _run(single, script, room=room, log=log, timeout=left, env=locales.environment, claim=claim)
        said = log_tail(log, begin=begin)
        if code == 0:
            return replace(parse_catalogs(output, said), log=_about_recovery(log, begin=earlier))
        # After recovery: what it reached is in the log alone.
        if any(f" {INVALID_CATALOG_NAME} " in line for line in said):
            database = next(databases, None)
            continue
        missing = missing_locale(said)
        if missing is None:
            problem = explain(said) or f"PostgreSQL {major} cannot be started on the copy: {reason(said)}"
            raise PostgresError(problem, log_tail=said)
        locales.require(missing)
    raise PostgresError(f"The cluster has none of the databases {', '.join(DATABASES)}: it cannot be entered.")


def scram_verifier(password: str, *, salt: bytes) -> str:
    """What PostgreSQL stores for a password of ASCII letters (RFC 5803): from it, nobody can log in."""
    salted = hashlib.pbkdf2_hmac("sha256", password.encode("ascii"), salt, SCRAM_ITERATIONS)
    client_key = hmac.digest(salted, b"Client Key", "sha256")
    keys = (hashlib.sha256(client_key).digest(), hmac.digest(salted, b"Server Key", "sha256"))
    stored, server = (base64.b64encode(key).decode() for key in keys)
    return f"SCRAM-SHA-256${SCRAM_ITERATIONS}:{base64.b64encode(salt).decode()}${stored}:{server}"


def _about_recovery(log: str, *, begin: int) -> list[str]:
    """What the log from the byte begin on says about recovery: of very many lines the first and the last."""
    first: list[bytes] = []
    last: deque[bytes] = deque(maxlen=MOST_LINES)
    with suppress(OSError), open(log, "rb") as file:
        file.seek(begin)
        while line := file.readline(LONGEST_LINE):
            if ABOUT_RECOVERY.search(line):
                (first if len(first) < MOST_LINES else last).append(line)
    return [line.decode("utf-8", "replace").rstrip("\n") for line in (*first, *last)]


def _size(path: str) -> int:
    return os.path.getsize(path) if os.path.exists(path) else 0


# Beside the server's own settings. A path for functions that the archive cannot change, and writes whatever the session
# may do later; the SQLSTATE in the log tells one failure from another.
_OPTIONS = (
    *("-c", "search_path=pg_catalog"),
    *("-c", "default_transaction_read_only=off"),
    *("-c", "log_line_prefix=%m [%p] %e "),
    *("-c", "TimeZone=UTC"),
    *("-c", "log_min_error_statement=panic"),
)


def _run(
    argv: Sequence[str],
    script: str,
    *,
    room: Sandbox,
    log: str,
    timeout: float,
    env: Mapping[str, str],
    claim: Callable[[Process], None],
) -> tuple[int, str]:
    """Return code and output. The log is written to while it runs: a long recovery can be followed there."""
    # The memory is the server's own affair; what it prints is the archive's, and has a bound.
    bounds: dict[str, Any] = {"timeout": timeout, "memory": 0, "limit": MOST_SAID}
    try:
        done = room.run(argv, check=False, stdin=script.encode(), log=log, env=env, claim=claim, **bounds)
    except OutputError:
        raise
    except CommandError:
        problem = f"Recovery of the copy did not finish within {timeout:g} s: {MORE_TIME}."
        raise PostgresError(problem, log_tail=log_tail(log)) from None
    return done.returncode, done.stdout.decode("utf-8", "surrogateescape")
