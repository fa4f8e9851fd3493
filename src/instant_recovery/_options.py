# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a start can be asked for. Written by scripts/generate from the roles' argument specs: change those."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, TypedDict

__all__ = ["StartOptions"]


class StartOptions(TypedDict, total=False):
    """The start playbook's variables, as docs/variables.md describes them. None is as if it was not given."""

    # A path, `ssh://user@host/path` or `user@host:path`, as seen by the session's host, where `archive` does not name
    # it. Placeholders of Borg's such as `{hostname}` are refused.
    repository: str | None
    # `local` is this host, `remote` is `source_host`. To a play that uses the role it says what is to be recorded; the
    # session's host is the play's.
    deployment_location: Literal["local", "remote"] | None
    # The inventory's name of a remote session's host, for the start playbook.
    source_host: str | None
    # Database engine. `auto` looks into the archive.
    engine: Literal["auto", "postgresql", "mariadb", "mysql"] | None
    # Path of the data directory in the archive, also one that leads there through links, or what the server itself
    # called it. Needed when the archive holds several databases.
    data_directory: str | None
    # Port on 127.0.0.1, from 1024 to 65535. One that is taken is an error. Left out or `0`, it is the first free one
    # from 15432 (PostgreSQL) or 13306 (MariaDB and MySQL). Ansible warns of a variable called `port`; as
    # `session_port` it is the same without a warning.
    port: int | None
    # The copy-on-write layer, `block`, or `overlayfs`, which needs root and copies whole files. `auto` is `block`
    # where the host has pyfuse3.
    driver: Literal["auto", "block", "overlayfs"] | None
    # Whether clients get read-only transactions.
    read_only: bool | None
    # With `none` the server can open no connection, to anywhere. `host` lets it.
    network: Literal["none", "host"] | None
    # Where in the archive directories are that are not where links of the data directory say, such as `{"relocated":
    # {"/mnt/fast": "var/lib/docker/volumes/fast/_data"}}`. What a link says, or a directory above that, is followed by
    # the path in the archive, which is empty for what the archive does not have. Needed only where several can be
    # meant, which the start then names.
    relocated: Mapping[str, object] | None
    # Archived logs to go beyond the copy's own, such as PostgreSQL's WAL. A directory of the session's host,
    # `archive:PATH` in the same archive, or another archive as `REPOSITORY::NAME`, with `:/PATH` behind it where that
    # holds several. Left out, the archive's own directory of them, if it has just one, is taken for a point in time
    # and for a copy that has no logs of its own. Another repository is opened with the same secret and `borg_rsh`.
    log_source: str | None
    # Settings of the database server, by name, beyond those that the session chooses, such as `{"settings":
    # {"work_mem": "64MB"}}`. Those that would undo what keeps the copy apart are refused.
    settings: Mapping[str, object] | None
    # Whether to look into each database for what a user should know of it, such as invalid indexes. This makes the
    # start a few tenths of a second longer.
    examine: bool | None
    # How long the session is to live, such as `90m` or `2h`. `0` is for ever.
    ttl: str | None
    # After how long without a client's query the session ends, such as `30m`. `0` is never.
    idle_timeout: str | None
    # After how long without a read the archive is suspended (its Borgs end, which take some 40 MiB of memory each)
    # until the next read, which takes a second or two. `0` is never. `auto` is ten times what mounting took, but a
    # minute at least.
    suspend_after: str | None
    # Seconds that each step of the start may take, such as listing the archive, mounting it, and recovery with the
    # start of the server.
    start_timeout: int | None
    # Room that must be free for the session's changes, in bytes or with a unit.
    minimum_free: str | None
    # What sessions leave free on their disk, a share such as `5%`, but 1 GiB at least, or a size. Below it a start is
    # refused, and the session that takes most ends.
    free_space_floor: str | None
    # What the session's changes, logs and other files may take on disk before it ends, such as `20G`, beside the
    # layer's cache (`cache_size`). `0` is any.
    max_upper_size: str | None
    # Memory that the session may take, such as `4G`, at least `256M`, or `25%` of the host's. `0` is any. With systemd
    # and as root it is for the session as a whole, otherwise for each process of the server.
    memory_max: str | None
    # Share of the processors when they are short, from 1 to 10000. A service of the host has 100.
    cpu_weight: int | None
    # Share of the disks when they are busy, from 1 to 10000. A service of the host has 100.
    io_weight: int | None
    # How many sessions the host may have, this one included. One more is refused. `0` is any number.
    max_sessions: int | None
    # How many times the archive is mounted to be read in parallel, from 1 to 16. Left out or `0`, it is once for each
    # CPU, at most four times.
    readers: int | None
    # Size of the layer's cache of what was read from the archive, such as `512M`. Left out, it is as `overlay_mount`
    # has it.
    cache_size: str | None
    # File for Prometheus's node_exporter (textfile collector), with the metrics of the host's sessions. An absolute
    # path that ends in `.prom`. What is there and is no such file is not replaced.
    metrics_textfile: str | None
    # User who runs the database server. Left out, it is the user whom Ansible acts as. For root it is a user id of the
    # session's own, which nothing else on the host has.
    server_user: str | None
    # Whether missing packages may be installed on the session's host.
    install_packages: bool | None
    # Passphrase of the repository. Without any secret the `BORG_PASSPHRASE` of Ansible's own environment counts; a
    # `BORG_PASSCOMMAND` counts on the host where it is set. Give it in a file or vault (`-e @secrets.yml`, with a line
    # `borg_passphrase: !unsafe "…"`). Without `!unsafe` Ansible takes `{{`, `{%` and `{#` in it for a template, which
    # is refused. On a command line every user can read it.
    borg_passphrase: str | None
    # Command that prints the passphrase, run on the session's host. At most one of the three is given.
    borg_passcommand: str | None
    # File on the session's host that holds the passphrase.
    borg_passphrase_file: str | None
    # Command that Borg runs to reach a repository on another host, such as `ssh -i key`.
    borg_rsh: str | None
    # What the `borg` program on the repository's host is called.
    borg_remote_path: str | None
    # Whether to open an unencrypted repository that was never opened from the session's host.
    accept_unencrypted: bool | None
    # Whether to open a repository that was last opened at another place.
    accept_relocated: bool | None
    # Start also where the host's kernel cannot keep the server away from other files and processes of its user. Only
    # with archives that are trusted like the host itself.
    accept_unconfined: bool | None
    # Borg's lock on the repository. With `bypass`, which is `auto`, backups go on while the session runs. With `hold`
    # `borg create`, `prune`, `delete` and `compact` fail meanwhile.
    lock: Literal["auto", "hold", "bypass"] | None
    # Recover to this time, such as `2026-11-22T14:05:00+01`. It has a time of day, and on a command line a `T` and no
    # space. Without an offset it is in the time zone of the archived configuration. This and the other targets are
    # PostgreSQL's settings of these names. One of them can be given; without any, recovery goes to the end of the WAL.
    # Replay archived binary logs up to this time, such as `2026-11-22T14:05:00+01`, in whole seconds. Without an
    # offset it is in UTC. Of this and the other targets one can be given; without any the copy is shown as it is.
    recovery_target_time: str | None
    # Recover up to this transaction, such as `4711`.
    recovery_target_xid: int | None
    # Recover to the restore point that `pg_create_restore_point` gave this name.
    recovery_target_name: str | None
    # Recover up to this position in the write-ahead log, such as `1A/2B3C4D5E`.
    recovery_target_lsn: str | None
    # `immediate` is as soon as the copy is consistent, the end of the backup.
    # `end` is the end of the archived binary logs.
    recovery_target: Literal["immediate"] | Literal["end"] | None
    # Whether the target itself still counts.
    recovery_target_inclusive: bool | None
    # `latest`, which it is when left out, `current`, or the number of a timeline.
    recovery_target_timeline: str | int | None
    # `promote`, the one action after which somebody can connect. Others are refused.
    recovery_target_action: Literal["promote"] | None
    # What to do where the archive lacks a tablespace. `refuse` starts nothing. `leave_out` starts without it, and what
    # lies there cannot be read.
    missing_tablespaces: Literal["refuse", "leave_out"] | None
    # Directory of the PostgreSQL programs, where they are not found by themselves.
    # Directory of the server's program, where it is not found by itself.
    bindir: str | None
    # Replay archived binary logs up to this global transaction id, such as `0-1-4711`, which still counts.
    recovery_target_gtid: str | None
    # Replay archived binary logs up to this position, such as `mysql-bin.000004:4672531`.
    recovery_target_position: str | None
    # File with the keys of data that MariaDB has encrypted, as its plugin file_key_management reads it, on the
    # session's host. The session keeps a copy of it, which its server can read, as long as that runs.
    encryption_key_file: str | None
