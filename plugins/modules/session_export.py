#!/usr/bin/python
# Copyright (c) 2026, phpBorg contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: session_export
short_description: Export tables, schemas, a database or a query's rows from an instant recovery session
version_added: 1.0.0
author: phpBorg contributors (@phpborg)
description:
  - Writes what is asked for into one file, with the dump program of the copy's own version, or as CSV. Everything that
    can be known is checked before a byte is written.
  - The file appears under its name when it is whole. Of an export that fails, or is killed, nothing is left.
  - The program runs as the user of the session's server, in a sandbox that reaches the server's socket alone. What it
    says, and how many bytes there are so far, is in the session's log V(export), which
    M(phpborg.instant_recovery.session_follow) prints as it grows.
  - With O(fetch_to) an action on the controller fetches the file, and nothing is left of it on the session's host.
options:
  session_id:
    description:
      - Name of the session.
    type: str
    required: true
  session_root:
    description:
      - Directory that holds the sessions.
      - The default is C(/var/lib/instant_recovery) for root and C(instant_recovery) in the user's state directory
        otherwise.
    type: path
  database:
    description:
      - Database to export from. May be left out where the copy has just one.
    type: str
  tables:
    description:
      - Tables, by name or pattern, in which V(*) stands for any characters and V(?) for one, with or without the schema
        before them, such as V(orders) or V(sales.*).
      - A table comes with its partitions and children. Views and the like are passed over by patterns, and refused by
        name.
    type: list
    elements: str
    default: []
  schemas:
    description:
      - Schemas, by name or pattern, where the engine has them. With O(tables), those of these schemas alone.
    type: list
    elements: str
    default: []
  query:
    description:
      - A query whose rows are exported as CSV.
    type: str
  format:
    description:
      - V(sql) is a file of statements. V(custom) is pg_dump's compressed format, for C(pg_restore), of PostgreSQL
        alone.
      - V(csv) holds one table, or the rows of O(query), with the names of the columns first. NULL is nothing between
        its commas; an empty text is C("").
      - Left out, it is V(csv) for a O(query), else V(sql).
    type: str
    choices: [sql, custom, csv]
  to:
    description:
      - Absolute path of the file on the session's host. Exactly one of this and O(fetch_to) is given.
    type: str
  fetch_to:
    description:
      - Path of the file on the controller. Until it is fetched it lies in the session's directory. What is fetched has
        the name C(.NAME.XXXXXXXX.partial) until it is whole; a controller that is killed leaves that.
    type: str
  waiting:
    description:
      - For the action, which fetches so where the session is another user's. The name of a file that waits to be
        fetched, of which a piece is returned, from O(offset) on. Nothing is exported then.
    type: str
  offset:
    description:
      - Where the piece of O(waiting) begins, in bytes.
    type: int
    default: 0
  force:
    description:
      - Whether to replace a file that is there already.
    type: bool
    default: false
  recipient:
    description:
      - A public key of age (C(age1…)) or SSH, an armoured one of GnuPG, or the absolute path of a file with one on the
        session's host. The export is encrypted for it, by C(age) or C(gpg), before it gets to a disk.
    type: str
  timeout:
    description:
      - Seconds that the export may take.
    type: int
    default: 86400
  requested_by:
    description:
      - Who wants it, for the host's audit log.
    type: str
extends_documentation_fragment:
  - phpborg.instant_recovery.attributes
attributes:
  check_mode:
    support: full
    details: Everything is checked, and nothing written.
  diff_mode:
    support: none
    details: What is in a session is nobody's business who only sees its plays.
  idempotent:
    support: none
    details: A file that is there is refused, or with O(force) written anew.
  platform:
    support: full
    platforms: linux
notes:
  - What is in an export comes out of the archive. Load it as somebody who may do nothing else, as you would any program
    of unknown origin.
seealso:
  - module: phpborg.instant_recovery.session_log
"""

EXAMPLES = r"""
- name: Take one table home
  phpborg.instant_recovery.session_export:
    session_id: 20261122-130501-9c1e
    database: shop
    tables: [orders]
    format: custom
    to: /srv/exports/orders.dump

- name: Fetch what was bought in May, encrypted
  phpborg.instant_recovery.session_export:
    session_id: 20261122-130501-9c1e
    database: shop
    query: select * from orders where at >= '2026-05-01' and at < '2026-06-01'
    fetch_to: /home/me/may.csv.age
    recipient: age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kg5sfn9aqmcac8p
"""

RETURN = r"""
session_id:
  description: The session.
  type: str
  returned: success
  sample: 20261122-130501-9c1e
path:
  description: The file, on the session's host, or with O(fetch_to) on the controller.
  type: str
  returned: success
  sample: /srv/exports/orders.csv
format:
  description: Its format.
  type: str
  returned: success
  sample: csv
database:
  description: Where it is from.
  type: str
  returned: success
  sample: shop
tables:
  description: The tables that it has, the first 2000. Empty for a query.
  type: list
  elements: str
  returned: success
  sample: [public.orders]
encrypted_by:
  description: The program that has encrypted it.
  type: str
  returned: success
  sample: age
size:
  description: Bytes of the file. None of this and what follows in check mode.
  type: int
  returned: success
  sample: 348211
rows:
  description: Rows, of CSV alone. A dump does not say how many it has.
  type: int
  returned: success
  sample: 2000
sha256:
  description: The checksum of the file, as it is on the disk.
  type: str
  returned: success
  sample: 5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03
content:
  description: The piece, in Base64; empty behind the file's end.
  type: str
  returned: with O(waiting)
  sample: aWQKMQo=
seconds:
  description: Seconds that the export took.
  type: float
  returned: success
  sample: 1.72
elapsed:
  description: Seconds this took.
  type: float
  returned: success
  sample: 1.9
"""

import base64
import os
import re
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ..module_utils._engines.exports import EXPORTERS, FORMATS
from ..module_utils._errors import RecoveryError, run_module
from ..module_utils._export.export import plan_export
from ..module_utils._export.selection import Asked
from ..module_utils._export.target import Target
from ..module_utils._host.files import read_beginning
from ..module_utils._session.directory import FETCHED, default_root
from ..module_utils._session.session import Session

NAME = re.compile("[0-9a-f]{16}")
PIECE = 8 << 20  # bytes


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "session_id": {"type": "str", "required": True},
            "session_root": {"type": "path"},
            "database": {"type": "str"},
            "tables": {"type": "list", "elements": "str", "default": []},
            "schemas": {"type": "list", "elements": "str", "default": []},
            "query": {"type": "str"},
            "format": {"type": "str", "choices": list(FORMATS)},
            "to": {"type": "str"},
            "fetch_to": {"type": "str"},
            "waiting": {"type": "str"},
            "offset": {"type": "int", "default": 0},
            "force": {"type": "bool", "default": False},
            "recipient": {"type": "str"},
            "timeout": {"type": "int", "default": 86400},
            "requested_by": {"type": "str"},
        },
        required_one_of=[("to", "fetch_to", "waiting")],
        mutually_exclusive=[("to", "fetch_to", "waiting")],
        supports_check_mode=True,
    )
    run_module(module, lambda: _export(module.params, check_mode=module.check_mode))


def _export(options: dict[str, Any], *, check_mode: bool) -> dict[str, Any]:
    session = _found(options["session_id"], options["session_root"] or default_root())
    if options["waiting"] is not None:
        return {"changed": False, "content": base64.b64encode(_piece(session, **options)).decode()}
    exporter = EXPORTERS.get(session.record.engine or "")
    if exporter is None:
        raise RecoveryError(f"Session {session.id} is of engine {session.record.engine}, which cannot be exported.")
    asked = Asked(**{name: options[name] for name in ("database", "tables", "schemas", "query", "format")})
    target = _target(session, options, check_mode=check_mode)
    export = plan_export(
        session, exporter, asked, target=target, recipient=options["recipient"], timeout=float(options["timeout"])
    )
    result = export.result() if check_mode else export.run(options["requested_by"])
    return {"changed": True, **result}


def _target(session: Session, options: dict[str, Any], *, check_mode: bool) -> Target:
    if options["to"] is not None:
        return Target(options["to"], force=options["force"], option="to")
    directory = session.directory if check_mode else session.path(FETCHED)
    os.makedirs(directory, mode=0o700, exist_ok=True)
    return Target(os.path.join(directory, os.urandom(8).hex()), force=False, option="fetch_to")


def _piece(session: Session, *, waiting: str, offset: int, **_others: Any) -> bytes:
    if not NAME.fullmatch(waiting):
        raise RecoveryError(f"waiting {waiting} is no file that waits to be fetched: leave it to the action.")
    return read_beginning(os.path.join(session.path(FETCHED), waiting), PIECE, offset=offset)


def _found(session_id: str, root: str) -> Session:
    session = Session.find(root, session_id)
    if session is None:
        raise RecoveryError(f"There is no session {session_id} in {root}. Name one that session_info tells.")
    return session


if __name__ == "__main__":
    main()
