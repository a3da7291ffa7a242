"""Two real Ray workers: alone on this host, and as a job of a running cluster."""

from __future__ import annotations

import json
import os
import pickle
import re
from typing import TYPE_CHECKING

import pytest
import torch
from safetensors.torch import load_file

from finetune_trainer import errors
from finetune_trainer.tracking.progress import RAY_LOG_FILE

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.ray_head import RayHead
    from tests.support.trainer import Command

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


def test_two_workers_learn_as_one_with_the_whole_batch(command: Command) -> None:
    command.change("Dataset", validation_split_percentage=20)
    command.change("General", lora_config=None, sample_prompts=3)
    one = command.change("Training", batch_size=6, max_train_steps=5).run()
    assert one.code == 0, one.err
    two = command.change("Training", batch_size=3, num_training_workers=2).run_apart()
    assert two.code == 0, two.err
    assert two.losses == pytest.approx(one.losses, abs=1e-5)
    assert two.progress["evalLoss"] == pytest.approx(one.progress["evalLoss"], abs=1e-5)
    world = two.progress["world"]
    assert (world["size"], world["backend"], world["strategy"]) == (2, "gloo", "DDP")
    assert world["devices"] == ["cpu", "cpu"]
    assert len(world["hosts"]) == 2
    assert not (two.output / "ray").exists()
    assert "step 1/5" in two.out
    assert two.stages == [
        "checking the rows of data.jsonl",
        "starting Ray on this machine",
        "starting 2 workers",
        "importing torch and transformers",
        "turning the rows into tokens",
        f"loading the model {command.config['General']['base_model']}",
        "answering 3 sample prompts before training",
        "training",
        "evaluating the model on 5 rows",
        "answering 3 sample prompts after training",
        "writing the result",
    ]
    logs = {path.stem: path.read_text() for path in (two.output / "logs" / "attempt-1").iterdir()}
    assert logs.keys() == {"driver", "rank-0", "rank-1"}
    assert " step 5/5 " in logs["driver"]
    assert " CPU: " in logs["rank-0"]
    if len(os.sched_getaffinity(0)) >= 2:
        bound = [re.search(r"(?:first worker:|bound to CPUs) ([\d,-]+)", logs[name]) for name in ("rank-0", "rank-1")]
        assert len({found[1] for found in bound if found}) == 2


def test_sharded_job_in_a_cluster(command: Command, ray_head: RayHead) -> None:
    command.change("Training", max_train_steps=4)
    one = command.change("Training", batch_size=4).run()
    assert one.code == 0, one.err
    losses, weights = one.losses, load_weights(one.output)

    command.change("Training", batch_size=2, num_training_workers=2, accelerate_mode="FSDP")
    two = command.run_apart("--run_name", "job-1", **ray_head.environment)
    assert two.code == 0, two.err
    assert two.losses == pytest.approx(losses, abs=1e-4)
    assert two.progress["world"]["strategy"] == "FSDP"
    assert json.loads((ray_head.logs / RAY_LOG_FILE).read_text()) == two.progress
    sharded = load_weights(two.output)
    assert sharded.keys() == weights.keys()
    assert all(torch.allclose(sharded[name], weights[name], atol=1e-3) for name in weights)


def load_weights(folder: Path) -> dict[str, torch.Tensor]:
    (path,) = folder.glob("*.safetensors")
    return load_file(path)


def test_failure_of_the_workers_in_a_cluster(command: Command, ray_head: RayHead) -> None:
    command.change("General", base_model="org/none").change("Training", num_training_workers=2)
    outcome = command.run_apart("--attempt", "2", **ray_head.environment)
    assert outcome.code == 4
    assert "error: org/none: cannot load the tokenizer" in outcome.err
    assert "Traceback" not in outcome.err
    seen = json.loads((ray_head.logs / RAY_LOG_FILE).read_text())
    assert (seen["attempt"], seen["state"], seen["failure"]["reason"]) == (2, "failed", "ModelNotFound")


def test_errors_cross_ray() -> None:
    for error in (errors.ConfigError(["a", "b"]), errors.DeviceNotFound("no GPU"), errors.LossNotFinite("nan")):
        copy = pickle.loads(pickle.dumps(error))
        assert type(copy) is type(error)
        assert str(copy) == str(error)
