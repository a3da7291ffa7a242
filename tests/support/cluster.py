"""The cluster of the end-to-end tests: started once, filled once with a model and rows."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import subprocess
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from tests.support.jobs import claim, tool_pod
from tests.support.kubectl import Kubectl, Object, wait_until

ROOT = Path(__file__).resolve().parents[2]
HARNESS = ROOT / "tests" / "cluster" / "cluster"
RESTRICTED = {"pod-security.kubernetes.io/enforce": "restricted"}


def why_not() -> str | None:
    """Why there is no cluster to test on, in one line; None when there is one."""
    result = subprocess.run([HARNESS, "why-not"], capture_output=True, text=True, check=False, timeout=60)
    return None if result.returncode == 0 else (result.stdout + result.stderr).strip()


def harness(*arguments: str) -> list[str]:
    """Run a command of the harness; the lines it prints."""
    done = subprocess.run([HARNESS, *arguments], stdout=subprocess.PIPE, text=True, check=False, timeout=3600)
    assert done.returncode == 0, f"tests/cluster/cluster {' '.join(arguments)} failed with {done.returncode}"
    return done.stdout.split("\n")


def cache_home() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")


def run_folder() -> Path:
    """Where the cluster of these scripts has its state; whatever is mounted below is unmounted with the cluster."""
    return cache_home() / "finetune-cluster" / "run"


def connect() -> Kubectl:
    """Start the cluster, or find it running."""
    kubeconfig = Path([line for line in harness("up") if line][-1])
    path = f"{cache_home() / 'finetune-cluster' / 'bin'}:{os.environ['PATH']}"
    return Kubectl(kubeconfig, path, "default")


def new_namespace(kubectl: Kubectl, name: str) -> Kubectl:
    """A fresh namespace under Pod Security ``restricted``."""
    kubectl.run("delete", "namespace", name, "--ignore-not-found", "--timeout=240s")
    kubectl.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": RESTRICTED}})
    return replace(kubectl, namespace=name)


def fill(kubectl: Kubectl, image: str, model: Path, files: dict[str, str]) -> None:
    """Put a model on the claim ``models``, in a folder of its name, and files on the claim ``data``."""
    kubectl.apply(claim("models"), claim("data"))
    kubectl.apply(tool_pod("filler", image, ["sleep", "3600"], {"/models": "models", "/data": "data"}))
    kubectl.run("wait", "--for=condition=Ready", "pod/filler", "--timeout=240s")
    kubectl.run("exec", "-i", "filler", "--", "tar", "x", "-C", "/models", stdin=_tar_folder(model))
    kubectl.run("exec", "-i", "filler", "--", "tar", "x", "-C", "/data", stdin=_tar_texts(files))
    kubectl.run("delete", "pod", "filler", "--wait")


def _tar_folder(folder: Path) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.add(folder, arcname=folder.name)
    return buffer.getvalue()


def _tar_texts(files: dict[str, str]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, text in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(text.encode())
            archive.addfile(info, io.BytesIO(text.encode()))
    return buffer.getvalue()


@contextlib.contextmanager
def applied(kubectl: Kubectl, job: Object) -> Iterator[None]:
    """The job exists for the time of the block; afterwards it, its cluster and its pods are gone."""
    with removed(kubectl, job["metadata"]["name"]):
        kubectl.apply(job)
        yield


@contextlib.contextmanager
def removed(kubectl: Kubectl, name: str) -> Iterator[None]:
    """After the block, the job of this name, its cluster and its pods are gone."""
    try:
        yield
    finally:
        kubectl.run("delete", "finetunejob", name, "--ignore-not-found", "--timeout=240s")
        label = f"llmonray.dev/finetunejob={name}"
        wait_until("its cluster and pods to be gone", lambda: not kubectl.list("rayclusters,pods", label))


@contextlib.contextmanager
def paused(service: str) -> Iterator[None]:
    """A process of the cluster of these scripts stands still for the time of the block."""
    pid = int((run_folder() / "pid" / service).read_text(encoding="utf-8").split()[0])
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def job_status(kubectl: Kubectl, name: str) -> Object:
    """The status of a job; {} as long as there is none."""
    status: Object = (kubectl.get("finetunejob", name) or {}).get("status", {})
    return status


def step_of(kubectl: Kubectl, name: str) -> int:
    """The last step of a job that trains; 0 before."""
    return (job_status(kubectl, name).get("progress") or {}).get("step") or 0


def change_spec(kubectl: Kubectl, name: str, **fields: Any) -> None:
    """Change fields of a job's spec."""
    kubectl.run("patch", "finetunejob", name, "--type=merge", "-p", json.dumps({"spec": fields}))


def ended(kubectl: Kubectl, name: str) -> Object | None:
    """The status of a job that has ended; None before."""
    status = job_status(kubectl, name)
    return status if status.get("phase") in {"Succeeded", "Failed", "Cancelled"} else None


def run_to_end(kubectl: Kubectl, pod: Object, timeout: float = 180.0) -> str:
    """Run a pod; its log when it has succeeded."""
    name = pod["metadata"]["name"]
    kubectl.apply(pod)

    def phase() -> str | None:
        found = (kubectl.get("pod", name) or {}).get("status", {}).get("phase")
        return found if found in {"Succeeded", "Failed"} else None

    ended = wait_until(f"pod {name} to end", phase, timeout)
    log = kubectl.run("logs", name).stdout
    kubectl.run("delete", "pod", name, "--wait=false")
    assert ended == "Succeeded", log
    return log
