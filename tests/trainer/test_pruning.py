"""Which checkpoints stay, and under which names."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest

from finetune_trainer.checkpoint import identity, store
from finetune_trainer.checkpoint.marker import Marker, read_marker
from finetune_trainer.files import write_described

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.trainer import Command

IDENTITY = identity.Identity(run="r", configuration="c", world_size=1, strategy="DDP")


def save(folder: Path, step: int, run: str = "r", year: int = 2026) -> Path:
    draft = store.begin(folder, step)
    files = (write_described(draft / "state.json", [b"{}"]),)
    who, made = IDENTITY.model_copy(update={"run": run}), datetime(year, 1, 1, tzinfo=UTC)
    marker = Marker(identity=who, step=step, total_steps=9, trainer_version="1", files=files, created_at=made)
    return store.complete(draft, marker)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_clock_that_was_set_back_costs_no_checkpoint(tmp_path: Path) -> None:
    for step, year in ((5, 2026), (6, 2026), (1, 2020)):
        newest = save(tmp_path, step, year=year)
    store.prune(tmp_path, "r", keep=2, newest=newest)
    assert names(tmp_path) == ["step-00000001", "step-00000006"]


def test_checkpoint_of_another_run_and_the_same_step_stays(tmp_path: Path) -> None:
    other, own = save(tmp_path, 5, run="other"), save(tmp_path, 5)
    assert (other.name, own.name) == ("step-00000005", "step-00000005-2")
    assert read_marker(other).identity.run == "other"
    assert save(tmp_path, 5) == own
    assert save(tmp_path, 5, run="third").name == "step-00000005-3"
    assert save(tmp_path, 4).name == "step-00000004"
    assert [path.name for path, _ in store.candidates(tmp_path, IDENTITY)] == ["step-00000005-2", "step-00000004"]
    store.prune(tmp_path, "r", keep=0)
    assert names(tmp_path) == ["step-00000005", "step-00000005-3"]


def test_run_that_is_made_again_takes_the_places_of_what_it_has_kept(tmp_path: Path) -> None:
    path = save(tmp_path, 5)
    store.retire(tmp_path, "r")
    assert read_marker(path).identity.run == "r, finished"
    assert save(tmp_path, 5) == path
    (path / "complete.json").unlink()
    assert save(tmp_path, 5) == path
    assert names(tmp_path) == ["step-00000005"]


def test_two_writers_of_one_step_have_a_draft_each(tmp_path: Path) -> None:
    lost, draft = store.begin(tmp_path, 5), store.begin(tmp_path, 5)
    assert lost.is_dir()
    assert lost != draft
    (tmp_path / ".step-00000006.tmp").mkdir()  # of an earlier release
    (tmp_path / ".step-mine").mkdir()
    store.prune(tmp_path, "r", keep=1)
    assert draft.is_dir()
    store.remove_drafts(tmp_path)
    assert names(tmp_path) == [".step-mine"]
    with pytest.raises(FileNotFoundError):
        write_described(lost / "state.json", [b"{}"])


@pytest.mark.sampled(2)
def test_given_checkpoint_stays_where_the_run_that_starts_from_it_writes_its_own(command: Command) -> None:
    command.change("General", save_strategy="steps")
    options = ("--checkpoint_every_steps", "2", "--checkpoint_keep", "1")
    assert command.run(*options).code == 0
    given = command.output / "checkpoints" / "step-00000004"
    before = read_marker(given)
    command.change("General", resume_from_checkpoint=str(given)).change("Training", learning_rate=0.001)
    outcome = command.run(*options)
    assert outcome.code == 0, outcome.err
    assert read_marker(given) == before
    assert names(given.parent) == ["step-00000004", "step-00000004-2"]
    assert outcome.progress["checkpoint"]["path"].endswith("/step-00000004-2")
