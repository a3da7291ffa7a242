"""The users' tool about one job on a real cluster: while it runs, when it has ended, and when nothing but its claim is left."""

from __future__ import annotations

import http.client
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from tests.e2e.conftest import SAMPLE_ROWS
from tests.support import client_process
from tests.support.cluster import change_spec, job_status, removed
from tests.support.jobs import finetune_job
from tests.support.kubectl import Kubectl, Object, wait_until

NAME, CLAIM = "user-tool", "user-tool-data"
LABEL = f"llmonray.dev/finetunejob={NAME}"
STEPS = 12
JOB = finetune_job(
    NAME,
    General__sample_prompts=2,
    Training__max_train_steps=STEPS,
    Training__num_training_workers=1,
    dataset={"persistentVolumeClaim": {"claimName": CLAIM}},
    clusterTTLSeconds={"onSuccess": 1800},
)
"""Its Ray cluster stays when it has ended, until the tests let it go."""

LAST_STEP = f"step {STEPS}/{STEPS}"
OF_RANK_0 = "CPU: "
"""How a line of the log of rank 0 begins that the driver does not print."""


@dataclass(frozen=True)
class Followed:
    """What was typed while the job was made, ran and ended, and what came of it."""

    submitted: tuple[int, str, str]
    rank: tuple[int, str, str]
    rows: list[Object]
    """The rows that the job has trained on, by their lines."""


Finetune = Callable[..., str]


@pytest.fixture(scope="module")
def followed(jobs: Kubectl, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Followed]:
    """Rows of this machine are uploaded, the job is followed to its end, and so is the log of its rank while it runs."""
    folder = tmp_path_factory.mktemp("typed")
    lines = SAMPLE_ROWS.read_text(encoding="utf-8").splitlines()[:60]
    (folder / "rows.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    (folder / "job.json").write_text(json.dumps(JOB), encoding="utf-8")

    def typed(*words: str) -> tuple[int, str, str]:
        return client_process.finetune(jobs, *words, timeout=560, cwd=folder)

    def has_place() -> bool:
        return {"attempt", "output"} <= set(job_status(jobs, NAME))

    try:
        with removed(jobs, NAME), ThreadPoolExecutor(2) as pool:
            words = ("submit", "-f", "job.json", "--upload", "rows.jsonl", "--create", "1Gi", "--follow", "--timeout", "9m")
            submitted = pool.submit(typed, *words)
            wait_until("an attempt, or the end of the command", lambda: has_place() or submitted.done())
            rank = pool.submit(typed, "logs", NAME, "--rank", "0", "--follow")
            yield Followed(submitted.result(), rank.result(), [json.loads(line) for line in lines])
    finally:
        jobs.run("delete", "pvc", CLAIM, "--ignore-not-found", "--wait=false")


@pytest.fixture
def finetune(jobs: Kubectl, followed: Followed, tmp_path: Path) -> Finetune:
    """The command, typed in an empty folder; gives what it prints."""

    def run(*words: str, **options: Any) -> str:
        code, out, err = client_process.finetune(jobs, *words, timeout=300, cwd=tmp_path, **options)
        assert code == 0, out + err
        return out

    return run


@pytest.fixture(scope="module")
def cleaned_up(jobs: Kubectl, followed: Followed) -> None:
    """The Ray cluster of the job is gone, with its pods."""
    change_spec(jobs, NAME, clusterTTLSeconds={"onSuccess": 0})
    wait_until("its cluster and pods to be gone", lambda: not jobs.list("rayclusters,pods", LABEL))


def test_rows_are_uploaded_and_the_job_is_followed_to_its_end(followed: Followed) -> None:
    code, out, err = followed.submitted
    assert code == 0, out + err
    assert f"rows.jsonl is copied to {CLAIM}:rows.jsonl" in err
    assert out.startswith(f"finetunejob/{NAME} created\n")
    assert LAST_STEP in out


def test_the_log_of_a_rank_is_followed_while_the_job_runs(followed: Followed) -> None:
    code, out, err = followed.rank
    assert code == 0, out + err
    assert OF_RANK_0 in out


def test_the_drivers_log_is_read_from_the_cluster_that_is_kept(finetune: Finetune, followed: Followed) -> None:
    log = finetune("logs", NAME)
    assert LAST_STEP in log
    assert log.splitlines()[0] in followed.submitted[1]


def test_the_dashboard_is_served_with_the_token_to_the_one_who_has_the_key(jobs: Kubectl, followed: Followed) -> None:
    with client_process.serving(jobs, "dashboard", NAME) as address:
        url = urlsplit(address)
        assert answer(url.netloc, "/api/jobs/")[0] == 403
        status, _, cookie = answer(url.netloc, f"/?{url.query}")
        assert status == 303
        status, body, _ = answer(url.netloc, "/api/jobs/", cookie)
        assert status == 200, body
        job = jobs.get("finetunejob", NAME)
        assert job is not None
        assert f"{job['metadata']['uid']}-a1" in {known["submission_id"] for known in json.loads(body)}


def answer(place: str, path: str, cookie: str = "") -> tuple[int, bytes, str]:
    """Status, body and cookie of an answer."""
    connection = http.client.HTTPConnection(place, timeout=60)
    try:
        connection.request("GET", path, headers={"Cookie": cookie} if cookie else {})
        response = connection.getresponse()
        return response.status, response.read(), response.getheader("Set-Cookie", "").partition(";")[0]
    finally:
        connection.close()


def test_the_cluster_is_found_fit_for_jobs(finetune: Finetune) -> None:
    told = finetune("doctor")
    assert told.endswith("Jobs can run here.\n")
    assert all(f"ok  {part}" in told for part in ("Login", "Cluster", "CRD", "Operator"))
    # KubeRay is a process of the host here, not of its chart.
    assert "?   KubeRay      RayClusters are known" in told


@pytest.mark.parametrize(("options", "line"), [((), LAST_STEP), (("--rank", "0"), OF_RANK_0)], ids=["driver", "rank 0"])
@pytest.mark.usefixtures("cleaned_up")
def test_logs_come_from_the_claim_when_the_cluster_is_gone(finetune: Finetune, options: tuple[str, ...], line: str) -> None:
    assert line in finetune("logs", NAME, *options)


@pytest.mark.usefixtures("cleaned_up")
def test_a_job_that_is_cleaned_up_is_told_with_its_result(finetune: Finetune, jobs: Kubectl) -> None:
    page, result = finetune("status", NAME), job_status(jobs, NAME)["output"]
    assert page.startswith(f"{NAME}: Succeeded")
    for words in (f"step {STEPS} of {STEPS}", result["persistentVolumeClaim"], result["manifestSHA256"]):
        assert words in page
    assert f"finetune download {NAME} {NAME}" in page
    assert json.loads(finetune("status", NAME, "-o", "json"))["status"]["output"] == result
    assert finetune("list", NAME, "-o", "name") == f"finetunejob.llmonray.dev/{NAME}\n"
    assert f" {NAME}: Succeeded" in finetune("watch", NAME)


@pytest.mark.usefixtures("cleaned_up")
def test_the_report_is_copied_and_two_runs_are_compared_in_a_page(finetune: Finetune, tmp_path: Path) -> None:
    assert finetune("report", NAME, "told") == "told/report.html\n"
    assert (tmp_path / "told" / "report.html").stat().st_size > 10_000
    records = (tmp_path / "told" / "logs" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert {json.loads(line)["step"] for line in records} >= set(range(1, STEPS + 1))
    assert finetune("compare", NAME, NAME) == "comparison.html\n"
    page = (tmp_path / "comparison.html").read_text(encoding="utf-8")
    assert page.count("<svg") >= 2
    assert "Settings that are the same" in page


@pytest.mark.usefixtures("cleaned_up")
def test_the_model_answers_as_its_card_says(finetune: Finetune, followed: Followed, small_model: Path, tmp_path: Path) -> None:
    """The second answer needs no cluster: the result is here."""
    options = ["--model-dir", str(small_model), "--max-tokens", "64", "--device", "cpu"]

    def ask(line: int, **place: Path) -> str:
        row = followed.rows[line - 1]
        return finetune("generate", NAME, row["instruction"], "--input", row.get("context", ""), *options, **place)

    first = ask(1)
    samples = json.loads((tmp_path / NAME / "logs" / "samples.json").read_text(encoding="utf-8"))
    assert len(samples) == 2
    card = (tmp_path / NAME / "README.md").read_text(encoding="utf-8")
    for sample in samples:
        line = int(sample["row"].rpartition(":")[2])
        assert ask(line, kubeconfig=tmp_path / "nowhere") == f"{sample['after']['text']}\n"
        assert sample["after"]["text"].strip()[:20] in card
    assert first.endswith("\n")
    assert not (tmp_path / "nowhere").exists()
