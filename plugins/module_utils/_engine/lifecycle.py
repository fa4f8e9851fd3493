# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module of any engine: a session's server started, stopped and started again."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from .._errors import RecoveryError, run_module
from .._host.command import account
from .._host.ports import PortChoice
from .._layer.lost import lost_content
from .._session.port import is_kept, keep_port, release_port
from .._session.record import SERVER
from .._session.session import Session, claiming
from .interface import ARGUMENTS, Engine, P, Plan, R, Request
from .server import running_server, stop_server

__all__ = ["run"]

# Every result has these keys.
NOTHING: dict[str, Any] = {
    **dict.fromkeys(("version", "port", "pid", "user", "superuser")),
    "databases": [],
    **dict.fromkeys(("connection_string", "client_file", "log", "bindir", "read_only", "network")),
    "settings": {},
    "neutralised": [],
    "carried_over": [],
    "recovered_to": None,
    "data": None,
    "session": None,
}
ASKED = ("port", "bindir", "settings", "read_only", "network", "timeout", "links", "examine", "accept_unconfined")
COMPARED = ("read_only", "network")
GRACE = 60.0  # seconds beyond its timeout that a start may take to give up by itself
RECORDED = ("port", "socket_directory", "user", "connection_string", "client_file", "pid", "recovered_to")


def run(engine: Engine[R, P]) -> None:
    """Wire the module's arguments to starting or stopping."""
    module = AnsibleModule(
        argument_spec={
            "session_directory": {"type": "path", "required": True},
            # No type path, in which Ansible puts the environment's variables: these are of the archive, and may be
            # called $BORG_PASSPHRASE.
            "data_directory": {"type": "str"},
            "links": {"type": "dict", "default": {}},
            "configuration_directory": {"type": "str"},
            "port": {"type": "int"},
            **ARGUMENTS,
            **engine.arguments,
            "log_source": {"type": "str"},
            "examine": {"type": "bool", "default": True},
            "timeout": {"type": "int", "default": 1800},
            "state": {"type": "str", "choices": ["started", "stopped", "restarted"], "default": "started"},
        },
        required_if=[("state", "started", ["data_directory"])],
        supports_check_mode=True,
    )
    act = {"started": _start, "stopped": _stop, "restarted": _restart}[module.params["state"]]
    run_module(module, lambda: act(engine, module.params, check_mode=module.check_mode))


def _start(engine: Engine[R, P], options: dict[str, Any], *, check_mode: bool) -> dict[str, Any]:
    begun = time.monotonic()
    if check_mode:
        session = Session.open(options["session_directory"])
        request = _request(engine, options, session)
        return _unchanged(engine, request, session) or _predicted(engine, request)
    with claiming(options["session_directory"]) as session:
        request = _request(engine, options, session)
        unchanged = _unchanged(engine, request, session)
        if unchanged is not None:
            return {**unchanged, "session": session.record.public()}
        stop_server(session)  # what an earlier start that was cut off has left
        choice = _choose_port(session, request)
        with _noting_failure(session), session.within(request.timeout + GRACE), _naming_lost_content(session):
            plan = engine.plan(request)
            started = engine.start(plan, session, choice)
        result = started.result
        session.remember(SERVER, options)
        session.timing(SERVER, time.monotonic() - begun)
        recorded = {key: result[key] for key in RECORDED}
        try:
            if result["port"] != choice.before:
                release_port(session)
            keep_port(session, result["port"])
            session.activate(
                engine_version=result["version"], server=result, probe=started.probe, error_message=None, **recorded
            )
        except BaseException:
            stop_server(session)
            raise
        shown = {**result, "session": session.record.public(), **_warnings(result, choice)}
    return {**shown, "changed": True, "diff": _difference(request, plan, result)}


@contextmanager
def _noting_failure(session: Session) -> Iterator[None]:
    """Have the record say why there is no server: after a reset it is the keeper that ends the session."""
    try:
        yield
    except (RecoveryError, OSError) as error:
        with suppress(RecoveryError, OSError):
            session.update(error_message=str(error))
        raise


@contextmanager
def _naming_lost_content(session: Session) -> Iterator[None]:
    """Have content that the repository has lost be the error, whatever the server made of it."""
    try:
        yield
    except (RecoveryError, OSError) as error:
        lost = lost_content(session)
        if lost is None:
            raise
        raise RecoveryError(lost, **getattr(error, "details", {})) from error


def _restart(engine: Engine[R, P], options: dict[str, Any], *, check_mode: bool) -> dict[str, Any]:
    """Stop it if it runs, and start it as it was started before."""
    session = Session.open(options["session_directory"])
    again = {**options, **session.remembered(SERVER)}
    if check_mode:
        return {**_predicted(engine, _request(engine, again, session)), "changed": True}
    _end(again, keeps_port=True)
    return _start(engine, again, check_mode=False)


def _end(options: dict[str, Any], *, keeps_port: bool) -> bool:
    """End the server; whether there was one."""
    with claiming(options["session_directory"]) as session:
        changed = stop_server(session)
        session.release_claim(SERVER)
        session.update(pid=None, server=None)
        if not keeps_port:
            release_port(session)
    return changed


def _stop(_engine: Engine[R, P], options: dict[str, Any], *, check_mode: bool) -> dict[str, Any]:
    session = Session.open(options["session_directory"])
    is_running = running_server(session) is not None
    changed = is_running if check_mode else _end(options, keeps_port=False)
    difference = {"before": {"state": "started" if is_running else "stopped"}, "after": {"state": "stopped"}}
    shown = {**NOTHING, "socket_directory": session.path("client")}
    return {**shown, "changed": changed, "diff": difference}


def _request(engine: Engine[R, P], options: dict[str, Any], session: Session) -> R:
    log_source = options["log_source"]
    asked = Request(
        directory=session.directory,
        data_directory=os.path.abspath(options["data_directory"]),
        account=account(session.record.server_user or ""),
        configuration=options["configuration_directory"],
        log_source=None if log_source is None else os.path.abspath(os.path.expanduser(log_source)),
        recovered=session.record.recovered,
        **{name: options[name] for name in ASKED},
    )
    return engine.request(asked, options)


def _unchanged(engine: Engine[R, P], request: R, session: Session) -> dict[str, Any] | None:
    """The result where the server runs already; None where it has to be started, or started anew."""
    result = session.record.server if running_server(session) is not None else None
    if result is None:
        return None
    wanted = {**{name: getattr(request, name) for name in COMPARED}, "port": request.port or result["port"]}
    different = [f"{name} {result[name]}" for name, value in wanted.items() if result[name] != value]
    different += engine.differences(request, result)
    if different:
        raise RecoveryError(
            f"The server on {request.data_directory} runs already, with {', '.join(different)}: "
            "stop it first (state=stopped) to start it otherwise."
        )
    return {**result, "changed": False, "diff": {"before": {"state": "started"}, "after": {"state": "started"}}}


def _predicted(engine: Engine[R, P], request: R) -> dict[str, Any]:
    """The result in check mode, where the data directory may not be mounted yet."""
    known = {"port": request.port, "socket_directory": request.client(), "read_only": request.read_only}
    known["network"] = request.network
    result: dict[str, Any] = {**NOTHING, **known, "user": engine.user, "log": request.log, "changed": True}
    if not os.path.lexists(request.data_directory):
        return {**result, "diff": {"before": {"state": "stopped"}, "after": {"state": "started"}}}
    plan = engine.plan(request)
    result.update(
        version=plan.version,
        bindir=plan.bindir,
        settings=plan.settings,
        neutralised=list(plan.neutralised),
        carried_over=list(plan.carried_over),
    )
    warnings = {"warnings": list(plan.warnings)} if plan.warnings else {}
    return {**result, **warnings, "diff": _difference(request, plan, result)}


def _difference(request: Request, plan: Plan, result: dict[str, Any]) -> dict[str, Any]:
    after = {
        "state": "started",
        "data_directory": request.data_directory,
        **{key: result[key] for key in ("version", "port", "settings", "neutralised", "carried_over")},
        **({"recovery": plan.target} if plan.target else {}),
    }
    return {"before": {"state": "stopped"}, "after": after}


def _choose_port(session: Session, request: Request) -> PortChoice:
    """The port that is asked for, or that the server had; another session's server may be down, and need its own."""
    others = (other for other in Session.all(os.path.dirname(session.directory)) if other.id != session.id)
    avoid = frozenset(other.record.port for other in others if other.record.port is not None)
    before = session.record.port
    # When it is started again nobody asks: the option was remembered.
    asked = None if request.port == before else request.port
    return PortChoice(asked=asked, before=before, is_kept=is_kept(session), avoid=avoid)


def _warnings(result: Mapping[str, Any], choice: PortChoice) -> dict[str, list[str]]:
    """What was warned of, and that the server has another port than before."""
    warnings = list(result.get("warnings", ()))
    if choice.asked is None and choice.before not in (None, result["port"]):
        warnings.append(
            f"Port {choice.before}, which the server had before, is somebody else's by now: it has {result['port']}."
        )
    return {"warnings": warnings} if warnings else {}
