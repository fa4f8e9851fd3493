# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The file of an archive's names: what is told from it, and what is left to a mount."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._borg.names import (
    Attributes,
    Listed,
    Names,
    permissions_of,
    write_names,
)
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._borg.repository import BorgError, parse_listed


def listed(path: str, kind: str = "-", **more: Any) -> Listed:
    return Listed(
        **{"permissions": 0o600, "uid": 5, "gid": 6, "size": 7, "mtime": 8, "ctime": 9, **more}, path=path, kind=kind
    )


DATA = (listed("srv/data", "d"), listed("srv/data/base", "d"), listed("srv/data/base/1"))


def test_every_mode_is_read_as_it_is_written() -> None:
    for mode in range(0o10000):
        assert permissions_of(stat.filemode(stat.S_IFREG | mode)[1:]) == mode


def test_what_is_listed_is_told(tmp_path: Path) -> None:
    path = str(tmp_path / "names?x=1#%41")
    items = [*DATA, listed("srv/data/link", "l", target="base/1", size=0)]
    assert write_names(path, items, roots=["srv/data"])
    names = Names(path)
    assert sorted(names.names(b"srv/data") or []) == [b"base", b"link"]
    assert names.names(b"srv/data/base") == [b"1"]
    of_file = Attributes(stat.S_IFREG | 0o600, 5, 6, 7, 8, 9)
    assert names.attributes(b"srv/data/base", [b"1", b"2"]) == [(b"1", of_file)]
    ((_name, of_link),) = names.attributes(b"srv/data", [b"link"]) or []
    assert (stat.S_ISLNK(of_link.st_mode), of_link.st_size) == (True, 6)
    assert names.target(b"srv/data/link") == b"base/1"
    for directory in (b"", b"srv", b"srv/data/base/1", b"srv/data/gone"):
        assert names.names(directory) is None
        assert names.attributes(directory, [b"data"]) is None


def test_a_whole_archive_has_a_root_that_is_no_name_in_it(tmp_path: Path) -> None:
    path = str(tmp_path / "names")
    assert write_names(path, [listed("", "d"), listed("file")], roots=["."])
    assert Names(path).names(b"") == [b"file"]


@pytest.mark.parametrize(
    "more",
    [
        listed("srv/data/base/2", "h", target="srv/data/base/1"),
        listed("srv/data/null", "c"),
        listed("srv/data/base/1"),
        listed("srv/data/lost/1"),
        listed("srv/data/no text: ?"),
        listed("srv/data/base/huge", size=1 << 70),
    ],
)
def test_what_a_mount_makes_of_it_only_the_mount_can_tell(tmp_path: Path, more: Listed) -> None:
    path = tmp_path / "names"
    assert not write_names(str(path), [*DATA, more], roots=["srv/data"])
    assert not path.exists()


def test_a_list_that_breaks_off_leaves_nothing(tmp_path: Path) -> None:
    def items() -> Any:
        yield from DATA
        raise BorgError("the connection is gone")

    with pytest.raises(BorgError):
        write_names(str(tmp_path / "names"), items(), roots=["srv/data"])
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_damaged_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "names").write_bytes(b"no database" * 1000)
    with pytest.raises(OSError, match="the names of the archive cannot be read"):
        Names(str(tmp_path / "names")).names(b"srv")


ENTRY = {
    "type": "-", "mode": "-rwsr-x--T", "user": "postgres", "uid": 105, "gid": 113, "path": "./a/b", "linktarget": "",
    "size": 12, "isomtime": "1969-12-31T23:59:59.000001", "isoctime": "2026-11-27T12:38:18.245800",
}  # fmt: skip


def test_what_borg_lists_is_read_to_the_microsecond() -> None:
    times = (-999_999_000, 1_795_783_098_245_800_000)
    assert parse_listed(json.dumps(ENTRY)) == Listed("a/b", "-", 0o5750, 105, 113, 12, *times)


@pytest.mark.parametrize("change", [{"mode": "-rw"}, {"uid": None}, {"isomtime": "yesterday"}])
def test_what_borg_lists_otherwise_is_an_error(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"otherwise than it did so far|Invalid isoformat"):
        parse_listed(json.dumps({**ENTRY, **change}))
