"""What the API server refuses by itself, in which words, and that it takes the nearest neighbour."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tests.support.cluster import ROOT
from tests.support.jobs import finetune_job
from tests.support.kubectl import Kubectl, Object, wait_until

from finetune_operator.api.schema import crd_schema
from finetune_trainer.config.yaml_file import read_mapping

GPU = {"CPU": 1, "GPU": 1}


def nodes_with(expression: Object) -> Object:
    """Workers that need nodes of a kind."""
    terms = {"nodeSelectorTerms": [{"matchExpressions": [expression]}]}
    return {"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": terms}}}


PAIRS: list[Any] = [
    pytest.param(
        finetune_job("a" * 41), finetune_job("a" * 40), "metadata.name may have at most 40 characters", id="name too long"
    ),
    pytest.param(finetune_job("1job"), finetune_job("job1"), "must be a DNS-1035 label", id="name begins with a digit"),
    pytest.param(finetune_job("a.b"), finetune_job("a-b"), "must be a DNS-1035 label", id="name with a dot"),
    pytest.param(
        finetune_job("job", Training__device="GPU", Training__accelerate_mode="DDP"),
        finetune_job("job", Training__device="GPU", Training__accelerate_mode="DDP", Training__resources_per_worker=GPU),
        "device GPU needs resources_per_worker.GPU of at least 1",
        id="GPU without GPUs",
    ),
    pytest.param(
        finetune_job("job", Training__resources_per_worker=GPU),
        finetune_job("job", Training__resources_per_worker={"CPU": 1, "GPU": 0}),
        "device CPU forbids resources_per_worker.GPU above 0",
        id="CPU with GPUs",
    ),
    pytest.param(
        finetune_job("job", Training__accelerate_mode="GPU_FSDP"),
        finetune_job("job", Training__accelerate_mode="FSDP"),
        "accelerate_mode GPU_DDP and GPU_FSDP need device GPU",
        id="GPU mode on CPU",
    ),
    pytest.param(
        finetune_job("job", Training__device="gpu", Training__resources_per_worker=GPU),
        finetune_job("job", Training__device="gpu", Training__resources_per_worker=GPU, Training__accelerate_mode="gpu_ddp"),
        "accelerate_mode CPU_DDP needs device CPU",
        id="CPU mode on GPU",
    ),
    pytest.param(
        finetune_job("job", Training__device="HPU"),
        finetune_job("job", Training__device="cpu"),
        "HPU (Gaudi) is not supported: use GPU for Intel GPUs, or CPU",
        id="HPU",
    ),
    pytest.param(
        finetune_job("job", Training__accelerate_mode="DEEPSPEED"),
        finetune_job("job", Training__accelerate_mode="ddp"),
        "DEEPSPEED and HPU modes are not supported: use GPU_FSDP",
        id="DEEPSPEED",
    ),
    pytest.param(
        finetune_job("job", accelerator="xe"),
        finetune_job(
            "job",
            accelerator="xe",
            Training__device="GPU",
            Training__accelerate_mode="GPU_DDP",
            Training__resources_per_worker=GPU,
        ),
        "accelerator goes with config.Training.device GPU",
        id="accelerator on CPU",
    ),
    pytest.param(
        finetune_job("job", output={"persistentVolumeClaim": {"claimName": "out"}, "size": "1Gi"}),
        finetune_job("job", output={"persistentVolumeClaim": {"claimName": "out"}}),
        "output takes exactly one of persistentVolumeClaim (an existing claim) and size",
        id="output of both kinds",
    ),
    pytest.param(
        finetune_job("job", output={}),
        finetune_job("job", output={"size": "1Gi"}),
        "output takes exactly one of persistentVolumeClaim (an existing claim) and size",
        id="output of no kind",
    ),
    pytest.param(
        finetune_job("job", output={"persistentVolumeClaim": {"claimName": "out"}, "deleteWithJob": True}),
        finetune_job("job", output={"size": "1Gi", "deleteWithJob": True}),
        "deleteWithJob goes with size",
        id="delete somebody's claim",
    ),
    pytest.param(
        finetune_job("job", dataset={"persistentVolumeClaim": {"claimName": "data"}, "configMap": {"name": "rows"}}),
        finetune_job("job", dataset={"configMap": {"name": "rows"}}),
        "dataset takes a persistentVolumeClaim or a configMap, not both",
        id="two data sets",
    ),
    pytest.param(
        finetune_job("job", dataset={"persistentVolumeClaim": {"claimName": "data", "subPath": "a/../../b"}}),
        finetune_job("job", dataset={"persistentVolumeClaim": {"claimName": "data", "subPath": "a/..b"}}),
        "must stay inside the volume",
        id="path out of the volume",
    ),
    pytest.param(
        finetune_job("job", General__config={"use_auth_token": "hf_secret"}),
        finetune_job("job", General__config={"use_auth_token": None, "trust_remote_code": False}),
        "put it into a Secret that spec.model.tokenSecretRef",
        id="a token in the open",
    ),
    pytest.param(
        finetune_job("job", General__config={"token": "hf_secret"}),
        finetune_job("job", General__config={"token": None}),
        "put it into a Secret that spec.model.tokenSecretRef",
        id="a token in the open, under its later name",
    ),
    pytest.param(
        finetune_job("job", Training__finetuning_model="dpo"),
        finetune_job("job", Training__finetuning_model="SFT"),
        "only supervised finetuning is supported",
        id="another objective",
    ),
    pytest.param(
        finetune_job("job", General__trainer_type="dpo"),
        finetune_job("job", General__trainer_type="default"),
        "only supervised finetuning is supported",
        id="another type of trainer",
    ),
    pytest.param(
        finetune_job("job", Training__use_dpo=True),
        finetune_job("job", Training__use_dpo=False),
        "only supervised finetuning is supported",
        id="DPO",
    ),
    pytest.param(
        finetune_job("job", Training__beta=0.1),
        finetune_job("job", Training__beta=None),
        "only supervised finetuning is supported",
        id="a number of DPO",
    ),
    pytest.param(
        finetune_job("job", General__save_strategy="sometimes"),
        finetune_job("job", General__save_strategy=False),
        'supported values: "no", "epoch", "steps"',
        id="save_strategy",
    ),
    pytest.param(
        finetune_job("job", Training__batch_size=0),
        finetune_job("job", Training__batch_size=1),
        "should be greater than or equal to 1",
        id="batch_size",
    ),
    pytest.param(
        finetune_job("job", Training__learning_rate=0),
        finetune_job("job", Training__learning_rate=1e-9),
        "should be greater than 0",
        id="learning_rate",
    ),
    pytest.param(
        finetune_job("job", Training__batchsize=1),
        finetune_job("job", Training__batch_size=1),
        'unknown field "spec.config.Training.batchsize"',
        id="unknown key",
    ),
    pytest.param(
        finetune_job("job", Training__optimizer="Adamm"),
        finetune_job("job", Training__optimizer="ADAMW_torch_fused"),
        "unknown optimizer; use one of",
        id="optimizer",
    ),
    pytest.param(
        finetune_job("job", Dataset__train_file="/home/me/rows.jsonl"),
        finetune_job("job", Dataset__train_file="home/me/rows.jsonl"),
        "config.Dataset.train_file must be a relative path without '..'",
        id="train_file of another machine",
    ),
    pytest.param(
        finetune_job("job", Dataset__train_file="~/rows.jsonl"),
        finetune_job("job", Dataset__train_file="a~/rows.jsonl"),
        "config.Dataset.train_file must be a relative path without '..'",
        id="train_file at home",
    ),
    pytest.param(
        finetune_job("job", Dataset__validation_file="a/../../rows.jsonl"),
        finetune_job("job", Dataset__validation_file="a/..rows.jsonl"),
        "config.Dataset.validation_file must be a relative path without '..'",
        id="validation_file out of the data set",
    ),
    pytest.param(
        finetune_job("job", model={"persistentVolumeClaim": {"claimName": "models"}, "revision": "abc"}),
        finetune_job("job", model={"revision": "abc", "cache": {"persistentVolumeClaim": {"claimName": "cache"}}}),
        "model.revision and model.cache go with a model from the hub",
        id="revision of a model on a claim",
    ),
    pytest.param(
        finetune_job("job", output={"persistentVolumeClaim": {"claimName": "out"}, "accessModes": ["ReadWriteMany"]}),
        finetune_job("job", output={"size": "1Gi", "accessModes": ["ReadWriteMany"]}),
        "storageClassName and accessModes go with size",
        id="access mode of an existing claim",
    ),
    pytest.param(
        finetune_job("job", workers={"env": [{"name": "HF_TOKEN", "value": "hf_x"}]}),
        finetune_job("job", workers={"env": [{"name": "HTTPS_PROXY", "value": "http://proxy:3128"}]}),
        "a hub token goes into model.tokenSecretRef",
        id="a token among the variables",
    ),
    pytest.param(
        finetune_job("job", workers={"env": [{"name": "RAY_ADDRESS", "value": "x"}]}),
        finetune_job("job", workers={"env": [{"name": "MY_RAY_ADDRESS", "value": "x"}]}),
        "are set by the operator",
        id="a variable of the operator",
    ),
    pytest.param(
        finetune_job("job", workers={"env": [{"name": "A", "value": "1"}, {"name": "A", "value": "2"}]}),
        finetune_job("job", workers={"env": [{"name": "A", "value": "1"}, {"name": "B", "value": "1"}]}),
        "Duplicate value",
        id="a variable twice",
    ),
    pytest.param(
        finetune_job("job", workers={"labels": {"ray.io/cluster": "other"}}),
        finetune_job("job", workers={"labels": {"kueue.x-k8s.io/queue-name": "other"}}),
        "labels and annotations of ray.io/ and llmonray.dev/ are set by KubeRay and the operator",
        id="a label of KubeRay",
    ),
    pytest.param(
        finetune_job("job", head={"tolerations": [{"effect": "NoSchedule"}]}),
        finetune_job("job", head={"tolerations": [{"effect": "NoSchedule", "operator": "Exists"}]}),
        "a toleration without key tolerates every taint: it needs operator Exists",
        id="a toleration of everything by mistake",
    ),
    pytest.param(
        finetune_job("job", head={"tolerations": [{"key": "a", "operator": "Exists", "value": "b"}]}),
        finetune_job("job", head={"tolerations": [{"key": "a", "operator": "Equal", "value": "b"}]}),
        "value goes with operator Equal, not with Exists",
        id="a value that is not compared",
    ),
    pytest.param(
        finetune_job("job", head={"tolerations": [{"key": "a", "effect": "NoSchedule", "tolerationSeconds": 5}]}),
        finetune_job("job", head={"tolerations": [{"key": "a", "effect": "NoExecute", "tolerationSeconds": 5}]}),
        "tolerationSeconds goes with effect NoExecute",
        id="tolerationSeconds without eviction",
    ),
    pytest.param(
        finetune_job("job", workers=nodes_with({"key": "disk", "operator": "In"})),
        finetune_job("job", workers=nodes_with({"key": "disk", "operator": "In", "values": ["ssd"]})),
        "values go with operator In, NotIn, Gt and Lt",
        id="affinity without values",
    ),
    pytest.param(
        finetune_job("job", resumeFrom="job"),
        finetune_job("job", resumeFrom="jo"),
        "no job can begin from itself",
        id="a job that begins from itself",
    ),
    pytest.param(
        finetune_job("job", workers=nodes_with({"key": "disk", "operator": "Exists", "values": ["ssd"]})),
        finetune_job("job", workers=nodes_with({"key": "disk", "operator": "Exists"})),
        "values go with operator In, NotIn, Gt and Lt",
        id="affinity with values of no use",
    ),
]


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
    """A rule that is added without a pair above fails here."""
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
    wait_until("the job", lambda: api.get("ftj", "named"), 5)
