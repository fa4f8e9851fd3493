# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is made of borg's output and complaints, as recorded from borg 1.2.4 and 1.4.0."""

from __future__ import annotations

import json
import os
import tempfile
import traceback
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.phpborg.instant_recovery.plugins.doc_fragments.borg import ModuleDocFragment
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._borg import mount as _mount
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._borg import repository as _repository
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._borg.items import Item
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._borg.remount import Remount, packed, unpacked
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._borg.repository import (
    ARGUMENTS,
    Archive,
    BorgError,
    Repository,
    diagnose,
    parse_archives,
    parse_item,
    parse_log,
    resolve_archive,
)
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._host.processes import Process, memory_file

RECORDED = Path(__file__).parent / "recorded"
ERRORS: dict[str, str] = json.loads((RECORDED / "borg-1.2-errors.json").read_text())
NOTHING_GIVEN: dict[str, Any] = {name: spec.get("default") for name, spec in ARGUMENTS.items()}


def archive(name: str, day: int) -> Archive:
    return Archive(repository="/r", name=name, id=name, time=f"2026-11-{day:02}T00:00:00.000+00:00")


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ("web-1", "web-1"),
        ("latest", "db-3"),
        ("db-*", "db-3"),
        ("web-?", "web-2"),
        ("db-[12]", "db-2"),
        ("[odd]", "[odd]"),
    ],
)
def test_resolve_archive(wanted: str, found: str) -> None:
    archives = [archive("db-1", 1), archive("web-1", 2), archive("db-2", 3), archive("web-2", 4), archive("[odd]", 5)]
    assert resolve_archive([*archives, archive("db-3", 6)], wanted, repository="/r").name == found


def test_an_archive_called_latest_is_taken_at_its_word() -> None:
    assert resolve_archive([archive("latest", 1), archive("db-1", 2)], "latest", repository="/r").name == "latest"


@pytest.mark.parametrize("wanted", ["nope", "no-*"])
def test_an_unknown_archive_is_answered_with_those_there_are(wanted: str) -> None:
    archives = [archive(f"db-{day}", day) for day in range(1, 15)]
    with pytest.raises(BorgError) as caught:
        resolve_archive(archives, wanted, repository="/r")
    assert wanted in str(caught.value)
    assert "It holds: db-14, db-13, " in str(caught.value)
    assert str(caught.value).endswith("db-5 and 4 older ones.")
    assert len(caught.value.details["archives"]) == 14


@pytest.mark.parametrize("wanted", ["latest", "db-1"])
def test_an_empty_repository_is_called_that(wanted: str) -> None:
    with pytest.raises(BorgError, match="Repository /r holds no archive yet"):
        resolve_archive([], wanted, repository="/r")


@pytest.mark.parametrize("version", ["1.2", "1.4"])
def test_archives_are_listed_with_and_without_details(version: str) -> None:
    bare = parse_archives((RECORDED / f"borg-{version}-list.json").read_text(), repository="/r")
    full = parse_archives((RECORDED / f"borg-{version}-info.json").read_text(), repository="/r")
    assert [found.name for found in bare] == [found.name for found in full] == ["db-1", "db-2"]
    assert [(found.id, found.time) for found in bare] == [(found.id, found.time) for found in full]
    assert all(found.time.startswith("2026-11-22T13:3") and found.time.endswith("+00:00") for found in bare)
    assert all(found.hostname is None and found.size is None for found in bare)
    assert all(found.hostname == "vm" and found.username == "root" and (found.size or 0) > 0 for found in full)


def test_times_with_a_zone_become_utc_and_checkpoints_are_left_out() -> None:
    entry = {"name": "a", "id": "1", "start": "2026-11-22T14:00:00.000000+01:00"}
    text = json.dumps({"archives": [entry, {**entry, "name": "b.checkpoint"}, {**entry, "name": "b.checkpoint.1"}]})
    (found,) = parse_archives(text, repository="/r")
    assert (found.name, found.time) == ("a", "2026-11-22T13:00:00.000+00:00")


def test_items() -> None:
    items = {item.path: item for item in map(parse_item, (RECORDED / "borg-1.4-items.jsonl").open())}
    assert items["d"].type == "d"
    assert (items["d/link"].type, items["d/link"].target) == ("l", "/etc")
    assert (items["d/sub/PG_VERSION"].type, items["d/sub/PG_VERSION"].size) == ("-", 3)
    assert (items["d/PG_VERSION"].type, items["d/PG_VERSION"].target) == ("h", "d/sub/PG_VERSION")


def test_a_servers_own_words_are_no_advice() -> None:
    said = {"message": "It is all fine.", "msgid": "BORG_RELOCATED_REPO_ACCESS_IS_OK"}
    aborted = {"message": "x", "msgid": "Cache.RepositoryAccessAborted"}
    log = "\n".join([json.dumps(said), json.dumps(aborted), '{"a":' + "[" * 100_000, '{"message": [], "msgid": {}}'])
    _msgid, message = diagnose(parse_log(log), repository="/r", archive="a")
    assert message == "/r was last opened at another place. Set accept_relocated if it was moved on purpose."


@pytest.mark.parametrize("wrong", [{"paths": ("a/../../b",)}, {"directories": ("..",)}])
def test_paths_that_lead_out_of_the_archive_are_not_mounted(wrong: dict[str, Any]) -> None:
    with pytest.raises(BorgError, match="leads out of the archive"):
        _mount.ArchiveMount(Repository("/r"), "a", "/m", **wrong)


def test_a_mount_of_many_paths_can_be_made_again() -> None:
    """What a mount was made with is handed on through no pipe, which would be full of it."""
    argv = ["borg", *(f"pp:{'x' * 200}/{number}" for number in range(2000))]
    remount = Remount("archive", "/m", "a", argv, ["borg", "list"], {"TZ": "UTC"}, "secret", "/log", 0, True)
    assert unpacked(memory_file("test", packed([remount]))) == [remount]


@pytest.mark.parametrize(
    ("case", "msgid", "says"),
    [
        ("no passphrase", "NoPassphraseFailure", "Repository /r needs a passphrase, and none was given. Give one of"),
        ("wrong passphrase", "PassphraseWrong", "The passphrase for /r is wrong. Correct it"),
        ("no repository", "Repository.DoesNotExist", "There is no Borg repository at /r. Check"),
        ("not a repository", "Repository.InvalidRepository", "There is no Borg repository at /r. Check"),
        ("no archive", "Archive.DoesNotExist", "Repository /r has no archive a. borg_archive_info"),
        ("unreachable", "ConnectionClosedWithHint", "/r cannot be reached: ssh: connect to host 127.0.0.1 port 9: "),
        ("relocated", "Cache.RepositoryAccessAborted", "was previously located at "),
        ("unencrypted", "Cache.CacheInitAbortedError", "/r is not encrypted and was never used from this host"),
        ("closed", "LockFailed", "Permission denied"),
        ("locked", "LockTimeout", "/r is locked by another borg. Wait"),
    ],
)
def test_complaints_are_explained(case: str, msgid: str, says: str) -> None:
    found, message = diagnose(parse_log(ERRORS[case]), repository="/r", archive="a")
    assert found == msgid
    assert says in message
    assert "Traceback" not in message


def test_an_unknown_complaint_ends_with_the_reason_itself() -> None:
    trace = (
        "Traceback (most recent call last):\n  File x\nOSError: [Errno 5] Input/output error\n\nPlatform: Linux vm\n"
    )
    log = "\n".join(json.dumps({"message": text, "msgid": "Exception"}) for text in ("Local Exception", trace))
    assert diagnose(parse_log(log), repository="/r", archive="")[1] == (
        "borg failed on /r: OSError: [Errno 5] Input/output error"
    )
    assert diagnose([], repository="/r", archive="")[1] == "borg failed on /r: it gave no reason"
    plain = parse_log("fusermount3: mount failed: Operation not permitted\n")
    assert diagnose(plain, repository="/r", archive="")[1].endswith(
        "fusermount3: mount failed: Operation not permitted"
    )


def test_a_segment_that_is_gone_is_damage() -> None:
    gone = "FileNotFoundError: [Errno 2] No such file or directory: '/r/data/0/2'"
    log = json.dumps(
        {"message": f"Local Exception\nTraceback (most recent call last):\n  x\n{gone}\n\nPlatform: Linux"}
    )
    assert diagnose(parse_log(log), repository="/r", archive="a") == (
        "Repository.ObjectNotFound",
        "/r is damaged. See what is damaged with borg check, and use an archive that is whole. Borg says: " + gone,
    )


def test_a_borg_that_is_too_different_is_called_by_its_version(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A fake stands for borg 2, which is no Debian package yet."""
    fake = tmp_path / "borg"
    fake.write_text("#!/bin/sh\necho borg 2.0.0b14\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert str(Repository("/r").error(["borg"], 2, ERRORS["usage"])) == (
        "borg 2.0.0b14 is not supported: install borg 1.2 or 1.4."
    )


def test_the_repository_is_named_in_one_of_two_places(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BORG_REPO", "/from/environment")

    def location(**options: str) -> str:
        return Repository.from_options({**NOTHING_GIVEN, **options}).location

    assert location(repository="/r", archive="a") == "/r"
    assert location(archive="/r::a") == "/r"
    assert location(repository="/r/", archive="/r::a") == "/r/"
    with pytest.raises(BorgError, match="repository is /other, but archive names /r"):
        location(repository="/other", archive="/r::a")
    with pytest.raises(BorgError, match="No repository was given"):
        location(archive="a")


def test_secrets_are_in_no_argument_and_no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BORG_PASSCOMMAND", "of the environment")
    repository = Repository("/r", passphrase="hush")
    env, stdin = repository.environment()
    assert stdin == b"hush"
    assert env["BORG_PASSPHRASE_FD"] == "0"
    with repository.environment_with_pipe() as (piped, (descriptor,)):
        assert os.read(descriptor, 100) == b"hush"
        assert piped["BORG_PASSPHRASE_FD"] == str(descriptor)
    everything = f"{env}{piped}{repository}{repository.mount_command('a', '/m')}"
    assert "hush" not in everything
    assert "of the environment" not in everything


def test_secrets_of_the_environment_are_the_last_resort(monkeypatch: pytest.MonkeyPatch) -> None:
    def secret(**given: str) -> bytes:
        env, stdin = Repository("/r", **given).environment()
        assert "BORG_PASSCOMMAND" not in env, "borg would quote it where it fails"
        return stdin

    monkeypatch.delenv("BORG_PASSPHRASE", raising=False)
    monkeypatch.delenv("BORG_PASSCOMMAND", raising=False)
    assert secret() == b""
    monkeypatch.setenv("BORG_PASSCOMMAND", "echo 'of the' environment")
    assert secret() == b"of the environment"
    assert secret(passcommand="echo mine") == b"mine"
    monkeypatch.setenv("BORG_PASSPHRASE", "hush")
    assert secret() == b"hush"
    assert secret(passcommand="echo mine") == b"mine"


@pytest.mark.parametrize("passcommand", ["false hush-hush", "/nowhere/hush-hush", "echo 'hush-hush", " ", "sleep 60"])
def test_a_passcommand_that_fails_is_not_quoted(passcommand: str) -> None:
    with pytest.raises(BorgError) as caught:
        Repository("/r", passcommand=passcommand, timeout=0.2).environment()
    assert str(caught.value).startswith("The passcommand for /r failed, or took more than 0.2 s. Run it on that host")
    assert "hush" not in "".join(traceback.format_exception(caught.value))


def test_an_agent_that_a_passcommand_leaves_is_not_waited_for() -> None:
    passcommand = "sh -c 'sleep 20 >/dev/null & echo hush'"
    assert Repository("/r", passcommand=passcommand, timeout=10).environment()[1] == b"hush"


def test_a_passcommand_is_run_once(tmp_path: Path) -> None:
    """It may ask somebody, or count how often it was asked."""
    repository = Repository("/r", passcommand=f"sh -c 'echo x >> {tmp_path}/asked; echo hush'")
    assert {repository.environment()[1] for _time in range(3)} == {b"hush"}
    assert (tmp_path / "asked").read_text() == "x\n"


def test_questions_are_answered_with_no_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    unencrypted, relocated = "BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK", "BORG_RELOCATED_REPO_ACCESS_IS_OK"
    for name in (unencrypted, relocated, "BORG_RSH"):
        monkeypatch.delenv(name, raising=False)
    env, _stdin = Repository("/r").environment()
    assert (env[unencrypted], env[relocated], env["BORG_RSH"]) == ("no", "no", "ssh -oBatchMode=yes")
    env, _stdin = Repository("/r", accept_unencrypted=True, rsh="ssh -i key").environment()
    assert (env[unencrypted], env[relocated], env["BORG_RSH"]) == ("yes", "no", "ssh -i key")
    monkeypatch.setenv(relocated, "yes")
    assert Repository("/r").environment()[0][relocated] == "yes"


def test_mount_command() -> None:
    argv = Repository("/r").mount_command(
        "{odd}", "/m", paths=["/var/lib/pg data/", "x/./y"], strip_components=2, owner=(101, 104), allow_other=True
    )
    assert argv[1:] == [
        *["mount", "--log-json", "--bypass-lock", "--foreground", "-o", "ro,nodev,nosuid,uid=101,gid=104,allow_other"],
        *["--strip-components", "2", "--", "/r::{{odd}}", "/m", "pp:var/lib/pg data", "pp:x/y"],
    ]
    argv = Repository("/r", bypass_lock=False).mount_command("a", "/m", paths=["x", "."])
    assert argv[1:] == ["mount", "--log-json", "--foreground", "-o", "ro,nodev,nosuid", "--", "/r::a", "/m"]


def test_mounting_paths_that_begin_with_a_dot() -> None:
    """The matching is Borg's: integration tests see what it comes to."""
    argv = Repository("/r").mount_command("a", "/m", paths=["./srv/p.g", "wal"], strip_components=1)
    assert argv[-6:] == ["2", "--", "/r::a", "/m", r"re:^\./srv/p\.g(?:/|\Z)", r"re:^\./wal(?:/|\Z)"]
    argv = Repository("/r").mount_command("a", "/m", paths=["./"])
    assert argv[-6:] == ["--strip-components", "1", "--", "/r::a", "/m", r"re:^\./"]


def test_items_that_begin_with_a_dot() -> None:
    line = '{"type": "-", "mode": "%s", "user": "u", "path": "./a/x", "linktarget": "%s", "size": 1}'
    assert parse_item(line % ("-rw-------", "")) == Item("a/x", "-", 1, "u", is_dotted=True)
    assert parse_item(line % ("hrw-------", "./a/y")) == Item("a/x", "h", 1, "u", "a/y", is_dotted=True)


def test_the_documented_options_are_those_there_are() -> None:
    yaml = pytest.importorskip("yaml")
    documented = yaml.safe_load(ModuleDocFragment.DOCUMENTATION)["options"]
    assert {name: (option["type"], option.get("default")) for name, option in documented.items()} == {
        name: (spec["type"], spec.get("default")) for name, spec in ARGUMENTS.items()
    }


@pytest.mark.parametrize("content", [None, b"\xff\xfe"])
def test_an_unreadable_passphrase_file_is_named(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "secret"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(BorgError, match=f"passphrase_file {path} cannot be read"):
        Repository.from_options({**NOTHING_GIVEN, "repository": "/r", "passphrase_file": str(path)})


def test_a_log_that_was_begun_anew_is_read_from_its_beginning(tmp_path: Path) -> None:
    log = tmp_path / "borg-1.log"
    log.write_text("earlier")
    server = _mount._Server(Process(1, 1, ""), "/m", (), str(log), offset=7)
    assert server.said() == ""
    log.write_text("earlier and now")
    assert server.said() == " and now"
    log.write_text("anew")
    assert server.said() == "anew"


def test_of_what_borg_says_the_end_is_kept() -> None:
    kept = bytearray()
    with tempfile.TemporaryFile() as said:
        said.write(b"x" * (3 * _repository.LONGEST_LOG) + b"the end")
        said.seek(0)
        _repository._keep_the_end(said, kept)
    assert len(kept) == _repository.LONGEST_LOG
    assert kept.endswith(b"xthe end")


def test_a_server_of_a_repository_can_log_anything() -> None:
    (entry,) = _repository.parse_log('{"type": "log_message", "message": 5, "msgid": ["x"]}')
    assert (entry.message, entry.msgid) == ("5", "['x']")
    assert _repository.diagnose([entry], repository="/r", archive="a")[1] == "borg failed on /r: 5"
