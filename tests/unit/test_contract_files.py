# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is written down in several places, or promised in prose, agrees with itself and with the code."""

from __future__ import annotations

import ast
import os
import re
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.phpborg.instant_recovery.plugins.plugin_utils.table import all_variables

CHECKOUT = Path(__file__).resolve().parents[2]
COLLECTION = "phpborg.instant_recovery"
MODULES = sorted(path.stem for path in (CHECKOUT / "plugins" / "modules").glob("*.py"))
ROLES = sorted(path.name for path in (CHECKOUT / "roles").iterdir())
PLAYBOOKS = sorted((CHECKOUT / "playbooks").glob("*.yml"))
DOCUMENTS = sorted(
    path
    for pattern in ("*.md", "docs/**/*.md", "roles/*/README.md", "tests/*/README.md")
    for path in CHECKOUT.glob(pattern)
)
README = (CHECKOUT / "README.md").read_text(encoding="utf-8")
VARIABLES = (CHECKOUT / "docs" / "variables.md").read_text(encoding="utf-8")
PYTHON_FILES = sorted(path for part in ("plugins", "src", "tests") for path in (CHECKOUT / part).rglob("*.py"))

ATTRIBUTES = {"check_mode", "diff_mode", "idempotent", "platform"}
#: The longest function, in lines below its signature and docstring.
LONGEST_FUNCTION = 40


def test_the_action_group_is_all_modules() -> None:
    assert load("meta/runtime.yml")["action_groups"]["instant_recovery"] == MODULES


def test_the_version_is_stated_in_galaxy_yml_alone() -> None:
    assert load("galaxy.yml")["version"]
    for path in (CHECKOUT / "pyproject.toml", *(CHECKOUT / "src").rglob("*.py")):
        assert not re.search(r"^(__version__|version) *=", path.read_text(encoding="utf-8"), re.M), path


def test_both_packagings_ask_for_the_same_ansible() -> None:
    required = load("meta/runtime.yml")["requires_ansible"]
    assert f'"ansible-core{required}"' in (CHECKOUT / "pyproject.toml").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", MODULES)
def test_a_module_documents_all_it_claims(name: str) -> None:
    documentation, returns = documented(name, "DOCUMENTATION"), documented(name, "RETURN")
    assert documentation["module"] == name
    assert documentation["version_added"] == "1.0.0"
    assert set(documentation["attributes"]) >= ATTRIBUTES
    assert documented(name, "EXAMPLES")
    for key, value in returns.items():
        assert value.keys() >= {"description", "type", "returned", "sample"}, key


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of_a_module_use_options_that_exist(name: str) -> None:
    for task in documented(name, "EXAMPLES"):
        for action in (key for key in task if key.startswith(f"{COLLECTION}.")):
            module = action.removeprefix(f"{COLLECTION}.")
            options = documented_options(module)
            given = task[action] or {}
            assert given.keys() <= options.keys(), f"{task['name']}: unknown options"
            required = {option for option, spec in options.items() if spec.get("required")}
            assert required <= given.keys(), f"{task['name']}: missing options"


def test_the_examples_of_all_modules_are_valid_tasks(tmp_path: Path) -> None:
    tasks = [task for name in MODULES for task in documented(name, "EXAMPLES")]
    playbook = tmp_path / "examples.yml"
    playbook.write_text(yaml.safe_dump([{"hosts": "localhost", "gather_facts": False, "tasks": tasks}]))
    check_syntax(str(playbook))


def test_the_defaults_of_the_role_host_equal_its_argument_specs() -> None:
    """The others' are in the table of options alone, from where one task reads them."""
    options = load("roles/host/meta/argument_specs.yml")["argument_specs"]["main"]["options"]
    assert load("roles/host/defaults/main.yml") == {name: spec["default"] for name, spec in options.items()}


def test_playbooks_use_peoples_names_and_leave_the_check_to_the_role() -> None:
    for path in PLAYBOOKS:
        (play,) = yaml.safe_load(path.read_text(encoding="utf-8"))
        given = {"ansible_pipelining": True, "session_plain_names": True}
        assert play["vars"].items() <= given.items(), path.name
        entry_point = path.stem.removeprefix("instant_recovery_")
        tasks = load(f"roles/session/tasks/{entry_point}.yml")
        check = tasks[0].get(f"{COLLECTION}.session_options", {})
        assert entry_point == "reap" or check["entry_point"] == entry_point


@pytest.mark.parametrize("name", ROLES)
def test_a_role_keeps_to_its_own_names_and_entry_points(name: str) -> None:
    specs = load(f"roles/{name}/meta/argument_specs.yml")["argument_specs"]
    for entry_point, spec in specs.items():
        assert exists(f"roles/{name}/tasks/{entry_point}.yml"), entry_point
        assert all(option.startswith(f"{name}_") for option in spec.get("options", {})), entry_point
    assert exists(f"roles/{name}/README.md")
    assert load(f"roles/{name}/meta/main.yml")["galaxy_info"]["license"]


def test_playbooks_run_by_file_name_and_by_full_name() -> None:
    check_syntax(*map(str, PLAYBOOKS), *(f"{COLLECTION}.{playbook.stem}" for playbook in PLAYBOOKS))


def test_the_commands_of_the_documents_exist_and_parse() -> None:
    commands = [command for block in fenced("bash") for command in shell_commands(block)]
    checked = 0
    for words in commands:
        program = words[0]
        if program == "ansible-playbook":
            check_syntax(*words[1:])
            checked += 1
        elif program.startswith("scripts/"):
            assert os.access(CHECKOUT / program, os.X_OK), program
            subprocess.run(["bash", "-n", program], cwd=CHECKOUT, check=True)
            checked += 1
    assert checked >= 5


def test_the_python_and_yaml_of_the_documents_parse() -> None:
    python, documents = fenced("python"), fenced("yaml")
    assert python
    for source in python:
        tree = ast.parse(source)
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module == "instant_recovery":
                import instant_recovery

                assert {alias.name for alias in node.names} <= set(instant_recovery.__all__)
    for document in documents:
        assert yaml.safe_load(document)


def test_the_variables_of_the_documents_are_those_of_the_playbooks() -> None:
    """The table in docs/variables.md is generated; these are written by hand."""
    most_used = README.partition("## The variables")[2].partition("\n## ")[0]
    who = VARIABLES.partition("## Who may set which")[2].partition("\n## ")[0].partition("| the modules'")[0]
    cells = [row.split("|")[1] for row in (most_used + who).splitlines() if row.startswith("|")]
    named = {name for cell in cells for name in re.findall(r"`(\w+)[`=]", cell)}
    assert len(named) > 30
    assert named - all_variables() == set()


def test_the_readme_is_read_in_one_go() -> None:
    assert len(README.splitlines()) < 150


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(CHECKOUT)))
def test_the_links_of_a_document_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text(encoding="utf-8")):
        if "://" not in target:
            name, _hash, anchor = target.partition("#")
            there = (path.parent / name).resolve() if name else path
            assert there.exists(), target
            assert not anchor or anchor in anchors(there), target


def anchors(path: Path) -> set[str]:
    """What GitHub calls a document's headings."""
    headings = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", PYTHON_FILES, ids=lambda path: str(path.relative_to(CHECKOUT)))
def test_a_python_file_is_licensed_and_has_no_long_function(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    assert "SPDX-License-Identifier: GPL-3.0-or-later" in source[:400]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            body = node.body[1:] if ast.get_docstring(node) and node.body[1:] else node.body
            lines = (node.end_lineno or 0) - body[0].lineno + 1
            assert lines <= LONGEST_FUNCTION, f"{node.name}: {lines} lines"


def test_the_collection_does_not_need_the_python_package() -> None:
    for path in (CHECKOUT / "plugins").rglob("*.py"):
        assert not re.search(r"^\s*(from|import) instant_recovery\b", path.read_text(encoding="utf-8"), re.M), path


def exists(path: str) -> bool:
    return (CHECKOUT / path).exists()


def load(path: str) -> Any:
    return yaml.safe_load((CHECKOUT / path).read_text(encoding="utf-8"))


@cache
def documented(name: str, block: str, *, kind: str = "modules") -> Any:
    """One of the YAML documents in a plugin's source: DOCUMENTATION, EXAMPLES or RETURN."""
    tree = ast.parse((CHECKOUT / "plugins" / kind / f"{name}.py").read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id == block:
            return yaml.safe_load(ast.literal_eval(node.value))
    pytest.fail(f"{name} has no {block}")


def documented_options(module: str) -> dict[str, Any]:
    """The options of a module, with those of the fragments it uses."""
    documentation = documented(module, "DOCUMENTATION")
    options = dict(documentation.get("options", {}))
    for fragment in documentation.get("extends_documentation_fragment", []):
        name, *block = fragment.removeprefix(f"{COLLECTION}.").split(".")
        fragment_documentation = documented(name, (block or ["DOCUMENTATION"])[0].upper(), kind="doc_fragments")
        options |= fragment_documentation.get("options", {})
    return options


def fenced(language: str) -> list[str]:
    """The documents' code blocks in one language."""
    text = "\n".join(path.read_text(encoding="utf-8") for path in DOCUMENTS)
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.M | re.S)


def shell_commands(block: str) -> list[list[str]]:
    """A shell block's lines as words, without comments, prompts, assignments in front and what follows `|` or `&&`."""
    commands = []
    for line in block.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        while words and re.fullmatch(r"\w+=.*", words[0]):
            words = words[1:]
        if words:
            commands.append(words)
    return commands


def check_syntax(*arguments: str) -> None:
    command = [sys.executable, "-m", "ansible", "playbook", "--syntax-check", *arguments]
    ran = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, timeout=60, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_what_other_hosts_have_told_goes_into_statistics_through_a_lookup() -> None:
    """set_stats looks for templates in it, and older Ansibles forget on this way what is none (CVE-2024-11079)."""
    tasks = [path.read_text(encoding="utf-8") for path in (*PLAYBOOKS, *(CHECKOUT / "roles").glob("*/tasks/*.yml"))]
    left = {name for text in tasks for part in text.split("set_stats:")[1:] for name in re.findall(r"\{\{ (\w+)", part)}
    known = load("roles/session/vars/main.yml")
    told = {name for name in left if "hostvars" in str(known.get(name)) and "inventory_hostname" not in known[name]}
    assert told >= {"session_all_stopped", "session_all_listed", "session_all_extended", "session_all_reaped"}
    assert [name for name in told if "q('ansible.builtin.items'," not in known[name]] == []


# What a reader of one function cannot know the meaning of.
RIDDLE = re.compile(r"(They|It|Its|Them|Their|Those|These|This|That|The same|The opposite|As) ")


def test_the_first_line_of_a_docstring_stands_alone() -> None:
    kinds = (ast.FunctionDef, ast.ClassDef, ast.Module)
    for part in ("plugins", "src", "tests/support"):
        for path in (CHECKOUT / part).rglob("*.py"):
            nodes = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, kinds)]
            first = [line.splitlines()[0] for node in nodes if (line := ast.get_docstring(node))]
            assert [line for line in first if RIDDLE.match(line)] == [], path
