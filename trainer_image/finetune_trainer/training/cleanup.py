"""Remove what a run no longer needs after its result is complete."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

from finetune_trainer.checkpoint import store
from finetune_trainer.data import sources
from finetune_trainer.errors import output_error
from finetune_trainer.output import manifest
from finetune_trainer.tracking.holder import check_still_held

if TYPE_CHECKING:
    from finetune_trainer.config.run import Run


def clean_up(run: Run) -> None:
    """Remove tokens, copies of the data and what was compiled; and the checkpoints, unless General.save_strategy keeps them.

    Raises:
        OutputInUse: another run has taken the output folder, and makes its own there.
        OutputNotWritable: the checkpoints cannot be read at present.
    """
    remove_drafts(run)
    sources.remove(run)
    shutil.rmtree(run.compiled, ignore_errors=True)
    try:
        if not run.saving.after_export:
            store.prune(run.checkpoints, run.checkpoint_owner, keep=0)
        elif not run.run_name:
            store.retire(run.checkpoints, run.checkpoint_owner)
    except OSError as error:
        raise output_error(run.output_dir, error) from error


def remove_drafts(run: Run) -> None:
    """Remove drafts of checkpoints and of a result that were left by processes which were killed. None of this run may be in
    the making: where a worker that was taken for lost is still writing one, its next write fails.

    Raises:
        OutputInUse: another run has taken the output folder, and makes its own there.
    """
    check_still_held(run)
    store.remove_drafts(run.checkpoints)
    manifest.remove_exports(run)
