# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The one exception that a module turns into C(fail_json), the one place that does it, and names in its sentences."""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from ansible.module_utils.basic import AnsibleModule

__all__ = ["MORE_TIME", "RecoveryError", "is_plain", "listed", "run_module", "shown", "text_shown", "warn"]

# What to do about a step of a start that was ended because it took too long.
MORE_TIME = "give it more time (start_timeout of the playbook, timeout of a module)"
# What acts on a terminal, or has it show a text in another order (Unicode's bidirectional controls).
CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")
NAMED = 5  # files that a sentence names
LONGEST = 20_000  # characters of a message: twenty names with the longest of paths

_warnings: list[str] = []


class RecoveryError(Exception):
    """Something the user can act on: what is wrong, with which value, and what to do next.

    details become further keys of the failed result (command, rc, stderr, log_tail …), so they must be plain data
    and never hold a secret.
    """

    def __init__(self, message: str, **details: Any) -> None:
        super().__init__(message)
        self.details = details


def shown(name: str) -> str:
    """A name out of an archive, for a sentence: nothing in it may act on a terminal or break a line."""
    printable = name.encode("utf-8", "backslashreplace").decode("utf-8")
    return CONTROL.sub(_escaped, printable)


def is_plain(name: str) -> bool:
    """Whether nothing in a name acts on a terminal or breaks a line."""
    return CONTROL.search(name) is None


def text_shown(value: Any) -> Any:
    """Texts of several lines, alone or in lists and dictionaries, as shown() has them: with their line breaks and tabs.

    What the archive, the server and Borg have said is in messages and their details, and Ansible prints them.
    """
    if isinstance(value, str):
        printable = value.encode("utf-8", "backslashreplace").decode("utf-8")
        return CONTROL.sub(lambda match: match[0] if match[0] in "\n\t" else _escaped(match), printable)
    if isinstance(value, dict):
        return {text_shown(key): text_shown(one) for key, one in value.items()}
    return [text_shown(one) for one in value] if isinstance(value, (list, tuple)) else value


def _escaped(match: re.Match[str]) -> str:
    number = ord(match[0])
    return f"\\x{number:02x}" if number < 256 else f"\\u{number:04x}"


def listed(names: Sequence[str], *, number: int | None = None, what: str = "more") -> str:
    """The first names for a sentence, and how many more there are, of so many in all."""
    rest = (len(names) if number is None else number) - NAMED
    return ", ".join(map(shown, names[:NAMED])) + (f" and {rest} {what}" if rest > 0 else "")


def warn(sentence: str) -> None:
    """Have the module's result say, beside what it has done, what is not as it was asked for."""
    _warnings.append(sentence)


def run_module(module: AnsibleModule, action: Callable[[], dict[str, Any]]) -> NoReturn:
    """Run action and exit with its result, to which C(elapsed) (seconds) is added where it is missing.

    A RecoveryError fails the module with its message and details; an OSError with the path and the system's reason.
    Anything else is a defect of ours and keeps its traceback.
    """
    begun = time.monotonic()
    try:
        try:
            _refuse_nul(module.params)
            result = action()
        finally:
            for sentence in _warnings:
                module.warn(_readable(sentence))
            _warnings.clear()
    except RecoveryError as error:
        module.fail_json(msg=_readable(str(error)), **text_shown(error.details))
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        module.fail_json(msg=_readable(f"{where}{error.strerror or error}"), errno=error.errno)
    for sentence in result.pop("warnings", ()):
        module.warn(_readable(sentence))
    result.setdefault("elapsed", round(time.monotonic() - begun, 3))
    module.exit_json(**result)
    raise SystemExit  # exit_json has ended the module, but has no types to say so


def _readable(message: str) -> str:
    """A message as text_shown() has it, and no longer than anybody reads: what it names may be the archive's."""
    text: str = text_shown(message)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} … (and {len(text) - LONGEST} characters more)"


def _refuse_nul(options: dict[str, Any]) -> None:
    """A NUL ends every path, name and argument of the system's, so what follows it would not count."""
    for name, value in options.items():
        if any("\0" in text for text in _texts(value)):
            raise RecoveryError(f"{name} has a NUL character in it, which nothing can have: leave it out.")


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for one in (*value, *value.values()):
            yield from _texts(one)
    elif isinstance(value, (list, tuple)):
        for one in value:
            yield from _texts(one)
