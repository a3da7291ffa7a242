"""Which device a worker computes on. Nothing else in the trainer tells an Intel GPU from another one."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import torch

from finetune_trainer.errors import DeviceNotFound

GROUP_BACKENDS = {"cpu": "gloo", "xpu": "cpu:gloo,xpu:xccl", "cuda": "cpu:gloo,cuda:nccl"}
"""Device type → backend of torch.distributed. With a GPU, gloo stays beside it for what lives in host memory."""


def find_device(kind: str, ray_ids: list[str] | None = None) -> torch.device:
    """The device for `Training.device`.

    Args:
        kind: cpu or gpu. An Intel GPU is taken before another one.
        ray_ids: GPUs that Ray assigned to this worker; None: Ray is not used.

    Raises:
        DeviceNotFound: there is no usable GPU; the message tells what is missing.
    """
    if kind == "cpu":
        return torch.device("cpu")
    if hasattr(torch, "xpu") and torch.xpu.is_available():
        return torch.device("xpu", 0)
    if torch.cuda.is_available():
        return torch.device("cuda", 0)
    raise DeviceNotFound(_missing(ray_ids))


def select_device(device: torch.device) -> None:
    """Make it the current device of its kind."""
    if device.type == "xpu":
        torch.xpu.set_device(device)
    elif device.type == "cuda":
        torch.cuda.set_device(device)


def empty_cache(device: torch.device) -> None:
    """Give cached memory of the device back."""
    if device.type == "xpu":
        torch.xpu.empty_cache()
    elif device.type == "cuda":
        torch.cuda.empty_cache()


def _missing(ray_ids: list[str] | None) -> str:
    """Say what a GPU needs and this host lacks."""
    lacks = []
    if not Path("/dev/dri").is_dir():
        lacks.append("no Intel GPU device (/dev/dri) is visible")
    if not torch.xpu._is_compiled():  # noqa: SLF001 - there is no public way to ask
        lacks.append("this build of torch has no XPU support")
    if torch.version.cuda is None:
        lacks.append("nor CUDA support")
    assigned = "" if ray_ids is None else f"; Ray assigned GPUs {ray_ids or 'none'}"
    mask = os.environ.get("ZE_AFFINITY_MASK")
    visible = "" if mask is None else f"; ZE_AFFINITY_MASK={mask}"
    why = ", ".join(lacks) or "the driver reports no device"
    return (f"host {socket.gethostname()}: device GPU is asked for, but none can be used: {why}"
            f" (torch {torch.__version__}{assigned}{visible})")  # fmt: skip
