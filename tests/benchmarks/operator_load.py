"""``docs/benchmarks/operator_load.json``: what the operator bears. Each measurement writes its own key and leaves the others."""

from __future__ import annotations

import json
import math
import os
import platform
from pathlib import Path
from typing import Any

from tests.benchmarks.commit import commit

PATH = Path(__file__).resolve().parents[2] / "docs" / "benchmarks" / "operator_load.json"


def write_part(name: str, measured: dict[str, Any], path: Path = PATH) -> None:
    """Put a measurement into the file, with the commit and the machine that it is of."""
    parts = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    parts[name] = measured | {"commit": commit(), "machine": f"{os.cpu_count()} cores, Python {platform.python_version()}"}
    path.write_text(json.dumps(dict(sorted(parts.items())), indent=1) + "\n", encoding="utf-8")


def percentile(values: list[float], percent: float) -> float:
    """The smallest of the values that so many percent do not exceed."""
    ordered = sorted(values)
    return ordered[max(math.ceil(len(ordered) * percent / 100), 1) - 1]
