"""The command line: ``finetune``, and ``kubectl finetune`` by the name kubectl-finetune."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Sequence
from contextlib import suppress

from finetune_client import grammar
from finetune_client.errors import ClientError, NotInTimeError, one_line
from finetune_trainer.errors import ConfigError, TrainerError

INVALID_FILE, NOT_IN_TIME, INTERRUPTED, NOBODY_READS = 2, 124, 130, 141
"""Exit codes, as `timeout`, and a shell of processes that end at SIGINT and SIGPIPE, have them."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code. Nothing that a user can cause ends in a traceback."""
    arguments = sys.argv[1:] if arguments is None else arguments
    _prepare_streams()
    try:
        code = _run(arguments)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return INTERRUPTED
    except (TrainerError, ClientError, OSError) as error:
        return _fail(error, verbose=bool({"-v", "--verbose"} & set(arguments)))
    return code


def _fail(error: Exception, *, verbose: bool) -> int:
    """Say on standard error what is wrong; give the exit code."""
    match error:
        case ConfigError():
            return _tell(f"{error}\n", INVALID_FILE)
        case ClientError():
            return _tell(_words(error, verbose=verbose), NOT_IN_TIME if isinstance(error, NotInTimeError) else 1)
        case BrokenPipeError():
            _drop_output()
            return NOBODY_READS
        case OSError():
            return _tell(_about_a_file(error), 1)
        case _:
            return _tell(f"error: {error}\n", 1)


def _about_a_file(error: OSError) -> str:
    """What is wrong with a file, with the folder where the user is, or with standard output."""
    if error.filename is not None:
        return f"error: {error.filename}: {error.strerror}\n"
    if isinstance(error, FileNotFoundError):
        return "error: the folder that you are in is not there any more\n  -> change to another one\n"
    _drop_output()
    return f"error: standard output cannot be written: {error.strerror or error}\n"


def _prepare_streams() -> None:
    """Replace streams that are closed, and have standard output take names of files and of others that it cannot encode."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115 - until the process ends
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def _run(arguments: Sequence[str]) -> int:
    if not arguments:
        return grammar.usage()
    options = grammar.build().parse_args(arguments)
    code: int = options.run(options)
    return code


def _words(error: ClientError, *, verbose: bool) -> str:
    """What is wrong, and what to do: a line each, and the details if they are asked for."""
    lines = [f"error: {one_line(error.message)}"]
    if error.hint:
        lines.append(f"  -> {one_line(error.hint)}")
    if error.details:
        lines += [f"   | {line}" for line in error.details.splitlines()] if verbose else ["  -v tells the details"]
    return "".join(f"{line}\n" for line in lines)


def _tell(text: str, code: int) -> int:
    with suppress(OSError, ValueError):
        sys.stdout.flush()
    with suppress(OSError, ValueError):
        sys.stderr.write(text)
        sys.stderr.flush()
    return code


def _drop_output() -> None:
    """Python flushes standard output again when it exits, and would fail again."""
    with suppress(OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)


if __name__ == "__main__":
    sys.exit(main())
