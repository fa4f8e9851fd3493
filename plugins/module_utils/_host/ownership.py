# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who, beside root and us, could exchange what is at a path: a directory is as safe as every directory above it."""

from __future__ import annotations

import grp
import os
import pwd
import stat
from contextlib import suppress

from .._errors import RecoveryError

__all__ = ["exposure", "open_directory", "user_name"]

MOST_LINKS = 40  # on the way to a directory, as many as the kernel follows
WALKING = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
ACCESS_LIST = "system.posix_acl_access"


def exposure(path: str) -> str | None:
    """Why others could exchange the directory at path or what will be in it, in a clause; None where nobody can.

    path has no links in it (realpath). As far as it exists, all of it has to be root's or ours. Where others may write,
    the directory has to be sticky, as /tmp is, and cannot be path itself.
    """
    for place in _from_the_top(path):
        try:
            status = os.lstat(place)
        except OSError:
            return None  # what is not there nobody can exchange, and what is closed to us cannot be used anyway
        if stat.S_ISLNK(status.st_mode):
            return f"{place} is a link"
        if status.st_uid not in (0, os.geteuid()):
            return f"{place} belongs to {user_name(status.st_uid)}, who could exchange what is in it"
        if _others_write(place, status) and (place == path or not status.st_mode & stat.S_ISVTX):
            return f"{place} can be written by other users"
    return None


def open_directory(path: str) -> int:
    """A descriptor (O_PATH) of the directory at path, to which no link of somebody else's leads.

    It may belong to a service, as a collector's directory does: its owner can only give away what is the owner's.
    Raises OSError, and RecoveryError, with a clause, where others may write to one on the way that is not sticky.
    """
    names = [name for name in os.path.abspath(path).split("/") if name]
    links = 0
    place = os.open("/", WALKING)
    try:
        while names:
            _refuse_shared(place)
            name = names.pop(0)
            status = os.stat(name, dir_fd=place, follow_symlinks=False)
            if not stat.S_ISLNK(status.st_mode):
                place = _step(place, os.open(name, WALKING, dir_fd=place))
                continue
            links += 1
            if links > MOST_LINKS or not _is_trusted_link(place, status):
                raise RecoveryError(f"{_name_of(place)}/{name} is a link that is neither root's nor ours")
            target = os.readlink(name, dir_fd=place)
            if target.startswith("/"):
                place = _step(place, os.open("/", WALKING))
            names[:0] = [part for part in target.split("/") if part]
        _refuse_shared(place)
    except BaseException:
        os.close(place)
        raise
    return place


def user_name(uid: int) -> str:
    """The name of a user, for messages."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid {uid}"


def _step(place: int, following: int) -> int:
    os.close(place)
    return following


def _from_the_top(path: str) -> list[str]:
    names = [name for name in path.split("/") if name]
    return ["/", *(f"/{'/'.join(names[: depth + 1])}" for depth in range(len(names)))]


def _refuse_shared(place: int) -> None:
    status = os.fstat(place)
    if _others_write(f"/proc/self/fd/{place}", status) and not status.st_mode & stat.S_ISVTX:
        raise RecoveryError(f"{_name_of(place)} can be written by other users")


def _is_trusted_link(place: int, link: os.stat_result) -> bool:
    return {os.fstat(place).st_uid, link.st_uid} <= {0, os.geteuid()}


def _name_of(place: int) -> str:
    return os.readlink(f"/proc/self/fd/{place}").rstrip("/")


def _others_write(place: str, status: os.stat_result) -> bool:
    """Whether users other than root, us and the owner can write to a directory."""
    if status.st_mode & stat.S_IWOTH:
        return True
    if not status.st_mode & stat.S_IWGRP:
        return False  # for an access list this is the most that it can grant
    with suppress(OSError):
        if ACCESS_LIST in os.listxattr(place):
            return True
    return not _is_private(status.st_gid, {0, os.geteuid(), status.st_uid})


def _is_private(gid: int, users: set[int]) -> bool:
    """Whether a group is that of one of these users alone, as distributions make one for each user."""
    try:
        group = grp.getgrgid(gid)
        if group.gr_name not in {pwd.getpwuid(uid).pw_name for uid in users}:
            return False
        members = {pwd.getpwnam(name).pw_uid for name in group.gr_mem}
    except KeyError:
        return False
    return members | {entry.pw_uid for entry in pwd.getpwall() if entry.pw_gid == gid} <= users
