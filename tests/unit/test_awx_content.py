# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What AWX is given keeps AWX's rules, has a template for each playbook, and asks for nothing that it must not."""

from __future__ import annotations

import copy
import json
import re
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._session.duration import parse_duration
from ansible_collections.phpborg.instant_recovery.plugins.plugin_utils.table import read_table
from ansible_collections.phpborg.instant_recovery.plugins.plugin_utils.values import check_value, read_value

from tests.support.awx_content import (
    content,
    credential_type_problems,
    notification_problems,
    schedule_problems,
    survey_problems,
    workflow_problems,
)

if TYPE_CHECKING:
    from collections.abc import Callable

CHECKOUT = Path(__file__).resolve().parents[2]
EXPORTED = Path(__file__).parent / "recorded" / "awx_export.json"
PROJECT = CHECKOUT / "awx" / "project"
PLAYBOOKS = {path.stem.removeprefix("instant_recovery_") for path in (CHECKOUT / "playbooks").glob("*.yml")}
# An export writes where it is told to with the rights of the host's user, which no survey may ask for.
OF_SESSIONS = PLAYBOOKS - {"awx", "export"}


@cache
def whole() -> dict[str, list[dict[str, Any]]]:
    return content(
        awx_webhook_url="https://hooks.example.com/recovery", awx_project_url="https://git.example.com/r.git"
    )


def templates() -> dict[str, dict[str, Any]]:
    return {template["name"]: template for template in whole()["controller_templates"]}


def session_workflow() -> dict[str, Any]:
    name = "Instant Recovery - start, approve, stop"
    (found,) = [workflow for workflow in whole()["controller_workflows"] if workflow["name"] == name]
    return found


def surveys() -> dict[str, dict[str, Any]]:
    """Every survey, by its template or workflow."""
    asking = [*whole()["controller_templates"], *whole()["controller_workflows"]]
    return {one["name"]: one["survey_spec"] for one in asking if one["survey_enabled"]}


def asked() -> dict[str, list[dict[str, Any]]]:
    """Every question, by its variable."""
    found: dict[str, list[dict[str, Any]]] = {}
    for survey in surveys().values():
        for question in survey["spec"]:
            found.setdefault(question["variable"], []).append(question)
    return found


def test_each_playbook_of_sessions_has_a_template_and_a_wrapper() -> None:
    named = {template["name"].removeprefix("Instant Recovery - "): template for template in templates().values()}
    assert set(named) == OF_SESSIONS == {path.stem for path in PROJECT.glob("*.yml")}
    for name, template in named.items():
        assert template["playbook"] == f"{name}.yml"
        lines = (PROJECT / f"{name}.yml").read_text().splitlines()
        assert len(lines) == 3
        # What AWX looks for in a file to take it for a playbook.
        assert re.match(r"\s*-?\s*(ansible\.builtin\.)?import_playbook:", lines[-1])
        assert yaml.safe_load("\n".join(lines))[0]["ansible.builtin.import_playbook"].endswith(
            f"instant_recovery_{name}"
        )


def test_all_of_it_keeps_the_rules() -> None:
    lists = whole()
    assert {name: survey_problems(survey) for name, survey in surveys().items()} == {name: [] for name in surveys()}
    problems = [text for one in lists["controller_credential_types"] for text in credential_type_problems(one)]
    problems += [text for one in lists["controller_workflows"] for text in workflow_problems(one, templates())]
    problems += [text for one in lists["controller_schedules"] for text in schedule_problems(one, templates())]
    problems += [text for one in lists["controller_notifications"] for text in notification_problems(one)]
    assert problems == []
    assert all(lists.values())


def test_a_site_without_webhook_and_repository_has_neither() -> None:
    bare = content()
    assert bare["controller_notifications"] == []
    (project,) = bare["controller_projects"]
    assert (project["scm_type"], project["scm_url"], project["local_path"]) == ("manual", "", "instant_recovery")
    assert project["notification_templates_error"] == []
    (project,) = whole()["controller_projects"]
    assert (project["scm_type"], project["scm_branch"], project["local_path"]) == ("git", "main", "")
    assert project["notification_templates_error"] == ["Instant Recovery"]


def test_what_is_awxs_template_is_none_of_ansibles() -> None:
    (credential_type,) = whole()["controller_credential_types"]
    assert credential_type["injectors"] == {
        "env": {"BORG_PASSPHRASE": "{{ passphrase }}"},
        "extra_vars": {"repository": "{{ repository }}"},
    }
    session_id = templates()["Instant Recovery - stop"]["extra_vars"]["session_id"]
    assert session_id == "{{ instant_recovery_session_id | default('') }}"


def test_a_survey_asks_for_options_that_its_playbook_has() -> None:
    for name, survey in surveys().items():
        entry_point = name.removeprefix("Instant Recovery - ").partition(",")[0]
        table = read_table(entry_point)
        for question in survey["spec"]:
            specs = [
                known[question["variable"]]
                for known in (table.options, *table.engines.values())
                if question["variable"] in known
            ]
            assert specs, question["variable"]
            for choice in question.get("choices", ()):
                check_value(question["variable"], read_value(question["variable"], choice, specs[0]), specs[0])
            if "default" in question:
                default = specs[0]["default"]
                assert question["default"] == (str(default).lower() if isinstance(default, bool) else default)


def rows() -> list[tuple[set[str], str]]:
    """Variables, and in what way a form may ask for them, of the table in docs/variables.md."""
    text = (CHECKOUT / "docs" / "variables.md").read_text().partition("## Who may set which")[2].partition("\n## ")[0]
    cells = [row.split(" | ") for row in text.splitlines() if row.startswith("| `")]
    return [(set(re.findall(r"`(\w+)[`=]", row[0])), row[2].rstrip(" |")) for row in cells]


def test_commands_and_roots_paths_are_never_asked_for() -> None:
    ways = {way for _names, way in rows()}
    assert ways == {"never", "a few values", "if the rest is fixed"}
    never = {name for names, way in rows() if way == "never" for name in names}
    commands = {"borg_rsh", "borg_passcommand", "borg_remote_path", "bindir"}
    paths = {"session_root", "metrics_textfile", "borg_passphrase_file", "encryption_key_file", "log_source"}
    assert never >= commands | paths | {"repository"}
    assert never >= {"server_user", "settings", "network", "driver", "port", "accept_unconfined"}
    assert never & asked().keys() == set()
    for name in {name for names, way in rows() if way == "a few values" for name in names}:
        assert all("choices" in question for question in asked().get(name, [])), name


def test_secrets_are_for_credentials() -> None:
    table = read_table("start")
    secrets = {name for name, spec in table.options.items() if spec.get("no_log")}
    assert secrets
    assert secrets & asked().keys() == set()
    assert "password" not in {question["type"] for questions in asked().values() for question in questions}


def test_nobody_can_give_a_template_any_variable() -> None:
    for one in [*whole()["controller_templates"], *whole()["controller_workflows"]]:
        assert not one.get("ask_variables_on_launch")
        assert not one.get("use_fact_cache")


def test_a_workflows_session_ends_by_itself_no_earlier_than_it_is_given_up() -> None:
    workflow = session_workflow()
    nodes = {node["identifier"]: node for node in workflow["workflow_nodes"]}
    assert nodes["approve"]["unified_job_template"]["timeout"] <= parse_duration(nodes["start"]["extra_data"]["ttl"])
    assert "ttl" not in {question["variable"] for question in workflow["survey_spec"]["spec"]}
    # Also when nobody approves.
    assert nodes["approve"]["related"] == {"always_nodes": [{"identifier": "stop"}]}


def test_the_closing_note_names_a_template_that_there_is() -> None:
    note = yaml.safe_load((CHECKOUT / "roles" / "session" / "vars" / "main.yml").read_text())["__session_stop_template"]
    (name,) = re.findall(r'template "([^"]+)"', note)
    assert templates()[name]["playbook"] == "stop.yml"


def test_the_role_knows_every_list() -> None:
    kinds = yaml.safe_load((CHECKOUT / "roles" / "awx" / "vars" / "main.yml").read_text())["__awx_kinds"]
    assert {kind["objects"] for kind in kinds} == whole().keys()


BREAK: dict[str, Callable[[dict[str, Any]], Any]] = {
    "is missing": lambda one: one.pop("type"),
    "is unknown": lambda one: one.update(type="boolean"),
    "required is no boolean": lambda one: one.update(required="true"),
    "min is no integer": lambda one: one.update(min=""),
    "max is no integer": lambda one: one.update(max="255"),
    "choices are missing": lambda one: one.update(type="multiselect"),
    "choice True is no text": lambda one: one.update(type="multiplechoice", choices=[True, "false"]),
    "is none of the choices": lambda one: one.update(type="multiplechoice", choices=["a"], default="b"),
    "default False is of another type": lambda one: one.update(type="multiplechoice", choices=["false"], default=False),
    "an empty default": lambda one: one.update(required=False, default=""),
    "AWX refuses the launch": lambda one: one.update(required=True, default="latest"),
    "question is unknown": lambda one: one.update(question="?"),
}


@pytest.mark.parametrize("problem", BREAK)
def test_a_survey_that_breaks_a_rule_is_found(problem: str) -> None:
    survey = copy.deepcopy(surveys()["Instant Recovery - start"])
    BREAK[problem](survey["spec"][0])
    (found,) = survey_problems(survey)
    assert problem in found


def test_a_survey_without_questions_and_one_with_a_question_twice_are_found() -> None:
    survey = copy.deepcopy(surveys()["Instant Recovery - stop"])
    survey["spec"] *= 2
    assert survey_problems(survey) == ["variable session_id is asked for twice"]
    assert survey_problems({"name": "", "spec": []}) == ["description is no text", "spec has no question"]


def test_a_credential_type_that_breaks_a_rule_is_found() -> None:
    (good,) = whole()["controller_credential_types"]
    bad = copy.deepcopy(good)
    bad["kind"] = "ssh"
    bad["inputs"]["fields"] += [{"id": "tower", "label": "x"}, {"id": "repository"}]
    bad["inputs"]["required"].append("key")
    bad["injectors"] = {"env": {"ANSIBLE_X": "{{ nothing }}", "BORG": "é"}, "vars": {}}
    assert credential_type_problems(bad) == [
        "kind ssh is not custom",
        "field tower cannot be called so",
        "field repository is there twice",
        "field repository has no label",
        "required key is no field",
        "vars is no kind of injector",
        "ANSIBLE_X of the environment is AWX's",
        "ANSIBLE_X: nothing is no field",
        "BORG: the template is not ASCII",
    ]


def test_workflows_and_schedules_that_break_a_rule_are_found() -> None:
    workflow, schedule = copy.deepcopy((session_workflow(), whole()["controller_schedules"][0]))
    start, approve, stop = workflow["workflow_nodes"]
    start["extra_data"] = {"ttl": "3h", "borg_rsh": "sh"}
    approve["related"]["always_nodes"] = [{"identifier": "end"}]
    stop["unified_job_template"] = {"name": "Stop", "type": "job_template"}
    assert workflow_problems(workflow, templates()) == [
        "start: borg_rsh is not asked for",
        "start: ttl '3h' is none of the choices",
        "approve: there is no node end",
        "stop: there is no template Stop",
    ]
    schedule.update(rrule="daily", unified_job_template="Instant Recovery - start")
    assert schedule_problems(schedule, templates()) == [
        "rrule daily is none",
        "the answer for source_host is missing",
        "the answer for archive is missing",
    ]


def test_the_rules_are_those_of_a_real_awx() -> None:
    """It took this survey, and was then seen to refuse or spoil launches by the questions that are told of."""
    exported = json.loads(EXPORTED.read_text())
    (credential_type,) = exported["credential_types"]
    assert credential_type_problems(credential_type) == []
    (workflow,) = exported["workflow_job_templates"]
    (template,) = exported["job_templates"]
    told = survey_problems(template["related"]["survey_spec"])
    assert {text.partition(":")[0] for text in told} == {
        "archive",
        "driver",
        "read_only",
        "ttl",
        "recovery_target_time",
    }
    assert all("AWX refuses the launch" in text or "an empty default" in text for text in told)
    nodes = {node["identifier"]: node["related"] for node in workflow["related"]["workflow_nodes"]}
    assert [one["identifier"] for one in nodes["approve"]["always_nodes"]] == ["stop"]
    rules = [schedule["rrule"] for schedule in exported["schedules"]]
    known = {"any": {}}
    assert [schedule_problems({"rrule": rule, "unified_job_template": "any"}, known) for rule in rules] == [[]] * len(
        rules
    )
