"""Which tokens a row becomes, and which of them are learned."""

from __future__ import annotations

from typing import Any

import pytest
from tests.support.trainer import make_tokenizer

from finetune_trainer.config.dataset import Dataset
from finetune_trainer.data.encode import encode_rows
from finetune_trainer.data.examples import Examples
from finetune_trainer.data.jsonl import Row
from finetune_trainer.data.prompts import INTRO
from finetune_trainer.errors import ConfigError, DatasetInvalid

ROW = Row("Name a colour.", "", "Blue, of course.", 1)
WITH_CONTEXT = Row("What does the cat do?", "The cat sleeps.", "It sleeps.", 2)


def encode(tokenizer: Any, *rows: Row, **keys: Any) -> Examples:
    return encode_rows(rows, tokenizer, Dataset(train_file="f.jsonl", **keys), "f.jsonl")


def parts(tokenizer: Any, examples: Examples, index: int = 0) -> tuple[str, str]:
    ids, first, last = examples.row(index), examples.first[index], examples.last[index]
    return tokenizer.decode(ids[:first]), tokenizer.decode(ids[first:last])


@pytest.fixture(scope="module", params=["</s>", "<|endoftext|>"])
def either(request: pytest.FixtureRequest) -> Any:
    return make_tokenizer(request.param)


@pytest.mark.parametrize("style", ["neural_chat", "plain"])
def test_response_and_one_end_are_supervised(either: Any, style: str) -> None:
    end = either.eos_token
    examples = encode(either, ROW, WITH_CONTEXT, data_preprocess_type=style)
    feed = "\n\n" if style == "neural_chat" else "\n"
    head = f"{INTRO}{end}{feed}### Instruction:\n"
    assert parts(either, examples) == (f"{head}Name a colour.{end}\n### Response:\n", f"Blue, of course.{end}")
    context = f"{head}What does the cat do?### Input:\nThe cat sleeps.{end}\n### Response:\n"
    assert parts(either, examples, 1) == (context, f"It sleeps.{end}")


def test_end_token_in_the_text_stays_text(either: Any) -> None:
    end = either.eos_token
    examples = encode(either, Row(f"a{end}b", "", f"c{end}", 1))
    ids = examples.row(0)
    assert list(ids[examples.first[0] :]).count(either.eos_token_id) == 1
    assert list(ids).count(either.eos_token_id) == 3


def test_masks(tokenizer: Any) -> None:
    everything = encode(tokenizer, ROW, mask_input=False)
    assert (everything.first[0], everything.last[0]) == (1, everything.lengths[0])
    prompt = encode(tokenizer, ROW, mask_input=False, mask_response=True)
    assert prompt.last[0] == encode(tokenizer, ROW).first[0]


@pytest.mark.parametrize(("side", "kept"), [("right", "one two"), ("left", "five six")])
def test_long_response_is_cut(tokenizer: Any, side: str, kept: str) -> None:
    row = Row("Count.", "", "one two three four five six", 1)
    whole = encode(tokenizer, row)
    limit = int(whole.lengths[0]) - len(tokenizer.encode(" three four five six", add_special_tokens=False))
    if side == "left":
        limit = int(whole.first[0]) + len(tokenizer.encode("five six", add_special_tokens=False)) + 1
    cut = encode(tokenizer, row, max_length=limit, truncation_side=side)
    assert cut.lengths[0] == limit
    assert parts(tokenizer, cut)[1].strip() == kept + tokenizer.eos_token


def test_long_prompt_is_cut_and_keeps_its_end(tokenizer: Any) -> None:
    row = Row("word " * 300 + "end", "", "Done.", 1)
    examples = encode(tokenizer, row, max_source_length=200)
    prompt, response = parts(tokenizer, examples)
    assert examples.first[0] == 200
    assert prompt.endswith(f"{tokenizer.eos_token}\n### Response:\n")
    assert response == f"Done.{tokenizer.eos_token}"


def test_no_room(tokenizer: Any) -> None:
    with pytest.raises(ConfigError, match=r"max_source_length: the fixed part of the prompt alone needs \d+ tokens"):
        encode(tokenizer, ROW, max_source_length=8)
    with pytest.raises(ConfigError, match=r"max_length: 60 tokens leave no room for a response behind the prompt of f.jsonl:1"):
        encode(tokenizer, ROW, max_length=60)


def test_without_truncation_long_rows_are_refused(tokenizer: Any) -> None:
    with pytest.raises(DatasetInvalid, match=r"f.jsonl:2: the row has \d+ tokens, more than Dataset.max_length 70"):
        encode(tokenizer, WITH_CONTEXT, max_length=70, truncation=False)
