# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A throw-away PostgreSQL server on a copied data directory: recovered, started, asked.

From the first run of the server's program on, the copy and the directory of its socket are the archive's; see
_engine/server.py. What it answers comes through its socket, its output and its log.
"""

from __future__ import annotations

import os
import secrets
import socket
import struct
import time
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from .._engine.interface import Started
from .._engine.links import directory_within
from .._engine.server import BACKLOG, NotReadyError, Server, make_file, most_by_tcp, stop_server
from .._engine.steps import apply_steps
from .._errors import MORE_TIME, RecoveryError, listed, text_shown
from .._host.command import CommandError
from .._host.files import names_in, place_inside
from .._host.ports import ADDRESS, reserve_port
from .._session.record import SERVER, Claim
from .catalogs import TEMPLATES
from .client import client_environment, connection_words, psql
from .cluster import PostgresError, shown
from .detach import silenced
from .facts import Facts, Found, look_into
from .locales import DIRECTORY as LOCALES
from .locales import Locales
from .log import log_tail, reason
from .recovery import (
    IGNORES_INVALID_PAGES,
    SHUT_DOWN,
    allows_in_place_tablespaces,
    check_invalid_pages,
    check_outcome,
    explain,
    next_segment,
    recovered_to,
)
from .role import SESSION_ROLE, RoleSettings
from .settings import LOCALES as LOCALE_SETTINGS
from .settings import render_configuration
from .single_user import prepare, scram_verifier
from .wal import last_commit
from .wal_server import WalServer

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from .._host.ports import PortChoice
    from .._host.processes import Process
    from .._host.sandbox import Sandbox
    from .._session.session import Session
    from .catalogs import Catalogs
    from .plan import Plan

__all__ = ["start_server"]

SERVICE = "instant_recovery"  # in the connection service file
# What a client's environment may insist on (PGCHANNELBINDING=require, PGREQUIREPEER …) and a session's server does not
# have: each word with what it must say, and the first libpq that knows it. An older one refuses the service file or
# the URL that has the word, so words are written for those who have programs as new as the server's.
CLIENT_WORDS = (
    *(("hostaddr", "", 0), ("sslmode", "disable", 0), ("sslrootcert", "", 0), ("requirepeer", "", 0)),
    *(("options", "", 0), ("target_session_attrs", "any", 0), ("gssencmode", "disable", 0)),
    *(("channel_binding", "disable", 13), ("require_auth", "", 16), ("sslcertmode", "disable", 16)),
    *(("sslnegotiation", "postgres", 17), ("min_protocol_version", "3.0", 18)),
)
EVERYWHERE = 13  # a URL travels: to a libpq that is older than the server's, but not than this
FIRST_LOG_IN = 3.0  # seconds, even where the start has none left
# Fast shutdown first (clients are disconnected, data stays clean), then immediate, which also releases shared memory.
STOP_SIGNALS = (("SIGINT", 30.0), ("SIGQUIT", 5.0), ("SIGKILL", 5.0))
FOR_PEOPLE = ("neutralised", "carried_over", "recovered_to", "data")  # of the result
# Recovery before the server listens cannot be interrupted; SIGTERM ends it between two statements.
PREPARE_SIGNALS = (("SIGTERM", 2.0), ("SIGKILL", 5.0))
FIRST_PORT = 15432
USUAL_CONNECTIONS = 100  # PostgreSQL's max_connections

# Clients are what has logged in, and neither this query nor one of the server's own processes. Transactions are what
# the server counts without an extension; of a client that stays and reads no table it counts none until it leaves. So
# there are traces of clients beside: when one last did something, and whether anybody has written.
CLIENTS = """
with client as (
    select state, state_change from pg_catalog.pg_stat_activity
    where datname is not null and usesysid is not null and pid <> pg_catalog.pg_backend_pid()
)
select pg_catalog.json_build_object(
    'clients', (select pg_catalog.count(*) from client),
    'active_clients', (select pg_catalog.count(*) from client where state not like 'idle%'),
    'queries', {},
    'traces', pg_catalog.concat_ws(' ', (select pg_catalog.max(state_change) from client),
        pg_catalog.txid_snapshot_xmax(pg_catalog.txid_current_snapshot()))
)
"""
COUNTED = """(
        select coalesce(pg_catalog.sum(xact_commit + xact_rollback), 0) from pg_catalog.pg_stat_database
        where datname is not null and datname <> pg_catalog.current_database()
    )"""
# Up to 14 another process counts, to which a server without connections cannot talk: to ask it would take ten seconds.
COUNTS_BY_ITSELF = 15
MOST_SAID = 16 << 20  # bytes that a database may tell about itself

PASSFILE, SERVICE_FILE = "pgpass", "pg_service.conf"
HBA = f"""\
# Through the socket: everybody whom the directory's mode lets in, which is the server's own user.
local all all trust
# Through TCP: the session's role with its generated password. Passwords of archived roles do not open this server.
host all {SESSION_ROLE} {ADDRESS}/32 scram-sha-256
"""
PROTOCOL = 3 << 16  # of clients: PostgreSQL's documentation, "Message Formats", StartupMessage
STARTING_UP = b"57P03"  # SQLSTATE cannot_connect_now


def start_server(plan: Plan, *, session: Session, choice: PortChoice) -> Started:
    """See Engine.start in _engine/interface.py."""
    deadline = time.monotonic() + plan.request.timeout
    plan = replace(plan, sandbox=replace(plan.sandbox, memory_max=session.record.memory_max))
    try:
        is_listening = plan.sandbox.has_network() and plan.request.network != "host"
        backlog = BACKLOG if is_listening else 0
        with reserve_port(choice, first=FIRST_PORT, backlog=backlog) as (port, reserved):
            apply_steps(plan.clone.steps, plan.account)
            password = secrets.token_hex(24)  # a new one for each start: the last may have been told to somebody else
            argv = _configure(plan, port)
            prepared = _prepare(plan, argv, password, session, deadline)
            process = _start(plan, argv, port, reserved, prepared, session, deadline)
        database = _entered(prepared.catalogs)
        make_file(plan.request.client(PASSFILE), f"{ADDRESS}:{port}:*:{SESSION_ROLE}:{password}\n")
        make_file(plan.request.client(SERVICE_FILE), _service(plan, port, database))
        _log_in(plan, port, database, deadline)
        result = _result(plan, process, port, prepared, database, _facts(plan, prepared, port))
        return Started(result, _clients_probe(plan, port, prepared.catalogs.probed))
    except BaseException:
        stop_server(session)
        raise


def _clients_probe(plan: Plan, port: int, database: str) -> dict[str, Any]:
    """See Started. Transactions of the database that it asks in do not count."""
    counts = plan.data.major >= COUNTS_BY_ITSELF or plan.request.network == "host"
    query = CLIENTS.format(COUNTED if counts else "null")
    return {
        "argv": _psql(plan, port, database, query),
        "env": client_environment(plan.data.major),
        "sandbox": _client_room(plan, port).as_dict(),
    }


def _configure(plan: Plan, port: int) -> list[str]:
    """Write the session's configuration; the command line that uses it and nothing else."""
    request = plan.request
    files = {"postgresql.conf": render_configuration(plan.sections), "pg_hba.conf": HBA, "pg_ident.conf": ""}
    for name, text in files.items():
        make_file(request.config(name), text, reader=plan.account.gid)
    quoted = request.socket_directory.replace('"', '""')
    settings = {
        "config_file": request.config("postgresql.conf"),
        "hba_file": request.config("pg_hba.conf"),
        "ident_file": request.config("pg_ident.conf"),
        "port": str(port),
        "unix_socket_directories": f'"{quoted}"',  # a list: without quotes a comma would part it
        "cluster_name": f"{SERVICE} {os.path.basename(request.directory)}".strip()[:63],
        **plan.guards,
    }
    return [plan.programs.program("postgres"), "-D", plan.data.path, *_options(settings)]


@dataclass(frozen=True)
class _Prepared:
    """A recovered cluster: see Catalogs and recovered_to. silenced: what was taken out of WAL from elsewhere.

    environment: what its server needs in its environment. warnings: what of the cluster cannot be used here.
    """

    catalogs: Catalogs
    recovered_to: dict[str, Any]
    silenced: list[dict[str, str]]
    environment: dict[str, str]
    warnings: list[str]


def _prepare(plan: Plan, argv: list[str], password: str, session: Session, deadline: float) -> _Prepared:
    """Recover the cluster and change its catalogs, before anybody can connect."""
    session.claim(Claim(SERVER, "process", SERVER, signals=PREPARE_SIGNALS))
    recovery, start = plan.recovery, plan.clone.backup.start
    # Recovery removes this WAL, and unless it is archive recovery does not tell.
    commit = None if recovery or plan.recovered else last_commit(plan.clone.wal, start)
    server = WalServer(recovery.archive if recovery else None, plan.request.config(), plan.account)
    locales = _locales(plan)
    left_out = {} if plan.recovered else plan.clone.left_out
    settings = _tolerance(plan, left_out)
    # Before anything of the archive runs: what is there afterwards may lead anywhere.
    top = _tablespaces(plan)
    places, ending = names_in(top), next_segment(start, plan.clone.wal)
    with ExitStack() as serving:
        pipes: tuple[str, ...] = ()
        if recovery is not None:
            serving.enter_context(server)
            settings.update(recovery.settings(server.command))
            pipes = server.pipes
            _signal_recovery(plan)
        try:
            catalogs = prepare(
                [*argv, *_options(settings)],
                room=plan.sandbox.for_tool(readable=plan.sandbox.readable, writable=[*plan.sandbox.writable, *pipes]),
                log=plan.request.log,
                timeout=deadline - time.monotonic(),
                major=plan.data.major,
                verifier=scram_verifier(password, salt=secrets.token_bytes(16)),
                settings=_role_settings(plan),
                locales=locales,
                claim=lambda process: session.amend_claim(SERVER, process=process),
                explain=lambda log: explain(log, recovery, server.missing or ending),
            )
        finally:
            # To the server a file that cannot be used is the end of the WAL, which may look like success.
            if server.problem is not None:
                raise server.problem
    lost, problem = _without(plan, catalogs, left_out, top, {*places, *plan.clone.made, *map(str, server.records)})
    reached = _reached(plan, session, catalogs, commit, problem)
    taken_out = [silenced(record) for record in server.records.values()]
    warnings = [*locales.warnings(catalogs.locales), *_not_counted(catalogs), *lost]
    return _Prepared(catalogs, reached, taken_out, locales.environment, warnings)


def _tablespaces(plan: Plan) -> str:
    """The directory of tablespaces' links, wherever in the copy it is."""
    path = os.path.join(plan.data.path, "pg_tblspc")
    return directory_within(path, plan.request.tree) or path


def _tolerance(plan: Plan, left_out: Mapping[str, str]) -> dict[str, str]:
    """Settings by which recovery goes on where the copy has not everything."""
    settings = {"allow_in_place_tablespaces": "on"} if allows_in_place_tablespaces(plan.programs.version) else {}
    if left_out and plan.data.major >= IGNORES_INVALID_PAGES:
        settings["ignore_invalid_pages"] = "on"  # those of a tablespace that is left out: the others are looked for
    return settings


def _locales(plan: Plan) -> Locales:
    others = [plan.settings[name] for name in LOCALE_SETTINGS if name in plan.settings]
    return Locales(plan.request.config(LOCALES), others=others)


def _role_settings(plan: Plan) -> RoleSettings:
    request = plan.request
    return RoleSettings(settings=plan.settings, given=request.settings, read_only=request.read_only)


def _not_counted(catalogs: Catalogs) -> Iterator[str]:
    if catalogs.probed not in TEMPLATES:
        yield (
            f"The copy has neither {' nor '.join(TEMPLATES)}, so its clients are asked for in database "
            f"{catalogs.probed}: what only reads there does not count as use, and idle_timeout may end the session "
            "meanwhile."
        )


def _entered(catalogs: Catalogs) -> str:
    """The database that clients come to who name none: one with a name that can be written everywhere, if there is."""
    candidates = sorted(catalogs.databases, key=lambda name: name != "postgres")
    plain = (name for name in candidates if shown(name) == name == name.strip() and "\n" not in name)
    return next(plain, next(iter([*candidates, catalogs.probed])))


def _signal_recovery(plan: Plan) -> None:
    """Ask for archive recovery."""
    with place_inside(os.path.join(plan.data.path, "recovery.signal")) as place:
        descriptor = os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with open(descriptor, "wb"):
        if plan.account.uid != os.geteuid():
            os.fchown(descriptor, plan.account.uid, plan.account.gid)


def _without(
    plan: Plan, catalogs: Catalogs, left_out: Mapping[str, str], top: str, known: set[str]
) -> tuple[list[str], RecoveryError | None]:
    """Empty the tablespaces that the copy goes on without; warnings, and why it cannot.

    top: the directory of tablespaces' links, known: oids of those that it had a place for, or the WAL has made.
    """
    try:
        if left_out:
            check_invalid_pages(catalogs.log, left_out)
            _empty(plan, left_out)
        return _unlinked(plan, catalogs, top, known), None
    except RecoveryError as error:
        return [], error


def _unlinked(plan: Plan, catalogs: Catalogs, top: str, known: set[str]) -> list[str]:
    """Go on without tablespaces that nothing in the copy led to, where that is wanted. Raises PostgresError."""
    lost = sorted(catalogs.tablespaces.keys() - known) if plan.recovered is None else []
    if not lost:
        return []
    names = listed([f"{catalogs.tablespaces[oid]} ({oid})" for oid in lost])
    if plan.request.missing_tablespaces != "leave_out":
        raise PostgresError(
            f"The copy has no link in pg_tblspc for tablespace {names}, nor does tablespace_map name it, as when a "
            "backup passes over links: use an archive that has it, or go on without what lies there "
            "(missing_tablespaces=leave_out)."
        )
    # Recovery makes a directory where it misses one.
    argv = ["/usr/bin/find", top, "-mindepth", "2", "-regextype", "posix-extended"]
    argv += ["-regex", f".*/({'|'.join(lost)})/PG_[0-9]+_[0-9]+(/.*)?", "-delete"]
    plan.sandbox.for_tool(writable=plan.sandbox.writable).run(argv, timeout=plan.request.timeout)
    return [f"The copy has no place for tablespace {names}, which was left out: what lies there cannot be read."]


def _empty(plan: Plan, left_out: Mapping[str, str]) -> None:
    """Remove what recovery has put into tablespaces that are left out: parts of tables, which would pass for all.

    It is done by a program in the server's place, since the server's program may have put links there.
    """
    room = plan.sandbox.for_tool(writable=plan.sandbox.writable)
    argv = ["/usr/bin/find", *left_out.values(), "-mindepth", "1", "-delete"]
    room.run(argv, timeout=plan.request.timeout)


def _reached(
    plan: Plan, session: Session, catalogs: Catalogs, commit: float | None, failed: RecoveryError | None
) -> dict[str, Any]:
    """The point that the copy shows, recorded for later starts, as is what has failed since.

    Raises PostgresError where the point is wrong, and what has failed.
    """
    if plan.recovered is not None:
        return dict(plan.recovered["recovered_to"])
    reached = recovered_to(catalogs.reached, catalogs.log)
    if commit is not None:
        reached["time"] = datetime.fromtimestamp(commit, timezone.utc).isoformat(timespec="microseconds")
    target = plan.request.target
    problem = check_outcome(plan.recovery, catalogs.log) if failed is None else str(failed)
    known = {"target": None if target is None else str(target), "recovered_to": reached, "problem": problem}
    session.update(recovered=known)
    if failed is not None:
        raise failed
    if problem is not None:
        raise PostgresError(problem, log_tail=log_tail(plan.request.log))
    return reached


def _options(settings: Mapping[str, str]) -> list[str]:
    return [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]


def _start(
    plan: Plan,
    argv: list[str],
    port: int,
    reserved: socket.socket,
    prepared: _Prepared,
    session: Session,
    deadline: float,
) -> Process:
    """Start the server and wait until it accepts connections; when this raises, it has ended."""
    server = Server(
        argv,
        prepared.environment,
        room=plan.serving(port),
        signals=STOP_SIGNALS,
        socket_name=_socket_name(port),
        most_by_tcp=most_by_tcp(plan.settings.get("max_connections"), USUAL_CONNECTIONS),
        accepts=_accepts,
    )
    try:
        return server.start(plan.request, session, port, reserved, deadline=deadline)
    except NotReadyError as error:
        said = log_tail(plan.request.log, begin=error.begin)
        late = f"was not ready within {plan.request.timeout:g} s: {MORE_TIME}."
        problem = late if error.is_late else f"did not start: {reason(said)}"
        raise PostgresError(f"The server of PostgreSQL {plan.data.major} {problem}", log_tail=said) from None


def _socket_name(port: int) -> str:
    return f".s.PGSQL.{port}"


def _accepts(path: str) -> bool:
    """Whether a server accepts connections at a socket, as the first byte of its answer tells (libpq's PQping)."""
    body = struct.pack("!I", PROTOCOL) + f"user\0{SESSION_ROLE}\0database\0template1\0\0".encode()
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.settimeout(1.0)
        client.connect(path)
        client.sendall(struct.pack("!I", len(body) + 4) + body)
        answer = client.recv(1024)
        # Any other refusal is the login's to explain.
        return answer.startswith(b"R") or (answer.startswith(b"E") and STARTING_UP not in answer)
    return False


def _service(plan: Plan, port: int, database: str) -> str:
    entries = {
        # Through the socket: whoever takes the port when the server has died must not be told the password.
        "host": plan.request.client(),
        "port": str(port),
        "user": SESSION_ROLE,
        # A name out of the archive could hold further lines.
        "dbname": database if database == database.strip() and "\n" not in database else "template1",
        # Whatever asks for one at the socket, PGPASSWORD is not told: it is of another server.
        "password": "",
        "passfile": plan.request.client(PASSFILE),
        **_words(plan.data.major),
    }
    return f"[{SERVICE}]\n" + "".join(f"{name}={value}\n" for name, value in entries.items())


def _words(known: int) -> dict[str, str]:
    """CLIENT_WORDS of a libpq of that major version."""
    return {word: value for word, value, since in CLIENT_WORDS if since <= known}


def _url(plan: Plan, port: int, database: str) -> str:
    """For the TCP port; without a password PGPASSWORD would count, and not the file."""
    words = {"passfile": plan.request.client(PASSFILE), "password": "", **_words(min(plan.data.major, EVERYWHERE))}
    words["hostaddr"] = ADDRESS
    del words["requirepeer"]  # of sockets alone
    query = "&".join(f"{word}={quote(value)}" for word, value in words.items())
    return f"postgresql://{SESSION_ROLE}@{ADDRESS}:{port}/{quote(database, safe='', errors='surrogateescape')}?{query}"


def _psql(plan: Plan, port: int, database: str, query: str) -> list[str]:
    target = connection_words(plan.request.client(), port, database)
    return psql(plan.programs.program("psql"), target, query)


def _client_room(plan: Plan, port: int) -> Sandbox:
    """Where our own programs talk to the server: it may answer with anything."""
    programs = plan.programs.trees()
    return plan.sandbox.for_tool(readable=programs, writable=[plan.request.client(_socket_name(port))], network="unix")


def _log_in(plan: Plan, port: int, database: str, deadline: float) -> None:
    """Log in once as a user of the session would. Raises PostgresError when that fails.

    It reads the database's catalogs, which may wait for the repository.
    """
    seconds = max(FIRST_LOG_IN, deadline - time.monotonic())
    env = {**client_environment(plan.data.major), "PGCONNECT_TIMEOUT": f"{seconds:.0f}"}
    try:
        _client_room(plan, port).run(_psql(plan, port, database, "select 1"), timeout=seconds + 1, env=env)
    except CommandError as error:
        said = error.stderr.strip() or str(error)
        if time.monotonic() >= deadline:
            said = f"not within {plan.request.timeout:g} s: {MORE_TIME} ({said})"
        message = f"The server is ready, but the session's role cannot log in: {said}"
        raise PostgresError(shown(message), log_tail=log_tail(plan.request.log), **shown(error.details)) from error


def _facts(plan: Plan, prepared: _Prepared, port: int) -> Facts:
    """What can be said about the data; the databases are asked unless that is not wanted."""
    databases, control = prepared.catalogs.databases, plan.data.control
    found = Found(not_looked_into=list(databases))
    if plan.request.examine:
        room = _client_room(plan, port)

        def ask(database: str, query: str, timeout: float) -> bytes:
            argv = _psql(plan, port, database, query)
            env = client_environment(plan.data.major, prepared.catalogs.encoding(database))
            return room.run(argv, timeout=timeout, env=env, limit=MOST_SAID).stdout

        found = look_into(databases, ask=ask, bindir=plan.programs.bindir)
    return Facts(
        checksums=control.data_checksum_version != 0,
        last_commit=prepared.recovered_to["time"],
        prepared_transactions=prepared.catalogs.prepared,
        unlogged_relations=prepared.catalogs.unlogged,
        found=found,
        collations=prepared.catalogs.collations,
        was_examined=plan.request.examine,
        was_recovered=prepared.recovered_to["reason"] != SHUT_DOWN,
    )


def _result(
    plan: Plan, process: Process, port: int, prepared: _Prepared, database: str, facts: Facts
) -> dict[str, Any]:
    catalogs = prepared.catalogs
    warnings = [*plan.warnings, *prepared.warnings, *facts.warnings()]
    result = {
        "version": plan.programs.version,
        "port": port,
        "socket_directory": plan.request.client(),
        "pid": process.pid,
        "user": SESSION_ROLE,
        "superuser": catalogs.superuser,
        "databases": catalogs.databases,
        "connection_string": _url(plan, port, database),
        "client_file": plan.request.client(SERVICE_FILE),
        "log": plan.request.log,
        "bindir": plan.programs.bindir,
        "read_only": plan.request.read_only,
        "network": plan.request.network,
        "settings": plan.settings,
        "neutralised": [*plan.neutralised, *prepared.silenced, *catalogs.neutralised],
        "carried_over": [*plan.carried_over, *catalogs.staying],
        "recovered_to": prepared.recovered_to,
        "data": facts.as_dict(),
        "session": None,
        **({"warnings": warnings} if warnings else {}),  # Ansible shows them
    }
    told: dict[str, Any] = shown(result)
    # These are for people alone: nothing of what the copy says may act on their terminals.
    return {**told, **{name: text_shown(told[name]) for name in FOR_PEOPLE}}
