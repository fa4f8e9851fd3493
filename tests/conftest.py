# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Lets the tests, and the Ansible that they run, find this checkout as phpborg.instant_recovery.

scripts/setup arranges the same for .venv; this is for a pytest from anywhere else.
A pytest that was put into the background by a shell gets back the Ctrl-C that it came to ignore: tests press it.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[1]
COLLECTIONS = CHECKOUT / ".cache" / "collections"

link = COLLECTIONS / "ansible_collections" / "phpborg" / "instant_recovery"
if not link.is_symlink():
    COLLECTIONS.parent.mkdir(mode=0o700, exist_ok=True)
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(Path("..", "..", "..", ".."))
for directory in (COLLECTIONS, CHECKOUT / "src"):
    if str(directory) not in sys.path:
        sys.path.insert(0, str(directory))
os.environ["ANSIBLE_COLLECTIONS_PATH"] = str(COLLECTIONS)
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
