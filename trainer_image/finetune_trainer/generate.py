"""Ask a finetuned model: `python -m finetune_trainer.generate FOLDER [PROMPT]`; without a prompt, a chat on a terminal.

The prompt is that of the training, and the answer is made as for the report and the model card: by greedy decoding, with the
same code. So it gives their samples, token by token.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from finetune_trainer.errors import TrainerError
from finetune_trainer.tracking import console
from finetune_trainer.tracking.streams import unfailing

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from finetune_trainer.inference.asking import Asked

DEFAULT_TOKENS = 256
"""Tokens of the longest answer; those of the report have 64 at most."""

TITLES = {"base": "Base model:", "trained": "Finetuned model:"}
CHAT = "Ctrl-D ends the chat, /new begins another one."


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m finetune_trainer.generate", description="Ask a finetuned model.")
    option = parser.add_argument
    option("folder", metavar="FOLDER", type=Path, help="the output folder of a finished run, or its folder merged")
    option("prompt", metavar="PROMPT", nargs="?", help="default: a chat on a terminal, else standard input")
    option("--input", metavar="TEXT", default="", help="the context of the instruction, as in a row of the data")
    option("--base", action="store_true", help="let the base model answer, too")
    option("--model_dir", "--model-dir", metavar="DIR", type=Path, help="folder of the base model (default: its name on the hub)")
    option("--max_tokens", "--max-tokens", metavar="N", type=int, default=DEFAULT_TOKENS, help="tokens of the longest answer "
           f"(default: {DEFAULT_TOKENS})")  # fmt: skip
    option("--device", choices=("cpu", "gpu"), help="default: a GPU if there is one")
    option(
        "--trust_remote_code", "--trust-remote-code", action="store_true", help="run Python code that comes with the base model"
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    options = parser().parse_args(arguments)
    with unfailing():
        try:
            return _run(options)
        except TrainerError as error:
            console.complain(f"error: {error}")
            return error.exit_code
        except KeyboardInterrupt:
            console.complain("")
            return 128 + signal.SIGINT


def _run(options: argparse.Namespace) -> int:
    from finetune_trainer.inference.asking import load

    asked = load(options.folder, options.model_dir, options.device, base=options.base, trusts_code=options.trust_remote_code)
    if options.prompt is None and sys.stdin.isatty():
        _chat(asked, options.max_tokens)
        return 0
    prompt = sys.stdin.read().strip() if options.prompt is None else options.prompt
    _tell(asked, asked.prompt(prompt, options.input), options.max_tokens)
    return 0


def _tell(asked: Asked, prompt: list[int], tokens: int) -> str:
    """Print the answers, each token as it comes; give the last one."""
    text = ""
    for name in asked.models:
        if len(asked.models) > 1:
            console.say(TITLES[name])
        text = asked.answer(name, prompt, tokens, _write)
        console.say("" if name == list(asked.models)[-1] else "\n")
    return text


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _chat(asked: Asked, tokens: int, lines: Callable[[], Iterable[str]] | None = None) -> None:
    """Answer line by line; earlier questions and answers are part of the prompt, if the model was taught prompts."""
    console.complain(CHAT)
    turns: list[tuple[str, str]] = []
    for line in (lines or _typed)():
        if line == "/new":
            turns.clear()
            continue
        answer = _tell(asked, asked.prompt(line, turns=turns), tokens)
        if asked.takes_messages:
            turns.append((line, answer))


def _typed() -> Iterable[str]:
    while True:
        try:
            line = input("> ").strip()
        except EOFError:
            console.complain("")
            return
        if line:
            yield line


if __name__ == "__main__":
    sys.exit(main())
