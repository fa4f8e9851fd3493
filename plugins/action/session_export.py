# Copyright (c) 2026, phpBorg contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Exports on the session's host, and fetches the file where that is wanted. See plugins/modules/session_export.py.

Ansible's connections copy files as the user who logs in. Where the session is another's (become) the module hands the
file over in pieces, for that user cannot read it.
"""

from __future__ import annotations

import base64
import os
from typing import TYPE_CHECKING, Any

from ansible.errors import AnsibleActionFail
from ansible.module_utils.parsing.convert_bool import boolean
from ansible.plugins.action import ActionBase

from ..module_utils._errors import RecoveryError, shown
from ..module_utils._export.interface import ExportError
from ..module_utils._export.target import Target

if TYPE_CHECKING:
    from collections.abc import Mapping

MODULE = "phpborg.instant_recovery.session_export"


class ActionModule(ActionBase):  # type: ignore[misc]  # Ansible has no types
    """The action phpborg.instant_recovery.session_export."""

    _requires_connection = True
    TRANSFERS_FILES = False
    _supports_check_mode = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Export, and fetch; the module's result, with the file's path here."""
        super().run(tmp, task_vars)
        options = dict(self._task.args)
        if not options.get("fetch_to"):
            return self._call(options, task_vars)
        path = os.path.abspath(os.path.expanduser(str(options["fetch_to"])))
        try:
            target = Target(path, force=boolean(options.get("force", False)), option="fetch_to", is_named=True)
            target.check()
            return self._fetched(options, target, task_vars)
        except RecoveryError as error:
            return {"failed": True, "msg": shown(str(error))}
        except OSError as error:
            return {"failed": True, "msg": shown(f"fetch_to {path}: {error.strerror}")}

    def _fetched(self, options: dict[str, Any], target: Target, task_vars: dict[str, Any] | None) -> dict[str, Any]:
        result = self._call(options, task_vars)
        if result.get("failed") or result.get("unreachable"):
            return result
        waiting, result["path"] = str(result["path"]), target.path
        if self._task.check_mode:
            return result
        try:
            target.check(int(result["size"]))
            with target:
                self._fetch(options, waiting, target, task_vars)
                if target.digest() != result["sha256"]:
                    raise ExportError(
                        "What was fetched differs from what was exported, and was thrown away: try again."
                    )
                target.publish()
        finally:
            self._execute_module("ansible.legacy.file", {"path": waiting, "state": "absent"}, task_vars=task_vars)
        return result

    def _fetch(
        self, options: Mapping[str, Any], waiting: str, target: Target, task_vars: dict[str, Any] | None
    ) -> None:
        if not self._connection.become:
            self._connection.fetch_file(waiting, target.place)
            target.read()
            return
        where = {name: options[name] for name in ("session_id", "session_root") if name in options}
        while True:
            piece = self._call({**where, "waiting": os.path.basename(waiting), "offset": target.size}, task_vars)
            if piece.get("failed") or piece.get("unreachable"):
                raise AnsibleActionFail(str(piece.get("msg")))
            data = base64.b64decode(piece["content"])
            if not data:
                return
            target.write(data)

    def _call(self, arguments: dict[str, Any], task_vars: dict[str, Any] | None) -> dict[str, Any]:
        result: dict[str, Any] = self._execute_module(module_name=MODULE, module_args=arguments, task_vars=task_vars)
        return result
