"""``finetune logs``: the output of a job's driver."""

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
    try:
        for text in client.logs(options.job, attempt=options.attempt, follow=options.follow, waiting=Waiting()):
            sys.stdout.write(text)
            sys.stdout.flush()
            last = text or last
    except KeyboardInterrupt:
        note(f"\nfinetunejob/{options.job} goes on; `finetune cancel {options.job}` ends it.")
        raise
    if last and not last.endswith("\n"):
        sys.stdout.write("\n")
    return 0
