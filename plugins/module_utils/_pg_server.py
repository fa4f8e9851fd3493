# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A throw-away PostgreSQL server on a copied data directory: started, recognised, stopped."""

from __future__ import annotations

import ctypes
import json
import os
import re
import secrets
import select
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from ansible_collections.phpborg.instant_recovery.plugins.module_utils._command import CommandError, run
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._pg_clone import (
    apply_steps,
    empty_left_out,
    silenced,
)
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._pg_facts import (
    Facts,
    Found,
    look_into,
    unlogged_relations,
)
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._pg_prepare import (
    SESSION_ROLE,
    Catalogs,
    log_tail,
    prepare,
    reason,
    scram_verifier,
)
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._pg_recovery import (
    IGNORES_INVALID_PAGES,
    RECOVERED,
    SHUT_DOWN,
    allows_in_place_tablespaces,
    check_invalid_pages,
    check_outcome,
    explain,
    next_segment,
    recovered_to,
)
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._pg_restore import PIPES, WalServer
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._pg_settings import render_configuration
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._pg_wal import last_commit
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._ports import ADDRESS, reserve_port
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._postgresql import (
    PostgresError,
    read_regular_file,
)
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._processes import (
    MARKER,
    Process,
    identify,
    open_pidfd,
    spawn,
    stop,
)
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._shared_memory import (
    release,
    shared_memory_of,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from ansible_collections.phpborg.instant_recovery.plugins.module_utils._pg_plan import Plan
    from ansible_collections.phpborg.instant_recovery.plugins.module_utils._session import Session

__all__ = ["STOP_SIGNALS", "Running", "clients_probe", "find_running", "recorded_result", "start_server", "stop_server"]

SERVICE = "instant_recovery"  # in the connection service file
# What the environment of the one who starts may say is meant for other servers. Names come with their schemas.
PSQL_ENVIRONMENT = {"PGOPTIONS": "-c search_path=", "PGPASSWORD": "", "PGCLIENTENCODING": "UTF8"}

# Fast shutdown first (clients are disconnected, data stays clean), then immediate, which also releases shared memory.
STOP_SIGNALS = (("SIGINT", 30.0), ("SIGQUIT", 5.0), ("SIGKILL", 5.0))
# Recovery before the server listens cannot be interrupted; SIGTERM ends it between two statements.
PREPARE_SIGNALS = (("SIGTERM", 2.0), ("SIGKILL", 5.0))
READY = ("ready", "standby")  # as postmaster.pid has it: src/include/utils/pidfile.h

# Clients are what has logged in, and neither this query nor one of the server's own processes. Transactions are what
# the server counts without an extension; of a client that stays and reads no table it counts none until it leaves. So
# there are traces of clients beside: when one last did something, and whether anybody has written.
PROBED = "template1"
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
PASSWORD = re.compile(r":([0-9a-f]{48})\n")

# What a start writes into the socket directory.
PASSFILE = "pgpass"
FILES = ("postgresql.conf", "pg_hba.conf", "pg_ident.conf", PASSFILE, "pg_service.conf", "server.json", *PIPES)
HBA = f"""\
# Through the socket: everybody whom the directory's mode lets in, which is the server's own user.
local all all trust
# Through TCP: the session's role with its generated password. Passwords of archived roles do not open this server.
host all {SESSION_ROLE} {ADDRESS}/32 scram-sha-256
"""


@dataclass(frozen=True)
class Running:
    """A server that runs on a data directory, as postmaster.pid has it. status: starting, ready, stopping, standby."""

    process: Process
    port: int
    socket_directory: str
    status: str

    @property
    def ready(self) -> bool:
        """Whether it accepts connections."""
        return self.status in READY


def start_server(plan: Plan, *, session: Session | None, avoid: frozenset[int] = frozenset()) -> dict[str, Any]:
    """Do what plan says and return what the module returns.

    Unless plan has a port, those in avoid are passed over. session gets a claim before each process is started. When
    this raises, everything that was started has ended.
    """
    deadline = time.monotonic() + plan.request.timeout
    made = _make_directories(plan)
    try:
        with reserve_port(plan.request.port, avoid=avoid) as port:
            apply_steps(plan.clone.steps, plan.account)
            password = _kept_password(plan) or secrets.token_hex(24)
            argv = _configure(plan, port)
            with plan.confinement.arguments() as confined:
                prepared = _prepare(plan, argv, password, session, deadline, confined)
                process = _start(plan, argv, session, deadline, confined)
        databases = prepared.catalogs.databases
        database = "postgres" if "postgres" in databases else next(iter(databases), "template1")
        _write(plan, PASSFILE, f"{ADDRESS}:{port}:*:{SESSION_ROLE}:{password}\n")
        _write(plan, "pg_service.conf", _service(plan, port, database))
        with ThreadPoolExecutor(max_workers=1) as meanwhile:
            unlogged = meanwhile.submit(unlogged_relations, plan.data.path, prepared.catalogs.oids)
            _log_in(plan)
        result = _result(plan, process, port, prepared, database, _facts(plan, prepared, unlogged.result()))
        _write(plan, "server.json", json.dumps(result, indent=1))
        return result
    except BaseException:
        stop_server(plan.data.path, plan.request.socket_directory, keep_password=session is not None)
        for directory in made:
            with suppress(OSError):  # a directory with the log in it stays: the log says what happened
                os.rmdir(directory)
        raise


def clients_probe(plan: Plan) -> dict[str, Any]:
    """What asks the server for its clients, for the session's record: argv, env and user of a command.

    It prints JSON: clients, active_clients, queries (null where they are not counted) and traces, which differ after
    what clients do. It asks in template1, whose own transactions do not count.
    """
    counts = plan.data.major >= COUNTS_BY_ITSELF or plan.request.network == "host"
    query = CLIENTS.format(COUNTED if counts else "null")
    service = f"service={SERVICE} dbname={PROBED}"
    return {
        "argv": [plan.binaries.program("psql"), "-X", "-w", "-q", "-A", "-t", "-c", query, service],
        "env": {
            "PGSERVICEFILE": os.path.join(plan.request.socket_directory, "pg_service.conf"),
            "PGCONNECT_TIMEOUT": "3",
            **PSQL_ENVIRONMENT,
            **_environment(plan),
        },
        "user": plan.account.pw_name,
    }


def recorded_result(running: Running) -> dict[str, Any] | None:
    """What start_server returned for this server, or None when its start was cut off before."""
    content = read_regular_file(os.path.join(running.socket_directory, "server.json"))
    try:
        result: dict[str, Any] = json.loads(content or b"{}")
    except ValueError:
        return None
    return result if result.get("pid") == running.process.pid else None


def stop_server(data_directory: str, socket_directory: str | None, *, keep_password: bool = False) -> bool:
    """Stop the server of data_directory and remove what its start wrote. Returns whether there was anything to do.

    keep_password leaves the session role's password for the next start.

    Raises PostgresError when the server does not end.
    """
    running = find_running(data_directory)
    if running is not None and not _end(running.process):
        raise PostgresError(
            f"The server on {data_directory}, process {running.process.pid}, did not end: the kernel holds it, "
            "probably because the file system below does not answer. Stop it again when that has been mended."
        )
    # After SIGKILL the server's lock files are left, its pid among them.
    left = [os.path.join(data_directory, "postmaster.pid")] if running else []
    directory = socket_directory or (running.socket_directory if running else None)
    if directory is not None:
        left += [os.path.join(directory, name) for name in FILES if not (keep_password and name == PASSFILE)]
        left += [os.path.join(directory, name) for name in _names(directory) if name.startswith(".s.PGSQL.")]
    removed = [path for path in left if _unlink(path)]
    return running is not None or bool(removed)


def _end(process: Process) -> bool:
    """Stop process and remove what it would leave if it had to be killed; whether it ended."""
    shared_memory = shared_memory_of(process.pid)
    ended = stop(process, STOP_SIGNALS)
    if ended:
        release(shared_memory)
    return ended


def find_running(data_directory: str) -> Running | None:
    """The server that runs on data_directory, or None.

    An archived postmaster.pid names a process of another machine or time. So it counts only when that process has
    this data directory on its command line and belongs to the directory's owner.
    """
    content = read_regular_file(os.path.join(data_directory, "postmaster.pid"))
    lines = (content or b"").decode("utf-8", "surrogateescape").splitlines()
    try:
        pid = abs(int(lines[0]))  # negative: the single-user run of a start
        port = int(lines[3]) if len(lines) > 3 else 0
    except (IndexError, ValueError):
        return None
    process = identify(pid)
    if process is None or not _serves(pid, os.path.realpath(data_directory)) or not process.alive():
        return None
    return Running(
        process=process,
        port=port,
        socket_directory=lines[4].strip() if len(lines) > 4 else "",
        status=lines[7].strip() if len(lines) > 7 else "starting",
    )


def _serves(pid: int, data_directory: str) -> bool:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            words = [os.fsdecode(word) for word in file.read().split(b"\0")]
        owner = os.stat(f"/proc/{pid}").st_uid
        return words[words.index("-D") + 1] == data_directory and owner == os.stat(data_directory).st_uid
    except (OSError, IndexError, ValueError):
        return False


def _kept_password(plan: Plan) -> str | None:
    """The password that an earlier start in the same session gave the session's role."""
    if plan.request.session_directory is None:
        return None
    content = read_regular_file(os.path.join(plan.request.socket_directory, PASSFILE)) or b""
    found = PASSWORD.search(content.decode("ascii", "replace"))
    return found.group(1) if found else None


def _make_directories(plan: Plan) -> list[str]:
    """Make the directories that are missing; which ones."""
    made = []
    request, account = plan.request, plan.account
    for directory in (request.socket_directory, request.log_directory):
        if not os.path.isdir(directory):
            os.makedirs(directory, mode=0o700)
            made.append(directory)
    if request.socket_directory in made and account.pw_uid != os.geteuid():
        os.chown(request.socket_directory, account.pw_uid, account.pw_gid)
    return made


def _configure(plan: Plan, port: int) -> list[str]:
    """Write the session's configuration; the command line that uses it and nothing else."""
    directory = plan.request.socket_directory
    _write(plan, "postgresql.conf", render_configuration(plan.sections))
    _write(plan, "pg_hba.conf", HBA)
    _write(plan, "pg_ident.conf", "")
    session = os.path.basename(plan.request.session_directory or "")
    quoted = directory.replace('"', '""')
    settings = {
        "config_file": os.path.join(directory, "postgresql.conf"),
        "hba_file": os.path.join(directory, "pg_hba.conf"),
        "ident_file": os.path.join(directory, "pg_ident.conf"),
        "port": str(port),
        "unix_socket_directories": f'"{quoted}"',  # a list: without quotes a comma would part it
        "cluster_name": f"{SERVICE} {session}".strip()[:63],
        **plan.guards,
    }
    return [plan.binaries.program("postgres"), "-D", plan.data.path, *_options(settings)]


def _write(plan: Plan, name: str, text: str, *, directory: str | None = None) -> None:
    """A file in the socket directory, for the server's user alone. That user may have planted links there."""
    path = os.path.join(directory or plan.request.socket_directory, name)
    temporary = f"{path}.new"
    _unlink(temporary)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with open(descriptor, "w", encoding="utf-8", errors="surrogateescape") as file:
        if plan.account.pw_uid != os.geteuid():
            os.fchown(descriptor, plan.account.pw_uid, plan.account.pw_gid)
        file.write(text)
    os.rename(temporary, path)


def _environment(plan: Plan) -> dict[str, str]:
    directory = plan.request.session_directory
    return {} if directory is None else {MARKER: directory}


@dataclass(frozen=True)
class _Prepared:
    """A recovered cluster: see Catalogs and recovered_to. silenced: what was taken out of WAL from elsewhere."""

    catalogs: Catalogs
    recovered_to: dict[str, Any]
    silenced: list[dict[str, str]]


def _prepare(
    plan: Plan, argv: list[str], password: str, session: Session | None, deadline: float, confined: dict[str, Any]
) -> _Prepared:
    """Recover the cluster and change its catalogs, before anybody can connect."""
    if session is not None:
        session.claim(name="server", kind="process", signals=PREPARE_SIGNALS)
    recovery, start = plan.recovery, plan.clone.backup.start
    # Recovery removes this WAL, and unless it is archive recovery does not tell.
    commit = None if recovery or plan.recovered else last_commit(plan.clone.wal, start)
    server = WalServer(recovery.archive if recovery else None, plan.request.socket_directory, plan.account)
    settings = {"allow_in_place_tablespaces": "on"} if allows_in_place_tablespaces(plan.binaries.version) else {}
    with ExitStack() as serving:
        if recovery is not None:
            serving.enter_context(server)
            settings.update(recovery.settings(server.command))
            _write(plan, "recovery.signal", "", directory=plan.data.path)
        left_out = {} if plan.recovered else plan.clone.left_out
        if left_out and plan.data.major >= IGNORES_INVALID_PAGES:
            settings["ignore_invalid_pages"] = "on"  # those of a tablespace that is left out: the others are looked for
        try:
            catalogs = prepare(
                [*argv, *_options(settings)],
                user=plan.account.pw_name,
                log=plan.request.log,
                env=_environment(plan),
                timeout=deadline - time.monotonic(),
                major=plan.data.major,
                verifier=scram_verifier(password, salt=secrets.token_bytes(16)),
                read_only=plan.request.read_only,
                confined=confined,
                started=lambda pid: _claimed(session, pid),
                explain=lambda log: explain(log, recovery, server.missing or next_segment(start, plan.clone.wal)),
            )
        finally:
            # To the server a file that cannot be used is the end of the WAL, which may look like success.
            if server.problem is not None:
                raise server.problem
    if left_out:
        check_invalid_pages(catalogs.log, left_out)
        empty_left_out(plan.clone, plan.account)
    return _Prepared(
        catalogs, _reached(plan, catalogs, commit), [silenced(record) for record in server.records.values()]
    )


def _claimed(session: Session | None, pid: int) -> None:
    process = identify(pid)
    if session is not None and process is not None:
        session.amend_claim("server", process=process)


def _reached(plan: Plan, catalogs: Catalogs, commit: float | None) -> dict[str, Any]:
    """The point that the copy shows, kept beside its data for later starts. Raises PostgresError where it is wrong."""
    if plan.recovered is not None:
        return dict(plan.recovered["recovered_to"])
    reached = recovered_to(catalogs.reached, catalogs.log)
    if commit is not None:
        reached["time"] = datetime.fromtimestamp(commit, timezone.utc).isoformat(timespec="microseconds")
    target = plan.request.target
    problem = check_outcome(plan.recovery, catalogs.log)
    kept = {"copy": plan.request.copy, "target": None if target is None else str(target), "recovered_to": reached}
    _write(plan, RECOVERED, json.dumps({**kept, "problem": problem}), directory=plan.data.path)
    if problem is not None:
        raise PostgresError(problem, log_tail=log_tail(plan.request.log))
    return reached


def _options(settings: Mapping[str, str]) -> list[str]:
    return [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]


def _start(plan: Plan, argv: list[str], session: Session | None, deadline: float, confined: dict[str, Any]) -> Process:
    """Start the server and wait until it accepts connections; when this raises, it has ended."""
    log = plan.request.log
    begin = os.path.getsize(log)
    if session is not None:
        session.claim(name="server", kind="process", signals=STOP_SIGNALS)
    with _watch(plan.data.path) as changes:
        process = spawn(argv, log=log, env=_environment(plan), user=plan.account.pw_name, **confined)
        is_ready = False
        try:
            if session is not None:
                session.amend_claim("server", process=process)
            is_ready = _wait_until_ready(plan.data.path, process, changes, deadline)
            if session is not None and is_ready:
                session.amend_claim("server", shared_memory=shared_memory_of(process.pid))
            is_late = process.alive()
        finally:
            if not is_ready:
                _end(process)
    if is_ready:
        return process
    said = log_tail(log, begin=begin)
    late = f"was not ready within {plan.request.timeout:g} s: give it more time (timeout)."
    problem = late if is_late else f"did not start: {reason(said)}"
    raise PostgresError(f"The server of PostgreSQL {plan.data.major} {problem}", log_tail=said)


def _wait_until_ready(data_directory: str, process: Process, changes: int | None, deadline: float) -> bool:
    """Whether process became ready before the deadline; otherwise it has ended or takes too long."""
    while process.alive():
        running = find_running(data_directory)
        if running is not None and running.process == process and running.ready:
            return True
        left = deadline - time.monotonic()
        if left <= 0:
            return False
        _await(process, changes, left)
    return False


def _await(process: Process, changes: int | None, seconds: float) -> None:
    """Return when process has ended or something has changed, at the latest after so many seconds."""
    pidfd = open_pidfd(process)
    watched = [descriptor for descriptor in (pidfd, changes) if descriptor is not None]
    try:
        waiter = select.poll()
        for descriptor in watched:
            waiter.register(descriptor, select.POLLIN)
        # Where the kernel cannot tell both, look again soon.
        waiter.poll(1000 * (seconds if len(watched) == 2 else min(seconds, 0.02)))
        if changes is not None:
            with suppress(BlockingIOError):
                os.read(changes, 65536)
    finally:
        if pidfd is not None:
            os.close(pidfd)


@contextmanager
def _watch(directory: str) -> Iterator[int | None]:
    """A descriptor that becomes readable when a file in directory is written (inotify); None where there is none left.

    It tells of postmaster.pid, in which a server writes its state whichever way it was built.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = int(libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK))
    if descriptor < 0:
        yield None
        return
    try:
        written = 0x2 | 0x8 | 0x80 | 0x100  # IN_MODIFY, IN_CLOSE_WRITE, IN_MOVED_TO, IN_CREATE
        watch = libc.inotify_add_watch(descriptor, os.fsencode(directory), written)
        yield descriptor if watch >= 0 else None
    finally:
        os.close(descriptor)


def _service(plan: Plan, port: int, database: str) -> str:
    entries = {
        "host": ADDRESS,
        "port": str(port),
        "user": SESSION_ROLE,
        "dbname": database,
        "passfile": os.path.join(plan.request.socket_directory, PASSFILE),
        # The server has neither, and the environment of a client may insist on them.
        "sslmode": "disable",
        "gssencmode": "disable",
    }
    return f"[{SERVICE}]\n" + "".join(f"{name}={value}\n" for name, value in entries.items())


def _log_in(plan: Plan) -> None:
    """Log in once as a user of the session would. Raises PostgresError when that fails."""
    service_file = os.path.join(plan.request.socket_directory, "pg_service.conf")
    argv = [plan.binaries.program("psql"), "-X", "-w", "-q", "-A", "-t", "-c", "select 1", f"service={SERVICE}"]
    environment = {"PGSERVICEFILE": service_file, **PSQL_ENVIRONMENT, **_environment(plan)}
    try:
        run(argv, timeout=30, env=environment, user=plan.account.pw_name)
    except CommandError as error:
        message = f"The server is ready, but the session's role cannot log in: {error.stderr.strip() or error}"
        raise PostgresError(message, log_tail=log_tail(plan.request.log), **error.details) from error


def _facts(plan: Plan, prepared: _Prepared, unlogged: dict[str, int]) -> Facts:
    """What can be said about the data; the databases are asked unless that is not wanted."""
    databases, control = prepared.catalogs.databases, plan.data.control
    environment = {"PGSERVICEFILE": os.path.join(plan.request.socket_directory, "pg_service.conf"), **PSQL_ENVIRONMENT}
    found = Found(not_looked_into=list(databases))
    if plan.request.examine:
        found = look_into(
            databases,
            psql=plan.binaries.program("psql"),
            bindir=plan.binaries.bindir,
            env={**environment, **_environment(plan)},
            user=plan.account.pw_name,
        )
    return Facts(
        checksums=control.data_checksum_version != 0,
        last_commit=prepared.recovered_to["time"],
        prepared_transactions=prepared.catalogs.prepared,
        unlogged_relations=unlogged,
        found=found,
        collations=prepared.catalogs.collations,
        was_recovered=prepared.recovered_to["reason"] != SHUT_DOWN,
    )


def _result(
    plan: Plan, process: Process, port: int, prepared: _Prepared, database: str, facts: Facts
) -> dict[str, Any]:
    catalogs = prepared.catalogs
    warnings = [*plan.warnings, *catalogs.warnings, *facts.warnings()]
    directory = plan.request.socket_directory
    passfile = os.path.join(directory, PASSFILE)
    return {
        "version": plan.binaries.version,
        "port": port,
        "socket_directory": directory,
        "pid": process.pid,
        "user": SESSION_ROLE,
        "superuser": catalogs.superuser,
        "databases": catalogs.databases,
        "connection_string": (
            f"postgresql://{SESSION_ROLE}@{ADDRESS}:{port}/{quote(database, safe='')}?passfile={quote(passfile)}"
        ),
        "service_file": os.path.join(directory, "pg_service.conf"),
        "log": plan.request.log,
        "bindir": plan.binaries.bindir,
        "read_only": plan.request.read_only,
        "network": plan.request.network,
        "settings": plan.settings,
        "neutralised": [*plan.neutralised, *prepared.silenced, *catalogs.neutralised],
        "carried_over": list(plan.carried_over),
        "recovered_to": prepared.recovered_to,
        "data": facts.as_dict(),
        "session": None,
        **({"warnings": warnings} if warnings else {}),  # Ansible shows them
    }


def _names(directory: str) -> list[str]:
    try:
        return os.listdir(directory)
    except OSError:
        return []


def _unlink(path: str) -> bool:
    try:
        os.unlink(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True
