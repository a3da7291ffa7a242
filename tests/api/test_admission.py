"""What the API server refuses by itself, in which words, and that it takes the nearest neighbour."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tests.api.pairs import GPU, PAIRS
from tests.support.cluster import ROOT
from tests.support.jobs import finetune_job
from tests.support.kubectl import Kubectl, Object, wait_until

from finetune_operator.api.schema import crd_schema
from finetune_trainer.config.yaml_file import read_mapping


@pytest.mark.parametrize(("refused", "accepted", "words"), PAIRS)
def test_a_mistake_is_refused_in_words_and_its_neighbour_is_taken(
    api: Kubectl, refused: Object, accepted: Object, words: str
) -> None:
    result = api.apply(refused, check=False, dry_run=True)
    assert result.returncode != 0
    assert words in result.stderr
    api.apply(accepted, dry_run=True)


CHANGES: list[tuple[dict[str, Any], str]] = [
    ({"Training__batch_size": 7}, "spec.config is immutable; make a new FinetuneJob"),
    ({"output": {"size": "2Gi"}}, "spec.output is immutable; make a new FinetuneJob"),
    ({"image": "elsewhere/trainer:1"}, "spec.image is immutable; make a new FinetuneJob"),
    ({"head": {"memory": "9Gi"}}, "spec.head can be changed while the job is Suspended only"),
    ({"workers": {"memory": "9Gi"}}, "spec.workers can be changed while the job is Suspended only"),
    ({"dataset": {"configMap": {"name": "rows"}}}, "spec.dataset is immutable; make a new FinetuneJob"),
    ({"model": {"revision": "abc"}}, "spec.model is immutable; make a new FinetuneJob"),
    ({"checkpoint": {"keep": 3}}, "spec.checkpoint is immutable; make a new FinetuneJob"),
    ({"resumeFrom": "earlier"}, "spec.resumeFrom is immutable; make a new FinetuneJob"),
]


@pytest.mark.parametrize(("change", "words"), CHANGES, ids=[",".join(change) for change, _ in CHANGES])
def test_what_a_run_depends_on_cannot_be_changed(api: Kubectl, change: dict[str, Any], words: str) -> None:
    api.apply(finetune_job("fixed"))
    result = api.apply(finetune_job("fixed", **change), check=False)
    assert result.returncode != 0
    assert words in result.stderr


def test_pods_can_be_changed_while_the_job_is_suspended(api: Kubectl) -> None:
    pods = {"head": {"memory": "9Gi"}, "workers": {"memory": "9Gi"}}
    api.apply(finetune_job("resting", suspend=True))
    for phase in ("Suspending", "Suspended"):
        status = json.dumps({"status": {"phase": phase, "reason": "SuspendedByUser", "message": "m"}})
        api.run("patch", "finetunejob", "resting", "--subresource=status", "--type=merge", "-p", status)
        result = api.apply(finetune_job("resting", suspend=True, **pods), check=False)
        assert (result.returncode == 0) == (phase == "Suspended"), result.stderr
    result = api.apply(finetune_job("resting", suspend=False, Training__batch_size=7, **pods), check=False)
    assert "spec.config is immutable" in result.stderr


def test_the_accelerator_cannot_be_changed(api: Kubectl) -> None:
    gpu = {"Training__device": "GPU", "Training__accelerate_mode": "GPU_DDP", "Training__resources_per_worker": GPU}
    api.apply(finetune_job("on-gpu", **gpu))
    result = api.apply(finetune_job("on-gpu", **gpu, accelerator="xe"), check=False)
    assert "spec.accelerator is immutable; make a new FinetuneJob" in result.stderr


def test_deadlines_and_times_to_live_can_be_changed_and_a_cancellation_is_final(api: Kubectl) -> None:
    api.apply(finetune_job("living"))
    api.apply(
        finetune_job(
            "living",
            activeDeadlineSeconds=60,
            provisioningTimeoutSeconds=60,
            stallTimeoutSeconds=60,
            clusterTTLSeconds={"onSuccess": 5, "onFailure": 60},
            ttlSecondsAfterFinished=600,
        )
    )
    api.apply(finetune_job("living", cancel=False))
    api.apply(finetune_job("living", cancel=True))
    for change in ({"cancel": False}, {}):
        result = api.apply(finetune_job("living", **change), check=False)
        assert "spec.cancel is final: a cancelled job cannot be taken up again; make a new FinetuneJob" in result.stderr


def test_every_rule_of_the_schema_has_its_pair() -> None:
    """A rule that is added without a pair in `pairs.py` fails here."""
    shown = [parameters.values[2] for parameters in PAIRS] + [words for _, words in CHANGES]
    shown += ["spec.accelerator is immutable", "spec.cancel is final"]
    silent = [message for message in messages(crd_schema()) if not any(words in message for words in shown)]
    assert silent == []


def messages(schema: Object) -> list[str]:
    """Messages of all CEL rules."""
    found = [rule["message"] for rule in schema.get("x-kubernetes-validations", ())]
    for inner in (*schema.get("properties", {}).values(), schema.get("items"), schema.get("additionalProperties")):
        found += messages(inner) if isinstance(inner, dict) else []
    return found


def test_removing_an_immutable_part_is_refused(api: Kubectl) -> None:
    api.apply(finetune_job("whole"))
    patch = '[{"op": "remove", "path": "/spec/dataset"}]'
    result = api.run("patch", "finetunejob", "whole", "--type=json", "-p", patch, check=False)
    assert "spec.dataset is immutable" in result.stderr


@pytest.mark.parametrize("sample", sorted((ROOT / "config_samples" / "finetunejobs").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_sample_is_accepted(api: Kubectl, sample: Any) -> None:
    api.run("apply", "--dry-run=server", "--validate=strict", "-f", str(sample))


@pytest.mark.parametrize("sample", sorted((ROOT / "config_samples" / "finetune").rglob("*.yaml")), ids=lambda path: path.stem)
def test_every_sample_of_the_command_line_is_a_config_too(api: Kubectl, sample: Any) -> None:
    job = finetune_job("job")
    job["spec"]["config"] = read_mapping(str(sample))
    api.apply(job, dry_run=True)


def test_explain_documents_every_key(api: Kubectl) -> None:
    for section in ("General", "Dataset", "Training", "Training.resources_per_worker", "General.lora_config"):
        text = api.run("explain", f"finetunejob.spec.config.{section}").stdout
        assert "<no description>" not in text, text
    text = api.run("explain", "finetunejob.spec.config.Training").stdout
    assert "CPU_DDP, GPU_DDP or GPU_FSDP" in text
    assert "Peak learning rate. Default: 1e-05." in text
    for path in ("status", "status.progress", "status.output", "spec", "spec.output"):
        assert "<no description>" not in api.run("explain", f"finetunejob.{path}").stdout


def test_short_name_and_category(api: Kubectl) -> None:
    api.apply(finetune_job("named"))
    for kind in ("ftj", "finetune", "all"):
        assert "finetunejob.llmonray.dev/named" in api.run("get", kind, "-o", "name").stdout
    wait_until("the job", lambda: api.get("ftj", "named"))
