"""Connections to the API server: TLS as the kubeconfig says, proxies as the environment says."""

from __future__ import annotations

import base64
import http.client
import os
import socket
import ssl
import tempfile
from collections.abc import Callable
from typing import Any
from urllib.parse import SplitResult, urlsplit

from finetune_client.errors import NotLoggedInError
from finetune_client.kube.credentials import Certificate, Credentials, content
from finetune_client.kube.kubeconfig import NO_CLUSTER, Login, is_true

Connection = http.client.HTTPConnection


class _Tls(http.client.HTTPSConnection):
    """A connection whose certificate is that of another name, where the kubeconfig says so."""

    def __init__(self, *arguments: Any, context: ssl.SSLContext, server_name: str, **options: Any) -> None:
        super().__init__(*arguments, context=context, **options)
        self._tls = context
        self._server_name = server_name

    def connect(self) -> None:
        """Connect, through the proxy if there is one, and shake hands."""
        http.client.HTTPConnection.connect(self)
        self.sock = self._tls.wrap_socket(self.sock, server_hostname=self._server_name)


class _Contexts:
    """TLS as the kubeconfig says, with one client certificate at a time: a renewed one makes another context."""

    def __init__(self, login: Login) -> None:
        self._login = login
        self._made: tuple[Certificate | None, ssl.SSLContext] | None = None

    def of(self, certificate: Certificate | None) -> ssl.SSLContext:
        """The context that shows a client certificate, or none.

        Raises:
            NotLoggedInError: a certificate or key cannot be read.
        """
        made = self._made
        if made is None or made[0] != certificate:
            self._made = made = certificate, _context(self._login, certificate)
        return made[1]


def connector(login: Login, credentials: Credentials) -> Callable[[Certificate | None, float], Connection]:
    """What opens connections to a login's server, each with a client certificate and a timeout in seconds for every step of it.

    Raises:
        NotLoggedInError: server, proxy or certificates are not usable.
    """
    server, port = _split(login.server)
    if server is None or server.scheme not in {"http", "https"} or not server.hostname:
        raise NotLoggedInError(f"{NO_CLUSTER}: {login.server!r} is no address of a server", "see `kubectl config view`")
    proxy = _proxy(login, server)
    host = server.hostname
    target = (proxy.hostname or "", proxy.port or 80) if proxy else (host, port or (80 if server.scheme == "http" else 443))
    if server.scheme == "http":
        return lambda _certificate, seconds: http.client.HTTPConnection(*target, timeout=seconds)
    contexts = _Contexts(login)
    contexts.of(credentials.certificate())  # what is wrong with certificates is told before the first request
    name = str(login.cluster.get("tls-server-name") or host)

    def connect(certificate: Certificate | None, seconds: float) -> Connection:
        connection = _Tls(*target, context=contexts.of(certificate), server_name=name, timeout=seconds)
        if proxy:
            connection.set_tunnel(host, port or 443, _proxy_headers(proxy))
        return connection

    return connect


def cause(error: Exception) -> tuple[str, str]:
    """Why there is no answer, and what to do."""
    see = "see whether the cluster runs, and whether --context and KUBECONFIG name the right one"
    match error:
        case socket.gaierror() | UnicodeError():
            words = "its name cannot be resolved"
        case ssl.SSLError():
            words, see = _tls_cause(error)
        case TimeoutError():
            words = "it took too long"
        case ConnectionResetError() | BrokenPipeError() | http.client.RemoteDisconnected() | http.client.IncompleteRead():
            words, see = "the connection was closed before the whole answer came", f"try again; {see}"
        case OSError(errno=int(code)):
            words = f"no connection: {os.strerror(code)}"
        case OSError() if str(error):
            words = str(error)[:200]  # a proxy's refusal
        case _:
            words, see = f"its answer is not HTTP ({type(error).__name__})", "see server of the kubeconfig"
    return words, see


OUT_OF_DATE = {9: "is not valid yet", 10: "has expired"}
"""OpenSSL's numbers (X509_V_ERR_…) of what the clock says about a certificate."""


def _tls_cause(error: ssl.SSLError) -> tuple[str, str]:
    """Why TLS has failed, and what to do: the server's certificate, the user's, or no TLS at all."""
    if isinstance(error, ssl.SSLCertVerificationError):
        if when := OUT_OF_DATE.get(error.verify_code):
            return f"its certificate {when}", "the cluster's administrator has to renew it; if the clock of this machine is right"
        return f"its certificate is not trusted ({error.verify_message})", "see certificate-authority of the kubeconfig"
    reason = str(error.reason)
    if "ALERT" in reason and ("CERTIFICATE" in reason or "UNKNOWN_CA" in reason):
        return (
            f"it does not take your client certificate ({reason})",
            "get a new kubeconfig, or log in again: it may have expired",
        )
    return f"it does not speak TLS as expected ({reason})", "see server of the kubeconfig"


def _context(login: Login, client: Certificate | None) -> ssl.SSLContext:
    authority = content(login.cluster, "certificate-authority")
    try:
        context = ssl.create_default_context(cadata=authority.decode() if authority else None)
        if is_true(login.cluster.get("insecure-skip-tls-verify")):
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        if client:
            _load(context, *client)
    except (OSError, ValueError) as error:
        message = f"{NO_CLUSTER}: a certificate or key of the kubeconfig cannot be read"
        raise NotLoggedInError(message, "get a new kubeconfig", str(error)) from error
    return context


def _load(context: ssl.SSLContext, certificate: bytes, key: bytes) -> None:
    """Python's TLS takes certificates from files only; this one is of this user and is deleted at once."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(certificate + b"\n" + key)
        file.flush()
        context.load_cert_chain(file.name, password="")  # or OpenSSL would ask for it on the terminal


def _split(address: str) -> tuple[SplitResult | None, int | None]:
    """An address in its parts, with its port if it has one; nothing where it is none."""
    try:
        parts = urlsplit(address)
        port = parts.port
    except ValueError:
        return None, None
    return (None, None) if port == 0 or any(char.isspace() or not char.isprintable() for char in address) else (parts, port)


def _proxy(login: Login, server: SplitResult) -> SplitResult | None:
    """The proxy of the kubeconfig, or that of the environment."""
    address = str(login.cluster.get("proxy-url") or "")
    if not address and any(name.lower() == f"{server.scheme}_proxy" for name in os.environ):
        from urllib.request import getproxies, proxy_bypass

        address = "" if proxy_bypass(server.netloc) else getproxies().get(server.scheme, "")
    if not address:
        return None
    proxy, _ = _split(address if "//" in address else f"http://{address}")
    if proxy is None:
        message = f"{NO_CLUSTER}: the address of the proxy for {login.server} is no address"
        raise NotLoggedInError(message, "see HTTPS_PROXY, and proxy-url of the kubeconfig: as http://proxy.example:3128")
    if proxy.scheme != "http" or not proxy.hostname or server.scheme == "http":
        message = f"{NO_CLUSTER}: the proxy {proxy.scheme}://{proxy.hostname} for {login.server} is not supported"
        raise NotLoggedInError(message, "use an HTTP proxy for an HTTPS server, or NO_PROXY for that server")
    return proxy


def _proxy_headers(proxy: SplitResult) -> dict[str, str]:
    if not proxy.username:
        return {}
    pair = f"{proxy.username}:{proxy.password or ''}".encode()
    return {"Proxy-Authorization": f"Basic {base64.b64encode(pair).decode()}"}
