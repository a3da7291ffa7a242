"""What Ray says about a lost worker, as Ray 2.60 says it, becomes a sentence."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError

from finetune_trainer.errors import TrainerError, explain

WORKER = """A worker health check failed.
Worker info: Worker(
  actor=Actor(RayTrainWorker, 9f913c97e4133076d7e9550704000000),
  metadata=ActorMetadata(
    hostname='demo-workers-worker-bk8zf',
    node_ip='10.244.0.68',
    pid=703,
  ),
  distributed_context=DistributedContext(world_rank=1, world_size=2),
)"""
MEMORY = """1 worker(s) were killed due to the node running low on memory. Memory on the node (IP: 10.244.0.68, ID: 40db) was \
0.95GB used / 1.00GB limit (0.953388)
OOM kill reason: Memory usage 1025884160B exceeded threshold"""
DEATH = "The actor died unexpectedly before finishing this task.\n\tclass_name: RayTrainWorker"


def lost(cause: str) -> TrainerError | None:
    return explain(WorkerHealthCheckFailedError(WORKER, RuntimeError(cause)), Path("/out"))


@pytest.mark.parametrize(
    ("cause", "reason", "message", "may_pass"),
    [
        (
            MEMORY,
            "WorkerOOMKilled",
            (
                "the worker on demo-workers-worker-bk8zf was ended for lack of memory (0.95GB used / 1.00GB limit); "
                "give workers more, or lower Training.batch_size"
            ),
            False,
        ),
        (
            DEATH,
            "WorkerLost",
            (
                "the worker on demo-workers-worker-bk8zf was lost: The actor died unexpectedly before finishing this task. "
                "class_name: RayTrainWorker"
            ),
            True,
        ),
    ],
    ids=["memory", "death"],
)
def test_a_lost_worker_is_named_with_what_is_known(cause: str, reason: str, message: str, may_pass: bool) -> None:
    error = lost(cause)
    assert error is not None
    assert (error.reason, str(error), error.may_pass) == (reason, message, may_pass)
    assert str(pickle.loads(pickle.dumps(error))) == message


def test_a_worker_of_which_nothing_is_known_is_lost_all_the_same() -> None:
    error = explain(WorkerHealthCheckFailedError("other words", RuntimeError("x")), Path("/out"))
    assert error is not None
    assert (error.reason, str(error)) == ("WorkerLost", "a worker was lost: ")
