"""Where the measurements of the operator under load are kept: one JSON object with a key for each of them."""

from __future__ import annotations

import json
import os
import platform
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parents[2] / "docs" / "benchmarks" / "operator_load.json"


def record(name: str, measured: dict[str, Any]) -> None:
    """Write one measurement, and leave the others as they are."""
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    machine = {"cores": os.cpu_count(), "machine": platform.machine(), "python": platform.python_version()}
    results[name] = measured | {"on": machine}
    RESULTS.write_text(json.dumps(dict(sorted(results.items())), indent=1) + "\n")
    print(json.dumps({name: results[name]}))
