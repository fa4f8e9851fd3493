# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Archives of data directories that were damaged at random, or made traps: looked at, planned and started.

Each ends in a session that answers or in one clear sentence: never in a traceback, never late, with nothing left, and
without a file outside having been opened. Each archive follows from its number: what failed once fails again.
"""

from __future__ import annotations

import ctypes
import dataclasses
import os
import random
import re
import shutil
import struct
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from ansible_collections.phpborg.instant_recovery.plugins.modules import borg_archive_info, copy_plan_info

from tests.integration.conftest import needs_root
from tests.support.cluster import Cluster
from tests.support.host import remains
from tests.support.modules import call
from tests.support.mutations import mutate
from tests.support.repository import Repository
from tests.support.stack import Stack

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.integration.conftest import Sample

pytestmark = needs_root

ARCHIVES = int(os.environ.get("INSTANT_RECOVERY_FUZZ_ARCHIVES", "12"))
GROUPS = 4  # workers that share them
LONGEST = 120.0  # seconds for one step, on a busy machine; the start itself is told to take no more than a third
STARTS = 40  # seconds
PROGRAM_FAULTS = re.compile(r"Traceback|\b[A-Z]\w+Error\b(?!:? could not)|recompile|initdb")
IN_ACCESS, IN_MODIFY, IN_OPEN, IN_CREATE, IN_DELETE = 0x1, 0x2, 0x20, 0x100, 0x200  # linux/inotify.h


@dataclasses.dataclass
class Fuzzed:
    """A cluster whose files can be damaged and made whole again, and a repository for what came of it."""

    whole: Path
    data: Path
    repository: Repository
    canary: Path

    def archive(self, number: int) -> tuple[str, list[str]]:
        """The name of a new archive, and what was changed in it."""
        chosen = random.Random(number)
        shutil.rmtree(self.data)
        subprocess.run(["cp", "-a", "--reflink=auto", str(self.whole), str(self.data)], check=True)
        done = [mutate(self.data, self.canary, chosen) for _time in range(chosen.choice((1, 1, 1, 2, 3)))]
        name = f"fuzzed-{number}"
        self.repository.archive(name, self.data)
        return name, done


@pytest.fixture(
    scope="module", params=[pytest.param(n, marks=pytest.mark.xdist_group(f"fuzz-{n}")) for n in range(GROUPS)]
)
def fuzzed(request: pytest.FixtureRequest, shared_place: Path) -> Iterator[tuple[int, Fuzzed]]:
    place = shared_place / f"fuzz-{request.param}"
    repository = Repository(directory=place / "repository", base=place / "borg")
    canary = place / "canary"
    canary.mkdir(parents=True, mode=0o777)
    (canary / "file").write_text("not to be opened\n")
    for path in (canary, canary / "file"):
        path.chmod(0o777)
    repository.create()
    with Cluster(directory=place / "cluster", data=place / "cluster" / "whole") as cluster:
        cluster.sql("create table t as select generate_series(1, 1000) id; create index on t (id)", database="postgres")
        cluster.stop(mode="immediate" if request.param % 2 else "fast")
        data = place / "cluster" / "data"
        data.mkdir()
        yield request.param, Fuzzed(cluster.data, data, repository, canary)


@contextmanager
def untouched(directory: Path) -> Iterator[None]:
    """Fails where anybody opens, reads, changes or adds a file in directory (inotify(7))."""
    libc = ctypes.CDLL(None, use_errno=True)
    watching = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
    mask = IN_ACCESS | IN_MODIFY | IN_OPEN | IN_CREATE | IN_DELETE
    assert libc.inotify_add_watch(watching, os.fsencode(directory), mask) >= 0
    try:
        yield
        try:
            events = os.read(watching, 4096)
        except BlockingIOError:
            return
        _watch, seen, _cookie, length = struct.unpack_from("iIII", events)
        name = events[16 : 16 + length].rstrip(b"\0")
        pytest.fail(f"somebody touched {directory}/{name.decode()} ({seen:#x})")
    finally:
        os.close(watching)


def clear(result: dict[str, Any]) -> bool:
    """Whether a step came to its end; fails where it failed otherwise than with one clear sentence."""
    if not result.get("failed"):
        return True
    said = str(result["msg"])
    assert said.strip(), result
    assert not PROGRAM_FAULTS.search(said), said
    assert "exception" not in result, result
    return False


@pytest.mark.parametrize("number", range(ARCHIVES // GROUPS))
def test_any_archive_ends_in_a_session_or_a_sentence(
    number: int, fuzzed: tuple[int, Fuzzed], place: Path, sample: Sample, monkeypatch: pytest.MonkeyPatch
) -> None:
    group, made = fuzzed
    name, changed = made.archive(group + GROUPS * number)
    monkeypatch.setenv("TMPDIR", str(place))
    monkeypatch.setenv("BORG_BASE_DIR", str(made.repository.base))
    path = str(made.data).lstrip("/")
    archive = {"archive": f"{made.repository.location}::{name}", "passphrase": made.repository.passphrase}
    told: list[Any] = [changed]
    try:
        with untouched(made.canary):
            told.append(within(lambda: call(borg_archive_info.main, **archive)))
            if clear(told[-1]):
                given = {**archive, "paths": told[-1]["paths"], "data_directory": path, "user": "postgres"}
                told.append(within(lambda: call(copy_plan_info.main, engine="postgresql", **given, timeout=STARTS)))
                clear(told[-1])
                own = dataclasses.replace(sample, repository=made.repository, archive=name, data_directory=path)
                stack = Stack(place / "sessions", own, readers=1, server={"timeout": STARTS})
                told.append(within(lambda: started(stack)))
            assert [line for line in remains(place) if not line.startswith("path")] == []
    except BaseException:
        print(*told, sep="\n")
        raise


def started(stack: Stack) -> dict[str, Any]:
    """What became of a start; afterwards nothing is left of the session."""
    try:
        stack.start("layered")
        try:
            stack._serve()
        except AssertionError as error:
            answer: dict[str, Any] = {"failed": True, "msg": str(error)}
            clear(answer)
        else:
            # Its template may be lost.
            database = next(iter([*stack.served["databases"], "template1"]))
            answer = {"failed": False, "msg": stack.connection().sql("select 1", database=database)}
            assert answer["msg"] == "1"
    finally:
        stopped = stack.change("absent")
    assert "failed" not in stopped, stopped["msg"]
    assert remains(stack.root) == []
    return answer


def within(step: Any) -> Any:
    began = time.monotonic()
    result = step()
    assert time.monotonic() - began < LONGEST
    return result
