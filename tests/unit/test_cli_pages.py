"""What `status`, `watch`, `logs` and `doctor` say in each state of job and cluster: golden texts, which end with what to do.

``UPDATE_GOLDEN=1`` writes them anew.
"""

from __future__ import annotations

import asyncio
import os
import pty
import re
import socket
import sys
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from tests.support.builders import DATA, NAMESPACE, UID
from tests.support.http_server import until
from tests.support.shell import CLUSTER, SUBMISSION, Shell, login, shell_at

pytestmark = pytest.mark.sampled(8)

Object = dict[str, Any]
PAGES = DATA / "pages"
STATUS_COMMANDS = (("status", "demo"), ("watch", "demo", "--timeout", "3"), ("logs", "demo"))

PROGRESS = {
    "display": "45%", "percent": 45, "step": 90, "totalSteps": 200, "epoch": 1.35, "etaSeconds": 312, "loss": 1.126,
    "tokensPerSecond": 812.4, "attempt": 1, "lastReportTime": "2026-01-02T03:04:05Z", "hosts": ["demo-worker-a", "demo-worker-b"],
}  # fmt: skip
OUTPUT = {"persistentVolumeClaim": "demo-1f0c3-output", "path": f"demo-{UID}"}
RAY = {"cluster": CLUSTER, "submissionId": SUBMISSION, "workers": "2/2", "workersReady": 2, "workersDesired": 2}
RUNNING = {
    "phase": "Running", "reason": "TrainingRunning", "message": "step 90 of 200", "attempt": 1, "ray": RAY, "progress": PROGRESS,
    "output": OUTPUT,
}  # fmt: skip


def ago(**time: int) -> str:
    return (datetime.now(UTC) - timedelta(**time)).strftime("%Y-%m-%dT%H:%M:%SZ")


def ended(**changes: Any) -> Object:
    history = {"attempt": 1, "cluster": CLUSTER, "submissionId": SUBMISSION, "endTime": ago(hours=2, minutes=30), "lastStep": 90}
    return RUNNING | {"attemptHistory": [history | {"reason": changes["reason"]}], "completionTime": ago(hours=2)} | changes


def everything(shell: Shell) -> None:
    """A cluster in which jobs can run."""
    ready: Object = {"status": {"readyReplicas": 1}}
    image = [{"env": [{"name": "FINETUNE_TRAINER_IMAGE", "value": "registry.example/trainer:1"}]}]
    ready["spec"] = {"template": {"spec": {"containers": image}}}
    for name, namespace in (("finetune-operator", "finetune-system"), ("kuberay-operator", "kuberay")):
        metadata = {"name": name, "namespace": namespace, "labels": {"app.kubernetes.io/name": name}}
        shell.kube.put("deployments", {"metadata": metadata} | ready)
    default = {"storageclass.kubernetes.io/is-default-class": "true"}
    shell.kube.put("storageclasses", {"metadata": {"name": "standard", "annotations": default}})
    shell.kube.put("nodes", {"metadata": {"name": "node-1"}, "status": {"allocatable": {"cpu": "32", "gpu.intel.com/i915": "4"}}})


def running(shell: Shell) -> None:
    shell.add(phase=None, status=RUNNING, metadata={"creationTimestamp": ago(hours=3, minutes=30)})
    shell.cluster.start_ray(log="Loading the model\nstep 90/200 loss 1.126\n")
    event = {
        "involvedObject": {"uid": UID}, "type": "Normal", "reason": "TrainingRunning", "message": "the first step was taken",
        "lastTimestamp": ago(hours=3, minutes=10),
    }  # fmt: skip
    shell.kube.put("events", {"metadata": {"name": "e1", "namespace": NAMESPACE}} | event)


def in_state(**status: Any) -> Callable[[Shell], None]:
    def prepare(shell: Shell) -> None:
        shell.add(phase=None, status=status, metadata={"creationTimestamp": ago(hours=3, minutes=30)})

    return prepare


def no_crd(shell: Shell) -> None:
    shell.kube.missing.add("finetunejobs")


def no_kuberay(shell: Shell) -> None:
    shell.kube.missing.add("rayclusters")
    message = "the API server does not know RayClusters: KubeRay is not installed"
    status = {
        "phase": "Pending",
        "reason": "KubeRayNotInstalled",
        "message": message,
        "attempt": 1,
        "ray": RAY | {"workers": "0/2"},
    }
    in_state(**status)(shell)


def no_permission(shell: Shell) -> None:
    running(shell)
    shell.cluster.denied |= {f"{verb} finetunejobs" for verb in ("get", "list", "watch", "create", "patch")}
    shell.cluster.denied |= {"list nodes", "list deployments", "list storageclasses", "list events", "get secrets"}


def stalled(shell: Shell) -> None:
    running(shell)
    message = "no step since 20 minutes: step 90 of 200"
    in_state(**RUNNING | {"reason": "Stalled", "message": message})(shell)


def failed(shell: Shell) -> None:
    message = 'rows.jsonl:17: "response" is missing\nrows.jsonl:18: "response" is missing'
    in_state(**ended(phase="Failed", reason="DatasetInvalid", message=message))(shell)


def succeeded(shell: Shell) -> None:
    done = {"display": "100%", "percent": 100, "step": 200, "totalSteps": 200, "epoch": 3.0, "lastReportTime": ago(hours=2)}
    output = OUTPUT | {"format": "peft-adapter", "sizeBytes": 3_456_789, "manifestSHA256": "ab" * 32}
    result = {"firstLoss": 2.91, "trainLoss": 0.871, "evalLoss": 0.93}
    message = "the result is complete"
    in_state(**ended(phase="Succeeded", reason="Completed", message=message, progress=done, output=output, result=result))(shell)


def cleaned_up(shell: Shell) -> None:
    """The job was deleted after its time; its claim stays."""
    labels = {"llmonray.dev/finetunejob": "demo"}
    shell.kube.put(
        "persistentvolumeclaims", {"metadata": {"name": "demo-1f0c3-output", "namespace": NAMESPACE, "labels": labels}}
    )


def misspelt(shell: Shell) -> None:
    shell.add("demos", phase="Running")


def suspended(shell: Shell) -> None:
    checkpoint = {"step": 90, "path": "/output/c", "time": ago(hours=3, minutes=5)}
    changes = {"phase": "Suspended", "reason": "SuspendedByUser", "message": "suspended at step 90", "checkpoint": checkpoint}
    in_state(**RUNNING | changes)(shell)


def queued(shell: Shell) -> None:
    message = "couldn't assign flavors to pod set head: insufficient quota for cpu"
    in_state(phase="Queued", reason="Queued", message=message, attempt=1, ray=RAY | {"workers": "0/2"})(shell)


NO_CLAIM = "PersistentVolumeClaim 'data' (spec.dataset.persistentVolumeClaim) does not exist"

STATES: dict[str, Callable[[Shell], None]] = {
    "running": running,
    "stalled": stalled,
    "queued": queued,
    "suspended": suspended,
    "fetching": in_state(
        phase="Pending",
        reason="Fetching",
        message="pod demo-1f0c3-fetch-1 fetches the rows and the model",
        fetch={
            "pod": "demo-1f0c3-fetch-1",
            "attempt": 1,
            "requestTime": ago(minutes=4),
            "display": "35%",
            "bytes": 1_200_000_000,
            "totalBytes": 3_400_000_000,
        },
    ),
    "waiting": in_state(phase="Pending", reason="ClaimNotFound", message=NO_CLAIM),
    "failed": failed,
    "succeeded": succeeded,
    "cleaned_up": cleaned_up,
    "misspelt": misspelt,
    "no_operator": in_state(),
    "no_crd": no_crd,
    "no_kuberay": no_kuberay,
    "no_permission": no_permission,
}


@pytest.fixture
async def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> AsyncIterator[Shell]:
    async with shell_at(tmp_path, monkeypatch, capsys) as shell:
        logs = tmp_path / "claim" / OUTPUT["path"] / "logs" / "attempt-1"
        logs.mkdir(parents=True)
        (logs / "driver.log").write_text("2026-01-02 03:04:05,678 [  1 s] checking the rows of rows.jsonl\n")
        shell.cluster.helpers.claims[OUTPUT["persistentVolumeClaim"]] = tmp_path / "claim"
        yield shell


async def said(shell: Shell, *arguments: str) -> str:
    """A command as typed, what it says, and how it ends; what differs from run to run is left out."""
    code, out, err = await shell.run(*arguments)
    text = f"$ finetune {' '.join(arguments)}\n{out}" + "".join(f"[stderr] {line}\n" for line in err.splitlines())
    text = re.sub(r"127\.0\.0\.1:\d+", "127.0.0.1:6443", text)
    text = re.sub(r"(?m)^\d\d:\d\d:\d\d ", "12:34:56 ", text)
    text = re.sub(r"/[^ (]*/kubeconfig\b", "/home/me/.kube/config", text)
    return f"{text}[exit code {code}]\n"


def assert_page(state: str, text: str) -> None:
    path = PAGES / f"{state}.txt"
    if os.environ.get("UPDATE_GOLDEN") == "1":
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8"), f"differs from {path}; UPDATE_GOLDEN=1 rewrites it"


@pytest.mark.sampled(6)
@pytest.mark.parametrize("state", STATES)
async def test_each_state_is_told_with_what_to_do_next(shell: Shell, state: str) -> None:
    everything(shell)
    if state == "no_operator":
        shell.kube.objects["deployments"].clear()
    STATES[state](shell)
    commands = (*STATUS_COMMANDS, ("doctor",)) if state.startswith(("no_", "running")) else STATUS_COMMANDS
    assert_page(state, "\n".join([await said(shell, *command) for command in commands]))


async def test_no_kubeconfig_is_told_with_what_to_do_next(shell: Shell, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "nowhere" / "kubeconfig"))
    assert_page("no_kubeconfig", "\n".join([await said(shell, *command) for command in (*STATUS_COMMANDS, ("doctor",))]))


async def test_no_cluster_is_told_with_what_to_do_next(shell: Shell, tmp_path: Path, free_port: int) -> None:
    login(tmp_path, f"http://127.0.0.1:{free_port}")
    assert_page("no_cluster", "\n".join([await said(shell, *command) for command in (*STATUS_COMMANDS, ("doctor",))]))


async def test_an_unknown_user_is_told_to_log_in(shell: Shell) -> None:
    shell.cluster.unknown_user = True
    assert_page("unknown_user", "\n".join([await said(shell, *command) for command in (*STATUS_COMMANDS, ("doctor",))]))


async def test_a_watch_that_has_heard_nothing_in_time_does_not_say_that_all_is_well(shell: Shell) -> None:
    running(shell)
    code, out, err = await shell.run("watch", "demo", "--timeout", "0s")
    assert (code, out) == (124, "")
    assert "has told nothing of finetunejob/demo in time" in err


async def test_on_a_terminal_the_table_is_drawn_in_its_place(shell: Shell) -> None:
    running(shell)
    parent, child = pty.openpty()
    command = [sys.executable, "-m", "finetune_client.cli", "watch", "demo"]
    process = await asyncio.create_subprocess_exec(*command, stdout=child, stderr=child)
    os.close(child)
    try:
        await until(lambda: shell.cluster.watches, "it watches")
        shell.add(phase=None, status=RUNNING | {"progress": PROGRESS | {"loss": 0.9}})
        shell.add(phase=None, status=RUNNING | {"phase": "Succeeded", "reason": "Completed"})
        drawn = b""
        while chunk := await asyncio.to_thread(_read, parent):
            drawn += chunk
        assert await asyncio.wait_for(process.wait(), 30) == 0
    finally:
        if process.returncode is None:
            process.kill()
        os.close(parent)
    text = drawn.decode()
    assert "NAME   PHASE     PROGRESS   LOSS    WORKERS   ATTEMPT   AGE" in text
    assert "█████████░░░░░░░░░░░ █▁" in text
    assert text.count("\x1b[2K") >= 6
    assert "Succeeded" in text.rpartition("\x1b[3A")[2]


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65536)
    except OSError:  # its other end is closed
        return b""


@pytest.fixture
def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port
