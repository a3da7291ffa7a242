"""What a GPU computes for packed rows is what transformers computes for each row by itself, in float32 and eager attention.

    python -m tests.benchmarks.gpu_check [FAMILY… | fp8]

For each family a line of JSON: how far loss and gradients are from those of transformers, relative to them, with the rows
packed in float32, in bfloat16, and in bfloat16 with compiled layers. Then for sizes of heads, what dropout of attention draws:
what one seed draws is the same each time, and the average over many is what comes without dropout. Then, on GPUs that can, for a
frozen layer in 8 bits, how far its output and the gradient of its input are from those in bfloat16, for several counts of tokens,
compiled or not, and those of a CPU that emulates it. It ends with 1 if a number
is out of its bounds, and says which. It takes a minute, needs no network and no Ray, and runs on a CPU, too, in float32.
"""

from __future__ import annotations

import json
import logging
import sys
import time
import traceback
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from tests.support.engines import emulated_product
from tests.support.trainer import NO_DROPOUT
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from finetune_trainer.data.batching import Batch, collate, pack
from finetune_trainer.data.examples import Examples
from finetune_trainer.modeling import attention, families, frozen, packed_families
from finetune_trainer.modeling.compilation import Compiler
from finetune_trainer.modeling.loss import SupervisedLoss
from finetune_trainer.runtime import devices

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
VOCABULARY = 1003
"""No multiple of 8, as that of GPT-2."""
HEADS = {"num_hidden_layers": 3, "num_attention_heads": 8, "hidden_size": 512, "intermediate_size": 1024}
SIZES: dict[str, dict[str, Any]] = {
    "llama": HEADS | {"num_key_value_heads": 2, "max_position_embeddings": 2048},
    "mistral": HEADS | {"num_key_value_heads": 4, "max_position_embeddings": 2048, "sliding_window": 100},
    "gpt_neox": HEADS | {"num_attention_heads": 2, "max_position_embeddings": 2048},
    "opt": {"hidden_size": 512, "ffn_dim": 1024, "num_hidden_layers": 3, "num_attention_heads": 8,
            "max_position_embeddings": 2048, "word_embed_proj_dim": 512},
    "gptj": {"n_embd": 512, "n_layer": 3, "n_head": 2, "n_positions": 2048, "rotary_dim": 64},
    "bloom": {"hidden_size": 768, "n_layer": 3, "n_head": 8},
    "mpt": {"d_model": 768, "n_heads": 6, "n_layers": 3, "max_seq_len": 2048},
    "gpt2": {"n_embd": 512, "n_layer": 3, "n_head": 8, "n_positions": 2048},
}  # fmt: skip
"""Heads of 64, of 96 and 128 with ALiBi, and of 256; three slopes of ALiBi are no powers of two, as with six heads."""
BOUNDS = {
    "float32": 1e-4,
    "bfloat16": 0.03,
    "compiled": 0.03,
    "seed": 1e-6,
    "average": 0.05,
    "forward": 0.045,
    "backward": 0.045,
    "emulated": 0.01,
}
"""Relative; bfloat16 has 8 bits, and an average of draws has the spread of its draws. float8 has 0.04, a single token more."""
DROPOUT, DRAWS = 0.1, 200
DROPPING = {"heads of 64": (64, False), "heads of 256": (256, False), "heads of 96 with ALiBi": (96, True)}


def make_rows() -> Examples:
    """Rows of 1 to 1,500 tokens."""
    rng = np.random.default_rng(0)
    lengths = np.array([1500, 3, 700, 128, 129, 1, 64, 333])
    starts = np.concatenate([[0], np.cumsum(lengths)])
    tokens = rng.integers(1, VOCABULARY, starts[-1]).astype(np.int32)
    return Examples(tokens, starts, np.maximum(lengths // 2, 1), lengths, np.arange(len(lengths)), "f", VOCABULARY - 1)


def make_model(family: str) -> Any:
    """A model with the same random weights at each call, in float32, without dropout."""
    config = CONFIG_MAPPING[family](vocab_size=VOCABULARY, bos_token_id=0, eos_token_id=0, pad_token_id=0, **SIZES[family])
    for name in NO_DROPOUT:
        if hasattr(config, name):
            setattr(config, name, 0.0)
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager").to(DEVICE).train()


def gradients(model: Any, batches: list[Batch], dtype: torch.dtype) -> tuple[float, torch.Tensor]:
    """The loss, and all gradients in a line, in float32."""
    module, loss = SupervisedLoss(model), 0.0
    model.zero_grad()
    for batch in batches:
        with torch.autocast(DEVICE.type, dtype=dtype) if dtype != torch.float32 else nullcontext():
            made = module(batch.to(DEVICE))
        made.backward()
        loss += made.item()
    return loss, torch.cat([weight.grad.flatten().float() for weight in model.parameters() if weight.grad is not None])


def differ(ours: tuple[float, torch.Tensor], theirs: tuple[float, torch.Tensor]) -> float:
    """How far they are apart, relative to the latter."""
    return max(abs(ours[0] / theirs[0] - 1), apart(ours[1], theirs[1]))


def taken_over(family: str) -> Any:
    """A model that takes packed rows."""
    model = make_model(family)
    assert packed_families.take_over(model)
    return model


def check(family: str) -> dict[str, float]:
    """How far what is computed is from what is expected, by what is in `BOUNDS`."""
    examples = make_rows()
    rows = np.arange(len(examples))
    alone = [collate(examples, np.array([row]), 0, "right", None) for row in rows]
    expected = gradients(make_model(family), alone, torch.float32)
    packed = [pack(examples, rows)]
    found = {
        "float32": differ(gradients(taken_over(family), packed, torch.float32), expected),
    }
    if DEVICE.type == "cuda":
        found["bfloat16"] = differ(gradients(taken_over(family), packed, torch.bfloat16), expected)
        model = taken_over(family)
        compiler = Compiler()
        compiler.compile_layers(families.decoder_layers(model))
        found["compiled"] = differ(gradients(model, packed, torch.bfloat16), expected)
        assert compiler.failure is None, compiler.failure
    return found


def drop(name: str) -> dict[str, float]:
    """What dropout of attention draws."""
    size, biased = DROPPING[name]
    lengths = (130, 1, 61)
    torch.manual_seed(0)
    dtype = torch.bfloat16 if DEVICE.type == "cuda" else torch.float32
    shape = (1, 4, sum(lengths), size)
    query, key, value = (torch.randn(shape, device=DEVICE, dtype=dtype, requires_grad=True) for _ in range(3))
    segments = attention.Segments.of(lengths, DEVICE)
    if biased:
        positions = torch.cat([torch.arange(length, device=DEVICE) for length in lengths])
        segments.alibi = packed_families.alibi(packed_families.bloom_slopes, 4, size**-0.5, positions)

    def once(seed: int, dropout: float) -> torch.Tensor:
        """The output, and the gradient of the values, which dropout changes linearly: averages say what is expected."""
        torch.manual_seed(seed)
        made = attention.attend(None, query, key, value, None, dropout=dropout, segments=segments)[0]
        (rise,) = torch.autograd.grad(made, value, torch.ones_like(made))
        return torch.stack([made.detach().flatten().float(), rise.transpose(1, 2).flatten().float()])

    expected, first = once(0, 0.0), once(0, DROPOUT)
    mean = sum((once(seed, DROPOUT) for seed in range(1, DRAWS)), first) / DRAWS
    assert apart(first, expected) > 0.01, "dropout drops nothing"
    return {"seed": apart(once(0, DROPOUT), first), "average": apart(mean, expected)}


class Sum(torch.nn.Module):
    """The sum of two layers with the same input, as a decoder layer has several."""

    def __init__(self, first: torch.nn.Module, second: torch.nn.Module) -> None:
        super().__init__()
        self.first, self.second = first, second

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """[..., inputs] to [..., outputs]."""
        return self.first(inputs) + self.second(inputs)


def check_frozen() -> dict[str, float]:
    """How far frozen layers in 8 bits are from what they were, and from what is emulated, at most."""
    torch.manual_seed(0)
    linears = [torch.nn.Linear(512, 1536, bias=False, dtype=torch.bfloat16).requires_grad_(False) for _ in range(2)]
    gpu = DEVICE.type == "cuda"
    emulated = Sum(*(frozen.FrozenLinear(each, torch.device("cpu"), emulated_product) for each in linears))
    layer = Sum(*(frozen.FrozenLinear(each, DEVICE, frozen.scaled_product if gpu else emulated_product) for each in linears))
    plain = Sum(*linears).to(DEVICE)
    found = {"forward": 0.0, "backward": 0.0, "emulated": 0.0}
    for compiled in (False, True) if gpu else (False,):
        compiler = Compiler()
        if compiled:
            compiler.compile_layers([layer])
        for count in (1, 7, 16, 1000, 1027):
            inputs, gradient = (torch.randn(count, size, device=DEVICE, dtype=torch.bfloat16) for size in (512, 1536))
            ours, expected = both_ways(layer, inputs, gradient), both_ways(plain, inputs, gradient)
            likewise = both_ways(emulated, inputs.cpu(), gradient.cpu())
            values = [("forward", apart(ours[0], expected[0])), ("backward", apart(ours[1], expected[1]))]
            values += [("emulated", apart(mine.cpu(), other)) for mine, other in zip(ours, likewise, strict=True)]
            for name, value in values:
                found[name] = max(found[name], value)
        assert compiler.failure is None, compiler.failure
    return found


def both_ways(layer: torch.nn.Module, inputs: torch.Tensor, gradient: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Output, and gradient of the input, in float32."""
    given = inputs.clone().requires_grad_()
    made = layer(given)
    return made.detach().float(), torch.autograd.grad(made, given, gradient)[0].float()


def apart(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """How far two tensors are apart, relative to the latter."""
    return float((ours - theirs).norm() / theirs.norm())


def main(names: list[str]) -> int:
    """Check one after the other; 1: something is out of its bounds."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    torch.backends.cuda.matmul.allow_tf32 = False
    failed = False
    fp8 = ["fp8"] if devices.capability(DEVICE) >= frozen.CAPABILITY else []
    for name in names or [*SIZES, *DROPPING, *fp8]:
        attention._tell.cache_clear()
        torch.compiler.reset()
        began = time.perf_counter()
        try:
            found: dict[str, Any] = check_frozen() if name == "fp8" else check(name) if name in SIZES else drop(name)
        except Exception as error:  # noqa: BLE001 - the others are checked all the same
            traceback.print_exc()
            found, failed = {"error": repr(error)[:300]}, True
        out = [bound for bound, value in found.items() if bound in BOUNDS and not value <= BOUNDS[bound]]
        failed = failed or bool(out)
        line = {"what": name, **found, "out of bounds": out, "seconds": round(time.perf_counter() - began, 1)}
        print(json.dumps(line), flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
