"""The command line: ``finetune``, and ``kubectl finetune`` by the name kubectl-finetune."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from finetune_client import cluster, convert, local, validate
from finetune_trainer.errors import USAGE_EXIT_CODE, ConfigError


class Parser(argparse.ArgumentParser):
    """An argument parser that exits with code 1 on an error: 2 is for errors in a file."""

    def error(self, message: str) -> NoReturn:
        """Print the usage and the message, and exit."""
        self.print_usage(sys.stderr)
        self.exit(USAGE_EXIT_CODE, f"{self.prog}: error: {message}\n")


def parser() -> Parser:
    """The command line's grammar."""
    parser = Parser(prog="finetune", description="Work with FinetuneJobs.")
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
    run.set_defaults(run=lambda options: local.run(options.filename, dict(options.claim), options.claims_dir))
    check = commands.add_parser("validate", help="check FinetuneJob manifests as the API server would, without a cluster")
    validate.add_arguments(check)
    check.set_defaults(run=validate.run)
    change = commands.add_parser("convert", help="make a FinetuneJob manifest of a finetuning YAML of llm-on-ray")
    convert.add_arguments(change)
    change.set_defaults(run=convert.run)
    cluster.add_commands(commands)
    return parser


def _claim(text: str) -> tuple[str, Path]:
    name, separator, folder = text.partition("=")
    if not (name and separator and folder):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=DIR")
    return name, Path(folder).expanduser()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code: 0 done, 1 failed, refused or wrong usage, 2 an invalid file."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments:
        parser().print_help(sys.stderr)
        return USAGE_EXIT_CODE
    options = parser().parse_args(arguments)
    try:
        code: int = options.run(options)
    except ConfigError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    except cluster.ClusterError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    return code


if __name__ == "__main__":
    sys.exit(main())
