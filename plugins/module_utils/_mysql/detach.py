# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Cutting the files of a copied data directory loose from the production server they were copied from.

Files that name others by absolute paths (indexes of binary logs, `.isl` files, symbolic links) would lead the server to
production's. Rewriting them is not enough: InnoDB's redo log names paths, too, and recovery opens those first. The
sandbox, in which they are not there, has it come back to what is written here.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from .._engine.links import Link, find_links, place_within, places_of, resolve_within
from .._engine.steps import Step
from .._errors import shown
from .._host.files import HeldDirectory, is_directory, is_file, read_beginning
from .._host.links import is_within, normal
from .option_file import MysqlError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from .._host.sandbox import Sandbox
    from .directory import DataDirectory

__all__ = ["SCRATCH", "Detached", "plan_detach", "refuse_reachable"]

SCRATCH = "#instant_recovery"  # directory of the data directory for temporary files: a database cannot be called so
# Of a table; what else a link may be called is no table's.
OF_TABLES = (".MYD", ".MYI", ".MAD", ".MAI", ".ibd", ".frm")
# What names production's servers, by name or by a part of it; MySQL has this in tables, which are not read then.
REPLICA = ("master.info", "relay-log.info", "multi-master.info")
REPLICA_PARTS = (("master-", ".info"), ("relay-log-", ".info"))
CERTIFICATES = (
    *("ca.pem", "ca-key.pem", "server-cert.pem", "server-key.pem", "client-cert.pem", "client-key.pem"),
    *("private_key.pem", "public_key.pem"),
)
POINTER_SIZE = 8192  # bytes of a path, at most
LARGEST_INDEX = 16 << 20
MOST_ALIASES = 100  # directories; each is a mount
MOST_TOLD = 50


@dataclass
class Detached:
    """What has to be changed, and what the copy cannot show then.

    directories: of tables' files that lie elsewhere in the tree. aliases: where the server is to see such a directory,
    as production had it. binlog: the base path of the binary logs that recovery decides by, None where the copy has
    none.
    """

    steps: list[Step] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    directories: list[str] = field(default_factory=list)
    aliases: dict[str, str] = field(default_factory=dict)
    binlog: str | None = None


def plan_detach(
    data: DataDirectory, tree: str, *, known: Mapping[str, str], sandbox: Sandbox, is_recovered: bool
) -> Detached:
    """What has to be changed in data, whose copies of other files are in tree, before a server may open it.

    known: where in tree directories are that links or `.isl` files lead to, by the paths of these below tree.
    sandbox: the server's, without aliases. is_recovered: an earlier start has run a server on this copy.
    """
    planner = _Planner(data, tree, known, sandbox)
    for step in planner.steps(is_recovered=is_recovered):
        planner.found.steps.append(step)
    return planner.found


class _Planner:
    def __init__(self, data: DataDirectory, tree: str, known: Mapping[str, str], sandbox: Sandbox) -> None:
        self._data, self._tree, self._known, self._sandbox = data, tree, known, sandbox
        self._held = HeldDirectory(data.path)
        self.found = Detached()

    def steps(self, *, is_recovered: bool) -> Iterator[Step]:
        yield from self._scratch()
        yield from self._links()
        yield from self._pointers()
        yield from self._aliases()
        yield from self._binary_logs(is_recovered=is_recovered)
        yield from self._triggers()
        yield from self._removed()

    def _path(self, name: str) -> str:
        return os.path.join(self._data.path, name)

    def _scratch(self) -> Iterator[Step]:
        if SCRATCH in self._data.directories or os.path.lexists(self._path(SCRATCH)):
            yield Step("remove", self._path(SCRATCH), "", "")
        yield Step("directory", self._path(SCRATCH), "", "")

    def _links(self) -> Iterator[Step]:
        for link in find_links(self._data.path):
            name = os.path.relpath(link.path, self._data.path)
            place = place_within(link.path, self._tree)
            if place is not None:
                self._note_directory(place)
                continue
            place = self._place(link.path, link.target)
            if place is not None:
                self._note_directory(place)
                why = f"the link led to {link.target}, where the server would have written production's own files"
                yield Step("link", link.path, f"{name} re-pointed to {place}", why, place)
                continue
            if name.endswith(OF_TABLES) or "/" not in name:
                self._warn_of_missing(name, link)
            why = "it leads out of the copy, which does not have what is there"
            yield Step("remove", link.path, f"link {name} to {link.target} removed", why)

    def _warn_of_missing(self, name: str, link: Link) -> None:
        if len(self.found.warnings) < MOST_TOLD and not name.endswith((".sock", ".pid", ".log", ".err")):
            self.found.warnings.append(
                f"{shown(name)} was a link to {shown(link.target)}, which the copy does not have: what is there cannot "
                "be read."
            )

    def _pointers(self) -> Iterator[Step]:
        """Files in which MariaDB keeps where a table made with DATA DIRECTORY is."""
        for directory in sorted(self._data.directories - {SCRATCH}):
            for name in sorted(self._held.listed(directory)[0]):
                if name.endswith(".isl"):
                    yield from self._pointer(f"{directory}/{name}")

    def _pointer(self, name: str) -> Iterator[Step]:
        with open(self._held.open(name), "rb") as file:
            target = file.read(POINTER_SIZE).decode("utf-8", "surrogateescape").strip()
        if is_within(normal(target), self._tree):
            return
        place = self._place(self._path(name), target)
        if place is None:
            table = name.removesuffix(".isl")
            self.found.warnings.append(
                f"Table {shown(table)} lies in {shown(target)}, which the copy does not have: it cannot be read."
            )
            place = self._path(f"{table}.ibd")
        elif self._is_shown(target, place):
            return
        else:
            self._note_directory(place)
        why = f"it led to {target}, where the server would have written production's own file"
        content = place.encode("utf-8", "surrogateescape")
        yield Step("write", self._path(name), f"{name} re-pointed to {place}", why, content=content)

    def _is_shown(self, target: str, place: str) -> bool:
        """Whether the server sees the copy's file where production's is: then nothing has to be rewritten.

        That is the better way, for the redo log names the path, too. Where the table was made since its last checkpoint
        recovery needs the file there, and else ends with "Cannot apply log".
        """
        directory, name = os.path.split(target)
        if name != os.path.basename(place):
            return False
        source = os.path.dirname(place)
        if self.found.aliases.get(directory) == source:
            return True
        others = tuple(self.found.aliases.items())
        if len(others) >= MOST_ALIASES or not replace(self._sandbox, aliases=others).can_show(directory):
            return False
        self.found.aliases[directory] = source
        return True

    def _aliases(self) -> Iterator[Step]:
        for path, source in self.found.aliases.items():
            why = "its own .isl files and redo log lead there, to production's own files"
            yield Step("", source, f"{path} is {source} to the server", why)

    def _place(self, path: str, target: str) -> str | None:
        """What of the tree a link or a pointer at path means, if the tree has it."""
        if not target or "\0" in target:
            return None
        directory = self._known.get(os.path.relpath(path, self._tree))
        if directory is not None:
            is_file = path.endswith((*OF_TABLES, ".isl"))
            name = os.path.join(directory, os.path.basename(target)) if is_file else directory
            return _existing(resolve_within(self._tree, name))
        if not os.path.isabs(target):
            inside = os.path.join(os.path.relpath(os.path.dirname(path), self._tree), target)
            return _existing(resolve_within(self._tree, os.path.join("/", inside)))
        return next(filter(None, map(_existing, places_of(self._tree, self._data.path, target))), None)

    def _note_directory(self, place: str) -> None:
        directory = place if is_directory(place) else os.path.dirname(place)
        if not is_within(directory, self._data.path) and directory not in self.found.directories:
            self.found.directories.append(directory)

    def _binary_logs(self, *, is_recovered: bool) -> Iterator[Step]:
        """Have the index name the copy's own logs: with absolute paths the server reads, writes and purges others."""
        logs = self._data.binlogs
        if logs is None or not logs.names:
            return
        self.found.binlog = os.path.join(logs.directory, logs.base)
        here = "." if logs.directory == self._data.path else logs.directory
        text = "".join(f"{here}/{name}\n" for name in logs.names).encode("utf-8", "surrogateescape")
        index = os.path.join(logs.directory, logs.index)
        if is_recovered or (is_file(index) and read_beginning(index, LARGEST_INDEX) == text):
            return
        why = "the server would have read, written and purged production's binary logs"
        missing = len(set(logs.listed) - set(logs.names))
        lacking = f" ({missing} that the copy does not have left out)" if missing else ""
        yield Step("write", index, f"{logs.index} names the copy's own logs{lacking}", why, content=text)

    def _content(self, name: str) -> bytes:
        with open(self._held.open(name), "rb") as file:
            return file.read(LARGEST_INDEX)

    def _triggers(self) -> Iterator[Step]:
        """Triggers on system tables, which no server makes."""
        for name in sorted(self._held.listed("mysql")[0]):
            if name.endswith((".TRG", ".TRN")):
                why = "it could undo what keeps the copy's accounts out"
                yield Step("remove", self._path(f"mysql/{name}"), f"trigger mysql/{name} removed", why)

    def _removed(self) -> Iterator[Step]:
        for name in sorted(self._data.files):
            is_of_replica = name in REPLICA or any(
                name.startswith(one) and name.endswith(end) for one, end in REPLICA_PARTS
            )
            if is_of_replica and self._content(name):  # every server has an empty one
                why = "as a replica the copy would connect to production, and end the stream of the real one"
                yield Step("remove", self._path(name), f"{name} removed", why)
            elif name == "auto.cnf":
                why = "two servers with one UUID take each other's place at their source"
                yield Step("remove", self._path(name), f"{name} removed", why)
            elif name in CERTIFICATES and not self._data.is_mariadb:
                yield Step(
                    "remove", self._path(name), f"{name} removed", "the copy would pass for production by its keys"
                )


def _existing(place: str | None) -> str | None:
    return place if place is not None and (is_file(place) or is_directory(place)) else None


def refuse_reachable(found: Detached, *, is_confined: bool) -> None:
    """Raise MysqlError where nothing keeps the server from paths that its redo log names, and this host has them."""
    if not is_confined and found.directories:
        raise MysqlError(
            "Tables of the copy lie in directories of their own, which its redo log names by production's paths, and "
            "this host cannot keep the server away from them: start the session as root, or on another host."
        )
