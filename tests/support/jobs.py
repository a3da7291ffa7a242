"""FinetuneJobs and their surroundings for tests on a cluster."""

from __future__ import annotations

import copy
from typing import Any

Object = dict[str, Any]

MODEL = "SmolLM2-135M-Instruct"
"""A model that knows words, for what is about words, memory or the size of files."""

SMALL_MODEL = "small-llama"
SMALL_SIZES = {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 6}
"""A model with random weights for everything else: it loads at once, and a step takes about a tenth of a second."""

BASE: Object = {
    "apiVersion": "llmonray.dev/v1alpha1",
    "kind": "FinetuneJob",
    "metadata": {"name": "job"},
    "spec": {
        "config": {
            "General": {
                "base_model": f"tests/{SMALL_MODEL}",
                "sample_prompts": 0,
                "lora_config": {"task_type": "CAUSAL_LM", "r": 8, "lora_alpha": 32, "lora_dropout": 0.1},
            },
            "Dataset": {"train_file": "rows.jsonl", "validation_split_percentage": 5, "max_length": 192},
            "Training": {
                "optimizer": "AdamW",
                "batch_size": 2,
                "max_train_steps": 12,
                "learning_rate": 1.0e-3,
                "device": "CPU",
                "num_training_workers": 2,
                "resources_per_worker": {"CPU": 0.3},
                "accelerate_mode": "CPU_DDP",
                "logging_steps": 1,
            },
        },
        "dataset": {"persistentVolumeClaim": {"claimName": "data"}},
        "model": {"persistentVolumeClaim": {"claimName": "models", "subPath": SMALL_MODEL}},
        "output": {"size": "1Gi"},
        "head": {"cpu": "100m", "memory": "3Gi"},
        "workers": {"memory": "2560Mi"},
    },
}
"""LoRA on two CPU workers: two such jobs fit on a node of two cores. No answers, which take longer than the steps."""

WITH_WORDS: Object = {
    "General__base_model": f"HuggingFaceTB/{MODEL}",
    "model": {"persistentVolumeClaim": {"claimName": "models", "subPath": MODEL}},
    "workers": {"memory": "4Gi"},
}
"""Changes of a job to have it train the model that knows words."""


def finetune_job(name: str, **changes: Any) -> Object:
    """A job like BASE; ``Training__batch_size=1`` changes a key of the config, ``output={…}`` a part of the spec."""
    job = copy.deepcopy(BASE)
    job["metadata"]["name"] = name
    for key, value in changes.items():
        section, _, inner = key.partition("__")
        if inner:
            job["spec"]["config"][section][inner] = value
        else:
            job["spec"][section] = value
    return job


def claim(name: str, size: str = "1Gi") -> Object:
    """A claim of the default storage class."""
    spec = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": size}}}
    return {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": name}, "spec": spec}


def tool_pod(name: str, image: str, command: list[str], claims: dict[str, str]) -> Object:
    """A pod of the trainer image that passes Pod Security ``restricted``; claims by mount path."""
    volumes = {path: f"v{index}" for index, path in enumerate(claims)}
    container = {
        "name": "tool",
        "image": image,
        "imagePullPolicy": "IfNotPresent",
        "command": command,
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
        "volumeMounts": [{"name": volume, "mountPath": path} for path, volume in volumes.items()],
    }
    spec = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": 0,
        "securityContext": {
            "runAsNonRoot": True, "runAsUser": 1000, "runAsGroup": 1000, "fsGroup": 1000,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [container],
        "volumes": [
            {"name": volume, "persistentVolumeClaim": {"claimName": claims[path]}} for path, volume in volumes.items()
        ],
    }  # fmt: skip
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec}
