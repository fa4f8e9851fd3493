# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is changed in a copy before any of its code runs, as a list of steps that can be told before they are done.

They change the merged tree alone: links are replaced, never followed, not even on the way to what is changed.
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .._errors import RecoveryError
from .._host.files import open_inside, place_inside
from .._host.trees import empty_directory

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .._host.command import Account

__all__ = ["Patch", "Step", "apply_steps"]


@dataclass(frozen=True)
class Patch:
    """Bytes to write at an offset of a file."""

    path: str
    offset: int
    data: bytes


@dataclass(frozen=True)
class Step:
    """One change to the merged tree. action: a key of ACTIONS, or empty for what is only told.

    target: of a link, or a file's new name. patches: what to write where. content: of a file that is made anew. Without
    a what it is a part of the next step, and not reported.
    """

    action: str
    path: str
    what: str
    why: str
    target: str = ""
    patches: tuple[Patch, ...] = ()
    content: bytes = b""

    def as_dict(self) -> dict[str, str]:
        """Plain data for the module's result."""
        return {"what": self.what, "why": self.why}


def apply_steps(steps: Sequence[Step], account: Account) -> None:
    """Do the steps, in their order; what is made belongs to account.

    Raises RecoveryError where a link is on the way to what is to be changed: it may lead to files of this host.
    """
    for step in steps:
        try:
            _apply(step, account)
        except OSError as error:
            if error.errno not in (errno.ELOOP, errno.ENOTDIR):
                raise RecoveryError(f"{step.path} of the copy cannot be changed: {error.strerror}.") from error
            raise RecoveryError(
                f"{step.path} of the copy cannot be changed: a link is on the way to it, which is not followed. Use "
                "another archive, and find out who made this."
            ) from error


def _apply(step: Step, account: Account) -> None:
    if step.action == "patch":
        _patch(step)
    if step.action in ("patch", ""):
        return
    with place_inside(step.path) as place:
        ACTIONS[step.action](place, step)
        if step.action in MAKING and os.lstat(place).st_uid != account.uid:
            os.lchown(place, account.uid, account.gid)


def _remove(place: str, step: Step) -> None:
    if stat.S_ISDIR(os.lstat(place).st_mode):
        if remains := empty_directory(place):
            raise RecoveryError(f"{step.path} of the copy cannot be removed: {remains[0]}. Use another archive.")
        os.rmdir(place)
    else:
        os.unlink(place)


def _link(place: str, step: Step) -> None:
    if os.path.islink(place):
        os.unlink(place)
    os.symlink(step.target, place)


def _directory(place: str, _step: Step) -> None:
    if os.path.islink(place):
        os.unlink(place)
    os.mkdir(place, 0o700)


def _set_aside(place: str, step: Step) -> None:
    os.rename(place, os.path.join(os.path.dirname(place), step.target))
    _make_file(place, step)


def _rename(place: str, step: Step) -> None:
    os.rename(place, os.path.join(os.path.dirname(place), os.path.basename(step.target)))


def _write(place: str, step: Step) -> None:
    with suppress(FileNotFoundError):
        os.unlink(place)
    _make_file(place, step)


def _make_file(place: str, step: Step) -> None:
    descriptor = os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with open(descriptor, "wb") as file:
        file.write(step.content)


def _private(place: str, _step: Step) -> None:
    descriptor = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        os.fchmod(descriptor, 0o700)
    finally:
        os.close(descriptor)


def _patch(step: Step) -> None:
    for patch in step.patches:
        descriptor = open_inside(patch.path, os.O_WRONLY | os.O_NONBLOCK)
        try:
            os.pwrite(descriptor, patch.data, patch.offset)
        finally:
            os.close(descriptor)


MAKING = ("link", "directory", "set_aside", "write")  # of ACTIONS, those that leave something new
ACTIONS = {  # each with the path of its place by a descriptor; "patch" has places of its own
    "remove": _remove,
    "link": _link,
    "directory": _directory,
    "set_aside": _set_aside,
    "rename": _rename,
    "write": _write,
    "private": _private,
}
