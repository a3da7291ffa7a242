"""Reads kubeconfigs as kubectl does: KUBECONFIG with one or several files, else ~/.kube/config, else a pod's own account."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from finetune_client.errors import NotLoggedInError
from finetune_client.home import at_home

Object = dict[str, Any]

ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
"""Where a pod finds the token of its service account."""

NO_CLUSTER = "no cluster to talk to"
ELSEWHERE = "set KUBECONFIG to a cluster's file; or train on this machine: finetune run --local -f FILE"


@dataclass(frozen=True, repr=False)
class Login:
    """A server, and how to log in there."""

    server: str
    namespace: str
    """The namespace of the context."""
    context: str
    """Its name; empty for a pod's own account."""
    cluster: Mapping[str, Any] = field(default_factory=dict)
    """The cluster's entry, with absolute paths."""
    user: Mapping[str, Any] = field(default_factory=dict)
    """The user's entry, with absolute paths."""


def read_login(context: str | None = None, kubeconfig: str | None = None, environment: Mapping[str, str] = os.environ) -> Login:
    """The login of a context, or of the current one.

    Raises:
        NotLoggedInError: there is none, or it cannot be read.
    """
    files = _files(kubeconfig, environment)
    merged = _merge(files)
    if merged["contexts"]:
        return _choose(merged, context)
    if files == [_default(environment)] and context is None and (login := _of_a_pod(environment)) is not None:
        return login
    where = ", ".join(map(str, files)) or "KUBECONFIG names no file"
    raise NotLoggedInError(f"{NO_CLUSTER}: there is no kubeconfig with a context ({where})", ELSEWHERE)


def contexts(environment: Mapping[str, str] = os.environ) -> list[str]:
    """The names of all contexts.

    Raises:
        NotLoggedInError: a kubeconfig cannot be read.
    """
    return list(_merge(_files(None, environment))["contexts"])


def _files(kubeconfig: str | None, environment: Mapping[str, str]) -> list[Path]:
    named = kubeconfig or environment.get("KUBECONFIG")
    return [at_home(part) for part in named.split(os.pathsep) if part] if named else [_default(environment)]


def _default(environment: Mapping[str, str]) -> Path:
    return Path(environment.get("HOME") or at_home("~")) / ".kube" / "config"


def _merge(files: list[Path]) -> Object:
    """Several files as one: the first one that has a name, or the current context, wins."""
    merged: Object = {"contexts": {}, "clusters": {}, "users": {}, "current-context": ""}
    for file in files:
        content = _read(file)
        merged["current-context"] = merged["current-context"] or str(content.get("current-context") or "")
        for kind in ("contexts", "clusters", "users"):
            for name, entry in _entries(content, kind):
                merged[kind].setdefault(name, _absolute(entry, file.parent))
    return merged


def _read(file: Path) -> Object:
    try:
        text = file.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise NotLoggedInError(f"{NO_CLUSTER}: the kubeconfig {file} cannot be read: {reason}", ELSEWHERE) from error
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        content = _parse_yaml(file, text)
    return content if isinstance(content, dict) else {}


def _parse_yaml(file: Path, text: str) -> Any:
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        return YAML(typ="base", pure=True).load(text)  # every scalar is text: a token of digits is no number
    except (YAMLError, RecursionError) as error:
        raise NotLoggedInError(f"{NO_CLUSTER}: the kubeconfig {file} is no YAML", ELSEWHERE, str(error)) from error


def _entries(content: Object, kind: str) -> Iterator[tuple[str, Object]]:
    """Names and contents of contexts, clusters or users; what has no such shape is no entry."""
    given = content.get(kind)
    for item in given if isinstance(given, list) else []:
        entry = item.get(kind.removesuffix("s")) if isinstance(item, dict) else None
        if isinstance(entry, dict) and item.get("name"):
            yield str(item["name"]), entry


_PATHS = ("certificate-authority", "client-certificate", "client-key", "tokenFile")


def _absolute(entry: Object, folder: Path) -> Object:
    """Paths in a kubeconfig are relative to its folder."""
    return entry | {key: str(folder / str(entry[key])) for key in _PATHS if entry.get(key)} | {"folder": str(folder)}


def _choose(merged: Object, context: str | None) -> Login:
    name = context or merged["current-context"]
    known = ", ".join(sorted(merged["contexts"]))
    if not name:
        raise NotLoggedInError(f"{NO_CLUSTER}: the kubeconfig has no current context", f"name one of these: --context {known}")
    chosen = merged["contexts"].get(name)
    if chosen is None:
        raise NotLoggedInError(f"{NO_CLUSTER}: the kubeconfig has no context {name!r}", f"its contexts are: {known}")
    cluster = merged["clusters"].get(str(chosen.get("cluster")))
    if cluster is None or not cluster.get("server"):
        raise NotLoggedInError(f"{NO_CLUSTER}: context {name!r} names a cluster without a server", "see `kubectl config view`")
    user = merged["users"].get(str(chosen.get("user")), {})
    server = str(cluster["server"]).rstrip("/")
    return Login(server, str(chosen.get("namespace") or "default"), name, cluster, user)


def _of_a_pod(environment: Mapping[str, str]) -> Login | None:
    host, port = environment.get("KUBERNETES_SERVICE_HOST"), environment.get("KUBERNETES_SERVICE_PORT")
    if not (host and port and (ACCOUNT / "token").is_file()):
        return None
    try:
        namespace = (ACCOUNT / "namespace").read_text(encoding="utf-8").strip()
    except OSError:
        namespace = "default"
    address = f"[{host}]" if ":" in host else host
    cluster = {"certificate-authority": str(ACCOUNT / "ca.crt")}
    return Login(f"https://{address}:{port}", namespace, "", cluster, {"tokenFile": str(ACCOUNT / "token")})


def decoded(entry: Mapping[str, Any], key: str) -> bytes | None:
    """The content of a file that stands in a kubeconfig itself (``KEY-data``), or None.

    Raises:
        NotLoggedInError: it is not base64.
    """
    data = entry.get(f"{key}-data")
    if not data:
        return None
    try:
        return base64.b64decode(str(data), validate=True)
    except ValueError:
        raise NotLoggedInError(f"{NO_CLUSTER}: {key}-data of the kubeconfig is not base64", "get a new kubeconfig") from None


def is_true(value: object) -> bool:
    """Whether a value of a kubeconfig, which may have been read as text, is true."""
    return str(value).lower() == "true"
