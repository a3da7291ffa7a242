"""Full finetuning in bfloat16: updates add up in float32 masters, which checkpoints hold, and the result is theirs, rounded."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file
from tests.support import engines
from tests.support.trainer import SIZES, Outcome
from tests.trainer.test_gradients import bad_gradient

from finetune_trainer.errors import LossNotFinite
from finetune_trainer.runtime.masters import Masters

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.support.trainer import Command

    from finetune_trainer.runtime.engine import Engine


pytestmark = pytest.mark.sampled(4)


@pytest.fixture
def full(command: Command) -> Command:
    """Full finetuning."""
    return command.change("General", lora_config=None)


def masters(engine: Engine) -> dict[str, torch.Tensor]:
    """The weights that the optimizer updates."""
    assert engine.masters is not None
    assert {weight.dtype for weight in engine.weights} == {torch.float32}
    return {name: weight.detach().clone() for name, weight in engine.learning.items()}


def check_rounded(engine: Engine) -> None:
    """The model computes with the masters' values, rounded."""
    for name, weight in engine.model.named_parameters():
        assert weight.dtype == torch.bfloat16
        assert torch.equal(weight, engine.learning[name].to(torch.bfloat16))


@pytest.mark.parametrize(
    "family", [pytest.param(family, marks=[] if family == "llama" else [pytest.mark.slow]) for family in SIZES]
)
def test_losses_are_those_of_float32_but_for_rounding(full: Command, model_folder: Callable[[str], Path], family: str) -> None:
    full.change("General", base_model=str(model_folder(family))).change("Training", batch_size=8, max_train_steps=6)
    losses: dict[torch.dtype, list[float]] = {torch.float32: [], torch.bfloat16: []}
    for dtype, seen in losses.items():
        engine = engines.make(full, str(dtype), dtype)
        engines.train(engine, lambda record, seen=seen: seen.append(record["loss"]))
        assert (engine.masters is None) == (dtype == torch.float32)
        if engine.masters is not None:
            check_rounded(engine)
    assert losses[torch.bfloat16] == pytest.approx(losses[torch.float32], rel=0.01)
    assert losses[torch.bfloat16][-1] < losses[torch.bfloat16][0] - 0.1


def test_updates_smaller_than_a_step_of_bfloat16_add_up(full: Command) -> None:
    full.change("Training", learning_rate=1e-6, lr_scheduler="constant")
    engine = engines.make(full, "small", torch.bfloat16)
    before = masters(engine)
    engines.train(engine)
    after = masters(engine)
    moved = [float((after[name] - before[name]).abs().max()) for name in before]
    assert all(0 < distance < 1e-5 for distance in moved)


def test_micro_batches_add_up_in_float32(full: Command) -> None:
    full.change("Dataset", shuffle=False).change("Training", batch_size=8, max_train_steps=1)
    whole = engines.train(engines.make(full, "whole", torch.bfloat16))
    full.change("Training", batch_size=1, gradient_accumulation_steps=8)
    parts = engines.train(engines.make(full, "parts", torch.bfloat16))
    one, other = (engine.optimizer.state[engine.learning["lm_head.weight"]]["exp_avg"] for engine in (whole, parts))
    assert float((one - other).norm() / one.norm()) < 0.01


def test_gradients_of_a_later_micro_batch_are_added_where_the_earlier_ones_are() -> None:
    model = torch.nn.Linear(8, 8, bias=False)
    masters = Masters(model, torch.bfloat16)
    (master,) = masters.named({"weight": model.weight}).values()
    places, total = set(), torch.zeros(8, 8)
    for _ in range(3):
        model.weight.grad = torch.randn(8, 8, dtype=torch.bfloat16)
        total += model.weight.grad.float()
        masters.take_gradients()
        assert master.grad is not None
        places.add(master.grad.data_ptr())
    assert model.weight.grad is None
    assert torch.equal(master.grad, total)
    assert len(places) == 1


def test_stopped_run_goes_on_as_if_it_was_not(full: Command) -> None:
    whole = engines.train(engines.make(full, "whole", torch.bfloat16))
    stop = full.folder / "parts" / "logs" / "stop"
    first = engines.make(full, "parts", torch.bfloat16)
    engines.train(first, lambda record: stop.touch() if record["step"] == 1 else None)
    stop.unlink()
    (path,) = first.run.checkpoints.glob("step-*/rank-*")
    kept, expected = load_file(path), masters(first)
    assert all(torch.equal(kept[f"weight:{name}"], weight) for name, weight in expected.items())
    second = engines.make(full, "parts", torch.bfloat16)
    engines.train(second)
    check_rounded(second)
    ours, theirs = masters(second), masters(whole)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_checkpoint_of_a_run_without_masters_fits(full: Command) -> None:
    """Workers that shard, or a release before masters, hold the same weights in float32."""
    stop = full.folder / "parts" / "logs" / "stop"
    first = engines.make(full, "parts")
    engines.train(first, lambda record: stop.touch() if record["step"] == 1 else None)
    stop.unlink()
    second = engines.make(full, "parts", torch.bfloat16)
    seen: list[int] = []
    engines.train(second, lambda record: seen.append(record["step"]))
    assert seen == [3, 4]
    check_rounded(second)


def test_gradients_that_are_not_finite_change_no_master(full: Command) -> None:
    engine = engines.make(full, "bad", torch.bfloat16)
    before = masters(engine)
    with bad_gradient(math.nan, 1), pytest.raises(LossNotFinite):
        engines.train(engine)
    assert all(torch.equal(weight, before[name]) for name, weight in masters(engine).items())


@pytest.mark.slow
def test_result_of_the_command_is_the_masters_rounded(full: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FINETUNE_CPU_BF16", "1")
    full.change("Training", mixed_precision="bf16", compile=True).change("General", sample_prompts=1, save_strategy="epoch")
    outcome: Outcome = full.change("Training", max_train_steps=None).run("--run_name", "r")
    assert outcome.code == 0, outcome.err
    assert outcome.progress["world"]["dtype"] == "bfloat16"
    newest: Any = max(outcome.output.glob("checkpoints/step-*"))
    kept, result = load_file(newest / "rank-00000.safetensors"), load_file(outcome.output / "model.safetensors")
    for name, weight in result.items():
        assert torch.equal(weight, kept[f"weight:{name}"].to(torch.bfloat16))
