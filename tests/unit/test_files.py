# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Files in directories where somebody else may have put something in their place."""

from __future__ import annotations

import errno
import os
import socket
import stat
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._host.files import (
    HeldDirectory,
    open_regular,
    read_beginning,
    read_end,
    replace_file,
)

if TYPE_CHECKING:
    from collections.abc import Callable


def pipe(path: Path) -> None:
    os.mkfifo(path)


def link(path: Path) -> None:
    (path.parent / "elsewhere").write_text("somebody's")
    path.symlink_to("elsewhere")


def listener(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))


def device(path: Path) -> None:
    path.symlink_to("/dev/null")


@pytest.mark.parametrize("make", [pipe, link, listener, device, Path.mkdir])
@pytest.mark.parametrize("flags", [os.O_RDONLY, os.O_WRONLY | os.O_APPEND | os.O_CREAT, os.O_RDWR])
def test_nothing_but_a_regular_file_is_opened(tmp_path: Path, make: Callable[[Path], None], flags: int) -> None:
    make(tmp_path / "log")
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(OSError, match=r"not a regular file|Is a directory"):
        open_regular(str(tmp_path / "log"), flags)
    assert len(os.listdir("/proc/self/fd")) == before
    assert not (tmp_path / "elsewhere").exists() or (tmp_path / "elsewhere").read_text() == "somebody's"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes device nodes")
def test_a_device_node_is_not_opened(tmp_path: Path) -> None:
    os.mknod(tmp_path / "log", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    with pytest.raises(OSError, match="not a regular file"):
        open_regular(str(tmp_path / "log"), os.O_RDONLY)


def test_a_pipe_with_somebody_at_its_other_end_is_not_opened_either(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "log")
    other = os.open(tmp_path / "log", os.O_RDWR)
    try:
        for flags in (os.O_RDONLY, os.O_WRONLY):
            with pytest.raises(OSError, match="not a regular file"):
                open_regular(str(tmp_path / "log"), flags)
    finally:
        os.close(other)


def test_a_new_log_is_made_for_its_owner_alone(tmp_path: Path) -> None:
    os.close(open_regular(str(tmp_path / "log"), os.O_WRONLY | os.O_CREAT))
    assert stat.S_IMODE((tmp_path / "log").stat().st_mode) == 0o600
    with pytest.raises(FileNotFoundError):
        open_regular(str(tmp_path / "other"), os.O_RDONLY)


def test_no_more_is_read_than_was_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"0123456789")
    os.truncate(path, 1 << 40)  # of which nothing is on disk
    assert read_beginning(str(path), 4) == b"0123"
    assert read_beginning(str(path), 4, offset=3) == b"3456"
    assert read_end(str(path), 3) == bytes(3)
    path.write_bytes(b"short")
    assert (read_beginning(str(path), 100), read_end(str(path), 100)) == (b"short", b"short")


@pytest.mark.parametrize("unique", [False, True])
def test_a_file_is_replaced_as_a_whole(tmp_path: Path, unique: bool) -> None:
    path = tmp_path / "sample.json"
    with os.fdopen(os.open(path, os.O_CREAT | os.O_RDWR), "rb") as reader:
        replace_file(str(path), b"new", 0o640, unique=unique, durable=True)
        assert reader.read() == b""  # who had it open has the old one
    assert path.read_bytes() == b"new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert os.listdir(tmp_path) == ["sample.json"]


def test_what_is_in_the_way_is_neither_written_nor_waited_for(tmp_path: Path) -> None:
    """Where the temporary file is to be: another name of somebody's file, a link to it, a pipe."""
    precious = tmp_path / "precious"
    precious.write_text("precious")
    for make in (lambda path: os.link(precious, path), lambda path: path.symlink_to(precious), os.mkfifo):
        make(tmp_path / "record.tmp")
        replace_file(str(tmp_path / "record"), b"new")
        assert precious.read_text() == "precious"
        assert (tmp_path / "record").read_bytes() == b"new"
        assert sorted(os.listdir(tmp_path)) == ["precious", "record"]


def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "record").write_text("old")

    def write() -> None:
        replace_file(str(tmp_path / "record"), bytes(1 << 20))

    with pytest.raises(OSError, match="File too large") as caught:
        _with_small_files(write)
    assert caught.value.errno == errno.EFBIG
    assert (tmp_path / "record").read_text() == "old"
    assert os.listdir(tmp_path) == ["record"]


def _with_small_files(function: Callable[[], None]) -> None:
    """Call it where no file may grow beyond 4 KiB: the nearest to a full disk that needs no disk."""
    import resource
    import signal

    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        function()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def test_several_at_once_do_not_disturb_one_another(tmp_path: Path) -> None:
    path = str(tmp_path / "metrics.prom")
    failed: list[OSError] = []

    def write(number: int) -> None:
        try:
            for _turn in range(200):
                replace_file(path, f"{number}".encode() * 1000, 0o644, unique=True)
        except OSError as error:
            failed.append(error)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert len(set(Path(path).read_text())) == 1
    assert os.listdir(tmp_path) == ["metrics.prom"]


@pytest.mark.parametrize("name", ["way/inner/secret", "inner/../../outside/inner/secret", "inner/way/secret"])
def test_a_held_directory_gives_nothing_that_is_not_in_it(tmp_path: Path, name: str) -> None:
    """Nor by a link in the middle of a path."""
    for directory in ("held/inner", "outside/inner"):
        (tmp_path / directory).mkdir(parents=True)
        (tmp_path / directory / "secret").write_text(directory)
    (tmp_path / "held" / "way").symlink_to(tmp_path / "outside")
    (tmp_path / "held" / "inner" / "way").symlink_to(tmp_path / "outside" / "inner")
    held = HeldDirectory(str(tmp_path / "held"))
    with open(held.open("inner/secret"), encoding="utf-8") as file:
        assert file.read() == "held/inner"
    with pytest.raises(OSError, match=r"Not a directory|No such file|Too many levels"):
        held.open(name)
    with pytest.raises(OSError, match=r"Not a directory|No such file|Too many levels"):
        held.listed(name.rpartition("/")[0])
