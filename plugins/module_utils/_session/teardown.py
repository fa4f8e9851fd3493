# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The one way in which a session ends: stop, roll-back of a failed start, automatic stop and clean-up of orphans.

It undoes what the record claims, newest first, then looks for what a crash kept from being recorded, and at last
removes the directory. Every step starts from what is there, so it can be cut off anywhere and run again. It touches
nothing but claims, processes that bear the session's mark, and what is in the session's directory.
"""

from __future__ import annotations

import errno
import os
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from .._host.mounts import MountError, mount_at, mounts_below, unmount
from .._host.processes import Process, descendants, describe, end_family, identify, marked, send, stop_all, wait_for_end
from .._host.shared_memory import release
from .._host.trees import empty_directory
from .._host.users import processes_of, taken_by
from .audit import audit, requester
from .directory import LOCK, RECORD, RESUME
from .prometheus import write_textfile
from .record import KEEPER, LAYER, PORT, SIGNALS, brief
from .session import Session

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from .record import Claim

__all__ = ["cut_off", "drop_changes", "tear_down"]

PAUSE = 0.5  # seconds between two attempts to have a module give up
# A FUSE server ends by itself once its mount is gone: Borg then closes its repository in order.
UNMOUNTED_SERVER_ENDS = 5.0  # seconds
STACKED_MOUNTS = 20  # on one mount point, before giving up
NO_SPACE = (errno.ENOSPC, errno.EDQUOT)


def tear_down(
    session: Session,
    *,
    status: str = "stopped",
    error_message: str | None = None,
    reason: str | None = None,
    event: str = "stop",
    who: Mapping[str, str | None] | None = None,
    timeout: float = 30,
) -> list[str]:
    """End session with this status (C(stopped) or C(failed)) and return what could not be removed.

    reason is why it is ended, for its last record; event and who are for the audit log (default: whoever runs this).

    An empty list: nothing is left but the last record, with its error_message, among the ended ones. Otherwise the
    session stays, as C(stopping), and its error_message says what remains and what to do. timeout (seconds) is for the
    lock; raises SessionGoneError where the session has ended meanwhile and SessionError where the lock stays taken.
    """
    _interrupt(session, timeout)
    with session.locked(timeout=timeout):
        # An earlier attempt may have known more: that the start had failed, and why.
        ending = session.record.ending or _ending(session, status, error_message, reason)
        _note(session, status="stopping", error_message=None, ending=ending)
        with suppress(FileNotFoundError):  # nobody is going to mount the archive again: who waits for it need not
            os.unlink(session.path(RESUME))
        _give_notice(session)
        for claim in reversed(session.record.claims):
            _undo(session, claim)
        _sweep(session)
        remains = _remains(session) or empty_directory(session.directory, keep=(RECORD, f"{RECORD}.tmp", LOCK))
        if not remains:
            try:
                textfile = session.record.metrics_textfile
                session.record = session.finish(**ending)
                why = ending["error_message"] or ending["stop_reason"]
                audit(os.path.dirname(session.directory), event, session.record, who=who or requester(), reason=why)
                if textfile:
                    with suppress(OSError):  # the session has ended all the same
                        write_textfile(textfile, os.path.dirname(session.directory))
                return []
            except OSError as error:
                remains = [f"{error.filename or session.directory} ({error.strerror})"]
        _note(session, error_message=_advice(session, remains))
        return remains


def cut_off(session: Session, reason: str, *, with_mounts: bool = False) -> None:
    """End the processes that a module at work on session waits for: it gives up, and reason is its error.

    with_mounts: the servers of the session's mounts as well, where the module waits for one of them in the kernel.
    """
    with suppress(OSError):  # a full disk
        session.refuse(reason)
    _give_notice(session)
    for claim in session.record.claims:
        is_due = claim.kind == "process" or with_mounts
        if is_due and claim.part != KEEPER and claim.process:
            end_family(claim.process, claim.signals)


def _interrupt(session: Session, timeout: float) -> None:
    """Have the module that is starting the session give up, within timeout seconds.

    One that has not by then is ended: it is at work by itself, for nothing is left that it could wait for.
    """
    begun = time.monotonic()
    while session.record.status == "starting" and session.is_locked():
        waited = time.monotonic() - begun
        cut_off(session, "It is being stopped.", with_mounts=waited > timeout / 2)
        holder = session.holder()
        if waited > timeout:
            if holder is not None and holder.pid != os.getpid():
                stop_all([holder], SIGNALS)
            return
        time.sleep(PAUSE)
        session.record = Session.open(session.directory).record


def drop_changes(session: Session) -> list[str]:
    """Undo the layer's claim and those made after it, and empty the upper; return what could not be removed.

    The archive stays mounted, the port is kept, and the keeper at work. To be called under the lock.
    """
    parts = [claim.part for claim in session.record.claims]
    since_layer = session.record.claims[parts.index(LAYER) :] if LAYER in parts else []
    later = [claim for claim in since_layer if claim.part != PORT]
    _give_notice(session)
    for claim in reversed(later):
        _undo(session, claim)
        session.release_claim(claim.name)
    remains = [describe(one.process) for one in later if one.process and one.process.alive()]
    return remains or empty_directory(session.path("upper"))


def _give_notice(session: Session) -> None:
    """Tell those that want to know it that the session ends: a server that waits for one of them would not end."""
    for claim in session.record.claims:
        if claim.notice and claim.process:
            send(claim.process, claim.notice)


def _undo(session: Session, claim: Claim) -> None:
    """Undo one claim as far as possible; what remains is found out in the end."""
    process = claim.process
    if process is not None and process.pid == os.getpid():
        return  # the keeper, ending its session: it goes by itself when all is done
    if claim.kind == "mount" and _unmount_all(claim.mountpoint) and process:
        wait_for_end([process], timeout=UNMOUNTED_SERVER_ENDS)
    left = end_family(process, claim.signals) if process else []
    if claim.kind == "process" or process is None:
        # What belongs to no other claim was started under this one: children that outlived their parent, or a process
        # that nobody had the time to record.
        stop_all(_strays(session, besides=left), claim.signals)
    if not left:  # segments that a server killed with SIGKILL could not remove itself
        release(claim.shared_memory)


def _unmount_all(mountpoint: str) -> bool:
    """Whether something was mounted there and now nothing is."""
    found = False
    for _layer in range(STACKED_MOUNTS):
        if mount_at(mountpoint) is None:
            return found
        found = True
        try:
            unmount(mountpoint)
        except MountError:
            return False
    return False


def _strays(session: Session, *, besides: Collection[Process] = ()) -> list[Process]:
    """The session's processes that no claim accounts for, neither itself nor by one of its ancestors."""
    claimed = _claimed(session)
    accounted = {*besides, *claimed, *descendants(*claimed)}
    return [process for process in marked(session.directory) if process not in accounted]


def _sweep(session: Session) -> None:
    """End whatever else bears the session's mark or is mounted in its directory."""
    for mount in mounts_below(session.directory):
        _unmount_all(mount.mountpoint)
    stop_all([*marked(session.directory), *_of_own_user(session)], SIGNALS)
    # Stopping a server may have freed what hung on it.
    wait_for_end(_claimed(session), timeout=UNMOUNTED_SERVER_ENDS)
    for mount in mounts_below(session.directory):
        _unmount_all(mount.mountpoint)


def _remains(session: Session) -> list[str]:
    """What is still there, read from the system and not from what the steps reported."""
    processes = {*_claimed(session), *marked(session.directory), *_of_own_user(session)}
    found = [describe(process) for process in sorted(processes, key=lambda one: one.pid) if process.alive()]
    points = [claim.mountpoint for claim in session.record.mounts]
    claimed = [mount for mount in map(mount_at, points) if mount is not None]
    table = {mount.mount_id: mount for mount in [*mounts_below(session.directory), *claimed]}
    return found + [f"the mount {mount.mountpoint} ({mount.fstype})" for mount in table.values()]


def _of_own_user(session: Session) -> list[Process]:
    """What runs as the user that the session alone has, of which we keep a note elsewhere should the record be gone."""
    found = (identify(pid) for uid in taken_by(session.directory) for pid in processes_of(uid))
    return [process for process in found if process is not None]


def _claimed(session: Session) -> list[Process]:
    """The processes of the claims, except this one."""
    return [process for process in session.record.processes if process.pid != os.getpid()]


def _ending(session: Session, status: str, error_message: str | None, reason: str | None) -> dict[str, Any]:
    """What the last record will say. A session that had failed while it ran has failed."""
    if session.record.status == "failed":
        status, error_message = "failed", session.record.error_message
    return {"status": status, "error_message": brief(error_message), "stop_reason": reason}


def _advice(session: Session, remains: list[str]) -> str:
    return (
        f"Session {session.id} could not be removed wholly. Still there: {'; '.join(remains)}. End what uses it and "
        "stop the session again."
    )


def _note(session: Session, **fields: Any) -> None:
    """Record how far it came, unless the disk is full: then removing the session is what helps."""
    try:
        session.update(**fields)
    except OSError as error:
        if error.errno not in NO_SPACE:
            raise
