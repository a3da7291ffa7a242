"""With the command line only: a file of rows goes up, a job is submitted and followed, and its model comes down."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from tests.support import cluster
from tests.support.client_process import finetune
from tests.support.jobs import finetune_job
from tests.support.kubectl import Kubectl

NAME = "typed"
CLAIM = "uploaded"


def test_rows_go_up_and_a_model_comes_down(jobs: Kubectl, tmp_path: Path) -> None:
    rows = cluster.ROOT / "examples" / "data" / "orders.jsonl"
    code, out, err = finetune(jobs, "upload", str(rows), f"{CLAIM}:rows", "--create", "100Mi", timeout=180)
    assert (code, out) == (0, f"{CLAIM}:rows/orders.jsonl\n"), err
    manifest = tmp_path / "job.json"
    job = finetune_job(NAME, Dataset__train_file="orders.jsonl")
    job["spec"]["dataset"] = {"persistentVolumeClaim": {"claimName": CLAIM, "subPath": "rows"}}
    manifest.write_text(json.dumps(job))
    with cluster.removed(jobs, NAME):
        code, out, err = finetune(
            jobs, "submit", "-f", str(manifest), "--set", "Training.max_train_steps=3", "--follow", timeout=420
        )
        assert code == 0, err
        assert "step 3/3" in out
        page = finetune(jobs, "status", NAME)
        assert page[0] == 0
        assert page[1].startswith(f"{NAME}: Succeeded"), page
        code, out, err = finetune(jobs, "download", NAME, str(tmp_path / "model"), timeout=180)
        assert code == 0, err
        status = cluster.job_status(jobs, NAME)
    text = (tmp_path / "model" / "manifest.json").read_bytes()
    assert hashlib.sha256(text).hexdigest() == status["output"]["manifestSHA256"]
    for entry in json.loads(text)["files"]:
        assert hashlib.sha256((tmp_path / "model" / entry["path"]).read_bytes()).hexdigest() == entry["sha256"]
    assert not jobs.list("pods", "llmonray.dev/copies-files")


def test_doctor_finds_nothing_to_do_in_a_cluster_that_trains(jobs: Kubectl) -> None:
    code, out, err = finetune(jobs, "doctor")
    assert (code, err) == (0, ""), out
    assert "!!" not in out
