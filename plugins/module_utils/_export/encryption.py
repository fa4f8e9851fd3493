# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Encrypting for whoever has the secret key of a public one, by age or GnuPG, before a byte lies on a disk."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
import threading
from contextlib import suppress
from typing import IO, TYPE_CHECKING

from .._errors import RecoveryError
from .._host.command import end_with_caller, environment, find_program, last_line
from .._host.files import read_beginning
from .interface import ExportError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["Encryption", "recipient_program"]

AGE = re.compile(r"age1[0-9a-z]{20,200}|ssh-(ed25519|rsa) [A-Za-z0-9+/=]{20,2000}( \S{0,200})?")
ARMOR = "-----BEGIN PGP PUBLIC KEY BLOCK-----"
LARGEST_KEY = 1 << 20  # bytes of a file with a public key
PIECE = 1 << 16
PATIENCE = 60.0  # seconds for the program to end when it was told all


def recipient_program(recipient: str) -> str:
    """The program that encrypts for a recipient: age or gpg. Raises ExportError for what is none, and without it."""
    name = "age" if _is_age(_key(recipient)) else "gpg"
    if find_program(name) is None:
        raise ExportError(f"There is no {name} here, which encrypts for the recipient: install it.")
    return name


class Encryption:
    """A program that encrypts what write() is given; store gets what comes out, in a thread of its own.

    recipient: a public key of age or SSH, an armoured one of GnuPG, or the absolute path of a file with one. directory:
    where the program may put something aside. A context manager, at whose end the program has ended. Raises ExportError
    where it fails.
    """

    def __init__(self, recipient: str, store: Callable[[bytes], object], *, directory: str) -> None:
        self._key, self._store, self._directory = _key(recipient), store, directory
        self._name = recipient_program(recipient)
        self._problem: BaseException | None = None
        self._home = ""

    def __enter__(self) -> Encryption:
        self._home = tempfile.mkdtemp(prefix="export-", dir=self._directory)
        self._errors = tempfile.TemporaryFile()
        self._process = subprocess.Popen(  # pylint: disable=ansible-bad-function  # fed as the data come
            self._command(find_program(self._name) or self._name),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=environment({"HOME": self._home, "GNUPGHOME": self._home}),
            start_new_session=True,
            preexec_fn=end_with_caller(),
        )
        self._thread = threading.Thread(target=self._collect, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait(timeout=PATIENCE)
        self._thread.join(timeout=PATIENCE)
        with suppress(OSError):
            self._pipe.close()
        self._errors.close()
        shutil.rmtree(self._home, ignore_errors=True)

    def write(self, data: bytes) -> None:
        """Encrypt more."""
        try:
            self._pipe.write(data)
        except BrokenPipeError:
            raise self._failure() from None

    def finish(self) -> None:
        """There is no more: wait until all is stored."""
        try:
            self._pipe.close()
            self._process.wait(timeout=PATIENCE)
        except (BrokenPipeError, subprocess.TimeoutExpired):
            raise self._failure() from None
        self._thread.join(timeout=PATIENCE)
        if self._process.returncode or self._problem is not None or self._thread.is_alive():
            raise self._failure()

    def _command(self, program: str) -> Sequence[str]:
        path = os.path.join(self._home, "recipient")
        with open(path, "wb") as file:
            file.write(self._key)
        if self._name == "age":
            return [program, "-R", path]
        options = ["--batch", "--no-tty", "--no-options", "--no-autostart", "--trust-model", "always"]
        return [program, *options, "--recipient-file", path, "--encrypt", "--output", "-"]

    @property
    def _pipe(self) -> IO[bytes]:
        pipe = self._process.stdin
        if pipe is None:
            raise AssertionError("it is a pipe")
        return pipe

    def _collect(self) -> None:
        output = self._process.stdout
        if output is None:
            raise AssertionError("it is a pipe")
        try:
            while data := os.read(output.fileno(), PIECE):
                self._store(data)
        except (OSError, RecoveryError) as error:
            self._problem = error
        finally:
            output.close()  # so that the program ends, too

    def _failure(self) -> BaseException:
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=PATIENCE)
        self._thread.join(timeout=PATIENCE)
        if self._problem is not None:
            return self._problem
        self._errors.seek(0)
        said = last_line(self._errors.read(LARGEST_KEY).decode("utf-8", "replace"))
        return ExportError(
            f"{self._name} cannot encrypt for the recipient: {said or 'it said nothing'}. Look at the key."
        )


def _key(recipient: str) -> bytes:
    """The public key itself, of a file that has it as well."""
    text = recipient.strip()
    if AGE.fullmatch(text) or text.startswith(ARMOR):
        return f"{text}\n".encode()
    if not os.path.isabs(text):
        raise ExportError(
            "recipient is no public key: give one of age (age1…), SSH (ssh-ed25519 …) or GnuPG (armoured), or the "
            "absolute path of a file with one on the session's host."
        )
    try:
        return read_beginning(text, LARGEST_KEY)
    except OSError as error:
        raise ExportError(
            f"recipient {text} cannot be read: {error.strerror}. Name a file with a public key."
        ) from error


def _is_age(key: bytes) -> bool:
    lines = [line.strip() for line in key.decode("latin-1").splitlines()]
    return any(AGE.fullmatch(line) for line in lines)
