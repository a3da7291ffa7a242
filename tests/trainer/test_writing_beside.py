"""Checkpoints are written while the steps go on, and keep all their promises."""

from __future__ import annotations

import errno
import json
import re
from typing import TYPE_CHECKING, Any

import pytest
from tests.support import engines
from tests.support.disk import Disk

from finetune_trainer.checkpoint.marker import read_marker
from finetune_trainer.errors import OutputVolumeFull

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.support.trainer import Command

    Report = Callable[[dict[str, Any]], None]


pytestmark = pytest.mark.sampled(8)


@pytest.fixture
def train(command: Command) -> Callable[..., Path]:
    """Take six steps with checkpoints, into an output folder of this name; return its folder of checkpoints."""
    command.change("Training", max_train_steps=6)

    def run(name: str, disk: Disk, report: Report | None = None, every: int = 2, **writing: Any) -> Path:
        engine = engines.make(command, name, every=every)
        engines.train(engine, report, write=disk.write, **writing)
        return engine.run.checkpoints

    return run


def when(step: int, *acts: Callable[[], Any]) -> Report:
    """Act when a step is on record, which is before its own checkpoint."""

    def report(record: dict[str, Any]) -> None:
        if record["step"] == step:
            for act in acts:
                act()

    return report


def writing() -> Disk:
    """A disk that writes at once."""
    disk = Disk()
    disk.let()
    return disk


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def contents(checkpoint: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in checkpoint.iterdir() if path.name != "complete.json"}


def recorded(folder: Path) -> int:
    """The step of the checkpoint that progress.json tells of."""
    return json.loads((folder.parent / "logs" / "progress.json").read_text())["checkpoint"]["step"]


def test_training_goes_on_while_a_checkpoint_is_written(train: Callable[..., Path], tmp_path: Path) -> None:
    disk, seen = Disk(), []
    folder = tmp_path / "r" / "checkpoints"
    assert train("r", disk, when(3, lambda: seen.extend(names(folder)), disk.let)) == folder
    assert all(re.fullmatch(r"\.step-00000002-[0-9a-f]+\.tmp", name) for name in seen)
    assert len(seen) <= 1
    assert names(folder) == ["step-00000004", "step-00000006"]
    assert recorded(folder) == 6


@pytest.mark.parametrize("lora", [True, False])
def test_checkpoint_that_is_written_later_holds_the_state_of_its_step(
    command: Command, train: Callable[..., Path], lora: bool
) -> None:
    if not lora:
        command.change("General", lora_config=None)
    at_once = train("at-once", writing(), every=3)
    late = Disk()
    later = train("later", late, when(6, late.let), every=3)
    for step in ("step-00000003", "step-00000006"):
        assert contents(later / step) == contents(at_once / step)
    assert contents(later / "step-00000003") != contents(later / "step-00000006")
    assert read_marker(later / "step-00000003").files == read_marker(at_once / "step-00000003").files


def test_training_waits_where_the_host_has_no_memory_for_a_copy(train: Callable[..., Path], tmp_path: Path) -> None:
    seen: list[str] = []
    folder = tmp_path / "r" / "checkpoints"
    train("r", writing(), when(3, lambda: seen.extend(names(folder))), free_memory=lambda: 0)
    assert seen == ["step-00000002"]
    assert names(folder) == ["step-00000004", "step-00000006"]


@pytest.mark.parametrize("every", [2, 6])
def test_write_that_fails_ends_the_run_and_leaves_no_draft(train: Callable[..., Path], every: int, tmp_path: Path) -> None:
    disk = Disk(OSError(errno.ENOSPC, "No space left on device"))
    with pytest.raises(OutputVolumeFull, match="no space left on the output volume"):
        train("r", disk, when(3, disk.let), every=every)
    assert names(tmp_path / "r" / "checkpoints") == []


def test_stop_leaves_its_own_checkpoint_and_the_one_in_flight(train: Callable[..., Path], tmp_path: Path) -> None:
    disk = Disk()
    folder = train("r", disk, when(3, disk.let, (tmp_path / "r" / "logs" / "stop").touch))
    assert names(folder) == ["step-00000002", "step-00000004"]
    assert recorded(folder) == 4


def test_run_that_fails_leaves_the_checkpoint_in_flight(train: Callable[..., Path], tmp_path: Path) -> None:
    def fail() -> None:
        raise RuntimeError("the roof fell in")

    disk = Disk()
    with pytest.raises(RuntimeError, match="roof"):
        train("r", disk, when(3, disk.let, fail))
    folder = tmp_path / "r" / "checkpoints"
    assert names(folder) == ["step-00000002"]
    assert recorded(folder) == 2
