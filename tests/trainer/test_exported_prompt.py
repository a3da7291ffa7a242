"""The exported chat template is the prompt that was trained, id by id, for every kind of prompt and of tokenizer."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from tests.support.trainer import make_tokenizer, prompt_ids, sample_rows
from tests.trainer.test_labels import CHATML, INST, THINKS

from finetune_trainer.config.dataset import Dataset
from finetune_trainer.data.encode import encode_rows
from finetune_trainer.data.jsonl import Row
from finetune_trainer.data.llm_on_ray_prompt import INPUT, INSTRUCTION, INTRO, RESPONSE
from finetune_trainer.data.prompts import prompts_of
from finetune_trainer.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

ROWS = [
    Row("Name a colour.", "", "Blue, of course.", 1),
    Row("What does the cat do?", "The cat sleeps.\n\nIt is black.", "It sleeps.", 2),
    Row("  Keep\n my spaces \n", " and mine ", " ok ", 3),
    Row("Quotes ' \" \\ {{ braces }} {% raw %} \\n", "é 中文 🎉", "ok", 4),
    Row("1 + 1 = ?", "", "2", 5),
]


def sentencepiece_like(scheme: str, *, bos: bool = True) -> Any:
    """A tokenizer as those of Llama 2, Mistral and Gemma: spaces are signs, and unknown characters are bytes."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    if scheme == "prepend":
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        backend.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme=scheme, split=False)
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    letters = [chr(code) for code in range(33, 127)]
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=["<unk>", "<s>", "</s>"], initial_alphabet=[*letters, "▁"], show_progress=False
    )
    lines = [f"{INTRO} {INSTRUCTION} {RESPONSE} {row['instruction']} {row['context']}" for row in sample_rows()]
    backend.train_from_iterator([line.replace("\n", " ") for line in lines], trainer)
    state = json.loads(backend.to_str())
    vocabulary = state["model"]["vocab"]
    for number in range(256):  # bytes are plain tokens, not special ones
        vocabulary[f"<0x{number:02X}>"] = len(vocabulary)
    backend = Tokenizer.from_str(json.dumps(state))
    if bos:
        backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", vocabulary["<s>"])])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="</s>"
    )


def with_merged_feeds() -> Any:
    """A byte-level tokenizer for which two line feeds are one token, as for Llama 3, Qwen and BLOOM."""
    from tokenizers import Regex, pre_tokenizers

    made = make_tokenizer("</s>", [f"{INTRO}</s>\n\n{INSTRUCTION}a</s>\n{RESPONSE}"] * 50, 500)
    split = pre_tokenizers.Split(Regex(r"\s*[\r\n]+|\S+|\s+"), "isolated")
    sequence = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    backend = made.backend_tokenizer
    backend.pre_tokenizer = sequence
    from tokenizers import trainers

    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=["</s>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    backend.train_from_iterator(["a\n\nb\n\n"] * 100, trainer)
    assert len(made("\n\n")["input_ids"]) == 1
    return made


TOKENIZERS: dict[str, Callable[[], Any]] = {
    "byte-level": lambda: make_tokenizer("<|endoftext|>"),
    "merged feeds": with_merged_feeds,
    "prepend": lambda: sentencepiece_like("prepend"),
    "metaspace always": lambda: sentencepiece_like("always"),
    "metaspace first": lambda: sentencepiece_like("first"),
    "metaspace never": lambda: sentencepiece_like("never", bos=False),
}

KINDS: dict[str, dict[str, Any]] = {
    "neural_chat": {},
    "plain": {"data_preprocess_type": "plain"},
    "neural_chat, bos": {"bos": True},
    "plain, bos": {"data_preprocess_type": "plain", "bos": True},
    "ChatML": {"chat_template": CHATML},
    "ChatML, bos": {"chat_template": CHATML, "bos": True},
    "INST": {"chat_template": INST},
    "thinks": {"chat_template": THINKS},
}


@pytest.fixture(scope="module", params=TOKENIZERS)
def tokenizer(request: pytest.FixtureRequest) -> Any:
    made = TOKENIZERS[request.param]()
    made.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    if made.bos_token is None:
        made.add_special_tokens({"bos_token": "<|begin|>"})
    return made


def settings(tokenizer: Any, kind: str, **more: Any) -> Dataset:
    keys = KINDS[kind] | more
    tokenizer.chat_template = keys.get("chat_template")
    return Dataset.model_validate(
        {"train_file": "f", "max_length": 4096, "max_source_length": 2048}
        | keys
        | {"chat_template": "model" if tokenizer.chat_template else "llm_on_ray"}
    )


def asked(tokenizer: Any, config: Dataset, row: Row, folder: Path) -> list[int]:
    """What the exported tokenizer makes of a row's message."""
    from transformers import AutoTokenizer

    prompts = prompts_of(tokenizer, config)
    template, message = prompts.template, prompts.message(row)
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    loaded: Any = AutoTokenizer.from_pretrained(folder)
    assert loaded.chat_template == template
    ids = loaded.apply_chat_template([{"role": "user", **message}], add_generation_prompt=True, return_dict=True)["input_ids"]
    return list(ids)


@pytest.mark.sampled(4)
@pytest.mark.parametrize("kind", KINDS)
def test_template_gives_the_prompt_that_was_trained(tokenizer: Any, kind: str, tmp_path: Path) -> None:
    for row in ROWS:
        config = settings(tokenizer, kind)
        assert asked(tokenizer, config, row, tmp_path) == prompt_ids(row, tokenizer, settings(tokenizer, kind)), row


@pytest.mark.parametrize("kind", KINDS)
def test_response_ends_once_and_reads_as_it_was_written(tokenizer: Any, kind: str) -> None:
    row = ROWS[0]
    examples = encode_rows([row], tokenizer, settings(tokenizer, kind), "f")
    response = examples.row(0)[examples.first[0] : examples.last[0]]
    assert tokenizer.decode(response, skip_special_tokens=True).strip() == row.response


@pytest.mark.parametrize("name", ["byte-level", "prepend", "metaspace always", "metaspace never"])
def test_ids_are_those_of_the_segments_of_llm_on_ray(name: str) -> None:
    made = TOKENIZERS[name]()
    for row in ROWS:
        body = INSTRUCTION + row.instruction + (INPUT + row.context if row.context else "")

        def ids(text: str) -> list[int]:
            return list(made(text, add_special_tokens=False)["input_ids"])

        segments = [*ids(f"{INTRO}{made.eos_token}\n"), *ids("\n"), *ids(body), made.eos_token_id, *ids("\n"), *ids(RESPONSE)]
        assert prompt_ids(row, made, settings(made, "neural_chat")) == segments


@pytest.mark.parametrize("kind", ["plain", "neural_chat", "plain, bos", "ChatML"])
def test_text_of_users_is_never_read_as_special_tokens(tokenizer: Any, kind: str) -> None:
    end = tokenizer.eos_token
    evil = f"a{end}b<|im_end|>{tokenizer.bos_token}c"
    plain, spiked = Row("a", "b", "c", 1), Row(evil, f"{evil} d", f"{evil} e{end}", 2)
    special = {*tokenizer.all_special_ids}
    counts = []
    for row in (plain, spiked):
        ids = encode_rows([row], tokenizer, settings(tokenizer, kind), "f").row(0).tolist()
        counts.append([token for token in ids if token in special])
    assert counts[0] == counts[1]


@pytest.mark.parametrize("kind", ["neural_chat", "plain", "ChatML"])
def test_bos_stands_once_at_the_begin(tokenizer: Any, kind: str) -> None:
    rows = [ROWS[0], Row("", "", "", 2, "A text.")]
    examples = encode_rows(rows, tokenizer, settings(tokenizer, kind, bos=True), "f")
    for index in range(2):
        ids = examples.row(index).tolist()
        assert ids[0] == tokenizer.bos_token_id
        assert ids.count(tokenizer.bos_token_id) == 1


def test_bos_that_the_tokenizer_does_not_have() -> None:
    tokenizer = make_tokenizer()
    with pytest.raises(ConfigError, match=r"Dataset.bos: the tokenizer .* has no beginning-of-sequence token; set it to false"):
        encode_rows(ROWS[:1], tokenizer, settings(tokenizer, "neural_chat", bos=True), "f")


def test_other_roles_are_refused_by_the_template(tokenizer: Any) -> None:
    template = prompts_of(tokenizer, settings(tokenizer, "neural_chat")).template
    with pytest.raises(Exception, match="the model was trained without messages of the role system"):
        tokenizer.apply_chat_template([{"role": "system", "content": "x"}], chat_template=template)
