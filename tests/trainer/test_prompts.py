"""Which tokens a row becomes, and which of them are learned."""

from __future__ import annotations

from typing import Any

import pytest
from tests.support.trainer import make_tokenizer

from finetune_trainer.config.dataset import Dataset
from finetune_trainer.data.encode import encode_rows
from finetune_trainer.data.examples import Examples
from finetune_trainer.data.jsonl import Row
from finetune_trainer.data.llm_on_ray_prompt import INTRO
from finetune_trainer.data.truncation import split_text
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
    cut = encode(tokenizer, row, max_length=limit, max_source_length=384, truncation_side=side)
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
        encode(tokenizer, ROW, max_length=60, max_source_length=384)
    with pytest.raises(
        ConfigError, match=r"Dataset.max_length: the fixed part .* needs \d+ tokens, which do not fit into 60 with"
    ):
        encode(tokenizer, ROW, max_length=60)


def test_without_truncation_long_rows_are_refused(tokenizer: Any) -> None:
    with pytest.raises(DatasetInvalid, match=r"f.jsonl:2: the row has \d+ tokens, more than Dataset.max_length 70"):
        encode(tokenizer, WITH_CONTEXT, max_length=70, max_source_length=384, truncation=False)


@pytest.mark.parametrize("style", ["neural_chat", "plain"])
@pytest.mark.parametrize("limit", [128, 160, 256])
def test_max_length_alone_leaves_room_for_a_response(tokenizer: Any, style: str, limit: int) -> None:
    rows = [Row("Say more. " * repeat, "", "word " * 100, 1) for repeat in (1, 2, 5, 20, 100)]
    examples = encode(tokenizer, *rows, max_length=limit, data_preprocess_type=style)
    assert max(examples.lengths) == limit
    assert all(examples.supervised >= min(5, limit - 118))


def test_max_length_alone_does_not_lengthen_prompts(tokenizer: Any) -> None:
    assert encode(tokenizer, Row("word " * 600, "", "Done.", 1), max_length=2048).first[0] == 384


@pytest.mark.parametrize(("settings", "longest"), [({"block_size": 40}, 40), ({"max_length": 64}, 64), ({}, 512)])
def test_long_text_is_split_into_blocks(tokenizer: Any, settings: dict[str, int], longest: int) -> None:
    text = "".join(f"Sentence {number} of a long text. " for number in range(400))
    examples = encode(tokenizer, Row("", "", "", 1, text), Row("", "", "", 2, "Short."), **settings)
    *blocks, short = (examples.row(index).tolist() for index in range(len(examples)))
    assert tokenizer.decode(short) == f"Short.{tokenizer.eos_token}"
    whole = [token for block in blocks for token in block]
    assert tokenizer.decode(whole) == text + tokenizer.eos_token
    assert whole.count(tokenizer.eos_token_id) == 1
    assert longest * 0.8 < min(map(len, blocks)) <= max(map(len, blocks)) <= longest
    assert list(examples.lines[-2:]) == [1, 2]


@pytest.mark.parametrize("size", range(1, 40))
def test_no_block_is_a_fragment(size: int) -> None:
    blocks = split_text(list(range(size)), 8)
    assert [token for block in blocks for token in block] == list(range(size))
    assert all(2 <= len(block) <= 8 for block in blocks) or size == 1


def test_text_that_is_split_needs_no_truncation(tokenizer: Any) -> None:
    assert len(encode(tokenizer, Row("", "", "", 1, "word " * 300), block_size=64, truncation=False)) > 10
