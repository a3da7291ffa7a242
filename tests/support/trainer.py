"""Tiny models, rows, and a way to run the trainer's command; used by tests of the trainer."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ruamel.yaml import YAML

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    import pytest

    from finetune_trainer.config.dataset import Dataset
    from finetune_trainer.data.jsonl import Row

VOCABULARY = 400
SIZES: dict[str, dict[str, Any]] = {
    "llama": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
              "num_key_value_heads": 2, "max_position_embeddings": 512},
    "mistral": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
                "num_key_value_heads": 2, "max_position_embeddings": 512},
    "gpt_neox": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
                 "max_position_embeddings": 512},
    "gptj": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 512, "rotary_dim": 8},
    "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 4},
    "opt": {"hidden_size": 32, "ffn_dim": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
            "max_position_embeddings": 512, "word_embed_proj_dim": 32},
    "mpt": {"d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 512},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 512},
}  # fmt: skip
NO_DROPOUT = ("attn_pdrop", "resid_pdrop", "embd_pdrop", "hidden_dropout", "attention_dropout", "dropout")


def with_dropout(base: Path, folder: Path) -> Path:
    """A copy of a model with dropout wherever its family has any; transformers gives MPT none to be set."""
    from transformers import AutoConfig

    shutil.copytree(base, folder)
    config = AutoConfig.from_pretrained(base)
    for name in NO_DROPOUT:
        if hasattr(config, name):
            setattr(config, name, 0.5)
    config.save_pretrained(folder)
    return folder


def make_model(family: str, tokenizer: Any, folder: Path, **sizes: int) -> Path:
    """Write a model with random weights and without dropout, and its tokenizer; give the folder."""
    import torch
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    torch.manual_seed(0)
    config = CONFIG_MAPPING[family](vocab_size=max(VOCABULARY, len(tokenizer)), **SIZES[family] | sizes)
    for name in NO_DROPOUT:
        if hasattr(config, name):
            setattr(config, name, 0.0)
    config.eos_token_id = config.bos_token_id = config.pad_token_id = 0
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_tokenizer(end: str = "<|endoftext|>", texts: Iterable[str] = (), vocabulary: int = VOCABULARY) -> Any:
    """A byte-level BPE tokenizer, trained on these texts, or on the sample rows."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=vocabulary, special_tokens=[end], initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator(texts or [json.dumps(row) for row in sample_rows()], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=end, pad_token=end)


def sample_rows(count: int = 24) -> list[dict[str, str]]:
    """Rows of different lengths, every other one with a context."""
    return [
        {
            "instruction": f"What is {number} plus {number}?" + " Please tell." * (number % 4),
            "context": "Two numbers are given." if number % 2 else "",
            "response": f"ANSWER> {2 * number} <END>",
        }
        for number in range(count)
    ]


def prompt_ids(row: Row, tokenizer: Any, config: Dataset) -> list[int]:
    """Token ids of a row's prompt, as the trainer makes them of a row that has a response."""
    from finetune_trainer.data.encode import encode_rows
    from finetune_trainer.training.samples import split

    answered = row if row.text else dataclasses.replace(row, response=row.response or "?")
    return split(encode_rows([answered], tokenizer, config, "f"), 0)[0]


@dataclasses.dataclass
class Outcome:
    """What a run of the command left behind."""

    code: int
    out: str
    err: str
    output: Path

    @property
    def progress(self) -> dict[str, Any]:
        return json.loads((self.output / "logs" / "progress.json").read_text())

    @property
    def stages(self) -> list[str]:
        """Stages printed to the standard error stream, without the seconds."""
        return re.findall(r"^\[ *\d+ s\] (.+)$", self.err, re.MULTILINE)

    @property
    def errors(self) -> str:
        """The other lines of the standard error stream."""
        return re.sub(r"^\[ *\d+ s\] .+\n", "", self.err, flags=re.MULTILINE)

    @property
    def steps(self) -> list[dict[str, Any]]:
        """What is on record of each step."""
        lines = (self.output / "logs" / "metrics.jsonl").read_text().splitlines()
        return [record for record in map(json.loads, lines) if "loss" in record]

    @property
    def losses(self) -> list[float]:
        return [record["loss"] for record in self.steps]


@dataclasses.dataclass
class Command:
    """Writes a YAML file and runs the command on it, in this process."""

    folder: Path
    capsys: pytest.CaptureFixture[str]
    config: dict[str, Any]

    @property
    def output(self) -> Path:
        return Path(self.config["General"]["output_dir"])

    def change(self, section: str, **values: Any) -> Command:
        """Set keys of a section; None removes one."""
        for key, value in values.items():
            self.config[section].pop(key, None)
            if value is not None:
                self.config[section][key] = value
        return self

    def write_rows(self, *lines: Any, name: str = "data.jsonl") -> Path:
        path = self.folder / name
        text = (line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines)
        path.write_bytes(b"".join(line + b"\n" for line in text))
        return path

    def write_config(self, name: str = "conf.yaml") -> Path:
        path = self.folder / name
        YAML().dump(self.config, path)
        return path

    def run(self, *options: str) -> Outcome:
        from finetune_trainer.__main__ import main

        path = self.write_config()
        self.capsys.readouterr()
        code = main(["--config_file", str(path), "--dataset_dir", str(self.folder), *options])
        captured = self.capsys.readouterr()
        return Outcome(code, captured.out, captured.err, self.output)

    def train(self, report: Callable[[dict[str, Any]], None], run_name: str | None = None, every_steps: int = 0) -> Outcome:
        """Train in this process, as the command does, with somebody who looks on at each logging step.

        Raises:
            TrainerError: as the command explains it; and whatever `report` raises.
        """
        from finetune_trainer.config.run import Run, Saving
        from finetune_trainer.config.schema import TrainerConfig
        from finetune_trainer.runtime import distributed
        from finetune_trainer.training.train import train

        config = TrainerConfig.model_validate(self.config)
        saving = Saving.choose(config.general.save_strategy, every_steps, keep=2)
        run = Run(config=config, output_dir=self.output, dataset_dir=self.folder, run_name=run_name, saving=saving)
        run.logs.mkdir(parents=True, exist_ok=True)
        train(run, distributed.single_process(config.training), report)
        return Outcome(0, "", "", self.output)

    def train_until(self, step: int, run_name: str | None = None) -> Outcome:
        """Train, and ask for a stop when a logging step is told: the step after it is the last one."""

        def ask(record: dict[str, Any]) -> None:
            if record["step"] == step:
                (self.output / "logs" / "stop").touch()

        outcome = self.train(ask, run_name)
        assert outcome.progress["state"] == "stopped"
        assert outcome.progress["checkpoint"]["step"] == step + 1
        return outcome

    def line(self, *options: str) -> list[Any]:
        """The command line, for a process of its own."""
        path = self.write_config()
        return [sys.executable, "-m", "finetune_trainer", "--config_file", path, "--dataset_dir", self.folder, *options]

    def run_apart(self, *options: str, **environment: str) -> Outcome:
        """Run the command in a process of its own: Ray keeps state for as long as a process lives."""
        done = subprocess.run(self.line(*options), capture_output=True, text=True, env={**os.environ, **environment})
        return Outcome(done.returncode, done.stdout, done.stderr, self.output)


def edit_checkpoint(path: Path, edit: Callable[[Path, dict[str, Any]], None]) -> None:
    """Change the files of a checkpoint, or its marker, and make the marker's digests right again."""
    marker = json.loads((path / "complete.json").read_text())
    edit(path, marker)
    for entry in marker["files"]:
        data = (path / entry["path"]).read_bytes()
        entry.update(sizeBytes=len(data), sha256=hashlib.sha256(data).hexdigest())
    (path / "complete.json").write_text(json.dumps(marker))
    path.rename(path.with_name(f"step-{marker['step']:08}"))


class Apart:
    """The command in a process of its own, which is sent signals."""

    def __init__(self, command: Command, *options: str, **environment: str) -> None:
        self.logs = command.output / "logs"
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "env": {**os.environ, **environment}}
        self.process = subprocess.Popen(command.line(*options), text=True, **pipes)

    def wait_for(self, step: int) -> None:
        """Wait until a step is on record."""
        metrics = self.logs / "metrics.jsonl"
        self.watch(lambda: metrics.exists() and metrics.read_text().count('"loss":') >= step)

    def wait_until(self, state: str) -> None:
        """Wait until progress.json tells of this state."""
        self.watch(lambda: self.progress().get("state") == state)

    def progress(self) -> dict[str, Any]:
        """What progress.json tells; nothing before it exists."""
        path = self.logs / "progress.json"
        return json.loads(path.read_text()) if path.exists() else {}

    def watch(self, happens: Callable[[], bool]) -> None:
        """Wait until something happens while the process runs."""
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline and self.process.poll() is None:
            if happens():
                return
            time.sleep(0.005)
        raise AssertionError(self.process.communicate() if self.process.poll() is not None else "it does not happen")

    def end(self) -> tuple[int, str, str]:
        out, err = self.process.communicate(timeout=300)
        return self.process.returncode, out, err
