"""The model card asks the exported model as it was trained, and its prompt is the one that was trained."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from tests.support.trainer import make_model, make_tokenizer, prompt_ids, sample_rows
from tests.trainer.test_labels import CHATML, THINKS

from finetune_trainer.config.dataset import Dataset
from finetune_trainer.data.jsonl import Row

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.trainer import Command

RUNS: dict[str, tuple[str | None, dict[str, str]]] = {
    "neural_chat": (None, {}),
    "plain": (None, {"data_preprocess_type": "plain"}),
    "model": (CHATML, {"chat_template": "model"}),
    "thinks": (THINKS, {"chat_template": "model"}),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", RUNS)
def test_block_of_the_card_reproduces_a_sample(command: Command, tmp_path: Path, kind: str) -> None:
    from transformers import AutoTokenizer

    template, keys = RUNS[kind]
    tokenizer = make_tokenizer()
    tokenizer.chat_template = template
    model = make_model("llama", tokenizer, tmp_path / "model")
    command.change("General", base_model=str(model), sample_prompts=2).change("Dataset", **keys)
    command.change("Training", max_train_steps=30, learning_rate=0.03)
    outcome = command.run()
    assert outcome.code == 0, outcome.err
    sample = json.loads((outcome.output / "logs" / "samples.json").read_text())[0]
    card = (outcome.output / "README.md").read_text()
    (block,) = [block for block in re.findall(r"```python\n(.*?)```", card, re.DOTALL) if "generate" in block]
    assert "apply_chat_template" in block
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", block], cwd=outcome.output, capture_output=True, text=True)
    assert done.stdout == sample["after"]["text"] + "\n", done.stderr
    assert sample["after"]["text"] != sample["before"]["text"]

    exported: Any = AutoTokenizer.from_pretrained(outcome.output)
    row = Row(**sample_rows()[0], line=1)
    ids = prompt_ids(row, tokenizer, Dataset(train_file="f", **keys))
    told = re.search(r"Token ids: `\[(.*?)\]`", card)
    assert told is not None
    assert [int(number) for number in told[1].split(",")] == ids
    made = exported.apply_chat_template(
        [{"role": "user", "content": row.instruction}], add_generation_prompt=True, return_dict=True
    )
    assert list(made["input_ids"]) == ids
    report = (outcome.output / "report.html").read_text()
    assert ", ".join(map(str, ids)) in report
    assert "What is 0 plus 0?" in report


@pytest.mark.slow
def test_texts_alone_leave_the_template_of_the_base_model(command: Command, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = make_tokenizer()
    tokenizer.chat_template = CHATML
    command.change("General", base_model=str(make_model("llama", tokenizer, tmp_path / "model")), sample_prompts=1)
    command.write_rows(*[{"text": f"Text {number} of some length."} for number in range(6)])
    outcome = command.run()
    assert outcome.code == 0, outcome.err
    exported: Any = AutoTokenizer.from_pretrained(outcome.output)
    assert exported.chat_template == CHATML
    card = (outcome.output / "README.md").read_text()
    (block,) = [block for block in re.findall(r"```python\n(.*?)```", card, re.DOTALL) if "generate" in block]
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", block], cwd=outcome.output, capture_output=True, text=True)
    sample = json.loads((outcome.output / "logs" / "samples.json").read_text())[0]
    assert done.stdout == sample["after"]["text"] + "\n", done.stderr
