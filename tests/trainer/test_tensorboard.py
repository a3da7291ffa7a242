"""General.report_to: tensorboard, read back from the event files."""

from __future__ import annotations

import json
import struct
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.trainer import Command

TAGS = {
    "train/loss": "loss",
    "train/grad_norm": "gradNorm",
    "train/learning_rate": "learningRate",
    "train/tokens_per_second": "tokensPerSecond",
    "train/memory_bytes": "memoryBytes",
    "eval/loss": "evalLoss",
    "eval/perplexity": "perplexity",
}


pytestmark = pytest.mark.sampled(4)


def events(output: Path) -> Iterator[Any]:
    """All events of a run, in the order in which they were written."""
    from tensorboardX.proto.event_pb2 import Event

    for path in sorted((output / "logs" / "tensorboard").iterdir()):
        data = path.read_bytes()
        while data:
            (size,) = struct.unpack("<Q", data[:8])
            yield Event.FromString(data[12 : 12 + size])
            data = data[12 + size + 4 :]


def curves(output: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard shows: a start at a step makes it forget that step and those after it."""
    found: dict[str, list[tuple[int, float]]] = {}
    for event in events(output):
        if event.session_log.status == event.session_log.START:
            found = {tag: [point for point in points if point[0] < event.step] for tag, points in found.items()}
        for value in event.summary.value:
            found.setdefault(value.tag, []).append((event.step, value.simple_value))
    return found


def recorded(output: Path) -> dict[str, list[tuple[int, float]]]:
    """The same, from metrics.jsonl; numbers are single precision as in the event files."""
    records = [json.loads(line) for line in (output / "logs" / "metrics.jsonl").read_text().splitlines()]
    found = {
        tag: [
            (record["step"], struct.unpack("f", struct.pack("f", record[key]))[0])
            for record in records
            if record.get(key) is not None
        ]
        for tag, key in TAGS.items()
    }
    return {tag: points for tag, points in found.items() if points}


def test_event_files_hold_the_curves_of_the_metrics(command: Command) -> None:
    command.change("General", report_to="tensorboard").change("Dataset", validation_split_percentage=10)
    command.change("Training", max_train_steps=6, logging_steps=2)
    outcome = command.run()
    assert outcome.code == 0, outcome.err
    assert "report_to" not in outcome.err
    assert [step for step, _ in curves(outcome.output)["train/loss"]] == [1, 2, 4, 6]
    assert [step for step, _ in curves(outcome.output)["eval/loss"]] == [6]
    assert curves(outcome.output) == recorded(outcome.output)
    again = command.change("Training", max_train_steps=3).run()
    assert curves(again.output) == recorded(again.output)
    assert [step for step, _ in curves(again.output)["train/loss"]] == [1, 2, 3]


def test_run_that_goes_on_has_each_point_once(command: Command) -> None:
    command.change("General", report_to="tensorboard")

    def end(record: dict[str, Any]) -> None:
        if record["step"] == 4:
            raise RuntimeError("the process is gone")

    with pytest.raises(RuntimeError, match="the process is gone"):
        command.train(end, "r", every_steps=2)
    assert [step for step, _ in curves(command.output)["train/loss"]] == [1, 2, 3, 4]
    resumed = command.run("--run_name", "r", "--checkpoint_every_steps", "2")
    assert "resumed after step 2" in resumed.out
    assert curves(resumed.output) == recorded(resumed.output)
    assert [step for step, _ in curves(resumed.output)["train/loss"]] == [1, 2, 3, 4]


def test_nothing_is_written_unless_asked_for(command: Command) -> None:
    assert not (command.run().output / "logs" / "tensorboard").exists()
