"""What a user may say about a job's pods. There is no pod template: everything here keeps Pod Security `restricted`.

The rules (CEL) are the API server's; `api.checks` asks them again before a job begins. They are not validators of the
models: a job that runs already, and is older than a rule, must stay readable.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field, StringConstraints, WithJsonSchema

from finetune_operator.api.affinity import Affinity
from finetune_operator.api.base import LabelMap, LabelValue, LocalReference, Model, Name, Quantity, Rules
from finetune_operator.api.variables import RULES

_VARIABLE_PATTERN = r"^[A-Za-z_][A-Za-z0-9_]*$"


VariableName = Annotated[
    str,
    StringConstraints(max_length=128, pattern=_VARIABLE_PATTERN),
    WithJsonSchema(
        {
            "type": "string",
            "maxLength": 128,
            "pattern": _VARIABLE_PATTERN,
            "x-kubernetes-validations": RULES,
        }
    ),
]


class EnvironmentVariable(Model):
    """A variable of a pod's container, in the open: it is no place for a secret."""

    name: VariableName
    """Its name."""
    value: Annotated[str, StringConstraints(max_length=4096)] = ""
    """Its value."""


_NO_KEY = "a toleration without key tolerates every taint: it needs operator Exists"
_NO_VALUE = "value goes with operator Equal, not with Exists"
_NO_SECONDS = "tolerationSeconds goes with effect NoExecute"

_TOLERATION_RULES: Rules = [
    {"rule": "(has(self.key) && self.key != '') || (has(self.operator) && self.operator == 'Exists')", "message": _NO_KEY},
    {
        "rule": "!has(self.operator) || self.operator != 'Exists' || !has(self.value) || self.value == ''",
        "message": _NO_VALUE,
    },
    {
        "rule": "!has(self.tolerationSeconds) || (has(self.effect) && self.effect == 'NoExecute')",
        "message": _NO_SECONDS,
    },
]


class Toleration(Model):
    """A Kubernetes toleration."""

    model_config = ConfigDict(json_schema_extra={"x-kubernetes-validations": _TOLERATION_RULES})

    key: Annotated[str, StringConstraints(max_length=317)] | None = None
    """Taint key; empty with operator Exists matches all."""
    operator: Literal["Exists", "Equal"] | None = None
    """Exists or Equal. Default: Equal."""
    value: LabelValue | None = None
    """Taint value."""
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    """Taint effect; empty matches all."""
    toleration_seconds: Annotated[int, Field(ge=0, le=2147483647)] | None = None
    """How long a NoExecute taint is tolerated, in seconds."""


_OWN_PREFIXES = ("ray.io/", "llmonray.dev/")
_OWN_LABELS = "labels and annotations of ray.io/ and llmonray.dev/ are set by KubeRay and the operator"
_OWN_RULE: Rules = [
    {
        "rule": "self.all(key, size(key) <= 317 && " + " && ".join(f"!key.startsWith('{p}')" for p in _OWN_PREFIXES) + ")",
        "message": _OWN_LABELS + ", and a key has at most 317 characters",
    }
]
"""That a key is well-formed cannot be said here: a regular expression over keys exceeds the CEL cost budget, since a
schema cannot bound their length. `finetune_operator.api.checks` says it instead."""

PodLabels = Annotated[LabelMap, Field(json_schema_extra={"x-kubernetes-validations": _OWN_RULE})]
PodAnnotations = Annotated[
    dict[Annotated[str, StringConstraints(max_length=317)], Annotated[str, StringConstraints(max_length=1024)]],
    Field(max_length=32, json_schema_extra={"x-kubernetes-validations": _OWN_RULE}),
]

Variables = Annotated[
    tuple[EnvironmentVariable, ...],
    Field(
        max_length=32,
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
    ),
]


class PodOptions(Model):
    """What the user may say about pods."""

    memory: Quantity | None = None
    """Memory request and limit of a pod, as 16Gi. Default: the operator's setting."""
    node_selector: LabelMap | None = None
    """Labels that a node must have."""
    tolerations: Annotated[tuple[Toleration, ...], Field(max_length=32)] | None = None
    """Taints that are tolerated."""
    priority_class_name: Name | None = None
    """PriorityClass of the pods. Default: the cluster's."""
    env: Variables | None = None
    """More environment variables, such as a proxy's address or NCCL settings."""
    image_pull_secrets: Annotated[tuple[LocalReference, ...], Field(max_length=8)] | None = None
    """Secrets with registry credentials."""
    labels: PodLabels | None = None
    """More labels for the pods."""
    annotations: PodAnnotations | None = None
    """More annotations for the pods."""


class HeadOptions(PodOptions):
    """The head pod: it runs the driver, and never trains."""

    cpu: Quantity | None = None
    """CPU request. Default: the operator's setting."""


class WorkerOptions(PodOptions):
    """The worker pods: num_training_workers of them. CPU and GPU come from resources_per_worker."""

    affinity: Affinity | None = None
    """Where pods may go, beyond nodeSelector."""
