# Copyright (c) 2026, phpBorg contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Declared repositories, what Borg lists of them, and the sources that an inventory has as hosts.

Ansible has no part in it: what it knows of vaults, templates and the inventory is handed in by the inventory plugin.
"""

from __future__ import annotations

import base64
import os
import re
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from ..module_utils._borg.repository import ARGUMENTS, Archive, BorgError, Repository
from ..module_utils._engines.contents import find_databases
from ..module_utils._engines.options import ROLES
from ..module_utils._errors import MORE_TIME, RecoveryError, listed, shown
from ..module_utils._host.deadline import deadline
from ..module_utils._host.limits import own_memory
from .series import TEMPLATE, Series, compile_pattern, group
from .table import AUTO
from .values import OptionError, check_value, is_given, read_value
from .verification_hosts import VerificationHost, assign, read_verification_host

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from .verification_hosts import Inventory

__all__ = [
    "Declared",
    "Listing",
    "Source",
    "Vault",
    "find_sources",
    "list_repository",
    "place_sources",
    "plain_sentence",
    "read_repositories",
    "refuse_errors",
    "refuse_unknown",
    "unlisted",
]

SECRETS = ("borg_passphrase", "borg_passphrase_file", "borg_passphrase_env", "borg_passcommand")
# What a repository says, or the whole file for all of its repositories.
COMMON = ("verification_host", "segregated", "detect_engine", "timeout")
PASSED_ON = ("borg_rsh", "borg_remote_path", "accept_unencrypted", "accept_relocated")
NAME = re.compile(r"[A-Za-z0-9_.-]{1,60}")
# Of a text that can stand in an expression as it is: in it, nothing ends the text, or the expression.
PLAIN = re.compile(r"[^'\\\\{}\n\r]*")
NEWLINE = "'%c' % 10"  # in an expression
WHOLE = re.compile(r"\s*\{\{.*\}\}\s*", re.DOTALL)
# The series of a repository of which nothing else is known.
ALL = "all"
TOLD = 5  # sentences of an error that names several sources


@dataclass(frozen=True)
class Vault:
    """What Ansible alone knows: whether a value is encrypted, what a template comes to, and how text becomes one."""

    is_encrypted: Callable[[Any], bool]
    reveal: Callable[[Any], Any]
    template: Callable[[str], Any]
    directory: str  # of the inventory file


@dataclass(frozen=True)
class Declared:
    """A repository as the inventory file declares it.

    `options` are checked, by the file's names. `secret` is how it is opened here, as options of Repository, and
    `secret_variable` what opens it in a play: an expression or an encrypted text, never the secret itself.
    """

    name: str
    options: Mapping[str, Any]
    verification_host: VerificationHost
    pattern: re.Pattern[str] | None = None
    secret: Mapping[str, Any] = field(default_factory=dict, repr=False)
    secret_variable: Any = field(default=None, repr=False)

    @property
    def location(self) -> str:
        """Where it is, as Borg on this host writes it."""
        return str(self.options["repository"])

    @property
    def repository(self) -> Repository:
        """The repository, to be opened on this host, without its lock."""
        defaults = {name: spec.get("default") for name, spec in ARGUMENTS.items()}
        own = {name.removeprefix("borg_"): self.options.get(name, defaults.get(name)) for name in PASSED_ON}
        given = {"archive": None, "repository": self.location, "timeout": self.options["timeout"]}
        return Repository.from_options({**defaults, **own, **given, **self.secret})


@dataclass
class Listing:
    """What a repository holds: its archives, oldest first, and by an archive's id the engines of its databases."""

    archives: list[Archive]
    engines: dict[str, list[str]] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Plain data for a cache."""
        return {"archives": [archive.as_dict() for archive in self.archives], "engines": self.engines}

    @classmethod
    def from_dict(cls, cached: Any) -> Listing | None:
        """A listing out of a cache; None where that has another form."""
        try:
            return cls([Archive(**one) for one in cached["archives"]], dict(cached["engines"]))
        except (KeyError, TypeError, ValueError):
            return None


@dataclass(frozen=True)
class Source:
    """One host of the inventory: a series of archives, or what is known of one that cannot be looked at.

    `candidates` are hosts to verify it, in order. `error` is why it cannot be verified, and then there are none.
    """

    declared: Declared
    name: str
    series: Series | None = None
    engines: tuple[str, ...] = ()
    candidates: tuple[str, ...] = ()
    error: str = ""

    @property
    def host(self) -> str:
        """The name in the inventory, which no machine has."""
        return f"{self.name}@{self.declared.name}"

    @property
    def machines(self) -> tuple[str, ...]:
        """Names of the machines that made its archives, as they called themselves."""
        return self.series.machines if self.series else ()

    def groups(self) -> list[str]:
        """Names of the groups, before characters are replaced that a group's name cannot have."""
        kinds = {"machine": self.machines, "engine": self.engines, "verification_host": self.candidates[:1]}
        several = [f"borg_{kind}_{name}" for kind, names in kinds.items() for name in names]
        return ["borg_series", f"borg_repository_{self.declared.name}", *several] + ["borg_error"] * bool(self.error)

    def variables(self) -> dict[str, Any]:
        """All variables but those of the connection."""
        archives = self.series.archives if self.series else ()
        told = {
            "repository": self.declared.location,
            "repository_name": self.declared.name,
            "series": self.name,
            "glob": self.series.glob if self.series else None,
            "machines": list(self.machines),
            "engines": list(self.engines),
            "archives": len(archives),
            "newest": _told(archives[-1]) if archives else None,
            "oldest": _told(archives[0]) if archives else None,
            "error": plain_sentence(self.error) or None,
        }
        where = {
            "instant_recovery_verification_host": self.candidates[0] if self.candidates else None,
            "instant_recovery_verification_candidates": list(self.candidates),
        }
        return {"instant_recovery_source": told, **where, **self._of_start(), **self.declared.options.get("vars", {})}

    def _of_start(self) -> dict[str, Any]:
        """What a start of the newest archive needs, by the names of the role session."""
        options = self.declared.options
        values = {name: options[name] for name in PASSED_ON if options.get(name)}
        values["repository"] = self.declared.location
        if self.series:
            values["archive"] = self.series.newest.name
        if len(self.engines) == 1 and self.engines[0] in ROLES:
            values["engine"] = self.engines[0]
        if self.declared.secret_variable is not None and not _has_secret(options.get("vars", {})):
            values["borg_passphrase"] = self.declared.secret_variable
        return {f"session_{name}": value for name, value in values.items()}


def refuse_unknown(given: Iterable[Any], known: Iterable[str], *, where: str) -> None:
    """Raise OptionError for a key that nobody reads: who writes segregatd would get what was to be refused."""
    names = sorted(known)
    for key in map(str, given):
        if key not in names:
            close = get_close_matches(key, names, n=1)
            remedy = f"did you mean {close[0]}?" if close else f"choose one of {', '.join(names)}."
            raise OptionError(f"{shown(key)} is unknown in {where}: {remedy}")


def read_repositories(config: Mapping[str, Any], spec: Mapping[str, Any], vault: Vault) -> list[Declared]:
    """The repositories that an inventory file declares. Raises RecoveryError.

    `spec` has what an entry may say, and what is said for all of them in COMMON, as the plugin documents it.
    """
    entries = config.get("repositories")
    if not isinstance(entries, list) or not entries or not all(isinstance(entry, Mapping) for entry in entries):
        raise OptionError("repositories is no list of repositories: give each its name and its repository.")
    common = {name: config[name] for name in COMMON if is_given(config.get(name))}
    declared: dict[str, Declared] = {}
    for number, entry in enumerate(entries, start=1):
        name = str(entry.get("name") or "")
        if not NAME.fullmatch(name) or name in declared:
            raise OptionError(
                f"repository {number} of repositories has the name {name!r}: give each a name of its own, of letters, "
                "digits, dots, dashes and underscores."
            )
        try:
            declared[name] = _read(name, {**common, **entry}, spec, vault)
        except RecoveryError as error:
            raise OptionError(f"repository {name}: {error}") from error
    return list(declared.values())


def _read(name: str, entry: Mapping[str, Any], spec: Mapping[str, Any], vault: Vault) -> Declared:
    refuse_unknown(entry, spec, where=f"repository {name}")
    given = {key: value for key, value in entry.items() if is_given(value)}
    options = {key: one["default"] for key, one in spec.items() if "default" in one}
    for key, value in given.items():
        if spec[key]["type"] != "raw":
            options[key] = read_value(key, value, spec[key])
            check_value(key, options[key], spec[key])
    if "repository" not in options:
        raise OptionError("repository is not given: write a path, ssh://user@host/path or user@host:path.")
    if "vars" in given:
        options["vars"] = given["vars"]  # with its templates
        refused = [one for one in options["vars"] if not str(one).isidentifier()]
        if refused:
            raise OptionError(
                f"vars has {refused[0]!r}, which is no variable's name: use letters, digits and underscores."
            )
    where = read_verification_host(given.get("verification_host", spec["verification_host"]["default"]))
    if where.kind == "source" and options["segregated"]:
        raise OptionError("verification_host is source, and segregated is true: name other hosts than the source.")
    pattern = compile_pattern(options["series"]) if "series" in options else None
    secret, variable = _secret(given, vault)
    return Declared(name, options, where, pattern, secret, variable)


def _secret(given: Mapping[str, Any], vault: Vault) -> tuple[dict[str, Any], Any]:
    """How the repository is opened here, and the variable's value that opens it in a play."""
    named = [name for name in SECRETS if name in given]
    if len(named) > 1:
        raise OptionError(f"{' and '.join(named)} are given: leave all but one out.")
    if not named:
        return {}, None
    value = given[named[0]]
    if named[0] == "borg_passphrase":
        return _passphrase(value, vault)
    value = str(value)
    if named[0] == "borg_passphrase_file":
        path = os.path.join(vault.directory, os.path.expanduser(value))
        read = f"lookup('ansible.builtin.file', {_literal(path)}, rstrip=False).rstrip({NEWLINE})"
        return {"passphrase_file": path}, vault.template(f"{{{{ {read} }}}}")
    if named[0] == "borg_passcommand":
        command = _literal(shlex.join(_words(value)))
        return {"passcommand": value}, vault.template(f"{{{{ lookup('ansible.builtin.pipe', {command}) }}}}")
    if value not in os.environ:
        raise OptionError(f"borg_passphrase_env names {value}, which is not set in Ansible's environment: set it.")
    return {"passphrase": os.environ[value]}, vault.template(
        f"{{{{ lookup('ansible.builtin.env', {_literal(value)}) }}}}"
    )


def _passphrase(value: Any, vault: Vault) -> tuple[dict[str, Any], Any]:
    if vault.is_encrypted(value):
        return {"passphrase": str(value)}, value
    if not isinstance(value, str) or not WHOLE.fullmatch(value):
        raise OptionError(
            "borg_passphrase is in clear: encrypt it (ansible-vault encrypt_string), name a variable of a vault in "
            "double braces, or give borg_passphrase_file, borg_passphrase_env or borg_passcommand."
        )
    return {"passphrase": str(vault.reveal(value))}, value


def _words(command: str) -> list[str]:
    try:
        return shlex.split(command)
    except ValueError as error:
        raise OptionError("borg_passcommand has a quote without an end: correct it.") from error


def _literal(text: str) -> str:
    """A text in an expression. Ansible doubles the backslashes in one, so that there is no escape for what ends it."""
    if PLAIN.fullmatch(text):
        return f"'{text}'"
    return f"('{base64.b64encode(text.encode('utf-8', 'surrogateescape')).decode()}' | ansible.builtin.b64decode)"


def list_repository(declared: Declared) -> Listing:
    """What Borg lists of the repository, and who made each archive. Raises BorgError."""
    return Listing(declared.repository.list_archives(origins=True))


def find_sources(declared: Declared, listing: Listing) -> tuple[list[Source], list[str]]:
    """The sources of a listed repository, and sentences about archives that are in none.

    Engines that are looked for are added to the listing. A source that is expected, and has no archive, is there too.
    """
    found = group(listing.archives, pattern=declared.pattern, exclude=declared.options.get("exclude", ()))
    told = list(found.refused)
    if found.unmatched:
        told.append(
            f"{len(found.unmatched)} archives match not what series says, and are in no source: "
            f"{listed(found.unmatched)}. Extend series, or add them to exclude."
        )
    sources = []
    for series in found.series:
        engines, problem = _engines(declared, series, listing)
        told += [problem] if problem else []
        sources.append(Source(declared, series.name, series, engines))
    there = {source.name for source in sources}
    expected = declared.options.get("expected", []) or ([] if sources else [ALL])
    sources += [Source(declared, name) for name in expected if name not in there]
    return sources, [f"repository {declared.name}: {sentence}" for sentence in told]


def unlisted(declared: Declared, error: str) -> list[Source]:
    """The sources of a repository that could not be listed: those that are expected, or one for all of them."""
    return [Source(declared, name, error=error) for name in declared.options.get("expected", []) or [ALL]]


def _engines(declared: Declared, series: Series, listing: Listing) -> tuple[tuple[str, ...], str]:
    """The engines of a series, as declared or as its newest archive shows, and what went wrong with the look."""
    if declared.options["engine"] != AUTO:
        return (declared.options["engine"],), ""
    if not declared.options["detect_engine"]:
        return (), ""
    identifier = series.newest.id
    if identifier not in listing.engines:
        try:
            listing.engines[identifier] = _look(declared, series.newest.name)
        except RecoveryError as error:
            return (), f"the engine of {series.name} is not known: {error}"
    return tuple(listing.engines[identifier]), ""


def _look(declared: Declared, archive: str) -> list[str]:
    """The engines of the databases that an archive lists; of logical dumps nothing is told."""
    repository, timeout = declared.repository, declared.options["timeout"]
    late = BorgError(f"The look into archive {archive} did not end within {timeout:g} s: {MORE_TIME}.")
    large = BorgError(f"Archive {archive} has more to tell than half of this host's memory holds: declare its engine.")
    lost: dict[str, BorgError] = {}
    with deadline(timeout, late), own_memory(large):
        databases, _catalogue = find_databases(
            repository.list_items(archive),
            read=lambda items: repository.read_what_is_left(archive, items, lost),
            begin=lambda _items, _size: {},
        )
    return sorted({database.engine for database in databases})


def place_sources(sources: Sequence[Source], inventory: Inventory) -> list[Source]:
    """The sources with the hosts that verify them; those for which there is no host have an error that says why."""
    candidates, errors = {}, {}
    for source in sources:
        if source.error:
            continue
        declared = source.declared
        try:
            if not source.machines and declared.verification_host.kind == "source" and not source.series:
                continue  # there is nothing to be verified, and no machine that is known
            candidates[source.host] = declared.verification_host.candidates(
                source.machines, inventory, segregated=declared.options["segregated"] and source.series is not None
            )
        except RecoveryError as error:
            errors[source.host] = str(error)
    ordered = assign(candidates)
    return [
        replace(source, candidates=tuple(ordered.get(source.host, ())), error=errors.get(source.host, source.error))
        for source in sources
    ]


def refuse_errors(sources: Sequence[Source]) -> None:
    """Raise OptionError where sources cannot be verified, with the reasons of the first."""
    reasons: dict[str, list[str]] = {}
    for source in sources:
        if source.error:
            reasons.setdefault(source.error, []).append(source.host)
    if reasons:
        told = [f"{listed(hosts)}: {reason}" for reason, hosts in list(reasons.items())[:TOLD]]
        more = f" And {len(reasons) - TOLD} more reasons." if len(reasons) > TOLD else ""
        raise OptionError(
            f"Sources cannot be verified, and on_error is fail. {' '.join(told)}{more} With on_error=warn they are "
            "hosts with an error, and the others are there as well."
        )


def plain_sentence(text: str) -> str:
    """A sentence that acts on no terminal and is no template, wherever a variable's value is taken for one."""
    return TEMPLATE.sub("{ ", shown(text))


def _told(archive: Archive) -> dict[str, str]:
    return {"name": archive.name, "id": archive.id, "time": archive.time}


def _has_secret(variables: Mapping[str, Any]) -> bool:
    """Whether what is declared for plays says itself how the repository is opened there."""
    names = ("borg_passphrase", "borg_passcommand", "borg_passphrase_file")
    return any(name in variables or f"session_{name}" in variables for name in names)
