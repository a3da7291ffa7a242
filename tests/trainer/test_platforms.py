"""The trainer and the CLI where Linux's CPU affinity, control groups, /proc and `resource`, and x86-64, are absent.

This simulates macOS on Apple silicon: the interpreter and its libraries are still those of this machine.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from ruamel.yaml import YAML
from tests.support.jobs import finetune_job
from tests.support.trainer import sample_rows

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.trainer import Command

ROOT = Path(__file__).resolve().parents[2]
WITHOUT_LINUX = ROOT / "tests" / "support" / "without_linux"

IMPORT_ALL = """
import importlib, pkgutil
for package in ("finetune_trainer", "finetune_client"):
    for module in pkgutil.walk_packages(importlib.import_module(package).__path__, package + "."):
        importlib.import_module(module.name)
        print(module.name)
"""

CPU = """
import json, os
from finetune_trainer.runtime import cpu, host
assert not hasattr(os, "sched_getaffinity")
print(json.dumps([os.cpu_count(), host.available_cpus(), cpu.bind(1, 0, 2), host.peak_memory(), cpu.amx_state()]))
"""

PRECISION = """
import json, os, sys
from finetune_trainer.runtime import cpu
sys.executable = "/no/such/python"  # a matmul that is tried in a process of its own fails
print(json.dumps([cpu.choose_precision("bf16").dtype, cpu.ISA_VARIABLE in os.environ]))
"""

UNIT = """
import resource, sys
sys.platform = sys.argv[1]
from finetune_trainer.runtime import host
print(round(host.peak_memory() / resource.getrusage(resource.RUSAGE_SELF).ru_maxrss))
"""


@pytest.fixture
def without_linux(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes that start from here on lack what Linux has."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(WITHOUT_LINUX), os.environ["PYTHONPATH"]]))


def python(*arguments: str) -> str:
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.usefixtures("without_linux")
def test_one_worker_trains(command: Command) -> None:
    command.change("Training", mixed_precision="bf16", max_train_steps=2)
    command.change("Dataset", preprocessing_num_workers=2)
    outcome = command.run_apart()
    assert outcome.code == 0, outcome.err
    assert len(outcome.losses) == 2
    assert "Compute type: float32" in outcome.err + outcome.out
    report = (outcome.output / "report.html").read_text()
    assert "was not measured" in report
    assert (outcome.output / "adapter_model.safetensors").is_file()


@pytest.mark.slow
@pytest.mark.usefixtures("without_linux")
def test_a_manifest_with_one_worker_runs_without_ray(model_folder: Callable[[str], Path], tmp_path: Path) -> None:
    job: dict[str, Any] = finetune_job("demo", Training__num_training_workers=1, Training__max_train_steps=1)
    job["spec"]["model"]["persistentVolumeClaim"].pop("subPath")
    manifest = tmp_path / "job.yaml"
    manifest.write_text(json.dumps(job))
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, sample_rows())))
    claims = ("--claim", f"data={tmp_path}", "--claim", f"models={model_folder('llama')}", "--claims-dir", str(tmp_path / "out"))
    said = python("-m", "finetune_client.cli", "run", "--local", "-f", str(manifest), *claims)
    status = YAML(typ="safe").load("apiVersion:" + said.partition("apiVersion:")[2].partition("\n\n")[0])["status"]
    assert (status["phase"], status["progress"]["step"]) == ("Succeeded", 1)


@pytest.mark.slow
@pytest.mark.usefixtures("without_linux")
def test_every_module_can_be_imported() -> None:
    imported = python("-c", IMPORT_ALL).split()
    assert {"finetune_trainer.training.loop", "finetune_trainer.runtime.host", "finetune_client.cli"} <= set(imported)


@pytest.mark.usefixtures("without_linux")
def test_what_the_system_does_not_tell_has_a_fallback() -> None:
    cpus, available, bound, memory, amx = json.loads(python("-c", CPU))
    assert (available, bound, memory, amx) == (cpus, [], 0, "absent")


@pytest.mark.usefixtures("without_linux")
def test_instruction_sets_of_x86_are_not_set_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    monkeypatch.setenv("FINETUNE_CPU_BF16", "1")
    assert json.loads(python("-c", PRECISION)) == ["float32", False]


@pytest.mark.parametrize(("system", "unit"), [("linux", "1024"), ("darwin", "1")])
def test_peak_memory_is_in_bytes(system: str, unit: str) -> None:
    """Linux counts ru_maxrss in KiB, macOS in bytes."""
    assert python("-c", UNIT, system).strip() == unit
