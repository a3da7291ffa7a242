"""What the trained model says about a few rows, to compare the exported files with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from finetune_trainer.output.verify import Reference
from finetune_trainer.runtime import parallel
from finetune_trainer.training.samples import own_attention

if TYPE_CHECKING:
    from finetune_trainer.runtime.engine import Engine

ROWS = 2

TOKENS = 64
"""Tokens of a row that the model reads."""

POSITIONS = 8
"""Positions whose logits are compared, at the end of what it reads: a vocabulary has up to 260,000 tokens."""


def take_reference(engine: Engine) -> Reference:
    """Let the model in memory read a few rows. A collective."""
    module: Any = getattr(engine.loss, "module", engine.loss)  # of DDP
    rows = [torch.from_numpy(engine.data.train.row(int(row))[:TOKENS].astype("int64"))[None]
            for row in engine.data.train_rows[:ROWS]]  # fmt: skip
    with parallel.evaluation_mode(engine.loss), own_attention(engine.model), engine.autocast():
        logits = [module.logits(row.to(engine.worker.device), POSITIONS).float().cpu() for row in rows]
    return Reference(tuple(rows), tuple(logits))
