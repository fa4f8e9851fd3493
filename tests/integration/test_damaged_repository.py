# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Content that a repository has lost, in every role: reading it fails soon and says which file, the rest is served.

Borg ends when it misses a chunk or finds one damaged, and whoever mounts again and reads again does so for ever.
"""

from __future__ import annotations

import dataclasses
import errno
import itertools
import os
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._layer.lost import lost_content, lost_files
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._session.session import Session
from ansible_collections.phpborg.instant_recovery.plugins.modules import borg_archive_info
from ansible_collections.phpborg.instant_recovery.plugins.modules import session as session_module

from tests.integration.conftest import Sample
from tests.support.clock import Clock, wait_until
from tests.support.cluster import Cluster, server_directory
from tests.support.damage import Chunks, delete, flip, repair, stored_size
from tests.support.host import remains
from tests.support.layer import drop_names
from tests.support.modules import call
from tests.support.playbook import Playbooks
from tests.support.repository import Repository
from tests.support.stack import Stack

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

CHUNKS = ("--chunker-params", f"fixed,{1 << 16}")
DIRECTORIES = 12
SECONDS = 120.0  # in which a read of what is lost has failed, on a busy machine: a Borg is mounted twice for it


@dataclass(frozen=True)
class Made:
    """A cluster that was killed after a checkpoint and some more writes; paths of its files by their roles."""

    sample: Sample
    chunks: Chunks
    roles: dict[str, str]

    def copy(self, place: Path) -> Sample:
        """The same in a repository that may be damaged."""
        repository = self.sample.repository.copy(place / "repository", owner="root")
        return dataclasses.replace(self.sample, repository=repository)

    def chunk(self, role: str, number: int = 0) -> str:
        return self.chunks.files[f"{self.sample.data_directory}/{self.roles[role]}"][number]


def filled(cluster: Cluster) -> tuple[dict[str, str], int]:
    """Fill a cluster; the file of each role in it, and where in its segment of the log the last writes begin."""
    sql = cluster.connection.sql
    sql(
        "create table lost as select i, md5(i::text) from generate_series(1, 100000) i;"
        "create table kept as select i from generate_series(1, 1000) i;"
        "create table listed as select i from generate_series(1, 100000) i;"
        "create index listed_index on listed (i);"
        "create table late (i int)"
    )
    sql("vacuum listed")
    sql("checkpoint")
    roles = {
        "table": sql("select pg_relation_filepath('lost')"),
        "index": sql("select pg_relation_filepath('listed_index')"),
        # Other databases have the same chunk; this is the first that is asked for.
        "catalogue": sql("select pg_relation_filepath('pg_attribute')", database="template1"),
        "control": "global/pg_control",
        "log": f"pg_wal/{sql('select pg_walfile_name(pg_current_wal_lsn())')}",
    }
    place = int(sql("select (pg_walfile_name_offset(pg_current_wal_lsn())).file_offset"))
    sql("insert into late select generate_series(1, 20000)")  # 1.2 MB of log
    return roles, place


@pytest.fixture(scope="module")
def made(shared_place: Path) -> Made:
    top = shared_place / "damaged"
    top.mkdir(mode=0o711)
    repository = Repository(directory=top / "repository", base=top / "borg")
    repository.create()
    with Cluster(directory=top / "production") as cluster:
        roles, place = filled(cluster)
        cluster.stop(mode="immediate")
        identifier = repository.archive("damaged", cluster.data, options=CHUNKS)
        sample = Sample(
            repository=repository,
            archive="damaged",
            archive_id=identifier,
            data_directory=str(cluster.data).lstrip("/"),
            major=int(Path(cluster.bindir).parent.name),
            superuser=cluster.superuser,
            bindir=server_directory(),
            tables={},
        )
    assert place + (1 << 20) < 1 << 24, "the writes have left the segment"
    chunks = Chunks.of(repository, "damaged")
    log = chunks.files[f"{sample.data_directory}/{roles['log']}"]
    # The middle of what has to be replayed comes first in the test's list.
    log[:] = [log[(place + (1 << 19)) >> 16], *log]
    return Made(sample, chunks, roles)


@pytest.fixture(name="root")
def _root(place: Path) -> Iterator[Path]:
    root = place / "sessions"
    yield root
    left = remains(root)
    if left:
        call(session_module.main, session_root=str(root), state="absent", session_id="all")
    assert left == []


def stack_of(root: Path, sample: Sample, **options: Any) -> Stack:
    return Stack(root, sample, {"data_directory": sample.data_directory}, **{"readers": 2, **options})


def log_of(stack: Stack, name: str) -> list[str]:
    return (stack.directory / "log" / f"{name}.log").read_text().splitlines()


def deaths(stack: Stack) -> int:
    """How often a mount has ended; each is made again once."""
    return sum(" is gone: " in line for line in log_of(stack, "layer"))


def failing(stack: Stack, statement: str) -> str:
    """The error of a statement that soon fails; meanwhile and afterwards others connect and read what is whole."""
    began = time.monotonic()
    with pytest.raises(RuntimeError) as error:
        stack.connection().sql(statement, timeout=2 * SECONDS)
    assert time.monotonic() - began < SECONDS
    assert stack.connection().sql("select count(*) from kept", timeout=SECONDS) == "1000"
    return str(error.value)


def await_told(stack: Stack, *paths: str) -> dict[str, Any]:
    """The session's record, once it names these files."""
    deadline = time.monotonic() + SECONDS
    while True:
        told = stack.info()
        if all(path in (told["error_message"] or "") for path in paths):
            return told
        assert time.monotonic() < deadline, told
        time.sleep(0.2)


def test_a_table_and_an_index_lose_content(root: Path, made: Made, place: Path) -> None:
    """What the one lacks is gone, and what the other lacks is damaged."""
    sample = made.copy(place)
    delete(sample.repository, made.chunk("table", 20))
    flip(sample.repository, made.chunk("index", 5))
    stack = stack_of(root, sample).start()
    assert "Input/output error" in failing(stack, "select count(*) from lost")
    by_index = "set enable_seqscan = off; set enable_bitmapscan = off; select count(i) from listed where i > 0"
    assert "Input/output error" in failing(stack, by_index)
    assert deaths(stack) == 4
    assert "Input/output error" in failing(stack, "select count(*) from lost")
    assert deaths(stack) == 4, "what is known to be lost is asked for again"

    table, index = made.roles["table"], made.roles["index"]
    told = await_told(stack, table, index)
    assert told["status"] == "active"
    assert "borg check" in told["error_message"]
    said = [line for line in log_of(stack, "layer") if " ERROR " in line]
    assert sorted(line.partition(" ERROR lost: ")[2].split()[0] for line in said) == sorted(
        f"{sample.data_directory}/{path}" for path in (table, index)
    )
    assert all("borg check" in line for line in said)

    # It goes on: what is whole can be read and changed, and it can be extended and reset.
    stack.connection().sql("insert into kept select 1")
    assert stack.connection().sql("select count(*) from lost where ctid < '(10,0)'") != "0"
    assert stack.change("extended", ttl="1h")["changed"]
    # The mount over which a read was found to be lost comes back, and then there is an archive to begin anew from.
    wait_until(lambda: all(one["responding"] for one in stack.info()["checks"]["mounts"]))
    stack.reset()
    assert stack.info()["error_message"] is None
    assert stack.connection().sql("select count(*) from kept") == "1000"
    assert stack.change("absent")["session"]["status"] == "stopped"


def test_who_reads_beside_it_is_not_taken_for_lost(root: Path, made: Made, place: Path) -> None:
    """Through the only mount, over which each of them may have died."""
    sample = made.copy(place)
    flip(sample.repository, made.chunk("table", 20))
    stack = stack_of(root, sample, readers=1).start("layered")
    data = stack.directory / "merged" / sample.data_directory
    with ThreadPoolExecutor(5) as pool:
        lost = pool.submit(read_by_blocks, data / made.roles["table"])
        others = [pool.submit(read_all, data, number, made.roles["table"]) for number in range(4)]
        assert lost.result() == {errno.EIO}
        assert sum(other.result() for other in others) > 900
    assert deaths(stack) == 2
    assert lost_files(Session.open(str(stack.directory))) == [made.roles["table"]]
    stack.change("absent")


def read_by_blocks(path: Path) -> set[int]:
    """The errors that reading each 8 KiB of a file gave, from its end to its beginning."""
    errors = set()
    with path.open("rb", buffering=0) as file:
        for start in range(path.stat().st_size - 8192, -8192, -8192):
            try:
                os.pread(file.fileno(), 8192, start)
            except OSError as error:
                errors.add(error.errno or 0)
    return errors


def read_all(top: Path, number: int, besides: str) -> int:
    """Read every fourth file, from that number on, and list all directories; how many files."""
    paths = sorted(path for path in top.rglob("*") if path.is_file())[number::4]
    for path in paths:
        if path != top / besides:
            path.read_bytes()
    return len(paths)


@pytest.mark.parametrize(("role", "damage"), [("catalogue", flip), ("control", delete), ("log", flip)])
def test_a_start_that_needs_lost_content_fails_at_once(
    root: Path, made: Made, place: Path, role: str, damage: Callable[[Repository, str], None]
) -> None:
    """A log that cannot be read would look like one that ends."""
    sample = made.copy(place)
    damage(sample.repository, made.chunk(role))
    stack = stack_of(root, sample).start("layered")
    began = time.monotonic()
    with pytest.raises(AssertionError, match="has lost content of"):
        stack._serve()
    assert time.monotonic() - began < SECONDS
    session = Session.open(str(stack.directory))
    assert lost_files(session) == [made.roles[role]]
    assert f"lost content of {made.roles[role]}," in (lost_content(session) or "")
    assert deaths(stack) == 2
    stack.change("absent", error_message="It failed.")


def test_a_directory_whose_names_are_lost(root: Path, place: Path, clock: Clock) -> None:
    """Borg cannot mount an archive that has lost a part of its list; mounts that are there look into it anew."""
    tree = place / "source"
    for number in range(DIRECTORIES):
        (tree / f"d{number}").mkdir(parents=True)
        for name in range(1000):
            os.close(os.open(tree / f"d{number}" / f"{name}.relation", os.O_CREAT, 0o600))
    repository = Repository(directory=place / "repository", base=place / "borg")
    repository.create()
    identifier = repository.archive("names", tree)
    sample = Sample(repository, "names", identifier, str(tree).lstrip("/"), 15, "", "", {})
    stack = stack_of(root, sample, readers=3).start("layered")
    _attend(stack)
    for chunk in _in_the_middle(repository, Chunks.of(repository, "names").items):
        flip(repository, chunk)
    drop_names()
    with clock.rushing(seconds=1):  # the layer waits for a mount that cannot come
        whole = list(itertools.takewhile(lambda number: listing(stack, number), range(DIRECTORIES)))
    assert 0 < len(whole) < DIRECTORIES - 1
    last = listing(stack, DIRECTORIES - 1)
    assert last is not None, "\n".join([*log_of(stack, "layer"), *log_of(stack, "keeper")])
    assert deaths(stack) == 1
    (line, *_more) = [line for line in log_of(stack, "layer") if " ERROR " in line]
    assert f"lower: {sample.data_directory}/d" in line
    assert "its mount has ended" in line
    stack.change("absent")


def _in_the_middle(repository: Repository, chunks: list[str]) -> list[str]:
    """Chunks of a list that have nothing of the first directory, nor of the last: how long each is, is chance."""
    sizes = [stored_size(repository, chunk) for chunk in chunks]
    edge = 1.5 * sum(sizes) / DIRECTORIES
    inside = [
        chunk
        for chunk, size, upto in zip(chunks, sizes, itertools.accumulate(sizes), strict=True)
        if upto - size > edge and upto < sum(sizes) - edge
    ]
    assert inside
    return inside


def _attend(stack: Stack) -> None:
    """Have the keeper take it for a session that runs: a start that nobody goes on with it would end."""
    session = Session.open(str(stack.directory))
    with session.locked():
        session.update(status="active", suspend_after=0.0)


def listing(stack: Stack, number: int) -> list[str] | None:
    """The names in one of the directories; None where that gives an input/output error."""
    directory = stack.directory / "merged" / stack.sample.data_directory / f"d{number}"
    began = time.monotonic()
    try:
        names = os.listdir(directory)
        assert len(names) == 1000
    except OSError as error:
        assert error.errno == errno.EIO, error  # noqa: PT017
        return None
    finally:
        assert time.monotonic() - began < SECONDS
    return names


@pytest.mark.parametrize("damage", [delete, flip])
def test_a_look_into_the_archive_names_what_is_lost(
    made: Made, place: Path, monkeypatch: pytest.MonkeyPatch, damage: Callable[[Repository, str], None]
) -> None:
    sample = made.copy(place)
    monkeypatch.setenv("BORG_BASE_DIR", str(sample.repository.base))
    options = {"archive": sample.name, "passphrase": sample.repository.passphrase}
    damage(sample.repository, made.chunk("control"))
    assert call(borg_archive_info.main, **options)["msg"] == (
        f"{sample.repository.location} has lost content of {sample.data_directory}/global/pg_control in archive "
        "damaged. See what is damaged with borg check, and use an archive that is whole."
    )
    damage(sample.repository, made.chunks.items[0])
    told = call(borg_archive_info.main, **options)["msg"]
    assert told.startswith(f"{sample.repository.location} is damaged. See what is damaged with borg check, and use")


def test_small_files_that_the_start_can_do_without(made: Made, root: Path, place: Path) -> None:
    """What the configuration says, and what the server was started with: it is told, and the copy starts."""
    sample = made.copy(place)
    lost = ("postgresql.conf", "postmaster.opts")
    for name in lost:
        delete(sample.repository, made.chunks.files[f"{sample.data_directory}/{name}"][0])
    stack = Stack.of(root, sample.repository, sample.archive).start()
    told = " ".join(map(str, [*stack.found["warnings"], *stack.served["warnings"]]))
    assert f"has lost content of {sample.data_directory}/postmaster.opts in archive damaged." in told
    assert "postgresql.conf cannot be read: Input/output error. What the archived configuration sets there" in told
    assert stack.connection().sql("select count(*) from kept") == "1000"
    stack.change("absent")


def test_another_database_of_the_archive_is_damaged(made: Made, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which does not concern the one that is asked for."""
    sample = made.copy(place)
    monkeypatch.setenv("BORG_BASE_DIR", str(sample.repository.base))
    for name in ("one", "two"):
        (place / name / "global").mkdir(parents=True)
        (place / name / "PG_VERSION").write_text("15\n")
        (place / name / "global" / "pg_control").write_text(f"of {name}")
    sample.repository.archive("both", "one", "two", cwd=place)
    delete(sample.repository, Chunks.of(sample.repository, "both").files["two/global/pg_control"][0])
    options = {"archive": f"{sample.repository.location}::both", "passphrase": sample.repository.passphrase}
    found = call(borg_archive_info.main, **options, data_directory="one")
    assert "failed" not in found, found
    assert any("has lost content of two/global/pg_control" in str(said) for said in found["warnings"])
    assert (
        "has lost content of two/global/pg_control"
        in call(borg_archive_info.main, **options, data_directory="two")["msg"]
    )


def test_what_a_repair_has_replaced_is_told_before_and_stays_unreadable(root: Path, made: Made, place: Path) -> None:
    """Zeros would pass for empty pages."""
    sample = made.copy(place)
    delete(sample.repository, made.chunk("table", 20))
    repair(sample.repository)
    path = made.roles["table"]
    warning = (
        "Borg has lost content of 1 of its files, as borg check --repair has found, and they cannot be read: "
        f"{sample.data_directory}/{path}."
    )
    playbooks = Playbooks(directory=place / "ansible", session_root=root, environment=sample.repository.environment)
    planned = playbooks.start("--check", archive=sample.name)
    assert planned.returncode == 0, planned.output
    assert warning in " ".join(planned.output.split())

    stack = Stack.of(root, sample.repository, sample.archive, readers=2).start()
    assert warning in str(stack.found["warnings"])
    assert "Input/output error" in failing(stack, "select count(*) from lost")
    assert await_told(stack, path)["status"] == "active"
    assert deaths(stack) == 0
    stack.change("absent")
