# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What `_host/sandbox.py` tells its program, and what every program may see of the host."""

from __future__ import annotations

import json

__all__ = ["CONFIGURATION", "DEVICES", "RESOLVER", "SYSTEM", "Specification"]

# Where programs, libraries and their data are. Not all of /usr: a database may live in /usr/local/pgsql/data.
_PARTS = ("bin", "sbin", "lib", "lib32", "lib64", "libx32", "libexec", "share")
SYSTEM = tuple(f"{prefix}/{part}" for prefix in ("", "/usr", "/usr/local") for part in _PARTS)
# Of /etc what programs and libc look up, and no more: there are passwords and keys in it as well.
CONFIGURATION = tuple(
    f"/etc/{name}"
    for name in (
        *("passwd", "group", "nsswitch.conf", "host.conf", "hosts", "services", "protocols", "gai.conf"),
        *("ld.so.cache", "ld.so.conf", "ld.so.conf.d", "ld.so.preload", "localtime", "timezone", "locale.alias"),
        *("locale.conf", "alternatives", "ssl/openssl.cnf", "ssl/certs", "pki/tls/openssl.cnf", "crypto-policies"),
    )
)
RESOLVER = ("/etc/resolv.conf",)  # for a server that may call others
# Not /dev/shm, where production's shared memory is.
DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/tty", "/dev/random", "/dev/urandom")


class Specification:
    """What is to be run and what it may reach, as the fields of the JSON object.

    argv, env. uid, gid: whom it runs as. account: name of an entry to be added to /etc/passwd, or null. staging: a
    directory where the new root is made, which hides it in this process's own namespace of mounts alone. readable,
    writable: absolute paths of trees, files or sockets. aliases: pairs of a path and a directory of a writable tree,
    to be seen there as well. private: directories in whose place it gets a small one of its own. network: none, unix
    (sockets of this host only), serve (port alone, no connections to anybody) or host (port, and connections). port:
    TCP port that may be listened on. namespaces, landlock, seccomp: whether they are to be used. logged: its
    descriptors that lead to the log. doors: see open_doors(), with descriptors of their sockets. caller: the
    process that all of it is to end with, whatever ends that (0: none). processes: most of them at a time, files: most
    that each has open (0: any number). memory, data: bytes of address space, and of memory of its own, for each process
    (0: any).
    """

    def __init__(self, text: bytes) -> None:
        self.__dict__.update(json.loads(text))

    argv: list[str]
    env: dict[str, str]
    uid: int
    gid: int
    account: str | None
    staging: str
    readable: list[str]
    writable: list[str]
    aliases: list[list[str]]
    private: list[str]
    network: str
    port: int
    namespaces: bool
    landlock: bool
    seccomp: bool
    logged: list[int]
    doors: list[list[int | str]]
    caller: int
    processes: int
    files: int
    memory: int
    data: int
