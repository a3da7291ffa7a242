"""Splits, plans and tensors: every row once, the same on all ranks."""

from __future__ import annotations

import math
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from finetune_trainer.config.dataset import Dataset
from finetune_trainer.config.schema import TrainerConfig
from finetune_trainer.data import batching, splits, step_plan
from finetune_trainer.data.encode import encode_rows
from finetune_trainer.data.jsonl import Row

if TYPE_CHECKING:
    from finetune_trainer.data.examples import Examples

LENGTHS = np.random.default_rng(0).integers(5, 200, 23)


def config(**training: Any) -> TrainerConfig:
    dataset = {"train_file": "f", **training.pop("dataset", {})}
    return TrainerConfig.model_validate({"General": {"base_model": "m"}, "Dataset": dataset, "Training": training})


def test_order_of_rows_of_one_length_is_not_the_cpus_choice() -> None:
    """numpy's sort depends on the CPU's instructions, so rows of equal length may come in another order."""
    lengths = np.tile([7, 5], 500)
    order, _ = step_plan._epoch(lengths, 2000, np.random.default_rng(0), by_length=True)
    drawn = np.random.default_rng(0).permutation(len(lengths))
    assert order.tolist() == [*drawn[lengths[drawn] == 7], *drawn[lengths[drawn] == 5]]


@pytest.mark.parametrize("workers", [1, 2, 3])
@pytest.mark.parametrize("by_length", [True, False])
def test_each_epoch_has_every_row_once(workers: int, by_length: bool) -> None:
    settings = config(batch_size=2, epochs=2, gradient_accumulation_steps=2)
    total = step_plan.total_steps(LENGTHS, workers, settings)
    steps = list(islice(step_plan.plan_steps(LENGTHS, workers, settings, by_length=by_length), total))
    assert steps[-1].epoch == 2
    first = [step for step in steps if step.epoch <= 1]
    assert 2 * len(first) == total
    for epoch in (first, steps[len(first) :]):
        rows = [row for step in epoch for micro in step.micro for share in micro for row in share]
        assert sorted(rows) == list(range(len(LENGTHS)))
    assert all(len(share) <= 2 for step in steps for micro in step.micro for share in micro)


def test_global_batches_do_not_depend_on_the_workers() -> None:
    one = step_plan.plan_steps(LENGTHS, 1, config(batch_size=4))
    two = step_plan.plan_steps(LENGTHS, 2, config(batch_size=2))
    for left, right in islice(zip(one, two, strict=False), 12):
        assert sorted(left.micro[0][0]) == sorted(np.concatenate(right.micro[0]))


def test_without_shuffle_rows_keep_their_order() -> None:
    settings = config(batch_size=4, dataset={"shuffle": False})
    step = next(step_plan.plan_steps(LENGTHS, 1, settings))
    assert sorted(step.micro[0][0]) == [0, 1, 2, 3]


def test_grouping_by_length_saves_padding() -> None:
    def padded(*, by_length: bool) -> int:
        plan = step_plan.plan_steps(LENGTHS, 1, config(batch_size=4), by_length=by_length)
        return sum(4 * LENGTHS[step.micro[0][0]].max() for step in islice(plan, 6))

    assert padded(by_length=True) < 0.8 * padded(by_length=False)


BUDGET = 1000
"""Tokens of a step; a row has 102 on average."""


@pytest.mark.parametrize("workers", [1, 2, 3])
@pytest.mark.parametrize("by_length", [True, False])
@pytest.mark.parametrize("shuffle", [True, False])
def test_budget_of_tokens_makes_steps_of_equal_tokens(workers: int, by_length: bool, shuffle: bool) -> None:
    lengths = np.random.default_rng(1).integers(5, 200, 200)
    settings = config(tokens_per_step=BUDGET, epochs=2, gradient_accumulation_steps=2, dataset={"shuffle": shuffle})
    total = step_plan.total_steps(lengths, workers, settings)
    assert total == 2 * math.ceil(lengths.sum() / BUDGET)
    steps = list(islice(step_plan.plan_steps(lengths, workers, settings, by_length=by_length), total))
    assert [step.ends_epoch for step in steps] == [number in (total // 2, total) for number in range(1, total + 1)]
    for epoch in (steps[: total // 2], steps[total // 2 :]):
        assert sorted(np.concatenate([share for step in epoch for micro in step.micro for share in micro])) == list(range(200))
    for step in steps:
        parts = [int(lengths[share].sum()) for micro in step.micro for share in micro]
        assert len(parts) == 2 * workers
        assert abs(sum(parts) - BUDGET) < 200
        assert max(parts) - min(parts) < 200


def test_steps_of_a_budget_have_the_same_rows_on_any_number_of_workers() -> None:
    settings = config(tokens_per_step=500)
    one, three = (step_plan.plan_steps(LENGTHS, workers, settings) for workers in (1, 3))
    for left, right in islice(zip(one, three, strict=False), 12):
        assert sorted(left.micro[0][0]) == sorted(np.concatenate(right.micro[0]))


@pytest.mark.parametrize("budget", [None, 500])
def test_plan_goes_on_after_the_steps_that_are_done(budget: int | None) -> None:
    settings = config(tokens_per_step=budget, batch_size=4)
    whole = list(islice(step_plan.plan_steps(LENGTHS, 2, settings), 15))
    for done in (1, 5, 11):
        rest = list(islice(step_plan.plan_steps(LENGTHS, 2, settings, done), 15 - done))
        assert [step.epoch for step in rest] == [step.epoch for step in whole[done:]]
        for ours, theirs in zip(rest, whole[done:], strict=True):
            assert [share.tolist() for share in ours.micro[0]] == [share.tolist() for share in theirs.micro[0]]


@pytest.mark.parametrize("workers", [1, 2, 3, 4, 8, 50])
@pytest.mark.parametrize("budget", [None, 500])
@pytest.mark.parametrize("by_length", [True, False])
def test_steps_keep_their_rows_when_other_ranks_go_on(workers: int, budget: int | None, by_length: bool) -> None:
    settings = config(tokens_per_step=budget, batch_size=2, gradient_accumulation_steps=2)
    total = 2 * step_plan.steps_per_epoch(LENGTHS, 4, settings)
    began = list(islice(step_plan.plan_steps(LENGTHS, 4, settings, by_length=by_length), total))
    rest = step_plan.plan_steps(LENGTHS, workers, settings, 1, by_length=by_length, made_for=4)
    for before, after in zip(began[1:], rest, strict=False):
        assert (before.epoch, before.ends_epoch) == (after.epoch, after.ends_epoch)
        rows, spread = (sorted(row for micro in step.micro for share in micro for row in share) for step in (before, after))
        assert rows == spread
        assert all(len(micro) == workers for micro in after.micro)
        assert workers == 4 or all(any(map(len, micro)) for micro in after.micro)
        if budget is None:
            assert all(len(share) <= 2 for micro in after.micro for share in micro)
        else:
            assert len(after.micro) <= math.ceil(2 * 4 / workers)


@pytest.mark.parametrize("lengths", [[5000, 1, 1], [1, 1, 5000], [1, 5000, 1, 5000], [7], [3, 3, 3, 3]])
@pytest.mark.parametrize("budget", [1, 6, 100, 10**9])
def test_each_step_has_a_row_whatever_the_budget(lengths: list[int], budget: int) -> None:
    settings, sizes = config(tokens_per_step=budget, epochs=1), np.array(lengths)
    total = step_plan.total_steps(sizes, 2, settings)
    steps = list(islice(step_plan.plan_steps(sizes, 2, settings), total))
    assert steps[-1].ends_epoch
    assert all(sum(map(len, step.micro[0])) for step in steps)
    assert sorted(row for step in steps for share in step.micro[0] for row in share) == list(range(len(lengths)))


def test_split_is_seeded_and_leaves_a_row() -> None:
    train, held = splits.split_rows(np.arange(1, 31), 5, 42)
    assert len(held) == 2
    assert sorted([*train, *held]) == list(range(30))
    assert list(held) == list(splits.split_rows(np.arange(1, 31), 5, 42)[1])
    assert [len(part) for part in splits.split_rows(np.array([1]), 50, 0)] == [1, 0]


@pytest.fixture(scope="module")
def examples(tokenizer: Any) -> Examples:
    rows = [Row("Say it.", "", "yes " * length, 1) for length in (1, 9)]
    return encode_rows(rows, tokenizer, Dataset(train_file="f"), "f")


@pytest.mark.parametrize("side", ["right", "left"])
def test_targets_are_the_next_tokens(examples: Examples, tokenizer: Any, side: str) -> None:
    batch = batching.collate(examples, np.array([0, 1]), tokenizer.pad_token_id, side, None)
    assert batch.input_ids.shape[1] % 8 == 0
    width = batch.input_ids.shape[1]
    for line in range(2):
        chosen = batch.places // width == line
        wanted = examples.row(line)[examples.first[line] : examples.last[line]]
        assert batch.targets[chosen].tolist() == wanted.tolist()
        before = batch.input_ids.flatten()[batch.places[chosen]].tolist()[1:]
        assert before == wanted.tolist()[:-1]
    if side == "left":
        assert batch.attention_mask is not None
        assert batch.position_ids is not None
        assert int(batch.position_ids[0].max()) == examples.lengths[0] - 1


def test_rank_without_rows_has_no_targets(examples: Examples) -> None:
    batch = batching.collate(examples, np.array([], dtype=int), 0, "right", None)
    assert len(batch.places) == len(batch.targets) == 0


def test_packed_rows_keep_their_places(examples: Examples) -> None:
    batch = batching.pack(examples, np.array([1, 0]), longest=100)
    assert batch.starts is not None
    assert batch.starts.tolist() == [0, examples.lengths[1], examples.lengths.sum()]
    assert batch.longest == 100
    assert batch.input_ids[0, batch.places[-1]] == examples.row(0)[examples.last[0] - 2]
    wanted = [examples.row(row)[examples.first[row] : examples.last[row]].tolist() for row in (1, 0)]
    assert batch.targets.tolist() == [*wanted[0], *wanted[1]]


def test_blocks_of_a_text_are_all_trained_on_or_all_evaluated() -> None:
    lines = np.repeat(np.arange(1, 11), 7)
    train, held = splits.split_rows(lines, 30, 42)
    assert set(lines[train]).isdisjoint(lines[held])
    assert (len(train), len(held)) == (49, 21)
