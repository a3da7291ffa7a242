"""The evaluation at the end of each epoch: it is on record once, and the training does not notice it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.support.trainer import sample_rows

from finetune_trainer.config.run import Run
from finetune_trainer.config.schema import TrainerConfig
from finetune_trainer.tracking.measurements import Evaluation, StepDone
from finetune_trainer.tracking.progress import World
from finetune_trainer.tracking.tracker import Tracker

if TYPE_CHECKING:
    from tests.support.trainer import Command, Outcome

pytestmark = pytest.mark.sampled(8)

STEPS = 6
"""Of an epoch of `held_out`: 24 rows, four a step."""


@pytest.fixture
def held_out(command: Command) -> Command:
    """A run of two and a half epochs with dropout, and rows for evaluation apart."""
    command.write_rows(*sample_rows(7), name="held.jsonl")
    command.change("General", lora_config={"r": 4, "lora_alpha": 8, "lora_dropout": 0.1})
    command.change("Dataset", validation_file="held.jsonl")
    return command.change("Training", batch_size=4, max_train_steps=15, logging_steps=4)


def records(outcome: Outcome) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (outcome.output / "logs" / "metrics.jsonl").read_text().splitlines()]


def evaluations(outcome: Outcome) -> list[dict[str, Any]]:
    return [record for record in records(outcome) if "evalLoss" in record]


def test_each_epoch_and_the_end_are_evaluated_once(held_out: Command) -> None:
    outcome = held_out.run()
    assert outcome.code == 0, outcome.err
    found = evaluations(outcome)
    assert [(record["step"], record["epoch"]) for record in found] == [(6, 1.0), (12, 2.0), (15, 2.5)]
    assert found[0]["evalLoss"] > found[1]["evalLoss"] > found[2]["evalLoss"]
    assert outcome.out.count("evaluation loss") == 3
    assert f"epoch 1 evaluation loss {found[0]['evalLoss']:.4g} perplexity {found[0]['perplexity']:.4g}" in outcome.out
    last = found[-1]["evalLoss"], found[-1]["perplexity"]
    assert (outcome.progress["result"]["evalLoss"], outcome.progress["result"]["perplexity"]) == last
    assert outcome.progress["evalLoss"] == last[0]
    ends_with_an_epoch = held_out.change("Training", max_train_steps=2 * STEPS).run()
    assert [record["step"] for record in evaluations(ends_with_an_epoch)] == [6, 12]


def test_progress_has_the_evaluation_during_the_run(held_out: Command) -> None:
    seen = {}

    def look(record: dict[str, Any]) -> None:
        progress = json.loads((held_out.output / "logs" / "progress.json").read_text())
        seen[record["step"]] = progress.get("evalLoss")

    outcome = held_out.train(look)
    assert seen[4] is None
    assert seen[8] == evaluations(outcome)[0]["evalLoss"]


def test_training_is_the_same_without_evaluation(held_out: Command) -> None:
    with_rows = held_out.run()
    adapter = (with_rows.output / "adapter_model.safetensors").read_bytes()
    without = held_out.change("Dataset", validation_file=None).run()
    assert evaluations(without) == []
    assert without.losses == with_rows.losses
    assert (without.output / "adapter_model.safetensors").read_bytes() == adapter


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    ("ended", "reached"), [(7, 4), (9, 8), (STEPS, STEPS)], ids=["after an evaluation", "before one", "stopped in place of one"]
)
def test_resumed_run_has_the_same_curve(held_out: Command, ended: int, reached: int) -> None:
    held_out.change("Training", logging_steps=1)
    whole = held_out.run("--output_dir", str(held_out.folder / "whole"))
    whole.output = held_out.folder / "whole"

    def end(record: dict[str, Any]) -> None:
        if record["step"] == ended:
            raise RuntimeError("the process is gone")

    if ended == STEPS:
        assert evaluations(held_out.train_until(STEPS - 1, "r")) == []
    else:
        with pytest.raises(RuntimeError, match="the process is gone"):
            held_out.train(end, "r", every_steps=4)
    resumed = held_out.run("--run_name", "r", "--checkpoint_every_steps", "4", "--attempt", "2")
    assert resumed.code == 0, resumed.err
    assert [record for record in records(resumed) if "event" in record] == [
        {"event": "resumed", "step": reached, "attempt": 2, "restarts": 0}
    ]
    assert f"resumed after step {reached}, attempt 2\n" in resumed.out
    assert evaluations(resumed) == evaluations(whole)
    assert resumed.losses == whole.losses
    assert resumed.progress["result"] == whole.progress["result"]


def test_evaluation_does_not_count_in_the_speed(tmp_path: Path) -> None:
    clock = [0.0]
    config = TrainerConfig.model_validate({"General": {"base_model": "m"}, "Dataset": {"train_file": "f"}})
    tracker = Tracker(Run(config=config, output_dir=tmp_path), writes=False, clock=lambda: clock[0])
    tracker.start(World(size=1), total_steps=10)
    for step in range(1, 5):
        clock[0] += 2
        tracker.step(StepDone(step, epoch=step / 4, loss=1.0, grad_norm=1.0, learning_rate=0.1, tokens=100, memory=1), logs=True)
        with tracker.untimed():
            clock[0] += 50
            tracker.evaluated(step, step / 4, Evaluation(1.0))
    assert tracker.progress.tokens_per_second == 50
    assert tracker.progress.eta_seconds == 12
    assert tracker.seconds == 208


def test_perplexity_too_large_for_a_number_is_left_out() -> None:
    assert Evaluation(2.0).perplexity == pytest.approx(7.389056)
    assert Evaluation(1000.0).perplexity is None
