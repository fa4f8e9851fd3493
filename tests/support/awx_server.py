# Copyright (c) 2026, phpBorg contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A stand-in for AWX's API on loopback, as no registry has AWX: it keeps what it is told, and refuses what AWX refuses.

It knows as much of the API as the collections' modules use: lists that are searched by fields, objects, associations,
surveys, and the nodes of workflows. What is right and wrong is in tests.support.awx_content, by a real AWX.
"""

from __future__ import annotations

import itertools
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import parse_qsl, urlsplit

from tests.support.awx_content import (
    CHECKOUT,
    credential_type_problems,
    notification_problems,
    schedule_problems,
    survey_problems,
)

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["AwxServer"]

TOKEN = "a-token-of-the-tests"
PREFIX = "/api/v2/"
# What counts for a node, a schedule or a launch as a template.
RUNNABLE = ("job_templates", "workflow_job_templates", "projects", "workflow_approval_templates")
SINGULAR = {"inventories": "inventory"}

Object = dict[str, Any]


class RefusedError(Exception):
    """An answer with an error's status."""

    def __init__(self, status: int, detail: object) -> None:
        super().__init__(detail)
        self.status, self.detail = status, detail


class AwxServer:
    """Serves the API as long as it is entered; `objects` are what it keeps, by list and number."""

    def __init__(self) -> None:
        self.objects: dict[str, dict[int, Object]] = {}
        self.associations: dict[tuple[str, int, str], list[int]] = {}
        self.surveys: dict[int, Object] = {}
        self.writes: list[str] = []
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()
        self._add("organizations", {"name": "Default"})

    def __enter__(self) -> Self:
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        threading.Thread(target=self._http.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._http.server_close()

    @property
    def environment(self) -> dict[str, str]:
        """What the collections' modules find it by."""
        return {
            "CONTROLLER_HOST": f"http://127.0.0.1:{self._http.server_port}",
            "CONTROLLER_OAUTH_TOKEN": TOKEN,
            "CONTROLLER_VERIFY_SSL": "false",
        }

    def named(self, kind: str) -> dict[str, Object]:
        """The objects of a list, by name."""
        return {one.get("name", one.get("identifier")): one for one in self.objects.get(kind, {}).values()}

    def related(self, kind: str, name: str, association: str) -> list[int]:
        """Numbers of what an object is associated with."""
        return self.associations.get((kind, self.named(kind)[name]["id"], association), [])

    def answer(self, method: str, target: str, data: Object) -> tuple[int, Any]:
        """Status and content for one request. Raises RefusedError."""
        url = urlsplit(target)
        kind, *rest = url.path.removeprefix(PREFIX).strip("/").split("/")
        with self._lock:
            if method != "GET":
                self.writes.append(f"{method} {url.path}")
            if not rest:
                return (201, self._create(kind, data)) if method == "POST" else (200, self._search(kind, url.query))
            one = self.objects.get(kind, {}).get(int(rest[0]))
            if one is None:
                raise RefusedError(404, "Not found.")
            return (
                self._of_one(method, kind, one, data)
                if len(rest) == 1
                else self._below(method, kind, one, rest[1], data)
            )

    def _search(self, kind: str, query: str) -> Object:
        kinds = RUNNABLE if kind == "unified_job_templates" else (kind,)
        found = [one for some in kinds for one in self.objects.get(some, {}).values()]
        for name, value in parse_qsl(query):
            found = [one for one in found if str(one.get(name)) == value]
        return {"count": len(found), "next": None, "results": found}

    def _create(self, kind: str, data: Object) -> Object:
        self._refuse(kind, data)
        return self._add(kind, data)

    def _add(self, kind: str, data: Object) -> Object:
        number = next(self._numbers)
        url = f"{PREFIX}{kind}/{number}/"
        related = {"survey_spec": f"{url}survey_spec/"} if kind.endswith("job_templates") else {}
        if kind == "projects":
            update = self._add("project_updates", {"status": "successful", "awaited": False})
            data = {**data, "scm_revision": "", "summary_fields": {"current_update": {"id": update["id"]}}}
        one = {**data, "id": number, "url": url, "type": SINGULAR.get(kind, kind[:-1]), "related": related}
        self.objects.setdefault(kind, {})[number] = one
        return one

    def _of_one(self, method: str, kind: str, one: Object, data: Object) -> tuple[int, Any]:
        if method == "PATCH":
            self._refuse(kind, {**one, **data})
            one.update(data)
        elif method == "DELETE":
            self._refuse_what_is_used(kind, one)
            del self.objects[kind][one["id"]]
            return 204, None
        elif kind == "project_updates":
            one["awaited"] = True
        return 200, one

    def _below(self, method: str, kind: str, one: Object, part: str, data: Object) -> tuple[int, Any]:
        if part == "survey_spec":
            if method == "POST":
                _refuse_problems(survey_problems(data), key="error")
                self.surveys[one["id"]] = data
            return 200, self.surveys.get(one["id"], {})
        if part == "create_approval_template":
            approval = self._add("workflow_approval_templates", data)
            one["unified_job_template"] = approval["id"]
            one["related"]["unified_job_template"] = approval["url"]
            return 201, approval
        numbers = self.associations.setdefault((kind, one["id"], part), [])
        if method == "POST":
            numbers.remove(data["id"]) if data.get("disassociate") else numbers.append(data["id"])
            return 204, None
        return 200, {"count": len(numbers), "next": None, "results": [{"id": number} for number in numbers]}

    def _refuse(self, kind: str, data: Object) -> None:
        rules: dict[str, Callable[[Object], list[str]]] = {
            "credential_types": credential_type_problems,
            "notification_templates": notification_problems,
            "job_templates": self._playbook_problems,
            "schedules": lambda one: schedule_problems(*self._run_by(one)),
            "workflow_job_template_nodes": self._node_problems,
        }
        _refuse_problems(rules[kind](data) if kind in rules else [])

    def _playbook_problems(self, template: Object) -> list[str]:
        """A project has playbooks when the update that its creation began has come to its end."""
        project = self.objects["projects"][template["project"]]
        update = self.objects["project_updates"][project["summary_fields"]["current_update"]["id"]]
        known = {path.name for path in (CHECKOUT / "awx" / "project").glob("*.yml")} if update["awaited"] else set()
        return [] if template["playbook"] in known else ["Playbook not found for project."]

    def _run_by(self, one: Object) -> tuple[Object, dict[str, Object]]:
        """An object with its template by name, and that template with its survey."""
        number = one["unified_job_template"]
        templates = {known["id"]: known for some in RUNNABLE for known in self.objects.get(some, {}).values()}
        name = templates[number]["name"] if number in templates else "none"
        known = {name: {"survey_spec": self.surveys.get(number, {})}} if number in templates else {}
        return {**one, "unified_job_template": name}, known

    def _node_problems(self, node: Object) -> list[str]:
        if "unified_job_template" not in node:  # an approval's comes later
            return []
        rule = {"rrule": "DTSTART:20260101T000000Z RRULE:FREQ=DAILY;INTERVAL=1"}
        told = schedule_problems(*self._run_by({**node, **rule}))
        # A node may lack answers, which the launch of the workflow gives.
        return [text for text in told if not text.startswith("the answer for")]

    def _refuse_what_is_used(self, kind: str, one: Object) -> None:
        users = [
            user["url"]
            for some in self.objects.values()
            for user in some.values()
            for key in ("project", "default_environment", "unified_job_template")
            if user.get(key) == one["id"] and user is not one and kind != "workflow_approval_templates"
        ]
        nodes = self.objects.get("workflow_job_template_nodes", {})
        if kind == "workflow_job_templates":
            for number in [number for number, node in nodes.items() if node["workflow_job_template"] == one["id"]]:
                del nodes[number]
        elif users:
            raise RefusedError(409, {"error": f"It is used by {users}"})


def _refuse_problems(problems: list[str], key: str = "detail") -> None:
    if problems:
        raise RefusedError(400, {key: problems})


def _handler(server: AwxServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        """One request."""

        def _answer(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            data = json.loads(self.rfile.read(length) or "{}")
            try:
                if self.headers.get("Authorization") != f"Bearer {TOKEN}":
                    raise RefusedError(401, {"detail": "Authentication credentials were not provided."})
                status, content = server.answer(self.command, self.path, data)
            except RefusedError as refused:
                status, content = refused.status, refused.detail
            body = b"" if content is None else json.dumps(content).encode()
            self.send_response(status)
            self.send_header("X-API-Product-Name", "AWX")
            self.send_header("X-API-Product-Version", "24.6.1")
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Nothing on the terminal."""

    for method in ("GET", "POST", "PATCH", "DELETE"):
        setattr(Handler, f"do_{method}", Handler._answer)
    return Handler
