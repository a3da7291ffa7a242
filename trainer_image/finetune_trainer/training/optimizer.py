"""The optimizer and its learning-rate schedule, as the HF Trainer makes them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from finetune_trainer.errors import ConfigError

if TYPE_CHECKING:
    from finetune_trainer.config.run import Run

NO_DECAY = [r"bias", r"layernorm", r"rmsnorm", r"(?:^|\.)norm(?:$|\.)", r"_norm(?:$|\.)"]
"""Weights whose name matches one of these are spared the weight decay, as by the HF Trainer (get_decay_parameter_names)."""

POLYNOMIAL_END = 1e-7
"""Learning rate at which transformers ends a polynomial schedule; it refuses to begin with a rate that is not higher."""


FUSED = ("Adam", "AdamW")
"""Optimizers that update all weights in one kernel, on the devices below."""

FUSED_DEVICES = ("cpu", "cuda", "xpu")


def make_optimizer(run: Run, model: nn.Module, learning: dict[str, nn.Parameter]) -> torch.optim.Optimizer:
    """The optimizer with the configured name.

    Args:
        run: the configuration.
        model: the model.
        learning: the trainable weights, by their names in the model.

    Raises:
        ConfigError: it does not work on the shards of FSDP.
    """
    training = run.config.training
    name, rate = training.torch_optimizer, training.learning_rate
    if name == "Rprop":  # it has no weight decay
        return torch.optim.Rprop(learning.values(), lr=rate)
    groups = group_weights(model, learning, training.weight_decay)
    if name != "Adafactor":
        kind: Any = getattr(torch.optim, name)
        fuses = name in FUSED and all(weight.device.type in FUSED_DEVICES for weight in learning.values())
        options = {"fused": True} if fuses else {}
        made: torch.optim.Optimizer = kind(groups, lr=rate, **options)
        return made
    if any(hasattr(weight, "full_tensor") for weight in model.parameters()):
        advice = "use AdamW or SGD, or accelerate_mode DDP"
        raise ConfigError([f"Training.optimizer: Adafactor does not work on the shards of FSDP; {advice}"])
    # llm-on-ray's is that of transformers. torch's multiplies the rate by the norm of the weights: it hardly trains.
    from transformers.optimization import Adafactor

    adafactor: torch.optim.Optimizer = Adafactor(groups, lr=rate, scale_parameter=False, relative_step=False)
    return adafactor


def group_weights(model: nn.Module, learning: dict[str, nn.Parameter], decay: float) -> list[dict[str, Any]]:
    """The trainable weights as groups of an optimizer: one, or two where weight decay has biases and norms to spare."""
    from transformers.trainer_pt_utils import get_parameter_names

    decaying = set(get_parameter_names(model, [nn.LayerNorm], NO_DECAY)) if decay else set(learning)
    groups = [
        {"params": [weight for name, weight in learning.items() if name in decaying], "weight_decay": decay},
        {"params": [weight for name, weight in learning.items() if name not in decaying], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def make_schedule(run: Run, optimizer: torch.optim.Optimizer, total_steps: int) -> Any:
    """The learning-rate schedule of transformers with this name, without warm-up as in llm-on-ray."""
    from transformers import get_scheduler

    training = run.config.training
    # The rate at the end of a polynomial schedule is transformers' own, unless the run begins below it.
    small = training.lr_scheduler == "polynomial" and training.learning_rate <= POLYNOMIAL_END
    return get_scheduler(
        training.lr_scheduler,
        optimizer,
        num_warmup_steps=0,
        num_training_steps=total_steps,
        scheduler_specific_kwargs={"lr_end": 0.0} if small else None,
    )
