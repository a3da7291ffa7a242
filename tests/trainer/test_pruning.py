"""Which checkpoints stay."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from finetune_trainer.checkpoint import identity, store
from finetune_trainer.checkpoint.marker import Marker
from finetune_trainer.files import write_described

if TYPE_CHECKING:
    from pathlib import Path

IDENTITY = identity.Identity(run="r", configuration="c", world_size=1, strategy="DDP")


def test_clock_that_was_set_back_costs_no_checkpoint(tmp_path: Path) -> None:
    for step, year in ((5, 2026), (6, 2026), (1, 2020)):
        draft = store.begin(tmp_path, step)
        files = (write_described(draft / "state.json", [b"{}"]),)
        made = datetime(year, 1, 1, tzinfo=UTC)
        marker = Marker(identity=IDENTITY, step=step, total_steps=9, trainer_version="1", files=files, created_at=made)
        newest = store.complete(draft, marker)
    store.prune(tmp_path, "r", keep=2, newest=newest)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000001", "step-00000006"]
