# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Links of a tree, given as what they say by path: where a path leads, and that it never leads out or without end."""

from __future__ import annotations

import pytest
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._host.links import (
    MOST_LINKS,
    leading,
    moved,
    resolve,
)
from hypothesis import given
from hypothesis import strategies as st

LINKS = {
    "var/main": "/disk1/data",
    "disk1": "/mnt/a",
    "mnt/a/data": "../b/./pg",
    "up": "../../../../mnt/b",
    "round": "/around",
    "around": "round/x",
    "snap/var/main": "/srv/pg",
    "top": "/",
}


@pytest.mark.parametrize(
    ("path", "root", "place"),
    [
        ("/var/main", "", "mnt/b/pg"),  # through a linked parent, and up from where that leads
        ("var/main/base/1", "", "mnt/b/pg/base/1"),
        ("up/x", "", "mnt/b/x"),
        ("round", "", None),
        ("nowhere/../x/", "", "x"),
        ("top/var/main", "", "mnt/b/pg"),
        ("", "", ""),
        ("/var/main", "snap", "snap/srv/pg"),
        ("snap/var/main", "", "srv/pg"),
        ("snap/var/main", "snap", "snap/srv/pg"),
        ("/../../x", "snap", "snap/x"),
    ],
)
def test_where_paths_lead(path: str, root: str, place: str | None) -> None:
    assert resolve(path, LINKS.get, root=root) == place


def test_a_directory_that_was_moved() -> None:
    def place_of(path: str) -> str | None:
        found = moved(path, {"/mnt": "volumes/mnt", "/mnt/a": "volumes/a"})
        return None if found is None else found[1]

    assert resolve("/var/main/base", LINKS.get, place_of=place_of) == "volumes/a/data/base"
    assert resolve("/mnt/./b", LINKS.get, place_of=place_of) == "volumes/mnt/b"
    assert moved("/mnt2/x", {"/mnt": "volumes"}) is None


def test_as_many_links_as_the_kernel_follows() -> None:
    chain = {str(number): str(number + 1) for number in range(MOST_LINKS)}
    assert resolve("0", chain.get) == str(MOST_LINKS)
    assert resolve("0", {**chain, str(MOST_LINKS): "end"}.get) is None


def test_what_may_have_been_the_root() -> None:
    assert list(leading("mnt/snap/srv/pg")) == ["mnt/snap/srv", "mnt/snap", "mnt", ""]
    assert list(leading("pg")) == [""]
    assert list(leading("")) == [""]


def test_a_place_that_no_path_can_say() -> None:
    links = {"a": "b/" * 1000, "/".join("b" * 1000): "c/" * 1100}
    assert resolve("a", links.get) is None
    assert resolve("a", {"a": "b/" * 1000}.get) == "/".join("b" * 1000)


NAMES = st.sampled_from(["a", "b", "c", "..", ".", "", "a/b", "/", "/a", "../..", "//c"])
PATHS = st.lists(NAMES, min_size=1, max_size=6).map("/".join)


@given(path=PATHS, links=st.dictionaries(st.sampled_from(["a", "b", "c", "a/b", "b/c", "c/a/b"]), PATHS))
def test_no_links_lead_out(path: str, links: dict[str, str]) -> None:
    place = resolve(path, links.get)
    if place is not None:
        assert not place.startswith("/")
        assert ".." not in place.split("/")
        parts = place.split("/")
        assert not any("/".join(parts[:length]) in links for length in range(1, len(parts) + 1))
