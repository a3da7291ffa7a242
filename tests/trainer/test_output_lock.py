"""Two runs never write into one output folder; a newer attempt takes it from an older one."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import threading
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.support.moments import just_before
from tests.support.trainer import Apart

from finetune_trainer.checkpoint import store
from finetune_trainer.config.run import Run
from finetune_trainer.config.schema import TrainerConfig
from finetune_trainer.data import sources, tokenize
from finetune_trainer.data.copies import COPIES
from finetune_trainer.data.tokenize_options import TokenizeOptions
from finetune_trainer.errors import OutputInUse
from finetune_trainer.output import export, manifest
from finetune_trainer.runtime import lock, stop
from finetune_trainer.tracking.holder import LOCK_FILE, check_still_held, read_holder
from finetune_trainer.tracking.progress import PROGRESS_FILE
from finetune_trainer.training.cleanup import clean_up

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.support.trainer import Command

pytestmark = pytest.mark.sampled(8)


def claim(folder: Path, name: str | None = None, attempt: int = 1) -> lock.Claim:
    return lock.Claim(folder, name, attempt)


def run_of(command: Command, held: lock.Held, attempt: int) -> Run:
    config = TrainerConfig.model_validate(command.config)
    return Run(config=config, output_dir=command.output, run_name="r", attempt=attempt, lock=held.token)


def change(folder: Path, **values: Any) -> None:
    """Change the lock in a folder, as if somebody else had written it."""
    path = folder / "logs" / LOCK_FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.fixture
def elsewhere(tmp_path: Path) -> Iterator[Path]:
    """A folder whose holder is a process of another host, which has the number of this one and a clock that is wrong."""
    with lock.hold(claim(tmp_path)):
        text = (tmp_path / "logs" / LOCK_FILE).read_text()
    (tmp_path / "logs" / LOCK_FILE).write_text(text)
    change(tmp_path, machine="another machine", host="pod-7", ended=False)
    os.utime(tmp_path / "logs" / LOCK_FILE, (4e9, 4e9))
    return tmp_path


def test_holder_of_another_host_is_dead_when_its_file_stands_still(elsewhere: Path) -> None:
    with lock.hold(claim(elsewhere), dead_after=0.3) as held:
        holder = read_holder(elsewhere / "logs")
        assert holder is not None
        assert (holder.token, holder.process) == (held.token, os.getpid())


def test_holder_of_another_host_lives_when_its_file_changes(elsewhere: Path) -> None:
    path, done = elsewhere / "logs" / LOCK_FILE, threading.Event()

    def beat() -> None:
        time = 1_000_000_000  # long ago, and it stays so
        while not done.wait(0.01):
            time += 1
            os.utime(path, (time, time))

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        with pytest.raises(OutputInUse, match=r"another run \(process \d+ on host pod-7, since .*\) is at work"):
            lock.hold(claim(elsewhere), dead_after=60).__enter__()
    finally:
        done.set()
        thread.join()


def test_start_knows_its_own_lock_when_the_network_volume_says_that_another_made_it(tmp_path: Path) -> None:
    """The answer of an NFS server was lost, and the request that is sent again finds what the first one has made."""

    def make_first(source: str, target: str, *_: int) -> None:
        shutil.copy(source, target)

    with just_before("os.link", make_first), lock.hold(claim(tmp_path)) as held:
        holder = read_holder(tmp_path / "logs")
        assert holder is not None
        assert holder.token == held.token


@pytest.mark.sampled(3)
@pytest.mark.parametrize("text", [b"", b"{", b"\xff"])
def test_lock_that_cannot_be_read_keeps_nobody_out_for_ever(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / LOCK_FILE).write_bytes(text)
    with lock.hold(claim(tmp_path), dead_after=0.2):
        assert read_holder(tmp_path / "logs") is not None


def test_dead_process_of_this_machine_keeps_nothing(tmp_path: Path) -> None:
    with lock.hold(claim(tmp_path)):
        change(tmp_path, processStart="another process had this number before")
        with lock.hold(claim(tmp_path)) as held:
            holder = read_holder(tmp_path / "logs")
            assert holder is not None
            assert holder.token == held.token


def test_living_process_of_this_machine_keeps_the_folder(tmp_path: Path) -> None:
    with lock.hold(claim(tmp_path)):
        with pytest.raises(OutputInUse, match="is at work in this output folder"):
            lock.hold(claim(tmp_path)).__enter__()
        with pytest.raises(OutputInUse, match="is at work"):
            lock.hold(claim(tmp_path, "other", 2)).__enter__()


@pytest.mark.slow
def test_holder_is_watched_where_the_system_does_not_tell_when_a_process_began(tmp_path: Path) -> None:
    def hide(path: object, *_: object) -> None:
        if str(path) == f"/proc/{os.getpid()}/stat":
            raise PermissionError(path)

    with lock.hold(claim(tmp_path)), just_before("open", hide), pytest.raises(OutputInUse, match="is at work"):
        lock.hold(claim(tmp_path)).__enter__()


def test_heartbeat_leaves_the_lock_of_its_successor_alone(tmp_path: Path) -> None:
    with ExitStack() as older, lock.hold(claim(tmp_path, "r", 2)) as newer:
        older.enter_context(lock.hold(claim(tmp_path, "r", 3)))
        older.close()
        change(tmp_path, token=newer.token)
    holder = read_holder(tmp_path / "logs")
    assert holder is not None
    assert (holder.attempt, holder.ended) == (3, True)


def test_newer_attempt_takes_the_folder_and_an_older_one_writes_nothing_more(command: Command) -> None:
    with lock.hold(claim(command.output, "r", 1)) as first:
        older = run_of(command, first, 1)
        check_still_held(older)
        with lock.hold(claim(command.output, "r", 2)) as second:
            check_still_held(run_of(command, second, 2))
            with pytest.raises(OutputInUse, match=r"attempt 2 at run r .* has taken it: attempt 1 ends, and writes nothing more"):
                check_still_held(older)
            with pytest.raises(OutputInUse, match="attempt 1 is older, and does not start"):
                lock.hold(claim(command.output, "r", 1)).__enter__()
    with pytest.raises(OutputInUse, match="attempt 1 is older"):  # also after the newer one has ended
        lock.hold(claim(command.output, "r", 1)).__enter__()
    (command.output / "logs" / LOCK_FILE).unlink()
    with pytest.raises(OutputInUse, match="its lock was deleted"):
        check_still_held(dataclasses.replace(older))


def tokenise(run: Run, tokenizer: Any) -> None:
    tokenize.tokenize_files(run, tokenizer, TokenizeOptions())


def copy(run: Run, tokenizer: Any) -> None:
    table = run.config.model_copy(update={"dataset": run.config.dataset.model_copy(update={"train_file": "data.csv"})})
    sources.find_sources(dataclasses.replace(run, config=table))


def declare(run: Run, tokenizer: Any) -> None:
    manifest.write_manifest(run, [], manifest.Manifest(format="full-model", base_model="m"))


def tidy(run: Run, tokenizer: Any) -> None:
    clean_up(run)


def begin_export(run: Run, tokenizer: Any) -> None:
    nothing: Any = None
    export.export(run, nothing, nothing)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("write", [tokenise, copy, declare, tidy, begin_export])
def test_older_attempt_that_was_long_at_work_leaves_what_the_newer_one_makes(
    command: Command, tokenizer: Any, write: Callable[[Run, Any], None]
) -> None:
    (command.folder / "data.csv").write_text("instruction,response\nName a colour.,Blue.\n")
    with lock.hold(claim(command.output, "r", 1)) as first, lock.hold(claim(command.output, "r", 2)):
        older = dataclasses.replace(run_of(command, first, 1), dataset_dir=command.folder)
        for made in (older.tokens / ".draft.tmp", older.tokens / COPIES / "other", older.checkpoints / "step-00000001"):
            made.mkdir(parents=True)
        store.begin(older.checkpoints, 2)
        manifest.begin_export(older)
        before = set(command.output.rglob("*"))
        with pytest.raises(OutputInUse, match="attempt 2 at run r"):
            write(older, tokenizer)
        assert set(command.output.rglob("*")) == before


def test_attempt_whose_folder_is_taken_at_its_end_does_not_say_that_it_finished(command: Command) -> None:
    with ExitStack() as newer:

        def take(source: str, target: str, *_: int) -> None:
            if Path(target).name == PROGRESS_FILE and '"finished"' in Path(source).read_text():
                newer.enter_context(lock.hold(claim(command.output, "r", 2)))

        with just_before("os.rename", take):
            outcome = command.run("--run_name", "r")
    assert outcome.code == 7
    assert "attempt 2 at run r" in outcome.err
    assert "finished" not in outcome.out


def test_signal_to_an_older_attempt_does_not_stop_the_newer_one(command: Command) -> None:
    logs = command.output / "logs"
    with lock.hold(claim(command.output, "r", 1)) as first, lock.hold(claim(command.output, "r", 2)):
        older = run_of(command, first, 1)
        with pytest.raises(OutputInUse), stop.on_signal(logs, lambda: check_still_held(older)):
            os.kill(os.getpid(), signal.SIGTERM)
    assert not stop.requested(logs)


def test_mistake_in_the_configuration_is_not_recorded_in_the_folder_of_a_living_run(command: Command) -> None:
    with lock.hold(claim(command.output)):
        outcome = command.change("Training", batch_size="many").run("--output_dir", str(command.output))
    assert outcome.code == 2
    assert "Training.batch_size" in outcome.err
    assert not (command.output / "logs" / "progress.json").exists()


def test_older_attempt_leaves_the_result_of_a_newer_one_as_it_is(command: Command) -> None:
    assert command.run("--run_name", "r", "--attempt", "2").code == 0
    before = {path: path.read_bytes() for path in command.output.rglob("*") if path.is_file()}
    late = command.run("--run_name", "r", "--attempt", "1")
    assert late.code == 7
    assert "attempt 2 at run r has finished; attempt 1 is older" in late.err
    after = {path: path.read_bytes() for path in command.output.rglob("*") if path.is_file() and "attempt-1" not in path.parts}
    assert after == before


@pytest.mark.slow
def test_second_run_in_a_folder_is_refused_and_the_first_one_goes_on(command: Command) -> None:
    command.change("Training", max_train_steps=3000)
    first = Apart(command)
    first.wait_for(2)
    second = command.run()
    assert second.code == 7
    assert f"process {first.process.pid} on host" in second.err
    assert "is at work in this output folder" in second.err
    assert second.progress["state"] == "training"
    reached = first.progress()["step"]
    first.wait_for(reached + 2)
    first.process.terminate()
    assert first.end()[0] == 75


@pytest.mark.slow
def test_older_attempt_that_trains_ends_when_a_newer_one_starts(command: Command) -> None:
    command.change("Training", max_train_steps=3000, logging_steps=1)
    older = Apart(command, "--run_name", "r", "--checkpoint_every_steps", "5")
    older.wait_for(12)
    newer = Apart(command, "--run_name", "r", "--attempt", "2", "--checkpoint_every_steps", "5")
    code, out, err = older.end()
    assert code == 7, err
    assert "attempt 2 at run r" in err
    assert "has taken it: attempt 1 ends, and writes nothing more there" in err
    assert "finished" not in out
    newer.watch(lambda: newer.progress().get("state") == "training" and newer.progress()["step"] > 20)
    assert newer.progress()["attempt"] == 2
    newer.process.terminate()
    code, out, err = newer.end()
    assert code == 75, err
    assert "resumed after step" in out
