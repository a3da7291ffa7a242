"""The ConfigMap with the finetuning YAML, which the driver reads."""

from __future__ import annotations

import hashlib
import io
from typing import Any

from ruamel.yaml import YAML

from finetune_operator.api.v1alpha1 import FinetuneJob
from finetune_operator.constants import CONFIG_FILE
from finetune_operator.desired import naming


def config_yaml(job: FinetuneJob) -> str:
    """The finetuning YAML: only keys that were set, so that the trainer's defaults hold."""
    yaml = YAML()
    yaml.default_flow_style = False
    stream = io.StringIO()
    yaml.dump(job.spec.config.model_dump(mode="json", by_alias=True, exclude_unset=True), stream)
    return stream.getvalue()


def config_digest(job: FinetuneJob) -> str:
    """SHA-256 of the YAML. The driver compares it: whoever may delete and make ConfigMaps can replace ours at any time."""
    return hashlib.sha256(config_yaml(job).encode()).hexdigest()


def config_name(job: FinetuneJob) -> str:
    """Name of the ConfigMap. It depends on the content: a release that writes other YAML makes another ConfigMap."""
    return f"{job.metadata.name}-{job.metadata.uid}-{config_digest(job)[:16]}"


def build_config_map(job: FinetuneJob) -> dict[str, Any]:
    """The ConfigMap."""
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": naming.metadata(job, config_name(job)),
        "immutable": True,
        "data": {CONFIG_FILE: config_yaml(job)},
    }
