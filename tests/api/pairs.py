"""Mistakes in a FinetuneJob that the API server refuses: each with its nearest neighbour, which it takes, and with its words."""

from __future__ import annotations

from typing import Any

import pytest
from tests.support.jobs import finetune_job
from tests.support.kubectl import Object

GPU = {"CPU": 1, "GPU": 1}


def nodes_with(expression: Object) -> Object:
    """Workers that need nodes of a kind."""
    terms = {"nodeSelectorTerms": [{"matchExpressions": [expression]}]}
    return {"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": terms}}}


FROZEN = {
    "General__frozen_dtype": "fp8",
    "Training__device": "GPU",
    "Training__accelerate_mode": "GPU_DDP",
    "Training__resources_per_worker": GPU,
    "Training__mixed_precision": "bf16",
}
"""What frozen weights in 8 bits need."""

SHA256 = "0" * 64

VARIABLES = (
    ("HF_TOKEN", "HTTPS_PROXY", "a hub token goes into model.tokenSecretRef"),
    ("RAY_ADDRESS", "MY_RAY_ADDRESS", "the operator sets HF_HOME, HF_TOKEN, HUGGING_FACE_HUB_TOKEN, POD_NAME and names that"),
    ("LD_PRELOAD", "OMP_NUM_THREADS", "no job may set a variable that makes programs run a file as code or load a library"),
    ("HF_ENDPOINT", "HTTPS_PROXY", "no job may set a variable that can send tokens to another server, or make pods trust one"),
    ("NVIDIA_VISIBLE_DEVICES", "NCCL_DEBUG", "no job may set a variable that gives a container devices of the node"),
)


def with_variable(name: str) -> Object:
    return finetune_job("job", workers={"env": [{"name": name, "value": "x"}]})


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
    *(pytest.param(with_variable(refused), with_variable(taken), words, id=refused) for refused, taken, words in VARIABLES),
    pytest.param(
        finetune_job("job", model={"tokenSecretRef": {"name": "hf-token", "key": "auth_token"}}),
        finetune_job("job", model={"tokenSecretRef": {"name": "hf-token", "key": "token"}}),
        "the key auth_token is that of a Ray cluster's token, which is not for the hub",
        id="the key of a Ray cluster's token",
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
    pytest.param(
        finetune_job("job", General__frozen_dtype="fp8"),
        finetune_job("job", **FROZEN),
        "General.frozen_dtype: fp8 needs Training.device GPU",
        id="8 bits on a CPU",
    ),
    pytest.param(
        finetune_job("job", **FROZEN | {"Training__accelerate_mode": "GPU_FSDP"}),
        finetune_job("job", **FROZEN),
        "General.frozen_dtype: fp8 is not supported with Training.accelerate_mode FSDP",
        id="8 bits in shards",
    ),
    pytest.param(
        finetune_job("job", **FROZEN | {"General__lora_config": None}),
        finetune_job("job", **FROZEN),
        "frozen_dtype needs General.lora_config",
        id="8 bits without adapters",
    ),
    pytest.param(
        finetune_job("job", dataset={"uri": "hf://a/b", "configMap": {"name": "rows"}}),
        finetune_job("job", dataset={"uri": "hf://a/b", "persistentVolumeClaim": {"claimName": "data"}}),
        "dataset takes a uri or a configMap, not both",
        id="an address and a ConfigMap",
    ),
    pytest.param(
        finetune_job("job", dataset={"uri": "s3://bucket/rows/", "sha256": SHA256}),
        finetune_job("job", dataset={"uri": "s3://bucket/rows", "sha256": SHA256}),
        "sha256 goes with the uri of one file",
        id="a digest of a folder",
    ),
    pytest.param(
        finetune_job("job", dataset={"uri": "http://host/rows"}),
        finetune_job("job", dataset={"uri": "http://host/rows", "sha256": SHA256}),
        "an http:// uri needs sha256",
        id="HTTP without a digest",
    ),
    pytest.param(
        finetune_job("job", dataset={"uri": "http://host/rows", "sha256": SHA256, "tokenSecretRef": {"name": "hf-a"}}),
        finetune_job("job", dataset={"uri": "s3://bucket/rows", "tokenSecretRef": {"name": "hf-a"}}),
        "dataset.tokenSecretRef goes with a uri of hf://, s3:// or https://",
        id="a token over HTTP",
    ),
    pytest.param(
        finetune_job("job", model={"uri": "hf://a/b", "revision": "main"}),
        finetune_job("job", model={"uri": "hf://a/b@main"}),
        "model.revision and model.cache do not go with model.uri",
        id="a revision beside an address",
    ),
]
