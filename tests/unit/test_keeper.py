# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the keeper makes of the layer's words."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._keeper import failure
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._session import Session

if TYPE_CHECKING:
    from pathlib import Path

PREFIX = "2026-11-22 23:32:55,076 cowfs ERROR "


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("", "The archive's data cannot be read any more: the repository is out of reach"),
        (
            f"{PREFIX}lower: base/5/1259 at offset 8192: no lower mount is left\n",
            "The archive's data cannot be read any more (base/5/1259 at offset 8192: no lower mount is left): the ",
        ),
        (
            f"{PREFIX}lower: base/5/1259 at offset 0: Input/output error\n"
            f"{PREFIX}upper: base/5/1259 at offset 0: No space left on device\n",
            "The archive's data cannot be read any more (base/5/1259 at offset 0: Input/output error): the ",
        ),
        (
            f"{PREFIX}upper: base/5/1259 at offset 8192: Input/output error\n",
            "The session's changes cannot be read or written any more (base/5/1259 at offset 8192: Input/output error)",
        ),
    ],
)
def test_which_disk_has_failed(tmp_path: Path, said: str, expected: str) -> None:
    (tmp_path / "log").mkdir()
    (tmp_path / "log/overlay.log").write_text(f"2026-11-22 23:32:55,075 cowfs WARNING other words\n{said}")
    assert failure(Session(str(tmp_path), {})).startswith(expected)
