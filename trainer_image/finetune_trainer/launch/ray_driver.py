"""Start the workers with Ray Train, from the driver.

Ray Train starts, places and watches the workers. They need nothing from it but an address for their rendezvous, so the
driver and Ray's controller never import torch: that saves seconds and hundreds of megabytes on the head node.

When a node is drained through Ray, by its autoscaler or `ray drain-node`, Ray Train notifies the workers within about
five seconds. They write a checkpoint and continue until the deadline; then Ray Train restarts them on the remaining
nodes, up to `max_worker_failures` times, counted apart from lost workers. Ray is not notified of an eviction by
Kubernetes: the run resumes from the previous checkpoint.
"""

from __future__ import annotations

import logging
import math
import os
import shutil
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from finetune_trainer.config.run import addresses_cluster
from finetune_trainer.launch.ray_worker import train_on_worker
from finetune_trainer.launch.worker_errors import worker_error
from finetune_trainer.runtime import stop
from finetune_trainer.tracking import console

if TYPE_CHECKING:
    from collections.abc import Iterator

    from finetune_trainer.config.run import Run
    from finetune_trainer.config.training import Training

RAY_STORAGE = "ray"
"""Folder below the output folder where Ray Train keeps its own records."""

WORKER_START_SECONDS = 600
"""Time for a group of workers to start: a pod may import torch from a cold volume."""

OBJECT_STORE_BYTES = 128 * 2**20
"""Shared memory of a local Ray. Nothing large passes through it."""

DRIVER_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": str(WORKER_START_SECONDS),
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
}
"""Defaults for Ray: no telemetry; the end of a short run is noticed at once, not two seconds later; the workers stay in
their working folder."""

LOCAL_ENVIRONMENT = {
    # Ray Train starts every process with an environment of its own, so processes started ahead are never used.
    "RAY_prestart_worker_first_driver": "0",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
}
"""Further defaults for a Ray that lives as long as this run."""

CPU_PARTS = 10_000
"""Ray divides a CPU into so many parts."""

WORKER_ENVIRONMENT = {"TOKENIZERS_PARALLELISM": "false"}


def train_with_ray(run: Run) -> None:
    """Start the workers with Ray Train, and wait for their end."""
    console.stage("connecting to Ray" if addresses_cluster() else "starting Ray on this machine")
    with _ray(run):
        console.stage(f"starting {run.config.training.ranks} workers")
        from ray.train import TrainingFailedError
        from ray.train.v2.api.config import FailureConfig, RunConfig

        from finetune_trainer.launch.ray_hooks import FinalErrors, RendezvousConfig, Trainer

        storage, failures = run.output_dir / RAY_STORAGE, run.max_worker_failures
        trainer = Trainer(
            train_on_worker,
            train_loop_config={"run": run},
            backend_config=RendezvousConfig(),
            scaling_config=scaling(run.config.training),
            run_config=RunConfig(
                name=run.run_name,
                storage_path=str(storage),
                # When Ray Train gives up, the operator decides what follows, since it knows more about the failure.
                failure_config=FailureConfig(max_failures=failures, max_preemption_failures=failures),
                callbacks=[FinalErrors(run)],
                worker_runtime_env={"env_vars": WORKER_ENVIRONMENT},
            ),
        )
        try:
            trainer.fit()
        except TrainingFailedError as error:
            raise worker_error(error, run) from error
        shutil.rmtree(storage, ignore_errors=True)


@contextmanager
def _ray(run: Run) -> Iterator[None]:
    """Connect to the addressed cluster, or start a local Ray for the time of the run."""
    cluster = addresses_cluster()
    for name, value in {**DRIVER_ENVIRONMENT, **({} if cluster else LOCAL_ENVIRONMENT)}.items():
        os.environ.setdefault(name, value)
    import ray

    training = run.config.training
    workers = training.num_training_workers
    options: dict[str, Any] = {}
    if not cluster:
        # Ray's CPUs are a count, not cores: all workers fit on any machine and share its cores. Another run's Ray on
        # this machine is left alone.
        options = {
            "address": "local",
            "num_cpus": workers * math.ceil(training.resources_per_worker.CPU),
            "num_gpus": workers * training.resources_per_worker.GPU,
            "include_dashboard": False,
            "object_store_memory": OBJECT_STORE_BYTES,
        }
    handlers = stop.handlers()
    with stop.kept_from_children():
        ray.init(log_to_driver=False, logging_level=logging.ERROR, **options)
    stop.restore(handlers)
    try:
        yield
    finally:
        ray.shutdown()


def scaling(training: Training) -> Any:
    """What Ray starts: a process for each rank. The ranks of a worker's GPUs share its CPUs."""
    from ray.train.v2.api.config import ScalingConfig

    shares, cpus = training.ranks_per_worker, math.ceil(training.resources_per_worker.CPU)
    resources = {"CPU": cpus // shares if cpus >= shares else math.floor(CPU_PARTS * cpus / shares) / CPU_PARTS}
    return ScalingConfig(
        num_workers=training.ranks,
        use_gpu=training.device == "gpu",
        resources_per_worker=resources | ({"GPU": 1} if training.device == "gpu" else {}),
        placement_strategy="SPREAD",
    )
