# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The demo: a sample cluster is archived and thrown away, then a session answers a query from the archive.

What a user would type is printed with a dollar sign in front, and run as printed. Everything lies in one temporary
directory, which is removed at the end, after a failure and after Ctrl-C.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

CHECKOUT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(CHECKOUT))

from tests.support.cluster import DATABASE, Cluster  # noqa: E402  (scripts/ is no package)
from tests.support.host import remains  # noqa: E402
from tests.support.once import COMMON  # noqa: E402
from tests.support.repository import Repository  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

START = "playbooks/instant_recovery_start.yml"
STOP = "playbooks/instant_recovery_stop.yml"
QUERY = 'select count(*) as orders, max(at) as latest from "Order Lines"'
SCALE = 20  # pgbench's: about 300 MB
ROWS = 2_500_000  # of MariaDB's table: about 250 MB


def main() -> None:
    parser = argparse.ArgumentParser(description="Start a session from a sample's archive, and ask it something.")
    parser.add_argument("--engine", choices=["postgresql", "mariadb"], default="postgresql")
    engine = parser.parse_args().engine
    signal.signal(signal.SIGTERM, interrupt)
    with temporary_directory() as top:
        repository = archived_sample(top, MARIADB if engine == "mariadb" else POSTGRESQL)
        root = ["-e", f"session_root={top}/sessions"]
        environment = {**os.environ, **repository.environment, "ANSIBLE_CACHE_PLUGIN_CONNECTION": f"{top}/facts"}
        show(f"export BORG_PASSPHRASE={repository.passphrase}")
        try:
            start = timed(
                ["ansible-playbook", START, "-e", f"archive={repository.location}::latest", *root], environment
            )
            session = record(top / "sessions")
            query = timed(mariadb(session) if engine == "mariadb" else psql(session), environment)
            stop = timed(["ansible-playbook", STOP, "-e", f"session_id={session['id']}", *root], environment)
        except BaseException:
            # A process group of its own: another Ctrl-C must not reach it.
            command = ["ansible-playbook", STOP, "-e", "session_id=all", *root]
            subprocess.run(command, cwd=CHECKOUT, env=environment, start_new_session=True, check=False, timeout=300)
            raise
        left = ", ".join(remains(top / "sessions")) or "nothing"
    say(f"start {start:.1f} s, query {query:.2f} s, stop {stop:.1f} s; left of the session: {left}")


def archived_sample(top: Path, sample: Sample) -> Repository:
    """An encrypted repository with one archive of a server that is gone."""
    began = time.monotonic()
    say(f"making a sample of {sample.name}, of about {sample.size} MB")
    repository = Repository(directory=top / "repository", base=top / "borg", passphrase="kept-off-every-command-line")
    repository.create()
    with sample.made(top) as data:
        say("archiving it in an encrypted Borg repository")
        repository.archive("production-2026-11-22", data)
    seconds = time.monotonic() - began
    say(f"removed it; all that is left of it is the archive (took {seconds:.0f} s, no part of a recovery)")
    return repository


@contextlib.contextmanager
def cluster(top: Path) -> Iterator[Path]:
    """The data directory of a cluster of PostgreSQL that was shut down."""
    with Cluster(directory=top / "production") as production:
        production.populate(scale=SCALE)
        production.stop()
        yield production.data


@contextlib.contextmanager
def server(top: Path) -> Iterator[Path]:
    """The data directory of a server of MariaDB that was killed in the middle of commits."""
    from tests.support.mariadb import MariaDb  # needs the extra mysql

    os.environ[COMMON] = str(top / "common")
    with MariaDb(directory=top / "production") as production:
        production.populate(rows=ROWS)
        production.killed_while_writing()
        yield production.data


class Sample(NamedTuple):
    """What is archived: its name, MB of it, and what makes its data directory."""

    name: str
    size: int
    made: Callable[[Path], AbstractContextManager[Path]]


POSTGRESQL, MARIADB = Sample("PostgreSQL", 300, cluster), Sample("MariaDB", 250, server)


def mariadb(session: dict[str, Any]) -> list[str]:
    """The query to MariaDB, likewise."""
    options = [f"--defaults-file={session['client_file']}", "--table", DATABASE]
    return ["mariadb", *options, "-e", "select count(*) as orders, max(at) as latest from orders"]


def psql(session: dict[str, Any]) -> list[str]:
    """The query, the way that the start play's closing note proposes to connect."""
    service = [f"PGSERVICEFILE={session['client_file']}", "PGSERVICE=instant_recovery"]
    return ["env", *service, "psql", "-X", "-d", DATABASE, "-c", QUERY]


def record(root: Path) -> dict[str, Any]:
    """The one session's record, which the start play left."""
    path = next(path for path in root.glob("*/session.json"))
    loaded: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return loaded


def timed(command: list[str], environment: dict[str, str]) -> float:
    """Show and run a command; the seconds it took. Ends the demo when it fails."""
    show(shlex.join(command))
    began = time.monotonic()
    ran = subprocess.run(command, cwd=CHECKOUT, env=environment, check=False)
    if ran.returncode:
        sys.exit(f"demo: {command[0]} failed with status {ran.returncode}")
    return time.monotonic() - began


@contextlib.contextmanager
def temporary_directory() -> Iterator[Path]:
    # Not in /tmp, which may be memory; open to the server's user, who is another than root.
    top = Path(tempfile.mkdtemp(prefix="instant-recovery-demo-", dir="/var/tmp"))
    top.chmod(0o755)
    try:
        yield top
    finally:
        # Never into a mount, should one be left.
        if mounts := [line for line in remains(top) if line.startswith("mount ")]:
            say(f"could not undo {', '.join(mounts)}: unmount it, then remove {top}")
        else:
            shutil.rmtree(top)


def interrupt(*_: object) -> NoReturn:
    raise KeyboardInterrupt


def show(command: str) -> None:
    print(f"\n$ {command}", flush=True)


def say(text: str) -> None:
    print(f"demo: {text}", flush=True)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("demo: interrupted; everything it had made is removed")
