# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What an inventory file declares, and the hosts that are made of what Borg lists."""

from __future__ import annotations

import base64
import shlex
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
import pytest
import yaml
from ansible_collections.phpborg.instant_recovery.plugins.inventory import borg
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._borg.repository import Archive
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._engines.contents import NAMES
from ansible_collections.phpborg.instant_recovery.plugins.plugin_utils.fleet import (
    COMMON,
    Declared,
    Listing,
    Source,
    Vault,
    find_sources,
    place_sources,
    plain_sentence,
    read_repositories,
    refuse_errors,
    refuse_unknown,
    unlisted,
)
from ansible_collections.phpborg.instant_recovery.plugins.plugin_utils.values import OptionError
from ansible_collections.phpborg.instant_recovery.plugins.plugin_utils.verification_hosts import Inventory

if TYPE_CHECKING:
    from collections.abc import Mapping

OPTIONS = yaml.safe_load(borg.DOCUMENTATION)["options"]
SPEC = OPTIONS["repositories"]["suboptions"]
SECRET = "canary-of-the-fleet"
MAIN = {"name": "main", "repository": "/srv/main"}


class Encrypted(str):
    """As Ansible has what is encrypted: a text that comes out when it is looked at."""


def read(*entries: Mapping[str, Any], directory: Path = Path("/etc/fleet"), **common: Any) -> list[Declared]:
    vault = Vault(
        is_encrypted=lambda value: isinstance(value, Encrypted),
        reveal=lambda text: jinja2.Template(text).render(vault_main=SECRET),
        template=lambda text: f"template:{text}",
        directory=str(directory),
    )
    return read_repositories({"repositories": list(entries), **common}, SPEC, vault)


def listing(*names: str, machine: str = "db1") -> Listing:
    made = [f"2026-11-{number:02}T02:00:00.000+00:00" for number, _name in enumerate(names, start=1)]
    return Listing(
        [Archive("/srv/main", name, name * 2, moment, machine) for name, moment in zip(names, made, strict=True)]
    )


def test_the_table_is_what_the_plugin_documents() -> None:
    assert {name: SPEC[name]["default"] for name in COMMON} == {name: OPTIONS[name]["default"] for name in COMMON}
    assert SPEC["engine"]["choices"] == ["auto", *NAMES]


def test_the_examples_of_the_plugin_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOP_PASSPHRASE", SECRET)
    constructed = {"keyed_groups", "cache", "cache_plugin", "cache_connection"}
    files = list(yaml.safe_load_all(borg.EXAMPLES))
    assert len(files) == 2
    for file in files:
        refuse_unknown(file, [*OPTIONS, *constructed], where="the example")
        declared = read_repositories(file, SPEC, Vault(lambda _value: False, lambda _text: SECRET, str, "/"))
        assert [one.name for one in declared] == [entry["name"] for entry in file["repositories"]]


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"segregatd": True}, "repository main: segregatd is unknown in repository main: did you mean segregated?"),
        ({"colour": "red"}, "colour is unknown in repository main: choose one of accept_relocated, "),
        ({"engine": "oracle"}, "repository main: engine oracle is unknown: choose auto or one of: "),
        ({"detect_engine": "perhaps"}, "detect_engine perhaps is neither true nor false"),
        ({"timeout": "soon"}, "timeout soon is no number"),
        ({"repository": ""}, "repository main: repository is not given"),
        ({"repository": "ssh://-oProxyCommand=x/y"}, "is no repository, because"),
        ({"repository": "/srv/{{ x }}"}, "Borg takes braces for placeholders"),
        ({"series": "("}, "is no regular expression"),
        ({"vars": {"a-b": 1}}, "vars has 'a-b', which is no variable's name"),
        ({"vars": "x"}, "vars x is no mapping"),
        ({"verification_host": {"hots": "v1"}}, "verification_host {'hots': 'v1'} is unknown"),
        ({"verification_host": "source", "segregated": True}, "verification_host is source, and segregated is true"),
        ({"borg_passphrase": SECRET}, "borg_passphrase is in clear"),
        ({"borg_passphrase": [SECRET]}, "borg_passphrase is in clear"),
        ({"borg_passphrase_env": "NO_SUCH_VARIABLE"}, "names NO_SUCH_VARIABLE, which is not set"),
        ({"borg_passcommand": "echo 'x"}, "borg_passcommand has a quote without an end"),
        (
            {"borg_passphrase_env": "HOME", "borg_passphrase_file": "x"},
            "borg_passphrase_file and borg_passphrase_env are given: leave all but one out",
        ),
    ],
)
def test_what_an_entry_cannot_say(entry: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError) as raised:
        read({**MAIN, **entry})
    assert message in str(raised.value)
    assert SECRET not in str(raised.value)


@pytest.mark.parametrize("repositories", [None, {}, [], ["x"], {"main": {}}])
def test_repositories_are_a_list(repositories: Any) -> None:
    with pytest.raises(OptionError, match="repositories is no list of repositories"):
        read_repositories({"repositories": repositories}, SPEC, Vault(bool, str, str, "/"))


@pytest.mark.parametrize("names", [["main", "main"], [""], ["a@b"], ["a:b"], ["../x"], ["x" * 61], [None]])
def test_names_of_repositories(names: list[Any]) -> None:
    with pytest.raises(OptionError, match=f"repository {len(names)} of repositories has the name"):
        read(*({**MAIN, "name": name} for name in names))


def test_what_is_said_for_all_and_for_one() -> None:
    one, other = read(
        MAIN, {**MAIN, "name": "b", "timeout": "7", "verification_host": "v2"}, timeout=9, segregated="yes"
    )
    assert (one.options["timeout"], other.options["timeout"]) == (9, 7)
    assert one.options["segregated"] is other.options["segregated"] is True
    assert (one.verification_host.names, other.verification_host.names) == (("localhost",), ("v2",))


def test_empty_is_not_given() -> None:
    (declared,) = read({**MAIN, "series": "", "engine": None, "borg_passphrase": "", "vars": {}})
    assert declared.pattern is None
    assert declared.options["engine"] == "auto"
    assert declared.secret_variable is None


def test_secrets_are_known_here_and_expressions_elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text(f"{SECRET}\n")
    monkeypatch.setenv("MAIN_SECRET", SECRET)
    expression = "{{ vault_main }}"
    for entry, variable in (
        ({"borg_passphrase": expression}, expression),
        ({"borg_passphrase_env": "MAIN_SECRET"}, "template:{{ lookup('ansible.builtin.env', 'MAIN_SECRET') }}"),
        (
            {"borg_passphrase_file": "secret"},
            f"template:{{{{ lookup('ansible.builtin.file', '{tmp_path}/secret', rstrip=False).rstrip('%c' % 10) }}}}",
        ),
        ({"borg_passcommand": "echo  a b"}, "template:{{ lookup('ansible.builtin.pipe', 'echo a b') }}"),
    ):
        (declared,) = read({**MAIN, **entry}, directory=tmp_path)
        assert declared.secret_variable == variable
        command = {"borg_passcommand"} & entry.keys()
        assert declared.repository.passphrase == (None if command else SECRET)
        assert declared.repository.passcommand == ("echo  a b" if command else None)
        assert SECRET not in repr(declared)
        (source,), _told = find_sources(declared, listing("db1-2026-11-25"))
        assert source.variables()["session_borg_passphrase"] == variable
        assert SECRET not in repr(source.variables())


def test_what_is_encrypted_stays_so() -> None:
    value = Encrypted(SECRET)
    (declared,) = read({**MAIN, "borg_passphrase": value})
    assert declared.secret_variable is value
    assert declared.repository.passphrase == SECRET


@pytest.mark.parametrize("command", ["echo '{{ x }}'", r"printf 'a\nb' \'", "echo '}} {% raw %}'", "echo 'a\nb'", "é"])
def test_a_command_in_an_expression_is_the_command(command: str) -> None:
    (declared,) = read({**MAIN, "borg_passcommand": command})
    expression = declared.secret_variable.removeprefix("template:")
    assert "\\" not in expression
    jinja = jinja2.Environment()
    jinja.filters["ansible.builtin.b64decode"] = lambda text: base64.b64decode(text).decode()
    ran = jinja.from_string(expression).render(lookup=lambda _plugin, given: given)
    assert shlex.split(ran) == shlex.split(command)


def test_the_variables_of_a_source() -> None:
    (declared,) = read({**MAIN, "engine": "postgresql", "borg_rsh": "ssh -i key", "vars": {"level": "full"}})
    (source,), told = find_sources(declared, listing("db1-2026-11-25", "db1-2026-11-26"))
    (placed,) = place_sources([source], Inventory())
    assert told == []
    assert placed.host == "db1@main"
    assert placed.variables() == {
        "instant_recovery_source": {
            "repository": "/srv/main",
            "repository_name": "main",
            "series": "db1",
            "glob": "db1-[0-9][0-9][0-9][0-9]-[0-9][0-9]-[0-9][0-9]",
            "machines": ["db1"],
            "engines": ["postgresql"],
            "archives": 2,
            "newest": {"name": "db1-2026-11-26", "id": "db1-2026-11-26" * 2, "time": "2026-11-02T02:00:00.000+00:00"},
            "oldest": {"name": "db1-2026-11-25", "id": "db1-2026-11-25" * 2, "time": "2026-11-01T02:00:00.000+00:00"},
            "error": None,
        },
        "instant_recovery_verification_host": "localhost",
        "instant_recovery_verification_candidates": ["localhost"],
        "session_repository": "/srv/main",
        "session_archive": "db1-2026-11-26",
        "session_engine": "postgresql",
        "session_borg_rsh": "ssh -i key",
        "level": "full",
    }
    assert placed.groups() == [
        "borg_series",
        "borg_repository_main",
        "borg_machine_db1",
        "borg_engine_postgresql",
        "borg_verification_host_localhost",
    ]


def test_variables_that_are_declared_take_the_place_of_others() -> None:
    secret = {"session_borg_passphrase_file": "/etc/borg/main"}
    (declared,) = read(
        {**MAIN, "borg_passphrase": "{{ vault_main }}", "vars": {**secret, "session_repository": "/there"}}
    )
    (source,), _told = find_sources(declared, listing("db1-2026-11-25"))
    variables = source.variables()
    assert variables["session_repository"] == "/there"
    assert variables["session_borg_passphrase_file"] == "/etc/borg/main"
    assert "session_borg_passphrase" not in variables  # of several secrets a start takes none


def test_an_engine_that_no_session_can_be_started_of_is_a_group_alone() -> None:
    (declared,) = read({**MAIN, "engine": "mongodb"})
    (source,), _told = find_sources(declared, listing("db1-2026-11-25"))
    assert "borg_engine_mongodb" in source.groups()
    assert "session_engine" not in source.variables()


def test_what_is_expected_is_there_without_an_archive() -> None:
    (declared,) = read({**MAIN, "expected": ["db1", "db2"]})
    found, told = find_sources(declared, listing("db1-2026-11-25"))
    placed = {source.host: source.variables() for source in place_sources(found, Inventory())}
    assert told == []
    assert placed["db2@main"]["instant_recovery_source"]["archives"] == 0
    assert placed["db2@main"]["instant_recovery_source"]["newest"] is None
    assert placed["db2@main"]["instant_recovery_source"]["error"] is None
    assert "session_archive" not in placed["db2@main"]
    refuse_errors(place_sources(found, Inventory()))  # is a finding, and no error


def test_an_empty_repository_is_one_host() -> None:
    (declared,) = read(MAIN)
    found, _told = find_sources(declared, Listing([]))
    assert [source.host for source in found] == ["all@main"]


def test_an_expected_source_without_an_archive_has_no_machine() -> None:
    (declared,) = read({**MAIN, "expected": ["db2"], "verification_host": "source"})
    found, _told = find_sources(declared, Listing([]))
    (placed,) = place_sources(found, Inventory())
    assert (placed.candidates, placed.error) == ((), "")


@pytest.mark.parametrize(("expected", "hosts"), [([], ["all@main"]), (["db1", "db2"], ["db1@main", "db2@main"])])
def test_a_repository_that_cannot_be_listed(expected: list[str], hosts: list[str]) -> None:
    (declared,) = read({**MAIN, "expected": expected})
    placed = place_sources(unlisted(declared, "It is {{ gone }}\x1b[2J"), Inventory())
    assert [source.host for source in placed] == hosts
    assert all(source.groups() == ["borg_series", "borg_repository_main", "borg_error"] for source in placed)
    variables = placed[0].variables()
    assert variables["instant_recovery_source"]["error"] == "It is { { gone }}\\x1b[2J"
    assert variables["instant_recovery_verification_host"] is None
    with pytest.raises(OptionError, match=r"Sources cannot be verified, and on_error is fail\. .*@main: It is"):
        refuse_errors(placed)


def test_many_reasons_are_one_sentence_of_bounded_length() -> None:
    (declared,) = read(MAIN)
    errors = [Source(declared, f"db{number}", error=f"Reason {number}.") for number in range(500)]
    with pytest.raises(OptionError) as raised:
        refuse_errors([*errors, *(replace(one, name=f"more{one.name}") for one in errors)])
    assert "db0@main, moredb0@main: Reason 0." in str(raised.value)
    assert "And 495 more reasons." in str(raised.value)
    assert len(str(raised.value)) < 1000


def test_a_source_that_is_verified_nowhere() -> None:
    (declared,) = read({**MAIN, "verification_host": "db1.example.com", "segregated": True})
    found, _told = find_sources(
        declared, Listing([*listing("db1-2026").archives, *listing("a-1", machine="a").archives])
    )
    placed = {source.host: source for source in place_sources(found, Inventory())}
    assert "segregated is true, and db1.example.com is the source itself" in placed["db1@main"].error
    assert placed["db1@main"].candidates == ()
    assert placed["a@main"].candidates == ("db1.example.com",)


def test_archives_that_are_in_no_source_are_told() -> None:
    (declared,) = read({**MAIN, "series": "^db"})
    found, told = find_sources(declared, listing("db1", "x{{ 1 }}", *(f"other{number}" for number in range(9))))
    assert [source.host for source in found] == ["db@main"]
    refused, unmatched = map(plain_sentence, told)
    assert refused.startswith("repository main: archive 'x{ { 1 }}' has braces in its name")
    assert "9 archives match not what series says" in unmatched
    assert "other4 and 4 more. Extend series" in unmatched


@pytest.mark.parametrize("text", ["{{ x }}", "{{{% x", "{%{#{{", "a{#b"])
def test_a_sentence_is_no_template(text: str) -> None:
    assert not any(begin in plain_sentence(text) for begin in ("{{", "{%", "{#"))


@pytest.mark.parametrize("cached", [None, 7, {}, {"archives": [{}], "engines": {}}, {"archives": [], "engines": 1}])
def test_a_cache_of_another_form_is_none(cached: Any) -> None:
    assert Listing.from_dict(cached) is None


def test_a_listing_goes_through_a_cache() -> None:
    original = replace(listing("db1-2026-11-25"), engines={"id": ["postgresql"]})
    assert Listing.from_dict(original.as_dict()) == original
