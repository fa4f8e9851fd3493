# Copyright (c) 2026, phpBorg contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Spares each of the tests' many plays to pack and compile the same modules again, a third of what a start costs.

Ansible packs a module with what it imports once for each ansible-playbook, and keeps that in a directory of its own.
Here what one has packed is put there for the next, with what Python compiles of it: to do that takes half of a module's
time. A Python of another version passes over it. The directory that is shared lives as long as a run of the tests.
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import io
import marshal
import os
import pickle
import zipfile
from importlib.util import MAGIC_NUMBER
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ansible import constants
from ansible.plugins.callback import CallbackBase

if TYPE_CHECKING:
    from collections.abc import Callable

AS_IT_IS = MAGIC_NUMBER + (1).to_bytes(4, "little") + bytes(8)  # PEP 552: whatever the source may be

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
        _copy(self._shared, self._own, bytes)

    def v2_playbook_on_stats(self, stats: Any) -> None:
        _copy(self._own, self._shared, _compiled)


def _copy(source: Path, target: Path, change: Callable[[bytes], bytes]) -> None:
    """What the target lacks. Other plays do the same at any time, and some have no right to."""
    with contextlib.suppress(OSError):
        target.mkdir(exist_ok=True)
        for path in source.iterdir():
            new = target / f"{path.name}.{os.getpid()}.part"
            if path.suffix not in (".lock", ".part") and not (target / path.name).exists():
                new.write_bytes(change(path.read_bytes()))
                new.rename(target / path.name)


def _compiled(payload: bytes) -> bytes:
    """A packed module with compiled code beside each source. That of ansible-core before 2.19 stays as it is."""
    try:
        module = pickle.loads(payload)
    except pickle.UnpicklingError:
        return payload
    packed = io.BytesIO(base64.b64decode(module.zip_data))
    with zipfile.ZipFile(packed, "a", zipfile.ZIP_DEFLATED) as archive:
        for name in archive.namelist():
            if name.endswith(".py"):
                code = compile(archive.read(name), name, "exec", dont_inherit=True)
                archive.writestr(f"{name}c", AS_IT_IS + marshal.dumps(code))
    return pickle.dumps(dataclasses.replace(module, zip_data=base64.b64encode(packed.getvalue())))
