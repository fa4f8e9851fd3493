# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where a repository is and which archive is meant: what is taken, and what is refused before Borg hears of it."""

from __future__ import annotations

import itertools
import json
import random
import subprocess
from typing import Any

import pytest
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._borg.location import (
    LocationError,
    LogPlace,
    check_archive_name,
    check_repository,
    parse_archive,
    parse_log_source,
    split_location,
)
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._borg.repository import ARGUMENTS, Repository
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._host.preflight import Host

NOTHING_GIVEN: dict[str, Any] = {name: spec.get("default") for name, spec in ARGUMENTS.items()}
REPOSITORIES = [
    "/srv/repo",
    "/srv/my repo/ä,b;c'd",
    "./repo",
    "repo",
    "~/repo",
    "/srv/a:b",
    "file:///srv/repo",
    "ssh://host/srv/repo",
    "ssh://borg@backup.example.com:2222/./repo",
    "ssh://u123456-sub1@u123456.example.org:23/./repo",
    "ssh://my_host/~/repo",
    "ssh://borg@[fd00::1]:2222/repo",
    "ssh://[fd00::1]/repo",
    "borg@host:repo",
    "host:/srv/repo",
    "borg@[fd00::1]:/srv/repo",
]
NAMES = ["latest", "db1-*", "db-2026-11-22T01:00:00", "na me", "[odd]", "{odd}", "$(x)", "ümlaut"]
HOSTILE = [
    # What a survey's answer did: Borg hands the host to ssh, and a location that is an option to its own parser.
    "ssh://-oProxyCommand=id >$(printf '\\57tmp\\57pwned');false/repo",
    "--debug-profile=/etc/whatever",
    "-oProxyCommand=id:repo",
    "ssh://-oProxyCommand=id@host/repo",
    "ssh://user@-oProxyCommand=id/repo",
    "-F/etc/x@host:repo",
    "--rsh=touch /tmp/x",
    "-",
    "--",
    "ssh://-/repo",
    "user@-host:repo",
    # A host or user that a shell, or ssh's own %-tokens, would make something of.
    "ssh://host;id/repo",
    "ssh://$(id)/repo",
    "ssh://`id`/repo",
    "ssh://a b/repo",
    "ssh://a%h/repo",
    "ssh://us er@host/repo",
    "ssh://us;er@host/repo",
    "ssh://@host/repo",
    "ssh:///repo",
    "ssh://host",
    "ssh://host/",
    "ssh://host:/repo",
    "ssh://host:22a/repo",
    "ssh://host:-1/repo",
    "ssh://host:222222/repo",
    "ssh://[fd00::1/repo",
    "ssh://[-o]/repo",
    "ssh://[fd00::1]x/repo",
    "ssh://a@b@c/repo",
    "a@b@c:repo",
    "@host:repo",
    ":repo",
    "host://repo",
    "u@host:ssh://x/y",
    "[a:b]/repo",
    # Borg would put words in their place, and could make an option of it.
    "{now:-oProxyCommand=id}:repo",
    "ssh://{now:-oProxyCommand=id}/repo",
    "/srv/{hostname}/repo",
    "{user}",
    # Borg would take these for a path of this host, or for nothing.
    "http://host/repo",
    "sftp://host/repo",
    "SSH://host/repo",
    "//srv/repo",
    "file://srv",
    "",
]


def options(**given: Any) -> dict[str, Any]:
    return {**NOTHING_GIVEN, **given}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/srv/repo::name", ("/srv/repo", "name")),
        ("ssh://borg@host:2222/./repo::db1-01:00:00", ("ssh://borg@host:2222/./repo", "db1-01:00:00")),
        ("ssh://borg@[fd00::1]/repo", (None, "ssh://borg@[fd00::1]/repo")),
        ("ssh://borg@[fd00::1]/repo::latest", ("ssh://borg@[fd00::1]/repo", "latest")),
        ("[fd00::1]:repo::a", ("[fd00::1]:repo", "a")),
        ("user@host:repo::na me", ("user@host:repo", "na me")),
        ("/srv/repo::a::b", ("/srv/repo", "a::b")),
        ("::name", (None, "name")),
        ("db1-*", (None, "db1-*")),
        ("db[1]", (None, "db[1]")),
        ("", (None, "")),
    ],
)
def test_locations_are_taken_apart(text: str, expected: tuple[str | None, str]) -> None:
    assert split_location(text) == expected


@pytest.mark.parametrize(("repository", "name"), list(itertools.product(REPOSITORIES, NAMES)))
def test_what_is_meant_is_taken(repository: str, name: str) -> None:
    assert parse_archive(f"{repository}::{name}") == (repository, name)
    assert Repository.from_options(options(archive=f"{repository}::{name}")).location == repository
    assert Repository.from_options(options(repository=repository, archive=name)).location == repository


@pytest.mark.parametrize("text", HOSTILE)
def test_what_cannot_be_meant_is_refused_wherever_it_is_given(text: str) -> None:
    with pytest.raises(LocationError, match=r"^repository: .* is no repository, because .*\. Write a path, ssh://"):
        check_repository(text)
    for given in ({"repository": text or "-"}, {"archive": f"{text or '-'}::latest"}):
        with pytest.raises(LocationError):
            Repository.from_options(options(**given))
    with pytest.raises(LocationError):
        Repository(text)
    for source in (f"{text or '-'}::wal", f"{text or '-'}::wal:/path"):
        with pytest.raises(LocationError):
            parse_log_source(source)


@pytest.mark.parametrize("text", ["host:", "/srv/repo:", "/srv/repo::", "/srv/repo::a", "host:::repo", "::"])
def test_a_repository_names_no_archive(text: str) -> None:
    with pytest.raises(LocationError, match="is given as archive"):
        check_repository(text)


@pytest.mark.parametrize("code", [*range(32), *range(127, 160), 0x2028, 0x2029])
def test_control_characters_are_refused(code: int) -> None:
    control = chr(code)
    for repository in (
        "/srv/re{}po",
        "ssh://ho{}st/repo",
        "ssh://us{}er@host/repo",
        "ssh://host/re{}po",
        "{}/r",
        "/r{}",
    ):
        with pytest.raises(LocationError, match="control character"):
            check_repository(repository.replace("{}", control))
    for name in ("na{}me", "{}name", "name{}"):
        with pytest.raises(LocationError, match="control character"):
            check_archive_name(name.replace("{}", control))
        with pytest.raises(LocationError, match="control character"):
            Repository("/srv/repo").archive_location(name.replace("{}", control))
    with pytest.raises(LocationError, match="control character"):
        parse_log_source(f"/srv/{control}wal")


@pytest.mark.parametrize("name", ["", "-x", "--last=1", "a/b", "../a", "/"])
def test_names_that_cannot_be(name: str) -> None:
    with pytest.raises(LocationError, match=r"^archive: .* is no archive's name, because "):
        check_archive_name(name)
    with pytest.raises(LocationError):
        parse_archive(f"/srv/repo::{name}")


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("/srv/wal archive", LogPlace(path="/srv/wal archive")),
        ("archive:srv/wal", LogPlace(path="srv/wal", is_own=True)),
        ("archive:///srv/wal", LogPlace(path="srv/wal", is_own=True)),
        ("/srv/repo::wal-*", LogPlace(archive="/srv/repo::wal-*")),
        ("/srv/repo::wal-14:05:00:/srv/wal", LogPlace(archive="/srv/repo::wal-14:05:00", path="srv/wal")),
        ("ssh://[fd00::1]/repo::wal:/a:/b", LogPlace(archive="ssh://[fd00::1]/repo::wal", path="a:/b")),
    ],
)
def test_sources_of_wal(text: str, place: LogPlace) -> None:
    assert parse_log_source(text) == place


@pytest.mark.parametrize(
    "text", ["archive:", "archive:///", "archive:../../etc", "/srv/repo::wal:/../etc", "/srv/repo::", "-x::y", "a::-y"]
)
def test_sources_of_wal_that_cannot_be(text: str) -> None:
    with pytest.raises(LocationError, match="log_source"):
        parse_log_source(text)


PIECES = (
    *("ssh://", "file://", "SSH://", "http://", "-o", "-", "@", ":", "::", "/", "//", "[", "]", "[fd00::1]", "host"),
    *(
        "user",
        "a.b",
        "~",
        "{now:x}",
        "{",
        "}",
        "\n",
        "\0",
        " ",
        "%",
        "2222",
        ".",
        "..",
        "./",
        "repo",
        "é",
        "$(id)",
        "'",
    ),
    *(";", "=", "ProxyCommand", "\u2028", "@@", "+", "latest", "*"),
)
# What Borg makes of each location, in its own Python.
READ = """
import json, sys
from borg.helpers import Location
def read(text):
    try:
        found = Location(text)
    except Exception as error:
        return {"refused": str(error)}
    return {"proto": found.proto, "user": found.user, "host": found.host, "path": found.path, "archive": found.archive}
print(json.dumps([read(text) for text in json.load(sys.stdin)]))
"""


def test_borg_reads_what_is_taken_just_as_we_do() -> None:
    borg = Host.look()
    if borg.borg is None or borg.borg_libraries is None:
        pytest.skip("there is no borg that is a Python script")
    rng = random.Random(9)
    texts = {"".join(rng.choices(PIECES, k=rng.randint(1, 8))) for _number in range(60_000)}
    texts |= {f"{repository}::{name}" for repository in REPOSITORIES for name in NAMES}
    taken = {}
    for text in texts:
        try:
            repository, name = parse_archive(text)
        except LocationError:
            continue
        if repository is not None:
            taken[Repository(repository).archive_location(name)] = (repository, name)
    assert len(taken) > 1000
    with open(borg.borg, encoding="utf-8") as script:
        python = script.readline()[2:].split()
    done = subprocess.run(
        [*python, "-c", READ], input=json.dumps(list(taken)), capture_output=True, text=True, check=True
    )
    for (text, (repository, name)), found in zip(taken.items(), json.loads(done.stdout), strict=True):
        assert found.get("archive") == name, (text, found)
        assert not (found["host"] or "").startswith("-"), (text, found)
        assert not (found["user"] or "").startswith("-"), (text, found)
        assert found["proto"] == ("ssh" if is_remote(repository) else "file"), (text, found)


def is_remote(repository: str) -> bool:
    return repository.startswith("ssh://") or (
        not repository.startswith("file://") and ":" in repository.partition("/")[0]
    )
