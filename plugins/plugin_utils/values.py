# Copyright (c) 2026, phpBorg contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What people give for one option, taken for what it says: a survey, a file and a command line write it differently."""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from ..module_utils._borg.location import check_repository, parse_archive, parse_log_source
from ..module_utils._errors import RecoveryError
from ..module_utils._host.limits import WEIGHTS
from ..module_utils._host.sizes import parse_floor, parse_memory, parse_size
from ..module_utils._session.directory import check_name
from ..module_utils._session.duration import parse_duration

if TYPE_CHECKING:
    from collections.abc import Callable, Container

__all__ = ["OptionError", "check_value", "is_given", "read_value"]

BOOLEANS = {
    **dict.fromkeys(("true", "yes", "on", "1"), True),
    **dict.fromkeys(("false", "no", "off", "0"), False),
}
# Whole numbers, as JSON and spreadsheets may write them.
NUMBER = re.compile(r"([0-9]+)(?:\.0+)?")
PORTS = (0, *range(1024, 65536))
ANY = range(1 << 64)

# What is said of a value that an option cannot have, after the option's name and the value.
EXPLANATIONS = {
    "port": "is no port: choose a number from 1024 to 65535, or leave it out for the first free one.",
    "readers": "is no number of mounts: choose one from 1 to 16, or leave it out for one for each CPU, at most four.",
    "cpu_weight": "is no weight: choose 1 to 10000; a service of the host has 100.",
    "io_weight": "is no weight: choose 1 to 10000; a service of the host has 100.",
    "start_timeout": "is no time: write seconds, such as 3600.",
    "export_timeout": "is no time: write seconds, such as 3600.",
    "max_sessions": "is no number: choose how many sessions the host may have, or 0 for any.",
    "lines": "is no number of lines: write one such as 100.",
    "relocated": "is no mapping of directories: give what links say, and where in the archive that is, as JSON, such "
    'as {"relocated": {"/mnt/fast": "var/lib/docker/volumes/fast/_data"}}.',
    "settings": 'is no mapping of names to values: give it as JSON, such as {"settings": {"work_mem": "64MB"}}.',
    "bool": "is neither true nor false.",
    "int": "is no number: write one such as 4711.",
    "dict": "is no mapping: give it as JSON.",
    "str": "is no text: give one value, in quotes if need be.",
    "list": "is no list: give names, separated by commas.",
}
RANGES: Mapping[str, Container[int]] = {
    "port": PORTS,
    "readers": range(17),
    "cpu_weight": WEIGHTS,
    "io_weight": WEIGHTS,
    "start_timeout": ANY[1:],
    "export_timeout": ANY[1:],
}
# Where one of the choices needs words.
CHOICES = {
    "engine": "auto or one of: {others}",
    "deployment_location": "local (this host) or remote (source_host)",
    "network": "none, for a server that can call nobody, or host",
    "lock": "bypass, so that backups go on meanwhile, hold, so that nobody can take the archive away, or auto, which "
    "is bypass",
}


class OptionError(RecoveryError):
    """An option that is missing, or has a value that it cannot have."""


def is_given(value: object) -> bool:
    """Whether a value says anything: surveys send an empty answer for each question that nobody has answered."""
    return value is not None and not (isinstance(value, (str, Mapping, list, tuple)) and not value)


def read_value(name: str, value: Any, spec: Mapping[str, Any]) -> Any:
    """What a value says that an option of this specification is given. Raises RecoveryError where it says nothing."""
    return TYPES[spec["type"]](name, value)


def check_value(name: str, value: Any, spec: Mapping[str, Any]) -> None:
    """Raise RecoveryError where an option of this specification cannot have the value, as it was read."""
    choices = spec.get("choices")
    if choices and value not in choices:
        words = CHOICES.get(name, _enumerated(choices)).format(others=", ".join(choices[1:]))
        raise OptionError(f"{name} {value} is unknown: choose {words}.")
    try:
        FORMS.get(name, str)(value)
    except RecoveryError as error:
        sentence = str(error)
        raise OptionError(sentence if sentence.startswith(name) else f"{name}: {sentence}") from error


def _enumerated(choices: list[str]) -> str:
    *most, last = choices
    return f"{', '.join(most)} or {last}" if most else last


def _refused(name: str, value: object, kind: str) -> OptionError:
    return OptionError(f"{name} {value} {EXPLANATIONS.get(name, EXPLANATIONS[kind])}")


def _text(name: str, value: object) -> str:
    if isinstance(value, (Mapping, list, tuple)):
        raise _refused(name, value, "str")
    if isinstance(value, datetime.datetime):
        return value.isoformat(" ")
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)


def _number(name: str, value: object) -> int:
    found = NUMBER.fullmatch(str(value).strip())
    if isinstance(value, bool) or found is None or int(found[1]) not in RANGES.get(name, ANY):
        raise _refused(name, value, "int")
    return int(found[1])


def _boolean(name: str, value: object) -> bool:
    found = BOOLEANS.get(_text(name, value).strip().lower())
    if found is None:
        raise _refused(name, value, "bool")
    return found


def _mapping(name: str, value: Any) -> dict[str, Any]:
    """A mapping, also one in JSON: forms and command lines have nothing but texts."""
    if isinstance(value, str):
        with suppress(ValueError):
            value = json.loads(value)
    if not isinstance(value, Mapping):
        raise _refused(name, value, "dict")
    return {str(key): one for key, one in value.items()}


def _list(name: str, value: Any) -> list[str]:
    if isinstance(value, Mapping):
        raise _refused(name, value, "list")
    several = value if isinstance(value, (list, tuple)) else _text(name, value).split(",")
    return [_text(name, one).strip() for one in several]


TYPES: Mapping[str, Callable[[str, Any], Any]] = {
    "str": _text,
    "raw": _text,
    "int": _number,
    "bool": _boolean,
    "dict": _mapping,
    "list": _list,
}
# What a text has to be beyond one, by the parsers that the modules use.
FORMS: Mapping[str, Callable[[str], object]] = {
    "archive": parse_archive,
    "repository": check_repository,
    "log_source": parse_log_source,
    **dict.fromkeys(("ttl", "idle_timeout", "follow_for"), parse_duration),
    "suspend_after": lambda text: text == "auto" or parse_duration(text),
    "minimum_free": lambda text: parse_size(text, option="minimum_free"),
    "max_upper_size": lambda text: parse_size(text, option="max_upper_size"),
    "cache_size": lambda text: parse_size(text, option="cache_size"),
    "free_space_floor": parse_floor,
    "session_id": lambda text: text == "all" or check_name(text),
    "memory_max": lambda text: parse_memory(text, option="memory_max"),
}
