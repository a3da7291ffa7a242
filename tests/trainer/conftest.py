"""A tokenizer trained here, tiny models, and the command; before anything imports torch or Ray, the environment."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.support import matrix
from tests.support import ray_head as ray_head_module
from tests.support.trainer import Command, make_model, make_tokenizer, sample_rows

from finetune_trainer.runtime import cpu

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.support.ray_head import RayHead

SOURCE = Path(__file__).resolve().parents[2] / "trainer_image"
sys.path.insert(0, str(SOURCE))
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(SOURCE), os.environ.get("PYTHONPATH")]))
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
# Ray's own 15 lets every other process of a busy machine go first.
os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 - so Ray spells it
# As the trainer does before the first operation: on a virtual machine that hides half of AMX, bfloat16 kills the process.
if cpu.amx_state() == "broken":
    os.environ.setdefault(cpu.ISA_VARIABLE, cpu.SAFE_ISA)


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    """A tokenizer whose end-of-sequence token holds a `|`, and is its pad token too."""
    return make_tokenizer()


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Callable[[str], Path]:
    """Folders of tiny models with random weights, by family."""
    made: dict[str, Path] = {}

    def make(family: str) -> Path:
        if family not in made:
            made[family] = make_model(family, tokenizer, tmp_path_factory.mktemp(family))
        return made[family]

    return make


@pytest.fixture(scope="session")
def ray_head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayHead]:
    """A Ray cluster for all tests that address one."""
    with ray_head_module.started(tmp_path_factory.mktemp("ray")) as head:
        yield head


@pytest.fixture
def command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], model_folder: Callable[[str], Path], monkeypatch: Any
) -> Iterator[Command]:
    """The command with a small LoRA run on a tiny llama; tests change what they are about."""
    for name in ("RAY_ADDRESS", "RAY_JOB_ID"):
        monkeypatch.delenv(name, raising=False)
    config: dict[str, Any] = {
        "General": {
            "base_model": str(model_folder("llama")),
            "output_dir": str(tmp_path / "out"),
            "sample_prompts": 0,
            "lora_config": {"r": 4, "lora_alpha": 8, "lora_dropout": 0.0},
        },
        "Dataset": {"train_file": "data.jsonl", "validation_split_percentage": 0},
        "Training": {"batch_size": 2, "epochs": 1, "learning_rate": 0.01, "logging_steps": 1, "max_train_steps": 4},
    }
    made = Command(tmp_path, capsys, config)
    made.write_rows(*sample_rows())
    handler = signal.getsignal(signal.SIGTERM)
    yield made
    signal.signal(signal.SIGTERM, handler)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Show what each family of models was seen to do."""
    lines = matrix.table(terminalreporter.stats)
    if lines:
        terminalreporter.section("families of models")
    for line in lines:
        terminalreporter.line(line)
