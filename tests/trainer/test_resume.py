"""A run that resumes from a checkpoint ends the same as one that was never interrupted, to the last digit."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.support.trainer import Outcome, edit_checkpoint

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.support.trainer import Command

pytestmark = pytest.mark.sampled(8)

LAST_TOLD = 3
"""The logging step at which a stop is requested: the checkpoint is of the step after it, between two logging steps."""


@pytest.fixture
def learning(command: Command) -> Command:
    """A run of eight steps over two epochs with everything that could go astray: dropout, momentum, a schedule."""
    command.change("General", lora_config={"r": 4, "lora_alpha": 8, "lora_dropout": 0.1})
    command.change("Training", batch_size=3, max_train_steps=None, epochs=2, gradient_accumulation_steps=2, logging_steps=3)
    command.change("Dataset", validation_split_percentage=10)
    return command


@pytest.fixture(scope="module")
def made() -> dict[str, Outcome]:
    """Runs that several tests compare with or resume from: whole ones, and one named r that was stopped."""
    return {}


def run_whole(command: Command) -> Outcome:
    """The run without any interruption, beside the output folder."""
    outcome = command.run("--output_dir", str(command.folder / "whole"))
    assert outcome.code == 0, outcome.err
    outcome.output = command.folder / "whole"
    return outcome


@pytest.fixture
def whole(learning: Command, made: dict[str, Outcome]) -> Outcome:
    """The run of `learning` without any interruption."""
    if "whole" not in made:
        made["whole"] = run_whole(learning)
    return made["whole"]


@pytest.fixture
def stopped(learning: Command, made: dict[str, Outcome]) -> Path:
    """Put a run of `learning` that was stopped at step 4 into its output folder; return the checkpoint."""
    if "stopped" not in made:
        made["stopped"] = learning.train_until(LAST_TOLD, "r")
    if learning.output != made["stopped"].output:
        shutil.copytree(made["stopped"].output, learning.output)
    else:
        # The other tests copy it from here.
        made["stopped"].output = learning.folder / "stopped"
        shutil.copytree(learning.output, made["stopped"].output)
    return only_checkpoint(learning.output)


def only_checkpoint(output: Path) -> Path:
    (path,) = (output / "checkpoints").iterdir()
    return path


def weights(outcome: Outcome) -> dict[str, torch.Tensor]:
    """The exported weights."""
    (path,) = outcome.output.glob("*.safetensors")
    return load_file(path)


def records(outcome: Outcome) -> list[dict[str, Any]]:
    """What is on record of each step, without what the clock says."""
    lines = (outcome.output / "logs" / "metrics.jsonl").read_text().splitlines()
    clock = ("tokensPerSecond", "etaSeconds", "memoryBytes")
    found = [json.loads(line) for line in lines]
    return [{key: value for key, value in record.items() if key not in clock} for record in found if "event" not in record]


def same(one: Outcome, other: Outcome) -> bool:
    """Whether two runs have recorded and made the same, to all digits."""
    ours, theirs = weights(one), weights(other)
    equal = ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    return equal and records(one) == records(other) and one.progress["result"] == other.progress["result"]


def apart(one: Outcome, other: Outcome) -> float:
    """The largest difference between the losses of two runs."""
    return max(abs(ours - theirs) for ours, theirs in zip(one.losses, other.losses, strict=True))


def go_on(command: Command) -> Outcome:
    """Resume the run named r."""
    outcome = command.run("--run_name", "r")
    assert outcome.code == 0, outcome.err
    assert "resuming from checkpoint" in outcome.err
    return outcome


@pytest.mark.parametrize("lora", [True, False])
def test_resumed_equals_uninterrupted(learning: Command, lora: bool) -> None:
    if not lora:
        learning.change("General", lora_config=None)
    whole = run_whole(learning)
    learning.train_until(LAST_TOLD, "r")
    resumed = go_on(learning)
    assert 0 < resumed.out.count("step ") < whole.out.count("step ")
    assert same(whole, resumed)


def test_steps_by_tokens_resume_where_they_were(learning: Command) -> None:
    learning.change("Training", tokens_per_step=300)
    whole = run_whole(learning)
    learning.train_until(LAST_TOLD, "r")
    assert same(whole, go_on(learning))
    learning.change("Training", tokens_per_step=150).train_until(LAST_TOLD, "s")
    other = learning.change("Training", tokens_per_step=151).run("--run_name", "s")
    assert other.code == 0, other.err
    assert "is skipped: " in other.err


def nothing(path: Path, marker: dict[str, Any]) -> None:
    """Only the digests are computed again: the control of the others."""


def zero(prefix: str) -> Callable[[Path, dict[str, Any]], None]:
    def edit(path: Path, marker: dict[str, Any]) -> None:
        file = path / "rank-00000.safetensors"
        saved = load_file(file)
        found = [name for name in saved if name.startswith(prefix)]
        assert found
        save_file(saved | {name: torch.zeros_like(saved[name]) for name in found}, file)

    return edit


def change_rest(change: Callable[[dict[str, Any]], None]) -> Callable[[Path, dict[str, Any]], None]:
    def edit(path: Path, marker: dict[str, Any]) -> None:
        rest = json.loads((path / "state.json").read_text())
        change(rest)
        (path / "state.json").write_text(json.dumps(rest))

    return edit


def test_checkpoint_of_a_release_that_did_not_group_the_weights_is_skipped(learning: Command, stopped: Path) -> None:
    edit_checkpoint(stopped, change_rest(lambda rest: rest["groups"].append(rest["groups"][0])))
    outcome = learning.run("--run_name", "r")
    assert outcome.code == 0, outcome.err
    assert f"checkpoint {stopped} is skipped: its optimizer groups the weights in another way" in outcome.err


def test_checkpoint_of_a_release_that_updated_weight_by_weight_changes_nothing(
    learning: Command, whole: Outcome, stopped: Path
) -> None:
    """How the optimizer computes is this run's own choice: torch refuses a device's counter of steps without it."""
    edit_checkpoint(stopped, change_rest(lambda rest: [group.update(fused=None, foreach=True) for group in rest["groups"]]))
    assert same(whole, go_on(learning))


def schedule_from_the_start(rest: dict[str, Any]) -> None:
    first = rest["groups"][0]["initial_lr"]
    assert rest["groups"][0]["lr"] != first
    rest["groups"][0]["lr"] = first
    rest["schedule"].update(last_epoch=0, _step_count=1, _last_lr=[first])


def no_sums(rest: dict[str, Any]) -> None:
    assert rest["sums"]["tokens"]
    rest["sums"] = {}


def one_step_back(path: Path, marker: dict[str, Any]) -> None:
    marker["step"] -= 1


LOST: dict[str, Callable[[Path, dict[str, Any]], None]] = {
    "nothing": nothing,
    "weights": zero("weight:"),
    "optimizer": zero("optimizer:"),
    "schedule": change_rest(schedule_from_the_start),
    "sums": change_rest(no_sums),
    "cursor": one_step_back,
}


@pytest.mark.sampled(2)
@pytest.mark.parametrize("lost", LOST)
def test_whatever_is_not_restored_shows(learning: Command, whole: Outcome, stopped: Path, lost: str) -> None:
    edit_checkpoint(stopped, LOST[lost])
    resumed = go_on(learning)
    assert same(whole, resumed) == (lost == "nothing")
    assert (apart(whole, resumed) > 1e-4) == (lost != "nothing")


def test_randomness_that_is_not_restored_would_show(learning: Command, whole: Outcome) -> None:
    """The seed, the first weights and the rows are the same: it is the choice of what is dropped that changes the losses."""
    learning.change("General", lora_config={"r": 4, "lora_alpha": 8, "lora_dropout": 0.0})
    without = run_whole(learning)
    assert all(ours != theirs for ours, theirs in zip(whole.losses[1:], without.losses[1:], strict=True))


@pytest.mark.sampled(2)
@pytest.mark.parametrize("dropout", [0.1, 0.0])
def test_dropout_of_another_seed_shows(learning: Command, dropout: float) -> None:
    """The order of the rows is fixed and the weights are in the checkpoint: the seed decides about dropout alone.

    A run with another seed does not take the checkpoint for its own, unless it says that it is.
    """
    learning.change("General", lora_config={"r": 4, "lora_alpha": 8, "lora_dropout": dropout})
    learning.change("Dataset", shuffle=False, validation_split_percentage=0).change("Training", epochs=1, logging_steps=1)
    whole = run_whole(learning)
    checkpoint = only_checkpoint(learning.train_until(1, "r").output)
    learning.change("Training", seed=43)
    learning.change("General", output_dir=str(learning.folder / "other"))
    other = only_checkpoint(learning.train_until(1, "r").output)
    identity = json.loads((other / "complete.json").read_text())["identity"]
    edit_checkpoint(checkpoint, lambda _, marker: marker.update(identity=identity))
    learning.change("General", output_dir=str(checkpoint.parents[1]))
    resumed = go_on(learning)
    assert resumed.losses[:2] == whole.losses[:2]
    assert (apart(whole, resumed) > 1e-4) == (dropout > 0)


@pytest.mark.sampled(4)
@pytest.mark.parametrize("optimizer", ["SGD", "Adafactor", "NAdam", "Rprop", "ASGD", "RMSprop", "Adagrad", "Adadelta", "RAdam"])
def test_every_optimizer_resumes(learning: Command, optimizer: str) -> None:
    learning.change("Training", optimizer=optimizer, epochs=1)
    learning.change("Dataset", validation_split_percentage=0)
    whole = run_whole(learning)
    learning.train_until(1, "r")
    assert same(whole, go_on(learning))


def test_given_checkpoint_of_another_run(learning: Command, whole: Outcome, stopped: Path) -> None:
    learning.change("General", resume_from_checkpoint=str(stopped), output_dir=str(learning.folder / "third"))
    resumed = learning.run()
    assert resumed.code == 0, resumed.err
    assert resumed.progress["result"] == whole.progress["result"]
    ours, theirs = weights(resumed), weights(whole)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert stopped.is_dir()


def test_given_checkpoint_with_another_configuration_gives_weights_and_optimizer(learning: Command, stopped: Path) -> None:
    learning.change("General", resume_from_checkpoint=str(stopped), output_dir=str(learning.folder / "next"))
    learning.change("Training", optimizer="SGD", learning_rate=1e-9)
    outcome = learning.run()
    assert outcome.code == 0, outcome.err
    assert "only weights and optimizer are taken from the checkpoint" in outcome.err
    assert outcome.progress["step"] == outcome.progress["totalSteps"]
    (saved,) = stopped.glob("rank-*.safetensors")
    before = {name.removeprefix("weight:"): tensor for name, tensor in load_file(saved).items() if name.startswith("weight:")}
    after = weights(outcome)
    assert len(before) == len(after)
    for name, tensor in before.items():
        torch.testing.assert_close(after[name.replace(".default", "")], tensor)


def test_given_checkpoint_that_does_not_fit(learning: Command, stopped: Path) -> None:
    learning.change("General", resume_from_checkpoint=str(stopped), lora_config=None)
    outcome = learning.run()
    assert outcome.code == 2
    words = f"General.resume_from_checkpoint: {stopped} cannot be used: its weights are not those that learn here"
    assert words in outcome.err
    missing = learning.change("General", resume_from_checkpoint="nowhere").run()
    assert missing.code == 2
    assert "nowhere cannot be used: it has no complete.json" in missing.err
