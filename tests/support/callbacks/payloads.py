# Copyright (c) 2026, phpBorg contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Spares each of the tests' many plays to pack the same modules again, which is a fifth of what a start costs.

Ansible packs a module with what it imports once for each ansible-playbook, and keeps that in a directory of its own.
Here what one has packed is put there for the next. The directory that is shared lives as long as a run of the tests.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path
from typing import Any

from ansible import constants
from ansible.plugins.callback import CallbackBase

DOCUMENTATION = """
name: payloads
type: notification
short_description: Keeps packed modules for the next play
description:
  - Copies them from and to the directory that the environment variable E(INSTANT_RECOVERY_PAYLOADS) names.
author: phpBorg contributors (@phpborg)
"""


class CallbackModule(CallbackBase):  # type: ignore[misc]
    """Copies at the beginning of a playbook, and back at its end."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "notification"
    CALLBACK_NAME = "payloads"
    CALLBACK_NEEDS_ENABLED = True

    def __init__(self) -> None:
        super().__init__()
        self._shared = Path(os.environ["INSTANT_RECOVERY_PAYLOADS"])
        self._own = Path(constants.DEFAULT_LOCAL_TMP, "ansiballz_cache")

    def v2_playbook_on_start(self, playbook: Any) -> None:
        _copy(self._shared, self._own)

    def v2_playbook_on_stats(self, stats: Any) -> None:
        _copy(self._own, self._shared)


def _copy(source: Path, target: Path) -> None:
    """What the target lacks. Other plays do the same at any time, and some have no right to."""
    with contextlib.suppress(OSError):
        target.mkdir(exist_ok=True)
        for path in source.iterdir():
            new = target / f"{path.name}.{os.getpid()}.part"
            if path.suffix not in (".lock", ".part") and not (target / path.name).exists():
                shutil.copyfile(path, new)
                new.rename(target / path.name)
