# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the plans of all engines have in common."""

from __future__ import annotations

import os
import time
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._engine.interface import Request
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._engine.plan import (
    check_request,
    find_logs,
    make_bounded,
)
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._engine.server import most_by_tcp
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._errors import RecoveryError
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._host.command import Account

if TYPE_CHECKING:
    from pathlib import Path


def request(directory: Path, **options: Any) -> Request:
    me = Account("me", os.geteuid(), os.getegid())
    return Request(directory=str(directory), data_directory=f"{directory}/merged/srv/data", account=me, **options)


def test_what_is_told_of_a_copy_has_an_end(tmp_path: Path) -> None:
    told: Any = SimpleNamespace(neutralised=({"what": "x" * 100, "why": "y"},) * 5000, carried_over=())
    assert make_bounded(request(tmp_path), lambda: told) is told
    told.neutralised *= 3
    with pytest.raises(RecoveryError, match="What has to be changed in the copy takes 1 MiB to tell: no server"):
        make_bounded(request(tmp_path), lambda: told)


def test_a_look_has_an_end(tmp_path: Path) -> None:
    with pytest.raises(RecoveryError, match=r"was not looked through within 0\.2 s"):
        make_bounded(request(tmp_path, timeout=0.2), lambda: time.sleep(20))  # type: ignore[arg-type,return-value]


def test_no_link_leads_to_the_data_directory(tmp_path: Path) -> None:
    (tmp_path / "merged").mkdir()
    (tmp_path / "production" / "data").mkdir(parents=True)
    asked = request(tmp_path)
    with pytest.raises(RecoveryError, match="cannot be read: No such file or directory"):
        check_request(asked, socket_name="s")
    (tmp_path / "merged" / "srv").symlink_to(tmp_path / "production")
    with pytest.raises(RecoveryError, match="or a link is on the way to it: name a directory of the copy itself"):
        check_request(asked, socket_name="s")


def test_links_of_an_archive_of_logs_mean_what_they_meant_there(tmp_path: Path) -> None:
    """What is the host's own is followed, and an archive's link is not."""
    logs = tmp_path / "log_archive" / "srv" / "logs"
    logs.mkdir(parents=True)
    (tmp_path / "log_archive" / "link").symlink_to("/srv/logs")
    (tmp_path / "log_archive" / "out").symlink_to("/etc")
    assert find_logs(request(tmp_path)) is None
    assert find_logs(request(tmp_path, log_source=f"{tmp_path}/log_archive/link")) == str(logs)
    with pytest.raises(RecoveryError, match="out is not in the archive: name a directory that it has"):
        find_logs(request(tmp_path, log_source=f"{tmp_path}/log_archive/out"))
    assert find_logs(request(tmp_path / "session", log_source=f"{tmp_path}/log_archive/out")) == os.path.realpath(
        "/etc"
    )


@pytest.mark.parametrize(("told", "most"), [("100", 75), ("1", 1), (None, 30), ("", 30), ("9" * 5000, 30), ("x", 30)])
def test_how_many_clients_may_come_by_tcp(told: str | None, most: int) -> None:
    assert most_by_tcp(told, 40) == most
