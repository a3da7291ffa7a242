"""Show how far the tokenising is."""

from __future__ import annotations

import logging
import shutil
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from finetune_trainer.data.tokenize_options import TokenizeOptions

log = logging.getLogger(__name__)


BAR = "{desc}: {percentage:3.0f}%|{bar}| {postfix}"


@contextmanager
def progress_meter(name: str, size: int, options: TokenizeOptions) -> Iterator[Callable[[int, int], None]]:
    """Show how far the tokenising is: by a bar on a terminal, otherwise by a line from time to time.

    Yields a function that takes the bytes done since its last call and the number of rows done so far.
    """
    if sys.stdout.isatty():
        from tqdm import tqdm

        columns, lines = shutil.get_terminal_size()
        bar = tqdm(
            desc=f"tokenising {name}",
            total=size,
            file=sys.stdout,
            delay=options.quiet_seconds,
            ncols=columns,
            nrows=lines,
            bar_format=BAR,
            leave=False,
        )

        def draw(amount: int, count: int) -> None:
            bar.set_postfix_str(f"{count} rows", refresh=False)
            bar.update(amount)

        with bar:
            yield draw
        return
    start = time.monotonic()
    done, due = 0, start + options.quiet_seconds

    def log_line(amount: int, count: int) -> None:
        nonlocal done, due
        done, now = done + amount, time.monotonic()
        if now >= due:
            due = now + options.line_seconds
            log.info("tokenising %s: %d %%, %d rows, %.0f rows/s", name, 100 * done // size, count, count / (now - start))

    yield log_line
