"""The model card: README.md of the result, with the front matter that the Hugging Face hub reads."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

from ruamel.yaml import YAML

if TYPE_CHECKING:
    from collections.abc import Mapping

    from finetune_trainer.output.answers import Answer, Sample
    from finetune_trainer.output.summary import RunSummary

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
        *(["## Sample answers", *map(_sample, summary.samples)] if summary.samples else []),
        "## Configuration",
        "Keys that are not here have their defaults.",
        f"```yaml\n{_yaml(settings)}```",
        "## Environment",
        _table(summary.environment),
    ]
    return "\n\n".join(parts) + "\n"


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
