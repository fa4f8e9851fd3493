# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Borg's command line: one repository, what it holds, what its files contain, and what its complaints mean.

Made for borg 1.2 and 1.4. Why borg failed is decided by the identifiers in its JSON log, which are part of its
interface (docs/internals/frontends), never by wording; its exit status says little (2 for everything, by default).
"""

from __future__ import annotations

import itertools
import json
import os
import posixpath
import re
import shlex
import shutil
import signal
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta, timezone
from fnmatch import fnmatchcase
from functools import cached_property
from typing import IO, Any, TypeVar

from .._errors import MORE_TIME, RecoveryError, shown
from .._host.command import (
    Bounds,
    CommandError,
    OutputError,
    end_with_caller,
    environment,
    find_program,
    run,
    run_bytes,
)
from .._host.compressed import Beginning, beginning, compressed_size
from .._host.limits import bounds_of_borg, half_of_memory
from .._host.links import LONGEST_PATH
from .._host.processes import PIPE_HOLDS, secret_pipe
from .items import Item
from .location import check_archive_name, check_repository, parse_archive
from .names import Listed, permissions_of

__all__ = [
    "ARGUMENTS",
    "Archive",
    "BorgError",
    "Repository",
    "diagnose",
    "last_words",
    "parse_archives",
    "parse_item",
    "parse_log",
    "plain_path",
    "resolve_archive",
]

# The options of doc_fragments/borg.py.
ARGUMENTS: dict[str, dict[str, Any]] = {
    "repository": {"type": "str"},
    "passphrase": {"type": "str", "no_log": True},
    "passcommand": {"type": "str", "no_log": True},
    "passphrase_file": {"type": "path", "no_log": False},
    "rsh": {"type": "str"},
    "remote_path": {"type": "str"},
    "lock": {"type": "str", "choices": ["auto", "hold", "bypass"], "default": "auto"},
    "bypass_lock": {"type": "bool"},
    "accept_unencrypted": {"type": "bool", "default": False},
    "accept_relocated": {"type": "bool", "default": False},
    "timeout": {"type": "float", "default": 1800},
}
# Of which one at most may be given.
SECRETS = ("passphrase", "passcommand", "passphrase_file")


ItemT = TypeVar("ItemT", Item, Listed)


class BorgError(RecoveryError):
    """borg failed, or was asked for something that the repository does not have. `msgid` is borg's own identifier."""

    def __init__(self, message: str, *, msgid: str | None = None, **details: Any) -> None:
        super().__init__(message, **details)
        self.msgid = msgid


class ContentError(BorgError):
    """Of some files, borg did not return the content, or not all."""


@dataclass(frozen=True)
class Archive:
    """One archive. `time` is when it was made: ISO 8601, UTC. The last four are None unless details were asked for.

    `size` is the bytes of all its files before compression, `files` their number.
    """

    repository: str
    name: str
    id: str
    time: str
    hostname: str | None = None
    username: str | None = None
    size: int | None = None
    files: int | None = None

    def as_dict(self) -> dict[str, Any]:
        """Plain data for a module's result."""
        return asdict(self)


@dataclass(frozen=True)
class Repository:
    """A repository and how to open it. Secrets reach borg alone: through a pipe, never argv or anyone's environment.

    `location` is what borg calls a repository: a path or an ssh URL; one that cannot be meant is a LocationError.
    Without any secret, BORG_PASSPHRASE or BORG_PASSCOMMAND of this process's environment is used. `timeout` (seconds)
    holds for each call of borg. Every method that calls borg raises BorgError.
    """

    location: str
    passphrase: str | None = field(default=None, repr=False)
    passcommand: str | None = field(default=None, repr=False)
    rsh: str | None = None
    remote_path: str | None = None
    bypass_lock: bool = True
    accept_unencrypted: bool = False
    accept_relocated: bool = False
    timeout: float = 1800

    def __post_init__(self) -> None:
        check_repository(self.location)

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> Repository:
        """From a module's parameters (ARGUMENTS, and `archive`, which may name the repository, too)."""
        named = parse_archive(options["archive"])[0] if options.get("archive") else None
        given = options["repository"] or named
        if not given:
            raise BorgError("No repository was given. Set repository, or write archive as REPOSITORY::NAME.")
        if named and options["repository"] and posixpath.normpath(named) != posixpath.normpath(options["repository"]):
            raise BorgError(f"repository is {options['repository']}, but archive names {named}. Give one of them.")
        passphrase = options["passphrase"]
        if options["passphrase_file"]:
            passphrase = _read_secret(options["passphrase_file"])
        others = ("passcommand", "rsh", "remote_path", "accept_unencrypted", "accept_relocated")
        return cls(
            location=given,
            passphrase=passphrase,
            bypass_lock=_bypasses_lock(options["lock"], options["bypass_lock"]),
            timeout=options["timeout"],
            **{name: options[name] for name in others},
        )

    @property
    def is_local(self) -> bool:
        """Whether it is certain that the repository is reached through a path of this host."""
        return self.location.startswith(("/", "./", "../", "file://"))

    def archive_location(self, name: str) -> str:
        """REPOSITORY::NAME for borg's command line, where braces would be taken for placeholders.

        Raises LocationError for a name that borg would not take for one; a repository's server may tell any.
        """
        check_archive_name(name)
        return f"{self.location}::{name.replace('{', '{{').replace('}', '}}')}"

    def list_archives(self, *, details: bool = False, origins: bool = False) -> list[Archive]:
        """All complete archives, oldest first. Details make borg build its chunks cache first, if it has none.

        Origins are host and user alone: borg reads them from each archive, which is one more chunk each, and no cache.
        """
        if details:
            argv = self.command("info", "--json", "--glob-archives", "*", of=[self.location])
        else:
            argv = self.command("list", "--json", *(ORIGINS if origins else ()), of=[self.location])
        # With details, borg makes an index of all chunks, which may be as large as it likes to be.
        bounds = Bounds(memory=half_of_memory()) if details else bounds_of_borg()
        with self._in_time(argv), self._prepared() as (env, secret):
            done = run(argv, timeout=self.timeout, env=env, stdin=secret, check=False, bounds=bounds)
        if done.returncode not in ACCEPTED:
            raise self.error(argv, done.returncode, done.stderr)
        return parse_archives(done.stdout, repository=self.location)

    def list_items(self, archive: str) -> Iterator[Item]:
        """The archive's items in its order, one at a time."""
        return self._items(archive, (), "{size}", parse_item)

    def list_names(self, archive: str, paths: Sequence[str]) -> Iterator[Listed]:
        """Names and attributes of what is at and below paths, as mount_command() shows it."""
        is_dotted = any(path.startswith("./") for path in paths)
        patterns = _patterns(paths, (), is_dotted=is_dotted)
        return self._items(archive, patterns, "{size}{isomtime}{isoctime}", parse_listed)

    def _items(
        self, archive: str, patterns: Sequence[str], form: str, parse: Callable[[bytes], ItemT]
    ) -> Iterator[ItemT]:
        of = [self.archive_location(archive), *patterns]
        argv = self.command("list", "--json-lines", "--format", form, of=of)
        with self._output(argv, archive=archive) as output:
            while line := output.readline(LONGEST_LINE):
                item = parse(line) if len(line) < LONGEST_LINE else None
                if item is None or max(len(item.path), len(item.target)) > LONGEST_PATH:
                    raise BorgError(
                        f"An item of archive {archive} has a path, or a link's target, that is longer than a file "
                        "system has it: borg create makes no such archive. Use another one."
                    )
                yield item

    def read_files(self, archive: str, items: Sequence[Item]) -> dict[str, bytes]:
        """Contents of `items`, which are in the archive's order, by path: one call of borg for all of them.

        For very many there are several calls: what a command line can hold is limited.
        """
        contents: dict[str, bytes] = {}
        for patterns in _in_command_lines(dict.fromkeys(map(_pattern, items))):
            contents.update(self._read_files(archive, [item for item in items if _pattern(item) in patterns]))
        return contents

    def read_what_is_left(self, archive: str, items: Sequence[Item], lost: dict[str, BorgError]) -> dict[str, bytes]:
        """Read small files, without those of which the repository has lost content: these are noted in lost, by path.

        Each of them takes one more call of borg, so that too many are an error.
        """
        while True:
            left = [item for item in items if item.path not in lost]
            try:
                return self.read_files(archive, left) if left else {}
            except ContentError as error:
                path = error.details.get("lost_file")
                if not path or len(lost) == MOST_LOST:
                    raise
                lost[path] = error

    def _read_files(self, archive: str, items: Sequence[Item]) -> dict[str, bytes]:
        patterns = dict.fromkeys(map(_pattern, items))
        argv = self.command("extract", "--stdout", of=[self.archive_location(archive), *patterns])
        size, bounds = sum(item.size for item in items), bounds_of_borg()
        try:
            with self._in_time(argv), self._prepared() as (env, secret):
                done = run_bytes(
                    argv, timeout=self.timeout, env=env, stdin=secret, check=False, limit=size, bounds=bounds
                )
        except OutputError as error:
            raise self._wrong_size(f"more than {size}", archive, items, error.stderr) from error
        if done.returncode not in ACCEPTED:
            failed = self.error(argv, done.returncode, done.stderr, archive=archive)
            raise self._lost(failed, archive, items, len(done.stdout)) if failed.msgid in LOST_CONTENT else failed
        if len(done.stdout) != size:
            raise self._wrong_size(str(len(done.stdout)), archive, items, done.stderr)
        contents, offset = {}, 0
        for item in items:
            contents[item.path] = done.stdout[offset : offset + item.size]
            offset += item.size
        return contents

    @contextmanager
    def _in_time(self, argv: Sequence[str]) -> Iterator[None]:
        """Says what to do where a borg takes longer than it may."""
        try:
            yield
        except OutputError:
            raise
        except CommandError as error:
            if error.returncode is not None:
                raise
            raise self._late(argv) from error

    def _late(self, argv: Sequence[str]) -> BorgError:
        return BorgError(f"borg did not finish within {self.timeout:g} s: {MORE_TIME}.", command=list(argv))

    def _wrong_size(self, returned: str, archive: str, items: Sequence[Item], stderr: str) -> ContentError:
        return ContentError(
            f"borg returned {returned} bytes for files of archive {archive} that have "
            f"{sum(item.size for item in items)}. Run borg check on {self.location}, and see whether the paths are "
            "valid UTF-8.",
            files=[item.path for item in items],
            stderr=_in_words(parse_log(stderr)),
        )

    def _lost(self, error: BorgError, archive: str, items: Sequence[Item], came: int) -> ContentError:
        """The error of reading `items` of which so many bytes came, with the name of the one that is damaged."""
        ends = itertools.accumulate(item.size for item in items)
        path = next((item.path for item, end in zip(items, ends) if end > came), "")
        return ContentError(
            f"{self.location} has lost content of {shown(path)} in archive {archive}. {SEE_CHECK}",
            msgid=error.msgid,
            lost_file=path,
            **error.details,
        )

    def read_beginnings(self, archive: str, items: Sequence[Item], size: int) -> dict[str, Beginning]:
        """The first `size` bytes of what `items` hold, which are in the archive's order, by path, decompressed.

        Small files are read with one call of borg, each of the others with its own, which is ended soon. Content that
        the repository has lost is no error here.
        """
        contents: dict[str, bytes] = {}
        with suppress(ContentError):
            contents = self.read_files(archive, [item for item in items if item.size <= SMALL])
        found = {path: beginning(content, size) for path, content in contents.items()}
        for item in items:
            if item.path not in found:
                found[item.path] = self._read_beginning(archive, item, size)
        return found

    def _read_beginning(self, archive: str, item: Item, size: int) -> Beginning:
        argv = self.command("extract", "--stdout", of=[self.archive_location(archive), _pattern(item)])
        try:
            with self._output(argv, archive=archive) as output:
                data = output.read(size)
                data += output.read(compressed_size(data, size) - len(data))
        except BorgError as error:
            if error.msgid not in LOST_CONTENT:
                raise
            return Beginning(b"", problem=str(self._lost(error, archive, [item], 0)).rstrip("."))
        return beginning(data, size)

    def mount_command(
        self,
        archive: str,
        mountpoint: str,
        *,
        paths: Sequence[str] = (),
        directories: Sequence[str] = (),
        strip_components: int = 0,
        owner: tuple[int, int] | None = None,
        numeric_ids: bool = False,
        allow_other: bool = False,
    ) -> list[str]:
        """argv of a borg that stays in the foreground and serves the archive, or only `paths`, at `mountpoint`.

        Of `directories`, which are above paths, the entry alone is served, and so their modes. `owner` (uid, gid) is
        who is to own everything, instead of the archived owners, which are taken by name unless `numeric_ids`. Where
        any of `paths` begins with `./`, those of the archive do, and they are served without it: a mount has no way to
        an entry called `.`.
        """
        is_dotted = any(path.startswith("./") for path in paths)
        # As libfuse does by itself, as far as we know: the archive's nodes are not this host's devices.
        options = ["ro", "nodev", "nosuid"]
        if owner is not None:
            options += [f"uid={owner[0]}", f"gid={owner[1]}"]
        if allow_other:
            options.append("allow_other")
        components = strip_components + is_dotted
        ids = ["--numeric-ids"] if numeric_ids else []
        strip = ["--strip-components", str(components)] if components else []
        what = [self.archive_location(archive), mountpoint, *_patterns(paths, directories, is_dotted=is_dotted)]
        return self.command("mount", "--foreground", "-o", ",".join(options), *ids, *strip, of=what)

    def command(self, name: str, *options: str, of: Sequence[str]) -> list[str]:
        """argv of one of borg's commands; none of what it is to be done `of` is taken for an option."""
        borg = find_program("borg")
        if borg is None:
            raise BorgError("borg is not installed on this host. Install the package borgbackup.")
        return [borg, name, "--log-json", *(["--bypass-lock"] if self.bypass_lock else []), *options, "--", *of]

    def environment(self) -> tuple[dict[str, str], bytes]:
        """What to add to borg's environment, and what to write to its standard input: the passphrase, or nothing.

        For a borg that mounts nothing: what it would need for that takes as long to load as all the rest.
        """
        env, passphrase = self.environment_and_secret()
        env["BORG_FUSE_IMPL"] = "none"
        if passphrase is None:
            return env, b""
        return {**env, "BORG_PASSPHRASE_FD": "0"}, passphrase.encode("utf-8", "surrogateescape")

    @contextmanager
    def _prepared(self) -> Iterator[tuple[dict[str, str], bytes]]:
        """Prepare environment and input, with a directory for what borg puts aside: ended by force, it leaves that."""
        env, secret = self.environment()
        directory = tempfile.mkdtemp(prefix="instant-recovery-")
        try:
            yield {**env, "TMPDIR": directory}, secret
        finally:
            shutil.rmtree(directory, ignore_errors=True)

    @contextmanager
    def environment_with_pipe(self) -> Iterator[tuple[dict[str, str], list[int]]]:
        """What to add to a borg's environment, and the descriptors to pass on to it, where it has no standard input."""
        env, passphrase = self.environment_and_secret()
        with secret_pipe("BORG_PASSPHRASE_FD", passphrase) as (secret, descriptors):
            yield {**env, **secret}, descriptors

    def error(self, argv: Sequence[str], returncode: int | None, stderr: str, *, archive: str = "") -> BorgError:
        """What a failed borg's log means."""
        entries = parse_log(stderr)
        msgid, message = diagnose(entries, repository=self.location, archive=archive)
        if msgid is None and stderr.startswith("usage:"):
            message = _unsupported_version() or message
        return BorgError(message, msgid=msgid, command=list(argv), rc=returncode, stderr=_last_words(entries))

    def environment_and_secret(self) -> tuple[dict[str, str], str | None]:
        """What to add to a borg's environment, and the passphrase, which goes another way."""
        env = {
            # Questions are answered before they are asked.
            "BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK": _answer(
                self.accept_unencrypted, "BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK"
            ),
            "BORG_RELOCATED_REPO_ACCESS_IS_OK": _answer(self.accept_relocated, "BORG_RELOCATED_REPO_ACCESS_IS_OK"),
            "BORG_RSH": self.rsh or os.environ.get("BORG_RSH") or "ssh -oBatchMode=yes",
            # 0, 1 (warning) and 2 in every version.
            "BORG_EXIT_CODES": "legacy",
            # A third of a short borg's time. The backups' own have looked whether it is built as it should be.
            "BORG_SELFTEST": "disabled",
            # borg 1.2 prints local time and does not say so.
            "TZ": "UTC",
        }
        if self.remote_path:
            env["BORG_REMOTE_PATH"] = self.remote_path
        if self.passphrase is not None:
            return env, self.passphrase
        if self.passcommand is None and "BORG_PASSPHRASE" in os.environ:
            return env, os.environ["BORG_PASSPHRASE"]
        return env, self._printed_passphrase

    @cached_property
    def _printed_passphrase(self) -> str | None:
        """What the passcommand prints, where there is one. It is run once, and not by each borg.

        A borg whose passcommand fails quotes it in its log, and it may hold a secret.
        """
        passcommand = self.passcommand or os.environ.get("BORG_PASSCOMMAND")
        if not passcommand:
            return None
        try:
            argv = shlex.split(passcommand)
            if not argv:
                raise ValueError("nothing but blanks")
            # An agent that it starts may stay, with its standard error: nobody is to wait for that.
            quiet = ["/bin/sh", "-c", 'exec "$@" 2>/dev/null', "sh", *argv]
            printed = run(quiet, timeout=self.timeout, limit=PIPE_HOLDS).stdout
        except (CommandError, ValueError):  # the latter: blanks, or quotes without an end
            raise BorgError(
                f"The passcommand for {self.location} failed, or took more than {self.timeout:g} s. Run it on that "
                "host, as the user that runs borg."
            ) from None
        return printed.rstrip("\n")

    @contextmanager
    def _output(self, argv: Sequence[str], *, archive: str) -> Iterator[IO[bytes]]:
        """borg's standard output while it runs. Whoever stops reading before its end ends borg."""
        with self._prepared() as (env, secret):
            process = subprocess.Popen(  # pylint: disable=ansible-bad-function  # read while it runs
                argv,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=environment(env),
                start_new_session=True,
                preexec_fn=end_with_caller(),
            )
            bounds_of_borg().hold(process.pid)
            with self._read_from(process, secret, argv, archive) as output:
                yield output

    @contextmanager
    def _read_from(
        self, process: subprocess.Popen[bytes], secret: bytes, argv: Sequence[str], archive: str
    ) -> Iterator[IO[bytes]]:
        if process.stdin is None or process.stdout is None or process.stderr is None:
            raise AssertionError("all are pipes")
        overdue = threading.Timer(self.timeout, _kill, [process])
        overdue.start()
        said = bytearray()
        listener = threading.Thread(target=_keep_the_end, args=(process.stderr, said), daemon=True)
        listener.start()
        try:
            with suppress(BrokenPipeError):
                process.stdin.write(secret)
                process.stdin.close()
            yield process.stdout
            at_end = not process.stdout.read(1)
            if not at_end:
                _kill(process)
            returncode = process.wait()
        finally:
            timed_out = not overdue.is_alive()
            overdue.cancel()
            _kill(process)
            process.stdout.close()
            process.wait()
            listener.join(timeout=LISTENER)  # whatever Borg has started may have its end of the pipe for longer
        if at_end and returncode not in ACCEPTED:
            if timed_out:
                raise self._late(argv)
            raise self.error(argv, returncode, bytes(said).decode("utf-8", "replace"), archive=archive)


def _keep_the_end(stream: IO[bytes], kept: bytearray) -> None:
    """Read all that Borg says, and the server of its repository, which may be anybody's: the last of it is of use."""
    with stream:
        while piece := os.read(stream.fileno(), 1 << 16):
            kept += piece
            del kept[:-LONGEST_LOG]


def resolve_archive(archives: Sequence[Archive], wanted: str, *, repository: str) -> Archive:
    """The archive of that name; for `latest` the newest, for a glob the newest that matches. Raises BorgError.

    An archive that is really called `latest`, or like the glob, is taken at its word.
    """
    found = _resolved(archives, wanted, repository=repository)
    if found.name != shown(found.name):
        raise BorgError(
            f"Archive {shown(found.name)} of repository {repository} has characters in its name that act on a "
            "terminal: rename it (borg rename), and find out who made it."
        )
    return found


def _resolved(archives: Sequence[Archive], wanted: str, *, repository: str) -> Archive:
    newest_first = sorted(archives, key=lambda archive: archive.time)[::-1]
    for archive in newest_first:
        if archive.name == wanted:
            return archive
    is_glob = any(character in wanted for character in "*?[")
    for archive in newest_first:
        if wanted == "latest" or (is_glob and fnmatchcase(archive.name, wanted)):
            return archive
    names = [archive.name for archive in newest_first]
    if not names:
        raise BorgError(f"Repository {repository} holds no archive yet.", archives=[])
    what = f"archive that matches {wanted}" if is_glob else f"archive {wanted}"
    listed = ", ".join(names[:LISTED]) + (f" and {len(names) - LISTED} older ones" if len(names) > LISTED else "")
    raise BorgError(
        f"Repository {repository} has no {what}. It holds: {listed}.",
        archives=[archive.as_dict() for archive in archives],
    )


def plain_path(path: str) -> str:
    """A path as borg lists it: without a leading slash; `.` is the archive's root."""
    return posixpath.normpath(path.lstrip("/") or ".")


def parse_archives(text: str, *, repository: str) -> list[Archive]:
    """Complete archives in the output of `borg list --json` or, with details, `borg info --json`; oldest first."""
    found = []
    for entry in json.loads(text)["archives"]:
        if CHECKPOINT.search(entry["name"]):
            continue
        stats = entry.get("stats") or {}
        moment = datetime.fromisoformat(entry["start"])
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=timezone.utc)
        found.append(
            Archive(
                repository=repository,
                name=entry["name"],
                id=entry["id"],
                time=moment.astimezone(timezone.utc).isoformat(timespec="milliseconds"),
                hostname=entry.get("hostname"),
                username=entry.get("username"),
                size=stats.get("original_size"),
                files=stats.get("nfiles"),
            )
        )
    return sorted(found, key=lambda archive: archive.time)


def parse_item(line: bytes | str) -> Item:
    """One line of `borg list --json-lines --format {size}`."""
    return _item_of(json.loads(line))


def _item_of(entry: Mapping[str, Any]) -> Item:
    is_dotted, target = entry["path"].startswith("./"), entry["linktarget"]
    # A pipe or a device node with several names is one under each of them.
    kind = "h" if entry["mode"].startswith("h") and entry["type"] == "-" else entry["type"]
    return Item(
        path=entry["path"][2:] if is_dotted else entry["path"],
        type=kind,
        size=entry["size"],
        user=str(entry["user"])[:LONGEST_USER],
        target=target[2:] if kind == "h" and target.startswith("./") else target,
        healthy=entry.get("healthy", True),
        is_dotted=is_dotted,
        uid=entry.get("uid"),
    )


def parse_listed(line: bytes | str) -> Listed:
    """One line of `borg list --json-lines --format {size}{isomtime}{isoctime}`, in UTC. Raises ValueError."""
    entry = json.loads(line)
    item = _item_of(entry)
    try:
        return Listed(
            path="" if item.path == "." else item.path,
            kind=item.type,
            permissions=permissions_of(entry["mode"][1:]),
            uid=int(entry["uid"]),
            gid=int(entry["gid"]),
            size=item.size,
            mtime=_nanoseconds(entry["isomtime"]),
            ctime=_nanoseconds(entry["isoctime"]),
            target=item.target,
        )
    except (LookupError, TypeError) as error:
        raise ValueError(f"Borg lists it otherwise than it did so far: {line!r}") from error


def _nanoseconds(text: str) -> int:
    since = datetime.fromisoformat(text).replace(tzinfo=timezone.utc) - datetime.fromtimestamp(0, timezone.utc)
    return since // timedelta(microseconds=1) * 1000


# Exit status of success and of success with warnings, which borg gives for every `pf:` path even if it was found.
ACCEPTED = (0, 1)
# What borg calls the archive of a backup that is not finished.
CHECKPOINT = re.compile(r"\.checkpoint(?:\.\d+)?$")
# With --json a format says which keys there are, and not how they look.
ORIGINS = ("--format", "{hostname}{username}")
DETAIL_CHARACTERS = 4000
# An item's path and target have 4096 bytes at most each, and JSON makes six characters of what is no text.
LONGEST_LINE = 64 * 1024
LONGEST_USER = 256  # characters; useradd(8) takes 32
LISTENER = 5  # seconds that the rest of its words may take when borg has ended
LONGEST_LOG = 1 << 20  # bytes of what borg says that are looked at, from the end
# Bytes of patterns on one command line, of which Linux takes 2 MiB with all else that is on it.
COMMAND_LINE = 1 << 20
# The beginning of patterns for paths that begin with `./`: of patterns of the other kinds borg takes that away.
DOTTED = r"re:^\./"
LISTED = 10
SMALL = 1 << 20  # bytes of a file that is read as a whole where only its beginning is wanted
TRACEBACK = "Traceback (most recent call last)"


@dataclass(frozen=True)
class LogEntry:
    """One line of borg's log; `msgid` is empty for most that are no errors, and for what did not come from borg."""

    message: str
    msgid: str = ""


NO_PASSPHRASE = (
    "Repository {repository} needs a passphrase, and none was given. Give one of passphrase, passcommand and "
    "passphrase_file (playbooks: borg_passphrase …), or set BORG_PASSPHRASE where borg runs."
)
NO_REPOSITORY = "There is no Borg repository at {repository}. Check the path, on the host where borg runs."
UNREACHABLE = (
    "{repository} cannot be reached: {remote}. Check that ssh logs in there without asking anything (known host key, "
    "no password), as the user that runs borg here, and that borg is installed there."
)
REPLACED = (
    "{repository} is not what borg remembers of it on this host ({message}). If that is as it should be, remove what "
    "borg remembers (borg delete --cache-only, ~/.config/borg/security)."
)
PREVIOUSLY = re.compile(r"was previously located at [^\n]{1,1000}")  # of borg's question
SEE_CHECK = "See what is damaged with borg check, and use an archive that is whole."
LOST = f"{{repository}} is damaged. {SEE_CHECK} Borg says: {{message}}"
# What borg's errors mean, by msgid. `message` is borg's own, `previously` where the repository was, `remote` what ssh
# last said.
EXPLANATIONS = {
    "Repository.DoesNotExist": NO_REPOSITORY,
    "Repository.ParentPathDoesNotExist": NO_REPOSITORY,
    "Repository.InvalidRepository": NO_REPOSITORY,
    "Repository.PathPermissionDenied": "{repository} is closed to the user that runs borg. Act as another (become).",
    "PathNotAllowed": "The server refuses {repository} to borg. Check the path, and borg serve's options there.",
    "Archive.DoesNotExist": "Repository {repository} has no archive {archive}. borg_archive_info lists what it has.",
    "PassphraseWrong": "The passphrase for {repository} is wrong. Correct it, or the command or file that gives it.",
    "NoPassphraseFailure": NO_PASSPHRASE,
    "PasswordRetriesExceeded": NO_PASSPHRASE,
    "KeyfileNotFoundError": "The key of {repository} is not on this host. Copy it to ~/.config/borg/keys there.",
    "LockTimeout": "{repository} is locked by another borg. Wait until that has finished, or set lock to bypass.",
    "LockFailed": "{message} Act as a user that may write there (become), or set lock to bypass.",
    "ConnectionClosed": UNREACHABLE,
    "ConnectionClosedWithHint": UNREACHABLE,
    "Cache.CacheInitAbortedError": (
        "{repository} is not encrypted and was never used from this host: it may not be the one that is meant. "
        "Set accept_unencrypted if it is."
    ),
    "Cache.RepositoryAccessAborted": "{repository} {previously}. Set accept_relocated if it was moved on purpose.",
    "Cache.RepositoryReplay": REPLACED,
    "Cache.RepositoryIDNotUnique": REPLACED,
    "Cache.EncryptionMethodMismatch": REPLACED,
    "Repository.ObjectNotFound": LOST,
    "IntegrityError": LOST,
}
MOST_LOST = 8  # small files that are done without
# By how Borg's own last words begin, where it has no identifier for them.
CURES = {
    "PermissionError: ": ". Act as a user who may read it (become).",
    "MemoryError": (
        ". It may have half of the host's memory, and a session's what memory_max gives: use a host that has more, or "
        "find out who made an archive that needs so much."
    ),
}
LOST_CONTENT = ("Repository.ObjectNotFound", "IntegrityError")
# A whole segment that is gone, as an unfinished copy of a repository leaves it: to Borg an error it does not expect.
SEGMENT_GONE = re.compile(r"FileNotFoundError: .*/data/[0-9]+/[0-9]+'?$")


def diagnose(entries: Sequence[LogEntry], *, repository: str, archive: str) -> tuple[str | None, str]:
    """msgid and explanation of the error in a log of borg; for one that is not known, borg's own last words."""
    for entry in reversed(entries):
        if entry.msgid in EXPLANATIONS:
            asked = (PREVIOUSLY.search(other.message) for other in entries if other.msgid.endswith("_IS_OK"))
            previously = next((found[0] for found in asked if found), "was last opened at another place")
            remote = [other.message for other in entries if other.message.startswith("Remote: ")]
            explanation = EXPLANATIONS[entry.msgid].format(
                repository=repository,
                archive=archive,
                message=entry.message,
                previously=previously,
                remote=remote[-1][len("Remote: ") :].strip() if remote else "the connection was closed",
            )
            return entry.msgid, explanation
    msgid = next((entry.msgid for entry in reversed(entries) if entry.msgid), None)
    said = _essence(entries[-1].message) if entries else "it gave no reason"
    if SEGMENT_GONE.match(said):
        return LOST_CONTENT[0], LOST.format(repository=repository, message=said)
    remedy = next((cure for begin, cure in CURES.items() if said.startswith(begin)), "")
    message = f"borg failed on {repository}: {said}{remedy}"
    return msgid, message


def parse_log(text: str) -> list[LogEntry]:
    """borg's standard error with --log-json: entries of its log, and whatever else ended up there."""
    entries = []
    for line in text.splitlines():
        # A prompt has no newline at its end: the next entry stands on the same line.
        words, brace, rest = line.partition('{"')
        try:
            entry = json.loads(brace + rest)
            found = [LogEntry(words.strip()), LogEntry(str(entry["message"]), str(entry.get("msgid") or ""))]
        except (ValueError, KeyError, TypeError, RecursionError):  # a server's own words, perhaps
            found = [LogEntry(line.strip())]
        entries += [entry for entry in found if entry.message]
    return entries


def _in_command_lines(patterns: Iterable[str]) -> Iterator[set[str]]:
    """The patterns in as many sets as it needs command lines."""
    some: set[str] = set()
    size = 0
    for pattern in patterns:
        length = len(os.fsencode(pattern)) + 16  # with what the kernel needs
        if some and size + length > COMMAND_LINE:
            yield some
            some, size = set(), 0
        some.add(pattern)
        size += length
    if some:
        yield some


def last_words(log: str) -> str:
    """The end of what a borg has logged, for people."""
    return _last_words(parse_log(log))


def _last_words(entries: Iterable[LogEntry]) -> str:
    return _in_words(entries)[-DETAIL_CHARACTERS:]


def _in_words(entries: Iterable[LogEntry]) -> str:
    return "\n".join(_essence(entry.message) if TRACEBACK in entry.message else entry.message for entry in entries)


def _essence(message: str) -> str:
    """The exception in a traceback, which borg prints together with a description of the system; else the last line."""
    lines = message.partition("\n\nPlatform: ")[0].strip().splitlines()
    return lines[-1].strip() if lines else ""


def _unsupported_version() -> str | None:
    """What to say when borg did not understand its arguments because it is another borg; None when it is not."""
    version = run([find_program("borg") or "borg", "--version"], timeout=30, check=False).stdout.strip()
    if version.startswith(SUPPORTED):
        return None
    return f"{version or 'This borg'} is not supported: install borg 1.2 or 1.4."


SUPPORTED = ("borg 1.2.", "borg 1.4.")


def _bypasses_lock(lock: str, bypass_lock: bool | None) -> bool:
    """What the two options come to. Every Borg that is supported can do without its lock, so auto does."""
    if bypass_lock is None:
        return lock != "hold"
    if lock not in ("auto", "bypass" if bypass_lock else "hold"):
        raise BorgError(f"lock is {lock}, but bypass_lock is {str(bypass_lock).lower()}. Give one of them.")
    return bypass_lock


def _answer(accepted: bool, name: str) -> str:
    return "yes" if accepted else os.environ.get(name, "no")


def _patterns(paths: Sequence[str], directories: Sequence[str], *, is_dotted: bool) -> list[str]:
    """Patterns of borg's that mean paths and everything below, and directories alone; the root needs no pattern."""
    plain = [plain_path(path) for path in paths]
    if "." in plain:
        return [DOTTED] if is_dotted else []
    whole = [f"{DOTTED}{re.escape(path)}(?:/|\\Z)" if is_dotted else f"pp:{path}" for path in plain]
    return [*whole, *(_single(plain_path(path), is_dotted=is_dotted) for path in directories)]


def _pattern(item: Item) -> str:
    """A pattern of borg's that means this item alone."""
    return _single(item.path, is_dotted=item.is_dotted)


def _single(path: str, *, is_dotted: bool) -> str:
    return f"{DOTTED}{re.escape(path)}\\Z" if is_dotted else f"pf:{path}"


def _read_secret(path: str) -> str:
    try:
        with open(path, encoding="utf-8") as file:
            secret = file.read(PIPE_HOLDS + 1)
            if len(secret) <= PIPE_HOLDS:
                return secret.rstrip("\n")
            reason = "it is longer than any passphrase"
    except (OSError, UnicodeDecodeError) as error:
        reason = str(error.strerror) if isinstance(error, OSError) else "it is not text"
    raise BorgError(f"passphrase_file {path} cannot be read ({reason}). Name a file of this host.")


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End borg and its ssh; nothing happens when it has ended."""
    if process.poll() is None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
