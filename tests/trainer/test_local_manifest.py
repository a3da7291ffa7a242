"""``finetune run --local``: the manifest of a cluster, here; its output is what kubectl would show."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from textwrap import indent
from typing import Any

import pytest
from ruamel.yaml import YAML
from tests.support.jobs import finetune_job
from tests.support.trainer import sample_rows

pytestmark = pytest.mark.sampled(8)


@pytest.fixture
def finetune(tmp_path: Path, model_folder: Callable[[str], Path]) -> Callable[..., Any]:
    """Run a manifest whose claims are folders; gives the finished process and the printed job."""
    (tmp_path / "data").mkdir()
    rows = "\n".join(json.dumps(row) for row in sample_rows())
    (tmp_path / "data" / "rows.jsonl").write_text(rows)
    (tmp_path / "data" / "broken.jsonl").write_text(rows + '\n{"instruction": "no response"}\n')

    def run(*options: str, **changes: Any) -> tuple[subprocess.CompletedProcess[str], dict[str, Any]]:
        job = finetune_job("demo", **({"Training__num_training_workers": 1, "Training__max_train_steps": 2} | changes))
        job["spec"]["model"]["persistentVolumeClaim"].pop("subPath")
        manifest = tmp_path / "job.yaml"
        manifest.write_text(json.dumps(job))
        claims = ("--claim", f"data={tmp_path / 'data'}", "--claim", f"models={model_folder('llama')}")
        command = [sys.executable, "-m", "finetune_client.cli", "run", "--local", "-f", str(manifest), *(options or claims)]
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False, timeout=120)
        printed = done.stdout.partition("apiVersion:")[2].partition("\n\n")[0]
        return done, YAML(typ="safe").load("apiVersion:" + printed) if printed else {}

    return run


@pytest.mark.slow
def test_a_job_ends_with_its_status_and_the_folder_of_the_adapter(finetune: Callable[..., Any], tmp_path: Path) -> None:
    done, job = finetune(General__sample_prompts=2)
    assert done.returncode == 0, done.stderr
    status = job["status"]
    assert (status["phase"], status["reason"]) == ("Succeeded", "Completed")
    assert (status["progress"]["display"], status["progress"]["step"]) == ("100%", 2)
    folder = tmp_path / "finetune-output" / status["output"]["persistentVolumeClaim"] / status["output"]["path"]
    assert done.stdout.rstrip().endswith(str(folder))
    answers = json.loads((folder / "logs" / "samples.json").read_text())
    assert all(indent(answers[0][when]["text"].strip(), "    ") in done.stdout for when in ("before", "after"))
    asked = subprocess.run(shlex.split(command_after("Ask the model", done.stdout)), capture_output=True, text=True, check=False)
    assert (asked.returncode, asked.stdout) == (0, answers[0]["after"]["text"] + "\n"), asked.stderr
    assert (folder / "adapter_model.safetensors").is_file()
    assert job["spec"]["config"]["Training"]["max_train_steps"] == 2
    assert "ray" not in status


def command_after(title: str, printed: str) -> str:
    """The line that follows the line that begins with a title."""
    lines = printed.splitlines()
    return next(after for line, after in pairwise(lines) if line.startswith(title))


@pytest.mark.slow
def test_a_failed_run_says_why_in_its_status(finetune: Callable[..., Any]) -> None:
    done, job = finetune(Dataset__train_file="broken.jsonl")
    assert done.returncode == 1
    assert (job["status"]["phase"], job["status"]["reason"]) == ("Failed", "DatasetInvalid")
    assert "broken.jsonl:25" in job["status"]["message"]
    said = done.stderr.splitlines()[-2:]
    assert said[0].startswith("error: DatasetInvalid: ")
    assert "broken.jsonl:25" in said[0]
    assert said[1].startswith("  -> Each line must be a JSON object")
    of_a_cluster = {"ClusterReady", "Submitted", "QuotaReserved"}
    assert of_a_cluster & {condition["type"] for condition in job["status"]["conditions"]} == set()


def test_a_claim_without_a_folder_is_named(finetune: Callable[..., Any]) -> None:
    done, job = finetune("--claim", "data=.")
    assert done.returncode == 1
    assert job["status"]["reason"] == "ClaimNotFound"
    assert "'models' (spec.model.persistentVolumeClaim)" in job["status"]["message"]
    assert done.stderr.splitlines()[0].startswith("error: ClaimNotFound: ")
    assert done.stderr.splitlines()[1:] == ["  -> Name the folder that stands for the claim: --claim NAME=DIR"]


@pytest.mark.parametrize(("name", "hint"), [("modles", "did you mean models?"), ("zzz", "it has data, demo-")])
def test_a_claim_that_the_job_does_not_have_is_refused(finetune: Callable[..., Any], name: str, hint: str) -> None:
    done, _ = finetune("--claim", "data=.", "--claim", f"{name}=.")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"--claim {name}: the job has no such claim; {hint}")


def test_every_error_of_a_manifest_is_reported_at_once(finetune: Callable[..., Any]) -> None:
    done, _ = finetune(Training__batch_size=0, Training__device="HPU", output={})
    assert done.returncode == 2
    assert "spec.config.Training.batch_size: Input should be greater than or equal to 1" in done.stderr
    assert "spec.config.Training.device: " in done.stderr
    assert "spec.output: " in done.stderr
