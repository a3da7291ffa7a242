"""The command line: ``finetune``, and ``kubectl finetune`` by the name kubectl-finetune."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from finetune_client import local
from finetune_trainer.errors import ConfigError


def parser() -> argparse.ArgumentParser:
    """The command line's grammar."""
    parser = argparse.ArgumentParser(prog="finetune", description="Work with FinetuneJobs.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    run = commands.add_parser("run", help="run a FinetuneJob manifest here, without Kubernetes")
    run.add_argument("-f", "--filename", required=True, metavar="FILE", help="the FinetuneJob, as for kubectl apply")
    run.add_argument("--local", action="store_true", required=True, help="on this machine; in a cluster use kubectl apply")
    run.add_argument(
        "--claim",
        action="append",
        default=[],
        metavar="NAME=DIR",
        type=_claim,
        help="the folder that stands for a PersistentVolumeClaim of the manifest; may be repeated",
    )
    run.add_argument(
        "--claims-dir",
        type=Path,
        default=Path("finetune-output"),
        metavar="DIR",
        help="folder for the claims that are not named by --claim: each is DIR/NAME (default: finetune-output)",
    )
    return parser


def _claim(text: str) -> tuple[str, Path]:
    name, separator, folder = text.partition("=")
    if not (name and separator and folder):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=DIR")
    return name, Path(folder).expanduser()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; give the exit code: 0 done, 1 the run failed or wrong usage, 2 an invalid manifest."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments:
        parser().print_help(sys.stderr)
        return 1
    options = parser().parse_args(arguments)
    try:
        return local.run(options.filename, dict(options.claim), options.claims_dir)
    except ConfigError as error:
        sys.stderr.write(f"{error}\n")
        return 2


if __name__ == "__main__":
    sys.exit(main())
