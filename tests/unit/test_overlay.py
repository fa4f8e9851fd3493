# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Paths that mount options cannot hold, or that a program would take for an option."""

from __future__ import annotations

import os
import tempfile

import pytest
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._layer.overlay import Overlay, OverlayError


@pytest.mark.parametrize("driver", ["block", "overlayfs"])
@pytest.mark.parametrize(
    "path", ["/a,upperdir=/etc", "/a:/etc", "/a\\,b", '/a"b', "/a\nb", "/a\tb", "--bind", "-o", "relative", ""]
)
@pytest.mark.parametrize("which", ["lower", "upper", "mountpoint"])
def test_paths_that_cannot_be_mounted(driver: str, path: str, which: str) -> None:
    with tempfile.TemporaryDirectory() as there:
        paths = {"lower": there, "upper": f"{there}/upper", "mountpoint": f"{there}/merged", which: path}
        overlay = Overlay(
            driver=driver, lower=(paths["lower"],), upper=paths["upper"], mountpoint=paths["mountpoint"], python="x"
        )
        with pytest.raises(OverlayError, match="cannot be mounted: choose an absolute path without comma"):
            overlay.check()
        assert os.listdir(there) == []
