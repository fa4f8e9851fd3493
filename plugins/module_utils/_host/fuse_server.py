# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Programs of ours that serve a FUSE mount: waiting until they do, and ending them together with the mount."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from .mounts import is_responding, mount_at, unmount, wait_until
from .processes import Process, stop_all, wait_for_end

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

__all__ = ["await_servers", "end_servers"]


def await_servers(servers: Mapping[str, Process], *, timeout: float) -> list[str]:
    """Wait until each mount point has its mount and each mount answers; returns the mount points of those that do not.

    servers are the processes that are to serve, by mount point. timeout (seconds) is for mounting, and again for the
    answers. When one of the processes ends, nothing more is waited for.
    """
    wait_until(lambda: all(map(mount_at, servers)), timeout=timeout, processes=list(servers.values()))
    if not all(process.alive() for process in servers.values()):
        return [point for point, process in servers.items() if not process.alive()]
    with ThreadPoolExecutor() as pool:
        answers = list(pool.map(lambda point: _answers(point, timeout), servers))
    return [point for point, answer in zip(servers, answers) if not answer]


def end_servers(
    mountpoints: Sequence[str],
    processes: Iterable[Process],
    signals: Sequence[tuple[str, float]],
    *,
    ends_within: float = 0.0,
) -> list[Process]:
    """Unmount, and end the processes that served: by themselves in so many seconds, then by signals.

    Returns those that are still there. Raises MountError for what cannot be unmounted.
    """
    for point in mountpoints:
        unmount(point)
    left = stop_all(wait_for_end(processes, timeout=ends_within), signals)
    for point in mountpoints:  # one may have mounted just before it ended
        unmount(point)
    return left


def _answers(mountpoint: str, timeout: float) -> bool:
    return mount_at(mountpoint) is not None and is_responding(mountpoint, timeout=timeout)
