"""``finetune upload`` and ``download``: files to a claim, and the result of a job from its claim."""

from __future__ import annotations

import argparse
import sys

from finetune_client.commands.common import bar, client_of, note, say, size
from finetune_client.errors import ClientError
from finetune_client.transfer.copies import Progress


def upload(options: argparse.Namespace) -> int:
    """Copy files to a claim.

    Raises:
        ClientError: a file or the claim is not there, or it cannot be copied.
    """
    claim, _, path = options.target.partition(":")
    if not claim or not options.files:
        raise ClientError("the last argument is CLAIM:PATH, the files come before it", "as: finetune upload rows.jsonl data:")
    progress = Bar()
    client = client_of(options)
    sent = client.upload(options.files, claim, path, image=options.image, create=options.create, progress=progress, say=note)
    progress.end()
    for name in sent:
        say(f"{claim}:{name}")
    return 0


def download(options: argparse.Namespace) -> int:
    """Copy a job's result into a folder.

    Raises:
        ClientError: there is no complete result, or it cannot be copied.
    """
    progress = Bar()
    target = client_of(options).download(options.job, options.folder, image=options.image, progress=progress, say=note)
    progress.end()
    say(f"The result of finetunejob/{options.job} is in {target}; its files are those of its manifest.")
    return 0


class Bar:
    """Draws the progress of a copy on a terminal's standard error; elsewhere it is silent."""

    def __init__(self) -> None:
        self._shown = ""

    def __call__(self, progress: Progress) -> None:
        """Draw it, if it has changed."""
        percent = 100 * progress.done / progress.total if progress.total else 100.0
        words = f"{bar(percent)} {percent:3.0f}% of {size(progress.total)}  {progress.file[:40]}"
        if words != self._shown and sys.stderr.isatty():
            self._shown = words
            sys.stderr.write(f"\r\x1b[2K{words}")
            sys.stderr.flush()

    def end(self) -> None:
        """Begin a new line below it."""
        if self._shown:
            note("")
