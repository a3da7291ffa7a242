"""The headers and the client certificate by which a user of a kubeconfig logs in."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from finetune_client.errors import NotLoggedInError
from finetune_client.kube.kubeconfig import NO_CLUSTER, Login, decoded, is_true

Object = dict[str, Any]
EXEC_SECONDS = 60
"""A program that asks nobody has to give its token within this time; one that may ask somebody on a terminal has no limit."""


class Credentials:
    """What a login has come to. A program of the kubeconfig is run once."""

    def __init__(self, login: Login) -> None:
        self._login = login
        self._ran: Object | None = None

    def headers(self) -> dict[str, str]:
        """Headers of each request.

        Raises:
            NotLoggedInError: a file cannot be read, or a program gives no credentials.
        """
        headers = self._headers()
        if wrong := [name for name, value in headers.items() if not (value.isascii() and value.isprintable())]:
            message = f"{NO_CLUSTER}: what the kubeconfig has for the header {wrong[0]} is no text of one line in ASCII"
            raise NotLoggedInError(message, "get a new kubeconfig, or log in again")
        return headers

    def _headers(self) -> dict[str, str]:
        user = self._login.user
        headers = {}
        if user.get("as"):
            headers["Impersonate-User"] = str(user["as"])
        if token := self._token():
            return headers | {"Authorization": f"Bearer {token}"}
        if user.get("username"):
            pair = f"{user['username']}:{user.get('password', '')}".encode()
            headers["Authorization"] = f"Basic {base64.b64encode(pair).decode()}"
        return headers

    def certificate(self) -> tuple[bytes, bytes] | None:
        """Client certificate and key as PEM, if the user has one.

        Raises:
            NotLoggedInError: a file cannot be read, or a program gives no credentials.
        """
        user = self._login.user
        if "exec" in user:
            given = self._program()
            pair = given.get("clientCertificateData"), given.get("clientKeyData")
            return (str(pair[0]).encode(), str(pair[1]).encode()) if pair[0] and pair[1] else None
        certificate, key = (content(user, name) for name in ("client-certificate", "client-key"))
        return (certificate, key) if certificate and key else None

    def _token(self) -> str:
        user = self._login.user
        if user.get("token"):
            return str(user["token"])
        if user.get("tokenFile"):
            return _read(Path(user["tokenFile"])).decode(errors="replace").strip()
        if "exec" in user:
            return str(self._program().get("token") or "")
        return _token_by_library(self._login) if "auth-provider" in user else ""

    def _program(self) -> Object:
        if self._ran is None:
            self._ran = _run(self._login)
        return self._ran


def content(entry: Mapping[str, Any], key: str) -> bytes | None:
    """A file that an entry holds, or names.

    Raises:
        NotLoggedInError: it cannot be read.
    """
    data = decoded(entry, key)
    return _read(Path(str(entry[key]))) if data is None and entry.get(key) else data


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except (OSError, ValueError) as error:  # a path may hold a character that no path can
        reason = error.strerror if isinstance(error, OSError) else str(error)
        message = f"{NO_CLUSTER}: {path}, which the kubeconfig names, cannot be read: {reason}"
        raise NotLoggedInError(message, "get a new kubeconfig") from error


def _run(login: Login) -> Object:
    """Run the program of a user, as clouds have one, and read the ExecCredential that it prints."""
    try:
        plan: Object = dict(login.user["exec"])
        arguments = [str(word) for word in plan.get("args") or ()]
        environment = os.environ | {str(item["name"]): str(item["value"]) for item in plan.get("env") or ()}
    except (TypeError, ValueError, KeyError) as error:
        message = f"{NO_CLUSTER}: the kubeconfig does not say how to run the program that logs you in (users[].user.exec)"
        raise NotLoggedInError(message, "get a new kubeconfig", repr(error)) from error
    program = str(plan.get("command"))
    if "/" in program and not program.startswith("/"):
        program = str(Path(login.user["folder"]) / program)
    asks = sys.stdin is not None and sys.stdin.isatty() and plan.get("interactiveMode") != "Never"
    environment["KUBERNETES_EXEC_INFO"] = json.dumps(_question(login, plan, asks=asks))
    try:
        done = subprocess.run(  # noqa: S603 - the user's own kubeconfig names it, as for kubectl
            [program, *arguments],
            env=environment,
            stdin=None if asks else subprocess.DEVNULL,
            capture_output=not asks,
            stdout=subprocess.PIPE if asks else None,
            timeout=None if asks else EXEC_SECONDS,
            check=False,
        )
    except (OSError, ValueError, subprocess.TimeoutExpired) as error:
        late = f"it gave no answer within {EXEC_SECONDS} s" if isinstance(error, subprocess.TimeoutExpired) else str(error)
        reason = error.strerror if isinstance(error, OSError) else late
        hint = str(plan.get("installHint") or "install it, or get another kubeconfig").strip().partition("\n")[0]
        raise NotLoggedInError(f"{NO_CLUSTER}: {program}, which the kubeconfig names, cannot be run: {reason}", hint) from error
    said = (done.stderr or b"").decode(errors="replace").strip()
    try:
        status = json.loads(done.stdout)["status"]
    except (ValueError, KeyError, TypeError, RecursionError):
        status = None
    if done.returncode or not isinstance(status, dict):
        message = f"{NO_CLUSTER}: {program}, which the kubeconfig names, gave no credentials (exit code {done.returncode})"
        raise NotLoggedInError(message, "log in again, as that program's users do", said)
    return status


def _question(login: Login, plan: Object, *, asks: bool) -> Object:
    spec: Object = {"interactive": asks}
    if is_true(plan.get("provideClusterInfo")):
        names = {
            "server": "server",
            "tls-server-name": "tls-server-name",
            "certificate-authority-data": "certificate-authority-data",
        }
        spec["cluster"] = {new: login.cluster[old] for old, new in names.items() if login.cluster.get(old)}
    version = plan.get("apiVersion") or "client.authentication.k8s.io/v1"
    return {"apiVersion": version, "kind": "ExecCredential", "spec": spec}


def _token_by_library(login: Login) -> str:
    """The token of an auth-provider, which kubectl's successors of it have replaced: the Kubernetes client still reads it."""
    try:
        from kubernetes import client, config
    except ModuleNotFoundError:
        message = f"{NO_CLUSTER}: the user of the kubeconfig has an auth-provider, which needs the Kubernetes client"
        raise NotLoggedInError(message, "use an exec plugin instead, or install the package kubernetes") from None
    options = client.Configuration()
    try:
        config.load_kube_config(context=login.context, client_configuration=options)  # type: ignore[no-untyped-call]
    except config.ConfigException as error:
        raise NotLoggedInError(f"{NO_CLUSTER}: {error}", "use an exec plugin instead of the auth-provider") from error
    given = options.api_key.get("BearerToken") or options.api_key.get("authorization") or ""
    return str(given).removeprefix("Bearer ")
