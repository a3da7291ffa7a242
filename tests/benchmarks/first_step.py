"""Seconds from a command to the end of its first step: this trainer, and scripts with the trainers of transformers and TRL.

    python -m tests.benchmarks.first_step RESULT.json [--peers PYTHON] [--rounds 5]

All read the same file of rows, turn them into tokens, load SmolLM2-135M, add adapters and take a step with 4 rows. Each process
is new, the caches of tokens are empty, and the files are in memory. `two workers` is this trainer with two workers on Ray, whose
start is counted. PYTHON has the peers' packages: that of `make bench` is build/peers-venv/bin/python.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tests.benchmarks.commit import commit
from tests.benchmarks.cpu_bench import BUSY, ROOT, busy_cores, processor, quartiles
from tests.benchmarks.cpu_rows import LORA, RATE

ROWS = 512
WORDS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "red", "green", "blue")
BATCH = 4
DONE = {"product": "step 1/", "two workers": "step 1/", "hf": "first step", "trl": "first step"}
"""What each prints when its first step is done."""
LIMIT = 180.0
"""Seconds for a first step."""


def write_rows(path: Path) -> None:
    """Rows of random words, with responses of lognormal length."""
    chance = random.Random(0)
    with path.open("w", encoding="utf-8") as file:
        for number in range(ROWS):
            response = " ".join(chance.choice(WORDS) for _ in range(int(chance.lognormvariate(4.5, 0.6))))
            row = {"instruction": f"Say the line {number}, word by word.", "context": " ".join(WORDS * 2), "response": response}
            file.write(json.dumps(row) + "\n")


def write_config(folder: Path, model: Path, workers: int) -> Path:
    """The finetuning YAML of this trainer: JSON is YAML, too."""
    cores = os.cpu_count() or 1
    config = {
        "General": {"base_model": str(model), "output_dir": str(folder / "output"), "lora_config": LORA, "sample_prompts": 0},
        "Dataset": {"train_file": str(folder / "rows.jsonl"), "validation_split_percentage": 0},
        "Training": {
            "batch_size": BATCH // workers, "epochs": 1, "learning_rate": RATE, "logging_steps": 1, "mixed_precision": "no",
            "num_training_workers": workers, "resources_per_worker": {"CPU": cores // workers},
        },
    }  # fmt: skip
    (folder / "conf.yaml").write_text(json.dumps(config), encoding="utf-8")
    return folder / "conf.yaml"


def command(name: str, folder: Path, model: Path, peers: str) -> list[str]:
    """What is typed."""
    if name in ("hf", "trl"):
        return [peers, str(ROOT / "tests" / "benchmarks" / "first_step_peer.py"), name, str(folder), str(model)]
    program = str(Path(sys.executable).with_name("llm_on_ray-finetune"))
    return [program, "--config_file", str(write_config(folder, model, 2 if name == "two workers" else 1))]


def seconds_of(name: str, model: Path, peers: str) -> float:
    """From the start of a command to the end of its first step. The process ends then.

    Raises:
        SystemExit: it has ended before, or takes too long; with what it printed.
    """
    with tempfile.TemporaryDirectory() as scratch:
        folder, printed = Path(scratch), []
        write_rows(folder / "rows.jsonl")
        env = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": scratch, "XDG_CACHE_HOME": scratch}
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "start_new_session": True}
        began = time.monotonic()
        process = subprocess.Popen(command(name, folder, model, peers), env=env, cwd=folder, **pipes)
        cut = threading.Timer(LIMIT, os.killpg, (process.pid, signal.SIGKILL))
        cut.start()
        try:
            for line in process.stdout or ():
                printed.append(line)
                if DONE[name] in line:
                    return round(time.monotonic() - began, 2)
            sys.exit(f"{name} has not taken a step:\n{''.join(printed[-40:])}")
        finally:
            cut.cancel()
            end(process)


def end(process: subprocess.Popen[str]) -> None:
    """End a command with all that it has started."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError, subprocess.TimeoutExpired):
            os.killpg(process.pid, number)
            process.wait(timeout=60)
            return


def main() -> None:
    """Take turns, and write the result."""
    from examples.fetch_smollm2 import default_output, fetch

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("--peers", default=sys.executable)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="+", choices=list(DONE), default=list(DONE))
    given = parser.parse_args()
    if (others := busy_cores()) > BUSY:
        sys.exit(f"{others:.1f} cores of this machine are in use: wait until it is idle")
    model = default_output()
    fetch(model)
    taken: dict[str, list[float]] = {name: [] for name in given.only}
    for turn in range(-1, given.rounds):  # the first one brings the files into memory
        for name in given.only if turn % 2 else reversed(given.only):
            seconds = seconds_of(name, model, str(Path(given.peers).absolute()))
            print(f"{name}: {seconds} s{' (not counted)' if turn < 0 else ''}", file=sys.stderr, flush=True)
            if turn >= 0:
                taken[name].append(seconds)
    result = {
        "what": f"seconds from a command to the end of its first step, LoRA of SmolLM2-135M, {ROWS} rows, {BATCH} a step",
        "command": "python -m tests.benchmarks.first_step docs/benchmarks/first_step.json --peers build/peers-venv/bin/python",
        "commit": commit(),
        "time": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "machine": {"cores": os.cpu_count(), "processor": processor()},
        "seconds": {name: {**quartiles(values), "all": values} for name, values in taken.items()},
    }
    given.results.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
