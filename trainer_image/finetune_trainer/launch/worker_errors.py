"""Which errors of workers end a run, and which one of several is shown."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from finetune_trainer.errors import TrainerError, TrainingFailed, WorkerLost, in_words
from finetune_trainer.explain import explain

if TYPE_CHECKING:
    from finetune_trainer.config.run import Run


def final_errors(run: Run) -> Any:
    """A callback for Ray Train's controller: an error that would recur ends the run, whatever max_failures is."""
    from ray.train.v2.api.callback import UserCallback

    class FinalErrors(UserCallback):  # type: ignore[misc]
        def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:  # noqa: ARG002 - Ray's
            for error in worker_exceptions.values():
                known = explain(error, run)
                if known is not None and not known.retryable:
                    # Ray Train retries only failures of workers, not of a callback.
                    raise known

    return FinalErrors()


def worker_error(error: Any, run: Run) -> TrainerError:
    """Find the worker's own error in the error of Ray Train."""
    final = explain(getattr(error, "controller_failure", error), run)
    if final is not None:
        return final
    failures = getattr(error, "worker_failures", None) or {}
    explained = {rank: explain(failure, run) for rank, failure in sorted(failures.items())}
    known = [cause for cause in explained.values() if cause is not None]
    unknown = [cause for cause in known if type(cause) is TrainingFailed]
    # A rank that was killed reports nothing, and the other ranks report only that they lost it.
    named = sorted((cause for cause in known if cause not in unknown), key=lambda cause: isinstance(cause, WorkerLost))
    lost = [in_words(failures[rank], f"rank {rank}: ") for rank, cause in explained.items() if cause is None]
    first = min(unknown, key=lambda cause: cause.time, default=None)
    return next(iter((*named, *lost)), first) or in_words(error)
