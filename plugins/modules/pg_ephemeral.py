#!/usr/bin/python
# Copyright (c) 2026, phpBorg contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: pg_ephemeral
short_description: Run a throw-away PostgreSQL server on a copied data directory
version_added: 1.0.0
author: phpBorg contributors (@phpborg)
description:
  - Cuts a session's copy of a data directory loose from the production server it was copied from, recovers it, and
    starts a server on it that only this host can reach. RV(neutralised) says what was done for that, and why.
  - The copy, C(merged) in O(session_directory), is written to. It is a copy-on-write layer, such as
    M(phpborg.instant_recovery.overlay_mount) makes.
  - The archived configuration is never loaded. The server runs with a configuration that this module writes into
    C(config) in O(session_directory), and with settings on its command line that nothing can override.
  - Nothing is opened before all symbolic links of the data directory have been looked at. Those of tablespaces and of
    C(pg_wal) are re-pointed to their copies; one that leads out of the copy otherwise is an error.
  - All programs that work on the copy or talk to its server are locked up in a root directory of their own, as a user
    of the session's own where root starts it, without a way to other files, processes or networks.
  - Recovery, and changes to the catalogs, happen before the server listens. The role C(instant_recovery), a superuser
    with a password made up for this start, is what clients log in as; no role of the archive is changed.
  - What databases and C(alter role all) have set for production's users does not count for that role, except for what
    decides how results look. RV(neutralised) and RV(carried_over) say which is which. O(settings) count more than any.
  - A locale that a database needs and this host does not have is made in O(session_directory) by C(localedef), where
    the sources of locales are installed; otherwise the error or warning names it, and the commands that install it.
  - The server listens on 127.0.0.1, where only that role gets in, and on a socket that only the session's owner (and
    root) can reach and that asks for no password.
options:
  session_directory:
    description:
      - Directory of the session that the server belongs to. What happens is recorded there before it is done.
    type: path
    required: true
  data_directory:
    description:
      - The data directory, in C(merged) of O(session_directory). It holds C(PG_VERSION), C(base) and C(global).
      - Required for O(state=started).
    type: str
  links:
    description:
      - Where in the copy the directories are that symbolic links lead to, as far as this is known, as a dictionary of
        the links' paths and the directories' paths, both below C(merged).
        M(phpborg.instant_recovery.borg_archive_info) tells them.
      - Others are looked for at their path below C(merged), and below every directory on the way to O(data_directory).
    type: dict
    default: {}
  configuration_directory:
    description:
      - Directory of the archived C(postgresql.conf), below C(merged), where that is not in O(data_directory).
        M(phpborg.instant_recovery.borg_archive_info) tells it.
      - The default is Debian's, C(etc/postgresql/MAJOR/NAME).
    type: str
  port:
    description:
      - Port on 127.0.0.1.
      - The default is the first from 15432 on that is free and that no other session has.
    type: int
  log_source:
    description:
      - Directory of archived WAL, for recovery to go beyond what the copy has in C(pg_wal). It is only read, by whoever
        runs the module.
      - The segments may lie in directories as Barman and pgBackRest have them, and be compressed by gzip, bzip2, xz,
        or, where these programs are installed, zstd or lz4.
    type: str
  examine:
    description:
      - Whether to look into the databases for RV(data), up to 8 of them, for 5 seconds each at most. From an archive
        this costs a tenth of a second or two for each, in which its catalogs are read.
    type: bool
    default: true
  timeout:
    description: Seconds that recovery and start may take together.
    type: int
    default: 1800
  state:
    description:
      - V(started) leaves a server alone that runs already.
      - V(stopped) stops it, with force if it must, and removes the files that belonged to it.
      - V(restarted) stops it and starts it as the session's server was started before, on its port and with a new
        password. Only O(session_directory) counts then.
    type: str
    choices: [started, stopped, restarted]
    default: started
extends_documentation_fragment:
  - phpborg.instant_recovery.attributes
  - phpborg.instant_recovery.engine
  - phpborg.instant_recovery.postgresql
attributes:
  check_mode:
    support: full
    details: What is in the catalogs (roles' settings, subscriptions) can only be read by a server, so it is not told.
  diff_mode:
    support: full
  idempotent:
    support: full
  platform:
    support: full
    platforms: linux
seealso:
  - module: phpborg.instant_recovery.server_programs_info
  - module: phpborg.instant_recovery.copy_plan_info
  - module: phpborg.instant_recovery.overlay_mount
"""

EXAMPLES = r"""
- name: Start a server on a session's copy
  phpborg.instant_recovery.pg_ephemeral:
    session_directory: "{{ begun.session_directory }}"
    data_directory: "{{ begun.directories.merged }}/var/lib/postgresql/15/main"
  register: server

- name: Ask it something
  ansible.builtin.command:
    argv: ["{{ server.bindir }}/psql", --no-psqlrc, --command, select version(), service=instant_recovery]
  environment:
    PGSERVICEFILE: "{{ server.client_file }}"
  changed_when: false

- name: Stop it
  phpborg.instant_recovery.pg_ephemeral:
    session_directory: "{{ begun.session_directory }}"
    state: stopped

- name: Start a server that shows the data as it was before a mistake
  phpborg.instant_recovery.pg_ephemeral:
    session_directory: "{{ begun.session_directory }}"
    data_directory: "{{ begun.directories.merged }}/var/lib/postgresql/15/main"
    log_source: /srv/wal_archive
    recovery_target_time: "2026-11-22T14:05:00+01"

- name: Show what a start would change, without changing it
  phpborg.instant_recovery.pg_ephemeral:
    session_directory: "{{ begun.session_directory }}"
    data_directory: "{{ begun.directories.merged }}/var/lib/postgresql/15/main"
    read_only: true
    settings:
      work_mem: 256MB
  check_mode: true
  diff: true
"""

RETURN = r"""
version:
  description: Version of the server. Null with O(state=stopped).
  type: str
  returned: success
  sample: "15.18"
port:
  description: Its port on 127.0.0.1. Null with O(state=stopped), and in check mode without O(port).
  type: int
  returned: success
  sample: 15432
socket_directory:
  description: The directory of its socket.
  type: str
  returned: success
  sample: /var/lib/instant_recovery/20261122-130501-9c1e/client
pid:
  description: Its process. Null with O(state=stopped) and in check mode.
  type: int
  returned: success
  sample: 4711
user:
  description: The role to log in as, through TCP as well as through the socket. Null with O(state=stopped).
  type: str
  returned: success
  sample: instant_recovery
superuser:
  description: The cluster's bootstrap superuser, whatever its name. Null with O(state=stopped) and in check mode.
  type: str
  returned: success
  sample: postgres
databases:
  description:
    - Databases that can be connected to, except templates. Empty with O(state=stopped) and in check mode.
    - Bytes of a name that are no UTF-8, as here and there in a cluster without an encoding, are shown as C(\xHH), in
      this as in all results.
  type: list
  elements: str
  returned: success
  sample: [postgres, shop]
connection_string:
  description:
    - URL of the server, for libpq. It names the file that holds the password, and what variables such as
      E(PGCHANNELBINDING) must not decide.
    - Null with O(state=stopped) and in check mode.
  type: str
  returned: success
  sample: postgresql://instant_recovery@127.0.0.1:15432/postgres?passfile=/var/lib/instant_recovery/20261122-130501-9c1e/client/pgpass&password=
client_file:
  description:
    - Connection service file, in which the server is the service C(instant_recovery). With its path in
      E(PGSERVICEFILE), C(psql -w service=instant_recovery) connects.
    - Null with O(state=stopped) and in check mode.
  type: str
  returned: success
  sample: /var/lib/instant_recovery/20261122-130501-9c1e/client/pg_service.conf
log:
  description: Its log. Null with O(state=stopped).
  type: str
  returned: success
  sample: /var/lib/instant_recovery/20261122-130501-9c1e/log/server.log
bindir:
  description: Directory of the PostgreSQL programs. Null with O(state=stopped).
  type: str
  returned: success
  sample: /usr/lib/postgresql/15/bin
network:
  description: Whether the server can open connections, V(none) or V(host). Null with O(state=stopped).
  type: str
  returned: success
  sample: none
read_only:
  description: Whether sessions open read-only transactions. Null with O(state=stopped).
  type: bool
  returned: success
  sample: false
settings:
  description: The settings of its configuration file. Empty with O(state=stopped).
  type: dict
  returned: success
  sample: {fsync: "off", shared_buffers: 128MB, TimeZone: Europe/Berlin}
neutralised:
  description: What was done to keep the copy away from production. Empty with O(state=stopped).
  type: list
  elements: dict
  returned: success
  contains:
    what:
      description: What was changed.
      type: str
    why:
      description: What would have happened otherwise.
      type: str
  sample:
    - what: standby.signal removed
      why: as a standby the server would connect to production and never accept a write
carried_over:
  description:
    - What the session has as production had it, because results or recovery depend on it; and what of that this host
      could not give it. Empty with O(state=stopped).
  type: list
  elements: dict
  returned: success
  contains:
    what:
      description: Settings and their values.
      type: str
    why:
      description: Why they were kept, or were not.
      type: str
  sample:
    - what: TimeZone=Europe/Berlin, DateStyle=iso, dmy
      why: results of queries depend on it
recovered_to:
  description:
    - The point in time that the copy shows. Null with O(state=stopped) and in check mode.
    - A later start of the same copy has nothing to recover, and returns it again.
  type: dict
  returned: success
  contains:
    time:
      description: When the last transaction that was replayed ended, in UTC. Null where none was, or it is not known.
      type: str
    lsn:
      description: The position in the WAL up to which it was replayed. Null after an orderly shutdown.
      type: str
    timeline:
      description: The timeline that the session writes on.
      type: int
    reason:
      description: Why recovery ended there, in the server's words if it stopped at a target.
      type: str
  sample:
    time: "2026-11-22T13:04:59.918273+00:00"
    lsn: 1A/2B3C4D5E
    timeline: 2
    reason: stopping before commit of transaction 4711, time 2026-11-22 13:05:02.1+00
data:
  description:
    - What to know about the data before trusting them; Ansible also shows it as warnings. Null with O(state=stopped)
      and in check mode.
    - "Tables and indexes are named as C(DATABASE: SCHEMA.NAME), at most 20 for each database."
  type: dict
  returned: success
  contains:
    checksums:
      description: Whether pages have checksums, so that damage would be noticed.
      type: bool
    last_commit:
      description: When the last transaction committed, in UTC, which is the age of the data. Null if it is not known.
      type: str
    prepared_transactions:
      description: Names of prepared transactions. They hold their locks until they are committed or rolled back.
      type: list
      elements: str
    emptied_tables:
      description: Unlogged tables, which recovery has emptied. Where a database was not looked into, their number.
      type: list
      elements: str
    invalid_indexes:
      description: Indexes that are not used, in production neither.
      type: list
      elements: str
    collations:
      description:
        - Collations that have another version on this host, or none recorded, as in a cluster that another C library
          wrote. Text may sort otherwise, and indexes on it may miss rows.
        - Those of databases themselves are known from PostgreSQL 15 on, others are where O(examine) looks.
      type: list
      elements: dict
      contains:
        database:
          description: The database.
          type: str
        collation:
          description: The collation, as C(SCHEMA.NAME). Null for the database's own.
          type: str
        recorded:
          description: The version that it was used with. Null where none is recorded.
          type: str
        actual:
          description: This host's version. Null where it has none.
          type: str
    missing_libraries:
      description: Libraries of functions that are not installed on this host.
      type: list
      elements: dict
      contains:
        database:
          description: The database.
          type: str
        extension:
          description: The extension, if the functions belong to one.
          type: str
        library:
          description: The library.
          type: str
    not_looked_into:
      description:
        - Databases of which these lists are not known, but for their own collation. All of them without O(examine).
      type: list
      elements: str
  sample:
    checksums: true
    last_commit: "2026-11-22T13:04:59.918273+00:00"
    prepared_transactions: []
    emptied_tables: ["shop: public.sessions"]
    invalid_indexes: []
    collations:
      - database: shop
        collation: public.german
        recorded: "153.112"
        actual: "153.120"
    missing_libraries:
      - database: shop
        extension: postgis
        library: $libdir/postgis-3
    not_looked_into: []
session:
  description:
    - The session's record, which this start has made C(active).
    - Null without O(session_directory), with O(state=stopped) and in check mode.
    - Its keys are those that M(phpborg.instant_recovery.session_info) explains.
  type: dict
  returned: success
  sample:
    id: 20261122-130501-9c1e
    status: active
    port: 15432
elapsed:
  description: Seconds it took.
  type: float
  returned: success
  sample: 0.25
"""

from ..module_utils._engine.lifecycle import run
from ..module_utils._postgresql.engine import Postgresql


def main() -> None:
    """Wire the arguments to starting or stopping."""
    run(Postgresql())


if __name__ == "__main__":
    main()
