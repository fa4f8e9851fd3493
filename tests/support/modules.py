# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Running a module's main() in this process, with Ansible's real argument handling."""

from __future__ import annotations

import contextlib
import io
import json
from typing import TYPE_CHECKING, Any

from ansible.module_utils.testing import patch_module_args

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["call"]


def call(main: Callable[[], None], *, check: bool = False, **arguments: Any) -> dict[str, Any]:
    """The module's result; failed is true in it where the module failed."""
    output = io.StringIO()
    arguments = {**arguments, "_ansible_check_mode": check, "_ansible_diff": True}
    with patch_module_args(arguments), contextlib.redirect_stdout(output), contextlib.suppress(SystemExit):
        main()
    result: dict[str, Any] = json.loads(output.getvalue())
    return result
