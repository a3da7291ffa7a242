"""What the engine does without: wrappers that have nothing to do, copies that are undone, kernels for each weight."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn

from finetune_trainer.config.run import Run
from finetune_trainer.config.schema import TrainerConfig
from finetune_trainer.modeling.load import load_model
from finetune_trainer.runtime import distributed, parallel
from finetune_trainer.training.optimizer import make_optimizer

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.support.trainer import Command


@pytest.fixture
def loaded(command: Command) -> Callable[[torch.dtype], Any]:
    """The adapted model of the command, for a compute type."""

    def load(dtype: torch.dtype) -> Any:
        config = TrainerConfig.model_validate(command.config)
        return load_model(Run(config=config, output_dir=command.output, dataset_dir=command.folder), dtype)

    return load


@pytest.mark.parametrize("strategy", ["DDP", "FSDP"])
def test_one_rank_has_no_wrapper_even_in_a_group(tmp_path: Path, strategy: str) -> None:
    distributed.create_groups("gloo", 0, 1, f"file://{tmp_path}/meeting")
    try:
        module = nn.Linear(2, 2)
        worker = distributed.Worker(torch.device("cpu"), backend="gloo")
        assert parallel.parallelize(module, worker, strategy, torch.float32) is module
        assert type(module) is nn.Linear
    finally:
        distributed.destroy_process_group()


def test_adapters_compute_in_the_type_of_autocast_without_a_copy_in_float32(loaded: Callable[[torch.dtype], Any]) -> None:
    model = loaded(torch.float16)
    seen = []
    for name, part in model.named_modules():
        if name.endswith("lora_A.default"):
            assert part.weight.dtype == torch.float32
            part.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].dtype))
    with torch.autocast("cpu", dtype=torch.float16):
        logits = model(input_ids=torch.arange(1, 9)[None]).logits
    assert set(seen) == {torch.float16}
    assert bool(logits.isfinite().all())


def test_adamw_updates_all_weights_in_one_kernel(command: Command) -> None:
    run = Run(config=TrainerConfig.model_validate(command.config), output_dir=command.output)
    weights = {"w": nn.Parameter(torch.zeros(2))}
    made = make_optimizer(run, nn.Module(), weights)
    assert all(group["fused"] for group in made.param_groups)
    elsewhere = {"w": nn.Parameter(torch.zeros(2, device="meta"))}
    assert not make_optimizer(run, nn.Module(), elsewhere).param_groups[0].get("fused")
