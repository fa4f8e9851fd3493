# Copyright (c) 2026, phpBorg contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Checks what people give, on the controller. See plugins/modules/session_options.py."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, NamedTuple

from ansible.plugins.action import ActionBase
from ansible.utils.unsafe_proxy import AnsibleUnsafe, wrap_var
from ansible.utils.vars import load_extra_vars

from ..module_utils._errors import RecoveryError, shown
from ..plugin_utils.execution_environment import refuse_container
from ..plugin_utils.options import check_host, check_options, refuse_misspelt
from ..plugin_utils.table import ENTRY_POINTS, ROLE, ROLES_OF_ENGINES, all_variables, read_table, variables_of
from ..plugin_utils.values import OptionError, is_given, read_value

try:
    from ansible.template import is_trusted_as_template
except ImportError:  # before ansible-core 2.19, where all is a template that is not unsafe

    def is_trusted_as_template(value: object) -> bool:
        """Whether Ansible takes the value for a template."""
        return not isinstance(value, AnsibleUnsafe)


if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from ..plugin_utils.table import Table

SECRETS = ("borg_passphrase", "borg_passcommand")
BRACES = re.compile(r"\{[{%#]")
WHOLE = re.compile(r"\s*\{\{(?:(?!\}\}|\{[{%#]).)*\}\}\s*", re.DOTALL)
# What the role of the host takes comes from this one's options.
OTHERS = re.compile(r"host_|session_plain_names$")


class Given(NamedTuple):
    """What an option is given, and by which variable."""

    variable: str
    value: Any


class ActionModule(ActionBase):  # type: ignore[misc]  # Ansible has no types
    """The action phpborg.instant_recovery.session_options."""

    _requires_connection = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return what is asked for, or fail with the one sentence that is wrong."""
        super().run(tmp, task_vars)
        _validated, arguments = self.validate_argument_spec(
            argument_spec={
                "entry_point": {"type": "str", "choices": list(ENTRY_POINTS), "required": True},
                "plain_names": {"type": "bool", "default": False},
            }
        )
        try:
            result = self._checked(read_table(arguments["entry_point"]), arguments["plain_names"], task_vars or {})
        except RecoveryError as error:
            return {"failed": True, "msg": shown(str(error))}
        # What is data stays data: nothing of it is to be looked at for templates again.
        return {"changed": False, **wrap_var(result)}

    def _checked(self, table: Table, plain: bool, variables: Mapping[str, Any]) -> dict[str, Any]:
        for name in SECRETS:
            _refuse_templates(variables_of(name, plain=plain), variables)
        given = self._given(table.options, ROLE, plain, variables)
        own = {
            engine: self._given(known, ROLES_OF_ENGINES[engine], plain, variables)
            for engine, known in table.engines.items()
        }
        if plain:
            self._refuse_misspelt(variables)
            check_host(_values(given), variables["groups"]["all"], variables["inventory_hostname"])
        refuse_container(table.entry_point, variables, variables["inventory_hostname"], self._connection.transport)
        checked = check_options(table, _values(given), {engine: _values(some) for engine, some in own.items()})
        secrets = {name: one.variable for name, one in given.items() if table.options[name].get("no_log")}
        return {**checked, "secrets": secrets, "roles": ROLES_OF_ENGINES}

    def _given(self, options: Iterable[str], role: str, plain: bool, variables: Mapping[str, Any]) -> dict[str, Given]:
        """The options for which a variable says something. Each is looked at for templates once."""
        found = {}
        for name in options:
            for variable in variables_of(name, role, plain=plain):
                value = self._value(variable, variables, is_secret=name in SECRETS)
                if is_given(value) and value != variables.get("omit"):
                    found[name] = Given(variable, value)
                    break
        return found

    def _value(self, variable: str, variables: Mapping[str, Any], *, is_secret: bool) -> Any:
        if variable not in variables:
            return None
        try:
            return self._templar.template(variables[variable])
        except Exception:  # whatever Ansible raises shows what it stumbled over, and what stands beside it
            if not is_secret:
                raise
        raise OptionError(
            f"{variable} is a template that cannot be filled in: look at the variables in its braces, or mark it with "
            "!unsafe where it is none."
        )

    def _refuse_misspelt(self, variables: Mapping[str, Any]) -> None:
        accepted = self._templar.template(variables.get("accept_unknown", False))
        if not (is_given(accepted) and read_value("accept_unknown", accepted, {"type": "bool"})):
            names = [name for name in load_extra_vars(self._loader) if not OTHERS.match(name)]
            refuse_misspelt(names, sorted(all_variables()))


def _values(given: Mapping[str, Given]) -> dict[str, Any]:
    return {name: one.value for name, one in given.items()}


def _refuse_templates(names: Iterable[str], variables: Mapping[str, Any]) -> None:
    """Refuse a secret with braces in it that Ansible takes for a template, or stumbles over.

    What came out would be an error that shows it, or another secret without a word. One that is a whole expression,
    such as another variable in double braces, is meant as a template.
    """
    for name in names:
        value = variables.get(name)
        if isinstance(value, (list, dict)):  # what is of a vault is no str to every Ansible
            raise OptionError(f"{name} is no text: give it as one.")
        text = str(value) if isinstance(value, str) and is_trusted_as_template(value) else ""
        if BRACES.search(text) and not WHOLE.fullmatch(text):
            raise OptionError(
                f"{name} has braces in it that Ansible takes for a template: mark it in its file with !unsafe ({name}: "
                "!unsafe 'the text'), give it in the environment (BORG_PASSPHRASE), or name a file that holds it "
                "(borg_passphrase_file)."
            )
