# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is made of the failures that the layer tells."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._layer.cowfs.failures import MOST_TOLD, Failures
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._layer.lost import (
    failure,
    failures_of,
    lost_content,
    lost_files,
)
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._session.counters import Counters
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._session.record import Record
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._session.session import Session

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def session(tmp_path: Path) -> Session:
    archive = {"repository": "/srv/borg", "name": "a"}
    return Session(str(tmp_path), Record("a", data_directory="srv/pg", archive=archive))


def tell(session: Session, *failures: tuple[str, str, int | None, str]) -> None:
    """As the layer does."""
    told = Failures(failures_of(session.path("upper")), Counters(None))
    for entry in failures:
        told.note(*entry)


GONE = ("lower", "srv/pg/base/5/1259", 8192, "no lower mount is left")
LOST = ("lost", "srv/pg/base/5/1259", 8192, "the archive has lost content of it")
DISK = ("upper", "srv/pg/base/5/1259", 8192, "Input/output error")


@pytest.mark.parametrize(
    ("failures", "is_partial", "expected"),
    [
        ([], False, "The archive's data cannot be read any more: the repository is out of reach"),
        (
            [GONE],
            False,
            "The archive's data cannot be read any more (base/5/1259 at offset 8192: no lower mount is l",
        ),
        ([LOST], True, "The repository has lost content of base/5/1259, and reading it gives an input/output error."),
        ([LOST, GONE], False, "The archive's data cannot be read any more (base/5/1259 at offset 8192: no lower mount"),
        ([LOST, DISK], False, "The session's changes cannot be read or written any more (base/5/1259 at offset 8192: "),
        ([("lower", "", None, "gone")], False, "The archive's data cannot be read any more (/: gone): the repository"),
    ],
)
def test_what_is_worst_comes_first(session: Session, failures: list[Any], is_partial: bool, expected: str) -> None:
    tell(session, *failures)
    found = failure(session)
    assert found.reason.startswith(expected)
    assert found.is_partial == is_partial


def test_files_that_lost_content_are_named_with_the_cure(session: Session) -> None:
    assert (lost_content(session), lost_files(session)) == (None, [])
    tell(session, LOST, ("lost", "srv/pgother/1", None, "it"), ("lost", "srv/pg/\udcff\n", 0, "it"))
    assert lost_files(session) == ["base/5/1259", "srv/pgother/1", "\\udcff\\x0a"]
    said = lost_content(session)
    assert said is not None
    assert said.startswith("The repository has lost content of base/5/1259, srv/pgother/1, \\udcff\\x0a, and reading")
    assert "borg check /srv/borg" in said
    assert said.endswith(".")


def test_of_many_files_some_are_named(session: Session) -> None:
    tell(session, *(("lost", f"srv/pg/{number}", 0, "it") for number in range(300)))
    said = lost_content(session)
    assert said is not None
    assert "content of 0, 1, 2, 3, 4 and 295 more files, and" in said
    assert len(lost_files(session)) == MOST_TOLD
    tell(session)  # another layer, after a reset
    assert lost_files(session) == []


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"lost": 1}', b'{"lost": [{}]}', b"\xff"])
def test_what_cannot_be_understood_tells_nothing(session: Session, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "upper.failures").write_bytes(content)
    assert lost_content(session) is None
    assert not failure(session).is_partial


def test_the_file_is_never_followed_elsewhere(session: Session, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_text(json.dumps({"lost": [{"path": "x", "offset": 0, "reason": "it"}]}))
    (tmp_path / "upper.failures").symlink_to(tmp_path / "elsewhere")
    assert lost_content(session) is None
