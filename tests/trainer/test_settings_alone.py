"""Settings and tokenizers that fit everything else only together train by themselves, or are refused before a model is loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from tests.support.trainer import make_model, make_tokenizer

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.trainer import Command

pytestmark = pytest.mark.sampled(8)


def model_without_pad(folder: Path, *tokens: str) -> str:
    """A model for the vocabulary of a tokenizer that has tokens behind it, the last of which is its pad token."""
    from transformers import AutoConfig, AutoModelForCausalLM

    tokenizer = make_tokenizer()
    size = len(tokenizer)
    tokenizer.add_tokens(list(tokens[:-1]))
    tokenizer.add_special_tokens({"pad_token": tokens[-1]})
    make_model("llama", tokenizer, folder)
    config = AutoConfig.from_pretrained(folder)
    config.vocab_size = size
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return str(folder)


@pytest.mark.sampled(4)
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("group", [True, False])
def test_pad_token_that_the_model_lacks_is_not_needed(command: Command, tmp_path: Path, group: bool, side: str) -> None:
    command.change("General", base_model=model_without_pad(tmp_path / "m", "[PAD]"), sample_prompts=2)
    command.change("Dataset", group=group, padding_side=side, validation_split_percentage=20)
    outcome = command.run()
    assert outcome.code == 0, outcome.err


def test_token_of_the_rows_that_the_model_lacks_is_refused(command: Command, tmp_path: Path) -> None:
    command.change("General", base_model=model_without_pad(tmp_path / "m", "ZZZ", "[PAD]"))
    command.write_rows({"instruction": "ZZZ", "response": "a"})
    outcome = command.run()
    assert outcome.code == 2
    assert "error: General.tokenizer_name: the tokenizer gives token " in outcome.err


@pytest.mark.parametrize("rate", [1e-7, 1e-9, 1e-5])
def test_polynomial_schedule_takes_every_rate(command: Command, rate: float) -> None:
    outcome = command.change("Training", lr_scheduler="polynomial", learning_rate=rate).run()
    assert outcome.code == 0, outcome.err


@pytest.mark.parametrize("keys", [{"max_length": 128}, {"max_length": 128, "data_preprocess_type": "plain"}])
def test_max_length_alone_trains_on_long_prompts(command: Command, keys: dict[str, Any]) -> None:
    command.write_rows({"instruction": "Tell me. " * 200, "response": "word " * 200}, {"instruction": "a", "response": "b"})
    outcome = command.change("Dataset", **keys).run()
    assert outcome.code == 0, outcome.err
    assert "1 of 2 prompts (50.0 %) were cut to fit, in lines 1; raise Dataset.max_length (now 128)" in outcome.err


def test_whole_of_a_long_text_is_trained_on(command: Command) -> None:
    text = " ".join(f"Sentence {number}." for number in range(1000))
    command.write_rows({"text": text}, {"text": "Short."})
    command.change("Dataset", block_size=100).change("Training", max_train_steps=2)
    outcome = command.run()
    assert outcome.code == 0, outcome.err
    tokenizer = make_tokenizer()
    tokens = sum(len(tokenizer(part)["input_ids"]) + 1 for part in (text, "Short."))
    card = (outcome.output / "README.md").read_text()
    assert f"of data.jsonl, {tokens} tokens" in card
