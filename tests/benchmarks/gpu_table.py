"""Make the table of docs/performance.md from what gpu_step has measured.

    python -m tests.benchmarks.gpu_table docs/benchmarks/gpu_step.jsonl [docs/performance.md]

It is printed, or put between the two marks of the file.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

HEADER = ["Spec", "Tokens/s", "MFU", "GiB reserved", "ms a step", "Card", "Commit"]
BEGIN, END = "<!-- table -->\n", "<!-- end -->\n"


def row(record: dict[str, Any]) -> list[str]:
    """The cells of a run. In early ones the last step was measured before it had ended: it does not count."""
    card, milliseconds, speed = record["gpu"].removeprefix("NVIDIA "), record["step_ms"], record["tok_s"]
    if record.get("lastStepIsShort"):
        whole = record["steps_ms"][:-1]
        milliseconds = sum(whole) / len(whole)
        speed = round(1000 * record["tok_step"] / milliseconds)
    share = record["mfu"] * speed / record["tok_s"]
    numbers = [f"{speed:,}", f"{share:.1%}", f"{record['reserved_gib']}", f"{milliseconds:.0f}"]
    return [f"`{record['spec']}`", *numbers, card, record["commit"]]


def table(records: list[dict[str, Any]]) -> str:
    """The table, by spec and in the order of the measurements."""
    known = [record for record in records if "steps_ms" in record and not record["spec"].startswith("tiny")]
    lines = [HEADER, ["---"] * len(HEADER), *map(row, sorted(known, key=lambda record: record["spec"]))]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def main(data: Path, page: Path | None = None) -> None:
    """Print the table, or put it into a page."""
    made = table([json.loads(line) for line in data.read_text().splitlines()])
    if page is None:
        print(made, end="")
        return
    text = page.read_text()
    before, _, rest = text.partition(BEGIN)
    page.write_text(f"{before}{BEGIN}{made}{END}{rest.partition(END)[2]}")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
