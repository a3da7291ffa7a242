"""Of what cannot be read at present nothing is concluded: no older checkpoint is taken for it, and nothing is removed."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

import pytest
from tests.support.moments import just_before

from finetune_trainer.checkpoint import identity, store
from finetune_trainer.checkpoint.marker import Marker, Unusable, check_files, read_marker
from finetune_trainer.files import write_described

if TYPE_CHECKING:
    from contextlib import AbstractContextManager
    from pathlib import Path

    from tests.support.trainer import Command

pytestmark = pytest.mark.sampled(8)

IDENTITY = identity.Identity(run="r", configuration="c", world_size=1, strategy="DDP")


def unreadable(path: Path, number: int = errno.EIO) -> AbstractContextManager[None]:
    """Let a file not be opened, as by a volume whose server is away."""

    def fail(opened: object, *_: object) -> None:
        if str(opened) == str(path):
            raise OSError(number, os.strerror(number), str(path))

    return just_before("open", fail)


def save(folder: Path, step: int, run: str = "r") -> Path:
    draft = store.begin(folder, step)
    files = (write_described(draft / "state.json", [b"{}"]),)
    who = IDENTITY.model_copy(update={"run": run})
    return store.complete(draft, Marker(identity=who, step=step, total_steps=9, trainer_version="1", files=files))


@pytest.mark.sampled(2)
@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.EACCES])
def test_checkpoint_that_cannot_be_read_is_not_a_broken_one(tmp_path: Path, number: int) -> None:
    path = save(tmp_path, 1)
    marker = read_marker(path)
    with unreadable(path / "complete.json", number), pytest.raises(OSError, match=os.strerror(number)):
        read_marker(path)
    with unreadable(path / "state.json", number), pytest.raises(OSError, match=os.strerror(number)):
        check_files(path, marker, ["state.json"])
    with unreadable(path / "complete.json", number), pytest.raises(OSError, match=os.strerror(number)):
        list(store.candidates(tmp_path, IDENTITY))
    with unreadable(path / "complete.json", number), pytest.raises(OSError, match=os.strerror(number)):
        store.is_owned(tmp_path, "r")


def test_what_is_no_checkpoint_is_a_broken_one(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder" / "complete.json").mkdir(parents=True)
    for name in ("nowhere", "file", "folder"):
        with pytest.raises(Unusable, match=r"it has no complete\.json"):
            read_marker(tmp_path / name)


def test_checkpoint_whose_file_cannot_be_looked_at_stays(tmp_path: Path) -> None:
    paths = [save(tmp_path, step) for step in (1, 2, 3)]
    state = paths[0] / "state.json"
    state.unlink()
    state.symlink_to(state)  # the system refuses to follow it
    with unreadable(paths[1] / "complete.json"):
        store.prune(tmp_path, "r", keep=0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000001", "step-00000002"]


def test_nothing_takes_the_place_of_a_checkpoint_that_cannot_be_read(tmp_path: Path) -> None:
    path = save(tmp_path, 1, run="other")
    with unreadable(path / "complete.json"), pytest.raises(OSError, match="Input/output error"):
        save(tmp_path, 1)
    assert read_marker(path).identity.run == "other"


@pytest.mark.sampled(1)
@pytest.mark.parametrize("file", ["complete.json", "rank-00000.safetensors", "state.json"])
def test_run_does_not_go_on_from_less_than_its_newest_checkpoint(command: Command, file: str) -> None:
    command.train(lambda _: (command.output / "logs" / "stop").touch(), "r", every_steps=1)
    newest = max((command.output / "checkpoints").iterdir())
    before = read_marker(newest)
    with unreadable(newest / file):
        failed = command.run("--run_name", "r")
    assert failed.code not in (0, 2), failed.err
    assert "Input/output error" in failed.err
    assert "step " not in failed.out
    assert read_marker(newest) == before
    resumed = command.run("--run_name", "r")
    assert f"resuming from checkpoint {newest}" in resumed.err


def test_given_checkpoint_that_cannot_be_read_is_a_mistake_unless_it_may_be_read_later(command: Command) -> None:
    command.train(lambda _: (command.output / "logs" / "stop").touch(), "r", every_steps=1)
    given = max((command.output / "checkpoints").iterdir())
    command.change("General", resume_from_checkpoint=str(given), output_dir=str(command.folder / "next"))
    with unreadable(given / "complete.json", errno.EACCES):
        refused = command.run()
    assert refused.code == 2
    assert f"General.resume_from_checkpoint: {given} cannot be used: " in refused.err
    with unreadable(given / "complete.json"):
        failed = command.run()
    assert failed.code not in (0, 2)
    assert failed.progress["failure"]["retryable"]


@pytest.mark.sampled(1)
@pytest.mark.parametrize("file", ["manifest.json", "adapter_model.safetensors"])
def test_result_that_cannot_be_read_is_not_made_again(command: Command, file: str) -> None:
    assert command.run("--run_name", "r").code == 0
    before = (command.output / "manifest.json").read_bytes()
    with unreadable(command.output / file):
        failed = command.run("--run_name", "r", "--attempt", "2")
    assert failed.code not in (0, 2)
    assert "step " not in failed.out
    assert (command.output / "manifest.json").read_bytes() == before
    again = command.run("--run_name", "r", "--attempt", "3")
    assert "finished in an earlier attempt" in again.out
