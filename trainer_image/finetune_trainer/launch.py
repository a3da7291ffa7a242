"""Start the workers: in this process when one is enough, else with Ray Train, locally or in a cluster.

Ray Train starts, places and watches the workers. They need nothing from it but an address to meet at, so the driver
and Ray's controller never import torch: that saves seconds and hundreds of megabytes on the head node.

When a node is drained through Ray, by its autoscaler or `ray drain-node`, Ray Train tells the workers within some five
seconds. They write a checkpoint and train on until the deadline; then Ray Train starts them anew on the nodes that are
left, up to `max_worker_failures` times, apart from those for lost workers. Of an eviction by Kubernetes Ray knows
nothing before the pod is gone: the run goes on from the checkpoint before.
"""

from __future__ import annotations

import logging
import math
import os
import shutil
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from finetune_trainer.config.run import RESTARTS
from finetune_trainer.errors import TrainerError, TrainingFailed, WorkerLost, explain, in_words
from finetune_trainer.runtime import stop
from finetune_trainer.tracking import console, logbook
from finetune_trainer.tracking.tracker import enter_stage

if TYPE_CHECKING:
    from collections.abc import Iterator

    from finetune_trainer.config.run import Run

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
"""Defaults for Ray: no telemetry; the end of a short run is seen at once, not two seconds later; the workers stay in
their working folder."""

LOCAL_ENVIRONMENT = {
    # Ray Train starts every process with an environment of its own, so processes started ahead are never used.
    "RAY_prestart_worker_first_driver": "0",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
}
"""Further defaults for a Ray that lives as long as this run."""

IMPORTING = "importing torch and transformers"
"""The first stage of the workers."""

WORKER_ENVIRONMENT = {"TOKENIZERS_PARALLELISM": "false"}


def addresses_cluster() -> bool:
    """Whether a Ray cluster is addressed: this is the driver of a Ray job, or RAY_ADDRESS is set."""
    return any(os.environ.get(name) for name in ("RAY_ADDRESS", "RAY_JOB_ID"))


def launch(run: Run) -> None:
    """Do the run and wait for its end.

    Raises:
        TrainerError: a failure with a known cause.
    """
    if run.config.training.num_training_workers == 1 and not addresses_cluster():
        _train_here(run)
    else:
        _train_with_ray(run)


def _train_here(run: Run) -> None:
    enter_stage(run, 0, IMPORTING, first=True)
    from finetune_trainer.runtime import distributed
    from finetune_trainer.training import loop

    with logbook.keep(run.logs, run.attempt, "rank-0"):
        loop.train(run, distributed.alone(run.config.training))


def _train_with_ray(run: Run) -> None:
    console.stage("connecting to Ray" if addresses_cluster() else "starting Ray on this machine")
    with _ray(run):
        console.stage(f"starting {run.config.training.num_training_workers} workers")
        from ray.train import TrainingFailedError
        from ray.train.v2.api.config import FailureConfig, RunConfig

        storage, failures = run.output_dir / RAY_STORAGE, run.max_worker_failures
        trainer = _trainer_class()(
            train_on_worker,
            train_loop_config={"run": run},
            backend_config=_meeting_point(),
            scaling_config=_scaling(run),
            run_config=RunConfig(
                name=run.run_name,
                storage_path=str(storage),
                # What is left when Ray Train gives up, the operator decides about, with what it knows of the failure.
                failure_config=FailureConfig(max_failures=failures, max_preemption_failures=failures),
                callbacks=[_final_errors(run)],
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
    ray.init(log_to_driver=False, logging_level=logging.ERROR, **options)
    stop.restore(handlers)
    try:
        yield
    finally:
        ray.shutdown()


def _trainer_class() -> Any:
    """Ray Train's trainer without its own answer to Ctrl-C, which is to throw the run away."""
    from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

    class Trainer(DataParallelTrainer):  # type: ignore[misc]  # Ray has no types
        def _register_sigint_handler(self, *args: Any) -> None:
            pass

    return Trainer


def _final_errors(run: Run) -> Any:
    """A callback for Ray Train's controller: an error that will come again ends the run, whatever max_failures says."""
    from ray.train.v2.api.callback import UserCallback

    class FinalErrors(UserCallback):  # type: ignore[misc]
        def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:  # noqa: ARG002 - Ray's
            for error in worker_exceptions.values():
                known = explain(error, run)
                if known is not None and not known.may_pass:
                    # Ray Train retries failures of workers, and no others.
                    raise known

    return FinalErrors()


def _scaling(run: Run) -> Any:
    from ray.train.v2.api.config import ScalingConfig

    training = run.config.training
    resources = {"CPU": math.ceil(training.resources_per_worker.CPU), "GPU": training.resources_per_worker.GPU}
    return ScalingConfig(
        num_workers=training.num_training_workers,
        use_gpu=training.device == "gpu",
        resources_per_worker={name: amount for name, amount in resources.items() if amount},
        placement_strategy="SPREAD",
    )


def _meeting_point() -> Any:
    """A backend for Ray Train that tells all workers where rank 0 listens, and how many groups there were before."""
    from ray.train._internal.utils import get_address_and_port
    from ray.train.backend import Backend, BackendConfig

    class Meeting(Backend):  # type: ignore[misc]
        restarts = -1

        def on_start(self, worker_group: Any, backend_config: Any) -> None:  # noqa: ARG002 - Ray's signature
            address, port = worker_group.execute_single(0, get_address_and_port)
            self.restarts += 1
            variables = {"MASTER_ADDR": address, "MASTER_PORT": str(port), RESTARTS: str(self.restarts)}
            worker_group.execute(set_environment, variables)

    @dataclass
    class MeetingConfig(BackendConfig):  # type: ignore[misc]
        @property
        def backend_cls(self) -> type[Backend]:
            return Meeting

    return MeetingConfig()


def set_environment(variables: dict[str, str]) -> None:
    """Set environment variables of this process."""
    os.environ.update(variables)


def train_on_worker(config: dict[str, Any]) -> None:
    """What Ray Train runs on each worker."""
    from ray import train

    run: Run = config["run"]
    rank = train.get_context().get_world_rank()
    try:
        enter_stage(run, rank, IMPORTING, first=True)
        with logbook.keep(run.logs, run.attempt, f"rank-{rank}"):
            _train_in_group(run, train.report)
    except Exception as error:
        # The group is not left: else the other ranks would fail by that, and Ray Train might hear of them first.
        known = explain(error, run)
        if known is error:
            raise
        # Ray drops the traceback, and an error of some library may not survive the way to the driver.
        raise known or in_words(error, f"rank {rank}: ") from error


def _train_in_group(run: Run, report: Any) -> None:
    from finetune_trainer.runtime import distributed
    from finetune_trainer.training import loop

    loop.train(run, distributed.join(run.config.training), report, is_leaving)
    distributed.leave()


def is_leaving() -> bool:
    """Whether Ray has told this worker that the node of a worker is going to be taken away."""
    # Ray's public get_preemption_info is a barrier of all workers across an actor, too slow for every step.
    from ray.train.v2._internal.execution.context import get_train_context

    return get_train_context().preemption_context.preemption_info is not None


def worker_error(error: Any, run: Run) -> TrainerError:
    """Find the worker's own error in what Ray Train makes of it."""
    final = explain(getattr(error, "controller_failure", error), run)
    if final is not None:
        return final
    failures = getattr(error, "worker_failures", None) or {}
    explained = {rank: explain(failure, run) for rank, failure in sorted(failures.items())}
    known = [cause for cause in explained.values() if cause is not None]
    unknown = [cause for cause in known if type(cause) is TrainingFailed]
    # A rank that was killed says nothing itself, and its neighbours only that they lost it.
    named = sorted((cause for cause in known if cause not in unknown), key=lambda cause: isinstance(cause, WorkerLost))
    lost = [in_words(failures[rank], f"rank {rank}: ") for rank, cause in explained.items() if cause is None]
    first = min(unknown, key=lambda cause: cause.time, default=None)
    return next(iter((*named, *lost)), first) or in_words(error)
