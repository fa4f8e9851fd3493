# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Work that takes too long, though it waits for nobody."""

from __future__ import annotations

import itertools
import signal
import threading

import pytest
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._errors import RecoveryError
from ansible_collections.phpborg.instant_recovery.plugins.module_utils._host.deadline import deadline

LATE = RecoveryError("too late")


def test_work_without_end_ends() -> None:
    before = signal.getsignal(signal.SIGALRM)
    with pytest.raises(RecoveryError) as caught, deadline(0.1, LATE):
        for _number in itertools.count():
            pass
    assert caught.value is LATE
    assert signal.getsignal(signal.SIGALRM) == before
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_what_is_in_time_goes_on() -> None:
    with deadline(60, LATE):
        value = sum(range(10))
    assert value == 45
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0), "nothing comes later"


def test_another_thread_is_not_bounded() -> None:
    done: list[int] = []

    def work() -> None:
        with deadline(0.01, LATE):
            done.append(sum(range(100_000)))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(timeout=60)
    assert done == [4999950000]
