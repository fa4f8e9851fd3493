# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""One run of one playbook through ansible-runner: events in the caller's thread, and nothing left behind.

ansible-runner runs in a thread of its own and passes events through a queue. So callbacks, time-out and Ctrl-C all
happen in the caller's thread, as ordinary exceptions, and end the run in one place.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import queue
import select
import shlex
import shutil
import signal
import sysconfig
import tempfile
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ansible_runner.interface import init_runner

from ._errors import CancelledError, RunTimeoutError, UsageError
from ._outcome import Event, Outcome

__all__ = ["Inventory", "Sources", "inventory_sources", "playbook_events", "run_playbook", "with_secret"]

Inventory = str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | Mapping[str, Any] | None
Sources = list[str] | dict[str, Any] | None

COLLECTION = "phpborg.instant_recovery"
# The play would take it from the environment. It goes with the variables instead, because ansible-runner stores the
# environment of a run in a file.
SECRET = "BORG_PASSPHRASE"
# Before ansible-core 2.19, ssh asks these on Ansible's terminal, which is ansible-runner here: it would wait for ever.
ANSWERS = {r"Are you sure you want to continue connecting .*\?": "no", r"Enter passphrase for .*:": ""}
# Seconds: how soon ansible-runner looks at the cancel callback; how long the module in flight may then take to end by
# itself, and how long when it has been told to.
CANCEL_LATENCY = 0.2
MODULE_GRACE = 5.0
MODULE_TIMEOUT = 10.0

logger = logging.getLogger("instant_recovery")


def run_playbook(
    playbook: str,
    *,
    collection: Path,
    inventory: Sources,
    variables: Mapping[str, object],
    timeout: float,
    cancel: threading.Event | None = None,
    on_event: Callable[[Event], None] | None = None,
) -> dict[str, Any]:
    """Run a playbook of the collection in the directory `collection`; returns what it left by set_stats.

    `timeout` is in seconds; `on_event` gets ansible-runner's events, in the caller's thread. Raises PlaybookError,
    RunTimeoutError, CancelledError, whatever `on_event` raises, and KeyboardInterrupt. In each of these cases Ansible
    is gone when it raises, and the module that was in flight on this host, so that a stop run finds it at rest.
    """
    events = playbook_events(
        playbook, collection=collection, inventory=inventory, variables=variables, timeout=timeout, cancel=cancel
    )
    with contextlib.closing(events):
        while True:
            try:
                event = next(events)
            except StopIteration as end:
                stats: dict[str, Any] = end.value
                return stats
            if on_event is not None:
                on_event(event)


def playbook_events(
    playbook: str,
    *,
    collection: Path,
    inventory: Sources,
    variables: Mapping[str, object],
    timeout: float | None,
    cancel: threading.Event | None = None,
    module_grace: float = MODULE_GRACE,
) -> Generator[Event, None, dict[str, Any]]:
    """Run a playbook like run_playbook, for a caller who takes the events one by one.

    What the play left is the generator's value. Without a `timeout` it may run for ever. Closing the generator ends the
    run; the module in flight then has `module_grace` seconds to end by itself.
    """
    with (
        _private_directory() as directory,
        _handed_over(directory / "variables", variables) as variables_file,
    ):
        run = _Run(_settings(directory, playbook, collection, inventory, variables_file), cancel=cancel)
        outcome = Outcome()
        try:
            for event in run.events(timeout):
                outcome.take(event)
                yield event
        finally:
            run.end(directory, module_grace)
    if run.status == "canceled":
        raise CancelledError(f"{playbook} was cancelled")
    return outcome.result(successful=run.status == "successful")


def inventory_sources(inventory: Inventory) -> Sources:
    """The inventory as ansible-runner takes it: absolute paths, lists of hosts, a mapping. Raises UsageError."""
    if inventory is None:
        return None
    if isinstance(inventory, Mapping):
        return dict(inventory)
    if isinstance(inventory, str | os.PathLike):
        return [_source(os.fspath(inventory))]
    return [_source(os.fspath(source)) for source in inventory]


def _source(name: str) -> str:
    if os.path.exists(name):
        return os.path.abspath(name)
    if "," in name:
        return name
    raise UsageError(f"there is no inventory {name!r}: give a file, a directory, hosts with a comma, or a mapping")


def with_secret(variables: Mapping[str, object]) -> dict[str, object]:
    """The variables of a start, with the passphrase of the caller's environment unless they name another source."""
    if SECRET not in os.environ or any(name.startswith("borg_pass") for name in variables):
        return dict(variables)
    return {**variables, "borg_passphrase": os.environ[SECRET]}


class _Run:
    """ansible-runner in a thread."""

    def __init__(self, settings: dict[str, Any], *, cancel: threading.Event | None) -> None:
        self._queue: queue.SimpleQueue[Event | None] = queue.SimpleQueue()
        self._abort = threading.Event()
        self._error: Exception | None = None
        # A cancel_callback also keeps ansible-runner from installing signal handlers of its own.
        self._runner = init_runner(
            **settings,
            event_handler=self._take,
            status_handler=_forget_command,
            cancel_callback=lambda: self._abort.is_set() or (cancel is not None and cancel.is_set()),
        )
        _adjust(self._runner.config)
        self._thread = threading.Thread(target=self._main, name="instant_recovery", daemon=True)

    @property
    def status(self) -> str:
        """ansible-runner's word for how it went: successful, failed, canceled…"""
        return str(self._runner.status)

    def events(self, timeout: float | None) -> Iterator[Event]:
        """Start; the events as they come, until it ends. Raises RunTimeoutError after `timeout` seconds."""
        deadline = None if timeout is None else time.monotonic() + timeout
        self._thread.start()
        while True:
            try:
                event = self._queue.get(timeout=deadline and max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                raise RunTimeoutError(f"Ansible did not end within {timeout:g} s") from None
            if event is None:
                break
            yield event
        if self._error is not None:
            raise self._error

    def end(self, directory: Path, module_grace: float) -> None:
        """Kill the run if it still runs, and return when nothing of it is left."""
        self._abort.set()
        if self._thread.ident is not None:
            self._thread.join()
        if self.status != "successful":
            _end_workers(directory, module_grace)

    def _main(self) -> None:
        try:
            self._runner.run()
        except Exception as error:
            self._error = error
        finally:
            self._queue.put(None)

    def _take(self, event: Event) -> bool:
        self._queue.put(event)
        # False: ansible-runner need not keep the event in a file.
        return False


@contextlib.contextmanager
def _private_directory() -> Iterator[Path]:
    """A fresh directory, 0700, in memory where there is a /dev/shm; gone at the end."""
    memory = Path("/dev/shm")
    parent = memory if memory.is_dir() and os.access(memory, os.W_OK | os.X_OK) else None
    directory = Path(tempfile.mkdtemp(prefix=f"instant-recovery-{os.getpid()}-", dir=parent))
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)
        if directory.exists():
            logger.warning("%s could not be removed", directory)


@contextlib.contextmanager
def _handed_over(path: Path, variables: Mapping[str, object]) -> Iterator[Path]:
    """A named pipe at `path` that gives Ansible the variables once, so that they are in no file and in no argv."""
    os.mkfifo(path, 0o600)
    content = json.dumps(_literal(variables)).encode()

    def write() -> None:
        # Waits until it is opened for reading. Ansible may be killed while it reads.
        with contextlib.suppress(BrokenPipeError), path.open("wb") as pipe:
            pipe.write(content)

    thread = threading.Thread(target=write, name="instant_recovery-variables", daemon=True)
    thread.start()
    try:
        yield path
    finally:
        # Ansible may never have come to read it: a reader who leaves at once lets the writer go, also late.
        while thread.is_alive():
            os.close(os.open(path, os.O_RDONLY | os.O_NONBLOCK))
            thread.join(0.05)


def _literal(value: object) -> object:
    """The value for JSON, with each string marked as one that Ansible must not take for a template."""
    if isinstance(value, str | os.PathLike):
        return {"__ansible_unsafe": os.fspath(value)}
    if isinstance(value, Mapping):
        return {str(key): _literal(item) for key, item in value.items()}
    if isinstance(value, Sequence):
        return [_literal(item) for item in value]
    return value


def _settings(
    directory: Path, playbook: str, collection: Path, inventory: Sources, variables_file: Path
) -> dict[str, Any]:
    """The arguments of ansible_runner.init_runner; lays out `directory` for them."""
    # Ansible searches beside the playbook first, whatever collection paths are configured. So the collection that
    # belongs to this package is found, as a checkout too, and the user's configuration is left as it is.
    namespace = directory / "collections" / "ansible_collections" / "phpborg"
    namespace.mkdir(parents=True)
    (namespace / "instant_recovery").symlink_to(collection)
    entry = directory / "playbook.yml"
    entry.write_text(json.dumps([{"import_playbook": f"{COLLECTION}.{playbook}"}]))
    return {
        "private_data_dir": str(directory),
        # The user's ansible.cfg counts, as for an ansible-playbook typed here.
        "project_dir": os.getcwd(),
        "playbook": str(entry),
        "inventory": inventory,
        "cmdline": shlex.join(["-e", f"@{variables_file}"]),
        "envvars": _environment(directory, inventory),
        "passwords": ANSWERS,
        "settings": {"pexpect_timeout": CANCEL_LATENCY, "suppress_output_file": True},
        # Ansible's own fact cache is the one that is configured.
        "fact_cache_type": "",
        "quiet": True,
    }


def _environment(directory: Path, inventory: Sources) -> dict[str, str]:
    variables = {
        # What Ansible leaves behind when it is killed goes with the directory.
        "ANSIBLE_LOCAL_TEMP": str(directory / "tmp"),
        "ANSIBLE_NOCOLOR": "1",
        # Ansible insists on UTF-8; services and cron jobs often have none.
        "LC_ALL": "C.UTF-8",
    }
    if inventory is None:
        variables |= {"ANSIBLE_LOCALHOST_WARNING": "False", "ANSIBLE_INVENTORY_UNPARSED_WARNING": "False"}
    return variables


def _adjust(config: Any) -> None:
    """Mend what ansible-runner has no arguments for, in a RunnerConfig that is ready to run."""
    # An empty one is none, and says so to Borg.
    if config.env.get(SECRET):
        del config.env[SECRET]
    # ansible-runner would switch it off where the user has not said anything.
    if "ANSIBLE_HOST_KEY_CHECKING" not in os.environ:
        config.env.pop("ANSIBLE_HOST_KEY_CHECKING", None)
    # The one installed with this package, even when its virtual environment is not on the PATH.
    program = Path(sysconfig.get_path("scripts"), "ansible-playbook")
    if program.exists():
        config.command[0] = str(program)


def _forget_command(status: Mapping[str, Any], *, runner_config: Any) -> None:
    """Remove the file that has the caller's whole environment, as soon as ansible-runner has written it."""
    if status["status"] == "running":
        Path(runner_config.artifact_dir, "command").unlink(missing_ok=True)


def _end_workers(directory: Path, module_grace: float) -> None:
    """Wait until the module in flight has ended, after Ansible was killed; end it when it takes long.

    Since ansible-core 2.19 each worker has a process group of its own, and ansible-runner's SIGKILL of Ansible's misses
    it. Workers are known by their command line, a copy of Ansible's, which names `directory`. One that is told to end
    ends its module, too.
    """
    workers = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            # Anybody may write that name into a command line of theirs.
            if entry.stat().st_uid == os.geteuid() and os.fsencode(directory) in entry.read_bytes():
                workers.append(os.pidfd_open(int(entry.parent.name)))
    for patience in (module_grace, MODULE_TIMEOUT):
        workers = _still_running(workers, patience)
        for worker in workers:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(worker, signal.SIGTERM)
    for worker in workers:
        os.close(worker)


def _still_running(processes: Sequence[int], patience: float) -> list[int]:
    """Processes (pidfds) that have not ended within `patience` seconds; the others' are closed."""
    deadline = time.monotonic() + patience
    running = []
    for process in processes:
        poll = select.poll()
        poll.register(process, select.POLLIN)
        if poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
            os.close(process)
        else:
            running.append(process)
    return running
