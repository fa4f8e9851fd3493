# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Parts of the collection as programs that run by themselves, when Ansible's copy of it is gone."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["PREFIX", "packed"]

PACKAGES = ("ansible_collections", "phpborg", "instant_recovery", "plugins", "module_utils")
PREFIX = ".".join(PACKAGES)


def packed(modules: Iterable[str], main: str | None = None) -> bytes:
    """A zip file that Python can import these modules of this directory from; main is what runs it by itself."""
    import zipfile  # not for the keeper itself, which is to be small

    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for depth in range(len(PACKAGES)):
            archive.writestr("/".join((*PACKAGES[: depth + 1], "__init__.py")), "")
        for name in modules:
            archive.writestr("/".join((*PACKAGES, f"{name}.py")), _source(f"{PREFIX}.{name}"))
        if main is not None:
            archive.writestr("__main__.py", main)
    return content.getvalue()


def _source(module: str) -> bytes:
    """The text of a module, which may lie in the zip file that Ansible made of ours."""
    from importlib.util import find_spec

    spec = find_spec(module)
    if spec is None or spec.loader is None or spec.origin is None:
        raise ImportError(module)
    # Both loaders that there are, of files and of zip files, have it; the abstract one does not.
    data: bytes = spec.loader.get_data(spec.origin)  # type: ignore[attr-defined]
    return data
