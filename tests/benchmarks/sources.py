# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The archives that the benchmark recovers from: two sizes closed cleanly, and one copied right after a crash."""

from __future__ import annotations

import json
import re
import subprocess
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from ansible_collections.phpborg.instant_recovery.plugins.module_utils._postgresql.control import parse_pg_control

from tests.support.cluster import Cluster
from tests.support.repository import Repository

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

__all__ = ["KEY", "TABLE", "Source", "Sources"]

#: The largest table by far, its primary key, and what a page and a file of a table measure (bytes).
TABLE, KEY = "pgbench_accounts", "aid"
PAGE = 8192
#: Megabytes of the sample database for each unit of pgbench's scale, and the share of a cluster's size that is WAL.
MEGABYTES_PER_SCALE, WAL_SHARE = 15, 0.2
DESCRIPTION = "sources.json"


@dataclass(frozen=True)
class Source:
    """One archived cluster. Sizes are in bytes.

    `files` are the largest table's, relative to the data directory, in order. `wal` needs to be replayed at the start,
    which changes pages of `replayed` bytes in all.
    """

    archive: str
    data_directory: str
    size: int
    rows: int
    files: tuple[str, ...]
    table_size: int
    wal: int = 0
    replayed: int = 0


@dataclass(frozen=True)
class Sources:
    """What there is to recover from: `small` and `large` closed cleanly, `crashed` of the large one's size."""

    repository: Repository
    small: Source
    large: Source
    crashed: Source

    @classmethod
    def build(cls, directory: Path, *, megabytes: tuple[int, int], wal: int, say: Callable[[str], None]) -> Sources:
        """Make clusters of these sizes below `directory`, archive them, and remove them again."""
        repository = _repository(directory)
        repository.create()
        made = {}
        for name, size in zip(("small", "large"), megabytes, strict=True):
            say(f"making a cluster of about {size} MB")
            settings = {"max_wal_size": f"{max(32, int(size * WAL_SHARE))}MB", "min_wal_size": "32MB"}
            with Cluster(directory=directory / name, settings=settings) as cluster:
                _populate(cluster, scale=max(1, int(size * (1 - WAL_SHARE)) // MEGABYTES_PER_SCALE))
                table = _table(cluster)
                cluster.stop()
                say("archiving it")
                made[name] = _archived(repository, name, cluster, table)
                if name == "large":
                    say(f"crashing it with {wal} MB of WAL to replay, and archiving it again")
                    cluster.start()
                    cluster.sql("alter system set max_wal_size = '8GB'")  # no checkpoint until then
                    cluster.sql("select pg_reload_conf()")
                    cluster.crash(wal_megabytes=wal)
                    replay = {"wal": wal << 20, "replayed": _replayed(cluster)}
                    made["crashed"] = _archived(repository, "crashed", cluster, {**table, **replay})
        sources = {name: asdict(source) for name, source in made.items()}
        (directory / DESCRIPTION).write_text(json.dumps(sources, indent=1), encoding="utf-8")
        return cls(repository=repository, **made)

    @classmethod
    def load(cls, directory: Path) -> Sources:
        """What an earlier `build` has left in `directory`."""
        loaded = json.loads((directory / DESCRIPTION).read_text(encoding="utf-8"))
        made = {name: Source(**{**fields, "files": tuple(fields["files"])}) for name, fields in loaded.items()}
        return cls(repository=_repository(directory), **made)


def _repository(directory: Path) -> Repository:
    return Repository(directory=directory / "repository", base=directory / "borg")


def _populate(cluster: Cluster, *, scale: int) -> None:
    """pgbench's tables, with text that does not repeat in them.

    pgbench itself fills its rows with blanks: lz4 makes nothing of these, and Borg cuts them into chunks of a length
    that real data do not have. On both depends how fast an archive is read.
    """
    cluster.populate()
    cluster.sql(
        "truncate pgbench_accounts, pgbench_branches, pgbench_tellers, pgbench_history;"
        f"alter table {TABLE} drop constraint {TABLE}_pkey;"
        f"insert into pgbench_branches select i, 0, '' from generate_series(1, {scale}) i;"
        f"insert into pgbench_tellers select i, (i - 1) / 10 + 1, 0, '' from generate_series(1, {10 * scale}) i"
    )
    rows = f"select i, (i - 1) / 100000 + 1, 0, md5(i::text) from generate_series(1, {100_000 * scale}) i"
    cluster.sql(f"insert into {TABLE} {rows}")
    cluster.sql(f"alter table {TABLE} add primary key ({KEY})")
    cluster.sql("vacuum analyze")


def _table(cluster: Cluster) -> dict[str, Any]:
    row = cluster.sql(f"select pg_relation_filepath('{TABLE}'), pg_relation_size('{TABLE}'), max({KEY}) from {TABLE}")
    path, size, rows = row.split("|")
    first = cluster.data / path
    segments = [path, *(f"{path}.{number}" for number in range(1, len(list(first.parent.glob(f"{first.name}.*"))) + 1))]
    return {"files": tuple(segments), "table_size": int(size), "rows": int(rows)}


def _archived(repository: Repository, name: str, cluster: Cluster, fields: dict[str, Any]) -> Source:
    size = sum(path.stat().st_size for path in cluster.data.rglob("*") if path.is_file())
    repository.archive(name, cluster.data)
    return Source(archive=name, data_directory=str(cluster.data).lstrip("/"), size=size, **fields)


def _replayed(cluster: Cluster) -> int:
    """Bytes of the pages that the WAL since the last checkpoint changes."""
    control = parse_pg_control((cluster.data / "global" / "pg_control").read_bytes())
    argv = [f"{cluster.bindir}/pg_waldump", "-p", str(cluster.data / "pg_wal"), "-s", control.redo_lsn]
    pages: set[str] = set()
    page = re.compile(r"rel (\S+(?: fork \w+)? blk \d+)")
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as reading:
        assert reading.stdout is not None
        # The end of a crashed server's WAL is an error to pg_waldump: its status tells nothing.
        for line in reading.stdout:
            pages.update(page.findall(line))
    if not pages:
        raise RuntimeError("pg_waldump shows no WAL to replay")
    return len(pages) * PAGE
