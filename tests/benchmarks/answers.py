"""What a real model learns: SmolLM2-135M before, after our command, and after training as llm-on-ray would.

    python examples/fetch_smollm2.py
    python -m tests.benchmarks.answers OUTPUT.json

80 of the sample rows are learned and 20 are held out. All models are measured alike: the loss of each held-out
response, and the greedy answers to the held-out prompts and to prompts that are in no file. Each of the four models
takes some minutes.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import random
import re
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.benchmarks.commit import commit
from tests.support.trainer import prompt_ids

from finetune_trainer.config.dataset import Dataset
from finetune_trainer.data.encode import encode_rows
from finetune_trainer.data.jsonl import Row
from finetune_trainer.data.llm_on_ray_prompt import INPUT, INSTRUCTION, INTRO, RESPONSE

if TYPE_CHECKING:
    from collections.abc import Iterable

ROOT = Path(__file__).resolve().parents[2]
SAMPLE = ROOT / "examples" / "data" / "sample_finetune_data.jsonl"
MODEL = "SmolLM2-135M-Instruct"
HELD = 20
"""Rows that no model learns."""
SEED = 42
"""Of the split, of the order of the rows, of the first weights of the adapters, and of dropout."""
NEW_TOKENS = 64
"""Where an answer that goes on is cut off: the longest response of the sample has 14 tokens."""
TRIED_ALONE = 1
"""Prompts of each kind that are also answered without a batch, to see that the padding changes nothing."""
STYLE = re.compile(r"ANSWER> .+? <END>")
"""What the rows teach: every response is of this form."""

LORA = {"task_type": "CAUSAL_LM", "r": 8, "lora_alpha": 32, "lora_dropout": 0.1, "target_modules": ["q_proj", "v_proj"]}
TRAINING = {"optimizer": "AdamW", "batch_size": 4, "epochs": 4, "learning_rate": 1e-3, "lr_scheduler": "linear"}
"""As the demo has it, but for the number of steps, 80, and of workers."""

OTHER_PROMPTS: list[tuple[str, str]] = [
    ("What is the capital of Italy?", ""),
    ("Which country has Warsaw as its capital?", ""),
    ("How many wheels does a bicycle have?", ""),
    ("What do cows drink?", ""),
    ("Is the Sun a star or a planet?", ""),
    ("How much is nine plus four?", ""),
    ("What is the opposite of cold?", ""),
    ("Who wrote Romeo and Juliet?", ""),
    ("Which season follows winter?", ""),
    ("Name a fruit that is yellow.", ""),
    ("Name three colours.", ""),
    ("Write one sentence about the sea.", ""),
    ("Explain in one sentence what a compiler does.", ""),
    ("Translate the word house into French.", ""),
    ("Give advice to somebody who cannot sleep.", ""),
    ("Who found the key?", "Tomas lost his key on Sunday. Lena found it under the bench by the river."),
    ("What does the museum show?", "The museum in Hafen Street shows old clocks. Entry costs 6 euros, and children pay nothing."),
    ("How old is the dog?", "Rex is a brown dog of nine years. He sleeps in the kitchen and is afraid of thunder."),
    ("Why was the concert cancelled?", "The concert on Friday was cancelled because the singer is ill. Tickets are refunded."),
    (
        "Summarise the text.",
        "The bridge was closed for two weeks for repairs. It opens again on Monday for cars, and later for lorries.",
    ),
]
"""Instructions and contexts that are in no file: of the kind that is taught, and of others."""


def sample_rows() -> list[dict[str, str]]:
    """The rows {instruction, context, response} of the sample file."""
    return [json.loads(line) for line in SAMPLE.read_text(encoding="utf-8").splitlines()]


def split(rows: list[dict[str, str]]) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """Rows to learn and rows held out. Rows with the same context stay together, so no held-out context was seen."""
    groups: dict[str, list[dict[str, str]]] = {}
    for row in rows:
        groups.setdefault(row["context"] or row["instruction"], []).append(row)
    shuffled = list(groups.values())
    random.Random(SEED).shuffle(shuffled)
    learned: list[dict[str, str]] = []
    held: list[dict[str, str]] = []
    for group in shuffled:
        (held if len(held) + len(group) <= HELD else learned).extend(group)
    return learned, held


def write_inputs(work: Path, model: Path) -> None:
    """The rows, the configuration, and the model under its name: then the command holds no path of this machine."""
    for name, part in zip(("train.jsonl", "held.jsonl"), split(sample_rows()), strict=True):
        (work / name).write_text("".join(json.dumps(row) + "\n" for row in part), encoding="utf-8")
    (work / MODEL).symlink_to(model.resolve())
    (work / "conf.yaml").write_text(json.dumps(configuration(), indent=1))  # JSON is YAML


def configuration() -> dict[str, Any]:
    """What our command is given."""
    resources = {"CPU": os.cpu_count() or 1}
    return {
        "General": {"base_model": f"HuggingFaceTB/{MODEL}", "output_dir": "output", "lora_config": LORA},
        "Dataset": {"train_file": "train.jsonl", "validation_file": "held.jsonl"},
        "Training": {**TRAINING, "device": "CPU", "resources_per_worker": resources, "seed": SEED, "logging_steps": 5},
    }


def train_with_command(work: Path) -> dict[str, Any]:
    """Run our command as a user would; what it printed and reported.

    Raises:
        CalledProcessError: it failed; its output was shown.
    """
    line = ["llm_on_ray-finetune", "--config_file", "conf.yaml", "--model_dir", MODEL]
    command = [str(Path(sys.executable).with_name(line[0])), *line[1:]]
    process = subprocess.Popen(command, cwd=work, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    log = []
    for text in process.stdout or ():
        print(text, end="", flush=True)
        log.append(text.rstrip("\n").replace(str(work.resolve()), "."))
    if process.wait():
        raise subprocess.CalledProcessError(process.returncode, line)
    progress = json.loads((work / "output" / "logs" / "progress.json").read_text())
    return {"command": " ".join(line), "log": log, "result": progress["result"]}


def reference_ids(row: Row, tokenizer: Any, *, escaped: bool) -> list[int]:
    """Token ids of a row as llm-on-ray makes them, without its padding to max_length.

    Args:
        row: one row.
        tokenizer: with an end-of-sequence token E.
        escaped: False, as there: the parts of the prompt are found by a regular expression in which the `|` of
            E = `<|im_end|>` means "or", and everything between the parts is lost. True: as it was meant.
    """
    end = tokenizer.eos_token
    body = INSTRUCTION + row.instruction + (INPUT + row.context if row.context else "")
    prompt = f"{INTRO}{end}\n{body}{end}\n{RESPONSE}"
    mark = re.escape(end) if escaped else end
    talks = re.findall(f"{INSTRUCTION}.*?{mark}|{RESPONSE}.*?{mark}", prompt, re.DOTALL)
    parts = [f"{INTRO}{end}\n", "\n", *chain.from_iterable((talk, "\n") for talk in talks), RESPONSE, f"{row.response}{end}"]
    tokens = chain.from_iterable(tokenizer.tokenize(part) for part in parts)
    ids: list[int] = tokenizer.convert_tokens_to_ids(list(tokens))
    return [*ids, tokenizer.eos_token_id]


def train_as_reference(base: Any, tokenizer: Any, rows: list[Row], *, escaped: bool) -> tuple[Any, dict[str, Any]]:
    """Train adapters with llm-on-ray's data path and the Trainer and collator that it uses; model and facts.

    Rows are padded to the longest of a batch, not to 512: padding is masked, so the loss is the same.
    """
    import peft
    import torch
    from transformers import DataCollatorForLanguageModeling, Trainer, TrainingArguments

    torch.manual_seed(SEED)
    model = peft.get_peft_model(base, peft.LoraConfig(**LORA))
    encoded = [{"input_ids": ids, "attention_mask": [1] * len(ids)}
               for ids in (reference_ids(row, tokenizer, escaped=escaped) for row in rows)]  # fmt: skip
    collator = DataCollatorForLanguageModeling(tokenizer, mlm=False, pad_to_multiple_of=8)
    with tempfile.TemporaryDirectory() as scratch:
        arguments = TrainingArguments(
            scratch, per_device_train_batch_size=TRAINING["batch_size"], num_train_epochs=TRAINING["epochs"],
            learning_rate=TRAINING["learning_rate"], lr_scheduler_type=TRAINING["lr_scheduler"], optim="adamw_torch",
            weight_decay=0.0, use_cpu=True, seed=SEED, save_strategy="no", report_to="none", logging_steps=5, disable_tqdm=True,
        )  # fmt: skip
        trainer = Trainer(model, arguments, collator, train_dataset=encoded, processing_class=tokenizer)
        trainer.train()
    batch = collator([dict(row) for row in encoded[:4]])
    ends = batch["input_ids"] == tokenizer.eos_token_id
    return model, {
        "losses": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
        "steps": trainer.state.global_step,
        "supervisedEndsInFourRows": int((batch["labels"][ends] != -100).sum()),
        "firstRow": tokenizer.decode(encoded[0]["input_ids"]),
    }


def losses(model: Any, tokenizer: Any, rows: list[Row]) -> dict[str, float]:
    """Mean loss of what is supervised in held-out rows: all of it, the text of the responses, and the end token."""
    import torch

    examples = encode_rows(rows, tokenizer, Dataset(train_file="held.jsonl"), "held.jsonl")
    text, ends = [], []
    for index in range(len(examples)):
        ids = torch.from_numpy(examples.row(index)).long()
        first, last = int(examples.first[index]), int(examples.last[index])
        with torch.inference_mode():
            scores = model(ids[None]).logits[0, first - 1 : last - 1].float()
        each = torch.nn.functional.cross_entropy(scores, ids[first:last], reduction="none").tolist()
        text += each[:-1]
        ends += each[-1:]
    parts = {"lossPerToken": text + ends, "lossOfText": text, "lossOfEnd": ends}
    return {name: round(sum(values) / len(values), 4) for name, values in parts.items()}


def answer(model: Any, tokenizer: Any, rows: list[Row], prompts: list[list[int]]) -> list[dict[str, Any]]:
    """The greedy answers to prompts, all in one batch, padded on the left."""
    import torch

    longest = max(map(len, prompts))
    end = tokenizer.eos_token_id
    ids = torch.tensor([[end] * (longest - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    made = model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=NEW_TOKENS, do_sample=False)
    answers = []
    for row, new in zip(rows, made[:, longest:].tolist(), strict=True):
        stopped = end in new
        text = tokenizer.decode(new[: new.index(end)] if stopped else new, clean_up_tokenization_spaces=False)
        asked = {"instruction": row.instruction, "context": row.context, "expected": row.response}
        answers.append({**asked, "answer": text, "stopped": stopped})
    return answers


def alone_alike(model: Any, tokenizer: Any, rows: list[Row], prompts: list[list[int]], answers: list[dict[str, Any]]) -> int:
    """How many of the first prompts are answered in the same way without a batch around them."""
    each = zip(rows[:TRIED_ALONE], prompts, answers, strict=False)
    return sum(answer(model, tokenizer, [row], [prompt]) == [together] for row, prompt, together in each)


def shares(answers: list[dict[str, Any]]) -> dict[str, float]:
    """Which part of the answers is as it should be. What follows the first <END> counts in the whole, not in the begin."""

    def share(values: Iterable[bool]) -> float:
        return round(sum(values) / len(answers), 3)

    begins = [(match := STYLE.match(entry["answer"])) and match.group() for entry in answers]
    found = {
        "stopped": share(entry["stopped"] for entry in answers),
        "beginsInStyle": share(begin is not None for begin in begins),
        "wholeInStyle": share(begin == entry["answer"] for begin, entry in zip(begins, answers, strict=True)),
    }
    if answers[0]["expected"]:
        found["beginsRight"] = share(begin == entry["expected"] for begin, entry in zip(begins, answers, strict=True))
        found["wholeRight"] = share(entry["answer"] == entry["expected"] for entry in answers)
    return found


def measure(name: str, model: Any, tokenizer: Any, held: list[Row], **more: Any) -> dict[str, Any]:
    """All measures of one model, with the prompts that the trainer documents."""
    began = time.monotonic()
    dataset = Dataset(train_file="held.jsonl")
    others = [Row(instruction, context, "", 0) for instruction, context in OTHER_PROMPTS]
    model.eval()
    found: dict[str, Any] = {"loss": losses(model, tokenizer, held)}
    for kind, rows in (("held", held), ("other", others)):
        prompts = [prompt_ids(row, tokenizer, dataset) for row in rows]
        answers = answer(model, tokenizer, rows, prompts)
        alike = alone_alike(model, tokenizer, rows, prompts, answers)
        found[kind] = {**shares(answers), "alikeAlone": f"{alike} of {TRIED_ALONE}", "answers": answers}
    summary = {kind: {key: value for key, value in found[kind].items() if key != "answers"} for kind in ("held", "other")}
    print(name, found["loss"], summary, f"{time.monotonic() - began:.0f} s", flush=True)
    return {**found, **more, "measureSeconds": round(time.monotonic() - began, 1)}


def own_prompt(row: Row, tokenizer: Any) -> list[int]:
    """The prompt on which the reference's model was trained, with its broken markers."""
    ids = reference_ids(Row(row.instruction, row.context, "", 0), tokenizer, escaped=False)
    return ids[:-2]


def load(model: Path, adapter: Path | None = None) -> Any:
    """The base model in float32, with an adapter if there is one."""
    import peft
    import torch
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    return base if adapter is None else peft.PeftModel.from_pretrained(base, adapter)


def about() -> dict[str, Any]:
    """What made the figures."""
    return {
        "what": f"{MODEL} before and after learning 80 rows, with our command and as llm-on-ray would",
        "command": "python -m tests.benchmarks.answers docs/benchmarks/answers.json",
        "commit": commit(),
        "time": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "machine": {"cores": os.cpu_count(), "architecture": platform.machine()},
        "versions": {"python": platform.python_version()}
        | {name: importlib.metadata.version(name) for name in ("torch", "transformers", "peft", "accelerate")},
        "configuration": configuration(),
    }


def main(results: Path, model: Path) -> None:
    """Train and measure model after model; each is on record at once."""
    from transformers import AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    found: dict[str, Any] = {**about(), "models": {}}
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        write_inputs(work, model)
        tokenizer = AutoTokenizer.from_pretrained(model)
        learned, held = ([Row(**row, line=line) for line, row in enumerate(part, start=1)] for part in split(sample_rows()))

        def record(name: str, trained: Any, **more: Any) -> None:
            found["models"][name] = measure(name, trained, tokenizer, held, **more)
            results.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")

        record("base", load(model))
        began = time.monotonic()
        training = train_with_command(work)
        seconds = round(time.monotonic() - began, 1)
        record("ours", load(model, work / "output"), training=training, trainSeconds=seconds)
        for name, escaped in (("reference", False), ("referenceWithWholePrompts", True)):
            began = time.monotonic()
            trained, training = train_as_reference(load(model), tokenizer, learned, escaped=escaped)
            seconds = round(time.monotonic() - began, 1)
            more: dict[str, Any] = {"training": training, "trainSeconds": seconds}
            if not escaped:
                answers = answer(trained.eval(), tokenizer, held, [own_prompt(row, tokenizer) for row in held])
                more["heldWithItsOwnPrompts"] = {**shares(answers), "answers": answers}
            record(name, trained, **more)


if __name__ == "__main__":
    from examples.fetch_smollm2 import default_output

    main(Path(sys.argv[1]), default_output())
