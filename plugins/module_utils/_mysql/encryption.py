# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Keys of data that MariaDB has encrypted, given by whoever starts the session (its plugin file_key_management).

Documented in MariaDB's "File Key Management Encryption Plugin": a line for each key, its number and its hexadecimal
digits.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from .._host.files import read_beginning
from .option_file import MysqlError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["KEYS", "LIBRARY", "encryption_options", "read_keys"]

LIBRARY = "file_key_management.so"
KEYS = "keys"  # the session's copy, in the directory that the server can read
ALGORITHM = "file_key_management_encryption_algorithm"
LINE = re.compile(rb"\s*(?:#.*|\d{1,10};(?:[0-9a-fA-F]{32}|[0-9a-fA-F]{48}|[0-9a-fA-F]{64})\s*)?")
LARGEST = 1 << 20  # bytes


def read_keys(path: str) -> bytes:
    """The content of a file of keys. Raises MysqlError for anything else; no message holds any of it."""
    try:
        content = read_beginning(path, LARGEST + 1)
    except OSError as error:
        raise MysqlError(f"encryption_key_file {path} cannot be read: {error.strerror}. Name a file of keys.") from None
    lines = content.split(b"\n")
    if len(content) > LARGEST or not all(map(LINE.fullmatch, lines)) or not any(b";" in line for line in lines):
        raise MysqlError(
            f"encryption_key_file {path} is no list of keys such as 1;a7addd9a…: give the one of file_key_management, "
            "and one that is encrypted itself decrypted (openssl enc -d)."
        )
    return content


def encryption_options(keys: str, archived: Mapping[str, str]) -> dict[str, str]:
    """Options of a server that is to open encrypted data. keys: the file; archived: production's options."""
    found = {"plugin_load_add": LIBRARY, "file_key_management_filename": keys}
    algorithm = archived.get(ALGORITHM, "").upper()
    return {**found, ALGORITHM: algorithm} if algorithm in ("AES_CBC", "AES_CTR") else found
