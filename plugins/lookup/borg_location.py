# Copyright (c) 2026, phpBorg contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a start is told of repositories and archives, read on the controller just as the modules read it."""

from __future__ import annotations

DOCUMENTATION = r"""
name: borg_location
short_description: Reads where a repository is and which archive of it is meant
version_added: 1.0.0
author: phpBorg contributors (@phpborg)
description:
  - Takes what people give apart, and refuses what cannot be meant, before any host is asked.
options:
  _terms:
    description: The text, or nothing.
    type: list
    elements: raw
    required: true
  option:
    description: What the text is for, and so which forms it can have.
    type: str
    choices: [archive, repository, log_source]
    default: archive
"""

EXAMPLES = r"""
- name: Tell which archive is meant
  ansible.builtin.debug:
    msg: "{{ lookup('phpborg.instant_recovery.borg_location', '/srv/repository::latest').archive }}"
"""

RETURN = r"""
_raw:
  description:
    - One dictionary for each text, with C(repository) and C(archive). For C(log_source), C(archive) is
      C(REPOSITORY::NAME), and there are C(path) and whether that is in the session's own archive (C(is_own)).
    - C(refusal) is a sentence on why the text cannot be meant. What there is nothing of is an empty string.
  type: list
  elements: dict
  sample:
    - {repository: /srv/repository, archive: latest, path: "", is_own: false, refusal: ""}
"""

from typing import Any

from ansible.plugins.lookup import LookupBase

from ..module_utils._borg.location import LocationError, check_repository, parse_archive, parse_log_source

NOTHING = {"repository": "", "archive": "", "path": "", "is_own": False, "refusal": ""}


class LookupModule(LookupBase):  # type: ignore[misc]  # Ansible has no types
    """The lookup."""

    def run(self, terms: list[Any], variables: dict[str, Any] | None = None, **kwargs: Any) -> list[dict[str, Any]]:
        """One dictionary for each text."""
        self.set_options(var_options=variables, direct=kwargs)
        return [read("" if term is None else str(term), self.get_option("option")) for term in terms]


def read(text: str, option: str) -> dict[str, Any]:
    """What the text says, being given for this option."""
    try:
        return {**NOTHING, **(READERS[option](text) if text else {})}
    except LocationError as error:
        return {**NOTHING, "refusal": str(error)}


def _archive(text: str) -> dict[str, Any]:
    repository, archive = parse_archive(text)
    return {"repository": repository or "", "archive": archive}


def _repository(text: str) -> dict[str, Any]:
    return {"repository": check_repository(text)}


def _log_source(text: str) -> dict[str, Any]:
    place = parse_log_source(text)
    return {"archive": place.archive, "path": place.path, "is_own": place.is_own}


READERS = {"archive": _archive, "repository": _repository, "log_source": _log_source}
