"""Write TensorBoard's event files, with the same records as metrics.jsonl."""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from pathlib import Path

FOLDER = "tensorboard"
"""Below ``<output_dir>/logs``."""

TAGS = {
    "loss": "train/loss",
    "gradNorm": "train/grad_norm",
    "learningRate": "train/learning_rate",
    "tokensPerSecond": "train/tokens_per_second",
    "memoryBytes": "train/memory_bytes",
    "evalLoss": "eval/loss",
    "perplexity": "eval/perplexity",
}
"""Key of a record → name of the curve."""


@dataclass
class TensorBoardWriter:
    """Writes an event file and flushes each record. Only rank 0 has one."""

    # SummaryWriter is not used: a kill loses its queue, and its thread hides errors of the volume.
    _file: Any

    @classmethod
    def begin(cls, logs: Path, step: int) -> Self:
        """Start at the first step, or continue after the given one: TensorBoard then ignores earlier records of later steps.

        Raises:
            OSError: the folder cannot be written.
        """
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        folder = logs / FOLDER
        if not step and folder.exists():
            shutil.rmtree(folder)
        folder.mkdir(exist_ok=True)
        # The name must be unique even within a second; TensorBoard reads the files in the order of their names.
        file = EventsWriter(str(folder / "events"), f".{time.time_ns()}")
        if step:
            file.write_event(Event(wall_time=time.time(), step=step + 1, session_log=SessionLog(status=SessionLog.START)))
        return cls(file)

    def add(self, record: dict[str, Any]) -> None:
        """Write the numbers of a record.

        Raises:
            OSError: the volume is full.
        """
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.proto.summary_pb2 import Summary

        found = [(tag, record[key]) for key, tag in TAGS.items() if record.get(key) is not None]
        values = [Summary.Value(tag=tag, simple_value=value) for tag, value in found]
        self._file.write_event(Event(wall_time=time.time(), step=record["step"], summary=Summary(value=values)))
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()
