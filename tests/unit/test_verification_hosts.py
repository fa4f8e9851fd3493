# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which host verifies which source."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from ansible_collections.phpborg.instant_recovery.plugins.plugin_utils.verification_hosts import (
    Inventory,
    PlaceError,
    VerificationHost,
    assign,
    connection,
    read_verification_host,
)

ADDRESSES = {
    "db1.example.com": "10.0.0.1",
    "db2.a.example": "10.0.0.2",
    "db2.b.example": "10.0.0.3",
    "alias": "10.0.0.1",
}
GROUPS = {"verifiers": ["v1", "v2", "db1.example.com"], "empty": []}


def inventory(**options: Any) -> Inventory:
    return Inventory(
        **{"hosts": ADDRESSES, "groups": GROUPS, "address": ADDRESSES.__getitem__, "controller": "desk.home", **options}
    )


@pytest.mark.parametrize(
    ("value", "kind", "names"),
    [
        ("source", "source", ()),
        ("local", "hosts", ("localhost",)),
        ("controller", "hosts", ("localhost",)),
        ("v1", "hosts", ("v1",)),
        ({"host": "source"}, "hosts", ("source",)),
        ({"hosts": ["v1", "v2", "v1"]}, "hosts", ("v1", "v2")),
        ({"group": "verifiers"}, "group", ("verifiers",)),
    ],
)
def test_what_can_be_said(value: Any, kind: str, names: tuple[str, ...]) -> None:
    assert read_verification_host(value) == VerificationHost(kind, names)


@pytest.mark.parametrize("value", ["", 7, [], ["v1"], {}, {"groups": "x"}, {"group": "a", "host": "b"}, {"hosts": []}])
def test_what_means_nothing(value: Any) -> None:
    with pytest.raises(PlaceError, match=r"verification_host .* is unknown: write source, local"):
        read_verification_host(value)


@pytest.mark.parametrize(
    ("machine", "host"), [("db1", "db1.example.com"), ("db1.example.com", "db1.example.com"), ("moved", "alias")]
)
def test_the_source_by_its_name_in_the_inventory(machine: str, host: str) -> None:
    known = inventory(machines={"moved": "alias"})
    assert VerificationHost("source").candidates([machine], known, segregated=False) == [host]


@pytest.mark.parametrize("machines", [["unknown"], ["db2"], []])
def test_a_source_that_the_inventory_does_not_know_for_certain(machines: list[str]) -> None:
    """db2 are two. Nobody connects to a host because an archive has its name."""
    with pytest.raises(PlaceError, match="is no host of the inventory that was read before"):
        VerificationHost("source").candidates(machines, inventory(), segregated=False)


def test_a_group_without_the_source() -> None:
    place = VerificationHost("group", ("verifiers",))
    assert place.candidates(["db1"], inventory(), segregated=False) == ["v1", "v2", "db1.example.com"]
    assert place.candidates(["db1"], inventory(), segregated=True) == ["v1", "v2"]
    assert place.candidates(["v2", "db1"], inventory(), segregated=True) == ["v1"]


@pytest.mark.parametrize("name", ["missing", "empty"])
def test_a_group_that_is_not_there(name: str) -> None:
    with pytest.raises(PlaceError, match=f"group {name} of verification_host has no hosts"):
        VerificationHost("group", (name,)).candidates(["db1"], inventory(), segregated=False)


@pytest.mark.parametrize(
    ("host", "machine"),
    [
        ("db1.example.com", "db1"),
        ("DB1", "db1.example.com"),
        ("alias", "mapped"),  # the same address
        ("localhost", "desk"),
        ("localhost", "localhost"),
    ],
)
def test_segregated_refuses_the_source_by_whatever_name(host: str, machine: str) -> None:
    known = inventory(machines={"mapped": "db1.example.com"})
    with pytest.raises(PlaceError, match=f"segregated is true, and {host} is the source itself"):
        VerificationHost("hosts", (host,)).candidates([machine], known, segregated=True)


def test_segregated_refuses_where_nobody_knows_the_source() -> None:
    with pytest.raises(PlaceError, match="the archives do not say which machine made them"):
        VerificationHost("hosts", ("v1",)).candidates([], inventory(), segregated=True)


def test_a_machine_that_is_told_exactly_is_not_taken_for_one_of_another_domain() -> None:
    place, machine = VerificationHost("hosts", ("db2.a.example",)), "db2"
    with pytest.raises(PlaceError):
        place.candidates([machine], inventory(), segregated=True)
    known = inventory(machines={"db2": "db2.b.example"})
    assert place.candidates([machine], known, segregated=True) == ["db2.a.example"]


def sources(number: int, hosts: list[str]) -> dict[str, list[str]]:
    return {f"db{one}@main": hosts for one in range(number)}


def first(assigned: dict[str, list[str]]) -> dict[str, str]:
    return {source: hosts[0] for source, hosts in assigned.items()}


HOSTS = ["v1", "v2", "v3", "v4", "v5"]


@pytest.mark.parametrize("number", [1, 2, 3, 5, 8, 40, 1000])
@pytest.mark.parametrize("hosts", [HOSTS[:1], HOSTS[:2], HOSTS])
def test_sources_are_spread_evenly(number: int, hosts: list[str]) -> None:
    loads = Counter(first(assign(sources(number, hosts))).values())
    assert sum(loads.values()) == number
    assert max(loads.values()) <= -(-number * 5 // (4 * len(hosts)))


def test_the_order_in_which_things_are_named_does_not_matter() -> None:
    forth = assign(sources(100, HOSTS))
    back = assign(dict(reversed(sources(100, HOSTS[::-1]).items())))
    assert forth == back
    assert {tuple(sorted(hosts)) for hosts in forth.values()} == {tuple(HOSTS)}


@pytest.mark.parametrize("gone", HOSTS)
def test_a_host_that_leaves_moves_hardly_any_source_but_its_own(gone: str) -> None:
    before = first(assign(sources(1000, HOSTS)))
    after = first(assign(sources(1000, [host for host in HOSTS if host != gone])))
    assert gone not in after.values()
    moved = {source for source in before if before[source] != after[source]}
    own = {source for source, host in before.items() if host == gone}
    assert moved == own  # no host is at its bound with as many as that


def test_a_new_source_moves_no_other_but_at_a_bound() -> None:
    before = first(assign(sources(1000, HOSTS)))
    after = first(assign({**sources(1000, HOSTS), "new@main": HOSTS}))
    assert {source for source in before if before[source] != after[source]} == set()


def test_sources_with_hosts_of_their_own() -> None:
    assigned = assign({"a": ["v1"], "b": ["v1"], "c": ["v1", "v2"], "d": ["v2"]})
    assert {source: hosts[0] for source, hosts in assigned.items() if source != "c"} == {
        "a": "v1",
        "b": "v1",
        "d": "v2",
    }
    assert sorted(assigned["c"]) == ["v1", "v2"]


def test_how_a_host_is_reached_without_its_secrets() -> None:
    secrets = ("ansible_password", "ansible_ssh_pass", "ansible_become_password", "ansible_ssh_private_key")
    variables = {
        **dict.fromkeys(secrets, "canary"),
        "ansible_user": "me",
        "ansible_ssh_private_key_file": "/key",
        "level": "full",
    }
    assert connection("v1", variables) == {
        "ansible_host": "v1",
        "ansible_user": "me",
        "ansible_ssh_private_key_file": "/key",
    }
    assert connection("v1", {"ansible_host": "10.0.0.9"})["ansible_host"] == "10.0.0.9"
    assert connection("localhost", {})["ansible_connection"] == "local"
    assert connection("localhost", {"ansible_connection": "ssh"})["ansible_connection"] == "ssh"


@pytest.mark.parametrize(
    ("value", "carried"),
    [
        ("{{ inventory_hostname }}.example.com", "v1.example.com"),
        ("{{site}}-{{ inventory_hostname }}", "north-v1"),
        ("{{ ansible_playbook_python }}", "{{ ansible_playbook_python }}"),  # of every play
        ("{{ site }}/{{ playbook_dir }}", "north/{{ playbook_dir }}"),
        ("-o ProxyCommand='sshpass -p {{ jump_password }} ssh x'", "{{ hostvars['v1']['ansible_x'] }}"),
        ("{{ other }}", "{{ hostvars['v1']['ansible_x'] }}"),  # is a template itself
        ("{{ lookup('env', 'X') }}", "{{ hostvars['v1']['ansible_x'] }}"),
        ("{% if site %}x{% endif %}", "{{ hostvars['v1']['ansible_x'] }}"),
        (22, 22),
        (True, True),
        (["{{ site }}"], ["{{ site }}"]),
    ],
)
def test_templates_of_a_connection(value: Any, carried: Any) -> None:
    """Nothing is evaluated: what comes out would be in clear, wherever the inventory is kept."""
    own = {"site": "north", "jump_password": "canary", "other": "{{ jump_password }}", "ansible_x": value}
    assert connection("v1", own)["ansible_x"] == carried


def test_a_host_whose_name_would_end_a_template() -> None:
    assert connection("v'1", {"ansible_x": "{{ lookup('env', 'X') }}"})["ansible_x"] == "{{ lookup('env', 'X') }}"
