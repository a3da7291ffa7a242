"""Finetune SmolLM2-135M with LoRA on this machine's CPU: this trainer beside its peers, in one run. `make bench` starts it.

    python -m tests.benchmarks.cpu_bench RESULTS.json [--peers PYTHON] [--busy-ok] [--only NAME…] [--law logn|flat]

Each contestant (see `cpu_contestants`) is a process that stays alive, so that all are warm. First its batch size is searched;
then they take turns, forwards and backwards, and each turn is an observation. The result is their medians and quartiles, and
the ratios of the medians. A machine that does other work is refused; how much others computed during a turn is recorded.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

import psutil
from tests.benchmarks.commit import commit
from tests.benchmarks.cpu_rows import BF16_VARIABLE, MODEL_VARIABLE

ROOT = Path(__file__).resolve().parents[2]
NAMES = ("product", "hf", "trl", "reference")
SIZES = {"product": (4, 8, 16), "hf": (2, 4, 8), "trl": (1, 2, 4), "reference": (1, 2, 4)}
"""Rows of a step that are tried; of TRL, lines of 512 tokens."""
ROUNDS = 6
TURN = {"warm": 1, "steps": 2, "seconds": 9}
TRY = {"warm": 1, "steps": 2, "seconds": 4}
BUSY = 0.1
"""Cores that others may use: more would be measured instead."""
WATCHED = 3
"""Seconds for which the machine is watched."""


class Contestant:
    """A process that takes steps when it is asked."""

    def __init__(self, name: str, python: str, law: str) -> None:
        self.name = name
        self.batch = 0
        self.versions: dict[str, str] = {}
        self.tried: dict[int, float] = {}
        self.turns: list[dict[str, Any]] = []
        command = [python, "-m", "tests.benchmarks.cpu_contestants", name, law]
        path = os.pathsep.join(str(ROOT / part) for part in ("operator", "trainer_image", "."))
        self._process = subprocess.Popen(
            command, cwd=ROOT, env=os.environ | {"PYTHONPATH": path}, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __enter__(self) -> Self:
        self.versions = self._read()["versions"]
        return self

    def __exit__(self, *_: object) -> None:
        self._process.stdin.close()  # type: ignore[union-attr]
        try:
            self._process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _read(self) -> dict[str, Any]:
        line = self._process.stdout.readline()  # type: ignore[union-attr]
        if not line:
            sys.exit(f"{self.name} has ended with {self._process.wait()}: see above")
        found: dict[str, Any] = json.loads(line)
        return found

    def take(self, batch: int, turn: dict[str, Any]) -> dict[str, Any]:
        """Let it take steps; what came of it."""
        before, began = _computed(), time.monotonic()
        self._process.stdin.write(json.dumps({"batch": batch, **turn}) + "\n")  # type: ignore[union-attr]
        self._process.stdin.flush()  # type: ignore[union-attr]
        own = psutil.Process(self._process.pid).cpu_times()
        found = self._read()
        now = psutil.Process(self._process.pid).cpu_times()
        others = _computed() - before - (now.user + now.system - own.user - own.system)
        found["others"] = round(max(0.0, others) / (time.monotonic() - began), 2)
        found["tok_s"] = round(found["tokens"] / found["seconds"], 1)
        return found

    def search(self, sizes: tuple[int, ...]) -> None:
        """Find the best of some sizes of a batch; they rise, and the first that brings nothing ends the search."""
        for size in sizes:
            self.tried[size] = self.take(size, TRY)["tok_s"]
            if self.tried[size] < max(self.tried.values()):
                break
        self.batch = max(self.tried, key=self.tried.__getitem__)
        print(f"{self.name}: {self.tried}", file=sys.stderr, flush=True)

    def observe(self) -> None:
        """Take a turn."""
        turn = self.take(self.batch, TURN | ({"warm": 2} if not self.turns else {}))
        self.turns.append(turn)
        print(f"{self.name}: {turn['tok_s']} tok/s, others {turn['others']} cores", file=sys.stderr, flush=True)


def _computed() -> float:
    """Seconds that the cores of this machine have computed, of all processes and of other machines on the same host."""
    times = psutil.cpu_times()
    return float(times.user + times.system + getattr(times, "steal", 0) + getattr(times, "softirq", 0))


def busy_cores(seconds: float = WATCHED) -> float:
    """How many cores of this machine are in use."""
    before = _computed()
    time.sleep(seconds)
    return (_computed() - before) / seconds


def quartiles(values: list[float]) -> dict[str, float]:
    """The median, and the quartiles as the spread."""
    low, median, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
    return {"median": round(median, 1), "low": round(low, 1), "high": round(high, 1)}


def summarise(turns: dict[str, list[float]]) -> dict[str, Any]:
    """Medians and quartiles by name, and how many times as fast the product is as each peer, by the medians."""
    found: dict[str, Any] = {name: quartiles(values) for name, values in turns.items()}
    product = found.get("product")
    for name, entry in found.items():
        if product is not None and name != "product":
            entry["productIsFaster"] = round(product["median"] / entry["median"], 2)
    return found


def about(law: str) -> dict[str, Any]:
    """What made the figures."""
    return {
        "what": f"LoRA of rank 8 on q_proj and v_proj of SmolLM2-135M, rows of the law {law}, non-padding tokens per second",
        "command": "make bench",
        "commit": commit(),
        "time": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "machine": {"cores": os.cpu_count(), "processor": processor(), "architecture": platform.machine()},
        "python": platform.python_version(),
    }


def processor() -> str:
    """The name of the CPU, where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, help="file for the result, JSON")
    parser.add_argument("--peers", default=sys.executable, help="Python that has the peers' packages")
    parser.add_argument("--busy-ok", action="store_true", help="measure on a machine that does other work, too")
    parser.add_argument("--only", nargs="+", choices=NAMES, default=NAMES, help="contestants")
    parser.add_argument("--law", choices=("logn", "flat"), default="logn", help="law of the rows' lengths")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="turns of each")
    return parser.parse_args()


HEADER = ("", "Rows of a step", "Tokens/s", "Quartiles", "Product is faster")
WHO = {
    "product": "this trainer", "hf": "HF Trainer, tuned", "trl": "TRL with packing", "reference": "as llm-on-ray",
}  # fmt: skip


def table(result: dict[str, Any]) -> str:
    """The result as a table of Markdown."""
    lines = [HEADER, ("---",) * len(HEADER)]
    for name, entry in result["contestants"].items():
        batch = f"{entry['batch']} × 512 tokens" if name == "trl" else str(entry["batch"])
        times = f"{entry['productIsFaster']:.2f} ×" if "productIsFaster" in entry else ""
        lines.append((WHO[name], batch, f"{entry['median']:.0f}", f"{entry['low']:.0f}–{entry['high']:.0f}", times))
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def main() -> None:
    """Search, take turns, and write the result."""
    from examples.fetch_smollm2 import default_output, fetch

    from finetune_trainer.runtime import cpu

    given = arguments()
    others = busy_cores()
    if others > BUSY and not given.busy_ok:
        sys.exit(f"{others:.1f} cores of this machine are in use: wait until it is idle, or measure nonsense with --busy-ok")
    model = default_output()
    fetch(model)
    faster = cpu.choose_precision("bf16").dtype == "bfloat16"
    os.environ |= {MODEL_VARIABLE: str(model), BF16_VARIABLE: str(int(faster))}
    began = time.monotonic()
    result = about(given.law) | {"type": "bfloat16" if faster else "float32", "busyAtTheStart": round(others, 2)}
    with ExitStack() as stack:
        taking = []
        for name in given.only:
            python = sys.executable if name == "product" else given.peers
            taking.append(stack.enter_context(Contestant(name, python, given.law)))
            taking[-1].search(SIZES[name])
        for turn in range(given.rounds):
            for each in taking if turn % 2 == 0 else reversed(taking):
                each.observe()
    result["seconds"] = round(time.monotonic() - began)
    found = summarise({each.name: [turn["tok_s"] for turn in each.turns] for each in taking})
    for each in taking:
        found[each.name] |= {"batch": each.batch, "tried": each.tried, "turns": each.turns, "versions": each.versions}
    result["contestants"] = found
    given.results.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(table(result), end="")


if __name__ == "__main__":
    main()
