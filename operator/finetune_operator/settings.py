"""Settings of the operator: environment variables with the prefix ``FINETUNE_``, which the chart sets."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from finetune_operator.api.base import ImagePullPolicy
from finetune_operator.api.policy import Policy


class Settings(BaseSettings):
    """The settings of an administrator. They do not depend on kopf or Kubernetes."""

    model_config = SettingsConfigDict(env_prefix="FINETUNE_", frozen=True, use_attribute_docstrings=True)

    trainer_image: str = "localhost/finetune-trainer:dev"
    """Trainer image for device CPU, and for GPU where no other is set."""
    trainer_image_gpu: str | None = None
    """Trainer image for device GPU."""
    image_pull_policy: ImagePullPolicy = "IfNotPresent"
    """How kubelets get the trainer image."""
    namespaces: Annotated[tuple[str, ...], NoDecode] = ()
    """Namespaces to watch, separated by commas; none means all, which needs a ClusterRole."""
    dashboard_route: Literal["service", "proxy"] = "service"
    """How Ray dashboards are reached: by the head's service, or from outside by the API server's proxy."""
    cluster_domain: Annotated[
        str, Field(max_length=253, pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$")
    ] = "cluster.local"
    """DNS domain of the Kubernetes cluster, which the names of services end with."""
    token_key_file: Path = Path("/etc/finetune-operator/keys/key")
    """File with the master keys of Ray tokens, one a line, the current one first, older ones after it."""
    token_key_secret: Annotated[str, Field(pattern=r"^([a-z0-9-]+/[a-z0-9.-]+)?$")] = ""
    """NAMESPACE/NAME of the Secret with that file, which the operator makes where it is missing; empty: the file is read."""
    head_memory: str = "4Gi"
    """Memory of a head pod when the job does not say."""
    head_cpu: str = "1"
    """CPU request of a head pod when the job does not say."""
    worker_memory: str = "8Gi"
    """Memory of a worker pod when the job does not say."""
    trainer_env: dict[str, str] = Field(default_factory=dict)
    """Environment variables of all pods, as a JSON object; those of the same name of a job come first."""
    check_nodes: bool = True
    """Look whether a node offers a job's GPUs before its cluster is made; only where all namespaces are watched."""
    policy: Policy = Policy()
    """What the administrator allows, as a JSON object."""
    workers: Annotated[int, Field(ge=1, le=256)] = 16
    """Reconciles that run at the same time."""
    metrics_port: int = 9090
    """Port of the Prometheus metrics."""
    probe_port: int = 8080
    """Port of the liveness probe."""

    @field_validator("namespaces", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value

    def image_for(self, device: str) -> str:
        """The trainer image for a device, ``cpu`` or ``gpu``."""
        return self.trainer_image_gpu or self.trainer_image if device == "gpu" else self.trainer_image
