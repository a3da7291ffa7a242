"""Make what is random in a run repeatable."""

from __future__ import annotations

import random

import numpy as np
import torch


def seed_everything(seed: int) -> None:
    """Make what is random from here on repeatable: the first weights of adapters, and dropout."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - model code of others may use the global generator
    torch.manual_seed(seed)


def seed_step(seed: int, step: int, rank: int) -> None:
    """Make a step's randomness depend on nothing that came before, so that a checkpoint need not hold it."""
    seed_everything(int(np.random.SeedSequence((seed, step, rank)).generate_state(1, np.uint64)[0] >> np.uint64(1)))
