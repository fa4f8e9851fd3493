# Copyright (c) 2026, phpBorg contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Borg repositories as an inventory. What it makes of them is in plugin_utils: fleet, series and verification_hosts."""

from __future__ import annotations

DOCUMENTATION = r"""
name: borg
short_description: Borg repositories as inventory, one host for each series of archives
version_added: 1.0.0
author: phpBorg contributors (@phpborg)
description:
  - Lists the archives of Borg repositories and makes a host of each source, that is of a series of archives that differ
    in their time alone. Patterns, C(--limit), forks, strategies and the slices of AWX's jobs then choose and run what
    is to be done with a fleet of backups.
  - A host is called C(SERIES@REPOSITORY), such as C(db1@main). It is no machine, and is reached as the machine where it
    is to be verified (O(verification_host)), whose connection variables it has, without the secrets among them.
  - It is in the groups C(borg_series), C(borg_repository_NAME), C(borg_machine_NAME) (the machine that was archived),
    C(borg_engine_NAME) (where the engine is known) and C(borg_verification_host_NAME). Those that cannot be verified
    are in C(borg_error).
  - Its variable C(instant_recovery_source) tells the repository, the series, the newest and the oldest archive and how
    many there are. C(session_repository), C(session_archive) and others are what a start needs.
  - Nothing is mounted, extracted or locked. Borg runs on the host that runs Ansible, once for each repository.
  - Files are called C(*.borg.yml) or C(*.borg.yaml).
extends_documentation_fragment:
  - ansible.builtin.constructed
  - ansible.builtin.inventory_cache
requirements:
  - borg 1.2 or 1.4, on the host that runs Ansible
options:
  plugin:
    description: Marks a file of this plugin.
    type: str
    required: true
    choices: [phpborg.instant_recovery.borg]
  repositories:
    description: The repositories. Unknown keys are errors.
    type: list
    elements: dict
    required: true
    suboptions:
      name:
        description: What hosts and groups call it. Letters, digits, dots, dashes and underscores, sixty at most.
        type: str
        required: true
      repository:
        description: A path, C(ssh://user@host/path) or C(user@host:path), as the host that runs Ansible sees it.
        type: str
        required: true
      borg_passphrase:
        description:
          - The passphrase, encrypted by C(ansible-vault encrypt_string), or an expression in double braces that tells
            it, such as a variable of a vault. In clear it is refused.
          - An expression can use extra variables, variables of the group C(all), and lookups.
          - At most one of the four is given. Without any, E(BORG_PASSPHRASE) or E(BORG_PASSCOMMAND) counts.
          - Variables of hosts never have the secret, but the encrypted text, or an expression that the host that runs
            Ansible evaluates when it is needed.
        type: raw
      borg_passphrase_file:
        description: File on the host that runs Ansible that holds it. A relative path begins at the inventory file.
        type: str
      borg_passphrase_env:
        description: Name of the environment variable of Ansible's that holds it.
        type: str
      borg_passcommand:
        description: Command that prints it. Run without a shell, on the host that runs Ansible.
        type: str
      borg_rsh:
        description: Command with which Borg reaches an C(ssh://) repository.
        type: str
      borg_remote_path:
        description: What the C(borg) program on the repository's host is called.
        type: str
      accept_unencrypted:
        description: Whether to open an unencrypted repository that was never opened from here.
        type: bool
        default: false
      accept_relocated:
        description: Whether to open a repository that was last opened at another place.
        type: bool
        default: false
      series:
        description:
          - Regular expression that tells the series of an archive by its name. It is searched for, and the series is
            its group C(series), or its first group, or what it matches.
          - Archives that it does not match are in no source, and a warning names them. See O(repositories[].exclude).
          - Left out, a series is what stays the same in names, all but their times, or else but the number at their
            end. Archives of several machines are several series.
        type: str
      exclude:
        description: Globs of archives' names that are left out without a word.
        type: list
        elements: str
        default: []
      expected:
        description:
          - Names of series that have to be there. One that has no archive is a host nevertheless, whose C(archives) is
            0, so that a backup that was never made, or was deleted, is not forgotten.
          - A repository without any is the one host C(all@NAME).
        type: list
        elements: str
        default: []
      engine:
        description: Database engine of its archives.
        type: str
        choices: [auto, postgresql, mariadb, mysql, mongodb]
        default: auto
      vars:
        description:
          - Variables of its hosts, which take the place of those that the plugin gives.
          - >-
            Such as C(session_repository), where verification hosts reach it at another place, and
            C(session_borg_passphrase_file), where they have the secret themselves.
        type: dict
        default: {}
      verification_host:
        description: In place of O(verification_host).
        type: raw
        default: local
      segregated:
        description: In place of O(segregated).
        type: bool
        default: false
      detect_engine:
        description: In place of O(detect_engine).
        type: bool
        default: false
      timeout:
        description: In place of O(timeout).
        type: int
        default: 300
  verification_host:
    description:
      - The host where sources are verified.
      - >-
        V(local), or V(controller), is the host that runs Ansible, V(source) the machine that was archived, and any
        other text the name of a host. Hosts with these names are given as C({host: NAME}).
      - >-
        Of C({group: NAME}) or C({hosts: [NAME, …]}) each source is assigned to one, by a hash of both names, and none
        gets more than a quarter above its share. When a host leaves, hardly any other sources than its own move. A
        group is that of an inventory that was read before.
      - The variable C(instant_recovery_verification_candidates) has all of them in the order in which they are to be
        asked. Free room and installed programs are known only when the work begins.
    type: raw
    default: local
  segregated:
    description:
      - Whether a source must not be verified on the machine that was archived. Of several hosts the others are taken.
        A source for which none is left is an error.
      - Names that are alike but for their domains are taken to be one machine. O(machines) says it exactly.
    type: bool
    default: false
  machines:
    description: Names of the inventory's hosts, by what archives call their machines, where these are not alike.
    type: dict
    default: {}
  detect_engine:
    description:
      - Whether to look into the newest archive of each series for its engine, where O(repositories[].engine) does not
        say it.
      - Borg lists the whole archive, and reads small files, in two runs for each series. Use it with O(cache).
    type: bool
    default: false
  timeout:
    description: Seconds that each run of Borg may take.
    type: int
    default: 300
  list_archives:
    description: Whether C(instant_recovery_source) has all archives of the series as C(all_archives), newest first.
    type: bool
    default: false
  on_error:
    description:
      - What to do where a repository cannot be listed, or no host can verify a source.
      - With V(fail) the whole file is an error, which Ansible only warns of, unless its own setting
        C(any_unparsed_is_failed) is true. No host of the file is there then.
      - With V(warn) it is a warning, and what cannot be verified is a host whose C(instant_recovery_source.error) says
        why. Series of a repository that cannot be listed are O(repositories[].expected), or the one host C(all@NAME).
        Such hosts cannot be connected to.
    type: str
    choices: [fail, warn]
    default: fail
seealso:
  - module: phpborg.instant_recovery.borg_archive_info
"""

EXAMPLES = r"""
# fleet.borg.yml: one repository, sources told by their archives' names, everything done on this host
plugin: phpborg.instant_recovery.borg
repositories:
  - name: main
    repository: /srv/backup/main
    borg_passphrase_file: /etc/borg/main.passphrase

---
# Several repositories; verified on hosts of the group verifiers, and never on the source itself:
#   ansible-inventory -i hosts.yml -i fleet.borg.yml --graph
plugin: phpborg.instant_recovery.borg
verification_host: {group: verifiers}
segregated: true
on_error: warn
repositories:
  - name: main
    repository: ssh://borg@backup.example.com/srv/main
    borg_passphrase: "{{ vault_main_passphrase }}"
    engine: postgresql
    expected: [db1, db2]
  - name: shop
    repository: ssh://borg@backup.example.com/srv/shop
    borg_passphrase_env: SHOP_PASSPHRASE
    series: '^(?P<series>shop-[a-z]+)_'
    exclude: ['*-manual']
    detect_engine: true
    vars:
      # The verification hosts have the secret themselves.
      session_borg_passphrase_file: /etc/borg/shop.passphrase
cache: true
cache_plugin: ansible.builtin.jsonfile
cache_connection: ~/.cache/instant_recovery
keyed_groups:
  - prefix: borg_day
    key: instant_recovery_source.newest.time[:10]
"""

import os
import socket
from functools import cache as cache_of
from typing import TYPE_CHECKING, Any

from ansible.errors import AnsibleParserError
from ansible.inventory.group import to_safe_group_name
from ansible.inventory.helpers import get_group_vars
from ansible.plugins.inventory import BaseInventoryPlugin, Cacheable, Constructable
from ansible.utils.unsafe_proxy import AnsibleUnsafe
from ansible.utils.vars import combine_vars
from ansible.vars.plugins import get_vars_from_inventory_sources

from ..module_utils._errors import RecoveryError, shown
from ..plugin_utils.fleet import (
    Declared,
    Listing,
    Source,
    Vault,
    find_sources,
    list_repository,
    place_sources,
    plain_sentence,
    read_repositories,
    refuse_errors,
    refuse_unknown,
    unlisted,
)
from ..plugin_utils.verification_hosts import CONTROLLER, Inventory, connection

try:
    from ansible.template import is_trusted_as_template, trust_as_template
except ImportError:  # before ansible-core 2.19, where all text is a template that is not unsafe

    def trust_as_template(value: str) -> str:
        """Have Ansible take the text for a template."""
        return value

    def is_trusted_as_template(value: object) -> bool:
        """Whether Ansible takes the value for a template."""
        return not isinstance(value, AnsibleUnsafe)


if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

# A name that no host has (RFC 2606): of what cannot be verified, nobody is to be asked by mistake.
NOWHERE = {"ansible_host": "not-verifiable.invalid"}
FILES = (".borg.yml", ".borg.yaml")
OWN_OPTIONS = ("machines", "list_archives", "on_error")


class InventoryModule(BaseInventoryPlugin, Constructable, Cacheable):  # type: ignore[misc]  # Ansible has no types
    """The inventory plugin phpborg.instant_recovery.borg."""

    NAME = "phpborg.instant_recovery.borg"

    def verify_file(self, path: str) -> bool:
        """Whether the file is called like one of this plugin's."""
        return bool(super().verify_file(path)) and path.endswith(FILES)

    def parse(self, inventory: Any, loader: Any, path: str, cache: bool = True) -> None:
        """Add the sources of the file's repositories. Raises AnsibleParserError, and then has added none."""
        super().parse(inventory, loader, path, cache)
        config = self._read_config_data(path)
        self._file = path
        reach = cache_of(self._reach)
        try:
            options = self._checked(config)
            vault = Vault(_is_encrypted, self._revealed, trust_as_template, os.path.dirname(os.path.abspath(path)))
            declared = read_repositories(config, self.option_definitions["repositories"]["suboptions"], vault)
            sources = place_sources(self._sources(declared, path, cache), self._known(options["machines"], reach))
            if options["on_error"] == "fail":
                refuse_errors(sources)
            self._refuse_twice(sources)
        except RecoveryError as error:
            raise AnsibleParserError(plain_sentence(str(error))) from error
        for source in sources:
            if source.error:
                self.display.warning(f"{source.host} cannot be verified: {plain_sentence(source.error)}")
            reached = reach(source.candidates[0]) if source.candidates else NOWHERE
            self._add(source, reached, with_archives=options["list_archives"])

    def _checked(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """The options of the plugin's own; a key that nobody reads is an error."""
        known = self.option_definitions
        aliases = [alias for spec in known.values() for alias in spec.get("aliases", ())]
        refuse_unknown(config, [*known, *aliases], where="the inventory file")
        return {name: self.get_option(name) for name in OWN_OPTIONS}

    def _sources(self, declared: Sequence[Declared], path: str, cache: bool) -> list[Source]:
        """The sources of all repositories; what was listed goes into the cache, where there is one."""
        use_cache, key = self.get_option("cache"), self.get_cache_key(path)
        cached: dict[str, Any] = dict(self._cache.get(key) or {}) if use_cache and cache else {}
        kept, found = {}, []
        for one in declared:
            try:
                listing = Listing.from_dict(cached.get(one.location)) or list_repository(one)
            except (RecoveryError, OSError) as error:
                found += unlisted(one, str(error))
                continue
            sources, sentences = find_sources(one, listing)
            found += sources
            kept[one.location] = listing.as_dict()
            for sentence in sentences:
                self.display.warning(plain_sentence(sentence))
        if use_cache and kept != cached:
            self._cache[key] = kept
        return found

    def _refuse_twice(self, sources: Sequence[Source]) -> None:
        known = self.inventory.hosts
        twice = [one.host for one in sources if one.host in known and "instant_recovery_source" in known[one.host].vars]
        if twice:
            raise RecoveryError(
                f"{shown(twice[0])} is there from another inventory file: give each repository a name of its own."
            )

    def _add(self, source: Source, reached: Mapping[str, Any], *, with_archives: bool) -> None:
        host, strict = source.host, self.get_option("strict")
        variables = source.variables()
        if with_archives:
            archives = source.series.archives[::-1] if source.series else ()
            told = [{"name": one.name, "id": one.id, "time": one.time} for one in archives]
            variables["instant_recovery_source"]["all_archives"] = told
        for group in source.groups():
            name = self.inventory.add_group(to_safe_group_name(group, force=True, silent=True))
            self.inventory.add_host(host, group=name)
        for name, value in {**reached, **variables}.items():
            self.inventory.set_variable(host, name, value)
        known = self.inventory.get_host(host).get_vars()
        self._set_composite_vars(self.get_option("compose"), known, host, strict=strict)
        known = self.inventory.get_host(host).get_vars()
        self._add_host_to_composed_groups(self.get_option("groups"), known, host, strict=strict)
        self._add_host_to_keyed_groups(self.get_option("keyed_groups"), known, host, strict=strict)

    def _known(self, machines: Mapping[str, Any], reach: Callable[[str], dict[str, Any]]) -> Inventory:
        """What the inventories that were read before have: their hosts' addresses, and members of groups."""
        own = {name for name, host in self.inventory.hosts.items() if "instant_recovery_source" in host.vars}
        hosts = self.inventory.hosts.keys() - own
        return Inventory(
            hosts=frozenset(hosts),
            address=lambda name: str(reach(name)["ansible_host"]),
            groups={
                name: sorted(host.name for host in group.get_hosts() if host.name in hosts)
                for name, group in self.inventory.groups.items()
            },
            controller=socket.gethostname(),
            machines={str(machine): str(host) for machine, host in machines.items()},
        )

    def _reach(self, name: str) -> dict[str, Any]:
        """How a host of the inventory, or another one, is reached."""
        host = self.inventory.hosts.get(name)
        variables = {} if host is None else self._variables(host)
        if name == CONTROLLER:
            python = trust_as_template("{{ ansible_playbook_python }}")
            variables = {"ansible_python_interpreter": python, **variables}
        return {key: _as_trusted(one, variables.get(key)) for key, one in connection(name, variables).items()}

    def _variables(self, host: Any) -> dict[str, Any]:
        """A host's variables as a play has them, with those of its groups and of directories beside the inventories."""
        sources, groups = self.inventory.processed_sources, host.get_groups()
        of_groups = combine_vars(
            get_group_vars(groups), get_vars_from_inventory_sources(self.loader, sources, groups, "all")
        )
        of_host = combine_vars(host.get_vars(), get_vars_from_inventory_sources(self.loader, sources, [host], "all"))
        variables: dict[str, Any] = combine_vars(of_groups, of_host)
        return variables

    def _revealed(self, value: Any) -> Any:
        """What an expression comes to, with extra variables and those of all hosts."""
        groups = [self.inventory.groups["all"]]
        sources = [*self.inventory.processed_sources, self._file]
        beside = get_vars_from_inventory_sources(self.loader, sources, groups, "all")
        self.templar.available_variables = combine_vars(combine_vars(get_group_vars(groups), beside), self._vars)
        try:
            return self.templar.template(value, fail_on_undefined=True)
        except Exception:  # whatever Ansible raises shows what it stumbled over, and what stands beside it
            raise RecoveryError(
                "borg_passphrase is an expression that cannot be evaluated: look at the variables in its braces."
            ) from None


def _as_trusted(value: Any, original: Any) -> Any:
    """What was made of a variable's value: a template, if the original may be one. Otherwise that is kept."""
    if value is original or not isinstance(value, str):
        return value
    return trust_as_template(value) if original is None or is_trusted_as_template(original) else original


def _is_encrypted(value: Any) -> bool:
    """Whether a value is of a vault, and still encrypted: Ansible's versions have several types for that."""
    return hasattr(value, "_ciphertext")
