"""What `kubectl get` shows of a job fits a terminal, and sorts as numbers do."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from tests.support.builders import NAMESPACE, UID
from tests.support.jobs import finetune_job
from tests.support.kubectl import Kubectl, Object

from finetune_operator.api.v1alpha1 import FinetuneJobStatus, Reason, dump

LABEL = "finetune-test=columns"
SHORT, WIDE = "mistral-7b-lora", "gpt2-lora"
"""Names of 15 and of 9 characters: the longest that fit, since -o wide shows the name three times."""

LONGEST_REASON = max(Reason, key=len)


def busy(name: str) -> Object:
    """Every text at its longest, as far as a run of a job of this name can have it."""
    cluster = f"{name}-1f0c3-2"
    return {
        "observedGeneration": 1,
        "phase": "Provisioning",
        "reason": LONGEST_REASON,
        "message": f"cluster {cluster}: head ready, 15/16 workers ready; " + "no node has enough memory " * 20,
        "startTime": "2026-01-02T03:04:05Z",
        "attempt": 2,
        "ray": {
            "cluster": cluster,
            "submissionId": f"{UID}-a2",
            "dashboardURL": f"http://{cluster}-head-svc.{NAMESPACE}.svc:8265",
            "workersReady": 16,
            "workersDesired": 16,
            "workers": "16/16",
        },
        "progress": {
            "display": "100%",
            "percent": 100,
            "step": 999,
            "totalSteps": 999,
            "epoch": 2.997,
            "etaSeconds": 86400,
            "loss": 0.001234,
            "learningRate": 1e-05,
            "attempt": 2,
            "lastReportTime": "2026-01-02T03:04:05Z",
        },
        "output": {"persistentVolumeClaim": f"{name}-1f0c3-output", "path": f"{name}-{UID}"},
    }


OLDER = len("5d22h") - len("AGE")
"""What the column of a job that is older than that of the test takes more."""

RUNS: dict[str, Object] = {
    "none": {},
    "ninth": {"attempt": 9, "progress": {"percent": 9, "loss": 9.5, "lastReportTime": "2026-01-02T03:04:05Z"}},
    "tenth": {"attempt": 10, "progress": {"percent": 10, "loss": 10.25, "lastReportTime": "2026-01-02T03:04:05Z"}},
    "second": {"attempt": 2, "progress": {"percent": 2, "loss": 2.5, "lastReportTime": "2026-01-02T03:04:05Z"}},
    "hundredth": {"attempt": 100, "progress": {"percent": 100, "loss": 100.5, "lastReportTime": "2026-01-02T03:04:05Z"}},
}
"""Losses with a fraction: the API server gives 9.0 back as 9, and kubectl cannot compare that with 9.5."""


def store(api: Kubectl, name: str, status: Object) -> None:
    job = finetune_job(name)
    job["metadata"]["labels"] = dict([LABEL.split("=")])
    api.apply(job)
    api.run("patch", "finetunejob", name, "--subresource=status", "--type=merge", "-p", json.dumps({"status": status}))


@pytest.fixture(scope="module")
def listed(api: Kubectl) -> Iterator[Kubectl]:
    """A job in the middle of its second attempt, and some to sort."""
    for name in (SHORT, WIDE):
        store(api, name, busy(name))
    for name, status in RUNS.items():
        store(api, name, status)
    yield api
    api.run("delete", "finetunejobs", "-l", LABEL)


def test_the_status_shown_is_one_that_a_job_can_have() -> None:
    status = dump(FinetuneJobStatus.model_validate(busy(SHORT)))
    assert status.items() >= {"reason": str(LONGEST_REASON), "attempt": 2}.items()


@pytest.mark.parametrize(("name", "arguments", "width"), [(SHORT, (), 80), (WIDE, ("-o", "wide"), 160)], ids=["short", "wide"])
def test_a_job_fits_a_terminal(listed: Kubectl, name: str, arguments: tuple[str, ...], width: int) -> None:
    text = listed.run("get", "finetunejobs", name, *arguments).stdout
    longest = max(len(line.rstrip()) for line in text.splitlines()) + OLDER
    assert longest <= width, f"{longest} columns:\n{text}"
    assert name in text
    assert "<none>" not in text, text


def test_a_job_without_status_is_shown_too(listed: Kubectl) -> None:
    assert "none" in listed.run("get", "finetunejobs", "none", "-o", "wide").stdout


@pytest.mark.parametrize("path", [".status.attempt", ".status.progress.percent", ".status.progress.loss"])
def test_numbers_sort_as_numbers(listed: Kubectl, path: str) -> None:
    """9 before 10, which texts would not do; a job without the number comes first or last."""
    result = listed.run("get", "finetunejobs", "-l", LABEL, f"--sort-by={path}", "-o", "name")
    names = [line.rpartition("/")[2] for line in result.stdout.split()]
    assert [name for name in names if name in RUNS and name != "none"] == ["second", "ninth", "tenth", "hundredth"]
    table: Any = listed.run("get", "finetunejobs", "-l", LABEL, f"--sort-by={path}").stdout.splitlines()[1:]
    shown = [line.split()[0] for line in table]
    assert [name for name in shown if name in RUNS and name != "none"] == ["second", "ninth", "tenth", "hundredth"]
