# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a playbook refuses before its first module, asked of Ansible's own templates instead of a whole play.

The playbook and its roles are loaded as ansible-playbook does it. Its first tasks only fail: it is looked at what they
would say, and on what condition.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ansible import context
from ansible.inventory.manager import InventoryManager
from ansible.module_utils.common.collections import ImmutableDict
from ansible.parsing.dataloader import DataLoader
from ansible.playbook import Playbook
from ansible.plugins.loader import init_plugin_loader
from ansible.template import Templar, trust_as_template
from ansible.utils.vars import load_extra_vars
from ansible.vars.manager import VariableManager

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

__all__ = ["refusals"]


LISTS = ("__session_refusals", "refusals")  # variables with a sentence for each thing that is wrong
BEFORE = ("meta", "ansible.builtin.validate_argument_spec")  # what Ansible adds by itself


def refusals(playbook: Path, cases: Iterable[Mapping[str, Any]]) -> list[list[str]]:
    """All that each case of extra variables is refused for, though a play tells the first of them only.

    To be called in a process of its own: Ansible's loader changes what can be imported, and wants to be the first.
    """
    for name in [name for name in sys.modules if name.partition(".")[0] == "ansible_collections"]:
        del sys.modules[name]
    init_plugin_loader()
    play = _Play(playbook)
    return [play.refusals(variables) for variables in cases]


class _Play:
    def __init__(self, playbook: Path) -> None:
        self.loader = DataLoader()
        self.loader.set_basedir(str(playbook.parent))
        self.inventory = InventoryManager(loader=self.loader, sources=["localhost,"])
        context.CLIARGS = ImmutableDict(extra_vars=())
        self.manager = VariableManager(loader=self.loader, inventory=self.inventory)
        book = Playbook.load(str(playbook), variable_manager=self.manager, loader=self.loader)
        (self.play,) = book.get_plays()

    def refusals(self, variables: Mapping[str, Any]) -> list[str]:
        self._give(variables)
        host = self.inventory.get_host("localhost")
        found: list[str] = []
        for task in self._first_tasks():
            known = self.manager.get_vars(play=self.play, host=host, task=task)
            templar = Templar(self.loader, variables=known)
            name = next((name for name in LISTS if name in str(task.args["msg"])), None)
            if name is not None:
                found += templar.evaluate_expression(trust_as_template(f"{name} | select | list"))
            elif all(map(templar.evaluate_conditional, task.when)):
                found.append(templar.template(task.args["msg"]))
        return [str(sentence).strip() for sentence in found]

    def _give(self, variables: Mapping[str, Any]) -> None:
        """As `ansible-playbook --extra-vars` does, which remembers what it was given."""
        context.CLIARGS = ImmutableDict(extra_vars=(json.dumps(variables),))
        vars(load_extra_vars).pop("extra_vars", None)
        self.manager._extra_vars = load_extra_vars(self.loader)

    def _first_tasks(self) -> Iterator[Any]:
        """The tasks before the first that does something."""
        for task in (task for block in self.play.compile() for task in _tasks(block)):
            if task.action == "ansible.builtin.fail":
                yield task
            elif task.action not in BEFORE:
                return


def _tasks(block: Any) -> Iterator[Any]:
    for entry in block.block:
        if hasattr(entry, "block"):
            yield from _tasks(entry)
        else:
            yield entry
