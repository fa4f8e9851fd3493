# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs the collection's playbooks as a user would, with ansible-playbook, and tells what came out."""

from __future__ import annotations

import importlib.metadata
import json
import os
import pwd
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

from ansible_collections.phpborg.instant_recovery.plugins.modules import session as session_module

from tests.support.modules import call
from tests.support.once import are_tests, shared

__all__ = ["CHECKOUT", "Playbooks", "Run", "Task", "packed_once"]

CHECKOUT = Path(__file__).resolve().parents[2]
CALLBACKS = Path(__file__).resolve().parent / "callbacks"
SCRIPTS = Path(sysconfig.get_path("scripts"))
# Ansible looks a thousand times a second whether a task has ended, which is a tenth of what its processes cost here.
CONFIGURATION = "[defaults]\ninternal_poll_interval = 0.01\n"


@dataclass(frozen=True)
class Task:
    """One task's result on one host; `status` is ok, failed, ignored, unreachable or skipped."""

    task: str
    action: str
    host: str
    status: str
    seconds: float | None
    result: dict[str, Any]


@dataclass(frozen=True)
class Run:
    """A finished ansible-playbook: `stats` is what set_stats left, `hosts` the recap's counters by host."""

    returncode: int
    output: str
    tasks: list[Task]
    stats: dict[str, Any]
    hosts: dict[str, dict[str, int]]
    seconds: float

    @property
    def session(self) -> dict[str, Any]:
        """The session that the start play left in the stats."""
        session: dict[str, Any] = self.stats["instant_recovery_session"]
        return session

    @property
    def message(self) -> str:
        """The message of the last failed task: what a user reads last."""
        failures = [task for task in self.tasks if task.status in ("failed", "unreachable")]
        return str(failures[-1].result.get("msg", "")) if failures else ""

    @property
    def changed(self) -> bool:
        """Whether any host reports a change."""
        return any(counters["changed"] for counters in self.hosts.values())


@dataclass(kw_only=True)
class Playbooks:
    """Runs playbooks with one session root, inventory and environment.

    `directory` holds the fact cache and the record of each run and must be traversable by `os_user`, the ordinary user
    who runs ansible-playbook (default: the caller). `wrapper` begins a command line and runs its rest somewhere else:
    see tests.support.host.without(). `scripts` is where ansible's programs are (default: this Python's environment).
    Nothing of the caller's BORG_* or ANSIBLE_* environment is used.
    """

    directory: Path
    session_root: Path | None = None
    inventory: str | Path | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    extra_vars: Mapping[str, Any] = field(default_factory=dict)
    os_user: str | None = None
    wrapper: Sequence[str] = ()
    scripts: Path = SCRIPTS

    def start(self, *options: str, **variables: Any) -> Run:
        """Run the start playbook with these extra variables."""
        return self.run("start", *options, **variables)

    def stop(self, session_id: str, *options: str, **variables: Any) -> Run:
        """Run the stop playbook."""
        return self.run("stop", *options, session_id=session_id, **variables)

    def end(self, session_id: str) -> None:
        """Stop a session of root's as the playbook does, at the cost of a module: where stopping is not the subject."""
        ended = call(session_module.main, session_root=str(self.session_root), state="absent", session_id=session_id)
        assert ended["changed"], ended

    def sessions(self, *options: str, **variables: Any) -> Run:
        """Run the list playbook."""
        return self.run("list", *options, **variables)

    def run(self, name: str, *options: str, timeout: float = 600, **variables: Any) -> Run:
        """Run playbooks/instant_recovery_NAME.yml (start, stop …), or another playbook named by its path or FQCN."""
        if name.isalpha():
            name = str(CHECKOUT / "playbooks" / f"instant_recovery_{name}.yml")
        return self.ansible("ansible-playbook", name, *self._arguments(variables), *options, timeout=timeout)

    def ansible(self, program: str, *arguments: str, timeout: float = 600) -> Run:
        """Run one of ansible's programs in this environment; the recorder sees what ansible-playbook does."""
        self.directory.mkdir(parents=True, exist_ok=True)
        (self.directory / "ansible.cfg").write_text(CONFIGURATION)
        record = Path(tempfile.mkdtemp(prefix="run-", dir=self.directory)) / "record.jsonl"
        if self.os_user is not None:
            for path in (self.directory, record.parent):
                shutil.chown(path, user=self.os_user)
        began = time.monotonic()
        done = subprocess.run(
            [*self.wrapper, *self._as_user(), *self.command(program), *arguments],
            env=self.process_environment(record),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout,
            check=False,
            cwd=self.directory,
        )
        return _read(record, returncode=done.returncode, output=done.stdout, seconds=time.monotonic() - began)

    def command(self, program: str) -> Sequence[str]:
        """The beginning of a command line that runs `program` (e.g. ansible-playbook) of this environment."""
        if self.os_user is None:
            return [str(self.scripts / program)]
        # The tests' own interpreter may lie in a home directory that other users cannot enter.
        entry_point = program.removeprefix("ansible-").replace("ansible", "adhoc")
        return [_public_python(), "-c", _RUN.format(entry_point), program]

    def process_environment(self, record: Path) -> dict[str, str]:
        """Environment of ansible's programs."""
        user = pwd.getpwnam(self.os_user) if self.os_user else pwd.getpwuid(os.geteuid())
        environment = {
            "HOME": user.pw_dir,
            "USER": user.pw_name,
            "LANG": "C.UTF-8",
            "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin",
            "ANSIBLE_COLLECTIONS_PATH": str(self._collections()),
            "ANSIBLE_CALLBACK_PLUGINS": str(CALLBACKS),
            "ANSIBLE_CALLBACKS_ENABLED": "recorder",
            "ANSIBLE_CACHE_PLUGIN": "ansible.builtin.jsonfile",
            "ANSIBLE_CACHE_PLUGIN_CONNECTION": str(self.directory / "facts"),
            "ANSIBLE_NOCOLOR": "1",
            "ANSIBLE_LOCALHOST_WARNING": "0",
            "ANSIBLE_INVENTORY_UNPARSED_WARNING": "0",
            "INSTANT_RECOVERY_RECORDER": str(record),
        }
        if are_tests():
            packed = packed_once(self.scripts.parent.name)
            environment |= {**packed, "ANSIBLE_CALLBACKS_ENABLED": "recorder,payloads"}
        if self.os_user is not None:
            environment["PYTHONPATH"] = str(self._packages())
        return {**environment, **self.environment}

    def _arguments(self, variables: Mapping[str, Any]) -> list[str]:
        extra = {**self.extra_vars, **variables}
        if self.session_root is not None:
            extra.setdefault("session_root", str(self.session_root))
        inventory = [] if self.inventory is None else ["--inventory", str(self.inventory)]
        return [*inventory, "--extra-vars", json.dumps(extra)]

    def _collections(self) -> Path:
        """Where ansible finds the collection: as a link to the checkout, or a copy when `os_user` cannot enter it."""
        collection = self.directory / "collections" / "ansible_collections" / "phpborg" / "instant_recovery"
        if not collection.exists():
            collection.parent.mkdir(parents=True)
            if self.os_user is None or _is_public(CHECKOUT):
                collection.symlink_to(CHECKOUT)
            else:
                for part in ("meta", "plugins", "roles", "playbooks"):
                    shutil.copytree(CHECKOUT / part, collection / part)
                shutil.copy(CHECKOUT / "galaxy.yml", collection)
        return self.directory / "collections"

    def _packages(self) -> Path:
        """Python packages of ansible-core for `os_user`: this environment's, or a copy when it cannot be entered."""
        here = Path(sysconfig.get_path("purelib"))
        copy = self.directory / "packages"
        if _is_public(here):
            return here
        if not copy.exists():
            for name in _requirements("ansible-core"):
                for file in importlib.metadata.files(name) or []:
                    if ".." not in file.parts:
                        (copy / file).parent.mkdir(parents=True, exist_ok=True)
                        shutil.copy(file.locate(), copy / file)
        return copy

    def _as_user(self) -> list[str]:
        if self.os_user is None:
            return []
        user = pwd.getpwnam(self.os_user)
        return ["setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups", "--"]


def packed_once(name: str = SCRIPTS.parent.name) -> dict[str, str]:
    """The environment in which plays of one name share what they pack: see callbacks/payloads.py."""
    return {
        "ANSIBLE_CALLBACK_PLUGINS": str(CALLBACKS),
        "ANSIBLE_CALLBACKS_ENABLED": "payloads",
        "INSTANT_RECOVERY_PAYLOADS": str(shared(f"payloads-{name}")),
    }


# What the console scripts of ansible-core do, without their shebang's interpreter.
_RUN = "import sys; sys.argv[:] = sys.argv[1:]; from ansible.cli.{} import main; sys.exit(main())"


def _requirements(name: str) -> set[str]:
    """The distribution `name` and all it needs, as far as it is installed."""
    found, waiting = set(), [name]
    while waiting:
        distribution = importlib.metadata.distribution(waiting.pop())
        found.add(distribution.name)
        for requirement in distribution.requires or []:
            needed = re.split(r"[^\w.-]", requirement, maxsplit=1)[0]
            if "extra ==" not in requirement and needed not in found and _is_installed(needed):
                waiting.append(needed)
    return found


def _is_installed(name: str) -> bool:
    try:
        importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _is_public(path: Path) -> bool:
    """Whether every user can enter the directory."""
    return all(place.stat().st_mode & 0o001 for place in [path, *path.parents])


def _public_python() -> str:
    """Our interpreter, or the system's of the same version when others cannot run this one."""
    own = Path(sys.executable).resolve()
    if _is_public(own.parent):
        return str(own)
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    system = shutil.which(f"python{version}", path="/usr/bin:/usr/local/bin")
    if system is None:
        raise RuntimeError(f"ordinary users can run neither {own} nor a system-wide python{version}")
    return system


def _read(record: Path, *, returncode: int, output: str, seconds: float) -> Run:
    lines = [json.loads(line) for line in record.read_text().splitlines()] if record.exists() else []
    tasks = [Task(**line) for line in lines if "task" in line]
    final = lines[-1] if lines and "stats" in lines[-1] else {"stats": {}, "hosts": {}}
    return Run(
        returncode=returncode,
        output=output,
        tasks=tasks,
        stats=final["stats"],
        hosts=final["hosts"],
        seconds=seconds,
    )
