"""The log on the output volume: what is in it, what is not, and that it never harms a run."""

from __future__ import annotations

import json
import re
import shutil
import signal
from typing import TYPE_CHECKING, Any

import pytest
from tests.support.trainer import Apart

from finetune_trainer.errors import MESSAGE_BYTES, in_words
from finetune_trainer.redaction import redact
from finetune_trainer.tracking import logbook

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.ray_head import RayHead
    from tests.support.trainer import Command, Outcome

SECRETS = {
    "HF_TOKEN": "a-word-that-nobody-knows",
    "HUGGING_FACE_HUB_TOKEN": "another-word",
    "RAY_AUTH_TOKEN": "0123456789abcdef",
}
TOKEN = "hf_" + "aB3" * 12


pytestmark = pytest.mark.sampled(4)


def lines(outcome: Outcome, name: str, attempt: int = 1) -> list[str]:
    """The lines of a log without their times, each of which has to have one."""
    text = (outcome.output / "logs" / f"attempt-{attempt}" / f"{name}.log").read_text()
    found = [re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} (.*)", line) for line in text.splitlines()]
    assert all(found), text
    return [match[1] for match in found if match]


def break_model(command: Command) -> None:
    """Have training fail, on all ranks, by an error of an unknown kind: a model that cannot be trained."""
    folder = command.folder / "broken"
    shutil.copytree(command.config["General"]["base_model"], folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"attention_dropout": 2.0}))
    command.change("General", base_model=str(folder))


def test_what_is_printed_is_in_the_log_of_the_attempt(command: Command) -> None:
    command.change("Training", bacth_size=3)
    outcome = command.run("--attempt", "3")
    assert outcome.code == 0, outcome.err
    printed = [*outcome.err.splitlines(), *outcome.out.splitlines()]
    assert sorted(lines(outcome, "driver", 3)) == sorted(printed)
    assert any(line.startswith("warning: ") for line in printed)
    assert [line for line in lines(outcome, "rank-0", 3) if line.startswith("CPU: ")]
    again = command.run("--attempt", "3")
    assert len(lines(again, "driver", 3)) > len(printed)


def test_configuration_that_is_refused(command: Command) -> None:
    outcome = command.change("Training", device="hpu").run("--output_dir", str(command.output))
    assert outcome.code == 2
    assert lines(outcome, "driver") == outcome.err.splitlines()


def test_unforeseen_error(command: Command) -> None:
    break_model(command)
    outcome = command.run()
    assert outcome.code == 10
    failure = outcome.progress["failure"]
    first = failure["message"].splitlines()[0]
    assert first.startswith(("ValueError: dropout", "RuntimeError: dropout"))
    assert "scaled_dot_product_attention(" in failure["message"]
    assert len(failure["message"].encode()) <= MESSAGE_BYTES
    assert outcome.err.splitlines()[-1] == f"error: {first}"
    for name in ("driver", "rank-0"):
        kept = lines(outcome, name)
        assert "Traceback (most recent call last):" in kept
        assert first in kept


def test_long_error_in_words() -> None:
    def fall(depth: int) -> None:
        if depth == 0:
            raise ValueError("ä" * 5000)
        fall(depth - 1)

    with pytest.raises(ValueError, match="ä") as error:
        fall(200)
    text = str(in_words(error.value, "rank 1: "))
    assert MESSAGE_BYTES * 0.4 < len(text.encode()) <= MESSAGE_BYTES
    assert text.startswith("rank 1: ValueError: ää")


@pytest.mark.slow
def test_secrets_are_nowhere(command: Command) -> None:
    name = "org/" + "-".join((*SECRETS.values(), TOKEN))
    outcome = command.change("General", base_model=name).run_apart(**SECRETS)
    assert outcome.code == 4
    kept = {path: path.read_text() for path in (outcome.output / "logs").rglob("*") if path.is_file()}
    assert {path.name for path in kept} == {"progress.json", "run.lock", "driver.log", "rank-0.log"}
    for text in (outcome.out, outcome.err, *kept.values()):
        assert not [secret for secret in (*SECRETS.values(), TOKEN) if secret in text]
    hidden = f"org/{'-'.join(['[redacted]'] * 4)}: cannot load the tokenizer"
    assert hidden in outcome.err
    assert outcome.progress["failure"]["message"].startswith(hidden)


def test_what_is_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "parallel")
    monkeypatch.setenv("SHORT_TOKEN", "1")
    monkeypatch.setenv("WANDB_API_KEY", "key-of-wandb")
    text = "parallel 1 hf_argparser hf_hub_download"
    assert redact(text) == text
    assert redact("key-of-wandb") == "[redacted]"


@pytest.mark.slow
def test_a_kill_loses_nothing_that_was_printed(command: Command) -> None:
    command.change("Training", max_train_steps=1000)
    started = Apart(command, "--attempt", "2")
    log = started.logs / "attempt-2" / "driver.log"
    # Not until the metrics hold steps: what is printed follows them at some distance.
    started.watch(lambda: log.exists() and log.read_text().count(" step ") >= 20)
    started.process.send_signal(signal.SIGKILL)
    code, out, _ = started.end()
    assert code == -signal.SIGKILL
    kept = [line.split(" ", 2)[2] for line in log.read_text().splitlines() if " step " in line]
    printed = out.splitlines()
    assert printed
    # The last line may have been on its way.
    assert kept[: len(printed)] == printed[: len(kept)]
    assert abs(len(kept) - len(printed)) <= 1


@pytest.mark.parametrize("trouble", ["full", "in the way"])
def test_log_that_cannot_be_written(command: Command, trouble: str) -> None:
    folder = command.output / "logs" / "attempt-1"
    if trouble == "full":
        folder.mkdir(parents=True)
        (folder / "driver.log").symlink_to("/dev/full")
        (folder / "rank-0.log").symlink_to("/dev/full")
    else:
        folder.parent.mkdir(parents=True)
        folder.touch()
    outcome = command.run()
    assert outcome.code == 0, outcome.err
    assert outcome.progress["state"] == "finished"
    assert "step 4/4" in outcome.out
    assert "Error" not in outcome.err


@pytest.mark.slow
def test_log_is_bounded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = "x" * 2**16
    with logbook.keep(tmp_path, 1, "driver"):
        for _ in range(3 * logbook.MAX_BYTES // 2**16):
            print(line)
            capsys.readouterr()
        print("bar 1\rbar 2\rbar 3")
    files = sorted((tmp_path / "attempt-1").iterdir())
    assert [path.name for path in files] == ["driver.log", "driver.log.1"]
    assert logbook.MAX_BYTES < sum(path.stat().st_size for path in files) <= 2 * logbook.MAX_BYTES
    with files[0].open("rb") as newest:
        newest.seek(-40, 2)
        assert newest.read().endswith(b" bar 3\n")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_error_of_a_worker(command: Command, ray_head: RayHead) -> None:
    command.change("Training", num_training_workers=2)
    break_model(command)
    outcome = command.run_apart("--attempt", "2", "--max_worker_failures", "0", **{**SECRETS, **ray_head.environment})
    assert outcome.code == 10
    message: Any = outcome.progress["failure"]["message"]
    first = message.splitlines()[0]
    assert re.match(r"rank [01]: (ValueError|RuntimeError): dropout", first)
    assert "scaled_dot_product_attention(" in message
    assert "/ray/" not in message
    assert len(message.encode()) <= MESSAGE_BYTES
    assert f"error: {first}" in outcome.err
    assert f"error: {first}" in lines(outcome, "driver", 2)
    rank = first[5]
    assert "Traceback (most recent call last):" in lines(outcome, f"rank-{rank}", 2)
    assert first[8:] in lines(outcome, f"rank-{rank}", 2)
