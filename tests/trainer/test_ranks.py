"""Every family learns the same on one rank and on two, with DDP and with FSDP; and FSDP goes on where it was stopped."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file
from tests.support import ranks
from tests.support.trainer import SIZES, Outcome

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.support.trainer import Command

pytestmark = pytest.mark.slow
BATCH = 8
STEPS = 4


def entry(command: Command, output: Path, rows: int, mode: str, *, stop: int | None = None, name: str | None = None) -> Any:
    """A run for `ranks`: what `command` is configured for, with this many rows for a rank."""
    config = copy.deepcopy(command.config)
    config["General"]["output_dir"] = str(output)
    config["Training"].update(batch_size=rows, accelerate_mode=mode, max_train_steps=STEPS)
    return {"config": config, "data": str(command.folder), "stop": stop, "name": name}


@pytest.fixture
def family_run(command: Command, model_folder: Callable[[str], Path]) -> Callable[[str, str], Command]:
    """Configure the run of a family, in full or with an adapter, without dropout."""
    lora = command.config["General"]["lora_config"]

    def configure(family: str, method: str) -> Command:
        command.change("General", base_model=str(model_folder(family)), lora_config=lora if method == "lora" else None)
        return command.change("Dataset", validation_split_percentage=20).change("Training", learning_rate=0.001)

    return configure


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Where the runs of all families are, once the first test has made them."""
    return {"folder": tmp_path_factory.mktemp("ranks")}


@pytest.fixture
def runs(family_run: Callable[[str, str], Command], outcomes: dict[str, Path]) -> Callable[[str], Outcome]:
    """The outcome of a run by its name, `<family>-<method>-<kind>`; all are made at once by the same processes."""
    folder = outcomes["folder"]
    if not (folder / "two").exists():
        one, two = [], []
        for family in SIZES:
            for method in ("full", "lora"):
                command, name = family_run(family, method), f"{family}-{method}"
                one.append(entry(command, folder / f"{name}-one", BATCH, "DDP"))
                two.append(entry(command, folder / f"{name}-DDP", BATCH // 2, "DDP"))
                two.append(entry(command, folder / f"{name}-FSDP", BATCH // 2, "FSDP"))
                # Where a checkpoint of the first half is, the second half follows.
                resumed = entry(command, folder / f"{name}-resumed", BATCH // 2, "FSDP", stop=STEPS // 2, name="r")
                two += [resumed, resumed | {"stop": None}]
        ranks.start(folder / "one", one, 1)
        ranks.start(folder / "two", two, 2)
    return lambda name: Outcome(0, "", "", folder / name)


def weights(outcome: Outcome) -> dict[str, torch.Tensor]:
    (path,) = outcome.output.glob("*.safetensors")
    return load_file(path)


def check_same(one: Outcome, other: Outcome, tolerance: float) -> None:
    """Losses, evaluation and weights of two runs are the same."""
    assert other.losses == pytest.approx(one.losses, abs=tolerance)
    assert len(one.losses) == STEPS
    assert other.progress["evalLoss"] == pytest.approx(one.progress["evalLoss"], abs=tolerance)
    ours, theirs = weights(one), weights(other)
    assert ours.keys() == theirs.keys()
    assert max(float((ours[name] - theirs[name]).abs().max()) for name in ours) < 10 * tolerance


@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize("family", SIZES)
def test_two_ranks_of_ddp_learn_as_one_with_twice_the_batch(runs: Callable[[str], Outcome], family: str, method: str) -> None:
    check_same(runs(f"{family}-{method}-one"), runs(f"{family}-{method}-DDP"), 1e-4)


@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize("family", SIZES)
def test_fsdp_learns_as_ddp(runs: Callable[[str], Outcome], family: str, method: str) -> None:
    check_same(runs(f"{family}-{method}-DDP"), runs(f"{family}-{method}-FSDP"), 1e-4)


@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize("family", SIZES)
def test_fsdp_that_was_stopped_goes_on(runs: Callable[[str], Outcome], family: str, method: str) -> None:
    check_same(runs(f"{family}-{method}-FSDP"), runs(f"{family}-{method}-resumed"), 1e-9)
