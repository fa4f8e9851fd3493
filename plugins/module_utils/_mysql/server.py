# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A throw-away server of MariaDB or MySQL on a copied data directory: recovered, started, asked.

From the first run of the server's program on, the copy and the directory of its socket are the archive's; see
_engine/server.py. What it answers comes through its socket, its output and its log.
"""

from __future__ import annotations

import os
import secrets
import socket
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from .._engine.interface import Started
from .._engine.server import BACKLOG, NotReadyError, Server, make_file, most_by_tcp, stop_server
from .._engine.steps import apply_steps
from .._errors import MORE_TIME, RecoveryError, shown, text_shown
from .._host.command import CommandError
from .._host.ports import ADDRESS, reserve_port
from .account import ACCOUNT, LOGINS, PROBE, REPLAYER, account_script, clients_query, unlocked_query
from .encryption import KEYS, LIBRARY
from .facts import DATABASES, Facts, find_tables, named
from .log import explain, log_tail, missing_libraries, prepared_transactions, rolled_back, said_since
from .option_file import MysqlError, render_options
from .plan import SOCKET, read_only
from .plugins import allowed_libraries, plugin_directory
from .programs import NAMES, tool_of
from .replay import Feed, Replay

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .._host.ports import PortChoice
    from .._host.processes import Process
    from .._host.sandbox import Sandbox
    from .._session.session import Session
    from .plan import Plan

__all__ = ["start_server"]

FIRST_PORT = 13306
FIRST_LOG_IN = 3.0  # seconds, even where the start has none left
# innodb_fast_shutdown=2 writes out little more than the log; nothing that is lost then is missed.
STOP_SIGNALS = (("SIGTERM", 10.0), ("SIGKILL", 5.0))
SERVERS = {"mariadb": ("mariadbd", "mysqld"), "mysql": ("mysqld",)}
USUAL_CONNECTIONS = 151  # max_connections of both
CLIENT_FILE = "client.cnf"  # for people, in the directory of clients
GREETING = 10  # version of the protocol, the first byte of what a server says
FEED = "replay.pipe"  # in the same directory
BINLOG_PROGRAMS = {"mariadb": ("mariadb-binlog", "mysqlbinlog"), "mysql": ("mysqlbinlog",)}
# Values are parameters, and no part of the script. The mark comes only when the first program has come to its end.
MARK = b"replayed to the end"
REPLAY = f"""{{ "$2" --disable-log-bin - <"$1" && echo "select '{MARK.decode()}';"; }} |
"$3" "$4" --batch --skip-column-names --binary-mode --default-character-set=utf8mb4"""
MOST_SAID = 16 << 20  # bytes that a server may answer
# Directories of the installation that a server from elsewhere has to be told; found by what is in them.
MESSAGES, CHARSETS = "english/errmsg.sys", "charsets/Index.xml"


def start_server(plan: Plan, *, session: Session, choice: PortChoice) -> Started:
    """See Engine.start in _engine/interface.py."""
    deadline = time.monotonic() + plan.request.timeout
    plan = plan.within(session.record.memory_max)
    passwords = _passwords(ACCOUNT, PROBE)
    try:
        is_listening = plan.sandbox.has_network() and plan.request.network != "host"
        backlog = BACKLOG if is_listening else 0
        with reserve_port(choice, first=FIRST_PORT, backlog=backlog) as (port, reserved):
            begin = os.path.getsize(plan.request.log) if os.path.exists(plan.request.log) else 0
            apply_steps(plan.detached.steps, plan.account)
            reached = _reached(plan, port, session, deadline)
            argv = _configure(plan, port, passwords)
            process = _start(plan, argv, port, reserved, session, deadline)
        _write_logins(plan, port, passwords)
        databases = _log_in(plan, deadline)
        _check_locked(plan, deadline)
        session.update(recovered=reached)
        make_file(plan.request.client(CLIENT_FILE), _login(plan, port, ACCOUNT, passwords[ACCOUNT]))
        facts = _facts(plan, databases, said_since(plan.request.log, begin))
        result = _result(plan, process, port, dict(reached["recovered_to"]), facts)
        return Started(result, _clients_probe(plan))
    except BaseException:
        stop_server(session)
        raise


def _passwords(*names: str) -> dict[str, str]:
    """Made up for one start: each is of letters, digits and a sign, as plugins of production may ask for."""
    return {name: f"{secrets.token_hex(24)}Aa1-" for name in names}


def _configure(plan: Plan, port: int, passwords: Mapping[str, str], more: Mapping[str, str] | None = None) -> list[str]:
    """Write what the server is told; the command line that has it read that and nothing else."""
    request, reader = plan.request, plan.account.gid
    own = {"port": str(port), "server_id": str(1 + secrets.randbelow(0xFFFFFFFE)), **_installation(plan)}
    text = render_options({**plan.sections, "This run alone": {**own, **(more or {})}})
    make_file(request.config("my.cnf"), text, reader=reader)
    script = account_script(
        is_mariadb=plan.data.is_mariadb,
        series=plan.series,
        passwords=passwords,
        read_only=request.read_only,
    )
    make_file(request.config("init.sql"), script, reader=reader)
    if plan.keys is not None:
        make_file(request.config(KEYS), plan.keys.decode("ascii", "surrogateescape"), reader=reader)
    _link_plugins(plan)
    program = tool_of(plan.programs, *SERVERS[plan.data.product])
    return [program or "", f"--defaults-file={request.config('my.cnf')}"]


def _installation(plan: Plan) -> dict[str, str]:
    """Where the server's own files are, which are built in where it was installed to."""
    above = os.path.dirname(os.path.realpath(plan.programs.bindir))
    found = {"basedir": above}
    for name in ("mysql", "mariadb", "mysql-9.7", ""):
        place = os.path.join(above, "share", name).rstrip("/")
        if os.path.exists(os.path.join(place, MESSAGES)):
            found["lc_messages_dir"] = place
        if os.path.exists(os.path.join(place, CHARSETS)):
            found["character_sets_dir"] = os.path.join(place, os.path.dirname(CHARSETS))
    return found


def _link_plugins(plan: Plan) -> None:
    directory = plan.request.config("plugins")
    os.makedirs(directory, mode=0o755, exist_ok=True)
    os.chmod(directory, 0o755)
    source = plugin_directory(plan.programs)
    more = [] if plan.keys is None else [LIBRARY]
    for name in [*allowed_libraries(source), *more]:
        with suppress(FileExistsError):
            os.symlink(os.path.join(source or "", name), os.path.join(directory, name))


def _start(
    plan: Plan, argv: list[str], port: int, reserved: socket.socket | None, session: Session, deadline: float
) -> Process:
    """Start the server and wait until it accepts connections; when this raises, it has ended."""
    # A commit is acknowledged once it is in the binary log, and what is prepared mostly was. Where the copy has no such
    # log MariaDB does not start before it is told what to do: measured, with commit 42757 rows of 42756, with rollback
    # 42734. Some versions do that in a run of its own, after which they end.
    ways = [argv, [*argv, "--tc-heuristic-recover=COMMIT"], argv]
    while True:
        server = Server(
            ways.pop(0),
            {},
            room=plan.serving(port),
            signals=STOP_SIGNALS,
            socket_name=SOCKET,
            most_by_tcp=most_by_tcp(plan.settings.get("max_connections"), USUAL_CONNECTIONS),
            accepts=_accepts,
        )
        try:
            return server.start(plan.request, session, port, reserved, deadline=deadline)
        except NotReadyError as error:
            said = said_since(plan.request.log, error.begin)
            if not ways or error.is_late or not plan.data.is_mariadb or not prepared_transactions(said):
                raise _not_started(plan, error) from None


def _not_started(plan: Plan, error: NotReadyError) -> MysqlError:
    said = said_since(plan.request.log, error.begin)
    late = f"was not ready within {plan.request.timeout:g} s: {MORE_TIME}."
    problem = late if error.is_late else f"did not start: {explain(said)}"
    tail = log_tail(plan.request.log, begin=error.begin)
    return MysqlError(f"The server of {NAMES[plan.data.product]} {plan.version} {problem}", log_tail=tail)


def _accepts(path: str) -> bool:
    """Whether a server greets at a socket: it speaks first."""
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.settimeout(1.0)
        client.connect(path)
        answer = client.recv(16)
        return len(answer) > 4 and answer[4] in (GREETING, 0xFF)
    return False


def _write_logins(plan: Plan, port: int, passwords: Mapping[str, str]) -> None:
    """Option files for our own programs, which run as the server's user."""
    request = plan.request
    for user, password in passwords.items():
        make_file(request.config(LOGINS[user]), _login(plan, port, user, password), reader=plan.account.gid)


def _login(plan: Plan, port: int, user: str, password: str) -> str:
    # Through the socket: whoever takes the port when the server has died must not be told the password.
    entries = {
        "user": user,
        "password": password,
        "host": "localhost",
        "port": str(port),
        "socket": plan.request.client(SOCKET),
        "protocol": "SOCKET",
        "loose-local-infile": "0",  # whatever is asked, a server could ask for another file
    }
    return render_options({"": entries}, group="client")


def _client_room(plan: Plan) -> Sandbox:
    """Where our own programs talk to the server: it may answer with anything."""
    readable = [*plan.programs.trees(), plan.request.config()]
    return plan.sandbox.for_tool(readable=readable, writable=[plan.request.client(SOCKET)], network="unix")


def _client(plan: Plan, login: str, statement: str) -> list[str]:
    """A command line on which nothing is left to option files, environments or defaults."""
    options = ["--batch", "--skip-column-names", "--raw", "--skip-auto-rehash", "--connect-timeout=10"]
    options += ["--default-character-set=utf8mb4"]
    return [plan.client, f"--defaults-file={plan.request.config(login)}", *options, "-e", statement]


def _ask(plan: Plan, statement: str, timeout: float, *, login: str = LOGINS[ACCOUNT]) -> str:
    done = _client_room(plan).run(_client(plan, login, statement), timeout=timeout, limit=MOST_SAID)
    return done.stdout.decode("utf-8", "replace")


def _clients_probe(plan: Plan) -> dict[str, Any]:
    """See Started."""
    query = clients_query(is_mariadb=plan.data.is_mariadb)
    return {"argv": _client(plan, LOGINS[PROBE], query), "env": {}, "sandbox": _client_room(plan).as_dict()}


def _log_in(plan: Plan, deadline: float) -> list[str]:
    """Log in once as a user of the session would; the databases that there are. Raises MysqlError when that fails.

    A statement of the script that makes accounts may have failed: the server comes up all the same.
    """
    try:
        return named(_ask(plan, DATABASES, max(FIRST_LOG_IN, deadline - time.monotonic())))
    except CommandError as error:
        said = error.stderr.strip() or str(error)
        if time.monotonic() >= deadline:
            said = f"not within {plan.request.timeout:g} s: {MORE_TIME} ({said})"
        message = f"The server is ready, but the session's account cannot log in: {said}"
        raise MysqlError(shown(message), log_tail=log_tail(plan.request.log)) from error
    except ValueError as error:
        raise MysqlError("The server is ready, but its list of databases cannot be read.") from error


def _check_locked(plan: Plan, deadline: float) -> None:
    """Raise MysqlError where an account of the copy lets somebody in after all."""
    query = unlocked_query(is_mariadb=plan.data.is_mariadb, series=plan.series)
    if query and _ask(plan, query, max(FIRST_LOG_IN, deadline - time.monotonic())).strip() != "0":
        raise MysqlError(
            "Accounts of the copy stay open, though they were locked: its system tables are not as a server makes "
            "them. Use another archive, and find out who made this."
        )


def _reached(plan: Plan, port: int, session: Session, deadline: float) -> dict[str, Any]:
    """The point that the copy shows, as it is recorded for later starts; after replay, it is recorded."""
    if plan.request.recovered is not None:
        return dict(plan.request.recovered)
    known = {"target": plan.target, "recovered_to": _by_itself(plan), "problem": None}
    if plan.replay is None:
        return known
    try:
        if plan.replay.pieces:
            _replay_alone(plan, plan.replay, port, session, deadline)
    except RecoveryError as error:
        session.update(recovered={**known, "problem": str(error)})
        raise
    reached = {**known, "recovered_to": plan.replay.reached}
    session.update(recovered=reached)
    return reached


def _replay_alone(plan: Plan, replay: Replay, port: int, session: Session, deadline: float) -> None:
    """Replay in a run of its own, to which nobody else can come: archived logs make accounts, and open others.

    The run that follows locks them all.
    """
    passwords = _passwords(REPLAYER)
    argv = _configure(plan, port, passwords, {"skip_networking": "ON", **read_only(plan.data, "OFF")})
    _start(plan, argv, port, None, session, deadline)
    _write_logins(plan, port, passwords)
    _replay(plan, replay, deadline)
    # A server that takes too long to end is killed, and then has what it has written to its logs.
    _ask(
        plan, "flush tables; flush engine logs", max(FIRST_LOG_IN, deadline - time.monotonic()), login=LOGINS[REPLAYER]
    )
    stop_server(session)


def _replay(plan: Plan, replay: Replay, deadline: float) -> None:
    """Have the client execute what the archived logs hold. Raises MysqlError where it does not come to the end."""
    program = tool_of(plan.programs, *BINLOG_PROGRAMS[plan.data.product])
    if program is None:
        name = BINLOG_PROGRAMS[plan.data.product][0]
        raise MysqlError(
            f"There is no {name} here, which turns binary logs into statements: install it (package mariadb-client, "
            "mysql-client or the like)."
        )
    late = max(FIRST_LOG_IN, deadline - time.monotonic())
    room = _client_room(plan)
    login = f"--defaults-file={plan.request.config(LOGINS[REPLAYER])}"
    with Feed(replay, plan.request.config(FEED), plan.account.gid, deadline=deadline) as feed:
        argv = ["/bin/sh", "-c", REPLAY, "replay", feed.path, program, plan.client, login]
        done = room.run(argv, timeout=late, check=False, limit=MOST_SAID, memory=0)
    if feed.problem is not None:
        raise MysqlError(f"The archived binary logs cannot be read: {feed.problem}")
    if done.returncode or MARK not in done.stdout:
        said = done.stderr.strip() or "the program said nothing"
        raise MysqlError(
            f"Replay of the archived binary logs ended before {replay.reached['position']}: {shown(said[-1000:])}",
            log_tail=log_tail(plan.request.log),
        )


def _by_itself(plan: Plan) -> dict[str, Any]:
    """The point that the copy's own files lead to."""
    data, logs = plan.data, plan.data.binlogs
    position = None
    if logs is not None and logs.names and not data.is_clean:
        position = f"the end of {logs.names[-1]}"
    if data.backup is not None and data.backup.file is not None:
        position = f"{data.backup.file}:{data.backup.position}"
    reason = "the server had been shut down" if data.is_clean else "end of the copy's logs"
    gtid = data.backup.gtid if data.backup is not None else None
    return {"time": None, "position": position, "gtid": gtid, "reason": reason}


def _facts(plan: Plan, databases: list[str], said: list[str]) -> Facts:
    """What can be said about the data; tables are looked at unless that is not wanted."""
    facts = Facts(databases=databases, is_clean=plan.data.is_clean, libraries=missing_libraries(said))
    if plan.data.is_mariadb:
        facts.prepared_transactions = prepared_transactions(said) or 0
    elif plan.detached.binlog is None:  # MySQL decides by itself, and does not say so
        facts.prepared_transactions, facts.prepared_were = rolled_back(said), "rolled back"
    if plan.request.examine:
        find_tables(facts, lambda statement, timeout: _ask(plan, statement, timeout))
    return facts


def _result(plan: Plan, process: Process, port: int, reached: dict[str, Any], facts: Facts) -> dict[str, Any]:
    warnings = [*plan.warnings, *facts.warnings()]
    result = {
        "version": plan.version,
        "port": port,
        "socket_directory": plan.request.client(),
        "pid": process.pid,
        "user": ACCOUNT,
        "superuser": ACCOUNT,
        "databases": facts.databases,
        "connection_string": f"mysql://{ACCOUNT}@{ADDRESS}:{port}/",
        "client_file": plan.request.client(CLIENT_FILE),
        "log": plan.request.log,
        "bindir": plan.bindir,
        "read_only": plan.request.read_only,
        "network": plan.request.network,
        "settings": plan.settings,
        "neutralised": list(plan.neutralised),
        "carried_over": list(plan.carried_over),
        "recovered_to": reached,
        "data": facts.as_dict(),
        "session": None,
        **({"warnings": warnings} if warnings else {}),  # Ansible shows them
    }
    told: dict[str, Any] = text_shown(result)
    return told
