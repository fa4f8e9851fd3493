# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What awx/data says, as a site has it, and the rules of AWX for it.

The rules were read in AWX's own code, and tried on a server, which refuses what breaks them, or spoils launches.
Each function returns sentences, one for each rule broken.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import yaml
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar

__all__ = [
    "content",
    "credential_type_problems",
    "notification_problems",
    "schedule_problems",
    "survey_problems",
    "workflow_problems",
]

CHECKOUT = Path(__file__).resolve().parents[2]
DATA = CHECKOUT / "awx" / "data"

Object = dict[str, Any]


def content(**site: str) -> dict[str, list[Object]]:
    """The lists of awx/data, with the variables of a site beside the role's defaults."""
    variables = yaml.safe_load((CHECKOUT / "roles" / "awx" / "defaults" / "main.yml").read_text()) | site
    loader = DataLoader()
    for path in sorted(DATA.glob("*.yml")):
        variables |= _templates(loader, path)
    templar = Templar(loader, variables=variables)
    names = [name for name in variables if name.startswith("controller_")]
    # Without what Ansible remembers of each text.
    found: dict[str, list[Object]] = json.loads(json.dumps({name: templar.template(variables[name]) for name in names}))
    return found


def _templates(loader: DataLoader, path: Path) -> Object:
    """A file of variables, which Ansible looks at for templates."""
    found: Object
    try:
        found = loader.load_from_file(str(path), trusted_as_template=True)
    except TypeError:  # before ansible-core 2.19, where all is a template that is not unsafe
        found = loader.load_from_file(str(path))
    return found


TYPES = ("text", "textarea", "password", "integer", "float", "multiplechoice", "multiselect")
MANDATORY = ("type", "question_name", "variable", "required")
OPTIONAL = ("question_description", "default", "choices", "min", "max")
OF_NUMBERS = {"integer": int, "float": (int, float)}


def survey_problems(survey: Object) -> list[str]:
    """What is wrong with a survey_spec."""
    problems = [f"{key} is no text" for key in ("name", "description") if not isinstance(survey.get(key), str)]
    questions = survey.get("spec")
    if not isinstance(questions, list) or not questions:
        return [*problems, "spec has no question"]
    variables = [question.get("variable") for question in questions]
    problems += [
        f"variable {name} is asked for twice" for name in sorted({n for n in variables if variables.count(n) > 1})
    ]
    return problems + [f"{one.get('variable')}: {text}" for one in questions for text in _question_problems(one)]


def _question_problems(question: Object) -> list[str]:
    missing = [f"{key} is missing" for key in MANDATORY if question.get(key) in (None, "")]
    if missing:
        return missing
    problems = [f"{key} is unknown" for key in question if key not in MANDATORY + OPTIONAL]
    if question["type"] not in TYPES:
        problems.append(f"type {question['type']} is unknown")
    if not isinstance(question["required"], bool):
        problems.append("required is no boolean")
    problems += [
        f"{key} is no integer" for key in ("min", "max") if not isinstance(question.get(key, 0), (int, type(None)))
    ]
    if question["type"].startswith("multi"):
        problems += _choice_problems(question)
    return problems + (_default_problems(question) if "default" in question else [])


def _choice_problems(question: Object) -> list[str]:
    choices = question.get("choices")
    if isinstance(choices, str):
        choices = choices.splitlines()
    if not choices:
        return ["choices are missing"]
    return [
        f"choice {one!r} is no text: on a launch it would be none of them"
        for one in choices
        if not isinstance(one, str)
    ]


def _default_problems(question: Object) -> list[str]:
    default, kind = question["default"], question["type"]
    expected = OF_NUMBERS.get(kind, str)
    if not isinstance(default, expected) or isinstance(default, bool):
        return [f"default {default!r} is of another type than {kind}"]
    if kind == "multiplechoice" and default not in question.get("choices", ()):
        return [f"default {default!r} is none of the choices"]
    if question["required"]:
        return ["a default does not help who leaves out a required answer: AWX refuses the launch"]
    return ["an empty default is sent as an empty text: leave it out"] if default == "" else []


RESERVED = re.compile(r"ANSIBLE_|(PATH|PYTHONPATH|VIRTUAL_ENV|JOB_ID|INVENTORY_ID|PROJECT_REVISION|HOME|USER)$")
FIELD = re.compile(r"[a-zA-Z_]+\w*")
REFERENCE = re.compile(r"\{\{\s*([\w.]+)\s*\}\}")


def credential_type_problems(credential_type: Object) -> list[str]:
    """What is wrong with a credential type."""
    fields = credential_type["inputs"].get("fields", [])
    names = [field.get("id", "") for field in fields]
    problems = [] if credential_type["kind"] in ("cloud", "net") else [f"kind {credential_type['kind']} is not custom"]
    problems += [f"field {name} cannot be called so" for name in names if not FIELD.fullmatch(name) or name == "tower"]
    problems += [f"field {name} is there twice" for name in {name for name in names if names.count(name) > 1}]
    problems += [f"field {field.get('id')} has no label" for field in fields if not field.get("label")]
    problems += [
        f"required {name} is no field" for name in credential_type["inputs"].get("required", []) if name not in names
    ]
    return problems + _injector_problems(credential_type["injectors"], {*names, "tower.filename"})


def _injector_problems(injectors: Object, known: set[str]) -> list[str]:
    problems = [f"{key} is no kind of injector" for key in injectors if key not in ("env", "extra_vars", "file")]
    problems += [f"{name} of the environment is AWX's" for name in injectors.get("env", {}) if RESERVED.match(name)]
    for values in injectors.values():
        for name, template in values.items():
            references = REFERENCE.findall(template)
            problems += [f"{name}: {one} is no field" for one in references if one not in known]
            problems += [] if template.isascii() else [f"{name}: the template is not ASCII"]
    return problems


NODES = ("success_nodes", "failure_nodes", "always_nodes")
KINDS = ("job_template", "workflow_job_template", "project", "inventory_source", "workflow_approval")


def workflow_problems(workflow: Object, templates: dict[str, Object]) -> list[str]:
    """What is wrong with a workflow's nodes. `templates` are the job templates there are, by name."""
    nodes = workflow["workflow_nodes"]
    names = [node["identifier"] for node in nodes]
    problems = [f"node {name} is there twice" for name in {name for name in names if names.count(name) > 1}]
    for node in nodes:
        runs = node["unified_job_template"]
        if runs["type"] not in KINDS:
            problems.append(f"{node['identifier']}: type {runs['type']} is unknown")
        elif runs["type"] == "job_template":
            problems += [f"{node['identifier']}: {text}" for text in _node_problems(node, templates.get(runs["name"]))]
        next_ones = [one["identifier"] for kind in NODES for one in node.get("related", {}).get(kind, [])]
        problems += [f"{node['identifier']}: there is no node {name}" for name in next_ones if name not in names]
    return problems


def _node_problems(node: Object, template: Object | None) -> list[str]:
    if template is None:
        return [f"there is no template {node['unified_job_template']['name']}"]
    return _answer_problems(node.get("extra_data", {}), template)


def _answer_problems(answers: Object, template: Object) -> list[str]:
    asked = {one["variable"]: one for one in template.get("survey_spec", {}).get("spec", [])}
    problems = [f"{name} is not asked for" for name in answers if name not in asked]
    for name, value in answers.items():
        choices = asked.get(name, {}).get("choices")
        problems += [f"{name} {value!r} is none of the choices"] if choices and value not in choices else []
    return problems


def schedule_problems(schedule: Object, templates: dict[str, Object]) -> list[str]:
    """What is wrong with a schedule of a job template."""
    problems = []
    if not re.fullmatch(
        r"DTSTART(;TZID=[\w/+-]+)?:\d{8}T\d{6}Z? RRULE:FREQ=[A-Z]+;INTERVAL=\d+(;\S+)?", schedule["rrule"]
    ):
        problems.append(f"rrule {schedule['rrule']} is none")
    template = templates.get(schedule["unified_job_template"])
    if template is None:
        return [*problems, f"there is no template {schedule['unified_job_template']}"]
    answers = schedule.get("extra_data", {})
    required = [one["variable"] for one in template.get("survey_spec", {}).get("spec", []) if one["required"]]
    problems += [f"the answer for {name} is missing" for name in required if name not in answers]
    return problems + _answer_problems(answers, template)


WEBHOOK = {
    "url": str,
    "http_method": str,
    "headers": dict,
    "username": str,
    "password": str,
    "disable_ssl_verification": bool,
}


def notification_problems(notification: Object) -> list[str]:
    """What is wrong with a notification template of a webhook."""
    given = notification["notification_configuration"]
    missing = [f"{key} is missing" for key in WEBHOOK if key not in given]
    return missing or [f"{key} is of another type" for key, kind in WEBHOOK.items() if not isinstance(given[key], kind)]
