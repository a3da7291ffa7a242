"""The table of accelerators: the resource that a worker pod requests, and the number of GPUs for Ray.

KubeRay counts only resources whose name ends in ``gpu``, so Ray would not see an Intel GPU: ``num-gpus`` is always
given. Device plugins hand out whole devices: request and limit are equal.
"""

from __future__ import annotations

from dataclasses import dataclass

from finetune_operator.api.v1alpha1 import FinetuneJob
from finetune_operator.desired.defaults import accelerator


@dataclass(frozen=True)
class Accelerator:
    """One kind of GPU."""

    resource: str
    """Extended resource of its device plugin."""


ACCELERATORS: dict[str, Accelerator] = {
    "i915": Accelerator("gpu.intel.com/i915"),
    "xe": Accelerator("gpu.intel.com/xe"),
    "nvidia": Accelerator("nvidia.com/gpu"),
}
"""Values of spec.accelerator. i915 and xe are the two kernel drivers for Intel GPUs."""


def gpu_resources(job: FinetuneJob) -> dict[str, str]:
    """Extended resources of one worker pod: empty on CPU, one entry on GPU."""
    training = job.spec.config.training
    if training.device != "gpu":
        return {}
    resource = ACCELERATORS[accelerator(job)].resource
    return {resource: str(training.resources_per_worker.GPU)}
