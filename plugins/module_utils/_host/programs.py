# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Parts of the collection as programs that run by themselves, when Ansible's copy of it is gone."""

from __future__ import annotations

import io
import marshal
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import ModuleType

__all__ = ["PREFIX", "packed"]

PREFIX = __name__.rpartition("._host.")[0]


def packed(*rooms: str, main: str | None = None, compiled: bool = False) -> bytes:
    """A zip file that Python can import the loaded modules of these rooms from; main is what runs it by itself.

    compiled: for what this very Python is to run, often: to compile it each time would take half of its start.

    A room is a module of module_utils, or a directory of modules: `_errors`, `_host/confined`. Whoever needs a program
    imports it, and so Ansible ships all that it consists of.
    """
    import zipfile  # not for the keeper itself, which is to be small
    from importlib.util import MAGIC_NUMBER

    as_it_is = MAGIC_NUMBER + (1).to_bytes(4, "little") + bytes(8)  # PEP 552: whatever the source may be
    names = [f"{PREFIX}.{room.replace('/', '.')}" for room in rooms]
    modules = {
        name: module
        for name, module in sorted(sys.modules.items())
        if any(name == room or name.startswith(f"{room}.") for room in names) and _is_file(module)
    }
    packages = {
        ".".join(parts[:depth]) for parts in (name.split(".") for name in modules) for depth in range(1, len(parts))
    }
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for package in sorted(packages):
            archive.writestr(f"{package.replace('.', '/')}/__init__.py", "")
        for name, module in modules.items():
            path, source = f"{name.replace('.', '/')}.py", _source(module)
            if compiled:
                code = marshal.dumps(compile(source, path, "exec", dont_inherit=True))
                archive.writestr(f"{path}c", as_it_is + code)
            else:
                archive.writestr(path, source)
        if main is not None:
            archive.writestr("__main__.py", main)
    return content.getvalue()


def _is_file(module: ModuleType) -> bool:
    spec = module.__spec__
    return spec is not None and spec.origin is not None and spec.submodule_search_locations is None


def _source(module: ModuleType) -> str:
    """The text of a module, which may lie in the zip file that Ansible made of ours."""
    spec = module.__spec__
    if spec is None or spec.loader is None:
        raise ImportError(module.__name__)
    # Both loaders that there are, of files and of zip files, have it; the abstract one does not.
    source: str = spec.loader.get_source(module.__name__)  # type: ignore[attr-defined]
    return source
