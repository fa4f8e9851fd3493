# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The action that checks options, on whatever ansible-core is here: which variables count, and what is a template."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any
from unittest.mock import MagicMock

import pytest
from ansible import context
from ansible.module_utils.common.collections import ImmutableDict
from ansible.parsing.dataloader import DataLoader
from ansible.playbook.task import Task
from ansible.template import Templar
from ansible.utils.unsafe_proxy import AnsibleUnsafeText
from ansible_collections.phpborg.instant_recovery.plugins.action import session_options
from ansible_collections.phpborg.instant_recovery.plugins.plugin_utils import execution_environment

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

ARCHIVE = "/srv/repository::name"
#: What would be 49 if it was looked at for templates.
TEMPLATE = "{{ 7 * 7 }}"


def given(text: str) -> str:
    """As a file of variables gives it."""
    try:
        from ansible.template import trust_as_template
    except ImportError:  # before ansible-core 2.19
        return text
    trusted: str = trust_as_template(text)
    return trusted


@pytest.fixture
def check(monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """Runs the action with these variables, of which those in `extra` came from the command line."""

    def run(
        *,
        entry: str = "start",
        plain: bool = True,
        extra: tuple[str, ...] = (),
        transport: str = "ssh",
        **variables: Any,
    ) -> dict[str, Any]:
        context.CLIARGS = ImmutableDict(extra_vars=())
        monkeypatch.setattr(session_options, "load_extra_vars", lambda _loader: dict.fromkeys(extra, "any"))
        known = {
            "groups": {"all": ["localhost", "db1"]},
            "omit": "__omit",
            "inventory_hostname": "localhost",
            **variables,
        }
        task = MagicMock(spec=Task, args={"entry_point": entry, "plain_names": plain}, action="session_options")
        task.async_val, task.check_mode, task.diff = 0, False, False
        loader = DataLoader()
        action = session_options.ActionModule(
            task=task,
            connection=MagicMock(transport=transport),
            play_context=MagicMock(check_mode=False),
            loader=loader,
            templar=Templar(loader, variables=known),
            shared_loader_obj=None,
        )
        result: dict[str, Any] = action.run(task_vars=known)
        return result

    return run


def test_plain_names_count_in_the_playbooks(check: Callable[..., dict[str, Any]]) -> None:
    result = check(archive=ARCHIVE, ttl="4h", session_ttl="1h", session_port="15500", postgresql_bindir="/pg")
    assert (result["options"]["ttl"], result["options"]["port"]) == ("4h", 15500)
    assert result["engine_options"]["postgresql"]["bindir"] == "/pg"
    assert result["roles"] == {"postgresql": "postgresql", "mariadb": "mysql", "mysql": "mysql"}
    assert check(archive=ARCHIVE, ttl="", session_ttl="1h")["options"]["ttl"] == "1h"


def test_in_another_play_they_may_mean_anything(check: Callable[..., dict[str, Any]]) -> None:
    own = {"archive": "its own", "port": "any", "engine": "steam", "source_host": "elsewhere"}
    result = check(plain=False, extra=("prot", "driver"), session_archive=ARCHIVE, **own)
    assert "port" not in result["options"]
    assert result["options"]["archive"] == ARCHIVE


def test_a_value_is_looked_at_for_templates_once(check: Callable[..., dict[str, Any]]) -> None:
    result = check(
        archive=given("{{ repository_of_mine }}::name"),
        repository_of_mine="/srv/repository",
        data_directory=AnsibleUnsafeText(TEMPLATE),
        settings={"search_path": AnsibleUnsafeText(TEMPLATE), AnsibleUnsafeText("a{{ 1 }}"): 1},
        server_user=given("{{ said }}"),
        said=AnsibleUnsafeText(TEMPLATE),
        port=given("{{ 15000 + 500 }}"),
        borg_rsh=given("{{ omit }}"),
    )
    options = result["options"]
    assert options["archive"] == ARCHIVE
    assert options["data_directory"] == options["server_user"] == TEMPLATE
    assert options["settings"] == {"search_path": TEMPLATE, "a{{ 1 }}": 1}
    assert options["port"] == 15500
    assert "borg_rsh" not in options
    # Nor does the role that goes on with it.
    again = Templar(DataLoader(), variables={"session_options": options})
    assert again.template(given("{{ session_options.data_directory }}")) == TEMPLATE
    assert again.template(given("{{ session_options.settings }}"))["search_path"] == TEMPLATE


@pytest.mark.parametrize("value", ["{{ canary_4711 }}", "{{canary_4711}}", ["canary_4711"], "printf 'canary_4711{{'"])
@pytest.mark.parametrize("name", ["borg_passphrase", "borg_passcommand"])
def test_a_secret_that_cannot_be_meant_is_not_shown(
    check: Callable[..., dict[str, Any]], name: str, value: object
) -> None:
    result = check(archive=ARCHIVE, **{name: given(value) if isinstance(value, str) else value})
    assert result["failed"]
    assert name in result["msg"]
    assert "canary_4711" not in str(result)


def test_a_refusal_is_one_sentence(check: Callable[..., dict[str, Any]]) -> None:
    result = check(archive=ARCHIVE, driver="btr\x1bfs\n")
    assert result["failed"]
    assert result["msg"] == "driver btr\\x1bfs\\x0a is unknown: choose auto, block or overlayfs."
    assert check(archive=ARCHIVE, extra=("drvier",))["msg"].startswith("drvier is unknown: did you mean driver?")
    assert "failed" not in check(archive=ARCHIVE, extra=("drvier",), accept_unknown="yes")
    assert "failed" not in check(archive=ARCHIVE, extra=("host_driver", "session_plain_names", "note"))
    assert "is not in the inventory" in check(archive=ARCHIVE, deployment_location="remote", source_host="db7")["msg"]
    assert check(entry="stop")["msg"].startswith("session_id is not given")


def test_secrets_are_told_by_the_name_of_their_variable(check: Callable[..., dict[str, Any]]) -> None:
    result = check(archive=ARCHIVE, session_borg_passphrase="very secret", borg_passcommand="")
    assert result["secrets"] == {"borg_passphrase": "session_borg_passphrase"}
    assert "very secret" not in json.dumps(result)
    assert check(archive=ARCHIVE)["secrets"] == {}


@pytest.mark.parametrize("text", ["a{{ b }}", "{{ a }}{{ b }}", "x{% if", "{# x #}", "{{", "{{ a {% }}", "{{ a }} b"])
@pytest.mark.parametrize("name", ["borg_passphrase", "session_borg_passphrase"])
def test_a_passphrase_that_ansible_would_take_for_a_template(
    check: Callable[..., dict[str, Any]], name: str, text: str
) -> None:
    refused = check(archive=ARCHIVE, **{name: given(text)})
    assert refused["msg"].startswith(f"{name} has braces in it that Ansible takes for a template: mark it in its file")
    assert text not in str(refused)
    assert "failed" not in check(archive=ARCHIVE, **{name: AnsibleUnsafeText(text)})


@pytest.mark.parametrize("value", ["{{ vault }}", " {{ vault | replace('{a}', '') }}\n", "a{b}", "{ {", "", None, 5])
def test_what_is_meant_as_a_template_or_is_none(check: Callable[..., dict[str, Any]], value: object) -> None:
    text = given(value) if isinstance(value, str) else value
    assert "failed" not in check(archive=ARCHIVE, vault="secret", borg_passphrase=text)


@pytest.mark.parametrize("job", ["awx_job_id", "tower_job_id"])
def test_no_session_is_on_the_host_of_an_execution_environment(check: Callable[..., dict[str, Any]], job: str) -> None:
    refused = check(archive=ARCHIVE, transport="local", **{job: AnsibleUnsafeText("42")})
    assert refused["failed"]
    assert refused["msg"].startswith("localhost is the execution environment of this job")
    assert "source_host" in refused["msg"]
    refused = check(entry="list", transport="local", **{job: 42})
    assert refused["msg"].startswith("There is no host but localhost")
    remote = {"deployment_location": "remote", "source_host": "db1", "inventory_hostname": "db1"}
    assert "failed" not in check(archive=ARCHIVE, transport="ssh", **remote, **{job: 42})
    assert "failed" not in check(archive=ARCHIVE, transport="local")


def test_a_container_is_known_without_awx(
    check: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As ansible-navigator starts it. A container without ansible-runner's directory may well have FUSE."""
    traces = [str(tmp_path / name) for name in ("containerenv", "runner")]
    monkeypatch.setattr(execution_environment, "TRACES", traces)
    (tmp_path / "containerenv").touch()
    assert "failed" not in check(archive=ARCHIVE, transport="local")
    (tmp_path / "runner").mkdir()
    assert "failed" in check(archive=ARCHIVE, transport="local")


def test_what_awx_adds_is_no_misspelt_name(check: Callable[..., dict[str, Any]]) -> None:
    parts = (
        "job_id job_launch_type user_id user_name user_email user_first_name user_last_name inventory_id "
        "inventory_name project_revision project_scm_branch job_template_id job_template_name execution_node "
        "workflow_job_id workflow_job_name schedule_id schedule_name webhook_event_type webhook_payload"
    )
    names = [f"{prefix}_{part}" for prefix in ("awx", "tower") for part in parts.split()]
    own = ("instant_recovery_session", "instant_recovery_session_id", "instant_recovery_found")
    assert "failed" not in check(archive=ARCHIVE, extra=(*names, *own))
