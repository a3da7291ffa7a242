"""Frozen weights in 8 bits: adapters learn on them, and a merged model is made of the base model's own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from tests.support import engines
from tests.support.engines import emulated_product
from torch import nn

from finetune_trainer import memory
from finetune_trainer.advice import to_save_memory
from finetune_trainer.checkpoint.identity import configuration_digest
from finetune_trainer.config.notes import config_notes
from finetune_trainer.config.run import Run
from finetune_trainer.config.schema import TrainerConfig
from finetune_trainer.errors import ConfigError, DeviceNotFound
from finetune_trainer.modeling import frozen
from finetune_trainer.modeling.compilation import Compiler
from finetune_trainer.output import export
from finetune_trainer.runtime import parallel
from finetune_trainer.training.precision import check_frozen
from finetune_trainer.training.reference import take_reference

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.support.trainer import Command

pytestmark = pytest.mark.sampled(8)

CPU = torch.device("cpu")
BOUND = 0.04
GPU = {"device": "GPU", "mixed_precision": "bf16", "resources_per_worker": {"CPU": 1, "GPU": 1}}


@pytest.fixture
def held(command: Command) -> Command:
    """LoRA on frozen weights in 8 bits."""
    lora = {"r": 4, "lora_alpha": 16, "lora_dropout": 0.0, "target_modules": ["q_proj", "v_proj"]}
    command.change("General", frozen_dtype="fp8", lora_config=lora)
    return command.change("Training", **GPU, accelerate_mode=None, batch_size=8, learning_rate=0.02, max_train_steps=8)


def layers(bias: bool = False) -> tuple[nn.Linear, frozen.FrozenLinear]:
    """A frozen layer, and the same one in 8 bits."""
    torch.manual_seed(0)
    linear = nn.Linear(512, 768, bias=bias).requires_grad_(False)
    nn.init.normal_(linear.weight, std=0.02)
    return linear, frozen.FrozenLinear(linear, CPU, emulated_product)


def apart(found: torch.Tensor, expected: torch.Tensor) -> float:
    """How far two tensors are apart, relative to the latter."""
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("size", [1.0, 1e-9])
def test_outputs_and_gradients_of_a_layer_are_within_four_per_cent(size: float) -> None:
    """Also gradients as small as those of a token among many."""
    linear, rounded = layers(bias=True)
    inputs = torch.randn(3, 50, 512)
    gradient = size * torch.randn(3, 50, 768)
    found: list[tuple[torch.Tensor, torch.Tensor]] = []
    for layer in (rounded, linear):
        given = inputs.clone().requires_grad_()
        made = layer(given)
        made.backward(gradient)
        assert given.grad is not None
        found.append((made.detach(), given.grad))
    assert 0.005 < apart(found[0][0], found[1][0]) < BOUND
    assert 0.005 < apart(found[0][1], found[1][1]) < BOUND
    assert apart(rounded.weight, linear.weight) < BOUND


def test_what_is_not_finite_stays_so() -> None:
    _, rounded = layers()
    inputs = torch.ones(3, 512)
    inputs[1, 5], inputs[2, 5] = torch.inf, torch.nan
    made = rounded(inputs)
    assert made[0].isfinite().all()
    assert made[1:].isnan().all()
    assert (rounded(torch.zeros(1, 512)) == 0).all()


class Several(nn.Module):
    """Layers in 8 bits of one decoder layer, of which two have the same input."""

    def __init__(self) -> None:
        super().__init__()
        made = [layers(bias)[1] for bias in (True, False)]
        self.parts = nn.ModuleList(made)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        first, second = self.parts
        return torch.nn.functional.silu(first(inputs)) * second(inputs)


def test_compiled_layers_compute_the_same() -> None:
    module = Several()
    compiler = Compiler("aot_eager")
    compiler.compile_layers([module])
    for shape in ((1, 5), (1, 8), (2, 13), (3, 7)):
        inputs = torch.randn(*shape, 512, requires_grad=True)
        gradient = torch.randn(*shape, 768)
        expected = Several.forward(module, inputs)
        (slope,) = torch.autograd.grad(expected, inputs, gradient)
        made = module(inputs)
        assert compiler.failure is None
        assert torch.allclose(made, expected, rtol=1e-5, atol=1e-6)
        assert torch.allclose(torch.autograd.grad(made, inputs, gradient)[0], slope, rtol=1e-5, atol=1e-6)


def test_adapters_learn_on_packed_rows_and_a_checkpoint_holds_them_only(held: Command) -> None:
    losses: list[float] = []
    engine = engines.make(held, "a", every=4, product=emulated_product)
    assert engine.packed
    assert sum(isinstance(part, frozen.FrozenLinear) for part in engine.model.modules()) == 14
    assert all("lora_" in name for name in engine.learning)
    engines.train(engine, lambda record: losses.append(record["loss"]))
    assert losses[-1] < losses[0] - 0.1
    files = [load_file(path) for path in engine.run.checkpoints.rglob("rank-*.safetensors")]
    assert files
    assert all("lora_" in name for tensors in files for name in tensors)


def test_losses_are_near_those_of_weights_that_are_not_rounded(held: Command) -> None:
    losses: dict[str | None, list[float]] = {"fp8": [], None: []}
    for kind, seen in losses.items():
        held.change("General", frozen_dtype=kind)
        engine = engines.make(held, str(kind), product=emulated_product)
        engines.train(engine, lambda record, seen=seen: seen.append(record["loss"]))
    assert losses["fp8"] == pytest.approx(losses[None], rel=0.02)


def test_merged_model_is_made_of_the_base_models_own_weights(held: Command, model_folder: Callable[[str], Path]) -> None:
    engine = engines.train(engines.make(held, "a", product=emulated_product))
    with parallel.evaluation_mode(engine.loss):
        reference = take_reference(engine)
    inputs = export.ExportInput(engine.model, None, engine_tokenizer(held), torch.float32, reference)
    export._save_adapter(inputs, "m", engine.run.output_dir)
    adapter = load_file(engine.run.output_dir / "adapter_model.safetensors")
    export._save_merged(engine.run, inputs, engine.run.output_dir / "merged")
    merged = {
        name: tensor
        for path in (engine.run.output_dir / "merged").glob("*.safetensors")
        for name, tensor in load_file(path).items()
    }
    base = load_file(model_folder("llama") / "model.safetensors")
    assert merged.keys() == base.keys()
    for name, weight in base.items():
        stem = f"base_model.model.{name.removesuffix('.weight')}"
        expected = weight.float()
        if f"{stem}.lora_A.weight" in adapter:
            expected = expected + 4 * adapter[f"{stem}.lora_B.weight"].float() @ adapter[f"{stem}.lora_A.weight"].float()
        assert torch.allclose(merged[name].float(), expected, atol=1e-6), name


def engine_tokenizer(command: Command) -> Any:
    """The tokenizer of the base model."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(command.config["General"]["base_model"])


def test_rounded_run_goes_on_from_a_rounded_checkpoint_only(held: Command) -> None:
    digests = set()
    for kind in ("fp8", None):
        held.change("General", frozen_dtype=kind)
        engine = engines.make(held, str(kind), product=emulated_product)
        digests.add(configuration_digest(engine.run, engine.data))
    assert len(digests) == 2


def test_model_without_linear_layers_is_refused_in_words(held: Command, model_folder: Callable[[str], Path]) -> None:
    held.change("General", base_model=str(model_folder("gpt2")))
    held.config["General"]["lora_config"]["target_modules"] = ["c_attn"]
    with pytest.raises(
        ConfigError, match=r"General\.frozen_dtype: a model of type gpt2 has no linear layers .* leave frozen_dtype out"
    ):
        engines.make(held, "a", product=emulated_product)


def config(general: dict[str, Any] | None = None, **training: Any) -> TrainerConfig:
    """A configuration with frozen weights in 8 bits."""
    return TrainerConfig.model_validate(
        {"General": {"base_model": "m", "frozen_dtype": "fp8", "lora_config": {}, **(general or {})},
         "Dataset": {"train_file": "f"}, "Training": {**GPU, **training}}
    )  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"general": {"lora_config": None}}, "needs General.lora_config"),
        ({"device": "CPU", "resources_per_worker": {"CPU": 1}}, "needs Training.device GPU; leave frozen_dtype out"),
        ({"accelerate_mode": "GPU_FSDP"}, "not supported with Training.accelerate_mode FSDP; use GPU_DDP"),
    ],
)
def test_configuration_that_cannot_be_run_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        config(**changes)


def test_device_and_type_that_cannot_compute_with_it_are_refused_at_the_start() -> None:
    def check(capability: tuple[int, int], **training: Any) -> None:
        check_frozen(Run(config=config(**training), output_dir=None), capability)  # type: ignore[arg-type]

    check((8, 9))
    check((9, 0))
    for capability, what in (((8, 0), "this one has 8.0"), ((0, 0), "this is another device")):
        with pytest.raises(
            DeviceNotFound, match=f"needs an NVIDIA GPU of compute capability 8.9 or higher.*{what}: leave frozen"
        ):
            check(capability)
    with pytest.raises(ConfigError, match=r"fp8 needs Training\.mixed_precision: bf16, not no"):
        check((9, 0), mixed_precision="no")


def test_validate_says_that_the_compute_type_does_not_fit() -> None:
    assert config_notes(config()) == []
    assert any(
        "General.frozen_dtype: fp8 needs Training.mixed_precision: bf16" in note
        for note in config_notes(config(mixed_precision="no"))
    )


def test_no_advice_is_given_that_would_be_refused() -> None:
    assert "FSDP" not in to_save_memory(config(num_training_workers=2), "device")


def test_prediction_counts_both_copies_of_the_weights() -> None:
    """In bfloat16 a weight has two bytes, and in float8 two copies have one each."""
    shape = memory.Shape("llama", 4096, 14336, 32, 4096, 1024, 128256, 0, tied=False, heads=32, head=128, kept_keys=1024)
    adapter = memory.Adapter(8, frozenset({"q_proj", "v_proj"}), dropout=False)
    wide, rounded = (memory.predict(shape, memory.Step(8192, 3500, adapter, lower=lower, fp8=fp8)).weights
                     for lower, fp8 in ((True, False), (True, True)))  # fmt: skip
    assert rounded == wide
