# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Writes from the table of options, the argument specs of the roles, what says the same elsewhere.

That is the table in docs/variables.md, between its two comments, the Python API's StartOptions, and AWX's surveys.
Whoever changes an option runs this; tests/unit/test_generated.py fails until then.
"""

from __future__ import annotations

import re
import textwrap
from pathlib import Path
from typing import Any

import yaml
from ansible_collections.phpborg.instant_recovery.plugins.plugin_utils.table import (
    ENTRY_POINTS,
    KEPT,
    ROLES_OF_ENGINES,
    Table,
    read_table,
)
from surveys import ASKED, survey

CHECKOUT = Path(__file__).resolve().parents[1]
BEGIN, END = "<!-- scripts/generate writes what follows -->", "<!-- up to here -->"
# Not for Python's start(): its archive is an argument, it makes up the id, and knows which names there are.
NOT_OF_PYTHON = ("archive", "accept_unknown", *KEPT)
TYPES = {"str": "str", "int": "int", "bool": "bool", "dict": "Mapping[str, object]", "raw": "str | int"}
COLLECTION = "phpborg.instant_recovery."
MARKUP = re.compile(r"\b([CVOMEP])\(([^)]+)\)")

MODULE = '''\
# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a start can be asked for. Written by scripts/generate from the roles' argument specs: change those."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, TypedDict

__all__ = ["StartOptions"]


class StartOptions(TypedDict, total=False):
    """The start playbook's variables, as docs/variables.md describes them. None is as if it was not given."""

'''

SURVEYS = """\
# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
#
# What the templates ask for. Written by scripts/generate from the roles' argument specs and scripts/surveys.py: change
# those.
---
"""


def main() -> None:
    for path, text in generated().items():
        if path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
            print(f"wrote {path.relative_to(CHECKOUT)}")


def generated() -> dict[Path, str]:
    """What the files that have something of the table in them must be."""
    variables = CHECKOUT / "docs" / "variables.md"
    before, _begin, rest = variables.read_text(encoding="utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    return {
        variables: f"{before}{BEGIN}\n\n{table_of_variables()}\n{END}{after}",
        CHECKOUT / "src" / "instant_recovery" / "_options.py": start_options(),
        CHECKOUT / "awx" / "data" / "surveys.yml": surveys(),
    }


def table_of_variables() -> str:
    """A heading and a table for each playbook, and for what only one engine knows."""
    parts = []
    for entry_point in ENTRY_POINTS:
        table = read_table(entry_point)
        parts += [rows(entry_point, table.options)]
        parts += [rows(f"{entry_point}, of {names} alone", options) for names, options in by_role(table).items()]
    return "\n".join(parts)


def by_role(table: Table) -> dict[str, dict[str, Any]]:
    """What only one role's engines know, by their names."""
    names: dict[str, list[str]] = {}
    for engine in table.engines:
        names.setdefault(ROLES_OF_ENGINES[engine], []).append(engine)
    return {" and ".join(engines): table.engines[engines[0]] for engines in names.values()}


def rows(heading: str, options: dict[str, Any]) -> str:
    lines = [
        f"| `{name}` | {default_of(spec)} | {marked(spec['description']).replace('|', chr(92) + '|')} |\n"
        for name, spec in options.items()
    ]
    return f"### {heading}\n\n| variable | default | meaning |\n|---|---|---|\n{''.join(lines)}"


def start_options() -> str:
    table = read_table("start")
    found: dict[str, list[dict[str, Any]]] = {}
    for options in (table.options, *by_role(table).values()):
        for name, spec in options.items():
            found.setdefault(name, []).append(spec)
    fields = [
        f"{''.join(map(comment, specs))}    {name}: {' | '.join(dict.fromkeys(map(type_of, specs)))} | None\n"
        for name, specs in found.items()
        if name not in NOT_OF_PYTHON
    ]
    return MODULE + "".join(fields)


def surveys() -> str:
    """The survey of each template, as a file of variables."""
    found = {name: survey(asked, options_of("start" if name == "workflow" else name)) for name, asked in ASKED.items()}
    return SURVEYS + yaml.dump({"awx_surveys": found}, Dumper=Indented, sort_keys=False, allow_unicode=True, width=110)


class Indented(yaml.SafeDumper):
    """YAML as ansible-lint wants it: lists are indented."""

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        super().increase_indent(flow, indentless=False)


def options_of(entry_point: str) -> dict[str, dict[str, Any]]:
    """All options of an entry point, described in plain text; what several engines know is described for each."""
    table = read_table(entry_point)
    found = {name: {**spec, "description": plain(spec["description"])} for name, spec in table.options.items()}
    for engines, options in by_role(table).items():
        for name, spec in options.items():
            before = f"{found[name]['description']} " if name in found else ""
            found[name] = {**spec, "description": f"{before}Of {engines}: {plain(spec['description'])}"}
    return found


def plain(description: str | list[str]) -> str:
    """Ansible's markup as a form shows it."""
    return marked(description).replace("`", "")


def marked(description: str | list[str]) -> str:
    """Ansible's markup as Markdown."""
    text = " ".join([description] if isinstance(description, str) else description)
    return MARKUP.sub(
        lambda found: f"`{named(found[2]) if found[1] == 'O' else found[2].removeprefix(COLLECTION)}`", text
    )


def named(option: str) -> str:
    """An option of the roles, as people call it."""
    return option if option in KEPT else option.partition("_")[2]


def default_of(spec: dict[str, Any]) -> str:
    if spec.get("required"):
        return "required"
    default = spec.get("default")
    return "" if default in (None, {}, []) else f"`{str(default).lower() if isinstance(default, bool) else default}`"


def type_of(spec: dict[str, Any]) -> str:
    choices = ", ".join(f'"{choice}"' for choice in spec.get("choices", ()))
    return f"Literal[{choices}]" if choices else TYPES[spec["type"]]


def comment(spec: dict[str, Any]) -> str:
    lines = textwrap.wrap(marked(spec["description"]), 113)
    return textwrap.indent("\n".join(lines), "    # ") + "\n"


if __name__ == "__main__":
    main()
