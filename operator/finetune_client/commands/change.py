"""``finetune suspend``, ``resume``, ``cancel`` and ``retry``: change a job, or make the next one."""

from __future__ import annotations

import argparse

from finetune_client.commands.common import client_of, say


def suspend(options: argparse.Namespace) -> int:
    """Have a job give its pods back."""
    say(f"{client_of(options).suspend(options.job)} will be suspended")
    return 0


def resume(options: argparse.Namespace) -> int:
    """Let a suspended job go on."""
    say(f"{client_of(options).resume(options.job)} will resume")
    return 0


def cancel(options: argparse.Namespace) -> int:
    """End a job for good."""
    say(f"{client_of(options).cancel(options.job)} will be cancelled")
    return 0


def retry(options: argparse.Namespace) -> int:
    """Make the next job."""
    say(f"{client_of(options).retry(options.job)} created; it takes up {options.job}")
    return 0
