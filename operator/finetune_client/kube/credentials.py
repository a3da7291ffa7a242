"""The headers and the client certificate by which a user of a kubeconfig logs in."""

from __future__ import annotations

import base64
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any

from finetune_client.errors import NotLoggedInError
from finetune_client.kube.kubeconfig import NO_CLUSTER, Login, decoded
from finetune_client.kube.program import Program

Object = dict[str, Any]
Certificate = tuple[bytes, bytes]
"""A client certificate and its key, as PEM."""


@dataclass(frozen=True, repr=False)
class Credential:
    """By what one request logs in."""

    headers: Mapping[str, str]
    certificate: Certificate | None
    """None as well where the server does not speak TLS."""


class Credentials:
    """What a login has come to. Several threads may use it: a program of the kubeconfig is run by one of them at a time."""

    def __init__(self, login: Login, clock: Callable[[], float] = monotonic) -> None:
        self._login = login
        self._lock = threading.Lock()
        self._program = Program(login, clock) if "exec" in login.user else None
        self._files: tuple[bytes | None, bytes | None] | None = None
        """Certificate and key of the kubeconfig, once they were read."""

    def current(self) -> Credential:
        """What the next request logs in with.

        Raises:
            NotLoggedInError: a file cannot be read, or a program gives no credentials.
        """
        with self._lock:
            return self._read()

    def renewed(self, refused: Credential) -> Credential | None:
        """Something else than what the API server does not take, or None: the program is run again, files are read again.

        Raises:
            NotLoggedInError: a file cannot be read, or a program gives no credentials.
        """
        with self._lock:
            self._files = None
            new = self._read()  # another thread may have renewed it meanwhile
            if new == refused and self._program is not None:
                self._program.renew()
                new = self._read()
        return None if new == refused else new

    def certificate(self) -> Certificate | None:
        """Client certificate and key, if the user has one.

        Raises:
            NotLoggedInError: a file cannot be read, or a program gives no credentials.
        """
        with self._lock:
            return self._certificate(self._given())

    def _read(self) -> Credential:
        given = self._given()
        headers = self._headers(given)
        if wrong := [name for name, value in headers.items() if not (value.isascii() and value.isprintable())]:
            message = f"{NO_CLUSTER}: what the kubeconfig has for the header {wrong[0]} is no text of one line in ASCII"
            raise NotLoggedInError(message, "get a new kubeconfig, or log in again")
        has_tls = self._login.server.lower().startswith("https:")
        return Credential(headers, self._certificate(given) if has_tls else None)

    def _given(self) -> Object:
        return {} if self._program is None else self._program.given()

    def _headers(self, given: Object) -> dict[str, str]:
        user = self._login.user
        headers = {}
        if user.get("as"):
            headers["Impersonate-User"] = str(user["as"])
        if token := self._token(given):
            return headers | {"Authorization": f"Bearer {token}"}
        if user.get("username"):
            pair = f"{user['username']}:{user.get('password', '')}".encode()
            headers["Authorization"] = f"Basic {base64.b64encode(pair).decode()}"
        return headers

    def _certificate(self, given: Object) -> Certificate | None:
        if self._program is not None:
            pair = given.get("clientCertificateData"), given.get("clientKeyData")
            return (str(pair[0]).encode(), str(pair[1]).encode()) if pair[0] and pair[1] else None
        if self._files is None:
            user = self._login.user
            self._files = content(user, "client-certificate"), content(user, "client-key")
        certificate, key = self._files
        return (certificate, key) if certificate and key else None

    def _token(self, given: Object) -> str:
        """The token of the user: a file, which others renew, is read for each request, and an auth-provider is asked."""
        user = self._login.user
        if user.get("token"):
            return str(user["token"])
        if user.get("tokenFile"):
            return _read(Path(user["tokenFile"])).decode(errors="replace").strip()
        if self._program is not None:
            return str(given.get("token") or "")
        return _token_by_library(self._login) if "auth-provider" in user else ""


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
    except (config.ConfigException, OSError) as error:  # it may ask an identity provider over the network
        raise NotLoggedInError(f"{NO_CLUSTER}: {error}", "use an exec plugin instead of the auth-provider") from error
    given = options.api_key.get("BearerToken") or options.api_key.get("authorization") or ""
    return str(given).removeprefix("Bearer ")
