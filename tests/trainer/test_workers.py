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
from finetune_trainer.config.training import Training
from finetune_trainer.launch.ray_driver import scaling
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


@pytest.mark.parametrize(
    ("workers", "cpus", "gpus", "ranks", "share"),
    [(2, 8, 0, 2, 8), (2, 0.5, 0, 2, 1), (2, 8, 1, 2, 8), (2, 8, 4, 8, 2), (1, 8, 3, 3, 2), (1, 1, 3, 3, 0.3333)],
)
def test_each_gpu_of_a_worker_has_a_rank_of_its_own(workers: int, cpus: float, gpus: int, ranks: int, share: float) -> None:
    sizes = {"num_training_workers": workers, "resources_per_worker": {"CPU": cpus, "GPU": gpus}}
    training = Training.model_validate(sizes | {"device": "GPU" if gpus else "CPU"})
    asked = scaling(training)
    assert (training.ranks, asked.num_workers) == (ranks, ranks)
    assert asked.resources_per_worker == {"CPU": share} | ({"GPU": 1} if gpus else {})
    assert share * ranks <= workers * max(1, cpus)


def test_one_worker_with_two_gpus_starts_two_ranks(command: Command) -> None:
    """Ray takes our word for the GPUs; the ranks find none."""
    if torch.cuda.is_available() or torch.xpu.is_available():
        pytest.skip("there is a GPU")
    outcome = command.change("Training", device="GPU", resources_per_worker={"CPU": 1, "GPU": 2}).run_apart()
    assert outcome.code == 5, outcome.err
    assert "starting 2 workers" in outcome.stages
    # The rank that fails first ends the run, and the other one may not have begun.
    assert re.search(r"Ray assigned GPUs \['[01]'\]", outcome.err)


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
