"""The finetuning YAML of llm-on-ray: General, Dataset and Training.

One source for three readers: the command line, the Ray driver, and the operator's CRD (`make crds`). So nothing
heavy is imported here. Keys, defaults and spellings are the union of both schemas that llm-on-ray has had
(``CPU_DDP`` and ``DDP``, torch's and Hugging Face's optimizer names); a key that llm-on-ray requires without need
is optional here.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import AliasChoices, BaseModel, BeforeValidator, ConfigDict, Field, JsonValue, WithJsonSchema, model_validator

Device = Literal["cpu", "gpu"]
AccelerateMode = Literal["DDP", "FSDP"]

OPTIMIZERS: dict[str, str] = {
    "adadelta": "Adadelta",
    "adafactor": "Adafactor",
    "adagrad": "Adagrad",
    "adam": "Adam",
    "adamax": "Adamax",
    "adamw": "AdamW",
    "adamw_anyprecision": "AdamW",
    "adamw_apex_fused": "AdamW",
    "adamw_hf": "AdamW",
    "adamw_torch": "AdamW",
    "adamw_torch_fused": "AdamW",
    "asgd": "ASGD",
    "nadam": "NAdam",
    "radam": "RAdam",
    "rmsprop": "RMSprop",
    "rprop": "Rprop",
    "sgd": "SGD",
}
"""Accepted optimizer names, in lower case → the class in ``torch.optim``. llm-on-ray took torch's class names until
mid-2024 and Hugging Face's OptimizerNames afterwards; users have YAML files of both kinds."""

RENAMED_OPTIMIZERS = ("adamw_hf", "adamw_apex_fused", "adamw_anyprecision")
"""Names whose implementation current releases have no more: AdamW of torch takes their place, and the user is told."""

SCHEDULERS = ("linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup")
"""Values of lr_scheduler: the names that ``transformers.get_scheduler`` and llm-on-ray have in common."""

OBSOLETE_KEYS: dict[str, str] = {
    "General.gpt_base_model": "it chose an old transformers release for GPT models; current releases load them",
    "General.gaudi_config_name": "Gaudi is not supported",
    "General.deltatuner_config": "deltatuner is discontinued; use lora_config",
    "General.checkpoint_dir": "checkpoints are kept below output_dir",
    "Dataset.max_seq_length": "no release of llm-on-ray read it; use max_length",
    "Training.hpu_execution_mode": "Gaudi is not supported",
    "Training.deepspeed_config_file": "DeepSpeed is not supported; use accelerate_mode FSDP",
}
"""Keys that are accepted and have no meaning any more → why. They are named to the user, never dropped in silence."""

CREDENTIAL_MESSAGE = (
    "a token does not belong here: put it into a Secret that spec.model.tokenSecretRef of the FinetuneJob names, "
    "or locally into the environment variable HF_TOKEN"
)

INACTIVE_KEYS: dict[str, str] = {
    "Dataset.block_size": "the rows of a batch are joined whatever their length",
    "Dataset.padding": "the rows of a batch are padded to the longest, or joined without padding (Dataset.group)",
}
"""Keys that this release accepts without effect → what happens instead. They are named when they are set to anything
but their default."""

_NO = ("no", "No", "NO", "false", "False")


def _lower(value: Any) -> Any:
    return value.lower() if isinstance(value, str) else value


def _yaml_no(value: Any) -> Any:
    """YAML 1.1 parsers read a bare `no` as False, YAML 1.2 parsers as the word: both mean the same here."""
    return "no" if value is False or value in _NO else _lower(value)


def _optimizer(value: Any) -> Any:
    if isinstance(value, str) and value.lower() not in OPTIMIZERS:
        raise ValueError(OPTIMIZER_MESSAGE)
    return value


def _no_literal_token(value: Any) -> Any:
    if value not in (None, ""):
        raise ValueError(CREDENTIAL_MESSAGE)
    return value


def _choice(*values: Any, type_: str | None = "string") -> WithJsonSchema:
    schema: dict[str, Any] = {"enum": list(values)}
    if type_ is None:
        schema["x-kubernetes-preserve-unknown-fields"] = True
    else:
        schema["type"] = type_
    return WithJsonSchema(schema)


def _cel(rule: str, message: str, max_length: int = 32) -> WithJsonSchema:
    validation = {"rule": rule, "message": message}
    return WithJsonSchema({"type": "string", "maxLength": max_length, "x-kubernetes-validations": [validation]})


class Section(BaseModel):
    """A part of the YAML. Frozen; unknown keys are left to `unknown_keys`, so that they can be named together."""

    model_config = ConfigDict(frozen=True, extra="ignore", populate_by_name=True, use_attribute_docstrings=True)


class HubConfig(Section):
    """How the base model is loaded."""

    trust_remote_code: bool = False
    """Run Python code that comes with the model. Off unless the administrator allows it."""
    use_auth_token: (
        Annotated[
            str,
            BeforeValidator(_no_literal_token),
            WithJsonSchema(
                {
                    "type": "string",
                    "maxLength": 1024,
                    "x-kubernetes-validations": [{"rule": "size(self) == 0", "message": CREDENTIAL_MESSAGE}],
                }
            ),
        ]
        | None
    ) = None
    """Only null: a token belongs in a Secret (spec.model.tokenSecretRef of the FinetuneJob) or in HF_TOKEN."""


class LoraConfig(Section):
    """Low-rank adaptation (PEFT). Leave out for full finetuning."""

    task_type: Literal["CAUSAL_LM"] = "CAUSAL_LM"
    """The task of the adapter: CAUSAL_LM."""
    r: Annotated[int, Field(ge=1, le=4096)] = 8
    """Rank of the update matrices."""
    lora_alpha: Annotated[int, Field(ge=1, le=65536)] = 32
    """Scale of the update: it is multiplied by lora_alpha / r."""
    lora_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Dropout probability of the adapter's input, from 0 up to, not including, 1."""
    target_modules: (
        Annotated[list[Annotated[str, Field(min_length=1, max_length=128)]], Field(min_length=1, max_length=64)] | None
    ) = None
    """Names of the linear layers to adapt. Default: PEFT's choice for the model's family."""


class General(Section):
    """The base model, the output, and LoRA."""

    base_model: Annotated[str, Field(min_length=1, max_length=256)]
    """Hub name of the base model or a folder. In a FinetuneJob with model.persistentVolumeClaim the claim's folder is
    used, and this is only the name that the result carries."""
    tokenizer_name: Annotated[str, Field(min_length=1, max_length=256)] | None = None
    """Hub name or folder of the tokenizer. Default: that of the base model."""
    output_dir: Annotated[str, Field(min_length=1, max_length=256)] = "/tmp/llm-ray/output"  # noqa: S108 - the documented default of llm-on-ray
    """Folder of the result. In a FinetuneJob it is mapped to the job's own folder on the output claim."""
    report_to: Annotated[Literal["none", "tensorboard"], BeforeValidator(_lower)] = "none"
    """Where the curves of logs/metrics.jsonl go besides: none, or tensorboard (event files in logs/tensorboard)."""
    sample_prompts: Annotated[int, Field(ge=0, le=16)] = 3
    """How many prompts the model answers before the first step and after the last one, for the report: the first
    evaluation rows, or training rows if there are none. 0: none. An addition to llm-on-ray's keys."""
    resume_from_checkpoint: Annotated[str, Field(min_length=1, max_length=256)] | None = None
    """A checkpoint of this trainer (a folder checkpoints/step-N) to go on from: exactly, if configuration, rows and
    workers are the same; else weights and optimizer only. A run goes on from its own checkpoints by itself."""
    save_strategy: Annotated[
        Literal["no", "epoch", "steps"],
        BeforeValidator(_yaml_no),
        _choice("no", "epoch", "steps", False, type_=None),
    ] = "no"
    """When to write checkpoints: no, epoch (at the end of each) or steps (every 100); epoch and steps also keep them
    beside the finished result."""
    config: HubConfig = HubConfig()
    """How the base model is loaded."""
    lora_config: LoraConfig | None = None
    """Low-rank adaptation; null or absent means full finetuning."""
    merge_adapter: bool = False
    """Also write the base model with the adapter merged into it, below output_dir in the folder merged. No effect without
    lora_config."""
    enable_gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more compute."""
    gpt_base_model: bool | None = None
    """Obsolete, accepted and ignored."""
    gaudi_config_name: Annotated[str, Field(max_length=256)] | None = None
    """Obsolete, accepted and ignored."""
    checkpoint_dir: Annotated[str, Field(max_length=256)] | None = None
    """Obsolete, accepted and ignored."""
    deltatuner_config: (
        Annotated[
            dict[str, Any],
            WithJsonSchema({"type": "object", "x-kubernetes-preserve-unknown-fields": True, "maxProperties": 16}),
        ]
        | None
    ) = None
    """Obsolete, accepted and ignored."""


class Dataset(Section):
    """Where the rows are, {instruction, context, response} or {text}, and how they become tokens."""

    train_file: Annotated[str, Field(min_length=1, max_length=256)]
    """A JSONL file, one row {instruction, context (optional), response} or {text} a line; a CSV or Parquet file, or a
    folder, with such columns; or, where there is no such file or folder, a data set of the hub, owner/name. In a
    FinetuneJob: relative to its data set (spec.dataset), or in the image."""
    validation_file: Annotated[str, Field(min_length=1, max_length=256)] | None = None
    """Rows for evaluation: as train_file. Default: the split validation of a folder or data set, else rows split off."""
    validation_split_percentage: Annotated[int, Field(ge=0, lt=100)] = 5
    """Share of train_file that is split off for evaluation when there is no validation_file and train_file has no split
    validation of its own, in percent; 0: none."""
    preprocessing_num_workers: Annotated[int, Field(ge=1, le=256)] | None = None
    """Number of processes that tokenise; a small file takes one. Default: one for each CPU, in a cluster for each CPU of
    the workers on the first worker's node."""
    max_length: Annotated[int, Field(ge=8, le=1048576)] = 512
    """Longest example in tokens: prompt, response, and the token that ends it. Longer responses and texts are cut."""
    group: bool = True
    """Join the rows of a batch without padding; none sees another. GPT-J, BLOOM and MPT cannot: there rows of similar
    length share a batch, so that little is padded. false: batches of any rows, padded."""
    block_size: Annotated[int, Field(ge=8, le=1048576)] = 512
    """Accepted; a batch is joined whatever its length, and rows are never cut at the borders of blocks."""
    shuffle: bool = True
    """Shuffle the rows anew in each epoch, by Training.seed."""
    max_source_length: Annotated[int, Field(ge=4, le=1048576)] = 384
    """Longest prompt in tokens; of a longer one, the end of instruction and context is cut off."""
    padding_side: Annotated[Literal["left", "right"], BeforeValidator(_lower)] = "right"
    """Side on which short examples are padded, where they are: right or left."""
    truncation_side: Annotated[Literal["left", "right"], BeforeValidator(_lower)] = "right"
    """Side on which long responses and texts are cut: right or left."""
    max_seq_length: Annotated[int, Field(ge=1, le=1048576)] | None = None
    """Obsolete, accepted and ignored."""
    truncation: bool = True
    """Cut what is longer than max_source_length and max_length; false: refuse it, by line."""
    padding: bool = True
    """Accepted: without group, the examples of a batch are always padded to one length."""
    mask_input: bool = True
    """Leave the prompt out of the loss. A row that is a text has none, and all of it is learned."""
    mask_response: bool = False
    """Leave the response out of the loss (with mask_input false)."""
    data_preprocess_type: Annotated[str, Field(min_length=1, max_length=64)] = "neural_chat"
    """How a row becomes a prompt: neural_chat; anything else: prompt and response as one text."""
    chat_template: Annotated[Literal["llm_on_ray", "model"], BeforeValidator(_lower)] = "llm_on_ray"
    """Whose prompt: llm_on_ray, as data_preprocess_type says; or model, the chat template of the tokenizer, with
    instruction and context as the user's message and the response as the assistant's."""


class ResourcesPerWorker(Section):
    """What one worker asks for."""

    CPU: Annotated[float, Field(gt=0, le=1024)] = 1
    """CPUs of a worker: the CPU request of its pod, and its compute threads (rounded up)."""
    GPU: Annotated[int, Field(ge=0, le=64)] = 0
    """GPUs of a worker: in a cluster the pod requests and limits gpu.intel.com/i915 (or spec.accelerator's resource)."""
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
]
"""What the API server checks between the keys of Training; `Training._device_agrees` says the same in Python."""

_DEVICE_RULE = "self.lowerAscii() in ['cpu', 'gpu']"
_MODE_RULE = "self.upperAscii() in ['CPU_DDP', 'GPU_DDP', 'GPU_FSDP', 'DDP', 'FSDP']"
_OPTIMIZER_RULE = f"self.lowerAscii() in {sorted(OPTIMIZERS)}"
OPTIMIZER_MESSAGE = f"unknown optimizer; use one of {', '.join(sorted(set(OPTIMIZERS.values())))}"
DEVICE_MESSAGE = "device must be CPU or GPU; HPU (Gaudi) is not supported: use GPU for Intel GPUs, or CPU"
MODE_MESSAGE = (
    "accelerate_mode must be CPU_DDP, GPU_DDP, GPU_FSDP, DDP or FSDP; DEEPSPEED and HPU modes are not supported: use GPU_FSDP"
)


def _device(value: Any) -> Any:
    value = _lower(value)
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

    optimizer: Annotated[str, BeforeValidator(_optimizer), _cel(_OPTIMIZER_RULE, OPTIMIZER_MESSAGE)] = "AdamW"
    """Optimizer: torch's class names or Hugging Face's names; adamw_* mean AdamW."""
    batch_size: Annotated[int, Field(ge=1, le=65536)] = 4
    """Rows per worker and micro-step."""
    epochs: Annotated[int, Field(ge=1, le=100000)] = 3
    """Passes over the training rows."""
    max_train_steps: Annotated[int, Field(ge=1, le=1000000000)] | None = None
    """Stop after this many optimizer steps; overrides epochs."""
    learning_rate: Annotated[float, Field(gt=0, le=1000)] = 1.0e-5
    """Peak learning rate."""
    lr_scheduler: Annotated[
        Literal["linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup"],
        BeforeValidator(_lower),
    ] = "linear"
    """Shape of the learning rate over the run."""
    weight_decay: Annotated[float, Field(ge=0, le=1000)] = 0.0
    """Weight decay of the optimizer."""
    mixed_precision: Annotated[
        Literal["no", "fp16", "bf16"],
        BeforeValidator(_yaml_no),
        _choice("no", "fp16", "bf16", False, type_=None),
    ] = "no"
    """Precision of the forward and backward pass: no (fp32), bf16 or fp16."""
    device: Annotated[Device, BeforeValidator(_device), _cel(_DEVICE_RULE, DEVICE_MESSAGE)] = "cpu"
    """CPU or GPU, in any case."""
    num_training_workers: Annotated[int, Field(ge=1, le=256)] = 1
    """Ray Train workers; in a cluster one pod each."""
    resources_per_worker: ResourcesPerWorker = ResourcesPerWorker()
    """What one worker asks for."""
    accelerate_mode: Annotated[
        Literal["CPU_DDP", "GPU_DDP", "GPU_FSDP", "DDP", "FSDP"],
        BeforeValidator(_known_mode),
        _cel(_MODE_RULE, MODE_MESSAGE),
    ] = "DDP"
    """CPU_DDP, GPU_DDP or GPU_FSDP; or DDP or FSDP, for the device above."""
    gradient_accumulation_steps: Annotated[int, Field(ge=1, le=65536)] = 1
    """Micro-steps per optimizer step."""
    logging_steps: Annotated[int, Field(ge=1, le=1000000)] = 10
    """Optimizer steps between two log lines."""
    seed: Annotated[int, Field(ge=0, le=2147483647)] = 42
    """Seed of the split, the order of the rows, the initial adapter weights and dropout."""
    hpu_execution_mode: Annotated[str, Field(max_length=32)] | None = None
    """Obsolete, accepted and ignored."""
    deepspeed_config_file: Annotated[str, Field(max_length=256)] | None = None
    """Obsolete, accepted and ignored."""

    @property
    def strategy(self) -> AccelerateMode:
        """DDP or FSDP, without the device's prefix."""
        return "FSDP" if self.accelerate_mode.endswith("FSDP") else "DDP"

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


class TrainerConfig(Section):
    """A finetuning YAML of llm-on-ray."""

    general: General = Field(validation_alias=AliasChoices("General", "general"), serialization_alias="General")
    """The base model, the output, and LoRA."""
    dataset: Dataset = Field(validation_alias=AliasChoices("Dataset", "dataset"), serialization_alias="Dataset")
    """Where the rows are, and how they become tokens."""
    training: Training = Field(
        default=Training(), validation_alias=AliasChoices("Training", "training"), serialization_alias="Training"
    )
    """Optimizer, schedule, device and workers."""
