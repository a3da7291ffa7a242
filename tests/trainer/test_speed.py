"""The time of a step that is predicted is what was measured."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from tests.benchmarks import gpu_step, gpu_table

from finetune_trainer import memory, speed
from finetune_trainer.modeling import families

CARDS = {device.name: device for device in speed.GPUS.values()}
RECORDS = [
    json.loads(line)
    for name in ("gpu_step", "gpu_fp8", "scaling")
    for line in Path(f"docs/benchmarks/{name}.jsonl").read_text().splitlines()
]
POINTS = [record for record in RECORDS if "steps_ms" in record and not record["spec"].startswith("tiny")]
"""But for the tiny model, which does not occupy a GPU."""
SUPERVISED = 0.43
"""Part of the tokens, in those runs."""


def work_of(record: dict[str, Any]) -> tuple[memory.Shape, speed.Work]:
    """The model and the average step of a measured run."""
    ranks, micro = record.get("gpus", 1), 1
    if "gpus" in record:  # of the scaling over several
        name, mode, *_, count = record["spec"].removeprefix("ours/").split(":")
        law, rest, micro = "logn", [], int(count)
    else:
        (name, law, _, *rest), mode = record["spec"].split(":"), ""
    size, _, method = name.rpartition("-")
    switches = set(rest[0].split("+")) if rest else set()
    shape, lengths = gpu_step.shape_of(size), gpu_step.lengths(law, 900)
    adapter = None
    if method == "lora":
        targets = families.family_of(shape.family).lora_targets or ()
        adapter = memory.Adapter(8, frozenset(targets), "drop" in switches)
    tokens = record["tok_step"] / ranks / micro
    step = memory.Step(
        tokens,
        round(SUPERVISED * tokens),
        adapter,
        compiled="eager" not in switches,
        ranks=ranks,
        sharded=mode == "FSDP",
        micro_batches=micro,
        fp8="fp8" in switches,
        device=CARDS[record["gpu"]].memory,
    )
    step = memory.fitted(shape, step, recomputes=False)
    return shape, speed.Work(step, sum(size * (size + 1) / 2 for size in lengths) / sum(lengths))


@pytest.mark.parametrize("record", POINTS, ids=lambda record: f"{record['commit']}-{record['spec']}")
def test_prediction_is_within_ten_percent_of_what_was_measured(record: dict[str, Any]) -> None:
    shape, work = work_of(record)
    measured = float(gpu_table.row(record)[4])
    assert 1000 * speed.predict(shape, work, CARDS[record["gpu"]]).total == pytest.approx(measured, rel=0.1)


def test_points_are_of_several_models_on_both_cards() -> None:
    assert len(POINTS) >= 25
    assert {record["gpu"] for record in POINTS} == {device.name for device in speed.GPUS.values() if device.measured}
    assert len({record["spec"].partition(":")[0] for record in POINTS}) >= 8


def full(ranks: int, micro: int = 1, *, sharded: bool) -> speed.Seconds:
    step = memory.Step(8192, 3500, ranks=ranks, sharded=sharded, micro_batches=micro)
    return speed.predict(gpu_step.shape_of("8b"), speed.Work(step, 130.0), speed.GPUS["h100"], link=25e9 / 8)


def test_more_than_one_rank_costs_an_exchange_that_hides_behind_a_large_step() -> None:
    one, ddp, fsdp = full(1, sharded=False), full(8, sharded=False), full(8, sharded=True)
    assert one.exchange == 0
    # Gradients in float32 there and back are as many bytes as weights in 16 bits, twice, and gradients once.
    assert fsdp.exchange == pytest.approx(ddp.exchange)
    assert ddp.exchange > one.total
    assert full(8, 64, sharded=False).exchange == 0
    assert full(8, 64, sharded=True).exchange > 64 * ddp.exchange / 4


def test_shards_within_a_host_take_time_from_the_matrices_beside_their_exchange() -> None:
    step = memory.Step(8192, 3500, ranks=2, sharded=True)
    within = speed.predict(gpu_step.shape_of("8b"), speed.Work(step, 130.0), speed.GPUS["h200"])
    assert 0 < within.exchange < within.matrices / 2


def test_a_step_of_few_tokens_takes_as_long_as_the_weights_take_to_be_read() -> None:
    shape, device = gpu_step.shape_of("8b"), dataclasses.replace(speed.GPUS["h100"], bandwidth=1e12)
    small, smaller = (
        speed.predict(shape, speed.Work(memory.Step(tokens, tokens), tokens / 2), device).matrices for tokens in (8, 4)
    )
    assert small == smaller > 0.03


def test_cores_of_a_cpu_are_as_fast_as_they_are_said_to_be() -> None:
    step = memory.Step(2048, 900, lower=False, compiled=False)
    work, shape = speed.Work(step, 130.0), gpu_step.shape_of("tiny")
    slow, fast = speed.predict(shape, work, speed.cpu(4)), speed.predict(shape, work, speed.cpu(4, 2 * speed.CORE_RATE))
    assert fast.matrices == pytest.approx(slow.matrices / 2)
    assert slow.host == slow.exchange == 0
