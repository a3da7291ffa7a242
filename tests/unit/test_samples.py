"""The samples: for every family of models, on CPU and on Intel GPUs, as a YAML file and as a FinetuneJob made from it."""

from __future__ import annotations

import argparse
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from tests.support.builders import NAMESPACE, UID, load_yaml
from tests.support.chart import ROOT

from finetune_client import convert, grammar
from finetune_operator.api.schema import crd_schema, violations
from finetune_operator.api.v1alpha1 import FinetuneJob
from finetune_operator.desired.storage import required_claims
from finetune_trainer.config.schema import TrainerConfig
from finetune_trainer.config.yaml_file import load_config

PLAIN = sorted((ROOT / "config_samples" / "finetune").rglob("*.yaml"))
HAND_MADE = {"addresses", "demo", "kind"}
"""FinetuneJobs that are made from no YAML file."""
ALL_JOBS = sorted((ROOT / "config_samples" / "finetunejobs").rglob("*.yaml"))
JOBS = [path for path in ALL_JOBS if path.stem not in HAND_MADE]

FAMILIES = {
    "llama": "meta-llama/Llama-2-7b-chat-hf",
    "mistral": "mistralai/Mistral-7B-v0.1",
    "pythia": "EleutherAI/pythia-6.9b",
    "gpt-j": "EleutherAI/gpt-j-6b",
    "bloom": "bigscience/bloom-560m",
    "opt": "facebook/opt-125m",
    "mpt": "mosaicml/mpt-7b",
    "gpt2": "gpt2",
}
DEVICES = {(family, device) for family in FAMILIES for device in ("cpu", "gpu")} - {("mpt", "gpu")}
"""Of MPT there is a sample for CPU only."""


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


def job_config(path: Path) -> TrainerConfig:
    return TrainerConfig.model_validate(load_yaml(path)["spec"]["config"])


def families(configs: list[TrainerConfig]) -> set[tuple[str, str]]:
    """(family, device) of each."""
    names = {model: family for family, model in FAMILIES.items()}
    return {(names[config.general.base_model], config.training.device) for config in configs}


def head(path: Path) -> list[str]:
    """The comment with which a file begins, line by line."""
    found = re.match(r"(?:#.*\n)*", path.read_text(encoding="utf-8"))
    assert found is not None
    return [line.removeprefix("#").strip() for line in found[0].splitlines()]


def test_every_family_has_its_samples() -> None:
    assert families([load_config(path).config for path in PLAIN]) == DEVICES
    assert families([job_config(path) for path in JOBS]) == DEVICES


def test_the_example_files_of_llm_on_ray_have_their_equals() -> None:
    assert {"config_samples/finetune/finetune.yaml", "config_samples/finetune/gpt_j_6b/finetune_intel_gpu.yaml"} <= set(
        map(relative, PLAIN)
    )


@pytest.mark.parametrize("path", PLAIN, ids=relative)
def test_a_sample_loads_without_a_warning(path: Path) -> None:
    loaded = load_config(path, strict=True)
    assert loaded.warnings == ()
    assert loaded.config.general.config.trust_remote_code is False
    assert (ROOT / loaded.config.dataset.train_file).is_file()


@pytest.mark.parametrize("path", PLAIN, ids=relative)
def test_a_sample_begins_with_the_command_that_runs_it(path: Path) -> None:
    lines = head(path)
    assert 1 <= len(lines) <= 2
    assert f"`llm_on_ray-finetune --config_file {relative(path)}`" in " ".join(lines)


@pytest.mark.parametrize("path", JOBS, ids=relative)
def test_a_job_begins_with_the_commands_that_make_and_apply_it(path: Path) -> None:
    assert f"`kubectl apply -f {relative(path)}`" in head(path)
    assert convert_command(path)[:2] == ["finetune", "convert"]


@pytest.mark.parametrize("path", JOBS, ids=relative)
def test_a_job_is_what_finetune_convert_prints(
    path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    parser = argparse.ArgumentParser()
    grammar.add_convert_options(parser)
    assert convert.run(parser.parse_args(convert_command(path)[2:])) == 0
    printed, notes = capsys.readouterr()
    written = path.read_text(encoding="utf-8")
    assert written[written.index("apiVersion:") :] == printed, "print it anew with the command in its head"
    assert notes == ""


def convert_command(path: Path) -> list[str]:
    """The words of the command `finetune convert …` in a job's head; a backslash leads on to the next line."""
    text = "\n".join(head(path)).replace("\\\n", " ")
    return shlex.split(text[text.index("finetune convert ") :])


@pytest.mark.parametrize("path", JOBS, ids=relative)
def test_a_job_is_valid_and_says_what_it_needs(path: Path) -> None:
    raw = load_yaml(path)
    assert list(violations(crd_schema(), raw)) == []
    spec = as_stored(path).spec
    assert spec.workers is not None
    assert estimate(path) < gigabytes(spec.workers.memory) < 2 * estimate(path) + 4
    gpu = spec.config.training.device == "gpu"
    assert (spec.accelerator, spec.config.training.resources_per_worker.GPU) == (("i915", 1) if gpu else (None, 0))
    assert spec.config.training.mixed_precision == "bf16"


@pytest.mark.parametrize("path", ALL_JOBS, ids=relative)
def test_a_job_needs_no_claim_that_its_head_does_not_fill(path: Path) -> None:
    """The trainer's image has examples/; the rest comes from an address, or from a claim that a command in the head makes."""
    job = as_stored(path)
    if not (job.spec.dataset and job.spec.dataset.uri):
        assert (ROOT / job.spec.config.dataset.train_file).is_relative_to(ROOT / "examples")
        assert (ROOT / job.spec.config.dataset.train_file).is_file()
    named = {name for key, name in required_claims(job).items() if not key.startswith("output")}
    commands = [line.strip("`") for line in head(path) if line.startswith("`finetune upload ")]
    uploads = [grammar.build().parse_args(shlex.split(command)[1:]) for command in commands]
    assert {upload.target.rpartition(":")[0] for upload in uploads if upload.create} == named
    if job.spec.model and job.spec.model.persistent_volume_claim:
        assert [Path(upload.files[0]).name for upload in uploads] == [job.spec.model.persistent_volume_claim.sub_path]


def test_small_models_need_no_claim() -> None:
    small = [path for path in ALL_JOBS if path.stem.startswith(("bloom_560m", "gpt2", "kind", "opt_125m"))]
    assert len(small) == 7
    for path in small:
        assert {"dataset", "model"} & load_yaml(path)["spec"].keys() == set()


def test_the_sample_for_kind_fits_on_a_node_of_8_gb() -> None:
    """With what the node's own pods, KubeRay's operator and ours ask for, 1.1 GiB, out of the 7.45 GiB that 8 GB are."""
    job = as_stored(ROOT / "config_samples" / "finetunejobs" / "kind.yaml")
    assert job.spec.head is not None
    assert job.spec.workers is not None
    workers = job.spec.config.training.num_training_workers
    assert mebibytes(job.spec.head.memory) + workers * mebibytes(job.spec.workers.memory) <= 6.2 * 1024
    assert workers * job.spec.config.training.resources_per_worker.CPU < 1.5


def as_stored(path: Path) -> FinetuneJob:
    """A sample with the metadata that an API server adds."""
    raw = load_yaml(path)
    return FinetuneJob.model_validate(raw | {"metadata": raw["metadata"] | {"namespace": NAMESPACE, "uid": UID}})


def mebibytes(quantity: Any) -> int:
    return int(quantity.removesuffix("Gi")) * 1024 if quantity.endswith("Gi") else int(quantity.removesuffix("Mi"))


def gigabytes(quantity: Any) -> float:
    assert quantity.endswith("Gi")
    return int(quantity.removesuffix("Gi")) * 2**30 / 1e9


def estimate(path: Path) -> float:
    """The sum of what the head says of a worker's memory, in gigabytes."""
    found = re.search(r"^Memory: (?:.*\n)+?(?=Memory of the GPU|The|With)", "\n".join(head(path)), re.MULTILINE)
    assert found is not None
    parts = [float(part) for part in re.findall(r"([0-9.]+) GB", found[0])]
    assert len(parts) >= 2
    return sum(parts)


def test_the_names_of_the_jobs_differ() -> None:
    names = [load_yaml(path)["metadata"]["name"] for path in ALL_JOBS]
    assert len(names) == len(set(names))
