"""``finetune generate``: ask a finetuned model, of a folder here or of a job whose result is copied here first.

The trainer's own program answers, in a process of its own, as `finetune run` starts it: it needs torch.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

from finetune_client.commands.common import client_of, note
from finetune_client.commands.copy import Bar
from finetune_client.errors import ClientError
from finetune_client.home import at_home
from finetune_client.transfer.api import MODEL_FILES

NEEDED = ("torch", "transformers", "peft")


def run(options: argparse.Namespace) -> int:
    """Ask the model; give the exit code of the trainer's program.

    Raises:
        ClientError: there is no such folder or job, or no torch here.
    """
    if lacks := [name for name in NEEDED if find_spec(name) is None]:
        hint = "install the trainer's requirements (CONTRIBUTING.md), or generate where the model was trained"
        raise ClientError(f"a model needs {', '.join(lacks)}, which are not installed here", hint)
    return subprocess.run(command(_folder(options), options), check=False).returncode  # noqa: S603 - our own module, an argument list


def command(folder: Path, options: argparse.Namespace) -> list[str]:
    """The trainer's program with its arguments."""
    words = [sys.executable, "-m", "finetune_trainer.generate"]
    given = {name: getattr(options, name) for name in ("input", "model_dir", "max_tokens", "device")}
    words += [f"--{name}={value}" for name, value in given.items() if value is not None]
    words += [f"--{name}" for name in ("base", "trust_remote_code") if getattr(options, name)]
    return [*words, "--", str(folder), *([] if options.prompt is None else [options.prompt])]


def _folder(options: argparse.Namespace) -> Path:
    """The folder of the model; the result of a job is copied to a folder of its name unless it is there already."""
    folder = at_home(options.model)
    if any((folder / name).is_file() for name in MODEL_FILES):
        return folder
    if len(folder.parts) != 1 or folder.parts[0] in {"..", "~"}:
        raise ClientError(
            f"there is no model in the folder {options.model}", "name the output folder of a finished run, or a job"
        )
    progress = Bar()
    target = client_of(options).download(options.model, folder, image=options.image, progress=progress, say=note)
    progress.end()
    return target
