"""An API server in memory, over HTTP: resource versions, conflicts, preconditions, strict validation of status."""

from __future__ import annotations

import copy
import json
import re
import uuid
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web
from tests.support.builders import merge
from tests.support.http_server import ResetConnection, Seen

from finetune_operator.api.schema import crd_schema, violations

Object = dict[str, Any]
Key = tuple[str, str]
"""(namespace, name); the namespace of nodes and other objects of the whole cluster is empty."""
Listener = Callable[[str, str, Object], None]
"""(event type, plural, object)."""

PATH = re.compile(
    r"^(?P<prefix>/api/v1|/apis/[^/]+/[^/]+)(/namespaces/(?P<namespace>[^/]+))?/(?P<plural>[a-z]+)"
    r"(/(?P<name>[^/]+))?(?P<status>/status)?$"
)


@dataclass
class Gate:
    """Counts the writes of a run over all servers, and cuts the operator off at one of them.

    From then on no server answers, until `reopen`: a process that is dead sends nothing more.
    """

    cut_at: int | None = None
    cut_at_label: str | None = None
    """The next write of this name instead of one of this number."""
    cut_after: bool = False
    """The write takes effect, but its answer is lost."""
    closed: bool = False
    labels: list[str] = field(default_factory=list)

    def check(self) -> None:
        """To be asked before any request is served."""
        if self.closed:
            raise ResetConnection

    def before(self, label: str) -> None:
        """A write has come in."""
        self.labels.append(label)
        if label == self.cut_at_label:
            self.cut_at = len(self.labels) - 1
        if self.cut_at == len(self.labels) - 1 and not self.cut_after:
            self.closed = True
            raise ResetConnection

    def after(self) -> None:
        """It has been carried out."""
        if self.cut_at == len(self.labels) - 1 and self.cut_after:
            self.closed = True
            raise ResetConnection

    def reopen(self) -> None:
        """A new operator starts."""
        self.closed = False
        self.cut_at = self.cut_at_label = None


class FakeKube:
    """Objects by plural, (namespace, name). Tests play the other controllers with `put` and `remove`."""

    def __init__(self, gate: Gate | None = None) -> None:
        self.objects: dict[str, dict[Key, Object]] = defaultdict(dict)
        self.requests: list[Seen] = []
        self.created: list[tuple[str, Object]] = []
        """(plural, object) of each create that took effect."""
        self.missing: set[str] = set()
        """Plurals whose CRD is not installed."""
        self.refusals: dict[tuple[str, str], tuple[int, str, str]] = {}
        """(method, plural) → status, reason and message of an answer in place of the action."""
        self.listeners: list[Listener] = []
        self.gate = gate or Gate()
        self.version = 1000
        """resourceVersion of the last change of any object."""
        self.expires = 0
        """How many LISTs cannot be continued after a page, as if it had been asked for too late."""
        self._snapshots: dict[str, list[Object]] = {}
        """What a LIST has still to deliver, by its continue token: all pages show one state, as etcd's do."""
        self._status = crd_schema()["properties"]["status"]

    def put(self, plural: str, obj: Object) -> Object:
        """Create or replace an object, as another controller or a user does."""
        key = obj["metadata"].get("namespace", ""), obj["metadata"]["name"]
        old = self.objects[plural].get(key)
        metadata = {"uid": old["metadata"]["uid"] if old else str(uuid.uuid4())} | obj["metadata"]
        new = copy.deepcopy(obj) | {"metadata": metadata | {"resourceVersion": self._next_version()}}
        self.objects[plural][key] = new
        self._tell("MODIFIED" if old else "ADDED", plural, new)
        return copy.deepcopy(new)

    def remove(self, plural: str, key: Key) -> None:
        """Delete an object, as another controller or a user does."""
        old = self.objects[plural].pop(key)
        old["metadata"]["resourceVersion"] = self._next_version()
        self._tell("DELETED", plural, old)

    def get(self, plural: str, key: Key) -> Object | None:
        return self.objects[plural].get(key)

    def writes(self) -> list[Seen]:
        """The requests that were to change something, but for events."""
        return [seen for seen in self.requests if seen.method != "GET" and not seen.path.endswith("/events")]

    async def __call__(self, seen: Seen) -> web.Response:
        self.gate.check()
        self.requests.append(seen)
        match = PATH.match(seen.path)
        if match is None or match["plural"] in self.missing:
            return web.Response(status=404, text="404 page not found\n")
        if seen.method == "GET":
            return self._serve(seen, match)
        self.gate.before(_label(seen, match["plural"]))
        answer = self._serve(seen, match)
        self.gate.after()
        return answer

    def _serve(self, seen: Seen, match: re.Match[str]) -> web.Response:
        plural, name = match["plural"], match["name"]
        if (refusal := self.refusals.get((seen.method, plural))) is not None:
            return refuse(*refusal, name or "")
        if seen.method == "GET" and name is None:
            return self._list(plural, match["namespace"], seen.query)
        if seen.method == "POST":
            return self._create(plural, match["namespace"], seen)
        key = match["namespace"] or "", name
        if (old := self.objects[plural].get(key)) is None:
            return refuse(404, "NotFound", f'{plural} "{name}" not found', name)
        if seen.method == "PATCH":
            return self._patch(plural, old, seen, is_status=bool(match["status"]))
        return self._delete(plural, key, seen) if seen.method == "DELETE" else web.json_response(old)

    def _list(self, plural: str, namespace: str | None, query: dict[str, str]) -> web.Response:
        token = query.get("continue", "")
        if token and self.expires:
            self.expires -= 1
            self._snapshots.clear()
        if token and token not in self._snapshots:
            return refuse(410, "Expired", "the provided continue parameter is too old", "")
        items = self._snapshots.pop(token) if token else self._selected(plural, namespace, query)
        version = token.partition("/")[0] or str(self.version)
        limit = int(query.get("limit", "500"))
        metadata = {"resourceVersion": version}
        if len(items) > limit:
            metadata["continue"] = f"{version}/{uuid.uuid4()}"
            self._snapshots[metadata["continue"]] = items[limit:]
        return web.json_response({"metadata": metadata, "items": items[:limit]})

    def _selected(self, plural: str, namespace: str | None, query: dict[str, str]) -> list[Object]:
        return [
            obj
            for (space, _name), obj in sorted(self.objects[plural].items())
            if namespace in {None, space} and is_selected(obj, query)
        ]

    def _create(self, plural: str, namespace: str, seen: Seen) -> web.Response:
        obj = json.loads(seen.text, parse_constant=_no_constant)
        name = obj["metadata"]["name"]
        obj["metadata"].setdefault("namespace", namespace)
        if (namespace, name) in self.objects[plural]:
            return refuse(409, "AlreadyExists", f'{plural} "{name}" already exists', name)
        if seen.query.get("dryRun"):
            return web.json_response(obj, status=201)
        new = self.put(plural, obj | {"metadata": obj["metadata"] | {"generation": 1}})
        self.created.append((plural, new))
        return web.json_response(new, status=201)

    def _patch(self, plural: str, old: Object, seen: Seen, *, is_status: bool) -> web.Response:
        name = old["metadata"]["name"]
        if seen.headers["Content-Type"] != "application/merge-patch+json":
            return refuse(415, "UnsupportedMediaType", "only merge patches", name)
        patch = json.loads(seen.text, parse_constant=_no_constant)
        version = patch.get("metadata", {}).get("resourceVersion")
        if version is not None and version != old["metadata"]["resourceVersion"]:
            return refuse(409, "Conflict", "the object has been modified; please apply your changes", name)
        if (uid := patch.get("metadata", {}).get("uid")) is not None and uid != old["metadata"]["uid"]:
            return refuse(409, "Conflict", f"the UID in the precondition ({uid}) does not match", name)
        if not is_status:
            return web.json_response(self.put(plural, merge(old, patch | {"status": old.get("status")})))
        status = merge(old.get("status") or {}, patch.get("status"))
        if problems := list(violations(self._status, status, ("status",))):
            return refuse(422, "Invalid", "; ".join(map(str, problems)), name)
        return web.json_response(self.put(plural, old | {"status": status}))

    def _delete(self, plural: str, key: Key, seen: Seen) -> web.Response:
        wanted = json.loads(seen.text).get("preconditions", {}).get("uid")
        uid = self.objects[plural][key]["metadata"]["uid"]
        if wanted not in {None, uid}:
            return refuse(409, "Conflict", f"the UID in the precondition ({wanted}) does not match ({uid})", key[1])
        self.remove(plural, key)
        return web.json_response({"kind": "Status", "status": "Success"})

    def _next_version(self) -> str:
        self.version += 1
        return str(self.version)

    def _tell(self, type_: str, plural: str, obj: Object) -> None:
        for listener in self.listeners:
            listener(type_, plural, copy.deepcopy(obj))


def _label(seen: Seen, plural: str) -> str:
    """A write in words: what changes in the status, or what kind is made."""
    if seen.method != "PATCH":
        return f"{seen.method} {plural}"
    status = json.loads(seen.text).get("status", {})
    return f"status {status.get('phase') or status.get('reason') or '+'.join(sorted(status))}"


def is_selected(obj: Object, query: dict[str, str]) -> bool:
    """Whether an object has the label and the field that a LIST or a watch asks for."""
    label, _, value = query.get("labelSelector", "").partition("=")
    path, _, wanted = query.get("fieldSelector", "").partition("=")
    field_value: Any = obj
    for key in path.split(".") if path else ():
        field_value = field_value.get(key, {})
    return (not label or matches(obj, label, value)) and (not path or field_value == wanted)


def matches(obj: Object, label: str, value: str) -> bool:
    """Whether an object has a label, with a value if one is given."""
    labels = obj["metadata"].get("labels") or {}
    return label in labels and value in {"", labels[label]}


def _no_constant(text: str) -> Any:
    raise web.HTTPBadRequest(text=f"{text} is no JSON")


def refuse(status: int, reason: str, message: str, name: str) -> web.Response:
    """The answer of an API server that does not do what it was asked to."""
    details = {"details": {"name": name}} if name else {}
    body = {"kind": "Status", "status": "Failure", "reason": reason, "message": message, "code": status}
    return web.json_response(body | details, status=status)
