"""The summary of a run that has ended, for the report and the model card."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from finetune_trainer.config.notes import config_notes
from finetune_trainer.output.answers import read_samples
from finetune_trainer.output.environment import describe_environment
from finetune_trainer.tracking.console import duration
from finetune_trainer.tracking.metrics import read_metrics
from finetune_trainer.tracking.progress import Result

if TYPE_CHECKING:
    from finetune_trainer.config.run import Run
    from finetune_trainer.data.splits import Data
    from finetune_trainer.output.answers import Sample
    from finetune_trainer.output.taught import Taught
    from finetune_trainer.runtime.engine import Engine
    from finetune_trainer.tracking.progress import Progress
    from finetune_trainer.tracking.tracker import Tracker

NOT_MEASURED = "not measured"


@dataclass(frozen=True)
class RunSummary:
    """A run, its settings and its outcome."""

    run: Run
    result: Result
    steps: int
    """Optimizer steps done."""
    total_steps: int
    """Optimizer steps of the whole run; fewer are done if it ended early."""
    seconds: float | None
    """How long the last attempt has trained and evaluated; None: unknown, since it was interrupted."""
    records: list[dict[str, Any]]
    """metrics.jsonl."""
    samples: tuple[Sample, ...]
    data: dict[str, str]
    """The return value of `describe_data`."""
    environment: dict[str, str]
    """The return value of `describe_environment`, and further lines."""
    warnings: tuple[str, ...] = ()
    """Warnings during the run."""
    ended: str = ""
    """Why it ended early; empty: it did not."""
    taught: Taught | None = None
    """The prompt that was trained; None: unknown, since the run was interrupted."""

    @property
    def method(self) -> str:
        """How the model was trained, in words."""
        lora = self.run.config.general.lora_config
        return "full finetuning" if lora is None else f"LoRA, r = {lora.r}, alpha = {lora.lora_alpha}"

    @property
    def measured(self) -> dict[str, str]:
        """The results: a title → a formatted number."""
        speeds = [record["tokensPerSecond"] for record in self.records if "loss" in record]
        memory = [record["memoryBytes"] for record in self.records if "loss" in record]
        took = NOT_MEASURED if self.seconds is None else duration(round(self.seconds))
        return {
            "First loss": _number(self.result.first_loss),
            "Last training loss": _number(self.result.train_loss),
            "Evaluation loss": _number(self.result.eval_loss),
            "Perplexity": NOT_MEASURED if self.result.perplexity is None else f"{self.result.perplexity:.2f}",
            "Tokens per second": f"{speeds[-1]:.0f}" if speeds else NOT_MEASURED,
            f"Duration since step {self.resumed[-1]['step']}" if self.resumed else "Duration": took,
            "Steps": f"{self.steps} of {self.total_steps}" if self.ended else str(self.steps),
            "Memory of rank 0": f"{max(memory) / 2**30:.2f} GiB" if any(memory) else NOT_MEASURED,
        }

    @property
    def resumed(self) -> list[dict[str, Any]]:
        """Records of the steps from which the run resumed."""
        return [record for record in self.records if "event" in record]


def _number(value: float | None) -> str:
    return NOT_MEASURED if value is None else f"{value:.4f}"


def summarise(
    engine: Engine,
    tracker: Tracker,
    samples: tuple[Sample, ...],
    environment: dict[str, str],
    warnings: list[str],
    taught: Taught | None = None,
) -> RunSummary:
    """Summarise a run whose training has ended.

    Raises:
        OSError: the metrics cannot be read.
    """
    run = engine.run
    return RunSummary(
        run=run,
        result=tracker.progress.result or Result(),
        steps=engine.total_steps,
        total_steps=engine.total_steps,
        seconds=tracker.seconds,
        records=read_metrics(run.logs) if engine.worker.is_rank0 else [],
        samples=samples,
        data=describe_data(run, engine.data),
        environment=environment,
        warnings=(*config_notes(run.config), *warnings),
        taught=taught,
    )


def summarise_interrupted(run: Run, progress: Progress) -> RunSummary | None:
    """Summarise an interrupted run by its folder of logs; None: it has not trained.

    Args:
        run: which one.
        progress: the content of progress.json at its end.

    Raises:
        OSError: the logs cannot be read.
    """
    records = read_metrics(run.logs)
    steps = [record for record in records if "loss" in record]
    if not steps:
        return None
    evaluated: dict[str, Any] = next((record for record in reversed(records) if "evalLoss" in record), {})
    failure = progress.failure
    losses = {"first_loss": steps[0]["loss"], "train_loss": steps[-1]["loss"], "eval_loss": evaluated.get("evalLoss")}
    return RunSummary(
        run=run,
        result=Result(**losses, perplexity=evaluated.get("perplexity")),
        steps=max(steps[-1]["step"], progress.step),
        total_steps=steps[-1]["totalSteps"],
        seconds=None,
        records=records,
        samples=read_samples(run.logs),
        data={"Rows to train on": run.config.dataset.train_file},
        environment={} if progress.world is None else describe_environment(progress.world),
        warnings=tuple(config_notes(run.config)),
        ended="it was stopped" if failure is None else f"{failure.reason}: {failure.message}",
    )


def describe_data(run: Run, data: Data) -> dict[str, str]:
    """Where the rows come from, and how many there are."""
    dataset, training = run.config.dataset, run.config.training
    tokens = int(data.train.lengths[data.train_rows].sum())
    described = {"Rows to train on": f"{len(data.train_rows)} rows of {dataset.train_file}, {tokens} tokens"}
    if data.eval is not data.train:
        described["Rows for evaluation"] = f"{len(data.eval_rows)} rows of {data.eval.name}"
    elif len(data.eval_rows):
        share = f"{dataset.validation_split_percentage} % of {dataset.train_file}, split off by seed {training.seed}"
        described["Rows for evaluation"] = f"{len(data.eval_rows)} rows: {share}"
    else:
        described["Rows for evaluation"] = "none"
    return described
