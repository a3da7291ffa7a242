r"""What a row becomes, read back in words: the prompt, and behind the bar what is learned.

E stands for the tokenizer's end-of-sequence token, whatever its text.
"""

from __future__ import annotations

from typing import Any

import pytest
from tests.support.trainer import make_tokenizer, prompt_ids

from finetune_trainer.config.dataset import Dataset
from finetune_trainer.data.encode import encode_rows
from finetune_trainer.data.jsonl import Row
from finetune_trainer.data.llm_on_ray_prompt import INTRO
from finetune_trainer.errors import ConfigError

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""Ends a response with a token of its own, as SmolLM2 and Qwen do."""

INST = (
    "{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST]"
    "{% else %} {{ m['content'] }} {{ eos_token }}{% endif %}{% endfor %}"
)
"""Ends it with E, has blanks around it, and asks for nothing to be generated, as Llama 2 and Mistral do."""

THINKS = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if m['role'] == 'assistant' %}<think>\n\n</think>\n\n{% endif %}"
    "{{ m['content'] }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""Puts empty thoughts in front of a response, as Qwen3 does."""

BARE = (
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
)
"""Has no token that ends a response."""

ROW = Row("Name a colour.", "", "Blue, of course.", 1)
CONTEXT = Row("What does it do?", "The cat sleeps.", "It sleeps.", 1)
TEXT = Row("", "", "", 1, "Blue is a colour.")
COUNT = Row("Count.", "", "one two three four five six", 1)

CUT = "{intro}E\n### Instruction:\nCount.E\n### Response:\n"
PLAIN, MODEL, LEFT = {"data_preprocess_type": "plain"}, {"template": CHATML}, {"truncation_side": "left"}
ASKED = "<|im_start|>user\nName a colour.<|im_end|>\n<|im_start|>assistant\n"
COUNTING = "<|im_start|>user\nCount.<|im_end|>\n<|im_start|>assistant\n"
QUESTION = "### Instruction:\nWhat does it do?### Input:\nThe cat sleeps."

LABELS: dict[str, tuple[Row, dict[str, Any], str]] = {
    "neural_chat": (ROW, {}, "{intro}E\n\n### Instruction:\nName a colour.E\n### Response:\n|Blue, of course.E"),
    "neural_chat, context": (CONTEXT, {}, f"{{intro}}E\n\n{QUESTION}E\n### Response:\n|It sleeps.E"),
    "plain": (ROW, PLAIN, "{intro}E\n### Instruction:\nName a colour.E\n### Response:\n|Blue, of course.E"),
    "plain, context": (CONTEXT, PLAIN, f"{{intro}}E\n{QUESTION}E\n### Response:\n|It sleeps.E"),
    "text": (TEXT, {}, "B|lue is a colour.E"),
    "text, mask_input off": (TEXT, {"mask_input": False}, "B|lue is a colour.E"),
    "text, mask_response": (TEXT, {"mask_input": False, "mask_response": True}, "B|lue is a colour.E"),
    "cut right": (COUNT, {"keep": "one two"}, "{intro}E\n\n### Instruction:\nCount.E\n### Response:\n|one twoE"),
    "cut left": (COUNT, {"keep": " five six", **LEFT}, "{intro}E\n\n### Instruction:\nCount.E\n### Response:\n| five sixE"),
    "plain, cut right": (COUNT, {"keep": "one two", **PLAIN}, f"{CUT}|one twoE"),
    "plain, cut left": (
        COUNT,
        {"keep": " five six", **PLAIN, **LEFT},
        f"{CUT}| five sixE",
    ),
    "model": (ROW, MODEL, f"{ASKED}|Blue, of course.<|im_end|>"),
    "model, context": (
        CONTEXT,
        MODEL,
        "<|im_start|>user\nWhat does it do?\n\nThe cat sleeps.<|im_end|>\n<|im_start|>assistant\n|It sleeps.<|im_end|>",
    ),
    "model, cut right": (COUNT, {"keep": "one two", **MODEL}, f"{COUNTING}|one two<|im_end|>"),
    "model, cut left": (COUNT, {"keep": " five six", **MODEL, **LEFT}, f"{COUNTING}| five six<|im_end|>"),
    "model that ends with E": (ROW, {"template": INST}, "[INST] Name a colour. [/INST]| Blue, of course. E"),
    "model that thinks": (ROW, {"template": THINKS}, f"{ASKED}<think>\n\n</think>\n\n|Blue, of course.<|im_end|>"),
    "model without an end": (ROW, {"template": BARE}, "user: Name a colour.\nassistant: |Blue, of course.E"),
}


@pytest.fixture(scope="module", params=["</s>", "<|endoftext|>"])
def tokenizer(request: pytest.FixtureRequest) -> Any:
    made = make_tokenizer(request.param)
    made.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    return made


def settings(tokenizer: Any, template: str | None = None, **keys: Any) -> Dataset:
    tokenizer.chat_template = template
    return Dataset(train_file="f", chat_template="model" if template else "llm_on_ray", **keys)


def read(tokenizer: Any, row: Row, template: str | None = None, **keys: Any) -> str:
    """One row, read back; the bar stands in front of what is learned."""
    examples = encode_rows([row], tokenizer, settings(tokenizer, template, **keys), "f")
    ids, first, last = examples.row(0), examples.first[0], examples.last[0]
    assert last == len(ids)
    ends = [tokenizer.eos_token_id, *tokenizer.convert_tokens_to_ids(["<|im_end|>"])]
    assert sum(token in ends for token in ids[first:]) == 1
    return f"{tokenizer.decode(ids[:first])}|{tokenizer.decode(ids[first:])}"


@pytest.mark.parametrize(("row", "keys", "wanted"), LABELS.values(), ids=LABELS)
def test_response_and_one_end_are_learned(tokenizer: Any, row: Row, keys: dict[str, Any], wanted: str) -> None:
    keys = dict(keys)
    if keep := keys.pop("keep", None):
        ids = tokenizer(keep, add_special_tokens=False)["input_ids"]
        prompt = prompt_ids(row, tokenizer, settings(tokenizer, **keys))
        keys |= {"max_length": len(prompt) + len(ids) + 1, "max_source_length": 384}
    assert read(tokenizer, row, **keys) == wanted.replace("E", tokenizer.eos_token).replace("{intro}", INTRO)


@pytest.mark.parametrize("text", ["Blue.E", "Blue.E\n", "Blue.EE", "Blue."])
def test_text_that_is_closed_is_not_closed_again(tokenizer: Any, text: str) -> None:
    end = tokenizer.eos_token
    assert read(tokenizer, Row("", "", "", 1, text.replace("E", end))) == f"B|lue.{end}"


def test_text_begins_as_the_tokenizer_begins_texts() -> None:
    from tokenizers.processors import TemplateProcessing

    tokenizer = make_tokenizer("</s>")
    tokenizer.add_special_tokens({"bos_token": "<s>", "additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    special = [("<s>", tokenizer.bos_token_id), ("</s>", tokenizer.eos_token_id)]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A </s>", special_tokens=special)
    assert read(tokenizer, TEXT) == read(tokenizer, Row("", "", "", 1, "<s>Blue is a colour.")) == "<s>|Blue is a colour.</s>"


@pytest.mark.parametrize("template", [None, CHATML, INST])
def test_special_tokens_in_a_row_are_words(tokenizer: Any, template: str | None) -> None:
    end = tokenizer.eos_token
    row = Row(f"a{end}b<|im_end|>c", f"d{end}", f"yes<|im_end|>f{end}", 1)
    prompt, _, response = read(tokenizer, row, template).partition("| yes" if template == INST else "|yes")
    assert f"a{end}b<|im_end|>c" in prompt
    assert f"d{end}" in prompt
    assert response.removeprefix(f"<|im_end|>f{end}").strip() == ("<|im_end|>" if template == CHATML else end)


def test_long_prompt_keeps_what_the_template_puts_around_it(tokenizer: Any) -> None:
    row = Row("begin " + "word " * 300 + "end", "", "Done.", 1)
    ids = prompt_ids(row, tokenizer, settings(tokenizer, CHATML, max_source_length=60))
    assert len(ids) == 60
    prompt = read(tokenizer, row, CHATML, max_source_length=60).partition("|Done.")[0]
    assert prompt == tokenizer.decode(ids)
    assert prompt.startswith("<|im_start|>user\nbegin word")
    assert prompt.endswith("<|im_end|>\n<|im_start|>assistant\n")


def test_long_plain_prompt_is_cut_too(tokenizer: Any) -> None:
    row = Row("begin " + "word " * 300, "", "Done.", 1)
    keys = {"data_preprocess_type": "plain", "max_source_length": 200}
    assert len(prompt_ids(row, tokenizer, settings(tokenizer, **keys))) == 200
    text = read(tokenizer, row, **keys)
    assert text.endswith(f"{tokenizer.eos_token}\n### Response:\n|Done.{tokenizer.eos_token}")


TEMPLATES = {
    "none": (None, "has no chat template; use Dataset.chat_template: llm_on_ray"),
    "broken": ("{{ raise_exception('no') }}", "has a chat template that fails: no"),
    "of one message": ("{{ messages[-1]['role'] }}", "has a chat template that leaves the instruction or the response out"),
}


@pytest.mark.parametrize(("template", "message"), TEMPLATES.values(), ids=TEMPLATES)
def test_template_that_cannot_be_used(tokenizer: Any, template: str | None, message: str) -> None:
    tokenizer.chat_template = template
    with pytest.raises(ConfigError, match=f"General.tokenizer_name: .*{message}"):
        encode_rows([ROW], tokenizer, Dataset(train_file="f", chat_template="model"), "f")
