"""``finetune logs`` of what a run keeps on its claim: the driver's log when the Ray cluster is gone, and the log of a rank."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from tests.support.builders import UID
from tests.support.http_server import until
from tests.support.shell import CLUSTER, SUBMISSION, Shell, shell_at

pytestmark = pytest.mark.sampled(8)

Object = dict[str, Any]
CLAIM = "demo-1f0c3-output"
FOLDER = f"demo-{UID}"
RAY = {"cluster": CLUSTER, "submissionId": SUBMISSION}
PLACE = f"(in {FOLDER}/logs/attempt-1/ on the claim {CLAIM})"
GONE = "the Ray cluster of attempt 1 of finetunejob/demo is gone"
TOLD = f"{GONE}; this log is from its output claim\n"
ENDED = {"attempt": 1, **RAY, "reason": "WorkersLost", "endTime": "2026-01-02T03:04:05Z"}


@pytest.fixture
async def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> AsyncIterator[Shell]:
    async with shell_at(tmp_path, monkeypatch, capsys) as shell:
        shell.cluster.helpers.claims[CLAIM] = tmp_path
        yield shell


def add(shell: Shell, phase: str, **status: Any) -> None:
    output = {"persistentVolumeClaim": CLAIM, "path": FOLDER}
    shell.add(phase=phase, spec={"image": "t:1"}, status={"attempt": 1, "ray": RAY, "output": output} | status)


def keep(folder: Path, **logs: str | bytes) -> Path:
    """Logs of the attempts, by names like ``a1_rank_0``; gives the folder of all."""
    for name, text in logs.items():
        attempt, _, rest = name.partition("_")
        path = folder / FOLDER / "logs" / f"attempt-{attempt[1:]}" / f"{rest.replace('_old', '.log.1').replace('_', '-')}"
        path = path if path.name.endswith(".1") else path.with_name(f"{path.name}.log")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return folder / FOLDER / "logs"


@pytest.mark.parametrize("options", [(), ("-f",)])
async def test_the_drivers_log_comes_from_the_claim_when_the_cluster_is_gone(
    shell: Shell, tmp_path: Path, options: tuple[str, ...]
) -> None:
    add(shell, "Failed")
    keep(tmp_path, a1_driver_old="old\n", a1_driver="\x1b[31mnew\x1b[0m é\nlast".encode() + b"\xff")
    assert await shell.run("logs", "demo", *options) == (0, "old\nnew é\nlast\ufffd\n", TOLD)
    (pod,) = shell.cluster.helpers.made
    assert pod["spec"]["containers"][0]["image"] == "t:1"
    assert "affinity" not in pod["spec"]
    assert shell.kube.objects["pods"] == {}


@pytest.mark.parametrize("ended", ["gone", "silent"])
async def test_a_log_that_is_followed_says_that_its_end_may_be_missing(shell: Shell, ended: str) -> None:
    add(shell, "Running")
    shell.cluster.start_ray(log="one\n")
    following = asyncio.create_task(shell.run("logs", "demo", "-f"))
    await until(lambda: any(request.path.endswith("/logs") for request in shell.cluster.ray.requests), "it reads the log")
    if ended == "gone":
        shell.kube.objects["rayclusters"].clear()
    else:
        shell.cluster.ray.heads[CLUSTER].down = True
    add(shell, "Succeeded")
    code, out, err = await following
    assert (code, out) == (0, "one\n")
    assert err.endswith(": the end of this log may be missing; `finetune logs demo` prints all that is kept\n")
    assert shell.cluster.helpers.made == []


async def test_a_later_attempt_is_followed_though_the_end_of_the_earlier_one_was_not_read(
    shell: Shell,
) -> None:
    add(shell, "Running")
    shell.cluster.start_ray(log="one\n")
    following = asyncio.create_task(shell.run("logs", "demo", "-f"))
    await until(lambda: any(request.path.endswith("/logs") for request in shell.cluster.ray.requests), "it reads the log")
    shell.kube.objects["rayclusters"].clear()
    later = {"cluster": "demo-1f0c3-2", "submissionId": "a2"}
    shell.cluster.start_ray(log="two\n", cluster="demo-1f0c3-2", submission="a2")
    add(shell, "Succeeded", attempt=2, ray=later, attemptHistory=[ENDED, ENDED | later | {"attempt": 2, "reason": "Completed"}])
    code, out, err = await following
    assert (code, out) == (0, "one\ntwo\n")
    assert err.endswith(f"{GONE}: the end of this log may be missing; `finetune logs demo --attempt 1` prints all that is kept\n")


async def test_a_log_is_followed_though_the_api_server_does_not_answer_for_a_while(shell: Shell) -> None:
    add(shell, "Running")
    shell.cluster.start_ray(log="one\n")
    following = asyncio.create_task(shell.run("logs", "demo", "-f"))
    await until(lambda: any(request.path.endswith("/logs") for request in shell.cluster.ray.requests), "it reads the log")
    shell.kube.refusals["GET", "finetunejobs"] = (503, "ServiceUnavailable", "wait")
    refused = len(shell.kube.requests)
    await until(lambda: sum("/finetunejobs/" in seen.path for seen in shell.kube.requests[refused:]) >= 2, "it asks again")
    del shell.kube.refusals["GET", "finetunejobs"]
    shell.cluster.start_ray(log="one\ntwo\n")
    add(shell, "Succeeded")
    assert await following == (0, "one\ntwo\n", "")


async def test_the_end_of_an_attempts_log_is_asked_for_by_its_number(shell: Shell) -> None:
    add(shell, "Running")
    shell.cluster.start_ray(log="one\n")
    following = asyncio.create_task(shell.run("logs", "demo", "-f", "--attempt", "1"))
    await until(lambda: any(request.path.endswith("/logs") for request in shell.cluster.ray.requests), "it reads the log")
    shell.kube.objects["rayclusters"].clear()
    add(shell, "Succeeded")
    _, out, err = await following
    assert out == "one\n"
    assert err.endswith("; `finetune logs demo --attempt 1` prints all that is kept\n")


async def test_an_earlier_attempt_is_read_from_the_claim_while_a_later_one_runs(shell: Shell, tmp_path: Path) -> None:
    history = [ENDED | {"cluster": "demo-1f0c3-0"}]
    add(shell, "Running", attempt=2, attemptHistory=history)
    shell.cluster.start_ray(log="now\n")
    keep(tmp_path, a1_driver="then\n")
    assert await shell.run("logs", "demo") == (0, "now\n", "")
    assert await shell.run("logs", "demo", "--attempt", "1") == (0, "then\n", TOLD)


@pytest.mark.parametrize("phase", ["Running", "Succeeded"])
async def test_an_earlier_attempt_that_is_followed_is_read_from_the_claim_too(shell: Shell, tmp_path: Path, phase: str) -> None:
    add(shell, phase, attempt=2, attemptHistory=[ENDED | {"cluster": "demo-1f0c3-0"}])
    shell.cluster.start_ray(log="now\n")
    keep(tmp_path, a1_driver="then\n")
    assert await shell.run("logs", "demo", "-f", "--attempt", "1") == (0, "then\n", TOLD)


async def test_a_ranks_log_is_read_near_the_pods_that_use_the_claim(shell: Shell, tmp_path: Path) -> None:
    add(shell, "Running")
    shell.cluster.start_ray(log="driver\n")
    keep(tmp_path, a1_rank_0="zero\n", a1_rank_1="one\n", a1_driver="driver\n")
    assert await shell.run("logs", "demo", "--rank", "1", "--image", "python:3.11") == (0, "one\n", "")
    spec = shell.cluster.helpers.made[0]["spec"]
    (preferred,) = spec["affinity"]["podAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"]
    assert preferred["podAffinityTerm"] == {
        "topologyKey": "kubernetes.io/hostname",
        "labelSelector": {"matchLabels": {"ray.io/cluster": CLUSTER}},
    }
    assert spec["containers"][0]["image"] == "python:3.11"


async def test_a_log_that_is_not_there_is_told_with_those_that_are(shell: Shell, tmp_path: Path) -> None:
    add(shell, "Failed")
    logs = keep(tmp_path, a1_rank_0="", a1_driver="")
    (logs / "metrics.jsonl").write_text("")
    code, out, err = await shell.run("logs", "demo", "--rank", "7")
    assert (code, out) == (1, "")
    assert err == f"error: attempt 1 of finetunejob/demo has kept no log rank-7\n  -> kept there: driver, rank-0 {PLACE}\n"
    add(shell, "Failed", attempt=2, attemptHistory=[ENDED])
    _, _, err = await shell.run("logs", "demo", "--rank", "0")
    assert err.endswith(f"  -> kept there: metrics.jsonl (in {FOLDER}/logs/ on the claim {CLAIM})\n")
    assert shell.kube.objects["pods"] == {}


async def test_a_job_that_has_not_run_has_no_ranks(shell: Shell) -> None:
    shell.add(phase="Pending")
    code, _, err = await shell.run("logs", "demo", "--rank", "0")
    assert (code, err.splitlines()[0]) == (1, "error: finetunejob/demo has not run yet (Pending)")
    assert shell.cluster.helpers.made == []


async def test_who_may_make_no_pods_is_told_where_the_log_is(shell: Shell, tmp_path: Path) -> None:
    add(shell, "Failed")
    shell.kube.refusals["POST", "pods"] = (403, "Forbidden", "no pods for you")
    code, _, err = await shell.run("logs", "demo")
    assert code == 1
    assert f"error: {GONE}, and you may not read its claim: the API server says: no pods for you\n" in err
    assert err.endswith(f"  -> report.html and logs/ of the run are in {FOLDER} on the claim {CLAIM}\n")


async def test_a_log_that_is_followed_goes_on_when_it_is_renamed_until_the_job_has_ended(shell: Shell, tmp_path: Path) -> None:
    add(shell, "Running")
    following = asyncio.create_task(shell.run("logs", "demo", "--rank", "0", "-f"))
    await until(lambda: shell.cluster.helpers.requests >= 1, "it looks whether there is a log")
    logs = keep(tmp_path, a1_rank_0="one\ntwo\n")
    before = shell.cluster.helpers.requests
    await until(lambda: shell.cluster.helpers.requests >= before + 3, "it has read two lines")
    with (logs / "attempt-1" / "rank-0.log").open("a") as file:
        file.write("three\n")
    (logs / "attempt-1" / "rank-0.log").rename(logs / "attempt-1" / "rank-0.log.1")
    keep(tmp_path, a1_rank_0="four\n")
    add(shell, "Succeeded")
    assert await following == (0, "one\ntwo\nthree\nfour\n", "")


async def test_a_line_without_an_end_is_not_held_in_memory(shell: Shell, tmp_path: Path) -> None:
    add(shell, "Failed")
    keep(tmp_path, a1_rank_0=b"x" * (5 << 20))
    code, out, _ = await shell.run("logs", "demo", "--rank", "0")
    assert (code, len(out)) == (0, (5 << 20) + 1)
