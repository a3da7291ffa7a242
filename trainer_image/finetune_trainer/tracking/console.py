"""Show the progress to the user: by a bar on a terminal, otherwise by a line for each logging step.

It reads the files that rank 0 writes, so it is the same whether the workers are in this process or in a cluster.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import sys
import time
from contextlib import suppress
from itertools import takewhile
from typing import TYPE_CHECKING, Any, TextIO

from finetune_trainer.tracking.metrics import METRICS_FILE
from finetune_trainer.tracking.poller import Poller
from finetune_trainer.tracking.progress import PROGRESS_FILE, Progress, read_progress

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

    from finetune_trainer.config.run import Run

POLL_SECONDS = 0.2
"""Seconds between two looks at the files."""

BEGAN = time.monotonic()
"""When this module was imported, which is nearly when the command began."""

BAR = "{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} steps{postfix}"
"""The format has no rate and remaining time of tqdm, which would count from the first look at the file."""


def say(text: str) -> None:
    """Print lines for the user."""
    print(text, flush=True)  # noqa: T201 - this module is the one that prints


def complain(text: str) -> None:
    """Print lines about a problem."""
    print(text, file=sys.stderr, flush=True)  # noqa: T201


def stage(text: str) -> None:
    """Print that a stage begins, with the seconds since the command began."""
    complain(_stage_line(text))


def _stage_line(text: str) -> str:
    return f"[{time.monotonic() - BEGAN:3.0f} s] {text}"


def set_up_logging() -> None:
    """Show our own log lines only."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    own = logging.getLogger("finetune_trainer")
    own.handlers = [handler]
    own.setLevel(logging.INFO)
    own.propagate = False


def line_of(record: dict[str, Any]) -> str:
    """A record as a line: `step 10/40 (25 %) epoch 0.5 loss 2.31 lr 1.0e-05 202 tok/s eta 1m20s`."""
    if "event" in record:
        return f"{record['event']} after step {record['step']}, attempt {record['attempt']}"
    if "evalLoss" in record:
        perplexity = f" perplexity {record['perplexity']:.4g}" if record["perplexity"] is not None else ""
        return f"epoch {record['epoch']:.3g} evaluation loss {record['evalLoss']:.4g}{perplexity}"
    step, total = record["step"], record["totalSteps"]
    return (
        f"step {step}/{total} ({100 * step // total} %) epoch {record['epoch']:.3g} loss {record['loss']:.4g} "
        f"lr {record['learningRate']:.1e} {record['tokensPerSecond']:.0f} tok/s eta {duration(record['etaSeconds'])}"
    )


def duration(seconds: int) -> str:
    """Seconds in the form `1m20s`."""
    minutes, rest = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h{minutes:02}m"
    return f"{minutes}m{rest:02}s" if minutes else f"{rest}s"


class Console(Poller):
    """A thread of the driver that shows how the run progresses."""

    def __init__(self, run: Run, stream: TextIO | None = None) -> None:
        super().__init__("console", POLL_SECONDS)
        self._metrics = run.logs / METRICS_FILE
        self._progress = run.logs / PROGRESS_FILE
        self._stream = stream or sys.stdout
        self._seen: list[bytes] = []
        """Lines of the metrics that were shown, by this attempt or an earlier one."""
        self._inode = self._offset = 0
        with suppress(OSError):
            list(self._new_lines())
        self._bar: Any = None
        self._stages: tuple[str, ...] = ()
        """Stages of the workers that were printed."""

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        super().__exit__(kind, error, traceback)
        if self._bar is not None:
            self._bar.close()

    def poll(self) -> None:
        """Show what is new: a bar on a terminal, otherwise lines; and the stages."""
        progress: Progress | None = None
        with suppress(OSError, ValueError):
            progress = read_progress(self._progress)
        if self._stream.isatty():
            self._draw_bar(progress)
        else:
            self._print_lines()
        self._print_stages(() if progress is None else progress.stages)

    def _print_stages(self, stages: tuple[str, ...]) -> None:
        # Restarted workers begin again with the first stage.
        shown = len(self._stages) if stages[: len(self._stages)] == self._stages else 0
        for text in stages[shown:]:
            if self._bar is None:
                stage(text)
            else:
                self._bar.write(_stage_line(text), file=sys.stderr)
        self._stages = stages

    def _print_lines(self) -> None:
        with suppress(OSError):
            for line in self._new_lines():
                print(line_of(json.loads(line)), file=self._stream, flush=True)

    def _new_lines(self) -> Iterator[bytes]:
        with self._metrics.open("rb") as file:
            inode = os.fstat(file.fileno()).st_ino
            if inode != self._inode:
                # The file was replaced: a restart has removed the records of steps after its checkpoint.
                kept = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(self._seen, file, strict=False)))
                self._inode, self._seen = inode, self._seen[:kept]
                self._offset = sum(map(len, self._seen))
            file.seek(self._offset)
            for line in file:
                if not line.endswith(b"\n"):
                    return
                self._seen.append(line)
                self._offset += len(line)
                yield line

    def _draw_bar(self, progress: Progress | None) -> None:
        if progress is None or not progress.total_steps:
            return
        if self._bar is None:
            from tqdm import tqdm

            # tqdm itself would draw nothing on a terminal that reports no size
            columns, lines = shutil.get_terminal_size()
            self._bar = tqdm(total=progress.total_steps, file=self._stream, ncols=columns, nrows=lines, bar_format=BAR)
        self._bar.n = progress.step
        if progress.loss is not None and progress.tokens_per_second is not None:
            eta = duration(progress.eta_seconds or 0)
            evaluation = f"evaluation {progress.eval_loss:.4g}, " if progress.eval_loss is not None else ""
            self._bar.set_postfix_str(f"loss {progress.loss:.4g}, {evaluation}{progress.tokens_per_second:.0f} tok/s, eta {eta}")
        self._bar.refresh()
