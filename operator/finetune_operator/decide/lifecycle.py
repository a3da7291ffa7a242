"""The state machine of a FinetuneJob: Pending → Provisioning → Running → Succeeded, Failed or Cancelled, with the detours
Queued (`queueing`), Retrying (`attempts`) and Suspending → Suspended (`suspension`).

Every reconcile may be the first one after a restart, so nothing is remembered but the stored status. A plan whose
intent is not stored yet has no actions: the attempt, its cluster's name and its submission id are written before
anything is made.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from finetune_operator.api.reasons import NEEDS_ATTENTION
from finetune_operator.api.v1alpha1 import (
    TERMINAL,
    ConditionType,
    FinetuneJob,
    FinetuneJobStatus,
    JobIdentity,
    Phase,
    RayStatus,
    Reason,
)
from finetune_operator.constants import DASHBOARD_PORT, JOB_LABEL, OUTPUT_MOUNT
from finetune_operator.decide import queueing, sharing, suspension
from finetune_operator.decide.attempts import attempt_failed, begin_attempt, retry
from finetune_operator.decide.ending import after_the_end, begin_again, end, fail, training_since, within_deadlines
from finetune_operator.decide.failures import describe, explain_failure, explain_loss, would_recur
from finetune_operator.decide.fetching import fetch_first
from finetune_operator.decide.plan import CreateCluster, Plan, Submit
from finetune_operator.decide.resumption import resume_note
from finetune_operator.decide.stopping import stop_first
from finetune_operator.desired import naming
from finetune_operator.desired.defaults import stall_timeout_seconds
from finetune_operator.observed import Cluster, Observed, Silence
from finetune_operator.status import (
    checkpoint_status,
    condition_is_true,
    find_condition,
    output_status,
    progress_status,
    result_status,
    set_condition,
    set_phase,
)
from finetune_trainer.config.notes import config_notes

PREFLIGHT_SECONDS = 5.0
"""How often to look for a missing claim: claims are read by name, not watched."""

PROVISIONING_SECONDS = 5.0
"""Every change of the cluster causes an event; this is for lost events."""

POLL_SECONDS = (0.5, 10.0)
"""Shortest and longest pause between two polls of a run; a pause is a quarter of the remaining time."""


SILENT_SECONDS = 30.0
"""How often to look at a job whose dashboard does not answer; an answer wakes it."""

LAST_REPORT_SECONDS = 120.0
"""How long to poll for the last report of a finished run, counted from when its end was first seen."""

COPY_SECONDS = 3600.0
"""How long the pods of a finished run are kept when its output claim is being deleted: with them the claim would go."""

TAKEN_UP_SECONDS = 20.0
"""KubeRay writes a status of a new RayCluster within a second or two."""

_OVER_BY_THE_CLOCK = frozenset({Reason.DEADLINE_EXCEEDED, Reason.PROVISIONING_TIMEOUT})
"""Reasons that a job has before its end only while its driver is being stopped."""


def decide(job: FinetuneJob, observed: Observed, now: datetime) -> Plan:
    """What to do for a job, and its next status."""
    if job.status.phase in TERMINAL:
        return after_the_end(job, observed, now)
    status = job.status.model_copy(update={"observed_generation": job.metadata.generation})
    reported = _with_report(status, observed, now)
    ordered = _ordered_end(job, reported, observed, now)
    if ordered is not None:
        return stop_first(job, reported, ordered, observed, now)
    if not observed.asked:
        return Plan(job.status)  # nothing is concluded from a silence that is ours; the answer wakes the job
    plan = _go_on(job, _with_claim(reported, observed, now), observed, now)
    if plan.status.phase not in TERMINAL:
        plan = within_deadlines(job, status, plan, now)
    return stop_first(job, reported, plan, observed, now)


def decide_unreadable(job: JobIdentity, observed: Observed, problems: str, now: datetime) -> Plan:
    """The same for a job whose spec cannot be read, or is not allowed: it fails, and what it has is deleted."""
    if job.status.phase in TERMINAL:
        return after_the_end(job, observed, now)
    status = job.status.model_copy(update={"observed_generation": job.metadata.generation})
    return stop_first(job, status, fail(status, Reason.INVALID_SPEC, problems, now), observed, now)


def _ordered_end(job: FinetuneJob, status: FinetuneJobStatus, observed: Observed, now: datetime) -> Plan | None:
    """The end that the user or a deadline has ordered."""
    if job.metadata.deletion_timestamp is not None:
        return end(status, Phase.CANCELLED, Reason.CANCELLED_BY_USER, "the job is being deleted", now)
    if job.spec.cancel:
        return end(status, Phase.CANCELLED, Reason.CANCELLED_BY_USER, "spec.cancel is true", now)
    if status.reason in _OVER_BY_THE_CLOCK and observed.ray_job.state != "SUCCEEDED":
        return fail(status, Reason(status.reason), status.message or "", now)
    return None


def _with_claim(status: FinetuneJobStatus, observed: Observed, now: datetime) -> FinetuneJobStatus:
    """Whether the output claim is being deleted, as a condition; absent as long as nobody has deleted it."""
    if not observed.claim_deleting and find_condition(status, ConditionType.OUTPUT_CLAIM_DELETING) is None:
        return status
    reason = Reason.OUTPUT_CLAIM_DELETING if observed.claim_deleting else Reason.ACCEPTED
    return set_condition(status, ConditionType.OUTPUT_CLAIM_DELETING, observed.claim_deleting, reason, "", now)


def _go_on(job: FinetuneJob, status: FinetuneJobStatus, observed: Observed, now: datetime) -> Plan:
    if suspension.is_wanted(job, status, observed):
        return suspension.suspend(job, status, observed, now)
    if status.ray is None or status.attempt is None:
        return _begin(job, status, observed, now)
    cluster = observed.cluster
    if cluster is not None and cluster.owner_uid != job.metadata.uid:
        message = f"RayCluster {cluster.name} exists and belongs to somebody else; delete it and make a new FinetuneJob"
        return fail(status, Reason.NAME_CONFLICT, message, now)
    if status.phase is Phase.RETRYING:
        return retry(job, status, observed, now)
    waiting = queueing.wait_for_quota(job, status, observed, now) or sharing.give_back(job, status, observed, now)
    if waiting is not None:
        return waiting
    go_on = _follow if condition_is_true(status, ConditionType.SUBMITTED) else _provision
    return go_on(job, status, observed, now)


def _begin(job: FinetuneJob, status: FinetuneJobStatus, observed: Observed, now: datetime) -> Plan:
    """Check what the job refers to; then store the first attempt before anything is made for it."""
    if observed.missing:
        reason = observed.missing[0].reason
        message = "; ".join(missing.message for missing in observed.missing)
        status = set_condition(status, ConditionType.VALIDATED, False, reason, message, now)
        return Plan(set_phase(status, Phase.PENDING, reason, message), requeue_after=observed.look_again)
    if (plan := fetch_first(job, status, observed, now)) is not None:
        return plan
    status = status.model_copy(
        update={"resume": status.resume or observed.resume, "defaults": status.defaults or observed.defaults}
    )
    notes = "; ".join([*config_notes(job.spec.config), *resume_note(status.resume)])
    status = set_condition(status, ConditionType.VALIDATED, True, Reason.ACCEPTED, notes, now)
    if find_condition(status, ConditionType.SUSPENDED) is not None:
        status = set_condition(status, ConditionType.SUSPENDED, False, Reason.ACCEPTED, "", now)
    status = begin_attempt(job, status, None, now)
    message = f"cluster {_ray(status).cluster} will be made"
    return Plan(set_phase(status, Phase.PENDING, Reason.ACCEPTED, message), requeue_after=0)


def _provision(job: FinetuneJob, status: FinetuneJobStatus, observed: Observed, now: datetime) -> Plan:
    """Until the head is ready."""
    attempt, cluster = status.attempt or 1, observed.cluster
    if observed.start_problem is not None:
        reason, message = observed.start_problem.reason, observed.start_problem.message
        status = set_condition(status, ConditionType.CLUSTER_READY, False, reason, message, now)
        phase = Phase.PENDING if cluster is None else Phase.PROVISIONING
        return Plan(set_phase(status, phase, reason, message), requeue_after=PREFLIGHT_SECONDS)
    if cluster is None and _ray(status).cluster == naming.cluster_name(job, attempt):
        return Plan(status, (CreateCluster(attempt),), requeue_after=0)
    if cluster is None or cluster.head_lost:
        message = f"RayCluster {_ray(status).cluster} or its head pod was lost before the run began"
        return attempt_failed(job, status, Reason.HEAD_LOST, message, now)
    return _submit(job, status, observed, cluster, now)


def _submit(job: FinetuneJob, status: FinetuneJobStatus, observed: Observed, cluster: Cluster, now: datetime) -> Plan:
    """Until Ray has the submission. It is made as soon as the head is ready, so that the driver starts while the
    workers still do; Ray holds the workers of the run back until they are there.
    """
    attempt = status.attempt or 1
    if cluster.deleting or not cluster.head_ready:
        return Plan(_provisioning(status, observed, cluster, now), requeue_after=PROVISIONING_SECONDS)
    if observed.ray_job.state == "Missing":
        return Plan(_provisioning(status, observed, cluster, now), (Submit(attempt),), requeue_after=0)
    if observed.ray_job.state == "Unknown":
        return Plan(_provisioning(status, observed, cluster, now), requeue_after=_until_reported(observed, now))
    url = f"http://{naming.dashboard_service(cluster.name)}.{job.metadata.namespace}.svc:{DASHBOARD_PORT}"
    status = status.model_copy(update={"ray": _ray(status).model_copy(update={"dashboard_url": url})})
    status = set_condition(status, ConditionType.SUBMITTED, True, Reason.SUBMITTED, _ray(status).submission_id, now)
    return _follow(job, status, observed, now)


def _follow(job: FinetuneJob, status: FinetuneJobStatus, observed: Observed, now: datetime) -> Plan:
    """From the submission to the end of the run."""
    cluster, state = observed.cluster, observed.ray_job.state
    if cluster is None or cluster.deleting:
        message = f"RayCluster {_ray(status).cluster} was deleted while the job ran"
        return attempt_failed(job, status, Reason.HEAD_LOST, message, now)
    if cluster.head_lost or state == "Missing":
        message = f"the head pod of RayCluster {cluster.name} was lost, and the driver with it{explain_loss(observed)}"
        return attempt_failed(job, status, Reason.HEAD_LOST, message, now)
    if state in {"FAILED", "STOPPED"}:
        failure = explain_failure(observed)
        return attempt_failed(job, status, failure.reason, failure.message, now, recurs=would_recur(observed, failure.reason))
    if state == "SUCCEEDED":
        return _complete(job, status, observed, now)
    return _watch(job, status, observed, cluster, now)


def _with_report(status: FinetuneJobStatus, observed: Observed, now: datetime) -> FinetuneJobStatus:
    """The trainer's report, and its newest checkpoint, in the status."""
    report = observed.progress
    if report is None:
        return status
    if report.total_steps or status.progress is None:
        # until an attempt reports its total, show the steps of the previous one
        status = status.model_copy(update={"progress": progress_status(report, status.progress, now)})
    if report.checkpoint is None:
        return status
    checkpoint = checkpoint_status(report.checkpoint)
    status = set_condition(status, ConditionType.CHECKPOINT_AVAILABLE, True, Reason.CHECKPOINTED, "", now)
    return status.model_copy(update={"checkpoint": checkpoint})


def _watch(job: FinetuneJob, status: FinetuneJobStatus, observed: Observed, cluster: Cluster, now: datetime) -> Plan:
    unknown = observed.ray_job.state == "Unknown"
    if (unknown or observed.ray_job.state == "PENDING") and status.phase is not Phase.RUNNING:
        after = _until_reported(observed, now) if unknown else POLL_SECONDS[0]
        return Plan(_provisioning(status, observed, cluster, now), requeue_after=after)
    if cluster.workers_ready < cluster.workers_desired and status.phase is not Phase.RUNNING:
        return Plan(_provisioning(status, observed, cluster, now), requeue_after=1.0)
    status = _started(_with_workers(status, cluster), now)
    reason, message = _pace(job, status, now)
    status = set_condition(status, ConditionType.PROGRESSING, reason is not Reason.STALLED, reason, message, now)
    message = message or f"{cluster.workers_desired} workers on cluster {cluster.name}"
    whole = cluster.workers_ready >= cluster.workers_desired
    if observed.claim_deleting:
        reason, message = Reason.OUTPUT_CLAIM_DELETING, _claim_is_being_deleted(job)
    elif not whole:
        reason, message = _incomplete(reason, observed, cluster)
    because = Reason.CLUSTER_READY if whole else reason
    status = set_condition(status, ConditionType.CLUSTER_READY, whole, because, _workers_ready(cluster), now)
    reason, message = _with_silence(reason, message, observed, now)
    after = _until_reported(observed, now) if unknown else poll_seconds(status)
    return Plan(set_phase(status, Phase.RUNNING, reason, message), requeue_after=after)


def _incomplete(reason: Reason, observed: Observed, cluster: Cluster) -> tuple[Reason, str]:
    """The message of a running job while workers are missing; Ray Train waits for them."""
    message = _workers_ready(cluster)
    if observed.lost:
        reason, message = Reason.WORKER_LOST, f"{message}; a worker was lost{explain_loss(observed)}"
    if (found := observed.pod_problem) is not None:
        reason, message = found[1].reason, f"{message}; {describe(*found)}"
    return reason, message


def _with_silence(reason: Reason, message: str, observed: Observed, now: datetime) -> tuple[Reason, str]:
    """What the dashboard's silence adds once it has lasted. A reason that needs attention itself has precedence."""
    silence = observed.silence
    if silence is None or silence.seconds_until_reported(now):
        return reason, message
    return reason if reason in NEEDS_ATTENTION - {Reason.STALLED} else silence.reason, f"{message}; {_words(silence)}"


def _words(silence: Silence) -> str:
    if silence.reason is Reason.TOKEN_KEY_LOST:
        return f"the Ray cluster cannot be asked: {silence.cause}"
    return f"the Ray dashboard does not answer since {silence.since:%Y-%m-%dT%H:%M:%SZ}: {silence.cause}"


def _until_reported(observed: Observed, now: datetime) -> float:
    """How long to wait for an answer, which wakes the job, before the silence is reported or looked at again."""
    rest = observed.silence.seconds_until_reported(now) if observed.silence else POLL_SECONDS[0]
    return rest or SILENT_SECONDS


def _pace(job: FinetuneJob, status: FinetuneJobStatus, now: datetime) -> tuple[Reason, str]:
    """Whether the run makes progress. The message about a stall has no seconds, which would change at each poll."""
    progress = status.progress
    since, step = training_since(status) or now, 0
    if progress is not None:
        since, step = max(since, progress.step_time or since), progress.step
    if (now - since).total_seconds() >= stall_timeout_seconds(job):
        return Reason.STALLED, f"no new step since {since:%Y-%m-%dT%H:%M:%SZ}, after step {step}"
    return (Reason.TRAINING_RUNNING if step else Reason.TRAINING_STARTING), ""


def _complete(job: FinetuneJob, status: FinetuneJobStatus, observed: Observed, now: datetime) -> Plan:
    progress, ray = observed.progress, _ray(status)
    ended = ray.end_time or now
    waited = (now - ended).total_seconds()
    status = status.model_copy(update={"ray": ray.model_copy(update={"end_time": ended})})
    if progress is None:
        return _without_report(status, waited, now)
    if progress.output is None:
        return fail(status, Reason.OUTPUT_MISSING, "the trainer ended without error and left no manifest", now)
    claim, path = naming.output_claim_name(job), naming.output_path(job)
    message = f"{progress.output.format} on claim {claim}, folder {path}"
    result = result_status(progress.result) if progress.result else None
    changes: dict[str, Any] = {"output": output_status(claim, path, progress), "result": result}
    status = _started(status, now).model_copy(update=changes)
    if observed.claim_deleting:
        if waited > COPY_SECONDS:
            return fail(status, Reason.OUTPUT_CLAIM_DELETING, f"{message}; the claim was deleted", now)
        message = f"the run is complete, {message}; {_claim_is_being_deleted(job)}"
        return Plan(set_phase(status, Phase.RUNNING, Reason.OUTPUT_CLAIM_DELETING, message), requeue_after=POLL_SECONDS[1])
    if status.checkpoint is not None and progress.checkpoint is None:  # the trainer has removed them
        status = set_condition(status, ConditionType.CHECKPOINT_AVAILABLE, False, Reason.COMPLETED, "", now)
        status = status.model_copy(update={"checkpoint": None})
    return end(status, Phase.SUCCEEDED, Reason.COMPLETED, message, now)


def _without_report(status: FinetuneJobStatus, waited: float, now: datetime) -> Plan:
    """Wait for the last report of a finished run; then let another attempt, which finds the run finished, verify its manifest."""
    if waited <= LAST_REPORT_SECONDS:
        message = "the run has ended; waiting for its manifest"
        return Plan(set_phase(status, Phase.RUNNING, Reason.TRAINING_RUNNING, message), requeue_after=POLL_SECONDS[0])
    message = "the trainer ended without error, and its last report cannot be read"
    if any(attempt.reason == Reason.OUTPUT_MISSING for attempt in status.attempt_history):
        return fail(status, Reason.OUTPUT_MISSING, message, now)
    return begin_again(status, Reason.OUTPUT_MISSING, f"{message}; another attempt verifies the output", now)


def _claim_is_being_deleted(job: FinetuneJob) -> str:
    """What a user has to know who has deleted the output claim. Pods keep it alive."""
    claim, folder = naming.output_claim_name(job), naming.output_path(job)
    pod = f"$(kubectl -n {job.metadata.namespace} get pods -l {JOB_LABEL}={job.metadata.name} -o name | head -n 1)"
    return (
        f"claim {claim} is being deleted, and goes with the last pod of this job: copy the folder now, with "
        f"kubectl exec {pod} -- tar -C {OUTPUT_MOUNT} -c {folder} > {folder}.tar"
    )


def _started(status: FinetuneJobStatus, now: datetime) -> FinetuneJobStatus:
    ray = _ray(status)
    ray = ray.model_copy(update={"start_time": training_since(status) or now})
    return status.model_copy(update={"start_time": status.start_time or now, "ray": ray})


def poll_seconds(status: FinetuneJobStatus) -> float:
    """Pause until the next poll: short near the end, long in a long run."""
    shortest, longest = POLL_SECONDS
    progress = status.progress
    if progress is None or progress.eta_seconds is None:
        return 2 * shortest
    return min(max(progress.eta_seconds / 4, shortest), longest)


def _provisioning(status: FinetuneJobStatus, observed: Observed, cluster: Cluster, now: datetime) -> FinetuneJobStatus:
    status = _with_workers(status, cluster)
    reason, message = Reason.CLUSTER_STARTING, _workers_ready(cluster)
    begun = _ray(status).request_time or now
    if not cluster.taken_up and (now - begun).total_seconds() >= TAKEN_UP_SECONDS:
        reason = Reason.KUBERAY_NOT_RESPONDING
        message = f"KubeRay has not taken up RayCluster {cluster.name}: is the operator of KubeRay running?"
    if cluster.message:
        reason = Reason.QUOTA_EXCEEDED if "exceeded quota" in cluster.message else reason
        message += f"; {cluster.message}"
    lost = next(((pod, pod.problem) for pod in reversed(observed.lost) if pod.problem is not None), None)
    if (found := observed.pod_problem or lost) is not None:
        reason, message = found[1].reason, f"{message}; {describe(*found)}"
    reason, message = _with_silence(reason, message, observed, now)
    status = set_condition(status, ConditionType.CLUSTER_READY, False, reason, message, now)
    return set_phase(status, Phase.PROVISIONING, reason, message)


def _workers_ready(cluster: Cluster) -> str:
    head = "ready" if cluster.head_ready else "not ready"
    return f"cluster {cluster.name}: head {head}, {cluster.workers_ready}/{cluster.workers_desired} workers ready"


def _with_workers(status: FinetuneJobStatus, cluster: Cluster) -> FinetuneJobStatus:
    ready, desired = cluster.workers_ready, cluster.workers_desired
    update = {"workers_ready": ready, "workers_desired": desired, "workers": f"{ready}/{desired}"}
    return status.model_copy(update={"ray": _ray(status).model_copy(update=update)})


def _ray(status: FinetuneJobStatus) -> RayStatus:
    if status.ray is None:
        raise ValueError("status.ray is written with the attempt, before anything is made")
    return status.ray
