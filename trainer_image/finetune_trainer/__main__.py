"""The command `llm_on_ray-finetune`: check everything that can be checked without torch, then launch the run."""

from __future__ import annotations

import argparse
import os
import sys
from contextlib import nullcontext
from typing import TYPE_CHECKING

from finetune_trainer.command.execute import execute
from finetune_trainer.command.options import make_run, parser
from finetune_trainer.command.outcome import (
    record_failure,
)
from finetune_trainer.config.run import LOGS, addresses_cluster
from finetune_trainer.config.yaml_file import DIGEST_VARIABLE, load_config
from finetune_trainer.errors import USAGE_EXIT_CODE, ConfigError
from finetune_trainer.tracking import console, logbook
from finetune_trainer.tracking.mirror import Mirror

if TYPE_CHECKING:
    from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments:
        parser().print_help(sys.stderr)
        return USAGE_EXIT_CODE
    options = parser().parse_args(arguments)
    console.set_up_logging()
    try:
        loaded = load_config(options.config_file, strict=options.strict, digest=os.environ.get(DIGEST_VARIABLE))
    except ConfigError as error:
        return _report_config_error(options, error)
    run = make_run(options, loaded.config)
    with logbook.keep(run.logs, run.attempt, "driver"):
        for warning in loaded.warnings:
            console.complain(f"warning: {warning}")
        return execute(run)


def _report_config_error(options: argparse.Namespace, error: ConfigError) -> int:
    """Say what is wrong with the configuration, in the output folder too if the command line names it."""
    if options.output_dir is None:
        console.complain(str(error))
        return error.exit_code
    logs = options.output_dir / LOGS
    with Mirror(logs) if addresses_cluster() else nullcontext(), logbook.keep(logs, options.attempt, "driver"):
        console.complain(str(error))
        record_failure(logs, options.attempt, error)
    return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
