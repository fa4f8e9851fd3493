# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Let ansible-test's own virtual environments get their packages the way that the caller's pip gets them.

``ansible-test sanity`` makes an environment for each check. It runs a pip bootstrap script in it, which it downloads
from a host of its own unless the script is in its cache, and it hides the variables ``PIP_*`` from that pip.
``ansible_test_pip.py --prepare HOME`` puts this very file into the cache and the caller's pip settings into a
configuration file, both below the home directory that ansible-test is going to run with. Run by ansible-test, it has
the interpreter's ensurepip install pip and hands that pip what ansible-test asked for (``pip==24.2``).
"""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
from configparser import RawConfigParser
from pathlib import Path
from types import SimpleNamespace

__all__ = ["bootstrap", "prepare"]


def prepare(home: Path) -> None:
    """Put the bootstrap script and pip's settings where ansible-test and its pip look for them below `home`.

    The script's name holds the pip version that the installed ansible-test wants. Should a later one keep that
    elsewhere, nothing is placed and ansible-test downloads its own script.
    """
    settings = home / ".config" / "pip" / "pip.conf"
    settings.parent.mkdir(parents=True, exist_ok=True)
    with settings.open("w", encoding="utf-8") as file:
        _pip_settings().write(file)
    try:
        from ansible_test._internal.python_requirements import get_venv_packages
    except ImportError as error:
        print(f"ansible-test will download its own pip bootstrap script: {error}", file=sys.stderr)
        return
    this_python = SimpleNamespace(version=f"{sys.version_info.major}.{sys.version_info.minor}")
    version = get_venv_packages(this_python)["pip"].replace(".", "_")
    script = home / ".ansible" / "test" / "cache" / f"get_pip_{version}.py"
    script.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(__file__, script)


def bootstrap(arguments: list[str]) -> int:
    """Install pip into this interpreter's environment, then the requirements among `arguments`; return pip's status."""
    requirements = [argument for argument in arguments if argument not in ("--no-setuptools", "--no-wheel")]
    # In a process of its own: ensurepip turns pip's configuration off for the process it runs in.
    subprocess.run([sys.executable, "-m", "ensurepip", "--default-pip"], check=True)
    return subprocess.call([sys.executable, "-m", "pip", "install", *requirements])


def _pip_settings() -> RawConfigParser:
    """What ``pip config list`` shows, one ``section.key='value'`` a line; the section ``:env:`` wins, as in pip."""
    settings = RawConfigParser()
    settings["global"] = {"cache-dir": _pip("cache", "dir").strip()}
    for line in sorted(_pip("config", "list").splitlines(), key=lambda line: line.startswith(":env:")):
        name, value = line.split("=", 1)
        section, key = name.rsplit(".", 1)
        section = "global" if section == ":env:" else section
        if not settings.has_section(section):
            settings.add_section(section)
        settings.set(section, key, ast.literal_eval(value).replace("\n", "\n    "))
    return settings


def _pip(*arguments: str) -> str:
    command = [sys.executable, "-m", "pip", *arguments]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


if __name__ == "__main__":
    if sys.argv[1] == "--prepare":
        prepare(Path(sys.argv[2]))
    else:
        sys.exit(bootstrap(sys.argv[1:]))
