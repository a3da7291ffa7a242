"""``finetune estimate`` predicts a job from what is on this machine, or from what the options say."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML
from tests.support.chart import ROOT
from tests.support.trainer import make_tokenizer, sample_rows

from finetune_client import cli
from finetune_trainer.config.dataset import Dataset
from finetune_trainer.data.encode import encode_rows
from finetune_trainer.data.jsonl import Row

pytestmark = pytest.mark.sampled(4)

LLAMA_8B = {
    "model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
    "num_key_value_heads": 8, "vocab_size": 128256, "tie_word_embeddings": False,
}  # fmt: skip
CONFIG = Dataset(train_file="rows.jsonl")
LORA = {"r": 8, "lora_dropout": 0.0}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder with the configuration of a model, and nothing else."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(LLAMA_8B))
    return folder


def write_job(folder: Path, *, gpu: bool = True, bare: bool = False, **sections: Any) -> Path:
    """A job, or a finetuning YAML, that trains an 8B model."""
    device = {"device": "GPU", "resources_per_worker": {"CPU": 4, "GPU": 1}} if gpu else {"resources_per_worker": {"CPU": 16}}
    config = {
        "General": {"base_model": "owner/model", "lora_config": LORA} | sections.get("general", {}),
        "Dataset": {"train_file": "rows.jsonl"} | sections.get("dataset", {}),
        "Training": {"batch_size": 43, "mixed_precision": "bf16"} | device | sections.get("training", {}),
    }
    spec = {
        "config": config,
        "output": {"size": "1Gi"},
        "dataset": {"persistentVolumeClaim": {"claimName": "data"}},
        "model": {"persistentVolumeClaim": {"claimName": "models", "subPath": "ours"}},
    }
    spec |= {"accelerator": "nvidia"} if gpu else {}
    job = {"apiVersion": "llmonray.dev/v1alpha1", "kind": "FinetuneJob", "metadata": {"name": "job"}, "spec": spec}
    path = folder / "job.yaml"
    with path.open("w") as file:
        YAML().dump(config if bare else job, file)
    return path


def told(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    """What the command says, for programs."""
    assert cli.main(["estimate", "-o", "json", *map(str, arguments)]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert cli.main(["estimate", *map(str, arguments)]) != 0
    return capsys.readouterr().err


KNOWN = ("--rows", 10_000, "--mean-tokens", 190)


def test_a_run_that_was_measured_is_told_as_it_was_measured(
    tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = told(capsys, "-f", write_job(tmp_path), "--model", model, "--device", "h200", *KNOWN)
    assert found["isEstimate"] is False
    assert found["notes"] == []
    assert found["tokensPerSecond"] == pytest.approx(19_412, rel=0.1)
    assert found["memory"]["bytesPerRank"] == pytest.approx(46.5 * 2**30, rel=0.1)
    assert found["memory"]["fits"] is True
    assert found["steps"] == 3 * -(-9500 // 43)
    assert found["hours"] * 3600 == pytest.approx(found["steps"] * found["secondsPerStep"]["total"] + 65, rel=0.05)


def test_what_was_not_measured_is_marked(tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    two = {"resources_per_worker": {"CPU": 4, "GPU": 2}}
    for changes, options in (({}, ("--device", "a100")), ({"training": two}, ()), ({"gpu": False}, ())):
        found = told(capsys, "-f", write_job(tmp_path, **changes), "--model", model, *KNOWN, *options)
        assert found["isEstimate"] is True
        assert "data sheets" in found["notes"][-1]
    (model / "config.json").write_text(json.dumps(LLAMA_8B | {"num_hidden_layers": 2, "vocab_size": 1000}))
    assert told(capsys, "-f", write_job(tmp_path), "--model", model, *KNOWN)["isEstimate"] is True


def test_rows_and_tokens_are_counted_where_the_files_are_here(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    claims = tmp_path / "claims"
    (claims / "models" / "ours").mkdir(parents=True)
    (claims / "data").mkdir()
    (tokenizer := make_tokenizer()).save_pretrained(claims / "models" / "ours")
    (claims / "models" / "ours" / "config.json").write_text(json.dumps(LLAMA_8B))
    (claims / "data" / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in sample_rows(200)))
    found = told(capsys, "-f", write_job(tmp_path), "--claims-dir", claims, "--claim", f"data={claims / 'data'}")
    assert found["rows"] == 190
    examples = encode_rows([Row(**row, line=1) for row in sample_rows(200)], tokenizer, CONFIG, "f")
    assert found["meanTokensPerRow"] == pytest.approx(examples.lengths.mean(), rel=0.02)
    assert not any("guessed" in note for note in found["notes"])
    (claims / "models" / "ours" / "tokenizer.json").unlink()
    assert "guessed" in told(capsys, "-f", write_job(tmp_path), "--claims-dir", claims)["notes"][0]


def test_a_finetuning_yaml_is_taken_as_it_is(tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    job = write_job(tmp_path, bare=True, general={"base_model": str(model)})
    assert told(capsys, "-f", job, *KNOWN)["device"] == "NVIDIA H100 80GB HBM3"


def test_activations_are_recomputed_where_memory_does_not_suffice(
    tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job = write_job(tmp_path, training={"batch_size": 170})
    on = {gpu: told(capsys, "-f", job, "--model", model, *KNOWN, "--device", gpu) for gpu in ("h200", "h100", "l4")}
    assert [found["memory"]["recomputesActivations"] for found in on.values()] == [False, True, True]
    assert [found["memory"]["fits"] for found in on.values()] == [True, True, False]


def test_nothing_is_saved_on_a_gpu_whose_memory_a_run_does_not_predict(
    tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job = write_job(tmp_path, training={"batch_size": 170})
    memory = told(capsys, "-f", job, "--model", model, *KNOWN, "--device", "max-1550")["memory"]
    assert (memory["recomputesActivations"], memory["fits"]) == (False, False)


def test_frozen_weights_in_8_bits_are_predicted_as_faster(
    tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lower, fp8 = (
        told(capsys, "-f", write_job(tmp_path, general={"frozen_dtype": held}), "--model", model, *KNOWN, "--device", "h200")
        for held in (None, "fp8")
    )
    assert fp8["tokensPerSecond"] > 1.3 * lower["tokensPerSecond"]


def test_people_get_a_table_and_yaml_is_what_json_is(tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["-f", str(write_job(tmp_path)), "--model", str(model), *map(str, KNOWN)]
    assert cli.main(["estimate", *arguments]) == 0
    said = capsys.readouterr().out
    assert "memory of a GPU" in said
    assert "tokens/s" in said
    assert cli.main(["estimate", *arguments, "-o", "yaml"]) == 0
    assert YAML(typ="safe").load(capsys.readouterr().out) == told(capsys, *arguments)


def test_what_is_missing_is_named_with_what_to_do(tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    job = write_job(tmp_path)
    assert "owner/model is not on this machine" in (said := refused(capsys, "-f", job, *KNOWN))
    assert "--model DIR" in said
    assert "--rows N --mean-tokens N" in refused(capsys, "-f", job, "--model", model)
    assert "it has h200, h100" in refused(capsys, "-f", job, "--model", model, *KNOWN, "--device", "tpu")
    assert "did you mean data" in refused(capsys, "-f", job, "--model", model, *KNOWN, "--claim", "dat=/")
    assert "the job trains on CPUs" in refused(
        capsys, "-f", write_job(tmp_path, gpu=False), "--model", model, *KNOWN, "--device", "h100"
    )


def test_what_is_wrong_is_told_with_its_line_also_of_standard_input(
    tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job = write_job(tmp_path, training={"batch_size": "many"})
    line = next(number for number, text in enumerate(job.read_text().splitlines(), 1) if "batch_size" in text)
    assert f"{job}:{line}: spec.config.Training.batch_size" in refused(capsys, "-f", job, "--model", model, *KNOWN)
    command = [sys.executable, "-m", "finetune_client.cli", "estimate", "-f", "-", "--model", str(model), *map(str, KNOWN)]
    done = subprocess.run(command, input=write_job(tmp_path).read_bytes(), capture_output=True, check=False, timeout=30, cwd=ROOT)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"model_type": "llama"}', '{"model_type": "llama", "hidden_size": "x"}'])
def test_a_model_of_unknown_size_is_refused(tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str], text: str) -> None:
    (model / "config.json").write_text(text)
    assert "config.json does not tell the size of a model" in refused(capsys, "-f", write_job(tmp_path), "--model", model, *KNOWN)


def test_no_library_of_training_is_needed(tmp_path: Path, model: Path) -> None:
    heavy = "{'torch', 'transformers', 'ray', 'peft', 'numpy', 'datasets'}"
    arguments = ["estimate", "-f", str(write_job(tmp_path)), "--model", str(model), *map(str, KNOWN)]
    program = f"import sys; from finetune_client import cli; cli.main({arguments!r}); print({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30, cwd=ROOT)
    assert done.stdout.endswith("set()\n"), done.stdout + done.stderr
