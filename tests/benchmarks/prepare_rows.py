"""Rows that become tokens: the trainer's own way beside `datasets.map`, with the same tokenizer, rows and number of processes.

    python -m tests.benchmarks.prepare_rows RESULTS.json [--rows N] [--processes N] [--rounds N] [--model DIR]

Both read the same JSONL file and leave token ids and labels on the disk, cut to the same lengths. They take turns, A B B A,
each in a process of its own; seconds count from the open file to the last byte, without imports. Memory is the highest of a
process: the one that reads and writes, and the largest of those that tokenise.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.benchmarks.commit import commit

SMOLLM2 = Path("~/.cache/finetune-operator/models/SmolLM2-135M-Instruct").expanduser()
LONGEST, LONGEST_PROMPT = 512, 384
WORDS = Path("examples/data/sample_finetune_data.jsonl")


def write_rows(path: Path, count: int) -> None:
    """Rows of the words of the sample data, with lognormal lengths, about 190 tokens on average; each is another one."""
    chance = random.Random(0)
    words = [word for line in WORDS.read_text().splitlines() for text in json.loads(line).values() for word in text.split()]

    def text(size: float) -> str:
        return " ".join(chance.choices(words, k=max(2, int(size))))

    with path.open("w") as file:
        for number in range(count):
            size = min(330.0, chance.lognormvariate(4.4, 0.62))
            row = {"instruction": f"{number}: {text(0.35 * size)}", "context": text(0.2 * size) if number % 2 else "",
                   "response": text(0.45 * size)}  # fmt: skip
            file.write(f"{json.dumps(row)}\n")


def ours(data: Path, folder: Path, tokenizer: Any, processes: int) -> int:
    """The trainer's way; the number of tokens."""
    from finetune_trainer.config.run import Run
    from finetune_trainer.config.schema import TrainerConfig
    from finetune_trainer.data.tokenize import open_tokens, tokenize_files
    from finetune_trainer.data.tokenize_options import TokenizeOptions

    dataset = {"train_file": str(data), "max_length": LONGEST, "max_source_length": LONGEST_PROMPT}
    config = TrainerConfig.model_validate({"General": {"base_model": "m"}, "Dataset": dataset})
    run = Run(config=config, output_dir=folder)
    return len(open_tokens(run, tokenize_files(run, tokenizer, TokenizeOptions(processes))[0]).tokens)


def theirs(data: Path, folder: Path, tokenizer: Any, processes: int) -> int:
    """The way of scripts for the HF Trainer: `load_dataset`, and one `map` over batches."""
    import datasets

    from finetune_trainer.data.llm_on_ray_prompt import INPUT, INSTRUCTION, INTRO, RESPONSE

    end = tokenizer.eos_token

    def encode(rows: dict[str, list[str]]) -> dict[str, list[list[int]]]:
        asked = [f"{INTRO}{end}\n\n{INSTRUCTION}{instruction}{INPUT + context if context else ''}{end}\n{RESPONSE}"
                 for instruction, context in zip(rows["instruction"], rows["context"], strict=True)]  # fmt: skip
        prompts = tokenizer(asked, add_special_tokens=False, max_length=LONGEST_PROMPT, truncation=True)["input_ids"]
        answers = tokenizer([text.strip() for text in rows["response"]], add_special_tokens=False)["input_ids"]
        ids, labels = [], []
        for prompt, answer in zip(prompts, answers, strict=True):
            learned = [*answer[: LONGEST - len(prompt) - 1], tokenizer.eos_token_id]
            ids.append(prompt + learned)
            labels.append([-100] * len(prompt) + learned)
        return {"input_ids": ids, "labels": labels}

    datasets.disable_progress_bars()
    rows = datasets.load_dataset("json", data_files=str(data), split="train", cache_dir=str(folder))
    made = rows.map(encode, batched=True, num_proc=processes, remove_columns=rows.column_names)
    return sum(
        len(ids) for batch in made.with_format("arrow").iter(10_000) for ids in [batch["input_ids"].combine_chunks().flatten()]
    )


WAYS = {"ours": ours, "datasets.map": theirs}


def measure(way: str, data: Path, model: Path, processes: int) -> None:
    """Print what one way takes, in this process."""
    from transformers import AutoTokenizer

    if way != "ours":
        import datasets  # noqa: F401 - imports do not count
    tokenizer = AutoTokenizer.from_pretrained(model)
    with tempfile.TemporaryDirectory(dir=data.parent) as folder:
        began = time.perf_counter()
        tokens = WAYS[way](data, Path(folder), tokenizer, processes)
        seconds = time.perf_counter() - began
    peaks = [resource.getrusage(who).ru_maxrss / 1024 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    print(json.dumps({"way": way, "seconds": round(seconds, 2), "tokens": tokens, "mibOfReader": round(peaks[0]),
                      "mibOfLargestOther": round(peaks[1])}), flush=True)  # fmt: skip


def compare(options: argparse.Namespace) -> dict[str, Any]:
    """All runs, with their medians."""
    runs: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "rows.jsonl"
        write_rows(data, options.rows)
        size = data.stat().st_size
        for number in range(2 * options.rounds):
            for way in list(WAYS) if number % 2 == 0 else reversed(WAYS):
                command = [sys.executable, "-m", "tests.benchmarks.prepare_rows", "-", "--way", way, "--data", str(data)]
                command += ["--processes", str(options.processes), "--model", str(options.model)]
                done = subprocess.run(command, capture_output=True, text=True, check=True)
                runs.append(json.loads(done.stdout.splitlines()[-1]))
                print(runs[-1], flush=True)
    medians = {way: statistics.median(run["seconds"] for run in runs if run["way"] == way) for way in WAYS}
    return {
        "rows": options.rows, "bytes": size, "processes": options.processes, "cpus": os.cpu_count(), "load": os.getloadavg()[0],
        "python": platform.python_version(), "commit": commit(), "runs": runs, "medianSeconds": medians,
        "timesAsFast": round(medians["datasets.map"] / medians["ours"], 2),
    }  # fmt: skip


def main() -> None:
    """Compare, or measure one way."""
    parser = argparse.ArgumentParser()
    parser.add_argument("results")
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--model", type=Path, default=SMOLLM2)
    parser.add_argument("--way", choices=WAYS)
    parser.add_argument("--data", type=Path)
    options = parser.parse_args()
    if options.way:
        measure(options.way, options.data, options.model, options.processes)
        return
    found = compare(options)
    results = Path(options.results)
    kept = json.loads(results.read_text()) if results.exists() else []
    results.write_text(json.dumps([*kept, found], indent=1) + "\n")


if __name__ == "__main__":
    main()
