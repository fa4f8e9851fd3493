# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the plans of all engines have in common: where the copy is, what its server can reach, how long a look may take.

That a name begins with check means: it raises RecoveryError for what stands in the way of a start.
"""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar

from .._errors import MORE_TIME, RecoveryError
from .._host.deadline import deadline
from .._host.files import open_inside
from .._host.limits import own_memory
from .._host.links import is_within
from .._host.ports import check_port, check_socket_path
from .._host.sandbox import Sandbox
from .interface import Programs, Request
from .links import resolve_within

if TYPE_CHECKING:
    from collections.abc import Callable

    from .._host.command import Account

__all__ = ["ServerPlan", "check_recovered", "check_request", "find_logs", "make_bounded", "server_sandbox"]

MOST_TOLD = 1 << 20  # characters: of a copy with everything that can be told they are some thousands


@dataclass(frozen=True)
class ServerPlan:
    """What will be done; see Plan in _engine/interface.py.

    sections: the settings that a session's configuration file has, by heading. sandbox: what the server can reach.
    """

    request: Request
    programs: Programs
    account: Account
    sections: dict[str, dict[str, str]]
    neutralised: tuple[dict[str, str], ...]
    carried_over: tuple[dict[str, str], ...]
    sandbox: Sandbox
    warnings: tuple[str, ...]

    @property
    def settings(self) -> dict[str, str]:
        """The configuration file's settings as they count."""
        return {name: value for section in self.sections.values() for name, value in section.items()}

    @property
    def version(self) -> str:
        """The server's, in full."""
        return self.programs.version

    @property
    def bindir(self) -> str:
        """Directory of its programs."""
        return self.programs.bindir

    def serving(self, port: int) -> Sandbox:
        """The sandbox of the server itself, which may listen on this port."""
        return replace(self.sandbox, network="host" if self.request.network == "host" else "serve", port=port)


P = TypeVar("P", bound=ServerPlan)


def make_bounded(request: Request, make: Callable[[], P]) -> P:
    """The plan that make gives. It may take the request's timeout, and half of the host's memory."""
    late = RecoveryError(f"The copy was not looked through within {request.timeout:g} s: {MORE_TIME}.")
    large = RecoveryError("To look through the copy takes more than half of this host's memory: use another archive.")
    with deadline(request.timeout, late), own_memory(large):
        plan = make()
        told = sum(len(text) for entry in (*plan.neutralised, *plan.carried_over) for text in entry.values())
        if told > MOST_TOLD:
            raise RecoveryError(
                f"What has to be changed in the copy takes {told >> 20} MiB to tell: no server needs so much. Use "
                "another archive, and find out who made this."
            )
        return plan


def check_request(request: Request, *, socket_name: str) -> None:
    """Check port, path of the socket, and that the data directory is the copy's: a link could lead to production's."""
    if request.port is not None:
        check_port(request.port)
    check_socket_path(request.client(), socket_name)
    path, tree = request.data_directory, request.tree
    if is_within(path, tree) and ".." not in path.split("/"):
        try:
            os.close(open_inside(path, os.O_PATH | os.O_DIRECTORY))
            return
        except OSError as error:
            if error.errno not in (errno.ELOOP, errno.ENOTDIR):
                raise RecoveryError(f"data_directory {path} cannot be read: {error.strerror}.") from error
    raise RecoveryError(
        f"data_directory {path} is not a directory of the copy in {tree}, or a link is on the way to it: name a "
        "directory of the copy itself."
    )


def check_recovered(request: Request, target: object | None) -> None:
    """Check that an earlier start, if any, has recovered the copy to what is asked for now."""
    recovered = request.recovered
    if recovered is None:
        return
    if recovered.get("problem"):
        raise RecoveryError(f"{recovered['problem']} This copy went past it: start from the archive again.")
    if target is not None and str(target) != recovered["target"]:
        raise RecoveryError(
            f"The copy in {request.data_directory} was recovered already, to "
            f"{recovered['target'] or 'the end of its own logs'}: start from the archive again to see it at {target}."
        )


def find_logs(request: Request) -> str | None:
    """Where log_source is, of which no part is a link any more.

    In the session's directory there are archives alone, each mounted at a place of its own: there a link means what it
    meant on the host that it is from. Followed as it stands, it might lead to a directory of this host.
    """
    source = request.log_source
    if source is None:
        return None
    if not is_within(source, request.directory):
        return os.path.realpath(source)
    place, _slash, path = os.path.relpath(source, request.directory).partition("/")
    within = resolve_within(os.path.join(request.directory, place), path or ".")
    if within is None:
        raise RecoveryError(f"log_source {source} is not in the archive: name a directory that it has.")
    return within


def server_sandbox(request: Request, programs: Programs) -> Sandbox:
    """What every server needs: its own programs, what it is told, the copy, and a directory for its socket."""
    return Sandbox(
        account=request.account,
        readable=(*programs.trees(), request.config()),
        writable=(request.tree, request.socket_directory),
        private=(request.socket_directory,),
        session_directory=request.directory,
        accept_unconfined=request.accept_unconfined,
    )
