"""Jobs that share nodes without a queue: simulated with a scheduler that gives each pod the room that is left."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from datetime import datetime, timedelta

import pytest
from tests.support.builders import NOW, begun, make_cluster, make_job, make_observed, make_pod, raw_job

from finetune_operator.api.v1alpha1 import TERMINAL, FinetuneJob, FinetuneJobStatus, Phase, Reason, dump
from finetune_operator.clients.cache import Cache
from finetune_operator.decide import CreateCluster, DeleteCluster, decide
from finetune_operator.decide.sharing import GIVE_BACK_SECONDS, OLDEST_SECONDS
from finetune_operator.observed import Line, Observed, Pod
from finetune_operator.waiting_line import line_of

pytestmark = pytest.mark.sampled(4)

HEAD_CPU, WORKER_CPU = 1, 1
RUN_SECONDS = 60
STEP_SECONDS = 5


@dataclass
class SimulatedJob:
    """A job with its pods: those that have a node, and those that wait for one."""

    job: FinetuneJob
    workers: int
    cluster: bool = False
    placed: int = 0
    """Pods with a node: the head, then workers."""
    since: datetime | None = None
    """When all of them had one."""

    @property
    def whole(self) -> bool:
        return self.placed == 1 + self.workers

    def pods(self) -> tuple[Pod, ...]:
        if self.whole or not self.cluster:
            return ()
        return (make_pod("waits", reason=Reason.UNSCHEDULABLE, message="0/1 nodes are available: insufficient cpu"),)


@dataclass
class Nodes:
    """All nodes as one, with a number of CPUs; Kubernetes gives a CPU to whatever pod asks next."""

    cpus: int
    jobs: list[SimulatedJob]
    cache: Cache = field(default_factory=Cache)
    now: datetime = NOW
    _turn: itertools.count[int] = field(default_factory=itertools.count)

    def step(self) -> None:
        """Schedule, then let the operator look at each job, as often as it needs to."""
        self._schedule()
        for simulated in self.jobs:
            for _ in range(6):
                if simulated.job.status.phase in TERMINAL or self._decide(simulated) != 0:
                    break
        self.now += timedelta(seconds=STEP_SECONDS)

    def _schedule(self) -> None:
        free = self.cpus - sum(item.placed for item in self.jobs if item.cluster)
        start = next(self._turn) % len(self.jobs)
        order = self.jobs[start:] + self.jobs[:start]
        # pods of different jobs get their nodes in turn, which is what makes them block each other
        while free and (waiting := [item for item in order if item.cluster and not item.whole]):
            for item in waiting[:free]:
                item.placed += 1
                free -= 1
        for item in self.jobs:
            if item.whole and item.since is None:
                item.since = self.now

    def _decide(self, simulated: SimulatedJob) -> float | None:
        """One reconcile; the seconds until the next."""
        job = simulated.job
        self.cache.put("finetunejobs", as_raw(job, self.now))
        plan = decide(job, self._observe(simulated), self.now)
        simulated.job = job.model_copy(update={"status": FinetuneJobStatus.model_validate(dump(plan.status))})
        for action in plan.actions:
            match action:
                case CreateCluster():
                    simulated.cluster, simulated.placed, simulated.since = True, 0, None
                case DeleteCluster():
                    simulated.cluster, simulated.placed, simulated.since = False, 0, None
                case _:
                    pass
        if plan.status.phase in TERMINAL:
            simulated.cluster, simulated.placed = False, 0
            self.cache.put("finetunejobs", as_raw(simulated.job, self.now))
        return plan.requeue_after

    def _observe(self, simulated: SimulatedJob) -> Observed:
        job, line = simulated.job, line_of(simulated.job, self.cache)
        if not simulated.cluster or job.status.ray is None:
            return Observed(line=line)
        ready = max(simulated.placed - 1, 0)
        cluster = make_cluster(
            name=job.status.ray.cluster, owner_uid=job.metadata.uid, head_ready=simulated.placed > 0,
            workers_ready=ready, workers_desired=simulated.workers,
        )  # fmt: skip
        done = simulated.since is not None and (self.now - simulated.since).total_seconds() >= RUN_SECONDS
        state = "FAILED" if done else "RUNNING" if simulated.whole else "PENDING"
        return make_observed(state, cluster=cluster, pods=simulated.pods(), line=line)


def as_raw(job: FinetuneJob, now: datetime) -> dict[str, object]:
    """The job as the watch has it. Jobs are as old as their names say."""
    created = NOW + timedelta(seconds=int(job.metadata.name[1:]))
    metadata = {"name": job.metadata.name, "namespace": job.metadata.namespace, "uid": job.metadata.uid}
    times = {
        "creationTimestamp": created.isoformat(),
        "resourceVersion": str(int((now - NOW).total_seconds() * 100) + next(_versions)),
    }
    return {"metadata": metadata | times, "spec": {}, "status": dump(job.status)}


_versions = itertools.count(1)


def make_nodes(cpus: int, workers: list[int]) -> Nodes:
    jobs = []
    for number, count in enumerate(workers):
        metadata = {"name": f"j{number}", "uid": f"{number:08x}-0000-4000-8000-000000000000"}
        training = {"config": {"Training": {"num_training_workers": count}}}
        spec = training | {"retryPolicy": {"maxAttempts": 1}}
        jobs.append(SimulatedJob(make_job(metadata=metadata, spec=spec), count))
    return Nodes(cpus, jobs)


def run_until_all_have_run(nodes: Nodes, hours: float) -> None:
    """Until each job has had all of its pods and has ended."""
    while any(item.job.status.phase not in TERMINAL for item in nodes.jobs):
        nodes.step()
        used = sum(item.placed for item in nodes.jobs if item.cluster)
        assert used <= nodes.cpus
        waited = (nodes.now - NOW).total_seconds()
        waiting = [item.job.metadata.name for item in nodes.jobs if item.job.status.phase not in TERMINAL]
        assert waited < hours * 3600, f"{waiting} still wait after {waited:.0f} s"


@pytest.mark.parametrize(("count", "cpus"), [(30, 4), pytest.param(100, 16, marks=pytest.mark.slow)])
def test_jobs_that_start_together_on_a_small_cluster_all_have_their_turn(count: int, cpus: int) -> None:
    nodes = make_nodes(cpus, [1 + number % 3 for number in range(count)])
    # one after the other would take this long, and the cluster has room for one of the largest jobs at least
    run_until_all_have_run(nodes, hours=2 * count * (RUN_SECONDS + GIVE_BACK_SECONDS) / 3600)
    assert all(item.job.status.reason == Reason.TRAINING_FAILED for item in nodes.jobs), "each has run, none was given up"
    assert all((item.job.status.failed_attempts or 0) == 1 for item in nodes.jobs), "giving pods back counts as no failure"


def test_a_job_that_fits_nowhere_does_not_block_the_others() -> None:
    nodes = make_nodes(4, [9, 1, 2, 3, 1, 2])
    small = nodes.jobs[1:]
    while any(item.job.status.phase not in TERMINAL for item in small):
        nodes.step()
        assert (nodes.now - NOW).total_seconds() < 10 * (OLDEST_SECONDS + RUN_SECONDS)
    assert nodes.jobs[0].job.status.reason == Reason.UNSCHEDULABLE


def waiting_since(seconds: float, line: Line | None, **parts: object) -> Phase | None:
    status = begun(Phase.PROVISIONING)
    assert status.ray is not None
    status = status.model_copy(update={"ray": status.ray.model_copy(update={"request_time": NOW})})
    pod = make_pod(reason=Reason.UNSCHEDULABLE, message="insufficient cpu")
    observed = make_observed(cluster=make_cluster(head_ready=False, workers_ready=0), pods=(pod,), line=line)
    job = FinetuneJob.model_validate(raw_job(status=status, **parts))
    return decide(job, observed, NOW + timedelta(seconds=seconds)).status.phase


ALONE, OLDEST, YOUNGER = Line(), Line(competing=True), Line(competing=True, older_competing=True, older=True)


def test_pods_are_given_back_only_where_another_job_waits_too_and_sooner_for_an_older_one() -> None:
    assert waiting_since(1e6, ALONE) is Phase.PROVISIONING
    assert waiting_since(GIVE_BACK_SECONDS - 1, YOUNGER) is Phase.PROVISIONING
    assert waiting_since(GIVE_BACK_SECONDS, YOUNGER) is Phase.RETRYING
    assert waiting_since(OLDEST_SECONDS - 1, OLDEST) is Phase.PROVISIONING
    assert waiting_since(OLDEST_SECONDS, OLDEST) is Phase.RETRYING


def test_a_job_in_a_queue_is_left_to_it() -> None:
    assert waiting_since(1e6, YOUNGER, metadata={"labels": {"kueue.x-k8s.io/queue-name": "q"}}) is Phase.PROVISIONING


def test_the_time_in_which_pods_were_given_back_counts_against_the_provisioning_timeout() -> None:
    nodes = make_nodes(2, [5, 5])
    spec = nodes.jobs[1].job.spec.model_copy(update={"provisioning_timeout_seconds": 300})
    nodes.jobs[1].job = nodes.jobs[1].job.model_copy(update={"spec": spec})
    while nodes.jobs[1].job.status.phase not in TERMINAL:
        nodes.step()
        assert (nodes.now - NOW).total_seconds() < 400
    assert nodes.jobs[1].job.status.reason == Reason.PROVISIONING_TIMEOUT
    assert (nodes.now - NOW).total_seconds() > 290
