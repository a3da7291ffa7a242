"""Ask a finetuned model a question: `python -m finetune_trainer.ask FOLDER INSTRUCTION [CONTEXT]`.

The prompt is formatted as for training. The answer is generated as for the report, by greedy decoding.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune_trainer.config.dataset import Dataset
from finetune_trainer.data.jsonl import Row
from finetune_trainer.output.answers import ANSWER_TOKENS
from finetune_trainer.tracking.console import say

if TYPE_CHECKING:
    from collections.abc import Sequence

PROMPT_KEYS = ("data_preprocess_type", "chat_template", "bos")
"""Keys of Dataset that determine the format of a prompt; each is an option of this command."""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m finetune_trainer.ask", description="Ask a finetuned model a question.")
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="the output folder of a finished run")
    parser.add_argument("instruction", metavar="INSTRUCTION")
    parser.add_argument("context", metavar="CONTEXT", nargs="?", default="")
    parser.add_argument("--model_dir", metavar="DIR", help="folder of the base model (default: its name on the hub)")
    for key in PROMPT_KEYS:
        default = Dataset.model_fields[key].default
        parser.add_argument(f"--{key}", metavar="VALUE", default=default, help=f"the value for training (default: {default})")
    return parser


def command(folder: Path, dataset: Dataset, model_dir: Path | None, words: Sequence[str]) -> str:
    """The shell command that asks a model; `words` are the instruction and, optionally, the context."""
    options = [] if model_dir is None else ["--model_dir", str(model_dir)]
    for key in PROMPT_KEYS:
        if getattr(dataset, key) != Dataset.model_fields[key].default:
            options += [f"--{key}", str(getattr(dataset, key))]
    return shlex.join([sys.executable, "-m", "finetune_trainer.ask", str(folder), *options, *words])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line."""
    options = parser().parse_args(arguments)
    dataset = Dataset.model_validate({"train_file": "prompt"} | {key: getattr(options, key) for key in PROMPT_KEYS})
    say(answer(options.folder, options.model_dir, dataset, Row(options.instruction, options.context, "", 1)))
    return 0


def answer(folder: Path, model_dir: str | None, dataset: Dataset, row: Row) -> str:
    """Generate the answer of a finished run's model to the prompt of a row."""
    import torch
    from transformers import AutoTokenizer

    from finetune_trainer.data.encode import encode_rows

    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    examples = encode_rows([row], tokenizer, dataset, "prompt")
    *_, end = examples.row(0).tolist()
    prompt = torch.tensor(examples.row(0)[None, : examples.first[0]]).long()
    stops = sorted({end, tokenizer.eos_token_id})
    generated = load(folder, model_dir).generate(
        input_ids=prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=ANSWER_TOKENS,
        do_sample=False,
        eos_token_id=stops,
        pad_token_id=tokenizer.eos_token_id,
    )
    text: str = tokenizer.decode(generated[0, prompt.shape[1] :], skip_special_tokens=True)
    return text


def load(folder: Path, model_dir: str | None) -> Any:
    """Load the model of a finished run: the base model with the adapter, or the full model."""
    import torch
    from peft import PeftConfig, PeftModel
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging as hub_logging

    hub_logging.disable_progress_bar()
    warnings.simplefilter("ignore", FutureWarning)  # of PEFT, about its own calls
    adapted = (folder / "adapter_config.json").is_file()
    base = model_dir or PeftConfig.from_pretrained(folder).base_model_name_or_path if adapted else folder
    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    return PeftModel.from_pretrained(model, folder).eval() if adapted else model


if __name__ == "__main__":
    sys.exit(main())
