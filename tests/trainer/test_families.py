"""Every family does everything, in full and with an adapter. The run ends with a table of it: a row for each family and
method, a column for each property."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from itertools import pairwise, product
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from tests.support import ranks
from tests.support.trainer import SIZES, Outcome, sample_rows, with_dropout
from transformers import AutoModelForCausalLM

from finetune_trainer.config.dataset import Dataset
from finetune_trainer.data.batching import collate, pack
from finetune_trainer.data.encode import encode_rows
from finetune_trainer.data.jsonl import Row
from finetune_trainer.modeling import families
from finetune_trainer.modeling.attention import Segments
from finetune_trainer.modeling.loss import SupervisedLoss
from finetune_trainer.modeling.packed_families import hidden_states
from finetune_trainer.runtime.distributed import Worker
from finetune_trainer.training.setup import pack_rows

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.support.trainer import Command

    from finetune_trainer.data.batching import Batch
    from finetune_trainer.data.examples import Examples

pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")  # PEFT, when it loads an adapter

ROWS = 24
STEPS = 3
DROPPED = 3e-6
"""What dropout changes in the first loss, at least: the order of the rows alone changes less, and attention is even yet."""
BATCH = 8
"""Rows of a step of the runs on one rank and on two."""


@dataclass
class Case:
    """A family with a method, and the runs of it that several tests look at."""

    family: str
    method: str
    command: Command
    bases: Callable[[str], Path]
    """Folders of models, by family."""
    tokenizer: Any
    folder: Path
    """Of runs that several tests look at."""

    @property
    def name(self) -> str:
        """As in the table."""
        return f"{self.family}-{self.method}"

    @property
    def base(self) -> Path:
        """The model that is trained."""
        return self.bases(self.family)

    def configure(self, dropout: float = 0.0) -> Command:
        """The command for this family and method."""
        lora = {"r": 4, "lora_alpha": 8, "lora_dropout": dropout} if self.method == "lora" else None
        return self.command.change("General", base_model=str(self.base), lora_config=lora)

    def learned(self) -> Outcome:
        """Three steps on all rows, and the loss over the same rows after them; made once."""
        outcome = Outcome(0, "", "", self.folder / f"{self.name}-learned")
        if not outcome.output.exists():
            command, lora = self.configure(), self.method == "lora"
            command.change("General", merge_adapter=lora, enable_gradient_checkpointing=lora)
            command.change("Dataset", validation_file="data.jsonl")
            command.change("Training", max_train_steps=STEPS, batch_size=ROWS)
            done = command.run("--output_dir", str(outcome.output))
            assert done.code == 0, done.err
            command.change("General", merge_adapter=None, enable_gradient_checkpointing=None)
            command.change("Dataset", validation_file=None)
        return outcome

    def written(self) -> Any:
        """The model that `learned` has written."""
        output = self.learned().output
        return load(output) if self.method == "full" else PeftModel.from_pretrained(load(self.base), output).eval()


def load(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def encode(tokenizer: Any, count: int) -> Examples:
    """The first sample rows in tokens."""
    rows = [Row(**row, line=1) for row in sample_rows(count)]
    return encode_rows(rows, tokenizer, Dataset(train_file="f"), "f")


@torch.no_grad()
def mean_loss(model: Any, tokenizer: Any) -> float:
    """Loss per supervised token over all sample rows, each row by itself."""
    examples, module = encode(tokenizer, ROWS), SupervisedLoss(model)
    summed = sum(float(module(collate(examples, np.array([row]), 0, "right", None))) for row in range(ROWS))
    return summed / int(examples.supervised.sum())


@torch.no_grad()
def logits(model: Any, batch: Batch) -> torch.Tensor:
    """[B, T, V] of a batch, packed or padded, as the loss takes it."""
    model = families.unwrapped(model)
    if batch.position_ids is not None:
        hidden = hidden_states(model, batch.input_ids, batch.position_ids, Segments.of(batch.packed, batch.input_ids.device))
    else:
        hidden = model.base_model(input_ids=batch.input_ids, use_cache=False)[0]
    result: torch.Tensor = model.get_output_embeddings()(hidden)
    return result


def weights(outcome: Outcome) -> dict[str, torch.Tensor]:
    (path,) = outcome.output.glob("*.safetensors")
    return load_file(path)


def check_same(one: Outcome, other: Outcome, tolerance: float) -> None:
    """Losses, evaluation and weights of two runs are the same."""
    assert other.losses == pytest.approx(one.losses, abs=tolerance)
    assert len(one.losses) == STEPS
    assert other.progress["evalLoss"] == pytest.approx(one.progress["evalLoss"], abs=tolerance)
    ours, theirs = weights(one), weights(other)
    assert ours.keys() == theirs.keys()
    assert max(float((ours[name] - theirs[name]).abs().max()) for name in ours) <= 10 * tolerance


def learns(case: Case) -> None:
    """The loss falls with each of three steps."""
    outcome = case.learned()
    losses = [*outcome.losses, outcome.progress["result"]["evalLoss"]]
    assert len(losses) == STEPS + 1
    assert all(after < before for before, after in pairwise(losses))


def reloads(case: Case) -> None:
    """What was written gives the loss of what was trained, and the base model gives another one."""
    loss = mean_loss(case.written(), case.tokenizer)
    assert loss == pytest.approx(case.learned().progress["result"]["evalLoss"], abs=1e-5)
    assert abs(mean_loss(load(case.base), case.tokenizer) - loss) > 1e-3


def merges(case: Case) -> None:
    """The merged model gives the logits of base model and adapter, and the base model alone gives others."""
    batch = collate(encode(case.tokenizer, 2), np.arange(2), 0, "right", None)
    adapted = logits(case.written(), batch)
    torch.testing.assert_close(logits(load(case.learned().output / "merged"), batch), adapted, atol=1e-5, rtol=0)
    assert not torch.allclose(logits(load(case.base), batch), adapted, atol=1e-3)


def packs(case: Case) -> None:
    """The rows of a batch, packed or padded, give the logits that each gives by itself."""
    model, examples = case.written(), encode(case.tokenizer, 5)
    rows, lengths = np.arange(5), examples.lengths.tolist()
    apart = [logits(model, collate(examples, np.array([row]), 0, "right", None))[0, : lengths[row]] for row in rows]
    padded = logits(model, collate(examples, rows, 0, "right", None))
    assert pack_rows(SupervisedLoss(model), model, Worker(torch.device("cpu")))
    together = logits(model.eval(), pack(examples, rows))[0].split(lengths)
    for one, line, other, length in zip(apart, padded, together, lengths, strict=True):
        torch.testing.assert_close(line[:length], one, atol=1e-5, rtol=0)
        torch.testing.assert_close(other, one, atol=1e-5, rtol=0)


def resumes(case: Case) -> None:
    """With dropout everywhere, a run that was stopped ends as one that was not, to the last digit.

    Each step has all rows, in three micro-batches: the first loss is that of `learned` but for what was dropped.
    """
    learned, command = case.learned(), case.configure(dropout=0.1)
    command.change("General", base_model=str(with_dropout(case.base, command.folder / "dropping")))
    command.change("Dataset", validation_file="data.jsonl")
    command.change("Training", batch_size=ROWS // 3, gradient_accumulation_steps=3, max_train_steps=STEPS)
    whole = command.run("--output_dir", str(command.folder / "whole"))
    whole.output = command.folder / "whole"
    assert (abs(whole.losses[0] - learned.losses[0]) > DROPPED) == (case.family != "mpt")
    command.train_until(1, "r")
    resumed = command.run("--run_name", "r")
    assert "resuming from checkpoint" in resumed.err
    assert [line.split()[1] for line in resumed.out.splitlines() if line.startswith("step ")] == [f"{STEPS}/{STEPS}"]
    check_same(whole, resumed, 0.0)


def on_one_rank(case: Case) -> Outcome:
    """The run whose batches two ranks share."""
    outcome = Outcome(0, "", "", case.folder / f"{case.name}-one")
    done = spread(case, outcome.output, BATCH, "DDP").run()
    assert done.code == 0, done.err
    return outcome


def on_two_ranks(case: Case, kind: str) -> Outcome:
    """DDP, FSDP, or FSDP in two halves. All families are run at once by the same two processes."""
    processes = case.folder / "two"
    if not processes.exists():
        runs = []
        for family, method in product(SIZES, METHODS):
            other = replace(case, family=family, method=method)
            both = (spread(other, case.folder / f"{other.name}-{mode}", BATCH // 2, mode) for mode in ("DDP", "FSDP"))
            runs += [entry(command) for command in both]
            # Where a checkpoint of the first half is, the second half follows.
            halves = spread(other, case.folder / f"{other.name}-halves", BATCH // 2, "FSDP")
            runs += [entry(halves, name="r", stop=1), entry(halves, name="r")]
        ranks.start(processes, runs, 2)
    return Outcome(0, "", "", case.folder / f"{case.name}-{kind}")


def spread(case: Case, output: Path, rows: int, mode: str) -> Command:
    """The command for runs that are compared over ranks, with this many rows for each of them."""
    command = case.configure().change("General", output_dir=str(output))
    command.change("Dataset", validation_split_percentage=20)
    sizes = {"batch_size": rows, "accelerate_mode": mode, "max_train_steps": STEPS, "learning_rate": 0.001}
    return command.change("Training", **sizes)


def entry(command: Command, *, stop: int | None = None, name: str | None = None) -> dict[str, Any]:
    """A run for `ranks`."""
    return {"config": copy.deepcopy(command.config), "data": str(command.folder), "stop": stop, "name": name}


def ddp(case: Case) -> None:
    """Two ranks of DDP learn the same as one with twice the batch."""
    check_same(on_one_rank(case), on_two_ranks(case, "DDP"), 1e-4)


def fsdp(case: Case) -> None:
    """FSDP learns the same as DDP."""
    check_same(on_two_ranks(case, "DDP"), on_two_ranks(case, "FSDP"), 1e-4)


def fsdp_resumes(case: Case) -> None:
    """A run of FSDP that was stopped ends as one that was not."""
    check_same(on_two_ranks(case, "FSDP"), on_two_ranks(case, "halves"), 1e-9)


FAST: dict[str, Callable[[Case], None]] = {"learns": learns, "reloads": reloads, "merged": merges, "packed": packs}
SLOW: dict[str, Callable[[Case], None]] = {"resumed": resumes, "ddp": ddp, "fsdp": fsdp, "fsdp-resumed": fsdp_resumes}
METHODS = ("full", "lora")


def cells() -> Iterator[Any]:
    """The cells of the table, such as llama-lora-resumed. Without an adapter there is nothing to merge."""
    for family, method, name in product(SIZES, METHODS, FAST | SLOW):
        if (method, name) != ("full", "merged"):
            marks = [pytest.mark.slow] if name in SLOW else []
            yield pytest.param(family, method, name, id=f"{family}-{method}-{name}", marks=marks)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the runs are that several tests look at."""
    return tmp_path_factory.mktemp("families")


@pytest.mark.sampled(8)
@pytest.mark.parametrize(("family", "method", "name"), list(cells()))
def test_family(
    command: Command, model_folder: Callable[[str], Path], tokenizer: Any, folder: Path, family: str, method: str, name: str
) -> None:
    (FAST | SLOW)[name](Case(family, method, command, model_folder, tokenizer, folder))
