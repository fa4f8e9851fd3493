# Copyright (c) 2026, phpBorg contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Applies or removes one object of AWX, by the collection that is installed. See plugins/modules/awx_object.py."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ansible.plugins.action import ActionBase
from ansible.plugins.loader import module_loader

from ..plugin_utils.values import OptionError, is_given

if TYPE_CHECKING:
    from collections.abc import Mapping

# They have the same modules, with the same options; the second is certified for Ansible Automation Platform.
COLLECTIONS = ("awx.awx", "ansible.controller")
# What is enough to find an object that is to be removed; others that it names may be gone already.
IDENTITY = ("name", "organization")


class ActionModule(ActionBase):  # type: ignore[misc]  # Ansible has no types
    """The action phpborg.instant_recovery.awx_object."""

    _requires_connection = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return what the collection's module says, or that there is none."""
        super().run(tmp, task_vars)
        _validated, arguments = self.validate_argument_spec(
            argument_spec={
                "kind": {"type": "str", "required": True},
                "object": {"type": "dict", "required": True},
                "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
            }
        )
        try:
            name = _module(arguments["kind"])
        except OptionError as error:
            return {"failed": True, "msg": str(error)}
        result: dict[str, Any] = self._execute_module(
            module_name=name, module_args=_options(arguments["object"], arguments["state"]), task_vars=task_vars
        )
        return result


def _module(kind: str) -> str:
    """Full name of the module for a kind of object. Raises OptionError."""
    for collection in COLLECTIONS:
        if module_loader.find_plugin_with_context(f"{collection}.{kind}").resolved:
            return f"{collection}.{kind}"
    raise OptionError(
        f"Neither {' nor '.join(COLLECTIONS)} is installed where Ansible runs, or it has no module {kind}: install one "
        f"of them with ansible-galaxy collection install {COLLECTIONS[0]}."
    )


def _options(described: Mapping[str, Any], state: str) -> dict[str, Any]:
    """The module's options. What is empty is not given: AWX keeps what it has."""
    names = described if state == "present" else IDENTITY
    return {**{name: described[name] for name in names if is_given(described.get(name))}, "state": state}
