"""A run that starts from the checkpoint of an earlier run with another name and another folder."""

from __future__ import annotations

import json
import shutil
import signal
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file
from tests.support.trainer import Apart, Command, Outcome

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.sampled(8)

WHOLE, EARLIER = "whole", "earlier"


@pytest.fixture
def learning(command: Command) -> Command:
    """A run of eight steps over two epochs with everything that could go astray: dropout, momentum, a schedule."""
    command.change("General", lora_config={"r": 4, "lora_alpha": 8, "lora_dropout": 0.1})
    command.change("Training", batch_size=3, max_train_steps=None, epochs=2, gradient_accumulation_steps=2)
    return command.change("Dataset", validation_split_percentage=10)


def run(command: Command, name: str, *options: str) -> Outcome:
    """Run under a name, into a folder of that name."""
    command.change("General", output_dir=str(command.folder / name))
    return command.run("--run_name", name, *options)


def whole_and_earlier(command: Command, *steps: int) -> Outcome:
    """A run to its end; and a folder as it was after some steps, as if it had been stopped there."""
    command.change("General", save_strategy="steps")
    whole = run(command, WHOLE, "--checkpoint_every_steps", "2", "--checkpoint_keep", "9")
    command.change("General", save_strategy=None)
    assert whole.code == 0, whole.err
    for step in steps:
        shutil.copytree(checkpoint(command, WHOLE, step), checkpoint(command, EARLIER, step))
    return whole


def checkpoint(command: Command, name: str, step: int) -> Path:
    return command.folder / name / "checkpoints" / f"step-{step:08}"


def from_earlier(command: Command, name: str = "next", *options: str) -> Outcome:
    return run(command, name, "--resume_from", str(command.folder / EARLIER), *options)


def weights(outcome: Outcome) -> dict[str, torch.Tensor]:
    (path,) = outcome.output.glob("*.safetensors")
    return load_file(path)


def same(one: Outcome, other: Outcome) -> bool:
    """Whether two runs have made the same, to all digits."""
    ours, theirs = weights(one), weights(other)
    equal = ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    return equal and one.progress["result"] == other.progress["result"]


def first_step(outcome: Outcome) -> int:
    """The first step that is on record."""
    records = map(json.loads, (outcome.output / "logs" / "metrics.jsonl").read_text().splitlines())
    return next(int(record["step"]) for record in records if "loss" in record)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.sampled(2)
@pytest.mark.parametrize("lora", [True, False])
def test_another_run_continues_as_the_first_would_have(learning: Command, lora: bool) -> None:
    if not lora:
        learning.change("General", lora_config=None)
    whole = whole_and_earlier(learning, 2, 4)
    before = contents(learning.folder / EARLIER)
    outcome = from_earlier(learning)
    assert outcome.code == 0, outcome.err
    assert f"resuming from checkpoint {checkpoint(learning, EARLIER, 4)}" in outcome.err
    assert first_step(outcome) == 5
    assert same(whole, outcome)
    assert contents(learning.folder / EARLIER) == before


@pytest.mark.slow
def test_a_stopped_run_is_continued_by_another(learning: Command) -> None:
    learning.change("Training", max_train_steps=400, learning_rate=0.001)
    whole = run(learning, WHOLE)
    learning.change("General", output_dir=str(learning.folder / EARLIER))
    started = Apart(learning, "--run_name", EARLIER)
    started.wait_for(3)
    started.process.send_signal(signal.SIGTERM)
    code, _, err = started.end()
    assert code == 75, err
    reached = json.loads((started.logs / "progress.json").read_text())["step"]
    outcome = from_earlier(learning)
    assert outcome.code == 0, outcome.err
    assert first_step(outcome) == reached + 1
    assert same(whole, outcome)


def test_own_checkpoints_come_first(learning: Command) -> None:
    whole = whole_and_earlier(learning, 4)
    earlier = checkpoint(learning, EARLIER, 4)
    own = checkpoint(learning, "next", 6)
    shutil.copytree(checkpoint(learning, WHOLE, 6), own)
    marker = json.loads((own / "complete.json").read_text())
    marker["identity"]["run"] = "next"
    (own / "complete.json").write_text(json.dumps(marker))
    outcome = from_earlier(learning)
    assert outcome.code == 0, outcome.err
    assert str(earlier) not in outcome.err
    assert first_step(outcome) == 7
    assert same(whole, outcome)


def test_the_newest_complete_checkpoint_is_used(learning: Command) -> None:
    whole = whole_and_earlier(learning, 2, 4, 6)
    (checkpoint(learning, EARLIER, 6) / "complete.json").unlink()
    tensors = checkpoint(learning, EARLIER, 4) / "rank-00000.safetensors"
    data = bytearray(tensors.read_bytes())
    data[-1] ^= 1
    tensors.write_bytes(data)
    outcome = from_earlier(learning)
    assert outcome.code == 0, outcome.err
    for step, reason in ((6, "it has no complete.json"), (4, "rank-00000.safetensors is not the file that was written")):
        assert f"checkpoint {checkpoint(learning, EARLIER, step)} is skipped: {reason}" in outcome.err
    assert first_step(outcome) == 3
    assert same(whole, outcome)


def test_other_settings_take_over_weights_and_optimizer_only(learning: Command) -> None:
    whole_and_earlier(learning, 4)
    learning.change("Training", optimizer="SGD", learning_rate=1e-9)
    outcome = from_earlier(learning)
    assert outcome.code == 0, outcome.err
    assert "only weights and optimizer are taken from the checkpoint" in outcome.err
    assert "the configuration or the rows have changed since" in outcome.err
    assert outcome.progress["step"] == outcome.progress["totalSteps"]
    (saved,) = checkpoint(learning, EARLIER, 4).glob("rank-*.safetensors")
    before = {name.removeprefix("weight:"): tensor for name, tensor in load_file(saved).items() if name.startswith("weight:")}
    after = weights(outcome)
    assert len(before) == len(after)
    for name, tensor in before.items():
        torch.testing.assert_close(after[name.replace(".default", "")], tensor)


def test_a_run_without_checkpoints_starts_at_step_0(learning: Command) -> None:
    whole = whole_and_earlier(learning)
    outcome = from_earlier(learning)
    assert outcome.code == 0, outcome.err
    assert f"there is no complete checkpoint in {learning.folder / EARLIER / 'checkpoints'} to start from" in outcome.err
    assert same(whole, outcome)


def test_weights_that_do_not_fit_are_refused(learning: Command) -> None:
    whole_and_earlier(learning, 4)
    learning.change("General", lora_config=None)
    outcome = from_earlier(learning)
    assert outcome.code == 2
    refusal: Any = outcome.progress["failure"]
    assert refusal["reason"] == "InvalidSpec"
    path = checkpoint(learning, EARLIER, 4)
    assert refusal["message"].startswith(f"--resume_from: {path} cannot be used: its weights are not those that learn here")


def test_a_finished_run_that_kept_no_checkpoint_is_refused(learning: Command) -> None:
    assert run(learning, EARLIER).code == 0
    outcome = from_earlier(learning)
    assert outcome.code == 2
    assert f"--resume_from: {learning.folder / EARLIER} cannot be used: its run has finished" in outcome.err
