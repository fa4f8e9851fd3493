# Copyright (c) 2026, phpBorg contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The one check of what people give, before anything is looked at: what it says, or the one sentence that is wrong.

Ansible has no part in it: what it knows of variables and the inventory is handed in by the action session_options.
"""

from __future__ import annotations

from dataclasses import asdict
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from ..module_utils._borg.location import LogPlace, parse_archive, parse_log_source
from ..module_utils._engines.options import MISNAMED, POINTS
from ..module_utils._errors import RecoveryError
from .table import AUTO
from .values import OptionError, check_value, is_given, read_value

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping

    from .table import Options, Table

    Point = Callable[[Mapping[str, Any]], str]

__all__ = ["check_host", "check_options", "refuse_misspelt"]

SECRETS = ("borg_passphrase", "borg_passcommand", "borg_passphrase_file")
# 0 is what they are left out for.
CHOSEN_BY_ZERO = ("port", "readers")
# As difflib measures it, twice the letters in common by the letters of both: with one letter wrong, names of six or
# more are recognised, and my_archive is not taken for archive. Shorter names resemble too many others.
RESEMBLANCE = 0.83
# What modules, or people who know an engine, call options that have other names in the playbooks.
MODULES_OWN = {
    **MISNAMED,
    "timeout": "start_timeout",
    **{name: f"borg_{name}" for name in ("passphrase", "passcommand", "passphrase_file", "rsh", "remote_path")},
}


def check_options(
    table: Table,
    given: Mapping[str, Any],
    own: Mapping[str, Mapping[str, Any]] | None = None,
    points: Mapping[str, Point] = POINTS,
) -> dict[str, Any]:
    """The options of an entry point, from what is given of them by people's names. Raises RecoveryError.

    `own` is what is given of the options that only one engine knows, by engine, and `points` are the engines' checks.
    The result has `options`, and for a start also `engine_options`, by engine with what they name as `point`, and
    `refusals`: by engine the sentence that is wrong if the archive turns out to hold a database of it, or nothing.
    Of secrets nothing is looked at but whether they are given.
    """
    given = _given(given)
    options = _read(table.options, given)
    _check(table.options, options)
    _refuse_missing(table, options)
    _refuse_half_exports(table, options)
    _refuse_contradictions(given, options)
    if not table.engines:
        return {"options": options}
    options["log_place"] = asdict(parse_log_source(options["log_source"]) if "log_source" in options else LogPlace())
    of_engines = {engine: _given(values) for engine, values in (own or {}).items()}
    return {"options": options, **_of_engines(table, of_engines, options, points)}


def check_host(given: Mapping[str, Any], inventory: Collection[str], host_of_play: str) -> None:
    """Whether the start playbook's host is meant and there: where it is not, the play runs on the controller.

    It is chosen by the variables of these very names that are given to the play as a whole.
    """
    host, location = given.get("source_host"), given.get("deployment_location")
    if is_given(host) and not is_given(location):
        raise OptionError(
            f"source_host {host} is given without deployment_location: add deployment_location=remote to start the "
            "session there, or local to start it here."
        )
    if location != "remote":
        return
    if not is_given(host):
        raise OptionError("deployment_location is remote, and source_host is not given: name a host of the inventory.")
    if host not in inventory:
        names = ", ".join(sorted(inventory)) or "it has none"
        raise OptionError(
            f"source_host {host} is not in the inventory: name one of its hosts ({names}), or choose the inventory "
            "with -i."
        )
    if host != host_of_play:
        raise OptionError(
            f"source_host is {host}, and the play runs on {host_of_play}: give source_host and deployment_location by "
            "these names, with -e or in its file, and not in the inventory."
        )


def refuse_misspelt(names: Iterable[str], known: Collection[str]) -> None:
    """Refuse names of variables that nobody reads, and that resemble known ones.

    Ansible passes over them: who writes recovery_target_tiem would get the archive's last state, and take it for the
    one that was asked for. Others may be there for any reason.
    """
    meant = {name: _resembling(name, known) for name in names if name not in known}
    told = [f"{name} is unknown: did you mean {close}?" for name, close in meant.items() if close]
    if told:
        raise OptionError(f"{' '.join(told)} Mend it, or add accept_unknown=true if it is meant for something else.")


def _resembling(name: str, known: Collection[str]) -> str | None:
    called = MODULES_OWN.get(name.lower())
    close = [called] if called in known else get_close_matches(name.lower(), known, n=1, cutoff=RESEMBLANCE)
    return close[0] if close else None


def _given(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if is_given(value)}


def _read(options: Options, given: Mapping[str, Any]) -> dict[str, Any]:
    """What is given of these options, and the defaults of the others that have one. No secrets are among them."""
    plain = {name: spec for name, spec in options.items() if not spec.get("no_log")}
    read = {name: spec["default"] for name, spec in plain.items() if "default" in spec}
    read.update({name: read_value(name, given[name], spec) for name, spec in plain.items() if name in given})
    return {name: value for name, value in read.items() if value != 0 or name not in CHOSEN_BY_ZERO}


def _check(options: Options, values: Mapping[str, Any]) -> None:
    for name, value in values.items():
        check_value(name, value, options[name])


def _refuse_missing(table: Table, options: Mapping[str, Any]) -> None:
    if table.options.get("archive", {}).get("required") and "archive" not in options:
        raise OptionError(
            "archive is not given: name it as REPOSITORY::NAME, where NAME may be latest or a glob; or as NAME "
            "together with repository."
        )
    is_for_all = table.entry_point == "stop"
    unnamed = ("",) if is_for_all else ("", "all")
    if table.options.get("session_id", {}).get("required") and options.get("session_id", "") in unnamed:
        also = ", or all" if is_for_all else ""
        raise OptionError(f"session_id is not given: name a session (instant_recovery_list shows them){also}.")


def _refuse_half_exports(table: Table, options: Mapping[str, Any]) -> None:
    if table.entry_point != "export":
        return
    if "archive" not in options and options.get("session_id", "all") == "all":
        raise OptionError("There is nothing to export from: give archive, or session_id (instant_recovery_list).")
    if ("to" in options) == ("fetch_to" in options):
        raise OptionError(
            "An export goes to one place: give to, a path on the session's host, or fetch_to, a path here."
        )


def _refuse_contradictions(given: Mapping[str, Any], options: Mapping[str, Any]) -> None:
    archive, repository = options.get("archive"), options.get("repository")
    if archive is not None:
        named, _name = parse_archive(archive)
        if named is None and repository is None:
            raise OptionError(
                f"archive {archive} names no repository: write it as REPOSITORY::NAME, or give repository as well."
            )
        if named is not None and repository not in (None, named):
            raise OptionError(
                f"archive {archive} and repository {repository} name different repositories: leave one of the two out."
            )
    if len([name for name in SECRETS if name in given]) > 1:
        raise OptionError(
            "More than one of borg_passphrase, borg_passcommand and borg_passphrase_file is given: leave all but one "
            "out."
        )
    if options.get("follow_for", "0") != "0" and not options["follow"]:
        raise OptionError("follow_for is given without follow: add follow=true.")


def _of_engines(
    table: Table, own: Mapping[str, Mapping[str, Any]], options: Mapping[str, Any], points: Mapping[str, Point]
) -> dict[str, Any]:
    """What is given of each engine's own options, and what an archive of it would be refused for."""
    found: dict[str, dict[str, Any]] = {}
    refusals: dict[str, str] = {}
    for engine, known in table.engines.items():
        try:
            _refuse_others(engine, table, own, options)
            read = _read(known, own.get(engine, {}))
            found[engine] = {**read, "point": points[engine](read)}
            _check(known, read)
            refusals[engine] = ""
        except RecoveryError as error:
            refusals[engine] = str(error)
    possible = list(table.engines) if options["engine"] == AUTO else [options["engine"]]
    if all(refusals[engine] for engine in possible):
        raise OptionError(refusals[possible[0]])
    return {"engine_options": found, "refusals": refusals}


def _refuse_others(engine: str, table: Table, own: Mapping[str, Mapping[str, Any]], options: Mapping[str, Any]) -> None:
    """Refuse what is given that another engine knows, and this one does not."""
    for other, given in own.items():
        for name in given:
            if name not in table.engines[engine]:
                holder = "engine is" if options["engine"] == engine else f"archive {options['archive']} holds"
                raise OptionError(f"{name} is an option of {other}, and {holder} {engine}: leave it out.")
