"""The model card: README.md of the result, with the front matter that the Hugging Face hub reads."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

from ruamel.yaml import YAML

from finetune_trainer.output.answers import ANSWER_TOKENS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from finetune_trainer.output.answers import Answer, Sample
    from finetune_trainer.output.summary import RunSummary
    from finetune_trainer.output.taught import Taught

FENCE = "`" * 8
"""Encloses text of the model and of the user, in which shorter fences may be."""


def model_card(summary: RunSummary) -> str:
    """The text of the card."""
    config = summary.run.config
    adapted = config.general.lora_config is not None
    front = {
        "base_model": config.general.base_model,
        "library_name": "peft" if adapted else "transformers",
        "pipeline_tag": "text-generation",
    }
    rows = {"Base model": config.general.base_model, "Method": summary.method, **summary.data, **summary.measured}
    settings = config.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    parts = [
        f"---\n{_yaml(front)}---",
        f"# Finetuned from {_cell(config.general.base_model)}",
        "It was made by `llm_on_ray-finetune`; report.html, beside this file, shows the curves.",
        _table(rows),
        "## How to load it",
        f"```python\n{loading(config.general.base_model, adapted=adapted)}```",
        *_prompt(summary.taught, config.general.base_model, adapted=adapted),
        *(["## Sample answers", *map(_sample, summary.samples)] if summary.samples else []),
        "## Configuration",
        "Keys that are not here have their defaults.",
        f"```yaml\n{_yaml(settings)}```",
        "## Environment",
        _table(summary.environment),
    ]
    return "\n\n".join(parts) + "\n"


def _prompt(taught: Taught | None, base_model: str, *, adapted: bool) -> list[str]:
    """The prompt as text and as ids, and Python that asks the model."""
    if taught is None:
        return []
    parts = ["## The prompt"]
    if taught.text:
        parts += ["The tokenizer's chat template makes the prompt that was trained, id by id. For a row of the data it is:",
                  f"{FENCE}text\n{taught.text}\n{FENCE}", f"Token ids: `{list(taught.ids)}`"]  # fmt: skip
    else:
        parts.append("The model was trained on texts, without a prompt.")
    if taught.asked is not None:
        ask = f"{loading(base_model, adapted=adapted)}{_asking(taught.asked, taught.stops)}"
        parts += ["## How to ask it", "This prints the answer to the first sample below.", f"```python\n{ask}```"]
    return parts


def _asking(asked: dict[str, str] | tuple[int, ...], stops: tuple[int, ...]) -> str:
    """Python that generates as for the samples."""
    if isinstance(asked, dict):
        prompt = (
            f"messages = [{ {'role': 'user', **asked}!r}]\n"
            "prompt = tokenizer.apply_chat_template(\n"
            '    messages, add_generation_prompt=True, return_dict=True, return_tensors="pt"\n'
            ")\n"
        )
    else:
        prompt = f'import torch\n\nprompt = {{"input_ids": torch.tensor([{list(asked)}])}}\n'
    return (
        f"{prompt}"
        f"answer = model.generate(\n"
        f"    **prompt, max_new_tokens={ANSWER_TOKENS}, do_sample=False, eos_token_id={list(stops)}, pad_token_id={stops[0]}\n"
        ")\n"
        'print(tokenizer.decode(answer[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True))\n'
    )


def loading(base_model: str, *, adapted: bool) -> str:
    """Python that loads the model and its tokenizer from the folder of the card."""
    if not adapted:
        return (
            "from transformers import AutoModelForCausalLM, AutoTokenizer\n"
            'model, tokenizer = AutoModelForCausalLM.from_pretrained("."), AutoTokenizer.from_pretrained(".")\n'
        )
    return (
        "from peft import PeftModel\n"
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n"
        f'model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained({base_model!r}), ".")\n'
        'tokenizer = AutoTokenizer.from_pretrained(".")\n'
    )


def _sample(sample: Sample) -> str:
    return "\n\n".join([_quote(f"Prompt ({sample.row}):", sample.prompt), _quote("Expected:", sample.expected),
                        _answer("Before:", sample.before), _answer("After:", sample.after)])  # fmt: skip


def _answer(title: str, answer: Answer | None) -> str:
    return f"{title} was not kept" if answer is None else _quote(title, answer.text)


def _quote(title: str, text: str) -> str:
    return f"{title}\n\n{FENCE}text\n{text}\n{FENCE}"


def _table(values: Mapping[str, Any]) -> str:
    return "| | |\n|---|---|\n" + "\n".join(f"| {key} | {_cell(str(value))} |" for key, value in values.items())


def _cell(text: str) -> str:
    """On one line, and nothing in it ends the cell."""
    return " ".join(text.split()).replace("|", "\\|")


def _yaml(values: Mapping[str, Any]) -> str:
    stream = io.StringIO()
    yaml = YAML()
    yaml.default_flow_style = False
    yaml.dump(values, stream)
    return stream.getvalue()
