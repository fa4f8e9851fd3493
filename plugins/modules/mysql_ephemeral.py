#!/usr/bin/python
# Copyright (c) 2026, phpBorg contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: mysql_ephemeral
short_description: Run a throw-away server of MariaDB or MySQL on a copied data directory
version_added: 1.0.0
author: phpBorg contributors (@phpborg)
description:
  - Cuts a session's copy of a data directory loose from the production server it was copied from, recovers it, and
    starts a server on it that only this host can reach. RV(neutralised) says what was done for that, and why.
  - The copy, C(merged) in O(session_directory), is written to. It is a copy-on-write layer, such as
    M(phpborg.instant_recovery.overlay_mount) makes.
  - Which product and version it is, and whether its server was killed, is told by the headers of its files. The server
    is given one option file, which this module writes into C(config) in O(session_directory), and looks for no other.
  - A killed server's transactions are decided by its binary logs. So the copy starts on its own, whose index is
    rewritten to name nothing else.
  - Tables that lie elsewhere (C(.isl) files, C(DATA DIRECTORY), symbolic links) are re-pointed to their copies.
  - All programs that work on the copy or talk to its server are locked up in a root directory of their own, as a user
    of the session's own where root starts it, without a way to other files, processes or networks.
  - The server starts as no replica, without its event scheduler, and loads no library but those that store tables.
  - The account C(instant_recovery), with all rights and a password made up for this start, is what clients log in as,
    through a socket and on 127.0.0.1. The account C(ir_probe) counts them.
options:
  session_directory:
    description:
      - Directory of the session that the server belongs to. What happens is recorded there before it is done.
    type: path
    required: true
  data_directory:
    description:
      - The data directory, in C(merged) of O(session_directory). It holds C(ibdata1) and C(mysql).
      - Required for O(state=started).
    type: str
  links:
    description:
      - Where in the copy the directories are that symbolic links and C(.isl) files lead to, as far as this is known, as
        a dictionary of their paths and the directories' paths, both below C(merged).
        M(phpborg.instant_recovery.borg_archive_info) tells them.
      - Others are looked for at their path below C(merged), and below every directory on the way to O(data_directory).
    type: dict
    default: {}
  configuration_directory:
    description:
      - Directory of the archived C(my.cnf), below C(merged), such as C(etc/mysql). It is read for what results of
        queries depend on, and never given to the server. M(phpborg.instant_recovery.borg_archive_info) tells it.
    type: str
  port:
    description:
      - Port on 127.0.0.1.
      - The default is the first from 13306 on that is free and that no other session has.
    type: int
  log_source:
    description:
      - Directory of archived binary logs, from which the copy is brought to a later point in time.
    type: str
  examine:
    description:
      - Whether to look for tables that cannot be read, for RV(data), 5 seconds for each kind of look at most.
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
  - phpborg.instant_recovery.mysql
attributes:
  check_mode:
    support: full
    details: What is in the tables of the system (accounts, plugins, events) can only be read by a server.
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
  phpborg.instant_recovery.mysql_ephemeral:
    session_directory: "{{ begun.session_directory }}"
    data_directory: "{{ begun.directories.merged }}/var/lib/mysql"
  register: server

- name: Ask it something
  ansible.builtin.command:
    argv: [mariadb, "--defaults-file={{ server.client_file }}", --execute, select version()]
  changed_when: false

- name: Stop it
  phpborg.instant_recovery.mysql_ephemeral:
    session_directory: "{{ begun.session_directory }}"
    state: stopped
"""

RETURN = r"""
version:
  description: Version of the server. Null with O(state=stopped).
  type: str
  returned: success
  sample: "10.11.19"
port:
  description: Its port on 127.0.0.1. Null with O(state=stopped), and in check mode without O(port).
  type: int
  returned: success
  sample: 13306
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
  description: The account to log in as, through TCP as well as through the socket. Null with O(state=stopped).
  type: str
  returned: success
  sample: instant_recovery
superuser:
  description: The account that may do everything, which is RV(user). Null with O(state=stopped) and in check mode.
  type: str
  returned: success
  sample: instant_recovery
databases:
  description: Databases, except those of the server itself. Empty with O(state=stopped) and in check mode.
  type: list
  elements: str
  returned: success
  sample: [shop]
connection_string:
  description: URL of the server, without a password. Null with O(state=stopped) and in check mode.
  type: str
  returned: success
  sample: mysql://instant_recovery@127.0.0.1:13306/
client_file:
  description:
    - Option file for clients, with account, password and socket, so that C(mariadb --defaults-file=FILE) connects.
    - Null with O(state=stopped) and in check mode.
  type: str
  returned: success
  sample: /var/lib/instant_recovery/20261122-130501-9c1e/client/client.cnf
log:
  description: Its log. Null with O(state=stopped).
  type: str
  returned: success
  sample: /var/lib/instant_recovery/20261122-130501-9c1e/log/server.log
bindir:
  description: Directory of the server's program. Null with O(state=stopped).
  type: str
  returned: success
  sample: /usr/sbin
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
  description: The settings of its option file. Empty with O(state=stopped).
  type: dict
  returned: success
  sample: {innodb_doublewrite: "0", event_scheduler: DISABLED}
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
    - what: mysql-bin.index names the copy's own logs
      why: the server would have read, written and purged production's binary logs
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
    - what: sql_mode=ANSI, lower_case_table_names=1
      why: what queries return depends on it, or which tables are found
recovered_to:
  description:
    - The point in time that the copy shows. Null with O(state=stopped) and in check mode.
    - A later start of the same copy has nothing to recover, and returns it again.
  type: dict
  returned: success
  contains:
    time:
      description: When the last transaction that was replayed ended, in UTC. Null where it is not known.
      type: str
    position:
      description: Up to where in the binary logs the data reach. Null after an orderly shutdown.
      type: str
    gtid:
      description: Global transaction ids up to which they reach, where they are known.
      type: str
    reason:
      description: Why recovery ended there.
      type: str
  sample:
    time: null
    position: the end of mysql-bin.000004
    gtid: null
    reason: end of the copy's logs
data:
  description:
    - What to know about the data before trusting them; Ansible also shows it as warnings. Null with O(state=stopped)
      and in check mode.
  type: dict
  returned: success
  contains:
    recovered:
      description: Whether the copy was of a server that had not ended in order.
      type: bool
    prepared_transactions:
      description: Number of transactions of which no log told whether they had been committed.
      type: int
    examined:
      description: Whether all tables were looked at.
      type: bool
    unreadable_tables:
      description: Tables that cannot be read, at most 100.
      type: list
      elements: dict
      contains:
        table:
          description: The table, as C(DATABASE.NAME).
          type: str
        why:
          description: The server's reason.
          type: str
    libraries_not_loaded:
      description: Libraries that the copy's tables of plugins and functions name. None of them is loaded.
      type: list
      elements: str
  sample:
    recovered: true
    prepared_transactions: 0
    examined: true
    unreadable_tables:
      - table: shop.orders
        why: "Table 'shop.orders' doesn't exist in engine"
    libraries_not_loaded: [ha_federatedx.so]
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
    port: 13306
elapsed:
  description: Seconds it took.
  type: float
  returned: success
  sample: 0.25
"""

from ..module_utils._engine.lifecycle import run
from ..module_utils._mysql.engine import Mysql


def main() -> None:
    """Wire the arguments to starting or stopping."""
    run(Mysql())


if __name__ == "__main__":
    main()
