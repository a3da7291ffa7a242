"""Training on 1, 2, 4 and more GPUs of one host: speed, memory, and how much of the time collectives take.

    python -m tests.benchmarks.scaling RESULTS.jsonl [--seconds N] PLAN_OR_SPEC…

A PLAN is quick, lora, full or peers, each for all sizes that the host has. A SPEC is [TOOL/]SHAPE:MODE:GPUS:TOKENS[:MICRO], as in
8b-lora:DDP:4:32768 or hf/8b-lora:DDP:2:16384: so many GPUs of so many tokens a step altogether, in so many micro-batches; TOOL is
ours, hf (the Trainer of transformers) or trl. Each GPU has a process, and all with as many GPUs follow each other in one world.

For each a line of JSON, printed and added to the file as soon as it is known: tokens per second, of all GPUs and of each, MFU,
peak memory beside the prediction, the shares of the time in NCCL's kernels and in those that nothing hides, and the efficiency
against the fewest GPUs with as many tokens for each GPU, or altogether. A world that fails or takes longer than N seconds (240)
loses the measurement at hand, with a line that says so, and the others follow. It needs no Ray, no network and no disk.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from finetune_trainer.launch.allocator import set_up_memory

ROOT = Path(__file__).resolve().parents[2]
SIZES = (1, 2, 4, 8)
PER_GPU = 8192
"""Tokens of a micro-batch on a GPU."""
SECONDS = 240.0
NO_ROOM = "it does not fit into the memory of the GPU"
TAIL = 1500
"""Characters of a rank's log that are told when it fails."""


@dataclass(frozen=True)
class Spec:
    """What is measured."""

    tool: str
    shape: str
    mode: str
    gpus: int
    tokens: int
    """Of a step, on all GPUs."""
    micro: int = 1
    """Micro-batches of a step."""

    @classmethod
    def parse(cls, text: str) -> Spec:
        """Read it."""
        tool, _, rest = text.rpartition("/")
        shape, mode, gpus, tokens, *micro = rest.split(":")
        return cls(tool or "ours", shape, mode, int(gpus), int(tokens), *map(int, micro))

    def __str__(self) -> str:
        return f"{self.tool}/{self.shape}:{self.mode}:{self.gpus}:{self.tokens}:{self.micro}"


def plans(most: int) -> dict[str, list[Spec]]:
    """The plans, for up to so many GPUs: as many tokens for each GPU, then as many tokens altogether, in equal micro-batches, and
    with ever smaller ones.
    """
    sizes = [size for size in SIZES if size <= most]
    most = sizes[-1]

    def growing(tool: str, shape: str, mode: str) -> list[Spec]:
        return [Spec(tool, shape, mode, size, size * PER_GPU) for size in sizes]

    def constant(shape: str, mode: str, total: int) -> list[Spec]:
        return [Spec("ours", shape, mode, size, total, max(1, total // PER_GPU // size)) for size in sizes]

    return {
        "quick": growing("ours", "1b-lora", "DDP") + growing("ours", "1b-full", "FSDP"),
        "lora": growing("ours", "8b-lora", "DDP")
        + constant("8b-lora", "DDP", most * PER_GPU)
        + constant("8b-lora", "DDP", PER_GPU),
        "full": growing("ours", "8b-full", "FSDP") + constant("8b-full", "FSDP", most * PER_GPU),
        "peers": growing("hf", "8b-lora", "DDP") + growing("trl", "8b-lora", "DDP"),
        "tiny": growing("ours", "tiny-lora", "DDP"),
    }


def worlds(asked: list[str], most: int) -> list[list[Spec]]:
    """The measurements that are asked for, each once, by worlds."""
    known = plans(most)
    specs = [spec for name in asked for spec in (known[name] if name in known else [Spec.parse(name)])]

    def world(spec: Spec) -> tuple[bool, str, int]:
        return spec.tool != "ours", spec.tool, spec.gpus

    return [list(some) for _, some in groupby(sorted(dict.fromkeys(specs), key=world), key=world)]


class Results:
    """The lines of a run, with the efficiency of each."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known: list[tuple[Spec, dict[str, Any]]] = []

    def add(self, spec: Spec, found: dict[str, Any]) -> None:
        """Print and keep a line."""
        if "tok_s" in found:
            found |= self._compare(spec, found["tok_s"])
            self._known.append((spec, found))
        line = json.dumps({"spec": str(spec), "gpus": spec.gpus, **found})
        print(line, flush=True)
        with self._path.open("a") as file:
            file.write(line + "\n")

    def _compare(self, spec: Spec, speed: float) -> dict[str, Any]:
        """Speed of each GPU, also relative to that with the fewest GPUs, where as many tokens are for each, or altogether."""
        found: dict[str, Any] = {"tok_s_gpu": round(speed / spec.gpus)}
        smaller = [(one, known["tok_s"] / one.gpus) for one, known in self._known
                   if (one.tool, one.shape, one.mode) == (spec.tool, spec.shape, spec.mode) and one.gpus < spec.gpus]  # fmt: skip
        alike = {
            "for_each_gpu": [pair for pair in smaller if pair[0].tokens * spec.gpus == spec.tokens * pair[0].gpus],
            "altogether": [pair for pair in smaller if pair[0].tokens == spec.tokens],
        }
        for name, pairs in alike.items():
            if pairs:
                base, each = min(pairs, key=lambda pair: pair[0].gpus)
                found[f"efficiency_{name}"] = {"against": str(base), "is": round(speed / spec.gpus / each, 3)}
        return found


def run_world(specs: list[Spec], results: Results, seconds: float) -> None:
    """Measure one after the other in one world, and in further ones what is left after a failure."""
    ends = time.monotonic() + seconds
    while specs:
        with tempfile.TemporaryDirectory() as folder:
            done, failure = run_ranks(Path(folder), specs, results, ends)
        if failure:
            results.add(specs[done], {"error": failure})
        specs = specs[done + bool(failure) :]
        if specs and time.monotonic() > ends:
            for spec in specs:
                results.add(spec, {"error": f"not measured: the {seconds:.0f} s of this world were over"})
            return


def run_ranks(folder: Path, specs: list[Spec], results: Results, ends: float) -> tuple[int, str]:
    """Start a process for each GPU; how many were measured, and why no more were."""
    (folder / "specs.json").write_text(json.dumps(list(map(str, specs))))
    size, logs = specs[0].gpus, [(folder / f"rank-{rank}.log").open("w") for rank in range(specs[0].gpus)]
    shared = os.environ | {
        "CUDA_VISIBLE_DEVICES": ",".join(visible_gpus()[:size]), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()),
        "WORLD_SIZE": str(size), "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "trainer_image"), *sys.path]),
    }  # fmt: skip
    set_up_memory(shared)
    command = [sys.executable, "-m", "tests.benchmarks.scaling_rank", str(folder)]
    own = [{"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(size)]
    ranks = [subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log, env=shared | place)
             for place, log in zip(own, logs, strict=True)]  # fmt: skip
    try:
        return watch(folder, specs, ranks, results, ends)
    finally:
        for rank, log in zip(ranks, logs, strict=True):
            rank.kill()
            rank.wait()
            log.close()


def watch(
    folder: Path, specs: list[Spec], ranks: list[subprocess.Popen[bytes]], results: Results, ends: float
) -> tuple[int, str]:
    """Take over what the ranks measure; how many were measured, and why no more were."""
    done, failure = 0, ""
    while done < len(specs) and not failure:
        codes = [rank.poll() for rank in ranks]
        lines = read_lines(folder / "results.jsonl")
        for spec, line in zip(specs[done:], lines[done:], strict=False):
            results.add(spec, json.loads(line))
        done = len(lines)
        if any(code is not None for code in codes) and done < len(specs):
            failure = explain(folder, next(rank for rank, code in enumerate(codes) if code is not None))
        elif time.monotonic() > ends:
            failure = "the time of this world was over"
        else:
            time.sleep(0.1)
    return done, "" if done == len(specs) else failure


def read_lines(path: Path) -> list[str]:
    """The complete lines of a file that may not be there yet."""
    return path.read_text().rpartition("\n")[0].splitlines() if path.exists() else []


def explain(folder: Path, rank: int) -> str:
    """Why a rank failed: in its own words, if it had some. Others may have failed for its sake, and one may lack memory first."""
    said = sorted(path.read_text() for path in folder.glob("error-*.txt"))
    lacking = [text for text in said if NO_ROOM in text]
    return next(iter(lacking + said), f"rank {rank} ended: {(folder / f'rank-{rank}.log').read_text()[-TAIL:]}")


def visible_gpus() -> list[str]:
    """Numbers of the GPUs of this host that may be used; the command that counts them takes no memory of theirs."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        return [number for number in chosen.split(",") if number]
    try:
        said = subprocess.run(["nvidia-smi", "--list-gpus"], capture_output=True, text=True, check=False).stdout
    except FileNotFoundError:
        return []
    return [str(number) for number, _ in enumerate(said.splitlines())]


def free_port() -> int:
    """A port where ranks of the peers may meet."""
    with socket.socket() as port:
        port.bind(("127.0.0.1", 0))
        return int(port.getsockname()[1])


def main(arguments: list[str]) -> None:
    """Measure world after world."""
    parser = argparse.ArgumentParser()
    parser.add_argument("results", type=Path)
    parser.add_argument("--seconds", type=float, default=SECONDS, help="time of a world")
    parser.add_argument("asked", nargs="+", metavar="PLAN_OR_SPEC")
    options = parser.parse_args(arguments)
    most = len(visible_gpus()) or SIZES[1]
    results = Results(options.results)
    for specs in worlds(options.asked, most):
        run_world(specs, results, options.seconds)


if __name__ == "__main__":
    main(sys.argv[1:])
