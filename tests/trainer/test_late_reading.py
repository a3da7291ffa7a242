"""A loop that reads the loss of a step when the next one is on its way, as on a GPU: it learns the same and keeps nothing bad.

A CPU has nothing to gain from it, but it can do it.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pytest
import torch
from tests.support import engines
from tests.trainer.test_gradients import bad_gradient, is_finite

from finetune_trainer.errors import LossNotFinite

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.trainer import Command

    from finetune_trainer.runtime.engine import Engine


pytestmark = pytest.mark.sampled(4)


@pytest.fixture
def train(command: Command) -> Callable[..., Engine]:
    """Take four steps, late or not, into a folder of this name; `report` sees each step on record."""

    def run(name: str, *, late: bool, every: int = 0, report: Any = None) -> Engine:
        engine = engines.make(command, name, every=every)
        return engines.train(engines.reading_late(engine) if late else engine, report)

    return run


def checkpoints(engine: Engine) -> list[str]:
    return sorted(path.name for path in engine.run.checkpoints.iterdir())


def test_weights_and_records_are_the_same(train: Callable[..., Engine]) -> None:
    seen: dict[bool, list[dict[str, Any]]] = {False: [], True: []}
    engines = [train(str(late), late=late, report=seen[late].append) for late in (False, True)]
    for ours, theirs in zip(*(engine.weights for engine in engines), strict=True):
        assert torch.equal(ours, theirs)
    assert seen[False] == seen[True]
    assert [record["step"] for record in seen[True]] == [1, 2, 3, 4]


@pytest.mark.parametrize("step", [1, 2, 4])
@pytest.mark.parametrize("value", [math.nan, math.inf, 1e30])
def test_step_that_is_not_finite_is_named_and_not_kept(
    train: Callable[..., Engine], step: int, value: float, tmp_path: Any
) -> None:
    with bad_gradient(value, step), pytest.raises(LossNotFinite, match=f"the gradients are not finite at step {step} of 4"):
        train("late", late=True, every=1)
    kept = list((tmp_path / "late" / "checkpoints").glob("step-*"))
    assert sorted(path.name for path in kept) == [f"step-{number:08}" for number in (1, 2, 3)[max(step - 3, 0) : step - 1]]
    assert all(is_finite(path) for folder in kept for path in folder.glob("rank-*"))


def test_step_that_is_not_finite_is_found_one_step_later_at_most(train: Callable[..., Engine]) -> None:
    seen: list[int] = []
    with bad_gradient(math.nan, 2), pytest.raises(LossNotFinite, match="at step 2 of 4"):
        train("late", late=True, report=lambda record: seen.append(record["step"]))
    assert seen == [1]


def test_stopped_run_goes_on_as_if_it_was_not(train: Callable[..., Engine], tmp_path: Any) -> None:
    whole = train("whole", late=True)
    stop = tmp_path / "parts" / "logs" / "stop"
    first = train("parts", late=True, report=lambda record: stop.touch() if record["step"] == 1 else None)
    assert checkpoints(first) == ["step-00000002"]
    stop.unlink()
    second = train("parts", late=True)
    for ours, theirs in zip(second.weights, whole.weights, strict=True):
        assert torch.equal(ours, theirs)
