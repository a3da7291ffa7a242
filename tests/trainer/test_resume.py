"""A run that goes on from a checkpoint ends as one that was never interrupted, to the last digit."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file
from tests.support.trainer import stopping

from finetune_trainer import loop, state

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.support.trainer import Command, Outcome


@pytest.fixture
def learning(command: Command) -> Command:
    """A run over two epochs with everything that could go astray: dropout, momentum, a schedule."""
    command.change("General", lora_config={"r": 4, "lora_alpha": 8, "lora_dropout": 0.1})
    command.change("Training", batch_size=3, max_train_steps=None, epochs=2, gradient_accumulation_steps=2, logging_steps=3)
    command.change("Dataset", validation_split_percentage=10)
    return command


def weights(outcome: Outcome) -> dict[str, torch.Tensor]:
    """The exported weights."""
    (path,) = outcome.output.glob("*.safetensors")
    return load_file(path)


def records(outcome: Outcome) -> list[dict[str, Any]]:
    """What is on record of each step, without what the clock says."""
    lines = (outcome.output / "logs" / "metrics.jsonl").read_text().splitlines()
    clock = ("tokensPerSecond", "etaSeconds")
    return [{key: value for key, value in json.loads(line).items() if key not in clock} for line in lines]


def same(one: Outcome, other: Outcome) -> bool:
    """Whether two runs have recorded and made the same, to all digits."""
    ours, theirs = weights(one), weights(other)
    equal = ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    return equal and records(one) == records(other) and one.progress["result"] == other.progress["result"]


def stopped(command: Command, *options: str) -> Outcome:
    """Run until somebody asks for a stop, after the first step."""
    with stopping(command.output):
        outcome = command.run(*options)
    assert outcome.code == 75, outcome.err
    return outcome


def interrupted(command: Command, *options: str) -> Outcome:
    """Run until somebody asks for a stop, and go on with the same command."""
    first = stopped(command, "--run_name", "r", *options)
    assert first.progress["state"] == "stopped"
    second = command.run("--run_name", "r", *options)
    assert second.code == 0, second.err
    return second


@pytest.mark.parametrize("lora", [True, False])
def test_resumed_equals_uninterrupted(learning: Command, lora: bool) -> None:
    if not lora:
        learning.change("General", lora_config=None)
    whole = learning.run("--output_dir", str(learning.folder / "whole"))
    whole.output = learning.folder / "whole"
    assert whole.code == 0, whole.err
    resumed = interrupted(learning)
    assert "going on from checkpoint" in resumed.err
    assert resumed.out.count("step ") < whole.out.count("step ")
    assert same(whole, resumed)


def no_tensors(prefix: str) -> Callable[[pytest.MonkeyPatch], None]:
    def arrange(patch: pytest.MonkeyPatch) -> None:
        real = state.put_tensors

        def put(engine: Any, saved: dict[str, torch.Tensor]) -> None:
            real(engine, {name: tensor for name, tensor in saved.items() if not name.startswith(prefix)})

        patch.setattr(state, "put_tensors", put)

    return arrange


def no_schedule(patch: pytest.MonkeyPatch) -> None:
    real = state.load_rest

    def load(engine: Any, rest: dict[str, Any]) -> Any:
        fresh = {"groups": [{} for _ in rest["groups"]], "schedule": engine.schedule.state_dict()}
        return real(engine, rest | fresh)

    patch.setattr(state, "load_rest", load)


def no_sums(patch: pytest.MonkeyPatch) -> None:
    real = state.load_rest
    patch.setattr(state, "load_rest", lambda engine, rest: real(engine, rest | {"sums": {}}))


def no_cursor(patch: pytest.MonkeyPatch) -> None:
    real = loop.batches.plan_steps
    patch.setattr(loop.batches, "plan_steps", lambda lengths, workers, config, done=0: real(lengths, workers, config))


def no_randomness(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(loop, "seed_step", lambda *_: None)


DROPPED = {
    "weights": no_tensors("weight:"),
    "optimizer": no_tensors("optimizer:"),
    "schedule": no_schedule,
    "sums": no_sums,
    "cursor": no_cursor,
    "randomness": no_randomness,
}


@pytest.mark.parametrize("dropped", DROPPED)
def test_whatever_is_not_restored_shows(learning: Command, monkeypatch: pytest.MonkeyPatch, dropped: str) -> None:
    with monkeypatch.context() as patch:
        if dropped == "randomness":
            DROPPED[dropped](patch)  # both runs go without, so that only the interruption differs
        whole = learning.run("--output_dir", str(learning.folder / "whole"))
        whole.output = learning.folder / "whole"
        if dropped != "randomness":
            DROPPED[dropped](patch)
        assert not same(whole, interrupted(learning))


@pytest.mark.parametrize("optimizer", ["SGD", "Adafactor", "NAdam", "Rprop", "ASGD", "RMSprop", "Adagrad", "Adadelta", "RAdam"])
def test_every_optimizer_goes_on(learning: Command, optimizer: str) -> None:
    learning.change("Training", optimizer=optimizer, epochs=1)
    learning.change("Dataset", validation_split_percentage=0)
    whole = learning.run("--output_dir", str(learning.folder / "whole"))
    whole.output = learning.folder / "whole"
    assert same(whole, interrupted(learning))


def only_checkpoint(output: Path) -> Path:
    (path,) = (output / "checkpoints").iterdir()
    return path


def test_given_checkpoint_of_another_run(learning: Command) -> None:
    whole = learning.run("--output_dir", str(learning.folder / "whole"))
    whole.output = learning.folder / "whole"
    first = stopped(learning)
    path = only_checkpoint(first.output)
    assert f"set General.resume_from_checkpoint: {path}" in first.out
    learning.change("General", resume_from_checkpoint=str(path), output_dir=str(learning.folder / "third"))
    resumed = learning.run()
    assert resumed.code == 0, resumed.err
    assert resumed.progress["result"] == whole.progress["result"]
    ours, theirs = weights(resumed), weights(whole)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert path.is_dir()


def test_given_checkpoint_with_another_configuration_gives_weights_and_optimizer(learning: Command) -> None:
    first = stopped(learning)
    path = only_checkpoint(first.output)
    learning.change("General", resume_from_checkpoint=str(path), output_dir=str(learning.folder / "next"))
    learning.change("Training", optimizer="SGD", learning_rate=1e-9)
    outcome = learning.run()
    assert outcome.code == 0, outcome.err
    assert "only weights and optimizer are taken from the checkpoint" in outcome.err
    assert outcome.progress["step"] == outcome.progress["totalSteps"]
    (saved,) = path.glob("rank-*.safetensors")
    before = {name.removeprefix("weight:"): tensor for name, tensor in load_file(saved).items() if name.startswith("weight:")}
    after = weights(outcome)
    assert len(before) == len(after)
    for name, tensor in before.items():
        torch.testing.assert_close(after[name.replace(".default", "")], tensor)


def test_given_checkpoint_that_does_not_fit(learning: Command) -> None:
    path = only_checkpoint(stopped(learning).output)
    learning.change("General", resume_from_checkpoint=str(path), lora_config=None)
    outcome = learning.run()
    assert outcome.code == 2
    assert f"General.resume_from_checkpoint: {path} cannot be used: its weights are not those that learn here" in outcome.err
    missing = learning.change("General", resume_from_checkpoint="nowhere").run()
    assert missing.code == 2
    assert "nowhere cannot be used: it has no complete.json" in missing.err
