"""A run goes on with another number of ranks than its checkpoint was written by, as if it had always had the first one."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.support import ranks
from tests.support.trainer import Outcome

from finetune_trainer.checkpoint.identity import Identity
from finetune_trainer.checkpoint.marker import Marker

if TYPE_CHECKING:
    from tests.support.trainer import Command

STEPS = 8
IDENTITY = Identity(run="r", configuration="c", world_size=4, strategy="FSDP")


@pytest.fixture
def learning(command: Command) -> Command:
    """A run with momentum and a schedule. Dropout is drawn for each rank, so there is none."""
    command.change("General", lora_config=None)
    command.change("Training", batch_size=2, max_train_steps=None, epochs=3, learning_rate=0.01)
    return command.change("Dataset", validation_split_percentage=10)


def entry(command: Command, name: str, mode: str, **others: Any) -> dict[str, Any]:
    """A run for `ranks`, into a folder of its name."""
    command.change("General", output_dir=str(command.folder / name)).change("Training", accelerate_mode=mode)
    return {"config": copy.deepcopy(command.config), "data": str(command.folder), "stop": None, "name": name} | others


def outcome(command: Command, name: str) -> Outcome:
    return Outcome(0, "", "", command.folder / name)


def resumptions(command: Command, name: str) -> int:
    """How often a run has resumed from a checkpoint."""
    lines = (command.folder / name / "logs" / "metrics.jsonl").read_text().splitlines()
    return sum(json.loads(line).get("event") == "resumed" for line in lines)


def forget_batch_ranks(output: Path) -> None:
    """Let checkpoints be as those of releases that fitted their own number of ranks only."""
    for path in output.glob("checkpoints/*/complete.json"):
        marker = json.loads(path.read_text())
        marker["identity"].pop("batchRanks", None)
        path.write_text(json.dumps(marker))


def go_on(command: Command, whole: list[str], legs: list[tuple[int, dict[str, str]]]) -> None:
    """Take runs, by names and modes, over legs with some ranks each; the first leg has undisturbed ones beside them."""
    ends = [3 * STEPS // 4 * number // (len(legs) - 1) for number in range(1, len(legs))]
    for number, (size, modes) in enumerate(legs):
        stop = ends[number] if number < len(ends) else None
        runs = [entry(command, name, mode, stop=stop) for name, mode in modes.items()]
        if number == 0:
            runs += [entry(command, f"whole-{name}", modes[name]) for name in whole]
        ranks.start(command.folder / f"leg-{number}", runs, size)
        for name in modes:
            assert resumptions(command, name) == number
            if number == 0:
                forget_batch_ranks(command.folder / name)


@pytest.mark.slow
def test_four_two_one_and_four_ranks_learn_as_four_do(learning: Command) -> None:
    both = {"ddp": "DDP", "fsdp": "FSDP"}
    go_on(learning, [*both], [(4, both), (2, both), (1, both), (4, both)])
    for name in both:
        whole, resumed = outcome(learning, f"whole-{name}"), outcome(learning, name)
        assert len(whole.losses) == len(resumed.losses) > 4
        assert resumed.losses == pytest.approx(whole.losses, abs=1e-4)
        assert resumed.progress["result"]["evalLoss"] == pytest.approx(whole.progress["result"]["evalLoss"], abs=1e-4)


@pytest.mark.slow
def test_one_four_and_two_ranks_learn_as_one_does_with_either_strategy(learning: Command) -> None:
    learning.change("Training", batch_size=1, tokens_per_step=300, optimizer="SGD", gradient_accumulation_steps=1)
    go_on(learning, ["r"], [(1, {"r": "DDP"}), (4, {"r": "FSDP"}), (2, {"r": "DDP"})])
    whole, resumed = outcome(learning, "whole-r"), outcome(learning, "r")
    assert resumed.losses == pytest.approx(whole.losses, abs=1e-4)


@pytest.mark.slow
def test_another_run_goes_on_with_fewer_ranks_and_says_what_becomes_of_its_steps(learning: Command) -> None:
    runs = [entry(learning, "whole", "FSDP"), entry(learning, "earlier", "FSDP", stop=2)]
    ranks.start(learning.folder / "two", runs, 2)
    learning.change("General", output_dir=str(learning.folder / "next")).change("Training", accelerate_mode="DDP")
    done = learning.run("--run_name", "next", "--resume_from", str(learning.folder / "earlier"))
    assert done.code == 0, done.err
    assert "the run began with 2 ranks: each step keeps the rows that it has with them, and 1 ranks share them" in done.err
    assert "it was written by FSDP with 2 ranks, and is read by DDP with 1 ranks" in done.err
    whole, resumed = outcome(learning, "whole"), outcome(learning, "next")
    assert resumed.losses == pytest.approx(whole.losses[-len(resumed.losses) :], abs=1e-4)
    assert 1 < len(resumed.losses) < len(whole.losses)


@pytest.mark.slow
def test_other_batches_take_weights_and_optimizer_from_other_ranks(learning: Command) -> None:
    ranks.start(learning.folder / "two", [entry(learning, "earlier", "FSDP", stop=2)], 2)
    learning.change("General", output_dir=str(learning.folder / "next")).change("Training", batch_size=3)
    done = learning.run("--run_name", "next", "--resume_from", str(learning.folder / "earlier"))
    assert done.code == 0, done.err
    assert "only weights and optimizer are taken from the checkpoint" in done.err
    assert done.steps[0]["step"] == 1


def test_number_of_ranks_is_no_difference_and_other_steps_are() -> None:
    marker = Marker(identity=IDENTITY, step=1, total_steps=2, trainer_version="1")
    other = IDENTITY.model_copy(update={"world_size": 1, "strategy": "DDP", "batch_ranks": 4})
    assert marker.difference(other) is None
    words = "its steps have the rows for 4 ranks, those of this run for 1"
    assert marker.difference(other.model_copy(update={"batch_ranks": None})) == words


def test_checkpoint_of_a_release_without_the_key_was_made_for_its_own_ranks() -> None:
    old = {"run": "r", "configuration": "c", "worldSize": 4, "strategy": "FSDP", "packed": True}
    assert Identity.model_validate(old).made_for == 4
