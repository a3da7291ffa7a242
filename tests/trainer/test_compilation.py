"""Compiled layers learn what layers learn that run as they are, and are compiled once, whatever the lengths of the rows.

What torch traces is compared here with a back end that only runs it; tests/trainer/test_compiled_runs.py compiles for real.
"""

from __future__ import annotations

import logging
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from tests.support.trainer import NO_DROPOUT, SIZES, VOCABULARY
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from finetune_trainer.data.batching import collate, pack
from finetune_trainer.data.examples import Examples
from finetune_trainer.modeling import families
from finetune_trainer.modeling.attention import Kernel, Segments, attend
from finetune_trainer.modeling.compilation import Compiler, configure
from finetune_trainer.modeling.loss import SupervisedLoss
from finetune_trainer.runtime.distributed import Worker
from finetune_trainer.training.setup import pack_rows

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [
    pytest.mark.sampled(8),
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning"),  # transformers, PEFT
    pytest.mark.filterwarnings("ignore:fan_in_fan_out:UserWarning"),  # PEFT, which sets it itself
]
STEPS = 20


@pytest.fixture(autouse=True)
def anew() -> Iterator[None]:
    """Each test compiles for itself."""
    from torch._dynamo.utils import counters

    torch.compiler.reset()
    counters.clear()
    yield
    torch.compiler.reset()


def make_examples() -> Examples:
    """Rows of random length and tokens, whose second half is supervised."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(5, 60, 100)
    starts = np.concatenate([[0], np.cumsum(lengths)])
    tokens = rng.integers(1, VOCABULARY, starts[-1]).astype(np.int32)
    return Examples(tokens, starts, np.maximum(lengths // 2, 1), lengths, np.arange(100), "f", VOCABULARY - 1)


def make_model(family: str, *, lora: bool = False) -> Any:
    torch.manual_seed(0)
    config = CONFIG_MAPPING[family](vocab_size=VOCABULARY, bos_token_id=0, eos_token_id=0, **SIZES[family])
    for name in NO_DROPOUT:
        if hasattr(config, name):
            setattr(config, name, 0.0)
    row = families.family_of(family)
    model = AutoModelForCausalLM.from_config(config, attn_implementation=row.attention)
    if lora:
        model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=list(row.lora_targets or ())))
    return model.train()


def compile_layers(layers: Any, backend: Any) -> Compiler:
    compiler = Compiler(backend)
    compiler.compile_layers(layers)
    return compiler


def learn(model: Any, *, packed: bool, steps: int = STEPS, kernel: Kernel | None = None) -> list[float]:
    """The losses of some steps, each with other lengths and another number of rows."""
    module, examples = SupervisedLoss(model), make_examples()
    module.kernel_on = lambda _: kernel
    optimizer = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad], lr=1e-3)
    losses = []
    for step in range(steps):
        rows = np.arange(4 * step, 4 * step + 2 + step % 3)
        longest = int(examples.lengths.max())
        batch = pack(examples, rows, longest) if packed else collate(examples, rows, 0, "right", None)
        summed = module(batch)
        (summed / len(batch.targets)).backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(summed.item() / len(batch.targets))
    return losses


QUICK = ("llama", "mpt")
CASES = [
    *(pytest.param(family, False, "eager", marks=[] if family in QUICK else [pytest.mark.slow]) for family in SIZES),
    pytest.param("llama", True, "aot_eager", marks=pytest.mark.slow),
    pytest.param("gpt2", True, "eager", marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("family", "lora", "backend"), CASES)
def test_losses_are_those_of_layers_that_run_as_they_are(family: str, lora: bool, backend: str) -> None:
    plain, compiled = make_model(family, lora=lora), make_model(family, lora=lora)
    packed = False
    for model in (plain, compiled):
        packed = pack_rows(SupervisedLoss(model), model, Worker(torch.device("cpu")))
    compiler = compile_layers(families.decoder_layers(compiled), backend)
    with torch._dynamo.config.patch(error_on_recompile=True):
        losses = learn(compiled, packed=packed)
    assert compiler.failure is None
    assert graphs() > 0
    assert losses == pytest.approx(learn(plain, packed=packed), abs=1e-5)


def test_layers_of_another_class_are_compiled_as_they_are() -> None:
    """FSDP changes the class of a layer after it was set up."""
    model = make_model("llama")
    layers = families.decoder_layers(model)
    compiler, kind = compile_layers(layers, "eager"), type(layers[0])
    for layer in layers:
        layer.__class__ = type("Sharded", (kind,), {})
    losses = learn(model, packed=False, steps=2)
    assert compiler.failure is None
    assert losses == pytest.approx(learn(make_model("llama"), packed=False, steps=2), abs=1e-5)


@pytest.mark.slow
def test_gradient_checkpointing_goes_on() -> None:
    plain, compiled = make_model("mpt"), make_model("mpt")
    for model in (plain, compiled):
        model.activation_checkpointing_enable({"use_reentrant": False})
    compiler = compile_layers(families.decoder_layers(compiled), "aot_eager")
    losses = learn(compiled, packed=False, steps=3)
    assert compiler.failure is None
    assert losses == pytest.approx(learn(plain, packed=False, steps=3), abs=1e-5)


def test_without_gradients_layers_run_as_they_are() -> None:
    model = make_model("llama")
    compile_layers(families.decoder_layers(model), "eager")
    with torch.no_grad():
        model(input_ids=torch.arange(1, 9)[None])
    model.eval().generate(input_ids=torch.arange(1, 9)[None], max_new_tokens=3, do_sample=False)
    assert graphs() == 0


def broken(*_: Any) -> Any:
    raise RuntimeError("no C compiler\nand much advice")


def test_layers_that_cannot_be_compiled_run_as_they_are(caplog: pytest.LogCaptureFixture) -> None:
    plain, compiled = make_model("llama"), make_model("llama")
    compiler = compile_layers(families.decoder_layers(compiled), broken)
    with caplog.at_level(logging.WARNING, "finetune_trainer"):
        losses = learn(compiled, packed=False, steps=3)
    assert losses == learn(plain, packed=False, steps=3)
    assert "no C compiler" in (compiler.failure or "")
    (record,) = (record for record in caplog.records if record.name.startswith("finetune_trainer"))
    assert "the layers of the model are not compiled, training is slower: " in record.getMessage()
    assert "advice" not in record.getMessage()


def test_error_of_layers_that_were_compiled_is_an_error() -> None:
    model = make_model("llama")
    compiler = compile_layers(families.decoder_layers(model), broken)
    compiler.proved = True
    warnings.simplefilter("ignore")
    with pytest.raises(Exception, match="no C compiler"):
        learn(model, packed=False, steps=1)


def dense(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, starts: torch.Tensor, longest: int, window: int | None,
    scaling: float, dropout: float,
) -> torch.Tensor:  # fmt: skip
    """A stand-in for the kernel of a GPU: its graph does not depend on the rows either."""
    assert window is None
    place = torch.arange(query.shape[0])
    row = torch.bucketize(place, starts[1:], right=True)
    sees = (row[:, None] == row) & (place[:, None] >= place)
    tensors = (tensor.transpose(0, 1)[None] for tensor in (query, key, value))
    options: dict[str, Any] = {"attn_mask": sees, "scale": scaling, "dropout_p": dropout, "enable_gqa": True}
    return torch.nn.functional.scaled_dot_product_attention(*tensors, **options)[0].transpose(0, 1)


@pytest.mark.parametrize("family", ["gpt2", "gptj", "bloom", "mpt"])
def test_layers_are_one_graph_where_a_kernel_takes_all_rows(family: str) -> None:
    """And they learn what transformers' own learn from padded rows."""
    padded, compiled = make_model(family), make_model(family)
    assert pack_rows(SupervisedLoss(compiled), compiled, Worker(torch.device("cpu")))
    compiler = compile_layers(families.decoder_layers(compiled), "eager")
    with torch._dynamo.config.patch(error_on_recompile=True):
        losses = learn(compiled, packed=True, steps=5, kernel=Kernel(dense, types=(torch.float32,)))
    assert compiler.failure is None
    assert not torch._dynamo.utils.counters["graph_break"]
    assert graphs() == 1
    assert losses == pytest.approx(learn(padded, packed=False, steps=5), abs=1e-5)


@torch.no_grad()
def test_kernel_for_all_rows_is_in_one_graph_for_all_lengths() -> None:
    """A new length, another number of rows and other starts change nothing in what was compiled."""
    configure()
    compiled = torch.compile(attend, backend="aot_eager", fullgraph=True, dynamic=True)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for lengths in [(5, 3, 7), (4, 9), (1, 2, 3, 30)]:
            torch.manual_seed(0)
            query, key, value = (torch.randn(1, heads, sum(lengths), 8, dtype=torch.bfloat16) for heads in (4, 2, 2))
            segments = Segments.of(lengths, query.device)
            segments.longest, segments.kernel = 30, Kernel(dense)
            together, _ = compiled(None, query, key, value, None, segments=segments)
            segments.kernel = None
            torch.testing.assert_close(
                together, attend(None, query, key, value, None, segments=segments)[0], atol=0.02, rtol=0.02
            )


def graphs() -> int:
    """How many graphs torch has traced."""
    from torch._dynamo.utils import counters

    return int(counters["stats"]["unique_graphs"])
