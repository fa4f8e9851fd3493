# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the API makes of ansible-runner's events. They have the form of recorded ones."""

from __future__ import annotations

from typing import Any

import pytest

from instant_recovery import Failure, PlaybookError, TaskError, UnreachableError
from instant_recovery._outcome import Outcome

MOUNT_FAILED: dict[str, Any] = {
    "event": "runner_on_failed",
    "stdout": "fatal: [db1]: FAILED! => …",
    "event_data": {
        "host": "db1",
        "task": "Mount the archive",
        "task_action": "phpborg.instant_recovery.borg_mount",
        "ignore_errors": None,
        "res": {
            "_ansible_no_log": False,
            "changed": False,
            "command": ["borg", "mount"],
            "invocation": {"module_args": {}},
            "msg": "Passphrase is wrong",
            "rc": 2,
            "stderr": "passphrase supplied is incorrect",
            "stderr_lines": ["passphrase supplied is incorrect"],
        },
    },
}
FINAL_WORD: dict[str, Any] = {
    "event": "runner_on_failed",
    "event_data": {
        "host": "db1",
        "task": "Tell why the session did not start",
        "task_action": "ansible.builtin.fail",
        "res": {"changed": False, "msg": "Passphrase is wrong\nNothing is left on db1.\n"},
    },
}
UNREACHABLE: dict[str, Any] = {
    "event": "runner_on_unreachable",
    "event_data": {
        "host": "db2",
        "task": "Look for the session",
        "res": {"unreachable": True, "changed": False, "msg": "Connection refused"},
    },
}


def recap(**stats: Any) -> dict[str, Any]:
    return {"event": "playbook_on_stats", "event_data": {"ok": {"db1": 3}, "artifact_data": stats}}


def test_where_a_session_is_says_the_inventory() -> None:
    """Not the host, which may name another one."""
    record = {"id": "20261127-120000-aaaa", "created_at": "2026-11-27T12:00:00.123+00:00", "host": "production"}
    claimed = {**record, "created_at": "2026-11-27T12:00:00.456+00:00"}
    events = [
        {"event": "runner_on_ok", "event_data": {"host": host, "res": {"sessions": [one]}}}
        for host, one in (("liar", claimed), ("db1", record))
    ]
    stats = {"instant_recovery_sessions": [claimed, record], "instant_recovery_session": record}
    left = outcome_of(*events, recap(**stats)).result(successful=True)
    assert [one["host"] for one in left["instant_recovery_sessions"]] == ["liar", "db1"]
    assert left["instant_recovery_session"]["host"] == "db1"


def test_nothing_that_a_host_answers_acts_on_a_terminal() -> None:
    answer = {"msg": "\x1b[2Jgone\u202e", "stderr": "a\nb\x07"}
    event = {"event": "runner_on_failed", "event_data": {"host": "db1", "task": "t", "res": answer}}
    with pytest.raises(TaskError) as caught:
        outcome_of(event, recap(instant_recovery_reaped=["\x1bc"])).result(successful=False)
    assert caught.value.failures[0].message == r"\x1b[2Jgone\u202e"
    assert caught.value.failures[0].details == {"stderr": "a\nb\\x07"}
    assert caught.value.stats == {"instant_recovery_reaped": [r"\x1bc"]}


def outcome_of(*events: dict[str, Any]) -> Outcome:
    outcome = Outcome()
    for event in events:
        outcome.take(event)
    return outcome


def test_success_gives_the_stats() -> None:
    assert outcome_of(recap(session={"id": "x"})).result(successful=True) == {"session": {"id": "x"}}


def test_failure_has_the_first_task_and_the_last_message() -> None:
    with pytest.raises(TaskError) as caught:
        outcome_of(MOUNT_FAILED, FINAL_WORD, recap(stopped=[])).result(successful=False)
    assert caught.value.failures == (
        Failure(
            host="db1",
            task="Mount the archive",
            message="Passphrase is wrong\nNothing is left on db1.",
            details={"command": ["borg", "mount"], "rc": 2, "stderr": "passphrase supplied is incorrect"},
        ),
    )
    assert caught.value.stats == {"stopped": []}
    assert str(caught.value) == "db1: Passphrase is wrong\nNothing is left on db1."


def test_ignored_failure_does_not_count() -> None:
    ignored = {**MOUNT_FAILED, "event_data": {**MOUNT_FAILED["event_data"], "ignore_errors": True}}
    with pytest.raises(TaskError) as caught:
        outcome_of(ignored, FINAL_WORD, recap()).result(successful=False)
    assert caught.value.task == "Tell why the session did not start"


def test_every_host_that_failed_is_named() -> None:
    with pytest.raises(UnreachableError) as caught:
        outcome_of(UNREACHABLE, FINAL_WORD, recap()).result(successful=False)
    assert [failure.host for failure in caught.value.failures] == ["db2", "db1"]
    assert str(caught.value).startswith("db2: Connection refused\ndb1: Passphrase is wrong")


def test_words_of_ssh_that_ansible_lost() -> None:
    res = {"unreachable": True, "msg": "Task failed: Data could not be sent to remote host '127.0.0.1'."}
    event = {**UNREACHABLE, "event_data": {**UNREACHABLE["event_data"], "res": res}}
    with pytest.raises(UnreachableError, match=r"`ansible db2 -m ansible.builtin.raw -a true` shows it"):
        outcome_of(event, recap()).result(successful=False)


def test_without_a_recap_nothing_is_known_to_be_undone() -> None:
    with pytest.raises(PlaybookError) as caught:
        outcome_of(MOUNT_FAILED).result(successful=False)
    assert caught.type is PlaybookError
    assert caught.value.host == "db1"


def test_last_words_of_ansible() -> None:
    words = {
        "event": "verbose",
        "stdout": "ERROR! Ansible requires the locale encoding to be UTF-8\r\n",
        "event_data": {},
    }
    with pytest.raises(PlaybookError, match=r"^ERROR! Ansible requires") as caught:
        outcome_of(words).result(successful=False)
    assert (caught.value.host, caught.value.task, caught.value.details) == (None, None, {})


def test_warnings_go_to_the_log(caplog: pytest.LogCaptureFixture) -> None:
    outcome_of({"event": "warning", "stdout": "[WARNING]: whole files\nare copied\r\n", "event_data": {}})
    assert caplog.record_tuples == [("instant_recovery", 30, "[WARNING]: whole files are copied")]
