"""The command `llm_on_ray-finetune`: check everything that can be checked without torch, then launch the run."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from finetune_trainer.command.execute import execute, refuse
from finetune_trainer.command.options import make_run, parser
from finetune_trainer.config.yaml_file import DIGEST_VARIABLE, load_config
from finetune_trainer.errors import USAGE_EXIT_CODE, ConfigError
from finetune_trainer.tracking import console
from finetune_trainer.tracking.streams import unfailing

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    with unfailing():
        if not arguments:
            parser().print_help(sys.stderr)
            return USAGE_EXIT_CODE
        return _run(parser().parse_args(arguments))


def _run(options: argparse.Namespace) -> int:
    console.set_up_logging()
    try:
        loaded = load_config(options.config_file, strict=options.strict, digest=os.environ.get(DIGEST_VARIABLE))
    except ConfigError as error:
        if options.output_dir is not None:
            return refuse(options.output_dir.absolute(), options.run_name, options.attempt, error)
        console.complain(str(error))
        return error.exit_code
    return execute(make_run(options, loaded.config), loaded.warnings)


if __name__ == "__main__":
    sys.exit(main())
