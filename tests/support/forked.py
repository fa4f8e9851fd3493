# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Calling a function in a process of its own, as another user if need be."""

from __future__ import annotations

import codecs
import os
import pickle
import sys
import traceback
from typing import TYPE_CHECKING, TypeVar

from ansible_collections.phpborg.instant_recovery.plugins.module_utils._host import sandbox as _sandbox

if TYPE_CHECKING:
    import pwd
    from collections.abc import Callable

__all__ = ["forked"]

# Python reads a codec's file at its first use, and another user may not enter this Python's directory.
codecs.lookup("ascii")
_sandbox._program()  # so are the sources of the sandbox's program; a module has its own copy of them

T = TypeVar("T")


def forked(function: Callable[[], T], *, user: pwd.struct_passwd | None = None) -> T:
    """What function returns when a child, as user, calls it. Raises RuntimeError with the child's traceback."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(reading)
            if user is not None:
                _become(user)
            answer: tuple[bool, object] = (True, function())
        except BaseException:
            answer = (False, traceback.format_exc())
        with os.fdopen(writing, "wb") as pipe:
            pickle.dump(answer, pipe)
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        done, value = pickle.load(pipe)
    os.waitpid(child, 0)
    if not done:
        raise RuntimeError(value)
    result: T = value
    return result


def _become(user: pwd.struct_passwd) -> None:
    os.setgroups([user.pw_gid])
    os.setgid(user.pw_gid)
    os.setuid(user.pw_uid)
    os.environ.update(HOME=user.pw_dir, USER=user.pw_name, LOGNAME=user.pw_name)
    os.chdir(user.pw_dir)
    sys.executable = "/usr/bin/python3"  # the tests' own may lie where this user cannot go
