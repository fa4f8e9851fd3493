# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What an engine is to everything that knows none: the options of a start, what it will do, and what it has done.

See docs/engines/writing-an-engine.md. Whatever outlives a module (keeper, tear-down, metrics, logs) talks to an engine
through the session's record alone, and never through this.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

if TYPE_CHECKING:
    from .._host.command import Account
    from .._host.ports import PortChoice
    from .._session.session import Session

__all__ = ["ARGUMENTS", "Engine", "Plan", "Programs", "Request", "Started"]

# The options that every engine's server can be started with, those of doc_fragments/engine.py. An engine has more.
ARGUMENTS: dict[str, dict[str, Any]] = {
    "bindir": {"type": "path"},
    "settings": {"type": "dict", "default": {}},
    "read_only": {"type": "bool", "default": False},
    "network": {"type": "str", "choices": ["none", "host"], "default": "none"},
    "accept_unconfined": {"type": "bool", "default": False},
}


@dataclass(frozen=True)
class Request:
    """What a start is asked for, and where. Paths are absolute, timeout is in seconds.

    directory: the session's, or one that is laid out like it. account: whom the server runs as. links: where in tree
    directories are that links lead to, as far as this is known, by the links' paths below tree. configuration: the
    archived configuration's directory below tree, where that is known. log_source: a directory of archived logs.
    network: none, or host for a server that may open connections. recovered: what an earlier start of the same copy
    recovered to, as the engine recorded it. as_archived: the tree is the archive's mount, where files belong to whom
    Borg says.
    """

    directory: str
    data_directory: str
    account: Account
    port: int | None = None
    bindir: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    read_only: bool = False
    timeout: float = 600
    links: Mapping[str, str] = field(default_factory=dict)
    configuration: str | None = None
    log_source: str | None = None
    network: str = "none"
    examine: bool = True
    accept_unconfined: bool = False
    recovered: Mapping[str, Any] | None = None
    as_archived: bool = False

    @property
    def tree(self) -> str:
        """The copy: the data directory with whatever else of it the archive has."""
        return os.path.join(self.directory, "merged")

    @property
    def socket_directory(self) -> str:
        """Where the server makes its socket: a directory of its own, of which nothing is believed."""
        return os.path.join(self.directory, "run")

    @property
    def log(self) -> str:
        """The server's log file."""
        return os.path.join(self.directory, "log", "server.log")

    def config(self, name: str = "") -> str:
        """A file that tells the server something, or their directory."""
        return os.path.join(self.directory, "config", name).rstrip("/")

    def client(self, name: str = "") -> str:
        """A file for those who speak to the server, or their directory."""
        return os.path.join(self.directory, "client", name).rstrip("/")


class Plan(Protocol):
    """What a start will do, decided before anything is changed.

    settings: the server's, as they count. neutralised: what is cut loose from production, as what and why.
    carried_over: what it has in common with production all the same. warnings: what of it does not hold on this host.
    target: the point that is recovered to, in words, or None for the end of the copy's own logs.
    """

    @property
    def version(self) -> str: ...
    @property
    def bindir(self) -> str: ...
    @property
    def settings(self) -> Mapping[str, str]: ...
    @property
    def neutralised(self) -> Sequence[dict[str, str]]: ...
    @property
    def carried_over(self) -> Sequence[dict[str, str]]: ...
    @property
    def warnings(self) -> Sequence[str]: ...
    @property
    def target(self) -> str | None: ...


@dataclass(frozen=True)
class Started:
    """A server that was started. result is what the module returns: the keys of NOTHING in lifecycle.py.

    probe asks the server for its clients, for the session's record: argv, env and the sandbox of a command that prints
    JSON: clients, active_clients, queries (null where they are not counted) and traces, which differ after what clients
    do.
    """

    result: dict[str, Any]
    probe: dict[str, Any]


@dataclass(frozen=True)
class Programs:
    """The programs of one installation: major version, full version such as `15.18`, directory."""

    major: int
    version: str
    bindir: str

    def program(self, name: str) -> str:
        """The path of one program."""
        return os.path.join(self.bindir, name)

    def trees(self) -> tuple[str, ...]:
        """Where the programs and what belongs to them are: by the name that they are called by, and really."""
        above = os.path.dirname(os.path.realpath(self.bindir))
        return (self.bindir, *(os.path.join(above, part) for part in ("bin", "lib", "lib64", "share")))


R = TypeVar("R", bound=Request)
P = TypeVar("P", bound=Plan)


class Engine(Protocol[R, P]):
    """One database server product. All methods raise RecoveryError with a sentence for people.

    name: the role's, and what the record says. user: whom clients log in as. arguments: the options beyond ARGUMENTS.
    """

    @property
    def name(self) -> str: ...
    @property
    def user(self) -> str: ...
    @property
    def arguments(self) -> Mapping[str, dict[str, Any]]: ...

    def request(self, asked: Request, options: Mapping[str, Any]) -> R:
        """What is asked for with the engine's own options, which are checked; nothing is mounted yet."""

    def plan(self, request: R) -> P:
        """Look at everything that the start depends on; changes nothing."""

    def start(self, plan: P, session: Session, port: PortChoice) -> Started:
        """Do what plan says, on the port that is chosen.

        session gets a claim before each process is started. When this raises, everything that was started has ended.
        """

    def differences(self, request: R, result: Mapping[str, Any]) -> list[str]:
        """What of the running server is otherwise than asked for, in words. result: what its start returned."""

    def installed(self) -> list[Programs]:
        """The programs that are on this host, oldest first."""

    def find_programs(self, version: str, bindir: str | None) -> Programs | None:
        """Programs that can open data of that version; None where there are none."""

    def package(self, version: str) -> str:
        """The package that brings them on this distribution."""
