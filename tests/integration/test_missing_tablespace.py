# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A copy without one of its tablespaces: what is there can be used, and of what is not no part is ever shown."""

from __future__ import annotations

import os
import pwd
import re
import shutil
from typing import TYPE_CHECKING

import pytest
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._postgresql import server as _pg_server

from tests.support.cluster import Cluster

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.support.copies import Copy

OWNER = "postgres" if os.geteuid() == 0 else pwd.getpwuid(os.geteuid()).pw_name


@pytest.fixture(scope="module")
def incomplete(shared_place: Path) -> Iterator[Cluster]:
    """Killed, with changes in the tablespace `lost` since the last checkpoint."""
    place = shared_place / "incomplete"
    space = place / "space"
    space.mkdir(parents=True)
    for path in (place, space):
        shutil.chown(path, OWNER)
    with Cluster(directory=place / "production", settings={"autovacuum": "off"}) as cluster:
        ask = cluster.connection.sql
        ask(f"create tablespace lost location '{space}'")
        ask(
            "create table gone tablespace lost as select i id, repeat('x', 100) t from generate_series(1, 10000) i;"
            "create table other tablespace lost as select 1 id;"
            "create table kept as select generate_series(1, 1000) id;"
            "create table half as select generate_series(1, 1000) id; create index half_id on half (id) tablespace lost"
        )
        ask("checkpoint")
        # It marks pages as all visible, without an image of them.
        ask("vacuum gone")
        ask("update gone set t = 'y' where id = 5000; insert into kept values (0); insert into half values (0)")
        cluster.stop(mode="immediate")
        yield cluster


def test_by_default_nothing_is_started(incomplete: Cluster, copy_of: Callable[..., Copy]) -> None:
    said = copy_of(incomplete).start()["msg"]
    assert re.search(r"tablespace \d+ is a link to \S+/space, and the archive has no such directory", said)
    assert "missing_tablespaces=leave_out" in said


def test_a_tablespace_that_nothing_in_the_copy_leads_to(incomplete: Cluster, copy_of: Callable[..., Copy]) -> None:
    """As a backup program leaves it that passes over links. Recovery makes a directory, and puts a part of it there."""
    for options in ({}, {"missing_tablespaces": "leave_out"}):
        copy = copy_of(incomplete)
        (link,) = copy.path("pg_tblspc").iterdir()
        link.unlink()
        result = copy.start(**options)
        if not options:
            assert f"The copy has no link in pg_tblspc for tablespace lost ({link.name})" in result["msg"]
            again = copy.start()
            assert "This copy went past it: start from the archive again." in again["msg"]
            continue
        assert "failed" not in result, result
        assert any(
            f"no place for tablespace lost ({link.name}), which was left out" in str(w) for w in result["warnings"]
        )
        for _again in range(2):
            assert copy.sql("select count(*) from kept") == "1001"
            for lost in ("select count(*) from gone", "select id from gone where id = 5000"):
                with pytest.raises(RuntimeError, match=r"could not open file .* No such file or directory"):
                    copy.sql(lost)
            copy.stop()
            result = copy.start()


# In archive recovery, which a target makes of it, the server ends when it misses pages.
@pytest.mark.parametrize("target", [{}, {"recovery_target_timeline": "latest"}], ids=["crash", "archive"])
def test_what_is_left_out_is_an_error_and_never_a_part(
    target: dict[str, str], incomplete: Cluster, copy_of: Callable[..., Copy]
) -> None:
    copy = copy_of(incomplete)
    result = copy.start(missing_tablespaces="leave_out", **target)
    assert "failed" not in result, result
    assert any("left out: its link leads to the empty directory" in entry["what"] for entry in result["neutralised"])
    assert any(re.search(r"Tablespace \d+ is not in the archive", str(said)) for said in result["warnings"])
    for again in (False, True):
        if again:
            copy.stop()
            result = copy.start(**target)
            assert any("cannot be read" in str(said) for said in result["warnings"])
        assert copy.sql("select count(*) from kept") == "1001"
        for lost in ("select count(*) from gone", "select id from gone where id = 5000", "insert into gone values (1)"):
            with pytest.raises(RuntimeError, match=r"could not open file .* No such file or directory"):
                copy.sql(lost)
        with pytest.raises(RuntimeError, match="could not open file"):
            copy.sql("select count(*) from half")
    copy.sql("drop index half_id; drop table gone; truncate other")
    assert copy.sql("select count(*) from half") == "1001"
    copy.sql("insert into other values (7); create table new tablespace lost as select 1 one")
    copy.sql("checkpoint")
    copy.stop()
    copy.start()
    assert copy.sql("select other.id, new.one from other, new") == "7|1"


def test_a_start_that_is_cut_off_shows_no_part_either(
    incomplete: Cluster, copy_of: Callable[..., Copy], monkeypatch: pytest.MonkeyPatch
) -> None:
    """After recovery, and before what it wrote into the tablespace is removed."""

    def interrupted(*_arguments: object) -> None:
        raise KeyboardInterrupt

    copy = copy_of(incomplete)
    with monkeypatch.context() as context:
        context.setattr(_pg_server, "_empty", interrupted)
        with pytest.raises(KeyboardInterrupt):
            copy.start(missing_tablespaces="leave_out")
    assert [path for path in copy.data.glob("instant_recovery_left_out/*/PG_*/*/*") if path.stat().st_size]
    assert "missing_tablespaces=leave_out" in copy.start()["msg"]
    assert "failed" not in copy.start(missing_tablespaces="leave_out")
    with pytest.raises(RuntimeError, match="could not open file"):
        copy.sql("select count(*) from gone")


def test_pages_that_are_missing_elsewhere_are_no_less_an_error(
    incomplete: Cluster, copy_of: Callable[..., Copy]
) -> None:
    """Leaving a tablespace out makes the server go on after missing pages; the others are still found."""
    incomplete.start()
    ask = incomplete.connection.sql
    ask("create table damaged as select generate_series(1, 10000) id; checkpoint")
    path = ask("select pg_relation_filepath('damaged')")
    ask("vacuum damaged")
    ask("insert into half values (1)")  # it has what vacuum did written to disk, too
    incomplete.stop(mode="immediate")
    copy = copy_of(incomplete)
    copy.path(path).write_bytes(b"")
    result = copy.start(missing_tablespaces="leave_out", recovery_target_timeline="latest")
    assert result.get("failed"), result
    assert f"pages that are not in the copy, of {path}:" in result["msg"]
