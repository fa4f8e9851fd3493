# Copyright (c) 2026, phpBorg contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where each source is verified: who may do it, and who of them does. Pure; the inventory is handed in."""

from __future__ import annotations

import hashlib
import math
import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..module_utils._errors import RecoveryError, shown

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

__all__ = [
    "CONTROLLER",
    "Inventory",
    "PlaceError",
    "VerificationHost",
    "assign",
    "connection",
    "read_verification_host",
]

CONTROLLER = "localhost"  # what Ansible calls the host that it runs on
KINDS = ("host", "hosts", "group")
# How far above its share a host may be loaded before the next one in order is taken.
SLACK = 1.25
# Connection variables that are, or hold, a secret: these stay where they are.
SECRET = re.compile(r"pass|secret|token|private_key\Z", re.IGNORECASE)
# A template that names a variable and does nothing with it, and a host's name that can stand in one.
EXPRESSION = re.compile(r"\{\{\s*(\w+)\s*\}\}")
PLAIN = re.compile(r"[\w.@-]+")
ADDRESS = re.compile(r"[0-9.]+|.*:.*")
FORMS = "write source, local, the name of a host, or one of {host: NAME}, {hosts: [NAME, …]} and {group: NAME}."


class PlaceError(RecoveryError):
    """No host can be named that verifies a source."""


@dataclass(frozen=True)
class Inventory:
    """What is known of hosts: their names, the members of groups, and what the controller calls itself.

    `address` tells a host's C(ansible_host). `machines` are the inventory's names of what archives call their hosts, as
    far as somebody said so.
    """

    hosts: Collection[str] = ()
    groups: Mapping[str, Sequence[str]] = field(default_factory=dict)
    address: Callable[[str], str] = str
    controller: str = CONTROLLER
    machines: Mapping[str, str] = field(default_factory=dict)

    def host_of(self, machine: str) -> str | None:
        """The inventory's name of a machine that an archive names; None where it is not certain."""
        if machine in self.machines:
            return self.machines[machine]
        if machine in self.hosts:
            return machine
        alike = [name for name in self.hosts if _short(name) == _short(machine)]
        return alike[0] if len(alike) == 1 else None

    def is_same(self, host: str, machine: str) -> bool:
        """Whether a host may be that machine. Names that are alike but for their domains are taken to be one."""
        if machine in self.machines:
            known = self.machines[machine]
            return bool(self._names(host) & self._names(known))
        return bool({_short(name) for name in self._names(host)} & {_short(name) for name in self._names(machine)})

    def _names(self, host: str) -> set[str]:
        own = {self.controller} if host == CONTROLLER else set()
        return {host, *own, *([self.address(host)] if host in self.hosts else [])}


@dataclass(frozen=True)
class VerificationHost:
    """What verification_host says: `kind` is source, hosts or group, and `names` those of the hosts or of the group."""

    kind: str
    names: tuple[str, ...] = ()

    def candidates(self, machines: Sequence[str], inventory: Inventory, *, segregated: bool) -> list[str]:
        """Names of hosts that may verify what these machines have archived, the newest one's first.

        Where it is segregated, none of them is one of the machines. Raises PlaceError where none is left.
        """
        found = self._hosts(machines, inventory)
        if not segregated:
            return found
        if not machines:
            raise PlaceError(
                "segregated is true, and the archives do not say which machine made them: set segregated to false, or "
                "have them made with their host's name."
            )
        others = [host for host in found if not any(inventory.is_same(host, machine) for machine in machines)]
        if not others:
            raise PlaceError(
                f"segregated is true, and {', '.join(found)} is the source itself, or may be by its name: name another "
                "verification_host, or say in machines which host of the inventory the source is."
            )
        return others

    def _hosts(self, machines: Sequence[str], inventory: Inventory) -> list[str]:
        if self.kind == "hosts":
            return list(self.names)
        if self.kind == "group":
            return _members(self.names[0], inventory)
        host = inventory.host_of(machines[0]) if machines else None
        if host is None:
            raise PlaceError(
                f"verification_host is source, and the machine {shown(machines[0]) if machines else '(unknown)'} is no "
                "host of the inventory that was read before: add it, or say in machines which host it is."
            )
        return [host]


def read_verification_host(value: Any) -> VerificationHost:
    """What an inventory file says in verification_host. Raises PlaceError."""
    if isinstance(value, str) and value:
        if value == "source":
            return VerificationHost("source")
        return VerificationHost("hosts", (CONTROLLER if value in ("local", "controller") else str(value),))
    if isinstance(value, Mapping) and len(value) == 1 and next(iter(value)) in KINDS:
        kind, given = next(iter(value.items()))
        names = given if kind == "hosts" and isinstance(given, list) else [given]
        if names and all(isinstance(name, str) and name for name in names):
            return VerificationHost("group" if kind == "group" else "hosts", tuple(dict.fromkeys(map(str, names))))
    raise PlaceError(f"verification_host {shown(str(value))} is unknown: {FORMS}")


def assign(candidates: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """For each source its candidates, in the order in which they should be asked; the first one does it.

    Sources and hosts are ordered by a hash of both names (rendezvous hashing): every controller comes to the same, and
    who leaves or joins moves hardly any other source. A host that has a quarter more than its share gets no further one
    while others have less.
    """
    room, assigned = _room(candidates), {}
    pairs = [(_score(source, host), source, host) for source, hosts in candidates.items() for host in hosts]
    for _points, source, host in sorted(pairs, reverse=True):
        if source not in assigned and room[host] > 0:
            assigned[source] = host
            room[host] -= 1
    ordered = {}
    for source, hosts in candidates.items():
        by_score = sorted(hosts, key=lambda host: _score(source, host), reverse=True)
        first = assigned.get(source, by_score[0])
        ordered[source] = [first, *(host for host in by_score if host != first)]
    return ordered


def connection(host: str, variables: Mapping[str, Any]) -> dict[str, Any]:
    """How a host is reached, out of its variables, for a source that is verified there; without secrets.

    In a slice of AWX's, and wherever else a part of the inventory is left out, the host itself may not be there. So its
    own names are filled in in templates. A template that does more than name what is no secret refers to the host.
    """
    here = {"ansible_connection": "local"} if host == CONTROLLER else {}
    known = {**variables, "inventory_hostname": host}
    own = {name: one for name, one in variables.items() if name.startswith("ansible_") and not SECRET.search(name)}
    return {"ansible_host": host, **here, **{name: _carried(name, one, known) for name, one in own.items()}}


def _carried(name: str, value: Any, known: Mapping[str, Any]) -> Any:
    """A variable's value for another host: the same, where it is no template, or one of what every host has."""
    if not isinstance(value, str) or hasattr(value, "_ciphertext") or "{" not in value:
        return value
    host = known["inventory_hostname"]
    names = [found for found in EXPRESSION.findall(value) if found in known]
    is_simple = "{" not in EXPRESSION.sub("", value) and all(_is_open(one, known[one]) for one in names)
    if is_simple or not PLAIN.fullmatch(host):
        return EXPRESSION.sub(lambda found: str(known.get(found[1], found[0])), value) if is_simple else value
    return f"{{{{ hostvars['{host}']['{name}'] }}}}"


def _is_open(name: str, value: Any) -> bool:
    """Whether a variable's value can be shown, and is no template itself."""
    return isinstance(value, (str, int)) and not (
        SECRET.search(name) or hasattr(value, "_ciphertext") or "{" in str(value)
    )


def _room(candidates: Mapping[str, Sequence[str]]) -> dict[str, int]:
    """How many sources each host may have."""
    share: dict[str, float] = defaultdict(float)
    for hosts in candidates.values():
        for host in hosts:
            share[host] += 1 / len(hosts)
    return {host: math.ceil(round(SLACK * expected, 6)) for host, expected in share.items()}


def _score(source: str, host: str) -> bytes:
    return hashlib.sha256(f"{source}\0{host}".encode()).digest()


def _members(name: str, inventory: Inventory) -> list[str]:
    members = inventory.groups.get(name, ())
    if not members:
        raise PlaceError(
            f"group {shown(name)} of verification_host has no hosts in the inventory that was read before: name its "
            "file before this one (-i hosts.yml -i fleet.borg.yml), or give the hosts as {hosts: [NAME, …]}."
        )
    return list(members)


def _short(name: str) -> str:
    """A host's name without its domain; an address as it is."""
    return name.lower() if ADDRESS.fullmatch(name) else name.partition(".")[0].lower()
