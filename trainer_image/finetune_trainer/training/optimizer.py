"""The optimizer and its learning-rate schedule."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from finetune_trainer.errors import ConfigError

if TYPE_CHECKING:
    from finetune_trainer.config.run import Run
    from finetune_trainer.runtime.engine import Engine

POLYNOMIAL_END = 1e-7
"""Learning rate at which transformers ends a polynomial schedule; it refuses to begin with a rate that is not higher."""


def make_optimizer(run: Run, weights: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
    """The optimizer of torch with this name.

    Raises:
        ConfigError: it does not work on the shards of FSDP.
    """
    training = run.config.training
    if training.torch_optimizer == "Adafactor" and any(hasattr(weight, "full_tensor") for weight in weights):
        advice = "use AdamW or SGD, or accelerate_mode DDP"
        raise ConfigError([f"Training.optimizer: torch's Adafactor does not work on the shards of FSDP; {advice}"])
    kind: type[torch.optim.Optimizer] = getattr(torch.optim, training.torch_optimizer)
    options: dict[str, Any] = {"lr": training.learning_rate}
    if training.torch_optimizer != "Rprop":  # it has no weight decay
        options["weight_decay"] = training.weight_decay
    return kind(weights, **options)


def make_schedule(run: Run, engine: Engine) -> Any:
    """The learning-rate schedule of transformers with this name, without warm-up as in llm-on-ray."""
    from transformers import get_scheduler

    training = run.config.training
    # The rate at the end of a polynomial schedule is transformers' own, unless the run begins below it.
    small = training.lr_scheduler == "polynomial" and training.learning_rate <= POLYNOMIAL_END
    return get_scheduler(
        training.lr_scheduler,
        engine.optimizer,
        num_warmup_steps=0,
        num_training_steps=engine.total_steps,
        scheduler_specific_kwargs={"lr_end": 0.0} if small else None,
    )
