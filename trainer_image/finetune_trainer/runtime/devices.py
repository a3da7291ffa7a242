"""Choose the device of a worker, and the back end of torch.distributed. Only this module distinguishes Intel GPUs from others.

Ray Train's TorchConfig is not used, so no subclass for Intel is needed: it does not support XPU, assigns cuda:0 to a
worker on an Intel GPU, and sets CUDA_VISIBLE_DEVICES to the GPUs of all workers of a node. Ray itself hides the GPUs of
other workers by ZE_AFFINITY_MASK, if `dpctl` is installed to count Intel GPUs: then xpu:0 is the worker's own. Otherwise
it sets CUDA_VISIBLE_DEVICES, which hides no Intel GPU, and the worker uses the one that Ray names.
"""

from __future__ import annotations

import logging
import os
import socket
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from finetune_trainer.errors import DeviceNotFound
from finetune_trainer.runtime import host, intel

log = logging.getLogger(__name__)

GROUP_BACKENDS = {"cpu": "gloo", "xpu": "cpu:gloo,xpu:xccl", "cuda": "cpu:gloo,cuda:nccl"}
"""Device type → backend of torch.distributed. With a GPU, gloo stays beside it for what lives in host memory."""


def find_device(kind: str, ray_ids: list[str] | None = None, library: Any = torch) -> torch.device:
    """The device for `Training.device`.

    Args:
        kind: cpu or gpu. An Intel GPU is taken before another one.
        ray_ids: GPUs that Ray assigned to this worker; None: Ray is not used.
        library: torch, or a replacement in a test.

    Raises:
        DeviceNotFound: there is no usable GPU; the message says what is missing.
    """
    if kind == "cpu":
        return torch.device("cpu")
    if library.xpu.is_available():
        return torch.device("xpu", xpu_index(ray_ids, library.xpu.device_count()))
    if library.cuda.is_available():
        return torch.device("cuda", 0)
    raise DeviceNotFound(_missing(ray_ids))


def xpu_index(ray_ids: list[str] | None, count: int) -> int:
    """Number of a worker's Intel GPU among those that it sees: the first one, unless it sees those of other workers too.

    Args:
        ray_ids: GPUs that Ray assigned to it, by their numbers on the host; None: Ray is not used.
        count: Intel GPUs that it sees.
    """
    if not ray_ids or count <= len(ray_ids) or not ray_ids[0].isdecimal():
        return 0
    return int(ray_ids[0]) % count


def group_backend(kind: str, *, has_xccl: bool | None = None) -> str:
    """Back end of torch.distributed for a type of device: that of the table, or oneCCL's `ccl` where it is installed.

    Args:
        kind: cpu, xpu or cuda.
        has_xccl: whether torch has the back end for Intel GPUs built in; None: look.

    Raises:
        DeviceNotFound: no back end for Intel GPUs is installed.
    """
    if kind == "cuda" or (kind == "xpu" and (dist.is_xccl_available() if has_xccl is None else has_xccl)):
        return GROUP_BACKENDS[kind]
    ccl = intel.find_ccl()
    if ccl.note:
        log.info("%s", ccl.note)
    if kind == "cpu":
        return "gloo" if ccl.module is None else "ccl"
    if ccl.module is None:
        raise DeviceNotFound(f"host {socket.gethostname()}: torch {torch.__version__} has no xccl, and there is no "
                             "oneccl_bindings_for_pytorch for it: several workers cannot share Intel GPUs; take torch's XPU "
                             "build, 2.8 or later, or one worker")  # fmt: skip
    return "cpu:gloo,xpu:ccl"


def use_ipex(model: torch.nn.Module, optimizer: torch.optim.Optimizer, device: torch.device) -> None:
    """Use Intel's extension on a CPU, if it is installed. XPU devices do not need it.

    Args:
        model: in training mode, its weights not sharded.
        optimizer: before its first step.
        device: of the model.
    """
    note = intel.use_ipex(model, optimizer) if device.type == "cpu" else ""
    if note:
        log.info("%s", note)


def select_device(device: torch.device) -> None:
    """Make it the current device of its kind."""
    if device.type == "xpu":
        torch.xpu.set_device(device)
    elif device.type == "cuda":
        torch.cuda.set_device(device)
        # cuDNN makes a new plan for each length of a row, and rows have many lengths.
        torch.backends.cuda.enable_cudnn_sdp(False)


def empty_cache(device: torch.device) -> None:
    """Release the cached memory of the device."""
    if device.type == "xpu":
        torch.xpu.empty_cache()
    elif device.type == "cuda":
        torch.cuda.empty_cache()


def peak_memory(device: torch.device) -> int:
    """Most memory that this process has held so far, in bytes: of the device's, on a CPU of the host's."""
    if device.type == "xpu":
        return int(torch.xpu.max_memory_allocated(device))
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return host.peak_memory()


def free_memory(device: torch.device) -> int:
    """Bytes that are free on the device, on a CPU on this host; 0: unknown."""
    if device.type == "cpu":
        return host.available_memory()
    library: Any = getattr(torch, device.type)
    try:
        return int(library.mem_get_info(device)[0])
    except (AttributeError, RuntimeError):  # some drivers of Intel GPUs do not tell
        return 0


def total_memory(device: torch.device) -> int:
    """Memory of a CUDA device, in bytes; 0: it is another one."""
    return int(torch.cuda.get_device_properties(device).total_memory) if device.type == "cuda" else 0


def capability(device: torch.device) -> tuple[int, int]:
    """CUDA's compute capability of the device; (0, 0): it is another one."""
    return torch.cuda.get_device_capability(device) if device.type == "cuda" else (0, 0)


class NumbersInFlight:
    """Numbers that a device computes, on their way to the host: what the device is told after them does not delay them."""

    def __init__(self, *numbers: torch.Tensor) -> None:
        self._numbers = torch.stack(numbers)
        self._copied: torch.cuda.Event | None = None
        if self._numbers.is_cuda:
            on_device, self._numbers = self._numbers, torch.empty(len(numbers), pin_memory=True)
            self._numbers.copy_(on_device, non_blocking=True)
            self._copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._copied.record()

    def wait(self) -> list[float]:
        """The numbers."""
        if self._copied is not None:
            self._copied.synchronize()
        values: list[float] = self._numbers.tolist()
        return values


def _missing(ray_ids: list[str] | None) -> str:
    """Describe what this host lacks for a GPU."""
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
