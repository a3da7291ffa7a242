"""Settings that torch reads from the environment when it is imported."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import MutableMapping

VARIABLES = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
"""How torch manages a GPU's memory, and the older name for it, which all releases read."""

EXPANDABLE = "expandable_segments:True"
"""Batches differ in length: without it, a third of a GPU's memory was in pieces that fitted nothing."""


def set_up_memory(environment: MutableMapping[str, str] = os.environ) -> None:
    """Let blocks of a GPU's memory grow, unless the user has settings. Call it before torch is imported."""
    if not any(environment.get(name) for name in VARIABLES):
        environment[VARIABLES[-1]] = EXPANDABLE
