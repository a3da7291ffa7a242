"""The section Training of the configuration: optimizer, schedule, device and workers."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, ConfigDict, Field, JsonValue, model_validator

from finetune_trainer.config.objective import Absent, Never, Objective, absent_rule
from finetune_trainer.config.optimizer_names import OPTIMIZERS
from finetune_trainer.config.section import Section, cel, choice, lower, yaml_no

Device = Literal["cpu", "gpu"]


AccelerateMode = Literal["DDP", "FSDP"]


def _optimizer(value: Any) -> Any:
    if isinstance(value, str) and value.lower() not in OPTIMIZERS:
        raise ValueError(OPTIMIZER_MESSAGE)
    return value


class ResourcesPerWorker(Section):
    """What one worker asks for."""

    CPU: Annotated[float, Field(gt=0, le=1024)] = 1
    """CPUs of a worker: the CPU request of its pod, and its compute threads (rounded up)."""
    GPU: Annotated[int, Field(ge=0, le=64)] = 0
    """GPUs of a worker, each a rank: in a cluster the pod requests and limits gpu.intel.com/i915 (or spec.accelerator's
    resource)."""
    HPU: Annotated[int, Field(ge=0, le=0)] = 0
    """Only 0: Gaudi is not supported."""


TRAINING_RULES: list[JsonValue] = [
    {
        "rule": "!has(self.accelerate_mode) || !self.accelerate_mode.upperAscii().startsWith('GPU_') || "
        "(has(self.device) && self.device.lowerAscii() == 'gpu')",
        "message": "accelerate_mode GPU_DDP and GPU_FSDP need device GPU",
    },
    {
        "rule": "!has(self.accelerate_mode) || !self.accelerate_mode.upperAscii().startsWith('CPU_') || "
        "!has(self.device) || self.device.lowerAscii() != 'gpu'",
        "message": "accelerate_mode CPU_DDP needs device CPU",
    },
    {
        "rule": "!has(self.device) || self.device.lowerAscii() != 'gpu' || "
        "(has(self.resources_per_worker) && has(self.resources_per_worker.GPU) && self.resources_per_worker.GPU >= 1)",
        "message": "device GPU needs resources_per_worker.GPU of at least 1",
    },
    {
        "rule": "(has(self.device) && self.device.lowerAscii() == 'gpu') || !has(self.resources_per_worker) || "
        "!has(self.resources_per_worker.GPU) || self.resources_per_worker.GPU == 0",
        "message": "device CPU forbids resources_per_worker.GPU above 0",
    },
    absent_rule("beta"),
]
"""Rules between the keys of Training for the API server; `Training._device_agrees` checks the same in Python."""


_DEVICE_RULE = "self.lowerAscii() in ['cpu', 'gpu']"


_MODE_RULE = "self.upperAscii() in ['CPU_DDP', 'GPU_DDP', 'GPU_FSDP', 'DDP', 'FSDP']"


_OPTIMIZER_RULE = f"self.lowerAscii() in {sorted(OPTIMIZERS)}"


OPTIMIZER_MESSAGE = f"unknown optimizer; use one of {', '.join(sorted(set(OPTIMIZERS.values())))}"


DEVICE_MESSAGE = "device must be CPU or GPU; HPU (Gaudi) is not supported: use GPU for Intel GPUs, or CPU"


MODE_MESSAGE = (
    "accelerate_mode must be CPU_DDP, GPU_DDP, GPU_FSDP, DDP or FSDP; DEEPSPEED and HPU modes are not supported: use GPU_FSDP"
)


def _device(value: Any) -> Any:
    value = lower(value)
    if value not in ("cpu", "gpu"):
        raise ValueError(DEVICE_MESSAGE)
    return value


def _known_mode(value: Any) -> Any:
    value = value.upper() if isinstance(value, str) else value
    if value not in ("CPU_DDP", "GPU_DDP", "GPU_FSDP", "DDP", "FSDP"):
        raise ValueError(MODE_MESSAGE)
    return value


class Training(Section):
    """Optimizer, schedule, device and workers."""

    model_config = ConfigDict(json_schema_extra={"x-kubernetes-validations": TRAINING_RULES})

    optimizer: Annotated[str, BeforeValidator(_optimizer), cel(_OPTIMIZER_RULE, OPTIMIZER_MESSAGE)] = "AdamW"
    """Optimizer: torch's class names or Hugging Face's names; adamw_* mean AdamW."""
    batch_size: Annotated[int, Field(ge=1, le=65536)] = 4
    """Rows per rank and micro-step. A worker on CPUs is one rank, and each GPU of a worker is one."""
    tokens_per_step: Annotated[int, Field(ge=1, le=1000000000)] | None = None
    """About how many tokens an optimizer step has, of all ranks and micro-steps, in whole rows. batch_size then holds for
    evaluation only. An addition to llm-on-ray's keys. Default: a step has as many rows as batch_size says."""
    epochs: Annotated[int, Field(ge=1, le=100000)] = 3
    """Passes over the training rows."""
    max_train_steps: Annotated[int, Field(ge=1, le=1000000000)] | None = None
    """Stop after this many optimizer steps; overrides epochs."""
    learning_rate: Annotated[float, Field(gt=0, le=1000)] = 1.0e-5
    """Peak learning rate."""
    lr_scheduler: Annotated[
        Literal["linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup"],
        BeforeValidator(lower),
    ] = "linear"
    """Shape of the learning rate over the run."""
    weight_decay: Annotated[float, Field(ge=0, le=1000)] = 0.0
    """Weight decay of the optimizer."""
    mixed_precision: Annotated[
        Literal["no", "fp16", "bf16"],
        BeforeValidator(yaml_no),
        choice("no", "fp16", "bf16", False, type_=None),
    ] = "no"
    """Precision of the forward and backward pass: no (fp32), bf16 or fp16."""
    device: Annotated[Device, BeforeValidator(_device), cel(_DEVICE_RULE, DEVICE_MESSAGE)] = "cpu"
    """CPU or GPU, in any case."""
    num_training_workers: Annotated[int, Field(ge=1, le=256)] = 1
    """Ray Train workers; in a cluster one pod each."""
    resources_per_worker: ResourcesPerWorker = ResourcesPerWorker()
    """What one worker asks for."""
    accelerate_mode: Annotated[
        Literal["CPU_DDP", "GPU_DDP", "GPU_FSDP", "DDP", "FSDP"],
        BeforeValidator(_known_mode),
        cel(_MODE_RULE, MODE_MESSAGE),
    ] = "DDP"
    """CPU_DDP, GPU_DDP or GPU_FSDP; or DDP or FSDP, for the device above."""
    gradient_accumulation_steps: Annotated[int, Field(ge=1, le=65536)] = 1
    """Micro-steps per optimizer step."""
    compile: Annotated[Literal["auto", True, False], BeforeValidator(lower), choice("auto", True, False, type_=None)] = "auto"
    """Compile the layers of the model with torch.compile: true, false, or auto, on CUDA GPUs of capability 8.0 or higher.
    Where that fails, a warning says so, and the layers run as they are. An addition to llm-on-ray's keys."""
    logging_steps: Annotated[int, Field(ge=1, le=1000000)] = 10
    """Optimizer steps between two log lines."""
    seed: Annotated[int, Field(ge=0, le=2147483647)] = 42
    """Seed of the split, the order of the rows, the initial adapter weights and dropout."""
    finetuning_model: Objective | None = None
    """Only sft, default or null: other objectives, as dpo, are not supported."""
    FinetuningModel: Objective | None = None
    """As finetuning_model."""
    use_dpo: Never | None = None
    """Only false: preference training is not supported."""
    beta: Absent | None = None
    """Only null: it belongs to preference training, which is not supported."""
    hpu_execution_mode: Annotated[str, Field(max_length=32)] | None = None
    """Obsolete, accepted and ignored."""
    deepspeed_config_file: Annotated[str, Field(max_length=256)] | None = None
    """Obsolete, accepted and ignored."""

    @property
    def strategy(self) -> AccelerateMode:
        """DDP or FSDP, without the device's prefix."""
        return "FSDP" if self.accelerate_mode.endswith("FSDP") else "DDP"

    @property
    def ranks_per_worker(self) -> int:
        """Processes that train on a worker: one for each of its GPUs, or a single one on CPUs."""
        return max(1, self.resources_per_worker.GPU)

    @property
    def ranks(self) -> int:
        """Processes that train, on all workers."""
        return self.num_training_workers * self.ranks_per_worker

    @property
    def torch_optimizer(self) -> str:
        """The class name in ``torch.optim``."""
        return OPTIMIZERS[self.optimizer.lower()]

    @model_validator(mode="after")
    def _device_agrees(self) -> Self:
        gpus = self.resources_per_worker.GPU
        prefix, _, rest = self.accelerate_mode.partition("_")
        if rest and prefix.lower() != self.device:
            raise ValueError(f"accelerate_mode {self.accelerate_mode} needs device {prefix}, but device is {self.device.upper()}")
        if self.device == "gpu" and gpus < 1:
            raise ValueError("device GPU needs resources_per_worker.GPU of at least 1")
        if self.device == "cpu" and gpus > 0:
            raise ValueError("device CPU forbids resources_per_worker.GPU above 0")
        return self
