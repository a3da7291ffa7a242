"""kubectl and helm as a person uses them, and waiting with a deadline."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlencode

T = TypeVar("T")
Object = dict[str, Any]


PATIENCE = 600.0
"""Seconds that a test waits for what must come: no machine is that slow, and how fast it comes is for benchmarks to say."""


def wait_until(what: str, check: Callable[[], T | None], timeout: float = PATIENCE, every: float = 0.5) -> T:
    """Poll until the check gives something true; fail with what was waited for."""
    deadline = time.monotonic() + timeout
    while True:
        if value := check():
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout:.0f} s: {what}")
        time.sleep(every)


def after(seconds: float) -> Callable[[], bool]:
    """A check that holds from so many seconds from now on: that nothing happens takes its time to see."""
    until = time.monotonic() + seconds
    return lambda: time.monotonic() >= until


@dataclass(frozen=True)
class Kubectl:
    """Commands against one cluster, in one namespace."""

    kubeconfig: Path
    path: str
    """PATH with kubectl and helm."""
    namespace: str

    @property
    def env(self) -> dict[str, str]:
        return os.environ | {"KUBECONFIG": str(self.kubeconfig), "PATH": self.path}

    def run(self, *arguments: str, stdin: str | bytes | None = None, check: bool = True) -> subprocess.CompletedProcess[str]:
        return self._run("kubectl", "-n", self.namespace, *arguments, stdin=stdin, check=check)

    def helm(self, *arguments: str) -> str:
        return self._run("helm", "--namespace", self.namespace, *arguments).stdout

    def _run(self, *command: str, stdin: str | bytes | None = None, check: bool = True) -> subprocess.CompletedProcess[str]:
        data = stdin.encode() if isinstance(stdin, str) else stdin
        done = subprocess.run(command, input=data, capture_output=True, env=self.env, check=False, timeout=300)
        result = subprocess.CompletedProcess(command, done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode())
        if check and result.returncode != 0:
            raise AssertionError(f"{' '.join(command)}\n{result.stdout}\n{result.stderr}")
        return result

    def get(self, kind: str, name: str) -> Object | None:
        result = self.run("get", kind, name, "-o", "json", "--ignore-not-found")
        return json.loads(result.stdout) if result.stdout.strip() else None

    def list(self, kind: str, label: str = "") -> list[Object]:
        return json.loads(self.run("get", kind, "-o", "json", *(["-l", label] if label else [])).stdout)["items"]

    def apply(self, *objects: Object, check: bool = True, dry_run: bool = False) -> subprocess.CompletedProcess[str]:
        text = "\n---\n".join(json.dumps(item) for item in objects)
        return self.run("apply", "-f", "-", *(["--dry-run=server"] if dry_run else []), stdin=text, check=check)

    def proxy(self, service: str, path: str, token: str) -> Any:
        """GET a dashboard's path through the API server, as an administrator."""
        server = json.loads(self.run("config", "view", "--raw", "--minify", "-o", "json").stdout)
        cluster, user = server["clusters"][0]["cluster"], server["users"][0]["user"]
        url = f"{cluster['server']}/api/v1/namespaces/{self.namespace}/services/{service}:8265/proxy{path}"
        command = ["curl", "-sS", "--max-time", "10", "-H", f"x-ray-authorization: Bearer {token}"]
        if "token" in user:
            command += ["-H", f"Authorization: Bearer {user['token']}"]
        if "certificate-authority" in cluster:
            command += ["--cacert", cluster["certificate-authority"]]
        else:
            command += ["--insecure"]
        return json.loads(subprocess.run([*command, url], capture_output=True, check=True, timeout=15).stdout)


API_OF = {"pods": "/api/v1", "rayclusters": "/apis/ray.io/v1", "finetunejobs": "/apis/llmonray.dev/v1alpha1"}


@dataclass
class Watch:
    """Every state of an object that the API server told of, in order."""

    states: list[Object] = field(default_factory=list)

    def statuses(self) -> list[Object]:
        return [state.get("status") or {} for state in self.states]

    def phases(self) -> list[str]:
        """Phases in the order they were entered."""
        phases: list[str] = []
        for status in self.statuses():
            phase = status.get("phase")
            if phase and (not phases or phases[-1] != phase):
                phases.append(phase)
        return phases


@contextlib.contextmanager
def watching(kubectl: Kubectl, kind: str, **selector: str) -> Iterator[Watch]:
    """Keep a watch open for the time of the block; what happens before it has started is told as well.

    Args:
        kubectl: the cluster, and the namespace.
        kind: of `API_OF`.
        selector: labelSelector or fieldSelector.
    """
    path = f"{API_OF[kind]}/namespaces/{kubectl.namespace}/{kind}?"
    listed = json.loads(kubectl.run("get", "--raw", path + urlencode(selector)).stdout)
    watch = Watch(listed["items"])
    since = {"watch": "true", "resourceVersion": listed["metadata"]["resourceVersion"]}
    command = ["kubectl", "get", "--raw", path + urlencode(selector | since)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=kubectl.env, text=True)

    def read() -> None:
        assert process.stdout is not None
        watch.states.extend(json.loads(line)["object"] for line in process.stdout)

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    try:
        yield watch
    finally:
        process.terminate()
        process.wait(timeout=10)
        thread.join(timeout=10)
        if process.stdout is not None:
            process.stdout.close()
