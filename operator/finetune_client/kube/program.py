"""The program by which a user of a kubeconfig logs in, as clouds have one: when it is run, and what it gives."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic, time
from typing import Any

from finetune_client.errors import NotLoggedInError
from finetune_client.kube.kubeconfig import NO_CLUSTER, Login, is_true

Object = dict[str, Any]
EXEC_SECONDS = 60
"""A program that asks nobody has to give its token within this time; one that may ask somebody on a terminal has no limit."""
EARLY_SECONDS = 30.0
"""A program is run again so long before what it has given expires."""
CLOCK_SECONDS = 60.0
"""The clock, which may be wrong, has a program run no more often than this."""
REFUSAL_SECONDS = 10.0
"""Refusals have a program run no more often than this: they may come of something else than what it gives."""


class Program:
    """The program of a user, and what it has given. One thread at a time may use it."""

    def __init__(self, login: Login, clock: Callable[[], float] = monotonic) -> None:
        self._login, self._clock = login, clock
        self._given: Object = {}
        self._due = -math.inf
        """When it has to be run the next time."""
        self._after_refusal = -math.inf
        """When it was last run because the API server refused what it had given."""

    def given(self) -> Object:
        """What it gives (status of an ExecCredential): it is run at first, and before what it has given expires.

        Raises:
            NotLoggedInError: it gives no credentials.
        """
        if self._clock() >= self._due:
            self._run()
        return self._given

    def renew(self) -> None:
        """Run it again, as the API server does not take what it has given; unless a refusal has had it run a moment ago.

        Raises:
            NotLoggedInError: it gives no credentials.
        """
        if self._clock() - self._after_refusal >= REFUSAL_SECONDS:
            self._run()
            self._after_refusal = self._clock()

    def _run(self) -> None:
        given = _run(self._login)
        left = _seconds_left(given) - EARLY_SECONDS
        # If it expires as soon as it is given, the clock of this machine is wrong, or the program keeps a token to its end:
        # then only the API server can tell when it has expired.
        self._due = self._clock() + max(left, CLOCK_SECONDS) if left > 0 else math.inf
        self._given = given


def _seconds_left(given: Object) -> float:
    """How long credentials are valid by the clock of this machine, which may be wrong; for ever where they do not say it."""
    try:
        end = datetime.fromisoformat(str(given.get("expirationTimestamp")))
    except ValueError:
        return math.inf
    return (end if end.tzinfo else end.replace(tzinfo=UTC)).timestamp() - time()


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
