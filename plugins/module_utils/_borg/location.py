# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where a repository is, and which archive of it is meant: the one place that reads what callers give for it.

Borg hands a host to ssh, which would take one that begins with a dash for an option, and Borg itself would do so with a
location. So only what can be meant is let through, and Borg reads it just as it is read here.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass

from .._errors import RecoveryError

__all__ = [
    "LocationError",
    "LogPlace",
    "check_archive_name",
    "check_repository",
    "parse_archive",
    "parse_log_source",
    "split_location",
]

FORMS = "Write a path, ssh://user@host/path or user@host:path."
# Two colons within the brackets of an address are none that an archive's name follows.
ADDRESS = re.compile(r"(?:ssh://)?(?:[^@:/\[\]]*@)?\[[^\[\]/]*\]")
SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
SSH = re.compile(r"ssh://(?:([^@/]*)@)?(\[[^\]/]*\]|[^:/]*)(?::([^/]*))?(/.+)", re.DOTALL)
FILE = re.compile(r"file://[^/]*/.+", re.DOTALL)
LIKE_SCP = re.compile(r"(?:([^@/]*)@)?(\[[^\]/]*\]|[^:/]*):(?!:|//|ssh://)(.+)", re.DOTALL)
HOST = re.compile(r"[A-Za-z0-9_.][A-Za-z0-9_.-]*|\[[0-9A-Fa-f:.]+\]")
USER = re.compile(r"[A-Za-z0-9_.][A-Za-z0-9_.+-]*")
PORT = re.compile(r"[0-9]{1,5}")
IN_ARCHIVE = "archive:"
# Control characters, and what else ends a line.
CONTROLS = ("Cc", "Cs", "Zl", "Zp")


class LocationError(RecoveryError):
    """A location that cannot be meant."""


@dataclass(frozen=True)
class LogPlace:
    """Where archived logs are: `path` on the host, in the session's own archive (`is_own`), or in another `archive`.

    `archive` is REPOSITORY::NAME. Without a `path` it is the one directory of them that it has.
    """

    path: str = ""
    archive: str = ""
    is_own: bool = False


def split_location(text: str) -> tuple[str | None, str]:
    """REPOSITORY::NAME into its parts, as they are; the repository is None in a mere NAME."""
    address = ADDRESS.match(text)
    head = address[0] if address else ""
    repository, separator, name = text[len(head) :].partition("::")
    return (head + repository or None, name) if separator else (None, text)


def parse_archive(text: str, *, option: str = "archive") -> tuple[str | None, str]:
    """REPOSITORY::NAME or NAME into its parts, as split_location. Raises LocationError, which names the option."""
    repository, name = split_location(text)
    if repository is not None:
        check_repository(repository, option=option)
    return repository, check_archive_name(name, option=option)


def parse_log_source(text: str) -> LogPlace:
    """The option log_source: PATH, archive:PATH, or REPOSITORY::NAME with or without :/PATH. Raises LocationError."""
    if _has_controls(text):
        raise LocationError(f"log_source {text!r} has a control character in it: name it without.")
    repository, rest = split_location(text)
    if repository is not None:
        name, _separator, path = rest.partition(":/")
        parse_archive(f"{repository}::{name}", option="log_source")
        return LogPlace(path=_inside(path), archive=f"{repository}::{name}")
    if not text.startswith(IN_ARCHIVE):
        return LogPlace(path=text)
    path = _inside(text[len(IN_ARCHIVE) :])
    if not path:
        raise LocationError(
            f"log_source {text} names no directory: write it as archive:PATH, or leave it out to have the archived "
            "logs found."
        )
    return LogPlace(path=path, is_own=True)


def check_repository(text: str, *, option: str = "repository") -> str:
    """The location of a repository, if it can be one. Raises LocationError."""
    problem = _problem(text)
    if problem is not None:
        raise LocationError(f"{option}: {text!r} is no repository, because {problem}. {FORMS}")
    return text


def check_archive_name(name: str, *, option: str = "archive") -> str:
    """The name of an archive, or a pattern of names, if it can be one. Raises LocationError."""
    problem = None
    if not name:
        problem = "it is empty"
    elif name.startswith("-"):
        problem = "it begins with a dash, as options do"
    elif _has_controls(name):
        problem = "it has a control character in it"
    elif "/" in name:
        problem = "it has a slash in it"
    if problem is not None:
        raise LocationError(
            f"{option}: {name!r} is no archive's name, because {problem}. Write REPOSITORY::NAME, or NAME together "
            "with repository."
        )
    return name


def _problem(text: str) -> str | None:
    """Why this cannot be the location of a repository; None where it can."""
    scheme = SCHEME.match(text)
    if not text:
        return "it is empty"
    if text.startswith("-"):
        return "it begins with a dash, as options do"
    if _has_controls(text):
        return "it has a control character in it"
    if "{" in text or "}" in text:
        return "Borg takes braces for placeholders: write out what they stand for"
    if split_location(text)[0] is not None or text.endswith(":"):
        return "the name of an archive follows two colons, and is given as archive"
    if scheme and scheme[1] == "ssh":
        return _problem_of_remote(SSH.fullmatch(text), port=3)
    if scheme and scheme[1] == "file":
        return None if FILE.fullmatch(text) else "it has no path"
    if scheme:
        return f"Borg 1 knows ssh:// and file://, and not {scheme[0]}"
    if ":" in text.partition("/")[0]:
        return _problem_of_remote(LIKE_SCP.fullmatch(text))
    return "Borg takes no path that begins with two slashes" if text.startswith("//") else None


def _problem_of_remote(match: re.Match[str] | None, port: int | None = None) -> str | None:
    if match is None:
        return "it has no host, or no path"
    user, host = match[1], match[2]
    if user is not None and not USER.fullmatch(user):
        return f"{user!r} is no user's name"
    if not HOST.fullmatch(host):
        return f"{host!r} is no host's name"
    if port is not None and match[port] is not None and not PORT.fullmatch(match[port]):
        return f"{match[port]!r} is no port"
    return None


def _inside(path: str) -> str:
    """A path within an archive, without slashes in front."""
    if ".." in path.split("/"):
        raise LocationError(f"log_source: {path!r} leads out of the archive: name a directory in it.")
    return path.lstrip("/")


def _has_controls(text: str) -> bool:
    return any(unicodedata.category(character) in CONTROLS for character in text)
