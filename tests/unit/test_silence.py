"""What a job says while its dashboard does not answer, and what is not concluded from that."""

from __future__ import annotations

from datetime import timedelta

import pytest
from tests.support.builders import NOW, begun, make_cluster, make_job, make_observed, make_pod

from finetune_operator.api.v1alpha1 import FinetuneJobStatus, Phase, Reason
from finetune_operator.decide import Plan, decide
from finetune_operator.observed import Observed, Silence

RUNNING = begun(Phase.RUNNING, submitted=True, start_time=NOW)
NO_NODE = make_pod("a", trouble=Reason.UNSCHEDULABLE, detail="0/3 nodes are available")


def silent(seconds: float) -> Silence:
    return Silence(NOW - timedelta(seconds=seconds), "connection refused")


ONE_READY = make_observed("Unknown", cluster=make_cluster(workers_ready=1), silence=silent(15), pods=(NO_NODE,))
KEY_LOST = make_observed("Unknown", silence=Silence(NOW, "made with the key abc", Reason.TOKEN_KEY_LOST))


@pytest.mark.parametrize(
    ("status", "observed", "phase", "reason", "says", "again"),
    [
        (RUNNING, make_observed("Unknown", silence=silent(14)), "Running", "TrainingStarting", "2 workers on cluster", 1),
        (RUNNING, make_observed("Unknown", silence=silent(15)), "Running", "DashboardUnreachable",
         "does not answer since 2026-01-02T03:03:50Z: connection refused", 30),
        (RUNNING, ONE_READY, "Running", "Unschedulable", "connection refused", 30),
        (RUNNING, KEY_LOST, "Running", "TokenKeyLost", "made with the key abc", 30),
        (begun(), make_observed("Unknown", silence=silent(3)), "Provisioning", "ClusterStarting", "2/2 workers ready", 12),
        (begun(), make_observed("Unknown", silence=silent(15)), "Provisioning", "DashboardUnreachable", "refused", 30),
        (begun(), KEY_LOST, "Provisioning", "TokenKeyLost", "made with the key abc", 30),
    ],
    ids=["moment", "longer", "pod has a trouble too", "lost key", "moment at first", "longer at first", "lost key at first"],
)  # fmt: skip
def test_a_silence_that_lasts_is_told_with_its_cause_and_changes_no_phase(
    status: FinetuneJobStatus, observed: Observed, phase: str, reason: str, says: str, again: float
) -> None:
    plan = decide(make_job(status=status), observed, NOW)
    assert (plan.status.phase, plan.status.reason, plan.actions, plan.requeue_after) == (phase, reason, (), again)
    assert says in (plan.status.message or "")


def test_nothing_is_concluded_before_the_dashboard_was_asked() -> None:
    """As after a restart: the run may have ended within its deadline, or made steps."""
    assert RUNNING.ray is not None
    status = RUNNING.model_copy(update={"ray": RUNNING.ray.model_copy(update={"start_time": NOW - timedelta(days=1)})})
    job = make_job(status=status, spec={"activeDeadlineSeconds": 60})
    assert decide(job, make_observed("Unknown", asked=False), NOW) == Plan(status)
    assert decide(job, make_observed("Unknown"), NOW).status.reason == Reason.DEADLINE_EXCEEDED
    cancelled = make_job(status=status, spec={"cancel": True})
    assert decide(cancelled, make_observed("Unknown", asked=False), NOW).status.reason == Reason.CANCELLED_BY_USER
