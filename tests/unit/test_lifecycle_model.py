"""A whole world in a few lines, driven by chance: KubeRay, Ray, a user and an operator that dies between any two writes."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from tests.support.builders import NOW, UID, finished_progress, make_cluster, make_job, make_progress

from finetune_operator.api.v1alpha1 import TERMINAL, ConditionType, FinetuneJob, FinetuneJobStatus, Phase, dump
from finetune_operator.decide import CreateCluster, DeleteCluster, DeleteJob, Plan, StopRun, Submit, decide
from finetune_operator.desired import naming
from finetune_operator.observed import Observed, RayJob
from finetune_operator.status import condition_is_true


@dataclass
class Head:
    """A Ray cluster that exists."""

    name: str
    ready: bool = False
    lost: bool = False
    deleting: bool = False
    runs: dict[str, str] = field(default_factory=dict)
    """Submission id → what Ray says."""


class World(RuleBasedStateMachine):
    """What is stored is ``job``; what exists is ``cluster``. Reads before an action are of the present, as `Reconciler` does."""

    def __init__(self) -> None:
        super().__init__()
        self.job: FinetuneJob = make_job(spec={"retryPolicy": {"maxAttempts": 3, "backoffSeconds": 5}})
        self.now = NOW
        self.cluster: Head | None = None
        self.submitted: list[str] = []
        self.known: set[str] = set()
        """Submissions that the status has told of."""
        self.ended: FinetuneJobStatus | None = None

    def observe(self) -> Observed:
        head, ray = self.cluster, self.job.status.ray
        if head is None or ray is None or ray.cluster != head.name:
            return Observed()
        cluster = make_cluster(
            name=head.name, head_ready=head.ready and not head.lost, head_lost=head.lost, deleting=head.deleting
        )
        if not head.ready or head.lost:
            return Observed(cluster=cluster)
        state: Any = head.runs.get(ray.submission_id, "Missing")
        attempt = self.job.status.attempt or 0
        report = finished_progress(attempt=attempt) if state == "SUCCEEDED" else None
        return Observed(cluster=cluster, ray_job=RayJob(state), progress=make_progress(**report) if report else None)

    def act(self, plan: Plan) -> None:
        for action in plan.actions:
            match action:
                case CreateCluster(attempt):
                    assert self.cluster is None, "one cluster at a time"
                    self.cluster = Head(naming.cluster_name(self.job, attempt))
                case Submit(attempt):
                    assert self.cluster is not None
                    submission_id = naming.submission_id(self.job, attempt)
                    assert submission_id not in self.known, "nothing that was seen is submitted again"
                    assert submission_id not in self.cluster.runs
                    self.submitted.append(submission_id)
                    self.cluster.runs[submission_id] = "PENDING"
                case StopRun():
                    self.stop()
                case DeleteCluster(name, _uid):
                    assert self.cluster is not None
                    assert self.cluster.name == name
                    self.cluster.deleting = True
                case DeleteJob():
                    raise AssertionError("nobody asked for it")

    def stop(self) -> None:
        assert self.cluster is not None
        for submission_id, state in self.cluster.runs.items():
            if state in {"PENDING", "RUNNING"}:
                self.cluster.runs[submission_id] = "STOPPED"

    @rule(written=st.booleans(), acted=st.booleans(), seconds=st.sampled_from([0, 1, 5, 30, 130]))
    def reconcile(self, written: bool, acted: bool, seconds: int) -> None:
        """The operator may die before it acts, and between action and write."""
        plan = decide(self.job, self.observe(), self.now)
        if acted:
            self.act(plan)
            if written:
                stored = FinetuneJobStatus.model_validate(dump(plan.status))
                self.job = self.job.model_copy(update={"status": stored})
                if stored.ray and condition_is_true(stored, ConditionType.SUBMITTED):
                    self.known.add(stored.ray.submission_id)
        self.now += timedelta(seconds=seconds)

    @rule(steps=st.integers(1, 12), ends=st.booleans())
    def all_goes_well(self, steps: int, ends: bool) -> None:
        """Clusters start and go, runs start and perhaps end, and every write comes through."""
        for _ in range(steps):
            head = self.cluster
            if head is not None and head.deleting:
                self.cluster = None
            elif head is not None:
                head.ready = True
                ended = {"RUNNING": "SUCCEEDED"} if ends and self.job.status.phase is not Phase.SUSPENDING else {}
                head.runs = {key: ({"PENDING": "RUNNING"} | ended).get(state, state) for key, state in head.runs.items()}
            self.reconcile(True, True, 5)

    @precondition(lambda self: self.cluster is not None and self.cluster.ready)
    @rule()
    def the_head_is_lost(self) -> None:
        assert self.cluster is not None
        self.cluster.lost = True

    @precondition(lambda self: self.cluster is not None and self.cluster.ready)
    @rule()
    def ray_on_the_head_starts_anew_and_forgets(self) -> None:
        assert self.cluster is not None
        self.cluster.runs.clear()

    @precondition(lambda self: self.cluster is not None and self.cluster.deleting)
    @rule()
    def the_cluster_is_gone(self) -> None:
        self.cluster = None

    @precondition(lambda self: self.cluster is not None)
    @rule()
    def somebody_deletes_the_cluster(self) -> None:
        assert self.cluster is not None
        self.cluster.deleting = True

    @precondition(lambda self: self.cluster is not None and self.cluster.runs)
    @rule(state=st.sampled_from(["RUNNING", "FAILED", "STOPPED", "SUCCEEDED"]))
    def the_run_goes_on(self, state: str) -> None:
        assert self.cluster is not None
        last = list(self.cluster.runs)[-1]
        if self.cluster.runs[last] in {"PENDING", "RUNNING"}:
            self.cluster.runs[last] = state

    @rule(suspend=st.booleans())
    def the_user_suspends_or_resumes(self, suspend: bool) -> None:
        self.job = self.job.model_copy(update={"spec": self.job.spec.model_copy(update={"suspend": suspend})})

    @invariant()
    def nothing_is_submitted_but_for_an_attempt_that_is_stored(self) -> None:
        ids = {f"{UID}-a{number}" for number in range(1, (self.job.status.attempt or 0) + 1)}
        assert set(self.submitted) <= ids

    @invariant()
    def only_one_run_is_alive(self) -> None:
        runs = self.cluster.runs.values() if self.cluster else ()
        assert sum(state in {"PENDING", "RUNNING"} for state in runs) <= 1

    @invariant()
    def the_end_is_final_and_success_is_true(self) -> None:
        status = self.job.status
        if self.ended is not None:
            assert status.model_copy(update={"observed_generation": 1}) == self.ended
        elif status.phase in TERMINAL:
            self.ended = status.model_copy(update={"observed_generation": 1})
            failed = [attempt for attempt in status.attempt_history if attempt.reason in {"HeadLost", "TrainingFailed"}]
            assert status.phase is Phase.SUCCEEDED or status.failed_attempts == 3 or len(failed) >= 3

    def teardown(self) -> None:
        """Once nothing goes wrong any more, the job ends or rests, and nothing is left running."""
        self.the_user_suspends_or_resumes(False)
        self.all_goes_well(60, True)
        assert self.job.status.phase in {Phase.SUCCEEDED, Phase.FAILED}
        assert self.cluster is None


World.TestCase.settings = settings(max_examples=settings.default.max_examples * 3 // 2, stateful_step_count=40, deadline=None)
TestWorld = World.TestCase
