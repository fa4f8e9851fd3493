# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a user should know about the data of a session before trusting them.

Most is known from pg_control and the run that recovers the cluster. What only a connection to each database can tell
(unlogged tables, invalid indexes, versions of collations, libraries of extensions) is asked of a few databases at once,
and for so long only.
"""

from __future__ import annotations

import json
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from .._errors import RecoveryError
from .programs import library_directory

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

__all__ = ["Facts", "Found", "look_into", "other_collation"]

MOST_DATABASES = 8  # a connection to each costs tens of milliseconds, the first of them reading its catalogs cold
AT_ONCE = 4
SECONDS = 5.0  # that a database may take; what does not answer by then is counted as not looked into
NAMED = 20  # tables or indexes by name of each database; the numbers count all
MOST_LIBRARIES = 1000  # that are looked for in one database
C_LANGUAGE = 13  # ClanguageId in pg_language.dat

# Of collations those that something depends on: each database has hundreds, and an update of the host changes all.
QUERY = f"""
with unlogged as (select oid::regclass::text as name from pg_class
                  where relpersistence = 'u' and relkind in ('r', 'm')),
     invalid as (select indexrelid::regclass::text as name from pg_index where not indisvalid),
     used as materialized (select oid, collname, collnamespace, collversion from pg_collation
                           where collprovider <> 'd' and exists (
                               select from pg_depend
                               where refclassid = 'pg_collation'::regclass and refobjid = pg_collation.oid)),
     other as (select format('%I.%I', nspname, collname) as name, collversion as recorded,
                      pg_collation_actual_version(used.oid) as actual
               from used join pg_namespace on pg_namespace.oid = collnamespace),
     library as (select distinct probin, extname
                 from pg_proc
                 left join pg_depend on classid = 'pg_proc'::regclass and objid = pg_proc.oid and deptype = 'e'
                 left join pg_extension on refclassid = 'pg_extension'::regclass and refobjid = pg_extension.oid
                 where prolang = {C_LANGUAGE} and probin is not null)
select json_build_object(
    'unlogged', (select json_agg(name order by name) from unlogged),
    'invalid', (select json_agg(name order by name) from invalid),
    'collations', (select json_agg(json_build_array(name, recorded, actual) order by name) from other
                   where recorded is distinct from actual),
    'libraries', (select json_agg(json_build_array(probin, extname)) from library))
"""


@dataclass
class Found:
    """What looking into the databases found, names as DATABASE: SCHEMA.NAME.

    libraries: {database, extension, library} of those that are missing here. collations: {database, collation,
    recorded, actual} of those whose version is another one here. not_looked_into: names of databases.
    """

    unlogged: list[str] = field(default_factory=list)
    invalid_indexes: list[str] = field(default_factory=list)
    missing_libraries: list[dict[str, str | None]] = field(default_factory=list)
    collations: list[dict[str, str | None]] = field(default_factory=list)
    not_looked_into: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Facts:
    """The result `data`; unlogged tables count only where recovery emptied them.

    unlogged_relations: their number by database, indexes and all; it has to do where nobody looked into a database.
    collations: as in Found, of the databases themselves, whose collation has no name.
    """

    checksums: bool
    last_commit: str | None
    prepared_transactions: list[str]
    unlogged_relations: Mapping[str, int]
    found: Found
    collations: Sequence[dict[str, str | None]]
    was_examined: bool
    was_recovered: bool

    def as_dict(self) -> dict[str, Any]:
        """Plain data for the module's result."""
        return {
            "checksums": self.checksums,
            "last_commit": self.last_commit,
            "prepared_transactions": self.prepared_transactions,
            "emptied_tables": [*self.found.unlogged, *self._counted()] if self.was_recovered else [],
            "invalid_indexes": self.found.invalid_indexes,
            "collations": [*self.collations, *self.found.collations],
            "missing_libraries": self.found.missing_libraries,
            "not_looked_into": self.found.not_looked_into,
        }

    def _counted(self) -> list[str]:
        return [
            f"{database}: {self.unlogged_relations[database]} (tables, indexes, sequences)"
            for database in self.found.not_looked_into
            if database in self.unlogged_relations
        ]

    def warnings(self) -> Iterator[str]:
        """A sentence for each that makes queries fail, hang or answer otherwise than production."""
        facts = self.as_dict()
        if facts["prepared_transactions"]:
            yield (
                f"Prepared transactions wait in the copy as they did in production and hold their locks: "
                f"{_listed(facts['prepared_transactions'])}. Commit them or roll them back where they are in the way."
            )
        if facts["emptied_tables"]:
            yield f"Unlogged tables are empty after recovery, as after any crash: {_listed(facts['emptied_tables'])}."
        if facts["invalid_indexes"]:
            yield f"Indexes are invalid and not used, as in production: {_listed(facts['invalid_indexes'])}."
        for collation in facts["collations"]:
            yield other_collation(**collation)
        if self.was_examined and self.found.not_looked_into:
            yield (
                f"These databases were not examined, because only the first {MOST_DATABASES} are, and those that "
                f"answer within {SECONDS:g} s: {_listed(self.found.not_looked_into)}."
            )
        for missing in facts["missing_libraries"]:
            extension = f" (extension {missing['extension']})" if missing["extension"] else ""
            yield (
                f"Database {missing['database']} has functions of {missing['library']}{extension}, which is not "
                "installed on this host: what uses them fails until it is."
            )


def look_into(databases: Sequence[str], *, ask: Callable[[str, str, float], bytes], bindir: str) -> Found:
    """Ask databases, the first of them if they are many.

    ask runs a query in a database, within so many seconds, and returns what it prints; it raises RecoveryError.
    """
    chosen = databases[:MOST_DATABASES]
    found = Found(not_looked_into=[*databases[MOST_DATABASES:]])

    def look(database: str) -> Found | None:
        try:
            return _found_in(database, ask(database, QUERY, SECONDS), bindir)
        # The server may answer with anything: what has another shape than was asked for tells nothing.
        except (RecoveryError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
            return None

    with ThreadPoolExecutor(AT_ONCE) as pool:
        for database, one in zip(chosen, pool.map(look, chosen)):
            if one is None:
                found.not_looked_into.append(database)
                continue
            found.unlogged += one.unlogged
            found.invalid_indexes += one.invalid_indexes
            found.collations += one.collations
            found.missing_libraries += one.missing_libraries
    return found


def _found_in(database: str, answer: bytes, bindir: str) -> Found:
    """What a database has answered. Raises ValueError, LookupError, TypeError or AttributeError for something else."""
    told: dict[str, Any] = json.loads(answer.decode("utf-8", "surrogateescape"))
    collations = [
        {"database": database, "collation": _text(name), "recorded": _text(recorded), "actual": _text(actual)}
        for name, recorded, actual in told["collations"] or []
    ]
    return Found(
        unlogged=_named(database, told["unlogged"]),
        invalid_indexes=_named(database, told["invalid"]),
        collations=collations,
        missing_libraries=list(_missing(database, told["libraries"] or [], bindir)),
    )


def _text(value: object) -> str | None:
    if value is None or isinstance(value, str):
        return value
    raise TypeError(f"not a text: {type(value).__name__}")


def other_collation(database: str, collation: str | None, recorded: str | None, actual: str | None) -> str:
    """What a collation of another version means; that of a database itself has no name."""
    here = f"this host has {actual or 'none'}"
    if recorded is None:
        which = f"uses the collation {collation}" if collation else "sorts text by a collation"
        said = (
            f"{which} of which no version is recorded, as another C library leaves it (musl's of an alpine image) or a "
            f"PostgreSQL that did not record versions, and {here}"
        )
    elif collation:
        said = f"uses the collation {collation} as of version {recorded}, and {here}"
    else:
        said = f"was written with collation version {recorded}, and {here}"
    return (
        f"Database {database} {said}: indexes on text may miss rows here, and sorting may differ. REINDEX in the "
        "session mends indexes."
    )


def _named(database: str, names: Sequence[str] | None) -> list[str]:
    names = names or []
    more = [f"{database}: {len(names) - NAMED} more"] if len(names) > NAMED else []
    return [*(f"{database}: {_text(name)}" for name in names[:NAMED]), *more]


def _missing(database: str, libraries: Sequence[Sequence[str | None]], bindir: str) -> Iterator[dict[str, str | None]]:
    directory = library_directory(bindir)
    for library, extension in libraries[:MOST_LIBRARIES]:
        name, owner = _text(library) or "", _text(extension)
        inside = name.replace("$libdir/", "", 1)
        # The catalogs are hostile: elsewhere on this host nothing is looked for that they name.
        if directory is None or inside.startswith("/") or ".." in inside.split("/"):
            continue
        if not any(os.path.lexists(os.path.join(directory, inside + suffix)) for suffix in ("", ".so")):
            yield {"database": database, "extension": owner, "library": name}


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
