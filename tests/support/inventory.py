# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Reading an inventory file with the plugin in this process, as Ansible does, and what came of it."""

from __future__ import annotations

import itertools
import json
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import yaml
from ansible import constants
from ansible import context as ansible_context
from ansible.errors import AnsibleError
from ansible.inventory.manager import InventoryManager
from ansible.module_utils.common.collections import ImmutableDict
from ansible.parsing.dataloader import DataLoader
from ansible.plugins.doc_fragments import constructed, inventory_cache
from ansible_collections.phpborg.instant_recovery.plugins.inventory import borg

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

__all__ = ["PLUGIN", "Inventory", "read_inventory", "write_inventory"]

PLUGIN = borg.InventoryModule.NAME
_numbers = itertools.count()


@dataclass
class Inventory:
    """What is in an inventory once the file was read; `error` is why it was not."""

    loader: DataLoader
    data: Any
    error: str = ""
    warnings: list[str] = field(default_factory=list)

    def warning(self, message: str, **_options: Any) -> None:
        """Take the place of Ansible's display."""
        self.warnings.append(message)

    @property
    def sources(self) -> list[str]:
        """Names of the hosts that are no machines."""
        return sorted(name for name in self.data.hosts if "@" in name)

    def variables(self, host: str) -> dict[str, Any]:
        """A host's variables, with their templates."""
        found: dict[str, Any] = self.data.get_host(host).get_vars()
        return found

    def groups(self, host: str) -> set[str]:
        """Names of the groups that a host is in, without those that all are in."""
        return {group.name for group in self.data.get_host(host).get_groups()} - {"all", "ungrouped"}

    def dump(self) -> str:
        """All variables of all hosts, as one text."""
        return json.dumps({name: self.variables(name) for name in self.data.hosts}, default=repr)


def write_inventory(path: Path, *repositories: Mapping[str, Any], **options: Any) -> Path:
    """Write an inventory file of the plugin's; returns its path."""
    path.write_text(yaml.safe_dump({"plugin": PLUGIN, "repositories": [dict(one) for one in repositories], **options}))
    return path


def read_inventory(path: Path, *before: Path, cache: bool = True) -> Inventory:
    """Read a file of the plugin's after others of any kind. The same `path` has the same cache."""
    ansible_context.CLIARGS = ImmutableDict(extra_vars=())
    loader = DataLoader()
    manager = InventoryManager(loader=loader, sources=list(map(str, before)) or ["localhost,"])
    plugin = borg.InventoryModule()
    # As Ansible's loader of plugins does.
    name = f"{PLUGIN}.{next(_numbers)}"
    documents = (borg, constructed.ModuleDocFragment, inventory_cache.ModuleDocFragment)
    options = {key: one for document in documents for key, one in _options(document.DOCUMENTATION).items()}
    constants.config.initialize_plugin_configuration_definitions("inventory", name, options)
    plugin._load_name, plugin._redirected_names = name, [PLUGIN]
    found = Inventory(loader, manager._inventory)
    plugin.display = found
    assert plugin.verify_file(str(path))
    try:
        plugin.parse(manager._inventory, loader, str(path), cache=cache)
        with suppress(AttributeError):  # there is no cache unless it is asked for; Ansible does the same
            plugin.update_cache_if_changed()
    except AnsibleError as error:
        found.error = str(error)
    manager._inventory.reconcile_inventory()
    return found


def _options(document: str) -> dict[str, Any]:
    options: dict[str, Any] = yaml.safe_load(document)["options"]
    return options
