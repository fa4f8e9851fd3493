# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The API's session, made from a record that the start play left."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from instant_recovery import Archive, ConnectError, InstantRecoveryError, LogLine, Session, TaskError
from instant_recovery._logs import log_lines

RECORD: dict[str, Any] = {
    "id": "20261122-133717-6ed7",
    "status": "active",
    "engine": "postgresql",
    "engine_version": "15.18",
    "host": "db1",
    "deployment_location": "remote",
    "archive": {"repository": "/srv/repo", "name": "a", "id": "b93e", "time": "2026-11-22T13:37:15.000+00:00"},
    "driver": "block",
    "port": 15432,
    "socket_directory": "/var/lib/instant_recovery/20261122-133717-6ed7/run",
    "user": "instant_recovery",
    "connection_string": "postgresql://instant_recovery@127.0.0.1:15432/postgres?passfile=/run/pgpass",
    "client_file": "/var/lib/instant_recovery/20261122-133717-6ed7/run/pg_service.conf",
    "pid": 28416,
    "borg_mount_point": "/var/lib/instant_recovery/20261122-133717-6ed7/archive",
    "overlay_upper_dir": "/var/lib/instant_recovery/20261122-133717-6ed7/upper",
    "overlay_merged_dir": "/var/lib/instant_recovery/20261122-133717-6ed7/merged",
    "upper_bytes": None,
    "created_at": "2026-11-22T13:37:38.269+00:00",
    "started_at": "2026-11-22T13:37:55.870+00:00",
    "stopped_at": None,
    "expires_at": "2026-11-22T15:37:55.870+00:00",
    "error_message": None,
    "timings": {"borg_mount": 0.63, "total": 5.5},
    "recovered_to": {"time": None, "lsn": "1A/2B3C4D5E", "timeline": 2, "reason": "end of the WAL"},
    "stop_reason": None,
    "metrics": {"clients": 2, "time_left": 6954.1},
}


def test_fields_are_the_contract() -> None:
    session = Session.from_record(RECORD)
    own = {item.name for item in dataclasses.fields(Session)} - {"record", "_stop", "_logs"}
    assert own == set(RECORD)
    assert session.archive == Archive(repository="/srv/repo", name="a", id="b93e", time="2026-11-22T13:37:15.000+00:00")
    assert {name: getattr(session, name) for name in own - {"archive"}} == {
        name: value for name, value in RECORD.items() if name != "archive"
    }


def test_record_of_another_version() -> None:
    session = Session.from_record({"id": "x", "status": "failed", "archive": None, "timings": None, "more": 1})
    assert (session.port, session.archive, session.timings, session.record["more"]) == (None, None, {}, 1)


def test_remote_session_names_the_tunnel() -> None:
    with pytest.raises(ConnectError) as caught:
        Session.from_record(RECORD).connect()
    command = "ssh -N -L 15432:/var/lib/instant_recovery/20261122-133717-6ed7/run/.s.PGSQL.15432 db1"
    assert command in str(caught.value)
    assert "connect(host='127.0.0.1', port=15432)" in str(caught.value)


@pytest.mark.parametrize("engine", ["postgresql", "mariadb"])
def test_another_host_chooses_no_server_and_no_file_of_this_one(engine: str, tmp_path: Path) -> None:
    (tmp_path / "client.cnf").write_text("[client]\npassword=production's\n")
    places = {"socket_directory": str(tmp_path), "client_file": str(tmp_path / "client.cnf")}
    session = Session.from_record({**RECORD, **places, "engine": engine, "deployment_location": "local"})
    with pytest.raises(ConnectError, match="no directory of that session is on this host"):
        session.connect()
    if engine == "mariadb":
        with pytest.raises(ConnectError, match="give it as password"):
            session.connect(host="127.0.0.1", port=1)


def test_a_session_is_here_where_its_directory_is(tmp_path: Path) -> None:
    place = tmp_path / RECORD["id"]
    session = Session.from_record({**RECORD, "deployment_location": "local", "socket_directory": str(place / "client")})
    assert not session.is_here
    place.mkdir(mode=0o755)
    (place / "session.json").touch(mode=0o600)
    assert session.is_here
    assert not dataclasses.replace(session, deployment_location="remote").is_here
    assert not dataclasses.replace(session, id="20261122-133717-0000").is_here
    place.chmod(0o777)
    assert not session.is_here


def test_nothing_that_a_host_tells_acts_on_a_shell() -> None:
    session = Session.from_record({**RECORD, "socket_directory": "/x;touch${IFS}y", "host": "db1"})
    with pytest.raises(ConnectError, match=r"'15432:/x;touch\$\{IFS\}y/\.s\.PGSQL\.15432' db1"):
        session.connect()


@pytest.mark.parametrize("change", [{"engine": "mongodb"}, {"status": "starting", "connection_string": None}])
def test_nothing_to_connect_to(change: dict[str, Any]) -> None:
    with pytest.raises(ConnectError, match="no server of postgresql"):
        Session.from_record({**RECORD, **change}).connect()


def test_failed_stop_does_not_hide_what_went_wrong_inside(caplog: pytest.LogCaptureFixture) -> None:
    def stop(session_id: str) -> Session:
        raise TaskError(f"{session_id} is busy")

    session = Session.from_record(RECORD, stop=stop)
    with pytest.raises(ZeroDivisionError), session:
        raise ZeroDivisionError
    assert "is busy" in caplog.text
    with pytest.raises(TaskError, match="is busy"), session:
        pass


def test_session_of_nobody_cannot_be_stopped() -> None:
    with pytest.raises(InstantRecoveryError, match="not made by an InstantRecovery"):
        Session.from_record(RECORD).stop()


def test_logs_need_a_client() -> None:
    with pytest.raises(InstantRecoveryError, match="ask there for its logs"):
        Session.from_record(RECORD).logs()


def test_lines_of_logs_among_what_ansible_says() -> None:
    text = json.dumps({"instant_recovery_log": [["server", 'ERROR:  {"x"}\u2028'], ["layer", ""]]})
    event = {"event": "verbose", "stdout": f"Using a configuration\r\n{text}\r\n<db1> EXEC"}
    assert list(log_lines(event)) == [
        LogLine(source="server", text='ERROR:  {"x"}\\u2028'),
        LogLine(source="layer", text=""),
    ]
    assert list(log_lines({**event, "event": "warning"})) == []
    assert list(log_lines({"event": "playbook_on_stats"})) == []
