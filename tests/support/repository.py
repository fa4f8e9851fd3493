# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""An encrypted Borg repository (repokey-blake2, lz4) for tests, benchmarks and the demo."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import shutil
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tests.support.once import are_tests

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

__all__ = ["PASSPHRASE", "Repository"]

PASSPHRASE = "canary-7f3e9c-do-not-leak"
# Half of what a short Borg costs is its test of itself, and loading what only a mount needs.
BRISK = {"BORG_SELFTEST": "disabled", "BORG_FUSE_IMPL": "none"}


@dataclass(kw_only=True)
class Repository:
    """A repository in `directory`; Borg's own cache and keys go to `base`, so the caller's are left alone."""

    directory: Path
    base: Path
    passphrase: str = PASSPHRASE
    encryption: str = "repokey-blake2"

    @property
    def location(self) -> str:
        """The repository as the playbooks' `repository` wants it."""
        return str(self.directory)

    @property
    def environment(self) -> dict[str, str]:
        """What borg needs from the environment, to be merged into a process's: secret and cache directory."""
        return {"BORG_PASSPHRASE": self.passphrase, "BORG_BASE_DIR": str(self.base)}

    def create(self) -> None:
        """Run borg init."""
        self.base.mkdir(parents=True, exist_ok=True)
        program = _unstretched() if are_tests() else ["borg"]
        self._run(program, "init", "--encryption", self.encryption, self.location)

    def archive(
        self,
        name: str,
        *paths: str | Path,
        options: Sequence[str] = (),
        cwd: str | Path = "/",
    ) -> str:
        """borg create; returns the new archive's id. Absolute paths lose their leading slash in the archive."""
        argv = ["create", "--json", "--compression", "lz4", *options, f"{self.location}::{name}"]
        created = json.loads(self.borg(*argv, *[str(path) for path in paths], cwd=cwd))
        identifier: str = created["archive"]["id"]
        return identifier

    def archives(self) -> list[dict[str, Any]]:
        """`borg list --json`, oldest first: keys `archive`, `id`, `time`…"""
        found: list[dict[str, Any]] = json.loads(self.borg("list", "--json", self.location))["archives"]
        return found

    def digest(self) -> str:
        """Hash of everything stored (segments and configuration, not locks): equal means bit-identical archives."""
        total = hashlib.sha256()
        for path in sorted([*self.directory.glob("data/*/*"), self.directory / "config"]):
            total.update(str(path.relative_to(self.directory)).encode())
            with path.open("rb") as file:
                while block := file.read(1 << 20):
                    total.update(block)
        return total.hexdigest()

    def is_locked(self) -> bool:
        """Whether a borg process holds a lock (a mount holds a shared one), or left one behind."""
        exclusive = (self.directory / "lock.exclusive").exists()
        roster = self.directory / "lock.roster"
        return exclusive or (roster.exists() and any(json.loads(roster.read_text()).values()))

    def copy(self, directory: Path, *, owner: str) -> Repository:
        """A copy that belongs to another user, as needed where the playbooks run as that user."""
        shutil.copytree(self.directory, directory, symlinks=True)
        for path in [directory, *directory.rglob("*")]:
            shutil.chown(path, user=owner)
        return Repository(
            directory=directory, base=directory.with_name(directory.name + "-base"), passphrase=self.passphrase
        )

    def borg(self, *arguments: str, cwd: str | Path = "/", environment: Mapping[str, str] | None = None) -> str:
        """Run borg, return its output. Raises RuntimeError with borg's own complaint."""
        return self._run(["borg"], *arguments, cwd=cwd, environment=environment)

    def _run(
        self,
        program: Sequence[str],
        *arguments: str,
        cwd: str | Path = "/",
        environment: Mapping[str, str] | None = None,
    ) -> str:
        done = subprocess.run(
            [*program, *arguments],
            env={**os.environ, "LC_ALL": "C.UTF-8", **BRISK, **self.environment, **(environment or {})},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            cwd=cwd,
            timeout=3600,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"borg {arguments[0]} failed ({done.returncode}): {done.stderr.strip()}")
        return done.stdout


# To stretch the key is a sixth of what each short Borg costs. How often that is done stands in the key, and Borg's own
# tests change it in the same way: see Borg's __init__.py.
_INIT = """
import sys
import borg.constants
borg.constants.PBKDF2_ITERATIONS = 1
sys.argv[0] = "borg"
exec(compile(open(sys.argv.pop(1)).read(), "borg", "exec"))
"""


@functools.cache
def _unstretched() -> Sequence[str]:
    """Borg that makes keys which cost no time to open; Borg as it is where it is no script of Python's."""
    program = shutil.which("borg") or "borg"
    with open(program, "rb") as file:
        first = file.readline(256)
    if not first.startswith(b"#!") or b"python" not in first:
        return [program]
    return [*first[2:].decode().split(), "-c", _INIT, program]
