"""Asking a finished run's model: the prompt is the trained one, and the answers are those of the report, token by token."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import pty
import shutil
import sys
from typing import TYPE_CHECKING, Any

import pytest
from tests.support.builders import NAMESPACE
from tests.support.shell import shell_at
from tests.support.trainer import make_model, make_tokenizer, sample_rows
from tests.trainer.test_labels import CHATML, THINKS

from finetune_trainer import generate
from finetune_trainer.config.schema import TrainerConfig
from finetune_trainer.output.summary_file import read_summary

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.trainer import Command

KINDS: dict[str, tuple[str | None, dict[str, str], bool]] = {
    "LoRA": (None, {}, True),
    "LoRA, plain": (None, {"data_preprocess_type": "plain"}, True),
    "LoRA, ChatML": (CHATML, {"chat_template": "model"}, True),
    "full": (None, {}, False),
    "full, thinks": (THINKS, {"chat_template": "model"}, False),
}


pytestmark = pytest.mark.sampled(4)


def trained(command: Command, folder: Path, kind: str = "LoRA") -> Path:
    """The output folder of a run whose base model asks others to repeat nothing when they generate."""
    template, keys, lora = KINDS[kind]
    tokenizer = make_tokenizer()
    tokenizer.chat_template = template
    model = make_model("llama", tokenizer, folder / "model")
    (model / "generation_config.json").write_text(json.dumps({"repetition_penalty": 9.0, "do_sample": True, "eos_token_id": 0}))
    command.change("General", base_model=str(model), sample_prompts=2, merge_adapter=lora).change("Dataset", **keys)
    command.change("Training", max_train_steps=30, learning_rate=0.03)
    if not lora:
        command.change("General", lora_config=None, merge_adapter=None)
    outcome = command.run()
    assert outcome.code == 0, outcome.err
    return outcome.output


def samples(folder: Path) -> list[tuple[dict[str, Any], list[str]]]:
    """The samples of a run, and the arguments that ask for each."""
    found = json.loads((folder / "logs" / "samples.json").read_text())
    rows = [sample_rows()[int(sample["row"].rpartition(":")[2]) - 1] for sample in found]
    return [
        (sample, [row["instruction"], "--input", row["context"], "--max_tokens", "64", "--device", "cpu"])
        for sample, row in zip(found, rows, strict=True)
    ]


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_answers_are_those_of_the_report_token_by_token(command: Command, tmp_path: Path, kind: str) -> None:
    folder = trained(command, tmp_path, kind)
    folders = [folder, folder / "merged"] if KINDS[kind][2] else [folder]
    for sample, arguments in samples(folder):
        before, after = (sample[when]["text"] for when in ("before", "after"))
        assert before != after
        for place in folders:
            assert generate.main([str(place), *arguments]) == 0
            assert command.capsys.readouterr().out == f"{after}\n"
        assert generate.main([str(folders[-1]), *arguments, "--base"]) == 0
        assert command.capsys.readouterr().out == f"Base model:\n{before}\n\nFinetuned model:\n{after}\n"


def test_a_run_leaves_what_is_needed_to_ask_and_to_compare(command: Command) -> None:
    command.change("General", sample_prompts=1)
    outcome = command.run()
    assert outcome.code == 0, outcome.err
    found = read_summary(outcome.output / "logs")
    assert found is not None
    assert TrainerConfig.model_validate(found.config) == TrainerConfig.model_validate(command.config)
    assert (found.messages, found.compute_type, found.ended) == (True, "float32", "")
    assert found.measured["Steps"] == "4"
    manifest = json.loads((outcome.output / "manifest.json").read_text())
    assert "logs/summary.json" in [entry["path"] for entry in manifest["files"]]


def test_a_model_of_texts_continues_a_text_and_a_folder_without_a_summary_is_asked_by_its_template(
    command: Command, tmp_path: Path
) -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = CHATML
    command.change("General", base_model=str(make_model("llama", tokenizer, tmp_path / "model")), sample_prompts=1)
    command.write_rows(*[{"text": f"Text {number} of some length."} for number in range(6)])
    outcome = command.run()
    assert outcome.code == 0, outcome.err
    from finetune_trainer.inference.asking import load

    asked = load(outcome.output, None, "cpu", base=False, trusts_code=False)
    assert asked.prompt("Text 1 of") == tokenizer("Text 1 of")["input_ids"]
    (outcome.output / "logs" / "summary.json").unlink()
    asked = load(outcome.output, None, "cpu", base=False, trusts_code=False)
    message = [{"role": "user", "content": "Text 1 of"}]
    assert asked.prompt("Text 1 of") == tokenizer.apply_chat_template(message, add_generation_prompt=True)["input_ids"]


def test_what_cannot_be_answered_is_told_in_words(command: Command, tmp_path: Path) -> None:
    command.change("Dataset", max_length=120)
    folder = command.run().output
    assert generate.main([str(tmp_path), "x"]) == 9
    assert "there is no model in this folder" in command.capsys.readouterr().err
    assert generate.main([str(folder), "", "--device", "cpu"]) == 2
    assert "the prompt is empty" in command.capsys.readouterr().err
    assert generate.main([str(folder), "word " * 500, "--device", "cpu", "--max_tokens", "1"]) == 0
    assert "tokens, as in the training (Dataset.max_source_length)" in command.capsys.readouterr().err
    assert generate.main([str(folder), "x", "--model_dir", str(tmp_path / "nowhere")]) == 4
    shutil.rmtree(folder / "logs")
    assert generate.main([str(folder), "x", "--device", "cpu", "--max_tokens", "1"]) == 0


@pytest.mark.slow
async def test_a_terminal_gets_a_chat(command: Command, tmp_path: Path) -> None:
    folder = trained(command, tmp_path)
    sample, (question, *_) = next((sample, given) for sample, given in samples(folder) if not given[2])
    parent, child = pty.openpty()
    words = [sys.executable, "-m", "finetune_trainer.generate", str(folder), "--device", "cpu"]
    process = await asyncio.create_subprocess_exec(*words, stdin=child, stdout=child, stderr=child)
    os.close(child)
    for line in (question, "And now?", "/new", question):
        os.write(parent, f"{line}\n".encode())
    os.write(parent, b"\x04")
    drawn = b""
    while chunk := await asyncio.to_thread(_read, parent):
        drawn += chunk
    assert await asyncio.wait_for(process.wait(), 60) == 0
    os.close(parent)
    assert drawn.decode().count(sample["after"]["text"].strip().splitlines()[0]) >= 2


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65536)
    except OSError:  # its other end is closed
        return b""


@pytest.mark.slow
async def test_a_job_is_asked_after_its_result_was_copied_here(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = trained(command, tmp_path)
    sample, arguments = samples(folder)[0]
    async with shell_at(tmp_path, monkeypatch, capsys) as shell:
        shell.cluster.helpers.claims["out"] = folder.parent
        shell.kube.put("persistentvolumeclaims", {"metadata": {"name": "out", "namespace": NAMESPACE}})
        digest = hashlib.sha256((folder / "manifest.json").read_bytes()).hexdigest()
        output = {"persistentVolumeClaim": "out", "path": folder.name, "format": "peft-adapter", "manifestSHA256": digest}
        shell.add(phase="Succeeded", spec={"image": "t:1"}, status={"output": output, "attempt": 1})
        (tmp_path / "here").mkdir()
        words = [sys.executable, "-m", "finetune_client.cli", "generate", "demo", *arguments]
        for _ in range(2):
            pipes = {"stdout": asyncio.subprocess.PIPE, "stderr": asyncio.subprocess.PIPE}
            process = await asyncio.create_subprocess_exec(*words, cwd=tmp_path / "here", **pipes)
            out, err = await asyncio.wait_for(process.communicate(), 240)
            assert (process.returncode, out.decode()) == (0, sample["after"]["text"] + "\n"), err
        assert len(shell.cluster.helpers.made) == 1
    assert (tmp_path / "here" / "demo" / "manifest.json").is_file()
