#!/usr/bin/python
# Copyright (c) 2026, phpBorg contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: overlay_mount
short_description: Lay a copy-on-write layer over a read-only directory
version_added: 1.0.0
author: phpBorg contributors (@phpborg)
description:
  - Presents a read-only directory, such as the mount of an archive, so that it can be changed. Changes land in another
    directory, and the read-only one is never written to.
options:
  lower:
    description:
      - The read-only directory. Several are identical mounts of the same archive, which V(block) reads in parallel;
        V(overlayfs) takes the first.
      - Required with O(state=mounted).
    type: list
    elements: path
    default: []
  upper:
    description:
      - Directory for the changes, empty or not existing yet.
      - With V(block) its files are of use only to the running layer, and are gone after unmounting.
      - Required with O(state=mounted).
    type: path
  mountpoint:
    description: Directory to mount on, empty or not existing yet. Required unless O(state=remounted).
    type: path
  driver:
    description:
      - V(block) is a FUSE program of this collection. It copies blocks of 4 KiB when they are changed, so that opening
        a file for writing costs nothing. It needs no root, and a Python that has pyfuse3.
      - V(overlayfs) is the kernel's. It needs root, and copies a file whole when it is first opened for writing.
        Database servers open nearly all their files so.
      - V(auto) is V(block) where there is pyfuse3, else V(overlayfs) with a warning.
    type: str
    choices: [auto, block, overlayfs]
    default: auto
  owner:
    description:
      - User to whom, and to whose group, everything seems to belong, whatever the lower says. Only root can name
        another than itself, and lets that user in.
      - Where root starts a session whose record knows the data directory's
        O(phpborg.instant_recovery.session#module:owner_id), V(block) shows what others owned in the archive as root's,
        with its modes.
      - With V(overlayfs) it holds for the top directory; the lower must be mounted so that it shows the rest rightly.
    type: str
  cache_size:
    description:
      - How much of what was read from the lower V(block) keeps on disk beside O(upper), such as V(512M). Kept is what
        was fetched and not yet read wholly, so that no chunk of the archive is decoded again for its rest.
      - The default is V(1G), or a tenth of the free space where that is less.
    type: str
  python:
    description:
      - The Python for V(block), which has pyfuse3.
      - The default is the first that has it of the one that runs Borg, C(/usr/bin/python3) and the one that runs the
        module.
    type: path
  state:
    description:
      - V(mounted) leaves the same layer as it is, and refuses anything else that is mounted there.
      - V(unmounted) unmounts the layer and waits for its process to end. A dead one is cleaned up.
      - V(remounted) mounts the layer that the session had, after M(phpborg.instant_recovery.session) has reset it. Only
        O(session_directory) counts then.
    type: str
    choices: [mounted, unmounted, remounted]
    default: mounted
  log_directory:
    description:
      - Directory for the log of V(block), C(layer.log).
      - The default is C(log) in O(session_directory), or without a session the directory of O(upper).
    type: path
  timeout:
    description: Seconds that mounting may take.
    type: float
    default: 30
extends_documentation_fragment:
  - phpborg.instant_recovery.attributes
  - phpborg.instant_recovery.session
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
  idempotent:
    support: full
  platform:
    support: full
    platforms: linux
seealso:
  - module: phpborg.instant_recovery.borg_mount
  - module: phpborg.instant_recovery.pg_ephemeral
"""

EXAMPLES = r"""
- name: Make a mounted archive writable
  phpborg.instant_recovery.overlay_mount:
    lower: /mnt/db1
    upper: /var/tmp/db1/upper
    mountpoint: /var/tmp/db1/merged

- name: Read two mounts of it in parallel, as files of the user postgres
  phpborg.instant_recovery.overlay_mount:
    lower: [/run/db1/1, /run/db1/2]
    upper: /var/tmp/db1/upper
    mountpoint: /var/tmp/db1/merged
    driver: block
    owner: postgres

- name: Forget the changes
  phpborg.instant_recovery.overlay_mount:
    mountpoint: /var/tmp/db1/merged
    state: unmounted
"""

RETURN = r"""
mountpoint:
  description: The directory that was given.
  type: str
  returned: success
  sample: /var/tmp/db1/merged
upper:
  description: The directory of the changes; null with O(state=unmounted) unless given.
  type: str
  returned: success
  sample: /var/tmp/db1/upper
driver:
  description: The driver that was chosen; null with O(state=unmounted).
  type: str
  returned: success
  sample: block
pid:
  description: The process that serves the mount. Null for V(overlayfs), with O(state=unmounted), and in check mode.
  type: int
  returned: success
  sample: 4711
elapsed:
  description: Seconds this took.
  type: float
  returned: success
  sample: 0.31
"""

import os
import time
from contextlib import nullcontext
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ..module_utils._errors import run_module
from ..module_utils._host.mounts import mount_at
from ..module_utils._host.preflight import DRIVERS, Host, choose_driver
from ..module_utils._host.sizes import parse_size
from ..module_utils._layer.overlay import Overlay, OverlayError, remove_overlay
from ..module_utils._session.session import Session, claiming_if_given

GRACE = 60.0  # seconds beyond its time-out that mounting may take to give up by itself


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "lower": {"type": "list", "elements": "path", "default": []},
            "upper": {"type": "path"},
            "mountpoint": {"type": "path"},
            "driver": {"type": "str", "choices": list(DRIVERS), "default": "auto"},
            "owner": {"type": "str"},
            "cache_size": {"type": "str"},
            "python": {"type": "path"},
            "state": {"type": "str", "choices": list(ACTIONS), "default": "mounted"},
            "log_directory": {"type": "path"},
            "timeout": {"type": "float", "default": 30},
            "session_directory": {"type": "path"},
        },
        required_if=[
            ("state", "mounted", ["lower", "upper", "mountpoint"]),
            ("state", "unmounted", ["mountpoint"]),
            ("state", "remounted", ["session_directory"]),
        ],
        supports_check_mode=True,
    )
    run_module(module, lambda: ACTIONS[module.params["state"]](module))


def _mount(module: AnsibleModule) -> dict[str, Any]:
    begun = time.monotonic()
    overlay, warnings = _overlay(module.params)
    for warning in warnings:
        module.warn(warning)
    before = overlay.is_mounted()
    pid = None
    if not before and module.check_mode:
        overlay.check()
    elif not before:
        with claiming_if_given(module.params["session_directory"]) as session:
            with session.within(overlay.timeout + GRACE) if session else nullcontext():
                process = overlay.mount(session)
            pid = process.pid if process is not None else None
            if session is not None:
                session.update(
                    driver=overlay.driver, overlay_upper_dir=overlay.upper, overlay_merged_dir=overlay.mountpoint
                )
                session.remember("overlay_mount", {**module.params, "driver": overlay.driver, "python": overlay.python})
                session.timing("overlay_mount", time.monotonic() - begun)
    else:
        with claiming_if_given(module.params["session_directory"]) as session:
            pid = overlay.pid(session)
    return _result(overlay.mountpoint, before=before, after=True, driver=overlay.driver, upper=overlay.upper, pid=pid)


def _remount(module: AnsibleModule) -> dict[str, Any]:
    module.params.update(Session.open(module.params["session_directory"]).remembered("overlay_mount"))
    gone = [lower for lower in module.params["lower"] if mount_at(lower) is None]
    if gone:
        raise OverlayError(f"The archive is not mounted at {', '.join(gone)}. Stop the session and start another one.")
    return _mount(module)


def _unmount(module: AnsibleModule) -> dict[str, Any]:
    mountpoint = module.params["mountpoint"]
    if module.check_mode:
        before = mount_at(mountpoint) is not None
    else:
        with claiming_if_given(module.params["session_directory"]) as session:
            before = remove_overlay(mountpoint, session)
    return _result(mountpoint, before=before, after=False, upper=module.params["upper"])


def _overlay(options: dict[str, Any]) -> tuple[Overlay, tuple[str, ...]]:
    """The layer that is asked for, and what the user should know about the driver."""
    driver, python, warnings = _driver(options)
    session = options["session_directory"]
    logs = options["log_directory"] or (os.path.join(session, "log") if session else os.path.dirname(options["upper"]))
    overlay = Overlay(
        driver=driver,
        lower=tuple(options["lower"]),
        upper=options["upper"],
        mountpoint=options["mountpoint"],
        owner=options["owner"],
        cache_size=None if options["cache_size"] is None else parse_size(options["cache_size"], option="cache_size"),
        python=python,
        log=os.path.join(logs, "layer.log"),
        timeout=options["timeout"],
    )
    return overlay, warnings


def _driver(options: dict[str, Any]) -> tuple[str, str | None, tuple[str, ...]]:
    """The driver, a Python for it, and warnings. The host is looked at only for what is not given."""
    if options["driver"] == "block" and options["python"]:
        return "block", options["python"], ()
    host = Host.look()
    driver, problem, warnings = choose_driver(host, options["driver"])
    if driver is None:
        raise OverlayError(f"{problem.what}: {problem.remedy}." if problem else "No driver is to be had.")
    return driver, options["python"] or host.python, warnings


def _result(
    mountpoint: str,
    *,
    before: bool,
    after: bool,
    driver: str | None = None,
    upper: str | None = None,
    pid: int | None = None,
) -> dict[str, Any]:
    return {
        "changed": before != after,
        "mountpoint": mountpoint,
        "upper": upper,
        "driver": driver,
        "pid": pid,
        "diff": {"before": {"mounted": before}, "after": {"mounted": after}},
    }


ACTIONS = {"mounted": _mount, "unmounted": _unmount, "remounted": _remount}


if __name__ == "__main__":
    main()
