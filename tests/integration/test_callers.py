# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What callers give is data: no repository, archive or path of theirs becomes a command, an option or a file of root's.

The module of each kind is called as AWX would call it with a survey's answer, as root and as an ordinary user.
"""

from __future__ import annotations

import os
import pwd
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from ansible_collections.phpborg.instant_recovery.plugins.modules import (
    borg_archive_info,
    borg_mount,
    copy_plan_info,
)
from ansible_collections.phpborg.instant_recovery.plugins.modules import session as session_module

from tests.support.forked import forked
from tests.support.modules import call
from tests.support.user import ordinary_user

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.integration.conftest import Sample

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can act for other users")


@pytest.fixture(params=["root", "ordinary"])
def user(request: pytest.FixtureRequest) -> Iterator[pwd.struct_passwd | None]:
    """Whom a module runs as; None is whoever runs the tests."""
    if request.param == "root":
        yield None
    elif os.geteuid() != 0:
        pytest.skip("only root can act for other users")
    else:
        with ordinary_user("ir-caller") as ordinary:
            yield ordinary


@pytest.fixture
def pwned(place: Path) -> Path:
    """What an attack would make: everybody may write there."""
    (place / "out").mkdir()
    (place / "out").chmod(0o1777)
    return place / "out" / "pwned"


def attacks(pwned: Path) -> dict[str, dict[str, str]]:
    """Options of a module that did make it, or write over it."""
    slashless = str(pwned).replace("/", "\\57")
    command = f"-oProxyCommand=id >$(printf '{slashless}');false"
    return {
        "host": {"archive": f"ssh://{command}/repo::latest"},
        "user": {"archive": f"ssh://{command}@host/repo::latest"},
        "repository": {"repository": f"ssh://{command}/repo", "archive": "latest"},
        "like scp": {"repository": f"{command}:repo", "archive": "latest"},
        "placeholder": {"repository": "ssh://{now:" + command + "}/repo", "archive": "latest"},
        "option": {"archive": f"--debug-profile={pwned}::x"},
        "option of the repository": {"repository": f"--debug-profile={pwned}", "archive": "x"},
        "option of the archive": {"repository": "/srv/repository", "archive": f"--debug-profile={pwned}"},
        "mere option": {"archive": f"--debug-profile={pwned}"},
    }


MODULES: dict[str, tuple[Callable[[], None], dict[str, Any]]] = {
    "borg_archive_info": (borg_archive_info.main, {}),
    "borg_mount": (borg_mount.main, {"mountpoint": "mount"}),
    "copy_plan_info": (copy_plan_info.main, {"engine": "postgresql", "paths": ["x"], "data_directory": "x"}),
}


@pytest.mark.parametrize("module", MODULES)
def test_no_location_is_a_command_or_an_option(
    sample: Sample,
    place: Path,
    pwned: Path,
    user: pwd.struct_passwd | None,
    module: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("BORG_BASE_DIR", str(place / "base"))
    monkeypatch.setenv("BORG_REPO", sample.repository.location)
    main, arguments = MODULES[module]
    arguments = {key: f"{place}/{value}" if value == "mount" else value for key, value in arguments.items()}

    def attempts() -> dict[str, str]:
        said = {}
        for name, given in attacks(pwned).items():
            for check in (True, False):
                result = call(main, check=check, passphrase="x", **arguments, **given)
                said[f"{name}, check {check}"] = result["msg"] if result.get("failed") else "taken"
        return said

    told = forked(attempts, user=user)
    assert {name: text for name, text in told.items() if ", because " not in text} == {}
    assert not pwned.exists()
    assert sorted(os.listdir(place)) == ["out"], "not even a cache"


@pytest.mark.parametrize(
    "given", [{"log_archive": "--debug-profile=/x::y"}, {"log_archive": "ssh://-oProxyCommand=x/r::y"}]
)
def test_no_archive_of_wal_is_a_command_or_an_option(sample: Sample, place: Path, given: dict[str, str]) -> None:
    os.environ["BORG_BASE_DIR"] = str(sample.repository.base)
    result = call(
        copy_plan_info.main,
        engine="postgresql",
        archive=sample.name,
        passphrase=sample.repository.passphrase,
        paths=[sample.data_directory],
        data_directory=sample.data_directory,
        log_source="wal",
        **given,
    )
    assert "is no repository, because" in result["msg"], result


def test_another_repository_of_the_environment_does_not_count(
    sample: Sample, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BORG_BASE_DIR", str(sample.repository.base))
    monkeypatch.setenv("BORG_REPO", sample.repository.location)
    # A configuration of logging can name any class, and so run any code: this one would make a file.
    configuration = place / "logging.conf"
    configuration.write_text(
        "[loggers]\nkeys=root\n[handlers]\nkeys=h\n[formatters]\nkeys=\n[logger_root]\nhandlers=h\n"
        f"[handler_h]\nclass=FileHandler\nargs=('{place}/made',)\n"
    )
    monkeypatch.setenv("BORG_LOGGING_CONF", str(configuration))
    secret = {"passphrase": sample.repository.passphrase}
    assert call(borg_archive_info.main, archive=sample.name, **secret)["archive"]["name"] == sample.archive
    assert not (place / "made").exists()
    refused = call(borg_archive_info.main, archive=sample.archive, **secret)
    assert refused["msg"].startswith("No repository was given. Set repository")


def test_borg_runs_without_what_the_caller_sets_for_other_programs(
    sample: Sample, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With another Python's modules the system's Borg ends, or says that there is no FUSE."""
    for name in ("json", "msgpack", "encodings", "pyfuse3", "llfuse", "argparse"):
        (place / f"{name}.py").write_text("raise SystemExit('poisoned')")
    foreign = {"PYTHONPATH": place, "PYTHONHOME": place, "LD_LIBRARY_PATH": place, "VIRTUAL_ENV": place}
    foreign.update(LD_PRELOAD=place / "gone.so", PGHOSTADDR="192.0.2.1", MYSQL_PWD="x", LOCPATH=place, ENV=place)
    for name, value in foreign.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setenv("BORG_BASE_DIR", str(sample.repository.base))
    secret = {"passphrase": sample.repository.passphrase}
    assert call(borg_archive_info.main, archive=sample.name, **secret)["archive"]["name"] == sample.archive
    mountpoint = str(place / "mnt")
    mounted = call(borg_mount.main, archive=sample.name, mountpoint=mountpoint, **secret)
    try:
        assert "failed" not in mounted, mounted
        environments = [Path(f"/proc/{pid}/environ").read_text() for pid in mounted["pids"]]
    finally:
        call(borg_mount.main, mountpoint=mountpoint, state="unmounted")
    names = {entry.partition("=")[0] for environment in environments for entry in environment.split("\0")}
    assert names & foreign.keys() == set()


RACE = """
import os, sys, time
os.chdir(sys.argv[1])
while True:
    for name in os.listdir("."):
        if name.startswith(".unfinished-"):
            os.rename(name, "taken")
            os.rename("trap", name)
            sys.exit()
"""


@needs_root
def test_a_root_of_another_user_is_not_used(place: Path) -> None:
    """Finding 10: that user exchanged a half made session with a link, and root wrote and removed where it leads."""
    victim = place / "victim"
    (victim / "log").mkdir(parents=True, mode=0o700)
    victim.chmod(0o700)
    (victim / "session.json").write_text("record\n")
    with ordinary_user("ir-eve") as eve:
        root = Path(eve.pw_dir) / "r"
        forked(lambda: (os.mkdir(root, 0o755), os.symlink(victim, root / "trap")), user=eve)
        racer = os.fork()
        if racer == 0:
            os.setgid(eve.pw_gid)
            os.setuid(eve.pw_uid)
            os.execv("/usr/bin/python3", ["python3", "-c", RACE, str(root)])
        for number in range(5):
            result = call(session_module.main, session_root=str(root), session_id=f"u{number}")
            assert f"session root {root} cannot be used: " in result["msg"], result
            # Her home is the topmost directory of hers.
            assert f"{eve.pw_dir} belongs to {eve.pw_name}, who could exchange what is in it" in result["msg"]
        os.kill(racer, 9)
        assert os.waitpid(racer, 0)[1] == 9, "there never was anything to exchange"
        assert os.listdir(root) == ["trap"]
    assert sorted(os.listdir(victim)) == ["log", "session.json"]
    assert (victim / "session.json").read_text() == "record\n"
    assert stat.S_IMODE(victim.stat().st_mode) == 0o700


def test_a_nul_in_an_option_is_refused() -> None:
    for given in ({"archive": "/r\0::a"}, {"archive": "/r::a", "passphrase_file": "/x\0y"}):
        assert "has a NUL character in it" in call(borg_archive_info.main, **given)["msg"]
