"""``finetune logs``: the output of a job's driver, or of one of its ranks."""

from __future__ import annotations

import argparse
import sys

from finetune_client.commands.common import Waiting, client_of, note


def run(options: argparse.Namespace) -> int:
    """Print the log; with --follow until the attempt has ended.

    Raises:
        ClientError: there is no such job or log, or the cluster refuses or does not answer.
    """
    client = client_of(options)
    last = ""
    chosen = {name: getattr(options, name) for name in ("attempt", "rank", "follow", "image")}
    try:
        for text in client.logs(options.job, **chosen, waiting=Waiting(), say=note):
            sys.stdout.write(text)
            sys.stdout.flush()
            last = text or last
    except KeyboardInterrupt:
        note(f"\nfinetunejob/{options.job} goes on; `finetune cancel {options.job}` ends it.")
        raise
    if last and not last.endswith("\n"):
        sys.stdout.write("\n")
    return 0
