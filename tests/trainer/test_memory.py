"""The memory that is predicted is what was measured, and decides whether activations are recomputed."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tests.benchmarks import gpu_step
from tests.support.trainer import SIZES
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from finetune_trainer import memory
from finetune_trainer.config.run import Run
from finetune_trainer.config.schema import TrainerConfig
from finetune_trainer.explain import explain
from finetune_trainer.modeling import families
from finetune_trainer.runtime.distributed import Worker
from finetune_trainer.training.memory_plan import explained, largest_step, prepare_memory

WORKER = Worker(torch.device("cpu"))
H200 = 150_109_880_320
ROOM = {"NVIDIA H200": H200, "NVIDIA H100 80GB HBM3": 84_929_347_584}
WITH_COPIES = {"49d5756", "10c988e"}
"""Commits whose kernels did not share keys between heads yet: they kept a copy for each."""
MEASURED = [json.loads(line) for line in Path("docs/benchmarks/gpu_step.jsonl").read_text().splitlines()]
POINTS = [
    pytest.param(record, id=f"{record['commit']}-{record['spec']}")
    for record in MEASURED
    if not record["spec"].startswith("tiny") and record["spec"].split(":", 3)[3:] in ([], ["eager"], ["drop"], ["profile"])
]


def make_run(spec: str) -> tuple[Run, Any, set[str]]:
    """The configuration and the rows of a benchmark."""
    shape, law, tokens, *rest = spec.split(":")
    switches = set(rest)
    config = TrainerConfig.model_validate(gpu_step.configure(shape, law, int(tokens), switches, Path("/out")))
    count = config.training.batch_size * (gpu_step.WARM + gpu_step.STEPS + 4)
    return Run(config=config, output_dir=Path("/out")), gpu_step.make_rows(law, count, 1000), switches


@pytest.mark.parametrize("record", POINTS)
def test_prediction_is_within_ten_percent_of_what_was_measured(record: dict[str, Any]) -> None:
    spec = record["spec"]
    run, rows, switches = make_run(spec)
    family, sizes = gpu_step.SHAPES[spec.partition(":")[0].rpartition("-")[0]]
    shape = memory.Shape.of(CONFIG_MAPPING[family](**sizes).to_dict())
    if record["commit"] in WITH_COPIES:
        shape = dataclasses.replace(shape, kept_keys=shape.queries)
    model = SimpleNamespace(config=SimpleNamespace(model_type=family))
    step = largest_step(run, WORKER, model, rows, torch.bfloat16, ROOM[record["gpu"]])
    predicted = memory.predict(shape, dataclasses.replace(step, compiled="eager" not in switches))
    assert predicted.total / memory.GIB == pytest.approx(record["reserved_gib"], rel=0.1)


SCALED = [json.loads(line) for line in Path("docs/benchmarks/scaling.jsonl").read_text().splitlines()]
TOKENS = re.compile(r"a step of (\d+) tokens")


@pytest.mark.parametrize(
    "record", [pytest.param(record, id=record["spec"]) for record in SCALED if record["spec"].startswith("ours/8b")]
)
def test_prediction_for_several_gpus_is_within_ten_percent_of_what_was_measured(record: dict[str, Any]) -> None:
    name, mode, ranks, _, micro = record["spec"].removeprefix("ours/").split(":")
    shape = gpu_step.shape_of("8b")
    found = TOKENS.search(record["forecast"])
    assert found is not None
    step = memory.Step(
        tokens=int(found[1]),
        supervised=int(found[1]) // 2,
        adapter=memory.Adapter(8, frozenset({"q_proj", "v_proj"}), dropout=False) if name == "8b-lora" else None,
        ranks=int(ranks),
        sharded=mode == "FSDP",
        micro_batches=int(micro),
        device=H200,
    )
    predicted = memory.predict(shape, memory.fitted(shape, step, "auto"))
    assert predicted.total / memory.GIB == pytest.approx(record["reserved_gib"], rel=0.1)


@pytest.mark.parametrize(
    ("room", "micro", "reduces_each", "recomputes"),
    [
        (140, 1, False, False),
        (140, 2, False, False),
        (125, 2, True, False),
        (100, 2, False, True),
        (80, 2, True, True),
        (0, 2, True, False),
    ],
)
def test_gradients_of_shards_are_whole_between_micro_batches_only_where_there_is_room(
    room: float, micro: int, *, reduces_each: bool, recomputes: bool
) -> None:
    """8B in full on two GPUs of a host; what costs less time is done first."""
    shape = gpu_step.shape_of("8b")
    step = memory.Step(8107, 3500, ranks=2, sharded=True, micro_batches=micro, device=int(room * memory.GIB))
    made = memory.fitted(shape, step, "auto")
    assert (made.reduces_each, made.checkpointing) == (reduces_each, recomputes)
    whole = 4 * shape.weights
    assert memory.predict(shape, made).accumulated_gradients == (0 if micro == 1 else whole // 2 if reduces_each else whole)


def test_activations_are_recomputed_before_hosts_send_more_to_each_other() -> None:
    shape = gpu_step.shape_of("8b")
    step = memory.Step(8107, 3500, ranks=2, sharded=True, micro_batches=2, one_host=False, device=125 * memory.GIB)
    made = memory.fitted(shape, step, "auto")
    assert (made.reduces_each, made.checkpointing) == (False, True)
    assert memory.fitted(shape, step, recomputes=False).reduces_each


def test_points_are_of_more_than_one_model_and_size() -> None:
    assert len(POINTS) >= 10
    laws = {point.values[0]["spec"].rpartition(":")[0] for point in POINTS}
    assert laws >= {"8b-lora:logn", "8b-lora:dense", "1b-full:logn", "bloom-1b-lora:logn", "mpt-1b-lora:logn"}


@pytest.mark.parametrize("family", SIZES)
def test_weights_are_counted_for_every_family(family: str) -> None:
    """But for biases, norms, and what a tiny model has beside its matrices."""
    config = CONFIG_MAPPING[family](vocab_size=4000, **SIZES[family])
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, attn_implementation=families.FAMILIES[family].attention)
    count = sum(weight.numel() for weight in model.parameters())
    assert memory.Shape.of(config.to_dict()).weights == pytest.approx(count, rel=0.02)


def prepared(room: float, **general: Any) -> tuple[Any, str]:
    """A tiny model on a device with so many GiB, and what was predicted for it."""
    run, rows, _ = make_run("tiny-lora:logn:8192")
    config = TrainerConfig.model_validate(
        {"General": {"base_model": "m", **general}, "Dataset": {"train_file": "f"}, "Training": {"batch_size": 40}}
    )
    model = AutoModelForCausalLM.from_config(CONFIG_MAPPING["llama"](vocab_size=1000, **SIZES["llama"])).train()
    run = Run(config=config, output_dir=run.output_dir)
    return model, prepare_memory(run, WORKER, model, rows, torch.bfloat16, int(room * memory.GIB)).forecast


@pytest.mark.parametrize(
    ("room", "general", "recomputes"),
    [(80, {}, False), (0.25, {}, True), (0.25, {"enable_gradient_checkpointing": False}, False), (0, {}, False)],
)
def test_activations_are_recomputed_only_where_memory_forces_it(room: float, general: dict[str, Any], recomputes: bool) -> None:
    model, forecast = prepared(room, **general)
    assert any(getattr(part, "gradient_checkpointing", False) for part in model.modules()) == recomputes
    assert bool(forecast) == bool(room)


def test_recomputed_activations_take_less_and_shards_less_still() -> None:
    shape = gpu_step.shape_of("8b")
    step = memory.Step(tokens=8192, supervised=3500, device=H200)
    whole, less, shards = (
        memory.predict(shape, dataclasses.replace(step, **changed))
        for changed in ({}, {"checkpointing": True}, {"checkpointing": True, "ranks": 8, "sharded": True})
    )
    assert less.activations < whole.activations / 5
    whole_at_a_time = 2 * (2 * shape.layer + 2 * shape.vocabulary * shape.hidden)
    assert shards.weights == less.weights // 8 + whole_at_a_time
    assert not less.fits(H200)  # 8B in full, with float32 masters
    assert shards.fits(H200)


def test_error_for_lack_of_memory_has_the_prediction() -> None:
    run, _, _ = make_run("tiny-lora:logn:8192")
    engine: Any = SimpleNamespace(forecast="a step of 9 tokens was predicted to take 1.0 GiB")
    with pytest.raises(torch.OutOfMemoryError) as caught, explained(engine):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
    said = str(explain(caught.value, run))
    assert "CUDA out of memory" in said
    assert "; a step of 9 tokens was predicted to take 1.0 GiB; try " in said
