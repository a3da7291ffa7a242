"""Dashboards that hang, lie, flood, refuse or cannot be asked: what that costs others, and what the job says."""

from __future__ import annotations

import asyncio
import io
import logging
from collections.abc import Iterator
from datetime import timedelta

import pytest
from tests.support.builders import KEYS, NAMESPACE, finished_progress, raw_progress
from tests.system.many import add, add_cluster
from tests.system.world import World, bring_up, run_training

from finetune_operator.__main__ import log_handler
from finetune_operator.api.v1alpha1 import Phase
from finetune_operator.desired.secrets import KeyRing

pytestmark = pytest.mark.sampled(5)

HOSTILE = "hostile"


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    """What the operator's log would show."""
    stream = io.StringIO()
    handler, logger = log_handler(stream), logging.getLogger("finetune_operator")
    level = logger.level
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    yield stream
    logger.removeHandler(handler)
    logger.setLevel(level)


def unreachable(world: World) -> bool:
    return world.phase()[1] == "DashboardUnreachable"


async def wait_until_told(world: World) -> None:
    """The dashboard is asked in vain, and 15 seconds pass."""
    assert world.operator is not None
    asked = len(world.ray.requests)
    await world.until(lambda: len(world.ray.requests) > asked + 1, "it is asked in vain")
    assert not unreachable(world), "a moment's silence is not told"
    world.operator.ahead += timedelta(seconds=15)
    await world.until(lambda: unreachable(world), "the job says so")


async def test_dashboards_that_hang_hold_up_no_job_of_another_namespace(world: World) -> None:
    """Each holds a connection for five seconds, and there are twenty times as many as reconciles at the same time."""
    for number in range(40):
        cluster = add(world, number, HOSTILE, phase=Phase.RUNNING)
        add_cluster(world, number, cluster, HOSTILE)
        world.ray.heads[cluster].silent = True
    await world.start_operator()
    await world.until(lambda: len(world.ray.requests) >= 10, "the dashboards hang", nudge=False)
    world.add_job()
    await world.until(lambda: world.phase() == ("Provisioning", "ClusterStarting"), "it begins", nudge=False, seconds=4)
    world.kuberay_says()
    await world.until(world.submitted, "its own dashboard is asked", nudge=False, seconds=4)


async def test_a_dashboard_that_accepts_a_submission_and_does_not_know_it_is_not_flooded(world: World) -> None:
    world.add_job()
    await world.start_operator()
    await world.until(lambda: world.phase()[0] == "Provisioning", "the cluster is provisioned")
    world.head.forgetful = True
    world.kuberay_says()
    await world.until(lambda: world.phase()[1] == "SubmissionFailed", "the job says so", nudge=False)
    await world.wait(3)
    assert len(world.ray.posts()) <= 6
    assert "does not know it" in world.status()["message"]
    world.head.forgetful = False
    await world.until(world.submitted, "it is submitted in the end", nudge=False)


async def test_a_run_that_does_not_heed_the_request_to_stop_is_not_flooded_with_it(world: World) -> None:
    world.add_job()
    await world.start_operator()
    await run_training(world, raw_progress())
    world.change_spec(suspend=True)
    await world.until(lambda: world.head.stops, "it is asked to stop", nudge=False)
    await world.wait(6)
    assert len(world.head.stops) <= 5


@pytest.mark.parametrize("when", ["before the run", "during the run"])
async def test_a_dashboard_that_cannot_be_reached_is_told_with_the_cause_by_one_event(world: World, when: str) -> None:
    world.add_job()
    await world.start_operator()
    if when == "during the run":
        await run_training(world, raw_progress())
        world.head.down = True
    else:
        await world.until(lambda: world.phase()[0] == "Provisioning", "the cluster is provisioned")
        world.head.down = True
        world.kuberay_says()
    before = world.phase()[0]
    await wait_until_told(world)
    assert world.operator is not None
    assert world.operator.reconciler.dashboards.unreachable() == 1
    assert world.phase()[0] == before, "nobody knows of a failure"
    assert "the connection was closed before an answer came" in world.status()["message"]
    writes = len(world.gate.labels)
    await world.rounds(20)
    assert len(world.gate.labels) <= writes + 1, "nothing is written but the event"
    world.head.down = False
    reason = "TrainingRunning" if when == "during the run" else "ClusterStarting"
    await world.until(lambda: world.phase()[1] == reason, "it goes on")
    assert world.operator.reconciler.dashboards.unreachable() == 0
    events = [event for event in world.kube.objects["events"].values() if event["reason"] == "DashboardUnreachable"]
    assert [event["type"] for event in events] == ["Warning"]


async def test_a_refused_token_is_told_in_the_dashboards_words(world: World) -> None:
    world.add_job()
    await world.start_operator()
    await run_training(world, raw_progress())
    for secret in world.kube.objects["secrets"].values():
        secret["data"]["auth_token"] = "c29tZXRoaW5nIGVsc2U="
    await wait_until_told(world)
    assert "it refuses the operator's token (401): Unauthorized" in world.status()["message"]


async def test_a_master_key_that_was_lost_is_told_and_no_other_key_is_tried(world: World) -> None:
    world.add_job()
    await world.start_operator()
    await run_training(world, raw_progress())
    await world.stop_operator()
    asked = len(world.ray.requests)
    world.keys = KeyRing((b"n" * 64,))
    await world.start_operator()
    await world.until(lambda: world.phase() == ("Running", "TokenKeyLost"), "it is told", nudge=False)
    assert KEYS.current_id in world.status()["message"]
    await world.rounds(10)
    assert len(world.ray.requests) == asked
    await world.stop_operator()
    world.keys = KeyRing((b"n" * 64, *KEYS.keys))
    await world.start_operator()
    world.ray_says("SUCCEEDED", progress=finished_progress())
    await world.until(lambda: world.phase()[0] == "Succeeded", "the old key beside the new one serves it")


async def test_text_of_others_is_cut_and_forges_no_line_of_the_log(world: World, log: io.StringIO) -> None:
    forged = "2026-01-02 03:04:05,678Z INFO finetune_operator.reconciler team/other: Succeeded (Completed)"
    world.add_job()
    await world.start_operator()
    await world.until(lambda: world.phase()[0] == "Provisioning", "the cluster is provisioned")
    world.head.refusal = (500, f"{'x' * 100_000}\r\n{forged}\u2028{forged}\n\x1b[2K{forged}\n")
    world.kuberay_says()
    await world.until(lambda: world.phase()[1] == "SubmissionFailed", "it is told")
    await world.until(lambda: "SubmissionFailed" in log.getvalue(), "it is logged")
    lines = log.getvalue().splitlines()
    assert not any(forged in line[: len(forged) + 10] for line in lines)
    assert "\x1b" not in log.getvalue()
    assert max(map(len, lines)) < 10_000
    assert len(world.status()["message"]) <= 4096


async def test_the_text_of_an_exception_forges_no_line_of_the_log(log: io.StringIO) -> None:
    error = ValueError("refused\n2026-01-02 03:04:05,678Z INFO forged\r\n2026-01-02 forged")
    logging.getLogger("finetune_operator.queue").error("reconcile of %s failed", "a\nb", exc_info=error)
    first, *others = log.getvalue().splitlines()
    assert first.endswith("finetune_operator.queue reconcile of a\\nb failed")
    assert others
    assert all(line.startswith("  | ") for line in others)


async def test_a_run_that_was_lost_from_sight_is_asked_about_again_once_its_head_is_ready(world: World) -> None:
    world.add_job()
    await world.start_operator()
    await bring_up(world)
    world.ray_says("RUNNING", progress=raw_progress())
    await world.until(lambda: world.phase() == ("Running", "TrainingRunning"), "training runs", nudge=False)
    cluster = world.kube.objects["rayclusters"][world.cluster]
    conditions = [
        item | {"status": "False"} if item["type"] == "HeadPodReady" else item for item in cluster["status"]["conditions"]
    ]
    world.kuberay_says(cluster["status"] | {"conditions": conditions})
    asked = len(world.ray.requests)
    await world.wait(1.5)
    assert len(world.ray.requests) <= asked + 2, "what was under way ends"
    world.kuberay_says()
    world.ray_says("SUCCEEDED", progress=finished_progress())
    await world.until(lambda: world.phase()[0] == "Succeeded", "its end is seen", nudge=False)


async def test_the_operator_ends_with_requests_under_way(world: World) -> None:
    cluster = add(world, 1, phase=Phase.RUNNING)
    add_cluster(world, 1, cluster, NAMESPACE)
    world.ray.heads[cluster].silent = True
    await world.start_operator()
    await world.until(lambda: world.ray.requests, "it is asked", nudge=False)
    async with asyncio.timeout(3):
        await world.stop_operator()
