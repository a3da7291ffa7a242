"""Gradients and weights that are not finite: no step is taken with them, and none of them is kept."""

from __future__ import annotations

import math
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.support.trainer import Outcome, edit_checkpoint
from torch import nn
from torch.nn.modules.module import register_module_forward_hook
from torch.optim.optimizer import register_optimizer_step_post_hook
from transformers import LlamaModel

from finetune_trainer.checkpoint.checkpointer import Checkpointer
from finetune_trainer.config.run import Run
from finetune_trainer.config.schema import TrainerConfig
from finetune_trainer.data import step_plan
from finetune_trainer.errors import LossNotFinite
from finetune_trainer.modeling.load import load_tokenizer
from finetune_trainer.runtime import distributed
from finetune_trainer.tracking.measurements import RunningLoss
from finetune_trainer.training.optimizer_step import take_step
from finetune_trainer.training.setup import build_engine, load_data

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.support.trainer import Command

    from finetune_trainer.runtime.engine import Engine

pytestmark = pytest.mark.sampled(8)

VALUES = {"nan": math.nan, "inf": math.inf, "too large for its square": 1e30}


@contextmanager
def bad_gradient(value: float, step: int | None = None) -> Iterator[None]:
    """Make the gradient of the last hidden states this value, in one step or in each; each step has one micro-batch."""
    taken = 0

    def change(gradient: torch.Tensor) -> torch.Tensor:
        nonlocal taken
        taken += 1
        return torch.full_like(gradient, value) if step in (taken, None) else gradient

    def watch(module: nn.Module, _: Any, out: Any) -> None:
        if isinstance(module, LlamaModel) and out[0].requires_grad:
            out[0].register_hook(change)

    hook = register_module_forward_hook(watch)
    try:
        yield
    finally:
        hook.remove()


@contextmanager
def bad_update(step: int) -> Iterator[None]:
    """Make a weight infinite right after an update."""
    taken = 0

    def change(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        nonlocal taken
        taken += 1
        if taken == step:
            with torch.no_grad():
                optimizer.param_groups[0]["params"][-1].fill_(math.inf)

    hook = register_optimizer_step_post_hook(change)
    try:
        yield
    finally:
        hook.remove()


def is_finite(path: Path) -> bool:
    return all(bool(tensor.isfinite().all()) for tensor in load_file(path).values())


@pytest.mark.sampled(4)
@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("step", [1, 3, 4])
def test_a_gradient_that_is_not_finite_ends_the_run_at_its_own_step_and_rows(command: Command, step: int, value: str) -> None:
    with bad_gradient(VALUES[value], step):
        outcome = command.run("--run_name", "r", "--checkpoint_every_steps", "1")
    assert outcome.code == 6, outcome.err
    places = {1: "data.jsonl:16, data.jsonl:17", 3: "data.jsonl:8, data.jsonl:10", 4: "data.jsonl:18, data.jsonl:24"}[step]
    assert f"the gradients are not finite at step {step} of 4 (rows {places}); look at those rows" in outcome.err
    assert outcome.progress["failure"]["reason"] == "LossNotFinite"
    assert not (outcome.output / "manifest.json").exists()
    kept = sorted((outcome.output / "checkpoints").glob("step-*/rank-*")) if step > 1 else []
    assert len(kept) == min(step - 1, 2)
    assert all(map(is_finite, kept))
    resumed = command.run("--run_name", "r")
    assert resumed.code == 0, resumed.err
    whole = command.run("--output_dir", str(command.folder / "whole"))
    assert whole.code == 0, whole.err
    assert resumed.progress["result"] == Outcome(0, "", "", command.folder / "whole").progress["result"]


@pytest.mark.parametrize("step", [2, 4])
def test_weights_that_are_not_finite_are_neither_kept_nor_exported(command: Command, step: int) -> None:
    with bad_update(step):
        outcome = command.run("--run_name", "r", "--checkpoint_every_steps", "2" if step == 2 else "0")
    assert outcome.code == 6, outcome.err
    assert f"not finite after step {step}" in outcome.err
    assert not list(outcome.output.glob("checkpoints/step-*"))
    assert not (outcome.output / "manifest.json").exists()
    assert not list(outcome.output.glob("*.safetensors"))


def test_the_norm_of_the_gradients_is_on_record(command: Command) -> None:
    outcome = command.run()
    assert all(record["gradNorm"] > 0 for record in outcome.steps)
    assert outcome.progress["gradNorm"] == outcome.steps[-1]["gradNorm"]
    assert "Norm of the gradients" in (outcome.output / "report.html").read_text()


@pytest.fixture
def scaled(command: Command) -> Callable[[float], Engine]:
    """An engine that computes in float16 and scales its gradients, which the command does on a GPU only."""

    def build(scale: float) -> Engine:
        config = TrainerConfig.model_validate(command.config)
        run = Run(config=config, output_dir=command.output, dataset_dir=command.folder, run_name="r")
        run.logs.mkdir(parents=True)
        worker = distributed.single_process(config.training)
        engine = build_engine(run, worker, load_data(run, worker, load_tokenizer(run)), torch.float16)
        engine.scaler.scale(torch.zeros(()))  # the scale is made when it is first used
        engine.scaler.update(scale)
        return engine

    return build


def first_step(engine: Engine) -> step_plan.Step:
    lengths = engine.data.train.lengths[engine.data.train_rows]
    return next(step_plan.plan_steps(lengths, 1, engine.run.config))


def test_a_scale_that_overflows_is_lowered_until_the_same_step_can_be_taken(scaled: Callable[[float], Engine]) -> None:
    engine = scaled(2.0**40)
    weights = [weight.detach().clone() for weight in engine.weights]
    done = take_step(engine, 1, first_step(engine)).finish()
    assert math.isfinite(done.grad_norm)
    assert engine.scaler.get_scale() < 2.0**40
    assert engine.schedule.last_epoch == 1
    assert any(not torch.equal(weight, before) for weight, before in zip(engine.weights, weights, strict=True))
    assert all(bool(weight.isfinite().all()) for weight in engine.weights)


def test_no_scale_helps_a_gradient_that_is_not_finite_without_it(scaled: Callable[[float], Engine]) -> None:
    engine = scaled(2.0**4)
    weights = [weight.detach().clone() for weight in engine.weights]
    with bad_gradient(math.nan), pytest.raises(LossNotFinite, match="the gradients are not finite at step 1 of 4"):
        take_step(engine, 1, first_step(engine))
    assert engine.schedule.last_epoch == 0
    assert all(torch.equal(weight, before) for weight, before in zip(engine.weights, weights, strict=True))


def test_a_checkpoint_that_was_poisoned_by_an_earlier_release_is_skipped(command: Command) -> None:
    checkpoint = Path(command.train_until(1, "r").progress["checkpoint"]["path"])

    def poison(path: Path, _: dict[str, Any]) -> None:
        file = path / "rank-00000.safetensors"
        save_file({name: torch.full_like(tensor, math.nan) for name, tensor in load_file(file).items()}, file)

    edit_checkpoint(checkpoint, poison)
    outcome = command.run("--run_name", "r")
    assert outcome.code == 0, outcome.err
    assert f"checkpoint {checkpoint} is skipped: " in outcome.err
    assert "is not finite" in outcome.err


def test_a_checkpoint_that_cannot_be_finite_leaves_the_one_before(scaled: Callable[[float], Engine]) -> None:
    engine = scaled(1.0)
    checkpointer = Checkpointer(engine)
    checkpointer.begin(1, RunningLoss())
    kept = checkpointer.finish()
    assert kept is not None
    with torch.no_grad():
        engine.weights[-1].view(-1)[-1] = math.nan
    with pytest.raises(LossNotFinite, match="not finite after step 2"):
        checkpointer.begin(2, RunningLoss())
    assert [path.name for path in engine.run.checkpoints.iterdir()] == [Path(kept.path).name]
