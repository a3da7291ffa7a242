"""Remove what a run no longer needs after its result is complete."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

from finetune_trainer.checkpoint import store
from finetune_trainer.data import sources
from finetune_trainer.tracking.holder import check_still_held

if TYPE_CHECKING:
    from finetune_trainer.config.run import Run


def clean_up(run: Run) -> None:
    """Remove tokens, copies of the data and what was compiled; and the checkpoints, unless General.save_strategy keeps them.

    Raises:
        OutputInUse: another run has taken the output folder, and makes its own there.
    """
    check_still_held(run)
    sources.remove(run)
    shutil.rmtree(run.compiled, ignore_errors=True)
    if not run.saving.after_export:
        store.prune(run.checkpoints, run.checkpoint_owner, keep=0)
    elif not run.run_name:
        store.retire(run.checkpoints, run.checkpoint_owner)
