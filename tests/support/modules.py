# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Running a module's main() in this process, with Ansible's real argument handling."""

from __future__ import annotations

import contextlib
import io
import json
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from ansible.module_utils.common import warnings
from ansible.module_utils.testing import patch_module_args

try:
    from ansible.module_utils import _internal
except ImportError:  # before ansible-core 2.19
    _internal = None

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["call"]


def call(main: Callable[[], None], *, check: bool = False, **arguments: Any) -> dict[str, Any]:
    """The module's result; failed is true in it where the module failed."""
    output = io.StringIO()
    arguments = {**arguments, "_ansible_check_mode": check, "_ansible_diff": True}
    with _host(), patch_module_args(arguments), contextlib.redirect_stdout(output), contextlib.suppress(SystemExit):
        main()
    result: dict[str, Any] = json.loads(output.getvalue())
    return result


@contextlib.contextmanager
def _host() -> Iterator[None]:
    """Look as where modules run. To Ansible a process that imported plugins is a controller, which shows warnings."""
    if not hasattr(_internal, "is_controller"):  # before ansible-core 2.19
        yield
        return
    with patch.object(_internal, "is_controller", False), patch.object(warnings, "_global_warnings", {}):
        yield
