"""What the table of families says of each fits the models of transformers; and what is not of one family only."""

from __future__ import annotations

import dataclasses
import json
import logging
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as PEFT_TARGETS
from tests.support import ranks
from tests.support.trainer import SIZES, VOCABULARY, make_model, sample_rows
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, LlamaModel, PretrainedConfig

from finetune_trainer.config.dataset import Dataset
from finetune_trainer.data.batching import collate, pack
from finetune_trainer.data.encode import encode_rows
from finetune_trainer.data.jsonl import Row
from finetune_trainer.modeling import families, packed_families
from finetune_trainer.modeling.loss import SupervisedLoss
from finetune_trainer.runtime.distributed import Worker
from finetune_trainer.training.setup import pack_rows

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.support.trainer import Command, Outcome

    from finetune_trainer.data.examples import Examples

pytestmark = [
    pytest.mark.sampled(4),
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning"),  # PEFT, when it loads an adapter
]

IDS = torch.arange(1, 33).reshape(2, 16)


@pytest.fixture(scope="module")
def examples(tokenizer: Any) -> Examples:
    rows = [Row(**row, line=1) for row in sample_rows(5)]
    return encode_rows(rows, tokenizer, Dataset(train_file="f"), "f")


def load(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def adapted(command: Command, outcome: Outcome) -> Any:
    return PeftModel.from_pretrained(load(command.config["General"]["base_model"]), outcome.output).eval()


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    result: torch.Tensor = model(IDS).logits
    return result


def run(command: Command, **general: Any) -> Outcome:
    """Three steps on all rows."""
    outcome = command.change("General", **general).change("Training", max_train_steps=3, batch_size=24).run()
    assert outcome.code == 0, outcome.err
    assert outcome.losses[0] > outcome.losses[1] > outcome.losses[2]
    return outcome


def test_merged_model_is_a_part_of_the_result(command: Command) -> None:
    outcome = command.change("General", merge_adapter=True).run("--run_name", "one")
    manifest = json.loads((outcome.output / "manifest.json").read_text())
    assert {"adapter_model.safetensors", "merged/model.safetensors", "merged/tokenizer.json"} <= {
        entry["path"] for entry in manifest["files"]
    }
    again = command.run("--run_name", "one")
    assert again.out == f"finished in an earlier attempt: {outcome.output}\n"


# PEFT, of a linear layer among GPT-2's convolutions, and of the tie that is tested here
@pytest.mark.filterwarnings("ignore:fan_in_fan_out:UserWarning", "ignore:.*tie_word_embeddings:UserWarning")
def test_adapted_output_layer_is_merged_without_the_embeddings_it_was_tied_to(
    command: Command, model_folder: Callable[[str], Path]
) -> None:
    lora = {"r": 4, "lora_alpha": 8, "lora_dropout": 0.0, "target_modules": ["c_attn", "lm_head"]}
    outcome = run(command, base_model=str(model_folder("gpt2")), merge_adapter=True, lora_config=lora)
    merged, before = load(outcome.output / "merged"), load(model_folder("gpt2"))
    assert before.lm_head.weight is before.transformer.wte.weight
    torch.testing.assert_close(logits(merged), logits(adapted(command, outcome)), atol=1e-5, rtol=1e-5)
    assert torch.equal(merged.transformer.wte.weight, before.transformer.wte.weight)
    assert not torch.equal(merged.lm_head.weight, before.lm_head.weight)


@torch.no_grad()
@pytest.mark.parametrize("family", [name for name, row in families.FAMILIES.items() if row.packs_rows])
def test_packed_rows_do_not_affect_each_other(examples: Examples, family: str) -> None:
    """Also with a window of attention shorter than the rows, where the family has one."""
    sizes = SIZES.get(family, SIZES["llama"]) | {"pad_token_id": 0, "sliding_window": 100}
    torch.manual_seed(0)
    config = CONFIG_MAPPING[family](vocab_size=VOCABULARY, **sizes)
    model = AutoModelForCausalLM.from_config(config, attn_implementation=families.FAMILIES[family].attention).eval()
    module, rows = SupervisedLoss(model), np.arange(len(examples))
    apart = [float(module(collate(examples, np.array([row]), 0, "right", None))) for row in rows]
    assert pack_rows(module, model, Worker(torch.device("cpu")))
    module.eval()
    together = float(module(pack(examples, rows)))
    assert together == pytest.approx(sum(apart), rel=1e-6)
    assert float(module(pack(examples, rows[::-1]))) == pytest.approx(together, rel=1e-6)
    mixed = dataclasses.replace(pack(examples, rows), packed=(int(examples.lengths.sum()),))
    assert abs(float(module(mixed)) - together) > 1e-3


class Deaf(LlamaModel):
    """A model that takes no notice of where a row begins."""

    def forward(self, input_ids: torch.Tensor, **others: Any) -> Any:
        return super().forward(input_ids, use_cache=others["use_cache"])


class DeafInTraining(Deaf):
    """One whose kernel for dropout takes none."""

    def forward(self, input_ids: torch.Tensor, **others: Any) -> Any:
        return (super() if self.training else super(Deaf, self)).forward(input_ids, **others)


class DeafUnderAutocast(Deaf):
    """One whose kernel for a lower precision takes none."""

    def forward(self, input_ids: torch.Tensor, **others: Any) -> Any:
        return (super() if torch.is_autocast_enabled("cpu") else super(Deaf, self)).forward(input_ids, **others)


def deaf(kind: type[LlamaModel]) -> Any:
    """A tiny llama of this kind, with dropout."""
    config = CONFIG_MAPPING["llama"](vocab_size=VOCABULARY, attention_dropout=0.5, **SIZES["llama"])
    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
    model.model = kind(config)
    return model


@pytest.mark.parametrize("kind", [DeafInTraining, DeafUnderAutocast])
def test_packing_is_tried_with_the_kernels_that_will_run(kind: type[LlamaModel]) -> None:
    worker, half = Worker(torch.device("cpu")), partial(torch.autocast, "cpu", dtype=torch.float16)
    hears = deaf(LlamaModel)
    assert pack_rows(SupervisedLoss(hears), hears, worker, half)
    model = deaf(kind)
    assert not pack_rows(SupervisedLoss(model), model, worker, half)


def test_model_that_mixes_packed_rows_is_detected(caplog: pytest.LogCaptureFixture) -> None:
    model = deaf(Deaf)
    with caplog.at_level(logging.WARNING, "finetune_trainer"):
        assert not pack_rows(SupervisedLoss(model), model, Worker(torch.device("cpu")))
    assert "does not keep packed rows apart: rows are padded" in caplog.text
    assert model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("family", packed_families.FAMILIES)
def test_model_with_attention_of_its_own_code_is_padded(family: str, caplog: pytest.LogCaptureFixture) -> None:
    """As one with `trust_remote_code`; what was taken over of it is given back."""
    config = CONFIG_MAPPING[family](vocab_size=VOCABULARY, **SIZES[family])
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    before = packed_families.FAMILIES[family].before
    first, other = (part for part in model.modules() if type(part) is before)
    other.__class__ = type("Own", (before,), {})
    with caplog.at_level(logging.WARNING, "finetune_trainer"):
        logging.getLogger("finetune_trainer").propagate = True
        assert not pack_rows(SupervisedLoss(model), model, Worker(torch.device("cpu")))
    assert "rows are padded" in caplog.text
    assert type(first) is before


@pytest.mark.parametrize("family", families.FAMILIES)
def test_row_of_the_table_fits_the_model(family: str) -> None:
    row = families.FAMILIES[family]
    assert list(row.lora_targets or ()) == PEFT_TARGETS[family]
    if family not in SIZES:
        return
    config = CONFIG_MAPPING[family](vocab_size=64, **SIZES[family])
    model = AutoModelForCausalLM.from_config(config, attn_implementation=row.attention)
    layers = families.decoder_layers(model)
    assert len(layers) == 2
    assert {type(layer).__name__.endswith(("Layer", "Block")) for layer in layers} == {True}
    assert families.has_plain_head(model)
    assert families.takes_positions(model) == (family not in ("bloom", "mpt"))


@torch.no_grad()
@pytest.mark.parametrize("family", SIZES)
def test_limit_of_the_table_is_where_the_model_ends(family: str) -> None:
    sizes = {key: 40 if value == 512 else value for key, value in SIZES[family].items()}
    model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[family](vocab_size=64, **sizes)).eval()
    limit = families.longest_input(model)
    assert limit == (None if family == "bloom" else 40)
    assert model(torch.ones(1, 40, dtype=torch.int64)).logits.isfinite().all()
    if family in ("opt", "mpt", "gpt2", "gptj"):  # the others compute their positions
        with pytest.raises((RuntimeError, IndexError)):
            model(torch.ones(1, 48, dtype=torch.int64))


@pytest.mark.parametrize("key", ["max_position_embeddings", "max_seq_len", "n_positions", "seq_length"])
def test_limit_of_a_family_without_a_row_is_found_by_its_usual_names(key: str) -> None:
    class Model(torch.nn.Module):
        config = PretrainedConfig(**{key: 40})

    assert families.longest_input(Model()) == 40


def test_row_that_is_too_long_for_mpt_is_refused_in_words(command: Command, tokenizer: Any) -> None:
    folder = make_model("mpt", tokenizer, command.folder / "short", max_seq_len=64)
    command.write_rows({"instruction": "a", "response": "b " * 100})
    outcome = command.change("General", base_model=str(folder), lora_config=None).run()
    assert outcome.code == 2, outcome.err
    assert "the model takes 64" in outcome.err


def test_family_without_a_row_is_trained_and_named(command: Command, tokenizer: Any, caplog: pytest.LogCaptureFixture) -> None:
    sizes = {**SIZES["llama"], "head_dim": 8, "pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0}
    config = CONFIG_MAPPING["gemma2"](vocab_size=400, **sizes)
    folder = command.folder / "other"
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    assert len(families.decoder_layers(model)) == 2
    assert not families.has_plain_head(model)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    with caplog.at_level(logging.WARNING):
        outcome = run(command, base_model=str(folder), lora_config=None)
    assert "not tested with models of type gemma2" in caplog.text + outcome.err
    assert not torch.allclose(logits(load(outcome.output)), logits(load(folder)), atol=1e-3)


@pytest.mark.slow
def test_optimizer_that_cannot_work_on_shards_is_refused(command: Command, tmp_path: Path) -> None:
    command.change("Training", optimizer="Adafactor", accelerate_mode="FSDP")
    run = {"config": command.config, "data": str(command.folder), "stop": None, "name": None}
    with pytest.raises(AssertionError, match=r"Training\.optimizer: Adafactor does not work on the shards of FSDP"):
        ranks.start(tmp_path / "rank", [run], 2)
