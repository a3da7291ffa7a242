"""Checkpoints on disk: which ones count, which ones stay, and what happens when one cannot be written."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from typing import TYPE_CHECKING, Any

import pytest
from tests.support.trainer import SIZES, VOCABULARY, Apart, Outcome

from finetune_trainer import errors
from finetune_trainer.checkpoint import identity, store
from finetune_trainer.checkpoint.marker import Marker, read_marker
from finetune_trainer.config.run import Saving
from finetune_trainer.files import write_described
from finetune_trainer.output import manifest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.support.trainer import Command

pytestmark = pytest.mark.sampled(8)

IDENTITY = identity.Identity(run="r", configuration="c", world_size=1, strategy="DDP")


@pytest.fixture(scope="module")
def wreck(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the output folder of the killed run is kept for all tests that resume from it."""
    return tmp_path_factory.mktemp("wreck") / "out"


@pytest.fixture
def killed(command: Command, wreck: Path) -> Command:
    """A run named r that failed in step 5 of 6, with checkpoints of steps 2 and 4."""
    command.change("Training", max_train_steps=6)
    if not wreck.exists():
        with pytest.raises(RuntimeError, match="the process is gone"):
            command.train(at_step(5, end_in_grief), "r", every_steps=2)
        command.output.rename(wreck)
    shutil.copytree(wreck, command.output)
    assert names(command) == ["step-00000002", "step-00000004"]
    assert Outcome(-1, "", "", command.output).progress["checkpoint"]["step"] == 4
    return command


def at_step(number: int, act: Callable[[], None]) -> Callable[[dict[str, Any]], None]:
    """Something for the loop to report to, that acts when a step is done and before its checkpoint is written."""

    def report(record: dict[str, Any]) -> None:
        if record["step"] == number:
            act()

    return report


def end_in_grief() -> None:
    raise RuntimeError("the process is gone")


def run(command: Command, *options: str, name: str = "r") -> Outcome:
    return command.run("--run_name", name, "--checkpoint_every_steps", "2", *options)


def names(command: Command) -> list[str]:
    folder = command.output / "checkpoints"
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def steps(outcome: Outcome) -> list[int]:
    """Steps that the command printed."""
    return [int(line.split()[1].split("/")[0]) for line in outcome.out.splitlines() if line.startswith("step ")]


def test_a_killed_run_goes_on_and_leaves_only_its_result(killed: Command) -> None:
    outcome = run(killed, "--attempt", "2")
    assert outcome.code == 0, outcome.err
    assert steps(outcome) == [5, 6]
    records = [json.loads(line) for line in (outcome.output / "logs/metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records if "loss" in record] == [*range(1, 7)]
    assert names(killed) == []
    assert not (outcome.output / "checkpoints").exists()
    assert "checkpoint" not in outcome.progress
    again = run(killed, "--attempt", "3")
    assert (again.code, steps(again)) == (0, [])
    assert "finished in an earlier attempt" in again.out


def cut_off(path: Path) -> None:
    tensors = path / "rank-00000.safetensors"
    os.truncate(tensors, tensors.stat().st_size - 1)


def flip_bit(path: Path) -> None:
    tensors = path / "rank-00000.safetensors"
    data = bytearray(tensors.read_bytes())
    data[-1] ^= 1
    tensors.write_bytes(data)


def change_marker(**changes: Any) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        marker = json.loads((path / "complete.json").read_text())
        marker["identity"].update(changes)
        (path / "complete.json").write_text(json.dumps(marker))

    return change


def unnamed_file(path: Path) -> None:
    marker = json.loads((path / "complete.json").read_text())
    marker["files"] = [entry for entry in marker["files"] if not entry["path"].startswith("rank")]
    (path / "complete.json").write_text(json.dumps(marker))


HALF_WRITTEN: dict[str, tuple[Callable[[Path], Any], str]] = {
    "killed before the marker": (lambda path: (path / "complete.json").unlink(), "it has no complete.json"),
    "killed in the marker": (lambda path: os.truncate(path / "complete.json", 40), "its complete.json cannot be read"),
    "empty marker": (lambda path: os.truncate(path / "complete.json", 0), "its complete.json cannot be read"),
    "file lost": (lambda path: (path / "state.json").unlink(), "state.json is missing or cut off"),
    "file cut off": (cut_off, "rank-00000.safetensors is missing or cut off"),
    "other contents": (flip_bit, "rank-00000.safetensors is not the file that was written"),
    "file without digest": (unnamed_file, "rank-00000.safetensors is not the file that was written"),
    "other run": (change_marker(run="x"), "it belongs to another run, x"),
    "other configuration": (change_marker(configuration="x"), "the configuration or the rows have changed since"),
    "shard of another rank lost": (
        change_marker(worldSize=2, strategy="FSDP", batchRanks=1),
        "rank-00001.safetensors cannot be read: No such file or directory",
    ),
    "other attention": (change_marker(packed=False), "it was made with padded rows, which are packed here"),
}


@pytest.mark.sampled(3)
@pytest.mark.parametrize("how", HALF_WRITTEN)
def test_a_checkpoint_that_cannot_be_relied_on_is_named_and_the_one_before_is_taken(killed: Command, how: str) -> None:
    harm, words = HALF_WRITTEN[how]
    path = killed.output / "checkpoints" / "step-00000004"
    harm(path)
    outcome = run(killed)
    assert outcome.code == 0, outcome.err
    assert f"checkpoint {path} is skipped: {words}" in outcome.err
    assert steps(outcome) == [3, 4, 5, 6]


@pytest.mark.parametrize("name", [".step-00000004.tmp", ".step-00000004-0123abcd.tmp"])
def test_a_draft_is_never_taken(killed: Command, name: str) -> None:
    folder = killed.output / "checkpoints"
    (folder / "step-00000004").rename(folder / name)
    outcome = run(killed)
    assert steps(outcome) == [3, 4, 5, 6]
    assert not folder.exists()


def test_no_checkpoint_of_another_run_or_of_a_run_without_name_is_taken(killed: Command) -> None:
    outcome = run(killed, name="s")
    assert outcome.code == 0
    assert "it belongs to another run, r" in outcome.err
    assert steps(outcome) == [1, 2, 3, 4, 5, 6]
    assert names(killed) == ["step-00000002", "step-00000004"] or names(killed) == []
    assert steps(killed.run()) == [1, 2, 3, 4, 5, 6]


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    ("strategy", "options", "expected"),
    [
        ("no", (), []),
        ("epoch", (), ["step-00000004", "step-00000006"]),
        ("steps", ("--checkpoint_every_steps", "3", "--checkpoint_keep", "1"), ["step-00000006"]),
        ("epoch", ("--checkpoint_every_steps", "0"), []),
    ],
)
def test_what_stays(command: Command, strategy: str, options: tuple[str, ...], expected: list[str]) -> None:
    command.change("General", save_strategy=strategy).change("Training", batch_size=12, max_train_steps=None, epochs=3)
    outcome = command.run(*options)
    assert outcome.code == 0, outcome.err
    assert names(command) == expected
    assert ("checkpoint" in outcome.progress) == bool(expected)


def test_save_strategy_steps_means_every_hundred() -> None:
    saving = Saving.choose("steps", None, 2)
    assert [step for step in range(1, 301) if saving.is_due(step, ends_epoch=step % 7 == 0)] == [100, 200, 300]


def test_checkpoints_of_other_runs_stay(tmp_path: Path) -> None:
    for step in range(1, 6):
        draft = store.begin(tmp_path, step)
        identity = IDENTITY.model_copy(update={"run": "other" if step == 2 else "r"})
        files = (write_described(draft / "state.json", [b"{}"]),)
        store.complete(draft, Marker(identity=identity, step=step, total_steps=9, trainer_version="1", files=files))
    (tmp_path / "step-00000003" / "complete.json").unlink()
    (tmp_path / "mine").mkdir()
    store.prune(tmp_path, "r", keep=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "step-00000002", "step-00000005"]
    assert [marker.step for _, marker in store.candidates(tmp_path, IDENTITY)] == [5]


def test_new_checkpoint_stays_beside_later_steps_that_the_run_could_not_go_on_from(killed: Command) -> None:
    def fall(record: dict[str, Any]) -> None:
        if record["step"] == 2:
            raise RuntimeError("the roof fell in")

    assert names(killed) == ["step-00000002", "step-00000004"]
    killed.change("Training", learning_rate=0.001)
    with pytest.raises(RuntimeError, match="roof"):
        killed.train(fall, "r", every_steps=1)
    assert steps(run(killed)) == [2, 3, 4, 5, 6]


@pytest.fixture
def small_volume(command: Command) -> Iterator[Path]:
    """An output folder on a volume of 2 MB."""
    if os.geteuid() != 0:
        pytest.skip("only root may mount")
    command.output.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", command.output], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"cannot mount: {mounted.stderr.strip()}")
    try:
        yield command.output
    finally:
        subprocess.run(["umount", "--lazy", command.output], check=True)


@pytest.mark.parametrize("file", ["tensors", "rest"])
def test_full_volume_leaves_the_last_checkpoint(command: Command, small_volume: Path, file: str) -> None:
    filler = small_volume / "filler"

    def fill() -> None:
        tensors = small_volume / "checkpoints" / "step-00000002" / "rank-00000.safetensors"
        page = os.statvfs(small_volume).f_bsize
        room = -(-tensors.stat().st_size // page) * page if file == "rest" else 0
        filler.write_bytes(bytes(shutil.disk_usage(small_volume).free - room))
        assert shutil.disk_usage(small_volume).free == room

    with pytest.raises(errors.OutputVolumeFull, match="no space left on the output volume"):
        command.train(at_step(4, fill), "r", every_steps=2)
    assert names(command) == ["step-00000002"]
    filler.unlink()
    resumed = run(command)
    assert resumed.code == 0, resumed.err
    assert steps(resumed) == [3, 4]


def test_volume_that_fills_up_with_checkpoints(command: Command, small_volume: Path) -> None:
    command.change("Training", max_train_steps=200)
    outcome = command.run("--run_name", "r", "--checkpoint_every_steps", "1", "--checkpoint_keep", "200")
    assert outcome.code == 7, outcome.out
    assert outcome.err.endswith("no space left on the output volume\n")
    newest = store.folder_name(len(names(command)))
    assert names(command)[-1] == newest
    read_marker(command.output / "checkpoints" / newest)


@pytest.mark.slow
def test_interrupted_export_is_completed_by_the_next_start(command: Command) -> None:
    from transformers import AutoModelForCausalLM, LlamaConfig

    # 50 MB take long enough to be written for the kill to come in between.
    sizes = SIZES["llama"] | {"hidden_size": 256, "intermediate_size": 8192}
    model = AutoModelForCausalLM.from_config(LlamaConfig(vocab_size=VOCABULARY, **sizes))
    shutil.copytree(command.config["General"]["base_model"], command.folder / "wide")
    model.save_pretrained(command.folder / "wide")
    command.change("General", base_model=str(command.folder / "wide"), lora_config=None)
    command.change("Training", optimizer="SGD")
    started = Apart(command, "--run_name", "r", "--checkpoint_every_steps", "4")
    started.watch(lambda: any(command.output.glob(".export-*.tmp")))
    started.process.kill()
    assert started.end()[0] == -signal.SIGKILL
    assert not (command.output / "manifest.json").exists()
    outcome = run(command, "--attempt", "2")
    assert outcome.code == 0, outcome.err
    assert steps(outcome) == []
    assert "resuming from checkpoint" in outcome.err
    assert not list(command.output.glob(".export*"))
    assert not (command.output / "checkpoints").exists()
    result = manifest.find_result(command.output, "r")
    assert result is not None
    assert outcome.progress["output"]["manifestSha256"] == result.manifest_sha256


@pytest.mark.slow
def test_finished_run_is_left_alone_by_the_next_start(command: Command) -> None:
    assert run(command).code == 0

    def files() -> dict[Path, tuple[int, int]]:
        found = ((path, path.stat()) for path in command.output.rglob("*"))
        return {path: (about.st_mtime_ns, about.st_ino) for path, about in found if path.is_file()}

    before = files()
    again = command.run_apart("--run_name", "r", "--attempt", "2", PYTHONPROFILEIMPORTTIME="1")
    assert (again.code, again.out) == (0, f"finished in an earlier attempt: {command.output}\n")
    imported = {line.rpartition("|")[2].strip() for line in again.err.splitlines()}
    assert "finetune_trainer.output.manifest" in imported
    assert not imported & {"torch", "ray", "transformers"}
    after, logs = files(), command.output / "logs"
    assert after.keys() - before.keys() == {logs / "attempt-2" / "driver.log"}
    assert {path for path, about in before.items() if after[path] != about} == {logs / "progress.json"}
