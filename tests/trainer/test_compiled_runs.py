"""Runs whose layers are compiled for real, by the C++ compiler of this machine."""

from __future__ import annotations

import copy
import re
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from tests.support import ranks
from tests.support.trainer import Outcome

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.trainer import Command

pytestmark = pytest.mark.slow

STAGE = "compiling the layers of the model"


@pytest.fixture(autouse=True)
def anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing of an earlier test is on this host."""
    forget(tmp_path / "first", monkeypatch)
    yield
    torch.compiler.reset()


def forget(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a new process on another host."""
    torch.compiler.reset()
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(folder))


def text(command: Command, attempt: int) -> str:
    return (command.output / "logs" / f"attempt-{attempt}" / "rank-0.log").read_text()


def test_compiled_run_learns_the_same_and_its_next_attempt_compiles_nothing(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    command.change("Training", max_train_steps=20)
    plain = command.run("--output_dir", str(command.folder / "plain"))
    plain.output = command.folder / "plain"
    assert plain.code == 0, plain.err
    assert STAGE not in plain.stages
    command.change("Training", compile=True)
    whole = command.run("--output_dir", str(command.folder / "whole"))
    whole.output = command.folder / "whole"
    assert whole.code == 0, whole.err
    assert whole.losses == pytest.approx(plain.losses, abs=1e-5)
    assert not (whole.output / ".compiled").exists()

    forget(command.folder / "second", monkeypatch)
    command.train_until(9, "r")
    assert [path.suffix for path in (command.output / ".compiled").iterdir()] == [".bin"]
    forget(command.folder / "third", monkeypatch)
    resumed = command.run("--run_name", "r", "--attempt", "2")
    assert resumed.code == 0, resumed.err
    assert STAGE in resumed.stages
    assert "with what an earlier attempt has kept" in text(command, 2)
    assert resumed.progress["result"] == whole.progress["result"]
    assert not (command.output / ".compiled").exists()


def test_run_whose_layers_cannot_be_compiled_says_so_and_goes_on(command: Command) -> None:
    outcome = command.change("Training", compile=True).run_apart(CXX="no-such-compiler")
    assert outcome.code == 0, outcome.err
    assert "the layers cannot be compiled: training goes on without" in outcome.stages
    assert "the layers of the model are not compiled, training is slower: " in outcome.err
    assert outcome.progress["stages"].index(STAGE) < outcome.progress["stages"].index("training")


def test_what_was_kept_and_cut_off_is_compiled_again(command: Command) -> None:
    kept = command.output / ".compiled"
    kept.mkdir(parents=True)
    (kept / f"{torch.__version__}-cpu.bin").write_bytes(b"cut off")
    outcome = command.change("Training", compile=True).run("--run_name", "r")
    assert outcome.code == 0, outcome.err
    assert re.search(r"compiled the layers in [0-9.]+ s$", text(command, 1), re.MULTILINE)


def test_ranks_of_ddp_and_fsdp_learn_the_same_compiled_or_not(command: Command) -> None:
    runs = []
    for mode, compiles in product(("DDP", "FSDP"), (False, True)):
        command.change("General", output_dir=str(command.folder / f"{mode}-{compiles}"))
        command.change("Training", accelerate_mode=mode, compile=compiles)
        runs.append({"config": copy.deepcopy(command.config), "data": str(command.folder), "stop": None, "name": None})
    ranks.start(command.folder / "two", runs, 2)
    expected, *others = (Outcome(0, "", "", Path(run["config"]["General"]["output_dir"])) for run in runs)
    assert len(expected.losses) == 4
    for other in others:
        assert other.losses == pytest.approx(expected.losses, abs=1e-5)
        assert "the layers cannot be compiled: training goes on without" not in other.progress["stages"]
    assert STAGE in others[-1].progress["stages"]
