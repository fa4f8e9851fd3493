# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A session's directory, record and lock."""

from __future__ import annotations

import json
import os
import pwd
import subprocess
import sys
import tempfile
import threading
import time
from datetime import datetime
from typing import TYPE_CHECKING, Any

import pytest
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._errors import RecoveryError
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._host.processes import Process
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._session.directory import (
    DIRECTORIES,
    SessionError,
    SessionGoneError,
    default_root,
)
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._session.duration import parse_duration
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._session.record import (
    PUBLIC_KEYS,
    Claim,
    Record,
    Starter,
    timestamp,
)
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._session.session import (
    ENDED_KEPT,
    Session,
    claiming,
    claiming_if_given,
)
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._session.teardown import tear_down

from tests.support.forked import forked
from tests.support.user import ordinary_user

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can act for other users")
ME = pwd.getpwuid(os.geteuid()).pw_name


@pytest.fixture(name="root")
def _root() -> Iterator[str]:
    """A session root that is not there yet; its path is short enough for sockets."""
    with tempfile.TemporaryDirectory(prefix="spine-") as parent:
        os.chmod(parent, 0o711)
        yield os.path.join(parent, "sessions")


def create(root: str, session_id: str | None = None, **fields: Any) -> Session:
    return Session.create(root, session_id=session_id, user=ME, fields=fields)


def on_disk(session: Session) -> dict[str, Any]:
    with open(session.path("session.json")) as file:
        record: dict[str, Any] = json.load(file)
    return record


def entries(root: str) -> list[str]:
    """What is in the session root, without what tells of sessions that have been."""
    return sorted(name for name in os.listdir(root) if name not in ("audit.log", "ended"))


def test_a_new_session(root: str) -> None:
    session = create(root, engine="postgresql", archive={"name": "a"}, timings={"look": 0.5})
    assert set(PUBLIC_KEYS) <= set(on_disk(session))
    assert Session.open(session.directory).record == session.record
    assert session.record.status == "starting"
    assert session.record.engine == "postgresql"
    assert session.record.timings == {"look": 0.5}
    assert session.record.overlay_merged_dir == session.path("merged")
    assert session.record.server_user == ME
    assert abs(datetime.fromisoformat(session.record.created_at).timestamp() - time.time()) < 60
    directories = ["archive", "client", "config", "lock", "log", "merged", "run", "session.json", "tmp", "upper"]
    assert sorted(os.listdir(session.directory)) == directories
    assert entries(root) == [session.id]
    for name, mode in {"": 0o700, "session.json": 0o600, "lock": 0o600, "run": 0o700, "upper": 0o700}.items():
        assert os.stat(session.path(name)).st_mode & 0o777 == mode, name


def test_it_is_found_by_name_and_by_directory(root: str) -> None:
    session = create(root, "mine")
    found = Session.find(root, "mine")
    assert found is not None
    assert found.record == session.record
    assert Session.open(os.path.join(root, ".", "mine") + "/").directory == session.directory
    assert Session.find(root, "other") is None
    assert [one.id for one in Session.all(root)] == ["mine"]
    assert Session.all(root + "-not-there") == []


@pytest.mark.parametrize(
    "name", ["all", "ended", "audit.log", "audit.log.1", "../up", "a/b", ".hidden", "", "x" * 65, "a b", "a\n"]
)
def test_names_that_cannot_be(root: str, name: str) -> None:
    with pytest.raises(SessionError, match="is not a session id"):
        Session.find(root, name)


def test_a_name_is_taken_once(root: str) -> None:
    create(root, "mine")
    with pytest.raises(SessionError, match="already a session mine"):
        create(root, "mine")
    assert entries(root) == ["mine"]


def test_twenty_at_once_get_names_of_their_own(root: str) -> None:
    sessions: list[Session] = []
    threads = [threading.Thread(target=lambda: sessions.append(create(root))) for _number in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({session.id for session in sessions}) == 20
    assert entries(root) == sorted(session.id for session in sessions)


def test_a_root_that_is_too_deep_for_sockets(tmp_path: Path) -> None:
    root = str(tmp_path / ("x" * 100))
    with pytest.raises(SessionError, match="allows 107"):
        create(root)


def test_a_root_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SessionError, match="cannot be made: File exists"):
        create(str(tmp_path / "file"))
    with pytest.raises(SessionError, match="cannot be made: Not a directory"):
        create(str(tmp_path / "file" / "below"))


def test_a_root_that_others_can_write(tmp_path: Path) -> None:
    (tmp_path / "open").mkdir()
    for mode in (0o777, 0o1777):
        os.chmod(tmp_path / "open", mode)
        with pytest.raises(SessionError, match="open can be written by other users"):
            create(str(tmp_path / "open"))
        assert os.listdir(tmp_path / "open") == []


@needs_root
@pytest.mark.parametrize("below", ["", "/sessions", "/linked", "/not/there"])
def test_a_root_that_another_user_could_exchange(root: str, below: str) -> None:
    """That user would put a link in the place of what is being made, and root would write where it leads."""
    with ordinary_user("ir-other") as eve, ordinary_user("ir-third") as third:
        os.mkdir(root, 0o755)
        os.chown(root, eve.pw_uid, eve.pw_gid)
        os.mkdir(f"{root}/sessions", 0o700)
        os.mkdir(f"{root}/real", 0o700)
        os.symlink("real", f"{root}/linked")
        before = sorted(os.listdir(root))
        with pytest.raises(SessionError, match=f"cannot be used: {root} belongs to {eve.pw_name}, who could exchange"):
            create(root + below)
        os.chown(f"{root}/sessions", third.pw_uid, third.pw_gid)
        with pytest.raises(RuntimeError, match=f"cannot be used: {root} belongs to {eve.pw_name}, who could exchange"):
            forked(lambda: Session.create(f"{root}/sessions", user=third.pw_name), user=third)
        assert sorted(os.listdir(root)) == before
        assert os.listdir(f"{root}/sessions") == os.listdir(f"{root}/real") == []


def test_what_is_cleared_away_is_no_link(root: str) -> None:
    """Another session, to which a link leads in the place of one that is half made, keeps its files."""
    victim = create(root, "victim")
    before = sorted(os.listdir(victim.directory))
    os.symlink(victim.directory, os.path.join(root, ".unfinished-0123abcd"))
    os.utime(os.path.join(root, ".unfinished-0123abcd"), (0, 0), follow_symlinks=False)
    create(root, "next")
    assert sorted(os.listdir(victim.directory)) == before
    assert Session.open(victim.directory).record == victim.record


@needs_root
def test_nobody_enters_a_session_and_the_server_owns_only_its_part(root: str) -> None:
    """The server sees what it needs in a root directory of its own."""
    previous = os.umask(0o077)
    try:
        session = Session.create(root, user="nobody")
    finally:
        os.umask(previous)
    status = os.stat(session.directory)
    assert (status.st_uid, status.st_mode & 0o777) == (0, 0o700)
    assert os.stat(root).st_mode & 0o777 == 0o711
    owners = {name: os.stat(session.path(name)).st_uid for name in os.listdir(session.directory)}
    assert {name for name, uid in owners.items() if uid} == {"merged", "run"}
    config = os.stat(session.path("config"))
    assert (config.st_gid, config.st_mode & 0o777) == (pwd.getpwnam("nobody").pw_gid, 0o750)


@needs_root
def test_each_session_of_root_has_a_user_of_its_own(root: str) -> None:
    sessions = [Session.create(root, user=None) for _number in range(3)]
    users = [int(session.record.server_user) for session in sessions]
    assert len(set(users)) == 3
    for session, uid in zip(sessions, users, strict=True):
        with pytest.raises(KeyError):
            pwd.getpwuid(uid)
        with open(f"/run/instant_recovery/uids/{uid}", encoding="utf-8") as file:
            assert file.read() == session.directory
        assert tear_down(session) == []
        assert not os.path.exists(f"/run/instant_recovery/uids/{uid}")


def test_a_user_who_does_not_exist(root: str) -> None:
    with pytest.raises(RecoveryError, match="There is no user no-such-user"):
        Session.create(root, user="no-such-user")
    assert entries(root) == []


def test_what_a_killed_creation_left_is_cleared_and_nothing_else(root: str) -> None:
    create(root, "mine")
    old, fresh, users = ".unfinished-0123abcd", ".unfinished-0123abce", ".unfinished-mine"
    for name in (old, fresh, users):
        os.mkdir(os.path.join(root, name))
    os.mkdir(os.path.join(root, old, "run"))
    for name in (old, users):
        os.utime(os.path.join(root, name), (0, 0))
    create(root, "next")
    assert entries(root) == sorted([fresh, users, "mine", "next"])


def test_the_record_is_replaced_as_a_whole(root: str) -> None:
    """A reader that takes no lock never sees half a record."""
    session = create(root, "mine")
    reading = threading.Event()

    def write() -> None:
        for number in range(100):
            session.update(port=number, connection_string="x" * (number * 100))
        reading.set()

    thread = threading.Thread(target=write)
    thread.start()
    while not reading.is_set():
        record = on_disk(session)
        assert record["connection_string"] is None or len(record["connection_string"]) == record["port"] * 100
    thread.join()
    assert on_disk(session)["port"] == 99


# What a claim has when nothing is said about it.
BARE = {
    "required": True,
    "mountpoint": "",
    "signals": [["SIGTERM", 10.0], ["SIGKILL", 5.0]],
    "notice": None,
    "suspended": False,
    "spent": {},
    "shared_memory": [],
}


def test_claims(root: str) -> None:
    session, process = create(root), Process(1, 2, "boot")
    session.claim(Claim("archive", "mount", "archive", mountpoint=session.path("archive")))
    session.claim(Claim("server", "process", "server", signals=(("SIGINT", 30),)))
    session.amend_claim("server", process=process)
    session.claim(Claim("archive", "mount", "archive", mountpoint=session.path("archive"), process=process))
    served = {**BARE, "process": process.as_dict()}
    assert on_disk(session)["claims"] == [
        {**served, "name": "archive", "kind": "mount", "part": "archive", "mountpoint": session.path("archive")},
        {**served, "name": "server", "kind": "process", "part": "server", "signals": [["SIGINT", 30]]},
    ]
    assert Session.open(session.directory).record.claims == session.record.claims
    session.release_claim("server")
    assert [claim["name"] for claim in on_disk(session)["claims"]] == ["archive"]


@pytest.mark.parametrize("claim", [{"kind": "socket"}, {"kind": "mount"}, {"kind": "mount", "mountpoint": "relative"}])
def test_claims_that_could_not_be_undone(claim: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="not a claim"):
        Claim("x", part="server", **claim)


def test_nothing_is_added_to_a_session_that_ends(root: str) -> None:
    session = create(root, "mine")
    session.update(status="stopping")
    with pytest.raises(SessionError, match="mine is stopping: nothing can be added"):
        session.claim(Claim("x", "process", "server"))


def test_timings(root: str) -> None:
    session = create(root)
    session.timing("borg_mount", 0.81239)
    session.timing("overlay_mount", 2)
    assert on_disk(session)["timings"] == {"borg_mount": 0.812, "overlay_mount": 2}


HOLD = """import sys, time; sys.path[:0] = {path!r}
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._session.session import Session
with Session.open({directory!r}).locked() as session:
    print("locked", flush=True)
    sys.stdin.read()
    session.update(port=7)"""


def holder(session: Session) -> subprocess.Popen[str]:
    """A process that holds the session's lock until its standard input is closed, and then writes port 7."""
    script = HOLD.format(path=sys.path, directory=session.directory)
    process = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "locked\n"
    return process


def test_the_lock_keeps_others_out_and_shows_what_they_wrote(root: str) -> None:
    session = create(root, "mine")
    with holder(session) as other:
        assert session.is_locked()
        refused = pytest.raises(SessionError, match=f"mine is being worked on by process {other.pid}")
        with refused, session.locked(timeout=0.2):
            pass
        assert other.stdin is not None
        threading.Timer(0.3, other.stdin.close).start()
        with session.locked(timeout=20):
            assert session.record.port == 7
    assert not session.is_locked()


def test_the_lock_is_gone_with_its_holder(root: str) -> None:
    session = create(root)
    with holder(session) as other:
        other.kill()
        with session.locked(timeout=20):
            assert session.record.port is None


def test_locks_nest(root: str) -> None:
    session = create(root)
    with session.locked(), session.locked():
        session.update(port=1)
        session.timing("step", 1)
        assert Session.open(session.directory).is_locked()
        assert not session.is_locked()  # by somebody else
    assert not Session.open(session.directory).is_locked()


def test_a_session_that_ended_while_its_lock_was_awaited(root: str) -> None:
    session = create(root, "mine")
    with holder(session) as other:
        errors: list[BaseException] = []

        def wait() -> None:
            try:
                Session.open(session.directory).update(port=1)
            except SessionGoneError as error:
                errors.append(error)

        waiting = threading.Thread(target=wait)
        waiting.start()
        time.sleep(0.2)
        os.rename(session.directory, session.directory + "-away")
        assert other.stdin is not None
        other.kill()
        waiting.join(20)
    assert str(errors[0]) in ("Session mine has ended meanwhile.", f"There is no session mine in {root}.")


def test_claiming_is_optional(root: str) -> None:
    with claiming_if_given(None) as nothing:
        assert nothing is None
    session = create(root)
    with claiming(session.directory) as claimed:
        assert claimed is not None
        assert session.is_locked()
    with pytest.raises(SessionGoneError, match="There is no session other"), claiming(os.path.join(root, "other")):
        pass


def damage(session: Session, content: str) -> None:
    with open(session.path("session.json"), "w") as file:
        file.write(content)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "is damaged"),
        ('{"id": "mine", "schema_version": 1', "is damaged"),
        ("[]", "is damaged"),
        ('{"id": "mine"}', "is damaged"),
        ('{"id": "mine", "schema_version": "one"}', "is damaged"),
        ('{"id": "mine", "schema_version": 1, "claims": 3}', "is damaged"),
        ('{"id": "mine", "schema_version": 1, "claims": [{"name": "x"}]}', "is damaged"),
        ('{"id": "mine", "schema_version": 1, "claims": [{"kind": "process", "process": 1}]}', "is damaged"),
        ('{"id": "mine", "schema_version": 2, "claims": "?"}', "has schema version 2.* use the version that made"),
        ('{"id": "other", "schema_version": 1}', "is the record of session other"),
    ],
)
def test_records_that_cannot_be_used(root: str, content: str, said: str) -> None:
    damage(create(root, "mine"), content)
    create(root, "sound")
    with pytest.raises(SessionError, match=said):
        Session.find(root, "mine")
    mine, sound = Session.all(root)
    assert mine.problem
    assert mine.record.error_message == mine.problem
    assert mine.record.status == "orphaned"
    assert sound.problem is None


def test_a_session_without_its_record(root: str) -> None:
    session = create(root)
    os.unlink(session.path("session.json"))
    assert Session.open(session.directory).record.status == "orphaned"
    assert [one.id for one in Session.all(root)] == [session.id]


def test_a_session_of_which_only_mount_points_are_left(root: str) -> None:
    os.makedirs(os.path.join(root, "20261122-130501-9c1e", "merged"))
    (session,) = Session.all(root)
    assert session.record.status == "orphaned"


def test_no_more_sessions_than_allowed(root: str) -> None:
    made: list[Session] = []
    refused: list[str] = []

    def one() -> None:
        try:
            made.append(Session.create(root, user=ME, max_sessions=7))
        except SessionError as error:
            refused.append(str(error))

    threads = [threading.Thread(target=one) for _number in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == len(Session.all(root)) == 7
    assert len(refused) == 13
    assert all(message.startswith(f"There are 7 sessions in {root}, and max_sessions is 7") for message in refused)


def test_other_things_in_the_session_root_are_not_sessions(root: str) -> None:
    os.makedirs(os.path.join(root, "documents"))
    os.mkdir(os.path.join(root, "20261122-130501-9c1e"))
    os.makedirs(os.path.join(root, "20261122-130501-9c21", "run", "of-mine"))
    open(os.path.join(root, "20261122-130501-9c21", "notes"), "w").close()
    os.symlink("/etc", os.path.join(root, "20261122-130501-9c1f"))
    open(os.path.join(root, "20261122-130501-9c20"), "w").close()
    assert Session.all(root) == []
    for name in os.listdir(root):
        assert Session.find(root, name) is None


@needs_root
def test_a_session_that_another_user_planted_is_not_believed(root: str) -> None:
    session = create(root, "mine")
    os.chown(session.path("session.json"), 65534, 65534)
    with pytest.raises(SessionError, match=r"session.json belongs to nobody, not to root: act as nobody"):
        Session.find(root, "mine")
    os.chown(session.directory, 65534, 65534)
    with pytest.raises(SessionError, match="mine belongs to nobody"):
        Session.find(root, "mine")
    assert Session.all(root)[0].problem


@needs_root
def test_an_ordinary_user_has_sessions_of_its_own_and_is_told_of_others(tmp_path: Path) -> None:
    elsewhere = f"/var/lib/instant_recovery-test-{os.getpid()}"

    def own() -> list[str]:
        assert default_root() == os.path.expanduser("~/.local/state/instant_recovery")
        session = Session.create(default_root(), user=user.pw_name)
        session.update(port=1)
        modes = [os.stat(path).st_mode & 0o777 for path in (default_root(), session.directory)]
        assert modes == [0o700, 0o700]
        return [one.id for one in Session.all(default_root())]

    def foreign() -> None:
        Session.all(elsewhere)

    def as_root() -> None:
        Session.create(default_root(), user="root")

    with ordinary_user("ir-unit") as user:
        assert len(forked(own, user=user)) == 1
        with pytest.raises(RuntimeError, match="Only root can run a program as user root"):
            forked(as_root, user=user)
        os.mkdir(elsewhere, 0o711)
        try:
            with pytest.raises(RuntimeError, match=f"cannot be listed by {user.pw_name}: act as the sessions' owner"):
                forked(foreign, user=user)
        finally:
            os.rmdir(elsewhere)


def test_the_last_record_is_kept_and_the_newest_hundred_are(root: str) -> None:
    os.makedirs(os.path.join(root, "ended"))
    for number in range(ENDED_KEPT + 5):
        path = os.path.join(root, "ended", f"old-{number}.json")
        with open(path, "w") as file:
            file.write(json.dumps({"id": f"old-{number}", "schema_version": 1, "status": "stopped"}))
        os.utime(path, (number, number))
    session = create(root, "mine", engine="postgresql")
    for name in DIRECTORIES:
        os.rmdir(session.path(name))
    with session.locked():
        session.finish(status="failed", error_message="why", stop_reason=None)
    assert entries(root) == []
    assert Session.find(root, "mine") is None
    kept = Session.ended(root, "mine")
    assert kept is not None
    assert (kept.status, kept.error_message, kept.engine) == ("failed", "why", "postgresql")
    assert os.stat(os.path.join(root, "ended", "mine.json")).st_mode & 0o777 == 0o600
    assert len(Session.all_ended(root)) == ENDED_KEPT
    assert Session.ended(root, "old-5") is None
    assert Session.ended(root, "old-6") is not None
    assert os.path.getsize(os.path.join(root, "ended", "mine.json")) < 1500


def test_a_directory_that_is_not_empty_is_not_given_up(root: str) -> None:
    session = create(root, "mine")
    with session.locked(), pytest.raises(OSError, match="Directory not empty"):
        session.finish(status="stopped", error_message=None)
    assert Session.find(root, "mine") is not None


def test_the_public_record_has_the_keys_of_the_contract() -> None:
    assert tuple(Record("x").public()) == PUBLIC_KEYS
    assert Record("x", status="starting").public(status="active")["status"] == "active"


def test_a_record_is_the_same_when_it_is_read_again() -> None:
    process = Process(1, 2, "boot")
    claims = (
        Claim("server", "process", "server", process=process, signals=(("SIGINT", 1.5),), shared_memory=("posix:x",)),
        Claim("archive-1", "mount", "archive", mountpoint="/m", suspended=True, spent={"cpu_seconds": 1.5}),
    )
    record = Record("x", "active", archive={"name": "a"}, starter=Starter(process, is_connection=True), claims=claims)
    assert Record.from_json(record.to_json()) == record
    more = {**json.loads(record.to_json()), "of a later release": 1}
    assert Record.from_json(json.dumps(more).encode()) == record


def test_times() -> None:
    assert timestamp(1795352701.12) == "2026-11-22T13:05:01.120+00:00"


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("0", 0), ("90", 90), ("30s", 30), ("15m", 900), ("2h", 7200), ("1h30m", 5400), ("1.5d", 129600)],
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "2 h", "h", "-1h", "2w", "2h30", "soon"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(RecoveryError, match="is not a duration"):
        parse_duration(text)


@needs_root
def test_who_can_open_the_session_root_holds_nobody_up(root: str) -> None:
    create(root, "first")
    os.chmod(root, 0o755)
    parent = os.path.dirname(root)
    while parent != "/":
        os.chmod(parent, os.stat(parent).st_mode | 0o011)
        parent = os.path.dirname(parent)
    program = 'exec 9<"$1" && flock -x 9 && echo held && exec sleep 60'
    argv = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "sh", "-c", program, "sh", root]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as holder:
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == "held\n"
            begun = time.monotonic()
            create(root, "second")
            assert time.monotonic() - begun < 30
        finally:
            holder.kill()
    assert os.stat(os.path.join(root, "ended")).st_mode & 0o077 == 0
