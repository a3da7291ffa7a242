"""Two Ray workers: one is killed, both are stopped, both resume; the result is that of an undisturbed run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file
from tests.support import ranks
from tests.support.trainer import Apart, Outcome

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.support.ray_head import RayHead
    from tests.support.trainer import Command

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
STEPS = 60
KUBERNETES_GRACE_SECONDS = 30
"""Time between SIGTERM and SIGKILL, unless a pod says otherwise."""


@pytest.fixture(scope="module")
def undisturbed() -> dict[str, Outcome]:
    """Runs of two ranks without any trouble, by strategy; without Ray, which only starts them."""
    return {}


@pytest.fixture
def pair(command: Command, undisturbed: dict[str, Outcome]) -> Callable[[str], Outcome]:
    """Configure two workers, and give the outcome of an undisturbed run of them."""

    def prepare(strategy: str) -> Outcome:
        command.change("Training", batch_size=2, max_train_steps=STEPS, num_training_workers=2, accelerate_mode=strategy)
        command.change("General", lora_config={"r": 4, "lora_alpha": 8, "lora_dropout": 0.1} if strategy == "DDP" else None)
        if strategy not in undisturbed:
            folder = command.folder / "whole"
            config = command.config | {"General": command.config["General"] | {"output_dir": str(folder)}}
            ranks.start(
                command.folder / "ranks", [{"config": config, "data": str(command.folder), "stop": None, "name": None}], 2
            )
            undisturbed[strategy] = Outcome(0, "", "", folder)
        return undisturbed[strategy]

    return prepare


def same(one: Outcome, other: Outcome) -> bool:
    """Whether two runs have lost and learned the same, to all digits."""
    ours, theirs = (load_file(next(run.output.glob("*.safetensors"))) for run in (one, other))
    return one.losses == other.losses and all(torch.equal(ours[name], theirs[name]) for name in ours.keys() | theirs.keys())


def workers_of(head: RayHead) -> list[int]:
    """Processes of Ray's workers that belong to a head and run the training."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            line = (path / "cmdline").read_bytes()
            if line.startswith(b"ray::RayTrainWorker") and head.process in ancestors(int(path.name)):
                found.append(int(path.name))
        except OSError:
            continue
    return found


def ancestors(process: int) -> list[int]:
    found = []
    while process > 1:
        process = int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])
        found.append(process)
    return found


def epochs_of_life(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "logs" / "progress.json").read_text())


def test_a_killed_worker_costs_the_steps_since_the_checkpoint(
    command: Command, pair: Callable[[str], Outcome], ray_head: RayHead
) -> None:
    whole = pair("DDP")
    options = ("--run_name", "r", "--checkpoint_every_steps", "10", "--max_worker_failures", "2")
    started = Apart(command, *options, **ray_head.environment)
    # Looked for early: the run must not end between its step 25 and the kill.
    started.wait_for(1)
    workers = workers_of(ray_head)
    assert len(workers) == 2
    started.wait_for(25)
    os.kill(workers[1], signal.SIGKILL)
    started.watch(lambda: started.progress().get("restarts", 0) > 0)
    first_after = started.progress()["step"]
    code, out, err = started.end()
    assert code == 0, err
    progress = epochs_of_life(command.output)
    assert (progress["state"], progress["restarts"]) == ("finished", 1)
    assert first_after in range(20, 60)
    resumed = Outcome(code, out, err, command.output)
    assert same(whole, resumed)
    printed = [int(line.split()[1].split("/")[0]) for line in out.splitlines() if line.startswith("step ")]
    (back,) = [index for index in range(1, len(printed)) if printed[index] <= printed[index - 1]]
    assert printed[back] % 10 == 1
    assert not (command.output / "checkpoints").exists()


@pytest.mark.parametrize("strategy", ["FSDP", "DDP"])
def test_stop_file_and_signal_stop_all_ranks_at_one_step(
    command: Command, pair: Callable[[str], Outcome], ray_head: RayHead, strategy: str
) -> None:
    whole = pair(strategy)
    started = Apart(command, "--run_name", "r", **ray_head.environment)
    started.wait_for(5)
    if strategy == "FSDP":
        (started.logs / "stop").touch()
    else:
        started.process.send_signal(signal.SIGTERM)
    asked = time.monotonic()
    code, _, err = started.end()
    assert code == 75, err
    assert time.monotonic() - asked < KUBERNETES_GRACE_SECONDS
    progress = epochs_of_life(command.output)
    assert progress["state"] == "stopped"
    folder = Path(progress["checkpoint"]["path"])
    assert progress["checkpoint"]["step"] == progress["step"] < STEPS
    assert "it was stopped" in (command.output / "report.html").read_text()
    assert len(list(folder.glob("rank-*.safetensors"))) == (2 if strategy == "FSDP" else 1)
    resumed = command.run_apart("--run_name", "r", **ray_head.environment)
    assert resumed.code == 0, resumed.err
    first = next(line for line in resumed.out.splitlines() if line.startswith("step "))
    assert first.startswith(f"step {progress['step'] + 1}/{STEPS} ")
    assert same(whole, resumed)


def test_an_error_that_would_recur_is_not_retried(command: Command, ray_head: RayHead) -> None:
    command.change("General", base_model="org/none").change("Training", num_training_workers=2)
    outcome = command.run_apart("--max_worker_failures", "5", **ray_head.environment)
    assert outcome.code == 4, outcome.err
    assert "error: org/none: cannot load the tokenizer" in outcome.err
    assert outcome.progress.get("restarts", 0) == 0
    assert outcome.stages.count("importing torch and transformers") == 1, "workers say so whenever they start"


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A Ray cluster whose head runs no worker, and which has two nodes with room for both workers on either."""
    from ray.cluster_utils import Cluster

    for name, value in {"RAY_AUTH_MODE": "disabled", "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "0.5"}.items():
        monkeypatch.setenv(name, value)
    store = 100 * 2**20
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": store})
    try:
        for _ in range(2):
            cluster.add_node(num_cpus=2, object_store_memory=store)
        monkeypatch.setenv("RAY_ADDRESS", cluster.address)
        yield cluster
    finally:
        cluster.shutdown()


def drain(cluster: Any, node: Any, seconds: int) -> None:
    """Give notice that a node is taken away, as Ray's autoscaler does."""
    options = {"address": cluster.address, "node-id": node.node_id, "reason": "DRAIN_NODE_REASON_PREEMPTION",
               "reason-message": "test", "deadline-remaining-seconds": str(seconds)}  # fmt: skip
    arguments = [f"--{name}={value}" for name, value in options.items()]
    subprocess.run([sys.executable, "-m", "ray.scripts.scripts", "drain-node", *arguments], check=True, capture_output=True)


def test_a_node_that_is_drained_costs_nothing_before_the_notice(command: Command, nodes: Any) -> None:
    command.change("Training", batch_size=2, max_train_steps=4000, num_training_workers=2)
    started = Apart(command, "--run_name", "r", "--max_worker_failures", "1")
    started.wait_for(5)
    assert "checkpoint" not in started.progress()
    drain(nodes, nodes.worker_nodes.copy().pop(), 12)
    started.watch(lambda: "checkpoint" in started.progress())
    saved = started.progress()["checkpoint"]["step"]
    assert saved >= 5
    started.watch(lambda: started.progress().get("restarts", 0) == 1)
    assert started.progress()["checkpoint"]["step"] == saved
    assert started.progress()["step"] >= saved
    started.process.terminate()
    code, _, err = started.end()
    assert code == 75, err
