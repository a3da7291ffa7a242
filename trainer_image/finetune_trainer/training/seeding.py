"""Seed the random numbers of a run."""

from __future__ import annotations

import random

import numpy as np
import torch


def seed_everything(seed: int) -> None:
    """Seed all generators: for the initial weights of adapters, and for dropout."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - code of models may use the global generator
    torch.manual_seed(seed)


def seed_step(seed: int, step: int, rank: int) -> None:
    """Seed a step by its number and rank alone, so that a checkpoint need not store the state of generators."""
    seed_everything(int(np.random.SeedSequence((seed, step, rank)).generate_state(1, np.uint64)[0] >> np.uint64(1)))
